"""A call as the program writes it, and the options that say how it is to be run.

Theory of operation
-------------------
`FunctionCall` holds names, arguments and options until `submit` pickles it. All its own keyword arguments belong to the function;
options are given by `FunctionCall.with_options`, which gives a new call, or by TaskVine's setters, which change it in place.

Options are checked where they are written (`merge_options`), so that an error points at the program's line, and end up in one
frozen `CallOptions` record. Equal records are one object (`intern_options`): a million calls with the same options hold one record,
and the manager groups calls by it.
"""

from __future__ import annotations

import builtins
import math
import os
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypedDict, TypeGuard, TypeVar, Unpack, cast

import msgspec

from windlass.errors import UnknownName, UsageError
from windlass.files import File, is_sendable
from windlass.messages import CallOptions, FunctionDef, FunctionId, LibraryId, LibrarySpec, ObjectRef, Resources

N = TypeVar("N", int, float)
RetryOn: TypeAlias = "type[BaseException] | str | Iterable[type[BaseException] | str]"
DEFAULT_OPTIONS: Final = CallOptions()
#: A program that gives each call options of its own must not fill memory with records.
_INTERNED_MOST: Final = 4096
_interned: dict[CallOptions, CallOptions] = {}
#: TaskVine counts memory in these.
MEGABYTE: Final = 1 << 20
#: Larger figures are slips, and some of them no message can carry: any number, a number of things, seconds (a century), bytes.
NUMBER_MOST: Final = 1 << 60
COUNT_MOST: Final = 1 << 31
SECONDS_MOST: Final = 100 * 366 * 86_400
MEMORY_MOST: Final = 1 << 60
#: Letters of a tag.
TAG_MOST: Final = 200
#: The name of the library of functions that are in none, which people need not read.
IMPLICIT: Final = "functions"


class Target(NamedTuple):
    """The function that a call calls, in one version of its library, with what is known of both; many calls share one."""

    library: LibraryId
    function: FunctionId
    #: Of the library and of the function in it, and those of the function's parameters, for the texts of errors.
    names: tuple[str, str] = ("", "")
    parameters: tuple[str, ...] = ()
    #: Snapshots of local modules that the library has, so that results may name them.
    code: tuple[ObjectRef, ...] = ()
    #: For a call that comes late: a function that is not the library's own, and the library itself, may have to be told of again.
    definition: FunctionDef | None = None
    spec: LibrarySpec | None = None
    #: By which its calls are remembered (`windlass.manager.memory`); empty: they are not.
    content: bytes = b""

    @property
    def shown(self) -> str:
        """What people call it: ``library.function``, or the function alone."""
        library, function = self.names
        return function if library in ("", IMPLICIT) else f"{library}.{function}"


class CallKeywords(TypedDict, total=False):
    """The options of a call, as keywords of ``with_options``."""

    #: Seconds an attempt may run (or ``"10min"``); None: no limit.
    timeout: float | str | None
    #: Further attempts after its slot died, or it raised one of ``retry_on``.
    retries: int
    #: Exceptions worth a retry: classes or ``"module.Name"``, one or several.
    retry_on: RetryOn
    #: Larger first.
    priority: float
    #: A word of yours, kept at the future.
    tag: str | None
    #: Cores it needs; a fraction is fine.
    cores: float
    #: Bytes or ``"2GB"``; ``"auto"``: a slot's share, and a larger one after running out of it.
    memory: int | str
    #: GPUs it needs; it gets them by id, in ``CUDA_VISIBLE_DEVICES`` (AMD: ``ROCR_VISIBLE_DEVICES``).
    gpus: int
    #: Seconds (or ``"2h"``) you expect it to take; None: learn it.
    expected_time: float | str | None
    #: Attempts that may be lost with their worker.
    max_losses: int
    #: ``"worker"``: a large result stays on the worker that made it, for calls that are given this future, until somebody asks for it.
    keep: str | None


OPTIONS: Final = frozenset(CallKeywords.__annotations__)


class Named(Protocol):
    """A library object: what counts here is its name."""

    @property
    def name(self) -> str: ...


def intern_options(options: CallOptions) -> CallOptions:
    """The one record that stands for all equal to it."""
    if options == DEFAULT_OPTIONS:
        return DEFAULT_OPTIONS
    found = _interned.get(options)
    if found is not None:
        return found
    if len(_interned) >= _INTERNED_MOST:
        _interned.clear()
    return _interned.setdefault(options, options)


