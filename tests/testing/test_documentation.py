"""The examples of docs/testing.md, run as a reader would: each file in an empty folder, with pytest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from windlass.testing import missing_programs

pytest_plugins = ("pytester",)

PAGE = Path(__file__).parent.parent.parent / "docs" / "testing.md"


def files() -> dict[str, str]:
    """By name, which stands after the fence: blocks of one name are one file."""
    found: dict[str, str] = {}
    for name, code in re.findall(r"^```python *(.*?)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        found[name] = found.get(name, "") + code + "\n\n"
    return found


def test_the_page_has_examples_and_begins_with_one_to_paste() -> None:
    """Every block has a name, and the first is a whole test of about ten lines."""
    assert list(files()) == [
        "test_first.py",
        "analysis.py",
        "test_analysis.py",
        "test_faults.py",
        "test_marked.py",
        "test_waiting.py",
        "slurm",
    ]
    assert len([line for line in files()["test_first.py"].splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize(
    ("name", "tests"), [("test_first.py", 1), ("test_analysis.py", 2), ("test_faults.py", 8), ("test_marked.py", 2), ("test_waiting.py", 1)]
)
def test_an_example_passes(
    name: str, tests: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, nothing_left_running: None
) -> None:
    """With nothing beside it but the program that it tests, and but for the first without other plugins, which take long to load."""
    if name != "test_first.py":
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        pytester.plugins = ["windlass.testing.plugin"]
    for each, code in files().items():
        if each.endswith(".py"):
            (pytester.path / each).write_text(code)
    ran = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-p", "no:asyncio", name)
    ran.assert_outcomes(passed=tests)


def test_the_example_with_slurm_passes(pytester: pytest.Pytester, nothing_left_running: None) -> None:
    """On a real Slurm of its own."""
    if missing_programs():
        pytest.skip("Slurm's programs are not installed")
    (pytester.path / "test_slurm.py").write_text(files()["slurm"])
    pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-p", "no:asyncio").assert_outcomes(passed=1)
