"""Exceptions on their way from a slot to the program.

Theory of operation
-------------------
An exception is told as a list of plain records, one for each exception that hangs together with it: causes, contexts, members of groups.
A record has the type's name, the message, the traceback as text, and the pickled exception, if it has one.  Whether an exception
can be pickled is tried where it was raised, by a round trip, in five ways:

1. as it pickles itself;
2. without its ``__init__``: made by ``__new__`` and given its ``args`` and attributes.  This saves the many classes whose ``__init__``
   takes other arguments than it hands to ``Exception``: they pickle without complaint and fail, or change their message, when read;
3. the same without those attributes that cannot be pickled (locks, connections);
4. where all is too much for a message, with large texts in it cut and other large parts left out, and a note that says so: files that are
   not UTF-8, broken JSON and what commands have written come along in exceptions of Python's own;
5. not at all: the program gets a `RemoteError` with type, message and traceback.

What the program gets reads, printed, as it would on the worker.  Each exception's ``__cause__`` is a `RemoteTraceback` with its own
traceback; under that, as its cause, is the exception's original cause or context, again with its own.  ``__context__`` of the exception
itself is that original cause or context too.

Frames of Windlass that lead to the function are left out. The bytes have a limit: first large exceptions and texts are cut, then the chain.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, cast

import msgspec

from windlass import pickling
from windlass.errors import CallFailed, NotPicklable, RemoteError, RemoteTraceback, WindlassError
from windlass.messages import EndDetail, Record

#: A control frame takes 1 MiB, for all it carries.
_MAX_BYTES: Final = 256 << 10
#: Exceptions of one chain or group that are told.
_MAX_TOLD: Final = 64
_MAX_TEXT: Final = 32 << 10
#: Groups in groups that are looked at; of the last ones nothing is shown (`traceback.TracebackException` shows 10).
_GROUPS_DEEP: Final = 12
#: Members of one that are shown, as many as Python's own traceback shows.
_MEMBERS_SHOWN: Final = 15
#: What is to be done about a module that is missing on a node, as far as that node knows.
_MUST_HAVE: Final = ", which must have what calls import; see: windlass explain environments"
_OWN: Final = os.path.dirname(os.path.abspath(__file__)) + os.sep


class _Told(Record, frozen=True):
    """One exception. ``cause``, ``context`` and ``members`` are places in the list of all; -1: none."""

    type: str
    message: str
    traceback: str
    #: The pickled exception; empty: it cannot be, or (`inside`) it is in its group's.
    state: bytes = b""
    cause: int = -1
    context: int = -1
    suppress: bool = False
    notes: tuple[str, ...] = ()
    members: tuple[int, ...] = ()
    #: A group's class if it has to be made anew: 1 ExceptionGroup, 2 BaseExceptionGroup.
    group: int = 0
    inside: bool = False


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[_Told])


# ---------------------------------------------------------------- on the worker


def pack_exception(exc: BaseException) -> tuple[bytes, EndDetail]:
    """See `windlass.pickling.pack_exception`."""
    told = _tell(exc, _state)
    payload = _encoder.encode(told)
    if len(payload) > _MAX_BYTES:
        least = _tell(exc, partial(_small_state, _MAX_BYTES // 2 // len(told)))
        told = [_shortened(small, whole) for small, whole in zip(least, told, strict=True)]
        payload = _encoder.encode(told)
        if len(payload) > _MAX_BYTES:
            told = [msgspec.structs.replace(told[0], cause=-1, context=-1, members=())]
            payload = _encoder.encode(told)
    types = tuple(_sayable(f"{kind.__module__}.{kind.__qualname__}") for kind in type(exc).__mro__)
    return payload, EndDetail(types=types, text=_clipped(_as_text(told), _MAX_TEXT))


def format_exception(exc: BaseException) -> str:
    """All of it as text: the chain, each with its traceback, without Windlass's own frames at the start."""
    return _as_text(_tell(exc, lambda one: b""))


def summary(exc: BaseException) -> str:
    """Type and message."""
    message = _message(exc)
    return f"{type(exc).__name__}: {message}" if message else type(exc).__name__


