"""Teach a tiny model place and size: the end of an expression attends to the thing that it fits.

    OMP_NUM_THREADS=1 nohup python -m recipes.referring qwen --start plugins/qwen/flmm_qwen/tiny \
        --output DIR &
    python -m recipes.referring qwen --start plugins/qwen/flmm_qwen/tiny --output DIR \
        --export NEW

`recipes.aligning` teaches names, and there the last word of "the ring left of the star" attends to
the star. Here a second head of each upper layer learns whole expressions, and the first one keeps
the names. All is learned from captions, and nothing from a mask or from coordinates:

- captions, by next-token prediction;
- names and images of the batch, which are drawn in three colors and three shapes, and what names
  in a caption attend to, both as in `recipes.aligning`;
- telling apart: where two things have one name, the image is drawn once more without the other
  one, and there the name finds the thing. The expression attends to what the name attends to then.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.aligning import ALIGNED, aligned_heads, decoder_inputs, shared_error
from recipes.placing import Kept, give_room, keep
from recipes.pretrain import MUON_PATCHES, STAGES, Stage, optimizers, rate, word_accuracy
from recipes.telling import Lesson, Lessons, Looks, Name
from recipes.twins import PARTS, publish_names, random_twin

SEED = 705
STEPS = {"qwen": 400, "deepseek_vl": 450, "llava_next": 400}
BATCH = 16
MUON, ADAM, TABLES = 0.01, 1e-3, 1e-2
WEIGHTS = {"caption": 1.0, "names": 0.3, "agree": 0.3, "tell": 1.0}
HEADS = {"names": (0, 0), "wholes": (2, 1)}
"""The heads for names and for expressions, and their keys."""


def read_alone(
    model: Any, tokenizer: Any, given: dict[str, Any], lesson: Lesson, texts: list[str], step: int
) -> dict[int, Tensor]:
    """Queries (heads, N, d) by aligned layer, of the last tokens of texts that see no image.

    They stand where captions do, up to 40 tokens later.
    """
    ids, start = lesson.inputs["input_ids"], lesson.start
    is_image = ids[0] == model.config.image_token_id
    before = ((is_image.cumsum(0) == 0) & lesson.inputs["attention_mask"][0].bool())[:start]
    found = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ends = torch.tensor([len(each) for each in found])
    longest, rows = int(ends.max()), torch.arange(len(found))
    captions = torch.full((len(found), longest), tokenizer.pad_token_id)
    for row, each in zip(captions, found, strict=True):
        row[: len(each)] = torch.tensor(each)
    prompt = ids[0, :start][before]
    whole = torch.cat([prompt.expand(len(found), -1), captions], 1)
    places = given.get("position_ids")
    places = torch.arange(start + 1)[None, None] if places is None else places
    places = places if places.ndim == 3 else places[None]  # (kinds, B, S)
    chance = torch.Generator().manual_seed(step)
    later = torch.randint(40, (len(found), 1), generator=chance) + torch.arange(longest)
    first = places[:, :1, :start][..., before].expand(-1, len(found), -1)
    positions = torch.cat([first, places[:, :1, start, None] + later], 2)
    length = whole.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(len(found), 1, -1, -1)
    with aligned_heads(model.get_decoder()) as heads:
        model.get_decoder()(
            inputs_embeds=model.get_input_embeddings()(whole),
            position_ids=positions[0] if len(positions) == 1 else positions,
            attention_mask=mask,
            use_cache=False,
        )
    last = len(prompt) + ends - 1
    return {layer: query[rows, :, last].transpose(0, 1) for layer, (query, _) in heads.items()}


def run(model: Any, inputs: dict[str, Tensor]) -> tuple[Any, dict[int, Any], dict[str, Any]]:
    """The last states, queries and keys by aligned layer, and what the language model was given."""
    given, size = decoder_inputs(model, inputs), inputs["input_ids"].shape[1]
    there = inputs["attention_mask"].bool()
    causal = torch.ones(size, size, dtype=torch.bool).tril() & there[:, None]
    places = given.get("position_ids")
    with aligned_heads(model.get_decoder()) as heads:
        states = model.get_decoder()(
            inputs_embeds=given["inputs_embeds"],
            position_ids=torch.arange(size)[None] if places is None else places,
            attention_mask=(causal | torch.eye(size, dtype=torch.bool))[:, None],
            use_cache=False,
        ).last_hidden_state
    return states, heads, given


def losses(
    model: Any, tokenizer: Any, biases: Tensor, lesson: Lesson, step: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The losses named in `WEIGHTS`, and figures for the log."""
    start, ids = lesson.start, lesson.inputs["input_ids"]
    states, heads, given = run(model, lesson.inputs)
    with torch.no_grad():
        _, others, _ = run(model, lesson.fewer)
    here = lesson.fewer["input_ids"].shape[1]
    logits, labels = model.lm_head(states[:, start - 1 :]), lesson.labels[:, start - 1 :]
    figures = dict(word_accuracy(tokenizer, logits, labels))
    names = sorted({*lesson.names.goal, *(name for things in lesson.things for name in things)})
    fitting = torch.tensor([[float(one in things) for things in lesson.things] for one in names])
    alone = read_alone(model, tokenizer, given, lesson, [one.text for one in names], step)
    is_image = ids[:, :start] == model.config.image_token_id
    # Padding is on the left: images end at the same distance from the captions.
    more = lesson.fewer["input_ids"] == model.config.image_token_id
    wide = max(start, here)
    every = torch.cat([F.pad(each, (wide - each.shape[1], 0)) for each in (is_image, more)])
    found = {"caption": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}
    aligned, agree, tell = [], [], []
    for place, layer in enumerate(ALIGNED):
        query, key = heads[layer]
        scale = query.shape[-1] ** -0.5
        (old, keys), (new, own) = HEADS["names"], HEADS["wholes"]
        cells = key[:, keys, :start]
        both = torch.cat(
            [
                F.pad(each, (0, 0, wide - each.shape[1], 0))
                for each in (cells, others[layer][1][:, keys])
            ]
        )
        score = torch.einsum("pd,bsd->pbs", alone[layer][old], both) * scale
        score = score.masked_fill(~every, -torch.inf)  # (N, B + B', S)
        fit = score[:, : len(ids)].logsumexp(2) + biases[place]
        aligned.append(shared_error(fit, fitting))
        surer = fit[fitting.bool()][:, None] > fit[~fitting.bool()][None]
        figures[f"names_{layer}"] = float(surer.float().mean())
        ways = (old, keys, lesson.names, agree), (new, own, lesson.wholes, tell)
        for head, by, looks, errors in ways:
            seen = query[:, head], key[:, by, :start]
            error, right = agreement(*seen, looks, names, score, fitting)
            errors.append(error)
            figures[f"{'tell' if errors is tell else 'agree'}_{layer}"] = right
    found["names"] = torch.stack(aligned).mean()
    found["agree"], found["tell"] = torch.stack(agree).mean(), torch.stack(tell).mean()
    return found, figures


