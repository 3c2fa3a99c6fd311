"""A trained head as a folder: `config.json` and `model.safetensors`, and the flow built from it.

The folder holds what was trained (mask head, text prompts, SAM's prompt encoder and mask decoder)
and the recipe to build the rest. It never holds weights of the VLM or of SAM's image encoder.
Beside them stands `confidence.json` if there was validation data.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import flmm_core
from flmm_core.errors import WeightsError
from flmm_core.evaluation.confidence import FILE as CONFIDENCE
from flmm_core.evaluation.confidence import Confidence, read_confidence, write_confidence
from flmm_core.pipeline import grounder as flow
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.weights import choose_device
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.refiners.sam import NoRefiner, SamRefiner
from flmm_core.pipeline.refiners.sam_model import build_sam
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.plugins import load_backbones, load_class
from flmm_core.spec import DEFAULT_PROMPT, BackboneSpec

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How a flow is built, in plain values; what `config.json` holds beside facts.

    Attributes:
        backbone: Name of the plugin.
        model: Alias, hub id or folder of the VLM.
        options: The plugin's own settings.
        prompt: What the user says beside the image.
        pool: "mean" or "max".
        base_channels: See `MaskHead`.
        enlarge_to: See `MaskHead`.
        paper_rounding: See `MaskHead` and `SamRefiner`.
        refiner: "none" or "sam:NAME".
        mask: See `SamRefiner`; so are `box`, `text`, `multimask` and `half`.
        channels: Which attention channels the mask head takes; empty means all.
    """

    backbone: str
    model: str = "tiny"
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = DEFAULT_PROMPT
    pool: Literal["mean", "max"] = "mean"
    base_channels: int = 64
    enlarge_to: int = 64
    paper_rounding: bool = False
    refiner: str = "sam:tiny"
    mask: bool = True
    box: bool = True
    text: bool = True
    multimask: bool = False
    half: bool = False
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # a list in JSON


