"""Pilots on a real HTCondor pool: with ``WINDLASS_TEST_HTCONDOR=1``, on that of this machine (CONTRIBUTING.md says how).

Tests that stop or kill the schedd need one that belongs to the user who runs them, as in a personal pool; elsewhere they are skipped.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar, cast

import psutil
import pytest

import windlass
from windlass.factory.backend import OWN_MACHINE, CommandLimits, JobId, Listed, PilotState
from windlass.factory.htcondor import HTCondorBackend

pytestmark = pytest.mark.timeout(600)

#: Seconds that a pool may take for one thing.
PATIENCE = 180.0


class QuickCondor(HTCondorBackend):
    """Asked more often than a pool that is shared would be."""

    limits: ClassVar[CommandLimits] = OWN_MACHINE

    def __init__(self, **options: Any) -> None:
        given: dict[str, Any] = {"query_interval": 0.5, **options}
        super().__init__(**given)
        self.seen: dict[JobId, PilotState] = {}

    def query(self) -> list[PilotState]:
        states = list(super().query())
        self.seen.update({state.job: state for state in states})
        return states


class Stage:
    """A manager and a factory on the pool, and what can be done to their pilots behind their backs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bindings: Any = importlib.import_module("htcondor2")  # by name: where it is not installed, type checkers know nothing of it
        self.backend = QuickCondor()

    @property
    def schedd(self) -> Any:
        return self.bindings.Schedd()

    def act(self, action: str, which: str) -> None:
        counts = self.schedd.act(getattr(self.bindings.JobAction, action), which, reason=("a test", 3))
        assert int(counts["TotalSuccess"]), dict(counts)

    def jobs(self, factory: str) -> list[str]:
        ads = self.schedd.query(constraint=f'WindlassFactory == "{factory}"', projection=["ClusterId", "ProcId"])
        return [f"{ad['ClusterId']}.{ad['ProcId']}" for ad in ads]

    @contextlib.contextmanager
    def calls(self, **options: Any) -> Generator[tuple[windlass.Manager, windlass.Factory]]:
        given: dict[str, Any] = {"cores": 1, "max_pilots": 1, "grace": 5, **options}
        with windlass.Manager() as manager, windlass.Factory(manager, self.backend, **given) as factory:
            manager.install_library("lib", double, slow, where)
            yield manager, factory

    def until(self, what: str, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        limit = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < limit, f"never: {what}; last seen: {list(self.backend.seen.values())}"
            time.sleep(0.1)


def double(number: int) -> int:
    return number * 2


def slow(started: str, seconds: float) -> str:
    import os
    import time
    from pathlib import Path

    with Path(started).open("a") as file:
        file.write(f"{os.environ['WINDLASS_PILOT']}\n")
    time.sleep(seconds)
    return os.environ["WINDLASS_PILOT"]


def where() -> tuple[str, str, int, bool]:
    import os

    import windlass

    home = os.environ.get("WINDLASS_TEST_SUBMITTER", "/nowhere")
    return str(windlass.__file__), os.environ["_CONDOR_SCRATCH_DIR"], os.getuid(), os.access(home, os.R_OK)


@pytest.fixture
def stage(condor_pool: Path) -> Stage:
    return Stage(condor_pool)


@pytest.fixture
def schedd_process(condor_pool: Path) -> psutil.Process:
    """The schedd, where it is this user's own."""
    mine = [
        one for one in psutil.process_iter(["name", "uids"]) if one.info["name"] == "condor_schedd" and one.info["uids"].real == os.getuid()
    ]
    if len(mine) != 1:
        pytest.skip("the schedd is not this user's own: run a personal pool to test what becomes of pilots when it is stopped or killed")
    return mine[0]


# ---------------------------------------------------------------- what people do


def test_calls_run_and_the_factory_takes_its_pilots_away(stage: Stage) -> None:
    with stage.calls(max_pilots=2) as (manager, factory):
        futures = [manager.submit(windlass.FunctionCall("lib", "double", number)) for number in range(50)]
        assert [future.result(timeout=PATIENCE) for future in futures] == [2 * number for number in range(50)]
        assert stage.jobs(factory.name)
    stage.until("the queue is empty", lambda: not stage.jobs(factory.name))  # a shadow may take longer to report than the factory's grace


def test_pilots_need_no_files_of_the_submitter(stage: Stage) -> None:
    """What they need travels with them. On a node of another user it is all there is; ``WINDLASS_TEST_SANDBOX_NODE`` may name one."""
    node = os.environ.get("WINDLASS_TEST_SANDBOX_NODE", "")
    stage.backend = QuickCondor(files="transfer", requirements=f'TARGET.Machine == "{node}"' if node else "")
    with stage.calls(python=_python(), env={"WINDLASS_TEST_SUBMITTER": str(Path.home())}) as (manager, _):
        package, sandbox, uid, sees_home = manager.submit(windlass.FunctionCall("lib", "where")).result(timeout=PATIENCE)
        assert package.startswith(sandbox)
        if node:
            assert (uid != os.getuid(), sees_home) == (True, False)


def _python() -> str:
    return os.environ.get("WINDLASS_TEST_SANDBOX_PYTHON", sys.executable)


#: The command that belongs to this Python.
WINDLASS = str(Path(sys.executable).with_name("windlass"))


def pilots_of_this_user() -> set[JobId]:
    with contextlib.closing(HTCondorBackend()) as backend:
        return {state.job for _, state in backend.find()}


def clean(*options: str) -> str:
    return subprocess.run([WINDLASS, "factory", "clean", "htcondor", *options], capture_output=True, text=True, check=True).stdout


PROGRAM = """
import sys, time, windlass
from pathlib import Path
def slow(started, seconds):
    import time
    from pathlib import Path
    Path(started).write_text("x")
    time.sleep(seconds)
with windlass.Manager() as manager, windlass.Factory(manager, "htcondor", cores=1, max_pilots=2, min_pilots=2, grace=5, query_interval=1):
    manager.install_library("lib", slow)
    future = manager.submit(windlass.FunctionCall("lib", "slow", sys.argv[1], 600))
    future.result()
"""


def test_ctrl_c_in_a_program_takes_its_pilots_away(stage: Stage) -> None:
    started = stage.folder / "started"
    before = pilots_of_this_user()
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(started)], stderr=subprocess.PIPE, start_new_session=True)
    assert program.stderr is not None
    try:
        stage.until("the call runs", started.exists)
        program.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in program.communicate(timeout=60)[1].decode()
    finally:
        program.kill()
        program.communicate()
    stage.until("no pilot is left", lambda: pilots_of_this_user() <= before, 30.0)


