"""Leakage audit of a finished run, from what its workdir holds.

    python -m ehrjax.evaluate.audit --workdir=DIR

Prints a line a check and writes DIR/audit.json. Exit status: 0 passed, 1 failed, 2 the run cannot be audited.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ehrjax.evaluate.audit.checks import audit_run


def main(argv: Sequence[str] | None = None) -> int:
    """Audit the run of --workdir; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ehrjax.evaluate.audit", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run (experiments.run)")
    workdir = parser.parse_args(argv).workdir
    try:
        file = workdir / "results.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: let the run finish first.")
        audit = audit_run(workdir, results=json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        print(f"{workdir} cannot be audited: {error}", file=sys.stderr)
        return 2
    print("audit passed" if audit["passed"] else "audit FAILED")
    return 0 if audit["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
