"""What a benchmark needs, checked before the first model is loaded: it may run for days."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flmm_core.benchmark.plan import Plan
from flmm_core.config import RunConfig, SkipLimit
from flmm_core.data.left_out import LeftOut
from flmm_core.data.protocols import ImageSamples
from flmm_core.data.sources import open_source
from flmm_core.errors import Problems
from flmm_core.pipeline.build import check_config
from flmm_core.pipeline.check_head import check_head
from flmm_core.progress import Progress
from flmm_core.spec import BackboneSpec
from flmm_core.training.preflight import check_run


def open_checked(
    plan: Plan,
    limit: SkipLimit,
    config_of: Callable[[str], tuple[RunConfig, BackboneSpec]],
    **behind: Any,
) -> dict[str, ImageSamples]:
    """The data of a plan by source, after a look at its heads and at all that it will train.

    Args:
        limit: How much of a source may be left out.
        config_of: The settings of a backbone that comes without a head.
        behind: How the models behind the heads will be loaded, as for `check_head`.

    Raises:
        FlmmError: All that is wrong.
    """
    problems, sources = Problems(), dict[str, ImageSamples]()
    for text in plan.data:
        with problems.part():
            sources[text] = open_source(text, plan.protocol)
            LeftOut(sources[text], limit)
    known = set()
    for text in plan.heads:
        info = check_head(text, problems, **behind)
        known |= {info.recipe.backbone} if info else set()
    for backbone in dict.fromkeys(plan.backbones):
        if backbone in known:
            continue
        with problems.part():
            config, spec = config_of(backbone)
            if "head" in plan.methods and not is_trained(config.output):
                check_run(config.model_copy(update={"resume": True}), spec, Progress())
                continue
            check_config(config, spec, problems)
    problems.check()
    return sources


def is_trained(run: Path) -> bool:
    """Whether a run folder is finished."""
    return (run / "summary.json").is_file()
