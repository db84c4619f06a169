"""Tasks of TaskVine's users, with one line of the program changed (``import windlass.taskvine as vine``), on real pilots."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import windlass.taskvine as vine
from windlass import CallTimeout, OutOfMemory, UsageError
from windlass.manager.call import COUNT_MOST, DEFAULT_OPTIONS

Until = Callable[[str, Callable[[], object]], None]
Run = Callable[[vine.Task], vine.Task]


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


def test_outputs_are_written_to_files_of_this_machine_before_the_task_comes_back(m: vine.Manager, run: Run, tmp_path: Path) -> None:
    """Files and folders, and buffers."""
    (tmp_path / "mydata").write_text("data " * 1000)
    t = vine.Task("gzip < mydata > mydata.gz; mkdir -p sub/dir; cp mydata sub/dir/copy; ln -s dir sub/link; wc -c < mydata > count")
    t.add_input(m.declare_file(str(tmp_path / "mydata")), "mydata")
    t.add_output(m.declare_file(tmp_path / "results" / "mydata.gz"), "mydata.gz")
    t.add_output(m.declare_file(tmp_path / "results" / "tree"), "sub")
    count = m.declare_buffer()
    t.add_output(count, "count")
    assert run(t).successful(), t.std_output
    assert (tmp_path / "results" / "mydata.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert (tmp_path / "results" / "tree" / "link" / "copy").read_text() == "data " * 1000
    assert count.contents(lambda file: int(file.read())) == 5000
    assert sorted(each.name for each in (tmp_path / "results").iterdir()) == ["mydata.gz", "tree"]


def test_what_is_in_a_folder_that_a_task_writes_to_stays_there(m: vine.Manager, run: Run, tmp_path: Path) -> None:
    """But for files of the same name; nor is anything beside it touched."""
    for name in ("results", "results.part", "results.packed"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "old").write_text("old")
        (tmp_path / name / "sub" / "both").write_text("old")
    for number in (1, 2):
        t = vine.Task(f"mkdir -p out/sub; echo {number} > out/{number}; echo {number} > out/sub/both; ln -s sub out/link{number}")
        t.add_output(m.declare_file(tmp_path / "results"), "out")
        assert run(t).successful(), t.std_output
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


def test_a_task_may_be_written_as_a_dictionary(m: vine.Manager, run: Run) -> None:
    source, target = m.declare_buffer("words"), m.declare_buffer()
    info: dict[str, Any] = {
        "command": "cat in > out; echo $WORD $VINE_SANDBOX $CORES $MEMORY $((DISK / 2))",
        "inputs": {source: {"remote_name": "in"}},
        "outputs": {target: "out"},
        "env": {"WORD": "lass"},
        "cores": 1,
        "memory": 100,
        "disk": 2_000_000,
        "tag": "config-1",
        "category": "copies",
        "priority": 3,
        "retries": 2,
        "time_max": 60,
    }
    t = run(vine.Task(**info))
    word, sandbox, *needs = t.output.split()
    assert (word, needs, t.tag, t.category, target.contents()) == ("lass", ["1", "100", "1000000"], "config-1", "copies", b"words")
    assert not os.path.exists(sandbox)
    assert (t.resources_requested.cores, t.resources_requested.memory, t.resources_requested.disk) == (1, 100, 2_000_000)
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
def test_ends_are_told_in_results_and_exit_codes(
    m: vine.Manager, run: Run, command: str, result: str, exit_code: int, completed: bool
) -> None:
    t = vine.Task(f"echo said; {command}" if result == "output missing" else f"echo said; echo x > out; {command}")
    out = m.declare_buffer()
    t.add_output(out, "out")
    run(t)
    assert (t.result, t.exit_code, t.completed(), t.successful()) == (result, exit_code, completed, False)
    assert t.std_output.startswith("said\n")
    assert out.contents() == (b"" if result == "output missing" else b"x\n")


def test_outputs_may_be_wanted_only_of_those_that_fail_or_do_not(m: vine.Manager, run: Run) -> None:
    for code in (0, 1):
        log, good = m.declare_buffer(), m.declare_buffer()
        t = vine.Task(f"test {code} = 0 && echo good > good || echo log > log; exit {code}")
        t.add_output(log, "log", failure_only=True)
        t.add_output(good, "good", success_only=True)
        run(t)
        assert (t.result, t.exit_code) == ("success", code)
        assert (log.contents(), good.contents()) == ((b"", b"good\n"), (b"log\n", b""))[code]


def test_a_task_that_runs_too_long_is_ended(m: vine.Manager, run: Run) -> None:
    """By its own limit, or when its time is over."""
    t = vine.Task("echo begun; sleep 600")
    t.set_time_max(1)
    run(t)
    assert (t.result, t.exit_code, t.completed()) == ("max wall time", -1, False)
    assert t.std_output.startswith("begun\n")
    assert isinstance(t.error, CallTimeout)
    stats = m.stats
    assert (stats.workers_connected, stats.total_cores, stats.tasks_running, stats.tasks_waiting) == (1, 2, 0, 0)
    assert stats.tasks_failed >= 1
    assert [(each["workers"], each["cores"]) for each in m.summarize_workers()] == [(1, 2)]
    t = vine.Task("sleep 600")
    t.set_time_end(time.time() * 1e6 + 1e6)
    assert run(t).result == "max end time"


def test_a_task_that_was_waited_for_may_be_submitted_again(m: vine.Manager, run: Run, tmp_path: Path) -> None:
    """It has another number, and reads what its files are now."""
    (tmp_path / "in").write_text("one")
    t = vine.Task("cat in")
    t.add_input(m.declare_file(tmp_path / "in"), "in")
    first = run(t).id
    assert t.output == "one"
    (tmp_path / "in").write_text("two")
    assert run(t).id > first
    assert t.output == "two"
    m.submit(t)
    with pytest.raises(UsageError, match="is under way"):
        m.submit(t)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_task_is_tried_again_as_often_as_was_asked_for(m: vine.Manager, run: Run, tmp_path: Path, retries: int) -> None:
    """When the process that ran it has died; an exit code is an end."""
    t = vine.Task(f"test -e {tmp_path}/note || {{ touch {tmp_path}/note; kill -9 $PPID; sleep 60; }}; echo again; exit 3", retries=retries)
    run(t)
    assert (t.result, t.exit_code) == (("signal", -9), ("success", 3))[retries]
    assert ("again\n" in t.std_output) is bool(retries)


def test_what_a_task_used_is_told_whatever_became_of_it(run: Run) -> None:
    """The manual's lines for it; -1 is what nobody knows."""
    command, function = run(vine.Task("true")), run(vine.PythonTask(abs, -1))
    short = vine.Task("true")
    assert (short.resources_measured, short.limits_exceeded) == (None, None)
    short.end(None, OutOfMemory("it ran out of memory", peak=300 << 20, share=200 << 20))
    told: list[tuple[float, ...]] = []
    for t in (command, function, short):
        used = t.resources_measured
        assert used is not None
        told.append((used.memory, used.disk, used.gpus, t.limits_exceeded.cores if t.limits_exceeded else 0))
        assert t.resources_requested.disk == 0
    assert told[0][0] > 0
    assert told[0][1:] == (-1, -1, 0)
    assert told[1:] == [(-1, -1, -1, 0), (300, -1, -1, -1)]
    assert function.resources_measured is not None
    assert function.resources_measured.wall_time > 0
    assert short.limits_exceeded is not None
    assert (short.limits_exceeded.memory, short.result) == (200, "resource exhaustion")


