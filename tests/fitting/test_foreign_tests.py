"""The tests that joblib, Dask and Parsl have of their own backends hold for ours; foreign_tests.py says how they are run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

PROGRAM: Final = Path(__file__).with_name("foreign_tests.py")
#: Per project: which of its tests are run, some that must have been among them, and those that do not hold by design: why, and what their
#: failure says. Names are without parameters.
PROJECTS: Final[dict[str, tuple[list[str], set[str], dict[str, str]]]] = {
    "joblib": (
        ["-k", "windlass and not loky and not multiprocessing and not back_compat and not timeout and not abort and not fastest"],
        {"test_simple_parallel", "test_nested_loop", "test_deadlock_with_generator", "test_multiple_generator_call", "test_invalid_njobs"},
        {
            # It looks for a pool of processes in a private attribute.
            "test_error_capture": "get_workers(parallel._backend)",
            # They pass a queue or a list of a process on this machine.
            "test_dispatch_multiprocessing": "digest sent was rejected",
            "test_initializer_context": "digest sent was rejected",
            "test_initializer_parallel": "digest sent was rejected",
            # Without a number, all slots are meant, not one process.
            "test_nested_backend_in_sequential": "assert Parallel()._effective_n_jobs() == expected_n_job",
            # A program without an executor, and without an import of windlass.joblib.
            "test_parallel_with_interactively_defined_functions": "Invalid backend: windlass",
            # Large arrays are arrays, in memory that is mapped.
            "test_auto_memmap_on_arrays_from_generator": "Expected np.memmap instance",
            "test_memmapping_leaks": "Expected np.memmap instance",
        },
    ),
    "dask": (
        [
            "dask.tests.test_delayed",
            "dask.array.tests.test_reductions",
            "-k",
            "test_delayed or test_reductions_1D or test_mean or test_topk",
        ],
        {"test_delayed", "test_literates", "test_nout", "test_array_delayed", "test_reductions_1D", "test_delayed_decorator_on_method"},
        # What went through a slot is equal, not the same.
        {"test_traverse_false": "assert res[0] is a"},
    ),
    "parsl": (
        # But those that go by the clock.
        [
            "test_python_apps",
            "test_bash_apps",
            "test_docs",
            "test_error_handling",
            "test_staging/test_file_apps.py",
            "-k",
            "not timeout and not walltime",
        ],
        {"test_bad_stdout_specs", "test_returns_a_class", "test_parallel_for"},
        # It names the executors that may refuse a resource specification.
        {"test_resource": "isinstance(executor, HighThroughputExecutor)"},
    ),
}


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.timeout(400)
def test_what_other_projects_test_of_their_own_holds_for_ours(project: str, nothing_left_running: None, tmp_path: Path) -> None:
    """Each of their tests passes but those that are named here, and these fail for the reason that is given."""
    words, some, by_design = PROJECTS[project]
    ran = subprocess.run([sys.executable, PROGRAM, project, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=390)
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"test"')]
    names = {one["test"].partition("[")[0] for one in found}
    assert names >= some, ran.stdout[-3000:] + ran.stderr[-3000:]
    for one in found:
        name = one["test"].partition("[")[0]
        if one["outcome"] == "failed":
            assert name in by_design, f"{one['test']}: {one['text']}"
            assert by_design[name] in one["text"], f"{one['test']}: {one['text']}"
    passed = sum(one["outcome"] == "passed" for one in found)
    assert passed > 40, passed
