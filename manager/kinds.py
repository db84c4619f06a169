"""Kinds of calls: what placement tells apart, and what it need not.

Theory of operation
-------------------
Programs may say for each call what it needs, so among thousands that wait no two need be alike. To placement two calls of a library are
alike where they occupy the same number of slots on each worker, and what is decided for kinds of calls (who gets slots, who lays a claim,
what factories are told) must not be decided for each call. So cores and memory are rounded up to the next *step*: the most that a call may
ask for and still occupy so many slots on a worker, or on a pilot that a pool offers. No worker tells two calls apart that are between the
same two steps, so nothing is placed otherwise than by what was asked for; only how often it is thought about changes. Worker shapes that
are new bring new steps (`Steps.learn`), and kinds are made anew. There may be as many shapes as workers, as no two nodes need have the
same memory to the byte; so libraries of which no call has asked for cores or memory have no steps, and a new shape costs one that has some
no more than its own few.

Seconds that must be left where a call is placed are what somebody expects: where there are many kinds already, those of further ones are
rounded up, by at most 3 % (`round_up`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from math import ceil, frexp, ldexp, nextafter

import msgspec

from windlass.manager.workers import slot_share, slots_in, weight_of
from windlass.messages import LibrarySpec, Resources

#: Steps of one shape of workers; what needs more slots is a kind of its own.
STEPS_MOST = 256
#: Kinds of calls of a library that may be told apart by any second.
KINDS_MOST = 100
#: Steps of seconds between a number and its double.
_SECONDS_STEPS = 32


class Steps(msgspec.Struct):
    """Where calls of one library begin to need one slot more."""

    cores: list[float] = msgspec.field(default_factory=list[float])
    #: In bytes.
    memory: list[float] = msgspec.field(default_factory=list[float])
    #: A call has asked for cores or memory: from then on it is to learn of all workers and pilots that there may be.
    needed: bool = False
    known: set[Resources] = msgspec.field(default_factory=set[Resources])
    #: Above these, cores and memory are not rounded.
    exact_cores: float = float("inf")
    exact_memory: float = float("inf")

    def learn(self, spec: LibrarySpec, of: Resources) -> bool:
        """There are workers with ``of``, or may be; True: kinds of the library ``spec`` are others now."""
        if of in self.known:
            return False
        self.known.add(of)
        share = slot_share(spec, of)
        slots = slots_in(share, of, spec.slots)
        weights = range(1, min(slots, STEPS_MOST) + 1)
        before = len(self.cores) + len(self.memory)
        if share.cores:
            _add(self.cores, (_most_cores(share.cores, weight) for weight in weights))
        if share.memory:
            _add(self.memory, (_most_memory(share.memory, weight) for weight in weights))
        if slots > STEPS_MOST:
            self.exact_cores = min(self.exact_cores, _most_cores(share.cores, STEPS_MOST))
            if share.memory:
                self.exact_memory = min(self.exact_memory, _most_memory(share.memory, STEPS_MOST))
        return len(self.cores) + len(self.memory) > before

    def kind_of(self, needs: Resources) -> Resources:
        """What calls ask for that are placed as one with these needs; no less than them."""
        if not needs.cores and not needs.memory:
            return needs
        cores = _up(needs.cores, self.cores, self.exact_cores)
        return Resources(cores, int(_up(needs.memory, self.memory, self.exact_memory)), needs.gpus)


def round_up(seconds: float) -> float:
    """A little more, so that there are few such numbers: at most 3 %."""
    mantissa, exponent = frexp(seconds)
    return ldexp(ceil(mantissa * 2 * _SECONDS_STEPS), exponent) / (2 * _SECONDS_STEPS)


def _add(steps: list[float], more: Iterable[float]) -> None:
    """Each in its place: those that there are may be tens of thousands."""
    for step in more:
        place = bisect_left(steps, step)
        if place == len(steps) or steps[place] != step:
            steps.insert(place, step)


def _up(asked: float, steps: list[float], exact: float) -> float:
    """The next step."""
    if not asked or asked > exact:
        return asked
    step = bisect_left(steps, asked)
    if step < len(steps):
        return steps[step]
    # Nobody known can run it: any number that is not less will do, so there are to be few.
    mantissa, exponent = frexp(asked)
    return asked if mantissa == 0.5 else ldexp(1.0, exponent)


def _most_memory(share: int, weight: int) -> int:
    """The most bytes for which a call occupies so many slots of ``share`` bytes."""
    of = Resources(0.0, share)
    most = int(share * (weight + 1e-6))
    while weight_of(Resources(0.0, most), of) > weight:
        most -= 1
    while weight_of(Resources(0.0, most + 1), of) <= weight:
        most += 1
    return most


def _most_cores(share: float, weight: int) -> float:
    """The same of slots of ``share`` cores."""
    of, most = Resources(share), share * (weight + 1e-6)
    while weight_of(Resources(most), of) > weight:
        most = nextafter(most, 0.0)
    while weight_of(Resources(nextafter(most, most * 2)), of) <= weight:
        most = nextafter(most, most * 2)
    return most
