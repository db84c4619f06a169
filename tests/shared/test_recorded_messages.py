"""Messages as they were written: workers and programs of an older Windlass, and of a newer one, are understood (docs/versions.md).

Theory of operation: ``data/messages-N.json`` holds the bytes of every message of protocol N beside what they say, as they were when that
protocol was released.  They are read here by today's decoders, for every protocol that a manager accepts.  A recording is never changed; a
new message or a new field adds to it: ``python tests/shared/test_recorded_messages.py`` writes what is missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NewType, Union, cast, get_args, get_origin, get_type_hints

import msgspec
import pytest

from windlass import messages
from windlass.framing import ProtocolError
from windlass.messages import OLDEST_PROTOCOL, PROTOCOL, Frame, Hello, Message, Refused, Welcome
from windlass.session import decode_answer, decode_hello, encode_one
from windlass.versions import about_start, disagreement

DATA = Path(__file__).parent / "data"

UNIONS: tuple[Any, ...] = (
    messages.ToWorker,
    messages.FromWorker,
    messages.ToFactory,
    messages.FromFactory,
    messages.ToClient,
    messages.FromClient,
    messages.FromData,
    messages.ToData,
    messages.ToFileReader,
)
SPOKEN: dict[str, type[msgspec.Struct]] = {
    one.__name__: one for one in [Hello, Welcome, Refused, Frame, messages.GetFile, *(one for union in UNIONS for one in get_args(union))]
}

#: What whoever has changed a message reads.
REMEDY = (
    "Peers of protocol {protocol} say {name} like this, and managers accept them. Either change it so that these bytes are still read (a "
    "new field at the end, with a default), or raise PROTOCOL and OLDEST_PROTOCOL in src/windlass/messages.py, say what has changed in "
    "docs/versions.md, and record it: python tests/shared/test_recorded_messages.py"
)


def sample(of: Any, name: str = "", depth: int = 0) -> Any:
    """A value of this type in which every field says something; texts are the names of their fields."""
    if isinstance(of, NewType):
        return sample(of.__supertype__, name, depth)
    if isinstance(of, type) and issubclass(of, msgspec.Struct):
        hints = get_type_hints(of)
        return of(*(sample(hints[field], field, depth + 1) for field in of.__struct_fields__))
    origin, arguments = get_origin(of), get_args(of)
    if origin in (Union, UnionType):
        return sample(next(one for one in arguments if one is not NoneType), name, depth)
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        one = sample(arguments[0], name, depth)
        return [one] if origin is list else (one,)
    if origin is tuple:
        return tuple(sample(one, f"{name}{number}", depth) for number, one in enumerate(arguments))
    plain: dict[Any, Any] = {bool: True, int: 1 + sum(name.encode()) % 100, float: 0.5 + len(name), str: name, bytes: name.encode()}
    return msgspec.Raw(b"\x90") if of is msgspec.Raw else plain[of]


def readable(value: Any) -> Any:
    """A message as names and plain values; bytes are ``{"bytes": hexadecimal}``."""
    if isinstance(value, msgspec.Raw):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, msgspec.Struct):
        return {field: readable(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [readable(one) for one in cast("Sequence[Any]", value)]
    return {"bytes": value.hex()} if isinstance(value, bytes) else value


def agrees(recorded: Any, now: Any) -> bool:
    """All that is recorded is there, and says the same; there may be more fields now."""
    if isinstance(recorded, dict):
        fields = cast("dict[str, Any]", recorded)
        return isinstance(now, dict) and all(name in now and agrees(value, now[name]) for name, value in fields.items())
    if isinstance(recorded, list):
        several, found = cast("Sequence[Any]", recorded), cast("Sequence[Any]", now)
        return isinstance(now, list) and len(found) == len(several) and all(map(agrees, several, found))
    return bool(recorded == now)


def begins(new: Any, old: Any) -> bool:
    """What is written now begins, array by array, with what was written then: so who knows only that reads it."""
    if isinstance(old, list):
        several, found = cast("Sequence[Any]", old), cast("Sequence[Any]", new)
        return isinstance(new, list) and len(found) >= len(several) and all(map(begins, found, several))
    return bool(new == old)


def check(name: str, recorded: dict[str, Any], of: type[msgspec.Struct], protocol: int) -> None:
    """These bytes mean what they meant then, and today's are read by who knows only these. Raises `AssertionError` with the remedy."""
    remedy = REMEDY.format(name=name, protocol=protocol)
    written = bytes.fromhex(recorded["hex"])
    try:
        now = msgspec.msgpack.decode(written, type=of)
    except msgspec.MsgspecError as error:
        raise AssertionError(f"{name}: {error}. {remedy}") from error
    assert agrees(recorded["says"], readable(now)), f"{name} means {readable(now)} now, and meant {recorded['says']}. {remedy}"
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(now))
    assert begins(again, msgspec.msgpack.decode(written)), f"{name} is written as {again} now. {remedy}"


