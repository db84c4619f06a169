"""How a library starts in its zygote, or fails to, and says why."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from windlass import pickling
from windlass.messages import DIED, RAISED, ImportSpec, LibraryFailed, LibraryReady, ObjectName, ObjectRef
from windlass.ownership import NotOurs
from windlass.worker import ground
from windlass.worker.hoist import add_code
from windlass.worker.instance import LibraryInstance, import_limit_of
from windlass.worker.slothandle import SlotHandle
from windlass.worker.slotlink import Step
from windlass.worker.slotproc import kill_tree, process_state

_CANDIDATES = [f"/dev/{name}" for name in ("fuse", "kmsg", "net/tun", "loop-control", "rtc0", "cpu_dma_latency", "mem")]
#: A device of this machine that may be opened.
DEVICE = next((path for path in _CANDIDATES if os.path.exists(path) and os.access(path, os.R_OK)), None)


def add(a: int, b: int) -> int:
    return a + b


async def failure_of(bench: Any, *args: Any, **more: Any) -> LibraryFailed:
    """How an instance that cannot start fails."""
    bench.start(*args, **more)
    await bench.events.until(lambda: bool(bench.events.failures))
    assert not bench.events.readies
    (failure,) = bench.events.failures
    assert failure.at_start
    return failure  # type: ignore[no-any-return]


async def ready_of(bench: Any, *args: Any, **more: Any) -> LibraryReady:
    """What an instance says when it serves."""
    await bench.serving(*args, **more)
    (ready,) = bench.events.readies
    return ready  # type: ignore[no-any-return]


def module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


@pytest.fixture
def paths(tmp_path: Path) -> tuple[str, ...]:
    """A folder of modules on the library's path."""
    return (str(tmp_path),)


