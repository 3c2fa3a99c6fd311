"""transformers loads the model, and where its image tokens are is measured."""

from flmm_core import Backbone


class SmolVLMBackbone(Backbone):
    model_types = ("smolvlm", "idefics3")  # the latter is the first SmolVLM
