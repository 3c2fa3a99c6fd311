"""Observer and head together: an image and phrases in, masks out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image

from flmm_core.errors import UsageError
from flmm_core.files import whole_folder
from flmm_core.images import to_image
from flmm_core.pipeline import head_folder, publish
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.build import build_flow
from flmm_core.pipeline.confidence import Confidence, read_confidence, write_confidence
from flmm_core.pipeline.conversation import chat, zoom
from flmm_core.pipeline.conversation.answer import Answer, Span
from flmm_core.pipeline.conversation.phrases.choose import Phrases
from flmm_core.pipeline.conversation.zoom import Thought, Views
from flmm_core.pipeline.drift import check_drift
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import HeadInfo
from flmm_core.pipeline.look import Look
from flmm_core.pipeline.observer import Observer, ObserverInputs, Seen
from flmm_core.pipeline.result import Result, collect
from flmm_core.pipeline.types import Grounding
from flmm_core.segment import is_text, statements
from flmm_core.spec import Quantize


@dataclass(frozen=True, eq=False)
class Prepared:
    """Phrases of one image (RGB, upright), ready for the VLM: one sample a caption."""

    image: Image.Image
    phrases: tuple[str, ...]
    samples: tuple[ObserverInputs, ...]


@dataclass(eq=False, repr=False)
class Grounder:
    """Grounds phrases with a frozen VLM and a trained head.

    Attributes:
        observer: The frozen half.
        head: The trained half, in evaluation mode.
        info: What the head's folder says of it.
        confidence: Turns the evidence for masks into probabilities; None without validation data.
    """

    observer: Observer
    head: Head
    info: HeadInfo
    confidence: Confidence | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        model: str | None = None,
        model_revision: str | None = None,
        adapter: str | None = None,
        quantize: Quantize | None = None,
        prompt: str | None = None,
        system: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        refiner_weights: str | Path | None = None,
        revision: str | None = None,
        force: bool = False,
        strict: bool = False,
        check: bool = True,
        **pass_through: Any,
    ) -> Self:
        """A trained head behind its VLM.

        Args:
            source: A run folder, a checkpoint or head folder, or a hub id (`owner/name@revision`).
            model: Where the VLM is, if not where it was in training.
            model_revision: Of the VLM's hub repository; by default as in training, or the latest
                of another `model`.
            adapter: A LoRA adapter on the VLM, if not as in training; "none" is without. So for
                `quantize`.
            prompt: The user's text beside the image, if not as in training; so for `system`.
            device: "auto" takes the first accelerator.
            dtype: Of the VLM's weights; see `Backbone.load`.
            refiner_weights: The refiner's own weights, where training needed some.
            revision: Of the hub repository of the head: a branch, tag or commit.
            force: Accept another VLM of the same shape than the head was trained behind.
            strict: Refuse a VLM that does otherwise than when the head was trained, as under
                another version of transformers. Otherwise a warning says so.
            check: Run the VLM on a drawn image first; see `take_fingerprint`.
            pass_through: Further arguments of `Backbone.load`: `device_map`, `attention`, and
                those of transformers' `from_pretrained` of the VLM.

        Raises:
            WeightsError: The head is missing, damaged, or was trained behind another VLM.
            MissingExtraError: A package that `adapter` or `quantize` needs is not installed.
            RunError: The VLM does not do what its backbone promises.
        """
        folder = head_folder.find_head(source, revision=revision)
        trained = info = head_folder.read_info(folder)
        state, confidence = head_folder.read_weights(folder), read_confidence(folder)
        recipe = info.recipe.behind(
            model=model, revision=model_revision, adapter=adapter, quantize=quantize
        )
        given: dict[str, Any] = {"prompt": prompt, "system": system}
        changed = {key: value for key, value in given.items() if value is not None}
        info = replace(info, recipe=replace(recipe, **changed))
        observer, head = build_flow(
            info.recipe,
            dtype=dtype,
            device=device,
            refiner_weights=refiner_weights,
            check=check,
            **pass_through,
        )
        head_folder.check_fit(folder, info, observer.vlm)
        found = observer.backbone.identity()
        head_folder.check_model(str(folder), trained, info.recipe.model, found, force=force)
        check_drift(str(folder), trained, found, observer.fingerprint, strict=strict)
        head.load_weights(state)
        if "reads" in info.facts:
            info = info.with_facts(reads=observer.backbone.rendered_prompt())
        return cls(observer, head, info, confidence)

    def save_pretrained(self, folder: str | os.PathLike[str], **facts: Any) -> Path:
        """Write the head's folder, whole or not at all; a head in it is replaced.

        `facts`, plain values, are kept in `config.json` beside those that are there.
        """
        info = self.info.with_facts(**facts)
        with whole_folder(Path(folder), replace=True) as aside:
            head_folder.write_head(aside, self.head, info)
            if self.confidence is not None:
                write_confidence(aside, self.confidence)
        return Path(folder)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        message: str | None = None,
        create_pr: bool = False,
        revision: str | None = None,
        model: str | None = None,
        adapter: str | None = None,
        token: str | None = None,
    ) -> str:
        """Publish the head with a model card; returns the URL of the commit or pull request.

        The VLM and the refiner's image encoder are not uploaded, nor any path of this machine.
        `flmm push RUN` also writes scores and settings of a run on the card.

        Args:
            repo: `owner/name`; created if there is none.
            private: Of a new repository; None is the owner's default.
            message: Of the commit.
            create_pr: Propose the commit as a pull request.
            revision: The branch to commit to, by default `main`.
            model: Where others find the VLM, if it was loaded from a folder; so for `adapter`.
            token: By default the one of `hf auth login` or HF_TOKEN.

        Raises:
            UsageError: `repo` is no hub id, or the VLM is a folder and no `model` is given.
            RunError: There is no token, or the hub refuses or cannot be reached.
        """
        with tempfile.TemporaryDirectory(prefix="flmm-head-") as made:
            folder = self.save_pretrained(Path(made) / "head")
            with publish.staged(folder, repo, model=model, adapter=adapter) as files:
                return publish.upload(
                    files, repo, private=private, message=message, create_pr=create_pr,
                    revision=revision, token=token,
                )  # fmt: skip

    @property
    def backbone(self) -> Backbone:
        """The frozen VLM."""
        return self.observer.backbone

    @torch.no_grad()
    def ground(
        self,
        image: object,
        phrases: Sequence[str],
        prompt: str | None = None,
        *,
        together: bool = False,
        keep_absent: bool = False,
        batch_size: int = 8,
    ) -> Result:
        """Masks of phrases in an image.

        Args:
            image: A path, a PIL image, or an array (H, W, 3) of uint8, of any size. It is read as
                the command line reads a file, turned as its EXIF orientation says; see
                `flmm_core.images.to_image`.
            phrases: What to look for, for example `["red ring", "the star"]`.
            prompt: The user's text beside the image; by default what the head was trained with.
            together: Read all phrases in one caption, each seeing those before it, instead of
                each alone.
            keep_absent: Keep the masks of phrases that the head says are not there: those with a
                probability below `confidence.threshold`.
            batch_size: Most phrases that are grounded at a time, unless `together`.

        Raises:
            UsageError: A phrase is empty, or there is no image.
            DataError: The image cannot be read.
            RunError: Values are not finite, as after an overflow in float16.
        """
        asked = self.prepare(image, phrases, prompt, together=together)
        (result,) = self.ground_prepared([asked], batch_size=batch_size)
        return result if keep_absent else self.without_absent(result)

    def look(self, image: object, prompt: str | None = None) -> Look:
        """Read an image once, to ground phrases in it as they come; args and errors as `ground`."""
        image = to_image(image)
        with torch.inference_mode():
            return Look(self, image, self.observer.see(image, prompt=prompt))

    def without_absent(self, result: Result) -> Result:
        """The result with "not there" where the head says so; the same if it does not know."""
        threshold = self.confidence.threshold if self.confidence else None
        return result if threshold is None else result.abstain(threshold)

    def prepare(
        self,
        image: object,
        phrases: Sequence[str],
        prompt: str | None = None,
        *,
        together: bool = False,
        like: ObserverInputs | None = None,
    ) -> Prepared:
        """What `ground_prepared` takes, made on the CPU and without weights.

        Args and errors as for `ground`; `like` is a sample of the same image and prompt.
        """
        image, phrases = to_image(image), _checked_phrases(phrases)
        captions = [statements([phrase]) for phrase in phrases]
        if together and phrases:
            captions = [statements(phrases)]
        samples: list[ObserverInputs] = []
        for caption in captions:
            first = samples[0] if samples else like
            samples.append(self.observer.prepare(image, caption, prompt=prompt, like=first))
        return Prepared(image, tuple(phrases), tuple(samples))

    @torch.no_grad()
    def ground_prepared(
        self, asked: Sequence[Prepared], *, batch_size: int = 8, seen: Seen | None = None
    ) -> list[Result]:
        """Masks in several images, with one forward for up to `batch_size` phrases.

        `seen` is what is known of the one image of all.

        No phrase is "not there" yet: see `Result.abstain`.

        Raises:
            RunError: Values are not finite, as after an overflow in float16.
        """
        samples = [one for each in asked for one in each.samples]
        groundings = self._groundings(samples, batch_size, seen)
        return [
            collect(
                each.image, each.phrases, islice(groundings, len(each.samples)), self.confidence
            )
            for each in asked
        ]

    def chat(
        self,
        image: object,
        messages: object,
        *,
        phrases: Phrases = "rules",
        keep_absent: bool = False,
        seed: int | None = None,
        **generation: Any,
    ) -> Answer:
        """The VLM's own answer, with masks of the things that it names.

        The answer is token for token what transformers' `generate` gives without us. A
        conversation goes on from `Answer.messages`; what was read and written stays in the KV
        cache, and only the new turn is run.

        Args:
            image: As for `ground`; or a list of images, where the model takes several.
            messages: A question, or messages in transformers' chat format: a list of
                `{"role": ..., "content": ...}`, a content being a string or a list of parts
                `{"type": "image"}` and `{"type": "text", "text": ...}`. An assistant's message at
                the end is continued.
            phrases: Which words of the answer to ground: a phrase finder's name (`flmm finders`),
                a list of strings to look up, or a function from the text to ranges (start, end).
            keep_absent: As for `ground`.
            seed: For sampling; None goes on with torch's random numbers.
            generation: For transformers' `generate`, for example `max_new_tokens=64` (256 unless
                given), `do_sample=True`, `temperature=0.7`. Greedy by default.

        Raises:
            UsageError: Messages, phrases or settings of generation are wrong, or the conversation
                is too long.
            DataError: An image cannot be read.
            RunError: Values are not finite, as after an overflow in float16.
        """
        return chat.answer(self, image, messages, phrases, keep_absent, seed, generation)

    def stream(
        self,
        image: object,
        messages: object,
        *,
        phrases: Phrases = "rules",
        keep_absent: bool = False,
        seed: int | None = None,
        **generation: Any,
    ) -> Iterator[str | Span | Answer]:
        """`chat` as it comes: pieces of the text, then each span, at the end the answer.

        The pieces, joined, are the new part of `Answer.text`. A consumer that stops early stops the
        model. Args and errors as for `chat`.
        """
        return chat.stream(self, image, messages, phrases, keep_absent, seed, generation)

    def think(
        self,
        image: object,
        messages: object,
        *,
        look_at: str | None = None,
        views: Views = "both",
        context: float = 0.5,
        compare: bool = False,
        phrases: Phrases = "rules",
        seed: int | None = None,
        **generation: Any,
    ) -> Thought:
        """`chat` about one image after a second look at the thing that matters.

        Args:
            look_at: What matters; by default the model is asked.
            views: Ask again with the whole image and the crop, or with the crop alone.
            context: What the crop shows around the thing, in lengths of its longer side.
            compare: Give the answer without the second look, too.

        Other args and errors as for `chat`.
        """
        looking = look_at, views, context, compare
        return zoom.think(self, image, messages, *looking, phrases, seed, **generation)

    def _groundings(
        self, samples: Sequence[ObserverInputs], batch_size: int, seen: Seen | None
    ) -> Iterator[Grounding]:
        for start in range(0, len(samples), batch_size):
            with torch.inference_mode():  # for less work; `collect` makes usual tensors of it
                batch = self.observer.collate(samples[start : start + batch_size], seen=seen)
                mixed = self.head.layer_weights()
                features = self.observer.observe(batch, layer_weights=mixed, seen=seen)
            with torch.no_grad():  # what a head keeps for its next call may be trained with
                groundings = self.head(features)
            yield from groundings


def _checked_phrases(phrases: Sequence[str]) -> list[str]:
    listed = [phrases] if isinstance(phrases, str) else list(phrases)
    for number, phrase in enumerate(listed):
        if not isinstance(phrase, str) or not phrase.strip():
            raise UsageError(
                f"Phrase {number} is empty.",
                found=f"Found {phrase!r}.",
                repair="Give it at least one word.",
            )
        if not is_text(phrase):
            raise UsageError(
                f"Phrase {number} is not Unicode text.",
                found=f"It holds half of a surrogate pair: {phrase!r}.",
                repair="Write it as UTF-8.",
            )
    return [phrase.strip() for phrase in listed]
