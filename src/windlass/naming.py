"""Names of large objects, found on a thread of their own while the bytes are written.

Theory of operation
-------------------
An object's name is its content's hash, so a store that is given the same array again writes nothing (`windlass.objects`).  For that it must
hash first, and then write what is new: two passes, one after the other, over what may be gigabytes, though a second processor is idle more
often than not while a program submits.

`Seen` tells what cannot have been here before without a look at all of it: by a *sample* of a few places of the content.  Of one that it
does not know the writing begins at once, with a `Naming` beside it.  It forgets the oldest, and two contents may have one sample: what it
says is worth some milliseconds and no more.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from windlass.objects import content_name

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from windlass.messages import ObjectName

#: Places that a sample looks at, and bytes at each.
_PLACES: Final = 16
_PLACE_BYTES: Final = 64
#: Samples that are remembered.
_REMEMBERED: Final = 4096


class Naming:
    """Finds the name of ``data``; who asks for it waits."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._name: ObjectName | None = None
        self._thread = threading.Thread(target=self._find, name="windlass-naming", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # none can be had: who asks finds it
            self._thread = threading.current_thread()

    def name(self) -> ObjectName:
        """The content's name."""
        if self._thread is not threading.current_thread():
            self._thread.join()
        if self._name is None:
            self._name = content_name(self._data)
        return self._name

    def _find(self) -> None:
        self._name = content_name(self._data)


class Seen:
    """Samples of what was put into a store. Safe for threads."""

    def __init__(self) -> None:
        self._samples: dict[int, None] = {}
        self._lock = threading.Lock()

    def is_new(self, data: Buffer) -> bool:
        """True when this content cannot be one of those that were asked about lately; it is one of them from now on."""
        view = memoryview(data)
        if view.ndim != 1 or view.format != "B":
            view = view.cast("B")
        last = view.nbytes - _PLACE_BYTES
        places = [last * number // (_PLACES - 1) for number in range(_PLACES)] if last > 0 else [0]
        sample = hash((view.nbytes, *(bytes(view[place : place + _PLACE_BYTES]) for place in places)))
        with self._lock:
            if sample in self._samples:
                return False
            self._samples[sample] = None
            if len(self._samples) > _REMEMBERED:
                del self._samples[next(iter(self._samples))]
            return True
