"""Does a tiny model answer with us as without us, and are the things masked that it names?

python -m recipes.talking RUN                   RUN: a trained head
python -m recipes.talking RUN --prompts 20 --scenes 30
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_core import Grounder
from flmm_core.data.drawn.scenes import COLORS, SHAPES, make_scene, paint
from flmm_core.spec import DEFAULT_PROMPT

SEED = 95
NAMED = re.compile(rf"\b({'|'.join(COLORS)}) ({'|'.join(SHAPES)})\b")
QUESTIONS = (
    DEFAULT_PROMPT,
    "What is in the top left?",
    "Is there a red circle?",
    "Which shapes do you see?",
    "Describe the largest object.",
)
NEW_TOKENS = 40


def scene_image(index: int, kind: Any = "plain") -> tuple[Any, Image.Image, Any]:
    """An unseen scene, its image and its masks."""
    scene = make_scene((SEED, index), kind)
    pixels, masks, _ = paint(scene)
    return scene, Image.fromarray(pixels), masks


@torch.no_grad()
def without_us(backbone: Any, image: Image.Image, question: str) -> list[int]:
    """The tokens of an answer, by transformers' own way from a conversation to them."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = backbone.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(backbone.vlm.device, backbone.vlm.dtype)
    made = backbone.vlm.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    ids: list[int] = made[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


def same_answers(grounder: Grounder, prompts: int) -> dict[str, Any]:
    """How many answers of `chat` are token for token those without us."""
    same = tokens = 0
    for index, question in islice(product(range(prompts), QUESTIONS), prompts):
        _, image, _ = scene_image(index)
        answer = grounder.chat(image, question, max_new_tokens=NEW_TOKENS)
        ids = without_us(grounder.backbone, image, question)
        same += answer.token_ids.tolist() == ids
        tokens += len(ids)
    return {"prompts": prompts, "same_answers": same, "tokens": tokens}


def named_things(grounder: Grounder, scenes: int) -> dict[str, Any]:
    """Masks of the phrases that the model says, against the things of that color and shape.

    Only what exists exactly once counts for the masks; a thing that the head says is not there has
    an empty mask.
    """
    named = absent = several = withheld = false_alarms = 0
    both, either, ious = 0, 0, []
    for index in range(scenes):
        scene, image, masks = scene_image(index)
        kinds = Counter(shape.kind for shape in scene.shapes)
        for span in grounder.chat(image, DEFAULT_PROMPT):
            match = NAMED.search(span.phrase)
            if match is None:
                continue
            named += 1
            kind = match.groups()
            if kinds[kind] == 0:
                absent += 1
                false_alarms += span.there
            elif kinds[kind] > 1:
                several += 1
            else:
                truth = masks[[shape.kind for shape in scene.shapes].index(kind)]
                mask = span.mask.numpy()
                withheld += not span.there
                both += int((mask & truth).sum())
                either += int((mask | truth).sum())
                ious.append((mask & truth).sum() / (mask | truth).sum())
    return {
        "scenes": scenes,
        "named": named,
        "named_but_not_there": round(absent / max(1, named), 4),
        "of_these_masked": round(false_alarms / max(1, absent), 4),
        "of_several": several,
        "counted": len(ious),
        "withheld": withheld,
        "ciou": round(both / max(1, either), 4),
        "miou": round(float(np.mean(ious)), 4),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure conversations with a tiny model.")
    parser.add_argument("head")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--scenes", type=int, default=300)
    given = parser.parse_args()
    loaded = Grounder.from_pretrained(given.head, device="cpu")
    began = time.process_time()
    figures = same_answers(loaded, given.prompts) | named_things(loaded, given.scenes)
    seconds = round(time.process_time() - began, 1)
    print(json.dumps({"head": given.head, **figures, "cpu_seconds": seconds}))
