"""Kinds of calls: what placement tells apart, and what it need not.

Theory of operation
-------------------
Programs may say for each call what it needs, so among thousands that wait no two need be alike. To placement two calls of a library are
alike where they occupy the same number of slots on each worker, and what is decided for kinds of calls (who gets slots, who lays a claim,
what factories are told) must not be decided for each call. So memory is rounded up to the next *step*: the most that a call may ask for
and still occupy so many slots on a worker, or on a pilot that a pool offers. No worker tells two calls apart that are between the same two
steps, so nothing is placed otherwise than by what was asked for; only how often it is thought about changes. Worker shapes that are new
bring new steps (`Steps.learn`), and kinds are made anew.

Seconds that must be left where a call is placed are what somebody expects: where there are many kinds already, those of further ones are
rounded up, by at most 3 % (`round_up`).
"""

from __future__ import annotations

from bisect import bisect_left
from math import ceil, frexp, ldexp

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
    """Where calls of one library begin to need one slot more, in bytes of memory."""

    bytes: list[int] = msgspec.field(default_factory=list[int])
    known: set[Resources] = msgspec.field(default_factory=set[Resources])
    #: Above this memory is not rounded.
    exact_above: float = float("inf")

    def learn(self, spec: LibrarySpec, of: Resources) -> bool:
        """There are workers with ``of``, or may be; True: kinds of the library ``spec`` are others now."""
        if of in self.known:
            return False
        self.known.add(of)
        share = slot_share(spec, of)
        slots = slots_in(share, of, spec.slots)
        if not share.memory:
            return False
        steps = {*self.bytes, *(_most_memory(share.memory, weight) for weight in range(1, min(slots, STEPS_MOST) + 1))}
        if slots > STEPS_MOST:
            self.exact_above = min(self.exact_above, _most_memory(share.memory, STEPS_MOST))
        changed = len(steps) > len(self.bytes)
        self.bytes = sorted(steps)
        return changed

    def kind_of(self, needs: Resources) -> Resources:
        """What calls ask for that are placed as one with these needs; no less than them."""
        asked = needs.memory
        if not asked or asked > self.exact_above:
            return needs
        step = bisect_left(self.bytes, asked)
        # Beyond the last step nobody known can run it: any number that is not less will do, so there are to be few.
        memory = self.bytes[step] if step < len(self.bytes) else 1 << (asked - 1).bit_length()
        return needs if memory == asked else Resources(needs.cores, memory, needs.gpus)


def round_up(seconds: float) -> float:
    """A little more, so that there are few such numbers: at most 3 %."""
    mantissa, exponent = frexp(seconds)
    return ldexp(ceil(mantissa * 2 * _SECONDS_STEPS), exponent) / (2 * _SECONDS_STEPS)


def _most_memory(share: int, weight: int) -> int:
    """The most bytes for which a call occupies so many slots of ``share`` bytes."""
    of = Resources(0.0, share)
    most = int(share * (weight + 1e-6))
    while weight_of(Resources(0.0, most), of) > weight:
        most -= 1
    while weight_of(Resources(0.0, most + 1), of) <= weight:
        most += 1
    return most
