"""transformers loads the model, and where its image tokens are is measured."""

from flmm_core import Backbone


class PaliGemmaBackbone(Backbone):
    model_types = ("paligemma",)
