"""Which modules a function needs: found, for ``imports="auto"``, or given.

Theory of operation
-------------------
A function that goes by value takes with it all that it refers to, and pickling it names every module of that: the modules among its
globals, closure and defaults, the modules of functions, classes and instances there, submodules that it uses by attribute. To these
come the imports inside the bodies of the function, of the helpers and methods that travel with it, and of the functions inside those:
in each code object, ``IMPORT_NAME`` follows the constants for level and names. ``from a import b`` also imports ``a.b`` if that is a
module; this is found without importing anything that the program has not.

What is found is only likely to be needed (it may stand in a branch that never runs, or in a ``try``), so these imports are
automatic: one that fails is left to the call. Modules that every interpreter has loaded are left out.
"""

from __future__ import annotations

import importlib.machinery
import keyword
import opcode
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from windlass.errors import UsageError
from windlass.homes import BY_VALUE, find_spec, home_of
from windlass.messages import ImportSpec

#: Loaded in every interpreter, or by every slot, before anything of the user's.
_TRIVIAL: Final = frozenset(
    [
        "__main__",
        "__mp_main__",
        "_thread",
        "abc",
        "builtins",
        "codecs",
        "collections",
        "collections.abc",
        "copyreg",
        "encodings",
        "enum",
        "errno",
        "functools",
        "genericpath",
        "io",
        "itertools",
        "keyword",
        "marshal",
        "operator",
        "os",
        "os.path",
        "pickle",
        "posix",
        "posixpath",
        "re",
        "reprlib",
        "select",
        "signal",
        "site",
        "socket",
        "stat",
        "struct",
        "sys",
        "threading",
        "time",
        "traceback",
        "types",
        "typing",
        "warnings",
        "weakref",
        "zipimport",
    ]
)
_EXTENDED_ARG: Final = opcode.opmap["EXTENDED_ARG"]
_IMPORT_NAME: Final = opcode.opmap["IMPORT_NAME"]
#: Since Python 3.15 the lowest bits of its argument say whether the import is a lazy one.
_LAZY_BITS: Final = 2 if sys.version_info >= (3, 15) else 0


def find_imports(fn: Callable[..., Any]) -> tuple[ImportSpec, ...]:
    """The automatic imports of a function. Raises `NotPicklable` when it cannot travel at all."""
    from windlass import functions

    return functions.look_at(fn).imports


def explicit_imports(values: Iterable[ModuleType | str] | ModuleType | str) -> tuple[ImportSpec, ...]:
    """Imports that are asked for, as module objects or dotted names, without duplicates.

    Raises `UsageError` for anything else, for names that cannot be a module's, and for modules that no other process can import.
    """
    if isinstance(values, ModuleType | str):
        values = [values]
    names: dict[str, None] = {}
    for value in _listed(values):
        names[_explicit_name(value)] = None
    return tuple(ImportSpec(name, explicit=True) for name in names)


def _listed(values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise UsageError(
            f"imports={values!r} is no list of modules; write imports=[numpy, 'scipy.stats'], modules or their names, or imports='auto'"
        ) from None


def _explicit_name(value: Any) -> str:
    if isinstance(value, ModuleType):
        if home_of(value.__name__) == BY_VALUE:
            raise UsageError(
                f"imports: no other process can import {value.__name__!r}, which is not a module found on sys.path; leave it out, "
                "functions take with them what they use of it"
            )
        return value.__name__
    if not isinstance(value, str):
        raise UsageError(
            f"imports: {value!r:.80} is of type {type(value).__name__}; write a module or its dotted name, "
            "as in imports=[numpy, 'scipy.stats']"
        )
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in value.split(".")):
        words = value.split()
        right = words[1] if len(words) > 1 and words[0] in ("import", "from") else "scipy.stats"
        raise UsageError(f"imports: {value!r} cannot be the name of a module; write a dotted name, such as {right!r}")
    return value


def automatic_imports(modules: Iterable[str], functions: Iterable[FunctionType]) -> tuple[ImportSpec, ...]:
    """The imports of a pickled function from what its stream names and the functions that went by value."""
    names = {*modules, *imported_by(functions)}
    wanted = (name for name in sorted(names) if name not in _TRIVIAL and name.partition(".")[0] not in ("windlass", "cloudpickle"))
    return tuple(ImportSpec(name) for name in wanted if home_of(name) != BY_VALUE or name not in sys.modules)


def imported_by(functions: Iterable[FunctionType]) -> set[str]:
    """The modules that the bodies of these import."""
    names: set[str] = set()
    for function in functions:
        names.update(imports_of_code(function.__code__, function.__globals__.get("__package__") or ""))
    return names


def plain_function(fn: Any) -> FunctionType | None:
    """The Python function below partials and bound methods, if there is one."""
    for _ in range(32):
        if isinstance(fn, partial):
            fn = fn.func  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        elif isinstance(fn, MethodType):
            fn = fn.__func__
        else:
            break
    return fn if isinstance(fn, FunctionType) else None


@lru_cache(maxsize=4096)
def imports_of_code(code: CodeType, package: str) -> tuple[str, ...]:
    """The modules that a code object, and those inside it, import; `package` is where relative imports start."""
    found: list[str] = []
    for level, names, name in _import_instructions(code):
        if level:
            parts = package.split(".")
            if not package or level > len(parts):
                continue
            name = ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])
        found.append(name)
        found += [f"{name}.{item}" for item in names if item != "*" and _is_submodule(name, item)]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += imports_of_code(constant, package)
    return tuple(found)


def _import_instructions(code: CodeType) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """(level, names after ``from``, module) of each import in a code object."""
    loaded: list[Any] = []  # constants, as far as instructions are loads of constants
    extended = 0
    raw = code.co_code
    for place in range(0, len(raw), 2):
        operation, argument = raw[place], raw[place + 1] | extended
        extended = argument << 8 if operation == _EXTENDED_ARG else 0
        if operation == _EXTENDED_ARG:
            continue
        if operation == _IMPORT_NAME:
            if len(loaded) >= 2 and isinstance(loaded[-2], int):
                names: Any = loaded[-1] or ()
                yield loaded[-2], tuple(names), code.co_names[argument >> _LAZY_BITS]
            loaded.clear()
        elif opcode.opname[operation] == "LOAD_CONST":
            loaded.append(code.co_consts[argument])
        elif opcode.opname[operation] == "LOAD_SMALL_INT":  # Python 3.14
            loaded.append(argument)
        elif opcode.opname[operation] == "LOAD_COMMON_CONSTANT":  # Python 3.15: names are a tuple, which is none of them, or None
            loaded.append(None)
        elif opcode.opname[operation] not in ("NOP", "CACHE", "RESUME"):
            loaded.clear()


def _is_submodule(package: str, item: str) -> bool:
    name = f"{package}.{item}"
    module = sys.modules.get(package)
    if module is not None:
        value = getattr(module, item, None)
        if value is not None:
            return isinstance(value, ModuleType) and value.__name__ == name
    if name in sys.modules:
        return True
    top, *rest = name.split(".")
    spec = find_spec(top)
    here = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return False
        here = f"{here}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(here, list(spec.submodule_search_locations))
    return spec is not None