def _tell(exc: BaseException, states: Callable[[BaseException], bytes]) -> list[_Told]:
    found: list[BaseException] = [exc]
    places = {id(exc): 0}

    def place(other: BaseException | None) -> int:
        if other is None:
            return -1
        if id(other) not in places:
            if len(found) >= _MAX_TOLD:
                return -1
            places[id(other)] = len(found)
            found.append(other)
        return places[id(other)]

    told: list[_Told] = []
    inside: set[int] = set()
    while len(told) < len(found):
        here = len(told)
        one = found[here]
        group = _group(one)
        members = tuple(place(member) for member in _members(one))
        state = states(one) if here not in inside else b""
        if group and (state or here in inside):
            inside.update(members)
        told.append(
            _Told(
                type=_sayable(pickling.type_name(one)),
                message=_sayable(group.message) if group else _message(one),
                traceback=_traceback(one),
                state=state,
                cause=place(one.__cause__),
                context=place(one.__context__),
                suppress=one.__suppress_context__,
                notes=(*_notes(one), where(one)) if isinstance(one, ImportError) else _notes(one),
                members=members,
                group=0 if not group else 1 if isinstance(one, ExceptionGroup) else 2,
                inside=here in inside,
            )
        )
    return told


def _group(exc: BaseException) -> BaseExceptionGroup[BaseException] | None:
    return cast("BaseExceptionGroup[BaseException]", exc) if isinstance(exc, BaseExceptionGroup) else None


def _members(exc: BaseException) -> tuple[BaseException, ...]:
    group = _group(exc)
    return group.exceptions if group else ()


def _state(exc: BaseException) -> bytes:
    """The exception pickled so that reading it gives the same type and message; else empty."""
    return _by_first(exc, (_as_it_is, _without_init, _without_attributes))


def _small_state(most: int, exc: BaseException) -> bytes:
    """The same in so many bytes at most."""
    stream = _state(exc)
    if len(stream) <= most:
        return stream
    if _group(exc):
        return b""  # its members are told one by one
    part = most // 16
    return _by_first(exc, (partial(_as_it_is_but_large, part), partial(_without_large, part)), most)


def _by_first(exc: BaseException, attempts: Sequence[Callable[[BaseException], object]], most: int = sys.maxsize) -> bytes:
    """By the first of these ways that gives the same type and message, or else the same type; empty: by none."""
    first = b""
    for attempt in attempts:
        try:
            stream = pickling.dumps_result(attempt(exc))
            if len(stream) > most:
                continue
            copy = pickle.loads(stream)
            if type(copy) is type(exc):
                if _message(copy) == _message(exc):
                    return stream
                first = first or stream
        except Exception:  # noqa: BLE001 - the user's code runs here, and whatever it raises means: not this way
            continue
    return first


def _as_it_is(exc: BaseException) -> object:
    return exc


def _without_init(exc: BaseException) -> object:
    return _Made(_make_bare, (type(exc), exc.args, exc.__dict__))


def _without_attributes(exc: BaseException) -> object:
    state = {name: value for name, value in exc.__dict__.items() if _can_travel(value)}
    return _Made(_make_bare, (type(exc), exc.args, state))


def _can_travel(value: object) -> bool:
    try:
        pickle.loads(pickling.dumps_result(value))
    except Exception:  # noqa: BLE001 - the user's code runs here, and whatever it raises means no
        return False
    return True


class _Made:
    """Stands in a stream for an exception that is to be made in this way rather than in its own."""

    def __init__(self, *recipe: Any) -> None:
        self.recipe = recipe

    def __reduce__(self) -> tuple[Any, ...]:
        return self.recipe


