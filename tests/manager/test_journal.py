"""The journal's file: what was written whole is found again, whatever became of the rest."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from windlass.errors import Closed, UsageError
from windlass.manager import journal as journals
from windlass.manager.journal import BATCH_MOST, Entry, Journal
from windlass.messages import RETURNED, CallEnd, CallId, ObjectName, ObjectRef


def entry(number: int, payload: bytes = b"") -> Entry:
    return b"key%d" % number, CallEnd(CallId(number), 1, RETURNED, payload or b"result%d" % number, stdout=b"said")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    opened = Journal(folder)
    yield opened
    opened.close()


def again(folder: Path) -> dict[bytes, bytes]:
    """What the next life finds."""
    opened = Journal(folder)
    try:
        found = {key: opened.recall(key) for key in list(opened.places)}
        assert all(end is not None for end in found.values())
        return {key: end.payload for key, end in found.items() if end is not None}
    finally:
        opened.close()


def test_what_was_written_is_found(journal: Journal, folder: Path) -> None:
    """In the life that wrote it only when it is asked for; in the next always, with all that a future tells of it."""
    journal.append([entry(1), entry(2)])
    journal.append([entry(3)], index=True)
    assert journal.recall(b"key1") is None
    assert journal.recall(b"key3") == entry(3)[1]
    journal.close()
    assert again(folder) == {b"key%d" % number: b"result%d" % number for number in (1, 2, 3)}


def test_it_stays_where_it_is_when_the_program_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's %cd; the path was relative, as in all examples."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    journal = Journal("run.journal")
    monkeypatch.chdir("elsewhere")
    data, done = b"x" * 100_000, threading.Event()
    spans = (ObjectRef(ObjectName("r-" + "0" * 32), len(data)),)
    journal.append_large(b"big", CallEnd(CallId(1), 1, RETURNED, spans=spans), {spans[0].name: data}.__getitem__, done.set, index=True)
    assert done.wait(20)
    kept = journal.recall(b"big")
    assert kept is not None
    assert bytes(journal.open(kept.spans[0].name)) == data
    journal.close()
    assert list(again(tmp_path / "run.journal")) == [b"big"]


def test_large_batches_are_several_records(journal: Journal, folder: Path) -> None:
    journal.append([entry(number) for number in range(3 * BATCH_MOST + 5)])
    journal.close()
    found = again(folder)
    assert len(found) == 3 * BATCH_MOST + 5
    assert found[b"key%d" % (2 * BATCH_MOST)] == b"result%d" % (2 * BATCH_MOST)


def test_the_newest_of_equal_keys_counts(journal: Journal, folder: Path) -> None:
    journal.append([entry(1, b"old")])
    journal.append([entry(1, b"new")])
    journal.close()
    assert again(folder) == {b"key1": b"new"}


def test_a_log_cut_off_anywhere_keeps_what_is_whole(journal: Journal, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At each byte of the last record; what is written afterwards is found too."""
    journal.append([entry(1)])
    log = folder / "log"
    whole = log.stat().st_size
    journal.append([entry(2)])
    journal.close()
    data = log.read_bytes()
    for end in range(whole, len(data)):
        log.write_bytes(data[:end])
        opened = Journal(folder)
        assert set(opened.places) == {b"key1"}
        opened.append([entry(3)])
        opened.close()
        assert set(again(folder)) == {b"key1", b"key3"}
        assert ("cut off" in caplog.text) == (end > whole)
    for end in range(1, len(b"windlass journal 1\n")):
        log.write_bytes(data[:end])
        assert again(folder) == {}


def test_a_damaged_record_ends_what_is_read(journal: Journal, folder: Path) -> None:
    """A flipped bit is not taken for a result."""
    journal.append([entry(1)])
    whole = (folder / "log").stat().st_size
    journal.append([entry(2)])
    journal.append([entry(3)])
    journal.close()
    data = bytearray((folder / "log").read_bytes())
    data[whole + 20] ^= 1
    (folder / "log").write_bytes(data)
    assert again(folder) == {b"key1": b"result1"}


def test_damage_that_comes_later_is_seen_when_a_result_is_asked_for(journal: Journal, folder: Path) -> None:
    journal.append([entry(1)])
    journal.close()
    opened = Journal(folder)
    data = bytearray((folder / "log").read_bytes())
    data[-2] ^= 1
    (folder / "log").write_bytes(data)
    assert opened.recall(b"key1") is None
    opened.close()


