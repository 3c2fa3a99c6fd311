"""Settings: YAML as people mean it, precedence, and every problem reported with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from flmm_core.config import RunConfig, load_config, option_name, settings
from flmm_core.config.yaml_files import dump_yaml, parse_scalar, read_yaml
from flmm_core.errors import ConfigError, UsageError
from flmm_core.pipeline.refiners import SamOptions
from flmm_core.plugins import load_refiners
from flmm_core.spec import BackboneOptions, BackboneSpec, ModelInfo, RefinerOptions, RefinerSpec


class Options(BackboneOptions):
    min_pixels: int | None = Field(None, ge=1, description="Least.")


SPEC = BackboneSpec(
    name="fake",
    target="fake:Fake",
    summary="",
    models={
        "tiny": ModelInfo("fake:tiny", "MIT", defaults={"head.base_channels": 16, "steps": 300}),
        "toy": ModelInfo("fake:tiny", "MIT", defaults={"refiner_options.text": False}),
        "large": ModelInfo("fake/large", "MIT"),
        "broken": ModelInfo("fake/broken", "MIT", defaults={"head.base_chanels": 16}),
    },
    options=Options,
)


def find(name: str) -> BackboneSpec:
    if name != "fake":
        raise UsageError(f"Unknown backbone '{name}'.")
    return SPEC


class BlurOptions(RefinerOptions):
    radius: int = Field(3, ge=1, description="Radius.")


def find_refiner(name: str) -> RefinerSpec:
    """The core's refiners and one that blurs."""
    blur = RefinerSpec("blur", "fake:Blur", "", options=BlurOptions, shorthand="radius")
    return blur if name == "blur" else load_refiners().get(name)


