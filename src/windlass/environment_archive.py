"""Archives of environments: written so that a node unpacks them with ``tar`` alone, and looked at before they are sent out.

Theory of operation
-------------------
A tar file in gzip, which every node can read.  It is compressed in blocks, by as many threads as there are cores; blocks are gzip members
after one another, which is what gzip takes for one file.  Owner, group and times of all files are the same, so the archive says nothing of
who made it.

Its first member, `HEAD`, is a JSON object that says what the archive is and how much room it takes: read by the factory, which thereby
refuses an environment that cannot serve before any pilot is sent out.  Archives of other makers (conda-pack, venv-pack) have none.  The
second one is the boot (`windlass.environment_boot`), so that whoever wants that alone need not look further.

*Compiled code.*  Python takes a ``.pyc`` for valid if it names the time of its source, which here all files share, or if it says that
nobody need look ("unchecked"): so that is what all say.  They come from the ``__pycache__`` where they are valid, else they are made by the
environment's own interpreter.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import subprocess
import tarfile
import tempfile
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from windlass.environment_boot import BOOT, BootHead, make_boot
from windlass.environment_contents import Contents, Entry, Interpreter, names_of_modules
from windlass.errors import UsageError

HEAD: Final = "windlass-environment.json"
#: Version of the archive's layout.
LAYOUT: Final = 1
#: All times in the archive (2001): old enough for no clock to find it in the future.
TIME: Final = 1_000_000_000
#: Measured on packages: 9 makes 1 % less of them in three times the time, 1 makes 15 % more in a third of it.
LEVEL: Final = 6
BLOCK: Final = 2 << 20
_UNCHECKED: Final = (1).to_bytes(4, "little")
_PYC_HEADER: Final = 16


@dataclass(frozen=True, slots=True)
class Head:
    """What an archive says of itself. Bytes."""

    layout: int
    windlass: str
    #: As in ``3.11.7``.
    python: str
    size: int
    files: int
    #: None: it has none, as those of earlier versions.
    boot: BootHead | None = None


class GzipBlocks:
    """A file to write to: compresses what is written, with several threads, into another one."""

    def __init__(self, out: BinaryIO, threads: int) -> None:
        self._out, self._block = out, bytearray()
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: deque[Future[bytes]] = deque()
        self._most = threads * 3

    def write(self, data: bytes) -> int:
        self._block += data
        while len(self._block) >= BLOCK:
            self._begin(BLOCK)
        return len(data)

    def _begin(self, count: int) -> None:
        block = bytes(self._block[:count])
        del self._block[:count]
        self._waiting.append(self._pool.submit(_gzip_member, block))
        while len(self._waiting) > self._most:
            self._out.write(self._waiting.popleft().result())

    def close(self) -> None:
        """Write what is left; the other file stays open."""
        try:
            if self._block:
                self._begin(len(self._block))
            while self._waiting:
                self._out.write(self._waiting.popleft().result())
        finally:
            self._pool.shutdown(cancel_futures=True)


def _gzip_member(block: bytes) -> bytes:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, 31)
    return packer.compress(block) + packer.flush()


def write_archive(out: BinaryIO, made: Contents, of: Interpreter, version: str) -> Head:
    """Write the archive. ``version``: of the Windlass in it.

    Raises `UsageError` for what cannot be read, OSError where ``out`` cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="windlass-pack-") as folder:
        add_compiled(made, of, Path(folder))
        size = files = 0
        for entry in made.entries.values():
            if not entry.link:
                size += len(entry.data) if entry.data is not None else os.stat(entry.source).st_size
                files += 1
        boot, of_boot = make_boot(made, of) or (b"", None)
        head = Head(LAYOUT, version, ".".join(map(str, of.version)), size + len(boot), files + bool(boot), of_boot)
        packed = GzipBlocks(out, len(os.sched_getaffinity(0)))
        try:
            # GNU's format is read by every tar, long names included; that of POSIX is not by busybox.
            with tarfile.open(fileobj=cast("BinaryIO", packed), mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 20) as tar:
                _add(tar, HEAD, Entry(data=json.dumps(asdict(head)).encode()))
                if boot:
                    _add(tar, BOOT, Entry(data=boot))
                for name in sorted(made.entries):
                    _add(tar, name, made.entries[name])
        finally:
            packed.close()
    return head


