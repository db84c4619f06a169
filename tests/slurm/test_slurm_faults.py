"""What goes wrong with a real Slurm: nothing is lost, nothing is submitted twice, and unknown is never taken for gone."""

from __future__ import annotations

import datetime
import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import windlass
from windlass.errors import NotPossible, OverLimit, Rejected, Unreachable
from windlass.factory import slurm_words
from windlass.factory.backend import Cause, JobId, Listed, NoNodeLeft, PilotRequest, Tag
from windlass.factory.slurm import SlurmBackend
from windlass.messages import PoolName, Resources
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


@dataclass(frozen=True)
class Stories:
    """What takes Slurm long: begun before the first test, asked about by the last ones."""

    backend: SlurmBackend
    factory: windlass.Factory
    overdue: str
    on_lost_node: str
    on_lost_node_for_good: str
    call: windlass.CallFuture[str]
    requeued: str
    started: Path
    go: Path


def wait_for(go: Path, started: Path) -> str:
    with started.open("a") as file:
        file.write(f"{os.environ['WINDLASS_PILOT']}\n")
    while not go.exists():
        time.sleep(0.01)
    return os.environ["WINDLASS_PILOT"]


@pytest.fixture(scope="module", autouse=True)
def stories(
    remembering_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory, quick_slurm: type[SlurmBackend], until_in_module: Until
) -> Iterator[Stories]:
    """On a cluster of their own: a pilot that is past its time, pilots on a node that is lost, a call whose pilot is queued again."""
    cluster, folder = remembering_cluster, tmp_path_factory.mktemp("stories")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as opened:
        patch.setenv("SLURM_CONF", str(cluster.conf))
        manager = opened.enter_context(windlass.Manager())
        manager.install_library("lib", wait_for)
        options: dict[str, Any] = {"grace": 1, "max_pilots": 1, "hold": 0.5, "start_cost": 0.1}
        factory = opened.enter_context(windlass.Factory(manager, quick_slurm(extra_directives="--nodelist=n3"), **options))
        call: Any = manager.submit(windlass.FunctionCall("lib", "wait_for", folder / "go", folder / "started"))

        def submit(name: str, command: tuple[str, ...], *directives: str) -> str:
            own = quick_slurm(extra_directives=directives)
            own.open(Tag("stories", "m"), folder, lambda: None)
            needs = Resources(1.0)
            [job] = own.submit(PilotRequest(ticket=name, pool=PoolName("p"), command=command, resources=needs, walltime=60.0), 1)
            return job

        hears = ("/bin/sh", "-c", "trap 'echo heard; exit 0' TERM; while :; do sleep 0.1; done")
        overdue = submit("overdue", hears, "--nodelist=n1")
        stays = ("/bin/sh", "-c", "echo started; exec sleep 600")
        lost, for_good = submit("lost", stays, "--nodelist=n2"), submit("for-good", stays, "--nodelist=n2", "--no-requeue")
        backend = quick_slurm()  # a later life of the same factory: it finds what was submitted, and its logs
        backend.open(Tag("stories", "m"), folder, lambda: None)
        opened.callback(backend.cancel_all)
        until_in_module("all run", lambda: [state.listed for state in backend.query()] == [Listed.RUNNING] * 3)
        # Listed as running before their node has heard of them: one that it never heard of would be queued again, whatever was asked.
        until_in_module("they have started", lambda: all("started" in backend.tail(JobId(job)) for job in (lost, for_good)))
        soon = datetime.datetime.now() + datetime.timedelta(seconds=2)
        cluster.run("scontrol", "update", f"JobId={overdue}", f"EndTime={soon:%Y-%m-%dT%H:%M:%S}")
        cluster.kill_node("n2")
        until_in_module("the call runs", (folder / "started").exists)
        requeued = (folder / "started").read_text().strip()
        cluster.run("scontrol", "requeue", requeued)
        yield Stories(backend, factory, overdue, lost, for_good, call, requeued, folder / "started", folder / "go")
        (folder / "go").touch()


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
    """Every command says `Unreachable`. Pilots are connected to the manager and run calls all the same; none take their place."""
    manager.install_library("lib", os.getpid)
    factory = start_factory(max_pilots=1, name="works-on", idle_timeout=300)
    first = manager.submit(windlass.FunctionCall("lib", "getpid")).result(timeout=60)
    backend = start_backend()
    [stays] = backend.submit(make_request(), 1)
    listing(backend).until(stays, Listed.RUNNING)
    saved = slurm.folder / "state" / "job_state"
    changed = time.time()
    slurm.run("scontrol", "update", f"job={stays}", "comment=changed")  # else nothing may be left to save
    until("the controller has saved what it knows, which it does within seconds of a change", lambda: saved.stat().st_mtime > changed)
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


