"""Modules in zip archives on the program's path, as in one that `python -m zipapp` made: found and read as if they lay in a folder.

A path below an archive is what the import system makes of it: ``…/app.pyz/helpers/shapes.py``. Compiled files alone are no source.

The directory of an archive is read once, and again when the archive is another: each look at each module asks for it. Of a file its check
sum says whether it has changed, as an archive that is built anew has all its files anew, few of them with another text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple


class Unreadable(Exception):
    """An archive that is there cannot be read as it is now: it is just being written, or damaged."""


class _Entry(NamedTuple):
    name: str
    check: int
    size: int
    #: Where its header begins, and how many bytes it has there.
    start: int
    packed: int
    deflated: bool


class _Archive(NamedTuple):
    #: Modification time, size and inode.
    state: tuple[int, int, int]
    #: The entries at or below each place in it.
    places: dict[str, list[_Entry]]


#: As they were last read, by their absolute paths.
_archives: dict[str, _Archive] = {}
#: Where archives lie: those that the program's path names from a folder that it was in do not move when it goes elsewhere.
_absolute: dict[str, str] = {}


def exists(path: str) -> bool:
    """Whether there is such a file or folder in an archive, with source. One that cannot be read just now has what it had."""
    archive, inside = _split(path)
    if not inside:
        return False
    with suppress(Unreadable):
        _read(archive)
    return archive in _archives and bool(_with_source(_archives[archive], inside))


def leads_into(path: str) -> bool:
    """Whether a path leads into what may be an archive, whatever that has there."""
    return bool(_split(path)[1])


def files(place: str) -> Iterator[tuple[str, str, int, int]]:
    """(its part of the path below the folder that ``place`` is in, path, check sum, bytes) of each Python file and whatever lies beside, at
    or below ``place`` in an archive. Nothing where that is in none, or has no source. Raises `Unreadable`."""
    archive, inside = _split(place)
    above = len(inside.rpartition("/")[0])
    for entry in _with_source(_read(archive), inside) if inside else ():
        yield entry.name[above:].lstrip("/"), f"{archive}/{entry.name}", entry.check, entry.size


def read(path: str) -> bytes:
    """What is in a file, which may be in an archive. Raises `OSError`, and `Unreadable`."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except NotADirectoryError:
        archive, inside = _split(path)
        if not inside:
            raise
    import zlib

    entry = next((entry for entry in _read(archive).places.get(inside, ()) if entry.name == inside), None)
    try:
        if entry is None:
            raise ValueError("it is not there any more")
        with open(archive, "rb") as file:
            file.seek(entry.start)
            header = file.read(30)  # and the name and more, which both have their lengths in it
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
            data = file.read(entry.packed)
        data = zlib.decompress(data, -zlib.MAX_WBITS) if entry.deflated else data
        if zlib.crc32(data) != entry.check:
            raise ValueError("its check sum is another")
    except (OSError, ValueError, zlib.error) as error:
        raise Unreadable(f"cannot read {inside} in {archive}: {error}") from error
    return data


def _read(archive: str) -> _Archive:
    """What is in it now. Raises `Unreadable`."""
    try:
        status = os.stat(archive)
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = _archives.get(archive)
        if known is None or known.state != state:
            known = _archives[archive] = _Archive(state, _places(archive))
    except Exception as error:  # it may be damaged in any way
        raise Unreadable(f"{archive} is no zip archive that can be read: {error}") from error
    return known


def _places(archive: str) -> dict[str, list[_Entry]]:
    """The entries of an archive at or below each place in it."""
    import zipfile

    with zipfile.ZipFile(archive) as opened:
        infos = {info.filename: info for info in opened.infolist()}  # of two the later one
    places: dict[str, list[_Entry]] = {}
    for place, info in infos.items():
        if info.is_dir() or info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            continue  # what is encrypted or packed otherwise nobody imports either
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        entry = _Entry(place, info.CRC, info.file_size, info.header_offset, info.compress_size, deflated)
        while place:
            places.setdefault(place, []).append(entry)
            place = place.rpartition("/")[0]
    return places


def _with_source(archive: _Archive, place: str) -> list[_Entry]:
    found = archive.places.get(place, [])
    return found if any(entry.name.endswith(".py") for entry in found) else []


def _split(path: str) -> tuple[str, str]:
    """The absolute path of the file that a path leads through, and what comes behind; "" where it leads through none."""
    archive, inside = path, ""
    while archive and archive not in _absolute and not os.path.exists(archive):
        archive, _, name = archive.rpartition("/")
        inside = f"{name}/{inside}" if inside else name
    whole = _absolute.get(archive) or (archive if os.path.isabs(archive) else os.path.abspath(archive))
    if not inside or not os.path.isfile(whole):
        return "", ""
    _absolute[archive] = whole
    return whole, inside
