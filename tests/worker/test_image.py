"""What serves an image: whether it is gone is seen, and what Apptainer leaves when it is killed is ended, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from windlass.worker.image import Servers, gone

INSIDE = {"WINDLASS_CONTAINER": "i.sif"}


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    """A folder that a process has served that has ended: mounted by FUSE, and the other side closed."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("needs /dev/fuse")
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"fuse", os.fsencode(tmp_path), b"fuse", 0, options):
            pytest.skip("needs root")
    finally:
        os.close(server)
    yield tmp_path
    libc.umount2(os.fsencode(tmp_path), 2)


def test_an_image_is_gone_when_nobody_serves_it(dead: Path) -> None:
    assert gone(INSIDE, f"{dead}/sh")
    assert not gone({}, f"{dead}/sh"), "outside of images nothing is"


def test_an_image_is_there_while_files_open_or_are_not_in_it(tmp_path: Path) -> None:
    """Only the errors of a dead server count."""
    assert not gone(INSIDE)
    assert not gone(INSIDE, f"{tmp_path}/none")


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[psutil.Process, int, int]]:
    """Somebody called starter, and two children: who serves, and the worker."""
    shell = tmp_path / "starter"
    shell.symlink_to("/bin/sh")
    script = "sleep 600 & echo $!; sleep 600 & echo $!; wait"
    with subprocess.Popen([shell, "-c", script], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        server, worker = int(starter.stdout.readline()), int(starter.stdout.readline())
        yield psutil.Process(starter.pid), server, worker
        starter.kill()
        for pid in (server, worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_what_is_left_of_a_killed_starter_ends(family: tuple[psutil.Process, int, int]) -> None:
    """While it lives it sees to that itself; the worker is not the guardian's to end in this way."""
    starter, server, worker = family
    servers = Servers(worker)
    assert list(servers.pids) == [server]
    assert servers.end(patience=0.0) == 0
    process = psutil.Process(server)
    starter.kill()
    assert servers.end() == 1
    psutil.wait_procs([process], timeout=10)
    assert psutil.Process(worker).is_running()


def test_children_of_others_are_left_alone() -> None:
    """A parent by another name has started no image: of a pilot within a call it is the call's process, with children of its own."""
    servers = Servers(os.getpid())
    assert (servers.starter, servers.pids, servers.end()) == (None, {}, 0)
