"""The functions that a slot has loaded, and each one's classes.

Theory of operation
-------------------
Functions of the library are loaded before the first call. Others come by content, from the functions folder, at their first call, and
the least recently used ones are forgotten past `FUNCTIONS_KEPT` or `FUNCTION_BYTES_KEPT`. What they keep in their globals and classes (a
model that the first call loads) cannot be counted: when the process has grown by `GROWTH` since, all of them are forgotten.

*Classes by value.* A function that came by value has globals of its own, with the values that they had when it was submitted. With the
classes of its program it must be the same: ``Config.lr = 0.01`` between two submits makes another function of the one that reads
``Config.lr``, and the earlier one goes on with the earlier value. So each function has a namespace of classes
(`windlass.worker.namespaces`), which is in use while it is loaded, while its arguments are read, which are instances of the classes that
it knows, and while it runs.

The library's functions and its context have one namespace together. What comes later begins with the classes that are there, for it is
given instances of them by the context.

*Context*: which of its variables a function takes is found out once per function, from its signature.
"""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from windlass.coroutines import is_async
from windlass.messages import FunctionDef, FunctionId
from windlass.ownership import open_ours
from windlass.worker import hoist, memory, namespaces
from windlass.worker.namespaces import Namespace
from windlass.worker.slotlink import Setup

#: Functions that came later and are kept loaded, and their bytes: a loop that submits ever new closures must not fill the memory.
FUNCTIONS_KEPT: Final = 256
FUNCTION_BYTES_KEPT: Final = 64 << 20
#: So many bytes more in a process that has loaded ever new functions may be what these have kept.
GROWTH: Final = 128 << 20

#: A loaded function, and the variables of the context it takes: (parameter, its position or a large number, value).
Loaded = tuple[Callable[..., Any], tuple[tuple[str, int, Any], ...]]


class SlotFunctions:
    """Has functions loaded, and says whose classes are meant."""

    def __init__(self, setup: Setup, library: hoist.Library) -> None:
        self._setup, self._library = setup, library
        self._common = namespaces.in_use()
        self._definitions = {definition.id: definition for definition in setup.spec.functions}
        self._names = {definition.id: definition.name for definition in setup.spec.functions}
        self._own: dict[FunctionId, Loaded] = {key: self._bind(function) for key, function in library.functions.items()}
        #: Those that came later, the one used last at the end.
        self._others: dict[FunctionId, Loaded] = {}
        self._namespaces: dict[FunctionId, Namespace] = {}
        self._sizes: dict[FunctionId, int] = {}
        #: Bytes of the process when all that were loaded before had been forgotten; 0: none has been loaded.
        self._resident = 0
        self._current = FunctionId(b"")
        self._loaded: Loaded = (int, ())

    def turn_to(self, key: FunctionId) -> Loaded:
        """The function, loaded. Until another one is asked for, classes that are read are its own. Raises what loading does."""
        if key != self._current:
            self._current = FunctionId(b"")
            self._loaded = self._find(key)
            self._current = key
        return self._loaded

    def name(self, key: FunctionId) -> str:
        """For texts."""
        return self._names.get(key, key.hex())

    def has(self, key: FunctionId) -> bool:
        """Whether it is loaded."""
        return key in self._own or key in self._others

    def explain(self, error: BaseException) -> None:
        """Say what the context has, to who calls a function without an argument that it may have meant to get from there."""
        context = _entries(self._library.context)
        if type(error) is not TypeError or not context:
            return
        from windlass.raised import users_frames

        if users_frames(error) is not None:  # it comes from inside of the function, and may have any text
            return
        missing: list[str] = re.findall(r"'(\w+)'", str(error).partition(" missing ")[2])
        if not missing:
            return
        import difflib

        entries = sorted(map(str, context))
        near = [entry for name in missing for entry in difflib.get_close_matches(name, entries, n=1)]
        shown = ", ".join(map(repr, near or entries[:10]))
        error.add_note(
            f"the context of library {self._setup.spec.name!r} has {shown}; a parameter gets the entry of its name"
            + (": is that what was meant?" if near else "")
        )

    def add(self, key: FunctionId, function: Callable[..., Any], size: int = 0) -> Loaded:
        """One that came later."""
        self._others[key] = loaded = self._bind(function)
        self._namespaces.setdefault(key, self._common)
        self._sizes[key] = size
        return loaded

    def forget(self, key: FunctionId) -> None:
        """One that came later."""
        del self._others[key], self._namespaces[key], self._sizes[key]
        if key == self._current:
            self._current, self._loaded = FunctionId(b""), (int, ())
        if key not in self._definitions:
            self._names.pop(key, None)

    def _find(self, key: FunctionId) -> Loaded:
        if key in self._own:
            namespaces.use(self._common)
            return self._own[key]
        if key not in self._others:
            return self._load(key)
        namespaces.use(self._namespaces[key])
        found = self._others.pop(key)
        self._others[key] = found
        return found

    def _load(self, key: FunctionId) -> Loaded:
        definition = self._definitions.get(key)
        if definition is None:
            with os.fdopen(open_ours(os.path.join(self._setup.functions_folder, key.hex())), "rb") as file:
                definition = msgspec.msgpack.decode(file.read(), type=FunctionDef)
            namespace = Namespace(self._common)
        else:
            namespace = self._common
        self._names[key] = definition.name
        size = definition.object.size if definition.object is not None else len(definition.blob)
        while self._others and (len(self._others) >= FUNCTIONS_KEPT or sum(self._sizes.values()) + size > FUNCTION_BYTES_KEPT):
            self.forget(next(iter(self._others)))
        self._look_at_memory()
        namespaces.use(namespace)
        function = hoist.load_function(definition, self._setup)
        self._namespaces[key] = namespace
        return self.add(key, function, size)

    def _look_at_memory(self) -> None:
        resident = memory.resident(os.getpid())
        if self._resident and resident - self._resident > GROWTH and len(self._others) > 1:
            for key in list(self._others):
                self.forget(key)
            gc.collect()  # a function and its globals refer to each other
            _give_back()
            resident = memory.resident(os.getpid())
        if not self._others:
            self._resident = resident

    def _bind(self, function: Callable[..., Any]) -> Loaded:
        """Find out which variables of the context the function takes; an async one is run to its end when it is called."""
        called = function
        if self._setup.spec.concurrency == 1 and is_async(function):
            from windlass.worker.own_loop import to_its_end

            called = to_its_end(function)
        if not self._library.has_context:
            return called, ()
        import inspect

        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            return called, ()
        context: Any = self._library.context
        entries = _entries(context)
        wants: list[tuple[str, int, Any]] = []
        for position, (name, parameter) in enumerate(parameters.items()):
            if entries is not None and name in entries:
                value = entries[name]
            elif name == "context" and (entries is None or parameter.default is None or parameter.default is parameter.empty):
                value = context  # of a dictionary not where there is another default: that is meant for something else of this name
            else:
                continue
            if parameter.kind is parameter.KEYWORD_ONLY:
                wants.append((name, sys.maxsize, value))
            elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                wants.append((name, position, value))
        return called, tuple(wants)


def _entries(context: Any) -> dict[Any, Any] | None:
    return context if isinstance(context, dict) else None  # pyright: ignore[reportUnknownVariableType]


def _give_back() -> None:
    """Have the C library give back what it keeps of freed memory, or it would count as taken."""
    with suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
