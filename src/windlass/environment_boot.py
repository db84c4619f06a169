"""What a worker needs of an environment until the rest of it is there: a small archive in the archive.

Theory of operation
-------------------
Nodes that start together would each read the whole archive from the shared filesystem, since a shell alone can have it from nowhere else.
So the archive carries a *boot*: interpreter, Windlass, and what a worker imports before it runs a library; 8 MB, whatever else is in the
environment.  The batch script unpacks that (``batch_templates/environment.sh.j2``), and the worker then gets the archive as it gets all
files: the source is read once, then workers serve each other (docs/decisions/0022).

*Which modules* is found by reading, from the worker's own module on: of Windlass every import counts, also those within functions; of
everything else those that happen when the module is imported.  What is missing nevertheless (a codec, a rare error) the worker finds in
the whole environment once that is there (`windlass.worker.environment`).  `WHOLE` and `NAMED` have modules that are loaded by compiled
code, where nobody can read it.

What was found is *tried*: unpacked and started as a worker would, or the archive goes without.

*Small*: only compiled code, under the names at which Python looks for it without a source; shared libraries without what is for debuggers
(`windlass.elf.Elf.bare`); xz, with the filter for programs of x86-64.  Libraries come first, as they have most in common with each other.
"""

from __future__ import annotations

import ast
import io
import logging
import lzma
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from windlass.elf import Elf, NotElf
from windlass.environment_contents import Contents, Entry, Interpreter
from windlass.environment_libraries import FOLDER

log = logging.getLogger("windlass.environment")

#: Its name in the archive.
BOOT: Final = "windlass-boot.tar.xz"
#: As `windlass.environment_archive.TIME`.
TIME: Final = 1_000_000_000
ROOT: Final = "windlass.worker.__main__"
#: Packages that are taken whole: their compiled code imports the rest of them.
WHOLE: Final = ("cryptography",)
#: What the interpreter and extension modules import, and what is imported by a name that is made.
NAMED: Final = (
    "site",
    "runpy",
    "encodings.aliases",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "linecache",
    "traceback",
    "_blake2",
    "_cffi_backend",
    "_decimal",
    "_queue",
    "_strptime",
    "_uuid",
    "bz2",
    "concurrent.futures.thread",
    "dataclasses",
    "decimal",
    "gzip",
    "lzma",
    "tarfile",
    "uuid",
    "uvloop",
    "zipfile",
)
#: What a worker does before the environment is there, in so far as it needs modules.
CHECK: Final = """
import sys
from concurrent.futures import ThreadPoolExecutor
from windlass import dataplane, fileserver, folders, identity, loops, permits, trees, unpacking
from windlass.worker import (
    arrivals, backlog, cache, cache_shared, downloads, environment, fetching, files, guardian, instance, libraries, main, memory, node,
    peers, slotset, supply, transfers, watch, zygotehandle,
)
import bz2, gzip, lzma, socket, tarfile, traceback, zipfile, blake3
socket.getaddrinfo("127.0.0.1", 1)
identity.new_key_and_request("check")
ThreadPoolExecutor(1).submit(int).result()
loops.run(__import__("asyncio").sleep(0))
sys.exit(not main.__file__.startswith(sys.prefix))
"""
#: Bytes that are looked back over: more than this saves little, and a node needs as much memory for it.
WINDOW: Final = 32 << 20
LEVEL: Final = 6
_X86_64: Final = 62


@dataclass(frozen=True, slots=True)
class BootHead:
    """What an archive says of its boot. Bytes."""

    sha256: str
    size: int
    unpacked: int
    files: int


def make_boot(made: Contents, of: Interpreter) -> tuple[bytes, BootHead] | None:
    """The boot of an environment with compiled code and shared libraries; None where that cannot be: nodes then read the whole archive."""
    program = f"bin/python{of.short}"
    names = _Search(made, of).files()
    if names is None or program not in made.entries:
        return None
    names |= {program, "bin/python3"}
    out = io.BytesIO()
    unpacked, machine = 0, 0
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        elves = [(name, elf) for name in _with_libraries(made, names) if (elf := _elf(made.entries[name])) is not None]
        for name, elf in elves:
            machine = elf.machine
            unpacked += _add(tar, name, elf.bare(), executable=True)
        for name in sorted(names - {name for name, _ in elves}):
            entry = made.entries[name]
            if entry.link:
                _add_link(tar, name, entry.link)
            else:
                unpacked += _add(tar, _sourceless(name), _data(entry), executable=entry.executable)
        count = len(tar.getnames())
    if not _starts(out, program):
        return None
    filters: list[dict[str, Any]] = [{"id": lzma.FILTER_LZMA2, "preset": LEVEL, "dict_size": WINDOW}]
    if machine == _X86_64:
        filters.insert(0, {"id": lzma.FILTER_X86})
    packed = lzma.compress(out.getvalue(), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
    return packed, BootHead(sha256(packed).hexdigest(), len(packed), unpacked, count)


def _starts(packed: io.BytesIO, program: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="windlass-boot-") as folder:
        packed.seek(0)
        with tarfile.open(fileobj=packed) as tar:
            tar.extraction_filter = lambda member, path: member  # ours, and just made; some 3.11 have no argument for it
            tar.extractall(folder)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_"))}
        words = [os.path.join(folder, program), "-P", "-s", "-B", "-c", CHECK]
        ran = subprocess.run(words, cwd="/", env=clean, capture_output=True, text=True, check=False)
    if ran.returncode:
        log.warning("no boot in this archive, so each node will read all of it: %s", (ran.stderr.strip().splitlines() or ["?"])[-1])
    return not ran.returncode


def _data(entry: Entry) -> bytes:
    return entry.data if entry.data is not None else Path(entry.source).read_bytes()


def _add(tar: tarfile.TarFile, name: str, data: bytes, *, executable: bool) -> int:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), TIME, 0o755 if executable else 0o644
    tar.addfile(info, io.BytesIO(data))
    return len(data)


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mtime, info.mode = tarfile.SYMTYPE, target, TIME, 0o777
    tar.addfile(info)


