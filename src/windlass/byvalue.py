"""Pickling by value: cloudpickle, told where modules live and whose classes are whose.

Theory of operation
-------------------
In the program (``homes``) two things differ from plain cloudpickle.  Functions and classes of modules that other processes cannot
import (`windlass.homes.BY_VALUE`) go by value although their module is imported here; and what the stream names is noted: local
modules, so that their snapshot can go along, all modules, and the functions that went by value, so that their imports can be hoisted.
What `functools.lru_cache` makes would go by name always, as what `typing` makes of names besides type variables, a
`functools.cached_property` has a lock, and what `functools.singledispatch` makes has weak references: they are made anew.
The generators of random numbers that modules share go by name: ``from random import random`` makes one a part of each function that uses
it, and with its state all slots would draw the same numbers.

On the worker (not ``homes``) classes that came by value go back as a tracker id, by which cloudpickle knows that two classes are the
same, and a blob that defines the class, read only where the id is unknown.  Plain cloudpickle would define the class again wherever
it arrives: with each result the program's own class would get its methods replaced by copies with globals of their own.

Ids are drawn at random, so a result of an earlier life (a journal's) or of another program (`Attached.find`) has one that this program does
not know, though it may have the very class: `windlass.own_classes`.

Not imported before something must go by value: cloudpickle takes a while. It has no types, and its parts used here are not public,
though unchanged since its version 1.6; therefore they all stand in this module, but for its table of classes in slots, which do without
this one (`windlass.worker.namespaces`).
"""

from __future__ import annotations

import copyreg
import importlib
import sys
import types
from abc import ABCMeta
from collections import ChainMap
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache, singledispatch, singledispatchmethod, update_wrapper
from io import BytesIO
from pickle import PickleBuffer, PicklingError
from types import CodeType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any, ClassVar, Final, NamedTuple, NewType, NoReturn, ParamSpec, TypeVar, TypeVarTuple, cast
from uuid import uuid4
from weakref import WeakKeyDictionary

from windlass import pickling
from windlass.errors import InternalError
from windlass.homes import BY_VALUE, LOCAL, home_of

_cloudpickle: Any = importlib.import_module("cloudpickle.cloudpickle")
#: Where a code object's arguments have the name of its file, from Python 3.11 on; and those of what makes a class its namespace.
_FILE_NAME: Final = 10
_NAMESPACE: Final = 3
#: The code of all that `functools.singledispatch` makes.
_DISPATCHES: Final[CodeType] = cast("Any", singledispatch(repr)).__code__
#: Attributes of it that have weak references, or are of no use without it.
_DISPATCH_NAMES: Final = frozenset({"register", "dispatch", "registry", "_clear_cache"})
#: What `typing` makes of a name, besides type variables, and what each of these is made of.
_OF_NAME: Final[dict[type, Callable[[Any], dict[str, Any]]]] = {
    NewType: lambda obj: {"tp": obj.__supertype__},
    ParamSpec: lambda obj: {"bound": obj.__bound__, "covariant": obj.__covariant__, "contravariant": obj.__contravariant__},
    TypeVarTuple: lambda obj: {},
}
#: The type of what `lazy import` binds, if this Python has it.
_LAZY: Final[Any] = getattr(types, "LazyImportType", None)
#: Types of which each object has to be looked at; of others the first one tells, but for classes, functions and modules.
_PECULIAR: Final = frozenset({pickling.CACHED, cached_property, singledispatchmethod, TypeVar, *_OF_NAME})
#: At the end of a tracker id: its program has the class under its name.
NAMED: Final = ":named"


def _reduce_code(code: CodeType) -> Any:
    """As cloudpickle does, with the name of the code's file: by that a remote traceback finds the user's own lines."""
    make, arguments = _cloudpickle._code_reduce(code)
    name = "".join(code.co_filename)  # a string of its own, or the bytes would depend on what else is pickled
    return make, (*arguments[:_FILE_NAME], name, *arguments[_FILE_NAME + 1 :])


_CloudPickler: Any = _cloudpickle.Pickler


class _Pickler(_CloudPickler):  # type: ignore[misc]
    """cloudpickle's; since its version 3.1.3 that one drops the names of files."""

    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _reduce_code}, _CloudPickler.dispatch_table)

    def __init__(self, file: BytesIO, buffer_callback: Callable[[PickleBuffer], bool] | None) -> None:
        # Looked at for each object, and what a ChainMap does not have it says after a microsecond.
        table = {**copyreg.dispatch_table, **_CloudPickler._dispatch_table, CodeType: _reduce_code}
        self.dispatch_table = table  # type: ignore[misc]
        _CloudPickler.__init__(self, file, 5, buffer_callback)


