"""The pytest plugin as its users have it: pytest runs in a process of its own, with real pilots."""

from __future__ import annotations

import time

import pytest

pytest_plugins = ("pytester",)

PROGRAM = """
import time

import pytest
import windlass
from windlass import testing

def work(seconds):
    time.sleep(seconds)
    return 1
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, nothing_left_running: None) -> pytest.Pytester:
    """A folder for a project, in an environment with no plugins but ours: to load all of ours here takes as long as most of these tests."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.plugins = ["windlass.testing.plugin"]
    return pytester


def outcome(project: pytest.Pytester, code: str, *words: str) -> pytest.RunResult:
    """Run pytest on a file with this code after the program's."""
    (project.path / "test_it.py").write_text(PROGRAM + code)
    return project.runpytest_subprocess("-q", "-p", "no:cacheprovider", *words)


def test_a_project_that_does_not_use_it_loads_nothing_of_it(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pytest run in an environment with Windlass loads the plugin, and so must not pay for it."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    run.plugins = []
    (run.path / "test_it.py").write_text(
        "import sys\ndef test_modules():\n    assert [name for name in sys.modules if name.startswith('windlass')] == EXPECTED\n".replace(
            "EXPECTED", repr(["windlass", "windlass.testing", "windlass.testing.plugin"])
        )
    )
    ran = run.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-p", "no:asyncio")
    ran.assert_outcomes(passed=1)
    assert "windlass" in run.runpytest_subprocess("--markers").stdout.str()


def test_what_takes_too_long_is_interrupted_and_says_what_the_pool_was_doing(run: pytest.Pytester) -> None:
    """In the middle of a wait for a result that cannot come, however the program catches errors; the traceback shows the program."""
    ran = outcome(
        run,
        """
@pytest.mark.windlass(limit=2, nodes=1, seed=77)
def test_waits_for_ever(windlass_pool):
    windlass_pool.slow_queue(1000)
    windlass_pool.preempt(after=5)
    future = windlass_pool.submit(work, 0)
    try:
        future.result()
    except Exception:
        pass
""",
    )
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        [
            ">*future.result()",
            "E*windlass_pool: it was not over after its limit of 2 s. What the pool was doing:",
            "E*calls:   1 waiting",
            "E*pilot:   no node yet: queued*",
            "E*to come: Preempt(after=5)",
            "E*seed:    77",
            "E*A longer limit: @pytest.mark.windlass(limit=300)*",
            "*seed 77; again with the same:  pytest 'test_it.py::test_waits_for_ever' --windlass-seed 77",
        ]
    )
    assert "limit.py" not in ran.stdout.str()


def test_a_fault_that_never_happened_fails_the_test(run: pytest.Pytester) -> None:
    """A test whose fault found nobody to hit has proved nothing."""
    ran = outcome(
        run,
        """
@pytest.mark.windlass(faults=[testing.Preempt(after=50)])
def test_is_over_too_soon(windlass_pool):
    assert windlass_pool.submit(work, 0).result() == 1
""",
    )
    ran.assert_outcomes(passed=1, errors=1)
    ran.stdout.fnmatch_lines(["*windlass_pool: Preempt(after=50) never happened: 1 call ended*give more or longer calls*"])


def test_what_is_left_open_is_named_and_closed(run: pytest.Pytester) -> None:
    """A pool without an end would run on until the end of all tests."""
    ran = outcome(
        run,
        """
def test_leaves_it_open(windlass_pool):
    manager = windlass.Manager(name="mine")
    factory = windlass.Factory(manager, "slurm", pool="short", partition="short").start()
    assert manager.submit_function(work, (0,), {}).result(20) == 1

def test_is_not_disturbed_by_that(windlass_pool):
    assert windlass_pool.submit(work, 0).result() == 1
""",
    )
    ran.assert_outcomes(passed=2, errors=1)
    ran.stdout.fnmatch_lines(
        ["*windlass_pool: pool 'short' of manager 'mine' was left open; write  with windlass.Executor(...) as pool:  or*"]
    )


