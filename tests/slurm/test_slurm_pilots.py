"""The whole of it on real Slurm: a manager, a factory, real pilots, real calls; and what is left of them when one is killed."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.testing import SlurmCluster

StartFactory = Callable[..., windlass.Factory]
Until = Callable[..., None]


def where(number: int) -> tuple[int, str, str, str]:
    return number * number, os.environ["SLURMD_NODENAME"], os.environ["SLURM_JOB_NAME"], os.environ["WINDLASS_PILOT"]


def of_steps() -> list[str]:
    """Environment variables by which MPI and others know a task of a job's step."""
    names = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NPROCS"}
    return sorted(name for name in os.environ if name in names or name.startswith(("SLURM_STEP", "SLURM_MPI", "PMI")))


def started(command: str) -> str:
    """What a program of the shell writes, in a call."""
    allowed = {f"{of}_ALLOW_RUN_AS_ROOT{also}": "1" for of in ("OMPI", "PRTE") for also in ("", "_CONFIRM")}
    ran = subprocess.run(command, shell=True, env={**os.environ, **allowed}, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("nodes", [1, 2])
def test_calls_start_programs_by_srun_and_mpirun(manager: windlass.Manager, start_factory: StartFactory, nodes: int) -> None:
    """A step has the environment of its call, and does not wait for the worker to end, which has all of the node."""
    manager.install_library("lib", started)
    start_factory(max_pilots=1, nodes=nodes, cores=2)
    commands = ["srun -n 2 sh -c 'echo $HYDRA_RMK'"]
    if shutil.which("mpirun"):
        commands.append("mpirun -n 2 sh -c 'echo $HYDRA_RMK'")
    calls = [manager.submit(windlass.FunctionCall("lib", "started", command)) for command in commands]
    assert {call.result(timeout=90) for call in calls} == {"user\nuser\n"}


def test_calls_run_in_pilots_that_the_factory_submits(manager: windlass.Manager, start_factory: StartFactory) -> None:
    """Demand brings pilots, each a job of the user's, calls run in them on the nodes, and closing the factory ends them all."""
    factory = start_factory(name="night-shift")
    manager.install_library("lib", where)
    futures = [manager.submit(windlass.FunctionCall("lib", "where", number)) for number in range(20)]
    answers = [future.result(timeout=60) for future in futures]
    assert [answer[0] for answer in answers] == [number * number for number in range(20)]
    assert {answer[1] for answer in answers} <= {"n1", "n2", "n3", "n4"}
    assert {answer[2].rsplit(":", 1)[0] for answer in answers} == {f"windlass:night-shift:{manager.name}"}
    assert factory.status()["paused"] == ""


def test_a_pilot_of_several_nodes_has_a_worker_on_each(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, until: Until
) -> None:
    """srun starts them; one job, one pilot, one word. Calls are no tasks of its step: MPI would wait there for those on the other node."""
    manager.install_library("lib", where, of_steps)
    factory = start_factory(max_pilots=1, nodes=2, min_pilots=1)
    until("two workers serve", lambda: len(manager.status()["workers"]) == 2)
    futures = [manager.submit(windlass.FunctionCall("lib", "where", number)) for number in range(50)]
    answers = [future.result(timeout=60) for future in futures]
    [job] = slurm.run("squeue", "-h", "-o", "%i").stdout.split()
    assert {answer[3] for answer in answers} == {job}
    assert manager.submit(windlass.FunctionCall("lib", "of_steps")).result(timeout=60) == []
    until("it is one pilot", lambda: factory.status()["pilots"] == {"serving": 1})


OPTIONS = ("--min-pilots", "2", "--max-pilots", "2", "--query-interval", "0.5s")


def test_a_factory_that_was_killed_is_followed_by_one_that_takes_over_its_pilots(
    manager: windlass.Manager, start_factory: StartFactory, until: Until
) -> None:
    """It finds them by their names, and submits none beside them."""
    words = ["factory", "run", manager.name, "slurm", "--name", "keep", *OPTIONS]
    first = subprocess.Popen([sys.executable, "-m", "windlass.cli", *words], stderr=subprocess.DEVNULL)
    try:
        until("both serve", lambda: len(manager.status()["workers"]) == 2)
    finally:
        first.kill()
        first.wait()
    pilots = {worker["pilot"] for worker in manager.status()["workers"]}
    second = start_factory(name="keep", min_pilots=2, max_pilots=2)
    until("they are its own", lambda: second.status()["pilots"] == {"serving": 2})
    commands: Any = second.status()["commands"]
    assert set(commands) == {"query"}
    assert {worker["pilot"] for worker in manager.status()["workers"]} == pilots
    # What they write is found where the first one said, and what the first one told of them goes on.
    until("their logs are found", lambda: all(row["log"] for row in manager.status()["pilots"]))
    rows = manager.status()["pilots"]
    assert {(row["pilot"], row["phase"]) for row in rows} == {(pilot, "serving") for pilot in pilots}
    folders = {Path(row["log"]).parent for row in rows}
    assert [folder.parent.name for folder in folders] == ["keep"]
    assert len(list(folders.pop().parent.iterdir())) == 2, "each run has a folder"


def test_the_same_command_takes_over_what_its_earlier_life_left(manager: windlass.Manager, until: Until) -> None:
    """Who gives it no name need not remember one."""
    words = [sys.executable, "-m", "windlass.cli", "factory", "run", manager.name, "slurm", *OPTIONS]
    first = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        until("both serve", lambda: len(manager.status()["workers"]) == 2)
    finally:
        first.kill()
        first.wait()
    pilots = {worker["pilot"] for worker in manager.status()["workers"]}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as second:
        try:
            assert second.stderr is not None
            assert "did not end in order, and takes over its pilots" in second.stderr.readline()
            until(
                "they are its own, and it has submitted none",
                lambda: [(pool["pilots"], set(pool["commands"])) for pool in manager.status()["pools"]] == [({"serving": 2}, {"query"})],
            )
            assert {worker["pilot"] for worker in manager.status()["workers"]} == pilots
            second.send_signal(signal.SIGINT)
            told = second.stderr.read()
        finally:
            second.kill()
    assert second.returncode == 0, told
    until("they are gone", lambda: not manager.status()["workers"])


SURVIVES = """
import os, sys, time
import windlass

def work(number, folder):
    with open(folder + "/ledger", "a") as ledger:
        ledger.write(f"{number} {os.environ['SLURM_JOB_ID']}\\n")
    while number >= 20 and not os.path.exists(folder + "/go"):
        time.sleep(0.02)
    return number * number

if __name__ == "__main__":
    folder = sys.argv[1]
    with windlass.Manager(journal=folder + "/journal", host="127.0.0.1") as manager:
        manager.install_library("lib", work)
        with windlass.Factory(manager, "slurm", cores=2, max_pilots=2, min_pilots=2, query_interval=0.5, grace=1):
            futures = [manager.submit(windlass.FunctionCall("lib", "work", number, folder)) for number in range(40)]
            while sum(worker["busy_cores"] for worker in manager.status()["workers"]) < float(sys.argv[2]):
                time.sleep(0.02)
            print("submitted", flush=True)
            print([future.result() for future in futures] == [number ** 2 for number in range(40)], flush=True)
"""


def test_a_program_that_is_killed_and_started_again_takes_over_its_pilots(slurm: SlurmCluster, until: Until, tmp_path: Path) -> None:
    """With a journal and nothing else said: manager and factory have the names that they had, so the next life submits no job."""
    ledger = tmp_path / "ledger"

    def lines() -> list[list[str]]:
        return [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []

    words = [sys.executable, "-c", SURVIVES, str(tmp_path)]
    with subprocess.Popen([*words, "0"], stdout=subprocess.DEVNULL) as first:
        try:
            until("20 have run, and four wait for a word", lambda: len(lines()) >= 24)
            until("both run", lambda: len({job for _, job in lines()}) == 2)
        finally:
            first.kill()
    before = lines()
    # Both have said what they run before any slot falls free: a call is given to another worker until its own one has come back.
    with subprocess.Popen([*words, "4"], stdout=subprocess.PIPE, text=True) as second:
        try:
            assert second.stdout is not None
            assert second.stdout.readline() == "submitted\n"
            (tmp_path / "go").touch()
            assert second.stdout.read() == "True\n"
        finally:
            second.kill()
    assert {job for _, job in lines()} == {job for _, job in before}
    assert len(lines()) == 40, "each ran once, also those that ran when the program was killed"
    until("both have gone with it", lambda: not slurm.run("squeue", "-h", "-o", "%i").stdout.split())


def resumable(folder: Path) -> str:
    """Count until warned; leave the number behind; a further attempt goes on there."""
    saved = folder / "checkpoint"
    begin = int(saved.read_text()) if saved.exists() else 0
    if begin:
        return f"went on at {begin}"
    count = 1
    with windlass.on_warning(lambda seconds: (folder / "left").write_text(f"{seconds}") and saved.write_text(f"{count}") and None):
        (folder / "runs").write_text(os.environ["SLURMD_NODENAME"])
        while True:
            count += 1


def until_warned() -> tuple[float, float]:
    """How much time there was, and how much was left at the warning."""
    told: queue.SimpleQueue[float] = queue.SimpleQueue()
    with windlass.on_warning(told.put):
        return windlass.time_left(), told.get(timeout=50)


def test_a_preempted_call_saves_what_it_has_and_goes_on_in_another_pilot(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, until: Until, tmp_path: Path
) -> None:
    """A job of a higher partition takes the node; the call has no retries, and needs none."""
    manager.install_library("lib", resumable)
    start_factory(max_pilots=2)
    call = manager.submit(windlass.FunctionCall("lib", "resumable", tmp_path))
    runs = tmp_path / "runs"
    until("it runs", lambda: runs.exists() and runs.read_text())
    where = runs.read_text()
    slurm.run("sbatch", "--output=/dev/null", "-p", "high", "-w", where, "-c4", "--job-name=vip", input="#!/bin/sh\nexec sleep 600\n")
    try:
        assert re.fullmatch(r"went on at \d+", call.result(timeout=60))
    finally:
        slurm.run("scancel", "--name=vip")
    assert 0 < float((tmp_path / "left").read_text()) <= 1  # the pool's grace
    assert [attempt.outcome.partition(" (")[0] for attempt in call.attempts] == ["lost with its worker"]


def test_a_call_is_warned_before_its_pilots_walltime(manager: windlass.Manager, start_factory: StartFactory) -> None:
    """A grace before the end that the worker sets itself; Slurm, which counts in minutes, never has to."""
    manager.install_library("lib", until_warned)
    start_factory(max_pilots=1, walltime=10, grace=3)
    left, warned = manager.submit(windlass.FunctionCall("lib", "until_warned")).result(timeout=60)
    assert 3 < left < 10
    assert 0 < warned <= 3


PROGRAM = """
import os, time, windlass
from windlass.factory.slurm import SlurmBackend
manager = windlass.Manager(manager_timeout=1.0, reconnect_grace=1.0, name="killed")
windlass.Factory(manager, SlurmBackend(query_interval=0.5), max_pilots=1, min_pilots=1).start()
while not manager.status()["workers"]:
    time.sleep(0.05)
print("served", flush=True)
time.sleep(600)
"""


def test_pilots_leave_by_themselves_when_manager_and_factory_are_killed(slurm: SlurmCluster, until: Until, tmp_path: Path) -> None:
    """SIGKILL to the program: there is nobody who could cancel anything."""
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "served\n"
        assert slurm.run("squeue", "-h", "-o", "%T").stdout == "RUNNING\n"
    finally:
        program.kill()
        program.communicate()
    until("the pilot has left", lambda: not slurm.run("squeue", "-h", "-o", "%i").stdout)


def test_two_pools_of_one_cluster_are_asked_for_with_one_squeue(
    manager: windlass.Manager, slurm: SlurmCluster, quick_slurm: Any, until: Until
) -> None:
    """Each has its pilot, wide calls run where they fit, and each squeue tells of both."""
    small, wide = (quick_slurm(query_interval=1.0) for _ in range(2))
    manager.install_library("lib", where)
    pools = [windlass.Pool(small, pool="small", cores=1, max_pilots=1), windlass.Pool(wide, pool="wide", cores=3, max_pilots=1)]
    with windlass.Factory(manager, pools, name="two", grace=1, idle_timeout=30, start_cost=0.1) as factory:
        one = manager.submit(windlass.FunctionCall("lib", "where", 3))
        three = manager.submit(windlass.FunctionCall("lib", "where", 4).with_options(cores=3))
        assert one.result(timeout=60)[2].startswith("windlass:two.")
        assert three.result(timeout=60)[2].startswith(f"windlass:two.wide:{manager.name}:")
        until("both are seen to run", lambda: all(factory.status(name)["pilots"] == {"serving": 1} for name in ("small", "wide")))
        commands: Any = [factory.status(name)["commands"] for name in ("small", "wide")]
        assert sum(one.get("query", 0) for one in commands) > 0
        assert small.answers + wide.answers == 0, "no query was for one of them alone"
    until("the pilots have ended", lambda: not slurm.run("squeue", "-h", "-o", "%i").stdout)
