"""A cluster of 10,000 pilots under a virtual clock, with the real cores of manager, factory and workers: what decisions cost, and what they
are worth.

Theory of operation
-------------------
Three parts:

steady    10, 100, 1,000 and 10,000 pilots of 8 slots that all serve, calls of 1 s: what a call costs the manager's core with each number
          (processor time), and how busy slots are. ``growth_10_to_10000`` holds all that the cores did with 10,000 pilots (calls, timer,
          demand, factory) against what the calls alone cost with 10, where few calls share the same timer.
run       10 million calls of four libraries, one of which needs a file of 10 GB, over 10,000 pilots in four pools: queues, walltimes,
          preemption, nodes that die or end every pilot, connections that are cut, commands without an answer (`simulated_batch`).
memory    calls of two milliseconds on 100 workers that come and go, each for two seconds: cost and memory from first to last. It runs in a
          process of its own.

Everything comes from ``--seed``; processor time alone differs from run to run. Exit status 1: something did not hold that must
(`simulated_cluster.Cluster.check`); ``--json`` says what in ``violations``.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cell, machine
from simulated_batch import Site
from simulated_cluster import Cluster, Kind
from windlass.factory.backend import OWN_MACHINE
from windlass.messages import CallOptions, Resources

CORES = 8
#: What growth is measured over.
SIZES = (10, 100, 1000, 10_000)
#: Calls of the steady part for each slot, and at least.
PER_SLOT, LEAST = 25, 50_000
#: Hours of virtual time after which a run counts as stuck.
STUCK = 48 * 3600.0


def peak_mb() -> float:
    """Resident memory of this process at its most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("no VmRSS")


def cpu_seconds() -> float:
    return time.process_time()


# ---------------------------------------------------------------- steady


class Window:
    """What the cores spend while all slots could be busy: from when nearly all are until no call waits any more."""

    def __init__(self, cluster: Cluster, slots: int) -> None:
        self.cluster, self._slots = cluster, slots
        self.began = self.ended = False
        self._first: list[float] = []
        self.figures: dict[str, float] = {}
        cluster.on_look = self._look

    def _now(self) -> list[float]:
        cluster, spent = self.cluster, self.cluster.manager.spent
        factory = sum(keeper.spent for keeper in cluster.keepers)
        areas = [cluster.busy.area, cluster.usable.area]
        return [cluster.clock.now, cluster.program.done, spent.calls, spent.timer, spent.demand + factory, spent.workers, *areas]

    def _look(self) -> None:
        cluster = self.cluster
        if not self.began and cluster.busy.value >= 0.98 * self._slots:
            self.began, self._first = True, self._now()
        elif self.began and not self.ended and not cluster.program.waiting:
            self.ended = True
            seconds, calls, of_calls, timer, factory, workers, busy, usable = [b - a for a, b in zip(self._first, self._now(), strict=True)]
            self.figures = {
                "us_per_call": of_calls / calls / 1e3,
                "us_per_call_all": (of_calls + timer + factory + workers) / calls / 1e3,
                "timer_ms_per_s": timer / seconds / 1e6,
                "demand_and_factory_ms_per_s": factory / seconds / 1e6,
                "utilisation": busy / usable,
            }


def steady(pilots: int, seed: int, message_us: float, calls: int, seconds: float) -> tuple[dict[str, float], Cluster]:
    """Calls of ``seconds`` on so many pilots, which all come at once."""
    slots = pilots * CORES
    options: dict[str, object] = {"max_queued": pilots, "start_cost": 0.001}
    site = Site(name="pool", nodes=pilots, limits=OWN_MACHINE, max_batch=pilots, options=options)
    kinds = [Kind(name="second", seconds=seconds)]
    cluster = Cluster(seed, [site], kinds, calls or max(LEAST, PER_SLOT * slots), message_us=message_us)
    window = Window(cluster, slots)
    cluster.run(seconds=STUCK, checks=2)
    if not window.ended:
        cluster.violations.append(f"{pilots} pilots never were busy all at once: give the part more calls")
        return {}, cluster
    spent = cluster.manager.spent
    return {**window.figures, "us_per_join": spent.workers / spent.joins / 1e3}, cluster


