"""What comes of an object on a blocking connection, and what goes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from windlass.bulk import receive, send_file
from windlass.incoming import Incoming
from windlass.object_store import ObjectStore
from windlass.objects import LARGE_BYTES, content_name

SIZES = [1, 700_000, LARGE_BYTES, LARGE_BYTES + 3_000_001]


class Comes:
    """A connection over which these bytes come in pieces, and then it ends."""

    def __init__(self, data: bytes) -> None:
        self.rest = memoryview(data)

    def recv_into(self, room: memoryview) -> int:
        count = min(len(room), len(self.rest), 100_000)
        room[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


class Goes:
    """A connection that keeps what is sent over it."""

    def __init__(self) -> None:
        self.data = b""
        self.as_socket: Any = self

    def sendall(self, piece: memoryview) -> None:
        self.data += piece


def come(data: bytes) -> Any:
    return Comes(data)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(tmp_path / "store", 1 << 30)
    threads = threading.active_count()
    yield store
    assert threading.active_count() == threads
    store.check()
    assert store._reserved == 0  # pyright: ignore[reportPrivateUsage]
    assert not [name for name in os.listdir(store.folder) if name.startswith(".t-")]


@pytest.mark.parametrize("size", SIZES)
def test_an_object_comes_whole(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)
    name = content_name(data)
    assert receive(come(data), store.receive(name, size), size) is None
    assert bytes(store.open(name)) == data


@pytest.mark.parametrize("size", SIZES)
def test_what_nobody_wants_is_read_away(size: int) -> None:
    sock = come(bytes(size + 5))
    assert receive(sock, None, size) is None
    assert len(sock.rest) == 5


@pytest.mark.parametrize("size", SIZES)
def test_one_that_was_damaged_is_not_kept(store: ObjectStore, size: int) -> None:
    data = bytearray(os.urandom(size))
    name = content_name(data)
    data[-1] ^= 1
    assert "damaged" in str(receive(come(bytes(data)), store.receive(name, size), size))
    assert not store.has(name)


@pytest.mark.parametrize("size", SIZES)
def test_a_cut_is_an_error_and_keeps_nothing(store: ObjectStore, size: int) -> None:
    name = content_name(bytes(size))
    with pytest.raises(ConnectionResetError):
        receive(come(bytes(size - 1)), store.receive(name, size), size)
    assert not store.has(name)


@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_fills_is_told_when_all_was_read(store: ObjectStore, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Incoming, chunk: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    name = content_name(bytes(size))
    incoming = store.receive(name, size)
    monkeypatch.setattr(Incoming, "write", full)
    sock = come(bytes(size))
    trouble = receive(sock, incoming, size)
    assert isinstance(trouble, OSError)
    assert (trouble.errno, len(sock.rest)) == (errno.ENOSPC, 0)


@pytest.mark.parametrize("size", SIZES)
def test_a_defect_is_raised(store: ObjectStore, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Incoming, chunk: Any) -> None:
        raise MemoryError

    incoming = store.receive(content_name(bytes(size)), size)
    monkeypatch.setattr(Incoming, "write", broken)
    with pytest.raises(MemoryError):
        receive(come(bytes(size)), incoming, size)


@pytest.mark.parametrize("size", SIZES)
def test_what_the_manager_says_of_its_objects_is_believed(store: ObjectStore, size: int) -> None:
    """Nothing is hashed: the content that comes is kept under the name that was asked for."""
    name = content_name(b"something else")
    data = os.urandom(size)
    assert receive(come(data), store.receive(name, size, believed=True), size) is None
    assert bytes(store.open(name)) == data


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_sent_whole(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / "file", os.urandom(size)
    path.write_bytes(data)
    went = Goes()
    with open(path, "rb") as file:
        send_file(went.as_socket, file.fileno(), size)
    assert went.data == data


def test_a_file_that_was_cut_off_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(600_000))
    went = Goes()
    with open(path, "rb") as file, pytest.raises(OSError, match="a file of 600001 bytes ends after 600000"):
        send_file(went.as_socket, file.fileno(), 600_001)
    assert len(went.data) == 600_000
