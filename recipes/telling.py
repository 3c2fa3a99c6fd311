"""Expressions that tell things of one name apart, and for each token the cells to look at.

A name that fits one thing of an image looks at it already (`recipes.aligning`). Where two things
have one name, the image is drawn once more without the other one: there the name finds the thing
that the expression means. So expressions are taught by names; no mask and no place is looked at.

Vision tower and projector learn nothing here. So each image is seen once, and each time it is
drawn from the cache, other texts follow it, each as if it alone followed the image.

Where a model also reads tiles of the image, a tile's tokens know their place in the tile only. So
expressions look at the tokens that see the whole image; names look at all. Another head looks at
the tiles, at what can be known there: a size tells two things of one name apart, a place does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flmm_core.data.drawn.scenes import Scene, make_scene, paint
from recipes.aligning import aligned_heads, decoder_inputs
from recipes.phrases import twins
from recipes.statements import Piece, texts
from recipes.words import PROMPT

SCENES = {"relation": 0.38, "size": 0.32, "plain": 0.1}
SCENES |= {"occlusion": 0.06, "texture": 0.07, "small": 0.07}
SURE = (2, 3)
"""Layers whose first head finds names best."""


def without_twins(scene: Scene, thing: int) -> Scene:
    """The scene without the other things of a thing's name."""
    shape = scene.shapes[thing]
    kept = tuple(one for one in scene.shapes if one is shape or one.kind != shape.kind)
    return replace(scene, shapes=kept)


def names_of(scene: Scene) -> list[tuple[str, str]]:
    return sorted({shape.kind for shape in scene.shapes})


@dataclass(frozen=True)
class Seen:
    """The prompt with an image, as the language model gets it: S tokens.

    `is_whole` are the tokens of the view of the whole image. `names` (K, S) is what each name of
    the scene attends to, `wholes` (P, S) what the name of each thing attends to in that view where
    no other thing has it, `tiles` (P, S) the same in the tiles, zeros if there are none.
    """

    scene: Scene
    states: Tensor  # (S, D)
    is_image: Tensor  # (S,)
    is_whole: Tensor  # (S,)
    positions: Tensor  # (..., S)
    names: Tensor
    wholes: Tensor
    tiles: Tensor

    @property
    def is_tile(self) -> Tensor:
        """(S,)"""
        return self.is_image & ~self.is_whole

    def in_tiles(self, thing: int, placed: bool) -> Tensor:
        """(S,) what words that mean a thing should attend to in the tiles.

        That is the thing, or all things of its name if only the place tells which one is meant.
        """
        if not placed:
            return self.tiles[thing].float()
        named = self.names[names_of(self.scene).index(self.scene.shapes[thing].kind)].float()
        return F.normalize(named * self.is_tile, p=1, dim=0)

    def widened(self, width: int) -> Seen:
        """With padding on the left."""
        more = width - len(self.is_image)
        rows: dict[str, Any] = {name: F.pad(getattr(self, name), (more, 0)) for name in ROWS}
        return replace(self, states=F.pad(self.states, (0, 0, more, 0)), **rows)


ROWS = ("is_image", "is_whole", "positions", "names", "wholes", "tiles")


@dataclass
class Looks:
    """N tokens: the row of the batch, the column in the texts, and what they should attend to."""

    sample: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    goal: list[Tensor] = field(default_factory=list)  # (S,) each


@dataclass(frozen=True)
class Lesson:
    """B prompts (S tokens, padded on the left), and the texts that follow each (T tokens)."""

    states: Tensor  # (B, S, D)
    is_image: Tensor  # (B, S)
    is_whole: Tensor  # (B, S)
    positions: Tensor  # (..., B, S + T)
    ids: Tensor  # (B, T)
    labels: Tensor  # (B, T), -100 where there is no loss
    first: Tensor  # (B,) what the last text begins with: an answer
    mask: Tensor  # (B, 1, S + T, S + T) who attends to whom
    names: Looks
    wholes: Looks
    tiles: Looks
    """Empty if there are no tiles."""
    large: list[tuple[int, Tensor, Tensor, float]]
    """For each thing the row, its cells (S,), those of tiles, and 1 if it is called large."""


