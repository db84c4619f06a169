"""Snapshots: the source of local modules, as zip archives with content names, for workers that do not have it.

Theory of operation
-------------------
A snapshot is a zip of one top-level module or package that is local (`windlass.homes`), with all its files: sorted, with fixed dates, so
that the same source has the same name everywhere and travels once per worker.  Left out are caches, version control, virtual environments,
journals, hidden files, and files over `MAX_FILE_BYTES` that are no shared libraries, which is told.  What the source imports (statically)
and is local too comes along.  A zip is made again when path, modification time or size of a file differ (in an archive on the path its
check sum); that is looked at once a second at most, as it may be asked for each call.

The worker unpacks a snapshot into a folder of its own, which goes first on ``sys.path``; so submodules, files beside ``__file__``
and imports inside a function's body work there. This module is imported by slots: zipfile and the like only where needed.

*Edits.* A module has one text at a time: the newest, for all functions and arguments of a program (`edits` tells those who keep snapshots
that there is a newer one). A library has the texts that it was installed with, and keeps them. Of what comes with calls a slot uses the
text that came last; when that changes it forgets all modules that came with calls, for these may have imported each other.

Editors truncate a file and write it, or move it away and write another; ``git checkout`` writes one file after the other. So source that
differs from what is known is taken when a second look, `REST` seconds later, finds the same: whoever submits meanwhile waits, as the old
text would be as wrong as half of the new one. An asyncio program's loop waits with it, so there are few looks; after source that did not
rest, as a program or a build writes it all the time, the next one is later each time. In a program that submits all the time one thread
looks, and others have for so long what was known, if that is `BEARABLE` seconds old at most. No clocks are compared: a file server has
its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from windlass.homes import LOCAL, find_spec, home_of, is_installed, places_of, sources, spec_of
from windlass.messages import ObjectName, ObjectRef

if TYPE_CHECKING:
    import hashlib
    from collections.abc import Callable

    from typing_extensions import Buffer

    Put = Callable[[Buffer], ObjectRef]

#: Larger files are data sets rather than source, or shared libraries.
MAX_FILE_BYTES: Final = 20_000_000
#: A module with more than these is refused.
MAX_TOTAL_BYTES: Final = 200_000_000
MAX_FILES: Final = 20_000
#: Seconds for which the files of a module are taken to be unchanged.
MAX_AGE: Final = 1.0
#: And so many, as long as another thread looks.
BEARABLE: Final = 2.0
#: Seconds for which source that was edited must have stayed the same, and how often that is looked for.
REST: Final = 0.2
LOOKS: Final = 3
#: Seconds after which source that has not rested in several looks on end is looked at again, at most.
PAUSE_MOST: Final = 8.0

_SKIPPED_FOLDERS: Final = frozenset({"__pycache__", "node_modules", "venv", "CVS"})
#: How the log of a journal begins (`windlass.manager.journal`).
_JOURNAL: Final = b"windlass journal "
_SKIPPED_ENDS: Final = (".pyc", ".pyo", ".egg-info", ".dist-info", "~")
_DATE: Final = (1980, 1, 1, 0, 0, 0)


# ---------------------------------------------------------------- making them


class Text(NamedTuple):
    """What a snapshot says."""

    module: str
    #: A digest of the files' names and contents. The archive's name depends on the zlib that packed it as well, and on modes.
    content: str
    #: The top-level modules that its source imports.
    needs: tuple[str, ...]


class _Snapshot:
    """The newest snapshot of a top-level module."""

    def __init__(self, module: str, files: dict[str, tuple[str, int, int]]) -> None:
        self.files = files
        self.data, content = _zipped(files)
        self.text = Text(module, content, tuple(_imported(files)))
        #: On the monotonic clock; ahead of it when the next look is to be later.
        self.looked_at = 0.0
        #: How many times on end the source has not rested.
        self.unrested = 0


_snapshots: dict[str, _Snapshot] = {}
#: Those that a thread looks at anew. A fork has none of its threads.
_looked_at: set[str] = set()
os.register_at_fork(after_in_child=_looked_at.clear)
#: The text of each snapshot that was taken, by the snapshot's name.
_texts: dict[str, Text] = {}
#: How many times a module was found to be another than at the last look.
edits: int = 0


def snapshots_of(modules: Iterable[str], put: Put, max_age: float = MAX_AGE) -> tuple[ObjectRef, ...]:
    """Snapshots of these top-level modules, as far as they are local, and of the local ones that their source imports.

    `max_age`: seconds for which files are taken to be unchanged. Raises `UsageError` for a module that is too large, and what
    ``put`` raises.
    """
    refs: list[ObjectRef] = []
    for snapshot in _taken(modules, max_age):
        refs.append(put(snapshot.data))
        _texts[refs[-1].name] = snapshot.text
    return tuple(refs)


def texts_of(modules: Iterable[str]) -> list[Text]:
    """What those snapshots say. Raises `UsageError` as `snapshots_of`."""
    return [snapshot.text for snapshot in _taken(modules, MAX_AGE)]


def text_of(ref: ObjectRef) -> Text:
    """What a snapshot says that this process has taken; of another one nothing is known but its name, by which it differs from all."""
    return _texts.get(ref.name) or Text(ref.name, ref.name, ())


def module_of(ref: ObjectRef) -> str:
    """The top-level module of a snapshot."""
    return text_of(ref).module


def _taken(modules: Iterable[str], max_age: float) -> list[_Snapshot]:
    import time

    now = time.monotonic()
    taken: dict[str, _Snapshot] = {}
    waiting = sorted(set(modules))
    while waiting:
        name = waiting.pop()
        if name in taken or home_of(name) != LOCAL:
            continue
        snapshot = taken[name] = _take(name, now, max_age)
        waiting += snapshot.text.needs
    return [taken[name] for name in sorted(taken) if taken[name].files]


def looks_again_at(modules: Iterable[str]) -> float:
    """When the files of one of these modules, as far as they were just looked at, are looked at again, on the monotonic clock."""
    import time

    now = time.monotonic()
    looks = [known.looked_at for known in map(_snapshots.get, modules) if known is not None]
    return min((at for at in looks if now - at <= MAX_AGE), default=now) + MAX_AGE


def _take(name: str, now: float, max_age: float) -> _Snapshot:
    global edits
    known = _snapshots.get(name)
    # Where a look is under way what it last found may serve a little longer, but never who wants it as it is now.
    longest = BEARABLE if max_age and name in _looked_at else max_age
    if known is not None and now - known.looked_at <= longest:
        return known
    import time

    from windlass.zipped import Unreadable

    _looked_at.add(name)
    try:
        taken = _look(name, known)
    except Unreadable:  # an archive that is just being written: what it had
        taken = known or _Snapshot(name, {})
    finally:
        _looked_at.discard(name)
    (sources.add if taken.files else sources.discard)(name)
    if taken is not known:
        edits += 1 if known is not None else 0
        _snapshots[name] = taken
    taken.looked_at = time.monotonic() + _pause(taken.unrested) - MAX_AGE if taken.unrested else now
    return taken


def _pause(unrested: int) -> float:
    """Seconds until source is looked at again that has so many times not rested."""
    return float(min(MAX_AGE * 2 ** min(unrested - 1, 10), PAUSE_MOST))


def _look(name: str, known: _Snapshot | None) -> _Snapshot:
    """The module as it is now; what is just being saved as it is when that is done. Raises `Unreadable`."""
    files, looks = _files(name, known), 1
    while True:
        if known is not None and known.files == files:
            known.unrested = 0
            return known
        if looks > 1 or (known is not None and _source(known.files) != _source(files)):
            _let_rest()
        taken = _Snapshot(name, files)
        again = _files(name, known)
        rested = _source(again) == _source(files)
        if looks == LOOKS or rested:
            taken.unrested = 0 if rested else (known.unrested if known is not None else 0) + 1
            return taken
        files, looks = again, looks + 1


def _source(files: dict[str, tuple[str, int, int]]) -> dict[str, tuple[str, int, int]]:
    """Those that people edit; a program may write data into a folder of its own all the time."""
    return {name: file for name, file in files.items() if name.endswith(".py")}


def _let_rest() -> None:
    import time

    time.sleep(REST)


def _files(top: str, known: _Snapshot | None) -> dict[str, tuple[str, int, int]]:
    """Name in the archive → (path, modification time in ns, or check sum, bytes). Raises `UsageError` when they are too many bytes, and
    `Unreadable`."""
    spec = spec_of(top)
    files: dict[str, tuple[str, int, int]] = {}
    left_out: dict[str, tuple[str, int, int]] = {}
    total = 0
    places = [] if spec is None else places_of(spec)
    if places in ([], ["<unknown>"]):  # as zipimport says it of what it cannot read
        places = _archived(known)
    for place in places:
        if is_installed(place):
            continue  # the other portion of a namespace package
        for name, path, changed, size in _found(place, top):
            if name in files or name in left_out:
                continue
            wanted = files if size <= MAX_FILE_BYTES else left_out
            wanted[name] = (path, changed, size)
            total += size if wanted is files else 0
            if total > MAX_TOTAL_BYTES or len(files) > MAX_FILES:
                raise _too_large(top, files)
    for name in [name for name in left_out if _is_shared_library(name)]:
        if total + left_out[name][2] <= MAX_TOTAL_BYTES:
            files[name] = left_out.pop(name)
            total += files[name][2]
    _tell_of(top, left_out)
    return files


def _archived(known: _Snapshot | None) -> list[str]:
    """The places in archives where a module was: no import finds it any more once the archive is another."""
    if known is None or not known.files:
        return []
    from windlass import zipped

    places = {path.removesuffix(name) + name.partition("/")[0] for name, (path, _, _) in known.files.items()}
    return [place for place in sorted(places) if zipped.leads_into(place)]


def _found(place: str, top: str) -> Iterator[tuple[str, str, int, int]]:
    """(name in the archive, path, modification time in ns, or check sum in an archive, bytes) of the files of a package, or of a module."""
    if not os.path.exists(place):
        from windlass import zipped

        yield from (file for file in zipped.files(place) if not any(map(_is_left, file[0].split("/"))))
        return
    for name, path in _walk(place, top, set()) if os.path.isdir(place) else [(os.path.basename(place), place)]:
        try:
            status = os.stat(path)
        except OSError:
            continue  # a dangling link, or just removed
        yield name, path, status.st_mtime_ns, status.st_size


def _is_left(name: str) -> bool:
    """A file or folder that is no source."""
    return name.startswith(".") or name.endswith(_SKIPPED_ENDS)


def _is_shared_library(name: str) -> bool:
    """Extension modules with symbols in them are large, and code all the same."""
    return name.endswith(".so") or ".so." in name.rpartition("/")[2]


#: Paths of files that were left out, and that was told.
_told: set[str] = set()


def _tell_of(top: str, left_out: dict[str, tuple[str, int, int]]) -> None:
    """Say once what calls will not find beside the module, as it is there where the program runs."""
    new = {name: size for name, (path, _, size) in sorted(left_out.items()) if path not in _told}
    if not new:
        return
    import logging

    _told.update(path for path, _, _ in left_out.values())
    listed = [f"{name} ({size / 1e6:.0f} MB)" for name, size in new.items()]
    logging.getLogger("windlass.snapshots").warning(
        "the local module %r goes to workers without what is over %.0f MB: %s%s; let calls read it by an absolute path that nodes see, or "
        "from a file that is declared",
        top,
        MAX_FILE_BYTES / 1e6,
        ", ".join(listed[:5]),
        f" and {len(listed) - 5} more" if len(listed) > 5 else "",
    )


def _too_large(top: str, files: dict[str, tuple[str, int, int]]) -> Exception:
    from windlass.errors import UsageError

    largest = sorted(files.values(), key=lambda file: -file[2])[:3]
    listed = ", ".join(f"{path} ({size / 1e6:.0f} MB)" for path, _, size in largest)
    return UsageError(
        f"the local module {top!r} has too many files for workers: more than {MAX_TOTAL_BYTES / 1e6:.0f} MB or {MAX_FILES} files; "
        f"among the largest: {listed}; move data out of the package, or install it where workers see it"
    )


def _walk(folder: str, inside: str, above: set[str]) -> Iterator[tuple[str, str]]:
    """(name in the archive, path) of all that belongs to a source tree; links are followed, never in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if _is_left(entry.name):
            continue
        if entry.is_dir():
            if entry.name not in _SKIPPED_FOLDERS and not _is_skipped(entry.path):
                yield from _walk(entry.path, f"{inside}/{entry.name}", above | {real})
        elif entry.is_file():
            yield f"{inside}/{entry.name}", entry.path


