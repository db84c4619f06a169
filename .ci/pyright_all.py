"""Runs pyright over the whole tree and checks that it saw all of it.

Pyright walks no links and says nothing about a folder that it was not told of, so "0 errors" alone proves little: the number of files
that it analysed must be the number of Python files there are.  Exit status 1 for errors or for files it did not see.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Never part of the tree: what tools and builds leave in it.
SKIPPED = {"build", "dist", "__pycache__"}


def python_files() -> list[Path]:
    """All Python files of the tree, each once: by its place in the root folders, not by the links to them."""
    found: list[Path] = []
    folders = [ROOT]
    while folders:
        for entry in sorted(folders.pop().iterdir()):
            hidden = entry.name.startswith(".")  # pyright leaves these out whatever it is told
            if entry.is_symlink() or hidden or entry.name in SKIPPED or entry.name.endswith(".egg-info"):
                continue
            if entry.is_dir():
                folders.append(entry)
            elif entry.suffix in {".py", ".pyi"}:
                found.append(entry)
    return found


def main() -> int:
    """Print what pyright found, in its own words."""
    ran = subprocess.run([sys.executable, "-m", "pyright", "--outputjson"], cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(ran.stdout)
    except json.JSONDecodeError:
        print(ran.stdout + ran.stderr, file=sys.stderr)
        return 1
    errors = 0
    for finding in answer["generalDiagnostics"]:
        errors += finding["severity"] == "error"
        start = finding.get("range", {}).get("start", {"line": 0, "character": 0})
        place = f"{Path(finding['file']).relative_to(ROOT)}:{start['line'] + 1}:{start['character'] + 1}"
        print(f"{place}: {finding['severity']}: {finding['message']} ({finding.get('rule', '')})")
    seen, there = answer["summary"]["filesAnalyzed"], len(python_files())
    print(f"pyright: {seen} files, {errors} errors")
    if seen != there:
        print(f"pyright analysed {seen} files but the tree has {there}: name every folder in tool.pyright.include", file=sys.stderr)
    return 1 if errors or seen != there else 0


if __name__ == "__main__":
    sys.exit(main())
