"""A user's function as a `FunctionDef`: what a worker needs to run it, named by content.

Theory of operation
-------------------
Functions of installed modules go by name, those of local modules by name with a snapshot of the module (`windlass.snapshots`), all
others by value (`windlass.byvalue`). Lines of source travel with functions by value: tracebacks on the worker show them although
``__main__`` or a notebook's cell is no file there.

The definition's id is a hash of the pickled bytes and the snapshots' names. Pickling takes 100 µs or more, so a definition is kept
for as long as its function lives (of a bound method: its object), together with a *watch* (`windlass.watches`), by which the next submit
sees whether it is still true. What refers to something mutable has none: it is pickled again each time, and has the same id as long as its
content is the same. Local source files are looked at once a second, and when another look at them has found an edit.

So what a call sees is what the function referred to when the call was submitted, at the price of a pickling per submit for functions with
mutable globals or closures; large ones are better passed as arguments or made by the library's context, and a program that submits one
again is told so.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import linecache
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from windlass import imports, pickling, snapshots
from windlass.errors import NotPicklable, UsageError, WindlassError
from windlass.homes import LOCAL, home_of
from windlass.messages import OUT_OF_BAND_BYTES, FunctionDef, FunctionId, ImportSpec, ObjectRef
from windlass.watches import Watches, content_of_cell, watch

if TYPE_CHECKING:
    from windlass.pickling import Put

log = logging.getLogger("windlass.functions")

#: A function that is pickled again for each submit is told of from so many bytes on: some milliseconds.
HEAVY_BYTES: Final = 4 << 20
#: Versions of one function and their bytes, from which on it is said that each of them is kept.
MANY_VERSIONS: Final = 16
MANY_BYTES: Final = 256 << 20
#: Definitions that are remembered; each holds less than 64 KiB.
_MAX_KEPT: Final = 1024
#: Source lines that travel with one function at most.
_MAX_SOURCE: Final = 32 << 10
#: The attribute of a function that names modules which it will need though it does not refer to them, as do those that it is given.
HOIST: Final = "_windlass_hoist"


@dataclass(frozen=True, slots=True)
class Defined:
    """A function ready to travel."""

    definition: FunctionDef
    #: What it needs hoisted, as far as can be told.
    imports: tuple[ImportSpec, ...]
    #: None where it cannot be told, as for some builtins.
    signature: inspect.Signature | None
    #: Names of its positional parameters, for `windlass.pickling.pack_call`.
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """A function pickled."""

    blob: bytes
    #: Local top-level modules that it needs.
    local: frozenset[str]
    imports: tuple[ImportSpec, ...]
    functions: tuple[FunctionType, ...]
    classes: tuple[type, ...]


def define(fn: Callable[..., Any], put: Put) -> Defined:
    """The function's definition; the same function again costs about a microsecond.

    Large definitions and snapshots go to ``put``, and are taken to stay there for as long as ``put`` (the object whose method it is) lives.
    Raises `UsageError` for what is no function, or a generator or async one, `NotPicklable` for one that cannot travel.
    """
    kept = _kept.get(_key(fn))
    if kept is not None and not kept.is_of(fn):
        kept = None
    if kept is not None and kept.is_for(put) and kept.is_true(fn, put):
        return kept.defined
    check_callable(fn)
    look = look_at(fn)
    told = kept is not None and kept.told
    if len(look.blob) >= HEAVY_BYTES and kept is not None and kept.watches is None and not told:
        told = True
        _tell_of_heavy(fn, look)
    code = snapshots.snapshots_of(look.local, put)
    defined = _defined(fn, look, code, put, kept)
    if defined.definition.object is not None and (kept is None or kept.defined is not defined):
        _tell_of_many(fn, defined.definition.object.size)
    _keep(fn, look, defined, code, put, told)
    return defined


def _tell_of_heavy(fn: Callable[..., Any], look: Look) -> None:
    """Say that each submit of this function pickles all that it refers to."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(Exception):  # values of the user's, which may raise anything
        sizes = {name: _bytes_of(value) for one in look.functions for name, value in _refers_to(one)}
    if isinstance(fn, MethodType):
        sizes["self"] = len(look.blob) - sum(sizes.values())  # whatever it has
    heaviest = max(sizes, key=lambda name: sizes[name], default="")
    what = f"{heaviest!r} above all" if sizes.get(heaviest) else "its globals, or what it was made in"
    log.warning(
        "%s refers to %.0f MB (%s), which each submit pickles again, as it may have changed: pass it as an argument, which is kept and "
        "sent once, or make it in the context of a library",
        function_name(fn),
        len(look.blob) / 1e6,
        what,
    )


#: Large versions of functions, by module and name: how many, their bytes, and whether that was told.
_versions: dict[tuple[Any, str], tuple[int, int, bool]] = {}