class Grounder(flow.Grounder):
    """The flow, built from a recipe; it can be saved and loaded.

    Attributes:
        recipe: What it was built from.
        facts: What a head file said beside the recipe: steps, data, protocol, versions.
        confidence: What was fitted on validation data; None if there was none.
    """

    recipe: Recipe
    facts: Mapping[str, Any]
    confidence: Confidence | None

    @classmethod
    def build(
        cls,
        recipe: Recipe,
        *,
        spec: BackboneSpec | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        refiner_weights: Path | None = None,
        stand_in: Backbone | None = None,
        **pass_through: Any,
    ) -> Self:
        """Load the frozen parts and put a head with fresh weights behind them.

        The fresh weights follow from torch's random state and the recipe alone, whatever loading
        the VLM draws and whether or not it is loaded.

        Args:
            recipe: What to build.
            spec: The backbone's facts; by default looked up among the installed plugins.
            dtype: Number type of the VLM's weights, see `Backbone.load`.
            device: "auto" takes the first accelerator.
            refiner_weights: SAM's own file, see `build_sam`.
            stand_in: Takes the place of the VLM, which is not loaded, and neither is SAM's image
                encoder: such a flow can only `decide`.
            pass_through: For transformers' `from_pretrained`.

        Raises:
            UsageError: Backbone, model or refiner is unknown.
            WeightsError: Weights are missing or do not fit.
        """
        if stand_in is None:
            spec = spec or load_backbones().get(recipe.backbone)
            with torch.random.fork_rng(devices=[]):
                backbone: Backbone = load_class(spec).load(
                    spec,
                    recipe.model,
                    dtype=dtype,
                    device=device,
                    prompt=recipe.prompt,
                    options=recipe.options,
                    **pass_through,
                )
            place = backbone.vlm.device
        else:
            backbone, place = stand_in, choose_device(device)
        refiner: SamRefiner | NoRefiner = NoRefiner()
        if recipe.refiner != "none":
            refiner = SamRefiner(
                build_sam(
                    recipe.refiner.removeprefix("sam:"), refiner_weights, encoder=stand_in is None
                ),
                use_mask=recipe.mask,
                use_box=recipe.box,
                use_text=recipe.text,
                multimask=recipe.multimask,
                half=recipe.half,
                paper_rounding=recipe.paper_rounding,
            )
        grounder = cls(
            backbone,
            _mask_head(backbone, recipe),
            _text_prompts(backbone, refiner),
            refiner,
            pool=recipe.pool,
            channels=recipe.channels,
        )
        grounder.recipe, grounder.facts = recipe, {}
        return grounder.to(place).eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        model: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        refiner_weights: Path | None = None,
        revision: str | None = None,
        **pass_through: Any,
    ) -> Self:
        """A trained flow.

        Args:
            source: A run folder, a checkpoint or head folder, or a hub id.
            model: Where the VLM lies here, if not where it lay in training.
            device: "auto" takes the first accelerator.
            dtype: Number type of the VLM's weights.
            refiner_weights: SAM's own file, where the head was trained with an official SAM.
            revision: Of the hub repository of the head.
            pass_through: For transformers' `from_pretrained` of the VLM.

        Raises:
            WeightsError: The head is missing, broken, or was made for another backbone or width.
        """
        folder = find_head(source, revision=revision)
        recipe, facts = read_recipe(folder)
        if model is not None:
            recipe = Recipe(**{**asdict(recipe), "model": model})
        grounder = cls.build(
            recipe, dtype=dtype, device=device, refiner_weights=refiner_weights, **pass_through
        )
        made_for, here = facts.pop("vlm", None), _vlm_facts(grounder.backbone)
        if made_for != here:
            raise WeightsError(
                f"The head in '{folder}' does not fit the model '{recipe.model}'.",
                found=_differences(made_for, here),
                repair="Give the model that the head was trained with, or train a new head.",
            )
        grounder.load_head(folder)
        grounder.facts = facts
        grounder.confidence = read_confidence(folder)
        return grounder

    def load_head(self, folder: Path) -> None:
        """Take the weights of a head folder; `WeightsError` if they do not fit."""
        try:
            state = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise WeightsError(
                f"The head's weights in '{folder / WEIGHTS}' cannot be read.",
                found=f"{type(error).__name__}: {error}.",
                repair="The file may be cut off; copy it again or use another checkpoint.",
            ) from error
        self.load_trainable_state(state)

    def save_pretrained(self, folder: str | os.PathLike[str], **facts: Any) -> Path:
        """Write `config.json` and `model.safetensors`, whole or not at all.

        Args:
            folder: Made if missing; a head in it is replaced.
            facts: Kept in `config.json` beside the recipe; must be plain values.
        """
        with whole_folder(Path(folder)) as aside:
            self.write_head(aside, **facts)
        return Path(folder)

    def write_head(self, folder: Path, **facts: Any) -> None:
        """As `save_pretrained`, into a folder that exists, without care for a stop midway."""
        config = {
            "format": FORMAT,
            "flmm": flmm_core.__version__,
            "recipe": asdict(self.recipe),
            "vlm": _vlm_facts(self.backbone),
            **{**self.facts, **facts},
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        state = {key: value.cpu().contiguous() for key, value in self.trainable_state().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        if self.confidence is not None:
            write_confidence(folder, self.confidence)


def _mask_head(backbone: Backbone, recipe: Recipe) -> MaskHead:
    return MaskHead(
        len(recipe.channels) or backbone.attention_channels,
        recipe.base_channels,
        recipe.enlarge_to,
        recipe.paper_rounding,
    )


def _text_prompts(backbone: Backbone, refiner: SamRefiner | NoRefiner) -> TextPrompts | None:
    if not isinstance(refiner, SamRefiner) or not refiner.uses_text:
        return None
    return TextPrompts(backbone.num_layers, backbone.hidden_size, refiner.prompt_width)


def _vlm_facts(backbone: Backbone) -> dict[str, Any]:
    """What a head depends on beside the recipe."""
    return {
        "layers": backbone.num_layers,
        "heads": backbone.num_heads,
        "hidden_size": backbone.hidden_size,
        "views": list(backbone.view_names),
    }


def _differences(head: Any, model: Mapping[str, Any]) -> str:
    known = head if isinstance(head, dict) else {}
    parts = [
        f"{name.replace('_', ' ')}: head {known.get(name, 'unknown')}, model {value}"
        for name, value in model.items()
        if known.get(name) != value
    ]
    return f"{'; '.join(parts)}."


def find_head(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder with a head's two files: of a run its best checkpoint, else its last.

    Raises:
        WeightsError: There is none.
    """
    folder = Path(source)
    places = [folder, folder / "best", folder / "last"]
    for place in places:
        if (place / CONFIG).is_file() and (place / WEIGHTS).is_file():
            return place
    if folder.exists() or folder.is_absolute() or str(source).count("/") != 1:
        what = "a folder" if folder.is_dir() else "a file" if folder.exists() else "missing"
        raise WeightsError(
            f"There is no trained head in '{source}'.",
            found=f"It is {what}. Looked for {CONFIG} and {WEIGHTS} in it, in best/ and in last/.",
            repair="Give a run folder of `flmm train`, one of its checkpoints, or a hub id.",
        )
    try:
        return Path(
            snapshot_download(
                str(source), revision=revision, allow_patterns=[CONFIG, WEIGHTS, CONFIDENCE]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise WeightsError(
            f"The head '{source}' cannot be fetched from the hub.",
            found=f"No such folder here; the hub said: {type(error).__name__}: {reason}",
            repair="Check the name and the network, or download it elsewhere and give the folder.",
        ) from error


def read_recipe(folder: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe in a head's `config.json`, and the facts beside it.

    Raises:
        WeightsError: The file is no such thing.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["format"] != FORMAT:
            raise ValueError(f"its format is {config['format']}, this version reads {FORMAT}")
        recipe = Recipe(**config["recipe"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"'{path}' does not describe a head of flmm.",
            found=f"{type(error).__name__}: {error}.",
            repair="Give a folder that `flmm train` or save_pretrained wrote.",
        ) from error
    known = ("format", "flmm", "recipe")
    return recipe, {key: value for key, value in config.items() if key not in known}


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its place under its own name only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield aside
        aside.chmod(0o755)
        if folder.is_dir():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