def test_clean_removes_what_a_killed_program_left_in_the_queue(stage: Stage) -> None:
    """Its pilots that run leave by themselves; those that wait would take their turn first."""
    started = stage.folder / "started"
    text = PROGRAM.replace("max_pilots=2, min_pilots=2", "max_pilots=3, min_pilots=3, memory='100TB'").replace(
        "future.result()", "time.sleep(600)"
    )
    before = pilots_of_this_user()
    program = subprocess.Popen([sys.executable, "-c", text, str(started)], stderr=subprocess.DEVNULL)
    stage.until("they wait", lambda: len(pilots_of_this_user() - before) == 3)
    program.kill()
    program.wait()
    left = pilots_of_this_user() - before
    shown = clean()
    assert len(left) == 3
    assert all(job in shown for job in left)
    assert shown.strip().endswith("orphans: nothing is removed; add --remove to end these")
    assert clean("--remove").strip().endswith("orphans: removed")
    assert pilots_of_this_user() & left == set()


def test_a_factory_of_the_same_name_adopts_the_pilots_of_one_that_was_killed(stage: Stage) -> None:
    """SIGKILL: no word to anybody. Nothing but the batch system tells the next one of the pilots."""
    options = ["--name", "night", "--cores", "1", "--max-pilots", "1", "--min-pilots", "1", "--query-interval", "0.5s"]
    with windlass.Manager() as manager:
        manager.install_library("lib", double)
        command = [WINDLASS, "factory", "run", str(manager.pilot_file.with_name("client.json")), "htcondor", *options]
        first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            assert manager.submit(windlass.FunctionCall("lib", "double", 1)).result(timeout=PATIENCE) == 2
        finally:
            first.kill()
            first.wait()
        [job] = stage.jobs("night")
        with windlass.Factory(manager, stage.backend, cores=1, max_pilots=1, min_pilots=1, name="night", grace=5) as second:
            stage.until("it serves", lambda: second.status()["pilots"] == {"serving": 1})
            assert manager.submit(windlass.FunctionCall("lib", "double", 2)).result(timeout=PATIENCE) == 4
            assert stage.jobs("night") == [job]
            assert "submit" not in cast("dict[str, int]", second.status()["commands"])
        stage.until("the queue is empty", lambda: not stage.jobs("night"))


# ---------------------------------------------------------------- what pools do