def agreement(
    query: Tensor, cells: Tensor, looks: Looks, names: list[Name], score: Tensor, fitting: Tensor
) -> tuple[Tensor, float]:
    """KL divergence of tokens' attention from that of their goals; share of it where it should be.

    Args:
        query: (B, S, d) of a head, in captions that see.
        cells: (B, S', d) keys.
        looks: N tokens; those whose name does not fit their image have no goal.
        names: K.
        score: (K, B + B', S'') of names and cells, with more padding on the left.
        fitting: (K, B).
    """
    numbers = {one: number for number, one in enumerate(names)}
    goal = torch.tensor([numbers[one] for one in looks.goal])
    own = fitting[goal, looks.sample].bool()
    sample, column, image, goal = (
        each[own] for each in (looks.sample, looks.column, looks.image, goal)
    )
    score = score[..., score.shape[-1] - cells.shape[1] :]
    target = score[goal, image].detach().softmax(-1)
    seen = torch.einsum("pd,psd->ps", query[sample, column], cells[sample])
    seen = (seen * query.shape[-1] ** -0.5).masked_fill(target == 0, -1e4).log_softmax(-1)
    shared = torch.minimum(seen.exp(), target).sum(1)
    return F.kl_div(seen, target, reduction="batchmean"), float(shared.detach().mean())


