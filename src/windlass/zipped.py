"""Modules in zip archives on the program's path, as in one that `python -m zipapp` made: found and read as if they lay in a folder.

A path below an archive is what the import system makes of it: ``…/app.pyz/helpers/shapes.py``. Compiled files alone are no source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zipfile import ZipFile


def exists(path: str) -> bool:
    """Whether there is such a file or folder, be it in an archive."""
    return os.path.exists(path) or any(True for _ in files(path))


def files(place: str) -> Iterator[tuple[str, str, int, int]]:
    """(its part of the path below the folder that ``place`` is in, path, modification time of the archive in ns, bytes) of each Python file
    and whatever lies beside, at or below ``place`` in an archive. Nothing where that is in none, or has no source."""
    archive, inside = _split(place)
    if not inside:
        return
    try:
        with ExitStack() as opened:
            changed = os.stat(archive).st_mtime_ns
            infos = _open(archive, opened).infolist()
    except OSError:
        return
    above = len(inside.rpartition("/")[0])
    found = [info for info in infos if not info.is_dir() and (info.filename == inside or info.filename.startswith(f"{inside}/"))]
    if any(info.filename.endswith(".py") for info in found):
        for info in found:
            yield info.filename[above:].lstrip("/"), f"{archive}/{info.filename}", changed, info.file_size


class Reader:
    """Reads files, also those in archives, each of which it opens once; a context manager."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._archives: dict[str, ZipFile] = {}

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def read(self, path: str) -> bytes:
        """What is in a file. Raises `OSError`."""
        try:
            with open(path, "rb") as file:
                return file.read()
        except NotADirectoryError:
            archive, inside = _split(path)
            if not inside:
                raise
        if archive not in self._archives:
            self._archives[archive] = _open(archive, self._opened)
        try:
            return self._archives[archive].read(inside)
        except OSError:
            raise
        except Exception as error:  # an archive may be damaged in any way, or encrypted, or have just been written anew
            raise OSError(f"cannot read {inside} in {archive}: {error}") from error


def _open(archive: str, opened: ExitStack) -> ZipFile:
    """Raises `OSError`."""
    import zipfile

    try:
        return opened.enter_context(zipfile.ZipFile(archive))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise OSError(f"{archive} is no zip archive that can be read: {error}") from error


def _split(path: str) -> tuple[str, str]:
    """The file that a path leads through, and what comes behind; "" where it leads through none."""
    archive, inside = path, ""
    while archive and not os.path.exists(archive):
        archive, _, name = archive.rpartition("/")
        inside = f"{name}/{inside}" if inside else name
    return (archive, inside) if inside and os.path.isfile(archive) else ("", "")