def recording(protocol: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((DATA / f"messages-{protocol}.json").read_text())
    return found


def is_whole(name: str, of: type[msgspec.Struct], known: dict[str, Any]) -> bool:
    """Every field of this message, and of the records in it, is recorded."""
    return name in known and _names(readable(sample(of))) == _names(known[name]["says"])


def _names(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _names(one) for name, one in cast("dict[str, Any]", value).items() if name != "bytes"}
    return [_names(one) for one in cast("Sequence[Any]", value)] if isinstance(value, list) else []


RECORDED = [
    pytest.param(protocol, name, id=f"{name}-{protocol}")
    for protocol in range(OLDEST_PROTOCOL, PROTOCOL + 1)
    for name in (recording(protocol) if (DATA / f"messages-{protocol}.json").exists() else ())
]


@pytest.mark.parametrize(("protocol", "name"), RECORDED)
def test_what_was_written_is_read_as_it_was_meant(protocol: int, name: str) -> None:
    """And what is written today begins with what was written then."""
    assert name in SPOKEN, f"there is no message {name} any more. {REMEDY.format(name=name, protocol=protocol)}"
    check(name, recording(protocol)[name], SPOKEN[name], protocol)


def test_every_message_is_recorded() -> None:
    """With all of its fields."""
    known = recording(PROTOCOL)
    for name, of in SPOKEN.items():
        assert is_whole(name, of, known), f"record what is new in {name}: python tests/shared/test_recorded_messages.py"


@pytest.mark.parametrize("name", SPOKEN)
def test_a_peer_may_know_more_fields(name: str) -> None:
    """A newer one: what it adds at the end of any record is passed over."""
    said = sample(SPOKEN[name])

    def lengthened(value: Any) -> Any:
        if isinstance(value, msgspec.Struct):
            tag = [type(value).__name__] if isinstance(value, Message) else []
            fields = [lengthened(getattr(value, field)) for field in value.__struct_fields__]
            # Of a frame nothing that follows its messages would be read fast.
            return [*tag, *fields, *([] if isinstance(value, Frame) else [["new", {"more": 1}], None])]
        if isinstance(value, list | tuple):
            return [lengthened(one) for one in cast("Sequence[Any]", value)]
        return value

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(lengthened(said)), type=SPOKEN[name]) == said


@pytest.mark.parametrize("name", SPOKEN)
def test_a_peer_may_know_fewer_fields(name: str) -> None:
    """An older one: what has a default may be missing from the end."""
    of = SPOKEN[name]
    said = sample(of)
    fields = msgspec.structs.fields(of)
    required = sum(field.required for field in fields)
    assert all(field.required for field in fields[:required]), f"{name}: fields with defaults come last"
    tag = [name] if issubclass(of, Message) else []
    short = msgspec.msgpack.encode([*tag, *(getattr(said, field.name) for field in fields[:required])])
    read = msgspec.msgpack.decode(short, type=of)
    assert [getattr(read, field.name) for field in fields[:required]] == [getattr(said, field.name) for field in fields[:required]]
    for field in fields[required:]:
        assert getattr(read, field.name) == field.default


class Drain(Message, frozen=True):
    """As `windlass.messages.Drain`, changed without a thought."""

    seconds: int
    reason: str


class Leave(Message, frozen=True):
    """As `windlass.messages.Leave`, with a field that nobody says who does not know it."""

    reason: str
    seconds: int


class FileBrought(Message, frozen=True):
    """As `windlass.messages.FileBrought`, the other way round."""

    text: str
    name: str


@pytest.mark.parametrize("changed", [Drain, Leave, FileBrought])
def test_who_changes_a_message_is_told_what_to_do(changed: type[Message]) -> None:
    name = changed.__name__
    with pytest.raises(AssertionError, match=r"raise PROTOCOL and OLDEST_PROTOCOL in src/windlass/messages\.py, say what has changed in"):
        check(name, recording(1)[name], changed, 1)


# ---------------------------------------------------------------- other protocols


@pytest.mark.parametrize("protocol", [OLDEST_PROTOCOL - 1, PROTOCOL + 1])
def test_a_peer_of_another_protocol_is_told_both_versions(protocol: int) -> None:
    """Older than the oldest that is accepted, or newer."""
    hello = Hello("worker", protocol, "7.8.9", (3, 11), "w1")
    assert re.fullmatch(
        rf"this manager is Windlass [0-9.]+ and speaks protocol {PROTOCOL}; worker w1 is Windlass 7\.8\.9 and speaks protocol {protocol}: "
        "update the older one",
        disagreement(hello, "this manager"),
    )
    assert disagreement(msgspec.structs.replace(hello, protocol=PROTOCOL), "this manager") == ""


def test_a_hello_whose_rest_means_nothing_here_is_told_both_versions() -> None:
    """Its first five fields mean the same in every protocol."""
    body = msgspec.msgpack.encode(["Hello", "worker", 5, "7.8.9", (3, 14), "w1", {"session": 1}, "purpose"])
    with pytest.raises(ProtocolError, match="not a Hello of this protocol"):
        decode_hello(body)
    assert "worker w1 is Windlass 7.8.9 and speaks protocol 5" in about_start(body, "this manager")
    assert about_start(encode_one(Refused("no")), "this manager") == ""
    assert about_start(b"\xff", "this manager") == ""


def test_a_refusal_of_any_protocol_is_read() -> None:
    """Its text is what a person needs; what else it says may be new."""
    assert decode_answer(msgspec.msgpack.encode(["Refused", "no, because", False, "new"])) == Refused("no, because")


def write() -> None:
    """Record what is missing, if what is there is still read."""
    path = DATA / f"messages-{PROTOCOL}.json"
    known = recording(PROTOCOL) if path.exists() else {}
    for name, of in SPOKEN.items():
        if name in known:
            check(name, known[name], of, PROTOCOL)
        if not is_whole(name, of, known):
            said = sample(of)
            known[name] = {"hex": msgspec.msgpack.encode(said).hex(), "says": readable(said)}
    DATA.mkdir(exist_ok=True)
    path.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known)) + "\n}\n")


if __name__ == "__main__":
    write()
