"""Stage 1: image + caption -> what the frozen VLM attended to.

`Backbone` is what plugins subclass. It is a plain object and not an `nn.Module`, so that the
VLM's weights can reach neither an optimizer nor a checkpoint.

    load      alias, hub id or folder -> frozen VLM + processor     (model_source.py finds it)
    prepare   image + segments -> BackboneInputs, on the CPU      (prompt.py, caption.py)
    collate   several of them -> one padded BackboneBatch           (batching.py pads)
    trace     one forward of the VLM -> a Trace a sample            (attention_recorder.py reads;
              samples about one image share its part of it         prefix.py)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone.attention_rows import Precision
from flmm_core.pipeline.backbone.batch import (
    Side,
    collate,
    make_traces,
    place_rows,
    prompt_of,
    stack_padded,
)
from flmm_core.pipeline.backbone.caption import fit_to_limit, tokenise_caption
from flmm_core.pipeline.backbone.prompt import control_strings, defuse, encode_prompt
from flmm_core.pipeline.backbone.recorder import AttentionRecorder, Pool
from flmm_core.pipeline.backbone.shared_prompt import PrefixCache, keeps_every_key
from flmm_core.pipeline.backbone.view_check import check_views, find_image_tokens, naming_sample
from flmm_core.pipeline.backbone.weights import (
    check_model_type,
    check_processor,
    choose_device,
    choose_dtype,
    digest,
    find_source,
    load_errors,
    parse_options,
)
from flmm_core.pipeline.types import BackboneBatch, BackboneInputs, ImageView, Trace
from flmm_core.segment import Segment
from flmm_core.spec import DEFAULT_PROMPT, BackboneOptions, BackboneSpec


class Backbone(ABC):
    """One loaded, frozen vision-language model.

    A subclass declares `view_names` and `model_types` and gives `_load` and `_views`. All else
    works for any transformers image-text-to-text model whose processor has a chat template, and
    may be overridden; the likely ones are `_separator_tokens` and `_join`.

    `prepare` and what it calls run in DataLoader workers: they may use `config`, `processor`
    and `options`, never `vlm`. A pickled backbone leaves its `vlm` behind for that reason.

    Attributes:
        view_names: The views of an image, in channel order.
        model_types: The `model_type`s of config.json that this class can load.
        shares_prompts: Whether samples about one image share one pass of their common prompt.
            A subclass whose VLM cannot go on from a KV cache sets it to False.
        spec: The facts that the plugin registered.
        model: The alias, hub id or folder that was asked for.
        source: The folder or hub id that was loaded.
        options: The plugin's own settings.
        vlm: The transformers model, frozen and in evaluation mode.
        config: The VLM's own config.
        processor: The transformers processor.
        prompt: What the user says beside the image, before the caption.
    """

    view_names: ClassVar[tuple[str, ...]] = ("image",)
    model_types: ClassVar[tuple[str, ...]] = ()
    shares_prompts: bool = True

    # --- a plugin implements these ----------------------------------------------------------

    @classmethod
    @abstractmethod
    def _load(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        """The model and its processor, by `from_pretrained`.

        Args:
            source: A folder or a hub id.
            options: The plugin's own settings.
            kwargs: For the model's `from_pretrained`: `dtype`, `trust_remote_code` and what the
                caller passed through (`device_map`, `quantization_config`, `revision`, ...).

        Returns:
            (vlm, processor); core freezes the VLM and moves it.
        """

    @abstractmethod
    def _views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        """The geometry of one sample's image tokens, one view for each of `view_names`.

        Args:
            input_ids: (S,) the whole sequence; `image_token_places` finds the image's.
            image_hw: Height and width of the image in pixels.
            tensors: The sample's other tensors, as the processor gave them.
        """

    # --- a plugin may override these --------------------------------------------------------

    def _separator_tokens(self, views: Sequence[ImageView]) -> int:
        """How many image tokens belong to no cell, line ends for example."""
        return 0

    def _join(self, name: str, values: Sequence[Tensor]) -> Tensor:
        """One batch of a tensor that has no token dimension (pixels, sizes, grids).

        By default concatenated along dimension 0, zero-padded in the others where they differ.
        """
        return stack_padded(values)

    # --- loading ----------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        spec: BackboneSpec,
        model: str = "tiny",
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "cpu",
        prompt: str = DEFAULT_PROMPT,
        options: Mapping[str, Any] | BackboneOptions | None = None,
        **pass_through: Any,
    ) -> Self:
        """Load and freeze a model.

        Args:
            spec: The facts that the plugin registered.
            model: An alias of `spec.models`, a hub id or a local folder.
            dtype: "auto" (float32 on the CPU, elsewhere what the weights are stored in),
                "float32", "bfloat16", "float16" or a torch dtype.
            device: "auto" takes the first accelerator. Unused with `device_map`.
            prompt: What the user says beside the image, before the caption.
            options: The plugin's own settings, validated with `spec.options`.
            pass_through: For transformers' `from_pretrained`; `trust_remote_code` is off.

        Raises:
            UsageError: The model is no alias and looks like neither a hub id nor a folder.
            ConfigError: An option is unknown or has a wrong value.
            WeightsError: The folder is missing or of another family, or the hub id cannot be
                reached.
        """
        checked = parse_options(spec, options)
        source = find_source(spec, model)
        check_model_type(spec, source, cls.model_types, pass_through)
        placed = "device_map" in pass_through or "quantization_config" in pass_through
        target = choose_device(device)
        kwargs = {"trust_remote_code": False, **pass_through}
        kwargs["dtype"] = choose_dtype(dtype, "auto" if placed else target.type)
        with load_errors(spec, source):
            vlm, processor = cls._load(source, checked, **kwargs)
        if not placed:
            vlm = vlm.to(target)
        return cls(spec, vlm, processor, model=model, source=source, options=checked, prompt=prompt)

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
    ) -> None:
        """Freeze a loaded model. `load` is the usual way here.

        Raises:
            WeightsError: The processor has no chat template, or no image token in common with
                the model.
        """
        self.spec = spec
        self.model = model
        self.source = source
        self.options = spec.options() if options is None else options
        self.prompt = prompt
        self.vlm = vlm.eval().requires_grad_(False)
        self.config = vlm.config
        self.processor = processor
        check_processor(processor, vlm.config, source or model)
        self._controls = control_strings(processor)
        self._recorder = AttentionRecorder(vlm.get_decoder())

    def __getstate__(self) -> dict[str, Any]:
        """Everything that `prepare` needs: what a DataLoader worker gets."""
        return {**self.__dict__, "vlm": None, "_recorder": None}

    # --- facts ------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def text_config(self) -> Any:
        """The config of the language model."""
        return self.config.get_text_config()

    @property
    def num_layers(self) -> int:
        """L, the layers of the language model."""
        return int(self.text_config.num_hidden_layers)

    @property
    def num_heads(self) -> int:
        """N, the attention heads of a layer."""
        return int(self.text_config.num_attention_heads)

    @property
    def hidden_size(self) -> int:
        """D, the width of the language model."""
        return int(self.text_config.hidden_size)

    @property
    def attention_channels(self) -> int:
        """C = V * L * N, the channels of the attention maps."""
        return len(self.view_names) * self.num_layers * self.num_heads

    @property
    def image_token_id(self) -> int:
        """The id of the tokens that are replaced by the image's features."""
        return int(self.config.image_token_id)

    def weights_digest(self) -> str:
        """Hexadecimal SHA-256 over all names, types, shapes and values of the VLM's weights."""
        return digest(self.vlm)

    # --- one sample -------------------------------------------------------------------------

    def prepare(
        self,
        image: Image.Image,
        segments: Sequence[Segment],
        *,
        name: str = "",
        like: BackboneInputs | None = None,
    ) -> BackboneInputs:
        """One sample, ready for the VLM: on the CPU, without weights, without randomness.

        Args:
            image: The image.
            segments: The caption in pieces; their phrases are numbered 0..P-1.
            name: Names the sample in messages.
            like: A sample of the same image and prompt, whose reading of them is taken over:
                it is not made again, and in a batch the VLM runs it once for both.

        Raises:
            UsageError: A phrase is empty, has no tokens or lies beyond the length limit; the
                phrases are not numbered 0..P-1; there is no image.
            DataError: The image cannot be used, or its image tokens do not fit its grid.
        """
        tensors = prompt_of(like) if like else self._encode(image, self.prompt, name)
        prompt_length = len(tensors["input_ids"])
        pieces = [Segment(defuse(piece.text, self._controls), piece.phrase) for piece in segments]
        caption = tokenise_caption(self.tokenizer, pieces, prompt_length, name)
        tensors = fit_to_limit(tensors, caption, self._length_limit(), name)
        image_hw = (image.height, image.width)
        with naming_sample(name):
            views = self._views(tensors["input_ids"], image_hw, tensors)
            if tuple(view.name for view in views) != self.view_names:
                raise ValueError(f"{type(self).__name__} must give the views {self.view_names}")
            is_image = tensors["input_ids"] == self.image_token_id
            check_views(views, is_image, self._separator_tokens(views), image_hw)
        return BackboneInputs(
            tensors=tensors,
            views=views,
            phrase_rows=caption.phrase_rows,
            phrases=caption.phrases,
            image_hw=image_hw,
            name=name,
            prompt_length=prompt_length,
        )

    def vision_token_mask(self, inputs: BackboneInputs) -> Tensor:
        """(S,) bool, true at image tokens."""
        return inputs.tensors["input_ids"] == self.image_token_id

    def image_token_places(self, input_ids: Tensor, expected: int) -> Tensor:
        """(expected,) int64 places of the image tokens in the sequence.

        Raises:
            DataError: Their number is another one.
        """
        return find_image_tokens(input_ids == self.image_token_id, expected)

    def _encode(self, image: Image.Image, prompt: str, name: str) -> dict[str, Tensor]:
        """The processor's tensors for image and prompt; per-token ones are (S,)."""
        return encode_prompt(self.processor, image, defuse(prompt, self._controls), name)

    def _length_limit(self) -> int:
        """Tokens that the language model can take; the tokenizer's own figure is often unset."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return int(limit or self.tokenizer.model_max_length)

    # --- a batch ----------------------------------------------------------------------------

    def collate(self, samples: Sequence[BackboneInputs], *, side: Side = "right") -> BackboneBatch:
        """Samples padded together; sequences and grids of different sizes may meet.

        Args:
            samples: At least one. Those that were prepared `like` another share its prompt.
            side: Where the padding tokens go; with shared prompts always before a prompt and
                behind a caption.
        """
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        pad_id = next(i for i in ids if i is not None)
        share = self.shares_prompts and keeps_every_key(self.text_config)
        return collate(samples, pad_id=pad_id, side=side, join=self._join, share=share)

    @torch.no_grad()  # not inference_mode: its tensors cannot feed a trained head
    def trace(
        self,
        batch: BackboneBatch,
        *,
        pool: Pool = "mean",
        precision: Precision = "fp32",
        layer_weights: Sequence[float] | None = None,
    ) -> tuple[Trace, ...]:
        """One forward of the VLM, without its language-model head; one `Trace` a sample.

        Args:
            batch: What `collate` gave.
            pool: How the attention of a phrase's tokens becomes one: "mean" or "max".
            precision: "fp32" never rounds; "model" rounds where eager attention would.
            layer_weights: L numbers; the hidden states of all layers are then summed with them
                while the model runs, and a trace's `hidden` is (1, T, D).
        """
        placed = place_rows(batch)
        tensors, captions = self._to_vlm(batch.tensors), batch.captions
        prefix = PrefixCache(self.vlm, tensors) if captions else None
        with self._recorder.record(
            **vars(placed),
            names=[sample.name for sample in batch.samples],
            pool=pool,
            precision=precision,
            layer_weights=layer_weights,
        ) as recording:
            if captions and prefix:
                prefix.read(**self._to_vlm(vars(captions)))
            else:
                self.vlm.model(**tensors, use_cache=False)
        return make_traces(batch, placed, recording.attention, recording.hidden)

    def _to_vlm(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """On the VLM's device, pixels in its dtype."""
        device, dtype = self.vlm.device, self.vlm.dtype
        if device.type == "meta":  # offloaded: accelerate's hooks move what they are given
            device = torch.device("cpu")
        return {  # page-locked ones are copied while the CPU goes on
            k: v.to(device, dtype if v.is_floating_point() else None, non_blocking=v.is_pinned())
            for k, v in tensors.items()
        }

    # --- conversation -----------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        image: Image.Image,
        prompt: str | None = None,
        *,
        max_new_tokens: int = 64,
        **sampling: Any,
    ) -> str:
        """The VLM's answer about an image, greedily unless `sampling` says otherwise.

        Args:
            image: The image.
            prompt: The question; by default the backbone's own prompt.
            max_new_tokens: Where to stop at the latest.
            sampling: For transformers' `generate`, for example `do_sample=True, top_p=0.9`.
        """
        sample = self._encode(image, self.prompt if prompt is None else prompt, "")
        length = len(sample["input_ids"])
        per_token = {k: v[None] for k, v in sample.items() if v.shape == sample["input_ids"].shape}
        greedy: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        if not sampling.get("do_sample"):  # a model's own config may hold what greedy warns about
            greedy |= {"temperature": None, "top_p": None, "top_k": None}
        generated = self.vlm.generate(
            **self._to_vlm({**sample, **per_token}),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            **{**greedy, **sampling},
        )
        answer: str = self.tokenizer.decode(generated[0, length:], skip_special_tokens=True)
        return answer.strip()