def _is_skipped(folder: str) -> bool:
    """A virtual environment; or a journal, or each result in it would make the package it is in another one."""
    if os.path.exists(os.path.join(folder, "pyvenv.cfg")):
        return True
    log = os.path.join(folder, "log")
    if not os.path.isfile(log):
        return False
    try:
        with open(log, "rb") as file:
            return file.read(len(_JOURNAL)) == _JOURNAL
    except OSError:
        return False


def _zipped(files: dict[str, tuple[str, int, int]]) -> tuple[bytes, str]:
    """The archive, and a digest of what is in it."""
    import hashlib
    import io
    import zipfile

    from windlass.zipped import read

    out, digest = io.BytesIO(), hashlib.blake2b(digest_size=16)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in sorted(files):
            path = files[name][0]
            try:
                data = read(path)
                executable = os.access(path, os.X_OK)
            except OSError:
                continue  # not ours to read, or just removed
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, wherever it is made
            info.external_attr = (0o100755 if executable else 0o100644) << 16
            archive.writestr(info, data)
            _add_file(digest, name, len(data), data)
    return out.getvalue(), digest.hexdigest()


def _add_file(digest: hashlib.blake2b, name: str, size: int, said: bytes) -> None:
    digest.update(f"{len(name)} {name} {size}\n".encode(errors="surrogateescape"))
    digest.update(said)


