"""Arguments, results and exceptions as bytes, pickled and unpickled at the two ends of a call.

Theory of operation
-------------------
A value becomes a pickle stream (the *payload*) and *spans*: objects in a store. Buffers of `OUT_OF_BAND_BYTES` and more (arrays, large
``bytes`` arguments) leave the stream by pickle's protocol 5 and go to ``put`` without being copied into it. A stream that is still that
large becomes the first span, and the payload is ``b""``. ::

    payload  stream                    spans  [stream, if payload is b""] [snapshots of local modules] [buffers]

Three ways to pickle, the first that can wins:

1. scalars: ``pickle.dumps``, nothing to look at; under a microsecond. Declared files among them go beside, as names.
2. *by name*: the C pickler, with a hook that sees every class and function: each must be what its module has under its name, in a module
   that the other side can import. No cloudpickle, so a slot that answers with arrays or dicts never loads it.
3. *by value*: cloudpickle, for what lives in ``__main__``, a notebook, a function's body, or a module that cannot be imported
   elsewhere.

A call's future among the arguments of another is a *hole*, which is filled when the result is there: see `windlass.joined`.

Local modules (`windlass.snapshots`) go by name too; the stream of a call that names one starts by installing its snapshot.

Unpickling is plain ``pickle.loads`` everywhere: the stream imports what it needs. By value: `windlass.byvalue`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from io import BytesIO
from pickle import PickleBuffer, dumps, loads
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from windlass.messages import OUT_OF_BAND_BYTES, EndDetail, ObjectName, ObjectRef

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from windlass.errors import NotPicklable

    class Holes(Protocol):
        """What is asked about the futures among a call's arguments; `windlass.manager.feeding.Holes` is one."""

        kind: type

        def clear(self) -> None: ...
        def reduce(self, future: Any, /) -> Any: ...
        def with_code(self, code: tuple[ObjectRef, ...], /) -> tuple[ObjectRef, ...]: ...
        def refusal(self, value: object, /) -> str: ...

    Put = Callable[[Buffer], ObjectRef]
    #: Puts all of them, or none.
    PutAll = Callable[[Sequence[Buffer]], Sequence[ObjectRef]]
    OpenObject = Callable[[ObjectName], memoryview]

#: Spans of a call, beside its stream: all are named in one message of at most `MAX_FRAME_BYTES`, 45 bytes each.
SPANS_MOST: Final = 8192
#: Values of exactly these types name nothing, so plain pickle is right for them.
_SCALARS: Final[frozenset[type]] = frozenset({int, float, str, bool, bytes, complex, type(None)})


_BUFFERS: Final = frozenset({bytes, bytearray})
#: What `functools.lru_cache` makes; pickle takes it for a function, by name.
CACHED: Final = type(lru_cache(int))
_MAINS: Final = frozenset({"__main__", "__mp_main__"})
#: Where cloudpickle's functions that make a class by value have its number, by which it is known, among their arguments.
NUMBER_PLACES: Final = {"_make_skeleton_class": 4, "_make_skeleton_enum": 5}


# ---------------------------------------------------------------- calls


def pack_scalars(args: tuple[Any, ...], kwargs: dict[str, Any], files: tuple[tuple[int, str, str], ...] = ()) -> bytes:
    """The payload of a call whose arguments are few small scalars, by the shortest way; ``b""`` for all others.

    ``files``: those that come into the places of arguments (`windlass.files.without_files`).
    """
    if not kwargs:
        for value in args:
            if type(value) not in _SCALARS and not _is_flat(value):
                return b""
        payload = dumps((args, kwargs, files, None) if files else (args, kwargs), 5)
        if len(payload) < OUT_OF_BAND_BYTES:
            return payload
    return b""


def pack_call(
    args: tuple[Any, ...], kwargs: dict[str, Any], put: Put, parameters: Sequence[str] = (), holes: Holes | None = None
) -> tuple[bytes, tuple[ObjectRef, ...]]:
    """Pickle a call's arguments: payload and spans.

    `parameters` are the function's positional parameter names, if known, for the text of an error; ``holes`` are told of futures. Raises
    `NotPicklable`, which says which argument and why, and what ``put`` raises; nothing has been put when an argument cannot be pickled.
    """
    payload = pack_scalars(args, kwargs)
    if payload:
        return payload, ()
    call = (tuple(map(wrap_large, args)), {name: wrap_large(value) for name, value in kwargs.items()} if kwargs else kwargs)
    try:
        stream, buffers, local = _pickled(call, homes=True, holes=holes)
    except Exception as error:  # pickling runs the user's code, which may raise anything
        raise _bad_arguments(args, kwargs, parameters, error, holes) from error
    code: tuple[ObjectRef, ...] = ()
    if local:
        from windlass import snapshots

        code = snapshots.snapshots_of(local, put)
    if holes is not None:
        code = holes.with_code(code)
    if code:
        header = _Code(code)
        stream, buffers, _ = _pickled((header, *call), homes=True, skip=header.markers, holes=holes)
    return _put_parts(stream, buffers, put, code)


