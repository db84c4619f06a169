"""The user's program of the fault matrix: calls with checkable results, and the books of what was delivered when.

Theory of operation
-------------------
A run is described by a `Program`, which comes as JSON and says how the program stands to its manager: it has one of its own, it attaches
to one that runs beside it, or it is that one (`serve`).  Every call notes in the *ledger* when it starts, which attempt it is, and where:
a call that ran twice stands there twice.  Every future has a callback that counts: a result that was delivered twice counts two.  So "run
again" and "delivered twice" are never taken for each other.

A result is a keyed hash of the call's number and of the bytes that it was given, and, for one call of `LARGE_EVERY`, these bytes in
reverse: more than fits into a frame with others, so that it travels over data connections.

A program whose manager is killed gets `Closed` for what has not ended.  One that is attached comes back, as any user would write it: it
attaches again and submits what has no result.  One that has a manager of its own died with it, and is started again by the matrix.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import logging
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import windlass
from windlass.errors import Unreachable

#: One call of so many carries `LARGE_BYTES` there and back.
LARGE_EVERY: Final = 50
LARGE_BYTES: Final = 100_000
#: Greedy calls take this much memory in their first attempt, for so long.
GREEDY_BYTES: Final = 600 << 20
GREEDY_SECONDS: Final = 20.0
#: Bytes of a line of the ledger.
LINE: Final = 48
#: Pilots, of two slots each.
PILOTS: Final = 2
#: Slots die often in some cells: a call may be tried so often.
RETRIES: Final = 20

#: Programs can be started again and find their results.
HAS_JOURNAL: Final = "journal" in inspect.signature(windlass.Manager).parameters


@dataclass(slots=True)
class Program:
    """What a program does. Seconds."""

    calls: int
    #: A call takes this long on average.
    seconds: float
    seed: int
    folder: str
    #: "own": the manager is part of the program; "attached": it is the process of `serve`.
    kind: str = "own"
    name: str = ""
    port: int = 0
    host: str = "127.0.0.1"
    #: Pilots connect here instead (a proxy).
    through: int = 0
    #: Options of one factory in the program each.
    factories: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    backend: str = "local"
    greedy: int = 0
    prints: int = 0
    journal: str = ""
    #: How long all may take.
    patience: float = 90.0
    heartbeat: float = 0.25
    silence: float = 1.0
    reconnect_grace: float = 8.0
    manager_timeout: float = 8.0

    @property
    def ledger(self) -> Path:
        return Path(self.folder, "ledger")

    @property
    def found(self) -> Path:
        """Where the program leaves its books."""
        return Path(self.folder, "found.json")


# ---------------------------------------------------------------- the calls


def work(number: int, seconds: float, given: bytes, ledger: str, greedy: int, prints: int) -> tuple[int, str, bytes]:
    """One call: notes that it starts, takes its time, and answers for its own number and bytes only."""
    call = windlass.current_call()
    attempt = call.attempt if call is not None else 0
    line = f"{time.monotonic():16.4f} {number:8d} {attempt:4d} {os.getpid():8d}".ljust(LINE - 1) + "\n"
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)
    if prints:
        print("x" * prints)
    if greedy and attempt == 1:
        taken = bytearray(b"x") * greedy
        time.sleep(GREEDY_SECONDS)
        del taken
    time.sleep(seconds)
    return number, answer(number, given), given[::-1]


def answer(number: int, given: bytes) -> str:
    return hashlib.sha256(b"of the fault matrix %d " % number + given).hexdigest()


def given_bytes(program: Program, number: int) -> bytes:
    return random.Random(program.seed * 1_000_003 + number).randbytes(LARGE_BYTES) if number % LARGE_EVERY == 0 else b""


@dataclass(frozen=True, slots=True)
class Start:
    """A line of the ledger: an attempt has begun."""

    at: float
    call: int
    attempt: int
    pid: int


def read_ledger(path: Path) -> list[Start]:
    """All attempts that have begun, in the order of time; a line that a full disk cut short is left out."""
    starts: list[Start] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        words = line.split()
        if len(words) == 4:
            starts.append(Start(float(words[0]), int(words[1]), int(words[2]), int(words[3])))
    return sorted(starts, key=lambda start: start.at)


# ---------------------------------------------------------------- the program


class Behind:
    """A manager as pilots behind a proxy see it."""

    def __init__(self, manager: Any, port: int, folder: Path) -> None:
        self.open_port: Callable[..., Any] = manager.open_port
        connection = json.loads(manager.pilot_file.read_bytes())
        connection["addresses"] = [["127.0.0.1", port]]
        self.pilot_file = folder / "pilot.json"
        self.pilot_file.touch(mode=0o600)
        self.pilot_file.write_text(json.dumps(connection))


def make_manager(program: Program) -> windlass.Manager:
    """A manager with the short times of the matrix."""
    more: dict[str, Any] = {"journal": program.journal} if program.journal and HAS_JOURNAL else {}
    return windlass.Manager(
        program.port,
        program.name or None,
        host=program.host,
        heartbeat=program.heartbeat,
        silence=program.silence,
        reconnect_grace=program.reconnect_grace,
        manager_timeout=program.manager_timeout,
        **more,
    )


@dataclass(slots=True)
class Books:
    """What came of the calls."""

    program: Program
    #: When the result of each call was delivered.
    delivered: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    wrong: list[int] = field(default_factory=list[int])
    #: Ends by an error, `Closed` apart.
    failed: dict[int, str] = field(default_factory=dict[int, str])
    #: Calls whose end was `Closed`, and how often a manager was found again.
    closed: int = 0
    rounds: int = 0
    ends: Counter[int] = field(default_factory=Counter[int])

    def ended(self, number: int, future: Any) -> None:
        """A future's callback."""
        self.ends[number] += 1
        at = time.monotonic()
        error = future.exception()
        if error is None:
            given = given_bytes(self.program, number)
            self.delivered.setdefault(number, []).append(at)
            if future.result() != (number, answer(number, given), given[::-1]):
                self.wrong.append(number)
        elif isinstance(error, windlass.Closed):
            self.closed += 1
        else:
            self.failed[number] = f"{type(error).__name__}: {str(error)[:300]}"


