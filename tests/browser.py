"""The browser that tests drive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from recipes import browser as driven
from recipes.browser import Page as Page


def browser() -> str:
    """The path of a browser; without one the test is skipped, but fails where CI promises one."""
    found = driven.find_browser()
    if found is None and os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI has no browser: none of {', '.join(driven.NAMES)} is on the PATH.")
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(driven.NAMES)} is on the PATH")
    return found


@contextmanager
def opened() -> Iterator[Page]:
    """A browser with one tab, and with a profile of its own."""
    with driven.opened(browser()) as page:
        yield page
