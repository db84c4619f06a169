"""What the tests of fitting in share: one executor with two slots on this machine for each module of tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import windlass


@pytest.fixture(scope="module")
def pool(nothing_left_running_after_module: None) -> Iterator[windlass.Executor]:
    """Two slots in one pilot."""
    with windlass.Executor("local", cores=2, max_pilots=1) as pool:
        yield pool


@pytest.fixture
def run_program(nothing_left_running: None, tmp_path: Path) -> Callable[..., str]:
    """The output of a program, as a user's, which must succeed."""
    import subprocess

    def run(code: str, *words: str) -> str:
        script = tmp_path / "script.py"
        script.write_text(code)
        ran = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
        return ran.stdout

    return run
