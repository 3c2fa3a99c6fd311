"""No block of code of any page escapes: each is run, parsed, or listed with the reason."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml

from performance.__main__ import MEASUREMENTS
from tests.docs.pages import ROOT, SHELL, Block, commands, every_block, inline_code, pages
from tests.docs.stand_ins import STARTERS, arguments, command_of, options, parse

DIRECTIVES = ("{toctree}", "{eval-rst}", "{include}")
"""Built by Sphinx, which refuses them if they are wrong."""
PARSED = ("json", "yaml", "toml")
KINDS = (*SHELL, *PARSED, *DIRECTIVES, "python", "text", "indented")
OTHERS = {
    "cat": "shows a file", "cd": "a folder of the reader's", "cmp": "compares two files",
    "codespell": "development", "curl": "fetches from the network, or asks a server",
    "export": "the shell's own", "find": "lists files", "git": "development",
    "hf": "asks the hub", "lint-imports": "development", "ls": "lists files",
    "mkdir": "the reader's folders", "mypy": "development", "ruff": "development",
    "sphinx-build": "tests/docs/test_site.py does it", "unzip": "needs the download before it",
    ".": "the shell's own", "echo": "the shell's own", "for": "the shell's own",
    "done": "the shell's own",
}  # fmt: skip
"""Programs of others, which no test starts, with the reason."""
PLACEHOLDER = re.compile(r"\.\.\.|\bNAME\b|\[")


def shell_commands() -> list[tuple[Block, list[str]]]:
    return [(block, words) for block in every_block(*SHELL) for words in commands(block)]


def test_every_block_is_of_a_known_kind() -> None:
    counted = Counter(block.language for block in every_block())
    assert set(counted) <= set(KINDS)
    assert counted["python"] > 12
    assert sum(counted[name] for name in SHELL) > 40


def test_output_is_no_command_that_nobody_runs() -> None:
    for block in every_block("text", "indented"):
        for line in block.text.splitlines():
            assert line.split()[:1] not in ([name] for name in (*STARTERS, "pip", "$")), block.place


@pytest.mark.parametrize("block", every_block(*SHELL), ids=lambda block: block.place)
def test_shell_blocks_are_shell(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, ""), block.place


def test_every_command_is_one() -> None:
    """flmm's are parsed by click: options, types, choices, numbers of arguments."""
    seen: Counter[str] = Counter()
    for block, words in shell_commands():
        given = arguments(words)
        if given is not None:
            try:
                parse(given)
            except Exception as error:
                raise AssertionError(f"{block.place}: {words}: {error}") from error
            seen["flmm"] += 1
        elif words[0] in ("pip", "pytest", "python", "python3"):
            _known_program(block, words)
            seen[words[0]] += 1
        elif "=" not in words[0]:  # no assignment
            assert words[0] in OTHERS, f"{block.place}: {words}"
    assert seen["flmm"] > 60
    assert seen["pip"] > 4


def _known_program(block: Block, words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = " ".join(words)
    for extras in re.findall(r"(?:\bflmm|\.)\[([\w,]+)\]", text) if words[0] == "pip" else ():
        own = project["optional-dependencies"]
        home = ROOT / Path(block.page).parent / "pyproject.toml"
        if home.is_file():
            own = own | tomllib.loads(home.read_text())["project"]["optional-dependencies"]
        assert set(extras.split(",")) <= set(own), block.place
    if words[0] == "pytest":
        for path in words[1:]:
            assert path.startswith("-") or path.isdigit() or (ROOT / path).exists(), block.place
    if words[0].startswith("python"):
        if words[1] != "-m":
            places = (Path(block.page).parent, Path("examples/minimal_backbone"))
            assert any((ROOT / place / words[1]).is_file() for place in places), block.place
        elif words[2] == "performance":
            assert set(words[3:4]) <= {*MEASUREMENTS, "gpu"}, block.place
        elif words[2].startswith(("recipes", "tests.")):
            assert importlib.util.find_spec(words[2]), block.place
        else:
            assert words[2] in ("venv", "spacy"), block.place


def test_every_command_in_the_text_is_one() -> None:
    """`flmm ...` within a sentence may have placeholders; its command and options exist."""
    count = 0
    for page in pages():
        for text in inline_code(page):
            if not text.startswith(("flmm ", "FLMM_", "python -m ")):
                continue
            words = text.replace("|", " ").split()
            if words[0].startswith("FLMM_") and "pytest" in words:
                path = words[words.index("pytest") + 1]
                assert (ROOT / path).exists(), (page, text)
                name = words[0].partition("=")[0]
                assert name in (ROOT / path).read_text(), (page, text)
            if words[0] == "python" and words[2].startswith(("recipes", "performance")):
                assert importlib.util.find_spec(words[2]), (page, text)
            if words[0] != "flmm" or len(words) < 2 or "," in text:
                continue
            command, _, rest = command_of(words[1:])
            given = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert given <= options(command), (page, text)
            count += 1
    assert count > 80


@pytest.mark.parametrize("block", every_block(*PARSED), ids=lambda block: block.place)
def test_data_is_read_by_its_parser(block: Block) -> None:
    if block.language == "json":
        try:
            json.loads(block.text)
        except json.JSONDecodeError:  # JSON lines
            for line in block.text.splitlines():
                json.loads(line)
    elif block.language == "yaml":
        yaml.safe_load(block.text)
    else:
        tomllib.loads(block.text)
