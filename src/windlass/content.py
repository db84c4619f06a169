"""What a function or an argument means, as a digest that is the same in every process: by that results are remembered.

Theory of operation
-------------------
The bytes that travel differ from one run of a program to the next although nothing has changed: cloudpickle numbers classes of ``__main__``
at random, sets of strings have another order in each process, and code knows the lines of the file that it stands in.  So a value is
pickled a second time, into a hash instead of a message, with these differences taken out:

* a set is the sorted digests of its members;
* a type variable, or what else `typing` makes of a name, is its name and bounds, which are numbered as well;
* code is its instructions, constants and names, without file, lines and columns;
* a function by value is its code, defaults, closure, attributes, and the globals that it names; a class by value its bases and what it has;
* what goes by name is its name; a local module is the content of its snapshot; of installed ones, also those that the source of local ones
  imports, the versions of their distributions count, and of all that these require.

Large buffers are hashed, not copied.  What cannot be pickled so has no content (None), and its call is not remembered.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from pickle import PickleBuffer
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from windlass import imports, snapshots
from windlass.byvalue import ByValue, as_class, attributes_of, global_names, is_by_value, is_of_name, make_lazy_imports
from windlass.homes import INSTALLED, home_of
from windlass.messages import ObjectRef

if TYPE_CHECKING:
    from importlib.metadata import Distribution

#: Bytes of a digest.
DIGEST_BYTES: Final = 16
#: What a class has that says nothing of what it does, or is different in each process.
_BOOKS: Final = frozenset(
    [
        "__abstractmethods__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__dataclass_fields__",
        "__dataclass_params__",
        "__dict__",
        "__doc__",
        "__firstlineno__",
        "__module__",
        "__slotnames__",
        "__static_attributes__",
        "__weakref__",
        "_abc_impl",
    ]
)
_SETS: Final = frozenset({set, frozenset})
_PLAIN: Final = frozenset({str, bytes, bool, int, float})
#: In a pickled stream: what has a class or function by its name, and the first one of a module.
_GLOBAL: Final = b"\x93"
_NAMED: Final = re.compile(rb"\x8c.([\w.]+)\x94\x8c.[\w.]+\x94\x93", re.DOTALL)
#: Files of a distribution, as RECORD lists them, that are others for each installation: compiled ones, what is beside it, scripts outside.
_UNSTABLE: Final = re.compile(r"\.pyc,|\.dist-info/|^\"?(\.\.)?/")
_EDITABLE: Final = re.compile(r'"editable":\s*true')
_REQUIRED: Final = re.compile(r"[A-Za-z0-9._-]+")


class _Content(ByValue):
    """Pickles into a hash what ``ByValue`` would send."""

    def __init__(self, stand_in: Callable[[Any], object] | None) -> None:
        self._digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._stream = BytesIO()
        self._stand_in = stand_in
        super().__init__(self._stream, True, self._buffer)

    def _buffer(self, buffer: PickleBuffer) -> bool:
        raw = buffer.raw()
        self._digest.update(b"%d " % raw.nbytes)  # or two of them would be as two others that begin and end elsewhere
        self._digest.update(raw)
        return False

    def persistent_id(self, obj: Any) -> Any:
        kind = cast("type[object]", type(obj))
        # Whether equal texts are one object is chance, and pickle writes the second time of an object otherwise than the first.
        if kind is str:
            return b"s" + obj.encode(errors="surrogatepass")
        if kind is bytes:
            return b"b" + obj
        if kind in _SETS:
            return kind.__name__, sorted(self._part(member) for member in obj)
        if self._stand_in is not None and (other := self._stand_in(obj)) is not None:
            return "stands for", other
        return None

    def _part(self, member: Any) -> bytes:
        if type(member) in _PLAIN:
            # Quick, and told apart by type; most members are such. What a class of one's own says of itself may be less than it is.
            return hashlib.blake2b(repr(member).encode(), digest_size=DIGEST_BYTES).digest()
        inner = _Content(self._stand_in)
        inner.dump(member)
        self.modules |= inner.modules
        self.local |= inner.local
        self.functions += inner.functions
        return inner.finish()

    def finish(self) -> bytes:
        """The digest of what was dumped."""
        self._digest.update(self._stream.getbuffer())
        return self._digest.digest()

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, CodeType):
            return _stands, _of_code(obj)
        reduced = super().reducer_override(obj)
        if isinstance(obj, TypeVar):
            # Its number goes; its bounds come after it, as they may name what it is of.
            said = (obj.__bound__, obj.__constraints__, obj.__covariant__, obj.__contravariant__)
            return _stands, ("TypeVar", obj.__name__), said
        if is_of_name(reduced):
            return _stands, (), reduced[1][:-1]  # its number goes
        if is_by_value(reduced):
            return _of_class(as_class(obj))
        return reduced

    def _dynamic_function_reduce(self, func: FunctionType) -> Any:
        self.functions.append(func)
        make_lazy_imports(func)
        found = func.__globals__
        named = {name: found[name] for name in sorted(global_names(func)) if name in found}
        cells = tuple(_cell(cell) for cell in func.__closure__ or ())
        state = (named, cells, func.__defaults__, func.__kwdefaults__, attributes_of(func))
        # The state comes after the function itself, so that one that names itself is met again there.
        return _stands, (func.__qualname__, func.__code__), state


def _stands(*parts: Any) -> Any:
    """Stands in a stream that nobody reads for what the parts describe."""
    raise NotImplementedError


def _cell(cell: Any) -> Any:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _of_code(code: CodeType) -> tuple[Any, ...]:
    return (
        code.co_code,
        code.co_consts,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_flags,
        code.co_exceptiontable,
    )


def _of_class(kind: type) -> tuple[Any, ...]:
    has = {name: _of_attribute(value) for name, value in sorted(vars(kind).items()) if name not in _BOOKS}
    if has.get("__annotations__") == {}:
        del has["__annotations__"]  # before Python 3.14 a class without any has none until somebody looks
    return _stands, (kind.__qualname__,), (kind.__bases__, has)


def _of_attribute(value: Any) -> Any:
    return value.__name__ if isinstance(value, MemberDescriptorType | GetSetDescriptorType) else value


def content_of(value: Any, stand_in: Callable[[Any], object] | None = None) -> bytes | None:
    """The digest of a value; None for one that has none. ``stand_in``: what is hashed in an object's place, None for the object."""
    pickler = _look(value, stand_in)
    if pickler is None:
        return None
    texts = snapshots.texts_of(pickler.local)
    versions = _versions(_modules(pickler, pickler.functions, texts))
    return _whole(pickler, "", texts, versions) if texts or versions else pickler.finish()


