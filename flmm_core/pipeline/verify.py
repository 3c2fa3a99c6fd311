"""Is a head still in front of the model that it was trained behind, and unchanged itself?"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import RunError, UsageError
from flmm_core.pipeline.backbone import weights
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.fingerprint import (
    deviations,
    installed,
    take_fingerprint,
    versions_apart,
)
from flmm_core.pipeline.backbone.identity import differences
from flmm_core.pipeline.backbone.probe import probe_image
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.drift import default_dtype
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import HeadInfo, find_head, read_info, write_info
from flmm_core.plugins import load_backbones, load_class, parse_options

QUESTIONS = ("What is this?", "Please give me a description of the image.")
LONGEST_ANSWER = 16
"""Tokens."""


@dataclass(frozen=True)
class Finding:
    """What one check found; `ok` is None if it could not be made."""

    ok: bool | None
    found: str


@dataclass(frozen=True)
class Verification:
    """The findings by the name of their check."""

    head: str
    model: str
    versions: Mapping[str, str]
    findings: Mapping[str, Finding]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(finding.ok is not False for finding in self.findings.values())

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        checks = {name: vars(finding) for name, finding in self.findings.items()}
        return {**vars(self), "findings": checks, "ok": self.ok}


def verify(
    run: str | Path,
    *,
    model: str | None = None,
    dtype: str | None = None,
    device: str | torch.device = "auto",
    refiner_weights: Path | None = None,
    record: bool = False,
) -> Verification:
    """Check a head and its model; the model is loaded twice, one after the other.

    weights       the digest of the VLM's weights is the one that the head recorded
    model         class, sizes, tokenizer, chat template and image processor are those of training
    behavior      the VLM does what its backbone promises, see `take_fingerprint`
    fingerprint   it does what it did in training
    answers       greedy answers have the same tokens from the VLM alone, loaded and asked by
                  transformers, and with the head, after it has grounded a phrase

    Args:
        run: A run folder, a head folder or a hub id.
        model: Where the VLM is, by default as in training.
        dtype: Of the VLM's weights, by default as in training.
        device: "auto" takes the first accelerator.
        refiner_weights: The refiner's own weights file, where training needed one.
        record: If nothing differs, add to the head's folder what it does not record: fingerprint,
            digest and samples of the weights. An imported head has none of them.

    Raises:
        FlmmError: The head or its model cannot be loaded, or they do not fit.
        UsageError: `record` and the head is on the hub.
    """
    folder = find_head(run)
    if record and not Path(run).exists():
        raise UsageError(
            f"Nothing can be recorded in the head '{run}'.",
            found="It is on the hub.",
            repair="Give a folder with it.",
        )
    trained = read_info(folder)
    recipe, source = trained.recipe, model or trained.recipe.model
    dtype = dtype or default_dtype(trained)
    digest, answers = _alone(recipe, source, dtype, device)
    grounder = Grounder.from_pretrained(
        folder, model=model, dtype=dtype, device=device, refiner_weights=refiner_weights,
        force=True, check=False,
    )  # fmt: skip
    backbone = grounder.backbone
    findings = {
        "weights": _compare_weights(trained, digest),
        "model": _compare_model(trained, backbone),
        **_run(trained, backbone),
        "answers": _compare_answers(grounder, answers, digest),
    }
    result = Verification(str(folder), source, installed(), findings)
    if record and result.ok:
        write_info(folder, _completed(trained, backbone, digest))
    return result


def _completed(trained: HeadInfo, backbone: Backbone, digest: str | None) -> HeadInfo:
    """What a head says of itself, and what it lacked, of the model that it fits."""
    model = trained.model if trained.model and trained.model.weights else backbone.identity()
    return replace(
        trained,
        model=model,
        fingerprint=trained.fingerprint or take_fingerprint(backbone),
        vlm_sha256=trained.vlm_sha256 or digest,
    )


def _alone(
    recipe: Recipe, model: str, dtype: str, device: str | torch.device
) -> tuple[str | None, list[Tensor] | None]:
    """The weights' digest and the answers of a VLM that nothing of ours has touched."""
    spec = load_backbones().get(recipe.backbone)
    kind: type[Backbone] = load_class(spec)
    source, target = weights.find_source(spec, model), weights.choose_device(device)
    weights.check_model_type(spec, source, kind.model_types, {})
    with weights.explain_errors(spec, source):
        vlm, processor = kind.load_model(
            source,
            parse_options(spec, recipe.options),
            trust_remote_code=False,
            dtype=weights.choose_dtype(dtype, target.type),
        )
    vlm = vlm.eval().to(target)
    answers = None
    if "chat" in spec.capabilities:
        answers = [_ask(vlm, processor, recipe.system, question) for question in QUESTIONS]
    digest = weights.digest(vlm)
    del vlm
    gc.collect()  # the same model is loaded next
    torch.cuda.empty_cache()
    return digest, answers


