"""What happened in a pool: how many attempts, losses, preemptions, and the events one by one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: Events that are shown, the last ones.
SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, ``at`` seconds after the pool was made."""

    at: float
    text: str

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Evidence, for asserts and for people: ``assert pool.story().preemptions == 1``, ``print(pool.story())``.

    Calls are those of all managers that the test has made, by what became of them.
    """

    submitted: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    #: Attempts that ended badly and were followed by another because of ``retries`` or ``retry_on``.
    retried: int = 0
    #: Attempts that were lost with their pilot.
    lost: int = 0
    #: Starts of pilots, repeated ones counted.
    pilots: int = 0
    preemptions: int = 0
    #: Pilots ended by the batch system for their walltime.
    walltimes: int = 0
    #: Pilots that were killed, or failed as they started.
    deaths: int = 0
    #: Pilots that went down with their node.
    nodes_lost: int = 0
    #: Submissions that were refused, and questions that were not answered.
    refused: int = 0
    unanswered: int = 0
    #: Times that all connections were cut.
    cuts: int = 0
    seed: int = 0
    #: What the test asked for and did not come to pass.
    never: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def attempts(self) -> int:
        """Tries of calls that have ended, well or badly."""
        return self.done + self.failed + self.retried + self.lost

    def __str__(self) -> str:
        calls = {"done": self.done, "failed": self.failed, "cancelled": self.cancelled}
        lines = [
            f"calls:   {counted(self.submitted, 'call')} submitted: {numbers(calls) or 'none has ended'}",
            f"         {counted(self.attempts, 'attempt')}; " + numbers({"lost with their pilots": self.lost, "by retries": self.retried}),
            f"pilots:  {counted(self.pilots, 'start')}; "
            + numbers(
                {
                    "preempted": self.preemptions,
                    "ended by their walltime": self.walltimes,
                    "killed or failed": self.deaths,
                    "lost with their node": self.nodes_lost,
                }
            ),
        ]
        lines = [line.rstrip("; :") for line in lines]
        trouble = {"submissions refused": self.refused, "commands unanswered": self.unanswered, "cuts": self.cuts}
        if any(trouble.values()):
            lines.append("batch:   " + ", ".join(f"{word}: {number}" for word, number in trouble.items() if number))
        lines += [f"never:   {text}" for text in self.never]
        if self.events:
            cut = len(self.events) - SHOWN
            lines += ["", *([f"  ({cut} earlier events)"] if cut > 0 else []), *(f"  {event}" for event in self.events[-SHOWN:])]
        return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """``1 call``, ``3 calls``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def numbers(of: Mapping[str, int]) -> str:
    """``3 done, 1 failed``; zeros are left out."""
    return ", ".join(f"{number} {word}" for word, number in of.items() if number)


def doing(statuses: Sequence[Mapping[str, Any]], pilots: Sequence[str], pending: Sequence[str], paused: Sequence[str]) -> str:
    """What a pool is doing, in lines: ``statuses`` of its managers, its pilots in words, faults to come, and why pools are paused."""
    calls: list[str] = []
    for status in statuses:
        of: Mapping[str, int] = status["calls"]
        calls.append(numbers({word: of.get(word, 0) for word in ("waiting", "running", "done", "failed", "cancelled")}))
    # The pool's own manager has none where the program makes executors of its own.
    told = list(filter(None, calls)) or ["none was submitted" if statuses else "no manager was made"]
    lines = [f"calls:   {text}" for text in told]
    for status in statuses:
        lines += [f"library: {one['name']} cannot start: {one['failed']}" for one in status["libraries"] if one["failed"]]
    lines += [f"pilot:   {text}" for text in pilots] or ["pilots:  none"]
    lines += [f"paused:  {text}" for text in paused]
    lines += [f"to come: {text}" for text in pending]
    return "\n".join(lines)
