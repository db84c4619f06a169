"""Locks on files: shared, exclusive, waited for, and not fooled by files that lost their names."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from windlass.errors import Damaged
from windlass.worker.cache import Cache
from windlass.worker.cache_shared import SharedCache
from windlass.worker.file_locks import Held, take_lock, unlink_lock


class Over(Exception):
    """Ends a waiting."""


def never() -> None:
    raise AssertionError("it waited")


def test_an_exclusive_lock_has_one_owner_and_a_shared_one_many(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "lock")
    shared = [take_lock(path, fcntl.LOCK_SH, 0.0, never) for _ in range(2)]
    assert None not in shared
    assert take_lock(path, fcntl.LOCK_EX, 0.0, never) is None
    for lock in shared:
        assert lock is not None
        os.close(lock)
    mine = take_lock(path, fcntl.LOCK_EX, 0.0, never)
    assert mine is not None
    assert take_lock(path, fcntl.LOCK_SH, 0.0, never) is None
    with Held(mine):
        assert not os.get_inheritable(mine)
    again = take_lock(path, fcntl.LOCK_SH, 0.0, never)
    assert again is not None
    os.close(again)


def test_who_waits_gets_the_lock_when_it_is_free_or_gives_up(tmp_path: Path) -> None:
    """And leaves no file open."""
    path = os.fspath(tmp_path / "lock")
    opened = len(os.listdir("/proc/self/fd"))
    first = take_lock(path, fcntl.LOCK_EX, 0.0, never)
    assert first is not None
    second = take_lock(path, fcntl.LOCK_EX, 60.0, lambda: os.close(first))
    assert second is not None

    def give_up() -> None:
        raise Over

    with pytest.raises(Over):
        take_lock(path, fcntl.LOCK_EX, 60.0, give_up)
    os.close(second)
    assert len(os.listdir("/proc/self/fd")) == opened


def test_a_lock_whose_file_lost_its_name_is_taken_on_the_new_file(tmp_path: Path) -> None:
    """Else two could have it."""
    path = os.fspath(tmp_path / "lock")
    first = take_lock(path, fcntl.LOCK_EX, 0.0, never)
    assert first is not None

    def end() -> None:
        unlink_lock(first, path)
        os.close(first)

    second = take_lock(path, fcntl.LOCK_EX, 60.0, end)
    assert second is not None
    assert os.path.samestat(os.fstat(second), os.stat(path))
    assert take_lock(path, fcntl.LOCK_EX, 0.0, never) is None
    os.close(second)


def test_another_locks_file_is_not_unlinked(tmp_path: Path) -> None:
    """After somebody deleted the folder and it was made again."""
    path = tmp_path / "lock"
    lock = take_lock(os.fspath(path), fcntl.LOCK_EX, 0.0, never)
    assert lock is not None
    path.unlink()
    path.touch()
    unlink_lock(lock, os.fspath(path))
    assert path.exists()
    path.unlink()
    unlink_lock(lock, os.fspath(path))
    os.close(lock)


def test_a_lock_in_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="lock was removed while it was written"):
        take_lock(os.fspath(tmp_path / "none" / "lock"), fcntl.LOCK_EX, 0.0, never)


def test_on_a_file_system_without_locks_a_worker_has_its_cache_and_shares_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre and NFS may have none: the worker's own folder is nobody else's anyway, and a shared one is refused at once."""

    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    cache = Cache(tmp_path / "cache")
    filling = cache.fill("r-" + "0" * 32, 4)
    assert filling is not None
    filling.path.write_bytes(b"data")
    assert filling.commit("data", 4, pin=True).read_bytes() == b"data"
    cache.close()
    assert not (tmp_path / "cache").exists()
    with pytest.raises(OSError, match="No locks available"):
        SharedCache(tmp_path / "shared")
