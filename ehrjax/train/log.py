"""`metrics.jsonl` and the progress bar.

One JSON object a line: `step` (finished updates), `part` where a run has several, then `train/...` or `val/...`
figures; one that is not finite is null. Lines of a run that was killed and resumed equal an undisturbed run's but for
`TIMING_KEYS`.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

TIMING_KEYS = ("seconds", "examples_per_second")


def read_metrics(path: str | Path, *, part: str = "") -> list[dict[str, Any]]:
    """The whole lines of one part; a last line cut by a kill is left out. A missing file is an empty list."""
    path = Path(path)
    if not path.exists():
        return []
    return [row for row in map(_parse, path.read_bytes().splitlines()) if row and row.get("part", "") == part]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def write_atomic(path: str | Path, text: str) -> None:
    """Write `text` so that a kill leaves either the old file or the new one."""
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def json_number(value: Any) -> Any:
    """JSON has no NaN or infinity: those become None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """Appends lines to `path`, after dropping this part's lines beyond `resume_step` and anything half written."""

    def __init__(self, path: str | Path, *, part: str = "", resume_step: int = 0):
        self.path, self.part = Path(path), part
        self._drop_after(resume_step)
        self._file = self.path.open("a", encoding="utf-8")

    def _drop_after(self, step: int) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        kept = []
        for line in lines:
            row = _parse(line)
            if row and line.endswith(b"\n") and (row.get("part", "") != self.part or row["step"] <= step):
                kept.append(line)
        if kept != lines:
            write_atomic(self.path, b"".join(kept).decode())

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; it is with the operating system, hence safe from SIGKILL, when this returns."""
        row = {"step": step, **({"part": self.part} if self.part else {})}
        row |= {name: json_number(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Force the lines to disk: called before a checkpoint, which must never be ahead of its log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Progress:
    """A tqdm bar with loss, monitored metric and examples/s on a terminal; one line an evaluation elsewhere."""

    def __init__(self, num_steps: int, *, initial: int = 0, label: str = "train", enabled: bool = True):
        self._is_terminal = sys.stderr.isatty()
        self._is_enabled, self._label = enabled, label
        is_hidden = not (enabled and self._is_terminal)
        self._bar = tqdm(total=num_steps, initial=initial, desc=label, unit="step", disable=is_hidden)
        self._fields: dict[str, str] = {}

    def step(self) -> None:
        self._bar.update(1)

    def show(self, figures: Mapping[str, float]) -> None:
        """Replace the named figures beside the bar."""
        self._fields |= {name: f"{value:.4g}" for name, value in figures.items()}
        self._bar.set_postfix(self._fields, refresh=False)

    def say(self, text: str) -> None:
        """A line for whoever reads a log file; on a terminal the bar already says it."""
        if self._is_enabled and not self._is_terminal:
            print(f"{self._label}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._bar.close()
