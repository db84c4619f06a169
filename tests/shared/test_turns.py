"""Turns at the interpreter, beside a program that computes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.shared.test_transport import Peer, Shell, at, hello, listening, report, until

from windlass import loops, turns
from windlass.fileserver import FileServer, PlainFile
from windlass.filewire import CHUNK_BYTES
from windlass.framing import frame
from windlass.identity import WORKER, Authority, Identity
from windlass.messages import FileName, GetFile, Hello, Message, Refused, Welcome

USUAL = 0.005


@pytest.fixture(autouse=True)
def usual() -> Iterator[None]:
    """The interval that is the interpreter's own, and that every test leaves behind."""
    # Loops of other tests, which `asyncio.run` has ended in the middle of their spells, move nothing any more.
    turns._after_fork()  # pyright: ignore[reportPrivateUsage]
    before = sys.getswitchinterval()
    sys.setswitchinterval(USUAL)
    yield
    after = sys.getswitchinterval()
    sys.setswitchinterval(before)
    assert after == pytest.approx(USUAL)


def is_prompt() -> bool:
    return sys.getswitchinterval() <= turns.PROMPT * 1.01


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On a loop like ours, on a thread of its own, as it is scheduled otherwise from then on. Raises what it raises."""
    with ThreadPoolExecutor(1) as other:
        other.submit(lambda: loops.run(work())).result(timeout=60)


def test_turns_are_prompt_as_long_as_anybody_moves_bytes() -> None:
    with turns.prompt():
        with turns.prompt():
            assert is_prompt()
        assert is_prompt()
    assert not is_prompt()


def test_what_the_program_sets_meanwhile_stays() -> None:
    with turns.prompt():
        sys.setswitchinterval(0.02)
    assert sys.getswitchinterval() == pytest.approx(0.02)
    with turns.prompt():
        sys.setswitchinterval(USUAL)
    assert sys.getswitchinterval() == pytest.approx(USUAL)


def test_who_notes_the_interval_and_puts_it_back_meanwhile_does_not_keep_it_low() -> None:
    with turns.prompt():
        noted = sys.getswitchinterval()
        sys.setswitchinterval(0.02)
        sys.setswitchinterval(noted)
    assert not is_prompt()
    with turns.prompt():
        noted = sys.getswitchinterval()
        sys.setswitchinterval(0.02)
    sys.setswitchinterval(noted)
    with turns.prompt():  # until somebody moves bytes again
        assert is_prompt()
    assert sys.getswitchinterval() == pytest.approx(USUAL)


def test_an_end_without_its_beginning_does_no_harm() -> None:
    """What was under way in the program may end in a forked copy of it, where nobody has begun."""
    turns.end()
    with turns.prompt():
        assert is_prompt()
    assert not is_prompt()


def test_a_program_that_is_prompter_itself_is_left_alone() -> None:
    sys.setswitchinterval(1e-5)
    with turns.prompt():
        assert sys.getswitchinterval() == pytest.approx(1e-5)
    assert sys.getswitchinterval() == pytest.approx(1e-5)
    sys.setswitchinterval(USUAL)


def test_in_a_forked_copy_of_the_program_nobody_moves_bytes() -> None:
    with turns.prompt():
        child = os.fork()
        if not child:
            try:
                good = not is_prompt()
                with turns.prompt():
                    good = good and is_prompt()
                good = good and not is_prompt()
            except BaseException:  # noqa: BLE001 - the child must not run the tests that follow
                good = False
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert is_prompt()


def test_a_copy_that_another_thread_forks_as_somebody_begins_has_the_programs_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have been prompt for ever. (This thread forks here, in that moment.)"""
    change, ends = sys.setswitchinterval, list[int]()

    def change_and_fork(seconds: float) -> None:
        monkeypatch.setattr(sys, "setswitchinterval", change)
        change(seconds)
        child = os.fork()
        if not child:
            os._exit(int(is_prompt()))
        ends.append(os.waitpid(child, 0)[1])

    monkeypatch.setattr(sys, "setswitchinterval", change_and_fork)
    with turns.prompt():
        assert is_prompt()
    assert ends == [0]


