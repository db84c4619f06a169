"""Calls make sockets in the folder for temporary files, as multiprocessing does: its path is short, and what is in it lies on scratch."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path

import pytest

import windlass
from windlass import FunctionCall

#: Of 107 bytes, without what multiprocessing adds.
MOST = 75


@pytest.fixture(autouse=True)
def leaves_nothing_running(nothing_left_running: None) -> None:
    """Neither these processes nor folders."""


def shared_list() -> list[int]:
    """What a process of multiprocessing's manager keeps, which is asked by a socket."""
    with multiprocessing.Manager() as manager:
        return list(manager.list([1, 2]))


def in_forkserver() -> list[int]:
    """By a process that a server forks; that is asked by a socket. On Python 3.14 it is the usual way."""
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return pool.map(abs, [-1, 2])


def temporary() -> tuple[str, str, int]:
    """What programs find in the environment, where a temporary file really is, and who may enter."""
    with tempfile.NamedTemporaryFile() as file:
        return os.environ["TMPDIR"], os.path.realpath(file.name), os.stat(os.environ["TMPDIR"]).st_mode & 0o777


@pytest.mark.parametrize("depth", ["shallow", "deep"])
def test_calls_can_use_what_makes_sockets(depth: str, tmp_path: Path) -> None:
    """Wherever scratch is: batch systems have deep folders."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        scratch = Path(short) if depth == "shallow" else tmp_path / ("deep" * 20)
        scratch.mkdir(exist_ok=True)
        with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1, max_pilots=1, scratch=str(scratch)):
            manager.install_library("lib", shared_list, in_forkserver, temporary)
            assert manager.submit(FunctionCall("lib", "shared_list")).result(60) == [1, 2]
            assert manager.submit(FunctionCall("lib", "in_forkserver")).result(60) == [1, 2]
            named, real, mode = manager.submit(FunctionCall("lib", "temporary")).result(60)
            assert len(named) <= MOST
            assert real.startswith(f"{scratch}/windlass-scratch-")
            assert mode == 0o700
        assert list(scratch.iterdir()) == []
        assert not os.path.lexists(Path(named).parents[1])
