"""Whether functions and classes are still as they were: looked at in a microsecond, where pickling them again takes a hundred.

Theory of operation
-------------------
Of each function by value its code, defaults, closure cells, attributes, and the globals that it names must be the same objects as
before, and so must what classes by value have.  That is enough where these objects are immutable (numbers, strings, modules and functions
by name, tuples of such, ...).  Where one is mutable (a list, an array, an instance, a module that was made by hand and goes with all that
it has), identity says nothing, and there is no watch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from types import BuiltinFunctionType, CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, Final, cast

from windlass import pickling
from windlass.homes import BY_VALUE, home_of

MISSING: Final = object()
_IMMUTABLE: Final = frozenset(
    {int, float, complex, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented), range, slice}
    | {GetSetDescriptorType, MemberDescriptorType}
)
_IMMUTABLE_NAMES: Final = frozenset(
    [
        "_collections._tuplegetter",
        "dataclasses._HAS_DEFAULT_FACTORY_CLASS",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "enum.property",
        "fractions.Fraction",
        "logging.Logger",  # which goes by its name
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "re.Pattern",
        "uuid.UUID",
    ]
)
#: Go with their state, which is that of their module's function, for ever.
_COMPILED: Final = frozenset(["numba.core.registry.CPUDispatcher", "numba.cuda.dispatcher.CUDADispatcher"])
#: What a class keeps about itself; changes of these alone are not looked for.
_CLASS_BOOKS: Final = frozenset(
    [
        "__abstractmethods__",
        "__annotations__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__module__",
        "__orig_bases__",
        "__parameters__",
        "__slotnames__",
        "__weakref__",
        "_abc_impl",
        "_field_defaults",
        "_generate_next_value_",
        "_member_map_",
        "_member_names_",
        "_member_type_",
        "_unhashable_values_",
        "_value2member_map_",
        "_value_repr_",
        "_use_args_",
        "_new_member_",
        "__new__",
        "__classcell__",
        "__match_args__",
    ]
)


@dataclass(frozen=True, slots=True)
class Watches:
    """Objects that must be the same ones still."""

    #: Function (None: the one that is asked about), its code, its two kinds of defaults, and its closure cells with their contents.
    functions: list[tuple[Any, CodeType, Any, Any, tuple[tuple[Any, Any], ...]]]
    #: Globals (length -1: it may have more), attributes, keyword defaults, and namespaces of classes.
    mappings: list[tuple[Mapping[str, Any], int, tuple[str, ...], tuple[Any, ...]]]

    def hold(self, fn: Any = None) -> bool:
        """Whether they are. ``fn``: the function for which they were made."""
        for other, code, defaults, keywords, cells in self.functions:
            function = other or fn
            if function.__code__ is not code or function.__defaults__ is not defaults or function.__kwdefaults__ is not keywords:
                return False
            for cell, value in cells:
                if content_of_cell(cell) is not value:
                    return False
        for mapping, length, names, values in self.mappings:
            if length != -1 and len(mapping) != length:
                return False
            for name, value in zip(names, values, strict=True):
                if mapping.get(name, MISSING) is not value:
                    return False
        return True


def watch(fn: Any, functions: Collection[FunctionType], classes: Collection[type], others: Iterable[object] = ()) -> Watches | None:
    """What to look at before it is said that these functions and classes are what they were; None when they refer to something mutable.

    ``fn``: what they were found from; it is not held, or nothing would ever be forgotten. ``others``: functions and classes that are
    looked at by themselves.
    """
    from windlass import byvalue

    by_value = {id(one) for one in (*functions, *classes, *others)}
    watches = Watches([], [])
    referred: list[Any] = [fn]

    def look(mapping: Mapping[str, Any], length: int, names: Iterable[str]) -> None:
        names = tuple(names)
        values = tuple(mapping.get(name, MISSING) for name in names)
        watches.mappings.append((mapping, length, names, values))
        referred.extend(values)

    for function in functions:
        cells = tuple((cell, content_of_cell(cell)) for cell in function.__closure__ or ())
        watches.functions.append(
            (None if function is fn else function, function.__code__, function.__defaults__, function.__kwdefaults__, cells)
        )
        # Whose __repr__ has a set in a cell, for recursion.
        if function.__globals__.get("__name__") not in ("dataclasses", "reprlib"):
            referred.extend(value for _, value in cells)
        referred.extend(function.__defaults__ or ())
        names = byvalue.global_names(function)
        if names:
            look(function.__globals__, -1, names)
        look(function.__dict__, len(function.__dict__), function.__dict__)
        if function.__kwdefaults__:
            look(function.__kwdefaults__, len(function.__kwdefaults__), function.__kwdefaults__)
    for kind in classes:
        space = vars(kind)
        look(space, len(space), (name for name in space if name not in _CLASS_BOOKS))
    return watches if all(is_immutable(value, by_value) for value in referred) else None


def content_of_cell(cell: Any) -> Any:
    """What a variable of an outer function has; `MISSING` for none."""
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def is_immutable(value: Any, by_value: Collection[int]) -> bool:
    """True when being the same object means being the same; functions and classes with these ids count, as they are watched themselves."""
    from windlass import byvalue

    kind = cast("type[object]", type(value))
    if value is MISSING or kind in _IMMUTABLE or id(value) in by_value:
        return True
    if kind is tuple or kind is frozenset:
        return len(value) <= 100 and all(is_immutable(part, by_value) for part in value)
    if kind is BuiltinFunctionType:  # as a method of a list is; a function of a module has that as its self
        return pickling.is_named(value) or is_immutable(value.__self__, by_value)
    if kind is MethodType:
        return is_immutable(value.__self__, by_value) and is_immutable(value.__func__, by_value)
    if kind is FunctionType or issubclass(kind, type):
        return pickling.is_named(value) and home_of(value.__module__) != BY_VALUE
    if kind is partial:
        return not value.keywords and is_immutable(value.func, by_value) and is_immutable(value.args, by_value)
    if kind is ModuleType:
        return byvalue.goes_by_name(value)
    if kind is cached_property:
        return is_immutable(value.func, by_value)
    if kind is staticmethod or kind is classmethod:
        return is_immutable(value.__func__, by_value)
    if kind is property:
        return all(is_immutable(part, by_value) for part in (value.fget, value.fset, value.fdel))
    if kind is pickling.CACHED and is_immutable(value.__wrapped__, by_value):
        return True
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, Enum) or name in _IMMUTABLE_NAMES:
        return True
    if kind.__name__ in pickling.SHARED_GENERATORS and pickling.shared_generator(value) is not None:
        return True  # it goes by its name
    if name in _COMPILED and pickling.is_named(value):
        return True
    if any(base.__module__ == "numpy" and base.__name__ in ("generic", "dtype", "ufunc") for base in kind.__mro__):
        return kind.__name__ != "void"  # a record, whose fields can be set
    # A function in another language, such as numpy.dot. A decorator that is a class looks like one, and goes with its attributes.
    return kind.__module__ != "builtins" and callable(value) and "__qualname__" in dir(value) and byvalue.goes_by_name(value)
