"""Libraries with an environment of their own (``environment=``): an archive that goes to each node once, by the transfers of all files."""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import windlass
import windlass.taskvine as vine
from windlass import Factory, FunctionCall, LibraryFailed, Manager, UsageError


def where() -> tuple[str, str, str]:
    """Which Python this is, and from where it imports."""
    import numpy

    return sys.executable, str(numpy.__file__), windlass.__file__


def hold(gate: str, folder: str) -> str:
    import time

    Path(folder, str(os.getpid())).touch()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return sys.executable


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the workers of this test have their scratch, and what their node shares."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_a_library_runs_in_the_python_of_its_archive(packed_environment: Path, node: Path) -> None:
    """Interpreter, packages and Windlass are those of the archive, on the node's disk; another library has those of the worker."""
    with Manager() as manager, Factory(manager, "local", cores=1):
        manager.install_library("packed", where, imports=["numpy"], environment=packed_environment)
        manager.install_library("plain", where)
        places = manager.submit(FunctionCall("packed", "where")).result(100)
        assert all(place.startswith(str(node)) for place in places)
        assert not any(place.startswith(str(node)) for place in manager.submit(FunctionCall("plain", "where")).result(60))


def test_the_archive_is_read_once_and_unpacked_once_for_a_node(packed_environment: Path, node: Path) -> None:
    """Whatever the number of its workers, and for the next manager too."""
    gate, here = node / "gate", node / "here"
    here.mkdir()
    for number in range(2):
        with Manager() as manager, Factory(manager, "local", cores=1, max_pilots=3):
            manager.install_library("packed", hold, environment=packed_environment)
            futures = [manager.submit(FunctionCall("packed", "hold", str(gate), str(here))) for _ in range(3)]
            while len(list(here.iterdir())) < 3 * (number + 1):
                assert not any(future.done() for future in futures)
            gate.touch()
            assert len({future.result(100) for future in futures}) == 1
            gate.unlink()
            moved = manager.status()["transfers"]["bytes_from_manager"]
            assert moved == (0 if number else packed_environment.stat().st_size)


PRINT_WHERE = """
import os, sys, numpy
print(int(numpy.dot([3], [3])), os.path.realpath(sys.prefix), os.path.realpath(numpy.__file__))
"""


def test_a_command_of_taskvines_runs_in_the_python_of_a_package(packed_environment: Path, node: Path) -> None:
    """``declare_poncho`` and ``add_poncho_package``, as for a package of Poncho's; unpacked once for all tasks."""
    with vine.Manager(0) as m, vine.Factory("local", manager=m, cores=1, max_workers=1):
        package = m.declare_poncho(str(packed_environment), cache="workflow")
        script = m.declare_buffer(PRINT_WHERE, cache="workflow")
        for _ in range(2):
            t = vine.Task("python my_numpy_script.py")
            t.add_input(script, "my_numpy_script.py")
            t.add_poncho_package(package)
            m.submit(t)
        seen = [done for _ in range(2) if (done := m.wait(100)) is not None]
        assert [t.exit_code for t in seen] == [0, 0], [t.std_output for t in seen]
        [(square, prefix, numpy)] = {tuple(t.output.split()) for t in seen}
        assert square == "9"
        assert Path(prefix).is_relative_to(node)
        assert Path(numpy).is_relative_to(prefix)


@pytest.mark.parametrize(
    ("what", "text"),
    [("empty", "has no bin/python3: make it by  windlass environment pack"), ("text", "neither a tar nor a zip|not an archive|cannot be")],
)
def test_what_is_no_environment_fails_the_library_with_the_reason(
    manager: Manager, node: Path, tmp_path: Path, what: str, text: str
) -> None:
    archive = tmp_path / "environment.tar"
    if what == "empty":
        (tmp_path / "bin").mkdir()
        with tarfile.open(archive, "w") as tar:
            tar.add(tmp_path / "bin", "bin")
    else:
        archive.write_bytes(b"\x1f\x8b, and then no archive")
    manager.install_library("packed", where, environment=archive)
    with Factory(manager, "local", cores=1), pytest.raises(LibraryFailed, match=f"the environment of library packed: .*({text})"):
        manager.submit(FunctionCall("packed", "where")).result(60)


def test_a_wrong_environment_is_refused_where_it_is_written(manager: Manager) -> None:
    wrong: Any = 7
    with pytest.raises(UsageError, match="environment=7: give the path of an archive"):
        manager.create_library("packed", where, environment=wrong)
    with pytest.raises(UsageError, match="No such file or directory"):
        manager.install_library("packed", where, environment="/no/such/file.tar.gz")
