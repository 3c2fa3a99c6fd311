"""The project's Markdown pages: their blocks of code, the commands in them, links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PATTERNS = ("*.md", "docs/*.md", "plugins/*/README.md", "examples/*/README.md", "recipes/*.md",
            ".github/**/*.md")  # fmt: skip
SHELL = ("sh", "bash", "")
"""Languages of shell blocks. README.md leaves it out where .ci/run is not to run a block."""
COMMENT = re.compile(r"<!--\s*(.*?)\s*-->")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: Path of the page, from the root.
        number: Which of the page's blocks it is.
        line: Where it begins, counted from 1.
        language: What stands behind the fence; "indented" if it has none.
        file: The name of the file that it is, by a comment `<!-- file: NAME -->` before it.
    """

    page: str
    number: int
    line: int
    language: str
    text: str
    file: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def pages() -> tuple[str, ...]:
    """Paths from the root."""
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in found))


@cache
def tokens(page: str) -> tuple[Token, ...]:
    parser = MarkdownIt("commonmark").enable("table")
    text = re.sub(r"\A---\n.*?\n---\n", "", (ROOT / page).read_text(), flags=re.S)
    return tuple(parser.parse(text))


@cache
def blocks(page: str) -> tuple[Block, ...]:
    found: list[Block] = []
    file = ""
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            language = token.info.partition(" ")[0] if token.type == "fence" else "indented"
            line = (token.map or [0])[0] + 1
            found.append(Block(page, len(found), line, language, token.content, file))
        if token.type == "html_block":
            named = [text for text in COMMENT.findall(token.content) if text.startswith("file: ")]
            file = named[-1].removeprefix("file: ") if named else file
        else:
            file = ""
    return tuple(found)


def every_block(*languages: str) -> list[Block]:
    """All blocks, or those of some languages."""
    found = [block for page in pages() for block in blocks(page)]
    return [block for block in found if not languages or block.language in languages]


def inline_code(page: str) -> Iterator[str]:
    """`code` in the text and in tables."""
    for token in tokens(page):
        for child in token.children or ():
            if child.type == "code_inline":
                yield child.content


def commands(block: Block) -> list[list[str]]:
    """The words of each simple command of a shell block, without its comments.

    Pipes, `&&` and `;` separate commands; assignments and `do` before them are left out.
    """
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                while words and re.fullmatch(r"[A-Z_]+=\S*|do", words[0]):
                    words = words[1:]
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


def links(page: str) -> Iterator[str]:
    for token in tokens(page):
        for child in token.children or ():
            if child.type == "link_open":
                yield str(child.attrs["href"])
            elif child.type == "image":
                yield str(child.attrs["src"])


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    inside = False
    for token in tokens(page):
        if inside and token.type == "inline":
            text = "".join(
                child.content
                for child in token.children or ()
                if child.type in ("text", "code_inline")
            )
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = sum(
                re.fullmatch(rf"{re.escape(slug)}(-\d+)?", each) is not None for each in found
            )
            found.add(f"{slug}-{count}" if count else slug)
        inside = token.type == "heading_open"
    return found
