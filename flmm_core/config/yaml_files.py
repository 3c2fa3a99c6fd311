"""Read and write YAML 1.2 scalars without duplicate keys.

PyYAML alone reads `1e-4` as text, `no` as False and `12:30` as 750, and silently keeps the last
of two equal keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flmm_core.errors import ConfigError

DEEPEST = 50
"""Levels of lists and mappings in a YAML file."""

_PLAIN_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2 scalars; an alias is an error, as it hides where a value is.

    So is nesting beyond `DEEPEST`, which would take more time and stack than there is.
    """

    depth = 0
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=mark)
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(node.value)
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _tag, _pattern, _first in _PLAIN_SCALARS:
    for _letter in [*_first, *([""] if _tag == "null" else [])]:
        _Loader.yaml_implicit_resolvers.setdefault(_letter, []).append(
            (f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"))
        )


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as another type."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        letter: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(letter, []),
            *_Loader.yaml_implicit_resolvers.get(letter, []),
        ]
        for letter in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes some line breaks in single quotes, which turns them into spaces.
        style = None if data.splitlines() in ([], [data]) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def parse_scalar(text: str) -> Any:
    """The value of a plain YAML scalar: "1e-4" is a number, "true" a boolean, "no" a string."""
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return loader.construct_object(yaml.ScalarNode(tag, text))
    finally:
        loader.dispose()


def parse_yaml(text: str) -> Any:
    """The content of YAML text of any form; yaml.YAMLError if it is none, or has an alias."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(content: Any) -> str:
    """YAML text that `read_yaml` reads back to the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The nested keys of a file, and the line (from 1) of each dotted key.

    Raises:
        ConfigError: The file cannot be read, is not YAML or not a mapping, or repeats a key.
    """
    asked = f"The configuration file '{path}' cannot be used."
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(asked, found=f"It cannot be read: {reason}.") from error
    try:
        root = loader.get_single_node()
        if root is None:
            return {}, {}
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(asked, found="It must be a mapping, lines of `key: value`.")
        lines: dict[str, int] = {}
        repeated = list(_walk(root, "", lines))
        if repeated:
            raise ConfigError(asked, found="\n".join(repeated), repair="Keep one of each.")
        return loader.construct_document(root), lines
    except yaml.MarkedYAMLError as error:
        line = f"Line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(asked, found=f"{line}{error.problem}.") from error
    finally:
        loader.dispose()


def _walk(node: yaml.MappingNode, prefix: str, lines: dict[str, int]) -> Iterator[str]:
    """Fill in the line of each key; yields a message for each repeated key."""
    for key_node, value_node in node.value:
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        if key in lines:
            yield f"Line {line}: the key '{key}' is already on line {lines[key]}."
        lines.setdefault(key, line)
        if isinstance(value_node, yaml.MappingNode):
            yield from _walk(value_node, f"{key}.", lines)
