"""What a batch system is to the factory: words in, words out.

Theory of operation
-------------------
A backend turns a `PilotRequest` into pilots of its batch system, tells the state of all pilots of one factory in one answer, ends
pilots, and has the last words of a pilot that failed.  It decides nothing: how many, when and why is the planner's.  Its methods
block, are called by one thread only (the factory's), and bound their own time; they raise three errors and no others:

* `Rejected`: refused as asked; asking again gives the same answer.  `NoNodeLeft` where that is because of the nodes to avoid, or may be.
  `NotNow` where it is not because of what was asked, but of what the site does for a while.
* `OverLimit`: a limit on jobs is reached; nothing was submitted.
* `Unreachable`: no answer.  What was asked may or may not have happened; so each submission carries a `ticket` (in the job's name or
  in an attribute of it), and a later `query` that shows a pilot with the ticket settles it.  `NotSent` where nothing has happened.

Everything of one factory carries its `Tag` in the batch system.  `query` and `cancel_all` go by the tag, not by remembered ids: a
factory that was restarted finds its pilots again, and one command ends them all.

A pilot is known by its *job* and *restart*: batch systems start a preempted job again under the same id.  `pilot_word` makes of both the
word by which the manager knows it, which the pilot itself says when it connects.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NewType, Protocol, cast, runtime_checkable

from windlass.errors import Rejected, UnknownName, Unreachable
from windlass.messages import PilotId, PoolName, Resources

if TYPE_CHECKING:
    from windlass.factory.container import Container
    from windlass.factory.environment import Environment

#: A job as the batch system names it: ``17``, ``17_4``, ``23.0``.
JobId = NewType("JobId", str)

RESTART_MARK: Final = "+"
#: What a person may type to see whether a batch system answers at all, and options of pools that say which one it is, as words of that.
ASKED_BY_HAND: Final = {"slurm": "squeue --me", "htcondor": "condor_q"}
ASKED_WHERE: Final = {"clusters": "-M", "collector": "-pool", "schedd": "-name"}
#: The ticket of a job that is no pilot: it was submitted to see whether it is taken.
PROBE: Final = "PROBE"


def asked_by_hand(backend: str, options: Mapping[str, object]) -> str:
    """What a person may type to see whether a pool's batch system answers; "": it has no such word."""
    word = ASKED_BY_HAND.get(backend, "")
    where = [f" {flag} {shlex.quote(str(options[name]))}" for name, flag in ASKED_WHERE.items() if options.get(name)]
    return word + "".join(where) if word else ""


def pilot_word(job: JobId, restart: int) -> PilotId:
    """The word by which the manager knows a pilot: the job, and after its first restart a mark and the number."""
    return PilotId(f"{job}{RESTART_MARK}{restart}" if restart else str(job))


def split_pilot_word(pilot: PilotId) -> tuple[JobId, int]:
    """Job and restart of a pilot's word."""
    job, mark, restart = pilot.rpartition(RESTART_MARK)
    if mark and restart.isdigit():
        return JobId(job), int(restart)
    return JobId(pilot), 0


class NoNodeLeft(Rejected):
    """No node that fits seems to be left beside those to avoid: asking again helps when these are fewer."""


class NotNow(Rejected):
    """The site takes nothing like it for now, as for maintenance: nothing was submitted, and asking again some time later helps."""


class NotSent(Unreachable):
    """No answer, and nothing has happened: what was asked for was not even sent."""


class Listed(StrEnum):
    """How a batch system lists a pilot."""

    QUEUED = "queued"
    RUNNING = "running"
    ELSEWHERE = "elsewhere"  # another cluster has it: queued or running, nobody here can say
    ENDING = "ending"  # completing: neither running nor ended, may yet be queued again
    HELD = "held"  # will never start by itself
    ENDED = "ended"