def _tell_of_many(fn: Callable[..., Any], size: int) -> None:
    """Say that functions with data in them are kept, where there are many of one name."""
    key = getattr(fn, "__module__", None), function_name(fn)
    count, total, told = _versions.get(key, (0, 0, False))
    count, total = count + 1, total + size
    tell = count >= MANY_VERSIONS and total >= MANY_BYTES and not told
    if len(_versions) > _MAX_KEPT:
        _versions.clear()
    _versions[key] = count, total, told or tell
    if tell:
        log.warning(
            "%s was submitted with other data in it %d times (a closure, a partial, a method, or globals that change): these are so many "
            "functions, of %.0f MB in all, and functions are kept as long as the manager lives: pass the data as an argument, which is let "
            "go when its call has ended",
            key[1],
            count,
            total / 1e6,
        )


def _bytes_of(value: Any) -> int:
    """Of an array; 0 for anything else. Classes and modules have such an attribute that is no size."""
    size: object = 0 if isinstance(value, type | ModuleType) else getattr(value, "nbytes", 0)
    return size if isinstance(size, int) else 0


def _refers_to(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Globals and variables of outer functions that a function names."""
    from windlass.byvalue import global_names

    yield from ((name, function.__globals__.get(name)) for name in global_names(function))
    yield from zip(function.__code__.co_freevars, (content_of_cell(cell) for cell in function.__closure__ or ()), strict=False)


def look_at(fn: Callable[..., Any]) -> Look:
    """Pickle a function and see what it needs. Raises `NotPicklable`."""
    return _look(fn, fn, f"the function {function_name(fn)!r}")


def _look(value: Any, fn: Callable[..., Any], title: str) -> Look:
    from windlass import byvalue

    file = BytesIO()
    pickler = byvalue.ByValue(file, True, None)
    try:
        pickler.dump(_Sourced(value, pickler.functions))
    except WindlassError:
        raise
    except Exception as error:  # pickling runs the user's code, which may raise anything
        raise NotPicklable(
            f"{title} cannot be pickled{pickling.culprit(value)}: {type(error).__name__}: {error}; make that inside the function "
            "or in the library's context, or pass what it is made from as an argument"
        ) from error
    functions = list(pickler.functions)
    inner = imports.plain_function(fn)
    if inner is not None and inner not in functions:
        functions.append(inner)  # it goes by name, and yet its body may import
    more: Iterable[str] = fn.__dict__.get(HOIST, ()) if isinstance(fn, FunctionType) else ()
    found = imports.automatic_imports({*pickler.modules, *more}, functions)
    tops = {spec.module.partition(".")[0] for spec in found}
    local = frozenset(pickler.local | {top for top in tops if home_of(top) == LOCAL})
    return Look(file.getvalue(), local, found, tuple(pickler.functions), tuple(pickler.classes))


def pack_context(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], put: Put
) -> tuple[bytes, tuple[ObjectRef, ...], tuple[ImportSpec, ...]]:
    """A library's context: bytes for `LibrarySpec.context`, snapshots for its `code`, and automatic imports.

    Raises `UsageError` and `NotPicklable` as `define` does.
    """
    check_callable(fn)
    look = _look((fn, args, kwargs), fn, f"the context function {function_name(fn)!r}, or an argument of it,")
    return look.blob, snapshots.snapshots_of(look.local, put), look.imports


def function_name(fn: Any) -> str:
    """What people call the function: its own name, that of the function below a partial, or its class."""
    inner = imports.plain_function(fn)
    named = inner if inner is not None else getattr(fn, "func", fn)
    name = getattr(named, "__name__", None)
    return name if isinstance(name, str) else type(fn).__name__


def check_callable(fn: Any) -> None:
    """Raises `UsageError` for what cannot be called, or gives a generator or a coroutine instead of a result."""
    if not callable(fn):
        raise UsageError(
            f"{fn!r:.80} of type {type(fn).__name__} is no function; pass the function itself, and its arguments beside it: submit(f, x)"
        )
    call = fn if isinstance(fn, type) or imports.plain_function(fn) is not None else getattr(type(fn), "__call__", fn)  # noqa: B004
    for one in (fn, call):
        if inspect.isgeneratorfunction(one):
            raise UsageError(
                f"{function_name(fn)!r} is a generator function, and a generator cannot travel back; "
                "return a list, or submit one call for each item"
            )
        if inspect.isasyncgenfunction(one):
            raise UsageError(
                f"{function_name(fn)!r} is an async generator function, and a generator cannot travel back; "
                "let it be an async function that returns a list"
            )


# ---------------------------------------------------------------- definitions


def _defined(fn: Any, look: Look, code: tuple[ObjectRef, ...], put: Put, kept: _Kept | None) -> Defined:
    digest = hashlib.blake2b(look.blob, digest_size=16)
    for ref in code:
        digest.update(ref.name.encode())
    name = FunctionId(digest.digest())
    if kept is not None and kept.is_for(put) and kept.defined.definition.id == name:
        return kept.defined
    large = len(look.blob) >= OUT_OF_BAND_BYTES
    signature = _signature(fn)
    return Defined(
        FunctionDef(name, function_name(fn), b"" if large else look.blob, put(look.blob) if large else None, code),
        look.imports,
        signature,
        tuple(one.name for one in signature.parameters.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD))
        if signature
        else (),
    )


def _signature(fn: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(fn)
    except (ValueError, TypeError):
        return None


class _Kept:
    """A definition and what tells that it is still true."""

    __slots__ = ("code", "defined", "edits", "function", "local", "looked_at", "owner", "told", "watches")

    def __init__(
        self, fn: Any, defined: Defined, local: frozenset[str], code: tuple[ObjectRef, ...], put: Put, watches: Watches | None
    ) -> None:
        try:
            self.function: Callable[[], Any] = (
                weakref.WeakMethod(fn, _forgetter(_key(fn))) if type(fn) is MethodType else weakref.ref(fn, _forgetter(_key(fn)))
            )
        except TypeError:
            if not pickling.is_named(fn):
                raise
            self.function = lambda: fn  # its module keeps it anyway
        self.defined = defined
        self.local, self.code = local, code
        self.looked_at, self.edits = time.monotonic(), snapshots.edits
        self.owner = weakref.ref(_owner(put))
        #: None: it refers to something mutable.
        self.watches = watches
        #: The program was told that it is heavy.
        self.told = False

    def is_of(self, fn: Any) -> bool:
        """Whether it is of this function, or of a bound method that is the same: each time that one is asked for, it is a new object."""
        known = self.function()
        if type(fn) is not MethodType:
            return known is fn
        return type(known) is MethodType and known.__self__ is fn.__self__ and known.__func__ is fn.__func__

    def is_for(self, put: Put) -> bool:
        return self.owner() is getattr(put, "__self__", put)

    def is_true(self, fn: Any, put: Put) -> bool:
        if self.watches is None or not self.watches.hold(fn):
            return False
        # As soon as an edit is known, for all functions alike: they run together in the newest library.
        if self.local and (self.edits != snapshots.edits or time.monotonic() - self.looked_at > snapshots.MAX_AGE):
            self.edits = snapshots.edits
            if snapshots.snapshots_of(self.local, put) != self.code:
                return False
            self.looked_at = time.monotonic()
        return True


#: By ids: that of the function, or those of a bound method's object and function.
_kept: dict[int | tuple[int, int], _Kept] = {}


def _key(fn: Any) -> int | tuple[int, int]:
    return (id(fn.__self__), id(fn.__func__)) if type(fn) is MethodType else id(fn)


def _owner(put: Put) -> Any:
    return getattr(put, "__self__", put)


def _forgetter(key: int | tuple[int, int]) -> Callable[[Any], None]:
    def forget(gone: Any) -> None:
        kept = _kept.get(key)
        if kept is not None and kept.function is gone:
            del _kept[key]

    return forget


def _keep(fn: Any, look: Look, defined: Defined, code: tuple[ObjectRef, ...], put: Put, told: bool) -> None:
    try:
        kept = _Kept(fn, defined, look.local, code, put, watch(fn, look.functions, look.classes))
        kept.told = told
    except TypeError:
        return  # it has no weak references
    while len(_kept) >= _MAX_KEPT:
        try:
            del _kept[next(iter(_kept))]
        except (KeyError, RuntimeError, StopIteration):
            break  # another thread was quicker
    _kept[_key(fn)] = kept


# ---------------------------------------------------------------- source lines


class _Sourced:
    """Stands in a stream for a function: reading it first makes the function, then notes its source for tracebacks."""

    def __init__(self, fn: Any, functions: list[FunctionType]) -> None:
        self.fn, self.functions = fn, functions

    def __reduce__(self) -> tuple[Any, ...]:
        return pickling.with_sources, (self.fn, _Sources(self.functions))


class _Sources:
    """The source lines of the functions met so far; pickled after the function, when they all are."""

    def __init__(self, functions: list[FunctionType]) -> None:
        self.functions = functions

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(_source_lines(self.functions)),)


def _source_lines(functions: Iterable[FunctionType]) -> Iterator[tuple[str, int, str]]:
    """(file name, first line, text)"""
    room = _MAX_SOURCE
    for function in functions:
        code = function.__code__
        lines = linecache.getlines(code.co_filename, function.__globals__)
        if not lines:
            continue
        last = max((line for _, _, line in _all_lines(code) if line), default=code.co_firstlineno)
        text = "".join(lines[code.co_firstlineno - 1 : last])
        room -= len(text)
        if text and room >= 0:
            yield code.co_filename, code.co_firstlineno, text


def _all_lines(code: CodeType) -> Iterator[tuple[int, int, int | None]]:
    yield from code.co_lines()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_lines(constant)
