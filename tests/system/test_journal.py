"""Runs that survive: a program that was killed finds what its calls returned, and its pilots; equal memoized calls run once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest

import windlass
from windlass import CallFailed, Executor, Factory, FileUnavailable, FunctionCall, Manager, UsageError, attach
from windlass.manager.timings import Timings

Until = Callable[[str, Callable[[], object]], None]

#: A program that is killed half-way, and then started again as it is.
PROGRAM = """
import dataclasses, sys, time
import windlass

@dataclasses.dataclass
class Point:
    x: int

def work(point, words, folder):
    import os, time
    with open(folder + "/ledger", "a") as ledger:
        ledger.write(f"{point.x} {os.getpid()} {os.getppid()}\\n")
    while not os.path.exists(folder + "/go") and point.x >= 60:
        time.sleep(0.01)
    return point.x ** 2

def draw():
    import random
    return random.random()

if __name__ == "__main__":
    folder = sys.argv[1]
    with windlass.Manager(journal=folder + "/journal", name="survivor") as manager:
        manager.install_library("lib", work, draw)
        futures = [manager.submit(windlass.FunctionCall("lib", "work", Point(x), {"a", "b", "c"}, folder)) for x in range(100)]
        drawn = [manager.submit(windlass.FunctionCall("lib", "draw").with_options(priority=1)) for _ in range(10)]
        print("submitted", flush=True)
        print([future.result() for future in futures] == [x ** 2 for x in range(100)], flush=True)
        print(sorted(future.result() for future in drawn), manager.status()["calls"]["remembered"], flush=True)
"""


@contextmanager
def program(folder: Path) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def rest_of(process: subprocess.Popen[str]) -> str:
    """What it says until it ends. (`communicate` would lose what a `readline` has read ahead.)"""
    assert process.stdout is not None
    said = process.stdout.read()
    assert process.wait() == 0
    return said


def ledger(folder: Path) -> list[list[str]]:
    try:
        return [line.split() for line in (folder / "ledger").read_text().splitlines()]
    except FileNotFoundError:
        return []


def test_a_program_that_is_killed_and_started_again_goes_on(tmp_path: Path, until: Until) -> None:
    """Each call runs once: results are there, what had not begun is run, and what was running goes on and is not run again. The pilot
    serves on: the same worker, which a factory of its own process started. Arguments with classes of the program and sets are known."""
    with ExitStack() as running:
        first = running.enter_context(program(tmp_path))
        assert first.stdout is not None
        assert first.stdout.readline() == "submitted\n"
        words = [sys.executable, "-m", "windlass", "factory", "run", "survivor", "local", "--cores", "2"]
        factory = running.enter_context(subprocess.Popen(words, stderr=subprocess.DEVNULL))
        running.callback(factory.send_signal, signal.SIGTERM)
        until("60 have run, and two wait for a word", lambda: len(ledger(tmp_path)) == 62)
        first.kill()
        first.wait()
        second = running.enter_context(program(tmp_path))
        assert second.stdout is not None
        assert second.stdout.readline() == "submitted\n"
        with attach("survivor") as door:
            until("its worker is back, with both cores taken", lambda: [one["busy_cores"] for one in door.status()["workers"]] == [2.0])
            assert door.status()["calls"]["running"] == 0
        (tmp_path / "go").touch()
        said = rest_of(second)
        third = running.enter_context(program(tmp_path))  # all of it is there: it needs no pilot
        again = rest_of(third)
    right, drawn = said.splitlines()
    assert right == "True"
    assert int(drawn.split()[-1]) >= 10 + 60  # the draws had priority; and those that ran meanwhile
    times = Counter(x for x, _, _ in ledger(tmp_path))
    assert times == {str(x): 1 for x in range(100)}
    assert again.splitlines()[1] == "True"
    assert again.splitlines()[2].rpartition("] ")[2] == "110"
    assert again.splitlines()[2].rpartition("] ")[0] == drawn.rpartition("] ")[0]  # ten different draws, each found again


#: A program whose results are of classes of its own.
OWN_CLASSES = """
import dataclasses, enum, sys
import windlass

class Status(enum.Enum):
    OK = 1

@dataclasses.dataclass
class Outcome:
    x: int
    status: Status

def work(x, folder):
    with open(folder + "/ledger", "a") as ledger:
        ledger.write("x")
    return Outcome(x, Status.OK)

