"""A browser for the tests of the page, and proof that nothing stays behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from browser import Browser

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of benchmarks that tests use can be imported."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


@pytest.fixture
def open_browser(on_path: None, nothing_left_running: None) -> Iterator[Callable[..., Browser]]:
    """Starts a headless Chromium, which is ended after the test."""
    from browser import Browser, chromium

    if not chromium():
        text = "the page is not tested in a browser: apt-get install chromium"
        pytest.fail(text) if os.environ.get("CI") == "true" else pytest.skip(text)
    with ExitStack() as browsers:

        def start(*words: Any, **options: Any) -> Browser:
            return browsers.enter_context(Browser(*words, **options))

        yield start