class Clock:
    """A loop that is one in name: its time, and what it is to call when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[float, Callable[[], object]]] = []
        self.loop: Any = self

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], object]) -> None:
        self.calls.append((when, call))

    def pass_until(self, now: float) -> None:
        while self.calls and self.calls[0][0] <= now:  # one spell has one call at a time
            self.now, call = self.calls.pop(0)
            call()
        self.now = now


def test_a_spell_lasts_until_nothing_has_moved_for_a_while() -> None:
    clock = Clock()
    spell = turns.Spell(clock.loop)
    spell.moved()
    clock.pass_until(0.8 * turns.LINGER)
    spell.moved()
    assert len(clock.calls) == 1, "one look is enough, however much moves"
    clock.pass_until(1.7 * turns.LINGER)
    assert is_prompt()
    clock.pass_until(1.9 * turns.LINGER)
    assert not is_prompt()
    assert not clock.calls, "a loop at rest is not woken"
    spell.moved()
    assert is_prompt()
    spell.close()
    assert not is_prompt()
    clock.pass_until(9 * turns.LINGER)
    assert not is_prompt()


def test_what_a_loop_moves_ends_with_it() -> None:
    async def work() -> None:
        spell = turns.on_loop()
        assert turns.on_loop() is spell
        spell.moved()
        assert is_prompt()

    for _ in range(2):
        run(work)
        assert not is_prompt()


class Watching(Shell):
    """A manager's side that looks at the interval as it judges and hears."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []
        self.answer = self._look

    def _look(self, link: Any, message: Message) -> None:
        self.seen.append(is_prompt())

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        self.seen.append(is_prompt())
        return super().hello(hello, identity)


def test_handshakes_and_messages_take_prompt_turns(tmp_path: Path) -> None:
    async def work() -> None:
        shell = Watching()
        authority = Authority.create("m1", tmp_path / "m1", [])
        async with listening(authority, shell) as listener:
            peer = Peer(at(authority, listener, WORKER, "w1"), hello())
            peer.link.send(report(1))
            await until(lambda: shell.numbers == [1])
            assert shell.seen == [True, True]
            await peer.close()

    run(work)


def test_heartbeats_take_the_usual_turns(tmp_path: Path) -> None:
    """Two hundred workers that do nothing had turns be prompt for half of the time."""

    async def work() -> None:
        async with listening(Authority.create("m1", tmp_path / "m1", []), Shell()) as listener:
            peer = Peer(at(listener.authority, listener, WORKER, "w1"), hello())
            await until(lambda: peer.link.connected and not is_prompt())
            heard = (ours := next(iter(listener.links.values()))).last_heard
            connection = peer.link._connection  # pyright: ignore[reportPrivateUsage]
            assert connection is not None
            connection.write(frame(peer.link.session.bare()))
            assert not is_prompt()
            await until(lambda: ours.last_heard > heard)
            assert not is_prompt()
            await peer.close()

    run(work)


def test_a_file_is_sent_in_prompt_turns(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Watched(PlainFile):
        def read(self, offset: int, count: int, /) -> bytes:
            seen.append(is_prompt())
            return super().read(offset, count)

    class Reader:
        def sendall(self, data: bytes) -> None:
            seen.append(is_prompt())

    path = tmp_path / "file"
    path.write_bytes(bytes(2 * CHUNK_BYTES + 1))
    file = Watched(path, 2 * CHUNK_BYTES + 1)
    reader: Any = Reader()
    server = FileServer(lambda name: None, lambda identity, request: "")
    server._send(reader, file, GetFile(FileName("b3-" + "0" * 32)), bytes(CHUNK_BYTES))  # pyright: ignore[reportPrivateUsage]
    file.close()
    assert seen == [True] * 6, "the head, three chunks, and two looks into the file"
