"""What `flmm annotate` has to do: blocks of images, each of which becomes one shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flmm_core.annotate.inputs import Item
from flmm_core.annotate.store import Store
from flmm_core.errors import DataError, UsageError, shortened

FILE = "plan.jsonl"


@dataclass(frozen=True)
class Block:
    """Some images, and the number of the shard that holds what is found in them."""

    number: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        """Of its files, without an ending."""
        return f"part-{self.number:06d}"

    def to_json(self) -> str:
        return json.dumps([self.number, [[item.image, item.phrases] for item in self.items]])

    @classmethod
    def from_json(cls, text: str) -> Block:
        number, items = json.loads(text)
        return cls(number, tuple(Item(image, tuple(phrases)) for image, phrases in items))


def make_plan(
    store: Store, items: Iterable[Item], settings: Mapping[str, Any], *, block_size: int
) -> list[Block]:
    """All blocks of a folder, those of earlier runs first and as they were; the plan is written.

    An image is in one block only: if it is named several times, with all its phrases.

    Raises:
        UsageError: Earlier runs had other settings.
        DataError: The plan of earlier runs cannot be read.
    """
    blocks = _earlier(store, settings)
    known = {item.image: set(item.phrases) for block in blocks for item in block.items}
    new: dict[str, tuple[str, ...]] = {}
    for item in items:
        if item.image not in known:
            earlier = new.get(item.image, ())
            new[item.image] = tuple(dict.fromkeys((*earlier, *item.phrases)))
        elif not known[item.image].issuperset(item.phrases):
            raise UsageError(
                f"Other phrases were asked for {item.image} in an earlier run.",
                found=f"Now: {', '.join(item.phrases)}. In {store.address}/{FILE}: "
                f"{', '.join(sorted(known[item.image])) or 'none of its own'}.",
                repair="Give another --output.",
            )
    fresh = [Item(*pair) for pair in new.items()]
    for start in range(0, len(fresh), block_size):
        blocks.append(Block(len(blocks), tuple(fresh[start : start + block_size])))
    if fresh:
        lines = [json.dumps(settings, sort_keys=True), *(block.to_json() for block in blocks)]
        store.write(FILE, "".join(f"{line}\n" for line in lines).encode())
    return blocks


def _earlier(store: Store, settings: Mapping[str, Any]) -> list[Block]:
    if FILE not in store.names():
        return []
    try:
        first, *lines = store.read(FILE).decode().splitlines()
        before = json.loads(first)
        blocks = [Block.from_json(line) for line in lines]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"The plan {store.address}/{FILE} of an earlier run cannot be read.",
            found=f"{error}.",
            repair="Give another --output.",
        ) from error
    now = json.loads(json.dumps(settings))  # tuples become lists
    different = [
        f"{key}: {shortened(str(before.get(key)))} then, {shortened(str(now.get(key)))} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if different:
        raise UsageError(
            f"'{store.address}' holds annotations that were made with other settings.",
            found="\n".join(different),
            repair="Give the same settings to go on, or another --output.",
        )
    return blocks
