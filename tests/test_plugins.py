"""Plugins, good and broken, as real distributions: a broken one is reported, never fatal."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from textwrap import dedent
from typing import Any

import pytest

from flmm_core.errors import MissingExtraError, UsageError
from flmm_core.plugins import (
    Registry,
    load_backbones,
    load_class,
    load_phrase_finders,
    load_refiners,
)
from flmm_core.spec import BackboneSpec, ModelInfo, RefinerSpec

BUILT_IN = ["auto", "deepseek_vl", "llava_next", "qwen"]
FINDERS = ["keywords", "rules", "spacy", "vlm"]
Install = Callable[..., None]

GOOD = """
    from flmm_core import BackboneSpec, ModelInfo, hookimpl

    @hookimpl
    def flmm_backbones():
        models = {{"tiny": ModelInfo("a:b", "MIT")}}
        return [BackboneSpec("{name}", "somewhere:Class", "A summary", models)]
"""


def good(name: str) -> str:
    return dedent(GOOD.format(name=name))


def reasons(registry: Registry[Any]) -> list[str]:
    return [str(failure) for failure in registry.failures]


def test_the_built_in_plugins_come_through_the_public_door() -> None:
    for load, names in (
        (load_backbones, BUILT_IN),
        (load_refiners, ["none", "sam", "sam2"]),
        (load_phrase_finders, FINDERS),
    ):
        registry: Registry[Any] = load()
        assert [name for name in registry.specs if name in names] == names
        assert {registry.plugins[name].label.split()[0] for name in names} == {"flmm"}


@pytest.mark.parametrize("version", ["0", "2", "'1'"])
def test_a_plugin_for_another_version_of_the_api_is_refused(install: Install, version: str) -> None:
    install("flmm-old", flmm_old=f"API_VERSION = {version}\n" + good("old"))
    install("flmm-new", flmm_new="API_VERSION = 1\n" + good("new"))
    registry = load_backbones()
    assert ("old" in registry.specs, "new" in registry.specs) == (False, True)
    (reason,) = reasons(registry)
    assert f"it is written for version {version} of flmm's plugin API" in reason


def test_a_plugin_adds_its_backbone(install: Install) -> None:
    install("flmm-good", "1.2", flmm_good=good("good"))
    registry = load_backbones()
    assert list(registry.specs) == ["auto", "deepseek_vl", "good", "llava_next", "qwen"]
    assert registry.get("good").summary == "A summary"
    assert registry.plugins["good"].label == "flmm-good 1.2"


REFINER = """
    from flmm_core import RefinerSpec, hookimpl

    @hookimpl
    def flmm_refiners():
        return [RefinerSpec("sharp", "somewhere:Class", "A summary")]