def lesson(tokenizer: Any, seen: Sequence[Seen], said: list[list[list[Piece]]]) -> Lesson:
    """Every text attends to its image and to itself, and stands right behind the prompt."""
    width = max(len(one.is_image) for one in seen)
    seen = [one.widened(width) for one in seen]
    names, wholes, tiles = Looks(), Looks(), Looks()
    rows = []
    for sample, (one, branches) in enumerate(zip(seen, said, strict=True)):
        row: list[tuple[int, int, int, int]] = []  # token, label, text, place in the text
        for number, pieces in enumerate(branches):
            first = len(row)
            for piece in pieces:
                ids = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
                if piece.thing is not None:
                    for column in range(len(row), len(row) + len(ids)):
                        note(wholes, sample, column, one.wholes[piece.thing])
                        if one.is_tile.any():
                            note(tiles, sample, column, one.in_tiles(piece.thing, piece.placed))
                if piece.name in names_of(one.scene):
                    goal = one.names[names_of(one.scene).index(piece.name)]
                    note(names, sample, len(row) + len(ids) - 1, goal)
                for each in ids:
                    learned = piece.learned and len(row) > first
                    row.append((each, each if learned else -100, number, len(row) - first))
        end = tokenizer.eos_token_id
        rows.append([*row, (end, end, len(branches) - 1, row[-1][3] + 1)])
    longest, padding = max(map(len, rows)), (tokenizer.pad_token_id, -100, -1, 0)
    table = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    ids, labels, text, place = table.unbind(-1)
    there = torch.stack([one.states.abs().sum(1) > 0 for one in seen])
    size = width + longest
    mask = torch.ones(size, size, dtype=torch.bool).tril().repeat(len(rows), 1, 1)
    mask[:, :, :width] &= there[:, None]
    mask[:, width:, width:] &= text[:, :, None] == text[:, None]
    before = torch.stack([one.positions for one in seen], -2)
    positions = torch.cat([before, before[..., -1:] + 1 + place], -1)
    return Lesson(
        torch.stack([one.states for one in seen]).float(),
        torch.stack([one.is_image for one in seen]),
        torch.stack([one.is_whole for one in seen]),
        positions,
        ids,
        labels,
        torch.stack(
            [row[number == number.max()][0] for row, number in zip(ids, text, strict=True)]
        ),
        (mask | torch.eye(size, dtype=torch.bool))[:, None],
        names,
        wholes,
        tiles,
        [
            (sample, cells.float(), small.float(), float(shape.size == "large"))
            for sample, one in enumerate(seen)
            for cells, small, shape in zip(one.wholes, one.tiles, one.scene.shapes, strict=False)
        ],
    )


def note(looks: Looks, sample: int, column: int, goal: Tensor) -> None:
    looks.sample.append(sample)
    looks.column.append(column)
    looks.goal.append(goal.float())


def run(model: Any, given: Lesson) -> tuple[Tensor, dict[int, tuple[Tensor, Tensor]]]:
    """The last states (B, S + T, D), queries and keys by aligned layer."""
    text = model.get_input_embeddings()(given.ids)
    with aligned_heads(model.get_decoder()) as heads:
        states = model.get_decoder()(
            inputs_embeds=torch.cat([given.states, text], 1),
            position_ids=given.positions,
            attention_mask=given.mask,
            use_cache=False,
        ).last_hidden_state
    return states, heads


def prompts(processor: Any, scenes: Sequence[Scene], answer: str = "") -> dict[str, Tensor]:
    """A model's inputs: each scene's image and the prompt, with padding on the left."""
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    prompt = processor.apply_chat_template(ask, add_generation_prompt=True) + answer
    images = [Image.fromarray(paint(scene)[0]) for scene in scenes]
    text = [prompt] * len(images)
    return dict(processor(text=text, images=images, return_tensors="pt", padding=True))


def of_whole_image(config: Any, is_image: Tensor) -> Tensor:
    """(B, S) the image tokens that see the whole image: before tiles, LLaVA-NeXT reads it whole."""
    if not hasattr(config, "image_grid_pinpoints"):
        return is_image
    side = config.vision_config.image_size // config.vision_config.patch_size
    return is_image & (is_image.cumsum(1) <= side**2)