def test_results_in_another_order_than_they_were_written_cost_no_batch_each(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loops of the program have changed places: of what was written together each is decoded when it is asked for, and nothing else."""
    for batch in range(20):
        journal.append([entry(100 * batch + number) for number in range(100)], index=True)
    decoded: list[CallEnd] = []
    decode = msgspec.msgpack.Decoder(Entry).decode

    def counting(written: msgspec.Raw) -> Entry:
        found: Entry = decode(written)
        decoded.append(found[1])
        return found

    monkeypatch.setattr(journals, "_decode_entry", counting)
    keys = [b"key%d" % (100 * batch + number) for number in range(100) for batch in range(20)]
    assert [end.payload for key in keys if (end := journal.recall(key)) is not None] == [key.replace(b"key", b"result") for key in keys]
    assert len(decoded) == len(keys)


def test_who_reads_from_a_slow_disk_holds_nobody_up_who_writes(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager's thread writes each end before it is told."""
    journal.append([entry(1)], index=True)
    reads, disk, found, pread = threading.Event(), threading.Event(), list[CallEnd | None](), os.pread

    def slow(*args: int) -> bytes:
        reads.set()
        assert disk.wait(30)
        return pread(*args)

    monkeypatch.setattr(os, "pread", slow)
    reader = threading.Thread(target=lambda: found.append(journal.recall(b"key1")))
    reader.start()
    assert reads.wait(30)
    writer = threading.Thread(target=lambda: journal.append([entry(2)], index=True))
    writer.start()
    writer.join(30)
    written = b"key2" in journal.places
    disk.set()
    reader.join()
    assert written
    assert found == [entry(1)[1]]


def test_buffers_are_copied_before_the_result_is_written(journal: Journal, folder: Path) -> None:
    """Under the names of their contents, each once; the journal's thread does that."""
    data = {"r-1": b"x" * 100_000, "r-2": b"x" * 100_000, "r-3": b"y" * 70_000}
    done = threading.Event()
    spans = tuple(ObjectRef(ObjectName(name), len(content)) for name, content in data.items())
    journal.append_large(b"big", CallEnd(CallId(1), 1, RETURNED, spans=spans), data.__getitem__, done.set, index=True)
    assert done.wait(10)
    end = journal.recall(b"big")
    assert end is not None
    assert [bytes(journal.open(ref.name)) for ref in end.spans] == list(data.values())
    assert len(list((folder / "objects").iterdir())) == 2
    journal.close()
    opened = Journal(folder)
    found = opened.recall(b"big")
    assert found is not None
    (folder / "objects" / found.spans[0].name).unlink()
    assert opened.recall(b"big") is None  # a buffer is missing
    opened.close()


def test_a_result_whose_buffer_is_gone_is_not_written(journal: Journal, folder: Path) -> None:
    """It was read by nobody, and its store was closed: the call is run again by the next life."""
    done = threading.Event()
    spans = (ObjectRef(ObjectName("r-1"), 100_000),)
    journal.append_large(b"big", CallEnd(CallId(1), 1, RETURNED, spans=spans), dict[str, bytes]().__getitem__, done.set)
    assert done.wait(10)
    journal.close()
    assert again(folder) == {}


def test_ctrl_c_at_the_close_leaves_the_journal_to_the_next_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow disk may hold up its thread: what that is at is broken off, and disturbs nobody."""
    journal, begun, gate, done = Journal(folder), threading.Event(), threading.Event(), threading.Event()

    def read(name: ObjectName) -> bytes:
        begun.set()
        assert gate.wait(20)
        return b"x" * 100_000

    def interrupted() -> None:
        raise KeyboardInterrupt

    spans = (ObjectRef(ObjectName("r-1"), 100_000),)
    journal.append_large(b"big", CallEnd(CallId(1), 1, RETURNED, spans=spans), read, done.set)
    assert begun.wait(20)
    with monkeypatch.context() as patched:
        patched.setattr(journal._thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.close()
    following = Journal(folder)
    following.append([entry(1)])
    gate.set()
    assert done.wait(20)
    journal._thread.join(20)
    following.close()
    journal.close()
    assert caplog.records == []
    assert not list((folder / "objects").iterdir())
    assert list(again(folder)) == [b"key1"]


def test_a_result_that_cannot_be_had_costs_none_of_those_that_come_after_it(
    journal: Journal, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its manager may be lost to this program, and what follows the writing may fail: the journal's thread goes on, and what it had is
    let go."""
    caplog.set_level(logging.INFO, "windlass.manager")
    done: list[bytes] = []

    def lost(name: ObjectName) -> bytes:
        raise Closed("the call's result cannot be had any more")

    def fails() -> None:
        done.append(b"fails")
        raise Closed("the manager is gone")

    def large(key: bytes, read: Callable[[ObjectName], bytes], then: Callable[[], None] | None = None) -> None:
        spans = (ObjectRef(ObjectName("r-1"), 5),)
        journal.append_large(key, CallEnd(CallId(1), 1, RETURNED, spans=spans), read, then or partial(done.append, key))

    large(b"lost", lost)
    large(b"fails", lambda name: b"bytes", fails)
    large(b"good", lambda name: b"bytes")
    journal.close()
    assert done == [b"lost", b"fails", b"good"]
    assert set(again(folder)) == {b"fails", b"good"}
    assert caplog.text.count("cannot be written") == 0
    assert "a result is not remembered: the call's result cannot be had any more" in caplog.text


def test_two_programs_cannot_have_one_journal(journal: Journal, folder: Path) -> None:
    with pytest.raises(UsageError, match=r"run.journal is in use already, by this program: close\(\) the manager that has it"):
        Journal(folder)


@pytest.mark.parametrize(
    ("who", "text"),
    [
        # As journals were locked before hosts stood there, and as another container may do it.
        ("PID", r"\(process PID\): end that one, or name another journal\n"),
        ("PID HERE", r"\(process PID on HERE\): end that one, or name another journal\n"),
        (
            "7 login1",
            r"\(process 7 on login1\): end that one, .*\. If login1 is down its lock goes in the end; "
            r"you may also make sure that the program is gone, and remove .*/run\.journal/lock\n",
        ),
    ],
)
def test_who_has_it_open_is_told_by_number_and_host(folder: Path, who: str, text: str) -> None:
    """Another container's process may have our number, and the lock of a machine that has crashed may stay for a while."""
    holds = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    folder.mkdir(mode=0o700, exist_ok=True)
    who, text = (one.replace("PID", f"{os.getpid()}").replace("HERE", os.uname().nodename) for one in (who, text))
    (folder / "lock").write_text(f"{who}\n")
    words = [sys.executable, "-c", holds, str(folder / "lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match=rf"in use by another program {text}"):
            Journal(folder)
        assert other.stdin is not None
        other.stdin.close()


def test_the_lock_says_who_has_it(journal: Journal, folder: Path) -> None:
    assert (folder / "lock").read_text() == f"{os.getpid()} {os.uname().nodename}\n"


def test_a_journal_whose_lock_was_removed_is_one(journal: Journal, folder: Path) -> None:
    """Its machine had crashed, and somebody took the obvious way."""
    journal.append([entry(1)])
    journal.close()
    (folder / "lock").unlink()
    assert again(folder) == {b"key1": b"result1"}


def name_of(folder: Path) -> str:
    opened = Journal(folder)
    try:
        return opened.name()
    finally:
        opened.close()


def test_its_name_is_its_own_wherever_it_is(folder: Path, tmp_path: Path) -> None:
    """Hosts may have journals of one path, on disks of their own. One that is moved, or put back, is the same; a copy is another."""
    name = name_of(folder)
    assert re.fullmatch("journal-[0-9a-f]{12}", name)
    assert name_of(folder) == name
    moved, copy = tmp_path / "moved", tmp_path / "copy"
    folder.rename(moved)
    assert name_of(moved) == name
    on_another_host = name_of(folder)
    assert on_another_host != name
    shutil.copytree(moved, copy)
    of_the_copy = name_of(copy)
    assert of_the_copy not in (name, on_another_host)
    assert (name_of(copy), name_of(moved), name_of(folder)) == (of_the_copy, name, on_another_host)
    shutil.rmtree(copy)
    shutil.copytree(folder, copy)  # its files are others than before
    folder.rename(tmp_path / "old")
    copy.rename(folder)
    assert name_of(folder) == on_another_host


def test_one_that_had_no_name_in_it_keeps_the_one_that_its_path_gave_it(folder: Path, tmp_path: Path) -> None:
    """By that its pilots look for the next life."""
    folder.mkdir(mode=0o700)
    for name in ("lock", "log"):
        (folder / name).touch(mode=0o600)
    of_its_path = f"journal-{hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=6).hexdigest()}"
    assert name_of(folder) == of_its_path
    folder.rename(tmp_path / "moved")
    assert name_of(tmp_path / "moved") == of_its_path
    assert name_of(folder) != of_its_path


def test_a_name_that_cannot_be_kept_is_told_with_the_journal(journal: Journal, folder: Path) -> None:
    (folder / "name").mkdir()
    with pytest.raises(UsageError, match=r"run\.journal cannot be opened: Is a directory; make room, or name another folder"):
        journal.name()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    """It was a slip: nobody's data becomes a journal's."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is a folder with other things in it: name a new one, as in journal='run\.journal'"):
        Journal(tmp_path)
    with pytest.raises(UsageError, match="cannot be opened: Not a directory"):
        Journal(tmp_path / "thesis.tex" / "journal")


def test_a_log_of_something_else_is_refused(journal: Journal, folder: Path) -> None:
    journal.close()
    (folder / "log").write_text("something else, or a later version\n")
    with pytest.raises(UsageError, match="log is no journal of this version of Windlass: name another folder, or remove this one"):
        Journal(folder)
    assert (folder / "log").read_text() == "something else, or a later version\n"


def test_a_journal_is_private(journal: Journal, folder: Path) -> None:
    """Results are the user's."""
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "log").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_journal_that_others_can_write_to_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """Results are unpickled, so whoever can put one there can have anything done. Where modes say nothing a user may say so."""
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UsageError, match=rf"\(mode {mode:04o}\): .* run  chmod go-w {folder} ; otherwise name a folder of your own"):
        Journal(folder)
    with monkeypatch.context() as trusting:
        trusting.setenv("WINDLASS_TRUST_STATE_DIR", "1")
        Journal(folder).close()
    folder.chmod(mode & ~0o022)  # chmod go-w
    Journal(folder).close()


def test_a_journal_of_another_user_is_refused() -> None:
    """He may have made it for just that."""
    if os.getuid():
        pytest.skip("only root can be two users")
    with tempfile.TemporaryDirectory(prefix="windlass-others-") as name:
        folder = Path(name)
        os.chown(folder, 4711, 4711)
        (folder / "lock").touch(mode=0o666)
        (folder / "lock").chmod(0o666)
        folder.chmod(0o755)
        os.seteuid(4712)
        try:
            with pytest.raises(UsageError, match=r"belongs to user 4711, not to you \(user 4712\)"):
                Journal(folder)
        finally:
            os.seteuid(0)


def test_a_full_disk_costs_the_journal_and_no_call(mounted: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once; when there is room again it goes on, and what was whole is found."""
    journal = Journal(mounted / "journal")
    journal.append([entry(1)])
    ballast = mounted / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    journal.append([entry(2, b"r" * 300_000)])
    journal.append([entry(3, b"r" * 300_000)])
    assert journal.dropped == 2
    assert caplog.text.count("cannot be written") == 1
    assert "results from now on may be made again by the next run" in caplog.text
    ballast.unlink()
    journal.append([entry(4)])
    journal.close()
    assert set(again(mounted / "journal")) == {b"key1", b"key4"}


class Late:
    """A file system that takes all, and says only when it is to be synced that there is no room; then it has forgotten the rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self._sync = os.fdatasync
        self._good: dict[int, int] = {}
        monkeypatch.setattr(os, "fdatasync", self)
        monkeypatch.setattr(journals, "SYNC_SECONDS", 0.0)

    def __call__(self, descriptor: int) -> None:
        if not self.error:
            self._good[descriptor] = os.fstat(descriptor).st_size
            self._sync(descriptor)
            return
        if self.error == errno.EDQUOT:
            os.ftruncate(descriptor, self._good.get(descriptor, 0))
        raise OSError(self.error, os.strerror(self.error))


def wait_for_sync(journal: Journal) -> None:
    """Its thread does one thing after the other, and this one, which writes nothing, after the sync."""
    done, gone = threading.Event(), (ObjectRef(ObjectName("r-1"), 9),)
    journal.append_large(b"gone", CallEnd(CallId(1), 1, RETURNED, spans=gone), dict[str, bytes]().__getitem__, done.set)
    assert done.wait(30)


def test_what_a_file_system_forgets_costs_what_was_not_synced_and_nothing_after_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A quota on NFS: what came next was written behind a hole, at which the next life stopped reading."""
    disk = Late(monkeypatch)
    journal = Journal(folder)
    journal.append([entry(1)], index=True)
    wait_for_sync(journal)
    disk.error = errno.EDQUOT
    journal.append([entry(2), entry(3)], index=True)
    wait_for_sync(journal)
    assert journal.dropped == 2
    assert set(journal.places) == {b"key1"}
    assert caplog.text.count("cannot be written") == 1
    assert "Disk quota exceeded): results of the last second, and from now on, may be made again by the next run" in caplog.text
    disk.error = 0
    journal.append([entry(4)])
    journal.close()
    assert set(again(folder)) == {b"key1", b"key4"}
    disk.error = errno.EDQUOT
    with pytest.raises(UsageError, match="cannot be opened: Disk quota exceeded"):
        Journal(folder.with_name("new.journal"))


def test_a_file_system_that_does_not_sync_keeps_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of FUSE refuse."""
    Late(monkeypatch).error = errno.EINVAL
    journal = Journal(folder)
    journal.append([entry(1)])
    journal.close()
    assert set(again(folder)) == {b"key1"}


def test_a_journal_whose_files_are_gone_can_be_closed(journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has removed the folder on another host: closing goes on, and its manager goes on to close what else it has."""
    close = os.close

    def stale(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def unknown(descriptor: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    journal.append([entry(1)])
    with monkeypatch.context() as gone:
        gone.setattr(os, "close", stale)
        gone.setattr(os, "fstat", unknown)
        journal.close()
    assert set(again(folder)) == {b"key1"}, "its lock was not left"


def test_a_large_result_for_which_there_is_no_room_leaves_the_room_to_small_ones(mounted: Path) -> None:
    """What was copied of it goes at once, and not only in the next life."""
    journal = Journal(mounted / "journal")
    done = threading.Event()
    spans = (ObjectRef(ObjectName("r-1"), 2_000_000),)
    journal.append_large(b"big", CallEnd(CallId(1), 1, RETURNED, spans=spans), lambda name: bytes(2_000_000), done.set)
    assert done.wait(30)
    assert list((mounted / "journal" / "objects").iterdir()) == []
    journal.append([entry(2, b"r" * 300_000)])
    assert journal.dropped == 1
    journal.close()
    assert set(again(mounted / "journal")) == {b"key2"}


def test_a_journal_that_cannot_be_begun_on_a_full_disk_says_so_and_holds_no_lock(mounted: Path) -> None:
    ballast = mounted / "ballast"
    (mounted / "journal").mkdir(mode=0o700)
    (mounted / "journal" / "lock").touch(mode=0o600)
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(UsageError, match="journal cannot be opened: No space left on device; make room, or name another folder"):
        Journal(mounted / "journal")
    ballast.unlink()
    Journal(mounted / "journal").close()


def test_a_file_system_without_locks_is_told_from_another_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending some program would be of no use."""

    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UsageError, match=r"this file system has no locks \(No locks available\); name a folder on another one"):
        Journal(folder)


def test_closing_again_does_nothing_and_nothing_is_written_afterwards(journal: Journal, folder: Path) -> None:
    journal.close()
    journal.close()
    journal.append([entry(1)])
    assert again(folder) == {}


def test_a_result_whose_buffer_is_gone_is_made_again_and_says_nothing_of_the_journal(
    journal: Journal, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker tells of large results that only an earlier life of the manager may have; that the journal can be written stays true."""
    done = threading.Event()
    store: dict[ObjectName, bytes] = {}
    large = CallEnd(CallId(1), 1, RETURNED, b"", (ObjectRef(ObjectName("a" * 32), 9),))
    journal.append_large(b"key1", large, store.__getitem__, done.set)
    assert done.wait(30)
    journal.append([entry(2)])
    journal.close()
    assert set(again(folder)) == {b"key2"}
    assert caplog.text.count("cannot be written") == 0
