"""The process behind `slowfs`: serves folders of this machine, read-only and slowly, over FUSE's own protocol, and counts what is asked.

Theory of operation
-------------------
The kernel hands requests to whoever reads a descriptor of /dev/fuse, and takes the answers from what is written there; nothing else is
needed, no library.  One descriptor is one mount, of one folder.  A mount's threads each read a request, count it, wait as long as the
far-away server would take, and answer; so as many are under way at a time as there are threads, and the delay of one holds up no other.

The mounts are made in a *mount namespace* of their own, by a child (the *holder*) that then only waits: there each folder is covered by its
own slow view, under its own path, while the rest of the machine, this process included, sees the folder itself.  The namespace goes with
the last process in it, and the mounts with the namespace: whatever dies, and however, nothing is left mounted.

What the kernel may remember for ``valid`` seconds it does not ask again: names that are there, names that are not, attributes, listings,
links; and pages of files for as long as there is memory, since nothing here changes.  Each open is asked, as NFS and Lustre do.  A close is
told without anybody waiting for an answer, so it is not counted, nor is what only says what the kernel has forgotten.

The one argument is a JSON object (`Orders`).  The first line of output says where the namespace is; then each line of input is a question,
with one line as its answer; the end of the input is the end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

#: Requests of one mount that are under way at a time.
THREADS: Final = 16
#: Bytes of one read, at most.
MOST_READ: Final = 1 << 20
#: What the kernel asks for room when it writes a request: its header and the largest write, though there are none.
BUFFER: Final = 64 << 10
PROTOCOL: Final = (7, 31)

IN_HEADER: Final = struct.Struct("<IIQQIIII")  # length, operation, unique, node, user, group, process, -
OUT_HEADER: Final = struct.Struct("<IiQ")  # length, error, unique
ATTRIBUTES: Final = struct.Struct("<6Q10I")
ENTRY: Final = struct.Struct("<QQQQII")  # node, generation, seconds that name and attributes hold, and their nanoseconds
ATTRIBUTES_HOLD: Final = struct.Struct("<QII")
OPENED: Final = struct.Struct("<QII")  # handle, flags, -
INIT_IN: Final = struct.Struct("<IIII")
INIT_OUT: Final = struct.Struct("<IIIIHHIIHHI28x")
READ_IN: Final = struct.Struct("<QQI")  # handle, offset, size
DIRENT: Final = struct.Struct("<QQII")  # inode, offset of the next, length of the name, type

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 22, 23, 25, 26, 27, 28, 29
ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 34, 36, 38, 42
#: Operations that somebody waits for, by the names that they are counted under; data is counted apart, and has no delay.
WAITED: Final = {
    LOOKUP: "lookup",
    GETATTR: "getattr",
    READLINK: "readlink",
    OPEN: "open",
    READ: "read",
    STATFS: "statfs",
    GETXATTR: "getxattr",
    LISTXATTR: "listxattr",
    OPENDIR: "opendir",
    READDIR: "readdir",
    ACCESS: "access",
}
UNANSWERED: Final = frozenset({FORGET, BATCH_FORGET, INTERRUPT, DESTROY})
ASYNC_READ, PARALLEL_DIROPS, MAX_PAGES, CACHE_SYMLINKS = 1 << 0, 1 << 18, 1 << 22, 1 << 23
KEEP_CACHE, CACHE_DIR = 1 << 1, 1 << 3

CLONE_NEWNS, CLONE_NEWUTS = 0x20000, 0x4000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 4096, 16384, 1 << 18


@dataclass
class Orders:
    """What to serve: absolute paths without links; seconds."""

    folders: list[str]
    delay: float
    valid: float
    #: The name that the node's host has.
    name: str
    #: The node's own disk, which its /tmp is; "": the machine's.
    local: str


@dataclass
class Tally:
    """What was asked of all mounts of this process."""

    operations: Counter[str] = field(default_factory=Counter[str])
    #: Bytes read, by file.
    read: Counter[str] = field(default_factory=Counter[str])
    under_way: int = 0
    #: The most requests that were under way at one time.
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, kind: str) -> None:
        with self.lock:
            self.operations[kind] += 1
            self.under_way += 1
            self.at_once = max(self.at_once, self.under_way)

    def end(self) -> None:
        with self.lock:
            self.under_way -= 1

    def count_read(self, path: str, size: int) -> None:
        with self.lock:
            self.read[path] += size

    def told(self) -> dict[str, object]:
        with self.lock:
            return {"operations": dict(self.operations), "read": dict(self.read), "at_once": self.at_once}


class Export:
    """One folder behind one descriptor of /dev/fuse."""

    def __init__(self, folder: str, device: int, orders: Orders, tally: Tally) -> None:
        self._folder, self._device, self._orders, self._tally = folder, device, orders, tally
        self._root = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        self._lock = threading.Lock()
        #: Paths below the folder by the number that the kernel knows them by, and the other way round.
        self._paths: dict[int, bytes] = {1: b"."}
        self._nodes: dict[bytes, int] = {b".": 1}
        self._files: dict[int, str] = {}
        self._listings: dict[int, bytes] = {}
        self._hold = int(orders.valid), int(orders.valid % 1 * 1e9)
        self._answers: dict[int, Callable[[int, bytes], bytes]] = {
            LOOKUP: self._lookup,
            GETATTR: self._getattr,
            READLINK: lambda node, _: os.readlink(self._paths[node], dir_fd=self._root),
            OPEN: self._open,
            READ: self._read,
            STATFS: lambda _node, _: struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0),
            OPENDIR: self._opendir,
            READDIR: self._readdir,
            RELEASE: self._release,
            RELEASEDIR: self._release,
            ACCESS: lambda _node, _: b"",
            INIT: self._init,
        }

    def serve(self) -> None:
        """Answer requests until the mount is gone; as many threads as are wanted may be here."""
        while True:
            try:
                request = os.read(self._device, BUFFER + MOST_READ)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):  # ENOENT: was interrupted before it was read
                    continue
                return
            if not request:
                return
            _, operation, unique, node, *_ = IN_HEADER.unpack_from(request)
            if operation in UNANSWERED:
                continue
            kind = WAITED.get(operation)
            if kind is not None:
                self._tally.begin(kind)
                if kind != "read":
                    time.sleep(self._orders.delay)
            status, answer = self._answer(operation, node, request[IN_HEADER.size :])
            if kind is not None:
                self._tally.end()  # before the answer: whoever hears it may ask for the counts
            try:
                os.write(self._device, OUT_HEADER.pack(OUT_HEADER.size + len(answer), -status, unique) + answer)
            except OSError as error:
                if error.errno != errno.ENOENT:  # whoever asked was killed
                    return

    def _answer(self, operation: int, node: int, body: bytes) -> tuple[int, bytes]:
        answer = self._answers.get(operation)
        if answer is None:
            return errno.ENOSYS if operation in (GETXATTR, LISTXATTR, FLUSH) or operation > ACCESS else errno.EROFS, b""
        try:
            return 0, answer(node, body)
        except OSError as error:
            return error.errno or errno.EIO, b""

    def _init(self, node: int, body: bytes) -> bytes:
        *_, flags = INIT_IN.unpack_from(body)
        wanted = flags & (ASYNC_READ | PARALLEL_DIROPS | MAX_PAGES | CACHE_SYMLINKS)
        pages = MOST_READ // 4096
        return INIT_OUT.pack(*PROTOCOL, MOST_READ, wanted, THREADS, THREADS, 4096, 1, pages, 0, 0)

    def _lookup(self, node: int, body: bytes) -> bytes:
        path = os.path.join(self._paths[node], body.rstrip(b"\0"))
        try:
            attributes = self._attributes(path)
        except FileNotFoundError:
            return ENTRY.pack(0, 0, self._hold[0], 0, self._hold[1], 0) + bytes(ATTRIBUTES.size)  # may be remembered as not there
        with self._lock:
            found = self._nodes.setdefault(path, len(self._nodes) + 1)
            self._paths[found] = path
        return ENTRY.pack(found, 0, self._hold[0], self._hold[0], self._hold[1], self._hold[1]) + attributes

    def _getattr(self, node: int, body: bytes) -> bytes:
        return ATTRIBUTES_HOLD.pack(*self._hold, 0) + self._attributes(self._paths[node])

    def _attributes(self, path: bytes) -> bytes:
        is_at = os.stat(path, dir_fd=self._root, follow_symlinks=False)
        times = is_at.st_atime_ns, is_at.st_mtime_ns, is_at.st_ctime_ns
        seconds, rests = [one // 10**9 for one in times], [one % 10**9 for one in times]
        owner = is_at.st_mode, is_at.st_nlink, is_at.st_uid, is_at.st_gid, 0, 4096, 0
        return ATTRIBUTES.pack(is_at.st_ino, is_at.st_size, is_at.st_blocks, *seconds, *rests, *owner)

    def _open(self, node: int, body: bytes) -> bytes:
        (flags,) = struct.unpack_from("<I", body)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "is read-only")
        handle = os.open(self._paths[node], os.O_RDONLY, dir_fd=self._root)
        self._files[handle] = os.path.join(self._folder, os.fsdecode(self._paths[node]))
        return OPENED.pack(handle, KEEP_CACHE, 0)

    def _read(self, node: int, body: bytes) -> bytes:
        handle, offset, size = READ_IN.unpack_from(body)
        data = os.pread(handle, size, offset)
        self._tally.count_read(self._files[handle], len(data))
        return data

    def _opendir(self, node: int, body: bytes) -> bytes:
        handle = os.open(self._paths[node], os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root)
        listing = b""
        with os.scandir(handle) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) >> 12
                size = DIRENT.size + len(name) + -len(name) % 8
                listing += DIRENT.pack(entry.inode(), len(listing) + size, len(name), kind) + name + bytes(-len(name) % 8)
        self._listings[handle] = listing
        return OPENED.pack(handle, KEEP_CACHE | CACHE_DIR, 0)

    def _readdir(self, node: int, body: bytes) -> bytes:
        """Whole entries from the offset on, as many as go into the size; an entry's offset is where the next one begins."""
        handle, offset, size = READ_IN.unpack_from(body)
        listing, end = self._listings[handle], offset
        while end < len(listing):
            following: int = DIRENT.unpack_from(listing, end)[1]
            if following - offset > size:
                break
            end = following
        return listing[offset:end]

    def _release(self, node: int, body: bytes) -> bytes:
        (handle,) = struct.unpack_from("<Q", body)
        self._files.pop(handle, None)
        self._listings.pop(handle, None)
        os.close(handle)
        return b""


