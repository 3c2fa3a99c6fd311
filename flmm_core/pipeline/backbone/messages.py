"""A conversation in transformers' chat format, as a user gives it: checked, and in one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from flmm_core.errors import UsageError, did_you_mean, shortened
from flmm_core.images import to_image
from flmm_core.pipeline.backbone.conversation import Turns
from flmm_core.segment import is_text

ROLES = ("system", "user", "assistant")
_SOURCES = ("image", "path")


class Conversation(NamedTuple):
    """What a model is to answer.

    Attributes:
        turns: Each with a list of parts: `{"type": "image"}` or `{"type": "text", "text": ...}`.
        images: One for each part that is an image, in order.
        begun: What the model's answer begins with; the turns end before it.
    """

    turns: Turns
    images: tuple[Image.Image, ...]
    begun: str


def read_messages(image: object, messages: object) -> Conversation:
    """A user's image or images and messages.

    Args:
        image: An image as `to_image` takes it, or a list of them. None if the messages hold them,
            as `{"type": "image", "image": ...}` or `{"type": "image", "path": ...}`.
        messages: A question; or a list of `{"role": ..., "content": ...}` with the roles system,
            user and assistant, a content being a string or a list of parts. If none of them is an
            image, the images stand at the beginning of the first user's turn. If the last turn is
            the assistant's, the model continues it.

    Raises:
        UsageError: They are of another form, or there are more or fewer images than parts for
            them.
        DataError: An image cannot be read.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or not messages:
        raise _bad("There is no message to answer.", messages)
    inside: list[object] = []
    turns = [_turn(number, message, inside) for number, message in enumerate(messages)]
    roles = [str(turn["role"]) for turn in turns]
    if "system" in roles[1:]:
        raise UsageError(
            "A system message is not the first message.",
            found=f"The roles are {', '.join(roles)}.",
            repair="Begin the conversation with it.",
        )
    if "user" not in roles:
        raise UsageError(
            "The conversation has no user's message.",
            found=f"The roles are {', '.join(roles)}.",
            repair='Add {"role": "user", "content": "..."}.',
        )
    begun = ""
    if roles[-1] == "assistant":
        begun = "".join(part["text"] for part in turns.pop()["content"])
        roles.pop()
    if roles[-1] != "user":
        raise UsageError(
            "The message to answer is not a user's.",
            found=f"It is of the role {roles[-1]}.",
            repair="End the conversation with a user's message, or with the beginning of the "
            "assistant's answer to one.",
        )
    images = _images(image, inside)
    _place(turns, len(images))
    return Conversation(tuple(turns), images, begun)


def _turn(number: int, message: object, inside: list[object]) -> dict[str, Any]:
    """One message in the one form; the images that it holds are added to `inside`."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise _bad(f"Message {number} has no role and content.", message)
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise UsageError(
            f"Message {number} has the unknown role {shortened(repr(role))}. "
            f"{did_you_mean(str(role), ROLES)}".rstrip(),
            found=f"The roles are {', '.join(ROLES)}.",
        )
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise _bad(f"The content of message {number} is neither text nor a list.", content)
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(text := part.get("text"), str):
            if not is_text(text):
                raise UsageError(
                    f"Message {number} is not Unicode text.",
                    found=f"It holds half of a surrogate pair: {shortened(text)!r}.",
                    repair="Write it as UTF-8.",
                )
            parts.append({"type": "text", "text": text})
        elif kind == "image" and role == "user":
            if (given := next((part[key] for key in _SOURCES if key in part), None)) is not None:
                inside.append(given)
            parts.append({"type": "image"})
        elif kind == "image":
            raise UsageError(
                f"Message {number} shows an image, but is of the role {role}.",
                repair="Show images in a user's messages.",
            )
        else:
            raise _bad(f"A part of message {number} is neither text nor an image.", part)
    return {"role": str(role), "content": parts}


def _images(given: object, inside: Sequence[object]) -> tuple[Image.Image, ...]:
    if given is not None and inside:
        raise UsageError(
            "Images are given both in the messages and beside them.",
            found=f"The messages hold {len(inside)}.",
            repair='Give them in one way; {"type": "image"} alone stands for one beside.',
        )
    sources = inside if given is None else given
    if not isinstance(sources, list | tuple):
        sources = [sources]
    images = tuple(to_image(source) for source in sources)
    if not images:
        raise UsageError(
            "There is no image to talk about.",
            repair='Give one, or a message with {"type": "image", "path": "photo.jpg"}.',
        )
    return images


def _place(turns: Sequence[dict[str, Any]], count: int) -> None:
    """Give every image a part of its own."""
    shown = sum(part["type"] == "image" for turn in turns for part in turn["content"])
    if not shown:
        first = next(turn for turn in turns if turn["role"] == "user")
        first["content"] = [*({"type": "image"} for _ in range(count)), *first["content"]]
    elif shown != count:
        raise UsageError(
            f"The messages show {shown} image{'s' * (shown != 1)}, but {count} "
            f"{'are' if count != 1 else 'is'} given.",
            repair='Give one image for each {"type": "image"}, in order.',
        )


def _bad(asked: str, found: object) -> UsageError:
    return UsageError(
        asked,
        found=f"Found {shortened(repr(found))}.",
        repair='Messages are as transformers takes them: [{"role": "user", "content": "What is '
        'this?"}].',
    )