def _make_bare(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    exc = kind.__new__(kind, *args)
    _set(exc, "args", args)
    exc.__dict__.update(state)
    return exc


def _as_it_is_but_large(part: int, exc: BaseException) -> object:
    reduced: Any = exc.__reduce_ex__(4)
    make, args = reduced[:2]
    args, state = _cut_all(exc, args, (reduced[2] if len(reduced) > 2 else None) or {}, part)
    return _Made(make, args, state)


def _without_large(part: int, exc: BaseException) -> object:
    return _Made(_make_bare, (type(exc), *_cut_all(exc, exc.args, exc.__dict__, part)))


def _cut_all(exc: BaseException, args: tuple[Any, ...], state: Mapping[str, Any], part: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What an exception is made of, without what has more than ``part`` bytes; notes among the state tell what that was."""
    cut: dict[str, str] = {}
    some: list[Any] = []
    for number, value in enumerate(args, 1):
        left, size = _cut(exc, value, part)
        some.append(f"<{pickling.type_name(value)} left out>" if left is None and size else left)
        if size:
            cut[next((repr(name) for name, one in exc.__dict__.items() if one is value), f"argument {number}")] = size
    others: dict[str, Any] = {}
    for name, value in state.items():
        if name == "__notes__":
            continue
        left, size = _cut(exc, value, part)
        if left is not None or not size:
            others[name] = left
        if size:
            cut[repr(name)] = size
    notes = [*_short(_notes(exc))]
    if cut:
        told = ", ".join(f"{what} ({size})" for what, size in cut.items())
        notes.append(_clipped(f"large parts of this exception were cut or left out on the way: {told}", 1024))
    others["__notes__"] = notes
    return tuple(some), others


def _cut(exc: BaseException, value: Any, part: int) -> tuple[Any, str]:
    """What is sent of a part of an exception, and how large that is if it is not the whole; None: nothing of it."""
    if isinstance(value, str | bytes | bytearray):
        if len(value) <= part:
            return value, ""
        size = f"{len(value):,} {'characters' if isinstance(value, str) else 'bytes'}"
        if isinstance(exc, UnicodeDecodeError | UnicodeEncodeError | UnicodeTranslateError):
            return _around(value, exc.start, exc.end, part), size
        if isinstance(value, str):
            return _clipped(value, part), size
        half = part // 2
        return value[:half] + b"\n... %d bytes left out ...\n" % (len(value) - 2 * half) + value[-half:], size
    try:
        stream = pickling.dumps_result(value)
        pickle.loads(stream)
    except Exception:  # noqa: BLE001 - the user's code runs here, and whatever it raises means no
        return None, "it cannot be pickled"
    return (value, "") if len(stream) <= part else (None, f"{len(stream):,} bytes")


def _around(text: Any, start: int, end: int, part: int) -> Any:
    """What stays of a text that could not be coded: what is around that place, which keeps its number, as people look there in the whole.

    Python's message shows the byte at that place of the text that it has: either the right one, or the place is beyond what stays.
    """
    begin = 0 if end <= part else max(0, start - part // 2)
    return text[begin : begin + part]


def _message(exc: BaseException) -> str:
    try:
        return _sayable(str(exc))
    except Exception:  # noqa: BLE001 - the user's __str__
        return "<its message cannot be shown>"


def _notes(exc: BaseException) -> tuple[str, ...]:
    try:
        notes: Any = getattr(exc, "__notes__", ())
        return tuple(_sayable(str(note)) for note in notes)
    except Exception:  # noqa: BLE001 - the user's __str__, or notes that are no list
        return ()


def where(error: ImportError) -> str:
    """Where a module is missing: the program that reads this may well have it."""
    told = f"on node {os.uname().nodename}, by {sys.executable} (Python {sys.version.split()[0]})"
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and str(error.name).startswith(("numpy.core", "numpy._core")):
        version = getattr(numpy, "__version__", "?")
        return f"{told}: NumPy {version} is there, and another version in the program; see: windlass explain environments"
    return f"{told}{_MUST_HAVE}"


def _traceback(exc: BaseException) -> str:
    """The exception's own traceback, without chain and members, with notes.

    A call that Windlass itself has failed, as it does a command's, has no frames that would tell a user anything.
    """
    frames = users_frames(exc)
    if frames is None and not isinstance(exc, CallFailed):
        frames = exc.__traceback__
    try:
        text = "".join(_shown(exc, frames).format(chain=False))
        if isinstance(exc, WindlassError):  # it is shown at the end of the error itself
            text = text.removesuffix(f"{exc.advice}\n")
    except Exception:  # noqa: BLE001 - the user's __str__ or __getattr__
        text = "".join(traceback.format_tb(frames)) + f"{pickling.type_name(exc)}: {_message(exc)}\n"
    return _clipped(_sayable(text), _MAX_TEXT)


def _shown(exc: BaseException, frames: TracebackType | None, deep: int = _GROUPS_DEEP) -> traceback.TracebackException:
    """As one of a chain that is looked at elsewhere, or each exception of a chain would read all of the chain below it; of a group those
    members are looked at that are shown."""
    shown = traceback.TracebackException(type(exc), exc, frames, compact=True, max_group_width=_MEMBERS_SHOWN, _seen=set())
    members: Any = [None] * len(_members(exc))  # it is told how many more there are
    if deep:
        few = _members(exc)[:_MEMBERS_SHOWN]
        members[: len(few)] = [_shown(one, one.__traceback__, deep - 1) for one in few]
    shown.exceptions = members if _group(exc) else None
    return shown


def users_frames(exc: BaseException) -> TracebackType | None:
    """The traceback from the first frame on that is neither Windlass's own nor cloudpickle's; None if there is no such."""
    here = exc.__traceback__
    while here is not None and _is_own(here):
        here = here.tb_next
    return here


def _is_own(frame: TracebackType) -> bool:
    # Ours have whole paths. To make others' whole would ask for the working directory, which may be gone.
    code, module = frame.tb_frame.f_code, frame.tb_frame.f_globals.get("__name__")
    return code.co_filename.startswith(_OWN) or module == "cloudpickle.cloudpickle"


# ---------------------------------------------------------------- as text


def _as_text(told: list[_Told]) -> str:
    """As Python prints a chain: the oldest first."""
    parts: list[str] = []
    here, seen = 0, set[int]()
    while here >= 0 and here not in seen:
        seen.add(here)
        record = told[here]
        parts.append(record.traceback)
        if record.cause >= 0:
            parts.append("\nThe above exception was the direct cause of the following exception:\n\n")
            here = record.cause
        elif record.context >= 0 and not record.suppress:
            parts.append("\nDuring handling of the above exception, another exception occurred:\n\n")
            here = record.context
        else:
            break
    if len(parts) % 2 == 0:
        parts.pop()  # the chain bites its tail
    return "".join(reversed(parts))


def _sayable(text: str) -> str:
    """The text as a message can carry it.

    Those of subclasses of str cannot be sent, and a name of a file that is not UTF-8 is a text of Python that cannot be encoded (PEP 383).
    """
    return str.encode(text, "utf-8", "backslashreplace").decode()


def _clipped(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def _short(notes: Sequence[str]) -> tuple[str, ...]:
    return tuple(_clipped(note, 256) for note in notes[:8])


def _shortened(record: _Told, whole: _Told) -> _Told:
    """The record with short texts, and with a note where the exception is lost only because it is large."""
    notes = _short(record.notes)
    if whole.state and not (record.state or record.inside or record.group):
        notes += (f"this exception is too large to come as itself: it has {len(whole.state):,} bytes, and could not be cut",)
    return msgspec.structs.replace(record, notes=notes, message=_clipped(record.message, 1024), traceback=_clipped(record.traceback, 3072))


# ---------------------------------------------------------------- in the program


def unpack_exception(payload: bytes) -> BaseException:
    """See `windlass.pickling.unpack_exception`."""
    try:
        told = _decoder.decode(payload)
        if not told:
            raise ValueError("no exception in it")
        count = len(told)
        if any(not -1 <= place < count for record in told for place in (record.cause, record.context, *record.members)):
            raise ValueError("it names exceptions that it does not have")
    except (msgspec.MsgspecError, ValueError) as error:
        raise NotPicklable(f"the call's exception cannot be unpickled here: {error}; its bytes are damaged") from error
    made: list[BaseException | None] = [None] * len(told)
    for here in range(len(told)):
        _make(told, made, here, ())
    whole = [exc for exc in made if exc is not None]
    for exc, record in zip(whole, told, strict=True):
        _link(exc, record, whole)
    return whole[0]


def _make(told: list[_Told], made: list[BaseException | None], here: int, above: tuple[int, ...]) -> BaseException:
    done = made[here]
    if done is not None:
        return done
    record = told[here]
    exc: BaseException | None = None
    if record.state:
        try:
            exc = pickle.loads(record.state)
        except Exception as error:  # noqa: BLE001 - the user's code, or a class that is not here
            exc = _stand_in(record, f" (it cannot be unpickled here: {pickling.type_name(error)}: {error})")
        if not isinstance(exc, BaseException):
            exc = _stand_in(record)
    elif record.group and record.members and here not in above and -1 not in record.members:
        members = [_make(told, made, member, (*above, here)) for member in record.members]
        ordinary = [member for member in members if isinstance(member, Exception)]
        if record.group == 1 and len(ordinary) == len(members):
            exc = ExceptionGroup(record.message, ordinary)
        else:
            exc = BaseExceptionGroup(record.message, members)
    else:
        exc = _stand_in(record)
    made[here] = exc
    if record.state:
        # A group's members are in its own pickle: what is told of them belongs to those.
        for place, member in zip(record.members, _members(exc), strict=False):
            if place >= 0 and told[place].inside:
                _place_members(told, made, place, member)
    return exc


def _place_members(told: list[_Told], made: list[BaseException | None], place: int, member: BaseException) -> None:
    if made[place] is not None:
        return
    made[place] = member
    for inner, one in zip(told[place].members, _members(member), strict=False):
        if inner >= 0:
            _place_members(told, made, inner, one)


def _stand_in(record: _Told, why: str = "") -> RemoteError:
    error = RemoteError(f"{record.type}: {record.message}{why}" if record.message or why else record.type)
    error.__dict__.update(type_name=record.type, message=record.message, traceback=record.traceback)
    return error


def _link(exc: BaseException, record: _Told, whole: list[BaseException]) -> None:
    """Give the exception its remote traceback, its notes, and its original cause or context."""
    known = _notes(exc)
    have = set(known)
    notes = [note for note in record.notes if note not in have]
    if isinstance(exc, ModuleNotFoundError):
        notes = [_at_home(exc.name, note) for note in notes]
    if notes:
        exc.__dict__["__notes__"] = [*known, *notes]
    if isinstance(exc, CallFailed) and not record.traceback.startswith("Traceback "):  # no more than the error itself says
        _set(exc, "__cause__", whole[record.cause] if record.cause >= 0 else None)
        _set(exc, "__context__", whole[record.context] if record.context >= 0 else None)
        _set(exc, "__suppress_context__", record.suppress)
        return
    told = RemoteTraceback(record.traceback)
    if record.cause >= 0:
        told.__cause__ = whole[record.cause]
        _set(exc, "__context__", whole[record.cause])
    elif record.context >= 0:
        told.__context__ = whole[record.context]
        told.__suppress_context__ = record.suppress
        _set(exc, "__context__", whole[record.context])
    _set(exc, "__cause__", told)


def _at_home(name: str | None, note: str) -> str:
    """What is told of a module that is missing on a node, by a program that has it as its own."""
    from windlass.homes import LOCAL, home_of

    if not note.endswith(_MUST_HAVE) or not name or "." in name or home_of(name) != LOCAL:
        return note
    return (
        f"{note.removesuffix(_MUST_HAVE)}. It is a module of the program's, and did not travel: what functions and modules import by a"
        f" statement does, and what they import by a name in a text does not; write `import {name}` in the function"
    )


def add_note(exc: BaseException, note: str) -> None:
    """`BaseException.add_note`, past the exception's own class."""
    exc.__dict__["__notes__"] = [*_notes(exc), note]


def _set(exc: BaseException, name: str, value: object) -> None:
    """Past the exception's own class, which may refuse it, as that of a frozen dataclass does."""
    BaseException.__setattr__(exc, name, value)
