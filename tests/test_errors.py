"""Errors that a user can repair: one format, one exit code a kind."""

from __future__ import annotations

import pickle
import sys
from importlib import metadata
from types import ModuleType

import pytest

from flmm_core import errors
from flmm_core.errors import FlmmError, did_you_mean, install_advice

EXIT_CODES = {
    "RunError": 1,
    "LostProcessError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "WeightsError": 3,
    "DataError": 3,
    "MissingExtraError": 3,
}


def kinds() -> list[type[FlmmError]]:
    found = [thing for thing in vars(errors).values() if isinstance(thing, type)]
    return [kind for kind in found if issubclass(kind, FlmmError) and kind is not FlmmError]


def test_every_kind_has_the_exit_code_that_is_documented() -> None:
    assert {kind.__name__: kind.exit_code for kind in kinds()} == EXIT_CODES


def test_no_kind_is_a_key_error() -> None:
    # str(KeyError("text")) is "'text'" in quotes.
    assert not any(issubclass(kind, LookupError) for kind in kinds())


def test_message_is_asked_found_repair_each_on_its_line() -> None:
    error = FlmmError("Asked for 3.", found="Found 2.", repair="Give one more.")
    assert str(error) == "Asked for 3.\nFound 2.\nGive one more."
    assert str(FlmmError("Asked for 3.", repair="Give one more.")) == "Asked for 3.\nGive one more."
    assert str(FlmmError("Asked for 3.")) == "Asked for 3."


def test_long_names_and_values_are_cut_in_messages() -> None:
    phrase = " ".join(f"cup{number}" for number in range(15_000))
    error = FlmmError(f"The phrase '{phrase}' is too long.", found=f"First line.\nFound {phrase}.")
    assert len(str(error)) < 2100
    first, second, third = str(error).splitlines()
    assert first.startswith("The phrase 'cup0 cup1 ")
    assert first.endswith(" cup14999' is too long.")
    assert (second, third[:10]) == ("First line.", "Found cup0")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("kind", kinds())
def test_errors_come_back_from_another_process(kind: type[FlmmError]) -> None:
    error = pickle.loads(pickle.dumps(kind("Asked.", found="Found.", repair="Repair.")))
    assert type(error) is kind
    assert str(error) == "Asked.\nFound.\nRepair."
    assert (error.asked, error.found, error.repair) == ("Asked.", "Found.", "Repair.")


def test_did_you_mean_names_the_nearest_or_nothing() -> None:
    assert did_you_mean("qwenn", ["llava", "qwen"]) == "Did you mean 'qwen'?"
    assert did_you_mean("zzz", ["llava", "qwen"]) == ""
    assert did_you_mean("zzz", []) == ""


@pytest.mark.parametrize(
    ("statement", "advice"),
    [
        # Installed, in a version without it: what has the module is not what it is called.
        ("import PIL.no_such", "a version of it that fits: pip install --upgrade pillow"),
        (
            "from PIL.Image import no_such",
            "a version of it that fits: pip install --upgrade pillow",
        ),
        ("import yaml.a.b.c", "a version of it that fits: pip install --upgrade PyYAML"),
        ("import google.protobuf", "it: pip install protobuf"),
        ("import sklearn.svm.x", "it: pip install scikit-learn"),
        ("import flash_attn.layers", "it: pip install flash-attn"),
        ("import torchao.quantization", "it: pip install torchao"),
        ("import no_such_pkg.part", "the package that has the module 'no_such_pkg'"),
    ],
)
def test_what_is_missing_is_installed_by_its_distribution(
    statement: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With errors of Python's own import; some of these may be installed where tests run."""
    package = statement.split()[1].split(".")[0]
    if "upgrade" not in advice:
        owners = {k: v for k, v in metadata.packages_distributions().items() if k != package}
        monkeypatch.setattr(metadata, "packages_distributions", lambda: owners)
        monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
        monkeypatch.setitem(sys.modules, "google.protobuf", None)
        if package != "google":
            monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as caught:
        exec(statement)
    assert install_advice(caught.value) == f"Install {advice}"


def test_what_an_error_says_itself_is_the_advice() -> None:
    said = ImportError("This needs the AutoAWQ library: `pip install -U autoawq`.", name="awq.x.y")
    assert install_advice(said) == "Install it: pip install autoawq"
    assert install_advice(ImportError("DLL load failed")) == "Install it"
    with pytest.raises(ImportError) as caught:
        exec("from json import no_such")
    assert install_advice(caught.value) == "Use a Python whose module 'json' has it"
