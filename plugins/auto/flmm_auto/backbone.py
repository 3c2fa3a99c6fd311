"""Any image-text-to-text model of transformers; where its image tokens are is measured."""

from __future__ import annotations

from typing import Any, Self

from transformers import AutoConfig
from transformers import __version__ as transformers_version

from flmm_auto import AutoOptions
from flmm_auto.families import LISTED
from flmm_core import Backbone, BackboneOptions, BackboneSpec, FlmmError, WeightsError

FILES = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code")
"""The arguments of `from_pretrained` that say where a config is."""


class AutoBackbone(Backbone):
    """A model of any family."""

    @classmethod
    def load(cls, spec: BackboneSpec, model: str = "tiny", **given: Any) -> Self:
        """As `Backbone.load`; the first time, it repaints parts of images to see what changes."""
        try:
            loaded = super().load(spec, model, **given)
        except FlmmError:
            raise
        except Exception as error:  # whatever an unknown model lacks
            raise WeightsError(
                f"Backbone 'auto' cannot use the model '{model}'.",
                found=f"{type(error).__name__}: {' '.join(str(error).split())}",
                repair="Write a plugin for it. FLMM_DEBUG=1 shows where it fails.",
            ) from error
        loaded.check_places()
        return loaded

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        assert isinstance(options, AutoOptions)  # the core validates them with SPEC.options
        where = {name: kwargs[name] for name in FILES if name in kwargs}
        kind = AutoConfig.from_pretrained(source, **where).model_type
        if kind not in LISTED and not options.allow_unlisted:
            raise WeightsError(
                f"Backbone 'auto' has not been tried with models of the type '{kind}'.",
                found=f"Tried: {', '.join(LISTED)}.",
                repair="Use --options allow_unlisted=true to have its geometry measured and proved "
                "nevertheless, or a plugin for it (flmm backbones list).",
            )
        return super().load_model(source, options, **kwargs)

    def found(self) -> str:
        assert self.measured is not None  # the plugin declares no geometry
        kind, facts = self.config.model_type, self.measured.facts()
        told = (
            f"The model '{self.model}' is of the type '{kind}'. It was measured, for "
            f"{len(facts)} sizes of images, that its image tokens lie in {self._views_told()}."
        )
        if self.requirements.sliding_window:
            told += " Some layers attend only to the latest tokens."
        for (height, width), reason in self.measured.refused.items():
            told += f" Images of {width} x {height} pixels are refused: {reason}"
        tried, now = LISTED.get(kind), transformers_version
        if tried is None:
            told += f" The type '{kind}' has not been tried before."
        elif tried != ".".join(now.split(".")[:2]):
            told += f" The type has been tried with transformers {tried}; this is {now}."
        return told

    def _views_told(self) -> str:
        """Each view's smallest and largest grid, and whether images can be without some."""
        assert self.measured is not None
        facts = list(self.measured.facts().values())
        grids: dict[str, set[tuple[int, int]]] = {}
        for views in facts:
            names = self.view_names if len(views) > 1 else self.view_names[:1]
            for name, at in zip(names, views.values(), strict=True):
                grids.setdefault(name, set()).add((int(at[0]), int(at[1])))
        parts = []
        for name, found in grids.items():
            ends = sorted(found, key=lambda grid: grid[0] * grid[1])
            least, most = (f"{grid[0]} x {grid[1]}" for grid in (ends[0], ends[-1]))
            size = least if len(found) == 1 else f"{least} to {most}"
            parts.append(f"'{name}' ({size} tokens)")
        told = f"the view{'s' * (len(parts) > 1)} {' and '.join(parts)}"
        if min(map(len, facts)) < len(self.view_names):
            told += f"; where an image has only '{self.view_names[0]}', it stands for all"
        return told