def check(outcome, life):
    return isinstance(outcome, Outcome) and outcome == Outcome(0, Status.OK) and outcome.status is Status.OK

if __name__ == "__main__":
    folder = sys.argv[1]
    with windlass.Executor("local", cores=1, max_pilots=1, journal=folder + "/journal") as pool:
        futures = [pool.submit(work, x, folder) for x in range(3)]
        checked = pool.submit(check, futures[0], sys.argv[2])
        found = [future.result() for future in futures]
        print(checked.result())
    print(found == [Outcome(x, Status.OK) for x in range(3)], all(isinstance(one, Outcome) and one.status is Status.OK for one in found))
"""


def test_results_that_are_found_again_are_of_the_programs_own_classes(tmp_path: Path) -> None:
    """Here, and in calls that are given them."""
    for life in "12":
        ran = subprocess.run([sys.executable, "-c", OWN_CLASSES, str(tmp_path), life], capture_output=True, text=True, check=True)
        assert ran.stdout.split() == ["True", "True", "True"]
    assert (tmp_path / "ledger").read_text() == "xxx"


#: A program whose calls write down when they begin, and wait for a file of their name. "two<one" is given the result of "one"; at "-" the
#: program waits for a line before it submits the rest, and at "-end" it ends what it has not submitted.
HOLDS = """
import os, sys, time
import windlass

def hold(name, folder, *inputs):
    import numpy, os, time
    with open(f"{folder}/began-{name}", "a") as file:
        file.write("x")
    while not os.path.exists(f"{folder}/go-{name}"):
        time.sleep(0.01)
    if name == "bad" and len(open(f"{folder}/began-bad").read()) == 1:
        raise OSError("the first time")
    return numpy.full(100_000, 7) if name == "large" else name

if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    with windlass.Manager(journal=folder + "/journal", name="survivor") as manager:
        manager.install_library("lib", hold)
        futures = {}
        for name in names:
            if name == "-":
                print("submitted", flush=True)
                sys.stdin.readline()
                continue
            if name == "-end":
                manager.cancel_earlier()
                continue
            name, _, producer = name.partition("<")
            inputs = [futures[producer]] if producer else []
            futures[name] = manager.submit(windlass.FunctionCall("lib", "hold", name, folder, *inputs))
        print("submitted", flush=True)
        for name, future in futures.items():
            if name == "unwanted":
                sys.stdin.readline()
                print(future.cancel(), future.cancelled(), flush=True)
                continue
            result = future.result()
            print(result if isinstance(result, str) else result.sum(), flush=True)