class Cause(StrEnum):
    """Why a pilot ended, as far as the batch system knows; `UNKNOWN` where it has forgotten."""

    EXIT = "exit"
    SIGNAL = "signal"
    WALLTIME = "walltime"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    NODE = "node"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotState:
    """One pilot in the answer to a query."""

    job: JobId
    listed: Listed
    #: The submission that it came from; "" where the batch system cannot say.
    ticket: str = ""
    #: Earlier starts under the same id; None: the batch system does not say, and the registry counts what it sees.
    restart: int | None = None
    node: str = ""
    #: The batch system's own words: pending reason, hold reason, state at the end.
    reason: str = ""
    cause: Cause = Cause.UNKNOWN
    exit_status: int | None = None
    #: Where the pilot's own output goes, as a path of this machine; "": nobody can say.
    log: str = ""


@dataclass(frozen=True, slots=True)
class Tag:
    """What every pilot of a factory carries in the batch system."""

    factory: str
    manager: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotRequest:
    """What to submit. All pilots of one submission are alike."""

    ticket: str
    pool: PoolName
    #: The worker's argument vector without ``--pilot``: a backend appends that, as only it knows the job's id (`windlass.factory.launch`).
    command: tuple[str, ...]
    #: Per node.
    resources: Resources
    nodes: int = 1
    #: Seconds; 0: unlimited.
    walltime: float = 0.0
    #: Seconds from SIGTERM to SIGKILL.
    grace: float = 30.0
    #: Shell lines run before the worker, in its shell.
    setup: tuple[str, ...] = ()
    shell: str = "/bin/sh"
    #: The archive with the worker's Python, which the pilot's script unpacks; None: the command's own is there.
    environment: Environment | None = None
    #: The image in which the worker runs; None: on the node itself.
    container: Container | None = None
    env: tuple[tuple[str, str], ...] = ()
    #: Nodes on which pilots die, and hosts that programs have blocked (`windlass.addresses.is_named`).
    avoid: tuple[str, ...] = ()
    #: Those of them that programs have blocked.
    blocked: tuple[str, ...] = ()


def with_walltime(request: PilotRequest, walltime: float) -> PilotRequest:
    """The same pilots with another walltime, in seconds, for the batch system and for the worker."""
    command = list(request.command)
    for option, value in (("--walltime", f"{walltime:g}"), ("--grace", f"{min(request.grace, walltime / 4):g}")):
        if option in command:
            command[command.index(option) + 1] = value
        else:
            command += [option, value]
    return replace(request, command=tuple(command), walltime=walltime, grace=min(request.grace, walltime / 4))


@dataclass(frozen=True, slots=True)
class CommandLimits:
    """How many commands a batch system may be sent: ``burst`` in any 10 s, ``sustained`` in any 10 min."""

    burst: int = 5
    sustained: int = 30


