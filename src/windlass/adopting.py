"""Adopting: an object that lies in a file of this host is taken into a store without moving its bytes.

Theory of operation: a hard link where that is possible, else a copy, which a thread makes when it is long.  Only a regular file of this
user is taken, and only one of the size that was announced.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from windlass.blocking import in_thread
from windlass.messages import ObjectRef

if TYPE_CHECKING:
    from windlass.object_store import ObjectStore

#: Adopting a file of more bytes than this is left to a thread: where links are not possible it is a copy.
LONG_COPY: Final = 1 << 20


async def adopt(store: ObjectStore, ref: ObjectRef, path: str) -> str:
    """Take a file of this host into a store: empty, or why that was not possible."""

    def take() -> str:
        try:
            about = os.lstat(path)
            if about.st_uid != os.geteuid() or about.st_size != ref.size:
                return f"{path} is not a file of {ref.size} bytes of this user"
            store.adopt(ref.name, path)
        except (OSError, ValueError) as error:
            return f"{path} cannot be taken in: {error}"
        return ""

    if ref.size <= LONG_COPY:
        return take()
    try:
        return await in_thread(take)
    except ConnectionAbortedError:  # no thread can be had
        return take()