class ByValue(_Pickler):
    """A pickler that notes what it meets (with `homes`)."""

    def __init__(self, file: BytesIO, homes: bool, buffer_callback: Callable[[PickleBuffer], bool] | None) -> None:
        super().__init__(file, buffer_callback)
        self._homes = homes
        self._future: type | None = None
        self._holes: Any = None
        #: Types whose objects pickle as they do by themselves, and with `homes` the module that such an object names, which was noted.
        self._ordinary: dict[type, str] = {}
        #: Local top-level modules that the stream names.
        self.local: set[str] = set()
        #: All modules that reading the stream imports.
        self.modules: set[str] = set()
        #: The functions and classes that went by value.
        self.functions: list[FunctionType] = []
        self.classes: list[type] = []

    def meet(self, holes: pickling.Holes) -> None:
        """Futures become holes."""
        holes.clear()
        self._future, self._holes = holes.kind, holes

    def reducer_override(self, obj: object) -> Any:
        kind = type(obj)
        ordinary = self._ordinary.get(kind)
        if ordinary is not None and (not self._homes or getattr(obj, "__module__", "") is ordinary):
            return NotImplemented  # at once: there may be a hundred thousand of them
        if kind is self._future:
            return self._holes.reduce(obj)
        if kind is pickling.CACHED and not self._goes_by_name(obj):
            return _make_cached, (_wrapped(obj), _cache_parameters(obj))
        if kind.__name__ in pickling.SHARED_GENERATORS and (place := pickling.shared_generator(obj)):
            return getattr, place
        if kind is cached_property:
            # Before Python 3.12 it has a lock.
            return _make_cached_property, (_wrapped(obj), vars(obj)["attrname"])
        if kind is FunctionType and getattr(obj, "__code__", None) is _DISPATCHES and not self._goes_by_name(obj):
            return _reduce_dispatching(obj)
        if kind is singledispatchmethod:
            # From Python 3.13 on it has weak references too, to a cache.
            return singledispatchmethod, (repr,), {name: vars(obj)[name] for name in ("dispatcher", "func")}
        if kind in _OF_NAME and self._is_made_here(obj):
            parts = (kind, getattr(obj, "__qualname__", None) or cast("Any", obj).__name__, obj.__module__, _OF_NAME[kind](obj))
            return _make_of_name, (*parts, _cloudpickle._get_or_create_tracker_id(obj))
        is_class = kind is type or issubclass(kind, type)
        reduced: Any
        if not self._homes:
            reduced = _Pickler.reducer_override(self, obj)
            if is_class and is_by_value(reduced):
                return known_class, (_cloudpickle._get_or_create_tracker_id(obj), _class_blob(obj))
            if not (is_class or kind is FunctionType) and getattr(obj, "__class__", None) is kind:  # and no proxy, perhaps of a function
                self._have_met(kind, "")
            return reduced
        module_name = getattr(obj, "__name__" if kind is ModuleType else "__module__", None)
        if not isinstance(module_name, str) or module_name not in sys.modules:
            module_name = ""
        home = home_of(module_name)
        if kind is TypeVar and home == BY_VALUE:
            return _cloudpickle._make_typevar, _cloudpickle._decompose_typevar(obj)
        if is_class and home == BY_VALUE:
            _number(obj)
        if not (is_class or kind is FunctionType or kind is ModuleType):
            reduced = NotImplemented
            self._have_met(kind, module_name)
        elif home == BY_VALUE and isinstance(obj, FunctionType):
            reduced = self._dynamic_function_reduce(obj)
        elif home == BY_VALUE and is_class and module_name and pickling.is_named(obj):
            reduced = _cloudpickle._dynamic_class_reduce(obj)
        else:
            reduced = _Pickler.reducer_override(self, obj)
        if is_class and is_by_value(reduced):
            self.classes.append(as_class(obj))
            _amend(obj, reduced)
        elif (reduced is NotImplemented or kind is ModuleType) and module_name:
            self.modules.add(module_name)
            if home == LOCAL:
                self.local.add(module_name.partition(".")[0])
        return reduced

    def _have_met(self, kind: type, module_name: str) -> None:
        if kind not in _PECULIAR and kind.__name__ not in pickling.SHARED_GENERATORS:
            self._ordinary[kind] = module_name

    def _goes_by_name(self, obj: Any) -> bool:
        return pickling.is_named(obj) and (not self._homes or home_of(obj.__module__) != BY_VALUE)

    def _is_made_here(self, obj: Any) -> bool:
        """Of what `typing` has made of a name: it is of this program, and no module has it where this goes to."""
        if not self._homes:
            return obj in _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
        return home_of(obj.__module__ if obj.__module__ in sys.modules else "") == BY_VALUE

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        self.functions.append(func)
        make_lazy_imports(func)
        make, arguments, (_, slots), *rest = _Pickler._dynamic_function_reduce(self, func)
        return make, arguments, (attributes_of(func), slots), *rest


