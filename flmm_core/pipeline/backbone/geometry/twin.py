"""A model's class at toy width, with random weights and attention off: nothing mixes tokens."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForImageTextToText, PreTrainedConfig

from flmm_core.pipeline.backbone.geometry.refused import GeometryRefused, one_line, refuse
from flmm_core.pipeline.backbone.geometry.tokenwise import one_product, skip_tokenwise

OFF = "flmm_off"
"""The name of the attention function that mixes nothing."""

WIDTH = 16
SIZES = {
    WIDTH: ("hidden_size", "embed_dim", "hidden_dim", "d_model", "projection_dim",
            "projector_input_dim", "projector_output_dim", "vision_output_dim"),
    4 * WIDTH: ("intermediate_size", "ffn_dim", "mlp_dim"),
    2: ("attention_heads", "num_heads", "key_value_heads", "num_experts", "local_experts"),
    1: ("num_experts_per_tok",),
    WIDTH // 2: ("head_dim", "hidden_size_per_layer_input"),
}  # fmt: skip
"""Endings of settings that decide the number of weights, and nothing about where tokens lie."""


def off(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention that gives zeros, or the mean of all keys to queries that are no keys.

    Args:
        query: (B, N, queries, D); `key` and `value` are (B, N', keys, D).

    Returns:
        (B, queries, N, D).
    """
    b, heads, queries, _ = query.shape
    if queries == key.shape[2]:
        return value.new_zeros(b, queries, heads, value.shape[-1]), None
    # pooling of a few patches stays local; a resampler blends the whole image, and is refused
    mean = value.mean(2)[:, None].expand(-1, queries, -1, -1)
    return mean.repeat_interleave(heads // mean.shape[2], 2), None


AttentionInterface.register(OFF, off)


class _DecoderReached(Exception):  # noqa: N818 - it is no error
    def __init__(self, inputs_embeds: Tensor | None) -> None:
        super().__init__()
        self.inputs_embeds = inputs_embeds


class Twin:
    """A model of a config's class that runs as far as its decoder, in float64."""

    def __init__(self, config: Any, vocabulary: int) -> None:
        """Build it; the global random state stays as it is.

        Raises:
            GeometryRefused: transformers cannot build it without attention.
        """
        small = shrunk(config, vocabulary)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = AutoModelForImageTextToText.from_config(small, attn_implementation=OFF)
                self.model = model.double().eval().requires_grad_(False)
                wake(self.model)
        except GeometryRefused:
            raise
        except Exception as error:  # each model class has its own ways to fail
            kind = type(config).__name__
            if OFF in str(error):
                raise refuse(f"The attention of {kind} cannot be switched off.") from error
            raise refuse(f"No twin of {kind} can be built: {one_line(error)}") from error
        self.decoder = self.model.get_decoder()
        one_product(self.model)
        skip_tokenwise(self.model, self.decoder, WIDTH)

    def inputs_embeds(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(S, D) float64, as the decoder is given them.

        Raises:
            GeometryRefused: It is given none, or the model cannot be run.
        """

        def stop(module: Any, args: Any, kwargs: Any) -> None:
            raise _DecoderReached(kwargs.get("inputs_embeds"))

        handle = self.decoder.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model(**tensors, use_cache=False)
        except _DecoderReached as reached:
            if reached.inputs_embeds is not None:
                return reached.inputs_embeds[0]
        except GeometryRefused:
            raise
        except Exception as error:
            raise refuse(f"The model's twin cannot be run: {one_line(error)}") from error
        finally:
            handle.remove()
        raise refuse("The model's decoder is given no image tokens in its sequence.")


def shrunk(config: Any, vocabulary: int) -> Any:
    """A copy of a config with small widths; whatever decides the geometry stays."""
    small = copy.deepcopy(config)
    _shrink(small)
    text = small.get_text_config()
    for each in (small, text):
        if hasattr(each, "vocab_size"):
            each.vocab_size = vocabulary
        if (getattr(each, "pad_token_id", None) or 0) >= vocabulary:
            each.pad_token_id = None
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    return small


def _shrink(config: Any) -> None:
    width = getattr(config, "hidden_size", 0)
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif type(value) is int and (size := _small(name)):
            # an output of several layers is as wide as they are together
            layers = value // width if name == "vision_output_dim" and not value % width else 1
            setattr(config, name, size * layers)


def _small(name: str) -> int | None:
    return next((size for size, ends in SIZES.items() if name.endswith(ends)), None)


def fit_rope_sections(small: Any) -> None:
    """Share a narrow head's rotary frequencies among time, rows and columns, where a model does so.

    The shares are in the config, or only in the model's class.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(small)
    sectioned = [each for each in model.modules() if hasattr(each, "mrope_section")]
    rope = getattr(small.get_text_config(), "rope_parameters", None) or {}
    for module in sectioned:
        frequencies = len(module.inv_freq)
        each = frequencies * 3 // 8
        for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
            if "rope_type" in one:
                one["mrope_section"] = [frequencies - 2 * each, each, each]


def wake(model: torch.nn.Module) -> None:
    """Give values to parts that start at zero and hide a path: line ends, gates, projections."""
    with torch.no_grad():
        for weights in model.parameters():
            if float(weights.abs().max()) < 1e-3:
                weights.normal_(0, 0.2)
