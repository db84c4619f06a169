"""A soak: demand that rises and falls on a real Slurm, while pilots are killed at random. What must hold is checked at the end.

Theory of operation
-------------------
This program starts a Slurm of several virtual nodes (`windlass.testing.SlurmCluster`) and, as a process of its own, *the user's program*:
a manager, a factory with its default budget of commands, and seeded phases of demand: bursts of calls of 10 ms, waves of calls of some
seconds, single calls, and pauses longer than ``idle_timeout``, so that pilots are let go.  Meanwhile `trouble.Trouble` kills workers,
cancels and queues again jobs, takes nodes and the controller away.  Shortly before the end everything is mended, the user's program
collects its calls and closes, and then the books must balance:

* no call is lost: each future ended once, with the result of its own call;
* no call ran twice without a reason: where one did, its earlier runs were in pilots that a fault had hit;
* no pilot is left in Slurm, and no process of the program or its pilots;
* commands stayed within the bound (`windlass.factory.backend.CommandLimits`), as counted by scripts in the program's PATH.

Exit status 1 when any is violated.  Faults are many more than any site has; what the figures say is that nothing is lost, not how fast.

``--short`` is for the tests: everything quicker, the same bound on commands.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import windlass
from common import cell, machine, quantile
from recording import MARK, CommandLog, live_jobs, marked_processes, most_within, read_runs, wait_until
from trouble import Trouble
from windlass.factory.backend import CommandLimits
from windlass.testing import SlurmCluster, missing_programs


@dataclass(frozen=True, slots=True)
class Scale:
    """How large and how fast everything is. Seconds."""

    nodes: int
    max_pilots: int
    idle_timeout: float
    hold: float
    start_cost: float
    walltime: float
    grace: float
    query_interval: float
    reconnect_grace: float
    #: The longest call; one wave keeps the largest number of pilots busy for about this many times as long.
    longest_call: float
    wave: float
    #: Between two faults, on average; and for how long nodes and the controller are away.
    fault_every: float
    node_away: tuple[float, float]
    controller_away: tuple[float, float]
    #: Before the end of the demand, all is mended.
    calm: float
    #: How long calls may take to end after the last was submitted, and pilots after the factory closed.
    collect: float
    leave: float
    #: What differs from `SlurmCluster`'s own configuration.
    slurm: tuple[tuple[str, str], ...]


LONG: Final = Scale(
    nodes=6,
    max_pilots=8,
    idle_timeout=40,
    hold=20,
    start_cost=15,
    walltime=420,
    grace=10,
    query_interval=30,
    reconnect_grace=60,
    longest_call=4,
    wave=60,
    fault_every=20,
    node_away=(20, 60),
    controller_away=(10, 40),
    calm=60,
    collect=900,
    leave=30,
    slurm=(("MinJobAge", "300"), ("KillWait", "5"), ("SlurmdTimeout", "20"), ("MessageTimeout", "10")),
)
SHORT: Final = Scale(
    nodes=3,
    max_pilots=3,
    idle_timeout=0.5,
    hold=0.5,
    start_cost=0.2,
    walltime=60,
    grace=1,
    query_interval=3,
    reconnect_grace=2,
    longest_call=0.4,
    wave=3,
    fault_every=1.2,
    node_away=(0.5, 2),
    controller_away=(0.5, 2),
    calm=1,
    collect=80,
    leave=15,
    slurm=(),
)
CORES: Final = 2


def work(number: int, seconds: float, runs: str) -> tuple[int, int]:
    """One call: notes that it runs, takes its time, and answers for its own number only."""
    line = f"{time.time():.3f} {number} {os.environ['WINDLASS_PILOT']}\n"
    file = os.open(runs, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)
    time.sleep(seconds)
    return number, answer(number)


def answer(number: int) -> int:
    return number * number % 1_000_003


# ---------------------------------------------------------------- the user's program


@dataclass(frozen=True, slots=True)
class Phase:
    """Some calls, and what comes after them. Seconds."""

    kind: str
    #: How long each call takes.
    calls: Sequence[float] = ()
    #: Each is waited for, and then so long.
    between: float = 0.0
    #: The next phase begins when all have ended (False: at once).
    waits: bool = True
    pause: float = 0.0


def demand(draw: random.Random, scale: Scale) -> Iterator[Phase]:
    """Phases without end."""
    slots, longest = scale.max_pilots * CORES, scale.longest_call
    while True:
        kind = draw.choices(("burst", "wave", "half wave", "singles", "pause"), (3, 5, 3, 1, 2))[0]
        waits = draw.random() < 0.7
        if kind == "burst":
            yield Phase(kind, [draw.uniform(0.01, 0.05) for _ in range(draw.randint(100, 500))], waits=waits)
        elif kind == "singles":
            yield Phase(kind, [draw.uniform(0.01, longest / 4) for _ in range(draw.randint(3, 12))], between=longest / 4)
        elif kind == "pause":
            yield Phase(kind, pause=draw.uniform(1.1, 2.0) * (scale.idle_timeout + scale.hold))
        else:
            share = 1.0 if kind == "wave" else draw.uniform(0.2, 0.6)
            number = int(slots * share * scale.wave / longest)
            yield Phase(kind, [draw.uniform(0.1, 1.0) * longest for _ in range(number)], waits=waits)


def program(chosen: argparse.Namespace, scale: Scale) -> int:
    """Submit phases until the time is over, collect all calls, close; one JSON object at the end."""
    futures: list[windlass.CallFuture[Any]] = []
    ends: Counter[int] = Counter()
    phases: Counter[str] = Counter()
    found: dict[str, Any] = {}
    end = time.monotonic() + chosen.minutes * 60
    # A node that is lost leaves what was on its disk; here that goes with the folder of the run.
    scratch = Path(chosen.runs).parent / "scratch"
    scratch.mkdir(exist_ok=True)
    options: dict[str, Any] = {
        "max_pilots": scale.max_pilots,
        "cores": CORES,
        "idle_timeout": scale.idle_timeout,
        "hold": scale.hold,
        "start_cost": scale.start_cost,
        "walltime": scale.walltime,
        "grace": scale.grace,
        "query_interval": scale.query_interval,
        "env": {MARK: os.environ[MARK]},
        "scratch": str(scratch),
    }
    with windlass.Manager(reconnect_grace=scale.reconnect_grace) as manager, windlass.Factory(manager, "slurm", **options) as factory:
        manager.install_library("lib", work)
        for phase in demand(random.Random(chosen.seed), scale):
            phases[phase.kind] += 1
            say(f"{phase.kind}: {len(phase.calls)} calls; pilots {factory.status()['pilots']}")
            for seconds in phase.calls:
                number = len(futures)
                future = manager.submit(windlass.FunctionCall("lib", "work", number, seconds, chosen.runs))
                future.add_done_callback(lambda _, number=number: ends.update((number,)))  # type: ignore[misc]
                futures.append(future)
                if phase.between:
                    future.wait(max(0.0, end - time.monotonic()))
                    time.sleep(phase.between)
            if phase.waits:
                for future in futures[-len(phase.calls) :] if phase.calls else ():
                    future.wait(max(0.0, end - time.monotonic()))
            time.sleep(min(phase.pause, max(0.0, end - time.monotonic())))
            if time.monotonic() > end:
                break
        say("collecting")
        deadline = time.monotonic() + scale.collect
        lost: list[int] = []
        wrong: list[int] = []
        failed: list[str] = []
        for number, future in enumerate(futures):
            if not future.wait(max(0.0, deadline - time.monotonic())):
                lost.append(number)
            elif future.exception() is not None:
                failed.append(f"{number}: {future.exception()!r}")
            elif future.result() != (number, answer(number)):
                wrong.append(number)
        took = sorted(future.timings.total for future in futures if future.done())
        found = {
            "calls": len(futures),
            "lost": lost,
            "failed": failed,
            "wrong": wrong,
            "phases": dict(phases),
            "turnaround_p50_s": round(quantile(took, 0.5), 2),
            "turnaround_p99_s": round(quantile(took, 0.99), 2),
            "turnaround_longest_s": round(took[-1], 2),
            "status": factory.status(),
        }
        say("closing")
    found["ended_twice"] = [number for number, times in ends.items() if times != 1]
    found["never_told"] = len(futures) - len(ends)
    found["counted"] = factory.status()["commands"]
    used = resource.getrusage(resource.RUSAGE_SELF)
    found["program_cpu_s"] = round(used.ru_utime + used.ru_stime, 1)
    found["program_peak_mb"] = round(used.ru_maxrss / 1024)
    print(json.dumps(found), flush=True)
    return 0


# ---------------------------------------------------------------- the soak


def say(text: str) -> None:
    """A line for whoever watches."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Soak:
    """What was found, and what of it must not be."""

    figures: dict[str, Any]
    violations: list[str]