def pretrained(family: str, folder: Path) -> dict[str, Tensor]:
    """The weights of a shipped folder, float32."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


@torch.no_grad()
def copy_heads(model: Any) -> None:
    """Let whole expressions start from what names attend to."""
    for layer in ALIGNED:
        attention = model.get_decoder().layers[layer].self_attn
        (old, keys), (new, own) = HEADS["names"], HEADS["wholes"]
        for value in attention.q_proj.parameters():
            by_head = value.unflatten(0, (-1, attention.head_dim))
            by_head[new] = by_head[old]
        for value in attention.k_proj.parameters():
            by_head = value.unflatten(0, (-1, attention.head_dim))
            by_head[own] = by_head[keys]


def refer(family: str, output: Path, start: Path | None = None, every: int = 25) -> Any:
    """Train to the end, from the last checkpoint if there is one; returns the model."""
    output.mkdir(parents=True, exist_ok=True)
    saved, started = output / "state.pt", time.time()
    steps = STEPS[family]
    stage = Stage(
        steps, BATCH, "all", STAGES[family][-1].geometry, horizon=steps, muon=MUON, adam=ADAM
    )
    model, processor = random_twin(family, 0, **stage.geometry)
    room: Kept = []
    if start is not None:
        model.load_state_dict(pretrained(family, start))
        copy_heads(model)
        few = Lessons(processor, 8, SEED - 1).batch(0)
        room = give_room(model, HEADS["wholes"][1], lambda: model(**few.inputs))
    biases = nn.Parameter(torch.full((len(ALIGNED),), -8.0))
    table = torch.optim.AdamW([biases], lr=TABLES, betas=(0.9, 0.98), weight_decay=0)
    three = [*optimizers(model, stage, family in MUON_PATCHES), table]
    first = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        biases.data.copy_(state["biases"])
        for optimizer, values in zip(three, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        first = state["step"]
    lessons = Lessons(processor, BATCH, SEED)
    model.train()
    for step in range(first, steps):
        for optimizer, lr in zip(three, (MUON, ADAM, TABLES), strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate(step, stage)
        found, figures = losses(model, processor.tokenizer, biases, lessons.batch(step), step)
        loss = torch.stack([WEIGHTS[name] * part for name, part in found.items()]).sum()
        for optimizer in three:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in three:
            optimizer.step()
        keep(room)
        done = step + 1
        if done % every == 0 or done == steps or done in (1, 5):
            row = {name: part.item() for name, part in found.items()} | figures
            row = {"step": done} | {name: round(value, 3) for name, value in row.items()}
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(row | {"seconds": round(time.time() - started)}) + "\n")
        if done % (2 * every) == 0 or done == steps:
            values = [optimizer.state_dict() for optimizer in three]
            whole = {"step": done, "model": model.state_dict(), "optimizers": values}
            torch.save(whole | {"biases": biases.data}, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    return model.eval()


def export(model: Any, family: str, folder: Path) -> None:
    """Write a model, fp16, as a transformers folder."""
    model.half().save_pretrained(folder)
    publish_names(folder)
    # An unused processor: a tokenizer remembers how it last padded.
    _, unused = PARTS[family](**STAGES[family][-1].geometry)
    unused.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Teach a tiny model place and size.")
    parser.add_argument("family", choices=sorted(PARTS))
    parser.add_argument("--output", type=Path, required=True, help="checkpoint and log")
    parser.add_argument(
        "--start", type=Path, required=True, help="a transformers folder: the shipped one"
    )
    parser.add_argument("--export", type=Path, help="write the finished model, fp16, here")
    arguments = parser.parse_args()
    trained = refer(arguments.family, arguments.output, arguments.start)
    if arguments.export:
        export(trained, arguments.family, arguments.export)
