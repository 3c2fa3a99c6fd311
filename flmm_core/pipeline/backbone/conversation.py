"""Prompt and answer as the text that the model reads, by its own chat template."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jinja2

from flmm_core.errors import UsageError, WeightsError

Turns = tuple[Mapping[str, Any], ...]
"""A conversation as `apply_chat_template` takes it."""

PLACEHOLDER = "{caption}"
"""Stands for the caption in a rendered conversation."""

TROUBLE = (ValueError, TypeError, jinja2.TemplateError)
"""What a template raises about a conversation that it was not written for."""


def control_strings(processor: Any) -> tuple[str, ...]:
    """The strings that a tokenizer would read as control tokens in a user's text, longest first.

    Added tokens that are plain words or single characters are vocabulary, not control tokens.
    """
    tokenizer = processor.tokenizer
    found = set(tokenizer.all_special_tokens)
    found |= {token for token in tokenizer.get_added_vocab() if not token.isalnum()}
    found |= {named_token(processor, kind) or "" for kind in ("image_token", "video_token")}
    stripped = {token.strip() for token in found}
    return tuple(sorted((t for t in stripped if len(t) > 1), key=lambda t: (-len(t), t)))


def named_token(processor: Any, name: str) -> str | None:
    """A token that a processor names, such as `image_token`, as text; None if it does not.

    Some processors hold it as a string, others as a tokenizer's `AddedToken`.
    """
    found = getattr(processor, name, None)
    return None if found is None else str(found)


def escape(text: str, controls: Collection[str]) -> str:
    """The text with a space after the first character of every control string in it."""
    for control in controls:
        text = text.replace(control, f"{control[0]} {control[1:]}")
    return text


def user_turns(prompt: str, system: str | None) -> Turns:
    """A user's turn with one image and an escaped text, after a system message if there is one."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    user = {"role": "user", "content": content}
    if system is None:
        return (user,)
    return {"role": "system", "content": [{"type": "text", "text": system}]}, user


def prompt_text(processor: Any, turns: Turns) -> str:
    """The conversation up to where the model's answer begins.

    Raises:
        UsageError: The template does not take or does not show a turn.
    """
    shown = [part["text"] for turn in turns for part in turn["content"] if part["type"] == "text"]
    problem = ""
    for spelled in _spellings(turns):
        try:
            text: str = processor.apply_chat_template(
                spelled, add_generation_prompt=True, tokenize=False
            )
        except TROUBLE as error:
            problem = problem or f"{type(error).__name__}: {error}."
            continue
        missing = [words for words in shown if words.strip() not in text]
        if not missing:
            return text
        problem = problem or f"It leaves out {missing[0]!r}."
    system = any(turn["role"] == "system" for turn in turns)
    raise UsageError(
        "The model's chat template cannot show this conversation.",
        found=problem,
        repair="Omit --system, or put what it says into --prompt." if system else "",
    )


def _spellings(turns: Turns) -> Iterator[list[Mapping[str, Any]]]:
    """The turns with their contents as lists of parts, or as plain strings where there is no image.

    Some templates take the model's turns, or all, only as strings.
    """
    found: list[list[Mapping[str, Any]]] = []
    for roles in ((), ("assistant",), ("assistant", "user", "system")):
        spelled = [
            {**turn, "content": "".join(part["text"] for part in turn["content"])}
            if turn["role"] in roles and all(part["type"] == "text" for part in turn["content"])
            else turn
            for turn in turns
        ]
        if spelled not in found:
            found.append(spelled)
            yield spelled


def answer_text(processor: Any, turns: Turns, answer: str) -> tuple[str, int]:
    """The conversation with the model's answer as far as `answer`, and where that begins.

    The character `answer[i]` is `text[begin + i]`; a template may strip spaces at either end.

    Raises:
        WeightsError: The template shows no answer, or changes it.
    """
    problem = ""
    written = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    for spelled in _spellings((*turns, written)):
        try:
            text: str = processor.apply_chat_template(
                spelled, continue_final_message=True, tokenize=False
            )
        except TROUBLE as error:
            problem = problem or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        for leading in dict.fromkeys((0, len(answer) - len(answer.lstrip()))):
            for shown in (answer[leading:], answer[leading:].rstrip()):
                if text.endswith(shown):
                    return text, len(text) - len(shown) - leading
        problem = f"It ends in {text[-len(answer) - 20 :]!r}, not in {answer!r}."
    raise WeightsError(
        "The model's chat template cannot show a caption as the model's answer.",
        found=problem,
        repair="With --caption-mode pieces the caption is tokenized apart from the conversation.",
    )


def rendered(processor: Any, turns: Turns, whole: bool, model: str, apart: bool = False) -> str:
    """The text that the model reads, with `{caption}` for the caption.

    `apart` is `Requirements.bidirectional_prefix`; the processor then writes some of the text.

    Raises:
        WeightsError: With `whole`: the tokenizer cannot say which characters a token covers.
        UsageError: As `prompt_text`, and `answer_text`.
    """
    if whole and not processor.tokenizer.is_fast:
        raise WeightsError(
            f"The tokenizer of '{model}' does not say which characters a token covers.",
            found=f"{type(processor.tokenizer).__name__} is not a fast tokenizer.",
            repair="Use a model with a tokenizer.json, or --caption-mode pieces.",
        )
    text = prompt_text(processor, turns)
    if whole and not apart:
        return answer_text(processor, turns, PLACEHOLDER)[0]
    return text + PLACEHOLDER


def adds_special_tokens(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer adds its special tokens to a rendered conversation.

    Some templates write the start token themselves; a second one would shift every position.
    """
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


def common_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
