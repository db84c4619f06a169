"""What `benchmarks/fuzz.py` and the tests give arbitrary bytes to: decoders, framing, sessions, connections, and the manager's core.

Theory of operation
-------------------
A *target* is a function of bytes.  It makes of them what a hostile or broken peer could do, lets the real code have it, and raises when a
rule is broken: anything but a `ProtocolError` comes out, an invariant between collections does not hold, or a message arrives twice or out
of order.  `Choices` turns bytes into numbers, pieces and whole messages; it never runs out, so every input means something, and small ids
and names make it likely that a message hits something that is there.

Connections run on `Loop`, which has the few methods that they need: time stands still until a target moves it, and what is to be called
soon is called at once after each step.  So a run takes microseconds, and the same bytes always do the same.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import struct
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NewType, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from windlass import messages, session, turns
from windlass.framing import MAX_HELLO_BYTES, FrameReader, Piece, ProtocolError, frame, unpacked
from windlass.identity import WORKER, Authority, Identity
from windlass.links import Link
from windlass.listener import Listener, _Accepted  # pyright: ignore[reportPrivateUsage]
from windlass.manager.core import Core
from windlass.manager.workers import absurd
from windlass.messages import (
    PROTOCOL,
    CallId,
    CallOptions,
    CallSpec,
    Drain,
    FileOrigin,
    FileRef,
    Frame,
    FunctionDef,
    Goodbye,
    Hello,
    LibraryReady,
    LibrarySpec,
    Message,
    ObjectRef,
    Refused,
    Resources,
    StartLibrary,
    Welcome,
    WorkerId,
    WorkerInfo,
)

Target = Callable[[bytes], None]

#: Names that mean something to the core of `core`.
WORDS = (
    "w1",
    "w2",
    "lib@1",
    "other@1",
    "b3-" + "0" * 32,
    "r-" + "1" * 32,
    "x3-" + "2" * 32,
    "recalled",
    "crash",
    "gone",
    "full",
    "m1",
    "",
    "é",
)


class Choices:
    """Bytes as a source of choices; when they are used up it goes on with zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        """0 to 255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, number: int) -> int:
        """0 to ``number - 1``, for numbers up to 256."""
        return self.byte() % number

    def piece(self) -> bytes:
        """Up to 255 of the bytes themselves."""
        size = self.byte()
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        rest, self._at = self._data[self._at :], len(self._data)
        return rest

    def number(self) -> int:
        """Small most of the time."""
        first = self.byte()
        return first if first < 224 else (0, -1, 1 << 31, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 63), (1 << 64) - 1)[first % 8]

    def value(self, of: Any) -> Any:
        """A value of this type."""
        if isinstance(of, NewType):
            return self.value(of.__supertype__)
        if isinstance(of, type) and issubclass(of, msgspec.Struct):
            return of(*(self.value(kind) for kind in _fields(of)))
        origin, arguments = get_origin(of), get_args(of)
        if origin in (Union, UnionType):
            return self.value(arguments[self.below(len(arguments))])
        if origin is list or (origin is tuple and arguments[1:] == (...,)):
            several = [self.value(arguments[0]) for _ in range(self.below(4))]
            return several if origin is list else tuple(several)
        if origin is tuple:
            return tuple(self.value(kind) for kind in arguments)
        return self._plain(of)

    def _plain(self, of: Any) -> Any:
        if of is bool:
            return bool(self.below(2))
        if of is int:
            return self.number()
        if of is float:
            return (0.0, 1.0, -1.0, 1e-9, 1e300, float("inf"), float("nan"), 1000.5)[self.below(8)]
        if of is str:
            return WORDS[self.below(len(WORDS))]
        if of is bytes:
            return self.piece()[:8]
        assert of is NoneType, of
        return None


@cache
def _fields(of: type[msgspec.Struct]) -> tuple[Any, ...]:
    hints = get_type_hints(of)
    return tuple(hints[name] for name in of.__struct_fields__)


# ---------------------------------------------------------------- decoders and framing


@cache
def decoders() -> tuple[Callable[[bytes], object], ...]:
    """Whatever reads bytes of a peer."""
    roles = [each(role) for role in ("worker", "factory", "client") for each in (session.said_by, session.heard_by)]
    of = (messages.FromData, messages.ToData, messages.FromFileReader, messages.ToFileReader, Frame)
    plain: list[Any] = [*roles, *(msgspec.msgpack.Decoder[Any](one) for one in of)]
    return (*(partial(_unpacked, one) for one in plain), session.decode_hello, session.decode_answer)


def _unpacked(decoder: Any, body: bytes) -> object:
    return unpacked(decoder, body, "it")


def decode(data: bytes) -> None:
    """Every decoder gives a value, which reads the same when it is written and read again, or raises `ProtocolError`."""
    if not data:
        return
    read = decoders()[data[0] % len(decoders())]
    try:
        value = read(data[1:])
    except ProtocolError:
        return
    if isinstance(value, Frame):
        return  # its messages are bytes still
    written = msgspec.msgpack.encode(value)
    assert msgspec.msgpack.encode(read(written)) == written, value


def framing(data: bytes) -> None:
    """However a stream is cut, the same bodies come out, or the same refusal; and no more than the limit is kept."""
    choices = Choices(data)
    limit = (16, 300, MAX_HELLO_BYTES)[choices.below(3)]
    sizes = [choices.byte() + 1 for _ in range(choices.below(16))] or [1]
    stream = choices.rest()
    if len(sizes) % 2:  # most random lengths would be over any limit
        stream = b"".join(struct.pack(">I", len(part)) + part for part in stream.split(b"\0"))
    whole, end = _read_all(FrameReader(limit), [stream])
    pieces: list[bytes] = []
    at = number = 0
    while at < len(stream):
        size = sizes[number % len(sizes)]
        pieces.append(stream[at : at + size])
        at, number = at + size, number + 1
    reader = FrameReader(limit)
    cut, cut_end = _read_all(reader, pieces)
    assert cut[: len(whole)] == whole, (cut, whole)
    assert end == cut_end
    assert end or cut == whole
    assert reader.waiting <= limit + 4 + 256


def _read_all(reader: FrameReader, pieces: list[bytes]) -> tuple[list[bytes], bool]:
    bodies: list[bytes] = []
    for piece in pieces:
        try:
            bodies += [bytes(body) for body in reader.feed(piece)]
        except ProtocolError:
            return bodies, True
    return bodies, False


# ---------------------------------------------------------------- sessions


def sessions(data: bytes) -> None:
    """Two sides whose frames are delivered, lost, repeated, reordered, damaged and forged.

    What is taken in was said by the other side, once, in order; a `ProtocolError` changes nothing.
    """
    choices = Choices(data)
    sides = [session.Session(session.said_by("worker")), session.Session(session.heard_by("worker"))]
    wires: list[list[Piece]] = [[], []]
    said: list[list[Message]] = [[], []]
    heard: list[list[Message]] = [[], []]
    forged = False
    while choices:
        step, to = choices.below(8), choices.below(2)
        side, other, wire = sides[to], sides[1 - to], wires[to]
        if step == 0:
            text = f"{len(said[to])}"
            batch: list[Message] = [Drain(text) if to else Goodbye(text)]
            said[to] += batch
            wire += other.encode(batch)
        elif step == 1:
            wire.append(other.bare())
        elif step == 2 and wire:
            wire.append(wire[choices.below(len(wire))])
        elif step == 3 and wire:
            wire.insert(0, wire.pop(choices.below(len(wire))))
        elif step == 4:
            try:
                wire[:] = other.resume(side.received)
            except ProtocolError:
                assert forged
        elif step == 5:
            forged = True
            wire.append(choices.piece())
        elif step == 6:
            forged = True
            number = choices.number()
            body = msgspec.msgpack.encode((number, choices.number(), msgspec.Raw(choices.piece() or b"\x90")))
            wire.append(body)
        elif wire:
            before = (side.received, side.sent, side.unacked, side.unacked_bytes)
            try:
                heard[to] += side.take(wire.pop(0), 0.0)
            except ProtocolError:
                assert before == (side.received, side.sent, side.unacked, side.unacked_bytes)
        for one in sides:
            one.check()
    if not forged:
        for to in (0, 1):
            assert heard[to] == said[to][: len(heard[to])]


# ---------------------------------------------------------------- connections


class Handle:
    """What `Loop.call_at` gives."""

    def __init__(self, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.callback, self.arguments, self.gone = callback, arguments, False

    def cancel(self) -> None:
        """Do not call it."""
        self.gone = True


class Loop:
    """The methods of an event loop that connections and links use."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._later: list[tuple[float, int, Handle]] = []
        self._count = 0

    def time(self) -> float:
        """Seconds."""
        return self.now

    def get_debug(self) -> bool:
        """For futures."""
        return False

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=cast(asyncio.AbstractEventLoop, self))

    def call_soon(self, callback: Callable[..., object], *arguments: Any, context: object = None) -> None:
        """After this step."""
        self._soon.append((callback, arguments))

    def call_at(self, when: float, callback: Callable[..., object], *arguments: Any) -> Handle:
        """When time has come."""
        handle = Handle(callback, arguments)
        self._count += 1
        heapq.heappush(self._later, (when, self._count, handle))
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A future whose exception nobody looked at."""
        raise AssertionError(context)

    def settle(self, seconds: float = 0.0) -> None:
        """Let so much time pass, and call what is due."""
        self.now += seconds
        for _ in range(1000):
            while self._later and self._later[0][0] <= self.now:
                handle = heapq.heappop(self._later)[2]
                if not handle.gone:
                    self._soon.append((handle.callback, handle.arguments))
            if not self._soon:
                return
            soon, self._soon = self._soon, []
            for callback, arguments in soon:
                callback(*arguments)
        raise AssertionError("it never comes to rest")


class Wire:
    """A transport with a certificate at its other end."""

    def __init__(self, loop: Loop, peer: Identity) -> None:
        self.written = b""
        self.ended = False
        self._loop, self._peer = loop, peer
        self.protocol: Any = None

    def getpeercert(self) -> dict[str, Any]:
        """As `ssl.SSLObject` says it."""
        return {"subject": ((("organizationalUnitName", self._peer.role),), (("commonName", self._peer.name),))}

    def get_extra_info(self, name: str) -> Wire:
        """It is its own TLS object."""
        return self

    def is_closing(self) -> bool:
        """`close` or `abort` was called."""
        return self.ended

    def write(self, data: bytes) -> None:
        """Sent."""
        assert not self.ended
        self.written += data

    def close(self) -> None:
        """The connection ends."""
        if not self.ended:
            self.ended = True
            self._loop.call_soon(lambda: self.protocol.connection_lost(None))

    abort = close

    def feed(self, data: bytes) -> None:
        """Bytes of the peer."""
        while data and not self.ended:
            buffer = self.protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]


class Shell:
    """A manager's shell that keeps links."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}
        self.heard = 0

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        """Take up a session that is known, begin a new one for all others."""
        known = hello.session if hello.session in self.links and not self.links[hello.session].closed else f"s{len(self.links)}"
        return Welcome(known, 0, "m1", "0", heartbeat=5.0, silence=30.0)

    def attach(self, session: str, link: Link) -> None:
        """A new session."""
        self.links[session] = link

        def take(batch: list[Message]) -> None:
            self.heard += len(batch)
            assert not link.closed

        link.on_messages = take