def unpack_call(payload: bytes, spans: Sequence[ObjectRef], open_object: OpenObject) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `pack_call` was given. Raises `NotPicklable` when it cannot be read here, `KeyError` for a lost object."""
    if spans:
        stream, buffers = _open_parts(payload, spans, open_object)
    else:
        stream, buffers = payload, ()
    try:
        call = loads(stream, buffers=buffers)
        if len(call) == 1:
            from windlass import joined

            call = joined.unpack(call[0], stream, buffers)
        if len(call) == 4:
            from windlass.files import with_files

            return with_files(call[0], call[2]), call[1]
        if len(call) == 3:
            return call[1], call[2]
        args, kwargs = call
        return args, kwargs
    except Exception as error:  # unpickling runs the user's code, which may raise anything
        raise _unreadable("the call's arguments", error, "on the worker") from error


# ---------------------------------------------------------------- results


def pack_result(value: Any, put: PutAll) -> tuple[bytes, tuple[ObjectRef, ...]]:
    """Pickle what a function returned: payload and spans. Raises `NotPicklable` naming the type, and what ``put`` raises."""
    if type(value) in _SCALARS or _is_flat(value):
        payload = dumps(value, 5)
        if len(payload) < OUT_OF_BAND_BYTES:
            return payload, ()
    try:
        stream, buffers, _ = _pickled(wrap_large(value), homes=False)
    except Exception as error:  # pickling runs the user's code, which may raise anything
        raise _not_picklable(f"a result of type {type_name(value)} cannot be pickled{culprit(value)}: {_reason(error)}") from error
    large = stream.tell() >= OUT_OF_BAND_BYTES
    if not (buffers or large):
        return stream.getvalue(), ()
    parts: list[Buffer] = [buffer.raw() for buffer in buffers]
    if not large:
        return stream.getvalue(), tuple(put(parts))
    *spans, first = put([*parts, stream.getbuffer()])
    return b"", (first, *spans)


def unpack_result(payload: bytes, spans: Sequence[ObjectRef], open_object: OpenObject) -> Any:
    """The value that `pack_result` was given. Raises `NotPicklable` when it cannot be read here, `KeyError` for a lost object."""
    if spans:
        stream, buffers = _open_parts(payload, spans, open_object)
    else:
        stream, buffers = payload, ()
    try:
        return loads(stream, buffers=buffers)
    except Exception as error:  # unpickling runs the user's code, which may raise anything
        raise _unreadable("the call's result", error) from error


# ---------------------------------------------------------------- exceptions


def pack_exception(exc: BaseException) -> tuple[bytes, EndDetail]:
    """An exception with its chain, notes and tracebacks as bytes, and what the manager must know of it. Never raises."""
    from windlass import raised

    return raised.pack_exception(exc)


def unpack_exception(payload: bytes) -> BaseException:
    """The exception that `pack_exception` was given; its ``__cause__`` is a `RemoteTraceback`. Raises `NotPicklable` for damaged bytes."""
    from windlass import raised

    return raised.unpack_exception(payload)


# ---------------------------------------------------------------- for the neighbours


def dumps_result(value: Any) -> bytes:
    """Pickle a value on the worker for the program, all in one stream."""
    return _pickled(value, homes=False, in_band=True)[0].getvalue()


def with_sources(fn: Any, sources: Sequence[tuple[str, int, str]]) -> Any:
    """Read on the worker (`windlass.functions`): the function, whose source lines go to `linecache` where there is no such file.

    `sources`: file name, first line's number, text.
    """
    import linecache
    import os

    for filename, first, text in sources:
        known = linecache.cache.get(filename)
        if known is None and os.path.exists(filename):
            continue
        lines: list[str] = list(known[2]) if known is not None and len(known) == 4 else []
        new = text.splitlines(keepends=True)
        lines += ["\n"] * (first - 1 + len(new) - len(lines))
        lines[first - 1 : first - 1 + len(new)] = new
        linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
    return fn


def type_name(value: object) -> str:
    """``module.qualname`` of the value's type, without the module for builtins."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# ---------------------------------------------------------------- streams


