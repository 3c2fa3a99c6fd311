"""Ways of looking: which attention heads make a map, by name, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flmm_core.errors import UsageError, did_you_mean
from flmm_core.pipeline.types import VlmShape

WAYS = {
    "heads": "the mean of the attention heads that localize best",
    "mean": "the mean of all attention heads",
    "learned": "what the trained mask head makes of the word",
}


def way_text(
    by: str,
    heads: Sequence[tuple[str, int, int]],
    *,
    layer: int | None = None,
    attention_head: int | None = None,
    view: str | None = None,
    sinks: bool = True,
) -> str:
    """A way of looking in words."""
    given = (("view", view), ("layer", layer), ("attention head", attention_head))
    where = ", ".join(f"{name} {value}" for name, value in given if value is not None)
    if not where:
        where = WAYS[by]
        if by == "heads":
            where += f" ({', '.join(f'{v} {i}.{n}' for v, i, n in heads)})"
    return where if sinks else f"{where}, without sinks"


def chosen_channels(
    vlm: VlmShape, layer: int | None, attention_head: int | None, view: str | None
) -> list[int]:
    """The channels of a layer, of an attention head in it, of a view; None is all.

    Raises:
        UsageError: There is no such layer, head or view, or a head is given without its layer.
    """
    if view is not None and view not in vlm.views:
        raise UsageError(
            f"The backbone has no view '{view}'. {did_you_mean(view, vlm.views)}".rstrip(),
            found=f"Its views are: {', '.join(vlm.views)}.",
            repair="Give one of these.",
        )
    if attention_head is not None and layer is None:
        raise UsageError(
            f"Attention head {attention_head} of which layer?",
            found=f"Each of the {vlm.layers} layers has heads 0 to {vlm.heads - 1}.",
            repair="Give the layer, too.",
        )
    views = range(len(vlm.views)) if view is None else [vlm.views.index(view)]
    layers = range(vlm.layers) if layer is None else [_counted(layer, vlm.layers, "layer")]
    heads = range(vlm.heads)
    if attention_head is not None:
        heads = range(first := _counted(attention_head, vlm.heads, "attention head"), first + 1)
    return [(v * vlm.layers + i) * vlm.heads + n for v in views for i in layers for n in heads]


def _counted(number: int, count: int, what: str) -> int:
    if not -count <= number < count:
        raise UsageError(
            f"The model has no {what} {number}.",
            found=f"It has {count}.",
            repair=f"Give a number from 0 to {count - 1}; -1 is the last.",
        )
    return number % count


def no_way(by: str, ways: Iterable[str]) -> UsageError:
    if by == "learned":
        return UsageError(
            "There is no learned map.",
            found="No trained head was given.",
            repair="Give a head (--head RUN), or take 'heads' or 'mean'.",
        )
    return UsageError(
        f"Unknown way of looking '{by}'. {did_you_mean(by, WAYS)}".rstrip(),
        found=f"Known: {', '.join(ways)}.",
        repair="Give one of these, or a layer.",
    )
