"""The model card of a published head: README.md with the metadata that the hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from flmm_core.pipeline.build import refiner_class
from flmm_core.pipeline.head_folder import HeadInfo
from flmm_core.pipeline.hub import HUB_ID, split_revision
from flmm_core.plugins import load_backbones, load_refiners

TASK, TASK_NAME = "image-segmentation", "Referring expression segmentation"
SOURCE = re.compile(r"(\w+\+?)(?::.*?)?(@[\w.+-]+)?", re.DOTALL)
SCORES = {"ciou": "cIoU", "miou": "mIoU"}


@dataclass(frozen=True)
class Evidence:
    """What is known of a head beyond its folder.

    Attributes:
        scores: By data source, what `flmm eval` and `summary.json` say of it.
        settings: Of the training, by name.
        versions: Of the packages that trained the head.
        refiner_weights: Name of the refiner's own weights file.
        license: Of the head, as the hub spells it ("apache-2.0"); empty: none is given.
    """

    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str | None] = field(default_factory=dict)
    refiner_weights: str = ""
    license: str = ""


def source_name(source: str) -> str:
    """`NAME[:PATH][@SPLIT]` without its path: `refcoco:/data/coco@val` is `refcoco@val`."""
    match = SOURCE.fullmatch(source)
    return f"{match[1]}{match[2] or ''}" if match else "other"


def model_card(repo: str, info: HeadInfo, evidence: Evidence) -> str:
    """The text of README.md.

    Args:
        repo: Where the head will be: `owner/name`.
        info: What its `config.json` will say, without paths of a machine.
    """
    recipe, model = info.recipe, _base_model(info)
    data = ModelCardData(
        base_model=[*([model] if model else []), *_hub_adapter(recipe.adapter)] or None,
        datasets=sorted({name.partition("@")[0] for name in _data(info)}) or None,
        eval_results=[*_results(evidence.scores)] or None,
        library_name="flmm",
        license=evidence.license or None,
        model_name=repo,
        pipeline_tag=TASK,
        tags=["flmm", "referring-expression-segmentation", "visual-grounding", recipe.backbone],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repo.partition('/')[2]}",
        _summary(info, model),
        _usage(repo, info, evidence),
        _scores(evidence.scores),
        _training(info, evidence),
        _licenses(info, model, evidence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _base_model(info: HeadInfo) -> str:
    """The hub id of the VLM; empty if it has none, as a model that is shipped in a package."""
    known = load_backbones().get(info.recipe.backbone).models.get(info.recipe.model)
    source = known.source if known else info.recipe.model
    return source if HUB_ID.fullmatch(source) else ""


def _hub_adapter(adapter: str) -> list[str]:
    return [split_revision(adapter)[0]] if "/" in adapter else []


def _data(info: HeadInfo) -> list[str]:
    return [source_name(str(source)) for source in info.facts.get("data", ())]


def _results(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[EvalResult]:
    for source, found in scores.items():
        name, _, split = source_name(source).partition("@")
        for key, title in SCORES.items():
            value = (found.get("refined") or {}).get(key)
            if value is not None:
                yield EvalResult(
                    task_type=TASK,
                    task_name=TASK_NAME,
                    dataset_type=name,
                    dataset_name=f"{name} {split}".rstrip(),
                    dataset_split=split or None,
                    metric_type=key,
                    metric_name=title,
                    metric_value=round(float(value), 4),
                    metric_config=f"protocol {found.get('protocol', 'unknown')}",
                )


def _summary(info: HeadInfo, model: str) -> str:
    recipe, shape = info.recipe, info.vlm
    vlm = f"[{model}](https://huggingface.co/{model})" if model else f"`{recipe.model}`"
    changes = [
        f"with the adapter `{recipe.adapter}`" if recipe.adapter != "none" else "",
        f"in {recipe.quantize.removesuffix('bit')} bits" if recipe.quantize != "none" else "",
    ]
    how = "".join(f", {change}" for change in changes if change)
    return (
        f"A head of [flmm](https://pypi.org/project/flmm/) that lets the frozen vision-language "
        f"model {vlm}{how} point: an image and phrases in, a mask per phrase out. It reads the "
        f"model's attention ({shape.layers} layers x {shape.heads} heads); the model itself is "
        "unchanged and is not part of this repository, nor is the image encoder of the refiner "
        f"(`{recipe.refiner}`)."
    )


def _usage(repo: str, info: HeadInfo, evidence: Evidence) -> str:
    refiner, options = refiner_class(info.recipe)
    file = evidence.refiner_weights or refiner.weights_file(options)
    extra = f', refiner_weights="{file}"' if file else ""
    option = f" --refiner-weights {file}" if file else ""
    where = "from the hub" if HUB_ID.fullmatch(split_revision(file)[0]) else "in the current folder"
    needed = f"It needs the refiner's own weights, `{file}`, {where}.\n\n"
    return (
        "## Use\n\n"
        + (needed if file else "")
        + f"""```python
from flmm_core import Grounder

grounder = Grounder.from_pretrained("{repo}"{extra})
out = grounder.ground("photo.jpg", ["the red ring", "a star"])
out.masks  # (P, H, W) bool; also .boxes, .scores, .probabilities
out.overlay().save("overlay.png")
```

```
flmm ground photo.jpg "the red ring" "a star" --head {repo}{option}
```"""
    )


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for source, found in scores.items():
        values = [
            (found.get(mask) or {}).get(key) for mask in ("coarse", "refined") for key in SCORES
        ]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        masks = (found.get("refined") or {}).get("masks", "-")
        rows.append([source_name(source), found.get("protocol", "-"), masks, *shown])
    if not rows:
        return ""
    heads = "data", "protocol", "masks", "coarse cIoU", "mIoU", "refined cIoU", "mIoU"
    return "## Scores\n\nIoUs as fractions of 1.\n\n" + _table(heads, rows)


def _training(info: HeadInfo, evidence: Evidence) -> str:
    settings = {"training data": ", ".join(_data(info)), **evidence.settings}
    rows = [[name, value] for name, value in settings.items() if value not in ("", None)]
    versions = [[name, version] for name, version in evidence.versions.items() if version]
    return "## Training\n\n" + _table(("setting", "value"), [*rows, *versions])


def _licenses(info: HeadInfo, model: str, evidence: Evidence) -> str:
    recipe = info.recipe
    spec = load_backbones().get(recipe.backbone)
    sources = {each.source: each.license for each in spec.models.values()}
    packaged = spec.models.get(recipe.model)
    terms = sources.get(model) or (packaged.license if packaged else "")
    refiner = load_refiners().get(recipe.refiner)
    lines = [f"* `{model or recipe.model}`: {terms or 'see its own page'}"]
    if refiner.license:
        lines.append(f"* `{recipe.refiner}`: {refiner.license}")
    own = evidence.license or "not stated"
    return f"## Licenses\n\nThis head: {own}. What it runs behind keeps its own:\n\n" + "\n".join(
        lines
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([str(cell).replace("|", r"\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