# ---------------------------------------------------------------- modules


class _Search:
    """Follows imports through the names of an archive."""

    def __init__(self, made: Contents, of: Interpreter) -> None:
        self._made, self._of = made, of
        library = f"lib/python{of.short}"
        self._roots = (library, f"{library}/lib-dynload", of.site)
        #: Extension modules by what they are imported as.
        self._extensions: dict[str, str] = {}
        for name in made.entries:
            if name.endswith(".so"):
                folder, _, base = name.rpartition("/")
                self._extensions.setdefault(f"{folder}/{base.partition('.')[0]}", name)

    def files(self) -> set[str] | None:
        """Names of all that is needed; None: there is no worker in it, or it has no compiled code."""
        waiting, seen, found = [ROOT, "os", *NAMED], set[str](), set[str]()
        while waiting:
            module = waiting.pop()
            if module in seen:
                continue
            seen.add(module)
            if "." in module:
                waiting.append(module.rpartition(".")[0])
            place = self._place(module)
            if place is None:
                if module == ROOT:
                    return None
                continue  # built in, optional, or an attribute of its package
            found |= self._taken(place)
            if module in WHOLE:
                folder = place.rpartition("/")[0] + "/"
                inside = [name for name in self._made.entries if name.startswith(folder) and name.endswith((".py", ".so"))]
                for name in inside:
                    found |= self._taken(name)
                    if name.endswith(".py"):
                        waiting += self._imports(name, name[len(self._of.site) + 1 : -3].replace("/", ".").removesuffix(".__init__"))
            elif place.endswith(".py"):
                waiting += self._imports(place, module)
        return found

    def _place(self, module: str) -> str | None:
        path = module.replace(".", "/")
        for root in self._roots:
            for name in (f"{root}/{path}/__init__.py", self._extensions.get(f"{root}/{path}", ""), f"{root}/{path}.py"):
                if name and name in self._made.entries:
                    return name
        return None

    def _taken(self, name: str) -> set[str]:
        """The compiled code of a source; the source itself where there is none."""
        folder, _, base = name.rpartition("/")
        compiled = f"{folder}/__pycache__/{base.removesuffix('.py')}.{self._of.cache_tag}.pyc"
        return {compiled if compiled in self._made.entries else name}

    def _imports(self, place: str, module: str) -> Iterator[str]:
        """What it imports, and what of that may be modules."""
        try:
            tree = ast.parse(_data(self._made.entries[place]))
        except (SyntaxError, ValueError):
            return
        package = module if place.endswith("/__init__.py") else module.rpartition(".")[0]
        for node in _statements(tree, everything=module.partition(".")[0] == "windlass"):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _statements(tree: ast.AST, *, everything: bool) -> Iterator[ast.AST]:
    """All statements but those for type checkers; without ``everything`` none of functions, or for running it as a program, either."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            continue  # no import stands in an expression
        test = ast.dump(node.test) if isinstance(node, ast.If) else ""
        if "TYPE_CHECKING" in test or ("'__main__'" in test and not everything):
            continue
        if not everything and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        yield from _statements(node, everything=everything)


def _sourceless(name: str) -> str:
    """Where Python looks for compiled code that has no source: beside the folder in which it lay."""
    folder, _, base = name.rpartition("/")
    if not folder.endswith("/__pycache__"):
        return name
    return f"{folder.removesuffix('/__pycache__')}/{base.partition('.')[0]}.pyc"


# ---------------------------------------------------------------- shared libraries


def _elf(entry: Entry) -> Elf | None:
    if entry.link:
        return None
    try:
        return Elf(_data(entry))
    except NotElf:
        return None


def _with_libraries(made: Contents, names: set[str]) -> list[str]:
    """The names, and those of the shared libraries that they need; sorted."""
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        elf = _elf(made.entries[name]) if ".so" in name or name.startswith("bin/") else None
        for need in elf.needed if elf is not None else ():
            origin = name.rpartition("/")[0]
            folders = [FOLDER, *(_inside(part, origin) for part in elf.search if "ORIGIN" in part)] if elf is not None else []
            for one in (f"{folder}/{need}" for folder in folders):
                while one in made.entries and one not in names:
                    names.add(one)
                    waiting.append(one)
                    link = made.entries[one].link
                    one = _inside(link, one.rpartition("/")[0]) if link else one
    return sorted(names)


def _inside(part: str, origin: str) -> str:
    return os.path.normpath(os.path.join(origin, part.replace("$ORIGIN", ".").replace("${ORIGIN}", ".")))
