"""What breaks, and what comes of it: every future ends, nothing stays behind. Real processes, real signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import windlass
from windlass import CallTooLong, Closed, Factory, FunctionCall, LibraryFailed, Manager, SlotDied

PYTHON = sys.executable


def hold(gate: str, word: str) -> tuple[int, int]:
    """Note that it runs, and run until the gate opens: the ids of the slot and of its parent, the zygote."""
    descriptor = os.open(f"{gate}.{word}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{os.getpid()} {os.getppid()}\n".encode())
    os.close(descriptor)
    while not os.path.exists(gate):
        time.sleep(0.002)
    return os.getpid(), os.getppid()


def note(path: str, word: str, seconds: float = 0.0) -> str:
    """Append a line, whole whoever else writes, and take some time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{word}\n".encode())
    os.close(descriptor)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)
    return word


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """Wait until the condition holds; what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {seconds:g} s until {what}"
        time.sleep(0.005)
    return value


def runs(gate: str, word: str) -> list[tuple[int, int]]:
    """(slot, zygote) of each attempt of a holding call that has begun."""
    path = Path(f"{gate}.{word}")
    if not path.exists():
        return []
    return [(int(slot), int(zygote)) for slot, zygote in (line.split() for line in path.read_text().splitlines())]


def is_gone(pid: int) -> bool:
    """It has ended (a zombie has, too)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def links_to(folder: Path) -> list[str]:
    """The short links to a worker's folder that lies deep."""
    places = [os.path.join(place, name) for place in ("/tmp", "/dev/shm") for name in os.listdir(place) if name.startswith("windlass-")]
    return [path for path in places if os.path.islink(path) and os.readlink(path) == str(folder)]


def worker_pids(manager: Manager) -> list[int]:
    return [int(worker["pid"]) for worker in manager.status()["workers"]]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[str]:
    """A file that lets `hold` go when it is there."""
    path = tmp_path / "gate"
    yield str(path)
    path.touch()


@pytest.fixture
def quick(leaves_nothing_running: None) -> Iterator[Manager]:
    """A manager that takes notice of silence in a second or two and gives up a cut session after another."""
    with Manager(heartbeat=0.2, silence=1.5, reconnect_grace=1.0, manager_timeout=2.0) as manager:
        manager.install_library("lib", hold, note)
        yield manager


def local(manager: Manager, **options: Any) -> Factory:
    """A factory of one local pilot of two cores, unless told otherwise."""
    given: dict[str, Any] = {"cores": 2, "grace": 1.0, "max_pilots": 1, **options}
    return Factory(manager, "local", **given)


# ---------------------------------------------------------------- killed


def test_a_killed_slot_fails_its_own_call_and_no_other(quick: Manager, gate: str) -> None:
    """The error names the signal; the neighbour goes on; with a retry the call runs again."""
    with local(quick):
        futures = {word: quick.submit(FunctionCall("lib", "hold", gate, word)) for word in ("killed", "beside")}
        until(lambda: runs(gate, "killed") and runs(gate, "beside"), "both run")
        os.kill(runs(gate, "killed")[0][0], signal.SIGKILL)
        with pytest.raises(SlotDied, match="SIGKILL") as caught:
            futures["killed"].result(30)
        assert caught.value.signal == signal.SIGKILL
        again = quick.submit(FunctionCall("lib", "hold", gate, "again").with_options(retries=1))
        os.kill(until(lambda: runs(gate, "again"), "it runs")[0][0], signal.SIGKILL)
        until(lambda: len(runs(gate, "again")) == 2, "it runs again")
        Path(gate).touch()
        assert again.result(30)[0] == runs(gate, "again")[1][0]
        assert futures["beside"].result(30) == runs(gate, "beside")[0]


