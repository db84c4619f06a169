"""Programs that attach to a manager of another process: real processes that come, go and are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest

import windlass
from windlass import AttachedManager, Closed, Executor, Factory, FunctionCall, Manager, UnknownName, UsageError, attach
from windlass.cli import main
from windlass.managers import choose_manager
from windlass.testing import Proxy

GRACE = 1.0


def double(number: int) -> int:
    return 2 * number


def add_one(array: Any) -> Any:
    return array + 1


def until(what: str, condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


@pytest.fixture
def home(leaves_nothing_running: None) -> Iterator[Manager]:
    """A manager, here, that other programs attach to, and that gives up those that are gone after a second."""
    with Manager(name="home", reconnect_grace=GRACE) as manager, Factory(manager, "local", cores=2, max_pilots=1):
        yield manager


@contextlib.contextmanager
def program(body: str, *arguments: object) -> Generator[subprocess.Popen[str]]:
    """Another program, which says what it wants on its output and goes on when it gets a line."""
    text = f"import sys, windlass\nfrom windlass import FunctionCall, attach\n{body}"
    words = [sys.executable, "-c", text, *map(str, arguments)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


WORKS = """
with attach("home") as manager:
    manager.install_library("lib", lambda number: number + int(sys.argv[1]))
    name = manager.libraries[0]
    futures = [manager.submit_function(lambda n=n: n * int({factor})) for n in range(500)]
    print(sum(future.result() for future in futures), flush=True)
    sys.stdin.readline()
"""

HOLDS = """
from pathlib import Path
import time
def hold(folder, name):
    Path(folder, "here-" + name).touch()
    while not Path(folder, "open").exists():
        time.sleep(0.01)
    return name
manager = attach("home", keep={keep})
futures = [manager.submit_function(hold, (sys.argv[1], sys.argv[2] + str(n))) for n in range({count})]
print("submitted", flush=True)
{then}
"""


def test_two_programs_at_once_get_their_own_results(home: Manager) -> None:
    """Both number their calls from 1 and name their libraries alike; each gets what its own functions returned."""
    with program(WORKS.format(factor=3), 1) as one, program(WORKS.format(factor=7), 2) as two:
        assert said(one) == str(3 * sum(range(500)))
        assert said(two) == str(7 * sum(range(500)))
        names = {one["name"] for one in home.status()["programs"]}
        assert len(names) == 2
        for each in (one, two):
            each.communicate("\n", timeout=20)
            assert each.returncode == 0
    until("both have left", lambda: not home.status()["programs"])


def test_the_calls_of_a_killed_program_end_after_the_grace_and_those_of_others_do_not(home: Manager, gate: Any) -> None:
    """Nobody would read their results. Its libraries and objects go with it."""
    with program(HOLDS.format(keep=False, count=20, then="sys.stdin.readline()"), gate.folder, "killed") as killed, attach("home") as other:
        assert said(killed) == "submitted"
        mine = other.submit_function(double, (21,))
        gate.wait_for(2)
        killed.kill()
        killed.wait()
        assert mine.result(30) == 42
        until("its calls are cancelled", lambda: [one["calls"] for one in home.status()["programs"]] == [0])
        assert home.status()["calls"]["cancelled"] == 20


@pytest.mark.parametrize("keep", [True, False])
def test_a_program_that_was_killed_on_the_managers_host_has_left_at_once(leaves_nothing_running: None, gate: Any, keep: bool) -> None:
    """It cannot come back, so no grace is waited for: its calls are there for who asks for their tag, or are cancelled."""
    then = (
        "manager.submit_function(hold, (sys.argv[1], 'tagged'), tag='t'); manager.status(); print('all', flush=True); sys.stdin.readline()"
    )
    with (
        Manager(name="home", reconnect_grace=600) as manager,
        program(HOLDS.format(keep=keep, count=1, then=then), gate.folder, "x") as killed,
    ):
        assert said(killed) == "submitted"
        assert said(killed) == "all"
        killed.kill()
        killed.wait()
        with attach("home") as finder:
            if keep:
                found: list[Any] = []

                def look() -> list[Any]:
                    found.extend(finder.find("t"))
                    return found

                until("it is found", look)
                assert found[0].cancel()
            else:
                until("they are cancelled", lambda: manager.status()["calls"]["cancelled"] == 2)


def test_who_looks_for_what_a_program_may_leave_is_told_when_it_is_found(
    leaves_nothing_running: None, gate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is not heard of may come back, so its calls are its own until it is given up; who finds nothing would submit them again."""
    then = "manager.submit_function(hold, (sys.argv[1], 't'), tag='t'); manager.status(); print('all', flush=True); sys.stdin.readline()"
    body = HOLDS.format(keep=True, count=1, then=then)
    with Manager(name="home", reconnect_grace=600, heartbeat=0.2), program(body, gate.folder, "x") as far:
        assert said(far) == "submitted"
        assert said(far) == "all"
        with attach("home") as finder:
            assert finder.find("t") == []
            far.send_signal(signal.SIGSTOP)
            until("that is told", lambda: finder.find("t") == [] and "not heard of" in caplog.text)
    assert re.search(r"find\('t'\): 1 more call with this tag is of program-\S+, which is not heard of and may be gone: it is", caplog.text)
    assert re.search(r"found when it is given up, in 6\d\d s at most", caplog.text)


