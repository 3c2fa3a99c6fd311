"""Toys run as a whole: their widths fit each other, also where only the model's class says how."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from flmm_core.scaffold.toy import build_toy
from recipes.families import FAMILIES


@pytest.mark.parametrize("name", ["qwen2_vl", "glm4v", "gemma3"])
def test_the_decoder_runs_and_no_matrix_is_zero(name: str) -> None:
    config, processor = FAMILIES[name]()
    model_class = hf.AutoModelForImageTextToText._model_mapping[type(config)]
    model = build_toy(model_class, config, len(processor.tokenizer))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(5, 15)[None]).logits
    assert logits.shape == (1, 10, len(processor.tokenizer))
    assert logits.isfinite().all()
    zero = [key for key, value in model.named_parameters() if value.ndim > 1 and not value.any()]
    assert not zero
