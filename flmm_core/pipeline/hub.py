"""The Hugging Face hub: fetches from it, and says in our words what went wrong there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download
from huggingface_hub import errors as hub_errors

from flmm_core.errors import FlmmError, WeightsError, machine_error, shortened

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only")
LATEST = "main"
"""The branch that a repository without another revision means."""

# The client's own base class of errors: it has changed its HTTP library twice.
_TRANSPORT: type[Exception] = hub_errors.HfHubHTTPError.__bases__[0]
HUB_ERRORS = (
    OSError, _TRANSPORT, hub_errors.HFValidationError, hub_errors.EntryNotFoundError,
    hub_errors.OfflineModeIsEnabled,
)  # fmt: skip
ELSEWHERE = "Download it on a machine with network access (hf download), and give the folder."


def split_revision(source: str) -> tuple[str, str | None]:
    """`owner/name@v2` -> (`owner/name`, `v2`); the revision is None if there is none."""
    name, _, revision = source.partition("@")
    return name, revision or None


def fetch(source: str, asked: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The local folder with some files of a hub repository, downloaded if necessary.

    Args:
        source: `owner/name`, or `owner/name@revision`.
        asked: The first sentence of an error.
        files: Patterns of names, such as `*.json`.
        revision: A branch, tag or commit; overrides that of `source`.

    Raises:
        WeightsError: They cannot be fetched.
        RunError: The disk is full, or the cache cannot be written.
    """
    name, own = split_revision(source)
    with explained(asked):
        found = snapshot_download(name, revision=revision or own, allow_patterns=list(files))
        return Path(found)


@contextmanager
def explained(
    asked: str, kind: type[FlmmError] = WeightsError, *, pushing: bool = False
) -> Iterator[None]:
    """Turn errors of the hub's client into `kind`, and those of the disk into ours."""
    try:
        yield
    except FlmmError:
        raise
    except (*HUB_ERRORS, hub_errors.XetDownloadError, RuntimeError) as error:
        if (known := machine_error(error)) is not None:
            raise known from error
        found, repair = explain(root(error), pushing=pushing)
        raise kind(asked, found=found, repair=repair) from error


def root(error: BaseException) -> BaseException:
    """The hub's own error behind one that a library raised because of it; else the error."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, hub_errors.HfHubHTTPError | hub_errors.LocalEntryNotFoundError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return error


def explain(error: BaseException, *, pushing: bool = False) -> tuple[str, str]:
    """(what was found, what repairs it); the order matters, the hub's errors are subclasses."""
    elsewhere = "" if pushing else f" {ELSEWHERE}"
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set.", f"Unset it.{elsewhere}"
    if pushing and isinstance(error, hub_errors.HfHubHTTPError):
        return _explain_status(error)
    if isinstance(error, hub_errors.GatedRepoError):
        gated = _repository(error)
        page = f" ({constants.ENDPOINT}/{gated})" if gated else ""
        return "Access to it is gated.", (
            f"Accept the conditions on its page{page} and log in (hf auth login, or HF_TOKEN)."
        )
    if isinstance(error, hub_errors.RevisionNotFoundError):
        found = "The repository exists, but not the revision that was asked for."
        return found, "Give a branch, a tag or a commit of it, or omit the revision."
    if isinstance(error, hub_errors.RepositoryNotFoundError | hub_errors.HFValidationError):
        found = "There is no local folder of that name, and no such repository on the hub."
        return found, "Check the name; a private repository needs hf auth login, or HF_TOKEN."
    if isinstance(error, hub_errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            found = "It is not in the local cache, and HF_HUB_OFFLINE forbids to download it."
            return found, f"Unset HF_HUB_OFFLINE. Or: {ELSEWHERE}"
        return "It is not in the local cache, and the hub cannot be reached.", _reach() + elsewhere
    if isinstance(error, hub_errors.EntryNotFoundError):
        name = re.search(r"/resolve/[^/]+/(\S+?)\.?$", str(error), re.MULTILINE)
        what = f"no {name[1]}" if name else "not the file that was asked for"
        return f"The repository has {what}.", "Check the name of the repository."
    if isinstance(error, hub_errors.HfHubHTTPError):
        return _explain_status(error)
    reason = shortened(" ".join(str(error).split()), 300) or type(error).__name__
    if isinstance(error, _TRANSPORT | ConnectionError | TimeoutError):
        return f"The hub cannot be reached, or the connection broke: {reason}", _reach() + elsewhere
    return f"{type(error).__name__}: {reason}", f"Try again.{elsewhere}"


def _repository(error: hub_errors.HfHubHTTPError) -> str:
    """`owner/name` of which an error tells; huggingface_hub 1.5 has it only in the address."""
    if known := getattr(error, "repo_id", None):
        return str(known)
    address = urlsplit(str(getattr(getattr(error, "response", None), "url", ""))).path
    match = re.search(r"/([^/]+/[^/]+)/(?:resolve|revision|tree|preupload|commit)/", address)
    match = match or re.search(r"/api/models/([^/]+/[^/]+)", address)
    return match[1] if match else ""


def _explain_status(error: hub_errors.HfHubHTTPError) -> tuple[str, str]:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    said = getattr(error, "server_message", None)
    told = f" ({status})"
    told += f": {shortened(' '.join(str(said).split()), 300)}" if said else "."
    if status == 401:
        what = "The hub does not accept the token" if _has_token() else "The hub asks for a token"
        return what + told, "Log in (hf auth login), or set HF_TOKEN to a valid token."
    if status == 403:
        return "The token has no permission for it" + told, (
            "Use a token with write access to this repository (hf auth login, or HF_TOKEN), or a "
            "repository of your own."
        )
    if status == 404:
        return "There is no such repository or branch on the hub" + told, (
            "Check the name; a new repository is created by a push without a pull request."
        )
    if status == 429:
        return "The hub answers too many requests" + told, "Wait a few minutes and try again."
    if status >= 500:
        return "The hub has a fault of its own" + told, "Try again later."
    return "The hub refused the request" + told, "Check the name of the repository."


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _reach() -> str:
    own = f", and HF_ENDPOINT ({constants.ENDPOINT})" if os.environ.get("HF_ENDPOINT") else ""
    return f"Check the network and its proxy{own}, and try again."
