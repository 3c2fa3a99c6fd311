"""Measures backbones × methods × data sets: every phrase once, resumable after any stop.

plan.py   what is measured, and when an existing folder may be resumed
rows.py   the rows of an unfinished measurement
run.py    one run: heads, measurements, report
"""

from flmm_core.benchmark.plan import Plan
from flmm_core.benchmark.run import BenchmarkRun

__all__ = ["BenchmarkRun", "Plan"]
