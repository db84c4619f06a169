"""Rules of `windlass.worker.guardian`, with real processes: whatever a killed worker started is gone, and its folders too."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from windlass.worker.guardian import VARIABLE, end_marked, marked, remove_tree

#: A worker in small: has a guardian, a folder, a child in a session of its own with a child that has left its parent;
#: then does as it is told.
#: Numbers over 5,000,000 are no process's: the kernel's largest is 4,194,304.
WORKER = """
import os, subprocess, sys
from windlass.worker.guardian import Guardian
guardian = Guardian()
os.mkdir(sys.argv[1])
open(sys.argv[1] + "/file", "w").close()
guardian.folder(sys.argv[1])
orphan = "import os, time; os.setsid(); os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(600)"
child = "import subprocess, sys, time; subprocess.run([sys.executable, '-S', '-c', sys.argv[1]]); time.sleep(600)"
process = subprocess.Popen([sys.executable, "-S", "-c", child, orphan], start_new_session=True, stdout=subprocess.PIPE, text=True)
cleared = subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
guardian.sessions([5_000_000, cleared.pid])
guardian.sessions([cleared.pid])
print(guardian.pid, process.pid, process.stdout.readline().strip(), cleared.pid, guardian.token, flush=True)
word = sys.stdin.readline().strip()
if word == "busy":
    for number in range(20_000):
        guardian.sessions([cleared.pid, 5_000_000 + number])
    guardian.sessions([cleared.pid])
if word:
    assert guardian.sweep() >= 3
    cleared.wait()
    process.wait()
    guardian.release()
    print("released", flush=True)
"""


def state(pid: int) -> str:
    """The state letter of a process; empty when it is gone or only waits for its parent to notice."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""
    return "" if letter in "ZX" else letter


def await_gone(pids: list[int], limit: float = 10.0) -> list[int]:
    """Wait for these processes to end; returns those that have not."""
    until = time.monotonic() + limit
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        finally:
            os.close(descriptor)
    return [pid for pid in pids if state(pid)]


class Small:
    """The small worker and what it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.guardian, self.child, self.orphan, self.cleared = (int(word) for word in words[:4])
        self.token = words[4]

    @property
    def started(self) -> list[int]:
        return [self.child, self.orphan, self.cleared]

    def close(self) -> None:
        for pid in (*self.started, self.process.pid, self.guardian):
            if state(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    it = Small(tmp_path / "windlass-small")
    yield it
    it.close()


def test_a_killed_worker_leaves_nothing(small: Small) -> None:
    """No child, no child that left its parent and session, none that cleared its environment, no folder, no guardian."""
    assert all(state(pid) for pid in small.started)
    small.process.kill()
    small.process.wait()
    assert await_gone([*small.started, small.guardian]) == []
    assert not small.folder.exists()
    assert marked(small.token) == []


def test_a_line_break_in_a_path_is_part_of_it(tmp_path: Path) -> None:
    """Else the folder before it would be taken for the worker's, and go with all that is in it."""
    for name in ("data", "windlass-data"):
        parent = tmp_path / f"{name}\nmore"
        parent.mkdir()
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text("x")
        small = Small(parent / "windlass-small")
        try:
            small.process.kill()
            small.process.wait()
            assert await_gone([*small.started, small.guardian]) == []
            assert not small.folder.exists()
            assert parent.is_dir()
            assert (tmp_path / name / "kept").exists()
        finally:
            small.close()


def test_only_what_is_named_as_windlass_names_it_goes(tmp_path: Path) -> None:
    """Whatever the worker was told of its node."""
    small = Small(tmp_path / "mine")
    try:
        small.process.kill()
        small.process.wait()
        assert await_gone([*small.started, small.guardian]) == []
        assert (small.folder / "file").exists()
    finally:
        small.close()


def test_an_orderly_end_needs_no_guardian(small: Small) -> None:
    """It leaves, and touches nothing: the folder is the worker's own business."""
    out, _ = small.process.communicate("orderly\n", timeout=20)
    assert out == "released\n"
    assert small.process.returncode == 0
    assert await_gone([*small.started, small.guardian]) == []
    assert small.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_the_guardian_stays_when_every_process_is_signalled(small: Small, number: int) -> None:
    """Batch systems signal all processes of a job; the guardian is needed most just then."""
    os.kill(small.guardian, number)
    small.process.kill()
    small.process.wait()
    assert await_gone([*small.started, small.guardian]) == []
    assert not small.folder.exists()


def test_a_stopped_guardian_stops_nobody(small: Small) -> None:
    """The worker tells it more than a pipe holds, and leaves in order."""
    os.kill(small.guardian, signal.SIGSTOP)
    out, _ = small.process.communicate("busy\n", timeout=20)
    assert out == "released\n"
    assert await_gone([*small.started, small.guardian]) == []


def test_a_stopped_process_is_ended_too(small: Small) -> None:
    """SIGKILL reaches processes under SIGSTOP."""
    os.kill(small.orphan, signal.SIGSTOP)
    small.process.kill()
    small.process.wait()
    assert await_gone(small.started) == []


def test_the_mark_of_an_inner_worker_has_that_of_the_outer_one(small: Small) -> None:
    """So the outer guardian finds everything of the inner one."""
    script = "import os\nfrom windlass.worker.guardian import *\ng = Guardian()\nprint(os.environ[VARIABLE], g.token)\ng.release()"
    environment = {**os.environ, VARIABLE: small.token}
    out = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=20).stdout
    mark, token = out.split()
    assert mark == f"{small.token}/{token}"


def test_only_the_marked_are_ended(small: Small) -> None:
    """Not those that merely have the token somewhere else, nor those that are spared."""
    bystander = subprocess.Popen(["sleep", "600"], env={"OTHER": f"{VARIABLE}={small.token}"})
    try:
        assert bystander.pid not in marked(small.token)
        assert end_marked(small.token, (), {small.child}) >= 1
        assert state(small.child)
        assert await_gone([small.orphan]) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_older_than_the_worker_is_never_ended() -> None:
    """The number of a session that is gone may have become another one's; the worker started nothing before itself."""
    older = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        began = int(Path(f"/proc/{older.pid}/stat").read_text().rpartition(") ")[2].split()[19])
        assert marked("no such mark", {older.pid}, since=began + 1) == []
        assert marked("no such mark", {older.pid}, since=began) == [older.pid]
    finally:
        older.kill()
        older.wait()


def test_a_tree_is_removed_with_its_locked_folders_and_links_are_not_followed(tmp_path: Path) -> None:
    """A call may have taken rights away; what a link names is not the worker's."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_text("x")
    (tree / "link").symlink_to(outside)
    (tree / "a").chmod(0o500)
    remove_tree(str(tree))
    assert not tree.exists()
    assert (outside / "kept").exists()


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    """The guardian and the worker may both try."""
    removing: Callable[[str], None] = remove_tree
    removing(str(tmp_path / "never"))
    assert tmp_path.exists()