def load(path: Path | None = None, **overrides: Any) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(path, dotted, find, find_refiner)[0]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def make(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return make


def problems(caught: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return caught.value.found.splitlines()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x10", 16),
        ("0o17", 15),
        ("012", 12),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2026-01-02", "2026-01-02"),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("null", None),
        ("<<", "<<"),
        ("=", "="),
        ("-", "-"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse_scalar(text)
    assert (read, type(read)) == (value, type(value))


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@hypothesis.settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(), scalars | st.lists(scalars, max_size=3), max_size=4))
def test_what_is_dumped_is_read_back(tmp_path_factory: Any, content: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_bytes(dump_yaml(content).encode("utf-8", "surrogatepass"))
    assert read_yaml(path)[0] == content


def test_a_repeated_key_is_refused_with_its_lines(write: Any) -> None:
    path = write("steps: 3\nhead:\n  pool: max\n  pool: mean\nsteps: 4\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == (
        f"The configuration file '{path}' cannot be used.\n"
        "Line 4: the key 'head.pool' is already on line 3.\n"
        "Line 5: the key 'steps' is already on line 1.\n"
        "Keep one of each."
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: [1\nb: 2", "Line 2: expected ',' or ']', but got ':'."),
        ("a: &x 1\nb: *x", "Line 2: aliases are not supported."),
        ("- a\n- b\n", "It must be a mapping, lines of `key: value`."),
        ("a: !!python/object:os.system {}", "Line 1: could not determine a constructor"),
        ("{[1]: 2}", "Line 1: found unhashable key."),
        ("a: \x00", "It cannot be read: "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(write: Any, text: str, found: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"The configuration file '{path}' cannot be used.\n{found}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nowhere\.yaml' cannot be used\.\nIt cannot be read: No"
    ):
        load(tmp_path / "nowhere.yaml")


def test_each_source_overrides_the_one_before(write: Any) -> None:
    assert RunConfig(backbone="fake").head.base_channels == 64
    assert load(backbone="fake", model="large").head.base_channels == 64
    assert load(backbone="fake").head.base_channels == 16
    path = write("backbone: fake\nhead: {base_channels: 24}\nsteps: 7\n")
    config = load(path)
    assert (config.head.base_channels, config.steps) == (24, 7)
    config = load(path, head__base_channels=32, seed=5)
    assert (config.head.base_channels, config.steps, config.seed) == (32, 7, 5)
    assert config.head.enlarge_to == 64


def test_the_file_may_name_the_model_whose_defaults_count(write: Any) -> None:
    path = write("backbone: fake\nmodel: large\n")
    assert load(path).steps == RunConfig(backbone="fake").steps
    assert load(path, model="tiny").steps == 300


def test_files_may_be_empty_dotted_or_short(write: Any) -> None:
    assert load(write("# nothing\n"), backbone="fake").steps == 300
    config = load(
        write("backbone: fake\nhead.pool: max\nrefiner_options:\ndata: shapes@val\noutput: ~/x\n")
    )
    assert config.head.pool == "max"
    assert config.refiner_options == load(backbone="fake").refiner_options
    assert config.data == ["shapes@val"]
    assert config.output == Path.home() / "x"


def test_all_problems_are_reported_at_once_with_their_places(write: Any) -> None:
    path = write(
        "backbone: fake\nbath_size: 4\nsteps: 0\npool: max\nhead:\n  pol: max\n"
        "  base_channels: yes\nsam: {box: true}\noptions: {min_pixel: 3}\n"
        "refiner_options:\n  half: 7\n"
    )
    with pytest.raises(ConfigError) as caught:
        load(path, seed=-1, options__min_pixels=0, learning_rate=float("inf"))
    integer = "should be a valid integer, unable to parse string as an integer"
    options = "Did you mean 'options.min_pixels'?"
    boolean = "should be a valid boolean, unable to interpret input"
    assert caught.value.asked == "11 problems in the configuration."
    assert sorted(problems(caught)) == sorted(
        [
            f"  {path}, line 2: bath_size: unknown setting. Did you mean 'batch_size'?",
            f"  {path}, line 3: steps: should be greater than or equal to 1, not 0.",
            f"  {path}, line 4: pool: unknown setting. Did you mean 'head.pool'?",
            f"  {path}, line 6: head.pol: unknown setting. Did you mean 'head.pool'?",
            f"  {path}, line 7: head.base_channels: {integer}, not 'yes'.",
            f"  {path}, line 8: sam: unknown setting. Did you mean 'refiner_options'?",
            f"  {path}, line 11: refiner_options.half: {boolean}, not 7.",
            f"  {path}, line 9: options.min_pixel: unknown setting. {options}",
            "  --options min_pixels: should be greater than or equal to 1, not 0.",
            "  --seed: should be greater than or equal to 0, not -1.",
            "  --learning-rate: should be a finite number, not inf.",
        ]
    )
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("given", ["many", -1, 1.5, True, None])
def test_workers_are_a_number_or_auto(given: Any) -> None:
    assert [load(backbone="fake", workers=good).workers for good in ("auto", 0, 4)] == [
        "auto",
        0,
        4,
    ]
    with pytest.raises(ConfigError) as caught:
        load(backbone="fake", workers=given)
    assert problems(caught) == [f"  --workers: must be auto or an integer >= 0, not {given!r}."]


def test_a_missing_backbone_says_how_to_give_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load()
    assert str(caught.value) == (
        "One problem in the configuration.\n"
        "  backbone: missing. Give it with --backbone.\n"
        "`flmm train --help` lists every setting."
    )


def test_a_plugins_wrong_default_is_the_plugins(write: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load(backbone="fake", model="broken")
    (problem,) = problems(caught)
    assert problem == (
        "  defaults of model 'broken': head.base_chanels: unknown setting."
        " Did you mean 'head.base_channels'?"
    )


def test_unknown_names_are_the_registrys_errors() -> None:
    with pytest.raises(UsageError, match="Unknown backbone 'qwenn'"):
        load(backbone="qwenn", steps=0)
    with pytest.raises(UsageError, match=r"Unknown refiner 'sma'\. Did you mean 'sam'\?"):
        load(backbone="fake", refiner="sma:tiny", steps=0)


# --- refiners ----------------------------------------------------------------------------------


def sam(**given: Any) -> dict[str, Any]:
    """What a configuration with these settings says of SAM, where it is not the default."""
    config = load(backbone="fake", **given)
    defaults = SamOptions().model_dump()
    assert config.refiner == "sam"
    assert config.refiner_options.keys() == defaults.keys()
    return {key: value for key, value in config.refiner_options.items() if value != defaults[key]}


def test_a_refiner_is_named_with_or_without_its_main_option() -> None:
    assert sam() == sam(refiner="sam") == sam(refiner="sam:tiny") == {}
    large = {"size": "vit_l"}
    assert sam(refiner="sam:vit_l") == sam(refiner_options__size="vit_l") == large
    assert sam(refiner="sam:vit_l", refiner_options=large) == large
    assert load(backbone="fake", refiner="none").refiner_options == {}
    blur = load(backbone="fake", refiner="blur:7")
    assert (blur.refiner, blur.refiner_options) == ("blur", {"radius": 7})


@pytest.mark.parametrize("off", ["off", "false", "no", "0"])
def test_booleans_are_written_as_people_do(off: str) -> None:
    assert sam(refiner_options__text=parse_scalar(off)) == {"text": False}


def test_a_later_source_overrides_options_of_the_same_refiner_only(write: Any) -> None:
    path = write("refiner: sam:vit_b\nrefiner_options: {box: false}\n")
    assert sam(path=path) == {"size": "vit_b", "box": False}
    assert sam(path=path, refiner="sam:vit_l") == {"size": "vit_l", "box": False}
    assert sam(path=path, refiner="sam", refiner_options__box=True) == {"size": "vit_b"}
    assert load(path, backbone="fake", refiner="blur").refiner_options == {"radius": 3}
    assert sam(path=write("refiner: 3\n"), refiner="sam:vit_l") == {"size": "vit_l"}


def test_a_models_default_counts_only_for_refiners_that_have_it() -> None:
    assert sam(model="toy") == {"text": False}
    assert sam(model="toy", refiner="sam:vit_b", refiner_options__text="on") == {"size": "vit_b"}
    assert load(backbone="fake", model="toy", refiner="blur").refiner_options == {"radius": 3}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"refiner": "sam:vit-b"},
            "--refiner: should be 'tiny', 'vit_b', 'vit_l' or 'vit_h', not 'vit-b'.",
        ),
        (
            {"refiner": "sam:tiny", "refiner_options.size": "vit_b"},
            "--refiner-option size: contradicts --refiner 'sam:tiny'.",
        ),
        ({"refiner": "none:3"}, "--refiner: refiner 'none' takes no value, not 'none:3'."),
        ({"refiner": 3}, "--refiner: should be a valid string, not 3."),
        (
            {"refiner_options.tex": 1},
            "--refiner-option tex: unknown setting. Did you mean 'refiner_options.text'?",
        ),
        (
            dict.fromkeys(("refiner_options.mask", "refiner_options.box"), "off")
            | {"model": "toy"},
            "refiner_options: SAM needs at least one kind of prompt: mask, box or text.",
        ),
        ({"sam.text": True}, "--sam-text: unknown setting. Did you mean 'refiner_options'?"),
    ],
)
def test_problems_with_refiners_say_where_they_were_written(
    given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"backbone": "fake", **given}, find, find_refiner)
    assert problems(caught) == [f"  {problem}"]


def test_options_are_resolved_by_the_plugins_own_model() -> None:
    assert load(backbone="fake").options == {"min_pixels": None}
    assert load(backbone="fake", options__min_pixels="50").options == {"min_pixels": 50}


def test_the_resolved_configuration_is_read_back_unchanged(write: Any) -> None:
    config = load(
        backbone="fake",
        prompt="no: 'quotes', 1e-4 # or \n lines",
        learning_rate=3e-7,
        refiner_weights=Path("somewhere/sam.pth"),
        data=["refcoco:/a b@val", "true"],
        options__min_pixels=3,
        refiner="sam:vit_b",
        refiner_options__box=False,
    )
    assert load(write(config.to_yaml())) == config


def test_the_run_folder_is_named_after_backbone_and_time() -> None:
    folder = load(backbone="fake").output
    assert folder.parent == Path("runs")
    assert folder.name.startswith("fake-20")


def test_a_run_on_other_data_is_not_measured_on_drawn_scenes() -> None:
    config = load(backbone="fake")
    assert (config.val_data, config.eval_data) == (["shapes@val"], ["shapes@test", "shapes@hard"])
    config = load(backbone="fake", data=["shapes@train", "refcoco:/data@train"])
    assert (config.val_data, config.eval_data) == ([], [])
    assert load(backbone="fake", data=["jsonl:/a"], eval_data=["jsonl:/b"]).eval_data == [
        "jsonl:/b"
    ]


def test_every_setting_has_a_line_of_help_and_its_own_option() -> None:
    found = list(settings())
    for setting in found:
        assert setting.help.endswith("."), setting.key
        assert "\n" not in setting.help
    assert len({option_name(setting.key) for setting in found}) == len(found)
    assert option_name("head.base_channels") == "--head-base-channels"