@torch.no_grad()
def _ask(vlm: Any, processor: Any, system: str | None, question: str) -> Tensor:
    """(T,) the tokens of an answer, by transformers' own way from a conversation to them."""
    image = {"type": "image", "image": probe_image()}
    turns = [{"role": "user", "content": [image, {"type": "text", "text": question}]}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    inputs = processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(vlm.device, vlm.dtype)
    generated = vlm.generate(**inputs, do_sample=False, max_new_tokens=LONGEST_ANSWER)
    answer: Tensor = generated[0, inputs["input_ids"].shape[1] :].cpu()
    return answer


def _compare_weights(trained: HeadInfo, digest: str | None) -> Finding:
    known = trained.vlm_sha256
    if known is None:
        return Finding(None, "an earlier version wrote the head, without the weights' digest")
    if known == digest:
        return Finding(True, f"SHA-256 {known[:12]}..., as recorded")
    return Finding(False, f"SHA-256 {str(digest)[:12]}..., recorded {known[:12]}...")


def _compare_model(trained: HeadInfo, backbone: Backbone) -> Finding:
    if trained.model is None:
        return Finding(None, "an earlier version wrote the head, without what its model was")
    different = differences(trained.model, backbone.identity())
    return Finding(not different, "; ".join(different) or "as recorded")


def _run(trained: HeadInfo, backbone: Backbone) -> dict[str, Finding]:
    unknown = Finding(
        None,
        "the head has none: it was imported, or written by an earlier version or with "
        "--no-check; --record adds one",
    )
    try:
        now = take_fingerprint(backbone)
    except RunError as error:
        behavior = Finding(False, error.found or error.asked)
        return {"behavior": behavior, "fingerprint": Finding(None, "the behavior is not as it was")}
    then, behavior = trained.fingerprint, Finding(True, "causal, phrases and views in place")
    if then is None:
        return {"behavior": behavior, "fingerprint": unknown}
    different = deviations(then, now)
    found = "; ".join(different) or "as recorded"
    return {
        "behavior": behavior,
        "fingerprint": Finding(not different, f"{found}. {versions_apart(then, now)}"),
    }


def _compare_answers(grounder: Grounder, alone: list[Tensor] | None, digest: str | None) -> Finding:
    """The answers once the head has worked, and that it left the weights as they were."""
    image: Image.Image = probe_image()
    grounder.ground(image, ["the red circle"], keep_absent=True)
    if weights.digest(grounder.backbone.vlm) != digest:
        return Finding(False, "grounding a phrase has changed the model's weights")
    if alone is None:
        name = grounder.backbone.spec.name
        return Finding(None, f"the backbone {name} does not answer (no capability chat)")
    for question, expected in zip(QUESTIONS, alone, strict=True):
        reply = grounder.backbone.reply(image, question, max_new_tokens=LONGEST_ANSWER)
        given = reply.token_ids
        if given.tolist() != expected.tolist():
            decode = grounder.backbone.tokenizer.decode
            return Finding(
                False,
                f"to {question!r} the model alone answers {decode(expected)!r}, with the head "
                f"{decode(given)!r}",
            )
    tokens = sum(map(len, alone))
    return Finding(True, f"{tokens} tokens of {len(alone)} greedy answers are the same")
