"""The slow shared file system of benchmarks/evaluation.py: it shows what is there, counts what is asked, and never stays mounted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("slowfs", "slowfs_daemon")

if TYPE_CHECKING:
    import slowfs

PROGRAM = """
import sys, time
sys.path.insert(0, sys.argv[1])
from slowfs import SlowNode
with SlowNode([sys.argv[2]]) as node:
    print(node.words([])[1], flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Imports as the benchmarks have them, forgotten afterwards; and no test where nothing can be mounted."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    global slowfs
    import slowfs

    if slowfs.missing():
        pytest.skip(f"THE SLOW FILE SYSTEM IS NOT TESTED: {slowfs.missing()}")
    yield
    for name in PARTS:
        sys.modules.pop(name, None)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    folder = tmp_path / "shared"
    (folder / "many").mkdir(parents=True)
    for number in range(500):
        (folder / "many" / f"a rather long name of a file {number}").write_text(str(number))
    (folder / "empty").touch()
    (folder / "größe und\nzeile").write_text("Inhalt")
    (folder / "large").write_bytes(os.urandom(3_000_001))
    (folder / "program").write_text("#!/bin/sh\necho ran\n")
    (folder / "program").chmod(0o755)
    (folder / "link").symlink_to("many/../large")
    (folder / "broken").symlink_to("nowhere")
    return folder


def said(node: slowfs.SlowNode, script: str) -> str:
    """What a shell on the node says."""
    return subprocess.run(node.words(["/bin/sh", "-c", script]), capture_output=True, text=True, check=True, timeout=60).stdout


def listing(folder: Path) -> str:
    """A line of shell that says all about a tree."""
    return f"cd '{folder}' && find . -printf '%p %m %s %l %T@ %U\\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum"


def test_a_node_sees_what_is_there(shared: Path, nothing_left_running: None) -> None:
    """Names, modes, sizes, links, times and contents are those of the folder itself, under its own path."""
    here = subprocess.run(["/bin/sh", "-c", listing(shared)], capture_output=True, text=True, check=True).stdout
    with slowfs.SlowNode([shared], delay=0) as node:
        assert said(node, listing(shared)) == here
        assert said(node, f"{shared}/program; uname -n") == "ran\nnode\n"
    assert here.count("\n") > 1000


def test_what_is_asked_is_counted_by_kind_and_for_each_node(shared: Path, nothing_left_running: None) -> None:
    """A file costs a lookup, an open and a read of its bytes; the second time only the open; another node knows nothing of that."""
    with slowfs.SlowNode([shared], delay=0) as node, slowfs.SlowNode([shared], delay=0) as other:
        before = node.counts()
        said(node, f"cat {shared}/program")
        once = node.counts() - before
        said(node, f"cat {shared}/program")
        twice = node.counts() - before
        assert before.total == other.counts().total == 0
    assert {kind: once.operations[kind] for kind in ("lookup", "open", "read")} == {"lookup": 1, "open": 1, "read": 1}
    assert twice.operations["open"] == 2
    assert twice.operations["lookup"] == twice.operations["read"] == 1
    assert once.bytes == twice.bytes == (shared / "program").stat().st_size
    assert [Path(path).name for path in once.read] == ["program"]
    assert once.metadata == once.total - 1


def test_a_name_that_is_not_there_is_asked_for_once(shared: Path, nothing_left_running: None) -> None:
    """The kernel remembers that too, as a network filesystem's does."""
    with slowfs.SlowNode([shared], delay=0) as node:
        said(node, f"for i in 1 2 3; do test ! -e {shared}/absent || exit 1; done")
        assert node.counts().operations["lookup"] == 1


def test_what_is_remembered_is_asked_again_when_its_time_is_over(shared: Path, nothing_left_running: None) -> None:
    """With no time at all each look is a lookup."""
    with slowfs.SlowNode([shared], delay=0, valid=0) as node:
        said(node, f"for i in 1 2 3; do test -e {shared}/empty || exit 1; done")
        assert node.counts().operations["lookup"] >= 3


def test_requests_are_served_side_by_side(shared: Path, nothing_left_running: None) -> None:
    """One that waits for its delay holds up no other."""
    with slowfs.SlowNode([shared], delay=0.2) as node:
        said(node, f"for i in 1 2 3 4 5 6; do cat '{shared}/many/a rather long name of a file '$i & done; wait")
        assert node.counts().at_once >= 2


def test_a_node_cannot_write(shared: Path, nothing_left_running: None) -> None:
    """The manager's side does that."""
    with slowfs.SlowNode([shared], delay=0) as node:
        assert "Read-only file system" in said(node, f"touch {shared}/new 2>&1 || true; echo more 2>&1 >>{shared}/empty || true")
    assert not (shared / "new").exists()


def test_a_node_has_a_disk_of_its_own(shared: Path, tmp_path: Path, nothing_left_running: None) -> None:
    """What lies in /tmp of one is not there for another; the shared folder is, though it lies there too."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with slowfs.SlowNode([shared], disk, delay=0) as node:
        said(node, f"echo mine >/tmp/mine; test -e {shared}/program; touch /dev/shm/windlass-test-mine")
    assert (disk / "mine").read_text() == "mine\n"
    assert not Path("/tmp/mine").exists()
    assert not Path("/dev/shm/windlass-test-mine").exists()


def test_a_shell_of_a_node_runs_scripts_there(shared: Path, tmp_path: Path, nothing_left_running: None) -> None:
    """It is what a pool's ``shell=`` names."""
    script = tmp_path / "script"
    script.write_text("uname -n; echo $1\n")
    with slowfs.SlowNode([shared], name="n7", delay=0) as node:
        shell = node.write_shell(tmp_path / "sh")
        assert subprocess.run([shell, script, "a b"], capture_output=True, text=True, check=True).stdout == "n7\na b\n"


def test_nothing_is_mounted_where_others_see_it_and_nothing_afterwards(shared: Path, nothing_left_running: None) -> None:
    """The mounts are the node's; they go with it."""
    with slowfs.SlowNode([shared], delay=0) as node:
        assert "slowfs" in said(node, "cat /proc/self/mountinfo")
        assert "slowfs" not in Path("/proc/self/mountinfo").read_text()
        words = node.words(["true"])
    end = time.monotonic() + 30
    while not subprocess.run(words, capture_output=True, check=False).returncode:  # its last process may still be ending
        assert time.monotonic() < end, "the node can be entered still"
        time.sleep(0.02)
    node.close()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_is_ended_leaves_nothing_mounted(sent: signal.Signals, shared: Path, nothing_left_running: None) -> None:
    """Ctrl-C, or worse: the namespace, and the mounts with it, end with the program."""
    words = [sys.executable, "-c", PROGRAM, str(ROOT / "benchmarks"), str(shared)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True) as program:
        assert program.stdout is not None
        namespace = Path(program.stdout.readline().strip().removeprefix("--mount="))
        assert namespace.exists()
        os.killpg(program.pid, sent)
        program.wait(10)
    end = time.monotonic() + 10
    while namespace.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not namespace.exists()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path, nothing_left_running: None) -> None:
    """In the words of the system, with the folder."""
    with pytest.raises(slowfs.NotServed, match=rf"cannot mount for n1: {tmp_path}/absent: No such file or directory"):
        slowfs.SlowNode([tmp_path / "absent"], name="n1")


