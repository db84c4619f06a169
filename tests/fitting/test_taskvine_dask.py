"""TaskVine's programs for Dask, with ``import windlass.taskvine as vine``: graphs by hand, delayed functions, arrays, and the options."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass.taskvine as vine
from windlass.errors import SlotDied, UnknownName, UsageError

#: Without types: it is marked as typed, and for the most part is not.
dask: Any = importlib.import_module("dask")
importlib.import_module("dask.array")
importlib.import_module("dask.diagnostics")

GRAPH: dict[str, Any] = {
    "a": [1, 2, "x"],
    "x": 1,
    "y": 2,
    "z": (add, "x", "y"),
    "w": (sum, ["x", "y", "z"]),
    "v": [(sum, ["w", "z"]), 2],
    "t": (sum, "v"),
}


@pytest.fixture(scope="module")
def m(nothing_left_running_after_module: None) -> Iterator[vine.DaskVine]:
    """A manager with a worker of two cores."""
    with vine.DaskVine(port=0, ssl=True) as m:
        m.set_name("dask-of-a-test")
        f = vine.Factory(manager=m)
        f.cores, f.max_workers, f.min_workers = 2, 1, 1
        with f:
            yield m


def always(dag: object, key: object) -> bool:
    return True


def test_a_graph_written_by_hand(m: vine.DaskVine) -> None:
    """With the options of TaskVine's example; several keys, of what needs no call, too."""
    with pytest.warns(vine.NoEffect, match="checkpoint_fn.* has no effect here: .* are made again"):
        values = m.get(
            GRAPH,
            list(GRAPH),
            lazy_transfers=True,
            checkpoint_fn=always,
            resources={"cores": 1},
            task_mode="function-calls",
        )
    assert list(values) == [[1, 2, 1], 1, 2, 3, 6, [9, 2], 11]
    assert m(GRAPH, "t") == 11


@dask.delayed(pure=True)  # type: ignore[untyped-decorator]
def total(numbers: list[int]) -> int:
    return sum(numbers)


def test_delayed_functions_and_arrays_by_the_managers_get(m: vine.DaskVine) -> None:
    """Options go to ``compute``; points and their distances, in partitions."""
    points, others = (dask.array.from_array(np.arange(12.0).reshape(6, 2) * factor, chunks=(2, 2)) for factor in (1.0, 1.5))
    with dask.config.set(scheduler=m.get):
        assert total([total([1, 2]), 3, total([4])]).compute(resources={"cores": 1}, progress_disable=True) == 10
        distance = dask.array.sqrt(((points - others) ** 2).sum(axis=1))
        found = distance.compute(resources={"cores": 1, "memory": 100, "disk": 10}, resources_mode="max", worker_transfers=True)
        assert found.tolist() == pytest.approx(np.hypot(*(np.arange(12.0).reshape(6, 2).T * 0.5)).tolist())
        with dask.diagnostics.Profiler() as profiler:  # in place of wrapper=
            assert total([1, 2]).compute() == 3
    assert profiler.results


def what_is_loaded(name: str) -> bool:
    return name in sys.modules


def test_modules_are_hoisted_by_each_of_the_names_of_the_option(m: vine.DaskVine) -> None:
    """Beside those that are found by themselves; a name or the module."""
    import colorsys

    given: dict[str, list[Any]] = {"lib_modules": ["cmd"], "import_modules": [colorsys]}
    for option, modules in given.items():
        name = getattr(modules[0], "__name__", modules[0])
        assert not m.get({"x": (what_is_loaded, name)}, "x"), name
        assert m.get({"x": (what_is_loaded, name)}, "x", **{option: modules}), name
    assert not m.get({"x": (what_is_loaded, "ftplib")}, "x")


def fail_until(folder: Path, times: int) -> int:
    tries = len(list(folder.iterdir()))
    (folder / str(tries)).touch()
    if tries < times:
        raise OSError("not yet")
    return tries


def die(folder: Path) -> None:
    import os

    (folder / str(os.getpid())).touch()
    os._exit(3)


def test_tasks_are_tried_again(m: vine.DaskVine, tmp_path: Path) -> None:
    """One whose process dies five times in all, as there; one that raises only if that was asked for."""
    folders = [tmp_path / name for name in ("once", "thrice", "dies", "dies-once")]
    for folder in folders:
        folder.mkdir()
    once, thrice, dies, dies_once = folders
    with pytest.raises(OSError, match="not yet"):
        m.get({"x": (fail_until, once, 2)}, "x")
    assert m.get({"x": (fail_until, thrice, 2)}, "x", retries=3) == 2
    with pytest.raises(SlotDied):
        m.get({"x": (die, dies)}, "x")
    with pytest.raises(SlotDied):
        m.get({"x": (die, dies_once)}, "x", retries=1)
    assert [len(list(folder.iterdir())) for folder in folders] == [1, 3, 5, 1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"environment": "packed.tar.gz"}, "give the factory environment='packed.tar.gz'"),
        ({"env_vars": {"A": "b"}}, "give the factory env="),
        ({"extra_files": {"f": "name"}}, "as an argument"),
        ({"wrapper": print}, "Dask's own diagnostics"),
        ({"lib_command": "nice"}, "setup="),
        ({"import_modules": [3]}, "3 is no module"),
        ({"resources": {"core": 1}}, "did you mean 'cores'"),
        ({"resources": {"cores": 64}}, "64"),
    ],
    ids=["environment", "env_vars", "extra_files", "wrapper", "lib_command", "modules", "resources", "too many"],
)
def test_what_would_change_what_a_program_gets_is_refused(m: vine.DaskVine, options: dict[str, Any], text: str) -> None:
    """With what to write instead."""
    with pytest.raises(UsageError, match=text):
        m.get(GRAPH, "t", **options)


def test_slips_are_refused_and_what_has_no_meaning_warns(m: vine.DaskVine) -> None:
    """Those that say what is always so are silent."""
    with pytest.raises(UnknownName, match="did you mean 'resources'"):
        m.get(GRAPH, "t", resource={})
    with pytest.raises(UnknownName, match="did you mean 'function-calls'"):
        m.get(GRAPH, "t", task_mode="function calls")
    quiet = functools.partial(m.get, env_vars=None, environment=None, worker_transfers=True, wrapper=None, resources=None, retries=None)
    assert quiet(GRAPH, "t", submit_per_cycle=10, max_pending=None, prune_depth=1, lib_extra_functions=[add]) == 11
    for option, value in {"worker_transfers": False, "reconstruct": True, "verbose": True, "lib_resources": {"slots": 2}}.items():
        with pytest.warns(vine.NoEffect, match=f"{option}=.* has no effect here"):
            assert m.get(GRAPH, "t", **{option: value}) == 11
