"""What OpenAI's clients send to /v1/chat/completions, and what of it is honored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from flmm_core.errors import did_you_mean, shortened
from flmm_core.serving.limits import Limits
from flmm_core.serving.refusals import RefusalError

IGNORED = {
    "metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier",
    "store", "user",
}  # fmt: skip
"""Parameters that do not change an answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "stop": ([], ""),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Parameters that are not honored, with the values that ask for nothing; null always does."""


class _Sent(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ImageUrl(_Sent):
    """An image: base64 as a data URL, or a URL where the server fetches them."""

    url: str
    detail: Annotated[str | None, Field(description="Ignored.")] = None


class TextPart(_Sent):
    """Words."""

    type: Literal["text"]
    text: str


class ImagePart(_Sent):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Sent):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]
    tool_calls: list[Any] | None = None


class StreamOptions(_Sent):
    """What a stream tells besides the answer."""

    include_usage: bool = False


class FlmmOptions(BaseModel):
    """What OpenAI's form has no place for: which phrases are grounded, and how."""

    model_config = ConfigDict(extra="forbid")

    phrases: Annotated[
        # A name alone: a finder's options can name files.
        Annotated[str, Field(pattern=r"^[\w-]+$", max_length=80)] | list[str],
        Field(
            description="Which words of the answer are grounded: the name of a phrase finder, or "
            "phrases that are looked up in it."
        ),
    ] = "rules"
    masks: Annotated[
        Literal["rle", "png", "none"],
        Field(description="`png` adds each mask as a PNG in base64; `none` gives only boxes."),
    ] = "rle"
    keep_absent: Annotated[
        bool, Field(description='Give the masks of phrases, too, that are "not there".')
    ] = False


class ChatRequest(BaseModel):
    """A conversation about images."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    messages: Annotated[list[Message], Field(min_length=1)]
    model: Annotated[
        str | None, Field(description="A name from `/v1/models`; by default the first.")
    ] = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="The older name.")] = None
    temperature: Annotated[
        float | None,
        Field(ge=0, le=2, description="By default the most likely token is taken, as with 0."),
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=0, lt=1 << 63)] = None
    flmm: FlmmOptions | None = None

    def check(self, limits: Limits) -> None:
        """Refuse, with 400, what cannot be honored."""
        known = {*NEUTRAL, *IGNORED, *type(self).model_fields}
        for name, value in (self.model_extra or {}).items():
            if name not in known:
                hint = did_you_mean(name[:100], known)
                message = f"Unrecognized request argument supplied: {shortened(name)}. {hint}"
                raise RefusalError(
                    400, message.rstrip(), param=shortened(name), code="unknown_parameter"
                )
            if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
                raise RefusalError(
                    400, f"'{name}' is not supported.", param=name, code="unsupported_parameter"
                )
        if self.messages[-1].role == "assistant":
            raise RefusalError(400, "The last message is the assistant's.", param="messages")
        self._check_messages(limits)
        most = limits.new_tokens
        for name in ("max_completion_tokens", "max_tokens"):
            if (getattr(self, name) or 0) > most:
                raise RefusalError(
                    400, f"{name} is too large: the limit is {most} tokens.", param=name
                )

    def _check_messages(self, limits: Limits) -> None:
        letters = images = 0
        for number, message in enumerate(self.messages):
            if message.tool_calls:
                raise RefusalError(
                    400, "Tools are not supported.", param=f"messages.{number}.tool_calls"
                )
            for part in parts_of(message):
                letters += len(part.text) if isinstance(part, TextPart) else 0
                images += isinstance(part, ImagePart)
        if letters > limits.text_letters:
            raise RefusalError(
                400,
                f"The messages have {letters} characters; the limit is {limits.text_letters}.",
                param="messages",
                code="context_length_exceeded",
            )
        if images > limits.images:
            raise RefusalError(
                400,
                f"The messages have {images} images; the limit is {limits.images}.",
                param="messages",
            )

    @property
    def options(self) -> FlmmOptions:
        """Those of ours."""
        return self.flmm or FlmmOptions()

    def new_tokens(self, limits: Limits) -> int:
        """The most tokens of the answer."""
        return self.max_completion_tokens or self.max_tokens or limits.new_tokens

    def generation(self, limits: Limits) -> dict[str, Any]:
        """Arguments of transformers' `generate`."""
        chosen: dict[str, Any] = {"max_new_tokens": self.new_tokens(limits)}
        if self.temperature or (self.temperature is None and self.top_p is not None):
            # top_k: transformers' own default is 50, OpenAI has none.
            chosen |= {"do_sample": True, "temperature": self.temperature or 1.0, "top_k": 0}
            chosen |= {"top_p": 1.0 if self.top_p is None else self.top_p}
        return chosen

    def turns(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The conversation in transformers' chat format, and the URLs of its images in order."""
        turns, urls = [], []
        for message in self.messages:
            content: list[dict[str, str]] = []
            for part in parts_of(message):
                if isinstance(part, ImagePart):
                    urls.append(part.image_url.url)
                    content.append({"type": "image"})
                else:
                    content.append({"type": "text", "text": part.text})
            role = "system" if message.role == "developer" else message.role
            turns.append({"role": role, "content": content})
        return turns, urls


def parts_of(message: Message) -> list[TextPart | ImagePart]:
    """The parts of a message, a text being one."""
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content
