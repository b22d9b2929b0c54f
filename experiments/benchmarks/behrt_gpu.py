"""BEHRT training on a GPU beside a BERT in torch, model FLOPs utilisation and peak memory, into one JSON record.

    python -m experiments.benchmarks.behrt_throughput --device=gpu [--record=behrt_gpu.json]

Ours is bfloat16 on packed rows with logits at the masked positions; torch is bfloat16 autocast on padded rows with
scaled_dot_product_attention, `torch.compile` and logits at every position, at the same sizes (width 768, depth 12).
Each side runs only where its package sees the GPU.
"""

import json
import resource
import time
from pathlib import Path

import numpy as np

WIDTH, DEPTH, HEADS, TOKENS_A_STEP = 768, 12, 12, 32_768
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "L4": 121e12, "T4": 65e12, "V100": 125e12}  # dense bf16


def size_of(row_tokens: int) -> dict:
    """A BERT-base encoder for rows of so many tokens."""
    return {
        "embed_dim": WIDTH,
        "hidden_dim": WIDTH,
        "num_layers": DEPTH,
        "num_heads": HEADS,
        "max_tokens": row_tokens,
    }


def flops_a_step(num_rows: int, row_tokens: int, num_logits: int, vocab_size: int) -> float:
    """Products of a training step (twice the forward's again for the backward), whole rows of attention."""
    tokens = num_rows * row_tokens
    blocks = tokens * DEPTH * (24 * WIDTH**2 + 4 * row_tokens * WIDTH)
    return 3.0 * (blocks + num_logits * 2 * (WIDTH**2 + WIDTH * vocab_size))


def time_steps(train, num_rounds: int = 10) -> float:
    """Median seconds of a pass, after one to warm up."""
    train()
    seconds = []
    for _ in range(num_rounds):
        start = time.perf_counter()
        train()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def run_ours(batches, row_tokens, vocab_size):
    """Our figures for packed rows."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks.behrt_throughput import OurRun

    device = jax.devices()[0]
    entry = {}
    for path in ("pallas", "cudnn", "chunked"):
        try:
            run = OurRun(batches, size_of(row_tokens), dtype=jnp.bfloat16, path=path)
            seconds = time_steps(run.train) / len(batches)
        except Exception as error:  # a path that this GPU or release lacks must not cost the other figures
            entry[path] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        rows, slots = batches[0].tokens.shape[0], batches[0].masked.positions.size
        flops = flops_a_step(rows, row_tokens, slots, vocab_size)
        entry[path] = {
            "tokens_per_second": run.num_tokens / len(batches) / seconds,
            "step_seconds": seconds,
            "utilisation": _utilisation(flops / seconds, device.device_kind),
            "temp_bytes": run.step.memory_analysis().temp_size_in_bytes,
            "peak_bytes_so_far": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        }
        del run
    return entry


def run_torch(batches, row_tokens, vocab_size):
    """Torch's figures for padded rows, or why there are none."""
    try:
        import torch
    except ImportError:
        return {"error": "torch is not installed"}
    if not torch.cuda.is_available():
        return {"error": "torch sees no GPU"}
    from experiments.benchmarks.torch_behrt import TorchBehrt, to_padded

    model = TorchBehrt(vocab_size, **size_of(row_tokens)).cuda().train()
    loss = torch.compile(model.loss_padded)
    tx = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ready = [to_padded(batch, "cuda") for batch in batches]

    def train():
        for batch in ready:
            tx.zero_grad(set_to_none=True)
            with torch.autocast("cuda", torch.bfloat16):
                value = loss(*batch)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            tx.step()
        torch.cuda.synchronize()

    seconds = time_steps(train) / len(batches)
    num_tokens = sum(int((batch.segment_ids > 0).sum()) for batch in batches) / len(batches)
    rows = batches[0].tokens.shape[0]
    flops = flops_a_step(rows, row_tokens, rows * row_tokens, vocab_size)
    return {
        "tokens_per_second": num_tokens / seconds,
        "step_seconds": seconds,
        "utilisation": _utilisation(flops / seconds, torch.cuda.get_device_name()),
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def main(record: str) -> None:
    """Measure rows of 512 and 2,048 tokens, write and print the record."""
    import jax

    from experiments.benchmarks import behrt_throughput as cpu

    if jax.default_backend() != "gpu":
        raise SystemExit(f"--device=gpu needs a GPU that JAX sees: it sees {jax.devices()}.")
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "width": WIDTH,
        "depth": DEPTH,
        "rows": {},
    }
    for row_tokens in (512, 2048):
        num_rows = TOKENS_A_STEP // row_tokens
        sequences = cpu.make_sequences(cpu.lognormal_lengths(40 * num_rows, row_tokens))
        packed = cpu.packed_batches(sequences, row_tokens, num_rows, 2)
        padded = cpu.one_a_row(sequences, row_tokens, num_rows, 2)
        entry = {"ours": run_ours(packed, row_tokens, cpu.VOCAB_SIZE)}
        entry["torch"] = run_torch(padded, row_tokens, cpu.VOCAB_SIZE)
        rates = [path["tokens_per_second"] for path in entry["ours"].values() if "tokens_per_second" in path]
        if rates and "tokens_per_second" in entry["torch"]:
            entry["times_torch"] = max(rates) / entry["torch"]["tokens_per_second"]
        result["rows"][row_tokens] = entry
    result["host_max_rss_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path(record).write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(json.dumps(result, indent=2))


def _utilisation(rate: float, device: str) -> float | None:
    """Share of the device's dense bf16 peak, None for a device that is not in the table."""
    peaks = [peak for name, peak in PEAK_FLOPS.items() if name in device]
    return rate / peaks[0] if peaks else None
