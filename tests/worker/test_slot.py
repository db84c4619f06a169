"""What happens in a slot around a call: functions, context, results that cannot travel, output, mode fork."""

from __future__ import annotations

import gc
import importlib.util
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from windlass import pickling
from windlass.errors import UsageError
from windlass.messages import (
    BAD_CALL,
    CANCELLED,
    DIED,
    KEPT_BASE,
    NO_FILE,
    RAISED,
    RETURNED,
    CallRun,
    FunctionId,
    ImportSpec,
    InstanceId,
    ObjectName,
    ObjectRef,
)
from windlass.worker import slot, slot_api, slotset
from windlass.worker.ground import CACHE
from windlass.worker.slotlink import BEGUN, CALL, CANCEL, FINISHED, SENDING
from windlass.worker.slotproc import descendants, is_gone, process_state


def add(a: int, b: int) -> int:
    return a + b


@pytest.mark.asyncio
async def test_whatever_a_function_raises_is_its_answer(bench: Any) -> None:
    """SystemExit and KeyboardInterrupt too, and with a text that cannot be encoded; the slot lives on."""

    def fail(kind: type[BaseException]) -> None:
        raise kind("the end")

    def complain(name: str) -> None:
        raise ValueError(f"cannot read {name}")

    await bench.serving(bench.spec(fail, complain, add))
    for kind in (ValueError, SystemExit, KeyboardInterrupt, GeneratorExit):
        end = await bench.run(fail, kind)
        assert end.outcome == RAISED
        error = pickling.unpack_exception(end.payload)
        assert type(error) is kind
        assert error.args == ("the end",)
        assert end.detail.types[0] == f"builtins.{kind.__name__}"
        assert "in fail" in str(error.__cause__)
        assert "in answer" not in str(error.__cause__), "our own frames tell the user nothing"
    error = pickling.unpack_exception((await bench.run(complain, "caf\udce9.dat")).payload)
    assert error.args == ("cannot read caf\udce9.dat",)
    assert len(set(bench.instances[0].slot_pids())) == 1
    assert bench.value(await bench.run(add, 1, 2)) == 3


@pytest.mark.asyncio
async def test_results_that_cannot_be_pickled_say_so_and_what_to_return(bench: Any) -> None:
    """Generators and coroutines by their own texts."""

    def generate() -> Any:
        yield 1

    def wait() -> Any:
        async def later() -> int:
            return 1

        return later()

    async def agenerate() -> Any:
        yield 1

    def lock() -> Any:
        import threading

        return threading.Lock()

    await bench.serving(bench.spec(generate, wait, agenerate, lock))
    expected = {
        generate: "'generate' returned a generator, which cannot be pickled and sent back; return list(...) of it, or make",
        wait: "'wait' returned a coroutine, which cannot be pickled and sent back; 'wait' is no async function, but gives what one",
        agenerate: "'agenerate' returned a async_generator, which cannot be pickled and sent back; 'agenerate' is an async generator",
        lock: "'lock' returned a _thread.lock, which cannot be pickled and sent back; return something that pickle can handle",
    }
    for function, text in expected.items():
        end = await bench.run(function)
        assert end.outcome == BAD_CALL
        assert end.detail.text.startswith(text)
        assert end.detail.unpicklable


@pytest.mark.asyncio
async def test_functions_with_data_in_them_do_not_fill_a_slot(bench: Any) -> None:
    """Of those that come after the start, the last used ones stay loaded: an optimiser submits a method with ever more in its object."""

    def holding(data: bytes) -> Any:
        def size() -> int:
            return len(data)

        return size

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    await bench.serving(bench.spec(resident))
    before = bench.value(await bench.run(resident))
    functions = [holding(os.urandom(16 << 20)) for _ in range(9)]
    for function in functions:
        bench.add_function(function)
    for function in (*functions, functions[0], functions[0]):
        assert bench.value(await bench.run(function)) == 16 << 20
    assert bench.value(await bench.run(resident)) - before < 110_000_000