def test_a_killed_zygote_takes_its_slots_along_and_the_library_starts_again(quick: Manager, gate: str) -> None:
    """What ran in its slots died with it, as when a slot dies: with a retry it runs again, without one the error says so. What waited
    runs in the new instance, unharmed."""
    with local(quick):
        retried = quick.submit(FunctionCall("lib", "hold", gate, "retried").with_options(retries=1))
        plain = quick.submit(FunctionCall("lib", "hold", gate, "plain"))
        waiting = quick.submit(FunctionCall("lib", "note", f"{gate}.log", "waited"))
        until(lambda: runs(gate, "retried") and runs(gate, "plain"), "both run")
        slot, zygote = runs(gate, "retried")[0]
        os.kill(zygote, signal.SIGKILL)
        with pytest.raises(SlotDied):
            plain.result(30)
        assert waiting.result(30) == "waited"
        until(lambda: len(runs(gate, "retried")) == 2, "it runs again")
        assert is_gone(slot), "two attempts of one call ran at the same time"
        Path(gate).touch()
        assert retried.result(30)[1] != zygote
        assert len(worker_pids(quick)) == 1


def test_what_a_worker_left_that_was_killed_with_its_guardian_goes_with_the_next_one(quick: Manager, gate: str, tmp_path: Path) -> None:
    """Batch systems end a whole job by SIGKILL; its scratch would stay on the node for ever."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "windlass-of-others").mkdir()
    with local(quick, cores=1, scratch=str(scratch)):
        future = quick.submit(FunctionCall("lib", "hold", gate, "call"))
        until(lambda: runs(gate, "call"), "it runs")
        [old] = scratch.glob("windlass-scratch-*")
        [short] = links_to(old)
        [worker] = worker_pids(quick)
        parent, *below = (psutil.Process(worker), *psutil.Process(worker).children(recursive=True))
        for process in below:
            process.suspend()  # so that none does anything when the worker dies
        for process in (parent, *below):
            process.kill()
        until(lambda: len(runs(gate, "call")) == 2, "it runs again")
        until(lambda: not old.exists(), "what was left is gone")
        until(lambda: not os.path.lexists(short), "the short link to it is gone")
        assert len(list(scratch.glob("windlass-scratch-*"))) == 1
        Path(gate).touch()
        assert future.result(30) == runs(gate, "call")[1]
    assert [path.name for path in scratch.iterdir()] == ["windlass-of-others"]


def test_calls_of_a_killed_worker_run_again_on_the_next_pilot(quick: Manager, gate: str) -> None:
    """Its slots and zygotes end with it; the factory replaces the pilot; no retry is used up, nothing waits for a grace."""
    with local(quick):
        futures = [quick.submit(FunctionCall("lib", "hold", gate, f"{number}")) for number in range(3)]
        old = until(lambda: runs(gate, "0") and runs(gate, "1") and [*runs(gate, "0"), *runs(gate, "1")], "two run")
        [worker] = worker_pids(quick)
        os.kill(worker, signal.SIGKILL)
        until(lambda: all(is_gone(pid) for pair in old for pid in pair), "all that the worker started has ended")
        until(lambda: len(runs(gate, "0")) == 2 and len(runs(gate, "1")) == 2, "they run again")
        Path(gate).touch()
        assert all(future.result(30) for future in futures)
        assert worker_pids(quick) != [worker]
        assert len(runs(gate, "2")) == 1


def test_pilots_of_a_killed_factory_leave_and_another_factory_goes_on(quick: Manager, gate: str) -> None:
    """`windlass factory run` killed with SIGKILL: its local pilots end by themselves, the call waits, and runs with the next factory."""
    words = [PYTHON, "-m", "windlass.cli", "factory", "run", "local", "--port", str(quick.port), "--cores", "1"]
    future = quick.submit(FunctionCall("lib", "hold", gate, "call"))
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as factory:
        slot, zygote = until(lambda: runs(gate, "call"), "it runs")[0]
        [worker] = worker_pids(quick)
        factory.kill()
        factory.wait(30)
    until(lambda: all(is_gone(pid) for pid in (slot, zygote, worker)), "the pilot of the killed factory has left")
    until(lambda: quick.stats.waiting == 1, "the call waits again")
    assert not future.done()
    with local(quick):
        until(lambda: len(runs(gate, "call")) == 2, "it runs again")
        Path(gate).touch()
        assert future.result(30)


PROGRAM = """
import os, signal, sys, time
import windlass

def hold(gate):
    open(gate + ".here", "w").close()
    while True:
        time.sleep(0.01)

