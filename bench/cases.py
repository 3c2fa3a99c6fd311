"""What is measured: each case can be run in several ways.

A case is described by plain values, so that it can be sent to another process, and is built
there. `run` does the work once in one way and says what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

BARE, OURS, ORIGINAL = "bare", "ours", "original-way"


@dataclass(frozen=True)
class CaseSpec:
    """One case.

    Attributes:
        kind: "recording", "training", "refining" or "sentences".
        model: "medium", the name of a backbone plugin (its tiny twin), or a real size of
            `bench.real_models`; for refining a SAM.
        tokens: S, the length of the sequence; 0 for the twins, whose images set it.
        dtype: Of the VLM's or SAM's frozen weights.
        device: "cpu" or "cuda".
        phrases: Of each image.
        images: That go through together.
    """

    kind: str
    model: str
    tokens: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    phrases: int = 8
    pictures: int = 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Case(Protocol):
    """A built case."""

    def prepare(self, way: str) -> None:
        """Before the first run in this way: what need not be timed."""

    def run(self, way: str) -> dict[str, Any]:
        """Do the work; what it says is the same every time."""


def build(values: Mapping[str, Any]) -> Case:
    """The case that the values of a `CaseSpec` describe."""
    from bench import recording, refining, sentences, training

    spec = CaseSpec(**values)
    kinds = {
        "recording": recording.RecordingCase,
        "training": training.TrainingCase,
        "refining": refining.RefiningCase,
        "sentences": sentences.SentencesCase,
    }
    return kinds[spec.kind](spec)