def content_of_function(fn: Any, code: Iterable[ObjectRef], more: Iterable[Any] = ()) -> bytes | None:
    """The digest of a function with all that it refers to; None if it has none.

    ``code``: the snapshots that go along. ``more``: what else decides about its results (a context, variables of the environment).
    """
    pickler = _look((fn, tuple(more)), None)
    if pickler is None:
        return None
    functions = list(pickler.functions)
    inner = imports.plain_function(fn)
    if inner is not None and inner not in functions:
        functions.append(inner)  # it goes by name, and yet its body may import
    texts = [snapshots.text_of(ref) for ref in code]
    versions = _versions(_modules(pickler, functions, texts))
    return _whole(pickler, f"python {sys.version_info[0]}.{sys.version_info[1]}", texts, versions)


def _look(value: Any, stand_in: Callable[[Any], object] | None) -> _Content | None:
    try:
        pickler = _Content(stand_in)
        pickler.dump(value)
    except Exception:  # noqa: BLE001 - pickling runs the user's code, which may raise anything: then it is not remembered
        return None
    return pickler


def _modules(pickler: _Content, functions: Iterable[FunctionType], texts: Iterable[snapshots.Text]) -> frozenset[str]:
    """The top-level modules of all that a value brings: what it names, what the bodies of these functions import, and the source."""
    named = {name.partition(".")[0] for name in (*pickler.modules, *imports.imported_by(functions))}
    return frozenset(named.union(*(text.needs for text in texts)))


def _whole(pickler: _Content, python: str, texts: Iterable[snapshots.Text], versions: str) -> bytes:
    whole = hashlib.blake2b(pickler.finish(), digest_size=DIGEST_BYTES)
    whole.update(python.encode())
    for text in sorted(texts):
        whole.update(text.content.encode())
    whole.update(versions.encode())
    return whole.digest()


def versions_in(stream: bytes) -> str:
    """The versions of the packages whose classes and functions a pickled stream names."""
    if _GLOBAL not in stream:
        return ""
    return _versions(frozenset(name.partition(b".")[0].decode() for name in _NAMED.findall(stream)))


@lru_cache(maxsize=1000)
def _versions(tops: frozenset[str]) -> str:
    """Of those that are installed. Remembered, as to look for one that is not imported takes longer than a call may."""
    counting = (top for top in sorted(tops) if top not in sys.stdlib_module_names and top != "windlass")
    return "".join(f"{versions_of(top)}\n" for top in counting if home_of(top) == INSTALLED)


@lru_cache(maxsize=1000)
def versions_of(top: str) -> str:
    """The distributions that a top-level module comes from, with what they require, each with its version; without any, its files.

    Not what the module itself says, which it does where it is imported, and an import that comes later is no other version.
    """
    found: dict[str, str] = {}
    for name in _distributions(top):
        _require(name, found)
    versions = [f"{name}={version}" for name, version in sorted(found.items())] or [snapshots.digest_of(top)]
    return f"{top} " + " ".join(versions)


def _distributions(top: str) -> Iterable[str]:
    from importlib import metadata

    try:
        return [metadata.metadata(top)["Name"]]
    except metadata.PackageNotFoundError:
        return _by_module().get(top, [])


@lru_cache(maxsize=1)
def _by_module() -> dict[str, list[str]]:
    from importlib import metadata

    return {top: list(names) for top, names in metadata.packages_distributions().items()}


def _build_of(distribution: Distribution) -> str:
    """Which build of its version this is, where there may be several: of what was installed from a folder, an archive or a repository."""
    origin = distribution.read_text("direct_url.json")
    if origin is None or _EDITABLE.search(origin):  # that one's source is a local module's
        return ""
    files = (line for line in (distribution.read_text("RECORD") or "").splitlines() if not _UNSTABLE.search(line))
    return "+" + hashlib.blake2b("\n".join(sorted(files)).encode(), digest_size=8).hexdigest()


def _require(name: str, found: dict[str, str]) -> None:
    from importlib import metadata

    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in found:
        return
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return  # it is not needed here
    found[key] = distribution.version + _build_of(distribution)
    for requirement in distribution.requires or ():
        wanted = _REQUIRED.match(requirement)
        if wanted is not None and "extra ==" not in requirement:
            _require(wanted[0], found)
