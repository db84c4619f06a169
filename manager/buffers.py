"""Arrays that were hashed a moment ago, and need not be again.

Theory of operation
-------------------
An argument's large buffers are objects, named by content, so an array that is given to a thousand calls is hashed a thousand times. A
program cannot be asked to promise that it leaves an array alone; but libraries that have promised that already, as joblib has with its
memory maps, can say so for a time: inside of ``with known:`` the calling thread's submits look here first. What is remembered ends with
`KnownBuffers.clear`.

An array is known by the place and size of its memory, for as long as the array lives that owns it: what is pickled is often a view that is
made for the occasion.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, Final, Protocol

from windlass.messages import ObjectRef

#: Bytes from which on remembering is worth it: a hundred microseconds of hashing. joblib maps arrays of that size, too.
_LEAST: Final = 1 << 20
_here = threading.local()


class PinningStore(Protocol):
    """What is needed of a store: Raises `KeyError` for an object that is not there any more."""

    def pin(self, name: str) -> None: ...


class KnownBuffers:
    """Objects of arrays; a context manager, in whose block this thread's submits use and fill it."""

    def __init__(self) -> None:
        self._refs: dict[tuple[int, int], tuple[weakref.ref[Any], ObjectRef]] = {}

    def __len__(self) -> int:
        return len(self._refs)

    def __enter__(self) -> None:
        _here.known = self

    def __exit__(self, *_: object) -> None:
        _here.known = None

    def clear(self) -> None:
        """What was promised holds no longer."""
        self._refs.clear()

    def find(self, data: Any, store: PinningStore) -> ObjectRef | None:
        """The object of this buffer, pinned once more; None if it is not known, or not there."""
        owner, place = _owner(data)
        kept = self._refs.get(place) if owner is not None else None
        if kept is None or kept[0]() is not owner:
            return None
        try:
            store.pin(kept[1].name)
        except KeyError:
            return None
        return kept[1]

    def note(self, data: Any, ref: ObjectRef) -> None:
        """This buffer is that object."""
        owner, place = _owner(data)
        if owner is not None:
            self._refs[place] = weakref.ref(owner), ref


def known_here() -> KnownBuffers | None:
    """What this thread's submits may use."""
    return getattr(_here, "known", None)


def _owner(data: Any) -> tuple[Any, tuple[int, int]]:
    """The array whose memory this is, its place and size; None if it is no large array's."""
    array: Any = getattr(data, "obj", None)
    interface = getattr(array, "__array_interface__", None)
    if interface is None or data.nbytes < _LEAST:
        return None, (0, 0)
    place = (interface["data"][0], data.nbytes)
    while hasattr(getattr(array, "base", None), "__array_interface__"):
        array = array.base
    return array, place
