"""Benchmarks of the budgets in the design: `python -m bench`."""