def _imported(files: dict[str, tuple[str, int, int]]) -> list[str]:
    """The top-level modules that the Python files import by an absolute name, anywhere in them."""
    import ast

    from windlass.zipped import read

    names: set[str] = set()
    for path in [file[0] for name, file in files.items() if name.endswith(".py")]:
        try:
            tree = ast.parse(read(path))
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue  # its import will say so
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return sorted(names)


def digest_of(top: str) -> str:
    """The files of an installed module of which no distribution tells: what the Python ones say, and how large others are."""
    import hashlib

    digest = hashlib.blake2b(digest_size=8)
    spec = find_spec(top)
    for place in [] if spec is None else places_of(spec):
        for name, path in sorted(_walk(place, top, set())) if os.path.isdir(place) else [(os.path.basename(place), place)]:
            with suppress(OSError), open(path, "rb") as file:
                said = file.read() if name.endswith(".py") else b""
                _add_file(digest, name, os.fstat(file.fileno()).st_size, said)
    return digest.hexdigest()


# ---------------------------------------------------------------- on the worker


def unpack(archive: str | os.PathLike[str] | Buffer, folder: str | os.PathLike[str]) -> str:
    """Unpack a snapshot into `folder`, whole or not at all; returns the folder. One that is there already is used as it is.

    Raises `ValueError`, and makes nothing, for an archive that is damaged or names files outside of the folder.
    """
    folder = os.fspath(folder)
    if os.path.isdir(folder):
        return folder
    import io
    import shutil
    import zipfile

    half = f"{folder}.{os.getpid()}-{os.urandom(6).hex()}"
    try:
        source: Any = archive if isinstance(archive, str | os.PathLike) else io.BytesIO(archive)
        os.makedirs(half, mode=0o700)
        with zipfile.ZipFile(source) as zipped:
            for info in zipped.infolist():
                _unpack_one(zipped, info, half)
        try:
            os.rename(half, folder)
        except OSError:
            if not os.path.isdir(folder):  # else another process was quicker
                raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"a snapshot of source code is damaged and was not unpacked into {folder}: {error}") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return folder