"""


class Lives:
    """One program's lives, and a factory of its own process that outlives them."""

    def __init__(self, folder: Path, until: Until, running: ExitStack, *names: str) -> None:
        self.folder, self.until, self.running, self.names = folder, until, running, names
        #: What the factory says.
        self.said = folder / "factory"

    def factory(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "windlass", "factory", "run", "survivor", "local", "--cores", "2"]
        with self.said.open("wb") as said:
            factory = self.running.enter_context(subprocess.Popen(words, stderr=said))
        self.running.callback(factory.send_signal, signal.SIGTERM)
        return factory

    def begin(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", HOLDS, str(self.folder), *self.names]
        life = self.running.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        self.running.callback(life.kill)
        assert life.stdout is not None
        assert life.stdout.readline() == "submitted\n"
        return life

    def go_past_line(self, life: subprocess.Popen[str]) -> None:
        assert life.stdin is not None
        assert life.stdout is not None
        life.stdin.write("\n")
        life.stdin.flush()
        assert life.stdout.readline() == "submitted\n"

    def nothing_is_run(self) -> None:
        """What there is runs for an earlier life."""
        with attach("survivor") as door:
            self.until("none waits or runs", lambda: [door.status()["calls"][state] for state in ("waiting", "running")] == [0, 0])

    def began(self, name: str) -> int:
        return runs(self.folder, f"began-{name}")

    def go(self, *names: str) -> None:
        for name in names:
            (self.folder / f"go-{name}").touch()

    def worker_is_back(self) -> None:
        """With what it runs for the earlier life."""
        with attach("survivor") as door:
            self.until("its worker is back", lambda: any(worker["busy_cores"] == 2.0 for worker in door.status()["workers"]))

    def first_life(self, *running: str) -> subprocess.Popen[bytes]:
        """It is killed when these have begun. Its factory."""
        life = self.begin()
        factory = self.factory()
        self.until("they run", lambda: all(self.began(name) for name in running))
        life.kill()
        life.wait()
        return factory


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as running:
        yield running


def test_what_ends_while_there_is_no_manager_is_told_to_the_next(tmp_path: Path, until: Until, running: ExitStack) -> None:
    """A small result, and one with a large array, which is put into a store that was not there when its call began."""
    lives = Lives(tmp_path, until, running, "small", "large", "later")
    lives.first_life("small", "large")
    lives.go("small", "large", "later")
    until("what waits has begun too, as nobody says otherwise", lambda: lives.began("later") == 1)
    said = rest_of(lives.begin())
    assert said.split() == ["small", "700000", "later"]
    assert [lives.began(name) for name in lives.names] == [1, 1, 1]


def test_what_runs_is_run_once_however_many_lives_pass_meanwhile(tmp_path: Path, until: Until, running: ExitStack) -> None:
    """Each life is told of what still runs of all earlier ones. Also a call that is given the result of another one waits for what
    runs of it, when it is submitted after its worker has come back."""
    lives = Lives(tmp_path, until, running, "-", "one", "two<one", "three")
    lives.go("one")
    first = lives.begin()
    lives.go_past_line(first)
    lives.factory()
    until("they run", lambda: lives.began("two") and lives.began("three"))
    last = first
    for _ in range(2):
        last.kill()
        last.wait()
        last = lives.begin()
        lives.worker_is_back()
        lives.go_past_line(last)
        lives.nothing_is_run()
    lives.go("two", "three")
    assert rest_of(last).split() == ["one", "two", "three"]
    assert [lives.began(name) for name in ("one", "two", "three")] == [1, 1, 1]


def test_what_raises_for_an_earlier_life_is_run_again(tmp_path: Path, until: Until, running: ExitStack) -> None:
    lives = Lives(tmp_path, until, running, "bad", "well")
    lives.first_life("bad", "well")
    second = lives.begin()
    lives.worker_is_back()
    lives.go("bad", "well")
    said = rest_of(second)
    assert said.split() == ["bad", "well"]
    assert [lives.began(name) for name in lives.names] == [2, 1]


def test_what_is_not_wanted_any_more_is_cancelled(tmp_path: Path, until: Until, running: ExitStack) -> None:
    """The next life cancels a call that still runs for the earlier one: it is ended, and others have its slot."""
    lives = Lives(tmp_path, until, running, "unwanted", "well")
    lives.first_life("unwanted", "well")
    lives.names = ("unwanted", "well", "other")
    second = lives.begin()
    lives.worker_is_back()
    assert second.stdin is not None
    assert second.stdout is not None
    second.stdin.write("\n")
    second.stdin.flush()
    assert second.stdout.readline() == "True True\n"
    until("another one has its core", lambda: lives.began("other") == 1)
    lives.go("well", "other")
    assert rest_of(second).split() == ["well", "other"]
    assert [lives.began(name) for name in lives.names] == [1, 1, 1]


def test_what_nobody_will_ask_for_any_more_is_ended(tmp_path: Path, until: Until, running: ExitStack) -> None:
    """The parameters were wrong: the next life submits others. What it has submitted goes on."""
    lives = Lives(tmp_path, until, running, "wrong", "well")
    lives.first_life("wrong", "well")
    lives.names = ("well", "right", "-end")
    second = lives.begin()
    until("the right one has its core", lambda: lives.began("right") == 1)
    lives.go("well", "right")
    assert rest_of(second).split() == ["well", "right"]
    assert [lives.began(name) for name in ("wrong", "well", "right")] == [1, 1, 1]


def test_what_an_earlier_life_left_running_is_run_again_when_its_worker_is_lost(tmp_path: Path, until: Until, running: ExitStack) -> None:
    lives = Lives(tmp_path, until, running, "one", "two")
    lives.first_life("one", "two")
    second = lives.begin()
    lives.worker_is_back()
    with attach("survivor") as door:
        [worker] = [worker for worker in door.status()["workers"] if worker["connected"]]
        os.kill(worker["pid"], signal.SIGKILL)
    until("they run again", lambda: (lives.began("one"), lives.began("two")) == (2, 2))
    lives.go("one", "two")
    assert rest_of(second).split() == ["one", "two"]


def test_a_factory_whose_manager_is_gone_submits_no_pilots(tmp_path: Path, until: Until, running: ExitStack) -> None:
    """In place of one that has ended: it would wait for a manager that may never come, and so would whoever ends the factory."""
    lives = Lives(tmp_path, until, running, "one")
    factory = lives.first_life("one")
    until("the factory knows", lambda: "the manager is out of reach" in lives.said.read_text())
    [worker] = [child for child in psutil.Process(factory.pid).children() if "windlass.worker" in child.cmdline()]
    worker.kill()
    until("it has ended", lambda: "has ended" in lives.said.read_text())
    factory.send_signal(signal.SIGTERM)
    assert factory.wait() == 0
    assert lives.said.read_text().count("submitting") == 1


@contextmanager
def pool(**options: Any) -> Generator[Executor]:
    with Executor("local", cores=2, max_pilots=1, **options) as executor:
        yield executor


def manager_of(executor: Executor) -> Manager:
    assert isinstance(executor.manager, Manager)
    return executor.manager


def count(folder: str, name: str) -> int:
    """Note that a call was run."""
    with open(f"{folder}/{name}", "a") as file:
        return file.write("x")


def runs(folder: Path, name: str = "runs") -> int:
    path = folder / name
    return len(path.read_text()) if path.exists() else 0


def big(folder: str, size: int) -> Any:
    count(folder, "big")
    return numpy.arange(size, dtype="int64")


def total(folder: str, *parts: Any) -> int:
    count(folder, "total")
    return int(sum(part.sum() for part in parts))


def test_large_results_and_what_was_made_of_them_are_found(tmp_path: Path) -> None:
    """Also by a consumer of futures that have not been read; nothing is run a second time, by an `Executor` either."""
    for life in range(2):
        with pool(journal=tmp_path / "journal") as executor:
            arrays = [executor.submit(big, str(tmp_path), size) for size in (100_000, 200_000)]
            summed = executor.submit(total, str(tmp_path), *arrays)
            assert summed.result() == sum(range(100_000)) + sum(range(200_000))
            assert arrays[0].result()[-1] == 99_999
            assert manager_of(executor).status()["calls"]["remembered"] == 3 * life
        assert (runs(tmp_path, "big"), runs(tmp_path, "total")) == (2, 1)


def test_large_results_are_found_though_the_store_has_no_room_for_all(tmp_path: Path) -> None:
    """They are read in the journal, one by one, as they were when they came; such as are given to a call are put into the store for it."""
    for life in range(2):
        with pool(journal=tmp_path / "journal") as executor:
            store = manager_of(executor)._store  # pyright: ignore[reportPrivateUsage]
            store.limit, store.spool_limit, store.most = 2 << 20, 1, 0
            if not life:
                for size in range(5):
                    assert executor.submit(big, str(tmp_path), 120_000 + size).result().size == 120_000 + size
                continue
            futures = [executor.submit(big, str(tmp_path), 120_000 + size) for size in range(5)]
            assert manager_of(executor).status()["calls"]["remembered"] == 5
            assert executor.submit(total, str(tmp_path), *futures[:2]).result() == sum(range(120_000)) + sum(range(120_001))
            assert [future.result()[-1] for future in futures] == list(range(119_999, 120_004))
            store.check()
    assert runs(tmp_path, "big") == 5


def test_a_damaged_buffer_is_made_again(tmp_path: Path) -> None:
    """By the life after the one that has read it: it is found to be damaged only then."""
    with pool(journal=tmp_path / "journal") as executor:
        executor.submit(big, str(tmp_path), 100_000).result()
    [kept] = (tmp_path / "journal" / "objects").iterdir()
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    with (
        pool(journal=tmp_path / "journal") as executor,
        pytest.raises(FileUnavailable, match="is gone or damaged: the next run makes it again"),
    ):
        executor.submit(big, str(tmp_path), 100_000).result()
    with pool(journal=tmp_path / "journal") as executor:
        assert executor.submit(big, str(tmp_path), 100_000).result()[-1] == 99_999
    assert runs(tmp_path, "big") == 2


def fail_once(folder: str) -> str:
    count(folder, "runs")
    if runs(Path(folder)) == 1:
        raise OSError("the first time")
    return "well"


def test_a_remembered_call_has_the_times_of_the_run_that_made_its_result(tmp_path: Path) -> None:
    """And of this life, in which it was not sent, those of its asking and its answer: these are not mixed in any figure."""
    times: list[Timings] = []
    for _ in range(2):
        with pool(journal=tmp_path / "journal") as executor:
            future = executor.submit(count, str(tmp_path), "runs")
            assert future.result() == 1
            times.append(future.timings)
    first, again = times
    assert (again.started, again.ready, again.ended, again.running) == (first.started, first.ready, first.ended, first.running)
    assert (again.sent, again.waiting) == (0.0, again.total)
    assert first.returned <= again.submitted <= again.returned


def test_no_clock_that_is_set_makes_a_remembered_call_one_that_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens on the program's side is all told by one clock, which nobody sets and which stands while a laptop sleeps."""
    clock, ahead = time.time, [0.0]
    with pool(journal=tmp_path / "journal") as executor:
        executor.submit(count, str(tmp_path), "runs").result()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: clock() + sum(ahead))
        with pool(journal=tmp_path / "journal") as executor:
            ahead.append(36000.0)
            future = executor.submit(count, str(tmp_path), "runs")
            assert future.result() == 1
    assert 0 <= future.timings.waiting < 3600


