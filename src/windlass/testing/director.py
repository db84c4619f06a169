"""Has scripted faults happen when they are due, and as soon as they can.

Theory of operation
-------------------
A fault that is due is tried at once, and then again and again by a thread until it has happened: one that hits a pilot waits for one that
serves, and, where no node is named, for one that runs calls, for a fault that hits nothing tests nothing.  Each pilot is hit once by what
ends it.  What lasts some seconds is ended by the same thread.

Whom a fault hits where several could be is drawn from the seed.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from windlass.testing.faults import CutConnections, Fault, KillSlot, LoseStatus, OfPilot
from windlass.testing.site import Site, Target
from windlass.testing.story import Event, counted

#: Seconds between two looks at what could be hit.
STEP: Final = 0.02
#: Seconds that the news of a call's death may take. What has not died is struck again soon, for few calls may be left; and where the death
#: is only not noticed yet, there is no new slot yet that a second strike could end.
STRIKE_AGAIN: Final = 0.1


class Director:
    """Of one site. ``started_at``: what events count from."""

    def __init__(self, site: Site, seed: int, started_at: float) -> None:
        self._site = site
        self._chance = random.Random(seed)
        self._started_at = started_at
        #: Due some day: (it, whether the test fails without it).
        self._pending: list[tuple[Fault, bool]] = []
        #: What is to be ended, and when.
        self._until: list[tuple[float, Callable[[], None], str]] = []
        self._hit: set[str] = set()
        #: Of each `KillSlot`: calls that had died before, when it last struck, and where.
        self._struck: dict[int, tuple[int, float, str]] = {}
        self._first_served = 0.0
        self._over = False
        self._moved = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self.events: list[Event] = []
        self.happened: list[Fault] = []

    def add(self, fault: Fault, *, needed: bool = True) -> None:
        """It happens now, if it is due and can; else some day. ``needed``: a test without it has tested nothing."""
        with self._moved:
            if self._over:
                return
            self._pending.append((fault, needed))
            self._step()
            if self._thread is None and (self._pending or self._until):
                self._thread = threading.Thread(target=self._run, name="windlass-testing-faults", daemon=True)
                self._thread.start()
            self._moved.notify()

    def note(self, text: str) -> None:
        """An event of now."""
        self.events.append(Event(time.monotonic() - self._started_at, text))

    def pending(self, *, needed: bool = False) -> list[str]:
        """What has still to happen; ``needed``: only that without which the test has tested nothing."""
        return [repr(fault) for fault, is_needed in list(self._pending) if is_needed or not needed]

    def forget(self) -> None:
        """What has not happened will not; what lasts some seconds ends now."""
        with self._moved:
            self._pending.clear()
            self._end_all(float("inf"))

    def stop(self) -> None:
        """End what lasts, and the thread. Idempotent."""
        with self._moved:
            self._over = True
            for one in [one for one in self._pending if isinstance(one[0], KillSlot) and self._kills(one[0], [])]:
                self._pending.remove(one)  # the call that it hit was the last one
            self._end_all(float("inf"))
            self._moved.notify()
        if self._thread is not None:
            self._thread.join(5)

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        with self._moved:
            while not self._over:
                self._step()
                self._moved.wait(STEP if self._pending or self._until else None)

    def _end_all(self, now: float) -> None:
        for until in [one for one in self._until if one[0] <= now]:
            self._until.remove(until)
            until[1]()
            self.note(until[2])

    def _step(self) -> None:
        self._end_all(time.monotonic())
        targets: list[Target] | None = None
        for one in list(self._pending):
            fault = one[0]
            if fault.after and self._ended_calls() < fault.after:
                continue
            if (fault.at or not fault.lasts) and targets is None:
                targets = self._site.targets()
                if targets and not self._first_served:
                    self._first_served = time.monotonic()
            if fault.at and not (self._first_served and time.monotonic() >= self._first_served + fault.at):
                continue
            if self._happens(fault, targets or []):
                self._pending.remove(one)
                self.happened.append(fault)
                targets = None  # it may have been the only one

    def _ended_calls(self) -> int:
        return sum(status["calls"][word] for status in self._site.statuses() for word in ("done", "failed", "cancelled"))

    def _happens(self, fault: Fault, targets: list[Target]) -> bool:
        if isinstance(fault, KillSlot):
            return self._kills(fault, targets)
        if isinstance(fault, OfPilot):
            return self._hits(fault, targets)
        if fault.lasts:
            self._site.lasting(fault)
            self.note(f"from now on: {fault!r}")
            return True
        if not targets:  # nobody would notice
            return False
        if isinstance(fault, LoseStatus):
            self._lose_status(fault)
        elif isinstance(fault, CutConnections):
            self._cut(fault)
        return True

    def _hits(self, fault: OfPilot, targets: list[Target]) -> bool:
        open_to = [one for one in targets if (one.node == fault.node if fault.node else one.running) and self._key(one) not in self._hit]
        if not open_to:
            return False
        target = self._chance.choice(open_to)
        self._hit.add(self._key(target))
        target.backend.hit(fault, target)
        self.note(f"{type(fault).__name__} hits {target.node}, where {counted(target.running, 'call')} ran")
        return True

    def _kills(self, fault: KillSlot, targets: list[Target]) -> bool:
        """A slot between two calls is missed by nobody, and nobody can tell from outside: until a call has died, it is done again."""
        died = sum(status["calls"][word] for status in self._site.statuses() for word in ("failed", "retried"))
        before, struck_at, node = self._struck.get(id(fault), (died, 0.0, ""))
        if died > before:
            self.note(f"KillSlot hits {node}")
            return True
        open_to = [one for one in targets if one.running and fault.node in ("", one.node)]
        if open_to and time.monotonic() > struck_at + STRIKE_AGAIN:
            target = self._chance.choice([one for one in open_to if one.node == node] or open_to)
            target.backend.hit(fault, target)
            self._struck[id(fault)] = before, time.monotonic(), target.node
        return False

    @staticmethod
    def _key(target: Target) -> str:
        return f"{id(target.backend)} {target.word}"

    def _lose_status(self, fault: LoseStatus) -> None:
        backends = list(self._site.backends)
        for backend in backends:
            backend.answers(False)

        def end() -> None:
            for backend in backends:
                backend.answers(True)

        self._last(fault.seconds, end, "the batch system does not answer", "the batch system answers again")

    def _cut(self, fault: CutConnections) -> None:
        cut = contextlib.ExitStack()
        for backend in list(self._site.backends):
            if backend.proxy is not None and not backend.closed:
                how: Any = backend.proxy.swallowing if fault.silently else backend.proxy.refusing
                cut.enter_context(how())
        self._last(fault.seconds, cut.close, "all connections are cut", "connections come through again")

    def _last(self, seconds: float, end: Callable[[], None], text: str, after: str) -> None:
        self.note(f"{text}, for {seconds:g} s")
        self._until.append((time.monotonic() + seconds, end, after))
