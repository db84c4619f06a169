"""The public API as type checkers see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_public_api_has_the_types_that_it_should() -> None:
    """Each ``assert_type`` in ``api.py`` holds, and each line marked as an error is one."""
    root = Path(__file__).parents[2]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", Path(__file__).with_name("api.py")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