@pytest.mark.asyncio
async def test_arguments_that_cannot_be_read_and_unknown_functions_are_bad_calls(bench: Any) -> None:
    """In one sentence, once, and without frames of ours."""
    instance = await bench.serving(bench.spec(add))
    call = bench.call(add, 1, 2)
    unreadable = CallRun(call.call, 1, call.instance, call.function, b"garbage")
    unknown = CallRun(call.call, 2, call.instance, FunctionId(b"\7" * 16), call.payload)
    instance.feed([unreadable, unknown])
    end = await bench.end(unreadable)
    assert end.outcome == BAD_CALL
    assert re.fullmatch(r"the arguments of 'add' cannot be loaded on the worker: UnpicklingError: .*", end.detail.text)
    assert end.detail.unpicklable
    end = await bench.end(unknown)
    assert end.outcome == BAD_CALL
    assert re.fullmatch(f"function '{'07' * 16}' of library 'lib' cannot be loaded on the worker: FileNotFoundError: .*", end.detail.text)
    assert not end.detail.unpicklable
    assert bench.value(await bench.run(add, 1, 2)) == 3


@pytest.mark.asyncio
async def test_a_kept_result_that_is_there_and_cannot_be_read_is_not_missing(bench: Any) -> None:
    """What is missing is fetched again, and its call goes back for nothing; this one would, for ever."""
    instance = await bench.serving(bench.spec(add))
    part = ObjectRef(ObjectName(f"r-{7:032x}"), 10)
    folder = bench.folder / CACHE / part.name
    folder.mkdir(parents=True)
    missing, unreadable = bench.call(add, 1, 2), bench.call(add, 1, 2)
    missing.spans = unreadable.spans = (part,)
    instance.feed([missing])
    end = await bench.end(missing)
    assert (end.outcome, end.detail.text) == (NO_FILE, f"result {part.name} is not in the worker's cache any more")
    (folder / KEPT_BASE).symlink_to("data-of-another")
    instance.feed([unreadable])
    end = await bench.end(unreadable)
    assert end.outcome == DIED
    assert end.detail.text.startswith("the arguments of 'add' cannot be loaded on the worker: NotOurs")


@pytest.mark.asyncio
async def test_functions_that_come_later_are_found_in_their_folder_and_kept(bench: Any) -> None:
    """The second call needs no file; the least recently used of very many goes."""
    await bench.serving(bench.spec())
    factories = [lambda number=number: number for number in range(300)]
    for function in factories:
        bench.add_function(function)
    assert bench.value(await bench.run(factories[0])) == 0
    (bench.functions / bench.ids[factories[0]].hex()).unlink()
    for number, function in enumerate(factories):
        assert bench.value(await bench.run(function)) == number
        if number % 50 == 0:
            assert bench.value(await bench.run(factories[0])) == 0, "used again and again, so kept"
    assert bench.value(await bench.run(factories[299])) == 299


@pytest.mark.asyncio
async def test_large_arguments_and_results_are_objects(bench: Any) -> None:
    """Results are files in the worker's store."""

    def double(data: bytes) -> bytes:
        return bytes(data) + bytes(data)

    await bench.serving(bench.spec(double))
    end = await bench.run(double, b"ab" * 100_000)
    assert len(end.payload) < 1000
    assert [span.name[:2] for span in end.spans] == ["r-"]
    assert (bench.store / end.spans[0].name).stat().st_size == end.spans[0].size
    assert bench.value(end) == b"ab" * 200_000


