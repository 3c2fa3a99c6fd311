"""`NAME[:PATH][@SPLIT]`: the text by which a user names data, and the samples it stands for."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from flmm_core.data.findings import Findings
from flmm_core.data.formats.coco import find_coco, read_coco
from flmm_core.data.formats.grefcoco import read_grefcoco
from flmm_core.data.formats.jsonl import find_jsonl, read_jsonl
from flmm_core.data.formats.labelme import read_labelme
from flmm_core.data.formats.png import read_narratives
from flmm_core.data.formats.reasonseg import read_reasonseg
from flmm_core.data.formats.refcoco import read_refcoco
from flmm_core.data.protocols import ImageSamples, LazySamples, check_protocol
from flmm_core.data.sample import AnnotatedImage, Sample
from flmm_core.errors import UsageError, did_you_mean

_GRAMMAR = re.compile(r"(?P<name>[^:@]+)(:(?P<path>.*?))?(@(?P<split>[^@/\\]*))?", re.DOTALL)


@dataclass(frozen=True)
class SourceText:
    """The parts of `NAME[:PATH][@SPLIT]`.

    A path may hold ":" and "@"; what follows its last "@" is the split unless a slash is in it.
    """

    name: str
    path: Path | None = None
    split: str | None = None

    @property
    def label(self) -> str:
        """The source without its path, to begin sample names with: "refcoco@val"."""
        return f"{self.name}@{self.split}" if self.split else self.name


@dataclass(frozen=True)
class SourceKind:
    """One NAME that data can have.

    Attributes:
        form: How the user writes it.
        summary: One line for lists.
        read: Gives the images of a source; faults and left-out items go to the findings.
    """

    form: str
    summary: str
    read: Callable[[SourceText, Findings], Sequence[AnnotatedImage]]


class JoinedSamples(LazySamples):
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self.parts = tuple(parts)
        self._ends = tuple(accumulate(len(part) for part in self.parts))
        self.skipped = tuple(item for part in parts for item in getattr(part, "skipped", ()))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _make(self, index: int) -> Sample:
        part, place = self._find(index)
        return part[place]

    def extent(self, index: int) -> tuple[int, int, int]:
        """As in `LazySamples`."""
        part, place = self._find(index)
        if isinstance(part, LazySamples):
            return part.extent(place)
        return *part[place].image_hw, len(part[place].caption)

    def _find(self, index: int) -> tuple[Sequence[Sample], int]:
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)


def parse_source(text: str) -> SourceText:
    """The parts of `NAME[:PATH][@SPLIT]`.

    Raises:
        UsageError: The text has no such form, or its NAME is unknown.
    """
    parts = _GRAMMAR.fullmatch(text.strip())
    if parts is None or parts["path"] == "" or parts["split"] == "":
        raise UsageError(
            f"The data source '{text}' cannot be read.",
            found="Expected NAME[:PATH][@SPLIT].",
            repair="For example: shapes@train, refcoco:/data/coco@val, jsonl:/my/metadata.jsonl.",
        )
    name = parts["name"]
    if name not in SOURCES:
        raise UsageError(
            f"Unknown data source '{name}' in '{text}'. {did_you_mean(name, SOURCES)}".rstrip(),
            found=f"Known: {', '.join(kind.form for kind in SOURCES.values())}.",
            repair="Write one of these names before the ':' or '@'.",
        )
    path = Path(parts["path"]).expanduser() if parts["path"] else None
    return SourceText(name, path, parts["split"])


def read_source(
    text: str, findings: Findings | None = None
) -> tuple[SourceText, Sequence[AnnotatedImage]]:
    """The parts of a source's text and its images, before any protocol.

    Args:
        text: `NAME[:PATH][@SPLIT]`.
        findings: Collects faults and left-out items; without it the first fault is raised.

    Raises:
        UsageError: The text is of another form or names an unknown source.
        DataError: A file is missing or broken.
    """
    source = parse_source(text)
    return source, SOURCES[source.name].read(source, findings or Findings())


def open_source(text: str, protocol: str = "standard") -> ImageSamples:
    """The samples of one source; they are made when asked for, and can be pickled.

    Annotations are read and checked at once; images and masks stay unread and compressed. Items
    that cannot be scored are in `skipped`, and logged.

    Args:
        text: `NAME[:PATH][@SPLIT]`.
        protocol: "standard" or "flmm-paper", see `flmm_core.data.protocols`.

    Raises:
        UsageError: The text or the protocol is unknown.
        DataError: A file is missing or broken.
    """
    check_protocol(protocol)
    findings = Findings()
    source, pictures = read_source(text, findings)
    findings.warn(text)
    return ImageSamples(pictures, protocol, source.label, findings.skipped)


def open_sources(texts: Sequence[str], protocol: str = "standard") -> JoinedSamples:
    """The samples of several sources, one after the other; see `open_source`."""
    if not texts:
        raise UsageError(
            "No data source was given.", repair="Give at least one, for example shapes@train."
        )
    return JoinedSamples([open_source(text, protocol) for text in texts])


def _read_refcoco(source: SourceText, findings: Findings) -> Sequence[AnnotatedImage]:
    path, split = _need_path(source), _need_split(source)
    return read_refcoco(path, source.name, split, findings)


def _read_grefcoco(source: SourceText, findings: Findings) -> Sequence[AnnotatedImage]:
    return read_grefcoco(_need_path(source), _need_split(source), findings)


def _read_narratives(source: SourceText, findings: Findings) -> Sequence[AnnotatedImage]:
    return read_narratives(_need_path(source), _need_split(source), findings)


def _read_reasonseg(source: SourceText, findings: Findings) -> Sequence[AnnotatedImage]:
    return read_reasonseg(_need_path(source), _need_split(source), findings)


def _read_jsonl(source: SourceText, findings: Findings) -> Sequence[AnnotatedImage]:
    return read_jsonl(find_jsonl(_need_path(source), source.split), findings)


def _read_coco(source: SourceText, findings: Findings) -> Sequence[AnnotatedImage]:
    file = find_coco(_need_path(source), source.split)
    return read_coco(file, findings, source.split or "")


def _read_labelme(source: SourceText, findings: Findings) -> Sequence[AnnotatedImage]:
    return read_labelme(_need_path(source), source.split, findings)


def _read_shapes(source: SourceText, findings: Findings) -> Sequence[AnnotatedImage]:
    from flmm_core.data.drawn.writing import ensure_shapes

    if source.path is not None:
        raise UsageError(
            f"The data source 'shapes' has no path, but '{source.path}' was given.",
            found="Its scenes are drawn once and kept in the cache folder.",
            repair="Write shapes@SPLIT; read scenes drawn elsewhere with refcoco:PATH@SPLIT.",
        )
    split = _need_split(source)
    return read_refcoco(ensure_shapes(split), "refcoco", split, findings)


def _need_path(source: SourceText) -> Path:
    if source.path is None:
        raise UsageError(
            f"The data source '{source.label}' has no path.",
            found=f"Expected {SOURCES[source.name].form}.",
            repair="Write the folder or file after a ':'.",
        )
    return source.path


def _need_split(source: SourceText) -> str:
    if source.split is None:
        raise UsageError(
            f"The data source '{source.name}' needs a split.",
            found=f"Expected {SOURCES[source.name].form}.",
            repair="Write the split after an '@', for example '@train'.",
        )
    return source.split


SOURCES: Mapping[str, SourceKind] = {
    "shapes": SourceKind(
        "shapes@SPLIT", "drawn scenes: train, val, test, hard, absent", _read_shapes
    ),
    "refcoco": SourceKind("refcoco:PATH@SPLIT", "RefCOCO (unc splits)", _read_refcoco),
    "refcoco+": SourceKind("refcoco+:PATH@SPLIT", "RefCOCO+ (unc splits)", _read_refcoco),
    "refcocog": SourceKind(
        "refcocog:PATH@SPLIT", "RefCOCOg (umd splits; google-val for the other)", _read_refcoco
    ),
    "grefcoco": SourceKind(
        "grefcoco:PATH@SPLIT", "gRefCOCO: several targets and none", _read_grefcoco
    ),
    "png": SourceKind("png:PATH@SPLIT", "Panoptic Narrative Grounding", _read_narratives),
    "reasonseg": SourceKind(
        "reasonseg:PATH@SPLIT", "ReasonSeg, with pixels to ignore", _read_reasonseg
    ),
    "jsonl": SourceKind("jsonl:PATH[@SPLIT]", "a metadata.jsonl with its images", _read_jsonl),
    "coco": SourceKind("coco:PATH[@SPLIT]", "COCO-style instances of your own", _read_coco),
    "labelme": SourceKind("labelme:PATH[@SPLIT]", "a folder of LabelMe files", _read_labelme),
}
"""What can stand before the ':'."""
