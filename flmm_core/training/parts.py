"""Which parts of a head are trained, and the trained head that a run begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from flmm_core.config import RunConfig, option_name
from flmm_core.errors import UsageError
from flmm_core.pipeline.build import Recipe, recipe_of
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import (
    HeadInfo,
    check_fit,
    check_model,
    find_head,
    read_info,
    read_weights,
)

MAY_DIFFER = frozenset({"model", "options", "prompt", "system"})
"""Fields of a recipe that a head can be trained on with: its weights fit, and learn the rest."""


def check_initial_head(config: RunConfig) -> None:
    """Refuse an initial head that was built with other settings, before a model is loaded.

    Raises:
        UsageError: A setting of the head differs and there is no --force.
        WeightsError: There is no such head.
    """
    if config.init_head is None:
        return
    found = read_info(find_head(config.init_head)).recipe
    different = _differences(found, recipe_of(config))
    if different and not config.force:
        raise UsageError(
            f"The head in '{config.init_head}' was built with other settings than this run.",
            found="\n".join(different),
            repair="Give the same settings, or go on with --force if only the weights have to fit.",
        )
    untrained = config.train is not None and not {"head", "keywords"} & {*config.train}
    if config.head.keywords and not found.keywords and untrained:
        raise UsageError(
            f"The head in '{config.init_head}' has no keyword selector to begin with.",
            found=f"--train {','.join(config.train or ())} would leave a new one untrained.",
            repair="Add keywords to --train, or omit --head-keywords.",
        )


def _differences(theirs: Recipe, ours: Recipe) -> list[str]:
    of_head = type(RunConfig.model_fields["head"].default).model_fields
    one, two = asdict(theirs), asdict(ours)
    if ours.keywords:  # a head without a selector gets one
        one["keywords"] = True
    if _begins_at_mean(theirs, ours):
        one |= {name: two[name] for name in ("pool", "pool_ends")}
    names = [name for name in one if name not in MAY_DIFFER and name != "channels"]
    found = []
    for name in names:
        key = f"head.{name}" if name in of_head else name
        pairs: Mapping[str, tuple[Any, Any]] = {key: (one[name], two[name])}
        if isinstance(one[name], dict):
            inner = dict.fromkeys([*one[name], *two[name]])
            pairs = {f"{key}.{k}": (one[name].get(k), two[name].get(k)) for k in inner}
        found += [
            f"  {option_name(k)}: {a} there, {b} here" for k, (a, b) in pairs.items() if a != b
        ]
    return found


def _begins_at_mean(theirs: Recipe, ours: Recipe) -> bool:
    """Whether a head that averages tokens gets learned weights, which at first change nothing."""
    return (theirs.pool, ours.pool) == ("mean", "learned")


def begin_with(head: Head, info: HeadInfo, config: RunConfig) -> HeadInfo:
    """Load the weights of the initial head of a run, if it has one.

    Args:
        info: Of the run; returned with the name of the initial head.

    Raises:
        WeightsError: The weights do not fit, or were trained behind another model.
    """
    if config.init_head is None:
        return info
    folder = find_head(config.init_head)
    trained = read_info(folder)
    check_fit(folder, trained, info.vlm)
    if info.model is not None:
        check_model(str(folder), trained, config.model, info.model, force=config.force)
    if trained.recipe.channels != info.recipe.channels:
        raise UsageError(
            f"The head in '{config.init_head}' reads other attention channels than this run.",
            found=f"{len(trained.recipe.channels) or 'all'} there, "
            f"{len(info.recipe.channels) or 'all'} here.",
            repair="Use a cache with the same channels, or none, or another head.",
        )
    weights = read_weights(folder)
    if head.keywords is not None and not trained.recipe.keywords:
        weights |= head.keywords.state_dict(prefix="keywords.")
    if head.pooling is not None and _begins_at_mean(trained.recipe, info.recipe):
        weights |= head.pooling.state_dict(prefix="pooling.")
    head.load_weights(weights)
    return info.with_facts(initial_head=config.init_head)


def freeze_others(head: Head, config: RunConfig) -> None:
    """Freeze the parts that `config.train` does not name.

    Raises:
        UsageError: A part would stay as random as it was made, or nothing is left to be trained.
    """
    if config.train is None:
        return
    untrained = [head.mask_head, head.text_prompts, head.presence, head.keywords]
    for module in head.children():
        if any(module is part for part in _modules(head, config.train, config.refiner)):
            continue
        if config.init_head is None and any(module is part for part in untrained):
            name = next(name for name, part in head.named_children() if part is module)
            raise UsageError(
                f"--train {','.join(config.train)} leaves the {name.replace('_', ' ')} untrained.",
                found="A new head has random weights there.",
                repair="Begin with a trained head (--init-head RUN), or train that part, too.",
            )
        module.requires_grad_(False)
    if not head.trainable_parameters:
        raise UsageError(
            f"--train {','.join(config.train)} leaves nothing to be trained.",
            found=f"The head has: {', '.join(name for name, _ in head.named_children())}.",
            repair="Name one of these parts.",
        )


def _modules(head: Head, names: Sequence[str], refiner: str) -> list[nn.Module | None]:
    """The modules of the named parts; None for one that this head does not have."""
    parts: dict[str, list[nn.Module | None]] = {
        "head": [head.mask_head, head.pooling, head.presence, head.keywords],
        "presence": [head.presence],
        "keywords": [head.keywords],
        "text": [head.text_prompts],
        refiner: [head.refiner],
    }
    return [module for name in names for module in parts[name]]