def test_what_was_asked_of_a_hung_controller_may_have_happened_and_is_not_asked_twice(
    start_backend: Start,
    make_request: Make,
    manager: windlass.Manager,
    start_factory: StartFactory,
    slurm: SlurmCluster,
    listing: Any,
    until: Until,
) -> None:
    """When the controller wakes, the job is submitted, and the one that was cancelled is cancelled. A submission without an answer
    counts as pilots until a query settles it, by the ticket in the job's name."""
    backend = start_backend()
    [job] = backend.submit(make_request(), 1)
    manager.install_library("lib", os.getpid)
    factory = start_factory(max_pilots=4, own={"query_interval": 4.0})
    own: Any = factory.backend
    until("the first query was answered", lambda: own.answers)
    with slurm.hung_controller():
        future = manager.submit(windlass.FunctionCall("lib", "getpid"))
        with pytest.raises(Unreachable, match="Socket timed out"):
            backend.cancel([job])
        until("the submission is unsure", lambda: "Socket timed out" in str(factory.status()["failure"]))
        assert factory.status()["pilots"] == {"queued": 1}
    assert future.result(timeout=60)
    until("it is settled", lambda: factory.status()["pilots"] == {"serving": 1})
    # It may have taken longer than Slurm remembers ended jobs.
    until("it is cancelled", lambda: (state := listing(backend).now().get(job)) is None or state.listed is Listed.ENDED)
    assert len(slurm.run("squeue", "-h", "-o", "%i").stdout.split()) == 1
    assert factory.status()["paused"] == ""


def test_without_munge_nothing_is_known(start_backend: Start, make_request: Make, slurm: SlurmCluster) -> None:
    backend = start_backend()
    [job] = backend.submit(make_request(), 1)
    with slurm.munge_down(), pytest.raises(Unreachable, match="Munge encode failed"):
        backend.query()
    assert jobs_of(backend) == {job}