def test_numbers_below_one_are_no_limits() -> None:
    """As TaskVine's manual has it."""
    for retries, losses in ((0, COUNT_MOST), (-1, COUNT_MOST), (2, 2)):
        t = vine.Task("true", retries=retries, time_max=0, time_min=-1, time_end=0)
        options = t._call_options({})  # pyright: ignore[reportPrivateUsage]
        assert (options.max_losses, options.retries) == (losses, max(0, retries))
        assert (options.timeout, options.expected_time, t.time_end) == (DEFAULT_OPTIONS.timeout, DEFAULT_OPTIONS.expected_time, 0.0)
    with pytest.raises(UsageError, match="retries=True"):
        vine.Task("true", retries=True)


def test_more_is_submitted_while_the_manager_is_hungry(m: vine.Manager) -> None:
    """A thousand tasks need not be there at once."""
    left, seen = list(range(60)), 0
    while left or not m.empty():
        while left and m.hungry():
            m.submit(vine.PythonTask(abs, -left.pop()))
        t = m.wait(5)
        if t:
            assert t.successful()
            seen += 1
    assert seen == 60


def test_a_manager_without_workers_is_hungry_for_a_few_tasks(alone: vine.Manager) -> None:
    submitted = 0
    while alone.hungry() and submitted < 60:
        alone.submit(vine.PythonTask(abs, -submitted))
        submitted += 1
    assert submitted == 10


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
    assert m.fetch_file(third) == "WIND\nLASS\nlass\n"
    assert third.contents() == b"WIND\nLASS\nlass\n"
    no_text = b"\0\xff\xe4"
    assert m.fetch_file(m.declare_buffer(no_text)).encode("utf-8", "surrogateescape") == no_text
    assert m.get_file_replica_count(third) == 1
    m.prune_file(third)