def test_a_test_that_fails_tells_the_story_and_the_seed(run: pytest.Pytester) -> None:
    """The seed on the command line gives the same faults again; a test that failed is not blamed for faults that were still to come."""
    code = """
@pytest.mark.windlass(chaos=5)
def test_fails(windlass_pool):
    windlass_pool.preempt(after=100)
    assert windlass_pool.submit(work, 0).result() == 1
    print("drawn", windlass_pool._director.pending())
    assert windlass_pool.seed == 5
"""
    ran = outcome(run, code, "--windlass-seed", "12345")
    ran.assert_outcomes(failed=1)
    ran.stdout.fnmatch_lines(
        [
            "*windlass_pool: what happened*",
            "calls:   1 call submitted: 1 done",
            "never:   Preempt(after=100)",
            "seed 12345; again with the same:  pytest 'test_it.py::test_fails' --windlass-seed 12345",
        ]
    )


def test_wrong_markers_say_what_to_write(run: pytest.Pytester) -> None:
    """Options by name; unknown ones are refused as those of any pool."""
    ran = outcome(
        run,
        """
@pytest.mark.windlass("chaos")
def test_positional(windlass_pool): pass

@pytest.mark.windlass(max_pilot=3)
def test_unknown(windlass_pool): pass

@pytest.mark.windlass(faults=["preempt"])
def test_no_fault(windlass_pool): pass

@pytest.mark.windlass(faults=testing.Preempt(after=1))
def test_no_list(windlass_pool): pass

@pytest.mark.windlass(chaos=3)
def test_no_pool(): pass
""",
    )
    ran.assert_outcomes(errors=5)
    ran.stdout.fnmatch_lines(
        [
            "E*UsageError: @pytest.mark.windlass('chaos'): options are given by name*",
            "E*UnknownName: there is no option of a fake pool 'max_pilot'; did you mean 'max_pilots'*",
            "E*UsageError: 'preempt' is no fault; write for example faults=?windlass.testing.Preempt(after=3)?",
            "E*UsageError: faults=Preempt(after=1): give a list, as in faults=?windlass.testing.Preempt(after=3)?",
            "test_no_pool has @pytest.mark.windlass and no windlass_pool; add that to its arguments",
        ]
    )


def test_tests_run_beside_one_another(run: pytest.Pytester) -> None:
    """With pytest-xdist each process has its own batch system, and sees only its own processes and folders."""
    ran = outcome(
        run,
        """
@pytest.mark.parametrize("number", range(2))
def test_one(windlass_pool, number):
    windlass_pool.preempt(after=1)
    assert sum(windlass_pool.map(work, [0.1] * 8)) == 8
    assert windlass_pool.story().preemptions == 1
""",
        *("-p", "xdist", "-n", "2"),
    )
    ran.assert_outcomes(passed=2)


def test_pools_of_batch_systems_that_are_not_here_are_stood_in_for(run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop has no sbatch and no bindings of HTCondor; options are checked as if it had; a pool of a configuration file is one, too."""
    monkeypatch.setenv("PATH", "/nowhere")
    (run.path / "windlass.toml").write_text('[pools.night]\nbackend = "slurm"\npartition = "night"\nsetup = ["module load python"]\n')
    ran = outcome(
        run,
        """
@pytest.mark.parametrize("backend", ["slurm", "htcondor", "night"])
def test_pool(windlass_pool, backend):
    with windlass.Executor(backend, memory="1GB", walltime="1h") as pool:
        assert pool.submit(work, 0).result() == 1
    assert windlass_pool.story().done == 1

def test_wrong_option(windlass_pool):
    with pytest.raises(windlass.UnknownName, match="did you mean 'partition'"):
        windlass.Executor("slurm", partion="short")
""",
    )
    ran.assert_outcomes(passed=4)


def test_no_time_is_lost_at_the_end(run: pytest.Pytester) -> None:
    """A test ends although its calls would run for an hour, with pilots that are cut off."""
    began = time.monotonic()
    ran = outcome(
        run,
        """
def test_leaves_calls(windlass_pool):
    windlass_pool.submit(work, 3600)
    windlass_pool.wait_for(running=1)
    windlass_pool.cut_connections(3600)
    windlass_pool.wait_for(cuts=1)
""",
    )
    ran.assert_outcomes(passed=1)
    assert time.monotonic() - began < 90, "hang"