def merge_options(base: CallOptions, tag: str | None, given: Mapping[str, Any]) -> tuple[CallOptions, str | None]:
    """``base`` and ``tag`` with the options ``given`` by keyword put in. UsageError with the line to write instead."""
    fields: dict[str, Any] = {}
    needs: dict[str, Any] = {}
    for key, value in given.items():
        match key:
            case "timeout" | "expected_time":
                fields[key] = 0.0 if value is None else read_seconds(key, value)
            case "retries" | "max_losses":
                fields[key] = read_count(key, value)
            case "retry_on":
                fields[key] = read_exceptions(value)
            case "keep":
                if value not in (None, "worker"):
                    raise UsageError(f"keep={value!r}: write keep='worker' for results that stay on workers, or keep=None")
                fields[key] = value == "worker"
            case "priority":
                fields[key] = read_number(key, value, negative=True)
            case "tag":
                tag = read_tag(value)
            case "cores":
                needs[key] = read_number(key, value)
            case "gpus":
                needs[key] = read_count(key, value)
            case "memory":
                if value == "auto":
                    fields["grow_memory"] = True
                    needs[key] = 0
                else:
                    fields["grow_memory"] = False
                    needs[key] = read_memory(key, value)
            case _:
                raise UnknownName("option of a call", key, CallKeywords.__annotations__, _OPTION_HINT)
    if needs:
        fields["needs"] = msgspec.structs.replace(base.needs, **needs)
    options = msgspec.structs.replace(base, **fields)
    if options.retry_on and not options.retries:
        raise UsageError("retry_on= without retries= retries nothing; write retry_on=..., retries=3")
    return intern_options(options), tag


def _as_written(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items())


def refuse_as_arguments(function: Callable[..., Any], kwargs: Mapping[str, Any], instead: str) -> None:
    """Raise `UsageError` where options of calls are among the arguments of a function that has no such parameters; write ``instead``."""
    given = {name: value for name, value in kwargs.items() if name in OPTIONS}
    if not given:
        return
    takes = _own_keywords(function)
    if takes is None:
        return
    strange = {name: value for name, value in given.items() if name not in takes}
    if strange:
        name = getattr(function, "__name__", "the function")
        raise UsageError(
            f"{name}() has no parameter {next(iter(strange))!r}, and all keywords here are the function's;"
            f" options of the call are given by {instead.format(_as_written(strange))}"
        )


def _own_keywords(function: Callable[..., Any]) -> Collection[str] | None:
    """Names of its own parameters, though it shows those of what it wraps: a decorator may take more. None: any, or nobody knows."""
    import inspect

    code = getattr(function, "__code__", None) if isinstance(function, types.FunctionType | types.MethodType) else None
    if isinstance(code, types.CodeType):
        return None if code.co_flags & inspect.CO_VARKEYWORDS else code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        takes = inspect.signature(function, follow_wrapped=False).parameters
    except (TypeError, ValueError, NameError):  # written in C, no function, or annotated with a name that only checkers know
        return None
    return None if any(one.kind is one.VAR_KEYWORD for one in takes.values()) else takes


def no_call(call: object, more: tuple[object, ...], options: Mapping[str, object]) -> UsageError:
    """What is raised for what `Manager.submit` was given."""
    given = [repr(call), *map(repr, more)]
    if options and not more and isinstance(call, FunctionCall):
        written = _as_written(options)
        return UsageError(f"submit({given[0]}, {written}): options are the call's own: write submit(call.with_options({written}))")
    words = ", ".join([*given, _as_written(options)] if options else given)
    return UsageError(
        f"submit({words}): write submit(FunctionCall('library', 'function', arguments...)), or submit(Command('...'));"
        " of a function that is in no library submit_function(f, (arguments, ...))"
    )


_OPTION_HINT: Final = "(arguments of the function itself go into FunctionCall(library, function, ...) or submit(function, ...))"


_LEAVE_OUT: Final = ", or leave it out"


def _a(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "not a finite number"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def read_number(key: str, value: object, *, negative: bool = False) -> float:
    """A finite number, not below zero unless ``negative``."""
    if not _is_finite(value):
        raise UsageError(f"{key}={value!r} is {_a(value)}; {key} is a number: write {key}=1.5{_LEAVE_OUT if value is None else ''}")
    if value < 0 and not negative:
        raise UsageError(f"{key}={value!r} is negative; write {key}={-value!r}, or leave it out")
    _bounded(key, value, NUMBER_MOST)
    return float(value)


def _is_finite(value: object) -> TypeGuard[int | float]:
    # `math.isfinite` makes a float of an int, which may be too large for one.
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)))