@pytest.mark.asyncio
async def test_a_result_that_finds_no_room_on_the_node_may_be_tried_elsewhere(bench: Any, mounted: Path) -> None:
    """A full disk is not the function's fault: as when its slot had died, not as for a result that can never travel."""

    def double(data: bytes) -> bytes:
        return bytes(data) + bytes(data)

    bench.store = mounted
    await bench.serving(bench.spec(double))
    end = await bench.run(double, b"ab" * 300_000)
    assert end.outcome == DIED
    assert end.detail.text.startswith("the result of 'double' could not be left in the worker's object store: no room for an object of ")
    assert bench.value(await bench.run(double, b"ab")) == b"abab"


@pytest.mark.asyncio
async def test_a_result_that_finds_no_room_leaves_none_of_its_parts(bench: Any, mounted: Path) -> None:
    """The room that its first parts had found is there for the next call."""

    def make(count: int) -> list[pickle.PickleBuffer]:
        return [pickle.PickleBuffer(bytes(600_000)) for _ in range(count)]

    bench.store = mounted
    await bench.serving(bench.spec(make))
    end = await bench.run(make, 2)
    assert (end.outcome, end.spans) == (DIED, ())
    assert os.listdir(mounted) == []
    (part,) = bench.value(await bench.run(make, 1))
    assert len(part) == 600_000


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ["direct", "fork"])
async def test_a_call_that_is_killed_while_its_result_is_written_leaves_nothing_of_it(bench: Any, mode: str) -> None:
    """As when memory runs out: what is written into the store is the pilot's memory too."""

    def make() -> list[pickle.PickleBuffer]:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        return [pickle.PickleBuffer(bytes(size)) for size in (200_000, 600_000)]

    await bench.serving(bench.spec(make, mode=mode))
    end = await bench.run(make)
    assert (end.outcome, end.detail.signal) == (DIED, signal.SIGXFSZ)
    assert os.listdir(bench.store) == []


@pytest.mark.asyncio
async def test_output_comes_back_with_the_call_that_wrote_it(bench: Any) -> None:
    """From Python, child processes and C code; nothing is left for the next call."""

    def talk(name: str) -> None:
        import ctypes
        import subprocess
        import sys

        sys.stdout.write(f"py {name}\n")
        sys.stderr.write("err")
        sys.stdout.flush()
        subprocess.run(["echo", "child"], check=True)
        ctypes.CDLL(None).printf(b"c code")

    await bench.serving(bench.spec(talk, add))
    for name in ("one", "two"):
        end = await bench.run(talk, name)
        assert end.stdout == f"py {name}\nchild\nc code".encode()
        assert end.stderr == b"err"
    end = await bench.run(add, 1, 2)
    assert (end.stdout, end.stderr) == (b"", b"")


@pytest.mark.asyncio
async def test_a_call_that_breaks_its_streams_does_not_spoil_the_next(bench: Any) -> None:
    """Closed, replaced, or its descriptors taken away."""

    def close() -> None:
        import sys

        sys.stdout.close()

    def lose() -> None:
        import os
        import sys

        sys.stdout = None
        os.close(1)

    def talk() -> None:
        print("hello")

    await bench.serving(bench.spec(close, lose, talk))
    for breaker in (close, lose):
        assert (await bench.run(breaker)).outcome == RETURNED
        assert (await bench.run(talk)).stdout == b"hello\n"


@pytest.mark.asyncio
async def test_standard_input_is_empty(bench: Any) -> None:
    """A function that asks for input gets an end of file at once."""

    def ask() -> str:
        import sys

        return sys.stdin.read()

    await bench.serving(bench.spec(ask))
    assert bench.value(await bench.run(ask)) == ""