def test_archives_are_unpacked_once_and_mini_tasks_make_files_when_they_are_needed(m: vine.Manager, tmp_path: Path) -> None:
    (tmp_path / "program").write_text("#!/bin/sh\necho program $1\n")
    (tmp_path / "program").chmod(0o755)
    with tarfile.open(tmp_path / "soft.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "program", "bin/program")
    package = m.declare_untar(m.declare_url(f"file://{tmp_path}/soft.tar.gz"))  # cached as TaskVine does when nothing is said
    note = tmp_path / "note"
    make = vine.Task(f'echo made >> {note}; mkdir "$VINE_SANDBOX/tree"; cat in in > tree/twice')
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


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_commands_run_in_execution_contexts(m: vine.Manager, run: Run, tmp_path: Path) -> None:
    """The manual's own: a folder whose ``bin/run_in_env`` is given the command; one within the other; and packages of Starch and Poncho."""
    executable(tmp_path / "inner/bin/run_in_env", 'WHERE="$WHERE inner" exec "$@"')
    executable(tmp_path / "outer/bin/run_in_env", 'WHERE="$WHERE outer" exec "$@"')
    starch = 'mkdir -p "$SFX_DIR/bin"; echo "WHERE=starch exec \\"\\$@\\"" > "$SFX_DIR/bin/run_in_env"; chmod +x "$SFX_DIR/bin/run_in_env"'
    executable(tmp_path / "package.sfx", starch)
    program = executable(tmp_path / "program", 'echo "program $1"')
    with tarfile.open(tmp_path / "package.tar.gz", "w:gz") as archive:
        archive.add(program, "bin/program")
    t = vine.Task("echo \"$(cat in)\" $WHERE > out; cat out | tr a-z A-Z; test 'it''s' = its && exit 3")
    t.add_input(m.declare_buffer("in"), "in")
    t.add_execution_context(m.declare_file(tmp_path / "inner", cache="workflow"))
    t.add_environment(m.declare_file(tmp_path / "outer", cache="workflow"))
    assert (run(t).output, t.exit_code) == ("IN OUTER INNER\n", 3)
    t = vine.Task("echo $WHERE")
    t.add_starch_package(m.declare_starch(m.declare_file(tmp_path / "package.sfx"), cache="workflow"))
    assert run(t).output == "starch\n"
    poncho = m.declare_poncho(str(tmp_path / "package.tar.gz"), cache="workflow")
    for number in range(2):
        t = vine.Task(f"program {number}")
        t.add_poncho_package(poncho)
        assert run(t).output == f"program {number}\n"
    t = vine.Task("program 1 > out")
    t.add_poncho_package(poncho)
    made = m.declare_minitask(t, "out")
    t = vine.Task("cat in")
    t.add_input(made, "in")
    assert run(t).output == "program 1\n"


def test_files_that_nobody_needs_any_more_go_from_the_disk_if_that_was_asked_for(m: vine.Manager, run: Run, tmp_path: Path) -> None:
    partial = m.declare_file(tmp_path / "partial", unlink_when_done=True)
    t = vine.Task("echo x > out")
    t.add_output(partial, "out")
    run(t)
    assert (tmp_path / "partial").read_text() == "x\n"
    m.undeclare_file(partial)
    assert not (tmp_path / "partial").exists()


# ---------------------------------------------------------------- functions


def divide(dividend: float, divisor: float) -> float:
    return dividend / divisor


def test_functions_are_tasks_whose_output_is_what_they_return(m: vine.Manager, run: Run) -> None:
    """Or the exception, as the manual says; `PythonTaskNoResult` is known as code knows it."""
    good, bad = vine.PythonTask(divide, 9, divisor=2), vine.PythonTask(divide, 1, 0)
    good.set_tag("good")
    assert run(good).output == 4.5
    assert (good.result, good.exit_code, good.successful()) == ("success", 0, True)
    run(bad)
    assert isinstance(bad.output, ZeroDivisionError)
    assert isinstance(bad.output, vine.PythonTaskNoResult)
    assert not isinstance(good.output, vine.PythonTaskNoResult)
    assert (bad.completed(), bad.exit_code, bad.successful()) == (True, 1, False)
    assert "ZeroDivisionError" in bad.std_output


def sizes() -> dict[str, str]:
    print("looked")
    return {"word": os.environ.get("WORD", ""), "in": Path("in").read_text(), "out": str(Path("out").write_text("left") and "")}


def test_functions_have_files_and_variables_too(m: vine.Manager, run: Run) -> None:
    out = m.declare_buffer()
    t = vine.PythonTask(sizes)
    t.add_input(m.declare_buffer("read me"), "in")
    t.add_output(out, "out")
    t.set_env_var("WORD", "wind")
    run(t)
    assert t.output == {"word": "wind", "in": "read me", "out": ""}
    assert (t.std_output, out.contents()) == ("looked\n", b"left")
    again = vine.PythonTask(os.environ.get, "WORD")
    assert run(again).output is None


def test_a_task_may_be_an_argument_of_another_and_its_result_may_stay_on_its_worker(m: vine.Manager) -> None:
    first = vine.PythonTask(bytes, 200_000)
    first.enable_temp_output()
    m.submit(first)
    second = vine.PythonTask(len, first)
    m.submit(second)
    while not m.empty():
        assert m.wait(60) is not None
    assert (second.output, len(first.output)) == (200_000, 200_000)


def test_libraries_serve_calls_and_keep_what_was_loaded(m: vine.Manager, run: Run) -> None:
    """With a state that is made once."""

    def load(base: int) -> dict[str, int]:
        return {"base": base}

    def add(number: int) -> int:
        from windlass.taskvine.utils import load_variable_from_library

        return int(load_variable_from_library("base")) + number

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
    failed = run(vine.FunctionCall("adders", "fail"))
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
    with pytest.raises(TypeError, match="not supported between"):  # what the call raised, not that those after it were not run
        m.tree_reduce(max, [3, "1", 4, 1])