def steady_part(chosen: argparse.Namespace) -> dict[str, Any]:
    sizes = [size for size in SIZES if size <= chosen.pilots]
    found: dict[str, Any] = {}
    by_size: dict[int, dict[str, float]] = {}
    for size in sizes:
        figures, cluster = steady(size, chosen.seed, chosen.message_us, chosen.steady_calls, chosen.seconds)
        by_size[size] = figures
        found.setdefault("violations", []).extend(f"steady, {size} pilots: {text}" for text in cluster.violations)
        found |= {f"{key}_{size}": round(value, 3) for key, value in figures.items()}
        del cluster
        gc.collect()
    first, last = by_size[sizes[0]], by_size[sizes[-1]]
    if first and last:
        found["growth_of_calls"] = round(last["us_per_call"] / first["us_per_call"], 2)
        found["growth_10_to_10000"] = round(last["us_per_call_all"] / first["us_per_call"], 2)
        found["utilisation"] = round(last["utilisation"], 4)
    return found


# ---------------------------------------------------------------- run


def sites(pilots: int) -> list[Site]:
    """Four batch systems, in the order in which the factory prefers them."""
    most: dict[str, object] = {"max_queued": max(8, pilots // 5), "hold": 60.0, "idle_timeout": 60.0}
    return [
        Site(
            name="cluster",
            nodes=max(2, pilots * 45 // 100),
            walltime=1200,
            wait=40,
            dies=50_000,
            cut=20_000,
            unreachable=0.02,
            options=most,
        ),
        Site(name="short", nodes=max(2, pilots * 25 // 100), walltime=600, wait=15, start=2, dies=50_000, cut=20_000, options=most),
        Site(name="spare", nodes=max(2, pilots * 25 // 100), wait=60, preempted=1500, requeues=True, max_batch=1000, options=most),
        Site(
            name="flaky",
            nodes=max(20, pilots * 5 // 100),
            walltime=900,
            wait=30,
            dies=3_000,
            cut=3_000,
            black_holes=0.05,
            unreachable=0.1,
            most_queued=max(4, pilots // 100),
            options=most,
        ),
    ]


def kinds(file_bytes: int) -> list[Kind]:
    """Four libraries."""
    wide = CallOptions(retries=2, needs=Resources(4.0))
    long = CallOptions(retries=2, max_losses=100)
    return [
        Kind(name="second", share=0.50, seconds=1.0, raises=0.001),
        Kind(name="steady", share=0.40, seconds=10.0, spread=0.6, start=10.0, dies=0.001, options=long),
        Kind(name="common", share=0.09, seconds=20.0, spread=0.2, start=5.0, input_bytes=file_bytes, options=long),
        Kind(name="wide", share=0.01, seconds=15.0, options=wide),
    ]


def run_part(chosen: argparse.Namespace) -> dict[str, Any]:
    began = cpu_seconds()
    cluster = Cluster(chosen.seed, sites(chosen.pilots), kinds(chosen.file_bytes), chosen.calls, waiting=200 * chosen.pilots)
    cluster.run(seconds=STUCK, checks=10, progress=lambda text: print(f"run: {text}", file=sys.stderr, flush=True))
    took = cpu_seconds() - began
    manager, spent = cluster.manager, cluster.manager.spent
    counts = [batch.counts for batch in cluster.batches]
    factory = sum(keeper.spent for keeper in cluster.keepers)
    decisions = spent.decisions + sum(keeper.instructions for keeper in cluster.keepers)
    in_cores = (spent.calls + spent.timer + spent.demand + spent.workers + factory) / 1e9
    started, seconds = sum(one.started for one in counts), sum(one.seconds for one in counts)
    return {
        "calls": cluster.program.done,
        "decisions": decisions,
        "events_per_s": round(decisions / in_cores),
        "simulated_events_per_s": round(cluster.clock.events / took),
        "cpu_s": round(took, 1),
        "manager_s": round(in_cores - factory / 1e9, 1),
        "factory_s": round(factory / 1e9, 1),
        "virtual_s": round(cluster.makespan),
        "utilisation_run": round(cluster.utilisation, 3),
        "pilots_at_most": cluster.most_workers,
        "pilots_started": started,
        "pilots_wasted": sum(one.wasted for one in counts),
        "wasted_share": round(sum(one.wasted_seconds for one in counts) / seconds, 4) if seconds else 0.0,
        "preempted": sum(one.preempted for one in counts),
        "nodes_lost": sum(one.nodes_lost for one in counts),
        "died_at_start": sum(one.died_at_start for one in counts),
        "connections_cut": sum(one.cuts for one in counts),
        "commands": sum(len(keeper.commands) for keeper in cluster.keepers),
        "commands_unanswered": sum(one.unanswered for one in counts),
        "calls_run_again": manager.core.failures.lost + manager.core.failures.retried,
        "files_sent": sum(cluster.network.sent.values()),
        "files_sent_by_manager": cluster.network.sent["manager"],
        "violations": [f"run: {text}" for text in cluster.violations],
    }


# ---------------------------------------------------------------- memory


def memory_part(chosen: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: what memory other parts have had would hide its growth."""
    words = [sys.executable, __file__, "--memory-only", "--memory-calls", str(chosen.memory_calls), "--seed", str(chosen.seed)]
    found: dict[str, Any] = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


def memory(calls: int, seed: int) -> dict[str, Any]:
    """Short calls on workers that come and go; looked at 20 times."""
    nodes = 100
    options: dict[str, object] = {"max_queued": nodes, "start_cost": 0.001}
    site = Site(
        name="pool", nodes=nodes, limits=OWN_MACHINE, max_batch=nodes, start=0.1, preempted=2.0, requeues=True, grace=1.0, options=options
    )
    kind = Kind(name="quick", seconds=0.002, start=0.05)
    cluster = Cluster(seed, [site], [kind], calls, turn_seconds=0.005)
    program, spent = cluster.program, cluster.manager.spent
    sizes: list[float] = []
    costs: list[float] = []
    last = [0, 0]

    def look() -> None:
        if program.done > last[1] and program.done * 20 >= calls * (len(sizes) + 1):
            gc.collect()
            sizes.append(resident_mb())
            costs.append((spent.calls - last[0]) / (program.done - last[1]) / 1e3)
            last[:] = spent.calls, program.done

    cluster.on_look = look
    cluster.run(seconds=STUCK, checks=1)
    if len(sizes) < 4:
        return {"calls": program.done, "violations": [*cluster.violations, "too few calls to tell anything by: give the part more"]}
    half = len(sizes) // 2
    return {
        "calls": program.done,
        "us_per_call": round(sum(costs) / len(costs), 2),
        "last_cost_vs_second": round(costs[-1] / costs[1], 2),
        # The least of each half: a dict of 200,000 entries that come and go has 20 MB more or less, by how it stands at the moment.
        "growth": round(min(sizes[half:]) / min(sizes[1:half]) - 1, 3),
        "mb_most": round(max(sizes)),
        "mb": round(sizes[-1]),
        "workers_in_all": spent.joins,
        "violations": cluster.violations,
    }


PARTS = {"steady": steady_part, "run": run_part, "memory": memory_part}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A cluster of 10,000 pilots under a virtual clock, with the real cores.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument("--parts", default="steady,run,memory", help="default: %(default)s")
    parser.add_argument("--pilots", type=int, default=10_000, help="at most, in the parts steady and run (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=10_000_000, help="of the part run (default: %(default)s)")
    parser.add_argument("--steady-calls", type=int, default=0, help=f"of the part steady; 0: {PER_SLOT} for each slot, at least {LEAST:,}")
    parser.add_argument("--seconds", type=float, default=1.0, help="that a call of the part steady takes (default: %(default)s)")
    parser.add_argument("--memory-calls", type=int, default=1_000_000, help="of the part memory (default: %(default)s)")
    parser.add_argument("--file-bytes", type=int, default=10_000_000_000, help="of the common input (default: %(default)s)")
    parser.add_argument("--message-us", type=float, default=0.0, help="time that the manager needs for a message, in the part steady")
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    if chosen.memory_only:
        print(json.dumps(memory(chosen.memory_calls, chosen.seed)))
        return 0
    figures: dict[str, Any] = {}
    violations: list[str] = []
    for name in chosen.parts.split(","):
        found = PARTS[name](chosen)
        violations += found.pop("violations")
        figures |= {f"memory_{key}": value for key, value in found.items()} if name == "memory" else found
        if not chosen.json:
            print(f"{name}: " + "   ".join(f"{key} {cell(value)}" for key, value in found.items()), flush=True)
    figures["peak_mb"] = round(peak_mb())
    if chosen.json:
        print(json.dumps({"benchmark": "simulate", **figures, "violations": violations, "machine": machine()}))
    else:
        print(f"peak memory {figures['peak_mb']} MB")
    for text in violations:
        print(f"does not hold: {text}", file=sys.stderr)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
