"""What goes wrong with a real Slurm: nothing is lost, nothing is submitted twice, and unknown is never taken for gone."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.errors import OverLimit, Rejected, Unreachable
from windlass.factory.backend import Cause, Listed, PilotRequest, Tag
from windlass.factory.slurm import SlurmBackend
from windlass.testing import SlurmCluster

Start = Callable[..., SlurmBackend]
Make = Callable[..., PilotRequest]
StartFactory = Callable[..., windlass.Factory]
Until = Callable[..., None]


@pytest.fixture
def strict(strict_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """Slurm's commands speak to the strict cluster in this test."""
    monkeypatch.setenv("SLURM_CONF", str(strict_cluster.conf))
    return strict_cluster


@pytest.fixture(scope="module", autouse=True)
def overdue(remembering_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SlurmBackend, str]]:
    """A pilot whose time is over soon after the first test begins. Slurm looks at limits every 30 s, so the last test asks about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(remembering_cluster.conf))
        backend = SlurmBackend()
    backend.open(Tag("overdue", "m"), tmp_path_factory.mktemp("overdue"), lambda: None)
    request = PilotRequest(
        ticket="overdue-1",
        pool=windlass.messages.PoolName("p"),
        command=("/bin/sh", "-c", "trap 'echo heard; exit 0' TERM; while :; do sleep 0.1; done"),
        resources=windlass.messages.Resources(1.0),
        walltime=60.0,
    )
    [job] = backend.submit(request, 1)
    end = time.monotonic() + 30
    while [state.listed for state in backend.query()] != [Listed.RUNNING]:
        assert time.monotonic() < end
        time.sleep(0.05)
    soon = datetime.datetime.now() + datetime.timedelta(seconds=2)
    remembering_cluster.run("scontrol", "update", f"JobId={job}", f"EndTime={soon:%Y-%m-%dT%H:%M:%S}")
    yield backend, job
    backend.cancel_all()


def jobs_of(backend: SlurmBackend) -> set[str]:
    """Pilots that have not ended."""
    return {state.job for state in backend.query() if state.listed is not Listed.ENDED}


# ---------------------------------------------------------------- no answer


def test_a_killed_controller_is_silence_and_everything_is_there_when_it_is_back(
    start_backend: Start,
    make_request: Make,
    manager: windlass.Manager,
    start_factory: StartFactory,
    slurm: SlurmCluster,
    listing: Any,
    until: Until,
) -> None:
    """Every command says `Unreachable`. Pilots are connected to the manager and run calls all the same; none are submitted in their place."""
    manager.install_library("lib", os.getpid)
    factory = start_factory(max_pilots=1, name="works-on")
    first = manager.submit(windlass.FunctionCall("lib", "getpid")).result(timeout=60)
    backend = start_backend()
    [stays] = backend.submit(make_request(), 1)
    listing(backend).until(stays, Listed.RUNNING)
    saved = slurm.folder / "state" / "job_state"
    changed = time.time()
    until("the controller has saved what it knows, which it does every few seconds", lambda: saved.stat().st_mtime > changed)
    slurm.kill_controller()
    try:
        with pytest.raises(Unreachable, match="Unable to contact slurm controller"):
            backend.query()
        with pytest.raises(Unreachable, match="Unable to contact slurm controller"):
            backend.submit(make_request(), 1)
        with pytest.raises(Unreachable, match="Unable to contact slurm controller"):
            backend.cancel([stays])
        until("the silence is noticed", lambda: "Unable to contact" in str(factory.status()["failure"]))
        assert manager.submit(windlass.FunctionCall("lib", "getpid")).result(timeout=60) == first
        assert factory.status()["pilots"] == {"serving": 1}
    finally:
        slurm.start_controller()
    assert listing(backend).until(stays, Listed.RUNNING).restart == 0
    assert jobs_of(backend) == {stays}
    assert manager.submit(windlass.FunctionCall("lib", "getpid")).result(timeout=60) == first
    assert factory.status()["commands"]["submit"] == 1  # type: ignore[index]


def test_what_was_asked_of_a_controller_that_hung_may_have_happened(
    start_backend: Start, make_request: Make, slurm: SlurmCluster, listing: Any
) -> None:
    """The job is submitted when the controller wakes, and the one that was cancelled is cancelled: the ticket in its name tells."""
    backend = start_backend()
    [job] = backend.submit(make_request(), 1)
    with slurm.hung_controller():
        with pytest.raises(Unreachable, match="Socket timed out"):
            backend.submit(make_request(ticket="f-2"), 1)
        with pytest.raises(Unreachable, match="Socket timed out"):
            backend.cancel([job])
    listing(backend).until(job, Listed.ENDED)
    assert [state.ticket for state in backend.query() if state.listed is not Listed.ENDED] == ["f-2"]


def test_a_factory_does_not_submit_twice_what_a_hung_controller_has_taken(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, until: Until
) -> None:
    """A submission without an answer counts as pilots until a query settles it."""
    manager.install_library("lib", os.getpid)
    factory = start_factory(max_pilots=4, own={"query_interval": 4.0})
    until("the first query", lambda: factory.status()["commands"])
    with slurm.hung_controller():
        future = manager.submit(windlass.FunctionCall("lib", "getpid"))
        until("the submission is unsure", lambda: "Socket timed out" in str(factory.status()["failure"]))
        assert factory.status()["pilots"] == {"queued": 1}
    assert future.result(timeout=60)
    until("it is settled", lambda: factory.status()["pilots"] == {"serving": 1})
    assert len(slurm.run("squeue", "-h", "-o", "%i").stdout.split()) == 1
    assert factory.status()["paused"] == ""


def test_without_munge_nothing_is_known(start_backend: Start, make_request: Make, slurm: SlurmCluster) -> None:
    backend = start_backend()
    [job] = backend.submit(make_request(), 1)
    with slurm.munge_down():
        with pytest.raises(Unreachable, match="Munge encode failed"):
            backend.query()
        with pytest.raises(Unreachable, match="Munge encode failed"):
            backend.submit(make_request(), 1)
    assert jobs_of(backend) == {job}


def test_a_command_that_hangs_is_given_up(
    start_backend: Start, make_request: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without its configuration each command would try for a minute."""
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "nowhere"))
    backend = SlurmBackend(command_timeout=0.3)
    backend.open(Tag("f", "m"), tmp_path, lambda: None)
    with pytest.raises(Unreachable, match=r"squeue gave no answer in time: .*cannot stat file"):
        backend.query()
    with pytest.raises(Unreachable, match="sbatch gave no answer in time"):
        backend.submit(make_request(), 1)


