"""Whose it is: files and folders in places where everybody may make some, such as /dev/shm and /tmp.

Theory of operation
-------------------
Folders there have names that nobody guesses, and are private.  But once a folder is there all can read its name, and make one of that name
on another host, or on this one when somebody has cleaned it away (epilogs of other jobs do, and logind does).  So what bears a known name
counts only when it belongs to this user, as nobody can give files of his to others: a folder is looked at after something was opened in it,
and a file when it is open.  In a folder of this user all is of this user, as it is private; so of scratch only the folder itself, of which
everybody sees the name, is looked at, whenever something in it is to be run.

Root is nobody on file systems of servers that do not trust the root of each host: what it makes there is user 65534's, and that is ours.
So it is there alone.  Elsewhere 65534 is a user as others are, and in a user namespace it stands for all who have no number there.

Slots import this at their start.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

#: Who root is where servers take it for nobody, and file systems whose servers may.
NOBODY: Final = 65534
SQUASHING: Final = frozenset({"nfs", "nfs4", "lustre", "gpfs"})


class NotOurs(PermissionError):
    """What is there belongs to another user."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def _not_ours(path: str | os.PathLike[str], uid: int) -> NotOurs:
    text = (
        f"it belongs to another user (number {uid}), who has made it since ours was cleaned away, or this file system does not tell users "
        "apart; nothing there is used"
    )
    return NotOurs(errno.EPERM, text, os.fspath(path))


def is_ours(about: os.stat_result) -> bool:
    """It belongs to this user."""
    if about.st_uid == os.geteuid():
        return True
    if about.st_uid != NOBODY or os.geteuid() != 0:
        return False
    return root_is_nobody(kind_of(about.st_dev), _text_of("/proc/self/uid_map"))


def root_is_nobody(kind: str, numbers: str) -> bool:
    """What root makes on this kind of file system may be nobody's. `numbers`: the text of ``/proc/self/uid_map``."""
    return kind in SQUASHING and numbers.split() == ["0", "0", "4294967295"]


def kind_of(device: int) -> str:
    """The kind of the file system with this number (``st_dev``), as mount(8) names it; "" where that cannot be seen."""
    wanted, kind = f"{os.major(device)}:{os.minor(device)}", ""
    for line in _text_of("/proc/self/mountinfo").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            kind = fields[fields.index("-") + 1]
    return kind


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def require_ours(folder: str | os.PathLike[str]) -> None:
    """Raises `NotOurs`; a folder that is not there, or whose way is closed, is nobody's."""
    try:
        about = os.lstat(folder)
    except OSError:
        return
    if not is_ours(about):
        raise _not_ours(folder, about.st_uid)


def make_ours(folder: str) -> None:
    """Make a folder, and what is missing above it, private; one that is there is used again if it is ours. Raises `OSError`."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        require_ours(folder)
    except FileNotFoundError:
        make_ours(os.path.dirname(folder))
        make_ours(folder)


def open_ours(path: str | os.PathLike[str]) -> int:
    """Open a file to read it: a descriptor. Raises `FileNotFoundError`, `NotOurs`, `OSError`.

    What is no plain file, such as a FIFO, for which a reader waits, is somebody else's, too.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _not_ours(path, os.lstat(path).st_uid) from error
        raise
    about = os.fstat(descriptor)
    if is_ours(about) and stat.S_ISREG(about.st_mode):
        return descriptor
    os.close(descriptor)
    raise _not_ours(path, about.st_uid)


def same_host(folder: str, token: str) -> bool:
    """True when the store at `folder` of another process can be read here: its ``.token`` says `token`."""
    if not folder or not token:
        return False
    try:
        with os.fdopen(open_ours(os.path.join(folder, ".token")), "rb") as file:
            return file.read(256) == token.encode()
    except OSError:
        return False
