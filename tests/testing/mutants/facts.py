"""Faults of what a plugin declares and loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from flmm_core import BackboneOptions, ModelInfo
from tests.testing.mutants.mutant import Make, loaded, loading, mutant

SPEC, FROZEN, STORED = "check_spec", "check_loads_frozen", "check_stored_model"


def spec(**facts: Any) -> Make:
    return loaded(lambda backbone: setattr(backbone, "spec", replace(backbone.spec, **facts)))


class Needy(BackboneOptions):
    side: int


TINY = ModelInfo("owner/name", "MIT")
mutant(SPEC, "a model without a license")(
    spec(models={"tiny": TINY, "7b": ModelInfo("owner/name", "")})
)
mutant(SPEC, "a model without a source")(spec(models={"tiny": ModelInfo("", "MIT")}))
mutant(SPEC, "no summary")(spec(summary=" "))
mutant(SPEC, "an option without a default")(spec(options=Needy))
mutant(SPEC, "a target that is no backbone")(spec(target="collections:OrderedDict"))
mutant(SPEC, "a target that was not loaded")(spec(target="tests.models:OneView"))
mutant("check_spec_without_torch", "a plugin that imports transformers")(
    spec(target="transformers:AutoModel")
)
mutant(SPEC, "no model types")(loaded(lambda b: setattr(b, "model_types", ())))
mutant("check_image_attention", "the other direction of an image's attention")(
    loaded(
        lambda b: setattr(
            b,
            "requirements",
            replace(b.requirements, bidirectional_image=not b.requirements.bidirectional_image),
        )
    )
)


@mutant(SPEC, "two views of one name")
def same_names(base: Any) -> Any:
    class Faulty(base):
        view_names = "image", "image"

    return Faulty


def on_model(change: Callable[[Any], Any]) -> Make:
    return loaded(lambda backbone: change(backbone.vlm))


mutant(FROZEN, "the model in training mode")(on_model(lambda vlm: vlm.train()))
mutant(FROZEN, "one layer in training mode")(
    on_model(lambda vlm: vlm.get_decoder().layers[0].train())
)
mutant(FROZEN, "a weight that wants a gradient")(
    on_model(lambda vlm: next(vlm.parameters()).requires_grad_(True))
)
mutant(FROZEN, "weights in bfloat16")(on_model(lambda vlm: vlm.to(torch.bfloat16)))


@mutant(FROZEN, "a backbone that is an nn.Module")
def module(base: Any) -> Any:
    class Faulty(base):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.__dict__.update(vars(torch.nn.Module()))

        @property
        def __class__(self) -> Any:
            return type("Faulty", (torch.nn.Module,), {})

    return Faulty


def stored(change: Callable[[SimpleNamespace], Any]) -> Make:
    """A fault of weights or configuration as they are loaded."""

    def load(vlm: Any, processor: Any) -> None:
        decoder = vlm.get_decoder()
        with torch.no_grad():
            change(
                SimpleNamespace(
                    vlm=vlm, config=vlm.config, layers=decoder.layers, norm=decoder.norm
                )
            )

    return loading(load)


mutant(STORED, "word embeddings 1 % too large")(
    stored(lambda m: m.vlm.get_input_embeddings().weight.mul_(1.01))
)
mutant(STORED, "no weights for the words of answers")(
    stored(lambda m: m.vlm.get_output_embeddings().weight.zero_())
)
mutant(STORED, "two layers swapped")(
    stored(lambda m: m.layers[0].load_state_dict(m.layers[1].state_dict()))
)
mutant(STORED, "random weights in a layer")(
    stored(lambda m: m.layers[0].self_attn.q_proj.weight.normal_())
)
mutant(STORED, "weights rounded to bfloat16")(
    stored(lambda m: [p.copy_(p.bfloat16().float()) for p in m.vlm.parameters()])
)
mutant(STORED, "another epsilon of the norms")(
    stored(lambda m: setattr(m.config.get_text_config(), "rms_norm_eps", 0.1))
)
mutant(STORED, "another base of rotary positions")(
    stored(lambda m: m.config.get_text_config().rope_parameters.update(rope_theta=500.0))
)
