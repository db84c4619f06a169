"""What a worker does whose environment is not all there yet."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass.messages import FileName, FileRef
from windlass.worker import environment


def test_what_the_script_says_is_taken_once() -> None:
    """A worker that a call starts must not take it for its own. Paths may have blanks."""
    environ = {"WINDLASS_REST": "u3-a b3-b 17 /shared/my env.tar.gz", "PATH": "/bin"}
    assert (said := environment.take(environ)) is not None
    assert (said.unpacked, said.path) == (FileRef(FileName("u3-a"), -1, "my env", "forever"), "/shared/my env.tar.gz")
    assert said.packed == FileRef(FileName("b3-b"), 17, "my env.tar.gz", "forever")
    assert environ == {"PATH": "/bin"}
    assert environment.take(environ) is None


def test_processes_are_in_one_environment() -> None:
    """Its programs come first, and those of the boot are not found any more."""
    environ = {"WINDLASS_ENVIRONMENT": "/boot", "PATH": "/boot/bin:/usr/bin"}
    environment.enter(environ, "/rest/bin/python3")
    assert environ == {"WINDLASS_ENVIRONMENT": "/rest", "PATH": "/rest/bin:/usr/bin"}
    environ = {"PATH": "/usr/bin"}
    environment.enter(environ, "/rest/bin/python3")
    assert environ == {"WINDLASS_ENVIRONMENT": "/rest", "PATH": "/rest/bin:/usr/bin"}


@pytest.fixture
def boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This interpreter's prefix, with a package that lacks a module."""
    (tmp_path / "boot/lib/halved").mkdir(parents=True)
    (tmp_path / "boot/lib/halved/__init__.py").touch()
    (tmp_path / "rest/lib/halved").mkdir(parents=True)
    (tmp_path / "rest/lib/halved/other.py").write_text("VALUE = 5")
    (tmp_path / "rest/lib/whole_other.py").write_text("VALUE = 6")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "boot"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "boot/lib")])
    finders = list(sys.meta_path)
    yield tmp_path
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.startswith(("halved", "whole_other"))]:
        del sys.modules[name]


def test_modules_that_the_boot_lacks_are_found_in_the_rest(boot: Path) -> None:
    """Of packages too that the boot has; a name that neither has is still none."""
    assert importlib.import_module("halved").__file__ == str(boot / "boot/lib/halved/__init__.py")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("halved.other")
    for _ in range(2):
        environment.complete(str(boot / "rest"))
    assert importlib.import_module("halved.other").VALUE == 5
    assert importlib.import_module("whole_other").VALUE == 6
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("halved.neither")