def _pickled(
    value: Any, *, homes: bool, skip: Collection[PickleBuffer] = (), in_band: bool = False, holes: Holes | None = None
) -> tuple[BytesIO, list[PickleBuffer], set[str]]:
    """The stream, its out-of-band buffers, and the local modules that it names. `homes`: look for those."""
    buffers: list[PickleBuffer] = []

    def keep_in_band(buffer: PickleBuffer) -> bool:
        small = in_band or buffer.raw().nbytes < OUT_OF_BAND_BYTES or len(buffers) >= SPANS_MOST
        if small and not any(buffer is marker for marker in skip):
            return True
        buffers.append(buffer)
        return False

    try:
        file = BytesIO()
        pickler: Any = (_ByNameWithHomes if homes else _ByName)(file, 5, buffer_callback=keep_in_band)
        if holes is not None:
            pickler.meet(holes)
        pickler.dump(value)
    except Exception:  # noqa: BLE001 - whatever it was, cloudpickle may know better, and says why when it does not
        buffers.clear()
        file = BytesIO()
        pickler = _by_value(file, homes, keep_in_band)
        if holes is not None:
            pickler.meet(holes)
        pickler.dump(value)
    return file, buffers, pickler.local


def _put_parts(stream: BytesIO, buffers: list[PickleBuffer], put: Put, code: tuple[ObjectRef, ...]) -> tuple[bytes, tuple[ObjectRef, ...]]:
    spans = [*code]
    spans += [put(buffer.raw()) for buffer in buffers[len(code) :]]
    size = stream.tell()
    if size < OUT_OF_BAND_BYTES:
        return stream.getvalue(), tuple(spans)
    return b"", (put(stream.getbuffer()), *spans)


def _open_parts(payload: bytes, spans: Sequence[ObjectRef], open_object: OpenObject) -> tuple[bytes | memoryview, Sequence[memoryview]]:
    views = [open_object(span.name) for span in spans]
    return (payload, views) if payload else (views[0], views[1:])


class _Large:
    """Stands in a stream for large ``bytes``: pickle keeps them in band, this sends them out."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return type(self.data), (PickleBuffer(self.data),)


def _is_flat(value: Any) -> bool:
    """True for a small list, tuple or dict of scalars: a glance that is cheaper than the pickler's hook."""
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is list or kind is tuple:
        return len(value) <= 64 and _SCALARS.issuperset(map(type, value))
    if kind is dict:
        return len(value) <= 64 and _SCALARS.issuperset(map(type, value)) and _SCALARS.issuperset(map(type, value.values()))
    return False


def wrap_large(value: Any) -> Any:
    """The value, or what makes large ``bytes`` leave the stream."""
    return _Large(value) if type(value) in _BUFFERS and len(value) >= OUT_OF_BAND_BYTES else value


class _Code:
    """Stands first in the stream of a call: installs snapshots before anything that needs them is read."""

    def __init__(self, code: tuple[ObjectRef, ...]) -> None:
        self.names = tuple(ref.name for ref in code)
        self.markers = [PickleBuffer(b"") for _ in code]  # the spans with the snapshots take their places

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        from windlass import snapshots

        return snapshots.install_all, (self.names, self.markers)


# ---------------------------------------------------------------- by name


class _NeedsValueError(Exception):
    """Something in the value cannot go by name."""


