"""Leakage audit of a finished run: `python -m ehrjax.audit --workdir=DIR`."""