@pytest.mark.asyncio
async def test_an_explicit_import_that_fails_fails_the_library_with_its_traceback(
    bench: Any, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    """At once, once; no slot is forked."""
    module(tmp_path, "broken", "def inner():\n    raise OSError('no licence')\ninner()\n")
    failure = await failure_of(bench, bench.spec(add, imports=(ImportSpec("broken", True),), paths=paths))
    assert failure.kind == "import"
    assert failure.text.startswith("import of 'broken' for library 'lib' failed: OSError: no licence\nTraceback (most recent call last)")
    assert "in inner" in failure.text


@pytest.mark.asyncio
async def test_a_module_that_calls_exit_when_imported_fails_like_any_other(bench: Any, tmp_path: Path, paths: tuple[str, ...]) -> None:
    """SystemExit does not end the zygote in silence."""
    module(tmp_path, "leaver", "import sys\nsys.exit('not today')\n")
    failure = await failure_of(bench, bench.spec(imports=(ImportSpec("leaver", True),), paths=paths))
    assert (failure.kind, "SystemExit: not today" in failure.text) == ("import", True)


@pytest.mark.asyncio
async def test_an_automatic_import_that_fails_is_noted_and_left_to_the_call(bench: Any) -> None:
    """Also when a function of the library needs the module to be loaded."""

    def use() -> object:
        import no_such_module  # type: ignore[import-not-found]  # pyright: ignore

        return no_such_module

    ready = await ready_of(bench, bench.spec(use, add, imports=(ImportSpec("no_such_module"),)))
    (hoisted,) = ready.imports
    assert hoisted.error == "ModuleNotFoundError: No module named 'no_such_module'"
    assert bench.value(await bench.run(add, 1, 2)) == 3
    end = await bench.run(use)
    assert end.outcome == RAISED
    assert isinstance(pickling.unpack_exception(end.payload), ModuleNotFoundError)


@pytest.mark.asyncio
async def test_an_automatic_import_that_kills_the_interpreter_is_named_and_dropped(
    bench: Any, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    """The next zygote does without it; other imports are done."""
    module(tmp_path, "killer", "import os\nos.kill(os.getpid(), 11)\n")
    module(tmp_path, "fine", "")
    imports = (ImportSpec("fine"), ImportSpec("killer"))
    ready = await ready_of(bench, bench.spec(add, imports=imports, paths=paths))
    assert [(item.module, item.error) for item in ready.imports] == [
        ("fine", ""),
        ("killer", "ended the interpreter (killed by signal 11 (SIGSEGV)); it is left to the calls"),
    ]
    assert bench.value(await bench.run(add, 1, 2)) == 3


@pytest.mark.asyncio
async def test_an_automatic_import_that_hangs_is_named_and_dropped(bench: Any, tmp_path: Path, paths: tuple[str, ...]) -> None:
    """After `import_limit`."""
    module(tmp_path, "sleeper", "import time\ntime.sleep(60)\n")
    ready = await ready_of(bench, bench.spec(add, imports=(ImportSpec("sleeper"),), paths=paths), import_limit=0.2)
    assert [item.error for item in ready.imports] == ["took longer than 0.2 s and was ended; it is left to the calls"]
    assert bench.value(await bench.run(add, 1, 2)) == 3


@pytest.mark.parametrize(("start_timeout", "limit"), [(10.0, 60.0), (300.0, 60.0), (1200.0, 240.0)])
def test_who_gives_a_library_more_time_gives_it_to_its_imports(start_timeout: float, limit: float) -> None:
    """One that many nodes read from a slow file system at once is else ended, and done by each slot for itself."""
    assert import_limit_of(start_timeout) == limit


@pytest.mark.asyncio
async def test_an_explicit_import_that_kills_the_interpreter_fails_the_library_by_name(
    bench: Any, tmp_path: Path, paths: tuple[str, ...]
) -> None:
    """With what it wrote."""
    module(tmp_path, "killer", "import os\nprint('hello from killer', flush=True)\nos._exit(6)\n")
    failure = await failure_of(bench, bench.spec(imports=(ImportSpec("killer", True),), paths=paths))
    assert failure.kind == "crash"
    assert failure.text == (
        "the interpreter of library 'lib' ended (exit status 6) before it was ready; it was in the import of 'killer'; it wrote:\n"
        "hello from killer"
    )


@pytest.mark.asyncio
async def test_a_library_that_is_not_ready_in_time_fails_with_what_it_was_doing(bench: Any, tmp_path: Path, paths: tuple[str, ...]) -> None:
    """``start_timeout``."""
    module(tmp_path, "sleeper", "import time\ntime.sleep(60)\n")
    failure = await failure_of(bench, bench.spec(imports=(ImportSpec("sleeper", True),), paths=paths, start_timeout=3))
    assert failure.kind == "timeout"
    assert failure.text == "library 'lib' was not ready within 3 s; it was in the import of 'sleeper'"


@pytest.mark.asyncio
async def test_another_minor_version_of_python_is_refused_with_both_named(bench: Any) -> None:
    """What was pickled there may crash here."""
    failure = await failure_of(bench, bench.spec(add, python=(3, 9)))
    assert failure.kind == "python"
    assert f"comes from Python 3.9, and this worker runs Python {sys.version_info[0]}.{sys.version_info[1]} " in failure.text


@pytest.mark.asyncio
async def test_a_function_that_cannot_be_loaded_fails_the_library(bench: Any) -> None:
    """By its name."""
    spec = bench.spec(add)
    broken = spec.functions[0].__class__(spec.functions[0].id, "mul", b"not a pickle")
    failure = await failure_of(bench, bench.spec().__class__(spec.id, "lib", spec.python, (broken,)))
    assert failure.kind == "function"
    assert failure.text.startswith("function 'mul' of library 'lib' cannot be loaded: UnpicklingError")


@pytest.mark.asyncio
@pytest.mark.parametrize("shared", [True, False])
async def test_a_context_that_fails_fails_the_library_with_its_traceback(bench: Any, shared: bool) -> None:
    """In the zygote or in the first slot; there is no second try."""

    def context(path: str) -> None:
        open(path, "a").write("x")  # noqa: SIM115
        raise LookupError("no data")

    log = bench.folder / "log"
    bench.start(bench.spec(add, context=(context, (str(log),), {}), share_context=shared), 1)
    await bench.events.until(lambda: bool(bench.events.failures))
    (failure,) = bench.events.failures
    assert failure.kind == "context"
    assert failure.text.startswith("the context function of library 'lib' failed: LookupError: no data\nTraceback")
    assert failure.at_start, "no call was ever answered"
    assert log.read_text() == "x"


@pytest.mark.asyncio
async def test_code_snapshots_come_first_on_the_path_and_are_unpacked_once(bench: Any, tmp_path: Path) -> None:
    """Before a module of the same name on the program's path; data files beside the code are files."""
    name = ObjectName("b3-" + "5" * 32)
    with zipfile.ZipFile(bench.store / name, "w") as archive:
        for path, text in (("helpers/__init__.py", "WHICH = 'snapshot'\n"), ("helpers/data.txt", "42")):
            archive.writestr(path, text)
    (tmp_path / "other").mkdir()
    module(tmp_path / "other", "helpers", "WHICH = 'program'\n")

    def use() -> tuple[str, str]:
        import importlib

        helpers: Any = importlib.import_module("helpers")
        return helpers.WHICH, (Path(helpers.__file__).parent / "data.txt").read_text()

    spec = bench.spec(use, imports=(ImportSpec("helpers"),), code=(ObjectRef(name, 0),), paths=(str(tmp_path / "other"),))
    instance = await bench.serving(spec, 2)
    assert bench.value(await bench.run(use)) == ("snapshot", "42")
    assert os.listdir(tmp_path / "code") == [name]
    await instance.stop()
    assert os.listdir(tmp_path / "code") == [name], "it is the worker's, not the instance's"


def large_code(bench: Any) -> tuple[ObjectRef, ...]:
    """A snapshot of 2 MB in the store."""
    name = ObjectName("b3-" + "5" * 32)
    with zipfile.ZipFile(bench.store / name, "w") as archive:
        archive.writestr("large.py", os.urandom(2 << 20))
    return (ObjectRef(name, 0),)


@pytest.mark.asyncio
async def test_a_library_whose_code_finds_no_room_on_the_node_may_start_elsewhere(bench: Any, mounted: Path) -> None:
    """It is no fault of the library, which ends at its first failure to start otherwise."""
    bench.folder = mounted
    failure = await failure_of(bench, bench.spec(add, code=large_code(bench)))
    assert failure.kind == "node"
    assert failure.text.startswith("the code of library 'lib' cannot be unpacked on the worker: OSError(28, 'No space left on device')")


@pytest.mark.asyncio
async def test_a_function_whose_code_finds_no_room_on_the_node_may_be_tried_elsewhere(bench: Any, mounted: Path) -> None:
    """As when its slot had died."""
    bench.folder = mounted
    instance = await bench.serving(bench.spec())
    definition = msgspec.structs.replace(bench.function(add), code=large_code(bench))
    (bench.functions / definition.id.hex()).write_bytes(msgspec.msgpack.encode(definition))
    end = await bench.run(add, 1, 2)
    assert end.outcome == DIED
    assert end.detail.text.startswith("function 'add' of library 'lib' cannot be loaded on the worker: OSError: [Errno 28]")
    await instance.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make what is another user's")
@pytest.mark.asyncio
async def test_nothing_starts_in_a_scratch_folder_that_another_user_has_made_since(bench: Any, tmp_path: Path) -> None:
    """What is unpacked there goes on the path; he could put something else in its place."""
    (tmp_path / "code" / "b3-x").mkdir(parents=True)
    refs = [ObjectRef(ObjectName("b3-x"), 0)]
    for folder in (tmp_path, tmp_path / "code"):
        os.chown(folder, 65534, 65534)
        with pytest.raises(NotOurs, match=rf"{folder}: it belongs to another user"):
            bench.start(bench.spec(add), 1)
        with pytest.raises(NotOurs):
            add_code(refs, str(bench.store), str(tmp_path / "code"))
        os.chown(folder, 0, 0)


@pytest.mark.asyncio
async def test_threads_after_the_imports_make_slots_interpreters_of_their_own(bench: Any, tmp_path: Path, paths: tuple[str, ...]) -> None:
    """The note names the import that started them."""
    module(tmp_path, "threader", "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n")

    def parent() -> int:
        import os

        return os.getppid()

    ready = await ready_of(bench, bench.spec(parent, imports=(ImportSpec("threader"),), paths=paths), 2)
    assert ready.notes == ("spawn instead of fork: 1 thread besides the main one after import of threader",)
    assert bench.value(await bench.run(parent)) == os.getpid(), "the slot is a child of the worker"
    await bench.until(lambda: process_state(ready.pid) in ("", "Z"))


@pytest.mark.asyncio
async def test_threads_that_end_at_a_fork_do_no_harm(bench: Any) -> None:
    """OpenBLAS ends its threads before a fork and starts them again when needed: numpy is forked with several threads as well."""

    def multiply() -> float:
        import numpy

        return float(numpy.ones((200, 200)).dot(numpy.ones((200, 200)))[0, 0])

    ready = await ready_of(bench, bench.spec(multiply, imports=(ImportSpec("numpy", True),), threads=2))
    assert ready.notes == ()
    assert bench.value(await bench.run(multiply)) == 200.0


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "notes"), [("jemalloc_bg_thd", 0), ("something_else", 1)])
async def test_an_allocators_threads_do_no_harm(bench: Any, tmp_path: Path, paths: tuple[str, ...], name: str, notes: int) -> None:
    """The allocator that comes with pyarrow, and so with pandas, has a thread that stays at a fork and is not missed in the child."""
    begin = f"open(f'/proc/self/task/{{threading.get_native_id()}}/comm', 'w').write({name!r}); begun.set(); time.sleep(3600)"
    start = "threading.Thread(target=tidy, daemon=True).start()"
    module(tmp_path, "tidier", f"import threading, time\nbegun = threading.Event()\ndef tidy(): {begin}\n{start}\nbegun.wait()\n")
    ready = await ready_of(bench, bench.spec(add, imports=(ImportSpec("tidier", True),), paths=paths))
    assert len(ready.notes) == notes
    assert bench.value(await bench.run(add, 1, 2)) == 3


