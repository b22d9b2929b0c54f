"""MiniLM embedding throughput beside sentence-transformers, in texts a second on the CPU.

    python -m experiments.benchmarks.minilm_throughput [--texts=FILE.csv[.gz],FILE..] [--column=text] [--num-texts=400]
        [--threads=2] [--rounds=5] [--clock=wall] [--folder=DIR]

Both embed the same texts by the same weights, tokenizing included; sentence-transformers sorts by length and embeds 32
at a time, its default. They take turns, round after round, so that a busy machine slows both alike, and every shape is
compiled before. The ratio is the median of the rounds' ratios. On a machine with other work `--threads=1 --clock=cpu`
counts the process's CPU time instead. `--texts=made-up` (the default) are sentences of log-normal length. Needs the
extra `notes`, the weights (`ehrjax.models.minilm_weights`) and sentence-transformers in the same environment.

Clinical notes, two CPU threads, quiet, 2026-11-22, texts/s, sentence-transformers' and the ratio (least to most):

    1,908 notes, mean 505 characters              129.9   100.8   1.28 (1.21 to 1.35)
    400 of them, mean 464 characters              132.8    93.1   1.44 (1.33 to 1.56)
    their 1,701 sections, mean 240 characters     181.6   136.5   1.35 (1.29 to 1.45)
    400 sections, mean 255 characters             169.8   117.0   1.45 (1.36 to 1.51)

On the last ones it was 0.97 (0.93 to 1.01) before three changes: layers whose weights are not slices of stacked ones,
attention that divides the outputs by the softmax's sum, and as many batches at once as there are cores. Padding is no
matter: sentence-transformers sorts by length, too, and pads 2.9 % of its tokens. What is left is products: of the
18 ms that a layer takes for 512 tokens in rows of 256 on one core, 12.5 are its four matrix products, 4.2 attention.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WORDS = (
    "patient denies chest pain reports shortness of breath on exertion since yesterday temperature stable oxygen "
    "saturation room air lungs clear heart regular rate continue furosemide daily follow up in two weeks"
)


def made_up_texts(num_texts: int, seed: int = 0) -> list[str]:
    """Word salads of log-normal length, median 30 words."""
    rng = np.random.default_rng(seed)
    counts = np.clip(rng.lognormal(np.log(30), 1.2, num_texts), 1, 400).astype(int)
    return [" ".join(rng.choice(WORDS.split(), count)) for count in counts]


def read_texts(paths: str, column: str, num_texts: int) -> list[str]:
    """`num_texts` texts drawn without replacement from a column of some CSV files."""
    tables = [pd.read_csv(path) for path in paths.split(",")]
    for path, table in zip(paths.split(","), tables, strict=True):
        if column not in table:
            raise SystemExit(f"{path} has no column {column!r}: choose one of {', '.join(table)} by --column.")
    texts = pd.concat([table[column] for table in tables]).dropna().tolist()
    drawn = np.random.default_rng(0).permutation(len(texts))[:num_texts]
    return [texts[place] for place in drawn]


def measure(runs, texts, rounds, clock):
    """Name -> texts a second in each round, and the vectors of the last."""
    rates, vectors = {name: [] for name in runs}, {}
    for run in runs.values():
        run(texts)
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            start = clock()
            vectors[name] = runs[name](texts)
            rates[name].append(len(texts) / (clock() - start))
    return {name: np.array(values) for name, values in rates.items()}, vectors


def main(argv=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", default="made-up", help="CSV files, separated by commas")
    parser.add_argument("--column", default="text", help="the column of the files that holds the text")
    parser.add_argument("--num-texts", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--folder", type=Path, help="folder of the weights")
    args = parser.parse_args(argv)
    # XLA sizes its pool by the cores it may use, once, so this comes before JAX is imported.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    import torch
    from sentence_transformers import SentenceTransformer

    from ehrjax.models.minilm_texts import load_text_encoder
    from ehrjax.models.minilm_weights import find_folder

    torch.set_num_threads(args.threads)
    folder = find_folder(args.folder)
    if args.texts == "made-up":
        texts = made_up_texts(args.num_texts)
    else:
        texts = read_texts(args.texts, args.column, args.num_texts)
    theirs, ours = SentenceTransformer(str(folder), device="cpu"), load_text_encoder(folder)
    runs = {
        "sentence-transformers": lambda texts: theirs.encode(texts, normalize_embeddings=True),
        "ehrjax": ours.embed,
    }
    rates, vectors = measure(runs, texts, args.rounds, CLOCKS[args.clock])
    cosines = (vectors["ehrjax"] * vectors["sentence-transformers"]).sum(axis=1)
    characters = [len(text) for text in texts]
    print(
        f"{len(texts)} texts of {np.mean(characters):.0f} characters (median {np.median(characters):.0f}), "
        f"{args.threads} threads, {args.clock} time, {args.rounds} rounds; least cosine {cosines.min():.7f}"
    )
    for name, values in rates.items():
        print(f"{name:24}{np.median(values):8.1f} texts/s  ({values.min():.1f} to {values.max():.1f})")
    ratios = rates["ehrjax"] / rates["sentence-transformers"]
    print(f"{'ratio':24}{np.median(ratios):8.2f}          ({ratios.min():.2f} to {ratios.max():.2f})")


if __name__ == "__main__":
    main()
