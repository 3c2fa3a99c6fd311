"""Families of vision-language models as released, with processors made here: nothing is downloaded.

    python -m recipes.families idefics3 DIR    # a toy-width folder with random weights

`FAMILIES[name]()` gives the config at its published size and a processor with the published
settings. The tokenizer knows the family's control tokens and the words of drawn scenes, and the
chat template is plain: where image tokens lie depends on neither.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf

from flmm_core.pipeline.backbone.geometry.twin import wake
from flmm_core.scaffold.toy import toy_config
from recipes.families.one_view import ONE_VIEW
from recipes.families.parts import Parts
from recipes.families.refused import REFUSED as _REFUSED
from recipes.families.tiled import TILED

Maker = Callable[[], Parts]

FAMILIES: dict[str, Maker] = {make.__name__: make for make in (*ONE_VIEW, *TILED)}
REFUSED: dict[str, Maker] = {make.__name__: make for make in _REFUSED}
"""Those whose geometry cannot be measured."""

LONGEST = 32768
"""Tokens of a sequence: some configs default to fewer than an image has."""


def write_folder(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write a toy-width model of a family with random weights; returns the folder."""
    parts = (FAMILIES | REFUSED)[name]()
    config = toy_config(parts.config, len(parts.processor.tokenizer))
    config.get_text_config().max_position_embeddings = LONGEST
    torch.manual_seed(seed)
    model = hf.AutoModelForImageTextToText.from_config(config)
    wake(model)
    model.float().save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    return Path(folder)
