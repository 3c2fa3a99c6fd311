"""How users name data, and the samples that a name stands for.

    NAME[:PATH][@SPLIT][,images=DIR][,exif=ignore]

DIR is where the images lie, if not in a usual folder. An image whose EXIF data turn it was
annotated upright or, if its annotations have that size, as it is stored; "exif=ignore" says that
all were annotated as stored, which the size does not tell of a square or of a half turn.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path

from flmm_core.data.absent import borrow_absent
from flmm_core.data.findings import Findings, Skipped
from flmm_core.data.formats import FORMATS, Source
from flmm_core.data.protocols import (
    OBJECTS_PER_CAPTION,
    ImageSamples,
    LazySamples,
    check_protocol,
)
from flmm_core.data.sample import AnnotatedImage, Sample
from flmm_core.errors import DataError, Problems, UsageError, did_you_mean
from flmm_core.segment import is_text

# A path may hold ":" and "@"; what follows its last "@" is the split unless a slash is in it.
_OPTION = re.compile(r"(?P<rest>.*),(?P<key>images|exif)=(?P<value>.*)", re.DOTALL)
_GRAMMAR = re.compile(r"(?P<name>[^:@]+)(:(?P<path>.*?))?(@(?P<split>[^@/\\]*))?", re.DOTALL)


class JoinedSamples(LazySamples):
    """The samples of several sources, concatenated."""

    def __init__(self, parts: Sequence[Sequence[Sample]]) -> None:
        self.parts = tuple(parts)
        self._ends = tuple(accumulate(len(part) for part in self.parts))
        self.skipped = tuple(item for part in parts for item in getattr(part, "skipped", ()))

    @property
    def sources(self) -> tuple[Sequence[Sample], ...]:
        found: list[Sequence[Sample]] = []
        for part in self.parts:
            found += part.sources if isinstance(part, LazySamples) else (part,)
        return tuple(found)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def name(self, index: int) -> str:
        part, place = self._find(index)
        return part.name(place) if isinstance(part, LazySamples) else part[place].name

    def _make(self, index: int) -> Sample:
        part, place = self._find(index)
        return part[place]

    def extent(self, index: int) -> tuple[int, int, int]:
        part, place = self._find(index)
        if isinstance(part, LazySamples):
            return part.extent(place)
        return *part[place].image_hw, len(part[place].caption)

    def image(self, index: int) -> Hashable:
        part, place = self._find(index)
        return id(part), part.image(place) if isinstance(part, LazySamples) else place

    def _find(self, index: int) -> tuple[Sequence[Sample], int]:
        part = bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)


def parse_source(text: str) -> Source:
    """The parts of `NAME[:PATH][@SPLIT]` and the options behind it.

    Raises:
        UsageError: The text has another form, NAME is unknown, PATH or SPLIT is missing or not
            supported by the format, or an option has no such value.
    """
    if not is_text(text):
        raise UsageError(
            f"The data source {text!r} is not UTF-8 text.",
            found="What is written about a run or a benchmark could not name it.",
            repair="Rename the folder, or make a link to it with another name.",
        )
    name_and_place, options = _split_options(text)
    parts = _GRAMMAR.fullmatch(name_and_place)
    if parts is None or parts["path"] == "" or parts["split"] == "":
        raise UsageError(
            f"The data source '{text}' cannot be read.",
            found="Expected NAME[:PATH][@SPLIT].",
            repair="For example: shapes@train, refcoco:/data/coco@val, jsonl:/my/metadata.jsonl.",
        )
    name, path, split = parts["name"], parts["path"], parts["split"] or ""
    if name not in FORMATS:
        raise UsageError(
            f"Unknown data source '{name}' in '{text}'. {did_you_mean(name, FORMATS)}".rstrip(),
            found=f"Known: {', '.join(known.form for known in FORMATS.values())}.",
            repair="Write one of these names before the ':' or '@'.",
        )
    wanted = FORMATS[name]
    problem = repair = ""
    if wanted.has_path and path is None:
        problem, repair = "has no path", "Write the folder or file after a ':'."
    elif path is not None and not wanted.has_path:
        problem = f"takes no path, but '{path}' was given"
        repair = "Leave out the path and the ':'."
    elif unfit := [key for key in options if key not in wanted.options]:
        problem, repair = f"takes no option '{unfit[0]}'", "Leave it out."
    elif wanted.needs_split and not split:
        problem, repair = "needs a split", "Write the split after an '@', for example '@train'."
    if problem:
        raise UsageError(
            f"The data source '{text}' {problem}.",
            found=f"Expected {wanted.form}: {wanted.summary}.",
            repair=repair,
        )
    images = Path(options["images"]).expanduser() if "images" in options else None
    return Source(name, Path(path or "").expanduser(), split, images, "exif" in options)


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    """A source without the options behind it, and their values."""
    rest, options = text.strip(), dict[str, str]()
    while found := _OPTION.fullmatch(rest):
        rest, key, value = found["rest"], found["key"], found["value"].strip()
        if not value or key in options or (key == "exif" and value != "ignore"):
            raise UsageError(
                f"The data source '{text}' cannot be read.",
                found=f"The option '{key}' {'is given twice' if key in options else 'is wrong'}.",
                repair="Write ,images=DIR for the folder of the images, or ,exif=ignore if they "
                "were annotated as they are stored.",
            )
        options[key] = value
    return rest, options


def is_drawn(text: str) -> bool:
    """Whether a source is drawn on first use: a command that cannot go on need not do it."""
    return not FORMATS[parse_source(text).format].has_path


def read_source(
    text: str, findings: Findings | None = None
) -> tuple[Source, Sequence[AnnotatedImage]]:
    """A source and its images, before a protocol is applied; errors as of `open_source`."""
    source, findings = parse_source(text), findings or Findings()
    images = FORMATS[source.format].read(source, findings)
    with findings.part():
        if not images and not findings.faults:
            raise _nothing_left(text, findings.skipped)
    return source, images


def _nothing_left(text: str, skipped: Sequence[Skipped]) -> DataError:
    first = f", the first {skipped[0].name}: {skipped[0].reason}" if skipped else ""
    return DataError(
        f"The data source '{text}' is empty.",
        found=f"No image has an object with a phrase; {len(skipped) or 'none'} left out{first}.",
        repair="Annotate an image, or name another source or split.",
    )


def open_source(
    text: str,
    protocol: str = "standard",
    *,
    split_captions: bool = False,
    absent_share: float = 0.0,
) -> ImageSamples:
    """The samples of one source, made on demand; picklable.

    Annotations are read and checked at once; images are not read yet and masks stay compressed.
    Items that are left out are in `skipped` and logged.

    Args:
        text: `NAME[:PATH][@SPLIT]`.
        protocol: See `flmm_core.data.protocols`.
        split_captions: Spread the objects of an image over several captions if there are more than
            `OBJECTS_PER_CAPTION`, for training.
        absent_share: Data without phrases that name nothing borrows them, see `borrow_absent`.

    Raises:
        UsageError: The protocol is unknown, or see `parse_source`.
        DataError: A file is missing or broken, or nothing in it can be used.
    """
    check_protocol(protocol)
    findings = Findings()
    source, images = read_source(text, findings)
    findings.warn(text)
    images = borrow_absent(images, absent_share)
    most = OBJECTS_PER_CAPTION if split_captions else 0
    return ImageSamples(images, protocol, source.label, findings.skipped, title=text, most=most)


def open_sources(
    texts: Sequence[str],
    protocol: str = "standard",
    *,
    split_captions: bool = False,
    absent_share: float = 0.0,
    problems: Problems | None = None,
) -> JoinedSamples:
    """The samples of several sources, concatenated; see `open_source`.

    With `problems`, a source that cannot be read is told there and left out.
    """
    if not texts:
        raise UsageError(
            "No data source was given.", repair="Give at least one, for example shapes@train."
        )
    parts = []
    for text in texts:
        with nullcontext() if problems is None else problems.part():
            if problems and problems.found and is_drawn(text):
                continue
            parts.append(
                open_source(
                    text, protocol, split_captions=split_captions, absent_share=absent_share
                )
            )
    return JoinedSamples(parts)