def _unpack_one(zipped: Any, info: Any, folder: str) -> None:
    name: str = info.filename
    kind = (info.external_attr >> 16) & 0o170000
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts) or kind not in (0, 0o100000):
        raise ValueError(f"a snapshot of source code names {name!r}, which is no plain file below its folder; nothing was unpacked")
    path = os.path.join(folder, *parts)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    mode = 0o700 if (info.external_attr >> 16) & 0o100 else 0o600
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(zipped.read(info))
    os.utime(path, (315532800, 315532800))  # as in the archive, so that compiled files stay valid


def use(folder: str) -> None:
    """Put an unpacked snapshot first on ``sys.path``, once."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
        sys.path_importer_cache.pop(folder, None)


def code_folder(base: str | os.PathLike[str], name: ObjectName | str) -> str:
    """Where the snapshot of this name is unpacked below `base`."""
    return os.path.join(base, name)


#: Where snapshots that come with a call are unpacked; a worker's processes set their worker's folder here.
call_code_folder: str = ""
#: This is a process of a worker: what ``__main__`` has is not the program's.
on_worker = False
#: The snapshots of the library whose process this is.
library_code: Sequence[ObjectRef] = ()
#: The module of each snapshot that came with a call and is in use; "" where the library has a text of its own.
_brought: dict[str, str] = {}


def install_all(names: Sequence[str], archives: Sequence[Buffer]) -> None:
    """Unpack snapshots that came with a call and use them; the first thing that such a call's stream does."""
    global call_code_folder
    if not call_code_folder:
        import tempfile

        call_code_folder = tempfile.mkdtemp(prefix="windlass-code-")  # in a slot, below the worker's scratch
    for name, archive in zip(names, archives, strict=True):
        if name not in _brought:
            _bring(name, unpack(archive, code_folder(call_code_folder, name)))


def _bring(name: str, folder: str) -> None:
    """Use a snapshot that was not in use."""
    module = _module_in(folder)
    if module in {_module_in(code_folder(call_code_folder, ref.name)) for ref in library_code}:
        _brought[name] = ""
        return
    for other in [other for other, its in _brought.items() if its == module]:
        _forget_brought()
        del _brought[other]
        with suppress(ValueError):  # the user's code may change the path
            sys.path.remove(code_folder(call_code_folder, other))
    _brought[name] = module
    use(folder)


def _module_in(folder: str) -> str:
    """The top-level module of an unpacked snapshot."""
    return next((entry.partition(".")[0] for entry in os.listdir(folder) if entry != "__pycache__"), "")


def _forget_brought() -> None:
    """Have all modules that came with calls imported again."""
    base = os.path.join(call_code_folder, "")
    of_library = tuple(os.path.join(code_folder(call_code_folder, ref.name), "") for ref in library_code)
    tops = {*_brought.values()}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) if name.partition(".")[0] in tops else None
        if isinstance(file, str) and file.startswith(base) and not file.startswith(of_library):
            del sys.modules[name]
