"""transformers loads the model, and where its image tokens are is measured."""

from flmm_core import Backbone


class Idefics3Backbone(Backbone):
    model_types = ("idefics3",)