@pytest.mark.asyncio
@pytest.mark.parametrize("shared", [True, False])
async def test_what_a_context_writes_is_told_in_the_pilots_log_and_is_no_calls(
    bench: Any, shared: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, of however many slots."""

    def context() -> dict[str, int]:
        import os
        import sys

        print("loading")
        print("a warning", file=sys.stderr)
        os.write(2, b"from C\n")
        return {"base": 7}

    def use(base: int) -> int:
        return base

    await bench.serving(bench.spec(use, context=(context, (), {}), share_context=shared), 2)
    ends = [await bench.run(use) for _ in range(2)]
    assert [(end.stdout, end.stderr) for end in ends] == [(b"", b"")] * 2
    (told,) = caplog.messages
    first, *lines = told.splitlines()
    who = "its zygote" if shared else "a slot"
    assert (first, sorted(lines)) == (f"library 'lib': {who} wrote while it started:", ["a warning", "from C", "loading"])


@pytest.mark.asyncio
@pytest.mark.parametrize("shared", [True, False])
async def test_context_reaches_functions_by_name(bench: Any, shared: bool) -> None:
    """As keyword-only or ordinary parameters that the caller has not given, or by load_variable_from_library."""

    def context(base: int) -> dict[str, int]:
        import os

        return {"base": base, "made_by": os.getpid()}

    def use(a: int, base: int, *, made_by: int, other: int = 5) -> tuple[int, int, int, int]:
        from windlass.worker.slot_api import load_variable_from_library

        return a, base, made_by - load_variable_from_library("made_by"), other

    def whole(context: dict[str, int]) -> int:
        return context["made_by"]

    def words(context: str = "near", *, base: int = 0) -> tuple[str, int]:
        return context, base

    def at_home(context: dict[str, int] | None = None) -> int | None:
        return None if context is None else context["base"]

    def unknown() -> None:
        from windlass.worker.slot_api import load_variable_from_library

        load_variable_from_library("bass")

    spec = bench.spec(use, whole, words, at_home, unknown, context=(context, (), {"base": 7}), share_context=shared)
    instance = await bench.serving(spec, 2)
    assert bench.value(await bench.run(use, 1)) == (1, 7, 0, 5)
    assert bench.value(await bench.run(use, 1, 2)) == (1, 2, 0, 5)
    assert bench.value(await bench.run(use, 1, base=3, other=4)) == (1, 3, 0, 4)
    maker = bench.value(await bench.run(whole))
    assert maker == instance.zygote_pid if shared else maker in instance.slot_pids().values()
    assert bench.value(await bench.run(words)) == ("near", 7), "a default of its own, for something else of that name"
    assert bench.value(await bench.run(at_home)) == 7, "one that can be called at home as well"
    error = pickling.unpack_exception((await bench.run(unknown)).payload)
    assert "there is no variable 'bass'; did you mean 'base'?" in str(error)


@pytest.mark.asyncio
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_who_misspells_an_entry_of_the_context_is_told_what_there_is(bench: Any, concurrency: int) -> None:
    """The function lacks an argument, which Python alone would put down to the call."""

    def context() -> dict[str, int]:
        return {"tabel": 1, "model": 2}

    def length(word: str, table: int) -> int:
        return len(word) + table

    async def far(word: str, *, unlike: int) -> int:
        return unlike

    def inside() -> int:
        return length("word")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

    await bench.serving(bench.spec(length, far, inside, context=(context, (), {}), concurrency=concurrency))
    told = {
        length: ["the context of library 'lib' has 'tabel'; a parameter gets the entry of its name: is that what was meant?"],
        far: ["the context of library 'lib' has 'model', 'tabel'; a parameter gets the entry of its name"],
        inside: [],
    }
    for function, notes in told.items():
        error = pickling.unpack_exception((await bench.run(function, *(["word"] if notes else []))).payload)
        assert isinstance(error, TypeError)
        assert getattr(error, "__notes__", []) == notes


@pytest.mark.asyncio
async def test_a_call_knows_itself(bench: Any) -> None:
    """`current_call` in a slot, and nothing outside of one."""

    def ask() -> Any:
        from windlass.worker.slot_api import current_call

        return current_call()

    await bench.serving(bench.spec(ask))
    call = bench.call(ask)
    call.timeout = 9.0
    call.attempt, call.turn = 5, 2  # it came back unstarted three times
    bench.instances[0].feed([call])
    current = bench.value(await bench.end(call))
    assert (current.call, current.attempt, current.library, current.slot, current.timeout) == (call.call, 2, "lib", 0, 9.0)
    assert slot_api.current_call() is None
    with pytest.raises(UsageError, match="was asked for outside of a library"):
        slot_api.load_variable_from_library("x")


@pytest.mark.asyncio
@pytest.mark.parametrize("how", [{}, {"mode": "fork"}, {"start": "spawn"}, {"concurrency": 2}], ids=["direct", "fork", "spawn", "many"])
async def test_a_clock_that_is_set_is_no_time_that_a_call_has_run(bench: Any, how: Any) -> None:
    """It neither counts as such, nor takes anything of its timeout or gives it more."""

    def jump(seconds: float) -> float:
        import time

        import windlass
        from windlass import pilot_end
        from windlass.worker import slot, slot_tasks

        for module in (slot, slot_tasks, pilot_end):
            vars(module)["now"] = lambda: time.time() + seconds
        return windlass.time_left()

    async def jump_among_others(seconds: float) -> float:
        return jump(seconds)

    instance = await bench.serving(bench.spec(jump, jump_among_others, **how))
    for function in (jump, jump_among_others):
        for seconds in (3600.0, -3600.0):
            call = bench.call(function, seconds)
            call.timeout = 600.0
            instance.feed([call])
            end = await bench.end(call)
            assert 500 < bench.value(end) <= 600
            assert end.started_at <= end.ready_at <= end.ended_at < end.started_at + 60


@pytest.mark.asyncio
async def test_slots_draw_different_random_numbers(bench: Any) -> None:
    """Python's generator, numpy's and, where it is installed, that of torch, also in mode fork."""

    def draw() -> tuple[float, ...]:
        import random
        import sys
        import time

        import numpy

        time.sleep(0.02)
        torch: Any = sys.modules.get("torch")
        return random.random(), float(numpy.random.random()), *([float(torch.rand(()))] if torch else [])

    has_torch = importlib.util.find_spec("torch") is not None
    imports = tuple(ImportSpec(name, True) for name in ("numpy.random", "random", *(["torch"] if has_torch else [])))
    instance = await bench.serving(bench.spec(draw, imports=imports, mode="fork"), 2)
    calls = [bench.call(draw) for _ in range(6)]
    instance.feed(calls)
    drawn = [bench.value(await bench.end(call)) for call in calls]
    assert len({number for one in drawn for number in one}) == (18 if has_torch else 12)


# ---------------------------------------------------------------- mode "fork"


@pytest.mark.asyncio
async def test_in_mode_fork_each_call_has_a_fresh_process(bench: Any) -> None:
    """What a call changes is gone; its slot is its parent."""

    def remember(value: int) -> tuple[int, int, Any]:
        import os
        import sys

        before = getattr(sys, "kept", None)
        sys.kept = value  # type: ignore[attr-defined]
        print("value", value)
        return os.getpid(), os.getppid(), before

    instance = await bench.serving(bench.spec(remember, mode="fork"))
    seen = set[int]()
    for value in range(3):
        end = await bench.run(remember, value)
        pid, parent, before = bench.value(end)
        assert before is None
        assert end.stdout == f"value {value}\n".encode()
        assert parent == instance.slot_pids()[0]
        seen.add(pid)
    assert len(seen) == 3


@pytest.mark.asyncio
async def test_in_mode_fork_no_call_has_to_load_what_ends_take(bench: Any) -> None:
    """Exceptions, large results, and objects of the script's classes: a child that loaded that for itself took five times as long."""

    def own(name: str) -> list[Any]:
        import sys

        known = set(sys.modules)

        def loaded() -> str:  # asked for while what it is in is packed
            return ",".join(sorted(one for one in {*sys.modules} - known if one.startswith("windlass.")))

        class Told(Exception):
            def __str__(self) -> str:
                return loaded()

        class Result:
            def __reduce__(self) -> Any:
                return str, (loaded(),)

        if name == "raised":
            raise Told
        return [Told, known, Result()]

    await bench.serving(bench.spec(own, mode="fork"))
    end = await bench.run(own, "raised")
    assert end.detail.text.splitlines()[-1].endswith("Told"), "and nothing that was loaded"
    end = await bench.run(own, "returned")
    _, known, loaded = bench.value(end)
    assert loaded == ""
    assert known.issuperset(slot.LATER)


def test_what_cannot_be_loaded_ahead_of_calls_ends_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with cloudpickle 2: only calls that need what it lacks fail."""
    answered: list[CallRun] = []
    fake: Any = mock.Mock(setup=mock.Mock(instance=InstanceId(1)))

    def answer(run: CallRun, *_: object) -> None:
        answered.append(run)

    fake.answer = answer
    monkeypatch.setattr(slot, "LATER", ("no_such_module", "windlass.spares", "no_such_module"))
    monkeypatch.setattr(gc, "freeze", lambda: None)
    slot.Slot.rehearse(fake)
    assert answered


@pytest.mark.asyncio
async def test_in_mode_fork_a_death_costs_the_call_and_not_the_slot(bench: Any) -> None:
    """The slot answers for its child."""

    def die(how: int) -> None:
        import os
        import sys

        print("last words", file=sys.stderr, flush=True)
        if how:
            os.kill(os.getpid(), how)
        os._exit(0)

    instance = await bench.serving(bench.spec(die, add, mode="fork"))
    slot = instance.slot_pids()[0]
    end = await bench.run(die, signal.SIGKILL)
    assert (end.outcome, end.detail.signal, end.stderr) == (DIED, signal.SIGKILL, b"last words\n")
    end = await bench.run(die, 0)
    assert (end.outcome, end.detail.signal, end.detail.exit_status) == (DIED, 0, 0)
    assert bench.value(await bench.run(add, 1, 2)) == 3
    assert instance.slot_pids()[0] == slot


@pytest.mark.asyncio
async def test_in_mode_fork_a_killed_call_ends_as_asked_with_all_below_it(bench: Any, tmp_path: Path) -> None:
    """The slot goes on; what the call left running does not."""

    def family(path: str) -> None:
        import os
        import subprocess

        child = subprocess.Popen(["sleep", "60"])
        Path(path).with_suffix(".part").write_text(f"{os.getpid()} {child.pid}")
        Path(path).with_suffix(".part").rename(path)
        child.wait()

    def leave_behind() -> int:
        import subprocess

        return subprocess.Popen(["sleep", "60"]).pid

    def ended() -> object:
        import os
        import subprocess

        process = subprocess.Popen(["true"])
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # what nobody has reaped holds no request
        return process

    instance = await bench.serving(bench.spec(family, add, leave_behind, context=(ended, (), {}), mode="fork"))
    slot = instance.slot_pids()[0]
    call = bench.call(family, str(tmp_path / "pids"))
    instance.feed([call])
    await bench.until((tmp_path / "pids").exists)
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert instance.kill_call(call.call, 1, CANCELLED, None)
    assert (await bench.end(call)).outcome == CANCELLED
    await bench.until(lambda: all(is_gone(pid) for pid in pids))
    assert bench.value(await bench.run(add, 1, 2)) == 3
    assert instance.slot_pids()[0] == slot
    left = bench.value(await bench.run(leave_behind))
    await bench.until(lambda: is_gone(left))


@pytest.mark.asyncio
async def test_in_mode_fork_what_the_context_has_started_ends_with_a_killed_call(bench: Any, tmp_path: Path) -> None:
    """An engine, a manager of `multiprocessing`: it may be at the call's request, and later calls would have its answer as theirs."""

    def start() -> dict[str, Any]:
        import subprocess

        return {"engine": subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)}

    def ask(question: bytes, path: str, *, engine: Any) -> bytes:
        import time

        engine.stdin.write(question)
        if path:
            Path(path).touch()
            time.sleep(60)
        return engine.stdout.readline()  # type: ignore[no-any-return]

    instance = await bench.serving(bench.spec(ask, context=(start, (), {}), mode="fork"))
    slot = instance.slot_pids()[0]
    (engine,) = descendants(slot)
    call = bench.call(ask, b"one\n", str(tmp_path / "asked"))
    instance.feed([call])
    await bench.until((tmp_path / "asked").exists)
    assert instance.kill_call(call.call, 1, CANCELLED, None)
    assert (await bench.end(call)).outcome == CANCELLED
    assert bench.value(await bench.run(ask, b"two\n", "")) == b"two\n"
    assert is_gone(engine)
    assert instance.slot_pids()[0] != slot


