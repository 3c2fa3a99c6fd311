"""Stage 1: image + caption -> what the frozen VLM attended to.

`Backbone` is what plugins subclass. It is a plain object and not an `nn.Module`, so that the
VLM's weights can reach neither an optimizer nor a checkpoint.

    load      alias, hub id or folder -> frozen VLM + processor    (weights.py finds and checks it)
    prepare   image + segments -> BackboneInputs, on the CPU       (conversation.py, tokens.py,
              view_check.py)
    collate   several of them -> one padded BackboneBatch          (batch.py)
    trace     one forward of the VLM -> one Trace per sample       (recorder.py; shared_prefix.py
              runs what samples about one image have in common)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone import conversation, loading, tokens, weights
from flmm_core.pipeline.backbone.batch import Side, collate, place_rows, to_vlm
from flmm_core.pipeline.backbone.contract import Contract
from flmm_core.pipeline.backbone.identity import ModelIdentity, identify
from flmm_core.pipeline.backbone.places import check_places
from flmm_core.pipeline.backbone.processor_check import check_processor
from flmm_core.pipeline.backbone.recorder import AttentionRecorder, Pool
from flmm_core.pipeline.backbone.reply import Reply
from flmm_core.pipeline.backbone.shared_prefix import PrefixCache, keeps_every_key
from flmm_core.pipeline.backbone.talk import Talk
from flmm_core.pipeline.backbone.view_check import checked_views
from flmm_core.pipeline.types import BackboneBatch, BackboneInputs, Prefix, Trace
from flmm_core.plugins import parse_options
from flmm_core.segment import CaptionMode, Segment
from flmm_core.spec import DEFAULT_PROMPT, Attention, BackboneOptions, BackboneSpec, Quantize

logger = logging.getLogger(__name__)


class Backbone(Contract):
    """One frozen vision-language model.

    A subclass declares `model_types`. The rest works for any transformers image-text-to-text model
    whose decoder attends causally: auto classes load it, and where its image tokens are is measured
    unless the subclass says so. `Contract` lists what else it may declare or override.

    `prepare` and what it calls run in DataLoader workers: they may use `config`, `processor`
    and `options`, never `vlm`. A pickled backbone leaves its `vlm` behind for that reason.

    Attributes:
        model: The alias, hub id or folder that was asked for; `source` is what was loaded.
        prompt: The user's text before the caption, unless `prepare` is given another.
        system: The system message before it; None is the chat template's own, if it has one.
        caption_mode: "whole" tokenizes a caption as the model's own answer, together with the
            prompt; "pieces" tokenizes each piece alone, as the original F-LMM does.
        vlm: The transformers model, frozen and in evaluation mode.
        config: The VLM's; `text_config` is that of its language model.
        requirements: Of the spec; what the config and the measured geometry say is added.
        num_layers: L; `num_heads` is N, `hidden_size` D and `attention_channels` C.
    """

    @classmethod
    def load(
        cls,
        spec: BackboneSpec,
        model: str = "tiny",
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        prompt: str = DEFAULT_PROMPT,
        system: str | None = None,
        caption_mode: CaptionMode = "whole",
        options: Mapping[str, Any] | BackboneOptions | None = None,
        adapter: str = loading.NONE,
        quantize: Quantize = "none",
        attention: Attention = "auto",
        **pass_through: Any,
    ) -> Self:
        """Load and freeze a model.

        Args:
            spec: The facts that the plugin registered.
            model: An alias of `spec.models`, a hub id or a local folder.
            dtype: "auto" (float32 on the CPU, elsewhere the dtype of the stored weights),
                "float32", "bfloat16", "float16" or a torch dtype.
            device: "auto" takes the first accelerator. Unused with `device_map`.
            prompt: See the attribute; so for `system` and `caption_mode`.
            options: The plugin's own settings.
            adapter: A LoRA adapter to apply: a folder, or a hub id (`name@revision`).
            quantize: "8bit" or "4bit" loads the language model's layers so (bitsandbytes).
            attention: Of the vision encoder and of answers; the recorder uses sdpa, or eager
                attention where logits are soft-capped.
            pass_through: For transformers' `from_pretrained` (`revision`, `device_map`, ...);
                `trust_remote_code` is off.

        Raises:
            UsageError: The model is no alias and looks like neither a hub id nor a folder.
            ConfigError: An option is unknown or has an invalid value.
            WeightsError: The folder is missing or of another family, or the hub id cannot be
                reached; the tokenizer or the chat template cannot take whole captions; the
                adapter does not fit.
        """
        checked = parse_options(spec, options)
        source = weights.find_source(spec, model)
        weights.check_model_type(spec, source, cls.model_types, pass_through)
        how = loading.Loading(dtype, device, adapter, quantize, attention, pass_through)
        vlm, processor = how.load(spec, source, partial(cls.load_model, source, checked))
        loaded = cls(
            spec, vlm, processor, model=model, source=source, options=checked,
            prompt=prompt, system=system, caption_mode=caption_mode,
        )  # fmt: skip
        if found := loaded.found():
            logger.info("%s", found)
        return loaded

    def __init__(
        self,
        spec: BackboneSpec,
        vlm: Any,
        processor: Any,
        *,
        model: str = "",
        source: str = "",
        options: BackboneOptions | None = None,
        prompt: str = DEFAULT_PROMPT,
        system: str | None = None,
        caption_mode: CaptionMode = "whole",
    ) -> None:
        """Freeze a loaded model; raises as `load`."""
        self.spec = spec
        self.model = model
        self.source = source
        self.options = spec.options() if options is None else options
        self.prompt = prompt
        self.system = system
        self.caption_mode: CaptionMode = caption_mode
        self.vlm = vlm.eval().requires_grad_(False)
        self.config = vlm.config
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.text_config = vlm.config.get_text_config()
        windowed = spec.requirements.sliding_window or not keeps_every_key(self.text_config)
        self.requirements = replace(spec.requirements, sliding_window=windowed)
        given = source or model, self.image_token, self.requirements.chat_template
        self.image_token, self.image_token_id = check_processor(processor, vlm.config, *given)
        self._find_views()
        self.num_layers = int(self.text_config.num_hidden_layers)
        self.num_heads = int(self.text_config.num_attention_heads)
        self.hidden_size = int(self.text_config.hidden_size)
        self.attention_channels = len(self.view_names) * self.num_layers * self.num_heads
        self._controls = conversation.control_strings(processor)
        self.rendered_prompt()  # raises
        self._recorder = AttentionRecorder(vlm.get_decoder())
        self._talk = Talk(self)

    def _find_views(self) -> None:
        """Measure where the image tokens are, unless the plugin says it."""
        if type(self).views is Contract.views:
            from flmm_core.pipeline.backbone.measured import MeasuredViews

            self.measured = MeasuredViews(self.config, self.processor)
            names = self.measured.names()
            self.view_names = self.view_names or names
            self.requirements = replace(self.requirements, optional_views=frozenset(names[1:]))
        elif not self.view_names:
            self.view_names = ("image",)

    def __getstate__(self) -> dict[str, Any]:
        """Everything that `prepare` needs: what a DataLoader worker receives."""
        return {**self.__dict__, "vlm": None, "_recorder": None, "_talk": None}

    @property
    def device(self) -> torch.device:
        """Where the VLM takes its inputs."""
        return loading.input_device(self.vlm)

    def weights_digest(self) -> str:
        """Hexadecimal SHA-256 over dtypes, shapes and values of the VLM's weights."""
        return weights.digest(self.vlm)

    def identity(self) -> ModelIdentity:
        """What a head's folder keeps of the model, to recognize it; quick at any size."""
        geometry = self.measured.facts() if self.measured else None
        return identify(self.vlm, self.processor, geometry)

    def check_places(self) -> None:
        """Repaint parts of drawn images, and see that the tokens of the cells there change.

        Done once for a model and its geometry: that it was is kept in the cache folder.

        Raises:
            RunError: Other tokens change.
        """
        check_places(self)

    def rendered_prompt(self) -> str:
        """The text that the model reads, one placeholder for an image, `{caption}` for a caption.

        Raises: as `load`; UsageError if the chat template takes no system message.
        """
        how = self.caption_mode == "whole", self.model, self.requirements.bidirectional_prefix
        return conversation.rendered(self.processor, self._turns(None), *how)

    def prepare(
        self,
        image: Image.Image,
        segments: Sequence[Segment],
        *,
        prompt: str | None = None,
        name: str = "",
        like: BackboneInputs | None = None,
    ) -> BackboneInputs:
        """One sample, ready for the VLM: on the CPU, without weights, without randomness.

        Args:
            image: Of any size and mode; it is read as upright RGB, as `Grounder.ground` does.
            segments: The caption in pieces; their phrases are numbered 0..P-1.
            prompt: The user's text before the caption; None is the backbone's own `prompt`.
            name: Names the sample in messages.
            like: A sample of the same image and prompt, whose prefix is reused: it is not
                encoded again, and in a batch the VLM runs it once for both.

        Raises:
            UsageError: A phrase is empty, has no tokens or exceeds the length limit; the
                phrases are not numbered 0..P-1; there is no image.
            DataError: The image cannot be used, or its image tokens do not fit its grid.
        """
        image = tokens.read_image(image, name)
        prefix = self._prefix(image, prompt, name) if like is None else like.prefix
        limit = tokens.longest(self.text_config, self.tokenizer)
        rest = segments, self._controls
        if self.caption_mode == "whole":
            caption = tokens.tokenize_whole(self.processor, prefix, *rest, limit, name)
        else:
            caption = tokens.tokenize_pieces(self.tokenizer, *rest, len(prefix), limit, name)
        before = prefix.tokens["input_ids"][: caption.start]
        input_ids = torch.cat([before, caption.ids])  # (S,)
        image_hw = (image.height, image.width)
        is_image = input_ids == self.image_token_id
        views = checked_views(self, input_ids, is_image, image_hw, prefix.image, name)
        return BackboneInputs(
            prefix=prefix,
            start=caption.start,
            caption=caption.ids,
            views=views,
            phrase_rows=caption.rows,
            image_hw=image_hw,
            name=name,
            offsets=caption.offsets,
        )

    def vision_token_mask(self, inputs: BackboneInputs) -> Tensor:
        """(S,) bool, true at image tokens."""
        return inputs.tokens["input_ids"] == self.image_token_id

    def _prefix(self, image: Image.Image, prompt: str | None, name: str) -> Prefix:
        given = image, self.shrunk, self._turns(prompt)
        apart = self.requirements.bidirectional_prefix
        return tokens.encode_prefix(self.processor, *given, self.image_token_id, name, apart)

    def _turns(self, prompt: str | None) -> conversation.Turns:
        text = conversation.escape(self.prompt if prompt is None else prompt, self._controls)
        system = self.system
        if system is not None:
            system = conversation.escape(system, self._controls)
        return conversation.user_turns(text, system)

    def collate(
        self, samples: Sequence[BackboneInputs], *, side: Side = "right", apart: bool = False
    ) -> BackboneBatch:
        """Samples padded together; sequences and grids may differ in size.

        Args:
            samples: At least one. Those that were prepared `like` another share its prefix.
            side: Where the padding tokens go; with shared prefixes always before a prefix and
                after a caption.
            apart: Keep the captions apart from their prefix, for `trace` with `seen`.
        """
        return collate(
            samples,
            tokenizer=self.tokenizer,
            side=side,
            join=self.join,
            share=self._goes_on,
            apart=apart,
        )

    @property
    def _goes_on(self) -> bool:
        """Whether captions can go on from the KV cache of their prefix."""
        return self.shares_prefixes and not self.requirements.sliding_window

    @torch.no_grad()
    def see(self, sample: BackboneInputs) -> PrefixCache | None:
        """Run the image and the prompt of a sample without a caption, once for many a `trace`.

        None if captions cannot go on from there, or a plugin has a `collate` or `trace` of its own.
        """
        own = type(self).collate, type(self).trace
        if not self._goes_on or own != (Backbone.collate, Backbone.trace):
            return None
        tensors = self.collate([sample]).tensors
        return PrefixCache(self.vlm, to_vlm(self.vlm, tensors))

    @torch.no_grad()  # not inference_mode: its tensors cannot feed a trained head
    def trace(
        self,
        batch: BackboneBatch,
        *,
        pool: Pool = "mean",
        ends: int = 0,
        layer_weights: Sequence[float] | None = None,
        captions: bool = False,
        seen: PrefixCache | None = None,
    ) -> tuple[Trace, ...]:
        """One forward of the VLM, without its language-model head; one `Trace` per sample.

        Args:
            batch: From `collate`.
            pool: How the attention of a phrase's tokens becomes one map, "mean" or "max".
            ends: How many last tokens of each phrase are kept apart, too, as `Trace.ends`; with
                "mean" only.
            layer_weights: L numbers to sum the hidden states of all layers with while the model
                runs; a trace's `hidden` is then (1, T, D).
            captions: Keep the hidden states of whole captions, too.
            seen: What `see` made of the one prefix of the batch, collated `apart`.
        """
        placed, following, after = place_rows(batch, captions), batch.captions, None
        if seen is None:
            tensors = to_vlm(self.vlm, batch.tensors)
            prefixes = PrefixCache(self.vlm, tensors) if following else None
        else:
            prefixes, after = seen, batch.tensors["input_ids"].shape[1]
        with self._recorder.record(
            *placed,
            names=[sample.name for sample in batch.samples],
            pool=pool,
            ends=ends,
            layer_weights=layer_weights,
        ) as recording:
            if following and prefixes:
                prefixes.read(**to_vlm(self.vlm, vars(following)), after=after)
            else:
                self.vlm.model(**tensors, use_cache=False)
        recorded = placed.groups, recording.attention, recording.hidden, recording.ends
        return tuple(map(Trace.of, batch.samples, *recorded))

    def reply(
        self,
        image: object,
        messages: object,
        *,
        record: bool = True,
        on_text: Callable[[str], None] | None = None,
        seed: int | None = None,
        **generation: Any,
    ) -> Reply:
        """The VLM's answer to a conversation, and what its words attended to.

        Args and errors as for `Grounder.chat`. A conversation that goes on from the last one's
        `Reply.messages` runs only what is new; others begin anew.

        Args:
            record: Also keep what the attention of the answer is computed from.
            on_text: Is called with each piece of the answer's text as soon as it is certain.
        """
        return self._talk.reply(image, messages, record, on_text, seed, generation)

    def generate(
        self,
        image: object,
        prompt: str | None = None,
        *,
        max_new_tokens: int = 64,
        **sampling: Any,
    ) -> str:
        """The text of the VLM's answer about an image, greedy unless `sampling` says otherwise.

        `prompt` None is the backbone's own; `image` and `sampling` as for `Grounder.chat`.
        """
        asked = self.prompt if prompt is None else prompt
        sampling |= {"max_new_tokens": max_new_tokens}
        return self.reply(image, asked, record=False, **sampling).text

    def forget(self) -> None:
        """Free the KV cache of the last conversation."""
        self._talk.forget()