if __name__ == "__main__":
    gate, name, start = sys.argv[1:]
    manager = windlass.Manager(name=name, heartbeat=0.2, silence=1.5, manager_timeout=2.0)
    manager.install_library("lib", hold)
    if start == "factory":
        windlass.Factory(manager, "local", cores=2).start()
    futures = [manager.submit(windlass.FunctionCall("lib", "hold", gate)) for _ in range(5)]
    print(manager.pilot_file, flush=True)
    if start == "with":
        with manager, windlass.Factory(manager, "local", cores=2):
            futures[0].result()
    futures[0].result()
"""


@pytest.fixture
def program(tmp_path: Path, gate: str) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a program whose calls never end, with a factory of its own or without one."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    started: list[subprocess.Popen[str]] = []

    def start(kind: str) -> subprocess.Popen[str]:
        words = [PYTHON, str(path), gate, f"program-{len(started)}-{os.getpid()}", kind]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


Program = Callable[[str], "subprocess.Popen[str]"]


def test_nothing_outlives_a_program_that_is_killed(program: Program, gate: str) -> None:
    """Manager, factory and all killed at once with SIGKILL: pilots, zygotes and slots end by themselves."""
    process = program("factory")
    until(lambda: os.path.exists(f"{gate}.here"), "a call runs")
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3
    process.kill()
    process.wait(30)
    until(lambda: all(is_gone(child.pid) for child in family), "all processes of the program have ended")


def test_a_pilot_whose_manager_is_killed_leaves_after_manager_timeout(program: Program, gate: str) -> None:
    """A worker that the batch system started, not the program: it tells which manager was not reached, ends its calls, exits with 4."""
    process = program("alone")
    assert process.stdout is not None
    pilot_file = process.stdout.readline().strip()
    words = [PYTHON, "-m", "windlass.worker", "--connection", pilot_file, "--cores", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as worker:
        until(lambda: os.path.exists(f"{gate}.here"), "a call runs")
        family = psutil.Process(worker.pid).children(recursive=True)
        process.kill()
        process.wait(30)
        assert worker.wait(30) == 4
        assert worker.stderr is not None
        assert "was not reached for" in worker.stderr.read()
    until(lambda: all(is_gone(child.pid) for child in family), "all that the worker started has ended")


@pytest.mark.parametrize("kind", ["factory", "with"])
def test_ctrl_c_in_a_program_that_waits_ends_it_and_all_its_processes(kind: str, program: Program, gate: str) -> None:
    """Manager and factory in with blocks, or left to the program's end; SIGINT while `result()` waits: KeyboardInterrupt in the program,
    no hang at its exit, no process stays."""
    process = program(kind)
    until(lambda: os.path.exists(f"{gate}.here"), "a call runs")
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert stderr.strip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in stderr
    until(lambda: all(is_gone(child.pid) for child in family), "all processes of the program have ended")


def test_every_future_ends_when_the_manager_closes(gate: str) -> None:
    """Running ones and waiting ones: `Closed`, with the reason; also those that nobody has asked for yet."""
    with Manager() as manager:
        manager.install_library("lib", hold)
        with local(manager):
            futures = [manager.submit(FunctionCall("lib", "hold", gate, "closing")) for _ in range(100)]
            until(lambda: len(runs(gate, "closing")) == 2, "two run")
            slots = [slot for slot, _ in runs(gate, "closing")]
            manager.close()
    assert all(future.done() for future in futures)
    for future in futures:
        with pytest.raises(Closed, match="the manager was closed"):
            future.result(0)
    until(lambda: all(is_gone(slot) for slot in slots), "what ran has ended")


# ---------------------------------------------------------------- silent


def test_a_worker_that_stops_for_longer_than_silence_and_goes_on_repeats_nothing(gate: str, leaves_nothing_running: None) -> None:
    """SIGSTOP, cut by silence, SIGCONT inside reconnect_grace: the session goes on, the call runs once."""
    with Manager(heartbeat=0.1, silence=0.4, reconnect_grace=30) as manager:
        manager.install_library("lib", hold)
        with local(manager):
            future = manager.submit(FunctionCall("lib", "hold", gate, "call"))
            until(lambda: runs(gate, "call"), "it runs")
            [worker] = worker_pids(manager)
            os.kill(worker, signal.SIGSTOP)
            try:
                until(lambda: not manager.status()["workers"][0]["connected"], "its silence is noticed")
            finally:
                os.kill(worker, signal.SIGCONT)
            until(lambda: manager.status()["workers"][0]["connected"], "it is back")
            Path(gate).touch()
            assert future.result(30) == runs(gate, "call")[0]
            assert len(runs(gate, "call")) == 1
            assert worker_pids(manager) == [worker]


def test_calls_of_a_worker_that_is_silent_for_ever_run_elsewhere(quick: Manager, gate: str) -> None:
    """After silence and reconnect_grace; the stopped pilot is ended all the same when the factory closes."""
    with local(quick, cores=1, max_pilots=2):
        future = quick.submit(FunctionCall("lib", "hold", gate, "call"))
        until(lambda: runs(gate, "call"), "it runs")
        [worker] = worker_pids(quick)
        os.kill(worker, signal.SIGSTOP)
        until(lambda: len(runs(gate, "call")) == 2, "it runs elsewhere")
        Path(gate).touch()
        assert future.result(30) == runs(gate, "call")[1]
        assert worker not in worker_pids(quick)
    until(lambda: is_gone(worker), "the stopped worker has ended")


# ---------------------------------------------------------------- libraries that cannot start


def bad_context() -> dict[str, int]:
    raise RuntimeError("no data today")


#: What a module does when it is imported, how often it is tried, what the error says.
MODULES = {
    "raises": ("raise OSError('licence server is down')", 1, "OSError: licence server is down"),
    "exits": ("import os; os._exit(3)", 3, "exit status 3"),
    "crashes": ("import ctypes; ctypes.string_at(0)", 3, "SIGSEGV"),
    "hangs": ("import time; time.sleep(60)", 1, "3 s"),
}


@pytest.mark.parametrize("kind", list(MODULES))
def test_calls_of_a_library_whose_import_fails_end_at_once_with_the_reason(
    kind: str, quick: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception or a hang counts the first time, a crash the third; later calls fail without a try; other libraries go on."""
    body, tries, text = MODULES[kind]
    (tmp_path / f"broken_{kind}.py").write_text(f"open({str(tmp_path / 'tries')!r}, 'a').write('x')\n{body}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    library = quick.create_library("broken", note, imports=[f"broken_{kind}"], start_timeout=3 if kind == "hangs" else 60)
    quick.install_library(library)
    with local(quick):
        futures = [quick.submit(FunctionCall("broken", "note", str(tmp_path / "log"), "x")) for _ in range(20)]
        for error in [future.exception(30) for future in futures]:
            assert type(error) is LibraryFailed
            assert str(error).startswith("library 'broken' cannot start: ")
            assert text in str(error)
            assert f"broken_{kind}" in str(error)
        assert (tmp_path / "tries").read_text() == "x" * tries
        with pytest.raises(LibraryFailed, match="library 'broken' cannot start"):
            quick.submit(FunctionCall("broken", "note", str(tmp_path / "log"), "x")).result(30)
        assert quick.submit(FunctionCall("lib", "note", str(tmp_path / "log"), "good")).result(30) == "good"
        assert (tmp_path / "log").read_text() == "good\n"


@pytest.mark.parametrize("share", [False, True], ids=["per slot", "shared"])
def test_calls_of_a_library_whose_context_fails_end_with_its_traceback(quick: Manager, share: bool) -> None:
    """Once in the zygote or in each slot: the exception of the context function, by name and line."""
    quick.install_library("broken", note, context=bad_context, share_context=share)
    with local(quick):
        with pytest.raises(LibraryFailed) as caught:
            quick.submit(FunctionCall("broken", "note", "x", "x")).result(30)
        assert "RuntimeError: no data today" in str(caught.value)
        assert "bad_context" in str(caught.value)


def test_a_library_for_another_python_is_refused_with_both_versions(quick: Manager) -> None:
    """What the program pickles another minor version cannot run: the calls end, and say which is which."""
    quick.install_library("other", note, python="3.9")
    with local(quick), pytest.raises(LibraryFailed) as caught:
        quick.submit(FunctionCall("other", "note", "x", "x")).result(30)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "3.9" in str(caught.value)
    assert here in str(caught.value)


def test_a_worker_that_speaks_another_protocol_is_refused_with_both_numbers(quick: Manager) -> None:
    """It exits with 3 and says why; the manager goes on."""
    program = (
        "import sys, windlass.messages as messages; messages.PROTOCOL = 99\n"
        "from windlass.worker.main import main\n"
        f"sys.exit(main(['--connection', {str(quick.pilot_file)!r}, '--cores', '1']))"
    )
    done = subprocess.run([PYTHON, "-c", program], stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert done.returncode == 3
    here = f"Windlass {windlass.__version__} and speaks protocol"
    assert f": this manager is {here} 1; worker " in done.stderr
    assert f" is {here} 99: one of the two is not what its version says: install it anew" in done.stderr
    assert quick.status()["workers"] == []


# ---------------------------------------------------------------- the end of a pilot


def test_pilots_drain_before_their_walltime_and_the_next_ones_go_on(quick: Manager, tmp_path: Path) -> None:
    """More work than one pilot has time for: each call runs once, none is lost, several pilots take part."""
    path = tmp_path / "log"
    with local(quick, cores=1, walltime=5.0, grace=0.5):
        futures = [quick.submit(FunctionCall("lib", "note", str(path), str(number), 0.5)) for number in range(16)]
        assert [future.result(60) for future in futures] == [str(number) for number in range(16)]
        status = quick.status()
        assert status["calls"]["lost_attempts"] == 0
    assert sorted(path.read_text().split(), key=int) == [str(number) for number in range(16)]


def test_a_call_longer_than_every_walltime_ends_with_call_too_long(quick: Manager, gate: str) -> None:
    """After one pilot's whole life, not after several: how long it ran and what the pools have."""
    with local(quick, cores=1, walltime=5.0, grace=0.5), pytest.raises(CallTooLong) as caught:
        quick.submit(FunctionCall("lib", "hold", gate, "call")).result(60)
    assert re.fullmatch(
        r"it ran for [0-9.]+ s when its pilot came to its end, so it needs longer than that; the longest walltime of a pool is 5 s",
        str(caught.value),
    )
    assert len(runs(gate, "call")) == 1


def test_a_preempted_pilot_finishes_what_runs_and_gives_back_the_rest(quick: Manager, gate: str) -> None:
    """SIGTERM: the running call ends there inside the grace, those that wait run on the next pilot, each once."""
    with local(quick, cores=1, grace=20.0, max_pilots=2):
        running = quick.submit(FunctionCall("lib", "hold", gate, "running"))
        until(lambda: runs(gate, "running"), "it runs")
        [worker] = worker_pids(quick)
        waiting = [quick.submit(FunctionCall("lib", "note", f"{gate}.log", str(number))) for number in range(20)]
        os.kill(worker, signal.SIGTERM)
        assert [future.result(30) for future in waiting] == [str(number) for number in range(20)]
        assert not running.done()
        Path(gate).touch()
        assert running.result(30) == runs(gate, "running")[0]
        until(lambda: is_gone(worker), "it has left")
    assert len(runs(gate, "running")) == 1
    assert sorted(Path(f"{gate}.log").read_text().split(), key=int) == [str(number) for number in range(20)]


def test_what_runs_past_the_grace_of_a_preempted_pilot_runs_again_elsewhere(quick: Manager, gate: str) -> None:
    """SIGTERM and a short grace: the call is ended with its pilot and goes back without using up a retry."""
    with local(quick, cores=1, grace=0.3):
        future = quick.submit(FunctionCall("lib", "hold", gate, "call"))
        slot, _ = until(lambda: runs(gate, "call"), "it runs")[0]
        [worker] = worker_pids(quick)
        os.kill(worker, signal.SIGTERM)
        until(lambda: len(runs(gate, "call")) == 2, "it runs again")
        assert is_gone(slot)
        Path(gate).touch()
        assert future.result(30) == runs(gate, "call")[1]
