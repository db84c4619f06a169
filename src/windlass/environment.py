"""Environments that travel: one archive with interpreter, libraries, standard library and packages, unpacked once on each node.

Theory of operation
-------------------
Pilots whose Python lies on a shared filesystem read thousands of small files from it, each of them at the same moment.  An archive is one
file, read once per node and from then on local.  `pack` makes it of the environment that runs, or of another one; ``environment=`` of a
pool gives it to pilots (docs/environments.md).

What goes in is said in `windlass.environment_contents`, which shared libraries in `windlass.environment_libraries`, how it is written in
`windlass.environment_archive`.  How a node unpacks it is the batch script's business (``batch_templates/environment.sh.j2``).
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from windlass.environment_archive import write_archive
from windlass.environment_contents import Contents, Entry, Interpreter, ask, contents, normalized
from windlass.environment_libraries import add_libraries
from windlass.errors import UsageError
from windlass.units import show_memory, show_seconds

#: A worker needs a Python as new as this.
OLDEST: Final = (3, 11)


@dataclass(frozen=True, slots=True)
class Packed:
    """An archive that was made; it may be given wherever a path may. Bytes."""

    path: Path
    #: Of the archive's bytes; its beginning is in the name, unless a name was given.
    sha256: str
    size: int
    #: What it takes when unpacked.
    unpacked: int
    files: int
    python: str
    windlass: str

    def __fspath__(self) -> str:
        return os.fspath(self.path)


def pack(
    output: str | os.PathLike[str] | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    exclude: Iterable[str] = (),
    say: Callable[[str], None] | None = None,
) -> Packed:
    """Pack an environment into one archive that works wherever it is unpacked.

    Args:
        output: the file to write, or a folder for ``windlass-environment-DIGEST.tar.gz`` (the current one, unless given). It is there whole
            or not at all; one that is there already is replaced.
        source: the environment: the folder that has ``bin/python3`` (a venv, a conda environment, ``/usr``), or a Python; that of this
            program, unless given.
        exclude: names of installed distributions to leave out.
        say: is told what is done.

    Raises:
        UnknownName: one of ``exclude`` is not installed; the text has near names.
        UsageError: it cannot be packed, or the file cannot be written; the text says why.
    """
    if output is not None and not isinstance(output, str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"pack({output!r}): give the path of the archive to write, or of a folder for it")
    tell = say or _say_nothing
    began = time.monotonic()
    of = ask(source)
    if of.version[:2] < OLDEST:
        raise UsageError(f"{of.executable} is Python {of.short}, and Windlass needs {OLDEST[0]}.{OLDEST[1]} or later")
    tell(f"Python {'.'.join(map(str, of.version))} of {of.prefix}")
    made = contents(of, exclude)
    version = _add_windlass(made, of)
    add_libraries(made, f"bin/python{of.short}")
    tell(f"{len(made.entries):,} files found in {show_seconds(time.monotonic() - began)}")
    packed = _write(output, made, of, version)
    tell(
        f"{packed.path}: {show_memory(packed.size)}, {show_memory(packed.unpacked)} unpacked, {packed.files:,} files, Windlass {version},"
        f" made in {show_seconds(time.monotonic() - began)}"
    )
    return packed


def _say_nothing(text: str) -> None:
    pass


def _write(output: str | os.PathLike[str] | None, made: Contents, of: Interpreter, version: str) -> Packed:
    given = Path.cwd() if output is None else Path(output)
    folder = given if given.is_dir() else given.parent
    partial = folder / f".windlass-environment.{os.getpid()}.part"
    try:
        with open(partial, "xb") as file:
            counted = _Counted(file)
            head = write_archive(cast("BinaryIO", counted), made, of, version)
        digest = counted.digest.hexdigest()
        path = given / f"windlass-environment-{digest[:16]}.tar.gz" if given.is_dir() else given
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"the archive cannot be written in {folder}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return Packed(path.absolute(), digest, counted.size, head.size, head.files, head.python, head.windlass)


class _Counted:
    """A file that is written, with the digest of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


def _add_windlass(made: Contents, of: Interpreter) -> str:
    """Windlass's version in the environment; where it has none, this one is added, with what it needs. Raises `UsageError`."""
    import sys

    import windlass

    place = f"{of.site}/windlass/__init__.py"
    if place in made.entries:
        match = re.search(r'^__version__ = "([^"]+)"', Path(made.entries[place].source).read_text(), re.MULTILINE)
        return match[1] if match else "unknown"
    if of.version[:2] != sys.version_info[:2]:
        raise UsageError(
            f"{of.prefix} has no Windlass, and this program's is for Python {sys.version_info[0]}.{sys.version_info[1]}, not {of.short};"
            f" install it there, from its checkout: {of.executable} -m pip install PATH-OF-THE-CHECKOUT"
        )
    from windlass.factory.shipping import NEEDED, distribution_files, package_files

    for path, name in package_files():
        made.add(f"{of.site}/{name}", Entry(os.path.realpath(path)))
    for distribution in NEEDED:
        if normalized(distribution) not in made.distributions:
            for path, name in distribution_files(distribution):
                made.add(f"{of.site}/{name}", Entry(os.path.realpath(path), executable=os.access(path, os.X_OK)))
    return windlass.__version__
