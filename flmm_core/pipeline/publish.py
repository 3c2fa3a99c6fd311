"""Publishes a trained head on the hub: nothing but the head, and no path of this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import HfApi, get_token
from safetensors import safe_open

from flmm_core.errors import RunError, UsageError, WeightsError
from flmm_core.files import write_text
from flmm_core.pipeline.confidence import FILE as CONFIDENCE
from flmm_core.pipeline.confidence import read_confidence
from flmm_core.pipeline.head_folder import (
    WEIGHTS,
    HeadInfo,
    read_info,
    read_weights,
    write_info,
)
from flmm_core.pipeline.hub import HUB_ID, explained, split_revision
from flmm_core.pipeline.model_card import Evidence, model_card, source_name
from flmm_core.plugins import load_backbones

CARD = "README.md"
PARTS = ("mask_head.", "text_prompts.", "presence.", "keywords.", "refiner.")
"""What the names of a head's tensors begin with."""


@contextmanager
def staged(
    head: Path,
    repo: str,
    evidence: Evidence | None = None,
    *,
    model: str | None = None,
    adapter: str | None = None,
) -> Iterator[Path]:
    """A folder with exactly what is uploaded; it is removed after the block.

    Args:
        head: A head's folder.
        repo: `owner/name` on the hub.
        evidence: Scores and settings for the model card.
        model: Where others find the VLM, if the head knows it by a path; so for `adapter`.

    Raises:
        UsageError: `repo` is no hub id, or the VLM or adapter is named by a path.
        WeightsError: The head is damaged, or holds other weights.
    """
    check_repo(repo)
    info = publishable(read_info(head), model, adapter)
    read_weights(head)
    read_confidence(head)
    _check_parts(head / WEIGHTS)
    with tempfile.TemporaryDirectory(prefix="flmm-push-") as made:
        folder = Path(made)
        shutil.copyfile(head / WEIGHTS, folder / WEIGHTS)
        write_info(folder, info)
        if (head / CONFIDENCE).is_file():
            shutil.copyfile(head / CONFIDENCE, folder / CONFIDENCE)
        write_text(folder / CARD, model_card(repo, info, evidence or Evidence()))
        yield folder


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Create a repository if there is none, and commit a folder to it; returns the commit's URL.

    Args:
        private: Of a new repository; None is the owner's default.
        message: Of the commit.
        create_pr: Propose the commit as a pull request.
        revision: The branch to commit to, by default `main`.
        token: By default the one of `hf auth login` or HF_TOKEN.

    Raises:
        RunError: There is no token, or the hub refuses or cannot be reached.
    """
    asked = f"The head cannot be pushed to '{repo}'."
    if not (token or get_token()):
        raise RunError(
            asked,
            found="This machine has no token of the hub.",
            repair="Log in with a token that may write (hf auth login), or set HF_TOKEN.",
        )
    api = HfApi(token=token, library_name="flmm")
    with explained(asked, RunError, pushing=True):
        if not create_pr or private is not None:
            api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message or "Upload a head of flmm",
            create_pr=create_pr,
            revision=revision,
        )
    return str(commit.pr_url or commit.commit_url)


def check_repo(repo: str) -> None:
    """`UsageError` if a text is no hub id."""
    if not HUB_ID.fullmatch(repo):
        raise UsageError(
            f"'{repo}' is no repository of the hub.",
            found="Expected OWNER/NAME of letters, digits, '-', '_' and '.'.",
            repair="Give your user name or organization, a slash and a name.",
        )


def publishable(info: HeadInfo, model: str | None = None, adapter: str | None = None) -> HeadInfo:
    """What a head's `config.json` says, for others: hub ids instead of paths.

    Raises:
        UsageError: The VLM or the adapter is a local folder, and no hub id is given.
    """
    recipe = info.recipe.behind(model=model, adapter=adapter)
    known = load_backbones().get(recipe.backbone).models
    if recipe.model not in known:
        _check_public("model", recipe.model)
    if recipe.adapter != "none":
        _check_public("adapter", recipe.adapter)
    recipe = replace(
        recipe,
        options=_without_paths(recipe.options),
        refiner_options=_without_paths(recipe.refiner_options),
    )
    facts = {name: _without_paths(value) for name, value in info.facts.items()}
    if "data" in info.facts:
        facts["data"] = [source_name(str(source)) for source in info.facts["data"]]
    return replace(info, recipe=recipe, facts=facts)


def _check_public(kind: str, source: str) -> None:
    name, _ = split_revision(source)
    if Path(source).expanduser().exists() or not HUB_ID.fullmatch(name):
        raise UsageError(
            f"The head names its {kind} by a path of this machine, '{source}'.",
            found="Others who load the head would not find it.",
            repair=f"Say where they find the same {kind} on the hub: --{kind} OWNER/NAME.",
        )


def _without_paths(value: Any) -> Any:
    """A plain value whose absolute paths have lost all but the name."""
    if isinstance(value, Mapping):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(inner) for inner in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute() or value.startswith("~"):
                return kind(value).name
    return value


def _check_parts(weights: Path) -> None:
    with safe_open(weights, "pt") as file:
        others = [name for name in file.keys() if not name.startswith(PARTS)]  # noqa: SIM118
    if others:
        raise WeightsError(
            f"'{weights}' holds more than a head.",
            found=f"{len(others)} tensors are no part of one: {', '.join(others[:3])}.",
            repair="Push a head that `flmm train` or save_pretrained wrote.",
        )