def call(name: str, *values: Any) -> None:
    """A function of the C library that answers 0, or fails. Raises `OSError` with its name."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())


def cover(orders: Orders, devices: list[int]) -> None:
    """Go into a namespace of one's own, and there cover each folder by its slow view."""
    call("unshare", CLONE_NEWNS | CLONE_NEWUTS)
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    call("sethostname", orders.name.encode(), len(orders.name))
    if orders.local:
        mount(orders.local, "/tmp", "", MS_BIND)
        mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV)  # nothing is found there that another node has put there
    for folder in orders.folders:
        os.makedirs(folder, exist_ok=True)  # what lay in /tmp has to be there to be covered
    for folder, device in zip(orders.folders, devices, strict=True):
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={MOST_READ}"
        mount("slowfs", folder, "fuse.slowfs", MS_RDONLY | MS_NOSUID | MS_NODEV, options)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " fuse.slowfs " in line:  # the kernel reads 128 KiB at a time unless told otherwise; NFS and Lustre a megabyte and more
            number = line.split()[2]
            with contextlib.suppress(OSError):
                Path("/sys/class/bdi", number, "read_ahead_kb").write_text(str(MOST_READ >> 10))


def hold(orders: Orders, devices: list[int]) -> tuple[int, str]:
    """Fork the holder. Its process id, and what it had to say: "" when all is covered. It ends with this process."""
    alive, ours = os.pipe()
    said, saying = os.pipe()
    holder = os.fork()
    if holder == 0:
        os.close(ours)
        os.close(said)
        problem = ""
        try:
            cover(orders, devices)
        except OSError as error:
            problem = str(error)
        for device in devices:
            os.close(device)
        os.write(saying, problem.encode())
        os.close(saying)
        os.read(alive, 1)
        os._exit(0)
    os.close(alive)
    os.close(saying)
    with open(said, encoding="utf-8") as text:
        return holder, text.read()


def main() -> None:
    orders = Orders(**json.loads(sys.argv[1]))
    tally = Tally()
    try:
        devices = [os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC) for _ in orders.folders]
        exports = [Export(folder, device, orders, tally) for folder, device in zip(orders.folders, devices, strict=True)]
    except OSError as error:
        print(json.dumps({"problem": f"{error.filename}: {error.strerror}"}), flush=True)
        return
    holder, problem = hold(orders, devices)
    print(json.dumps({"namespaces": str(Path("/proc", str(holder), "ns")), "problem": problem}), flush=True)
    for export in exports:
        for _ in range(THREADS):
            threading.Thread(target=export.serve, daemon=True).start()
    for _ in sys.stdin:
        print(json.dumps(tally.told()), flush=True)
    os._exit(0)  # threads in a read of /dev/fuse are not waited for: the end of this process ends the mounts


if __name__ == "__main__":
    main()
