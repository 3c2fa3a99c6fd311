"""The files of a new package, and that nothing is overwritten by them."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path

from flmm_core.errors import UsageError, one_line
from flmm_core.files import check_writable, whole_folder, write_text
from flmm_core.plugins import load_backbones
from flmm_core.scaffold.attention import image_attends_to_later
from flmm_core.scaffold.facts import ModelFacts
from flmm_core.scaffold.toy import build_toy, write_toy
from flmm_core.spec import API_VERSION

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{family} for flmm."
requires-python = ">=3.11"
dependencies = ["flmm"]

[project.optional-dependencies]
test = ["pytest>=8.3"]

[project.entry-points.flmm]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
packages = ["{module}"]

[tool.pytest.ini_options]
pythonpath = ["."]
"""

SPEC = '''\
"""{family} as a plugin for flmm: facts only. Import neither torch nor transformers here."""

from flmm_core import BackboneSpec, ModelInfo, {more}hookimpl

API_VERSION = {api}  # of flmm's plugin API, for which this is written

SPEC = BackboneSpec(
    name="{name}",
    target="{module}.backbone:{cls}",
    summary={summary_},
    models={{
        "tiny": ModelInfo("{module}:tiny", "Apache-2.0", "random weights, for the tests"),
{models}    }},
    capabilities=frozenset({{"chat"}}),
{requirements})


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
'''

BACKBONE = '''\
"""transformers loads the model, and where its image tokens are is measured."""

from flmm_core import Backbone


class {cls}(Backbone):
    model_types = ({model_type_},)
    processor_types = ({processor_},)
    image_token = {image_token_}
'''

TEST = '''\
"""flmm's conformance kit, and what was measured when this package was written."""

from flmm_core import Backbone
from flmm_core.testing.suite import BackboneConformance

from {module} import SPEC

VIEWS = {{
{views}}}
"""By image size, each view's rows and columns of image tokens."""


class Test{camel}(BackboneConformance):
    spec = SPEC

    def test_the_geometry_is_the_one_that_was_measured(self, backbone: Backbone) -> None:
        assert backbone.view_names == {view_names_}
        assert backbone.measured is not None
        for size, views in backbone.measured.facts().items():
            assert {{name: at[:2] for name, at in views.items()}} == VIEWS[size]
'''

README = """\
# {family} for flmm

Written by `flmm backbones new {name}` for the model `{source}`:

| fact | found |
|---|---|
| `model_type` | `{model_type}` |
| processor | `{processor}` |
| image token | `{image_token}` |
| views | {view_list} |
| image tokens attend to later ones | {attends} |

```sh
pip install -e ".[test]"
pytest
flmm backbones check {name}
flmm train --backbone {name} --model {source} --data ...
```

`{module}/tiny` is the same model at toy width with random weights, for the tests.

Left to do by hand:

* In `{module}/__init__.py`: the summary, the license of the weights, more models.
* A check that fails says what the family does otherwise than most; `flmm_core.Requirements`
  declares it (`requirements=` of the spec).
* `{module}/backbone.py` may override any method of `Backbone`.
"""


def check_name(name: str, output: Path) -> None:
    """`UsageError` unless a backbone of this name can be written to this folder."""
    asked = f"A backbone cannot be named '{name}'."
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        found = "A name consists of a-z, 0-9 and _, and begins with a letter."
        raise UsageError(asked, found=found, repair="Give another name.")
    backbones = load_backbones()
    if name in backbones.specs:
        plugin = backbones.plugins[name].label
        found = f"There is one already, from {plugin}."
        raise UsageError(asked, found=found, repair="Give another name, or use that one.")
    if importlib.util.find_spec(module := module_of(name)) is not None:
        found = f"A package '{module}' is installed."
        raise UsageError(asked, found=found, repair="Give another name, or uninstall it.")
    if output.exists() or output.is_symlink():
        raise UsageError(
            f"The folder '{output}' exists.",
            found="A new package overwrites nothing.",
            repair="Give another --output, or remove it.",
        )
    check_writable(output)


def module_of(name: str) -> str:
    """The package to import for a backbone."""
    return f"flmm_{name}"


def write_package(name: str, source: str, facts: ModelFacts, output: Path) -> None:
    """Write the package of a backbone, whole or not at all.

    Args:
        name: Of the backbone; checked.
        source: The model, as it was given.
        facts: What is known of it.
        output: A folder that does not exist.
    """
    module = module_of(name)
    camel = "".join(part.capitalize() for part in name.split("_"))
    shown = ", ".join(facts.view_names)
    vocabulary = len(facts.processor.tokenizer)
    toy = build_toy(type(facts.vlm), facts.vlm.config, vocabulary)
    try:
        attends = image_attends_to_later(toy, facts.processor, facts.image_token)
        attends_told = "yes" if attends else "no"
    except Exception as error:  # an unknown model fails in its own way; its tests will say so, too
        attends, attends_told = False, f"not measured: {one_line(error)}"
    models = f'        "default": ModelInfo({_quoted(source)}, "see its card"),\n'

    values = {
        "name": name,
        "module": module,
        "distribution": module.replace("_", "-"),
        "camel": camel,
        "cls": f"{camel}Backbone",
        "family": facts.model_type,
        "api": str(API_VERSION),
        "summary": f"{facts.model_type}: {_count(len(facts.view_names))} ({shown}), measured",
        "models": models if _is_hub_id(source) else "",
        "model_type": facts.model_type,
        "processor": type(facts.processor).__name__,
        "image_token": facts.image_token,
        "view_list": ", ".join(f"`{view}`" for view in facts.view_names),
        "views": "".join(map(_grids, facts.views.items())),
        "source": source,
        "attends": attends_told,
        "more": "Requirements, " if attends else "",
        "requirements": "    requirements=Requirements(bidirectional_image=True),\n" * attends,
    }
    values |= {f"{key}_": _quoted(text) for key, text in values.items()}
    values["view_names_"] = f"({', '.join(map(_quoted, facts.view_names))},)"
    if len(facts.view_names) > 1:
        values["view_names_"] = values["view_names_"].replace(",)", ")")
    files = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"{module}/__init__.py": SPEC,
        f"{module}/backbone.py": BACKBONE,
        "tests/test_conformance.py": TEST,
    }
    with whole_folder(output) as folder:
        for path, template in files.items():
            write_text(folder / path, template.format(**values))
        write_toy(toy, facts.processor, folder / module / "tiny")


def _quoted(text: str) -> str:
    """As Python source."""
    return json.dumps(text, ensure_ascii=False)


def _grids(found: tuple[str, Mapping[str, tuple[float, ...]]]) -> str:
    """A line of the dictionary of grids."""
    size, views = found
    grids = (f"{_quoted(name)}: ({at[0]:g}, {at[1]:g})" for name, at in views.items())
    return f"    {_quoted(size)}: {{{', '.join(grids)}}},\n"


def _count(views: int) -> str:
    return "one view" if views == 1 else f"{views} views"


def _is_hub_id(source: str) -> bool:
    from flmm_core.pipeline.hub import HUB_ID

    return HUB_ID.fullmatch(source) is not None and not Path(source).exists()
