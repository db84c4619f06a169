"""The dashboard's benchmark runs, in a real browser, and gives the figures that docs/performance.md names. Nothing here judges a speed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from browser import Browser

ROOT = Path(__file__).resolve().parents[2]


def test_the_benchmark_gives_its_figures(open_browser: Callable[..., Browser]) -> None:
    words = ["--json", "--rounds", "1", "--workers", "20", "--calls", "1000", "--updates", "2"]
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/dashboard.py"), *words], capture_output=True, text=True, check=False, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    (row,) = re.findall(r"^\| `python benchmarks/dashboard.py` \|.*$", (ROOT / "docs/performance.md").read_text(), re.MULTILINE)
    documented = set(re.findall(r"`(\w+)`", row.split("|")[3]))
    assert documented
    assert documented <= set(figures)
    assert all(figures[name] >= 0 for name in documented)
