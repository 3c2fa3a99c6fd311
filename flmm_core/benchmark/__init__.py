"""Backbones × methods × data sets, every item once, through any stop.

plan.py   what is measured, and what a folder that is begun may go on with
rows.py   the rows of a cell while it is measured
run.py    one call: heads, cells, report
"""

from flmm_core.benchmark.plan import Plan
from flmm_core.benchmark.run import BenchmarkRun

__all__ = ["BenchmarkRun", "Plan"]
