"""Leakage audit of a finished run: `python -m ehrjax.evaluate.audit --workdir=DIR`."""
