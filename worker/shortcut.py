"""A short way to the scratch folder, for what calls find in ``TMPDIR``.

Theory of operation
-------------------
The address of a socket is a path of at most 107 bytes. `multiprocessing` makes its sockets below ``TMPDIR`` (managers, the start method
forkserver, listeners, PyTorch's loaders), under names of 32 more bytes; so do MPI and agents of ssh. The scratch folder's own name
takes most of that, since it tells whose folder it is, and where batch systems have their folders takes the rest.

So there is a link with a short name to the scratch folder, and calls get the path through it: what they write lies on the scratch disk
as before. The link stands beside the folder, where it goes with a job's own folder, or in one of `PLACES` if that is too deep or takes no
links. It is the guardian's to remove as the folder is, and goes with the next worker when both were killed (`windlass.store_folders`: what
it points to tells whose it is). Below it the way goes on to folders as they are: who walks or removes ``TMPDIR`` finds a folder there.

Cleaners of old files look at no locks for links: so this one is never old, and is there again soon when somebody has taken it away.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from windlass.store_folders import link_name

#: Bytes that a path in ``TMPDIR`` may have: 107, without ``/pymp-xxxxxxxx/listener-xxxxxxxx``.
MOST: Final = 75
#: Where links may be, if not beside the folder.
PLACES: Final = ("/tmp", "/dev/shm")
#: What an instance adds, with large numbers: ``/i123456-1234/tmp``.
_BELOW: Final = 17
#: Cleaners count in days.
_FRESH_SECONDS: Final = 3600.0


class Shortcut:
    """The link to one worker's scratch folder. `path` is that folder's own where no link can be had."""

    def __init__(self, folder: str, announce: Callable[[str], None]) -> None:
        """`announce` gets each path before it is made."""
        self.path = self._folder = folder
        base, name = os.path.split(folder)
        for place in dict.fromkeys((base, *PLACES)):
            path = os.path.join(place, link_name())
            if len(os.fsencode(path)) + _BELOW > MOST:
                continue
            # Beside it by its name alone: in a container the base may have another path.
            self._target = name if place == base else folder
            announce(path)
            with suppress(OSError):
                os.symlink(self._target, path)
                if os.path.isdir(path):
                    self.path = path
                    return
                os.unlink(path)  # here links are not followed

    @property
    def trouble(self) -> str:
        """What to say where calls get a path that is too long for sockets; else empty."""
        if len(os.fsencode(self.path)) + _BELOW <= MOST:
            return ""
        return (
            f"the scratch folder's path is too long for sockets in it, and neither {' nor '.join(PLACES)} takes a link to it: in calls "
            "multiprocessing.Manager() and the like will fail with 'AF_UNIX path too long'; give a shorter path with --scratch DIR"
        )

    def keep(self) -> None:
        """Have it there, and not old; to be called now and then."""
        if self.path == self._folder:
            return
        with suppress(OSError):
            try:
                if time.time() - os.lstat(self.path).st_mtime > _FRESH_SECONDS:
                    os.utime(self.path, follow_symlinks=False)
            except FileNotFoundError:
                os.symlink(self._target, self.path)

    def remove(self) -> None:
        """Take the link away; what it leads to stays."""
        if self.path != self._folder:
            with suppress(OSError):
                os.unlink(self.path)