def test_a_command_that_hangs_is_given_up(
    start_backend: Start, make_request: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without its configuration each command would try for a minute."""
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "nowhere"))
    backend = SlurmBackend(command_timeout=2.0)
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
    with pytest.raises(NotPossible, match="Invalid partition name specified"):
        future.result(timeout=10)


def test_too_many_jobs_are_a_limit_and_told_at_once(strict: SlurmCluster, start_backend: Start, make_request: Make) -> None:
    """sbatch would wait for a minute and a half; nothing was submitted then."""
    backend = start_backend("many")
    backend.submit(make_request(ticket="many-1"), 3)
    with pytest.raises(OverLimit, match=r"unable to accept job|queue full"):
        backend.submit(make_request(ticket="many-2"), 4)
    assert {state.ticket for state in backend.query()} == {"many-1"}
    backend.cancel_all()


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ({"partition": "short"}, {"walltime": 3600.0}, "Partition(TimeLimit|Config)"),
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


def test_pilots_keep_their_places_while_a_partition_is_down(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, until: Until
) -> None:
    """As for an upgrade. The pool is not paused, the reason is told, and the same jobs run when it is up again."""

    def queries() -> int:
        return int(factory.status()["commands"].get("query", 0))  # type: ignore[attr-defined]

    slurm.run("scontrol", "update", "PartitionName=high", "State=DOWN")
    try:
        factory = start_factory(own={"partition": "high"}, max_pilots=3, min_pilots=3)
        until("they wait", lambda: "PartitionDown: the partition is down" in str(manager.status()))
        waiting = set(slurm.run("squeue", "-h", "-r", "-o", "%i").stdout.split())
        asked = queries()
        until("they were asked for again", lambda: queries() > asked + 2)
    finally:
        slurm.run("scontrol", "update", "PartitionName=high", "State=UP")
    until("they run", lambda: len(manager.status()["workers"]) == 3)
    assert set(slurm.run("squeue", "-h", "-r", "-o", "%i").stdout.split()) == waiting
    assert factory.paused == ""


def test_calls_wait_while_a_partition_takes_no_jobs(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, until: Until
) -> None:
    """As one that is drained for maintenance: sbatch refuses its jobs then, and takes them again afterwards."""
    manager.install_library("lib", os.getpid)
    slurm.run("scontrol", "update", "PartitionName=high", "State=DRAIN")
    try:
        factory = start_factory(own={"partition": "high"}, max_pilots=1)
        future = manager.submit(windlass.FunctionCall("lib", "getpid"))
        until("it is refused", lambda: "takes no pilots for now (" in str(factory.status()["waits"]))
        assert "inactive or drain" in str(factory.status()["failure"])
        assert factory.paused == ""
    finally:
        slurm.run("scontrol", "update", "PartitionName=high", "State=UP")
    factory.resume()  # nobody is to wait for five minutes here
    assert future.result(timeout=60)


@pytest.mark.parametrize(
    ("avoid", "excluded"),
    [
        (("n1.cluster.example.org", "n2"), "n[1-2]"),
        (("n1", "elsewhere.example.org"), "n1"),
        (("n3",), "n3"),
        (("laptop",), "(null)"),
    ],
)
def test_hosts_to_avoid_may_be_named_with_their_domain_or_be_of_another_pool(
    slurm: SlurmCluster, start_backend: Start, make_request: Make, avoid: tuple[str, ...], excluded: str
) -> None:
    """Slurm refuses a name that it does not know, and with it the submission: the others are avoided all the same."""
    backend = start_backend()
    for _ in range(2):
        [job] = backend.submit(make_request(avoid=avoid), 1)
        assert re.search(r"ExcNodeList=(\S+)", slurm.run("scontrol", "show", "job", job).stdout)[1] == excluded  # type: ignore[index]


def test_a_site_that_shows_its_nodes_to_nobody_has_those_avoided_that_pilots_were_on(
    slurm: SlurmCluster, start_backend: Start, make_request: Make, monkeypatch: pytest.MonkeyPatch, listing: Any
) -> None:
    backend = start_backend("shy")  # pilots of other tests are still remembered
    [job] = backend.submit(make_request(avoid=("n1", "n3", "n4")), 1)
    assert listing(backend).until(job, Listed.RUNNING).node == "n2"

    def no_nodes(clusters: str) -> tuple[str, ...]:
        return ("true",)

    monkeypatch.setattr(slurm_words, "nodes_words", no_nodes)
    [job] = backend.submit(make_request(avoid=("n1", "n2", "laptop")), 1)
    assert re.search(r"ExcNodeList=(\S+)", slurm.run("scontrol", "show", "job", job).stdout)[1] == "n2"  # type: ignore[index]


def test_a_refusal_because_of_the_nodes_to_avoid_is_told_from_others(slurm: SlurmCluster, start_backend: Start, make_request: Make) -> None:
    """The pool is not to be paused for it: programs block hosts for a while."""
    backend = start_backend()
    nodes = tuple(sorted(slurm_words.read_nodes(slurm.run(*slurm_words.nodes_words("")).stdout)))
    with pytest.raises(NoNodeLeft, match="Requested node configuration is not available"):
        backend.submit(make_request(avoid=nodes), 1)
    with pytest.raises(Rejected) as refused:
        start_backend(account="x", partition="nosuch").submit(make_request(avoid=nodes[:1]), 1)
    assert type(refused.value) is Rejected


def test_what_no_node_has_is_refused_as_such_though_a_host_is_blocked(start_backend: Start, make_request: Make) -> None:
    """Slurm has one text for both. Its pool would wait for the host for ever, and so would its calls."""
    backend = start_backend()
    with pytest.raises(Rejected, match="Requested node configuration is not available") as refused:
        backend.submit(make_request(avoid=("n1",), resources=Resources(1.0, memory=1 << 50)), 1)
    assert type(refused.value) is Rejected


def test_a_machine_that_is_short_of_something_is_no_refusal(
    start_backend: Start, make_request: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool is paused for a refusal, until somebody resumes it."""
    backend = start_backend()
    short = dict.fromkeys((errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.ESTALE), Unreachable)
    with monkeypatch.context() as patch:
        for number, meant in {**short, errno.EACCES: Rejected}.items():
            patch.setattr("windlass.factory.slurm.run_command", Mock(side_effect=OSError(number, os.strerror(number))))
            with pytest.raises(meant, match="cannot start sbatch"):
                backend.submit(make_request(), 1)


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


def test_a_preempted_pilot_is_queued_again_or_has_ended(
    start_backend: Start, make_request: Make, slurm: SlurmCluster, listing: Any, until: Until
) -> None:
    """By preemption, which is nobody's fault; in between it is ending, whatever comes."""
    again = start_backend("again", extra_directives="--nodelist=n3", requeue=True)
    never = start_backend("never", extra_directives="--nodelist=n3", requeue=False)
    stays = make_request("import time; print('started', flush=True); time.sleep(600)", resources=Resources(2.0))
    [first] = again.submit(stays, 1)
    [second] = never.submit(stays, 1)
    listing(again).until(first, Listed.RUNNING)
    listing(never).until(second, Listed.RUNNING)
    # Listed as running before their node has heard of them: one that is preempted then has failed to start.
    until("both have started", lambda: "started" in again.tail(first) and "started" in never.tail(second))
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
        until("it has gone", lambda: not slurm.run("squeue", "-h", "-n", "vip", "-o", "%i").stdout.strip())


def test_a_call_whose_pilot_is_requeued_runs_again_without_a_retry(stories: Stories, until: Until) -> None:
    """Its next start is a new pilot under the same id, for manager and factory alike; its log goes on."""
    try:
        until("it runs again", lambda: len(stories.started.read_text().split()) == 2, 60)
    except AssertionError as error:
        error.add_note(f"the factory says {stories.factory.status()}")
        raise
    stories.go.touch()
    assert stories.call.result(timeout=60) == f"{stories.requeued}+1"
    assert stories.started.read_text().split() == [stories.requeued, f"{stories.requeued}+1"]


def test_a_lost_node_ends_its_pilots_or_queues_them_again(stories: Stories, listing: Any) -> None:
    """Slurm notices after its own time-out."""
    ended = listing(stories.backend).until(stories.on_lost_node_for_good, Listed.ENDED, timeout=60)
    assert (ended.cause, ended.reason) == (Cause.NODE, "NODE_FAIL: NodeDown")
    again = listing(stories.backend).until(stories.on_lost_node, Listed.QUEUED)
    assert again.restart == 1


def test_a_pilot_past_its_time_has_ended_for_that(stories: Stories, listing: Any) -> None:
    """It hears SIGTERM first; its end is the walltime's, not a failure. Slurm looks at limits every 30 s."""
    ended = listing(stories.backend).until(stories.overdue, Listed.ENDED, timeout=100)
    assert (ended.cause, ended.reason) == (Cause.WALLTIME, "TIMEOUT: TimeLimit")
    assert "DUE TO TIME LIMIT" in stories.backend.tail(ended.job)
    assert "heard" in stories.backend.tail(ended.job)