def _bounded(key: str, value: N, most: int) -> N:
    """No larger than anything real, and than what messages can carry: such a figure is a slip of units."""
    if abs(value) > most:
        # Not the figure itself: it may have thousands of digits.
        raise UsageError(f"{key} is larger than anything there is: at most {most:.3g} makes sense; look at its unit")
    return value


def read_count(key: str, value: object) -> int:
    """A whole number, not below zero."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{key}={value!r} is {_a(value)}; {key} is a whole number: write {key}=2{_LEAVE_OUT if value is None else ''}")
    if value < 0:
        raise UsageError(f"{key}={value!r} is negative; write {key}={-value!r}, or leave it out")
    return _bounded(key, value, COUNT_MOST)


def read_seconds(key: str, value: object, none: str = "no limit") -> float:
    """Seconds, from a number or a text like ``"10min"``. ``none``: what None would say, for who gives 0; "": None is nothing to give."""
    otherwise = f", or {key}=None for {none}" if none else ""
    if isinstance(value, str):
        from windlass.units import parse_seconds  # here: only texts need it

        seconds = _bounded(key, _parsed(key, value, parse_seconds, "'90s', '10min' or '2h'"), SECONDS_MOST)
        if not seconds:
            raise UsageError(f"{key}={value!r} leaves no time; write {key}='90s'{otherwise}")
        return seconds
    if not _is_finite(value):
        raise UsageError(f"{key}={value!r} is {_a(value)}; {key} is in seconds: write {key}=90, or {key}='2h'")
    if value <= 0:
        raise UsageError(f"{key}={value!r} leaves no time; write {key}=90 (seconds){otherwise}")
    _bounded(key, value, SECONDS_MOST)
    return float(value)


def read_memory(key: str, value: object) -> int:
    """Bytes, from a number or a text like ``"2GB"``."""
    if isinstance(value, str):
        from windlass.units import parse_memory

        return _bounded(key, _parsed(key, value, parse_memory, "'500MB' or '2GB'"), MEMORY_MOST)
    if not _is_finite(value) or value < 0:
        raise UsageError(f"{key}={value!r} is no amount of memory; write {key}='2GB', or a number of bytes{_LEAVE_OUT}")
    count = read_number(key, value)
    if 0 < count < MEGABYTE:
        # Numbers are bytes; so small a one was meant in MB (TaskVine, Slurm) or GB.
        raise UsageError(f"{key}={value!r} is {value} bytes; write {key}='{value}MB' (or 'GB')")
    return int(_bounded(key, count, MEMORY_MOST))


def _parsed(key: str, value: str, parse: Callable[[str], N], examples: str) -> N:
    try:
        parsed = parse(value)
    except UsageError as error:
        raise UsageError(f"{key}={value!r}: {error}") from None
    if parsed < 0 or not math.isfinite(parsed):
        raise UsageError(f"{key}={value!r} makes no sense here; write {key}= with {examples}")
    return parsed


def read_exceptions(value: object) -> tuple[str, ...]:
    """``module.qualname`` of each exception, from classes and names, one or several."""
    if isinstance(value, str | type):
        return (_exception_name(value),)
    if not isinstance(value, Iterable):
        raise UsageError(f"retry_on={value!r} is {_a(value)}; write retry_on=OSError, or retry_on=(OSError, 'package.module.Error')")
    names = [_exception_name(each) for each in cast("Iterable[object]", value)]
    return tuple(dict.fromkeys(names))


def _exception_name(value: object) -> str:
    if isinstance(value, type):
        if not issubclass(value, BaseException):
            raise UsageError(f"retry_on={value.__name__} is not an exception class; write retry_on=OSError")
        return f"{value.__module__}.{value.__qualname__}"
    if not isinstance(value, str):
        raise UsageError(f"retry_on has {value!r}, {_a(value)}; write a class, as in retry_on=OSError, not an instance")
    if all(part.isidentifier() for part in value.split(".")) and "." in value:
        return value
    known = getattr(builtins, value, None)
    if isinstance(known, type) and issubclass(known, BaseException):
        return f"builtins.{known.__qualname__}"
    raise UsageError(f"retry_on={value!r} names no built-in exception; write it with its module: retry_on='package.module.{value}'")


class FunctionCall:
    """One call of a library's function, for `Manager.submit`; it may be submitted several times, each with a future of its own."""

    __slots__ = ("_taken", "args", "function", "inputs", "kwargs", "library", "options", "outputs", "tag")

    def __init__(self, library: str | Named, function: str | Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Call ``function`` of ``library`` with these arguments; all keywords are the function's.

        Raises UsageError for what cannot be names. Whether library and function exist is asked at `submit`.
        """
        name: object = library if isinstance(library, str) else getattr(library, "name", None)
        if not isinstance(name, str) or not name:
            raise UsageError(
                f"FunctionCall({library!r}, ...): the first argument names a library; write FunctionCall('lib', 'function', ...)"
            )
        target: object = function if isinstance(function, str) else getattr(function, "__name__", None)
        if not isinstance(target, str) or not target:
            line = f"FunctionCall({name!r}, {function!r}, ...)"
            raise UsageError(f"{line}: the second argument names a function; write FunctionCall({name!r}, 'function', ...)")
        self.library: str = name
        self.function: str = target
        self.args = args
        self.kwargs = kwargs
        self.options = DEFAULT_OPTIONS
        self.tag: str | None = None
        #: Files of its own directory by their paths there: what it finds, and what becomes of what it leaves.
        self.inputs: dict[str, File] = {}
        self.outputs: dict[str, File] = {}
        self._taken: _Taken | None = None

    @property
    def has_room(self) -> bool:
        """It runs in a directory of its own."""
        return bool(self.inputs or self.outputs)

    @property
    def lenient(self) -> bool:
        """Outputs may be missing."""
        return False

    def make_ready(self, declare_temp: Callable[[str], File]) -> None:
        """It is about to be submitted; for those that are more than a call of a function."""

    def make_ready_to_make(self) -> None:
        """It is about to become a mini task. Raises `UsageError`."""
        if self.outputs:
            raise UsageError("a mini task has no add_output(): the path that its function returns becomes the file")

    def add_input(self, file: File, path: str) -> None:
        """Have the call run in a directory of its own, where this file is found under that (relative) path, for reading."""
        where = self._inside("add_input", path)
        self.inputs[where] = _file("add_input", file)
        self._take(where)

    def add_output(self, file: File, path: str) -> None:
        """Have the call run in a directory of its own; what it leaves there under that path, a file or a folder, becomes ``file``
        (see `Manager.declare_temp`), and stays on its worker."""
        where = self._inside("add_output", path)
        made = _file("add_output", file)
        other = self._taken.makes.get(made) if self._taken is not None else None
        if other is not None:
            raise UsageError(f"add_output({made!r}, {path!r}): the call makes that file already, from {other!r}; declare another one")
        self.outputs[where] = made
        self._take(where).makes[made] = where

    def _take(self, path: str) -> _Taken:
        if self._taken is None:
            self._taken = _Taken({}, {}, set())
        self._taken.paths.add(path)
        for folder in _folders_of(path):
            self._taken.within.setdefault(folder, path)
        return self._taken

    def _inside(self, what: str, path: object) -> str:
        """A path in the call's own directory. Raises `UsageError` for one that leads out of it or is taken. A call may have thousands."""
        normal = _relative(what, path)
        if self._taken is None:
            return normal
        makes = what != "add_input"
        if normal in self._taken.paths:
            if makes and normal not in self.inputs:
                raise UsageError(f"{what}(..., {path!r}): the call makes that path already; give each output once")
            raise UsageError(
                f"{what}(..., {path!r}): the call has a file of that path already; what it is to change it copies to another path first"
                " (cat in.txt > work.txt)"
            )
        clash = next((folder for folder in _folders_of(normal) if folder in self._taken.paths), None) or self._taken.within.get(normal)
        if clash is not None and makes and clash not in self.inputs:
            raise UsageError(
                f"{what}(..., {path!r}): the call makes {clash!r} already, and no output can be in another one: take the folder alone, all"
                " that is in it comes along, or have the call copy what is wanted by itself to a path beside it (cp -r)"
            )
        if clash is not None:
            raise UsageError(
                f"{what}(..., {path!r}): the call has {clash!r} already, and inputs and outputs cannot be within each other: give them"
                " paths beside each other, and have the call copy into a folder of its own what it wants together"
                " (mkdir all && cp -rL in.txt all/)"
            )
        return normal

    def with_options(self, **options: Unpack[CallKeywords]) -> FunctionCall:
        """The same call with these options; this one stays as it is. UsageError for what cannot be, with the line to write."""
        twin = type(self).__new__(type(self))
        twin.library, twin.function, twin.args, twin.kwargs = self.library, self.function, self.args, self.kwargs
        twin.options, twin.tag = merge_options(self.options, self.tag, options)
        twin.inputs, twin.outputs = dict(self.inputs), dict(self.outputs)
        twin._taken = None if self._taken is None else _Taken(dict(self._taken.within), dict(self._taken.makes), set(self._taken.paths))
        return twin

    def _set(self, **options: Any) -> None:
        self.options, self.tag = merge_options(self.options, self.tag, options)

    # TaskVine's setters: in place, in TaskVine's units.

    def set_priority(self, priority: float) -> None:
        """Larger first."""
        self._set(priority=priority)

    def set_tag(self, tag: str) -> None:
        """A word of yours, kept at the future."""
        self._set(tag=tag)

    def set_retries(self, retries: int) -> None:
        """Further attempts after its slot died."""
        self._set(retries=retries)

    def set_time_max(self, seconds: float) -> None:
        """Seconds an attempt may run; enforced."""
        self._set(timeout=seconds)

    def set_cores(self, cores: float) -> None:
        """Cores it needs."""
        self._set(cores=cores)

    def set_memory(self, megabytes: float | str) -> None:
        """Memory it needs, in MB (of 1,048,576 bytes, as in TaskVine), or a text like ``"2GB"``."""
        self._set(memory=megabytes if isinstance(megabytes, str) else megabytes_to_bytes("memory", megabytes))

    def set_gpus(self, gpus: int) -> None:
        """GPUs it needs."""
        self._set(gpus=gpus)

    def __repr__(self) -> str:
        words = [repr(self.library), repr(self.function)]
        words += [_short(each) for each in self.args] + [f"{key}={_short(each)}" for key, each in self.kwargs.items()]
        return f"FunctionCall({', '.join(words)})"


def _file(what: str, file: object) -> File:
    if not isinstance(file, File):
        declare = "declare_temp()" if what == "add_output" else "declare_file(...)"
        raise UsageError(f"{what}({file!r}, ...): the first argument is a declared file: write {what}(manager.{declare}, 'name')")
    if not is_sendable(file.path):
        raise UsageError(f"{what}({file!r}, ...): its path is not UTF-8, and no message can say it; declare a link to it with another name")
    return file


class _Taken(NamedTuple):
    """What the paths of a call take, so that nobody looks through all of them for each that comes."""

    #: By folder, one of the paths below it.
    within: dict[str, str]
    #: Files that it makes, and from where.
    makes: dict[File, str]
    #: All of them.
    paths: set[str]


def _folders_of(path: str) -> Iterator[str]:
    """Those that a relative path leads through."""
    while path := os.path.dirname(path):
        yield path


def _relative(what: str, path: object) -> str:
    """A path in a call's own directory. Raises `UsageError` for one that leads out of it."""
    if not isinstance(path, str) or not path:
        raise UsageError(f"{what}(..., {path!r}): the second argument is a path in the call's directory, as in 'data/words.txt'")
    normal = os.path.normpath(path)
    if not is_sendable(path):
        raise UsageError(
            f"{what}(..., {path!r}): that is not UTF-8, and no message can say it; give it another name there, as in 'data.txt'"
        )
    if os.path.isabs(normal) or normal in (".", "..") or normal.startswith("../") or "\0" in normal:
        raise UsageError(f"{what}(..., {path!r}): that is not in the call's own directory: give a relative path, as in 'data/words.txt'")
    return normal


def read_tag(value: object) -> str | None:
    """A call's tag; UsageError for what can be none."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise UsageError(f"tag={value!r} is {_a(value)}; a tag is a text: write tag={str(value)!r}")
    if len(value) > TAG_MOST:
        text = f"tag={value[:20]!r}... has {len(value):,} letters, and goes with its call wherever it goes: {TAG_MOST} are the most"
        raise UsageError(f"{text}; give a short word, and keep beside it what it stands for")
    if not is_sendable(value):
        instead = value.encode(errors="replace").decode()
        raise UsageError(f"tag={value!r} has parts of letters, which no message can say; write tag={instead!r}")
    return value


def megabytes_to_bytes(key: str, megabytes: object) -> int:
    """TaskVine's MB in bytes."""
    return int(read_number(key, megabytes) * MEGABYTE)


def _short(value: object) -> str:
    # The repr of an array or a frame may be long, or slow.
    if isinstance(value, int | float | str | bytes | bool | None):
        text = repr(value)
        return text if len(text) <= 40 else text[:37] + "..."
    return f"<{type(value).__name__}>"


def needs_of(cores: float | None, memory: int | str | None, gpus: int | None) -> Resources:
    """Resources from what people write; None is nothing asked."""
    return Resources(
        cores=0.0 if cores is None else read_number("cores", cores),
        memory=0 if memory is None else read_memory("memory", memory),
        gpus=0 if gpus is None else read_count("gpus", gpus),
    )