@pytest.mark.parametrize(("keep", "then"), [(True, "sys.stdin.readline()"), (False, "manager.detach(); print('left', flush=True)")])
def test_kept_calls_go_on_when_their_program_is_gone(home: Manager, gate: Any, keep: bool, then: str) -> None:
    """``keep=True`` for a program that may be killed, ``detach()`` for one that leaves: the work is done all the same."""
    with program(HOLDS.format(keep=keep, count=4, then=then), gate.folder, "kept") as leaving:
        assert said(leaving) == "submitted"
        gate.wait_for(2)
        if keep:
            leaving.send_signal(signal.SIGKILL)
        else:
            assert said(leaving) == "left"
        leaving.wait()
    until("the program is gone", lambda: [one["gone"] for one in home.status()["programs"]] == [True])
    gate.open()
    gate.wait_for(4)
    until("everything of it is let go", lambda: not home.status()["programs"])
    assert home.status()["calls"]["cancelled"] == 0
    assert home.status()["calls"]["done"] == 4


#: A program with a journal, whose calls write down when they begin, and wait for a word.
JOURNALED = """
import time
from pathlib import Path
def hold(folder, name):
    with open(folder + "/began-" + name, "a") as file:
        file.write("x")
    while not Path(folder, "go-" + name).exists():
        time.sleep(0.01)
    if name == "bad" and len(Path(folder, "began-bad").read_text()) == 1:
        raise OSError("the first time")
    return name.ljust(100_000)
manager = attach("home", keep=True, journal=sys.argv[1] + "/journal")
futures = [manager.submit_function(hold, (sys.argv[1], name)) for name in sys.argv[2:]]
manager.status()  # which is asked behind them: the manager has them
print("submitted", flush=True)
print(*(future.result().strip() for future in futures), manager.status()["calls"]["remembered"], flush=True)
manager.close()
"""


def test_a_program_with_a_journal_goes_on_with_what_it_had_left_at_the_manager(leaves_nothing_running: None, tmp_path: Path) -> None:
    """Killed twice, and started again as it is: what runs, waits or has returned meanwhile is not run again, and gets into its journal."""
    names = ("one", "bad", "two", "three")

    def life() -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        return program(JOURNALED, tmp_path, *names)

    def began(*some: str) -> list[int]:
        paths = [tmp_path / f"began-{name}" for name in some]
        return [len(path.read_text()) if path.exists() else 0 for path in paths]

    # Nobody waits until the manager has given up who was killed.
    with Manager(name="home", reconnect_grace=600) as manager, Factory(manager, "local", cores=2, max_pilots=1):
        for number in range(2):
            with life() as killed:
                assert said(killed) == "submitted"
                until("they run", lambda: began("one", "bad") == [1, 1])
                killed.kill()
                killed.wait()
            if not number:
                (tmp_path / "go-bad").touch()
                (tmp_path / "go-two").touch()
                until("others have begun, and ended while there was no program", lambda: began("three") == [1])
        with life() as last:
            assert said(last) == "submitted"
            for name in names:
                (tmp_path / f"go-{name}").touch()
            assert said(last).split()[:-1] == [*names]
            last.wait()
        assert began(*names) == [1, 2, 1, 1]
        with life() as again:
            assert said(again) == "submitted"
            assert said(again) == "one bad two three 4"


