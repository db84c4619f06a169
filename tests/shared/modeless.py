"""A real file system without modes, for tests: ``python modeless.py FOLDER OWNER`` mounts it there (as root, with FUSE) and serves it.

Theory of operation: files live in this process's memory, everything has mode 0777 and belongs to one user, and chmod has no effect
and is no error, as on many mounts of CIFS.  It speaks the kernel's protocol itself (version 7.31 of linux/fuse.h), as far as a state folder
needs it.  It has no links of either kind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

HEAD, REPLY = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
MODE = 0o777
NO_REPLY = frozenset((2, 36, 42))  # forget, interrupt, batch_forget


class Node:
    def __init__(self, number: int, folder: bool, owner: int) -> None:
        self.number, self.owner, self.data = number, owner, bytearray()
        self.children: dict[bytes, Node] | None = {} if folder else None
        self.changed = time.time()

    def attr(self) -> bytes:
        kind = stat.S_IFREG if self.children is None else stat.S_IFDIR
        size, at = len(self.data), int(self.changed)
        nanoseconds = int((self.changed - at) * 1e9)
        return ATTR.pack(self.number, size, 1, at, at, at, *(nanoseconds,) * 3, kind | MODE, 1, self.owner, self.owner, 0, 4096, 0)


class Files:
    def __init__(self, owner: int) -> None:
        self.nodes = {1: Node(1, True, owner)}
        self.made, self.owner = 1, owner

    def make(self, parent: Node, name: bytes, folder: bool) -> Node:
        assert parent.children is not None
        if name in parent.children:
            raise FileExistsError(errno.EEXIST, "")
        self.made += 1
        node = self.nodes[self.made] = parent.children[name] = Node(self.made, folder, self.owner)
        return node

    def entry(self, node: Node) -> bytes:
        return struct.pack("<4Q2I", node.number, 0, 0, 0, 0, 0) + node.attr()

    def answer(self, opcode: int, number: int, body: bytes) -> bytes:
        """The answer to one request; an OSError is one too."""
        node = self.nodes[number] if number else self.nodes[1]
        names = node.children if node.children is not None else {}
        match opcode:
            case 26:  # init
                return struct.pack("<4I2H2I2HI7I", 7, 31, 0, 0, 16, 12, 1 << 17, 1, 0, 0, 0, *(0,) * 7)
            case 1:  # lookup
                return self.entry(_at(names, body.rstrip(b"\0")))
            case 3:  # getattr
                return struct.pack("<QII", 0, 0, 0) + node.attr()
            case 4:  # setattr: the size counts, the mode does not
                valid, size = struct.unpack_from("<I12xQ", body)
                if valid & 8:
                    node.data = node.data[:size].ljust(size, b"\0")
                return struct.pack("<QII", 0, 0, 0) + node.attr()
            case 9:  # mkdir
                return self.entry(self.make(node, body[8:].rstrip(b"\0"), True))
            case 10 | 11:  # unlink, rmdir
                gone = _at(names, body.rstrip(b"\0"))
                if gone.children:
                    raise OSError(errno.ENOTEMPTY, "")
                del names[body.rstrip(b"\0")]
                return b""
            case 12 | 45:  # rename
                target = self.nodes[struct.unpack_from("<Q", body)[0]]
                old, new, *_ = body[8 if opcode == 12 else 16 :].split(b"\0")
                assert target.children is not None
                target.children[new] = _at(names, old)
                if (target, new) != (node, old):
                    del names[old]
                return b""
            case 14 | 27:  # open, opendir
                if opcode == 14 and struct.unpack_from("<I", body)[0] & os.O_TRUNC:
                    node.data.clear()
                return struct.pack("<QII", 0, 0, 0)
            case 15:  # read
                offset, size = struct.unpack_from("<8xQI", body)
                return bytes(node.data[offset : offset + size])
            case 16:  # write
                offset, size = struct.unpack_from("<8xQI", body)
                node.data = node.data.ljust(offset, b"\0")
                node.data[offset : offset + size] = body[40 : 40 + size]
                node.changed = time.time()
                return struct.pack("<II", size, 0)
            case 17:  # statfs
                return struct.pack("<5Q4I6I", 1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, 4096, 255, 4096, 0, *(0,) * 6)
            case 28:  # readdir
                offset, size = struct.unpack_from("<8xQI", body)
                listed = b""
                for index, (name, child) in list(enumerate(names.items(), 1))[offset:]:
                    kind = 8 if child.children is None else 4
                    one = struct.pack("<QQII", child.number, index, len(name), kind) + name
                    one += b"\0" * (-len(one) % 8)
                    if len(listed) + len(one) > size:
                        break
                    listed += one
                return listed
            case 35:  # create
                return self.entry(self.make(node, body[16:].rstrip(b"\0"), False)) + struct.pack("<QII", 0, 0, 0)
            case 18 | 20 | 25 | 29 | 30 | 34:  # release, fsync, flush, releasedir, fsyncdir, access
                return b""
            case _:
                raise OSError(errno.ENOSYS, "")


def _at(names: dict[bytes, Node], name: bytes) -> Node:
    if name not in names:
        raise FileNotFoundError(errno.ENOENT, "")
    return names[name]


@contextmanager
def mounted(folder: Path, owner: int = 0) -> Generator[Path]:
    """Serves it in a new folder while the block runs; all there is `owner`'s. Skips the test where that cannot be."""
    import pytest

    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("mounting a file system without modes needs root and /dev/fuse")
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, __file__, folder, str(owner)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        if server.stdout.readline() != "mounted\n":
            pytest.skip(f"no file system without modes here: {server.stderr.read().strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:  # something has a file there open, and would have for ever
                server.kill()
                raise


def serve(folder: str, owner: int) -> None:
    """Mount, say so, and serve until it is unmounted."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"modeless", folder.encode(), b"fuse", 0, options.encode()):
        sys.exit(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    files = Files(owner)
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            continue
        _, opcode, unique, number, *_ = HEAD.unpack_from(request)
        if opcode in NO_REPLY:
            continue
        try:
            code, body = 0, files.answer(opcode, number, request[HEAD.size :])
        except OSError as error:
            code, body = -(error.errno or errno.EIO), b""
        os.write(device, REPLY.pack(REPLY.size + len(body), code, unique) + body)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
