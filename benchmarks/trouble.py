"""What may befall pilots on a real Slurm, at random: `Trouble` makes it happen, mends what is to be mended, and remembers whom it hit.

Theory of operation
-------------------
A *fault* is a method that hits something now and perhaps gives back how it is mended, and after how long.  Victims are drawn from what
Slurm lists at that moment; a fault that finds none does not happen.  Everything is drawn from one seeded generator, so that two runs with
a seed draw alike as far as the machine lets them.  Only the cluster's own jobs and daemons are touched.

`hit` has the jobs that a fault may have cost a running call, by their ids without restarts.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from recording import Job, environment_of, live_jobs, parent_of, words_of
from windlass.testing import SlurmCluster

#: Seconds between two looks of the administrator.
LOOK_EVERY: Final = 5.0
#: How a fault is mended: after so many seconds, by this.
Mend = tuple[float, Callable[[], object]]


@dataclass(slots=True)
class Trouble:
    """Makes faults happen on a cluster."""

    cluster: SlurmCluster
    random: random.Random
    #: Seconds that a node, and the controller, are away for.
    node_away: tuple[float, float]
    controller_away: tuple[float, float]
    happened: Counter[str] = field(default_factory=Counter[str])
    hit: set[str] = field(default_factory=set[str])
    _mends: list[Mend] = field(default_factory=list[Mend])
    _away: set[str] = field(default_factory=set[str])
    _controller_away: bool = False
    _look_at: float = 0.0
    _stopped: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def strike(self) -> str:
        """Let one fault happen, drawn by weight; its name, or "" when it found nothing to hit."""
        weights = {
            self.worker_killed: 6,
            self.job_cancelled: 3,
            self.queued_job_cancelled: 1,
            self.job_requeued: 3,
            self.job_preempted: 1,
            self.node_down: 1,
            self.node_lost: 1,
            self.controller_killed: 1,
            self.controller_hung: 1,
        }
        [fault] = self.random.choices(list(weights), list(weights.values()))
        try:
            hit, mend = fault()
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return ""  # the controller is away
        if not hit:
            return ""
        if mend is not None:
            self._mends.append((time.monotonic() + mend[0], mend[1]))
        name = fault.__name__
        self.happened[name] += 1
        return name

    def mend(self, *, all: bool = False) -> None:
        """Mend what is due, or everything."""
        now = time.monotonic()
        # The controller first: without it nodes cannot be mended.
        for mend in sorted(self._mends, key=lambda mend: mend[1] not in (self._controller_back, self._controller_on)):
            if all or mend[0] <= now:
                with contextlib.suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):  # then later
                    mend[1]()
                    self._mends.remove(mend)
        if all and self._mends:
            raise RuntimeError(f"cannot be mended: {self._mends}")
        if all or now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._resume_drained()

    def _resume_drained(self) -> None:
        """Slurm itself drains nodes on which it finds jobs that it took for gone; an administrator resumes them."""
        with contextlib.suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
            for row in self.cluster.run("sinfo", "-h", "-N", "-p", "batch", "-o", "%N %T").stdout.splitlines():
                node, state = row.split()
                if node not in self._away and state.startswith(("drain", "down")) and not state.endswith("*"):
                    self.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    # ---------------------------------------------------------------- faults

    def worker_killed(self) -> tuple[bool, Mend | None]:
        """SIGKILL to the worker of a pilot."""
        workers = [pid for pid in self._workers() if self._job_of(pid)]
        if not workers:
            return False, None
        pid = self.random.choice(sorted(workers))
        self.hit.add(self._job_of(pid))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True, None

    def job_cancelled(self) -> tuple[bool, Mend | None]:
        """scancel by somebody."""
        return self._to_a_job("RUNNING", "scancel"), None

    def queued_job_cancelled(self) -> tuple[bool, Mend | None]:
        return self._to_a_job("PENDING", "scancel"), None

    def job_requeued(self) -> tuple[bool, Mend | None]:
        return self._to_a_job("RUNNING", "scontrol", "requeue"), None

    def job_preempted(self) -> tuple[bool, Mend | None]:
        """A job of a partition that goes first takes a whole node for some seconds."""
        node = self.random.choice(self.cluster.nodes)
        self._hit_node(node)
        script = f"#!/bin/sh\nsleep {self.random.uniform(1, 5):.1f}\n"
        words = ("--partition=high", f"--nodelist={node}", "--exclusive", "--job-name=first", "--output=/dev/null", "--time=1")
        self.cluster.run("sbatch", *words, input=script)
        return True, None

    def node_down(self) -> tuple[bool, Mend | None]:
        """An administrator takes a node down; its jobs end."""
        node = self._node()
        self._hit_node(node)
        self.cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=soak")
        self._away.add(node)
        return True, (self.random.uniform(*self.node_away), lambda: self._node_up(node))

    def node_lost(self) -> tuple[bool, Mend | None]:
        """A node's slurmd dies: Slurm loses the node, and what runs there runs on."""
        node = self._node()
        self._hit_node(node)
        self.cluster.kill_node(node)
        self._away.add(node)
        return True, (self.random.uniform(*self.node_away), lambda: self._node_back(node))

    def controller_killed(self) -> tuple[bool, Mend | None]:
        if self._controller_away:
            return False, None
        self._controller_away = True
        # It may not have saved its state for seconds, and then it takes what runs for gone, and gives its ids again.
        self.hit |= {job.id for job in self._jobs()}
        self.cluster.kill_controller()
        return True, (self.random.uniform(*self.controller_away), self._controller_back)

    def controller_hung(self) -> tuple[bool, Mend | None]:
        """SIGSTOP to slurmctld: it takes requests and answers none."""
        if self._controller_away:
            return False, None
        self._controller_away = True
        self._stopped.enter_context(self.cluster.hung_controller())
        return True, (self.random.uniform(*self.controller_away), self._controller_on)

    # ---------------------------------------------------------------- small things

    def _to_a_job(self, state: str, *command: str) -> bool:
        jobs = [job.id for job in live_jobs(self.cluster) if job.state == state and job.name.startswith("windlass")]
        if not jobs:
            return False
        job = self.random.choice(sorted(jobs))
        self.hit.add(job)
        self.cluster.run(*command, job)
        return True

    def _node(self) -> str:
        """A node that is there, drawn from the first half, so that some work goes on."""
        half = self.cluster.nodes[: max(1, len(self.cluster.nodes) // 2)]
        return self.random.choice([node for node in half if node not in self._away] or list(half))

    def _hit_node(self, node: str) -> None:
        self.hit |= {job.id for job in self._jobs() if job.node == node}

    def _jobs(self) -> list[Job]:
        return live_jobs(self.cluster)

    def _node_up(self, node: str) -> None:
        # Meanwhile a slurmd that came back may have done so.
        if "down" in self.cluster.run("sinfo", "-h", "-n", node, "-p", "batch", "-o", "%T").stdout:
            self.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self._away.discard(node)

    def _node_back(self, node: str) -> None:
        self._hit_node(node)  # those that it was given before Slurm knew
        self.cluster.start_node(node)
        self._away.discard(node)

    def _controller_back(self) -> None:
        self.cluster.start_controller()
        self._controller_away = False

    def _controller_on(self) -> None:
        self._stopped.close()
        self._controller_away = False

    def _workers(self) -> list[int]:
        """Workers that slurmstepd has started, of this cluster's jobs."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if "windlass.worker" in words_of(pid) and self._is_ours(pid) and self._is_first(pid)]

    def _is_ours(self, pid: int) -> bool:
        return environment_of(pid).get("SLURM_CONF") == str(self.cluster.conf)

    @staticmethod
    def _is_first(pid: int) -> bool:
        with contextlib.suppress(OSError):
            return "slurmstepd" in os.readlink(f"/proc/{parent_of(pid)}/exe")
        return False

    @staticmethod
    def _job_of(pid: int) -> str:
        return environment_of(pid).get("WINDLASS_PILOT", "").partition("+")[0]