@pytest.mark.asyncio
async def test_an_open_device_makes_slots_interpreters_of_their_own(bench: Any, tmp_path: Path, paths: tuple[str, ...]) -> None:
    """A GPU driver's state does not survive a fork."""
    if DEVICE is None:
        pytest.skip("no device here that may be opened")
    module(tmp_path, "driver", f"import os\nFD = os.open({DEVICE!r}, os.O_RDONLY)\n")
    ready = await ready_of(bench, bench.spec(add, imports=(ImportSpec("driver"),), paths=paths), 0)
    assert ready.notes == (f"spawn instead of fork: open device {DEVICE}",)


@pytest.mark.asyncio
async def test_the_environment_has_thread_limits_and_the_librarys_variables(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the interpreter starts; the library's own values win. What has threads of its own is limited as BLAS is, and JAX is not. What
    Slurm says of the pilot's cores is of the slot's."""

    def environment() -> list[str | None]:
        import os
        import tempfile

        names = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "SLURM_CPUS_PER_TASK", "PJRT_NPROC", "MKL_NUM_THREADS", "COLOUR")
        return [*(os.environ.get(name) for name in names), tempfile.gettempdir(), os.getcwd()]

    monkeypatch.delenv("PJRT_NPROC", raising=False)  # with it a callback of JAX may wait for ever
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "8")
    spec = bench.spec(environment, threads=3, env=(("COLOUR", "blue"), ("MKL_NUM_THREADS", "5")))
    instance = await bench.serving(spec)
    folder = str(instance.folder)
    assert bench.value(await bench.run(environment)) == ["3", "3", "3", None, "5", "blue", f"{folder}/tmp", f"{folder}/work"]


@pytest.mark.asyncio
@pytest.mark.parametrize("start", ["fork", "spawn"])
async def test_what_was_loaded_is_never_looked_through_for_garbage(bench: Any, tmp_path: Path, paths: tuple[str, ...], start: str) -> None:
    """Neither before the first call, where it takes as long as a tenth of the imports, nor in a call, which would copy what slots share."""
    noted = "import gc\nSEEN = []\ngc.callbacks.append(lambda phase, _: SEEN.append(len(gc.get_objects())))\n"
    module(tmp_path, "large", f"{noted}KEPT = [[] for _ in range(50_000)]\n")

    def collector() -> tuple[bool, int, int]:
        import gc

        import large  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

        gc.collect()
        seen: list[int] = large.SEEN  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return gc.isenabled(), gc.get_freeze_count(), max(seen)  # pyright: ignore[reportUnknownArgumentType]

    await bench.serving(bench.spec(collector, imports=(ImportSpec("large", True),), paths=paths, start=start))
    enabled, frozen, seen = bench.value(await bench.run(collector))
    assert enabled
    assert frozen > 50_000
    assert seen < 20_000, "objects that a collection went through"


@pytest.mark.asyncio
async def test_spawned_slots_load_the_library_for_themselves(bench: Any, tmp_path: Path, paths: tuple[str, ...]) -> None:
    """Each imports once, and there is no zygote."""
    module(tmp_path, "heavy", f"import os\nopen({str(tmp_path / 'log')!r}, 'a').write(f'{{os.getpid()}}\\n')\n")
    ready = await ready_of(bench, bench.spec(add, imports=(ImportSpec("heavy", True),), paths=paths, start="spawn"), 2)
    instance = bench.instances[0]
    assert instance.zygote_pid == 0
    assert sorted((tmp_path / "log").read_text().split()) == sorted(str(pid) for pid in instance.slot_pids().values())
    assert [item.module for item in ready.imports] == ["heavy"]
    assert bench.value(await bench.run(add, 1, 2)) == 3


@pytest.mark.asyncio
async def test_spawned_slots_fail_die_and_drop_imports_as_forked_ones_do(bench: Any, tmp_path: Path, paths: tuple[str, ...]) -> None:
    """The same rules without a zygote."""
    module(tmp_path, "killer", "import os\nos._exit(4)\n")

    def leave() -> None:
        import os

        os._exit(3)

    ready = await ready_of(bench, bench.spec(leave, add, imports=(ImportSpec("killer"),), paths=paths, start="spawn"))
    assert [item.error for item in ready.imports] == ["ended the interpreter (exit status 4); it is left to the calls"]
    end = await bench.run(leave)
    assert (end.outcome, end.detail.exit_status) == (DIED, 3)
    assert bench.value(await bench.run(add, 1, 2)) == 3


@pytest.mark.asyncio
async def test_the_time_of_an_import_ends_with_its_slot(
    bench: Any, tmp_path: Path, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute after a slot died in an import its process id may be anybody's: nothing is killed by it then."""
    module(tmp_path, "killer", "import os\nos._exit(4)\n")
    steps: list[tuple[Step, SlotHandle | None]] = []
    killed: list[int] = []
    noted = LibraryInstance.step

    def note(self: LibraryInstance, step: Step, slot: SlotHandle | None) -> None:
        steps.append((step, slot))
        noted(self, step, slot)

    monkeypatch.setattr(LibraryInstance, "step", note)
    await ready_of(bench, bench.spec(add, imports=(ImportSpec("killer"),), paths=paths, start="spawn"))
    step, slot = steps[0]
    assert slot is not None
    assert (step.what, slot.pid > 0) == ("killer", True)
    monkeypatch.setattr("windlass.worker.instance.kill_tree", killed.append)
    bench.instances[0]._on_import_limit(step, slot)
    assert killed == []


def test_no_process_id_is_nobodys_group() -> None:
    """One that is not known yet is 0, which to the kernel is this process with its whole group."""
    assert kill_tree(0) == set()


@pytest.mark.asyncio
async def test_a_spawned_library_whose_slots_are_taken_before_they_serve_is_ready_without(bench: Any) -> None:
    """Nobody else could say so, and its worker would wait for it for ever."""
    instance = bench.start(bench.spec(add, start="spawn"), 1)
    instance.set_slots(0)
    await bench.events.until(lambda: bool(bench.events.readies))
    instance.set_slots(1)
    assert bench.value(await bench.run(add, 1, 2)) == 3
    assert len(bench.events.readies) == 1


@pytest.mark.asyncio
async def test_an_instance_for_which_there_are_no_descriptors_leaves_none_open(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager tries again and again, and each start must not make it worse."""

    def none_left(folder: str) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(ground, "CallQueue", none_left)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="Too many open files"):
        bench.start(bench.spec(add), 1)
    assert os.listdir("/proc/self/fd") == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith("i")]


@pytest.mark.asyncio
async def test_a_spawned_slots_explicit_import_that_fails_fails_the_library(bench: Any) -> None:
    """Once."""
    failure = await failure_of(bench, bench.spec(imports=(ImportSpec("no_such_module", True),), start="spawn"))
    assert failure.kind == "import"
    assert failure.text.startswith("import of 'no_such_module' for library 'lib' failed: ModuleNotFoundError")


@pytest.mark.asyncio
async def test_zygote_and_slots_leave_when_the_worker_is_gone(bench: Any) -> None:
    """End of file on the control socket is enough."""
    instance = await bench.serving(bench.spec(add), 2)
    pids = [instance.zygote_pid, *instance.slot_pids().values()]
    zygote = instance.zygote
    zygote._loop.remove_reader(zygote._control.fileno())
    zygote._control.shutdown(2)
    await bench.until(lambda: all(process_state(pid) in ("", "Z") for pid in pids))
