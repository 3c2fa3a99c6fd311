"""The site, built from the same pages that GitHub shows.

pip install -e ".[docs]"
sphinx-build -W --keep-going -n docs docs/_build
"""

from __future__ import annotations

import re
from typing import Any

import click

import flmm_core
from flmm_core.cli import COMMANDS, flmm

# Before the extensions do it: they import with TYPE_CHECKING on, and pydantic's models fail then.
for name in flmm_core.__all__:
    getattr(flmm_core, name)
for name in COMMANDS:
    flmm.get_command(click.Context(flmm), name)

project = "flmm"
author = "the authors of flmm"
project_copyright = "the authors of flmm, Apache-2.0"
release = version = flmm_core.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
# Types of others, which would take the network to resolve, and of ours that no page describes.
nitpick_ignore_regex = [
    ("py:.*", r"(collections|importlib|os|pathlib|numpy|PIL|torch|pydantic|click|fastapi)\..*"),
    ("py:.*", r"flmm_core\.(?!\w+$).*"),
    ("py:.*", r"(tuple|Mapping|collections\.abc\.Mapping)\[.*|[A-Z]\w+|Image\.Image"),
]

myst_heading_anchors = 4  # as on GitHub
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
default_role = "literal"
napoleon_attr_annotations = False
python_maximum_signature_line_length = 88

# `sphinx-build -b linkcheck` asks the addresses in blocks of code, too. It is not a part of
# .ci/run, whose machine may have no network: there every link is broken.
linkcheck_ignore = [
    r"https?://(127\.0\.0\.1|localhost|0\.0\.0\.0)\b",
    r"https?://[\w.-]*\bexample\b",
]
linkcheck_retries = 3
linkcheck_timeout = 30
ADDRESS = re.compile(r"https?://[^\s<>()\[\]\"'`,;{}]+[^\s<>()\[\]\"'`,;{}.:]")

html_theme = "furo"
html_title = f"flmm {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False

ELSEWHERE = {"../recipes/README.md": "recipes.md", "../CHANGELOG.md": "changelog.md"}
"""Files outside of docs/ that are pages of the site, too."""


def _link_pages(app: Any, page: str, source: list[str]) -> None:
    """Links that lead out of docs/ on GitHub lead to pages here."""
    for path, other in ELSEWHERE.items():
        source[0] = source[0].replace(f"]({path}", f"]({other}")


def _link_addresses(app: Any, page: str, source: list[str]) -> None:
    """For `linkcheck`, each address of a page is a link: those in blocks of code are none."""
    if app.builder.name == "linkcheck":
        found = sorted(set(ADDRESS.findall(source[0])))
        source[0] += "\n\n" + "\n".join(f"<{address}>" for address in found) + "\n"


def _plain(app: Any, *args: Any) -> None:
    """Docstrings and help texts have the backticks of Markdown, and no other markup."""
    lines = args[-1]
    if args[0] in ("attribute", "property"):  # napoleon takes its first line for "type: text"
        lines.insert(0, "\\ ")
    for place, line in enumerate(lines):
        parts = re.split(r"(``.*?``|`[^`]+`)", line)
        for n, part in enumerate(parts):
            if n % 2:
                parts[n] = f"``{part.strip('`')}``\\ "
            else:
                parts[n] = re.sub(r"(?<!\\)([*|@])|(?<=\w)_(?!\w)", r"\\\g<0>", part)
        lines[place] = "".join(parts)


def setup(app: Any) -> None:
    app.connect("source-read", _link_pages)
    app.connect("source-read", _link_addresses)
    app.connect("autodoc-process-docstring", _plain, priority=100)  # before napoleon
    for what in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{what}", _plain)