# ---------------------------------------------------------------- refused, too many, impossible


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"partition": "nosuch"}, "invalid partition specified: nosuch; .*Invalid partition name specified"),
        ({"constraint": "purple"}, "Invalid feature specification"),
        ({"gres": "fpga:1"}, r"Invalid generic resource \(gres\) specification"),
        ({"reservation": "theirs"}, "Requested reservation is invalid"),
        ({"extra_directives": "--no-such"}, "unrecognized option '--no-such'"),
    ],
)
def test_what_is_refused_as_asked_is_rejected_in_slurm_s_words(
    start_backend: Start, make_request: Make, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(Rejected, match=text):
        start_backend(**options).submit(make_request(), 1)


def test_a_refused_pool_pauses_and_its_calls_say_why(manager: windlass.Manager, start_factory: StartFactory, until: Until) -> None:
    """A wrong partition is no silent hang."""
    factory = start_factory(own={"partition": "nosuch"})
    manager.install_library("lib", os.getpid)
    future = manager.submit(windlass.FunctionCall("lib", "getpid"))
    until("it is paused", lambda: factory.paused)
    assert "Invalid partition name specified" in factory.paused
    assert factory.status()["commands"] == {"query": 1, "submit": 1}
    with pytest.raises(windlass.errors.NotPossible, match="Invalid partition name specified"):
        future.result(timeout=10)


def test_too_many_jobs_are_a_limit_and_told_at_once(strict: SlurmCluster, start_backend: Start, make_request: Make) -> None:
    """sbatch would wait for a minute and a half; nothing was submitted then."""
    backend = start_backend("many")
    backend.submit(make_request(ticket="many-1"), 3)
    with pytest.raises(OverLimit, match="unable to accept job"):
        backend.submit(make_request(ticket="many-2"), 4)
    assert {state.ticket for state in backend.query()} == {"many-1"}
    backend.cancel_all()


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ({"partition": "short"}, {"walltime": 3600.0}, "Partition(TimeLimit|Config)"),
        ({"partition": "down"}, {}, "PartitionDown"),
        ({}, {"nodes": 99}, "PartitionConfig"),
        ({"extra_directives": "--hold"}, {}, "JobHeldUser"),
    ],
)
def test_what_is_accepted_and_can_never_start_is_held(
    start_backend: Start, make_request: Make, listing: Any, options: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    """Slurm takes such jobs and lets them wait for ever."""
    backend = start_backend(**options)
    [job] = backend.submit(make_request(**changes), 1)
    assert re.match(f"{reason}: ", listing(backend).until(job, Listed.HELD).reason)


def test_a_factory_takes_back_pilots_that_never_start_and_says_why(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, until: Until
) -> None:
    """They count as failures of the pool, and are not left in the queue."""
    factory = start_factory(own={"partition": "short"}, walltime="1h", max_pilots=1)
    manager.install_library("lib", os.getpid)
    future = manager.submit(windlass.FunctionCall("lib", "getpid"))
    until("the reason is told", lambda: "held: Partition" in str(factory.status()["failure"]))
    until("it is removed", lambda: not slurm.run("squeue", "-h", "-o", "%i").stdout)
    future.cancel()


# ---------------------------------------------------------------- nodes, restarts, ends


def test_a_failing_prolog_leaves_the_pilot_held(strict: SlurmCluster, start_backend: Start, make_request: Make, listing: Any) -> None:
    """Slurm drains the node, puts the job back, and holds it."""
    bad = strict.folder / "bad-nodes"
    bad.write_text("n2\n")
    try:
        backend = start_backend("prolog", extra_directives="--nodelist=n2")
        [job] = backend.submit(make_request(), 1)
        held = listing(backend).until(job, Listed.HELD)
        assert held.reason == "launch failed requeued held: its node could not start it; sinfo -R may say why"
        backend.cancel([job])
        assert listing(backend).until(job, Listed.ENDED).cause is Cause.CANCELLED
    finally:
        bad.unlink()
        strict.run("scontrol", "update", "NodeName=n2", "State=RESUME")
        strict.wait_for_nodes()


def test_a_requeued_pilot_is_another_one_under_the_same_id(
    start_backend: Start, make_request: Make, slurm: SlurmCluster, listing: Any
) -> None:
    """Ending, queued, running again: with the restart counted, in its own word, too; and its log goes on."""
    backend = start_backend()
    body = "import os, time; print('here', os.environ['WINDLASS_PILOT'], flush=True); time.sleep(600)"
    [job] = backend.submit(make_request(body), 1)
    assert listing(backend).until(job, Listed.RUNNING).restart == 0
    slurm.run("scontrol", "requeue", job)
    seen: list[Listed] = []
    again = listing(backend).until(job, Listed.QUEUED, seen=seen)
    assert again.restart == 1
    assert Listed.ENDED not in seen
    assert listing(backend).until(job, Listed.RUNNING).restart == 1
    while backend.tail(job).count("here") < 2:
        listing(backend).until(job, Listed.RUNNING)
    assert re.findall(r"^here (.*)$", backend.tail(job), re.MULTILINE) == [job, f"{job}+1"]


def test_a_preempted_pilot_is_queued_again_or_has_ended(
    start_backend: Start, make_request: Make, slurm: SlurmCluster, listing: Any
) -> None:
    """By preemption, which is nobody's fault; in between it is ending, whatever comes."""
    again = start_backend("again", extra_directives="--nodelist=n3", requeue=True)
    never = start_backend("never", extra_directives="--nodelist=n3", requeue=False)
    [first] = again.submit(make_request(resources=windlass.messages.Resources(2.0)), 1)
    [second] = never.submit(make_request(resources=windlass.messages.Resources(2.0)), 1)
    listing(again).until(first, Listed.RUNNING)
    listing(never).until(second, Listed.RUNNING)
    slurm.run("sbatch", "--output=/dev/null", "-p", "high", "-w", "n3", "-c4", "--job-name=vip", input="#!/bin/sh\nexec sleep 600\n")
    try:
        seen: list[Listed] = []
        queued = listing(again).until(first, Listed.QUEUED, seen=seen)
        assert queued.restart == 1
        assert Listed.ENDED not in seen
        ended = listing(never).until(second, Listed.ENDED)
        assert (ended.cause, ended.reason) == (Cause.PREEMPTED, "PREEMPTED")
    finally:
        slurm.run("scancel", "--name=vip")


def test_a_lost_node_ends_its_pilots_or_queues_them_again(
    start_backend: Start, make_request: Make, slurm: SlurmCluster, listing: Any
) -> None:
    """Slurm notices after its own time-out. Until then the pilots are listed as running, and as nothing worse."""
    again = start_backend("again", extra_directives="--nodelist=n4", requeue=True)
    never = start_backend("never", extra_directives="--nodelist=n4", requeue=False)
    [first] = again.submit(make_request(), 1)
    [second] = never.submit(make_request(), 1)
    listing(again).until(first, Listed.RUNNING)
    listing(never).until(second, Listed.RUNNING)
    slurm.kill_node("n4")
    try:
        ended = listing(never).until(second, Listed.ENDED, timeout=60)
        assert (ended.cause, ended.reason) == (Cause.NODE, "NODE_FAIL: NodeDown")
        seen: list[Listed] = []
        queued = listing(again).until(first, Listed.QUEUED, Listed.HELD, seen=seen)
        assert (queued.listed, queued.restart) == (Listed.QUEUED, 1)
        assert Listed.ENDED not in seen
    finally:
        slurm.start_node("n4")
        slurm.wait_for_nodes()


def test_a_call_whose_pilot_is_requeued_runs_again_without_a_retry(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, until: Until, tmp_path: Path
) -> None:
    """Its next start is a new pilot for manager and factory alike."""
    counter, go = tmp_path / "started", tmp_path / "go"

    def wait_for(go: Path, counter: Path) -> str:
        import os
        import time

        with counter.open("a") as file:
            file.write(f"{os.environ['WINDLASS_PILOT']}\n")
        while not go.exists():
            time.sleep(0.01)
        return os.environ["WINDLASS_PILOT"]

    manager.install_library("lib", wait_for)
    start_factory(max_pilots=1)
    future = manager.submit(windlass.FunctionCall("lib", "wait_for", go, counter))
    until("it runs", counter.exists)
    [job] = slurm.run("squeue", "-h", "-o", "%i").stdout.split()
    slurm.run("scontrol", "requeue", job)
    until("it runs again", lambda: len(counter.read_text().split()) == 2, 60)
    go.touch()
    assert future.result(timeout=60) == f"{job}+1"
    assert counter.read_text().split() == [job, f"{job}+1"]


def test_a_pilot_past_its_time_has_ended_for_that(overdue: tuple[SlurmBackend, str], listing: Any) -> None:
    """It hears SIGTERM first; its end is the walltime's, not a failure."""
    backend, job = overdue
    ended = listing(backend).until(job, Listed.ENDED, timeout=100)
    assert (ended.cause, ended.reason) == (Cause.WALLTIME, "TIMEOUT: TimeLimit")
    assert "DUE TO TIME LIMIT" in backend.tail(job)
    assert "heard" in backend.tail(job)