def test_the_next_life_goes_on_with_what_a_machine_ran_that_has_crashed(leaves_nothing_running: None, tmp_path: Path) -> None:
    """The manager does not know yet that its connection is gone, but has missed its heartbeats; the user has removed the journal's lock."""
    with Manager(name="home", heartbeat=0.2, silence=300) as manager, Factory(manager, "local", cores=1, max_pilots=1):
        with program(JOURNALED, tmp_path, "one") as crashed:
            assert said(crashed) == "submitted"
            until("it runs", (tmp_path / "began-one").exists)
            crashed.send_signal(signal.SIGSTOP)
            [link] = manager._server.attachments.all_links()  # pyright: ignore[reportPrivateUsage]
            until("it has missed two", lambda: link.mute)
            (tmp_path / "journal" / "lock").unlink()
            with program(JOURNALED, tmp_path, "one") as again:
                assert said(again) == "submitted"
                (tmp_path / "go-one").touch()
                assert said(again).split() == ["one", "0"]
                again.wait()
        assert (tmp_path / "began-one").read_text() == "x"


#: The same, which leaves as soon as the first has returned, while its journal's disk is slow.
LEAVES = """
import time
from pathlib import Path
from windlass.manager.journal import Journal
def hold(folder, name):
    with open(folder + "/began-" + name, "a") as file:
        file.write("x")
    while not Path(folder, "go-" + name).exists():
        time.sleep(0.01)
    return name.ljust(10 if name == "small" else 100_000)
def slowly(journal, end, read, copied=Journal._copied):
    while not Path(sys.argv[1], "disk").exists():
        time.sleep(0.01)
    return copied(journal, end, read)
Journal._copied = slowly
manager = attach("home", keep=True, journal=sys.argv[1] + "/journal")
futures = [manager.submit_function(hold, (sys.argv[1], name)) for name in ("first", "small", "large")]
print(*(future.result().strip() for future in futures[:int(sys.argv[2])]), flush=True)
manager.close()
"""


def test_a_program_with_a_journal_that_leaves_in_order_loses_nothing_that_ends_meanwhile(home: Manager, tmp_path: Path) -> None:
    """What it is told of as it leaves gets into its journal, and the manager keeps the rest for its next life."""
    names = ("first", "small", "large")

    def has_done(number: int) -> bool:
        return bool(home.status()["calls"]["done"] == number)

    with program(LEAVES, tmp_path, 1) as leaving:
        (tmp_path / "go-first").touch()
        assert said(leaving) == "first"
        for number, name in enumerate(names[1:], 2):
            (tmp_path / f"go-{name}").touch()
            until(f"{name} has ended", partial(has_done, number))
        assert leaving.poll() is None, "it still writes the first one"
        (tmp_path / "disk").touch()
        leaving.wait()
    with program(LEAVES, tmp_path, 3) as last:
        assert said(last).split() == [*names]
        last.wait()
    assert [len((tmp_path / f"began-{name}").read_text()) for name in names] == [1, 1, 1]


#: The same with a limit, and more calls than run at once; they end only when there is a file "go".
MENDED = """
import time
from pathlib import Path
def hold(folder, name):
    with open(folder + "/began-" + name, "a") as file:
        file.write("x")
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return name
manager = attach("home", keep=True, journal=sys.argv[1] + "/journal")
manager.install_library("lib", hold, slots=2)
limit, cores = map(float, sys.argv[2:4])
options = [dict(timeout=limit), dict(timeout=300), dict(cores=cores, timeout=300)]
futures = [manager.submit(FunctionCall("lib", "hold", sys.argv[1], str(n)).with_options(**each)) for n, each in enumerate(options)]
manager.status()
print("submitted", flush=True)
print(*(future.result() for future in futures), flush=True)
manager.close()
"""


def test_a_program_that_was_mended_and_started_again_has_its_calls_as_it_says_now(home: Manager, tmp_path: Path) -> None:
    """Another limit for what runs, and fewer cores for what waits; what runs as it should goes on."""

    def began() -> list[int]:
        paths = [tmp_path / f"began-{number}" for number in range(3)]
        return [len(path.read_text()) if path.exists() else 0 for path in paths]

    with program(MENDED, tmp_path, 200, 2) as killed:
        assert said(killed) == "submitted"
        until("two run", lambda: began()[:2] == [1, 1])
        killed.kill()
        killed.wait()
    with program(MENDED, tmp_path, 100, 1) as mended:
        assert said(mended) == "submitted"
        until("the first run has made room for another one", lambda: began()[:2] == [2, 1])
        (tmp_path / "go").touch()
        assert said(mended) == "0 1 2"
        mended.wait()
    assert began() == [2, 1, 1]
    assert home.status()["calls"]["submitted"] == 4, "what had not begun is one call still"