def run(program: Program) -> int:
    """Submit all calls, wait for their ends, close; what was found goes into a file."""
    books = Books(program)
    end = time.monotonic() + program.patience
    if program.kind == "own":
        with make_manager(program) as manager, factories(program, manager):
            lost = one_round(program, books, manager, end)
            say("closing")
    else:
        lost = list(range(program.calls))
        while lost and time.monotonic() < end:
            try:
                attached = windlass.attach(program.name, timeout=2.0)
            except windlass.WindlassError:
                time.sleep(0.2)  # it is not there, or not yet
                continue
            with attached:
                books.rounds += 1
                lost = one_round(program, books, attached, end)
    written = program.found.with_suffix(".part")
    twice = [number for number, at in books.delivered.items() if len(at) > 1]
    found = {
        "lost": [number for number in lost if number not in books.delivered],
        "wrong": books.wrong,
        "failed": books.failed,
        "twice": twice + [number for number, ends in books.ends.items() if ends > max(1, books.rounds)],
        "closed": books.closed,
        "rounds": books.rounds,
        "delivered": {number: at[0] for number, at in books.delivered.items()},
    }
    written.write_text(json.dumps(found))
    written.rename(program.found)
    say("closed")
    return 0


def one_round(program: Program, books: Books, manager: Any, end: float) -> list[int]:
    """Submit what has no result, and wait; the calls that have none afterwards."""
    draw = random.Random(program.seed)
    seconds = [draw.uniform(0.2, 1.8) * program.seconds for _ in range(program.calls)]
    greedy = {program.calls // 4 + 7 * place for place in range(program.greedy)}
    futures: dict[int, Any] = {}
    # A manager elsewhere may be gone in the middle of this; what was not submitted is so in the next round.
    with contextlib.suppress(windlass.Closed, Unreachable):
        manager.install_library("lib", work)
        if not program.ledger.exists():  # or it is a later life, and work is to go on as soon as it can
            wait_for_pilots(manager, end)
        for number in range(program.calls):
            if number in books.delivered or number in books.failed:
                continue
            words = (
                seconds[number],
                given_bytes(program, number),
                str(program.ledger),
                GREEDY_BYTES if number in greedy else 0,
                program.prints,
            )
            call = windlass.FunctionCall("lib", "work", number, *words).with_options(retries=RETRIES, max_losses=RETRIES)
            futures[number] = manager.submit(call)
            futures[number].add_done_callback(functools.partial(books.ended, number))
        say("submitted")
    for future in futures.values():
        future.wait(max(0.0, end - time.monotonic()))
    ended = time.monotonic() + 5
    while any(future.done() and not books.ends[number] for number, future in futures.items()) and time.monotonic() < ended:
        time.sleep(0.01)  # callbacks run on a thread of their own
    return [number for number in range(program.calls) if number not in books.delivered and number not in books.failed]


def wait_for_pilots(manager: Any, end: float) -> None:
    """All pilots are to be there when the fault falls."""
    while sum(worker["connected"] for worker in manager.status()["workers"]) < PILOTS and time.monotonic() < end:
        time.sleep(0.05)


@contextlib.contextmanager
def factories(program: Program, manager: windlass.Manager) -> Generator[None]:
    """The factories in the program."""
    with contextlib.ExitStack() as opened:
        seen: Any = Behind(manager, program.through, Path(program.folder)) if program.through else manager
        for options in program.factories:
            opened.enter_context(windlass.Factory(seen, program.backend, **options))
        yield


def serve(program: Program) -> int:
    """Be a manager that runs on its own: as ``windlass manager start --foreground``, with the short times of the matrix."""
    with make_manager(program) as manager:
        signal.signal(signal.SIGTERM, lambda number, frame: manager.leave("SIGTERM"))
        say("serves")
        manager.stay(0.0)
    return 0


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    what, words = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    sys.exit({"run": run, "serve": serve}[what](Program(**json.loads(words))))
