"""The archive of ``environment=``: what the factory must know of it before it sends pilots out.

Theory of operation
-------------------
It is read once when a factory begins, for its digest: pilots find out by that whether what they unpack is what the factory saw, and the
folder on the node is named by the archive's content (`u3-...`, as the worker's cache names unpacked archives), so that pilots of other
factories find it there, and never another one under its name.  An archive that `windlass.environment.pack` made says its Python and its
size; a wrong Python is refused here, before any pilot waits in a queue for it.

Such an archive has a boot (`windlass.environment_boot`), which is put beside the connection file: nodes read that, and their workers pass
the archive on to each other."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from windlass import __version__
from windlass.environment_archive import boot_of, chunks, head_of, kind_of
from windlass.environment_boot import BootHead
from windlass.errors import UsageError
from windlass.manifests import unpacked_name

log = logging.getLogger("windlass.factory")

#: An archive that does not say what it takes unpacked takes about so many times its size; of conda's environments 3 to 4.
GROWS: Final = 3
#: A file takes whole blocks of the disk, and the folders are not counted: a share, and bytes for each file.
SLACK: Final = 1.02
BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Environment:
    """An archive, as a pilot's script needs it. Bytes."""

    archive: str
    name: str
    sha256: str
    size: int
    #: Of an archive of another maker a guess.
    unpacked: int
    kind: str
    #: As in ``3.11.7``; "": it does not say.
    python: str = ""
    #: The version of the Windlass in it; "": it does not say.
    windlass: str = ""
    #: Where to unpack it; "": where the node has room that its pilots share.
    scratch: str = ""
    #: The archive's name as a file of workers.
    packed: str = ""
    boot_head: BootHead | None = None
    #: What the script unpacks in its place, where the node can: the worker then has the archive from other workers.
    boot: Environment | None = None

    @property
    def kilobytes(self) -> int:
        """Room that it needs."""
        return -(-self.unpacked // 1024)

    @property
    def words(self) -> str:
        """What a worker that runs in the boot is told of the archive (`windlass.worker.environment`)."""
        return f"{self.name} {self.packed} {self.size} {self.archive}"


_known: dict[tuple[str, int, int], Environment] = {}


def read_environment(path: str | os.PathLike[str], scratch: str = "") -> Environment:
    """Look at an archive. Raises `UsageError`: it is not there, it is no archive, or its Python is not this program's."""
    place = Path(path).expanduser().absolute()
    given = f"environment={os.fspath(path)!r}"
    try:
        found = place.stat()
        with place.open("rb") as file:
            kind = kind_of(file.read(512))
    except OSError as error:
        hint = "" if place.exists() else "; windlass environment pack makes one"
        raise UsageError(f"{given}: {error.strerror or error}{hint}") from None
    if not kind:
        raise UsageError(f"{given} is no archive that tar reads; give one made by windlass environment pack, or by conda-pack")
    key = (str(place), found.st_size, found.st_mtime_ns)
    if key not in _known:
        _known[key] = _read(place, found.st_size, kind)
    environment = _known[key]
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if environment.python and not environment.python.startswith(f"{here}."):
        raise UsageError(
            f"{given} has Python {environment.python}, and this program runs {here}: functions cannot be sent to it;"
            " pack an environment of this Python, or run the program in that one"
        )
    if environment.windlass not in ("", __version__):
        log.warning("%s has Windlass %s, and this program %s: pack it again", given, environment.windlass, __version__)
    return replace(environment, scratch=scratch)


def with_boot(environment: Environment, folder: Path) -> Environment:
    """The same, with its boot in the folder, where that is there, nodes can see it and it can be written."""
    head = environment.boot_head
    if head is None:
        return environment
    try:
        data = boot_of(environment.archive)
    except OSError as error:
        raise UsageError(f"environment={environment.archive!r} cannot be read: {error.strerror or error}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != head.sha256:
        raise UsageError(f"environment={environment.archive!r} is damaged: its boot is not what its head says; pack it again")
    place = folder / f"windlass-boot-{digest[:16]}.tar.xz"
    try:
        if folder.is_dir():  # else this is a dry run
            partial = place.with_suffix(f".{os.getpid()}.part")
            partial.write_bytes(data)
            partial.replace(place)
    except OSError as error:
        log.warning("%s cannot be written, so each node will read the whole environment: %s", place, error.strerror or error)
        return environment
    unpacked = int(head.unpacked * SLACK) + head.files * BLOCK // 2
    # Another name than a whole environment of these bytes would have.
    boot = Environment(str(place), f"u3-boot-{digest[:32]}", digest, len(data), unpacked, "xz", scratch=environment.scratch)
    return replace(environment, boot=boot)


def _read(place: Path, size: int, kind: str) -> Environment:
    from blake3 import blake3

    digest, content = hashlib.sha256(), blake3()
    try:
        for piece in chunks(place):
            digest.update(piece)
            content.update(piece)
        head = head_of(place) if kind != "zstd" else None
    except OSError as error:
        raise UsageError(f"environment={str(place)!r} cannot be read: {error.strerror or error}") from None
    packed = f"b3-{content.hexdigest(16)}"
    name = unpacked_name(packed)
    unpacked = size * GROWS if head is None else int(head.size * SLACK) + head.files * BLOCK // 2
    return Environment(
        str(place),
        name,
        digest.hexdigest(),
        size,
        unpacked,
        kind,
        head.python if head else "",
        head.windlass if head else "",
        packed=packed,
        boot_head=head.boot if head else None,
    )
