"""Visual chain of thought: look at the thing that matters from near, then answer.

The model names it, it is grounded, and the question is asked again with a crop of it beside the
whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from flmm_core.errors import UsageError
from flmm_core.pipeline.backbone.messages import Conversation, read_messages
from flmm_core.pipeline.conversation.answer import Answer
from flmm_core.pipeline.conversation.phrases.choose import Phrases
from flmm_core.pipeline.result import Found

if TYPE_CHECKING:
    from flmm_core.pipeline.grounder import Grounder

Views = Literal["both", "crop"]
Box = tuple[int, int, int, int]

NAMING = "{question}\nWhich object in the image matters for this? Name it in a few words."
NAMING_TOKENS = 32


@dataclass(frozen=True, eq=False, repr=False)
class Thought:
    """An answer after a second look.

    Attributes:
        answer: Of several views, the second image is `crop`.
        found: What was looked at; None if nothing was found, and then `answer` is the plain one.
        box: (x0, y0, x1, y1) of the crop in pixels, x1 and y1 exclusive; None without one.
        crop: What the box shows, enlarged to the longest side of the image.
        plain: The answer without the second look, if it was asked for.
    """

    answer: Answer
    found: Found | None
    box: Box | None
    crop: Image.Image | None
    plain: Answer | None

    @property
    def text(self) -> str:
        return self.answer.text

    def __repr__(self) -> str:
        looked = "nothing" if self.found is None else f"{self.found.phrase!r} in {self.box}"
        return f"Thought({self.text!r}, looked at {looked})"


def think(
    grounder: Grounder,
    image: object,
    messages: object,
    look_at: str | None,
    views: Views,
    context: float,
    compare: bool,
    phrases: Phrases,
    seed: int | None,
    **generation: Any,
) -> Thought:
    """See `Grounder.think`."""
    if views not in ("both", "crop"):
        raise UsageError(
            f"Unknown views {views!r}.", found='Known: "both", "crop".', repair="Give one of them."
        )
    if not context >= 0:
        raise UsageError(f"The context {context!r} is negative.", repair="Give 0 or more.")
    asked = read_messages(image, messages)
    if len(asked.images) > 1:
        raise UsageError(
            "A second look needs a conversation about one image.",
            found=f"There are {len(asked.images)}.",
            repair="Give one image, or ask without a second look.",
        )
    whole = asked.images[0]
    found = _found(grounder, asked, look_at, phrases, seed)

    def answer(*shown: Image.Image) -> Answer:
        turns = _with_images(asked, len(shown))
        return grounder.chat(list(shown), turns, phrases=phrases, seed=seed, **generation)

    plain = answer(whole) if compare or found is None else None
    if found is None:
        assert plain is not None
        return Thought(plain, None, None, None, plain)
    box = around(found.box, whole.size, context)
    crop = whole.crop(box)
    scale = max(whole.size) / max(crop.size)
    size = max(1, round(crop.width * scale)), max(1, round(crop.height * scale))
    crop = crop.resize(size, Image.Resampling.BICUBIC)
    second = answer(whole, crop) if views == "both" else answer(crop)
    return Thought(second, found, box, crop, plain)


def around(box: Box, size: tuple[int, int], context: float) -> Box:
    """A box with `context` times its longer side on each side of it, within (width, height)."""
    x0, y0, x1, y1 = box
    margin = round(context * max(x1 - x0, y1 - y0))
    width, height = size
    return (
        max(0, x0 - margin),
        max(0, y0 - margin),
        min(width, x1 + margin),
        min(height, y1 + margin),
    )


def _found(
    grounder: Grounder, asked: Conversation, look_at: str | None, phrases: Phrases, seed: int | None
) -> Found | None:
    """The first thing with a mask that is named."""
    candidates: Sequence[Found]
    if look_at is not None:
        candidates = list(grounder.ground(asked.images[0], [look_at]))
    else:
        question = " ".join(p["text"] for p in asked.turns[-1]["content"] if p["type"] == "text")
        naming = NAMING.format(question=question)
        candidates = grounder.chat(
            asked.images[0], naming, phrases=phrases, seed=seed, max_new_tokens=NAMING_TOKENS
        ).spans
    return next((one for one in candidates if one.there and any(one.box)), None)


def _with_images(asked: Conversation, count: int) -> list[dict[str, Any]]:
    """The messages, with `count` images where the one was."""
    turns = []
    for turn in asked.turns:
        parts: list[Any] = []
        for part in turn["content"]:
            parts += [part] * (count if part["type"] == "image" else 1)
        turns.append({**turn, "content": parts})
    if asked.begun:
        turns.append({"role": "assistant", "content": asked.begun})
    return turns
