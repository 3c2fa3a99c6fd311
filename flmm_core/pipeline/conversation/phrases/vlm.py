"""`vlm`: ask the VLM itself which things a text names. Only what stands in the text is kept."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable

from flmm_core.errors import UsageError, shortened
from flmm_core.pipeline.conversation.phrases.base import PhraseContext, PhraseFinder, Range
from flmm_core.pipeline.conversation.phrases.lookup import occurrences

logger = logging.getLogger(__name__)

QUESTION = (
    "Which things that can be seen in the image does the following text name? Copy their names"
    " from the text exactly, one on each line, and write nothing else.\n\n{text}"
)
_BULLET = re.compile(r"^\s*(?:[-*•–]|\(?\d+[.):])\s+")
_AROUND = " \t\r\"'`*_“”‘’«».:"


class VlmFinder(PhraseFinder):
    """Asks once for each text, greedily, in a conversation of its own."""

    def check(self, context: PhraseContext) -> None:
        if context.backbone is None:
            raise UsageError(
                "There is no model to be asked which things a text names.",
                found="phrases='vlm' (--phrases vlm) asks the model that answers about an image.",
                repair="Give another phrase finder, such as rules.",
            )

    def find(self, text: str, context: PhraseContext) -> Iterable[Range]:
        self.check(context)
        assert context.backbone is not None
        if not text.strip() or not context.images:
            return []
        reply = context.backbone.generate(
            context.images[0],
            QUESTION.format(text=text),
            max_new_tokens=self.options.max_new_tokens,
        )
        return listed_in(text, reply)


def listed_in(text: str, reply: str) -> list[Range]:
    """Where the names that a reply lists stand in a text; none, and a warning, if none do."""
    found = occurrences(text, _names(reply))
    if not found:
        logger.warning(
            "Asked which things its answer names, the model lists none that are in it: '%s'",
            shortened(reply, 200),
        )
    return found


def _names(reply: str) -> list[str]:
    """Lines or items of a list, without bullets, numbers and quotes."""
    try:
        items = json.loads(reply)
        lines = [item for item in items if isinstance(item, str)] if isinstance(items, list) else []
    except ValueError:
        lines = []
    lines = lines or re.split(r"[\n,;]", reply)
    names = (_BULLET.sub("", line).strip(_AROUND) for line in lines)
    return list(dict.fromkeys(name for name in names if any(map(str.isalnum, name))))
