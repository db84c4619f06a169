"""`FakePool`: an executor on a batch system whose faults are scripted.

Theory of operation
-------------------
A `FakePool` is an `Executor` on the ``fake`` backend, so a program that is given an executor is given this one.  While it is there, the
pools that the program opens by itself are on the same batch system, whatever they ask for (`windlass.testing.site`), and managers keep
their state in a folder of the pool's.

Its methods say what is to go wrong (`windlass.testing.faults`), wait for a state of things, and tell what happened.  `end` closes all,
looks for what is left, and returns what is wrong with that; the pytest fixture and `fake_pool` call it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from windlass.errors import UnknownName, UsageError
from windlass.factory import factory as factories
from windlass.factory.backend import Cause
from windlass.factory.fake import Fault as Command
from windlass.manager.executor import Executor
from windlass.store_folders import folder_name, remove_dead_folders
from windlass.testing.director import Director
from windlass.testing.faults import (
    REFUSAL,
    BadNode,
    CutConnections,
    EndWalltime,
    Fault,
    KillPilot,
    KillSlot,
    LoseNode,
    LoseStatus,
    Preempt,
    RefuseSubmissions,
    SlowQueue,
)
from windlass.testing.faults import chaos as drawn
from windlass.testing.leftovers import Leftovers, wait_until
from windlass.testing.limit import within
from windlass.testing.site import Site
from windlass.testing.story import Event, Story, counted, doing
from windlass.testing.watched import begun

if TYPE_CHECKING:
    from windlass.factory.factory import Factory
    from windlass.manager.manager import Manager

#: Seconds that a test may take, unless it says otherwise.
LIMIT: Final = 60.0
#: Seconds that calls get to end when a pilot is told to.
GRACE: Final = 2.0
#: Words of `wait_for`, and whether they are the status's own.
_CALLS: Final = ("waiting", "running", "done", "failed", "cancelled")
#: Options beside those of a pool.
_OWN: Final = ("pilots", "nodes", "faults", "chaos", "seed", "limit")
_STATE: Final = "WINDLASS_STATE_DIR"


class FakePool(Executor):
    """An executor with pilots as processes of this machine, for tests.

    ``pilots``: how many at a time, each with ``cores`` slots; further pools that the program opens have what they ask for. ``nodes`` of
    the batch system (``n1``, ``n2``, ...) run one pilot each. ``faults`` happen as they say, and ``chaos`` so many at random moments, drawn
    from ``seed`` (made up unless given). ``limit``: seconds that a test may take, for who looks after that. Further options are those of
    `Factory`.

    The methods that make faults return at once; a fault happens when it is due and there is somebody to hit. `end` closes all.
    """

    # They are always made here.
    manager: Manager  # pyright: ignore[reportIncompatibleMethodOverride]
    factory: Factory  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(
        self,
        *,
        pilots: int = 2,
        cores: float = 1,
        nodes: int = 4,
        faults: Iterable[Fault] = (),
        chaos: int = 0,
        seed: int | None = None,
        limit: float = LIMIT,
        manager_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.seed = int.from_bytes(os.urandom(3)) if seed is None else seed
        self.limit = limit
        given = _checked(faults, chaos, self.seed, nodes, limit)
        if factories.stand_in is not None:
            raise UsageError("there is a FakePool in this process already, and all pools are its; end that one first")
        self._started_at = time.monotonic()
        remove_dead_folders(tempfile.gettempdir())  # of test runs that were killed
        self.folder = Path(tempfile.gettempdir(), folder_name("testing"))
        for folder in (self.folder, self.folder / "state", self.folder / "tmp"):
            folder.mkdir(mode=0o700)
        self._leftovers = Leftovers(self.folder / "tmp")
        self._site = Site(self.folder, self._leftovers, nodes=nodes, seed=self.seed)
        self._director = Director(self._site, self.seed, self._started_at)
        self._story: Story | None = None
        with contextlib.ExitStack() as opening:
            opening.callback(shutil.rmtree, self.folder, ignore_errors=True)
            opening.callback(_set_variable, _STATE, os.environ.get(_STATE))
            opening.callback(setattr, factories, "stand_in", None)
            os.environ[_STATE] = str(self.folder / "state")
            factories.stand_in = self._site.stand_in
            options = {"grace": GRACE, "pool": "fake", "max_pilots": pilots, **options}
            try:
                super().__init__("fake", cores=cores, manager_options=manager_options, **options)
            except UnknownName as error:
                if error.name not in options:  # one of manager_options=, say
                    raise
                raise UnknownName("option of a fake pool", error.name, {*error.known, *_OWN}) from None
            self._ending = opening.pop_all()
        for fault in given:
            self.inject(fault)
        for fault in drawn(self.seed, chaos):
            self._director.add(fault, needed=False)

    def __repr__(self) -> str:
        serve = len(self._site.targets())
        return f"<FakePool, seed {self.seed}, {serve} {'pilot serves' if serve == 1 else 'pilots serve'}>"

    # ---------------------------------------------------------------- faults

    def inject(self, fault: Fault) -> None:
        """Have it happen when it is due: at once if it can. Raises `UnknownName` for a node that there is not."""
        _check_node(fault, self._site.nodes)
        self._director.add(fault)

    def preempt(self, node: str = "", *, notice: float = 0.0, requeue: bool = True, after: int = 0) -> None:
        """Another job takes a pilot's place: SIGTERM, ``notice`` seconds, SIGKILL; then it is queued again, unless ``requeue=False``.

        As in all that hits a pilot: the one on ``node`` (``"n2"``), or one that runs calls. ``after``: when so many calls have ended.
        """
        self.inject(Preempt(node, notice=notice, requeue=requeue, after=after))

    def end_walltime(self, node: str = "", *, notice: float = 0.0, after: int = 0) -> None:
        """A pilot is ended for its time limit: SIGTERM, ``notice`` seconds, SIGKILL; another one takes its place."""
        self.inject(EndWalltime(node, notice=notice, after=after))

    def kill_pilot(self, node: str = "", *, after: int = 0) -> None:
        """A pilot is killed, without a word from the batch system."""
        self.inject(KillPilot(node, after=after))

    def kill_slot(self, node: str = "", *, after: int = 0) -> None:
        """The processes that run calls on a pilot die, as by a segmentation fault: their calls fail with `SlotDied`, or use a retry."""
        self.inject(KillSlot(node, after=after))

    def lose_node(self, node: str = "", *, after: int = 0) -> None:
        """A node goes down, with the pilot on it, until `mend`."""
        self.inject(LoseNode(node, after=after))

    def bad_node(self, node: str, *, after: int = 0) -> None:
        """Pilots on this node die as soon as they start."""
        self.inject(BadNode(node, after=after))

    def slow_queue(self, seconds: float, *, after: int = 0) -> None:
        """Pilots wait so long in the queue, those that wait there now too."""
        self.inject(SlowQueue(seconds, after=after))

    def refuse_submissions(self, text: str = REFUSAL, *, after: int = 0) -> None:
        """The batch system refuses all pilots from now on, with this text; calls that no pilot is left for raise `NotPossible`."""
        self.inject(RefuseSubmissions(text, after=after))

    def lose_status(self, seconds: float = 1.0, *, after: int = 0) -> None:
        """The batch system does not answer when it is asked how jobs are."""
        self.inject(LoseStatus(seconds, after=after))

    def cut_connections(self, seconds: float = 1.0, *, silently: bool = False, after: int = 0) -> None:
        """No pilot reaches the manager, for so long; ``silently``: as when a cable is pulled, and nobody is told."""
        self.inject(CutConnections(seconds, silently=silently, after=after))

    def mend(self) -> None:
        """All is well from now on: what lasts ends, what has not happened will not, paused pools go on."""
        self._director.forget()
        self._site.mend()
        self._director.note("all is mended")

    # ---------------------------------------------------------------- seeing

    def wait_for(self, condition: Callable[[], object] | None = None, *, timeout: float = 30.0, **numbers: int) -> None:
        """Wait until it is so: ``wait_for(running=3)``, ``wait_for(done=10)``, ``wait_for(lambda: path.exists())``.

        ``waiting``, ``running`` (begun, in slots), ``done``, ``failed``, ``cancelled`` are calls; ``serving`` pilots; any number of `story`
        may be asked for too (``lost=1``, ``preemptions=2``). Each means at least so many, and 0 none. Raises TimeoutError that says how
        things stand.
        """
        for word in numbers:
            if word not in _CALLS and word != "serving" and not isinstance(getattr(Story(), word, None), int):
                raise UsageError(f"wait_for({word}=...): one can wait for {', '.join(_CALLS)}, serving, and the numbers of story()")

        def so() -> bool:
            if condition is not None and not condition():
                return False
            found = {word: self._number(word) for word in numbers}
            return all(found[word] >= number if number else found[word] == 0 for word, number in numbers.items())

        if not wait_until(so, timeout):
            what = ", ".join(f"{word}={number}" for word, number in numbers.items()) or "the condition"
            raise TimeoutError(f"{what}: not so after {timeout:g} s. What the pool is doing:\n{self.doing()}")

    def _number(self, word: str) -> int:
        if word == "serving":
            return len(self._site.targets())
        if word == "running":
            return sum(begun(worker) for one in self._site.watched for worker in one.workers())
        if word in _CALLS:
            return int(sum(status["calls"][word] for status in self._site.statuses()))
        return int(getattr(self.story(), word))

    def story(self) -> Story:
        """What has happened so far, in numbers and events."""
        if self._story is not None:
            return self._story
        calls: Counter[str] = Counter()
        for status in self._site.statuses():
            calls.update({word: number for word, number in status["calls"].items() if isinstance(number, int)})
        happened = self._site.happened()
        ends = Counter(one.what for one in happened)
        events = [Event(one.at - self._started_at, _said(one.what, one.node)) for one in happened if one.job or one.what != Cause.CANCELLED]
        return Story(
            submitted=calls["submitted"],
            done=calls["done"],
            failed=calls["failed"],
            cancelled=calls["cancelled"],
            retried=calls["retried"],
            lost=calls["lost_attempts"],
            pilots=ends["started"],
            preemptions=ends[Cause.PREEMPTED],
            walltimes=ends[Cause.WALLTIME],
            deaths=ends["failed"] + ends[Cause.SIGNAL],
            nodes_lost=ends[Cause.NODE],
            refused=ends[Command.REJECTED],
            unanswered=ends[Command.UNREACHABLE],
            cuts=sum(isinstance(fault, CutConnections) for fault in self._director.happened),
            seed=self.seed,
            never=tuple(self._director.pending(needed=True)),
            events=tuple(sorted([*events, *self._director.events], key=lambda event: event.at)),
        )

    def doing(self) -> str:
        """What the pool is doing now, in lines."""
        pilots = [words for backend in list(self._site.backends) for words in backend.words()]
        events = [str(event) for event in self.story().events[-10:]]
        lines = [doing(self._site.statuses(), pilots, self._director.pending(), self._site.paused()), f"seed:    {self.seed}"]
        return "\n".join(lines + (["last events:", *events] if events else []))

    # ---------------------------------------------------------------- the end

    @property
    def ended(self) -> bool:
        """`end` was called."""
        return self._story is not None

    def end(self) -> list[str]:
        """Close all; what is wrong with the end, in lines: what was left open, what still ran, faults that never happened. Idempotent."""
        if self._story is not None:
            return []
        self._director.stop()
        never = [f"{text} never happened: {self._why_never()}" for text in self._director.pending(needed=True)]
        before = self.story()
        self.manager.close()
        self.shutdown()
        problems = [f"{name} was left open; write  with windlass.Executor(...) as pool:  or close it" for name in self._site.close()]
        problems += [f"left behind: {text}" for text in self._leftovers.wait([pid for one in self._site.backends for pid in one.pids])]
        self._story = before
        self._ending.close()
        return problems + never

    def _why_never(self) -> str:
        ended = sum(self._number(word) for word in ("done", "failed", "cancelled"))
        return f"{counted(ended, 'call')} ended, and then there was nobody left to hit; give more or longer calls, or a smaller after="


def _checked(faults: Iterable[Fault], number: object, seed: object, nodes: object, limit: object) -> list[Fault]:
    if not isinstance(faults, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"faults={faults!r}: give a list, as in faults=[windlass.testing.Preempt(after=3)]")
    given = list(faults)
    for fault in given:
        if not isinstance(fault, Fault):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{fault!r} is no fault; write for example faults=[windlass.testing.Preempt(after=3)]")
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise UsageError(f"chaos={number!r}: give the number of faults, as in chaos=10")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"seed={seed!r}: give a whole number, as in seed=7")
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise UsageError(f"nodes={nodes!r}: give the number of nodes, each for one pilot, as in nodes=4")
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit < 0:
        raise UsageError(f"limit={limit!r}: give the seconds that a test may take, as in limit=60; 0 is no limit")
    for fault in given:
        _check_node(fault, nodes)
    return given


def _check_node(fault: Fault, count: int) -> None:
    node = getattr(fault, "node", "")
    nodes = [f"n{number + 1}" for number in range(count)]
    if node and node not in nodes:
        raise UnknownName("node", node, nodes)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


#: How events of the batch system are told.
_WORDS: Final = {
    "started": "a pilot starts",
    Cause.PREEMPTED: "preempted",
    Cause.WALLTIME: "told to end for its walltime",
    Cause.CANCELLED: "cancelled",
    Cause.NODE: "gone with its node",
    Cause.SIGNAL: "killed",
    Cause.EXIT: "ends",
    "failed": "fails",
    Command.REJECTED: "a submission is refused",
    Command.UNREACHABLE: "a command is not answered",
}


def _said(what: str, node: str) -> str:
    words = _WORDS.get(what, what)
    return f"{node}: {words}" if node else words


@contextlib.contextmanager
def fake_pool(**options: Any) -> Generator[FakePool]:
    """A `FakePool` where there is no pytest: ``with fake_pool(pilots=2) as pool:``.

    Raises AssertionError at the end for what was left behind or never happened, and TimeoutError when ``limit`` is over.
    """
    pool = FakePool(**options)
    try:
        with within(pool.limit, pool.doing, _too_long):
            yield pool
    except BaseException:
        pool.end()
        raise
    problems = pool.end()
    if problems:
        raise AssertionError("\n".join(problems))


def _too_long(text: str) -> NoReturn:
    raise TimeoutError(text)