class Defects(logging.Handler):
    """What is logged as a defect is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            raise AssertionError(record.getMessage()) from record.exc_info[1]


@cache
def _authority() -> Authority:
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.create("m1", Path(folder) / "m1")
    context = authority.server_context()
    authority.server_context = lambda: context  # type: ignore[method-assign]
    return authority


@contextmanager
def _on(loop: Loop) -> Generator[None]:
    """Everything in this block belongs to the loop."""
    log, defects = logging.getLogger("windlass.transport"), Defects()
    level, log.propagate = log.level, False
    log.setLevel(logging.ERROR)
    log.addHandler(defects)
    asyncio._set_running_loop(cast(Any, loop))
    try:
        yield
    finally:
        asyncio._set_running_loop(None)
        turns.leave()
        log.removeHandler(defects)
        log.setLevel(level)
        log.propagate = True


def connections(data: bytes) -> None:
    """Peers with certificates say anything, at any time, on several connections; nothing is a defect, and no session is confused."""
    choices, loop = Choices(data), Loop()
    with _on(loop):
        shell = Shell()
        listener = Listener(_authority(), shell)
        wires: list[Wire] = []
        numbers = [0]
        while choices:
            step = choices.below(8)
            if step == 0 or not wires:
                name = ("w1", "w2")[choices.below(2)]
                wire = Wire(loop, Identity(("enrol", WORKER)[choices.below(2)], name))
                wire.protocol = _Accepted(listener)
                wire.protocol.connection_made(wire)
                wires.append(wire)
                numbers = [0]
                hello = Hello("worker", PROTOCOL + (choices.below(8) == 7), "0", (3, 11), name, f"s{choices.below(4)}", choices.below(4))
                if choices.below(8):
                    wire.feed(frame(session.encode_one(hello)))
            else:
                _step(choices, loop, step, wires[choices.below(len(wires))], shell, numbers)
            loop.settle()
            for link in shell.links.values():
                link.session.check()
                assert link.closed == (link.session_id not in listener.links)
            live = [one for one in wires if one.protocol.link is not None]
            assert len({id(one.protocol.link) for one in live}) == len(live), "two connections have one session"
        for wire in wires:
            wire.close()
        loop.settle()
        assert not listener.connections
        for link in list(listener.links.values()):
            link.close()
        assert not listener.links


def _step(choices: Choices, loop: Loop, step: int, wire: Wire, shell: Shell, numbers: list[int]) -> None:
    if step == 1:
        wire.feed(choices.piece())
    elif step == 2:
        wire.feed(frame(choices.piece()))
    elif step in (3, 4):
        numbers[0] += 1
        number = numbers[0] if choices.below(4) else choices.number()
        message = choices.value(messages.FromWorker)
        body = msgspec.msgpack.encode((number, choices.below(3), [message]))
        whole = frame(body)
        cut = choices.below(2) and len(whole) // 2
        for part in (whole[:cut], whole[cut:]):
            wire.feed(part)
    elif step == 5:
        wire.close()
    elif step == 6:
        loop.settle((0.1, 3.0, 40.0)[choices.below(3)])
    elif shell.links:
        link = list(shell.links.values())[choices.below(len(shell.links))]
        link.send(Drain("x"))


# ---------------------------------------------------------------- the core


def core(data: bytes) -> None:
    """A worker says anything a worker may say, of ids that there are and are not: the books stay consistent, and no call ends twice."""
    choices = Choices(data)
    books, now = Core(), 1000.0
    function = FunctionDef(messages.FunctionId(b"f" * 16), "f", b"blob")
    for name in ("lib@1", "other@1"):
        books.install(LibrarySpec(messages.LibraryId(name), name[:-2], (3, 11), (function,)), now)
    for name in WORDS[4:7]:
        books.declare_file(FileRef(messages.FileName(name), 5, "x"), FileOrigin(path="/x", stamp=(1, 5)))
    ends: set[int] = set()
    submitted = 0
    for name in ("w1", "w2"):
        books.worker_joined(WorkerId(name), WorkerInfo("h", 1, Resources(2.0, 1 << 30, 0)), now)
    while choices:
        step = choices.below(8)
        worker = WorkerId(("w1", "w2")[choices.below(2)])
        if step == 0:
            submitted += 1
            spans = (ObjectRef(messages.ObjectName("r-" + "3" * 32), 5),) if choices.below(2) else ()
            inputs = (FileRef(messages.FileName(WORDS[4 + choices.below(3)]), 5, "x"),) if choices.below(2) else ()
            library = messages.LibraryId(("lib@1", "other@1")[choices.below(2)])
            options = CallOptions(retries=choices.below(3), timeout=float(choices.below(2)))
            books.submit([CallSpec(CallId(submitted), library, function.id, b"", spans, options, inputs, "4" * 24)], now)
        elif step == 1:
            now += (0.01, 5.0, 100.0)[choices.below(3)]
            books.tick(now)
        elif step == 2:
            (books.worker_cut, books.worker_back)[choices.below(2)](worker, now)
        elif step == 3 and worker not in books.workers:
            info = choices.value(WorkerInfo)
            if not absurd(info):  # the shell refuses that
                books.worker_joined(worker, info, now)
        elif step == 4:
            books.cancel([CallId(choices.below(submitted + 1))], now)
        else:
            books.worker_said(worker, [choices.value(messages.FromWorker)], now)
        books.pump(now)
        for one, sent in books.take_outbox().items():
            ready = [LibraryReady(each.instance, 7) for each in sent if isinstance(each, StartLibrary)]
            books.worker_said(one, ready, now)
        books.pump(now)
        for done in books.take_done():
            assert done.end.call not in ends, f"call {done.end.call} ended twice"
            ends.add(done.end.call)
        books.check()
    assert ends | set(books.calls) == set(range(1, submitted + 1))


TARGETS: dict[str, Target] = {"decode": decode, "framing": framing, "sessions": sessions, "connections": connections, "core": core}
