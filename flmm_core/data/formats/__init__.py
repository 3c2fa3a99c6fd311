"""The data formats: what can stand before the ":" of a source, one entry per format.

To add a format, write one file beside this one with `read` and, if it can be written, `write`, and
add its entry to the table. `--data`, `flmm data` and their help texts read the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flmm_core.data.findings import Findings
    from flmm_core.data.formats.shared.new_image import NewImage
    from flmm_core.data.sample import AnnotatedImage


@dataclass(frozen=True)
class Source:
    """The parts of `NAME[:PATH][@SPLIT][,images=DIR][,exif=ignore]`.

    Attributes:
        split: May be empty.
        images: The folder of the images, if not a usual one.
        as_stored: Images were annotated as they are stored, whatever their EXIF data say.
    """

    format: str
    path: Path = Path()
    split: str = ""
    images: Path | None = None
    as_stored: bool = False

    @property
    def label(self) -> str:
        """The source without its path, as a prefix of sample names: "refcoco@val"."""
        return f"{self.format}@{self.split}" if self.split else self.format

    def image_folders(self, usual: Iterable[Path]) -> list[Path]:
        """Where its images may lie: the folder that was given, else the usual ones."""
        return list(usual) if self.images is None else [self.images]


@dataclass(frozen=True)
class DataFormat:
    """All that the core knows of a format; readable without importing its code.

    Attributes:
        module: Has `read(source, findings)`, which gives the images of a source, and faults and
            items that cannot be scored to the findings; and `write(folder, images)`, which writes
            images so that NAME:FOLDER@SPLIT reads them. By default the module NAME beside this
            table.
        writable: Whether the module has `write`.
        options: What may be said behind a source: "images", "exif".
        extras: What else of a drawn scene it is made for, see `draw_images`.
    """

    name: str
    summary: str
    module: str = ""
    writable: bool = True
    has_path: bool = True
    needs_split: bool = True
    options: tuple[str, ...] = ("images", "exif")
    extras: tuple[str, ...] = ()

    @property
    def form(self) -> str:
        """How its sources are written: "refcoco:PATH@SPLIT"."""
        path = ":PATH" if self.has_path else ""
        return self.name + path + ("@SPLIT" if self.needs_split else "[@SPLIT]")

    @property
    def code(self) -> Any:
        return import_module(self.module or f"{__name__}.{self.name}")

    def read(self, source: Source, findings: Findings) -> Sequence[AnnotatedImage]:
        """The images of a source, without objects that mark no pixel and are not said absent."""
        from flmm_core.data.formats.shared.degenerate import without_degenerate

        images = without_degenerate(self.code.read(source, findings), findings)
        return [replace(image, as_stored=True) for image in images] if source.as_stored else images

    def write(self, folder: Path, images: Iterable[NewImage]) -> Path:
        """Write images to a folder; those without a split go to "train"."""
        self.code.write(folder, images)
        return folder


_TABLE = (
    DataFormat(
        "shapes",
        "drawn scenes: train, val, test, hard, absent, narrated, narrated-val, narrated-test",
        module="flmm_core.data.drawn.splits",
        writable=False,
        has_path=False,
        options=(),
    ),
    DataFormat("refcoco", "RefCOCO (unc splits)"),
    DataFormat("refcoco+", "RefCOCO+ (unc splits)", module=f"{__name__}.refcoco", writable=False),
    DataFormat(
        "refcocog",
        "RefCOCOg (umd splits; google-val for the other)",
        module=f"{__name__}.refcoco",
        writable=False,
    ),
    DataFormat("grefcoco", "gRefCOCO: several targets and none", extras=("pair", "absent")),
    DataFormat("png", "Panoptic Narrative Grounding", extras=("pair", "background")),
    DataFormat("reasonseg", "ReasonSeg, with pixels to ignore", extras=("ignore",)),
    DataFormat("jsonl", "a metadata.jsonl with its images", needs_split=False),
    DataFormat("coco", "COCO-style instances of your own", needs_split=False),
    DataFormat("labelme", "a folder of LabelMe files", needs_split=False),
    DataFormat("masks", "images with mask files beside them", writable=False, needs_split=False),
    DataFormat("parquet", "parquet files or a Hub data set", writable=False, needs_split=False),
    DataFormat("labelstudio", "a Label Studio export", writable=False, needs_split=False),
    DataFormat("voc", "Pascal VOC segmentation", writable=False, needs_split=False),
    DataFormat(
        "yolo",
        "YOLO segmentation: data.yaml",
        writable=False,
        needs_split=False,
        options=("exif",),
    ),
)

FORMATS: dict[str, DataFormat] = {entry.name: entry for entry in _TABLE}
"""Every format, by its name."""


def writable_formats() -> list[str]:
    """The names of the formats that can be written."""
    return [name for name, entry in FORMATS.items() if entry.writable]