"""


def test_a_plugin_may_bring_backbones_refiners_or_both(install: Install) -> None:
    install("flmm-both", "1", flmm_both=good("good") + dedent(REFINER))
    install("flmm-refiner", "1", flmm_refiner=REFINER.replace("sharp", "sharper"))
    backbones, refiners = load_backbones(), load_refiners()
    assert list(backbones.specs) == ["auto", "deepseek_vl", "good", "llava_next", "qwen"]
    assert list(refiners.specs) == ["none", "sam", "sam2", "sharp", "sharper"]
    assert refiners.plugins["sharp"].label == "flmm-both 1"
    assert not backbones.failures + refiners.failures


def test_a_broken_refiner_leaves_the_plugins_backbone(install: Install) -> None:
    install("flmm-half", "1", flmm_half=good("good") + dedent(REFINER).replace("sharp", "Not-ok"))
    assert "good" in load_backbones().specs
    assert len(reasons(load_refiners())) == 1


BROKEN = {
    "missing module": ("import foo_that_is_not", "ModuleNotFoundError: No module named 'foo_that_"),
    "syntax": ("def (", "SyntaxError: "),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "no hook": (
        "x = 1",
        "ValueError: it has no function flmm_backbones, flmm_refiners or flmm_phrase_finders",
    ),
    "not marked": (
        "def flmm_backbones(): return []",
        "ValueError: it has no function flmm_backbones, flmm_refiners or flmm_phrase_finders",
    ),
    "misspelled": (
        "from flmm_core import hookimpl\n@hookimpl\ndef flmm_backbone(): return []",
        "ValueError: it implements an unknown hook 'flmm_backbone'. Did you mean 'flmm_backbones'?",
    ),
    "misspelled beside a good one": (
        good("half") + "\n@hookimpl\ndef flmm_datasets(): return []",
        "ValueError: it implements an unknown hook 'flmm_datasets'.",
    ),
    "arguments": (
        "from flmm_core import hookimpl\n@hookimpl\ndef flmm_backbones(what): return []",
        "PluginValidationError: ",
    ),
    "returns none": (
        "from flmm_core import hookimpl\n@hookimpl\ndef flmm_backbones(): return None",
        "TypeError: flmm_backbones() must return a list of BackboneSpec, not None",
    ),
    "returns text": (
        "from flmm_core import hookimpl\n@hookimpl\ndef flmm_backbones(): return ['qwen']",
        "TypeError: flmm_backbones() must return a list of BackboneSpec, not ['qwen']",
    ),
    "raises": (
        "from flmm_core import hookimpl\n@hookimpl\ndef flmm_backbones(): return 1 // 0",
        "ZeroDivisionError: integer division or modulo by zero",
    ),
    "bad spec": (
        good("Bad-Name"),
        "ValueError: backbone name 'Bad-Name' must match [a-z0-9_]+",
    ),
    "bad defaults": (
        """
        from flmm_core import BackboneOptions, BackboneSpec, ModelInfo, hookimpl

        class Needs(BackboneOptions):
            value: int

        @hookimpl
        def flmm_backbones():
            return [BackboneSpec("x", "a:B", "", {"tiny": ModelInfo("a", "b")}, options=Needs)]
        """,
        "ValidationError: 1 validation error for Needs value Field required",
    ),
}


def check_failures(
    install: Install, broken: dict[str, tuple[str, str]], load: Callable[[], Registry[Any]]
) -> None:
    """Install a distribution for each broken plugin; each is reported with its own reason."""
    for number, (source, _) in enumerate(broken.values()):
        install(f"flmm-foo{number:02}", "0.1", **{f"flmm_foo{number:02}": source})
    found = reasons(load())
    assert len(found) == len(broken)
    for number, (line, (_, reason)) in enumerate(zip(found, broken.values(), strict=True)):
        assert line.startswith(f"flmm-foo{number:02} 0.1 ({reason}")
        assert "\n" not in line


def test_a_broken_plugin_is_reported_and_the_others_work(install: Install) -> None:
    install("flmm-zoo", "2", flmm_zoo=good("zoo"))
    check_failures(install, BROKEN, load_backbones)
    assert [*load_backbones().specs] == [*BUILT_IN, "zoo"]


BROKEN_REFINERS = {
    "returns backbones": (
        good("x").replace("flmm_backbones", "flmm_refiners"),
        "TypeError: flmm_refiners() must return a list of RefinerSpec, not [BackboneSpec(",
    ),
    "options": (
        REFINER.replace('summary"', 'summary", options=dict'),
        "TypeError: options of refiner 'sharp' must subclass RefinerOptions",
    ),
    "shorthand": (
        REFINER.replace('summary"', 'summary", shorthand="size"'),
        "ValueError: refiner 'sharp' has no option 'size'",
    ),
    "taken": (
        REFINER.replace("sharp", "sam"),
        "refiner 'sam' is already provided by flmm 0.1.0, entry point 'refiners'",
    ),
}


def test_a_broken_refiner_is_reported_and_the_others_work(install: Install) -> None:
    install("flmm-zoo", "2", flmm_zoo=REFINER)
    check_failures(install, BROKEN_REFINERS, load_refiners)
    registry = load_refiners()
    assert [*registry.specs] == ["none", "sam", "sam2", "sharp"]
    assert registry.plugins["sharp"].label == "flmm-zoo 2"


FINDER = """
    from flmm_core import PhraseFinderSpec, hookimpl

    @hookimpl
    def flmm_phrase_finders():
        return [PhraseFinderSpec("nouns", "somewhere:Class", "A summary")]
