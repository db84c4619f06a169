"""Manifests: what a directory tree holds, with a content name, and which trees there can be.

Theory of operation
-------------------
A *manifest* lists what is below a folder, sorted by path: regular files (with mode, size and BLAKE3), folders (empty ones too) and symbolic
links.  Paths are bytes, relative, with ``/`` between their parts; each folder on the way stands in the list before what it holds.
Owners, times, hard links and bits beyond 0o777 are not part of a tree, so the same content has the same name (``t3-``, the BLAKE3 of the
encoded manifest) everywhere.  What its owner could not read could not be sent on either: the owner's read bits are always set.

A manifest that comes from elsewhere is hostile until it is decoded.  `decode_manifest` accepts exactly what `windlass.trees.scan` makes: no
path leaves the tree, none lies below a link or file, and no link leads out of the tree, neither by itself nor by way of others (`leads_out`
walks as the kernel would).

A core: no files are touched here. Imported by workers at their start: blake3 is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from windlass.errors import BadTree
from windlass.messages import FileName, Record

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: A manifest with more bytes is not accepted: some millions of files.
MAX_MANIFEST_BYTES: Final = 512 << 20
_VERSION: Final = 1
_HEX: Final = frozenset("0123456789abcdef")
_HEADS: Final = ("b3", "t3", "u3", "x3", "r")
#: As many links as the kernel follows for one path.
_MAX_LINKS: Final = 40


class TreeEntry(Record, frozen=True):
    """One thing in a tree: ``f`` a regular file, ``d`` a folder, ``l`` a symbolic link."""

    path: bytes
    kind: Literal["f", "d", "l"]
    #: Permission bits, at most 0o777; 0 for links, which have none.
    mode: int = 0
    size: int = 0
    #: BLAKE3 of a file's bytes (16 bytes).
    digest: bytes = b""
    #: Where a link points to.
    target: bytes = b""


class _Encoded(Record, frozen=True):
    version: int
    mode: int
    entries: tuple[TreeEntry, ...]


class Manifest:
    """What a tree holds. Immutable. Made by `scan` or `decode_manifest`."""

    def __init__(self, mode: int, entries: tuple[TreeEntry, ...], times: tuple[int, ...] = (), encoded: bytes = b"") -> None:
        #: Permission bits of the tree's own folder.
        self.mode = mode
        self.entries = entries
        #: The regular files, in the stream's order.
        self.files = tuple(entry for entry in entries if entry.kind == "f")
        #: Times of change of `files` in nanoseconds, as scanned; empty when they are not known.
        self.times = times
        #: Bytes of content.
        self.size = sum(entry.size for entry in self.files)
        self._encoded = encoded

    def encode(self) -> bytes:
        """The manifest as it travels."""
        if not self._encoded:
            self._encoded = msgspec.msgpack.encode(_Encoded(_VERSION, self.mode, self.entries))
        return self._encoded

    @property
    def name(self) -> FileName:
        """The tree's content name."""
        return tree_name(self.encode())

    @property
    def stream_size(self) -> int:
        """Bytes of the tree's stream."""
        return 8 + len(self.encode()) + self.size


def is_file_name(name: str) -> bool:
    """True for what may be a file's name, and so may become part of a path."""
    head, _, tail = name.partition("-")
    return len(tail) == 32 and _HEX.issuperset(tail) and head in _HEADS


def tree_name(encoded: Buffer) -> FileName:
    """The name of the tree whose manifest has these bytes."""
    return FileName("t3-" + hasher(encoded).hexdigest(16))


def unpacked_name(packed: str) -> FileName:
    """The name of what is unpacked of the archive of this name. It says what is in it as much as that one does."""
    return FileName("u3-" + hasher(b"unpack " + packed.encode()).hexdigest(16))


def decode_manifest(data: Buffer) -> Manifest:
    """The manifest that `Manifest.encode` made. Raises `BadTree` for anything that `scan` would not have made."""
    try:
        encoded = msgspec.msgpack.decode(data, type=_Encoded)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadTree(f"a manifest cannot be read: {error}") from error
    if encoded.version != _VERSION:
        raise BadTree(f"a manifest has format {encoded.version}; this Windlass reads format {_VERSION}: use one version everywhere")
    if encoded.mode & ~0o777 or encoded.mode & 0o500 != 0o500:
        raise BadTree(f"a manifest gives its folder the mode {encoded.mode:#o}")
    folders, previous = {b""}, b""
    for entry in encoded.entries:
        path = entry.path
        refuse_path(path, "a manifest")
        if path <= previous:
            raise BadTree(f"a manifest names {show(path)} twice or out of order")
        if path.rpartition(b"/")[0] not in folders:
            raise BadTree(f"a manifest has {show(path)} below something that is no folder of it")
        if entry.kind == "d":
            folders.add(path)
        _refuse_facts(entry)
        previous = path
    refuse_links_out({entry.path: entry.target for entry in encoded.entries if entry.kind == "l"}, "a manifest")
    return Manifest(encoded.mode, encoded.entries, encoded=bytes(data))


def _refuse_facts(entry: TreeEntry) -> None:
    readable = {"f": 0o400, "d": 0o500, "l": 0}[entry.kind]
    good = not entry.mode & ~0o777 and entry.mode & readable == readable
    if entry.kind == "f":
        good = good and entry.size >= 0 and len(entry.digest) == 16 and not entry.target
    else:
        good = good and not entry.size and not entry.digest and bool(entry.target) == (entry.kind == "l")
    if not good or (entry.kind == "l" and (entry.mode or b"\0" in entry.target)):
        raise BadTree(f"a manifest has an entry {show(entry.path)} that cannot be: {entry}")


def refuse_path(path: bytes, what: str) -> None:
    """Raise `BadTree` for a path that is not relative, or has parts that are empty, ``.`` or ``..``."""
    if b"\0" in path or not {b"", b".", b".."}.isdisjoint(path.split(b"/")):
        raise BadTree(f"{what} has the path {show(path)}, which could lead out of the tree; nothing of it is kept")


def refuse_links_out(links: Mapping[bytes, bytes], what: str) -> None:
    """Raise `BadTree` when a link of a tree leads out of it. `links`: path in the tree to target, of all links in it."""
    for path, target in links.items():
        if leads_out(path, links):
            raise BadTree(
                f"{what} has a link {show(path)} that leads out of it, to {show(target)}; no worker would have that: "
                "put what it points to into the tree and make the link relative, or leave the link out"
            )


def leads_out(path: bytes, links: Mapping[bytes, bytes]) -> bool:
    """True when the link at `path` leads out of its tree, also by way of other links. `links`: path to target, of all links in the tree."""
    at, parts, followed = path.split(b"/"), list[bytes](), 0
    while at or parts:
        target = links.get(b"/".join(at)) if at else None
        if target is not None:
            followed += 1
            if followed > _MAX_LINKS:
                return False  # as the kernel has it, it leads nowhere
            if target.startswith(b"/"):
                return True
            at.pop()
            parts += reversed(target.split(b"/"))
        if not parts:
            return False
        part = parts.pop()
        if part == b"..":
            if not at:
                return True
            at.pop()
        elif part not in (b"", b"."):
            at.append(part)
    return False


def show(path: str | bytes) -> str:
    """A path for people, on one line whatever bytes it has."""
    text = path if isinstance(path, str) else path.decode("utf-8", "surrogateescape")
    return text if text.isprintable() and " " not in text and text else repr(text)


def hasher(data: Buffer = b"") -> Any:
    """A BLAKE3 hasher that has seen `data`."""
    import blake3

    return blake3.blake3(data)
