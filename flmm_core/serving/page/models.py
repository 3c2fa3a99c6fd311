"""The models that the page offers: trained heads, and bare backbones, which talk and explain."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from flmm_core.errors import FlmmError, UsageError
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import HeadInfo, find_head, read_info
from flmm_core.pipeline.look import Look
from flmm_core.pipeline.result import Result
from flmm_core.plugins import load_backbones, load_class

CHAT = "chat"
"""The capability of a backbone that answers questions."""
MOST_RUNS = 100
"""Runs of a folder that are offered, the newest."""


@dataclass(frozen=True)
class Choice:
    """One model that can be chosen.

    Attributes:
        id: Names it in requests.
        name: For people.
        head: The source of a trained head; None for a bare backbone.
        backbone: The name of a bare backbone.
    """

    id: str
    name: str
    head: str | None = None
    backbone: str | None = None


@dataclass
class Loaded:
    """A model in memory; `grounder` is None without a head."""

    choice: Choice
    backbone: Backbone
    grounder: Grounder | None = None
    _look: Look | None = None

    @property
    def source(self) -> Grounder | Backbone:
        """The grounder, else the backbone."""
        return self.grounder or self.backbone

    @property
    def chats(self) -> bool:
        """Whether it answers questions."""
        return CHAT in self.backbone.spec.capabilities

    @property
    def threshold(self) -> float | None:
        """The probability below which a phrase is "not there"; None without probabilities."""
        confidence = self.grounder.confidence if self.grounder else None
        return None if confidence is None else min(1.0, confidence.threshold or 0.0)

    def ground(self, image: Image.Image, phrases: Sequence[str]) -> Result:
        """Masks of phrases; of one image, phrases after the first ones do not run it again.

        Raises:
            UsageError: A phrase is empty, or there is no head.
        """
        if self.grounder is None:
            raise UsageError("Without a trained head there are no masks.")
        if self._look is None or self._look.image is not image:
            self._look = None  # before the next one needs the memory
            self._look = self.grounder.look(image)
        return self._look.ground(phrases, keep_absent=True)


@dataclass
class Models:
    """What can be chosen, of which one is in memory at a time. For one thread.

    Attributes:
        heads: Sources of heads that were asked for, in order.
        runs: A folder of runs that are offered, too, if it exists.
        loading: Further arguments of `Grounder.from_pretrained`.
    """

    heads: Sequence[str] = ()
    runs: Path = Path("runs")
    loading: Mapping[str, Any] = field(default_factory=dict)
    _loaded: Loaded | None = None

    def __post_init__(self) -> None:
        found = [*self.heads, *_runs(self.runs, {os.path.realpath(head) for head in self.heads})]
        choices = []
        for number, source in enumerate(found):
            name = _name(source, asked_for=number < len(self.heads))
            if name is not None:
                choices.append(Choice(f"head-{number}", name, head=source))
        for backbone in load_backbones().specs:
            name = f"{backbone} · tiny · no head (talks, makes no masks)"
            choices.append(Choice(f"bare-{backbone}", name, backbone=backbone))
        self.choices = tuple(choices)
        if not choices:
            raise UsageError(
                "There is no model to show.",
                found="No head was given, and no backbone is installed.",
                repair="Give --head RUN.",
            )
        self.selected = choices[0].id

    @property
    def has_head(self) -> bool:
        """Whether there is any trained head."""
        return any(choice.head for choice in self.choices)

    def load(self, name: str) -> Loaded:
        """The model of a choice; the one that was in memory before makes room.

        Raises:
            UsageError: There is no such choice.
            FlmmError: As `Grounder.from_pretrained`.
        """
        choice = next((each for each in self.choices if each.id == name), None)
        if choice is None:
            raise UsageError(
                f"There is no model '{name}'.", repair="Load the page again, and choose another."
            )
        if self._loaded is None or self._loaded.choice.id != name:
            self._loaded = None  # before the next one needs the memory
            self._loaded = self._load(choice)
        return self._loaded

    def _load(self, choice: Choice) -> Loaded:
        if choice.head is not None:
            grounder = Grounder.from_pretrained(choice.head, **self.loading)
            return Loaded(choice, grounder.backbone, grounder)
        assert choice.backbone is not None
        spec = load_backbones().get(choice.backbone)
        placed = {key: self.loading[key] for key in ("device", "dtype") if key in self.loading}
        return Loaded(choice, load_class(spec).load(spec, "tiny", **placed))


def _runs(folder: Path, known: set[str]) -> Iterator[str]:
    """Run folders with a head, the newest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        heads = [path / part / "model.safetensors" for part in ("best", "last", ".")]
        head = next(filter(Path.is_file, heads), None)
        if head is not None and os.path.realpath(path) not in known:
            found.append((head.stat().st_mtime, str(path)))
    yield from (path for _, path in sorted(found, reverse=True)[:MOST_RUNS])


def _name(source: str, *, asked_for: bool) -> str | None:
    """What a head is called; None if a folder that was merely found has none."""
    try:
        info: HeadInfo = read_info(find_head(source))
    except FlmmError:
        if asked_for:
            raise
        return None
    model = info.recipe.model
    short = model if model.count("/") == 1 else Path(model).name
    return f"{info.recipe.backbone} · {short} · {source}"