TAGGED = """
import os, signal
from pathlib import Path
import time
def hold(folder, number):
    import numpy
    while not Path(folder, "open").exists() and number >= 2:
        time.sleep(0.01)
    print("number", number)
    if number == 3:
        raise LookupError("the third")
    return numpy.full(100_000, number) if number == 4 else number
manager = attach("home", keep=True)
manager.install_library("lib", hold)
calls = [FunctionCall("lib", "hold", sys.argv[1], number).with_options(tag="odd" if number % 2 else "even") for number in range(6)]
futures = [manager.submit(call) for call in calls]
manager.status()  # which is asked behind them: the manager has them
print("submitted", flush=True)
sys.stdin.readline()
[future.wait() for future in futures[:2]]
futures[0].result()
manager.status()  # behind its word that it has read this
print("two", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_calls_that_a_program_has_left_are_found_again_by_their_tag(home: Manager, gate: Any, stopped: bool) -> None:
    """After a kill, by another program: results, large ones, what they printed, and what they raised; also what ended while the program was
    cut off and never heard of it (``stopped``), or before, if it has not read it."""
    with program(TAGGED, gate.folder) as leaving:
        assert said(leaving) == "submitted"
        if stopped:
            leaving.send_signal(signal.SIGSTOP)
        else:
            assert leaving.stdin is not None
            leaving.stdin.write("\n")
            leaving.stdin.flush()
            assert said(leaving) == "two"
        until("two have ended", lambda: home.status()["calls"]["done"] == 2)
        leaving.kill()
        leaving.wait()
    until("the program is gone", lambda: [one["gone"] for one in home.status()["programs"]] == [True])
    assert home.status()["programs"][0]["tags"] == ["even", "odd"]
    with attach("home") as manager:
        even = manager.find("even")
        assert len(even) == (3 if stopped else 2)
        assert not even[-1].done()
        gate.open()
        found = [future.result(30) for future in even]
        assert found[:-1] == ([0, 2] if stopped else [2])
        assert found[-1].sum() == 400_000
        assert even[-1].stdout == "number 4\n"
        assert even[-1].tag == "even"
        odd = manager.find("odd")
        assert odd[0].result(30) == 1
        with pytest.raises(LookupError, match="the third"):
            odd[-2].result(30)
        assert odd[-1].result(30) == 5
        assert manager.find("odd") == []
        assert manager.submit_function(double, (even[-2],)).result(30) == 4  # they may be arguments
    until("everything of it is let go", lambda: not home.status()["programs"])


def test_what_was_found_can_be_left_again(home: Manager, gate: Any) -> None:
    manager = attach("home", keep=True)
    future = manager.submit_function(gate.pass_through, ("first",), tag="t")
    gate.wait_for(1)
    manager.detach()
    with pytest.raises(Closed):
        future.result(0)
    finder = attach("home", keep=True)
    [found] = finder.find("t")
    assert not found.done()
    finder.detach()
    with attach("home") as last:
        [again] = last.find("t")
        assert again.cancel()
        until("it is cancelled", lambda: home.status()["calls"]["cancelled"] == 1)
        for wrong in ("", 7, None):
            with pytest.raises(UsageError, match="give the tag that the calls were submitted with"):
                last.find(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("leave", [AttachedManager.detach, AttachedManager.close])
def test_what_had_ended_before_a_program_left_is_found_too(home: Manager, gate: Any, leave: Callable[[AttachedManager], None]) -> None:
    """Whoever submits for minutes and leaves has heard of many ends, and read none. What it has read is its own."""
    manager = attach("home", keep=True)
    manager.install_library("lib", double)
    small, read = (manager.submit(FunctionCall("lib", "double", number).with_options(tag="t")) for number in (21, 4))
    large = manager.submit_function(lambda: b"x" * 1_000_000, tag="t")
    manager.submit_function(gate.pass_through, ("held",), tag="t")
    assert read.result(30) == 8
    until("two have ended", lambda: small.done() and large.done())
    gate.wait_for(1)
    leave(manager)
    assert len(large.result(1)) == 1_000_000  # here too
    gate.open()
    with attach("home") as finder:
        first, second, third = finder.find("t")
        assert first.result(30) == 42
        assert len(second.result(30)) == 1_000_000
        assert third.result(30) is None
    until("everything of it is let go", lambda: not home.status()["programs"])


def test_what_an_executor_was_told_is_found_by_nobody(home: Manager) -> None:
    """Its calls are collected when they are submitted; else the manager would keep all their ends."""
    with attach("home", keep=True) as manager, Executor(manager=manager) as pool:
        assert pool.with_options(tag="t").submit(double, 21).result(30) == 42
    with attach("home") as finder:
        assert finder.find("t") == []
    until("nothing of it stays", lambda: not home.status()["programs"])


def test_of_ends_that_nobody_reads_the_newest_are_found(home: Manager, caplog: pytest.LogCaptureFixture) -> None:
    """Or those of a program that runs each night would stay, all of them; once the log says so."""
    home._server.attachments.programs.unread.most = 3  # pyright: ignore[reportPrivateUsage]
    for night in range(2):
        with attach("home", keep=True) as manager:
            assert all(manager.submit_function(double, (10 * night + number,), tag="t").wait(30) for number in range(2))
    with attach("home") as finder:
        assert [future.result(30) for future in finder.find("t")] == [2, 20, 22]
    [warning] = [message for message in caplog.messages if "have not read" in message]
    assert "more than 3 of their calls with a tag ended" in warning


def test_who_waits_for_what_an_equal_call_returns_keeps_its_program(home: Manager, gate: Any) -> None:
    """It would end with its program, and be missing from what is found."""
    with attach("home") as manager:
        manager.install_library("lib", gate.pass_through, memoize=True)
        futures = [manager.submit(FunctionCall("lib", "pass_through", "equal")) for _ in range(3)]
        with pytest.raises(UsageError, match="2 calls wait for what equal ones return"):
            manager.detach()
        gate.open()
        assert [future.result(30) for future in futures] == [None] * 3


def test_a_program_that_ends_takes_its_calls_with_it(home: Manager, gate: Any) -> None:
    """Leaving ``with`` says goodbye: no grace is waited for, and futures that have not ended get `Closed`."""
    manager = attach("home")
    future = manager.submit_function(gate.pass_through)
    gate.wait_for(1)
    manager.close()
    with pytest.raises(Closed, match="this program has left the manager"):
        future.result(5)
    until("the call is cancelled", lambda: home.status()["calls"]["cancelled"] == 1)
    manager.close()
    with pytest.raises(Closed, match="manager 'home' is closed"):
        manager.submit_function(double, (1,))


def test_when_the_manager_is_killed_every_future_says_so(leaves_nothing_running: None) -> None:
    """After the grace in which it could have come back: a clear error, not a wait for ever."""
    text = "import sys, windlass\nwith windlass.Manager(name='doomed', reconnect_grace=1.0): print('up', flush=True); sys.stdin.readline()"
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as doomed:
        assert said(doomed) == "up"
        manager = attach("doomed")
        future = manager.submit_function(double, (1,))
        until("the call is there", lambda: manager.status()["calls"]["waiting"] == 1)
        doomed.kill()
        with pytest.raises(Closed, match=r"manager 'doomed' is lost to this program: manager doomed-.* was not reached for"):
            future.result(30)
        assert manager.closed
        manager.close()


def test_when_the_manager_ends_orderly_programs_hear_it_at_once(leaves_nothing_running: None) -> None:
    """Its last word ends their futures."""
    with Manager(name="ending") as ending:
        manager = attach("ending")
        future = manager.submit_function(double, (1,))
        until("the call is there", lambda: ending.status()["calls"]["waiting"] == 1)
    with pytest.raises(Closed, match=r"the manager was closed"):
        future.result(10)
    manager.close()


@pytest.mark.parametrize("shares_host", [True, False])
def test_large_arguments_and_results_travel_beside_the_calls(home: Manager, shares_host: bool) -> None:
    """100 MB each way: on one host by path, else over data connections; nothing of them stays in use at the manager."""
    if not shares_host:
        # Programs elsewhere do not find this.
        (home._store.folder / ".token").unlink()  # pyright: ignore[reportPrivateUsage]
    array = numpy.arange(12_500_000, dtype=float)
    with attach("home") as manager:
        manager.install_library("lib", add_one)
        futures = [manager.submit(FunctionCall("lib", "add_one", array)) for _ in range(2)]
        while futures:
            result = futures.pop().result(60)
            assert result.nbytes == 100_000_000
            assert result[-1] == 12_500_000
        book = home._server.attachments.programs  # pyright: ignore[reportPrivateUsage]
        until("objects are let go", lambda: not any(one.results or one.pins for one in book.known.values()))


def test_results_can_be_had_after_leaving_and_not_after_the_managers_end(home: Manager) -> None:
    """Leaving fetches what has ended and was not read; it would be gone with the session."""
    manager = attach("home")
    future = manager.submit_function(lambda: b"x" * 1_000_000)
    until("it has ended", future.done)
    manager.close()
    assert len(future.result(1)) == 1_000_000


def test_a_large_result_that_went_with_its_manager_says_so(leaves_nothing_running: None) -> None:
    """It was kept at the manager until somebody asked, and is lost with it."""
    with Manager(name="short") as short, Factory(short, "local", cores=1):
        manager = attach("short")
        future = manager.submit_function(lambda: b"x" * 1_000_000)
        until("it has ended", future.done)
    with pytest.raises(Closed, match=r"the call's result of 1,000,\d+ bytes was kept at manager short-.* and cannot be had from there"):
        future.result(5)
    manager.close()


def test_it_is_used_like_a_manager(home: Manager) -> None:
    """The same program with one line changed: libraries, wait, empty, cancel, stats, hungry, tags, errors at submit."""
    with attach("home") as manager:
        library = manager.create_library("lib", double)
        manager.install_library(library)
        with pytest.raises(UnknownName, match=r"function 'dubble'.*double"):
            manager.submit(FunctionCall("lib", "dubble", 1))
        for number in range(10):
            manager.submit(FunctionCall("lib", "double", number))
        seen: list[int] = []
        while not manager.empty():
            future = manager.wait(30)
            assert future is not None
            seen.append(future.output)
        assert sorted(seen) == [2 * number for number in range(10)]
        assert manager.stats.done == 10
        until("it knows what there is to run calls with", lambda: manager.hungry() > 0)
        wide = FunctionCall("lib", "double", 1)
        wide.set_cores(64)
        with pytest.raises(windlass.NotPossible, match="no pool can ever run this call of library 'lib'"):
            manager.submit(wide)
        manager.remove_library("lib")
        assert not manager.check_library_exists("lib")
        assert home.libraries == ()


def test_an_executor_and_a_factory_work_on_it(leaves_nothing_running: None) -> None:
    """``Factory(attached, ...)`` and ``Executor(..., manager=attached)`` run in the program; the pilots serve the manager."""
    with Manager(name="bare") as bare, attach("bare") as manager:
        with Executor("local", manager=manager, cores=2, max_pilots=1) as pool:
            assert list(pool.map(double, range(100))) == [2 * number for number in range(100)]
        until("its factory has left", lambda: not bare.status()["pools"])
        with Factory(manager, "local", cores=1):
            assert manager.submit_function(double, (4,)).result(30) == 8


def test_a_warm_library_is_shared_by_programs_that_need_the_same(home: Manager) -> None:
    """Versions are named by their content, so a second program finds the instance that the first one warmed."""
    with attach("home") as one, attach("home") as two:
        for each in (one, two):
            assert each.submit_function(double, (21,)).result(30) == 42
        assert [library["starts"] for library in home.status()["libraries"]] == [1]
        one.close()
        assert two.submit_function(double, (4,)).result(30) == 8


def test_a_forked_copy_of_the_program_leaves_the_manager_alone(home: Manager) -> None:
    """As with a manager of its own: its futures end in the copy, and go on in the program."""
    with attach("home") as manager:
        future = manager.submit_function(double, (21,))
        child = os.fork()
        if not child:
            os._exit(0 if manager.closed and future.done() else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert future.result(30) == 42


def test_attach_refuses_what_is_no_manager(home: Manager) -> None:
    """Names that nobody has, files for others, and things that are no names."""
    with pytest.raises(UnknownName, match="no manager 'hone'; did you mean 'home'"):
        attach("hone")
    with pytest.raises(windlass.UsageError, match=r"pilot\.json is what pilots connect by, not programs: give the manager's client\.json"):
        attach(home.pilot_file)
    with pytest.raises(windlass.UsageError, match=r"attach\(3\): write attach\('NAME'\)"):
        attach(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with attach(home.connection_file) as manager:
        assert isinstance(manager, AttachedManager)


# ---------------------------------------------------------------- managers that run on their own


@pytest.fixture
def detached(leaves_nothing_running: None, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """A manager that was started by the command line."""
    assert main(["manager", "start", "standing"]) == 0
    assert "windlass.attach('standing')" in capsys.readouterr().out
    yield "standing"
    if choose_manager("standing").is_running():
        assert main(["manager", "stop", "standing"]) == 0


def test_a_manager_of_its_own_serves_one_program_after_the_other(detached: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It stays when programs leave, is listed, and ends when it is told to."""
    for number in (1, 2):
        with Executor("local", manager=attach(detached), cores=1) as pool:
            assert pool.submit(double, number).result(30) == 2 * number
    assert main(["manager", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["managers"]}
    assert (rows["standing"]["state"], rows["standing"]["kind"]) == ("running", "detached")
    assert main(["manager", "start", "standing"]) == 2
    assert "manager 'standing' is running already" in capsys.readouterr().err
    assert main(["manager", "stop", "standing"]) == 0
    assert "manager standing has ended" in capsys.readouterr().out
    assert main(["manager", "stop", "standing"]) == 2


def test_it_outlives_the_logout_of_who_started_it(detached: str) -> None:
    """A session of its own, and SIGHUP means nothing to it; SIGTERM ends it in order."""
    with attach(detached) as manager:
        log = (choose_manager(detached).path.parent / "manager.log").read_text()
        process = int(re.findall(r"as process (\d+)", log)[-1])
        assert os.getsid(process) == process
        os.kill(process, signal.SIGHUP)
        assert manager.status()["manager"]["detached"]
        future = manager.submit_function(double, (1,))
        os.kill(process, signal.SIGTERM)
        with pytest.raises(Closed, match="signal SIGTERM"):
            future.result(10)


@pytest.mark.usefixtures("hears_hangups")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_in_the_foreground_it_ends_in_order_with_its_terminal_or_job(number: signal.Signals, leaves_nothing_running: None) -> None:
    """Its programs are told why, at once. SIGUSR1 is what Slurm sends to a job before its walltime is over."""
    words = [sys.executable, "-m", "windlass", "manager", "start", "shown", "--foreground"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith(b"manager shown serves")
        with attach("shown") as manager:
            future = manager.submit_function(double, (1,))
            running.send_signal(number)
            with pytest.raises(Closed, match=f"signal {number.name}"):
                future.result(10)
        assert running.wait(30) == 0


def test_a_manager_without_anything_to_do_ends_by_itself(leaves_nothing_running: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Not while a program is attached, whatever it does; when all have been gone for the time-out."""
    assert main(["manager", "start", "brief", "--idle-timeout", "4s"]) == 0
    known = choose_manager("brief")
    with attach("brief") as manager:
        began = manager.status()["manager"]["at"]
        until("longer than the time-out has passed", lambda: manager.status()["manager"]["at"] - began > 5)
    until("it has ended", lambda: not known.is_running())
    log = known.path.parent / "manager.log"
    until("its log says why", lambda: "no calls, programs or factories for 4 s" in log.read_text())  # the last that the process does


def test_a_manager_of_a_program_is_not_stopped_from_the_command_line(home: Manager, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["manager", "stop", "home"]) == 2
    assert "is part of a program and ends with it; end that program" in capsys.readouterr().err
    assert not home.closed


def test_a_state_folder_can_be_named_everywhere(tmp_path: Path, leaves_nothing_running: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Argument before environment: command line, `Manager`, `attach`."""
    elsewhere = ["--state-dir", str(tmp_path / "state")]
    assert main(["manager", "start", "aside", *elsewhere]) == 0
    assert main(["manager", "list"]) == 0
    capsys.readouterr()
    assert main(["status", "aside", "--json", *elsewhere]) == 0
    assert json.loads(capsys.readouterr().out)["manager"]["detached"] is True
    with attach("aside", state_dir=tmp_path / "state") as manager:
        assert manager.connection_file == tmp_path / "state" / "managers" / "aside" / "client.json"
    with pytest.raises(UnknownName):
        attach("aside")
    assert main(["manager", "stop", "aside", *elsewhere]) == 0
    with Manager(name="inside", state_dir=tmp_path / "state"), attach("inside", state_dir=tmp_path / "state") as manager:
        assert manager.status()["manager"]["name"] == "inside"


def test_the_program_of_the_docs_runs(leaves_nothing_running: None, tmp_path: Path) -> None:
    """docs/detached.md, with its command before it."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "detached.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert "$ windlass manager start night\n" in text
    assert main(["manager", "start", "night"]) == 0
    try:
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    finally:
        assert main(["manager", "stop", "night"]) == 0
    assert ran.stdout == f"{sum(seed * seed for seed in range(100))}\n"


def test_what_the_docs_leave_overnight_is_there_in_the_morning(leaves_nothing_running: None, tmp_path: Path) -> None:
    """docs/detached.md, with local pilots: neither program has a factory, and the results outlive the one that is beside them."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "detached.md").read_text()
    overnight = text.split("### Left overnight\n")[1].split("###")[0]
    start, factory = (line[2:].split() for line in overnight.splitlines() if line.startswith("$ "))
    evening, morning = (part.split("```")[0] for part in overnight.split("```python\n")[1:])
    assert start[:5] == ["windlass", "manager", "start", "night", "--idle-timeout"]
    assert factory[:6] == ["nohup", "windlass", "factory", "run", "night", "slurm"]
    assert main(start[1:]) == 0
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "windlass", "factory", "run", "night", "local", "--cores", "2"], stderr=subprocess.DEVNULL
        ) as beside:
            subprocess.run([sys.executable, "-c", evening], check=True, timeout=60, cwd=tmp_path)
            with attach("night") as manager:
                until("all have ended", lambda: manager.status()["calls"]["done"] == 100)
            beside.send_signal(signal.SIGINT)
            assert beside.wait(30) == 0
        ran = subprocess.run([sys.executable, "-c", morning], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    finally:
        assert main(["manager", "stop", "night"]) == 0
    assert ran.stdout == f"{sum(seed * seed for seed in range(100))}\n"


ENDS = """
import atexit, os
from pathlib import Path
sys.modules["uvloop"] = None  # asyncio's own loop resolves names on threads
pools, futures = [], []
atexit.register(lambda: print(len(futures[0].result()), flush=True))  # after all that is registered from here on
pools.append(windlass.Executor(None, manager=attach(sys.argv[1])))
def hold(folder):
    import time
    Path(folder, "here-it").touch()
    while not Path(folder, "open").exists():
        time.sleep(0.01)
    return b"x" * 2_000_000
futures.append(pools[0].submit(hold, sys.argv[2]))
atexit.register(lambda: print("ending", flush=True))
"""


def test_a_cut_while_a_program_ends_and_waits_for_its_calls_loses_nothing(leaves_nothing_running: None, gate: Any, tmp_path: Path) -> None:
    """The interpreter's end shuts executors of threads down before it waits: connections are made anew, and objects move, without them."""
    with Manager() as manager, contextlib.closing(Proxy(manager.port)) as network, Factory(manager, "local", cores=1, max_pilots=1):
        connection = json.loads(manager.connection_file.read_bytes())
        connection["addresses"] = [["localhost", network.port]]
        behind = tmp_path / "client.json"
        behind.touch(mode=0o600)
        behind.write_text(json.dumps(connection))
        with program(ENDS, behind, gate.folder) as ending:
            gate.wait_for(1)
            assert said(ending) == "ending"
            network.reset()
            gate.open()
            assert said(ending) == "2000000"
            assert ending.wait(20) == 0


def test_a_cut_connection_loses_nothing(leaves_nothing_running: None) -> None:
    """Sessions outlive their connections, those of programs too: what was said or ended meanwhile arrives once, in order."""
    with Manager(name="home") as home, Factory(home, "local", cores=2, max_pilots=1):
        server = home._server  # pyright: ignore[reportPrivateUsage]

        def cut() -> None:
            assert server._listener is not None  # pyright: ignore[reportPrivateUsage]
            for connection in list(server._listener.connections):  # pyright: ignore[reportPrivateUsage]
                connection.abort("cut by the test")

        with attach("home") as manager:
            futures: list[windlass.CallFuture[int]] = []
            for number in range(2000):
                futures.append(manager.submit_function(double, (number,)))
                if number % 400 == 200:
                    server.call(cut)
            assert [future.result(60) for future in futures] == [2 * number for number in range(2000)]
            assert manager.stats.done == 2000


def test_a_program_whose_calls_nobody_runs_is_told_so_itself(
    leaves_nothing_running: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only its manager, whose log may be on another machine; once, and no more when pilots have come."""
    monkeypatch.setattr("windlass.manager.advice.PATIENCE_SECONDS", 0.1)

    def told() -> int:
        return sum("neither pilots nor a factory" in record.getMessage() for record in caplog.records)

    with Manager(name="home") as manager, attach("home") as door:
        future = door.submit_function(double, (2,))
        until("manager and program have said it", lambda: told() == 2)
        door.submit_function(double, (3,)).cancel()
        with Factory(manager, "local", cores=1, max_pilots=1):
            assert future.result() == 4
        assert told() == 2