def test_a_vacated_pilot_gives_its_call_back_and_is_another_pilot_when_it_starts_again(stage: Stage) -> None:
    """condor_vacate_job: as a preemption. The call uses up no retry."""
    started = stage.folder / "started"
    with stage.calls(grace=2) as (manager, factory):
        future = manager.submit(windlass.FunctionCall("lib", "slow", str(started), 6).with_options(retries=0))
        stage.until("it runs", started.exists)
        [job] = stage.jobs(factory.name)
        stage.act("Vacate", job)
        assert future.result(timeout=PATIENCE) == f"{job}+1"
        assert started.read_text().split() == [job, f"{job}+1"]
        assert stage.backend.seen[JobId(job)].restart == 1
        assert not factory.paused


def test_a_held_pilot_is_removed_with_its_reason_and_another_one_takes_its_place(stage: Stage) -> None:
    started = stage.folder / "started"
    with stage.calls(grace=2) as (manager, factory):
        future = manager.submit(windlass.FunctionCall("lib", "slow", str(started), 6).with_options(retries=0))
        stage.until("it runs", started.exists)
        [job] = stage.jobs(factory.name)
        stage.act("Hold", job)
        assert future.result(timeout=PATIENCE) != job
        assert stage.jobs(factory.name) != [job]


def test_pilots_that_are_held_at_their_start_pause_the_pool_and_calls_end_with_the_reason(stage: Stage) -> None:
    """The first attempt has no wait after it, so two in a row are soon there."""
    stage.backend = QuickCondor(files="transfer", extra_directives={"transfer_input_files": f"{stage.folder}/absent"})
    with stage.calls(max_start_failures=1) as (manager, factory):
        future = manager.submit(windlass.FunctionCall("lib", "double", 1))
        with pytest.raises(windlass.WindlassError, match=r"absent: \(errno 2\) No such file or directory \(hold code 13/2\)"):
            future.result(timeout=PATIENCE)
        stage.until("the held one is removed", lambda: stage.jobs(factory.name) == [])


def test_a_pool_whose_nodes_are_all_bad_pauses_with_the_last_words_of_its_pilots(stage: Stage) -> None:
    with stage.calls(setup=["echo no such disk >&2; exit 3"], max_start_failures=2, max_pilots=2) as (manager, factory):
        future = manager.submit(windlass.FunctionCall("lib", "double", 1))
        with pytest.raises(windlass.WindlassError, match=r"2 pilots in a row ended before they served, the last one so:.*no such disk"):
            future.result(timeout=PATIENCE)
        assert factory.paused


# ---------------------------------------------------------------- the schedd


def test_calls_go_on_while_the_schedd_is_stopped(stage: Stage, schedd_process: psutil.Process) -> None:
    """It takes connections and answers nothing: each request costs its time, in another process."""
    stage.backend = QuickCondor(command_timeout=2.0)
    with stage.calls(min_pilots=1) as (manager, factory):
        assert manager.submit(windlass.FunctionCall("lib", "double", 1)).result(timeout=PATIENCE) == 2
        [job] = stage.jobs(factory.name)
        schedd_process.suspend()
        try:
            number = 0
            while "no answer to query" not in str(factory.status()["failure"]):
                number += 1
                assert manager.submit(windlass.FunctionCall("lib", "double", number)).result(timeout=30) == 2 * number
            assert number > 10
        finally:
            schedd_process.resume()
        stage.until("it is asked again", lambda: factory.status()["pilots"] == {"serving": 1})
        assert stage.jobs(factory.name) == [job], "nothing was submitted twice"


def test_pilots_and_calls_survive_a_killed_schedd(stage: Stage, schedd_process: psutil.Process) -> None:
    """Its master starts another one, which finds the running job; the pilot runs on, and is the same one to the factory."""
    started = stage.folder / "started"
    with stage.calls() as (manager, factory):
        future = manager.submit(windlass.FunctionCall("lib", "slow", str(started), 15).with_options(retries=0))
        stage.until("it runs", started.exists)
        [job] = stage.jobs(factory.name)
        schedd_process.kill()
        assert future.result(timeout=PATIENCE) == job
        assert started.read_text().split() == [job]
        stage.until("the schedd is back", lambda: _answers(stage))
        assert stage.jobs(factory.name) == [job]
        stage.until("it is listed again", lambda: stage.backend.seen[JobId(job)].listed is Listed.RUNNING)
        assert stage.backend.seen[JobId(job)].restart == 0
        assert manager.submit(windlass.FunctionCall("lib", "double", 4)).result(timeout=PATIENCE) == 8


def _answers(stage: Stage) -> bool:
    try:
        stage.schedd.query(constraint="false")
    except Exception:  # noqa: BLE001  the bindings raise what they like
        return False
    return True