@pytest.mark.asyncio
@pytest.mark.parametrize("case", ["forks", "hangs", "helper"])
async def test_in_mode_fork_a_call_ends_as_asked_before_it_has_a_process(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """It has begun, and its slot is about to fork: it ends the child itself. One that hangs there, or has started something, ends."""

    def prepare() -> object:
        import subprocess

        os.register_at_fork(before=wait)
        return subprocess.Popen(["sleep", "60"]) if helper else None

    def wait() -> None:
        import time

        begun.touch()
        while not go.exists():
            time.sleep(0.001)

    def sleep() -> None:
        import time

        time.sleep(60)

    begun, go, helper = tmp_path / "begun", tmp_path / "go", case == "helper"
    monkeypatch.setattr(slotset, "CANCEL_SECONDS", 0.1 if case == "hangs" else 60.0)
    instance = await bench.serving(bench.spec(sleep, add, context=(prepare, (), {}), mode="fork"))
    slot = instance.slot_pids()[0]
    below = descendants(slot)
    call = bench.call(sleep)
    instance.feed([call])
    await bench.until(begun.exists)
    assert instance.kill_call(call.call, 1, CANCELLED, None)
    if case == "forks":
        await bench.until(lambda: instance._ground.rows.words[CANCEL] == 1)
        go.touch()
    assert (await bench.end(call)).outcome == CANCELLED
    go.touch()
    assert bench.value(await bench.run(add, 1, 2)) == 3
    assert (instance.slot_pids()[0] == slot) == (case == "forks")
    assert len(below) == helper
    assert all(map(is_gone, below))


@pytest.mark.asyncio
async def test_in_mode_fork_a_death_in_the_middle_of_an_answer_harms_no_other_answer(bench: Any) -> None:
    """The stream of results is torn: the slot goes with it, and only that call is charged."""

    def large() -> str:
        return "x" * 60_000

    instance = await bench.serving(bench.spec(large, mode="fork"))
    (slot,) = instance._slots.slots.values()
    words = instance._ground.rows.words
    # As if the worker were busy: answers pile up until one does not fit.
    instance._loop.remove_reader(slot.results.fileno())
    calls = [bench.call(large) for _ in range(150)]
    assert instance.feed(calls) == len(calls)

    def is_sending() -> list[int]:
        children = descendants(slot.pid)
        sending = words[SENDING] == words[BEGUN] != words[FINISHED]
        return [pid for pid in children if sending and process_state(pid) == "S"]

    await bench.until(lambda: bool(is_sending()))
    torn = words[CALL]
    os.kill(is_sending()[0], signal.SIGKILL)
    for call in calls:
        end = await bench.end(call)
        assert end.outcome == (DIED if call.call == torn else RETURNED)
    assert not bench.events.given_back


def test_the_names_of_the_slots_api_cost_nothing_to_import() -> None:
    """Programs import it through ``windlass``."""
    code = "import sys, windlass.worker.slot_api; print({'asyncio', 'pickle', 'numpy', 'cloudpickle'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.sep)
    assert result.stdout == "set()\n"
