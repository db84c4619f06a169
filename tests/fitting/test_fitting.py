"""What those modules share: modules to hoist, arrays that are known; and what nobody loads who does not ask for it."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from windlass.fitting import Runner
from windlass.functions import look_at
from windlass.manager.buffers import KnownBuffers, known_here
from windlass.messages import ObjectRef
from windlass.object_store import ObjectStore


def uses_statistics(values: Any) -> Any:
    import statistics

    return statistics.fmean(values)


def run(function: Any, *args: Any) -> Any:
    return function(*args)


def hoisted(runner: Runner) -> set[str]:
    return {each.module for each in look_at(runner.function).imports}


def test_a_runner_hoists_what_functions_and_their_arguments_need() -> None:
    """Behind partials and wrappers too; a function that it has seen changes nothing, so it is sent once."""
    runner = Runner(run)
    runner.look_at([cast("Any", functools.partial(uses_statistics))], [Decimal(1), 2, "three"])
    assert hoisted(runner) >= {"statistics", "decimal"}
    first = runner.function

    @functools.wraps(uses_statistics)
    def wrapped(values: Any) -> Any:
        return values

    runner.look_at([uses_statistics, wrapped], [Decimal(2)])
    assert runner.function is first
    runner.look_at([np.linalg.norm])
    assert runner.function is not first
    assert any(name.startswith("numpy") for name in hoisted(runner))
    assert runner.function(max, 1, 2) == 2


def test_a_closure_may_have_classes_in_it_and_cells_that_are_empty() -> None:
    """Classes of numpy have a descriptor where their instances have a number of bytes; ``yet`` is set when the function has been seen."""
    for kind in (np.float32, np.ndarray, memoryview):
        runner = Runner(run)

        def uses(kind: Any, runner: Runner = runner) -> Any:
            def function(values: Any) -> Any:
                return kind(values), yet

            runner.look_at([function])
            yet = kind
            return function

        assert uses(kind)(1 if kind is not memoryview else b"1")[1] is kind
        assert any(name.startswith("numpy") for name in hoisted(runner)) == (kind is not memoryview)


def test_one_module_to_hoist_is_not_taken_for_its_letters() -> None:
    """As ``lib_modules="numpy"`` of DaskVine's ``get`` would be."""
    for module in ("statistics", ["statistics"], statistics):
        runner = Runner(run)
        runner.hoist(module)
        assert "statistics" in hoisted(runner)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(tmp_path / "store")
    yield store
    store.close()


def put(known: KnownBuffers, store: ObjectStore, array: Any) -> tuple[ObjectRef, bool]:
    """As a client does; whether it was known."""
    import pickle

    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(array, 5, buffer_callback=buffers.append)
    data = buffers[0].raw()
    found = known.find(data, store)
    if found is not None:
        return found, True
    ref = store.put(data, pin=True)
    known.note(data, ref)
    return ref, False


def test_an_array_is_known_while_it_lives(store: ObjectStore) -> None:
    """In whatever order it lies in memory; another one in its place is not, nor is a part of it, nor a small one."""
    known = KnownBuffers()
    for array in (np.ones((500, 1000)), np.ones((500, 1000), order="F")):
        first, again = put(known, store, array), put(known, store, array)
        assert (first[1], again[1]) == (False, True)
        assert first[0] == again[0]
        assert put(known, store, array[:, :400].copy(order="K"))[1] is False
    assert [put(known, store, small)[1] for small in [np.ones(1000)] * 2] == [False, False]
    refs: set[ObjectRef] = set()
    for number in range(5):  # each in the place of the one before, likely
        refs.add(put(known, store, np.full(500_000, float(number)))[0])
    assert len(refs) == 5


def test_an_object_that_is_gone_is_not_known(store: ObjectStore) -> None:
    """It is put again. One that is known has a pin more."""
    known, array = KnownBuffers(), np.ones(500_000)
    ref, _ = put(known, store, array)
    put(known, store, array)
    store.unpin(ref.name)
    store.discard(ref.name)
    assert store.has(ref.name)
    store.unpin(ref.name)
    assert not store.has(ref.name)
    assert put(known, store, array)[1] is False


def test_arrays_are_known_in_the_block_of_one_thread_only() -> None:
    """What other threads submit meanwhile is hashed."""
    import threading

    known = KnownBuffers()
    seen: list[object] = []
    with known:
        assert known_here() is known
        thread = threading.Thread(target=lambda: seen.append(known_here()))
        thread.start()
        thread.join()
    assert known_here() is None
    assert seen == [None]


def test_what_is_no_array_is_not_known(store: ObjectStore) -> None:
    """Bytes have no place that could be looked at."""
    known = KnownBuffers()
    data = memoryview(bytes(2 << 20))
    known.note(data, store.put(data))
    assert known.find(data, store) is None
    assert known.find(cast("Any", SimpleNamespace(obj=None, nbytes=2 << 20)), store) is None
    assert len(known) == 0


def test_nobody_loads_other_projects_who_does_not_ask() -> None:
    """Nor does an executor: it tells joblib of the backend only where joblib is there."""
    code = "import sys, windlass.manager.executor, windlass.fitting; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert {"joblib", "dask", "parsl", "numpy", "sklearn"} & set(ran.stdout.split()) == set()
