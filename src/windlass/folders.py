"""Folders that are written into and removed: full disks, folders that vanish meanwhile, trees that resist.

Theory of operation
-------------------
Whoever writes files for a cache does it inside `writing`, so that a full disk is one error everywhere (`CacheFull`), and a folder that
somebody deleted is another (`Damaged`: fetch it again).  `remove_tree` removes what a user may remove: it first allows itself what modes
forbid, goes as deep as a tree is, and does not mind others who remove the same.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from windlass.errors import CacheFull, Damaged, WindlassError
from windlass.manifests import show

if TYPE_CHECKING:
    from types import TracebackType


#: What file systems say where they make no (more) hard links.
NO_LINKS: Final = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def remove_tree(path: str | bytes | os.PathLike[str]) -> None:
    """Remove a file, link or tree, also one with folders that forbid it; absent is fine, and so are others who remove it too."""
    top = os.fsencode(path)
    try:
        is_folder = stat.S_ISDIR(os.lstat(top).st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        _gone(os.unlink, top)
        return
    folders = [top]
    for folder in folders:  # which grows: no recursion, trees may be deep
        try:
            os.chmod(folder, 0o700)
            with os.scandir(folder) as children:
                listed = list(children)
        except FileNotFoundError:
            continue
        for child in listed:
            if child.is_dir(follow_symlinks=False):
                folders.append(child.path)
            else:
                _gone(os.unlink, child.path)
    for folder in reversed(folders):
        _gone(os.rmdir, folder)


def _gone(remove: Callable[[bytes], None], path: bytes) -> None:
    try:
        remove(path)
    except FileNotFoundError:
        pass


class writing:
    """A block that writes at `where`: for a full disk it raises `CacheFull`, and `Damaged` when the place itself is gone."""

    def __init__(self, where: str | bytes | os.PathLike[str]) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if not isinstance(error, OSError) or isinstance(error, WindlassError):
            return
        place = show(os.fspath(self._where))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = CacheFull(
                f"no room in {place}: {os.strerror(error.errno)}; nothing of it is kept: free some space there, "
                "or give the worker another folder for its cache"
            )
            full.errno = error.errno
            raise full from error
        if error.errno == errno.ENOENT:
            raise Damaged(f"{place} was removed while it was written; nothing of it is kept: fetch it again") from error
