"""The factory as a whole: its thread, real processes as pilots, and a manager that is only a port."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from windlass.errors import Rejected, UnknownName, Unreachable, UsageError
from windlass.factory.backend import JobId, Listed, NotNow, NotSent, PilotRequest
from windlass.factory.factory import Factory
from windlass.factory.fake import FakeBackend, FakeCluster, Fault, Todo
from windlass.factory.htcondor import HTCondorBackend
from windlass.factory.local import LocalBackend
from windlass.factory.pilots import Fleet
from windlass.factory.service import dry_run
from windlass.messages import Demand, Goodbye, Leave, PilotId, PilotSeen, PoolName, ReleasePilots, Resources, Shape

StandIn = Callable[[str], str]
Written = Callable[[Path], str]
Gone = Callable[[int], None]
#: A stand-in for a worker that stays until it is told to end, and leaves then.
STAYS = "trap 'kill $!; exit 0' TERM\nwhile :; do sleep 60 & wait $!; done"


def some(waiting: int, *pilots: PilotSeen, running: int = 0) -> Demand:
    return Demand((Shape(Resources(), waiting, running),) if waiting + running else (), pilots)


def connected(word: str, pool: str = "p", *, running: int = 0, idle: float = 0.0) -> PilotSeen:
    return PilotSeen(PoolName(pool), PilotId(word), True, running, idle, False, Resources(1.0))


def held(pilot: str, why: str) -> Callable[[FakeCluster, float], Sequence[Todo]]:
    return lambda cluster, _: cluster.hold(JobId(pilot), why)


def the_pilot(factory: Factory, manager: Any) -> str:
    """The word of the one pilot, when the factory has told of it."""
    manager.wait_until(lambda: sum(manager.counts.values()) == 1)
    [pilot] = factory._kept[0].core.fleet.pilots  # pyright: ignore[reportPrivateUsage]
    return pilot


def test_the_first_pilot_starts_when_there_is_demand_and_gets_its_options(
    manager: Any, stand_in: StandIn, written: Written, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    python = stand_in(f'echo "$@" > {out}.new; mv {out}.new {out}; {STAYS}')
    with Factory(manager, cores=2, memory="2GiB", gpus=1, walltime="1h", grace=5, pool="p", python=python, scratch="/scr") as factory:
        assert [(offer.pool, offer.resources, offer.walltime, offer.backend) for offer in manager.reports[0].offers] == [
            ("p", Resources(2.0, 2 << 30, 1), 3600.0, "local")
        ]
        manager.tell(some(5))
        words = written(out).split()
        pilot = the_pilot(factory, manager)
    assert words == [
        *(["-P", "-m", "windlass.worker", "--connection"]),
        str(manager.pilot_file),
        *[
            "--pool",
            "p",
            "--cores",
            "2",
            "--memory",
            "2147483648",
            "--gpus",
            "1",
            "--walltime",
            "3600",
            "--idle-timeout",
            "360",
            "--grace",
            "5",
            "--scratch",
            "/scr",
            "--pilot",
        ],
        pilot,
    ]


def test_leaving_ends_everything_and_says_goodbye(manager: Any, stand_in: StandIn, written: Written, gone: Gone, tmp_path: Path) -> None:
    out = tmp_path / "pid"
    with Factory(manager, python=stand_in(f"echo $$ > {out}; {STAYS}"), min_pilots=1):
        pid = int(written(out))
    gone(pid)
    assert isinstance(manager.said[-1], Goodbye)
    assert manager.closed
    assert manager.counts == {}
    assert [(ended.failed) for ended in manager.ended] == [False]


@pytest.mark.parametrize("seconds", [None, math.inf])
def test_what_serves_is_asked_to_drain_first_and_may_finish(
    manager: Any, stand_in: StandIn, written: Written, tmp_path: Path, seconds: float | None
) -> None:
    """Within the pool's grace, or within the time given, which may be as long as it takes."""
    out = tmp_path / "pid"
    drained = threading.Event()

    def drain(pilots: tuple[PilotId, ...]) -> None:
        drained.set()
        os.kill(int(out.read_text()), signal.SIGUSR1)  # the worker finishes and leaves

    manager.on_release = drain
    python = stand_in(
        f"trap 'echo killed > {tmp_path}/killed' TERM\ntrap 'kill $!; exit 0' USR1\necho $$ > {out}\nwhile :; do sleep 60 & wait $!; done"
    )
    factory = Factory(manager, python=python, pool="p", grace=20)
    with factory:
        manager.tell(some(1))
        written(out)
        pilot = the_pilot(factory, manager)
        manager.tell(some(1, connected(pilot, running=1), running=1))
        manager.wait_until(lambda: manager.counts == {"serving": 1})
        factory.close(seconds)
    assert factory.wait(math.inf)
    assert drained.is_set()
    assert [message.pilots for message in manager.said if isinstance(message, ReleasePilots)] == [(pilot,)]
    assert not (tmp_path / "killed").exists()