class _ByName(pickle.Pickler):
    """Plain pickle that refuses functions and classes which their module does not have under their name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.local: set[str] = set()
        self._future: type | None = None
        self._holes: Any = None

    def meet(self, holes: Holes) -> None:
        """Futures become holes."""
        holes.clear()
        self._future, self._holes = holes.kind, holes

    def reducer_override(self, obj: object) -> Any:
        kind = type(obj)
        if (kind is type or kind is FunctionType or kind is CACHED or issubclass(kind, type)) and not is_named(obj):
            raise _NeedsValueError
        return NotImplemented


class _ByNameWithHomes(_ByName):
    """The same in the program: notes local modules, and refuses modules that cannot be imported elsewhere."""

    def reducer_override(self, obj: object) -> Any:
        kind = type(obj)
        if kind is type or kind is FunctionType or kind is CACHED or issubclass(kind, type):
            if not is_named(obj):
                raise _NeedsValueError
            from windlass.homes import BY_VALUE, INSTALLED, home_of

            home = home_of(obj.__module__)
            if home is not INSTALLED:
                if home is BY_VALUE:
                    raise _NeedsValueError
                self.local.add(obj.__module__.partition(".")[0])
        elif kind is self._future:
            return self._holes.reduce(obj)
        elif kind.__name__ in SHARED_GENERATORS and shared_generator(obj) is not None:
            raise _NeedsValueError
        return NotImplemented


#: Generators of random numbers that modules share, by the names of their classes: the module, and what it calls them.
SHARED_GENERATORS: Final = {"Random": ("random", "_inst"), "RandomState": ("numpy.random.mtrand", "_rand")}


def shared_generator(obj: object) -> tuple[ModuleType, str] | None:
    """Where a generator is found that a module shares; None for any other.

    Bound methods have it: `random.random` is one. By value it would bring its state, and draw the same numbers wherever it arrives.
    """
    module_name, name = SHARED_GENERATORS[type(obj).__name__]
    module = sys.modules.get(module_name)
    return (module, name) if module is not None and vars(module).get(name) is obj else None


def is_named(obj: Any) -> bool:
    """True when a function or class is found again under its module and qualified name, and not in ``__main__``."""
    module_name = getattr(obj, "__module__", None)
    return module_name is not None and module_name not in _MAINS and of_name(obj) is obj


def of_name(obj: Any) -> Any:
    """What its module has under the qualified name of a function or class; None for nothing."""
    try:
        found: Any = sys.modules[obj.__module__]
        for part in obj.__qualname__.split("."):
            found = getattr(found, part)
    except (AttributeError, KeyError):
        return None
    return found


def _by_value(file: BytesIO, homes: bool, buffer_callback: Callable[[PickleBuffer], bool] | None) -> Any:
    from windlass import byvalue  # cloudpickle takes a while to import, and most slots never need it

    return byvalue.ByValue(file, homes, buffer_callback)


# ---------------------------------------------------------------- what cannot travel, and why


def _not_picklable(text: str) -> NotPicklable:
    from windlass.errors import NotPicklable

    return NotPicklable(text)


def _unreadable(what: str, error: Exception, place: str = "here") -> NotPicklable:
    hint = ""
    if isinstance(error, ImportError):
        from windlass import raised

        hint = "; is it installed on this side too? Once it is, ask for the result again" if place == "here" else f"; {raised.where(error)}"
    return _not_picklable(f"{what} cannot be unpickled {place}: {_reason(error)}{hint}")


def _bad_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Sequence[str], error: Exception, holes: Holes | None
) -> Exception:
    named = [(f"argument {i + 1}", parameters[i] if i < len(parameters) else "", value) for i, value in enumerate(args)]
    named += [(f"keyword argument {name!r}", "", value) for name, value in kwargs.items()]
    for title, name, value in named:
        reason = _why_not(value, holes)
        if reason is not None:
            kind = f"({name!r}, {type_name(value)})" if name else f"({type_name(value)})"
            way, part = _innermost(value, 4, holes)
            refusal = holes.refusal(part) if holes is not None else ""
            if refusal:
                return _not_picklable(
                    f"{title} {kind} has a part, its {way.strip()}, that {refusal}" if way else f"{title} {kind} {refusal}"
                )
            return _not_picklable(
                f"{title} {kind} cannot be pickled{_because(way, part)}: {reason}; pass what it is made from, and make it in the function"
            )
    return _not_picklable(f"the arguments cannot be pickled: {_reason(error)}")


def _why_not(value: Any, holes: Holes | None = None) -> str | None:
    try:
        _pickled(wrap_large(value), homes=True, holes=holes)
    except Exception as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
        return _reason(error)
    return None


def culprit(value: Any, depth: int = 4) -> str:
    """ " because of its ['key'].attribute (type)": the way down to the innermost part that cannot be pickled."""
    return _because(*_innermost(value, depth, None))


def _because(way: str, part: Any) -> str:
    return f" because of its {way.strip()} ({type_name(part)})" if way else ""


def _innermost(value: Any, depth: int, holes: Holes | None) -> tuple[str, Any]:
    """The way down to the innermost part that cannot be pickled, and that part."""
    way = ""
    for _ in range(depth):
        if holes is not None and holes.refusal(value):
            break
        for step, part in _parts(value):
            if _why_not(part, holes) is not None:
                way, value = way + step, part
                break
        else:
            break
    return way, value


def _parts(value: Any) -> list[tuple[str, Any]]:
    """What a container or an instance is made of, a bounded number."""
    if isinstance(value, dict):
        items: Any = list(value.items())[:1000]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        return [(f"[{key!r:.60}]", part) for key, part in items]
    if isinstance(value, list | tuple):
        parts: Any = value[:1000]  # pyright: ignore[reportUnknownVariableType]
        return [(f"[{index}]", part) for index, part in enumerate(parts)]
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        names = [(f" closure variable {name!r}", cell.cell_contents) for name, cell in cells]
        return names + [(f" global {name!r}", value.__globals__[name]) for name in value.__code__.co_names if name in value.__globals__]
    if isinstance(value, MethodType):
        return [(" self", value.__self__), (" function", value.__func__)]
    if isinstance(value, partial):
        made: partial[Any] = value  # pyright: ignore[reportUnknownVariableType]
        return [(" func", made.func), (" args", made.args), (" keywords", made.keywords)]
    if isinstance(value, type | ModuleType):
        return []
    return [(f".{name}", part) for name, part in list(getattr(value, "__dict__", {}).items())[:1000]]


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