def test_what_failed_is_run_again(tmp_path: Path) -> None:
    """A program is started again to have that done which was not."""
    with pool(journal=tmp_path / "journal") as executor, pytest.raises(OSError, match="the first time"):
        executor.submit(fail_once, str(tmp_path)).result()
    with pool(journal=tmp_path / "journal") as executor:
        assert executor.submit(fail_once, str(tmp_path)).result() == "well"


def test_results_that_stay_are_made_again_and_what_was_made_of_them_is_not(tmp_path: Path) -> None:
    """They go with their workers; a journal has no copy of them."""
    for life in range(2):
        with pool(journal=tmp_path / "journal") as executor:
            kept = executor.with_options(keep="worker").submit(big, str(tmp_path), 100_000)
            assert executor.submit(total, str(tmp_path), kept).result() == sum(range(100_000))
            kept.wait()
        assert (runs(tmp_path, "big"), runs(tmp_path, "total")) == (life + 1, 1)


def test_a_function_that_does_something_else_is_run(tmp_path: Path) -> None:
    """A journal knows functions by what they do, not by their names."""

    def make(step: int) -> Callable[[str], int]:
        def function(folder: str) -> int:
            return count(folder, "runs") * step

        return function

    for step in (1, 2, 2, 1):
        with pool(journal=tmp_path / "journal") as executor:
            assert executor.submit(make(step), str(tmp_path)).result() == step
    assert runs(tmp_path) == 2


