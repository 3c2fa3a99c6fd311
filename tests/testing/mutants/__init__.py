"""Faulty backbones, each with the check that is meant to see it.

python -m tests.testing.mutants                     # each mutant in each family
python -m tests.testing.mutants --family qwen NAME  # some of them
python -m tests.testing.mutants --good 10           # false alarms of all checks over 10 seeds
"""

from __future__ import annotations

from tests.testing.mutants import answers, facts, pixels, tokens, traces, views
from tests.testing.mutants.mutant import MUTANTS, Mutant

__all__ = ["MUTANTS", "Mutant", "answers", "facts", "pixels", "tokens", "traces", "views"]