"""
BROKEN_FINDERS = {
    "returns backbones": (
        good("x").replace("flmm_backbones", "flmm_phrase_finders"),
        "TypeError: flmm_phrase_finders() must return a list of PhraseFinderSpec, not [Backbone",
    ),
    "options": (
        FINDER.replace('summary"', 'summary", options=dict'),
        "TypeError: options of phrase finder 'nouns' must subclass PhraseFinderOptions",
    ),
    "shorthand": (
        FINDER.replace('summary"', 'summary", shorthand="size"'),
        "ValueError: phrase finder 'nouns' has no option 'size'",
    ),
    "taken": (
        FINDER.replace("nouns", "rules"),
        "phrase finder 'rules' is already provided by flmm 0.1.0, entry point 'phrases'",
    ),
}


def test_a_broken_phrase_finder_is_reported_and_the_others_work(install: Install) -> None:
    install("flmm-zoo", "2", flmm_zoo=FINDER)
    check_failures(install, BROKEN_FINDERS, load_phrase_finders)
    registry = load_phrase_finders()
    assert [*registry.specs] == sorted([*FINDERS, "nouns"])
    assert registry.plugins["nouns"].label == "flmm-zoo 2"


def test_unknown_backbone_says_what_there_is_and_what_failed(install: Install) -> None:
    install("flmm-foo", "0.1", flmm_foo="import foo")
    with pytest.raises(UsageError, match=r"^Unknown refiner 'sma'\. Did you mean 'sam'\?\nInst"):
        load_refiners().get("sma")
    with pytest.raises(UsageError) as caught:
        load_backbones().get("qwenn")
    assert str(caught.value) == (
        "Unknown backbone 'qwenn'. Did you mean 'qwen'?\n"
        "Installed: auto, deepseek_vl, llava_next, qwen.\n"
        "Not loaded: flmm-foo 0.1 (ModuleNotFoundError: No module named 'foo')."
    )


def test_a_name_is_not_taken_away_from_the_core(install: Install) -> None:
    install("acme", "9", acme_plugin=good("qwen"))
    registry = load_backbones()
    assert registry.get("qwen").target == "flmm_qwen.backbone:QwenBackbone"
    assert reasons(registry) == [
        "acme 9 (backbone 'qwen' is already provided by flmm 0.1.0, entry point 'qwen')"
    ]


def test_of_two_plugins_with_one_name_the_first_wins(install: Install) -> None:
    install("flmm-b", "1", plugin_b=good("same"))
    install("flmm-a", "1", plugin_a=good("same"))
    registry = load_backbones()
    assert registry.plugins["same"].label == "flmm-a 1"
    assert reasons(registry) == ["flmm-b 1 (backbone 'same' is already provided by flmm-a 1)"]


def test_several_entry_points_of_one_distribution_are_told_apart(install: Install) -> None:
    install("flmm-two", "1", plugin_one=good("one"), plugin_two="import foo_that_is_not")
    registry = load_backbones()
    assert "one" in registry.specs
    assert reasons(registry)[0].startswith("flmm-two 1, entry point 'plugin_two' (")


def test_what_a_plugin_prints_stays_out_of_stdout(
    install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    install("flmm-loud", "1", flmm_loud="print('hello')\n" + good("loud"))
    registry = load_backbones()
    assert "loud" in registry.specs
    assert capfd.readouterr() == ("", "")
    registry.get("loud")
    assert capfd.readouterr() == ("", "hello\n")


def test_a_slow_import_is_measured(install: Install) -> None:
    install("flmm-slow", "1", flmm_slow="import time; time.sleep(0.3)\n" + good("slow"))
    registry = load_backbones()
    assert registry.plugins["slow"].seconds >= 0.3
    assert registry.plugins["qwen"].seconds < 0.3


def spec_for(target: str) -> BackboneSpec:
    return BackboneSpec("foo", target, "", {"tiny": ModelInfo("a", "b")})


def test_load_class_imports_the_class() -> None:
    from collections import OrderedDict

    assert load_class(spec_for("collections:OrderedDict")) is OrderedDict  # type: ignore[comparison-overlap]


def test_load_class_says_what_is_missing(install: Install) -> None:
    install("flmm-foo", "0.1", flmm_foo="import foo_that_is_not")
    with pytest.raises(UsageError) as no_module:
        load_class(spec_for("flmm_nowhere.backbone:Foo"))
    assert str(no_module.value) == (
        "Backbone 'foo' cannot be loaded from 'flmm_nowhere.backbone:Foo'.\n"
        "There is no module 'flmm_nowhere'."
    )
    with pytest.raises(UsageError, match=r"^Refiner 'foo' .*\nModule 'collections' has no class"):
        load_class(RefinerSpec("foo", "collections:Foo", ""))
    with pytest.raises(MissingExtraError) as no_extra:
        load_class(spec_for("flmm_foo:Foo"))
    assert no_extra.value.exit_code == 3
    assert str(no_extra.value) == (
        "Backbone 'foo' cannot be loaded from 'flmm_foo:Foo'.\n"
        "A package that it needs is missing or too old"
        " (ModuleNotFoundError: No module named 'foo_that_is_not').\n"
        "Install what the plugin's documentation asks for."
    )
    install("flmm-old", "0.1", flmm_old="from collections import NotYet")
    with pytest.raises(MissingExtraError, match="ImportError: cannot import name 'NotYet'"):
        load_class(spec_for("flmm_old:Foo"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a-b"}, "backbone name 'a-b' must match"),
        ({"target": "no_class"}, "must be 'module:Class'"),
        ({"models": {}}, "backbone 'foo' has no model 'tiny'"),
    ],
)
def test_a_spec_that_cannot_work_cannot_be_made(change: dict[str, object], message: str) -> None:
    facts = {"name": "foo", "target": "a:B", "summary": "", "models": {"tiny": ModelInfo("a", "b")}}
    with pytest.raises(ValueError, match=message):
        BackboneSpec(**(facts | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("load", [load_backbones, load_refiners, load_phrase_finders])
def test_specs_can_be_pickled(load: Callable[[], Registry[Any]]) -> None:
    for spec in load().specs.values():
        assert pickle.loads(pickle.dumps(spec)) == spec