def test_a_daemon_that_has_gone_is_told(shared: Path, nothing_left_running: None) -> None:
    """Counts of nothing are none."""
    with slowfs.SlowNode([shared], name="n1") as node:
        node._daemon.kill()  # pyright: ignore[reportPrivateUsage]
        node._daemon.wait()  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(slowfs.NotServed, match="the daemon of n1 has gone"):
            node.counts()


def test_folders_in_others_are_covered_with_them(tmp_path: Path) -> None:
    """Links are followed first."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    assert slowfs.separate([tmp_path / "link", tmp_path / "a", tmp_path / "a" / "b"]) == [str(tmp_path / "a")]


def test_counts_are_taken_from_each_other_and_put_together() -> None:
    """What did not grow is left out."""
    earlier = slowfs.Counts({"open": 1, "read": 2}, {"/a": 5})
    later = slowfs.Counts({"open": 1, "read": 3, "lookup": 1}, {"/a": 5, "/b": 1}, 2)
    assert later - earlier == slowfs.Counts({"read": 1, "lookup": 1}, {"/b": 1}, 2)
    assert later + earlier == slowfs.Counts({"lookup": 1, "open": 2, "read": 5}, {"/a": 10, "/b": 1}, 2)
    assert later.summed() == slowfs.Counts({"open": 1, "read": 3, "lookup": 1}, {"": 6}, 2)
