"""Pickling by value: cloudpickle, told where modules live and whose classes are whose.

Theory of operation
-------------------
In the program (``homes``) two things differ from plain cloudpickle.  Functions and classes of modules that other processes cannot
import (`windlass.snapshots.BY_VALUE`) go by value although their module is imported here; and local modules that the stream names are
noted, so that their snapshot can go along.

On the worker (not ``homes``) classes that came by value go back as a tracker id, by which cloudpickle knows that two classes are the same, and a
blob that defines the class, read only where the id is unknown.  Plain cloudpickle would define the class again wherever it arrives: with each
result the program's own class would get its methods replaced by copies with globals of their own.

Not imported before something must go by value: cloudpickle takes a while. It has no types and its parts used here are not public, though
unchanged since its version 1.6; therefore they all stand in this module.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from io import BytesIO
from pickle import PickleBuffer, loads
from types import FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from windlass import pickling, snapshots

_cloudpickle: Any = importlib.import_module("cloudpickle.cloudpickle")
_Pickler: Any = _cloudpickle.Pickler


class ByValue(_Pickler):  # type: ignore[misc]
    """A pickler whose `local` is the set of local top-level modules named so far."""

    def __init__(self, file: BytesIO, homes: bool, buffer_callback: Callable[[PickleBuffer], bool] | None) -> None:
        super().__init__(file, 5, buffer_callback)
        self._homes = homes
        self.local: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        kind: type[Any] = type(obj)
        is_class = kind is type or issubclass(kind, type)
        if is_class or kind is FunctionType or kind is ModuleType:
            reduced = self._reduced_in_program(obj, kind, is_class) if self._homes else self._reduced_on_worker(obj, is_class)
            if reduced is not None:
                return reduced
        return super().reducer_override(obj)

    def _reduced_in_program(self, obj: Any, kind: type[Any], is_class: bool) -> Any:
        module_name = obj.__name__ if kind is ModuleType else getattr(obj, "__module__", None)
        if module_name not in sys.modules or not (kind is ModuleType or pickling.is_named(obj)):
            return None
        home = snapshots.home(module_name)
        if home == snapshots.LOCAL:
            self.local.add(module_name.partition(".")[0])
        elif home == snapshots.BY_VALUE and kind is not ModuleType:
            return _cloudpickle._dynamic_class_reduce(obj) if is_class else self._dynamic_function_reduce(obj)
        return None

    def _reduced_on_worker(self, obj: Any, is_class: bool) -> Any:
        if not is_class:
            return None
        reduced = super().reducer_override(obj)
        if isinstance(reduced, tuple) and reduced[0] in (_cloudpickle._make_skeleton_class, _cloudpickle._make_skeleton_enum):
            return known_class, (_cloudpickle._get_or_create_tracker_id(obj), _class_blob(obj))
        return None


_class_blobs: WeakKeyDictionary[type, bytes] = WeakKeyDictionary()


def _class_blob(kind: type) -> bytes:
    blob = _class_blobs.get(kind)
    if blob is None:
        file = BytesIO()
        _Pickler(file, 5).dump(kind)
        blob = _class_blobs[kind] = file.getvalue()
    return blob


def known_class(tracker: str, blob: bytes) -> Any:
    """The class that is known here under this tracker id, else the one that `blob` defines."""
    known = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    return loads(blob) if known is None else known
