"""The shared libraries of a packed environment: those that its programs and modules need and that a node may lack.

Theory of operation
-------------------
Every ELF file that is packed is read (`windlass.elf`), and what it needs is looked for where its loader would, first in the archive, then
on this machine.  What is found here only is added as ``lib/NAME``, and read in its turn.  The C library stays out: it belongs to the
node's kernel and loader, and works if it is not older than the one here.  So do the libraries of drivers, which fit the node's devices.

The interpreter gets ``$ORIGIN/../lib`` for its search path, which serves all files that hide nothing (`windlass.elf`).  Files with a path
of their own keep those parts of it that are relative to them; absolute parts would lead to the original environment, so ``lib`` takes
their place, or, where there is no room for it, a link beside them does.
"""

from __future__ import annotations

import mmap
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from typing import Final

from windlass.elf import MAGIC, Elf, NotElf
from windlass.environment_contents import Contents, Entry
from windlass.errors import UsageError

FOLDER: Final = "lib"
SEARCH: Final = "$ORIGIN/../lib"
#: Of the C library: a node's own.
_C_LIBRARY: Final = re.compile(
    r"(ld-(linux|musl).*|ld64|lib(c|m|dl|pthread|rt|util|resolv|anl|mvec|thread_db|BrokenLocale|c\.musl.*)|libnss_.*)\.so(\.[0-9]+)?\Z"
)
#: Of drivers: they fit the devices and the kernel of the node.
_DRIVERS: Final = re.compile(r"lib(cuda|nvidia-.*|nvcuvid|OpenCL|GL|EGL|GLX.*|amdhip.*|ze_loader|ibverbs|rdmacm|mlx[45])\.so(\.[0-9]+)*\Z")
_USUAL: Final = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")


def is_nodes(name: str) -> bool:
    """A library that is the node's own: never packed."""
    return bool(_C_LIBRARY.match(name) or _DRIVERS.match(name))


def add_libraries(made: Contents, program: str) -> None:
    """Add the libraries that are needed, and make everything find them. ``program``: the interpreter's name in the archive.

    Raises `UsageError` where the interpreter cannot be made to look beside itself.
    """
    known = _known_here()
    waiting = [name for name, entry in made.entries.items() if name == program or _may_be_elf(name, entry)]
    here = _read(made.entries[program])
    extra = [part for part in here.search if os.path.isabs(part)] if here else []
    while waiting:
        name = waiting.pop()
        entry = made.entries[name]
        elf = _read(entry)
        if elf is None:
            continue
        parts = _parts_inside(elf, name)
        for need in elf.needed:
            if is_nodes(need) or any(f"{part}/{need}" in made.entries for part in parts):
                continue
            if f"{FOLDER}/{need}" not in made.entries:
                found = _find(need, elf, extra, known)
                if not found:
                    continue  # loaded by other means, or not needed where this environment works
                made.entries[f"{FOLDER}/{need}"] = Entry(found, executable=True)
                waiting.append(f"{FOLDER}/{need}")
            if elf.hides and parts:
                _link_beside(made, parts[0], need)
        if name == program:
            _point_program(elf, entry, program)
        elif any(os.path.isabs(part) for part in elf.search):
            _point(elf, entry, name)


def _may_be_elf(name: str, entry: Entry) -> bool:
    base = name.rpartition("/")[2]
    return not entry.link and entry.data is None and (".so" in base or name.startswith("bin/"))


def _read(entry: Entry) -> Elf | None:
    try:
        with open(entry.source, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            return Elf(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except NotElf:
        return None
    except OSError as error:
        raise UsageError(f"{entry.source} cannot be read: {error.strerror}") from None


def _parts_inside(elf: Elf, name: str) -> list[str]:
    """The folders of the archive in which a file's own search path looks."""
    origin = os.path.dirname(name)
    relative = [re.sub(r"\$ORIGIN|\$\{ORIGIN\}", origin or ".", part) for part in elf.search if "ORIGIN" in part]
    return [path for path in map(os.path.normpath, relative) if not path.startswith("..")]


def _find(need: str, elf: Elf, extra: Iterable[str], known: Mapping[str, str]) -> str:
    """Where a library is on this machine; "": nowhere."""
    places = [*(part for part in elf.search if os.path.isabs(part)), *extra, *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    for folder in places:
        if folder and os.path.isfile(path := os.path.join(folder, need)):
            return os.path.realpath(path)
    if need in known:
        return os.path.realpath(known[need])
    for folder in _USUAL:
        if os.path.isfile(path := os.path.join(folder, need)):
            return os.path.realpath(path)
    return ""


def _known_here() -> dict[str, str]:
    """The loader's own list."""
    for program in ("/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"):
        try:
            ran = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        rows = re.findall(r"^\s+(\S+) \((?=[^)]*(?:64|AArch))[^)]*\) => (\S+)$", ran.stdout, re.MULTILINE)
        return dict(reversed(rows))
    return {}


def _link_beside(made: Contents, folder: str, need: str) -> None:
    made.add(f"{folder}/{need}", Entry(link=os.path.relpath(f"{FOLDER}/{need}", folder)))


def _point_program(elf: Elf, entry: Entry, program: str) -> None:
    if SEARCH in elf.search:
        return
    if not elf.set_search(SEARCH):
        raise UsageError(
            f"{entry.source} has no room for the place where {program} finds its libraries; pack an environment of conda's, or of"
            " another build of Python"
        )
    entry.data = bytes(elf.data[:])


def _point(elf: Elf, entry: Entry, name: str) -> None:
    """Put ``lib`` in the place of the absolute parts of a search path, or at least take these away."""
    relative = [part for part in elf.search if not os.path.isabs(part)]
    ours = f"$ORIGIN/{os.path.relpath(FOLDER, os.path.dirname(name))}".removesuffix("/.")
    hides = elf.hides and bool(relative)
    _ = elf.set_search(":".join([*relative, ours]), hides=hides) or elf.set_search(":".join(relative), hides=hides) or elf.set_search("")
    entry.data = bytes(elf.data[:])
