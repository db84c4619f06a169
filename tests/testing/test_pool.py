"""`FakePool` itself, with real pilots: each fault does what it says, and what it does is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.errors import NotPossible, SlotDied, UsageError, WorkersLost
from windlass.testing import BadNode, FakePool, LoseStatus, Preempt, fake_pool
from windlass.testing.leftovers import VARIABLE, Leftovers


def work(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def hold(gate: Path) -> str:
    while not gate.exists():
        time.sleep(0.01)
    return "through"


@pytest.fixture(autouse=True)
def leaves_nothing_running(nothing_left_running: None) -> None:
    """Each test is followed by a look at the processes, apart from the pool's own."""


@pytest.mark.windlass(pilots=1)
def test_each_pilot_that_is_hit_costs_a_call_one_attempt(windlass_pool: FakePool, tmp_path: Path) -> None:
    """Preempted, killed, at its walltime, with its node: the call runs again each time, and the story counts each by its name."""
    call = windlass_pool.submit(hold, tmp_path / "gate")
    for number, hit in enumerate((windlass_pool.preempt, windlass_pool.kill_pilot, windlass_pool.end_walltime, windlass_pool.lose_node), 1):
        windlass_pool.wait_for(running=1, serving=1)
        hit()
        windlass_pool.wait_for(lost=number)
    (tmp_path / "gate").touch()
    assert call.result(30) == "through"
    story = windlass_pool.story()
    assert (story.attempts, story.lost, story.preemptions, story.walltimes, story.deaths, story.nodes_lost) == (5, 4, 1, 1, 1, 1)
    assert story.pilots == 5
    [hit_node] = [event.text for event in story.events if event.text.startswith("LoseNode")]
    assert re.fullmatch("LoseNode hits n[0-9], where 1 call ran", hit_node)  # a job that is still ending has n1


@pytest.mark.windlass(pilots=1)
def test_a_slot_that_is_killed_fails_its_call_and_the_pilot_lives(windlass_pool: FakePool, tmp_path: Path) -> None:
    """Unlike a lost pilot it may be the call's fault."""
    call = windlass_pool.submit(hold, tmp_path / "gate")
    windlass_pool.wait_for(running=1)
    windlass_pool.kill_slot()
    with pytest.raises(SlotDied):
        call.result(30)
    assert (windlass_pool.story().pilots, windlass_pool.story().failed) == (1, 1)


def test_refused_submissions_end_calls_until_they_are_mended(windlass_pool: FakePool) -> None:
    """The batch system's words are in the error; after `mend` the paused pool goes on."""
    windlass_pool.refuse_submissions("Allocation expired")
    with pytest.raises(NotPossible, match="Allocation expired"):
        windlass_pool.submit(work, 0).result(30)
    assert "paused:  fake: Allocation expired" in windlass_pool.doing()
    windlass_pool.mend()
    windlass_pool.wait_for(lambda: not windlass_pool.factory.paused)
    windlass_pool.wait_for(lambda: not windlass_pool.manager.status()["pools"][0]["paused"])
    windlass_pool.submit(work, 0).result(30)
    assert windlass_pool.story().refused == 1


@pytest.mark.windlass(faults=[LoseStatus(0.5), Preempt(after=4)], chaos=4, seed=3)
def test_faults_of_a_marker_happen(windlass_pool: FakePool) -> None:
    """Together with some that are drawn; no result is lost."""
    assert len(list(windlass_pool.map(work, [0.1] * 16))) == 16
    assert windlass_pool.story().preemptions >= 1
    assert windlass_pool.story().done == 16


@pytest.mark.windlass(pilots=1)
def test_a_call_that_is_lost_too_often_fails(windlass_pool: FakePool, tmp_path: Path) -> None:
    """As on a cluster: `max_losses` holds."""
    call = windlass_pool.with_options(max_losses=1).submit(hold, tmp_path / "gate")
    for _ in range(2):
        windlass_pool.wait_for(running=1, serving=1)
        windlass_pool.preempt()
        windlass_pool.wait_for(lambda: windlass_pool.story().lost or call.done())
    with pytest.raises(WorkersLost):
        call.result(30)


def test_waiting_tells_how_things_stand(windlass_pool: FakePool) -> None:
    """And refuses what it does not know."""
    with pytest.raises(TimeoutError, match=r"(?s)running=1: not so after 0.1 s\. What the pool is doing:\ncalls:   none was submitted"):
        windlass_pool.wait_for(running=1, timeout=0.1)
    with pytest.raises(UsageError, match=r"wait_for\(runing=\.\.\.\): one can wait for waiting, running"):
        windlass_pool.wait_for(runing=1)


def test_there_is_one_at_a_time_in_a_process(windlass_pool: FakePool) -> None:
    """All pools of the process are its, so two would be in each other's way."""
    with pytest.raises(UsageError, match="there is a FakePool in this process already"):
        FakePool()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"nodes": 0}, "nodes=0: give the number of nodes"),
        ({"limit": "1min"}, "limit='1min': give the seconds that a test may take"),
        ({"chaos": True}, "chaos=True: give the number of faults"),
        ({"seed": "x"}, "seed='x': give a whole number"),
        ({"manager_options": {"prot": 1}}, "there is no option of Manager 'prot'; did you mean 'port'"),
        ({"pilot": 1}, "there is no option of a fake pool 'pilot'; did you mean 'pilots'"),
        ({"nodes": 2, "faults": [BadNode("n3")]}, "there is no node 'n3'; known: n1, n2"),
    ],
)
def test_wrong_options_are_refused_and_nothing_stays(options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to write instead; the next pool can be made."""
    monkeypatch.setenv("TMPDIR", str(folder := Path(tempfile.mkdtemp())))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(UsageError, match=re.escape(text)):
        FakePool(**options)
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_it_serves_without_pytest(tmp_path: Path) -> None:
    """Its folder and the environment are as before; a fault that never happened is told."""
    before = dict(os.environ)
    seen: list[FakePool] = []

    def program() -> None:
        with fake_pool(pilots=1, faults=[Preempt(after=3)]) as pool:
            seen.append(pool)
            assert isinstance(pool, windlass.Executor)
            assert os.environ["WINDLASS_STATE_DIR"].startswith(str(pool.folder))
            assert pool.submit(pow, 2, 3).result(30) == 8

    with pytest.raises(AssertionError, match=r"Preempt\(after=3\) never happened"):
        program()
    [pool] = seen
    assert not pool.folder.exists()
    assert dict(os.environ) == before
    assert pool.ended
    assert pool.story().done == 1, "the story stays readable"


def test_what_pilots_leave_is_named_and_ended(tmp_path: Path) -> None:
    """A process with the mark of the pilots, and a file in their folder for temporary files."""
    leftovers = Leftovers(tmp_path)
    assert leftovers.wait([], 0) == []
    (tmp_path / "forgotten").touch()
    env = {**os.environ, VARIABLE: leftovers.mark}
    with subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(100)"], env=env, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        told = leftovers.wait([], 0)
        assert process.wait(10) == -9
    assert [text.partition(":")[0] for text in told] == [f"process {process.pid}", f"folder {tmp_path}/forgotten"]
    assert "time.sleep(100)" in told[0]