#: Seconds after its submission until which a pilot that no answer has had yet is not missed: sites have wrappers that answer for minutes
#: from what they asked before. By default Slurm remembers for as long what has ended, so that a quick death is told.
UNLISTED: Final = 300.0
#: For batch systems that are not shared with anyone.
OWN_MACHINE: Final = CommandLimits(burst=1_000, sustained=20_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDefaults:
    """What a pool of a backend is, unless its user says otherwise. Seconds, bytes."""

    max_pilots: int = 1
    cores: float = 1.0
    #: Pilots run on other machines than their manager.
    remote: bool = True
    #: Pilots share these cores (they are those of one machine), instead of having so many each.
    shared: bool = False
    memory: int = 0
    #: Pilots in the queue at a time, at most.
    max_queued: int = 32
    walltime: float = 3600.0
    #: A pilot without calls is let go after this long.
    idle_timeout: float = 120.0
    #: What starting a pilot costs, queue and all: work shorter than this is not worth a pilot more.
    start_cost: float = 60.0
    #: Surplus pilots are cancelled only when demand has been low for so long.
    hold: float = 60.0
    #: A pilot that runs and has not said hello after this long is ended.
    hello_timeout: float = 600.0
    #: As `UNLISTED`: less where who takes pilots answers of them as well, from what it has.
    unlisted: float = UNLISTED


class Backend(Protocol):
    """A batch system. Adding one is one module, one template, and `BACKENDS` below."""

    name: ClassVar[str]
    defaults: ClassVar[PoolDefaults]
    limits: ClassVar[CommandLimits]
    #: Pilots in one submission, at most.
    max_batch: ClassVar[int]
    #: Seconds between queries, at least.
    query_interval: float

    def open(self, tag: Tag, folder: Path, wake: Callable[[], None]) -> None:
        """Take up service for one factory.

        Pilots' logs go below ``folder``, in a folder for this run; ``wake`` (any thread) says that a query is worth it.
        """
        ...

    def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
        """Submit ``count`` pilots with one command; their ids. Raises `Rejected`, `OverLimit`, `Unreachable`."""
        ...

    def query(self) -> Sequence[PilotState]:
        """All pilots of the tag that the batch system knows, with one command. Raises `Unreachable`."""
        ...

    def cancel(self, jobs: Sequence[JobId]) -> None:
        """End these, queued or running (SIGTERM, grace, SIGKILL), with one command; ended ones are no error. Raises `Unreachable`."""
        ...

    def cancel_all(self) -> None:
        """End every pilot of the tag, known or not, with one command. Raises `Unreachable`."""
        ...

    def log(self, job: JobId) -> str:
        """Where the output of a pilot that was submitted here will be; "" where nobody can say. No command to the batch system."""
        ...

    def tail(self, job: JobId) -> str:
        """The last lines of the pilot's own stderr, or "" where there are none. No command to the batch system."""
        ...

    def describe(self, request: PilotRequest, count: int) -> str:
        """Exactly what `submit` would execute, files and all, for people to read."""
        ...

    def close(self) -> None:
        """End service: own processes and threads are gone when it returns; pilots in a batch system are not touched. Idempotent."""
        ...


@runtime_checkable
class SharedBatch(Protocol):
    """What a batch system that outlives the program can tell the command line beside."""

    def find(self) -> Sequence[tuple[Tag, PilotState]]:
        """All pilots of this user that have not ended, whichever factory's. Raises `Unreachable`."""
        ...

    def probe(self, request: PilotRequest) -> JobId:
        """Submit one pilot so that it never starts, and remove it: the id that it had. Raises as `Backend.submit`."""
        ...


@runtime_checkable
class Hurries(Protocol):
    """A batch system to which a submission can take long."""

    def hurry(self) -> None:
        """The factory ends: a submission that takes long is broken off, and none may take long any more. Called by any thread."""
        ...


@runtime_checkable
class SharedQueries(Protocol):
    """A batch system that tells of several pools in one answer."""

    @property
    def site(self) -> str:
        """Backends of equal sites speak to the same batch system, so one of them can ask for all."""
        ...

    def query_with(self, others: Sequence[Backend]) -> Sequence[Sequence[PilotState]]:
        """As `Backend.query`, with one command for this backend and ``others`` of its site, in this order. Raises `Unreachable`."""
        ...


#: Backends by name; a module is imported when it is asked for.
BACKENDS: Final[Mapping[str, str]] = {
    "local": "windlass.factory.local:LocalBackend",
    "fake": "windlass.factory.fake:FakeBackend",
    "slurm": "windlass.factory.slurm:SlurmBackend",
    "htcondor": "windlass.factory.htcondor:HTCondorBackend",
}


def known_backends() -> tuple[str, ...]:
    """Names of the backends that are there."""
    return tuple(name for name, place in BACKENDS.items() if importlib.util.find_spec(place.partition(":")[0]) is not None)


def backend_class(name: str) -> type[Backend]:
    """The class of a backend. Raises `UnknownName`."""
    known = known_backends()
    if name not in known:
        raise UnknownName("batch backend", name, known)
    module, _, attribute = BACKENDS[name].partition(":")
    return cast("type[Backend]", getattr(importlib.import_module(module), attribute))


def backend_options(made_by: type[Backend]) -> frozenset[str]:
    """The pool options that only this backend has: the keyword-only parameters of its class."""
    parameters = inspect.signature(made_by).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


@dataclass(slots=True)
class Tickets:
    """Makes tickets: unique in a factory's life and, with its name, in the batch system."""

    factory: str
    made: int = field(default=0)

    def next(self) -> str:
        self.made += 1
        return f"{self.factory}-{self.made}"
