"""Environments of peers: each system that Windlass is measured beside lives in a virtual environment of its own, made once, by pip alone.

Theory of operation: an environment is a folder below one cache folder, named after its first package; a file ``installed``
in it, which holds what was asked of pip, says that it is whole.  Another text there, or none, and it is made anew.  Windlass imports no
peer, and no peer Windlass.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def say(text: str) -> None:
    """A line for whoever watches."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def environments_folder() -> Path:
    """Where environments of peers are, unless the command line says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "windlass-peers"


def interpreter(packages: Sequence[str], environments: Path) -> str:
    """The Python of the environment of these packages (of pip), which is made where it is not there; "" where that fails."""
    folder = environments / packages[0]
    python, mark, wanted = folder / "bin" / "python", folder / "installed", " ".join(packages)
    if mark.exists() and mark.read_text() == wanted:
        return str(python)
    say(f"installing {wanted} from PyPI into {folder}")
    try:
        pip = make_environment(folder, python)
        run([*pip, "--disable-pip-version-check", "install", "--quiet", *packages])
    except (OSError, subprocess.CalledProcessError) as error:
        last = (getattr(error, "stderr", None) or "").strip().splitlines()[-1:]
        say(f"{wanted} cannot be installed and is left out: {' '.join([str(error), *last])}")
        return ""
    mark.write_text(wanted)
    return str(python)


def make_environment(folder: Path, python: Path) -> list[str]:
    """Make an empty environment; gives the words that run pip for it."""
    try:
        run([sys.executable, "-m", "venv", "--clear", str(folder)])
    except subprocess.CalledProcessError:  # Debian's Python has venv but not ensurepip
        run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)])
        return [sys.executable, "-m", "pip", "--python", str(python)]
    return [str(python), "-m", "pip"]


def run(words: Sequence[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


def version(python: str, package: str) -> str:
    """The version of a package in the environment of an interpreter."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
