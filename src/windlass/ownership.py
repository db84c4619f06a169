"""Whose it is: files and folders in places where everybody may make some, such as /dev/shm and /tmp.

Theory of operation
-------------------
Folders there have names that nobody guesses, and are private.  But once a folder is there all can read its name, and make one of that name
on another host, or on this one when somebody has cleaned it away.  So what bears a known name counts only when it belongs to this user;
nobody can give files of his to others.
"""

from __future__ import annotations

import os
import stat


def same_host(folder: str, token: str) -> bool:
    """True when the store at `folder` of another process can be read here: its ``.token``, a file of this user, says `token`."""
    if not folder or not token:
        return False
    try:
        # Without O_NONBLOCK a FIFO would hold up the caller's loop until somebody writes into it.
        descriptor = os.open(os.path.join(folder, ".token"), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            return stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and file.read(256) == token.encode()
    except OSError:
        return False
