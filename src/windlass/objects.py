"""Objects: the large buffers that calls read and write, as files in one private folder.

Theory of operation
-------------------
An *object* is a file that never changes.  Its name is its content (``b3-`` and 32 hexadecimal digits of BLAKE3), so that what
is passed to many calls is kept and sent once; a result, which is read once, has a random name instead (``r-...``) and is not hashed.
A file is written under a temporary name (``.t-<pid>-...``) and renamed when it is whole: whoever sees a name sees all of it.
The parts of a result are renamed when all of them are whole, so what a slot that died had not finished bears its number
(`remove_unfinished`).  What a temporary file held before is of no account: it may be memory of an object that went (`windlass.spares`).

Several processes write into one folder: a worker's slots leave their results there with `write_results`, and need no store for it.  What
keeps account of a folder is a `windlass.object_store.ObjectStore`.

Names come from the network, therefore each is checked before it becomes a path.  Imported by slots and workers at their start: what is
not needed for a call without objects (blake3, mmap, pathlib) is imported where it is used.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from windlass.errors import FULL
from windlass.messages import RESULT, ObjectName, ObjectRef
from windlass.ownership import NotOurs, make_ours, open_ours, require_ours

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

T = TypeVar("T")

_HEX: Final = frozenset("0123456789abcdef")
#: Objects of so many bytes are named while they are written (`windlass.naming`).
LARGE_BYTES: Final = 4 << 20
#: And those of so many are written into the memory of one that went, if there is any (`windlass.spares`).
SPARE_BYTES: Final = 256 << 10
#: One write(2) takes 2 GiB at most.
_WRITE_BYTES: Final = 1 << 30


def content_name(data: Buffer) -> ObjectName:
    """The name that `data` has as an object."""
    import blake3

    return ObjectName("b3-" + blake3.blake3(data).hexdigest(16))


def is_object_name(name: str) -> bool:
    """True for what may be an object's name, and so may become part of a path."""
    head, _, tail = name.partition("-")
    return len(tail) == 32 and _HEX.issuperset(tail) and head in ("b3", "r")


def write_results(
    folder: str | os.PathLike[str], parts: Sequence[Buffer], names: Sequence[str] = (), owner: int | None = None
) -> list[ObjectRef]:
    """Write the parts of a result into a store's folder from any process of its host, under these names or random ones: all or none.

    Until all are whole they bear the number of the process ``owner`` (None: this one). Raises `StoreFull` when the disk is full.
    """
    folder = os.fspath(folder)
    written: list[tuple[str, int]] = []
    try:
        for data in parts:
            written.append(write(folder, data, owner))
    except BaseException:
        for temporary, _ in written:
            os.unlink(temporary)
        raise
    refs: list[ObjectRef] = []
    for number, (temporary, size) in enumerate(written):
        name = names[number] if names else RESULT + os.urandom(16).hex()
        os.rename(temporary, os.path.join(folder, name))
        refs.append(ObjectRef(ObjectName(name), size))
    return refs


def remove_unfinished(folder: str, owner: int) -> None:
    """Remove the results that a process, which has ended, had begun to write there."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(f".t-{owner}-"):
                os.unlink(os.path.join(folder, name))


def open_object(path: str | os.PathLike[str], *, foreign: bool = False) -> int:
    """A descriptor for reading a file, which must be this user's, or `NotOurs` is raised, if it is not ``foreign``."""
    from windlass import descriptors

    return descriptors.opened(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC) if foreign else open_ours(path))


def map_object(path: str | os.PathLike[str], *, foreign: bool = False, briefly: bool = False) -> memoryview:
    """A private, writable view of a file: writes into it stay in this process. Outlives the file's name.

    With ``foreign`` it may be any file; else it must be this user's, or `NotOurs` is raised. With ``briefly`` the view goes soon, and is no
    copy while a descriptor is left: it may be large, and many of one file at once.
    """
    from windlass import descriptors

    descriptor = open_object(path, foreign=foreign)
    try:
        return descriptors.view_of(descriptor, spare=not briefly)
    finally:
        os.close(descriptor)


def open_in(folder: str | os.PathLike[str], name: str) -> memoryview:
    """`ObjectStore.open` for a process without the store, such as a slot. Raises `KeyError` when the object is absent."""
    if not is_object_name(name):
        raise KeyError(name)
    try:
        return map_object(os.path.join(folder, name))
    except (FileNotFoundError, NotOurs):
        raise KeyError(name) from None


# ---------------------------------------------------------------- files


def create(folder: str, access: int, size: int, owner: int | None = None) -> tuple[str, int]:
    """A temporary file there, for so many bytes: its path and descriptor. They are all to be written, whatever it holds.

    A folder that somebody has deleted is made again.
    """
    path = os.path.join(folder, f".t-{owner or os.getpid()}-{os.urandom(8).hex()}")
    descriptor: int | None = None
    if size >= SPARE_BYTES:
        from windlass import spares

        descriptor = spares.take(folder, path, size, access)
    flags = access | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        if descriptor is None:
            try:
                descriptor = os.open(path, flags, 0o600)
            except FileNotFoundError:
                make_ours(folder)
                descriptor = os.open(path, flags, 0o600)
    except OSError as error:  # some have no room for a file already, as they have none for what it holds
        raise failed(folder, size, error) from error
    try:
        require_ours(folder)
    except NotOurs:
        os.close(descriptor)
        with suppress(OSError):
            os.unlink(path)
        raise
    return path, descriptor


def write(folder: str, data: Buffer, owner: int | None = None) -> tuple[str, int]:
    """Write `data` to a temporary file there; returns its path and bytes."""
    return with_room(folder, lambda: _write(folder, data, owner))


def with_room(folder: str, work: Callable[[], T]) -> T:
    """Do what needs room there, once more if it finds none and spares can be removed for it. Raises what it raises."""
    try:
        return work()
    except OSError as error:
        from windlass import spares

        if error.errno not in FULL or not spares.drop(folder):
            raise
    return work()


def _write(folder: str, data: Buffer, owner: int | None) -> tuple[str, int]:
    view = memoryview(data)
    path, descriptor = create(folder, os.O_WRONLY, view.nbytes, owner)
    try:
        write_all(descriptor, view)
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):
            raise failed(folder, view.nbytes, error) from error
        raise
    finally:
        os.close(descriptor)
    return path, view.nbytes


def write_all(descriptor: int, data: Buffer) -> None:
    """Write every byte of it. Raises `OSError`."""
    # Measured faster than copying into a mapping of the file: 1.8 against 1.2 GB/s on tmpfs.
    view = memoryview(data)
    if view.ndim != 1 or view.format != "B":
        view = view.cast("B")
    done, size = 0, view.nbytes
    while done < size:
        done += os.write(descriptor, view[done : done + _WRITE_BYTES])


def failed(folder: str, size: int, error: OSError) -> OSError:
    """What to raise of an error in writing so many bytes there: `StoreFull`, if that is what it says."""
    if error.errno not in FULL:
        return error
    from windlass.errors import StoreFull

    full = StoreFull(
        f"no room for an object of {size} bytes in {folder}: {os.strerror(error.errno or errno.ENOSPC)}; free some space there, "
        "or choose another folder for objects"
    )
    full.errno = error.errno
    return full
