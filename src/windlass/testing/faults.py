"""What can go wrong, as records that a test can write down; and a row of them drawn from a seed. Pure.

Theory of operation
-------------------
A fault is due at once, when ``after`` calls have ended, or ``at`` seconds after the first pilot has served.  From then on it happens as
soon as it can: whoever hits a pilot waits for one that runs calls (`windlass.testing.director`).  A fault that lasts (``lasts``) holds for
pools that are opened later, too.

The repr of a fault is what one would write for it, so that a row drawn from a seed can be pasted into a test.

`chaos` hits at most `HITS_MOST` pilots: a call is run again up to five times when its pilots are lost (``max_losses``), so that no program
fails for bad luck alone.
"""

from __future__ import annotations

import random
from dataclasses import MISSING, dataclass, fields
from typing import ClassVar, Final

from windlass.errors import UsageError

#: What a batch system says that knows no account of that name.
REFUSAL: Final = "Batch job submission failed: Invalid account or account/partition combination specified"
#: Pilots that one `chaos` hits, at most: as often as a call may be lost.
HITS_MOST: Final = 5
#: Seconds between two faults of a `chaos`.
GAPS: Final = (0.2, 1.2)


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    #: It hits one pilot, and waits for one.
    hits: ClassVar[bool] = False
    #: It holds from then on, also for pools that are opened later.
    lasts: ClassVar[bool] = False

    #: It is due when so many calls have ended.
    after: int = 0
    #: It is due so many seconds after the first pilot has served.
    at: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value: object = getattr(self, field.name)
            if field.type in ("int", "float") and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
                raise UsageError(f"{type(self).__name__}({field.name}={value!r}): give a number, 0 or more")
            if field.type == "str" and not isinstance(value, str):
                raise UsageError(f"{type(self).__name__}({field.name}={value!r}): give a text, as in {field.name}='n1'")

    def __repr__(self) -> str:
        given: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                given.append(f"{field.name}={round(value, 2) if isinstance(value, float) else value!r}")
        return f"{type(self).__name__}({', '.join(given)})"


@dataclass(frozen=True, slots=True, repr=False)
class OfPilot(Fault):
    """Hits the pilot on ``node``, or one that is busy."""

    hits: ClassVar[bool] = True

    #: As ``"n2"``; "": whichever runs calls.
    node: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Preempt(OfPilot):
    """Another job takes a pilot's place: SIGTERM, ``notice`` seconds, SIGKILL; then it is queued again."""

    #: Seconds to save something in; 0 is the hardest.
    notice: float = 0.0
    #: False: the batch system ends it for good.
    requeue: bool = True


@dataclass(frozen=True, slots=True, repr=False)
class EndWalltime(OfPilot):
    """The batch system ends a pilot for its time limit: SIGTERM, ``notice`` seconds, SIGKILL."""

    notice: float = 0.0


@dataclass(frozen=True, slots=True, repr=False)
class KillPilot(OfPilot):
    """A pilot is killed, by anybody: SIGKILL."""


@dataclass(frozen=True, slots=True, repr=False)
class KillSlot(OfPilot):
    """The processes that run calls on a pilot die, as by a segmentation fault; the pilot lives on."""


@dataclass(frozen=True, slots=True, repr=False)
class LoseNode(OfPilot):
    """A node goes down with the pilot on it, and does not come back."""


@dataclass(frozen=True, slots=True, repr=False)
class BadNode(Fault):
    """Pilots on a node die as soon as they start."""

    lasts: ClassVar[bool] = True

    node: str


@dataclass(frozen=True, slots=True, repr=False)
class SlowQueue(Fault):
    """Pilots wait so many seconds before they start."""

    lasts: ClassVar[bool] = True

    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class RefuseSubmissions(Fault):
    """The batch system refuses every submission, with this text."""

    lasts: ClassVar[bool] = True

    text: str = REFUSAL


@dataclass(frozen=True, slots=True, repr=False)
class LoseStatus(Fault):
    """For so many seconds the batch system does not answer when it is asked how jobs are."""

    seconds: float = 1.0


@dataclass(frozen=True, slots=True, repr=False)
class CutConnections(Fault):
    """For so many seconds no pilot reaches the manager; ``silently``: nobody is told, bytes just do not come through."""

    seconds: float = 1.0
    silently: bool = False


def chaos(seed: int, count: int = 10) -> tuple[Fault, ...]:
    """So many faults at random moments; equal seeds give equal ones. None of them makes a call fail by itself, in a short program."""
    chance = random.Random(seed)
    drawn: list[Fault] = []
    at, hits = 0.0, 0
    for _ in range(count):
        at = round(at + chance.uniform(*GAPS), 2)
        kinds = ["cut", "slow", "status"] + (["preempt", "preempt", "kill", "walltime"] if hits < HITS_MOST else [])
        kind = chance.choice(kinds)
        seconds = round(chance.uniform(0.1, 1.0), 2)
        if kind == "cut":
            drawn.append(CutConnections(seconds, silently=chance.random() < 0.3, at=at))
        elif kind == "slow":
            drawn.append(SlowQueue(seconds, at=at))
        elif kind == "status":
            drawn.append(LoseStatus(seconds, at=at))
        else:
            hits += 1
            notice = round(chance.uniform(0.0, 0.5), 2)
            if kind == "preempt":
                drawn.append(Preempt(notice=notice, requeue=chance.random() < 0.7, at=at))
            else:
                drawn.append(KillPilot(at=at) if kind == "kill" else EndWalltime(notice=notice, at=at))
    return tuple(drawn)