def soak(chosen: argparse.Namespace, scale: Scale, folder: Path) -> Soak:
    """Run the user's program and the trouble beside it, and look at what is left."""
    mark = uuid.uuid4().hex
    runs = folder / "runs"
    commands = CommandLog(folder / "commands")
    with SlurmCluster(folder / "slurm", nodes=scale.nodes, cpus=4, lines=dict(scale.slurm)) as cluster:
        extra = {MARK: mark, "SLURM_CONF": str(cluster.conf), "WINDLASS_STATE_DIR": str(folder / "state")}
        words = [sys.executable, __file__, "--program", "--runs", str(runs), "--minutes", str(chosen.minutes), "--seed", str(chosen.seed)]
        words += ["--short"] if chosen.short else []
        began = time.monotonic()
        running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=commands.environment(os.environ, **extra))
        trouble = Trouble(cluster, random.Random(chosen.seed), scale.node_away, scale.controller_away)
        try:
            make_trouble(trouble, scale, began + chosen.minutes * 60 - scale.calm, lambda: running.poll() is not None)
            output, _ = running.communicate(timeout=scale.collect + chosen.minutes * 60 + 120)
        finally:
            running.kill()
            running.wait()
        lasted = time.monotonic() - began
        wait_until(lambda: not there(cluster), scale.leave)
        pilots_left = there(cluster)
        wait_until(lambda: not marked_processes(mark), scale.leave)
        processes_left = marked_processes(mark)
    if running.returncode != 0 or not output.strip():
        raise SystemExit(f"the user's program ended with status {running.returncode}; its stderr is above")
    return judge(json.loads(output), trouble, commands, runs, pilots_left, processes_left, lasted)