def goes_by_name(obj: Any) -> bool:
    """Whether a module, or something that is neither a function nor a class, is no more than its name in a stream."""
    if type(obj) is ModuleType:
        return bool(_cloudpickle._should_pickle_by_reference(obj))
    reduce = _Pickler.dispatch_table.get(type(obj))
    try:
        return isinstance(obj.__reduce_ex__(5) if reduce is None else reduce(obj), str)
    except Exception:  # noqa: BLE001 - anybody's object, which may raise anything
        return False


class _Attribute(NamedTuple):
    """Stands for an attribute of what `functools.singledispatch` has made."""

    owner: Any
    name: str

    def __reduce__(self) -> Any:
        return getattr, (self.owner, self.name)


def attributes_of(func: FunctionType) -> dict[str, Any]:
    """Those that a function has. `functools.wraps` gives one around what dispatches by type the functions too that register and look, which
    do not travel without it."""
    found = {"".join(name): value for name, value in func.__dict__.items()}  # strings of its own, as above
    inner: Any = found.get("__wrapped__")
    met: set[int] = {id(func)}  # some wrap themselves
    while isinstance(inner, FunctionType) and id(inner) not in met:
        met.add(id(inner))
        if inner.__code__ is _DISPATCHES:
            theirs = vars(inner)
            return {
                name: _Attribute(inner, name) if name in _DISPATCH_NAMES and theirs.get(name) is value else value
                for name, value in found.items()
            }
        inner = vars(inner).get("__wrapped__")
    return found


def _make_of_name(kind: Any, name: str, module: str, parts: dict[str, Any], tracker: str) -> Any:
    """What `typing` makes of a name: the one that is known by this tracker id, if it is."""
    made = kind(name, **parts)
    made.__module__ = module
    return _cloudpickle._lookup_class_or_track(tracker, made)


def _wrapped(obj: Any) -> Any:
    return obj.func if type(obj) is cached_property else obj.__wrapped__


def _cache_parameters(obj: Any) -> dict[str, Any]:
    return dict(obj.cache_parameters())


def _make_cached(function: Any, parameters: dict[str, Any]) -> Any:
    """What `functools.lru_cache` made of the function, with an empty cache."""
    return lru_cache(**parameters)(function)


def _reduce_dispatching(obj: Any) -> Any:
    """What it dispatches to comes after it, as one of these may call it."""
    registry = dict(obj.registry)
    return _make_dispatching, (obj.__name__,), (registry.pop(object), registry), None, None, _fill_dispatching


def _make_dispatching(name: str) -> Any:
    """What `functools.singledispatch` makes of a function of this name, of which nothing is there yet."""

    def nothing(*_: object) -> NoReturn:
        raise InternalError(f"{name}, of functools.singledispatch, was called before it was read whole")

    nothing.__name__ = name
    return singledispatch(nothing)


def _fill_dispatching(made: Any, state: tuple[Any, dict[Any, Any]]) -> None:
    default, registry = state
    made.register(object, default)
    for kind, function in registry.items():
        made.register(kind, function)
    update_wrapper(made, default)


def _make_cached_property(function: Any, name: str | None) -> Any:
    made: Any = cached_property(function)
    made.attrname = name
    return made


def as_class(obj: Any) -> type:
    """The same, for checkers."""
    return obj  # type: ignore[no-any-return]


def is_by_value(reduced: Any) -> bool:
    """What cloudpickle makes of a class that it does not find by name."""
    return isinstance(reduced, tuple) and reduced[0] in (_cloudpickle._make_skeleton_class, _cloudpickle._make_skeleton_enum)


def is_of_name(reduced: Any) -> bool:
    """What is made here of what `typing` made of a name; its tracker id is the last argument."""
    return isinstance(reduced, tuple) and reduced[0] is _make_of_name


def _amend(kind: Any, reduced: Any) -> None:
    """Mend what cloudpickle makes of a class.

    It is to have its whole name, as Enums have, and its slots, without which instances have a state that those of the program's class
    cannot take; and not what pickle notes there with the first instance, or it would be another class from then on. Raises `PicklingError`
    for one that nobody can make without the keywords of its class statement, which Python does not keep.
    """
    if missing := _keywords_needed(kind):
        raise PicklingError(
            f"the class {kind.__qualname__} was made with keywords ({', '.join(missing)}) that do not travel: give the parameters of that"
            " __init_subclass__ defaults (what it has set in the class travels), or put the class into a module beside the script"
        )
    (make, arguments, (attributes, _)), has = reduced[:3], space(kind)
    attributes.pop("__slotnames__", None)
    if make is not _cloudpickle._make_skeleton_class:
        return
    arguments[_NAMESPACE]["__qualname__"] = "".join(kind.__qualname__)  # a string of its own, as above
    if "__slots__" in has and not ("_fields" in has and issubclass(kind, tuple)):  # of a NamedTuple they may not be set
        names = slots(kind)
        for name in names:
            attributes.pop(name, None)
            if name in has and not isinstance(has[name], MemberDescriptorType):
                attributes[name] = has[name]  # what was put in its place
        arguments[_NAMESPACE]["__slots__"] = (*names, *(name for name in ("__dict__", "__weakref__") if name in has))


