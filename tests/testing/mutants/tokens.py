"""Faults of what the model reads, and of which tokens are a phrase's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flmm_core import Segment, UsageError
from tests.testing.mutants.mutant import Make, Wrapped, loaded, loading, method, mutant
from tests.testing.mutants.views import prepared

REPEATS, PROMPT, ANSWERS, ROWS, CONTROL, LONG = (
    "check_prepare_repeats",
    "check_prompt",
    "check_captions_are_answers",
    "check_phrase_rows",
    "check_control_words_are_text",
    "check_long_captions",
)
BUILT_IN = ("qwen", "deepseek_vl", "llava_next")


def by_chance(encoded: Any) -> None:
    encoded["pixel_values"] = encoded["pixel_values"] + 0.001 * torch.rand(1)


mutant(REPEATS, "pixels with random noise")(
    loading(lambda vlm, processor: Wrapped(processor, after=by_chance))
)


@mutant(REPEATS, "prepare uses the VLM")
def uses_the_vlm(base: Any) -> Any:
    class Faulty(base):
        def prepare(self, *args: Any, **kwargs: Any) -> Any:
            assert self.vlm.config is not None
            return super().prepare(*args, **kwargs)

    return Faulty


@mutant(REPEATS, "prepare counts its calls")
def counts(base: Any) -> Any:
    class Faulty(base):
        calls = 0

        def prepare(self, *args: Any, **kwargs: Any) -> Any:
            inputs = super().prepare(*args, **kwargs)
            self.calls += 1
            return replace(inputs, phrase_rows=(inputs.phrase_rows[0] + self.calls,))

    return Faulty


mutant(REPEATS, "a backbone that cannot be pickled")(
    loaded(lambda backbone: setattr(backbone, "callback", lambda: None))
)


def template(change: Callable[[str], str]) -> Make:
    """Another chat template."""

    def edit(vlm: Any, processor: Any) -> None:
        edited = change(processor.chat_template)
        assert edited != processor.chat_template
        processor.chat_template = processor.tokenizer.chat_template = edited

    return loading(edit)


def turns(change: Callable[[Any], Any]) -> Make:
    """Another conversation before the caption."""
    return method("_turns", lambda self, right, prompt: change(right(prompt)))


def with_text(change: Callable[[str], str]) -> Make:
    return turns(
        lambda given: tuple(
            {
                **turn,
                "content": [
                    {**part, "text": change(part["text"])} if part["type"] == "text" else part
                    for part in turn["content"]
                ],
            }
            for turn in given
        )
    )


def setting_ignored(self: Any, right: Any, prompt: str | None) -> Any:
    return right("Please give me a description of the image." if prompt is None else prompt)


def system_ignored(self: Any, right: Any, prompt: str | None) -> Any:
    return tuple(turn for turn in right(prompt) if turn["role"] != "system")


mutant(PROMPT, "the setting 'prompt' ignored")(method("_turns", setting_ignored))
mutant(PROMPT, "the argument 'prompt' ignored")(
    method("prepare", lambda self, right, *args, prompt=None, **kw: right(*args, **kw))
)
mutant(PROMPT, "the setting 'system' ignored")(method("_turns", system_ignored))
mutant(PROMPT, "prompt in lower case")(with_text(str.lower))
mutant(PROMPT, "prompt without its last letter")(with_text(lambda text: text[:-1]))
mutant(PROMPT, "prompt cut after 30 letters")(with_text(lambda text: text[:30]))
mutant(PROMPT, "image after the text")(
    turns(lambda given: tuple({**t, "content": t["content"][::-1]} for t in given))
)
mutant(PROMPT, "template without the start token", *BUILT_IN)(
    template(lambda text: text.replace("{{ bos_token }}", ""))
)
mutant(PROMPT, "template with the start token twice", *BUILT_IN)(
    template(lambda text: text.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"))
)
mutant(PROMPT, "template without vision start and end", "qwen")(
    template(lambda t: t.replace("<|vision_start|>", "").replace("<|vision_end|>", ""))
)
mutant(PROMPT, "template without a line end behind the image")(
    template(lambda text: text.replace("\n{% else %}", "{% else %}", 1))
)
mutant(PROMPT, "template with other names of roles")(
    template(lambda text: text.replace("['role'].upper()", "['role']"))
)


def token_dropped(inputs: Any) -> dict[str, Any]:
    prefix = inputs.prefix
    fewer = {key: value[1:] for key, value in prefix.tokens.items()}
    views = tuple(replace(v, token_index=v.token_index - 1) for v in inputs.views)
    rows = tuple(rows - 1 for rows in inputs.phrase_rows)
    return {
        "prefix": replace(prefix, tokens=fewer),
        "views": views,
        "phrase_rows": rows,
        "start": inputs.start - 1,
    }


def types_zero(inputs: Any) -> dict[str, Any]:
    given = inputs.prefix.tokens
    zero = {key: torch.zeros_like(given[key]) for key in given if "type" in key}
    return {"prefix": replace(inputs.prefix, tokens={**given, **zero})}


mutant(PROMPT, "first token of the prompt dropped")(prepared(token_dropped))
mutant(PROMPT, "types of tokens all zero", "qwen")(prepared(types_zero))


def captions(change: Callable[[str], str]) -> Make:
    """The words of a caption changed."""
    return method(
        "prepare",
        lambda self, right, image, segments, **kw: right(
            image, [replace(s, text=change(s.text)) for s in segments], **kw
        ),
    )


def ended(inputs: Any) -> dict[str, Any]:
    return {"caption": torch.cat([inputs.caption, inputs.caption[-1:]])}


def in_pieces(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
    self.caption_mode = "pieces"
    try:
        return right(*args, **kwargs)
    finally:
        self.caption_mode = "whole"


mutant(ANSWERS, "caption in lower case")(captions(str.lower))
mutant(ANSWERS, "caption's double spaces made one")(captions(lambda t: t.replace("  ", " ")))
mutant(ANSWERS, "caption without odd letters")(
    captions(lambda t: t.encode("ascii", "ignore").decode() or "cat")
)
mutant(ANSWERS, "caption with another token at its end")(prepared(ended))
mutant(ANSWERS, "caption tokenized in pieces", "minimal")(method("prepare", in_pieces))
mutant(ANSWERS, "caption without its last token")(prepared(lambda i: {"caption": i.caption[:-1]}))


def rows(change: Callable[[Tensor, Any], Tensor]) -> Make:
    return prepared(lambda i: {"phrase_rows": tuple(change(r, i) for r in i.phrase_rows)})


def wider(rows: Tensor, before: int, after: int) -> Tensor:
    return torch.arange(int(rows[0]) - before, int(rows[-1]) + after + 1)


mutant(ROWS, "rows one token early")(rows(lambda r, _: r - 1))
mutant(ROWS, "rows one token late")(rows(lambda r, _: r + 1))
mutant(ROWS, "rows with the token after the phrase")(rows(lambda r, _: wider(r, 0, 1)))
mutant(ROWS, "rows with the token before the phrase")(rows(lambda r, _: wider(r, 1, 0)))
mutant(ROWS, "rows without the last token")(rows(lambda r, _: r[:-1] if len(r) > 1 else r))
mutant(ROWS, "rows without the first token")(rows(lambda r, _: r[1:] if len(r) > 1 else r))
mutant(ROWS, "only the first token of a phrase")(rows(lambda r, _: r[:1]))
mutant(ROWS, "rows counted from the caption's beginning")(rows(lambda r, i: r - i.start))
mutant(ROWS, "all of the caption for each phrase")(rows(lambda _, i: torch.arange(i.start, len(i))))
mutant(ROWS, "rows of the phrases swapped")(
    prepared(lambda i: {"phrase_rows": i.phrase_rows[::-1]})
)
mutant(ROWS, "a phrase left out")(prepared(lambda i: {"phrase_rows": i.phrase_rows[:1]}))


def spaces(inputs: Any, tokenizer: Any) -> dict[str, Any]:
    """Each phrase also has the tokens of spaces after it."""
    ids = inputs.tokens["input_ids"].tolist()
    found = []
    for each in inputs.phrase_rows:
        end = int(each[-1]) + 1
        while end < len(ids) and not tokenizer.decode(ids[end : end + 1]).strip():
            end += 1
        found.append(torch.arange(int(each[0]), end))
    return {"phrase_rows": tuple(found)}


@mutant(ROWS, "rows with the space after the phrase", "minimal")
def following_space(base: Any) -> Any:
    class Faulty(base):
        def prepare(self, *args: Any, **kwargs: Any) -> Any:
            inputs = super().prepare(*args, **kwargs)
            return replace(inputs, **spaces(inputs, self.tokenizer))

    return Faulty


mutant(CONTROL, "control words not escaped")(loaded(lambda b: setattr(b, "_controls", ())))
mutant(CONTROL, "the image token not escaped")(
    loaded(lambda b: setattr(b, "_controls", tuple(c for c in b._controls if c != b.image_token)))
)


def unescaped(self: Any, right: Any, prompt: str | None) -> Any:
    given, escaped = self._controls, right
    self._controls = ()
    try:
        return escaped(prompt)
    finally:
        self._controls = given


mutant(CONTROL, "control words in a prompt not escaped")(method("_turns", unescaped))


def limit(factor: float) -> Make:
    def change(backbone: Any) -> None:
        config = copy.deepcopy(backbone.text_config)
        config.max_position_embeddings = int(config.max_position_embeddings * factor)
        backbone.text_config = config

    return loaded(change)


def cut(self: Any, right: Any, image: Any, segments: Any, **kwargs: Any) -> Any:
    try:
        return right(image, segments, **kwargs)
    except UsageError:
        short = [Segment(s.text[-40:], s.phrase) for s in segments]
        return right(image, short, **kwargs)


mutant(LONG, "a limit four times too high")(limit(4))
mutant(LONG, "a limit of half the length")(limit(0.5))
mutant(LONG, "long captions cut without a word")(method("prepare", cut))
mutant(LONG, "captions of more than 200 letters refused")(
    method("prepare", lambda self, right, image, given, **kw: _refusing(right, image, given, **kw))
)


def _refusing(right: Any, image: Any, segments: Any, **kwargs: Any) -> Any:
    if sum(len(s.text) for s in segments) > 200:
        raise UsageError("The caption is too long.")
    return right(image, segments, **kwargs)