def there(cluster: SlurmCluster) -> list[str]:
    """Pilots that wait or run. Those that complete have ended: how long a node that was lost keeps them listed is Slurm's matter."""
    return [f"{job.id} {job.state}" for job in live_jobs(cluster) if job.state != "COMPLETING" and job.name != "first"]


def make_trouble(trouble: Trouble, scale: Scale, until: float, ended: Callable[[], bool]) -> None:
    """Faults at random intervals until then; afterwards all is mended."""
    next_at = time.monotonic() + trouble.random.expovariate(1 / scale.fault_every)
    while time.monotonic() < until and not ended():
        time.sleep(0.1)
        trouble.mend()
        if time.monotonic() >= next_at:
            fault = trouble.strike()
            if fault:
                say(f"  fault: {fault.replace('_', ' ')}")
            next_at = time.monotonic() + trouble.random.expovariate(1 / scale.fault_every)
    trouble.mend(all=True)
    say("  all is mended")


def judge(
    found: dict[str, Any],
    trouble: Trouble,
    commands: CommandLog,
    runs: Path,
    pilots_left: Sequence[str],
    processes_left: Sequence[int],
    lasted: float,
) -> Soak:
    """Put the books beside each other."""
    limits = CommandLimits()
    sent = commands.read()
    times = [command.at for command in sent]
    burst, sustained = most_within(times, 10.0), most_within(times, 600.0)
    of_call: dict[int, list[str]] = {}
    for run in read_runs(runs):
        of_call.setdefault(run.call, []).append(run.pilot.partition("+")[0])
    again = {call: pilots for call, pilots in of_call.items() if len(pilots) > 1}
    # The newest run is the one that counted, as a rule; the earlier ones were lost with their pilots.
    unexplained = [call for call, pilots in again.items() if len([pilot for pilot in pilots if pilot not in trouble.hit]) > 1]
    must_be_empty = {
        "calls were lost": found["lost"],
        "calls gave a wrong result": found["wrong"],
        "calls failed": found["failed"],
        "calls ended more than once": found["ended_twice"],
        "calls whose end nobody was told": [found["never_told"]] if found["never_told"] else [],
        "calls never ran and have a result": [call for call in range(found["calls"]) if call not in of_call and call not in found["lost"]],
        "calls ran again without a fault": unexplained,
        "pilots are left": list(pilots_left),
        "processes are left": list(processes_left),
        "commands in 10 s, too many": [burst] if burst > limits.burst else [],
        "commands in 10 min, too many": [sustained] if sustained > limits.sustained else [],
    }
    violations = [f"{text}: {whom[:10]}{' ...' if len(whom) > 10 else ''}" for text, whom in must_be_empty.items() if whom]
    figures = {
        "minutes": round(lasted / 60, 1),
        "calls": found["calls"],
        "calls_lost": len(found["lost"]),
        "calls_failed": len(found["failed"]),
        "calls_run_again": len(again),
        "faults": sum(trouble.happened.values()),
        "pilots": len({pilot for pilots in of_call.values() for pilot in pilots}),
        "pilots_left": len(pilots_left),
        "processes_left": len(processes_left),
        "commands": len(sent),
        "commands_in_10_s": burst,
        "commands_in_10_min": sustained,
        "commands_not_counted": len(sent) - sum(found["counted"].values()),
        "turnaround_p50_s": found["turnaround_p50_s"],
        "turnaround_p99_s": found["turnaround_p99_s"],
        "turnaround_longest_s": found["turnaround_longest_s"],
        "program_cpu_s": found["program_cpu_s"],
        "program_peak_mb": found["program_peak_mb"],
        "violations": len(violations),
        "by_kind": {
            "faults": dict(trouble.happened),
            "phases": found["phases"],
            "commands": dict(Counter(command.name for command in sent)),
            "commands_by_factory": found["counted"],
        },
    }
    return Soak(figures, violations)


