"""The cells of the fault matrix: who is hit, by what, what Windlass promises then; and those that have no meaning, with the reason.

Theory of operation
-------------------
A `Cell` has a *scene*, which sets the stage (`faults_scenes`: whether the manager is the program's own or runs beside it, where pilots run,
which disks are small), and a *blow*, which hits and returns when all is mended.  The matrix (`judge` in `faults`) demands of every cell
that no call is lost, fails or gives a wrong result, none is delivered twice, and nothing is left; what a cell promises beyond that stands
in its text.

`CELLS` has every pair of `ROWS` and `FAULTS`, some in several variants; `faults --list` prints all of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

import faults_blows as blows
from faults_network import Hosts
from faults_program import HAS_JOURNAL
from faults_scenes import start_factory
from faults_stage import Stage
from recording import wait_until, words_of
from windlass.testing import Proxy

ROWS: Final = ("slot", "zygote", "worker", "factory", "manager", "batch controller", "network link")
FAULTS: Final = (
    *("SIGKILL", "SIGSTOP and SIGCONT", "cut connection", "cut and back"),
    *("half-open connection", "slow link", "full disk", "memory limit"),
)
#: Longer than the silence limit of the matrix (1 s) and shorter than its reconnect grace (8 s).
SILENT_SECONDS: Final = 2.5
#: Longer than both, where the grace is 1 s.
PAST_GRACE_SECONDS: Final = 4.0
FULL_SECONDS: Final = 2.0
SLOW_SECONDS: Final = 4.0
SLOW_KILOBITS: Final = 800
#: Between two victims.
NEXT_SECONDS: Final = 0.3

Blow = Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Cell:
    """One pair of the matrix, or a variant of it."""

    row: str
    fault: str
    #: What is promised; of a cell without a meaning, why it has none.
    text: str
    blow: Blow | None = None
    scene: str = "own"
    variant: str = ""
    #: "root", "memory", "hosts", "slurm": what the machine must give.
    needs: str = ""
    #: Changes of the program.
    program: tuple[tuple[str, Any], ...] = ()
    #: Attached programs are told `Closed` and come back.
    closes: bool = False

    @property
    def name(self) -> str:
        words = f"{self.row} / {self.fault}"
        return f"{words} ({self.variant})" if self.variant else words


# ---------------------------------------------------------------- blows: processes


def first(find: Callable[[str], list[int]], stage: Stage) -> int:
    """One victim of a kind; waits until there is one."""
    wait_until(lambda: find(stage.mark), 10, 0.02)
    return find(stage.mark)[0]


def several(find: Callable[[str], list[int]], hit: Callable[[int], object], count: int) -> Blow:
    """Hit so many, one after the other."""

    def blow(stage: Stage) -> None:
        for number in range(count):
            if number:
                time.sleep(NEXT_SECONDS)
            victims = find(stage.mark)
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    hit(victims[number % len(victims)])
                stage.strike()

    return blow


def by_itself(stage: Stage) -> None:
    """The calls themselves are the fault."""


def killed(find: Callable[[str], list[int]], count: int) -> Blow:
    return several(find, lambda pid: os.kill(pid, signal.SIGKILL), count)


def stopped(find: Callable[[str], list[int]], count: int, seconds: float = SILENT_SECONDS) -> Blow:
    def blow(stage: Stage) -> None:
        victims = find(stage.mark)[:count]
        with blows.stopped(*victims):
            stage.strike()
            time.sleep(seconds)

    return blow


def pid_of(stage: Stage, name: str) -> int:
    """The process itself, where it was started through another program."""
    return stage.running[name].pid


def end_of(name: str, how: Callable[[int], object], again: Callable[[Stage], object]) -> Blow:
    """A process beside the program ends, and is started again."""

    def blow(stage: Stage) -> None:
        process = stage.running.pop(name)
        how(process.pid)
        stage.strike()
        process.wait()
        time.sleep(NEXT_SECONDS)
        again(stage)

    return blow


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def halted(name: str, seconds: float = SILENT_SECONDS) -> Blow:
    def blow(stage: Stage) -> None:
        with blows.stopped(pid_of(stage, name)):
            stage.strike()
            time.sleep(seconds)

    return blow


def cut_of(name: str) -> Blow:
    """All TCP connections of a process, twice."""

    def blow(stage: Stage) -> None:
        for number in range(2):
            if number:
                time.sleep(NEXT_SECONDS)
            blows.cut_tcp(pid_of(stage, name))
            stage.strike()

    return blow


# ---------------------------------------------------------------- blows: networks


def on_hosts(how: Callable[[Hosts], contextlib.AbstractContextManager[None]], seconds: float, times: int = 1) -> Blow:
    def blow(stage: Stage) -> None:
        assert stage.hosts is not None
        for number in range(times):
            if number:
                time.sleep(NEXT_SECONDS)
            with how(stage.hosts):
                stage.strike()
                time.sleep(seconds)

    return blow


def reset_hosts(*numbers: int) -> Blow:
    def blow(stage: Stage) -> None:
        assert stage.hosts is not None
        for _ in range(3):
            for number in numbers:
                stage.hosts.reset(number)
                stage.strike()
            time.sleep(NEXT_SECONDS)

    return blow


def on_proxy(how: Callable[[Proxy], contextlib.AbstractContextManager[None] | None], seconds: float, times: int = 1) -> Blow:
    def blow(stage: Stage) -> None:
        assert stage.proxy is not None
        for number in range(times):
            if number:
                time.sleep(NEXT_SECONDS)
            with how(stage.proxy) or contextlib.nullcontext():
                stage.strike()
                time.sleep(seconds)

    return blow


# ---------------------------------------------------------------- blows: disks


def scratch_full(also: Blow | None = None) -> Blow:
    """The scratch of one pilot is full; meanwhile something happens that needs it."""

    def blow(stage: Stage) -> None:
        disk = stage.folder / "small"
        with blows.full(disk):
            stage.strike()
            if also is not None:
                also(stage)
            keep_full(FULL_SECONDS, disk)

    return blow


def state_full(also: Blow | None = None) -> Blow:
    def blow(stage: Stage) -> None:
        disks = (stage.state, stage.tmp, stage.folder / "shm-0")
        with blows.full(*disks):
            stage.strike()
            if also is not None:
                also(stage)
            keep_full(FULL_SECONDS, *disks)

    return blow


def keep_full(seconds: float, *disks: Any) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        blows.refill(*disks)
        time.sleep(0.02)


def zygote_on_small(stage: Stage) -> None:
    """Kill the zygote whose scratch is the small disk."""
    for pid in blows.zygotes(stage.mark):
        with contextlib.suppress(OSError):
            if str(stage.folder / "small") in os.readlink(f"/proc/{pid}/cwd"):
                kill(pid)


# ---------------------------------------------------------------- blows: the batch controller


def controller(how: Callable[[Stage], contextlib.AbstractContextManager[None]]) -> Blow:
    """The controller is away, and meanwhile a worker dies: the other one works on, and the first is replaced afterwards."""

    def blow(stage: Stage) -> None:
        with how(stage):
            stage.strike()
            killed(blows.workers, 1)(stage)
            time.sleep(SILENT_SECONDS)

    return blow


@contextlib.contextmanager
def controller_killed(stage: Stage) -> Generator[None]:
    assert stage.cluster is not None
    stage.cluster.kill_controller()
    yield
    stage.cluster.start_controller()


@contextlib.contextmanager
def controller_hung(stage: Stage) -> Generator[None]:
    assert stage.cluster is not None
    with stage.cluster.hung_controller():
        yield


@contextlib.contextmanager
def controller_starved(stage: Stage) -> Generator[None]:
    assert stage.cluster is not None
    own_conf = str(stage.cluster.conf)
    for name in os.listdir("/proc"):
        if name.isdigit() and own_conf in (words := words_of(int(name))) and words[0].endswith("slurmctld"):
            blows.starve(int(name))
    yield
    stage.cluster.start_controller()


@contextlib.contextmanager
def controller_disk_full(stage: Stage) -> Generator[None]:
    with blows.full(stage.folder / "slurm/state"):
        yield


@contextlib.contextmanager
def no_munge(stage: Stage) -> Generator[None]:
    assert stage.cluster is not None
    with stage.cluster.munge_down():
        yield


# ---------------------------------------------------------------- the matrix

RETRIED: Final = "Calls that ran there run again (retries=), all others go on."
ELSEWHERE: Final = "Its calls run again on another pilot, without using up a retry."
RESUMED: Final = "The session outlives the connection: what runs goes on, nothing runs twice."
AGAIN: Final = (
    "Started again, the program finds the results that it had, and runs only the rest."
    if HAS_JOURNAL
    else "Its calls end with the program; started again, the program has all results, and nothing of its first life is left."
)
#: Where there is one, its place is the scene's.
JOURNAL: Final = (("journal", "yes" if HAS_JOURNAL else ""),)
COMES_BACK: Final = (
    "Futures get Closed. A program that attaches again and submits the rest has all results; the pilots come back by themselves."
)
AWAY: Final = "Unknown is not gone: pilots serve on, and what died meanwhile is replaced when it is back."
ONE_KERNEL: Final = "n/a: both ends are on one node, in one kernel: "

CELLS: Final[tuple[Cell, ...]] = (
    # slot
    Cell("slot", "SIGKILL", RETRIED, killed(blows.slots, 6)),
    Cell("slot", "SIGSTOP and SIGCONT", "Its call takes longer; the other slots go on.", stopped(blows.slots, 2)),
    Cell("slot", "cut connection", f"A slot that cannot hand over results is replaced. {RETRIED}", several(blows.slots, blows.cut_slot, 4)),
    Cell("slot", "cut and back", ONE_KERNEL + "a socket pair that is cut does not come back; see cut connection"),
    Cell("slot", "half-open connection", ONE_KERNEL + "each is told at once when the other has gone; silence is SIGSTOP"),
    Cell("slot", "slow link", ONE_KERNEL + "a socket pair is memory; a slot that is slow is one that computes"),
    Cell(
        *("slot", "full disk", "Calls that can be given what they need go on, the others wait or run on another pilot."),
        *(scratch_full(), "small scratch"),
        needs="root",
        program=(("prints", 20_000),),
    ),
    Cell(
        *(
            "slot",
            "memory limit",
            "The call furthest over its share is ended (OutOfMemory) and tried again (retries=); its neighbours go on.",
        ),
        *(by_itself, "own with memory"),
        program=(("greedy", 2),),
    ),
    # zygote
    Cell("zygote", "SIGKILL", f"Its slots end with it, the library starts again on the same worker. {RETRIED}", killed(blows.zygotes, 2)),
    Cell("zygote", "SIGSTOP and SIGCONT", "Its slots serve on; new ones wait.", stopped(blows.zygotes, 2)),
    Cell("zygote", "cut connection", f"As if it had been killed. {RETRIED}", several(blows.zygotes, blows.cut_zygote, 2)),
    Cell("zygote", "cut and back", ONE_KERNEL + "a socket pair that is cut does not come back; see cut connection"),
    Cell("zygote", "half-open connection", ONE_KERNEL + "each is told at once when the other has gone; silence is SIGSTOP"),
    Cell("zygote", "slow link", ONE_KERNEL + "a socket pair is memory"),
    Cell(
        *("zygote", "full disk", "Killed while its disk is full, the library starts again when there is room, or on another pilot."),
        *(scratch_full(zygote_on_small), "small scratch"),
        needs="root",
    ),
    Cell("zygote", "memory limit", f"As SIGKILL, by the kernel. {RETRIED}", several(blows.zygotes, blows.starve, 1), needs="memory"),
    # worker
    Cell("worker", "SIGKILL", f"The guardian clears up, the factory replaces the pilot. {ELSEWHERE}", killed(blows.workers, 2)),
    Cell("worker", "SIGSTOP and SIGCONT", RESUMED, stopped(blows.workers, 1)),
    Cell(
        *("worker", "SIGSTOP and SIGCONT", f"Given up after reconnect_grace. {ELSEWHERE} Late results are dropped."),
        stopped(blows.workers, 1, PAST_GRACE_SECONDS),
        variant="past the grace",
        program=(("reconnect_grace", 1.0),),
    ),
    Cell("worker", "cut connection", RESUMED, several(blows.workers, blows.cut_tcp, 4)),
    Cell(
        *("worker", "cut and back", RESUMED, on_hosts(lambda net: net.down(1), SILENT_SECONDS), "hosts"),
        needs="hosts",
    ),
    Cell(
        *("worker", "half-open connection", RESUMED, on_hosts(lambda net: net.unplugged(1), SILENT_SECONDS), "hosts"),
        needs="hosts",
    ),
    Cell(
        *("worker", "half-open connection", f"Given up after reconnect_grace. {ELSEWHERE} Late results are dropped."),
        *(on_hosts(lambda net: net.unplugged(1), PAST_GRACE_SECONDS), "hosts"),
        variant="past the grace",
        needs="hosts",
        program=(("reconnect_grace", 1.0),),
    ),
    Cell(
        *("worker", "slow link", "Large arguments and results take their time; it stays connected, the other workers go on."),
        *(on_hosts(lambda net: net.slow(1, SLOW_KILOBITS), SLOW_SECONDS), "hosts"),
        needs="hosts",
    ),
    Cell(
        *("worker", "full disk", "Calls whose data finds no room there run on another pilot."),
        *(scratch_full(), "small scratch"),
        needs="root",
    ),
    Cell("worker", "memory limit", f"As SIGKILL, by the kernel. {ELSEWHERE}", several(blows.workers, blows.starve, 1), needs="memory"),
    # factory
    Cell(
        *("factory", "SIGKILL", f"Local pilots end with it; the one that is started again has new ones. {ELSEWHERE}"),
        *(end_of("factory", kill, start_factory), "factory beside"),
    ),
    Cell("factory", "SIGSTOP and SIGCONT", "Pilots serve on; afterwards it goes on.", halted("factory"), "factory beside"),
    Cell("factory", "cut connection", "It connects again; pilots serve on.", cut_of("factory"), "factory beside"),
    Cell(*("factory", "cut and back", "n/a: its connection is one to the manager, like a worker's, and pilots do not use it; see manager")),
    Cell("factory", "half-open connection", "n/a: see cut and back; its silence is SIGSTOP"),
    Cell("factory", "slow link", "n/a: it sends a few hundred bytes a second"),
    Cell(
        *("factory", "full disk", f"A worker is killed while there is no room for the log of a new pilot. {ELSEWHERE}"),
        *(state_full(killed(blows.workers, 1)), "small state"),
        needs="root",
    ),
    Cell(
        *("factory", "memory limit", f"As SIGKILL, by the kernel. {ELSEWHERE}"),
        *(end_of("factory", blows.starve, start_factory), "factory beside"),
        needs="memory",
    ),
    # manager
    Cell(
        *("manager", "SIGKILL", AGAIN, end_of("program", kill, Stage.start_program)),
        variant="of the program",
        program=JOURNAL,
    ),
    Cell(
        *("manager", "SIGKILL", COMES_BACK, end_of("manager", kill, Stage.start_manager), "manager beside"),
        variant="on its own",
        closes=True,
    ),
    Cell("manager", "SIGSTOP and SIGCONT", RESUMED, halted("program"), variant="of the program"),
    Cell("manager", "SIGSTOP and SIGCONT", RESUMED, halted("manager"), "manager beside", variant="on its own"),
    Cell("manager", "cut connection", f"Those of all pilots at once. {RESUMED}", cut_of("program"), variant="of the program"),
    Cell(
        *("manager", "cut connection", f"Those of all pilots, the factory and the program. {RESUMED}"),
        *(cut_of("manager"), "manager beside", "on its own"),
    ),
    Cell(
        *("manager", "cut and back", RESUMED, on_hosts(lambda net: net.down(0), SILENT_SECONDS), "hosts"),
        needs="hosts",
    ),
    Cell(
        *("manager", "half-open connection", RESUMED, on_hosts(lambda net: net.unplugged(0), SILENT_SECONDS), "hosts"),
        needs="hosts",
    ),
    Cell(
        *("manager", "slow link", "Large arguments and results take their time; all stay connected."),
        *(on_hosts(lambda net: net.slow(0, SLOW_KILOBITS), SLOW_SECONDS), "hosts"),
        needs="hosts",
    ),
    Cell(
        *("manager", "full disk", "Results that find no room wait at their workers until there is some."),
        *(state_full(), "small state"),
        needs="root",
    ),
    Cell(
        *("manager", "memory limit", f"As SIGKILL, by the kernel. {AGAIN}", end_of("program", blows.starve, Stage.start_program)),
        variant="of the program",
        needs="memory",
        program=JOURNAL,
    ),
    # batch controller
    Cell("batch controller", "SIGKILL", AWAY, controller(controller_killed), "slurm", needs="slurm"),
    Cell("batch controller", "SIGSTOP and SIGCONT", AWAY, controller(controller_hung), "slurm", needs="slurm"),
    Cell(
        *("batch controller", "cut connection", f"munged is away, so that every command fails. {AWAY}", controller(no_munge), "slurm"),
        needs="slurm",
    ),
    Cell("batch controller", "cut and back", "n/a: each command is a connection of its own: see cut connection and SIGKILL"),
    Cell("batch controller", "half-open connection", "n/a: a controller that takes requests and answers none is SIGSTOP"),
    Cell("batch controller", "slow link", "n/a: commands have a time limit; one that is over it is SIGSTOP"),
    Cell(
        *("batch controller", "full disk", f"It cannot save its state. {AWAY}", controller(controller_disk_full), "slurm"),
        needs="slurm root",
    ),
    Cell(
        *("batch controller", "memory limit", f"As SIGKILL, by the kernel. {AWAY}", controller(controller_starved), "slurm"),
        needs="slurm memory",
    ),
    # network link
    Cell("network link", "SIGKILL", "n/a: a link is no process; a tunnel that is killed is cut and back"),
    Cell("network link", "SIGSTOP and SIGCONT", "n/a: a link is no process; a tunnel that is stopped is half-open"),
    Cell("network link", "cut connection", RESUMED, reset_hosts(1, 2), "hosts", "hosts", needs="hosts"),
    Cell("network link", "cut connection", RESUMED, on_proxy(Proxy.reset, NEXT_SECONDS, 3), "proxy", "proxy"),
    Cell(
        *("network link", "cut and back", f"Three times. {RESUMED}", on_hosts(lambda net: net.down(0, 1, 2), 1.5, 3), "hosts", "hosts"),
        needs="hosts",
    ),
    Cell("network link", "cut and back", f"Three times. {RESUMED}", on_proxy(Proxy.refusing, 1.0, 3), "proxy", "proxy"),
    Cell(
        *("network link", "half-open connection", f"Three times. {RESUMED}"),
        *(on_hosts(lambda net: net.unplugged(0, 1, 2), 1.5, 3), "hosts", "hosts"),
        needs="hosts",
    ),
    Cell(
        *("network link", "half-open connection", f"What stands is dead, new connections come through. {RESUMED}"),
        *(on_proxy(Proxy.forget, SILENT_SECONDS), "proxy", "proxy"),
    ),
    Cell(
        *("network link", "half-open connection", f"New connections are taken and hear nothing. {RESUMED}"),
        *(on_proxy(Proxy.swallowing, SILENT_SECONDS), "proxy", "proxy, new ones too"),
    ),
    Cell(
        *("network link", "slow link", "Large arguments and results take their time; all stay connected."),
        *(on_proxy(lambda proxy: proxy.slow(100_000), SLOW_SECONDS), "proxy", "proxy"),
    ),
    Cell("network link", "full disk", "n/a: a link has no disk"),
    Cell("network link", "memory limit", "n/a: a link has no memory"),
)
