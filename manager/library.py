"""A library as the program describes it: functions, what to import once, and what a slot is.

Theory of operation
-------------------
`Library` checks what it is given where it is given, and holds it. `Library.spec` turns it into the `LibrarySpec` that workers get:
functions and context are pickled, imports found, local modules put into snapshots; all large bytes go through ``put``. The id is
the name and a hash of everything else, so equal descriptions are one version and any change makes another one; calls keep the
version that they were submitted to.

`spec` freezes the library: a setter called later would change nothing on any worker, so it is refused.

Figures of `create_library` are per slot. TaskVine's setters are for the whole library, which it divides among its slots; they are
kept as such and divided in `spec`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Never, cast

import msgspec

from windlass.coroutines import is_async
from windlass.errors import UnknownName, UsageError, refuse_unknown, require_flag
from windlass.files import File
from windlass.manager.call import megabytes_to_bytes, needs_of, read_count, read_number, read_seconds
from windlass.messages import MAX_FRAME_BYTES, FileRef, FunctionDef, ImportSpec, LibraryId, LibrarySpec, ObjectRef, Resources

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Put = Callable[[Buffer], ObjectRef]

log = logging.getLogger("windlass.manager")

AnyFunction = Callable[..., Any]
Imports = Literal["auto"] | str | types.ModuleType | Iterable[str | types.ModuleType] | None
Context = AnyFunction | Sequence[Any] | None

MODES: Final = ("direct", "fork")
STARTS: Final = ("fork", "spawn")
#: Calls that one slot may run at once: each has its line in memory that worker and slot share.
CONCURRENCY_MOST: Final = 1000
#: Seconds that imports and context may take.
START_TIMEOUT: Final = 300.0
#: Names appear in ids, in file names and in what people type.
_NAME: Final = re.compile(r"[^\W\d][\w.-]{0,99}")
#: The spec travels in one frame; the rest of it needs room too.
_CONTEXT_MOST: Final = MAX_FRAME_BYTES // 2
_FUNCTIONS_MOST: Final = MAX_FRAME_BYTES // 4
#: Functions that its repr names, where there are many.
_SHOWN: Final = 6


class Library:
    """Functions that share hoisted imports, an optional context, and slots. Made by `Manager.create_library`."""

    def __init__(
        self,
        name: str,
        *functions: AnyFunction,
        imports: Imports = "auto",
        context: Context = None,
        share_context: bool = False,
        slots: int | None = None,
        mode: str = "direct",
        start: str = "fork",
        cores: float | None = None,
        memory: int | str | None = None,
        gpus: int | None = None,
        threads: int | None = None,
        env: Mapping[str, str] | None = None,
        start_timeout: float | str | None = START_TIMEOUT,
        max_calls: int | None = None,
        concurrency: int | None = None,
        python: str | tuple[int, int] | None = None,
        environment: File | str | os.PathLike[str] | None = None,
        memoize: bool = False,
        **unknown: Never,
    ) -> None:
        """``cores``, ``memory`` (bytes or ``"2GB"``) and ``gpus`` are per slot; ``slots`` per worker (None: all that fit).

        ``imports``: ``"auto"``, or modules and dotted names, which must load (``"auto"`` may be among them). ``context``: a function, or
        ``(function, args, kwargs)``. ``start_timeout`` in seconds or ``"10min"``. ``python``: the (major, minor) of instances,
        when it is to differ from the program's. ``environment``: an archive that ``windlass environment pack`` made (a path, or what
        ``declare_archive`` gave), in whose Python instances run; it goes to each node once. ``memoize``: equal calls (of equal functions,
        with equal arguments) are run once, and all have that result (docs/journal.md). ``concurrency``: so many calls of async functions
        run at once in one slot (docs/async.md). Raises UsageError with the line to write.
        """
        refuse_unknown("option of a library", unknown, Library.__init__)
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # programs are not always checked
            raise UsageError(f"create_library({name!r}, ...): the name comes first; write create_library('lib', function, ...)")
        if not _NAME.fullmatch(name):
            fixed = re.sub(r"[^\w.-]+", "_", name).strip("_.-")[:100]
            fixed = fixed if fixed and _NAME.fullmatch(fixed) else f"lib_{fixed}"[:100].rstrip("_")
            raise UsageError(
                f"library name {name!r} cannot be: names have letters, digits, '_', '-', '.', and begin with a letter; write {fixed!r}"
            )
        self.name = name
        self.functions: dict[str, AnyFunction] = _named(name, functions)
        self._explicit, self._auto = _split_imports(imports)
        self._context = _read_context(context)
        require_flag("share_context", share_context)
        require_flag("memoize", memoize)
        if share_context and self._context is None:
            raise UsageError("share_context=True without a context shares nothing; write context=function, share_context=True")
        self._share_context = share_context
        self._slots = 0 if slots is None else _positive("slots", slots)
        self._mode = _one_of("mode", mode, MODES)
        self._start = _one_of("start", start, STARTS)
        if (mode, start) == ("fork", "spawn"):
            raise UsageError("mode='fork' forks a warm process for each call and start='spawn' forbids forks; write one of them")
        self._per_slot = needs_of(cores, memory, gpus)
        #: TaskVine's figures, for the whole library: cores, bytes, GPUs.
        self._whole: dict[str, float] = {}
        self._threads = 0 if threads is None else _positive("threads", threads)
        self._env = _read_env(env)
        self._start_timeout = START_TIMEOUT if start_timeout is None else read_seconds("start_timeout", start_timeout, "5 minutes")
        self._max_calls = 0 if max_calls is None else _positive("max_calls", max_calls)
        self._concurrency = self._read_concurrency(concurrency)
        self._python = _read_python(python)
        if environment is not None and not isinstance(environment, File | str | os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"environment={environment!r}: give the path of an archive, made by  windlass environment pack")
        #: As given; a manager that the library is installed at makes a file of it.
        self.environment = environment
        self.memoize = memoize
        self._frozen = False

    @classmethod
    def from_functions(
        cls,
        name: str,
        *functions: AnyFunction,
        hoisting_modules: Iterable[object] | None = None,
        exec_mode: str = "fork",
        library_context_info: Sequence[Any] | None = None,
        add_env: object = True,
        **options: Any,
    ) -> Library:
        """TaskVine's `create_library_from_functions`, with its default of a fork per call.

        Modules in ``hoisting_modules`` are imported; functions and classes in it travel with the functions that use them. ``add_env`` is
        accepted and means nothing: instances run in the environment of their pilots. Further ``options`` as for `create_library`.
        """
        del add_env
        imports: list[str | types.ModuleType] = ["auto"]
        if hoisting_modules is not None and not isinstance(hoisting_modules, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"hoisting_modules={hoisting_modules!r}; write a list, as in hoisting_modules=[numpy]")
        for each in hoisting_modules or ():
            if isinstance(each, str | types.ModuleType):
                imports.append(each)
            elif not callable(each):
                raise UsageError(f"hoisting_modules has {each!r}; write modules, as in hoisting_modules=[numpy]")
        return cls(name, *functions, imports=imports, mode=exec_mode, context=library_context_info, **options)

    # ------------------------------------------------------------ TaskVine's setters: for the whole library, in its units

    def set_function_slots(self, slots: int) -> None:
        """Calls that run at once on each worker."""
        self._change("set_function_slots")
        self._slots = _positive("slots", slots)

    def set_cores(self, cores: float) -> None:
        """Cores for the whole library on a worker; without `set_function_slots` it has as many slots."""
        self._change("set_cores")
        self._whole["cores"] = read_number("cores", cores)

    def set_memory(self, megabytes: float) -> None:
        """Memory for the whole library on a worker, in MB of 1,048,576 bytes."""
        self._change("set_memory")
        self._whole["memory"] = megabytes_to_bytes("memory", megabytes)

    def set_gpus(self, gpus: int) -> None:
        """GPUs for the whole library on a worker."""
        self._change("set_gpus")
        self._whole["gpus"] = read_count("gpus", gpus)

    def set_disk(self, megabytes: float) -> None:
        """Checked, and passed over: disk is no resource of slots."""
        self._change("set_disk")
        read_number("disk", megabytes)

    def set_env_var(self, name: str, value: str | None = None) -> None:
        """A variable that its instances get, or (None) are not given by ``env=``."""
        self._change("set_env_var")
        others = tuple(pair for pair in self._env if pair[0] != name)
        self._env = others if value is None else _read_env({**dict(others), name: value})

    def set_function_exec_mode(self, mode: str) -> None:
        """``"direct"`` or ``"fork"``."""
        self._change("set_function_exec_mode")
        self._mode = _one_of("mode", mode, MODES)
        self._read_concurrency(self._concurrency)

    set_function_exec_mode_from_string = set_function_exec_mode

    def add_input(self, file: object, remote_name: str = "") -> Never:
        """Refused: instances have no directory of their own. Raises UsageError, with what to write."""
        raise UsageError(
            f"library {self.name!r} has no add_input({file!r}, ...): give its context function what is in the file, as in"
            " library_context_info=[function, [text], {}], or each FunctionCall the file by its own add_input()"
        )

    def add_environment(self, file: object) -> Never:
        """Refused: it is said when the library is made. Raises UsageError, with what to write."""
        raise UsageError(
            f"library {self.name!r} has no add_environment({file!r}): write create_library_from_functions(..., poncho_env='packed.tar.gz'),"
            " or create_library(..., environment='packed.tar.gz')"
        )

    add_poncho_package = add_starch_package = add_execution_context = add_environment

    def _change(self, setter: str) -> None:
        if self._frozen:
            raise UsageError(
                f"library {self.name!r} is installed, so {setter}() would change nothing;"
                " call it before install_library(), or create another library"
            )

    def _read_concurrency(self, value: int | None) -> int:
        """Calls that one slot runs at once. Raises UsageError."""
        count = 1 if value is None else read_concurrency(value)
        if count == 1:
            return 1
        if self._mode == "fork":
            raise UsageError(
                f"mode='fork' gives each call a process of its own, and with concurrency={count} many calls share one; write one of them"
            )
        if self.functions and not any(map(is_async, self.functions.values())):
            one = next(iter(self.functions))
            raise UsageError(
                f"concurrency={count} is for async functions, and library {self.name!r} has none: plain functions run one at a time in a"
                f" slot; leave it out, or write  async def {one}"
            )
        return count

    # ------------------------------------------------------------ what workers get

    def function(self, name: str) -> AnyFunction:
        """A function by its name; UnknownName with near names."""
        try:
            return self.functions[name]
        except KeyError:
            raise UnknownName("function", name, self.functions, f"(in library {self.name!r})") from None

    def _resources(self) -> tuple[int, Resources]:
        """Slots per worker (0: as fits) and what one needs."""
        slots, whole = self._slots, self._whole
        if not whole:
            return slots, self._per_slot
        if not slots and "cores" in whole:
            slots = max(1, int(whole["cores"]))
        if not slots:
            what = " and ".join(f"set_{key}()" for key in whole)
            raise UsageError(
                f"library {self.name!r}: {what} is for all slots of it together, so say how many: set_function_slots(4);"
                " or give figures per slot: create_library(..., memory='2GB')"
            )
        share = {key: value / slots for key, value in whole.items()}
        gpus = share.get("gpus", float(self._per_slot.gpus))
        if gpus != int(gpus):
            raise UsageError(
                f"library {self.name!r}: {whole['gpus']:g} GPUs cannot be divided among {slots} slots;"
                f" write set_function_slots({int(whole['gpus'])}), or create_library(..., gpus=1), which is per slot"
            )
        return slots, Resources(
            cores=share.get("cores", self._per_slot.cores), memory=int(share.get("memory", self._per_slot.memory)), gpus=int(gpus)
        )

    def spec(self, put: Put, environment: FileRef | None = None) -> LibrarySpec:
        """The record for workers; large bytes are given to ``put``. ``environment``: the unpacked one it asked for. Freezes the library.

        Raises UsageError (`NotPicklable` and its like) for what cannot travel.
        """
        # Here and not above: they need cloudpickle, which a program loads only when it has something to pickle.
        from windlass import functions as defining
        from windlass import imports as importing
        from windlass import snapshots

        slots, per_slot = self._resources()
        definitions: list[FunctionDef] = []
        imports: dict[str, ImportSpec] = {}
        code: dict[str, ObjectRef] = {}
        if self._explicit:
            for each in importing.explicit_imports(self._explicit):
                imports[each.module] = each
        for name, function in self.functions.items():
            defined = defining.define(function, put)
            definitions.append(msgspec.structs.replace(defined.definition, name=name))
            for ref in defined.definition.code:
                code[ref.name] = ref
            if self._auto:
                for each in defined.imports:
                    imports.setdefault(each.module, each)
        for ref in snapshots.snapshots_of([each.module.partition(".")[0] for each in imports.values() if each.explicit], put):
            code[ref.name] = ref
        context = b""
        if self._context is not None:
            context, refs, found = self._packed_context(put)
            for ref in refs:
                code[ref.name] = ref
            if self._auto:
                for each in found:
                    imports.setdefault(each.module, each)
        draft = LibrarySpec(
            id=LibraryId(""),
            name=self.name,
            python=self._python,
            functions=_within_a_frame(definitions, put),
            imports=tuple(imports.values()),
            context=context,
            share_context=self._share_context,
            mode=self._mode,
            start=self._start,
            slots=slots,
            per_slot=per_slot,
            env=self._env,
            threads=self._threads,
            code=tuple(code.values()),
            start_timeout=self._start_timeout,
            max_calls=self._max_calls,
            environment=environment,
            concurrency=self._concurrency,
        )
        self._frozen = True
        digest = hashlib.blake2b(msgspec.msgpack.encode(draft), digest_size=8).hexdigest()
        return msgspec.structs.replace(draft, id=LibraryId(f"{self.name}@{digest}"))

    def contents(self, spec: LibrarySpec) -> dict[str, bytes]:
        """By what calls of its functions are remembered: digests of each with all that decides about its results. Without those that
        have none, which is told."""
        from windlass.content import content_of_function

        explicit = sorted(each.module for each in spec.imports if each.explicit)
        environment = spec.environment.name if spec.environment is not None else ""
        more = (self._context, spec.env, explicit, environment, spec.python)
        found: dict[str, bytes] = {}
        for name, function in self.functions.items():
            content = content_of_function(function, spec.code, more)
            if content is None:
                log.warning("calls of %r in library %r cannot be remembered: it refers to something without a content", name, self.name)
            else:
                found[name] = content
        return found

    def _packed_context(self, put: Put) -> tuple[bytes, tuple[ObjectRef, ...], tuple[ImportSpec, ...]]:
        from windlass import functions as defining

        assert self._context is not None
        blob, code, imports = defining.pack_context(*self._context, put)
        if len(blob) > _CONTEXT_MOST:
            raise UsageError(
                f"the context of library {self.name!r} takes {len(blob):,} bytes to send (most: {_CONTEXT_MOST:,});"
                " let the context function load its data itself, from a file that workers see"
            )
        return blob, code, imports

    def __repr__(self) -> str:
        names = list(self.functions)
        shown = [*names[:_SHOWN], f"... {len(names) - _SHOWN} more"] if len(names) > _SHOWN + 1 else names
        return f"Library({', '.join([repr(self.name), *shown, f'mode={self._mode!r}', self._state()])})"

    def _state(self) -> str:
        return "installed" if self._frozen else "not installed"

    def _repr_html_(self) -> str:
        from windlass.notebook import card

        imports = [str(getattr(one, "__name__", one)) for one in self._explicit] + (["found by themselves"] if self._auto else [])
        slots, per_slot = self._resources()
        facts: list[tuple[str, object]] = [
            ("functions", ", ".join(self.functions)),
            ("imports", ", ".join(imports)),
            ("mode", self._mode),
            ("start", self._start),
            ("slots", slots or "as many as a worker has cores"),
            ("cores of a slot", per_slot.cores or ""),
            ("context", getattr(self._context[0], "__name__", "a function") if self._context is not None else ""),
        ]
        return card(f"library {self.name}", self._state(), facts)


def _within_a_frame(definitions: Sequence[FunctionDef], put: Put) -> tuple[FunctionDef, ...]:
    """Functions that together are too large for the frame travel as objects, the largest first."""
    size = sum(len(each.blob) for each in definitions)
    large: set[int] = set()
    for index in sorted(range(len(definitions)), key=lambda index: -len(definitions[index].blob)):
        if size <= _FUNCTIONS_MOST:
            break
        large.add(index)
        size -= len(definitions[index].blob)
    return tuple(
        msgspec.structs.replace(each, blob=b"", object=put(each.blob)) if index in large else each for index, each in enumerate(definitions)
    )


# ---------------------------------------------------------------- reading what people write


def _named(library: str, functions: Sequence[object]) -> dict[str, AnyFunction]:
    """Functions by name; lambdas get names."""
    named: dict[str, AnyFunction] = {}
    for position, function in enumerate(functions, 1):
        if isinstance(function, list | tuple):
            names = ", ".join(getattr(one, "__name__", repr(one)) for one in cast("Sequence[object]", function))
            kind = "list" if isinstance(function, list) else "tuple"
            raise UsageError(f"library {library!r} is given its functions in a {kind}; write them one by one: {library!r}, {names}")
        if not callable(function):
            raise UsageError(f"library {library!r}: {function!r} is not a function; write the function itself, without quotes or brackets")
        inner = _innermost(function)
        for refused, is_one, remedy in _REFUSED:
            if is_one(inner):
                raise UsageError(
                    f"{_name_of(inner, position)}() in library {library!r} is {refused}, which cannot be called remotely; {remedy}"
                )
        name = _name_of(function, position)
        if name in named:
            if named[name] is function:
                continue
            raise UsageError(
                f"library {library!r} has two functions named {name!r};"
                " rename one of them, or give one another __name__, or put it in a library of its own"
            )
        named[name] = function
    return named


_REFUSED: Final[tuple[tuple[str, Callable[[object], bool], str], ...]] = (
    ("a generator function", inspect.isgeneratorfunction, "let it return a list"),
    ("an async generator function", inspect.isasyncgenfunction, "let it return a list"),
)


def _innermost(function: object) -> object:
    """The function inside partials, wrappers and methods."""
    while True:
        if isinstance(function, functools.partial):
            function = cast("Any", function).func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        else:
            return function


def _name_of(function: object, position: int) -> str:
    if isinstance(function, functools.partial):
        return _name_of(cast("Any", function).func, position)
    name = getattr(function, "__name__", None)
    if not isinstance(name, str):
        return type(function).__name__
    return f"lambda_{position}" if name == "<lambda>" else name


def _split_imports(imports: Imports) -> tuple[tuple[str | types.ModuleType, ...], bool]:
    """Explicit imports, and whether automatic ones are wanted too."""
    if imports is None:
        return (), False
    if isinstance(imports, str | types.ModuleType):
        imports = (imports,)
    elif not isinstance(imports, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]  # programs are not always checked
        raise UsageError(f"imports={imports!r}; write imports=[numpy, 'scipy.stats'], or imports='auto'")
    values = tuple(imports)
    for value in values:
        if not isinstance(value, str | types.ModuleType):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"imports= has {value!r}, neither a module nor a name; write imports=[numpy, 'scipy.stats']")
        if isinstance(value, str) and value != "auto" and not all(part.isidentifier() for part in value.split(".")):
            raise UsageError(f"imports= has {value!r}, which is no module's name; write it as in an import statement: 'package.module'")
    explicit = tuple(value for value in values if not (isinstance(value, str) and value == "auto"))
    return explicit, len(explicit) != len(values)


def _read_context(context: object) -> tuple[AnyFunction, tuple[Any, ...], dict[str, Any]] | None:
    if context is None:
        return None
    parts: list[Any] = list(cast("Sequence[Any]", context)) if isinstance(context, list | tuple) else [context]
    function = parts[0] if parts else None
    args = parts[1] if len(parts) > 1 and parts[1] is not None else ()
    kwargs: Any = parts[2] if len(parts) > 2 and parts[2] is not None else {}
    if not callable(function) or len(parts) > 3 or not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
        raise UsageError(f"context={context!r}; write context=function, or context=(function, [args], {{'name': value}})")
    inner = _innermost(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise UsageError(
            f"context={_name_of(function, 0)} is a generator function, as fixtures are that clear up at the end: let it return what the"
            " functions are given; what it opens ends with its slot"
        )
    return function, tuple(cast("Sequence[Any]", args)), dict(cast("Mapping[str, Any]", kwargs))


def _read_env(env: object) -> tuple[tuple[str, str], ...]:
    if env is None:
        return ()
    if not isinstance(env, Mapping):
        raise UsageError(f"env={env!r}; write env={{'NAME': 'value'}}")
    pairs = cast("Mapping[object, object]", env)
    for key, value in pairs.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"env={{{key!r}: {value!r}}}: names and values are texts; write env={{{str(key)!r}: {str(value)!r}}}")
        if not key or "=" in key or "\0" in key + value:
            raise UsageError(f"env has {key!r}: a variable's name has no '=' and neither has a zero byte")
    return tuple(sorted(cast("Mapping[str, str]", env).items()))


def _read_python(python: object) -> tuple[int, int]:
    if python is None:
        return sys.version_info[0], sys.version_info[1]
    if isinstance(python, str) and re.fullmatch(r"3\.\d+", python):
        return 3, int(python[2:])
    if isinstance(python, tuple):
        parts = cast("tuple[object, ...]", python)
        if len(parts) == 2 and isinstance(parts[0], int) and isinstance(parts[1], int):
            return parts[0], parts[1]
    raise UsageError(f"python={python!r}; write the version of the instances' Python, as in python='3.11'")


def _positive(key: str, value: object) -> int:
    count = read_count(key, value)
    if count == 0:
        raise UsageError(f"{key}=0 cannot be; write {key}=1 or more, or leave it out")
    return count


def read_concurrency(value: object) -> int:
    """A number of calls that one slot is to run at once. Raises UsageError."""
    count = _positive("concurrency", value)
    if count > CONCURRENCY_MOST:
        raise UsageError(f"concurrency={count}: a slot runs at most {CONCURRENCY_MOST} calls at once; more slots run more")
    return count


def _one_of(key: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"{key}={value!r}; write " + " or ".join(f"{key}={word!r}" for word in known))
    return value