def show(found: Soak, seed: int) -> None:
    """A table for people."""
    figures = dict(found.figures)
    by_kind: dict[str, dict[str, int]] = figures.pop("by_kind")
    print(f"Soak on a real Slurm, seed {seed}")
    for name, value in figures.items():
        print(f"  {name.replace('_', ' '):<24}{cell(value):>10}")
    for name, counts in by_kind.items():
        each = ", ".join(f"{kind} {number}" for kind, number in sorted(counts.items()))
        print(f"  {name}: {each}".replace("_", " "))
    facts = machine()
    print(f"  Python {facts['python']}, {facts['cores']} cores, {facts['cpu']}, load {facts['load']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="of demand (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of demand and faults (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="everything quicker, as the tests run it")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--keep", type=Path, help="a folder for logs, which stays (default: a temporary one)")
    parser.add_argument("--program", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--runs", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    scale = SHORT if chosen.short else LONG
    if chosen.program:
        return program(chosen, scale)
    if missing := missing_programs():
        raise SystemExit(f"this machine has no {', '.join(missing)}; apt-get install slurmctld slurmd slurm-client munge")
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        found = soak(chosen, scale, chosen.keep or Path(temporary))
    if chosen.json:
        print(json.dumps({"benchmark": "soak", **found.figures, "violated": found.violations, "machine": machine()}))
    else:
        show(found, chosen.seed)
    for violation in found.violations:
        print(f"VIOLATED: {violation}", file=sys.stderr)
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