def test_declared_files_are_known_by_their_content(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for text, expected in (("one", 1), ("one", 1), ("other", 2)):
        data.write_text(text)
        with pool(journal=tmp_path / "journal") as executor:
            file: Any = manager_of(executor).declare_file(data)
            assert executor.submit(read, str(tmp_path), file).result() == text
        assert runs(tmp_path) == expected


def read(folder: str, path: Path) -> str:
    count(folder, "runs")
    return path.read_text()


# ---------------------------------------------------------------- memoizing


@pytest.fixture
def memo(manager: Manager, start_factory: Callable[..., Factory]) -> Manager:
    """With a library whose equal calls are one."""
    start_factory()
    return manager


def test_equal_calls_of_a_memoized_library_run_once(memo: Manager, gate: Any, tmp_path: Path) -> None:
    """Those that come while the first runs end with it; later ones at once. Different arguments are different calls."""

    def hold(gate: Any, number: int) -> int:
        gate.arrive(f"{number}")
        count(str(gate.folder.parent), "runs")
        gate.pass_through()
        return number

    memo.install_library("lib", hold, memoize=True)
    futures = [memo.submit(FunctionCall("lib", "hold", gate, number)) for number in (1, 1, 2, 1)]
    gate.wait_for(2)
    gate.open()
    assert [future.result() for future in futures] == [1, 1, 2, 1]
    assert memo.submit(FunctionCall("lib", "hold", gate, 2)).done()
    assert runs(tmp_path) == 2
    assert memo.status()["calls"]["remembered"] == 3


def test_followers_take_over_when_the_first_is_cancelled(memo: Manager, gate: Any) -> None:
    """Its end says nothing of theirs; one that is cancelled itself leaves the others."""

    def hold(gate: Any) -> str:
        gate.pass_through()
        return "held"

    memo.install_library("lib", hold, memoize=True)
    first, second, third, fourth = (memo.submit(FunctionCall("lib", "hold", gate)) for _ in range(4))
    gate.wait_for(1)
    assert third.cancel()
    assert first.cancel()
    gate.open()
    assert second.result() == fourth.result() == "held"
    assert first.cancelled()
    assert third.cancelled()


def test_followers_of_one_that_raises_raise_the_same(memo: Manager, gate: Any, tmp_path: Path) -> None:
    """It is not remembered: the next call runs."""

    def bad(gate: Any) -> None:
        count(str(gate.folder.parent), "runs")
        gate.pass_through()
        raise ValueError("so it is")

    memo.install_library("lib", bad, memoize=True)
    futures = [memo.submit(FunctionCall("lib", "bad", gate)) for _ in range(3)]
    gate.wait_for(1)
    gate.open()
    for future in futures:
        with pytest.raises(ValueError, match="so it is"):
            future.result()
    assert runs(tmp_path) == 1
    with pytest.raises(ValueError, match="so it is"):
        memo.submit(FunctionCall("lib", "bad", gate)).result()
    assert runs(tmp_path) == 2


def test_followers_of_one_whose_slot_dies_are_run(memo: Manager, gate: Any) -> None:
    def die_once(gate: Any) -> str:
        gate.pass_through("dying" if not (gate.folder / "died").exists() else "living")
        if not (gate.folder / "died").exists():
            (gate.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    memo.install_library("lib", die_once, memoize=True)
    first, second = (memo.submit(FunctionCall("lib", "die_once", gate)) for _ in range(2))
    gate.wait_for(1)
    gate.open()
    with pytest.raises(CallFailed):
        first.result()
    assert second.result() == "alive"


def test_large_memoized_results_come_to_all(memo: Manager, tmp_path: Path) -> None:
    """Each has the array for itself, also who asks when the first has read it."""
    memo.install_library("lib", big, memoize=True)
    futures = [memo.submit(FunctionCall("lib", "big", str(tmp_path), 100_000)) for _ in range(3)]
    arrays = [future.result() for future in futures]
    arrays[0][:] = 0
    assert [array[-1] for array in arrays] == [0, 99_999, 99_999]
    del futures, arrays
    assert memo.submit(FunctionCall("lib", "big", str(tmp_path), 100_000)).result()[-1] == 99_999
    assert runs(tmp_path, "big") == 1


def test_what_is_memoized_stays_in_a_journal(tmp_path: Path) -> None:
    for _ in range(2):
        with pool(journal=tmp_path / "journal", memoize=True) as executor:
            assert [executor.submit(count, str(tmp_path), "runs").result() for _ in range(3)] == [1, 1, 1]
    assert runs(tmp_path) == 1


def test_memoizing_without_a_journal_leaves_nothing(tmp_path: Path) -> None:
    with pool(memoize=True) as executor:
        executor.submit(count, str(tmp_path), "runs").result()
        executor.submit(count, str(tmp_path), "runs").result()
        memory = manager_of(executor)._client.memory  # pyright: ignore[reportPrivateUsage]
        assert memory is not None
        folder = memory.journal.folder
        assert folder.exists()
    assert runs(tmp_path) == 1
    assert not folder.exists()


def test_a_program_attached_to_a_manager_may_have_a_journal(memo: Manager, tmp_path: Path) -> None:
    """It is the program's: the manager, which may be another one next time, knows nothing of it."""
    for _ in range(2):
        with attach(memo.connection_file, journal=tmp_path / "journal") as door:
            assert door.submit_function(big, (str(tmp_path), 100_000)).result()[-1] == 99_999
            assert door.submit_function(count, (str(tmp_path), "runs")).result() == 1
    assert (runs(tmp_path, "big"), runs(tmp_path)) == (1, 1)


def test_journals_are_refused_where_they_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"journal=7: name a folder, as in journal='run\.journal'"):
        Manager(journal=7)  # type: ignore[arg-type]
    with windlass.Manager() as manager, pytest.raises(UsageError, match="give journal= to that one"):
        Executor(None, manager=manager, journal=tmp_path / "journal")
    with Manager(journal=tmp_path / "journal") as manager:
        assert manager.name.startswith("journal-")
        with pytest.raises(UsageError, match=f"journal {tmp_path}/journal is in use already, by this program"):
            Manager(journal=tmp_path / "journal")
        with pytest.raises(UsageError, match="is in use already, by this program"):
            Manager(journal=tmp_path / "journal", name="other")
    with Manager(journal=tmp_path / "journal") as manager:  # it is free again, with the same name
        assert manager.name.startswith("journal-")
