"""Who imports what: rules that keep `flmm --help` fast and the core free of model families."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import flmm_core

ROOT = Path(__file__).parents[1]
CORE = ROOT / "flmm_core"
HEAVY = {"torch", "torchvision", "transformers", "segment_anything", "accelerate"}
LIGHT = [
    *(CORE / f"{name}.py" for name in ("__init__", "__main__", "errors", "segment", "spec")),
    *(CORE / f"{name}.py" for name in ("hookspecs", "plugins", "pipeline/refiners/__init__")),
    *sorted((CORE / "config").glob("*.py")),
    *sorted((CORE / "cli").glob("*.py")),
]
FAMILIES = re.compile("qwen|deepseek|llava|vicuna|mistral|siglip|vlchat|internvl", re.IGNORECASE)
PLUGINS = sorted(ROOT.glob("plugins/*/flmm_*/**/*.py"))


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """Modules that importing a module imports: neither in functions nor for type checkers."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", LIGHT, ids=name_of)
def test_no_torch_at_module_level_above_the_pipeline(path: Path) -> None:
    found = {module.split(".")[0] for module in imported_at_once(ast.parse(path.read_text()))}
    assert not found & (HEAVY | {"numpy", "PIL", "pycocotools", "huggingface_hub"})


@pytest.mark.parametrize(
    "plugin", sorted(ROOT.glob("plugins/*/flmm_*/__init__.py")), ids=lambda path: path.parent.name
)
def test_what_a_plugin_declares_needs_no_torch(plugin: Path) -> None:
    found = {module.split(".")[0] for module in imported_at_once(ast.parse(plugin.read_text()))}
    assert not found & HEAVY


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=name_of)
def test_the_core_names_no_family_of_models(path: Path) -> None:
    assert FAMILIES.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PLUGINS, ids=name_of)
def test_plugins_use_only_what_is_public(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("flmm_core.") for alias in node.names)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flmm_core"):
            assert node.module in ("flmm_core", "flmm_core.errors", "flmm_core.testing")
            if node.module == "flmm_core":
                assert {alias.name for alias in node.names} <= set(flmm_core.__all__)


def test_the_layers_are_kept() -> None:
    # In a process of its own: it switches off the loggers that there are.
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_import_cycle_anywhere() -> None:
    plugins = ("flmm_qwen", "flmm_deepseek_vl", "flmm_llava_next")
    graph = grimp.build_graph(
        *("flmm_core", *plugins, "performance", "recipes", "tests"),
        exclude_type_checking_imports=True,
        cache_dir=None,
    )
    imported = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert {"performance.alternate", "recipes.twins", "tests.flows"} < imported.keys()
    TopologicalSorter(imported).prepare()  # raises CycleError, with the cycle


@pytest.mark.parametrize("name", flmm_core.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(flmm_core, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'flmm_core' has no attribute 'Nothing'"):
        flmm_core.Nothing  # noqa: B018


@pytest.mark.parametrize(
    "statement",
    [
        "import flmm_core",
        "from flmm_core import BackboneSpec, ModelInfo, Segment, FlmmError, hookimpl",
        "import flmm_core.config, flmm_core.plugins, flmm_core.segment",
        "from flmm_core.cli import main; main(['--help'])",
        "from flmm_core.cli import main; main(['backbones'])",
        "from flmm_core.cli import main; main(['backbones', 'show', 'qwen', '--json'])",
        "from flmm_core.cli import main; main(['refiners', 'show', 'sam', '--json'])",
        "from flmm_core.cli import main; main(['finders', 'show', 'rules', '--json'])",
        "from flmm_core.pipeline.conversation.phrases import choose; choose.open_finder('rules')",
        "from flmm_core.cli import main; main(['train', '--help'])",
        "from flmm_core.cli import main; main(['ground', '--help'])",
        "from flmm_core.cli import main; main(['train', '--backbone', 'qwen', '--print-config'])",
    ],
)
def test_neither_torch_nor_numpy_is_loaded_by(statement: str) -> None:
    check = f"import sys; {statement}; print(sorted({HEAVY | {'numpy'}!r} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
