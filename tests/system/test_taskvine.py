"""Programs of TaskVine's users, with one line changed (``import windlass.taskvine as vine``), on real pilots."""

from __future__ import annotations

import os
import tarfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import windlass
import windlass.taskvine as vine
from windlass import CallTimeout, UnknownName, UsageError

Until = Callable[[str, Callable[[], object]], None]


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module share a manager and a pilot."""


@pytest.fixture(scope="module")
def served(leaves_nothing_running: None) -> Iterator[vine.Manager]:
    with vine.Manager(0) as manager, vine.Factory("local", manager=manager, cores=2, max_workers=1):
        yield manager


@pytest.fixture
def m(served: vine.Manager) -> Iterator[vine.Manager]:
    """The manager, with nothing under way before and after."""
    assert served.empty()
    yield served
    served.cancel_all()
    while served.wait(60):
        pass
    assert served.empty()


@pytest.fixture
def alone() -> Iterator[vine.Manager]:
    """A manager without workers."""
    with vine.Manager(0) as manager:
        yield manager


def run(m: vine.Manager, task: vine.Task) -> vine.Task:
    """Submit it, and wait for it as programs do."""
    number = m.submit(task)
    while not m.empty():
        done = m.wait(5)
        if done:
            assert done is task
            assert done.id == number
            return task
    raise AssertionError("it never came back")


# ---------------------------------------------------------------- commands


def test_many_tasks_share_an_input_and_come_back_as_the_objects_that_were_submitted(m: vine.Manager) -> None:
    """The first program of the manual: search one text for several words."""
    text = m.declare_buffer("the wind\nthe lass\nthe windlass\n", cache="workflow")
    tasks: dict[int, vine.Task] = {}
    for word in ("wind", "lass", "sea"):
        task = vine.Task(f"grep -c {word} words.txt")
        task.add_input(text, "words.txt")
        task.set_cores(1)
        task.set_tag(word)
        tasks[m.submit(task)] = task
    seen: dict[str, tuple[str, int, bool, bool]] = {}
    while not m.empty():
        t = m.wait(5)
        if t:
            assert t is tasks[t.id]
            assert t.tag is not None
            assert t.std_output == t.output
            seen[t.tag] = t.output.strip(), t.exit_code, t.completed(), t.successful()
    # Not to have found any is an exit code, not a failure to run.
    assert seen == {"wind": ("2", 0, True, True), "lass": ("2", 0, True, True), "sea": ("0", 1, True, False)}


def test_outputs_are_written_to_files_of_this_machine_before_the_task_comes_back(m: vine.Manager, tmp_path: Path) -> None:
    """Files and folders, and buffers."""
    (tmp_path / "mydata").write_text("data " * 1000)
    t = vine.Task("gzip < mydata > mydata.gz; mkdir -p sub/dir; cp mydata sub/dir/copy; ln -s dir sub/link; wc -c < mydata > count")
    t.add_input(m.declare_file(str(tmp_path / "mydata")), "mydata")
    t.add_output(m.declare_file(tmp_path / "results" / "mydata.gz"), "mydata.gz")
    t.add_output(m.declare_file(tmp_path / "results" / "tree"), "sub")
    count = m.declare_buffer()
    t.add_output(count, "count")
    assert run(m, t).successful(), t.std_output
    assert (tmp_path / "results" / "mydata.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert (tmp_path / "results" / "tree" / "link" / "copy").read_text() == "data " * 1000
    assert count.contents(lambda file: int(file.read())) == 5000
    assert sorted(each.name for each in (tmp_path / "results").iterdir()) == ["mydata.gz", "tree"]


def test_what_is_in_a_folder_that_a_task_writes_to_stays_there(m: vine.Manager, tmp_path: Path) -> None:
    """But for files of the same name; nor is anything beside it touched."""
    for name in ("results", "results.part", "results.packed"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "old").write_text("old")
        (tmp_path / name / "sub" / "both").write_text("old")
    for number in (1, 2):
        t = vine.Task(f"mkdir -p out/sub; echo {number} > out/{number}; echo {number} > out/sub/both; ln -s sub out/link{number}")
        t.add_output(m.declare_file(tmp_path / "results"), "out")
        assert run(m, t).successful(), t.std_output
    found = {str(each.relative_to(tmp_path)): each.read_text() for each in tmp_path.rglob("*") if each.is_file()}
    assert found == {
        "results/old": "old",
        "results/1": "1\n",
        "results/2": "2\n",
        "results/sub/both": "2\n",
        **{f"{name}/{path}": "old" for name in ("results.part", "results.packed") for path in ("old", "sub/both")},
    }
    assert {os.readlink(tmp_path / "results" / f"link{number}") for number in (1, 2)} == {"sub"}
    assert len(list(tmp_path.iterdir())) == 3


def test_a_task_may_be_written_as_a_dictionary(m: vine.Manager) -> None:
    source, target = m.declare_buffer("words"), m.declare_buffer()
    info: dict[str, Any] = {
        "command": "cat in > out; echo $WORD $VINE_SANDBOX $CORES $MEMORY",
        "inputs": {source: {"remote_name": "in"}},
        "outputs": {target: "out"},
        "env": {"WORD": "lass"},
        "cores": 1,
        "memory": 100,
        "disk": 10,
        "tag": "config-1",
        "category": "copies",
        "priority": 3,
        "retries": 2,
        "time_max": 60,
    }
    t = run(m, vine.Task(**info))
    word, sandbox, cores, memory = t.output.split()
    assert (word, cores, memory, t.tag, t.category, target.contents()) == ("lass", "1", "100", "config-1", "copies", b"words")
    assert not os.path.exists(sandbox)
    assert (t.resources_requested.cores, t.resources_requested.memory, t.resources_requested.disk) == (1, 100, 10)
    assert t.resources_measured is not None
    assert t.resources_measured.memory > 0
    assert t.hostname == os.uname().nodename
    assert t.get_metric("time_when_done") >= t.get_metric("time_when_submitted") > 1e15


@pytest.mark.parametrize(
    ("command", "result", "exit_code", "completed"),
    [
        ("exit 7", "success", 7, True),
        ("kill -9 $$", "success", -9, True),
        ("true", "output missing", 0, False),
        ("no-such-program", "success", 127, True),
    ],
)
def test_ends_are_told_in_results_and_exit_codes(m: vine.Manager, command: str, result: str, exit_code: int, completed: bool) -> None:
    t = vine.Task(f"echo said; {command}" if result == "output missing" else f"echo said; echo x > out; {command}")
    out = m.declare_buffer()
    t.add_output(out, "out")
    run(m, t)
    assert (t.result, t.exit_code, t.completed(), t.successful()) == (result, exit_code, completed, False)
    assert t.std_output.startswith("said\n")
    assert out.contents() == (b"" if result == "output missing" else b"x\n")


def test_outputs_may_be_wanted_only_of_those_that_fail_or_do_not(m: vine.Manager) -> None:
    for code in (0, 1):
        log, good = m.declare_buffer(), m.declare_buffer()
        t = vine.Task(f"test {code} = 0 && echo good > good || echo log > log; exit {code}")
        t.add_output(log, "log", failure_only=True)
        t.add_output(good, "good", success_only=True)
        run(m, t)
        assert (t.result, t.exit_code) == ("success", code)
        assert (log.contents(), good.contents()) == ((b"", b"good\n"), (b"log\n", b""))[code]


def test_a_task_that_runs_too_long_is_ended(m: vine.Manager) -> None:
    """By its own limit, or when its time is over."""
    t = vine.Task("echo begun; sleep 600")
    t.set_time_max(1)
    run(m, t)
    assert (t.result, t.exit_code, t.completed()) == ("max wall time", -1, False)
    assert t.std_output.startswith("begun\n")
    assert isinstance(t.error, CallTimeout)
    stats = m.stats
    assert (stats.workers_connected, stats.total_cores, stats.tasks_running, stats.tasks_waiting) == (1, 2, 0, 0)
    assert stats.tasks_failed >= 1
    assert [(each["workers"], each["cores"]) for each in m.summarize_workers()] == [(1, 2)]
    t = vine.Task("sleep 600")
    t.set_time_end(time.time() * 1e6 + 1e6)
    assert run(m, t).result == "max end time"


def test_a_task_that_was_waited_for_may_be_submitted_again(m: vine.Manager, tmp_path: Path) -> None:
    """It has another number, and reads what its files are now."""
    (tmp_path / "in").write_text("one")
    t = vine.Task("cat in")
    t.add_input(m.declare_file(tmp_path / "in"), "in")
    first = run(m, t).id
    assert t.output == "one"
    (tmp_path / "in").write_text("two")
    assert run(m, t).id > first
    assert t.output == "two"
    m.submit(t)
    with pytest.raises(UsageError, match="is under way"):
        m.submit(t)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_task_is_tried_again_as_often_as_was_asked_for(m: vine.Manager, tmp_path: Path, retries: int) -> None:
    """When the process that ran it has died; an exit code is an end."""
    t = vine.Task(f"test -e {tmp_path}/note || {{ touch {tmp_path}/note; kill -9 $PPID; sleep 60; }}; echo again; exit 3", retries=retries)
    run(m, t)
    assert (t.result, t.exit_code) == (("signal", -9), ("success", 3))[retries]
    assert ("again\n" in t.std_output) is bool(retries)


def test_more_is_submitted_while_the_manager_is_hungry(m: vine.Manager) -> None:
    """A thousand tasks need not be there at once."""
    left, seen = list(range(60)), 0
    most = 0
    while left or not m.empty():
        while left and m.hungry():
            m.submit(vine.PythonTask(abs, -left.pop()))
        most = max(most, m.stats_category("default").tasks_running)
        t = m.wait(5)
        if t:
            assert t.successful()
            seen += 1
    assert seen == 60
    assert most < 60


# ---------------------------------------------------------------- waiting and cancelling


def test_tasks_are_waited_for_by_tag_and_by_number(m: vine.Manager) -> None:
    numbers: dict[str, int] = {}
    for tag in ("a", "b", "c"):
        t = vine.Task(f"echo {tag}")
        t.set_tag(tag)
        numbers[tag] = m.submit(t)
    by_tag = m.wait_for_tag("c", 60)
    assert by_tag is not None
    assert by_tag.output == "c\n"
    by_number = m.wait_for_task_id(numbers["a"], 60)
    assert by_number is not None
    assert by_number.output == "a\n"
    assert m.wait_for_tag("c", 5) is None  # there is none any more
    assert m.wait_for_task_id(999_999) is None
    rest = m.wait(60)
    assert rest is not None
    assert rest.tag == "b"
    assert m.wait(0) is None


def test_tasks_that_are_cancelled_come_back_with_that_result(m: vine.Manager, until: Until) -> None:
    """By number, tag and category, whether they run or not; all others go on."""

    def sleeper(tag: str, category: str = "default") -> int:
        t = vine.Task("sleep 600", tag=tag, category=category)
        return m.submit(t)

    runs = sleeper("runs")
    until("it runs", lambda: m.status("manager")[0]["tasks_running"])
    twins = [sleeper("twin"), sleeper("twin")]
    others = [sleeper("other", "kind") for _ in range(3)]
    assert m.cancel_by_task_id(runs) == 1
    assert m.cancel_by_task_id(runs) == 0
    assert m.cancel_by_task_tag("twin") == 1
    assert m.cancel_all_by_tag("twin") == 1
    assert m.cancel_by_category("kind") == 3
    assert m.cancel_by_task_id(12345678) == 0
    good = m.submit(vine.Task("echo good"))
    ended: dict[int, vine.Task] = {}
    while not m.empty():
        t = m.wait(60)
        assert t is not None
        ended[t.id] = t
    assert ended.pop(good).output == "good\n"
    assert {number: t.result for number, t in ended.items()} == dict.fromkeys([runs, *twins, *others], "cancelled")
    assert not any(t.completed() for t in ended.values())


def test_waiting_lets_other_threads_run_and_takes_parts_of_seconds(alone: vine.Manager) -> None:
    """A manager without workers: nothing ends."""
    alone.submit(vine.Task("true"))
    ticks: list[int] = []
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.001):
            ticks.append(1)

    thread = threading.Thread(target=tick)
    thread.start()
    assert alone.wait(0.5) is None
    over.set()
    thread.join()
    assert len(ticks) > 20
    assert not alone.empty()
    assert alone.cancel_all() == 1
    cancelled = alone.wait(5)
    assert cancelled is not None
    assert cancelled.result == "cancelled"
    assert alone.empty()


# ---------------------------------------------------------------- files


def test_temporary_files_stay_on_workers_between_tasks(m: vine.Manager) -> None:
    """Each may be submitted before the one whose file it reads has ended."""
    temp = m.declare_temp()
    first = vine.Task("echo wind > out")
    first.add_output(temp, "out")
    m.submit(first)
    second, third = m.declare_temp(), m.declare_temp()
    for source, target in ((temp, second), (second, third)):
        t = vine.Task("tr a-z A-Z < in > out; echo lass >> out")
        t.add_input(source, "in")
        t.add_output(target, "out")
        m.submit(t)
    while not m.empty():
        done = m.wait(60)
        assert done is not None
        assert done.successful(), done.std_output
    assert m.fetch_file(third) == third.contents() == b"WIND\nLASS\nlass\n"
    assert m.get_file_replica_count(third) == 1
    m.prune_file(third)


def test_archives_are_unpacked_once_and_mini_tasks_make_files_when_they_are_needed(m: vine.Manager, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\necho program $1\n")
    (tmp_path / "program").chmod(0o755)
    with tarfile.open(tmp_path / "soft.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "program", "bin/program")
    package = m.declare_untar(m.declare_url(f"file://{tmp_path}/soft.tar.gz", cache="workflow"), cache="workflow")
    note = tmp_path / "note"
    make = vine.Task(f"echo made >> {note}; mkdir tree; cat in in > tree/twice")
    make.add_input(m.declare_buffer("twice "), "in")
    made = m.declare_mini_task(make, "tree", cache="workflow")
    for number in range(3):
        t = vine.Task(f"soft/bin/program {number}; cat made/twice")
        t.add_input(package, "soft")
        t.add_input(made, "made")
        m.submit(t)
    seen: set[str] = set()
    while not m.empty():
        done = m.wait(60)
        assert done is not None
        assert done.successful(), done.std_output
        seen.add(done.output)
    assert seen == {f"program {number}\ntwice twice " for number in range(3)}
    assert note.read_text() == "made\n"


def test_files_that_nobody_needs_any_more_go_from_the_disk_if_that_was_asked_for(m: vine.Manager, tmp_path: Path) -> None:
    partial = m.declare_file(tmp_path / "partial", unlink_when_done=True)
    t = vine.Task("echo x > out")
    t.add_output(partial, "out")
    run(m, t)
    assert (tmp_path / "partial").read_text() == "x\n"
    m.undeclare_file(partial)
    assert not (tmp_path / "partial").exists()


# ---------------------------------------------------------------- functions


def divide(dividend: float, divisor: float) -> float:
    return dividend / divisor


def test_functions_are_tasks_whose_output_is_what_they_return(m: vine.Manager) -> None:
    """Or the exception, as the manual says; `PythonTaskNoResult` is known as code knows it."""
    good, bad = vine.PythonTask(divide, 9, divisor=2), vine.PythonTask(divide, 1, 0)
    good.set_tag("good")
    assert run(m, good).output == 4.5
    assert (good.result, good.exit_code, good.successful()) == ("success", 0, True)
    run(m, bad)
    assert isinstance(bad.output, ZeroDivisionError)
    assert isinstance(bad.output, vine.PythonTaskNoResult)
    assert not isinstance(good.output, vine.PythonTaskNoResult)
    assert (bad.completed(), bad.exit_code, bad.successful()) == (True, 1, False)
    assert "ZeroDivisionError" in bad.std_output


def sizes() -> dict[str, str]:
    print("looked")
    return {"word": os.environ.get("WORD", ""), "in": Path("in").read_text(), "out": str(Path("out").write_text("left") and "")}


def test_functions_have_files_and_variables_too(m: vine.Manager) -> None:
    out = m.declare_buffer()
    t = vine.PythonTask(sizes)
    t.add_input(m.declare_buffer("read me"), "in")
    t.add_output(out, "out")
    t.set_env_var("WORD", "wind")
    run(m, t)
    assert t.output == {"word": "wind", "in": "read me", "out": ""}
    assert (t.std_output, out.contents()) == ("looked\n", b"left")
    again = vine.PythonTask(os.environ.get, "WORD")
    assert run(m, again).output is None


def test_a_task_may_be_an_argument_of_another_and_its_result_may_stay_on_its_worker(m: vine.Manager) -> None:
    first = vine.PythonTask(bytes, 200_000)
    first.enable_temp_output()
    m.submit(first)
    second = vine.PythonTask(len, first)
    m.submit(second)
    while not m.empty():
        assert m.wait(60) is not None
    assert (second.output, len(first.output)) == (200_000, 200_000)


def test_libraries_serve_calls_and_keep_what_was_loaded(m: vine.Manager) -> None:
    """With a state that is made once."""

    def load(base: int) -> dict[str, int]:
        return {"base": base}

    def add(number: int) -> int:
        return int(vine.load_variable_from_library("base")) + number

    def fail() -> None:
        raise KeyError("no such thing")

    library = m.create_library_from_functions(
        "adders", add, fail, add_env=False, exec_mode="direct", hoisting_modules=[tarfile], library_context_info=[load, [100], {}]
    )
    library.set_cores(2)
    library.set_function_slots(2)
    m.install_library(library)
    assert m.check_library_exists("adders")
    calls = [vine.FunctionCall("adders", "add", number) for number in range(5)]
    for call in calls:
        m.submit(call)
    while not m.empty():
        assert m.wait(60) is not None
    assert [call.output for call in calls] == [100, 101, 102, 103, 104]
    failed = run(m, vine.FunctionCall("adders", "fail"))
    assert isinstance(failed.output, KeyError)
    assert (failed.result, failed.exit_code, failed.successful()) == ("success", 1, False)
    with pytest.raises(ValueError, match="there is no function 'adder' in library 'adders'; did you mean 'add'"):
        m.submit(vine.FunctionCall("adders", "adder", 1))
    m.remove_library("adders")
    with pytest.raises(ValueError, match="there is no library 'adders'"):
        m.submit(vine.FunctionCall("adders", "add", 1))
    assert m.empty()


def test_functions_over_sequences(m: vine.Manager) -> None:
    assert m.map(abs, [-1, -2, -3], chunksize=2) == [1, 2, 3]
    assert m.pair(sum, [1, 2], [10, 20]) == [11, 21, 12, 22]
    assert m.tree_reduce(max, [3, 1, 4, 1, 5, 9, 2, 6]) == 9


# ---------------------------------------------------------------- categories, workers, parameters


def test_categories_give_resources_to_tasks_that_set_none(m: vine.Manager) -> None:
    m.set_resources_max({"cores": 1})
    m.set_category_resources_max("wide", {"cores": 2, "memory": 50, "disk": 10, "gpus": 0})
    m.set_category_resources_min("wide", {"memory": 20})
    wide, narrow, own = (vine.Task("echo $CORES $OMP_NUM_THREADS") for _ in range(3))
    wide.set_category("wide")
    own.set_category("wide")
    own.set_cores(1)
    assert (run(m, wide).output, run(m, narrow).output, run(m, own).output) == ("2 2\n", "1 1\n", "1 1\n")
    assert wide.resources_requested.memory == 50
    m.set_category_mode("growing", "min waste")
    m.set_category_first_allocation_guess("growing", {"memory": 10})
    grows = vine.Task("true", category="growing")
    assert run(m, grows).resources_allocated.memory == 10
    assert grows.future is not None
    m.set_resources_max({})


def test_a_category_has_no_more_tasks_under_way_than_it_may(m: vine.Manager) -> None:
    m.set_category_max_concurrent("few", 1)
    for _ in range(3):
        m.submit(vine.Task("echo x", category="few"))
    assert m.stats_category("few").tasks_running == 1
    assert m.stats_category("few").tasks_waiting == 2
    assert m.cancel_by_category("few") == 3
    while not m.empty():
        assert m.wait(60) is not None
    for _ in range(3):
        m.submit(vine.Task("echo x", category="few"))
    done = [m.wait(60) for _ in range(3)]
    assert all(t is not None and t.successful() for t in done)


def test_nothing_runs_on_a_blocked_host_until_it_is_unblocked(until: Until) -> None:
    """Its workers leave."""
    host = os.uname().nodename
    with vine.Manager(0) as m, vine.Factory("local", manager=m, cores=1, max_workers=1):
        assert run(m, vine.Task("true")).successful()
        m.block_host(host)
        until("its worker has left", lambda: not m.status("workers"))
        m.submit(vine.Task("echo after"))
        assert m.wait(0.5) is None
        m.unblock_host(host)
        after = m.wait(60)
        assert after is not None
        assert after.output == "after\n"


def test_tuning_does_what_has_a_meaning_says_what_has_none_and_refuses_slips(alone: vine.Manager) -> None:
    assert alone.tune("hungry-minimum", 50) == 0
    assert alone.hungry() == 50
    alone.submit(vine.Task("true"))
    assert alone.hungry() == 49
    with pytest.warns(vine.NoEffect, match=r"tune\('transient-error-interval', 1\) has no effect here: a task that fails costs"):
        alone.tune("transient-error-interval", 1)
    with pytest.raises(UnknownName, match="there is no parameter to tune 'hungry-minumum'; did you mean 'hungry-minimum'"):
        alone.tune("hungry-minumum", 20)
    with pytest.raises(UsageError, match="hungry-minimum"):
        alone.tune("hungry-minimum", "many")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_tasks_wait_for_as_many_workers_as_were_asked_for(alone: vine.Manager) -> None:
    alone.tune("wait-for-workers", 1)
    held = vine.Task("echo x")
    alone.submit(held)
    assert held.future is None
    with vine.Factory("local", manager=alone, min_workers=1, max_workers=1):
        done = alone.wait(60)
        assert done is held
        assert held.successful()


def test_a_task_that_could_not_be_submitted_is_not_held(alone: vine.Manager) -> None:
    """Nor submitted when others go on."""
    alone.tune("wait-for-workers", 1)
    alone.manager.close()
    with pytest.raises(windlass.Closed):
        alone.submit(vine.Task("true"))
    assert alone.stats_category("default").tasks_waiting == 0
    assert alone.empty()


def test_as_many_tasks_as_there_are_may_be_held_and_cancelled(alone: vine.Manager) -> None:
    alone.set_category_max_concurrent("few", 1)
    for _ in range(20_000):
        alone.submit(vine.Task("true", category="few"))
    assert alone.cancel_all() == 20_000
    while not alone.empty():
        done = alone.wait(60)
        assert done is not None
        assert done.result == "cancelled"


def test_a_manager_that_is_closed_has_no_tasks(tmp_path: Path) -> None:
    """Programs that loop until it is empty come to an end. Its journal is that of `windlass.Manager`."""
    m = vine.Manager(0, journal=tmp_path / "journal")
    number = m.submit(vine.Task("true"))
    m.close()
    while not m.empty():
        t = m.wait(5)
        assert t is None or (t.id, t.result) == (number, "cancelled")
    assert m.wait() is None
    assert (tmp_path / "journal").is_dir()


REFUSED: list[tuple[Callable[[vine.Manager], object], str]] = [
    (lambda m: vine.Task("x", input_files={}), "there is no option of a task 'input_files'; did you mean 'inputs'"),
    (lambda m: vine.Task({"command": "x"}), r"write Task\(\*\*{...}\)"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda m: vine.Task(""), "write the command as a text"),
    (lambda m: m.submit("x"), "write submit"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda m: vine.Task("x").add_input("file", "x"), "the first argument is a file"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda m: vine.Task("x").add_input(m.declare_temp(), "/abs"), "not in the task's own directory"),
    (lambda m: m.submit(_reads(m.declare_temp())), "is written by no task that was submitted"),
    (lambda m: m.submit(_reads(m.declare_file("/no/such/file"))), "No such file"),
    (lambda m: m.submit(_writes(m.declare_url("file:///etc/passwd"))), "cannot be an output"),
    (lambda m: m.declare_file("x.$ARCH"), "workers run Linux"),
    (lambda m: m.declare_file("x", cache="always-ish"), "cache='always-ish': write False or 'task'"),
    (lambda m: vine.Task("x").add_feature("a100"), "a pool of their own"),
    (lambda m: vine.Task("x").add_poncho_package(m.declare_temp()), "execution contexts are not here"),
    (lambda m: vine.Factory("pbs", manager=m).start(), "there is no pool or batch backend 'pbs'"),
    (lambda m: vine.Factory("local", manager=m, max_worker=3), "did you mean 'max_workers'"),
    (lambda m: vine.Manager(0, nmae="x"), "did you mean 'name'|there is no option of Manager 'nmae'"),
    (lambda m: m.set_category_resources_max("a", {"core": 1}), "did you mean 'cores'"),
    (lambda m: m.set_category_mode("a", "maximum"), "there is no mode of a category 'maximum'"),
    (lambda m: m.enable_tasks_cache(), "journal="),
]


def _reads(file: vine.File) -> vine.Task:
    t = vine.Task("cat in")
    t.add_input(file, "in")
    return t


def _writes(file: vine.File) -> vine.Task:
    t = vine.Task("echo > out")
    t.add_output(file, "out")
    return t


def test_what_cannot_be_is_refused_where_it_is_written(alone: vine.Manager) -> None:
    """And leaves nothing behind."""
    for write, text in REFUSED:
        with pytest.raises(UsageError, match=text):
            write(alone)
    assert alone.empty()


def test_what_is_done_anyway_or_has_no_meaning_is_passed_over_with_the_reason(alone: vine.Manager) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vine.Manager(0, ssl=True, shutdown=True).close()
        alone.enable_peer_transfers()
        alone.enable_monitoring()
        alone.log_debug_app("a line")
    for use in (
        lambda: alone.set_password("secret"),
        lambda: alone.set_scheduler("files"),
        lambda: alone.enable_disconnect_slow_workers(2),
        lambda: vine.Task("x").add_output(alone.declare_buffer(), "x", watch=True),
        lambda: alone.declare_file("x", peer_transfer=False),
        lambda: vine.Factory("local", manager=alone, workers_per_cycle=5),
        lambda: vine.Manager(0, ssl=("key.pem", "cert.pem")).close(),
    ):
        with pytest.warns(vine.NoEffect, match="has no effect here: ") as warned:
            use()
        assert [each.filename for each in warned] == [__file__], "the warning is at the program's line"
    with pytest.raises(AttributeError, match=r"no 'FuturesExecutor': windlass.Executor"):
        vine.FuturesExecutor  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError, match=r"no attribute 'Task': write  import windlass.taskvine as vine"):
        getattr(windlass, "Task")  # noqa: B009
    with pytest.raises(AttributeError, match="did you mean 'PythonTask'"):
        vine.PythonTsk  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