def test_a_pilot_that_ends_is_told_of_at_once_and_replaced(manager: Any, stand_in: StandIn, written: Written, tmp_path: Path) -> None:
    out = tmp_path / "pid"
    with Factory(manager, python=stand_in(f"echo $$ > {out}; {STAYS}"), pool="p") as factory:
        manager.tell(some(1))
        pid = int(written(out))
        pilot = the_pilot(factory, manager)
        manager.tell(some(1, connected(pilot, running=1)))
        manager.wait_until(lambda: manager.counts == {"serving": 1})
        out.unlink()
        os.kill(pid, signal.SIGKILL)
        manager.wait_until(lambda: bool(manager.ended))
        [ended] = manager.ended
        assert (ended.pilot, ended.reason, ended.failed) == (pilot, "ended by signal 9", False)
        manager.tell(some(1))
        assert int(written(out)) != pid


def test_pilots_that_die_at_start_pause_the_pool_with_their_last_words(
    manager: Any, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    python = stand_in("echo 'ModuleNotFoundError: windlass' >&2; exit 1")
    with Factory(manager, python=python, max_start_failures=1) as factory:
        manager.tell(some(1))
        manager.wait_until(lambda: manager.reports[-1].offers[0].paused != "")
        assert "ModuleNotFoundError: windlass" in manager.reports[-1].offers[0].paused
        assert [ended.failed for ended in manager.ended] == [True]
        assert factory.paused in caplog.text
        assert str(factory.status()["waits"]).startswith("the pool is paused")
        factory.resume()
        manager.wait_until(lambda: len(manager.ended) == 2)


def test_the_first_pilot_that_dies_at_start_is_told_with_its_last_words(
    manager: Any, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """The pool pauses minutes later; whoever waits for a result must not have to guess until then. Told once in a row."""
    python = stand_in("echo 'ModuleNotFoundError: windlass' >&2; exit 1")
    with Factory(manager, python=python, max_start_failures=3) as factory:
        manager.tell(some(1))
        manager.wait_until(lambda: len(manager.ended) == 2)
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1
        assert warnings[0].startswith(f"{factory.name}: a pilot ended before it served: ")
        assert "exit status 1: ModuleNotFoundError: windlass" in warnings[0]
        assert "paused after 3 in a row" in warnings[0]


def test_that_a_pilot_is_held_after_it_has_served_is_told(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its calls may have been at fault, and the next pilots come to the same. Told once for each reason, whatever its numbers."""
    backend = FakeBackend(processes=False)
    with Factory(manager, backend, pool="p", name="watched") as factory:
        for used in (2100, 2200):
            manager.tell(some(1))
            pilot = the_pilot(factory, manager)
            backend.advance(1.0)
            manager.tell(some(1, connected(pilot)))
            manager.wait_until(lambda: manager.counts == {"serving": 1})
            why = f"{used} MB used (hold code 102)"
            backend.act(held(pilot, why))
            manager.tell(some(1, msgspec.structs.replace(connected(pilot), connected=False)))
            manager.wait_until(lambda pilot=pilot: pilot in [ended.pilot for ended in manager.ended])
            assert manager.ended[-1].reason == f"held: {why}"
    warnings = [record.getMessage() for record in caplog.records if "that served" in record.getMessage()]
    assert warnings == ["watched: a pilot that served is held: 2100 MB used (hold code 102); such are removed, and replaced"]


def test_a_python_that_is_not_there_pauses_the_pool_at_once(manager: Any) -> None:
    with Factory(manager, python="/no/such/python"):
        manager.tell(some(1))
        manager.wait_until(lambda: manager.reports[-1].offers[0].paused != "")
    assert manager.reports[-1].offers[0].paused == "cannot start /no/such/python: No such file or directory"


def test_the_factory_ends_with_its_manager(manager: Any, stand_in: StandIn, written: Written, gone: Gone, tmp_path: Path) -> None:
    out = tmp_path / "pid"
    factory = Factory(manager, python=stand_in(f"echo $$ > {out}; {STAYS}"), min_pilots=1)
    factory.start()
    pid = int(written(out))
    manager.tell(Leave("the manager closes"))
    assert factory.wait(20)
    gone(pid)
    factory.close()


@pytest.mark.parametrize(
    ("remote", "told"), [(True, "its pilots are left to it"), (False, "its pilots are processes of this one, and end with it")]
)
def test_a_factory_whose_place_another_one_has_taken_leaves_the_pilots_to_it(manager: Any, remote: bool, told: str) -> None:
    """They carry the same names in the batch system: an end by name would be that of the other one's pilots."""
    backend = FakeBackend(processes=False)
    with Factory(manager, backend, pool="p", name="night") as factory:
        manager.tell(some(1))
        manager.wait_until(lambda: sum(manager.counts.values()) == 1)
        core = factory._kept[0].core  # pyright: ignore[reportPrivateUsage]
        core.change(replace(core.pool, remote=remote))
        manager.on_refused("a factory 'night' is here already")
        assert factory.wait(20)
        assert factory.lost == f"the manager refuses this factory now: a factory 'night' is here already; {told}"
    [job] = backend.cluster.jobs.values()
    assert job.state is not Listed.ENDED


def test_a_factory_that_cannot_say_its_last_words_lets_go_of_its_name_all_the_same(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be taken in its program until the manager's end, though the factory was closed."""
    send = manager.send

    def broken(*messages: Any) -> None:
        if isinstance(messages[0], Goodbye):
            raise RuntimeError("a defect")
        send(*messages)

    monkeypatch.setattr(manager, "send", broken)
    with Factory(manager, FakeBackend(processes=False), pool="p"):
        pass
    assert manager.closed


def test_a_backend_that_cannot_be_closed_keeps_no_factory_from_its_end(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command would go on for ever, whatever is pressed."""
    backend = FakeBackend(query_interval=0.02)
    close = backend.close

    def broken() -> None:
        close()
        raise OSError("Input/output error")

    monkeypatch.setattr(backend, "close", broken)
    factory = Factory(manager, backend, pool="p", cores=1)
    factory.start()
    factory.begin_close(0.0)
    assert factory.wait(20)
    factory.close()
    assert manager.closed


def test_limits_can_be_changed_while_it_runs(manager: Any, stand_in: StandIn) -> None:
    with Factory(manager, python=stand_in(STAYS), cores=1, max_pilots=1) as factory:
        manager.tell(some(5))
        manager.wait_until(lambda: sum(manager.counts.values()) == 1)
        factory.set_limits(max_pilots=3)
        manager.wait_until(lambda: sum(manager.counts.values()) == 3)
        with pytest.raises(UsageError, match="max_pilots=0 cannot be"):
            factory.set_limits(max_pilots=0)


def test_starts_of_a_pilot_that_come_to_nothing_are_told(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A node on which the batch system starts no job takes the same one again and again, and a program would wait in silence. Told once."""
    backend = FakeBackend(processes=False)
    with Factory(manager, backend, pool="p", name="watched") as factory:
        manager.tell(some(1))
        pilot = JobId(the_pilot(factory, manager))
        backend.advance(1.0)
        for restart in range(1, 6):
            backend.preempt(pilot)
            word = f"{pilot}+{restart - 1}" if restart > 1 else pilot
            manager.wait_until(lambda word=word: word in [ended.pilot for ended in manager.ended])
            backend.advance(1.0)
    warnings = [record.getMessage() for record in caplog.records if "was started" in record.getMessage()]
    assert warnings == [
        f"watched: pilot {pilot} was started 3 times, and not once came to serve; it is queued again by the batch system: requeued"
    ]


def test_limits_are_judged_beside_those_that_were_asked_for_last(manager: Any) -> None:
    """Whatever the factory has come to yet: its thread may wait for the batch system for a minute."""
    factory = Factory(manager, max_pilots=4)
    factory.set_limits(max_pilots=50)
    factory.set_limits(min_pilots=20)
    with pytest.raises(UsageError, match="min_pilots=20 and max_pilots=5 cannot be"):
        factory.set_limits(max_pilots=5)


def test_a_fake_batch_system_starts_and_restarts_real_pilots(manager: Any, stand_in: StandIn) -> None:
    backend = FakeBackend(kill_wait=0.5, query_interval=0.02)
    with Factory(manager, backend, python=stand_in(STAYS), pool="p", max_pilots=2, cores=1):
        manager.tell(some(5))
        manager.wait_until(lambda: manager.counts == {"running": 2})
        job = next(iter(backend.cluster.jobs))
        backend.preempt(job)
        manager.wait_until(lambda: [ended.pilot for ended in manager.ended] == [job])
        manager.wait_until(lambda: manager.counts == {"running": 2})
        assert backend.cluster.jobs[job].restart == 1


def test_faults_of_the_batch_system_are_reported_and_overcome(manager: Any, stand_in: StandIn) -> None:
    cluster = FakeCluster(kill_wait=0.5)
    cluster.fail("submit", Fault.REJECTED, text="Invalid account")
    with Factory(manager, FakeBackend(cluster=cluster, query_interval=0.02), python=stand_in(STAYS), pool="p", cores=1) as factory:
        manager.tell(some(1))
        manager.wait_until(lambda: manager.reports[-1].offers[0].paused == "Invalid account")
        assert manager.reports[-1].failures == (("p", "Invalid account"),)
        factory.resume()
        manager.wait_until(lambda: manager.counts == {"running": 1})
        assert dict(manager.reports[-1].commands)["submit"] == 2


class Broken(LocalBackend):
    """A backend with a defect."""

    def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
        raise KeyError("defect")


def test_a_defect_of_a_backend_pauses_the_pool_and_is_named(manager: Any) -> None:
    with Factory(manager, Broken()):
        manager.tell(some(1))
        manager.wait_until(lambda: manager.reports[-1].offers[0].paused != "")
    assert manager.reports[-1].offers[0].paused == "the local backend failed: KeyError('defect')"


def test_errors_of_other_commands_are_silence(manager: Any) -> None:
    class Denied(LocalBackend):
        def query(self) -> Any:
            raise Rejected("Access denied") if next(answers) else Unreachable("no answer")

    answers = iter([True] + [False] * 99)
    with Factory(manager, Denied(), min_pilots=1):
        manager.wait_until(lambda: manager.reports[-1].failures != ())
    assert manager.reports[-1].offers[0].paused == ""


def test_the_first_command_without_an_answer_is_told(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    """On a machine that has no batch system, or is cut off from it, a program would else wait in silence. Later ones are quiet."""

    class Mute(LocalBackend):
        def query(self) -> Any:
            raise Unreachable("no such cluster")

    with Factory(manager, Mute(), min_pilots=1, name="mute"):
        manager.wait_until(lambda: manager.reports[-1].failures != ())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["mute: no answer: no such cluster; it is asked again, at growing intervals"]


@pytest.mark.parametrize("error", [Unreachable, NotSent])
def test_a_submission_without_an_answer_is_given_up_when_its_command_is(
    manager: Any, error: type[Unreachable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may be a minute after it was sent."""
    given_up = Mock()
    monkeypatch.setattr(Fleet, "unanswered", given_up)

    class Mute(LocalBackend):
        def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
            raise error("no answer")

    with Factory(manager, Mute(), min_pilots=1):
        manager.wait_until(lambda: manager.reports[-1].failures != ())
    assert given_up.called is (error is Unreachable)


def test_how_old_answers_may_be_is_the_batch_systems(manager: Any) -> None:
    """The schedd answers from its queue: a submission without an answer need not count for as long as one of Slurm's."""
    for backend in (HTCondorBackend(), FakeBackend()):
        factory = Factory(manager, backend)
        assert factory._kept[0].core.fleet.unlisted == backend.defaults.unlisted  # pyright: ignore[reportPrivateUsage]


def test_a_site_that_takes_nothing_for_now_is_told_and_nothing_is_paused(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Drained(LocalBackend):
        def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
            raise NotNow("the partition is drained")

    with Factory(manager, Drained(), min_pilots=1, name="shut"):
        manager.wait_until(lambda: manager.reports[-1].failures != ())
    assert manager.reports[-1].offers[0].paused == ""
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["shut: refused for now: the partition is drained; it is asked again every 5 min"]


def test_what_is_asked_wrongly_is_refused_with_the_near_names(manager: Any) -> None:
    with pytest.raises(UnknownName, match="there is no option of a local pool 'max_pilot'; did you mean 'max_pilots'"):
        Factory(manager, "local", max_pilot=3)
    with pytest.raises(UnknownName, match="there is no pool or batch backend 'lokal'; did you mean 'local'"):
        Factory(manager, "lokal")
    with pytest.raises(UnknownName, match="'queue_delay'"):
        Factory(manager, "local", queue_delay=3)
    with pytest.raises(UsageError, match="is no name for a factory"):
        Factory(manager, name="a b")
    with pytest.raises(UsageError, match="queue_delay of a backend that is made already"):
        Factory(manager, FakeBackend(processes=False), queue_delay=3)
    assert manager.said == []


def test_a_dry_run_shows_the_plan_and_the_command_and_does_nothing() -> None:
    text = dry_run(["local"], {"cores": "2", "max_pilots": "3", "memory": "4GB"})
    assert "pilots:     0 to 3 at a time, at most 3 of them in the queue" in text
    assert "at most 6 cores: 6 calls of one core at a time" in text
    assert f"# 3 x\n{sys.executable} -P -m windlass.worker --connection MANAGER/pilot.json --pool FACTORY --cores 2" in text


PROGRAM = """
import sys, threading
from pathlib import Path
from windlass.factory.factory import Factory
from windlass.messages import Demand

class Port:
    pilot_file = Path(sys.argv[1])
    def open_port(self, role, name, on_message, *more):
        on_message(Demand(()))
        return self
    def send(self, *messages): pass
    def close(self, timeout=0): pass

factory = Factory(Port(), python=sys.argv[2], min_pilots=1)
factory.start()
while not Path(sys.argv[3]).exists(): threading.Event().wait(0.01)
"""


def test_a_program_that_ends_without_closing_leaves_no_pilot(stand_in: StandIn, written: Written, gone: Gone, tmp_path: Path) -> None:
    out = tmp_path / "pid"
    # Whole at once: the program ends as soon as the file is there, and the pilot with it.
    python = stand_in(f"echo $$ > {out}.new; mv {out}.new {out}; {STAYS}")
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "pilot.json"), python, str(out)]
    subprocess.run(program, check=True, timeout=30)
    gone(int(written(out)))