def _add(tar: tarfile.TarFile, name: str, entry: Entry) -> None:
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = TIME, 0o755 if entry.executable else 0o644
    if entry.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(info)
        return
    if entry.data is not None:
        info.size = len(entry.data)
        tar.addfile(info, io.BytesIO(entry.data))
        return
    try:
        file = open(entry.source, "rb")  # noqa: SIM115  what fails below is another error
    except OSError as error:
        raise UsageError(f"{entry.source} cannot be read: {error.strerror}") from None
    with file:
        info.size = os.fstat(file.fileno()).st_size
        tar.addfile(info, file)


# ---------------------------------------------------------------- compiled code

_COMPILE: Final = """
import json, py_compile, sys, warnings
warnings.simplefilter("ignore")
for line in sys.stdin:
    source, made = json.loads(line)
    try:
        py_compile.compile(source, made, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except (py_compile.PyCompileError, ValueError, OSError, RecursionError):
        pass
"""


#: What paths of installed modules have, those of the standard library too.
_INSTALLED: Final = f"{os.sep}lib{os.sep}python"


def add_compiled(made: Contents, of: Interpreter, folder: Path) -> None:
    """Add compiled code of all modules; what must be made goes into ``folder``. Code that does not compile stays without."""
    missing: list[tuple[str, str, str]] = []
    for name in list(names_of_modules(made)):
        entry = made.entries[name]
        inside = f"{os.path.dirname(name)}/__pycache__/{os.path.basename(name)[:-3]}.{of.cache_tag}.pyc"
        if inside in made.entries or not entry.source:
            continue
        # Beside sources that are no installed ones compiled code comes and goes with whoever imports them.
        data = unchecked(Path(entry.source), of) if _INSTALLED in entry.source else None
        if data is not None:
            made.entries[inside] = Entry(data=data)
        else:
            missing.append((inside, entry.source, str(folder / f"{len(missing)}.pyc")))
    if missing:
        lines = "".join(json.dumps((source, compiled)) + "\n" for _, source, compiled in missing)
        subprocess.run([of.executable, "-I", "-S", "-c", _COMPILE], input=lines, text=True, check=False, cwd="/")
    for inside, _, compiled in missing:
        if os.path.isfile(compiled):
            made.entries[inside] = Entry(compiled)


def unchecked(source: Path, of: Interpreter) -> bytes | None:
    """The compiled code beside a source file, if it is valid, as one that nobody need check."""
    try:
        data = (source.parent / "__pycache__" / f"{source.stem}.{of.cache_tag}.pyc").read_bytes()
        found, text = source.stat(), source.read_bytes()
    except OSError:
        return None
    if len(data) < _PYC_HEADER or data[:4] != of.magic:
        return None
    # Another version of Python has another hash, which nobody asks for in an unchecked one.
    digest = importlib.util.source_hash(text) if of.magic == importlib.util.MAGIC_NUMBER else bytes(8)
    flags = int.from_bytes(data[4:8], "little")
    stamp = (int(found.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little") + (found.st_size & 0xFFFFFFFF).to_bytes(4, "little")
    if data[8:16] != (digest if flags & 1 else stamp):
        return None
    return data[:4] + _UNCHECKED + digest + data[_PYC_HEADER:]


# ---------------------------------------------------------------- looking at one

#: How archives begin, and what tar needs to be told.
KINDS: Final = ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"))


def kind_of(start: bytes) -> str:
    """``gzip``, ``bzip2``, ``xz``, ``zstd``, ``tar``, or "" for no archive at all. ``start``: its first 512 bytes."""
    for mark, kind in KINDS:
        if start.startswith(mark):
            return kind
    return "tar" if start[257:262] == b"ustar" else ""


def head_of(path: str | os.PathLike[str]) -> Head | None:
    """What an archive made by `windlass.environment.pack` says of itself; None: it is of another maker. Raises OSError."""
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            first = tar.next()
            if first is None or first.name != HEAD or (content := tar.extractfile(first)) is None:
                return None
            given = json.loads(content.read(1 << 16))
            boot = given.pop("boot", None)
            return Head(**{name: given[name] for name in Head.__slots__ if name != "boot"}, boot=BootHead(**boot) if boot else None)
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, zlib.error):
        return None


def boot_of(path: str | os.PathLike[str]) -> bytes:
    """The boot of an archive whose head says that it has one. Raises OSError, `UsageError` for an archive that is damaged."""
    try:
        # tarfile's own gzip ends with the first of several members.
        with gzip.open(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if member.name == BOOT and (content := tar.extractfile(member)) is not None:
                    return content.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UsageError(f"{os.fspath(path)} is damaged: {error}") from None
    raise UsageError(f"{os.fspath(path)} says that it has {BOOT}, and has not; pack it again")


def chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """A file's bytes, in pieces."""
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            yield piece