def _keywords_needed(kind: Any) -> list[str]:
    """Parameters without defaults of the ``__init_subclass__`` that makes such a class, unless its metaclass gives them."""
    if type(kind).__new__ not in (type.__new__, ABCMeta.__new__):
        return []
    function: Any = getattr(cast("Any", super(kind, kind)).__init_subclass__, "__func__", None)
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return []
    names, count = code.co_varnames, code.co_argcount
    needed = names[1 : count - len(function.__defaults__ or ())]
    return [*needed, *(name for name in names[count : count + code.co_kwonlyargcount] if name not in (function.__kwdefaults__ or {}))]


def slots(kind: type) -> list[str]:
    """The names of the slots that a class itself has, as they are in its namespace."""
    said: Any = space(kind).get("__slots__", ())
    said = (said,) if isinstance(said, str) else tuple(said)
    private = f"_{kind.__name__.lstrip('_')}"
    names = {f"{private}{name}" if name.startswith("__") and not name.endswith("__") else name for name in said}
    members = [value for value in space(kind).values() if isinstance(value, MemberDescriptorType)]
    return sorted((names - {"__dict__", "__weakref__"}) | {value.__name__ for value in members if value.__objclass__ is kind})


def space(kind: type) -> dict[str, Any]:
    """What a class itself has."""
    return dict(vars(kind))


class _Definition(ByValue):
    """Pickles a class so that it can be defined where it is not known."""

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, type) and is_by_value(reduced := _Pickler.reducer_override(self, obj)):
            _amend(obj, reduced)
            return reduced
        return super().reducer_override(obj)


_class_blobs: WeakKeyDictionary[Any, bytes] = WeakKeyDictionary()


def _class_blob(kind: Any) -> bytes:
    blob = _class_blobs.get(kind)
    if blob is None:
        file = BytesIO()
        _Definition(file, False, None).dump(kind)
        blob = _class_blobs[kind] = file.getvalue()
    return blob


def known_class(tracker: str, blob: bytes) -> Any:
    """The class that is known here under this tracker id; else the one of its name, if that fits, or what `blob` defines."""
    found = known(tracker)
    if found is None:
        from windlass import own_classes

        found = own_classes.defined(tracker, blob)
    return found


def known(tracker: str) -> Any:
    """The class with this tracker id; None for none."""
    return _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)


def know(tracker: str, kind: Any) -> None:
    """From now on the tracker id means this class."""
    with _cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
        _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[tracker] = kind


def namesake(tracker: str, kind: Any) -> Any:
    """A class of this one's name that is known under another tracker id, by which its program has it under that name; None for none."""
    with _cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
        table = list(_cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.items())
    for other, found in table:
        if other != tracker and other.endswith(NAMED) and (found.__module__, found.__qualname__) == (kind.__module__, kind.__qualname__):
            return found
    return None


def _number(kind: Any) -> None:
    """Give a class that its module has under its name a tracker id that says so."""
    by_class = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
    if kind not in by_class and pickling.of_name(kind) is kind:
        with _cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK:
            tracker = by_class.setdefault(kind, uuid4().hex + NAMED)
            _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID[tracker] = kind


def make_lazy_imports(func: FunctionType) -> None:
    """Make the imports that ``lazy import`` (Python 3.15) has put off, as a use of these globals would. Raises what they raise."""
    if _LAZY is None:
        return
    put_off: list[str] = sorted(getattr(sys, "lazy_modules", ()))
    for name in global_names(func):
        value: Any = func.__globals__.get(name)
        if type(value) is _LAZY:
            func.__globals__[name] = value = value.resolve()
        if type(value) is ModuleType:
            _ask_for_submodules(value, set(func.__code__.co_names), put_off)


def _ask_for_submodules(module: ModuleType, used: set[str], put_off: Iterable[str]) -> None:
    """Of ``lazy import a.b`` the global is a; b comes when that is asked for it."""
    above = f"{module.__name__}."
    for parts in (one.removeprefix(above).split(".") for one in put_off if one.startswith(above)):
        if used.issuperset(parts):
            found: Any = module
            for part in parts:
                found = getattr(found, part, None)


def global_names(func: FunctionType) -> list[str]:
    """The names of globals that a function's code, with the functions inside it, reads or writes."""
    return list(_cloudpickle._extract_code_globals(func.__code__))
