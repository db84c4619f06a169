"""What a call has left in its own directory is taken whole or not at all, and nothing that it leaves there ends its slot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from windlass.errors import UsageError
from windlass.messages import RETURNED, CallId, CallRun, FileName, FileRef, FunctionId, InstanceId, Sandbox
from windlass.worker.room import Room, entered
from windlass.worker.slotlink import kept_folder

FIRST, SECOND = FileName("r-" + "1" * 32), FileName("r-" + "2" * 32)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where outputs go."""
    return Path(kept_folder(str(tmp_path / "cache")))


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """Of a call that is to make ``one`` and ``two``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    run = CallRun(CallId(1), 1, InstanceId(1), FunctionId(b"1" * 16), b"", sandbox=Sandbox((), (("one", FIRST), ("two", SECOND))))
    return entered(run, str(tmp_path / "work"), str(tmp_path / "cache"))


def make_both() -> None:
    Path("one/sub").mkdir(parents=True)
    Path("one/sub/a").write_text("a")
    Path("two").write_text("two")


def test_what_an_attempt_left_that_was_killed_is_in_nobodys_way(room: Room, kept: Path) -> None:
    """A folder cannot be renamed to where another one is."""
    make_both()
    room.collect(None)
    make_both()
    refs, _ = room.collect(None)
    assert [(ref.name, ref.size) for ref in refs] == [(FIRST, 1), (SECOND, 3)]
    assert (kept / FIRST / "sub" / "a").read_text() == "a"


@pytest.mark.parametrize("how", ["missing", "unmovable"])
def test_of_outputs_that_are_not_all_there_none_is_taken(room: Room, kept: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they would go nobody counts or removes them."""
    make_both()
    rename = os.rename

    def fails(source: str, target: str) -> None:
        if target.endswith(SECOND):
            raise OSError(5, "Input/output error")
        rename(source, target)

    if how == "missing":
        Path("two").unlink()
    else:
        monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(UsageError if how == "missing" else OSError):
        room.collect(None)
    assert not kept.exists() or not list(kept.iterdir())


def test_what_belongs_to_somebody_else_is_copied(room: Room, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the files that a container's root has made: they may be renamed, and then neither made read-only nor removed."""
    make_both()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    inodes = {os.stat("one").st_ino, os.stat("one/sub/a").st_ino, os.stat("two").st_ino}
    room.collect(None)
    assert (kept / FIRST / "sub" / "a").read_text() == "a"
    assert (kept / SECOND).read_text() == "two"
    assert not inodes & {os.stat(kept / path).st_ino for path in (FIRST, f"{FIRST}/sub/a", SECOND)}


@pytest.mark.parametrize("path", ["one/sub/a", "two"])
def test_what_somebody_else_keeps_to_themselves_is_said(room: Room, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do."""
    make_both()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    def access(place: str | bytes, _mode: int) -> bool:
        return not os.fsdecode(place).endswith(path)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(UsageError, match=rf"cannot be read, and belongs to user {os.getuid()}: have the command chown it"):
        room.collect(None)


def test_a_working_directory_that_the_call_has_removed_is_there_for_the_next_one(room: Room, tmp_path: Path) -> None:
    (tmp_path / "work").rename(tmp_path / "elsewhere")
    room.leave()
    assert Path.cwd() == tmp_path / "work"


@pytest.mark.asyncio
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_directory_that_cannot_be_removed_ends_no_slot(bench: Any, concurrency: int) -> None:
    """Of another user's files, or one in which something still writes: the call has its result, and the slot its next one."""

    def leave_something() -> int:
        def refuses(*_args: object, **_options: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        os.mkdir("stays")
        os.rmdir = os.unlink = refuses
        return os.getpid()

    async def leave_later() -> int:
        return leave_something()

    function = leave_something if concurrency == 1 else leave_later
    await bench.serving(bench.spec(function, concurrency=concurrency))
    pids: set[int] = set()
    for _ in range(2):
        call = msgspec.structs.replace(bench.call(function), sandbox=Sandbox((), ()))
        bench.instances[0].feed([call])
        end = await bench.end(call)
        assert end.outcome == RETURNED, end.detail
        pids.add(bench.value(end))
    assert len(pids) == 1


def test_the_name_of_what_a_function_made_can_be_told(room: Room) -> None:
    """It is the function's own choice, and need be no text."""
    room.sandbox = Sandbox(returned=FIRST)
    path = Path(os.fsdecode(b"caf\xe9.csv"))
    path.write_text("made")
    [ref], _ = room.collect(path)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ref), type=FileRef) == FileRef(FIRST, 4, "caf?.csv")