@torch.no_grad()
def look(model: Any, processor: Any, scenes: Sequence[Scene]) -> list[Seen]:
    """See scenes, and what their names attend to: in the first head, over tokens of the image."""
    fewer = [
        (number, thing, without_twins(scene, thing))
        for number, scene in enumerate(scenes)
        for thing, shape in enumerate(scene.shapes)
        if twins(scene, shape)
    ]
    drawn = [*scenes, *(scene for *_, scene in fewer)]
    inputs = prompts(processor, drawn)
    given, there = decoder_inputs(model, inputs), inputs["attention_mask"].bool()
    places = given.get("position_ids")
    places = (there.cumsum(1) - 1).clamp(min=0) if places is None else places
    cells = inputs["input_ids"] == model.config.image_token_id
    whole = of_whole_image(model.config, cells)
    none = torch.zeros(0, there.shape[1])
    seen = [
        Seen(scene, states * used[:, None], is_image, is_whole, at, none, none, none)
        for scene, states, used, is_image, is_whole, at in zip(
            drawn, given["inputs_embeds"], there, cells, whole, places.unbind(-2), strict=True
        )
    ]
    said = [[[Piece(f"the {' '.join(name)}")] for name in names_of(scene)] for scene in drawn]
    asked = lesson(processor.tokenizer, seen, said)
    heads = run(model, asked)[1]
    found = []
    for row, scene in enumerate(drawn):
        lengths = [
            len(processor.tokenizer(one[0].text, add_special_tokens=False)["input_ids"])
            for one in said[row]
        ]
        ends = there.shape[1] - 1 + torch.tensor(lengths).cumsum(0)
        maps = []
        for query, key in (heads[layer] for layer in SURE):
            score = query[row, 0, ends] @ key[row, 0, : there.shape[1]].T * query.shape[-1] ** -0.5
            over = [
                score.masked_fill(~each[row], -torch.inf).softmax(-1).nan_to_num()
                for each in (cells, whole, cells & ~whole)
            ]
            maps.append(torch.stack(over, 1))
        found.append(dict(zip(names_of(scene), torch.stack(maps).mean(0), strict=True)))
    result = []
    for row, scene in enumerate(scenes):
        own = [found[row][shape.kind][1:] for shape in scene.shapes]
        for number, (owner, thing, _) in enumerate(fewer):
            if owner == row:
                own[thing] = found[len(scenes) + number][scene.shapes[thing].kind][1:]
        names, used = torch.stack([over[0] for over in found[row].values()]), there[row]
        wholes, tiles = torch.stack(own, 1)[..., used].half()
        result.append(
            Seen(
                scene,
                seen[row].states[used].half(),
                cells[row][used],
                whole[row][used],
                seen[row].positions[..., used],
                names[:, used].half(),
                wholes,
                tiles,
            )
        )
    return result


class Lessons:
    """Batches without end of `count` scenes; that of a step depends on the seed and the step."""

    def __init__(
        self, model: Any, processor: Any, count: int, seed: int, saved: Path | None = None
    ) -> None:
        self.tokenizer, self.seed = processor.tokenizer, seed
        if saved is not None and saved.exists():
            self.seen: list[Seen] = torch.load(saved, weights_only=False)
            return
        kinds, chances = list(SCENES), list(SCENES.values())
        rng = np.random.default_rng(seed)
        drawn = [str(kind) for kind in rng.choice(kinds, count, p=chances)]
        scenes = [
            make_scene((seed, index), kind, count=(3 if kind == "relation" else 2, 4), shared=0.6)  # type: ignore[arg-type]
            for index, kind in enumerate(drawn)
        ]
        self.seen = [
            one
            for at in range(0, count, 16)
            for one in look(model, processor, scenes[at : at + 16])
        ]
        if saved is not None:
            torch.save(self.seen, saved)

    def batch(self, step: int, size: int) -> Lesson:
        """The batch of a step."""
        rng = np.random.default_rng((self.seed, step))
        chosen = [self.seen[i] for i in rng.choice(len(self.seen), size, replace=False)]
        return lesson(self.tokenizer, chosen, [texts(one.scene, rng) for one in chosen])
