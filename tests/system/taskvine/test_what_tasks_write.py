"""Files that one task writes and another one reads, or the program: when they are read, and what becomes of them here."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import windlass.taskvine as vine
from windlass import UsageError

Until = Callable[[str, Callable[[], object]], None]
Run = Callable[[vine.Task], vine.Task]


def writes(file: vine.File, command: str = "echo new > out") -> vine.Task:
    t = vine.Task(command)
    t.add_output(file, "out")
    return t


def reads(file: vine.File, command: str = "cat in") -> vine.Task:
    t = vine.Task(command)
    t.add_input(file, "in")
    return t


def wait_for_all(m: vine.Manager) -> None:
    while not m.empty():
        assert m.wait(60) is not None


# ---------------------------------------------------------------- when they are read


@pytest.mark.parametrize("older", ["old\n", ""])
def test_what_a_task_writes_is_read_by_others_when_it_is_here(m: vine.Manager, tmp_path: Path, older: str) -> None:
    """Whether something older lies there or nothing, however often the path is declared, and in buffers too."""
    path, gate, buffer = tmp_path / "mid", tmp_path / "gate", m.declare_buffer()
    if older:
        path.write_text(older)
    first = writes(m.declare_file(path), f"until test -e {gate}; do sleep 0.01; done; echo new > out; echo buffer > buffer")
    first.add_output(buffer, "buffer")
    second = reads(m.declare_file(path), "cat in buffer")
    second.add_input(buffer, "buffer")
    third = vine.PythonTask(Path.read_text, Path("in"))
    third.add_input(m.declare_file(f"{tmp_path}/./mid"), "in")
    for t in (first, second, third):
        m.submit(t)
    assert (second.future, third.future, m.stats_category("default").tasks_waiting) == (None, None, 2)
    gate.touch()
    wait_for_all(m)
    assert (second.output, third.output) == ("new\nbuffer\n", "new\n")


def test_what_is_read_and_written_by_each_of_many_goes_from_one_to_the_next(m: vine.Manager, tmp_path: Path) -> None:
    """Though they are submitted at once."""
    (tmp_path / "count").write_text("0\n")
    count = m.declare_file(tmp_path / "count")
    for _ in range(5):
        t = reads(count, "expr $(cat in) + 1 > out")
        t.add_output(count, "out")
        m.submit(t)
    wait_for_all(m)
    assert (tmp_path / "count").read_text() == "5\n"


def test_who_reads_what_was_not_written_is_not_run(m: vine.Manager, until: Until, tmp_path: Path) -> None:
    """Until the program has been given the task that was to write it: then it knows, and what lies there is what it means."""
    (tmp_path / "mid").write_text("old\n")
    mid = m.declare_file(tmp_path / "mid")
    fails, late = writes(mid, "true"), reads(mid)
    m.submit(fails)
    m.submit(late)
    wait_for_all(m)
    assert (fails.result, late.result, late.exit_code) == ("output missing", "input missing", -1)
    assert "needs what <Task" in late.std_output
    assert "which has ended without making it" in late.std_output
    m.submit(fails)
    until("it has ended", lambda: m.stats.tasks_with_results)
    m.submit(late)
    wait_for_all(m)
    assert late.result == "input missing"
    m.submit(late)
    wait_for_all(m)
    assert late.output == "old\n"


def test_what_is_declared_of_a_file_is_declared_when_it_is_there(alone: vine.Manager, tmp_path: Path) -> None:
    """An archive that a task is to write is not that of an earlier run."""
    (tmp_path / "archive.tar").write_bytes(b"older")
    archive = alone.declare_file(tmp_path / "archive.tar")
    with vine.FuturesExecutor(manager=alone, factory=False) as executor:
        future_task = executor.future_task(abs, -1)
        future_task.add_input(archive, "in")
        first = alone.submit(writes(archive))
        for declare in (
            lambda: alone.declare_untar(archive),
            lambda: alone.declare_minitask(reads(archive), "out"),
            lambda: executor.submit(future_task),
        ):
            with pytest.raises(UsageError, match=f"is to be written by task {first}, which has not ended"):
                declare()
        alone.cancel_all()
        wait_for_all(alone)
        assert alone.declare_untar(archive).type() == "untar"


def test_a_held_task_whose_input_is_not_there_says_so_as_others_do(alone: vine.Manager, tmp_path: Path) -> None:
    alone.set_category_max_concurrent("default", 1)
    first = alone.submit(vine.Task("true"))
    held = reads(alone.declare_file(tmp_path / "none"))
    alone.submit(held)
    alone.cancel_by_task_id(first)
    wait_for_all(alone)
    assert held.result == "input missing"
    assert "No such file" in held.std_output


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize("cache", [False, True])
def test_a_folder_that_a_task_has_written_is_read_anew(m: vine.Manager, run: Run, tmp_path: Path, cache: bool) -> None:
    state = tmp_path / "state"
    (state / "below").mkdir(parents=True)
    (state / "below" / "count").write_text("1\n")
    folder = m.declare_file(state, cache=cache)
    look = reads(folder, "cat in/below/count")
    assert run(look).output == "1\n"
    for _ in range(2):
        t = reads(folder, "mkdir -p out/below; expr $(cat in/below/count) + 1 > out/below/count")
        t.add_output(folder, "out")
        assert run(t).successful(), t.std_output
    assert run(look).output == "3\n"


# ---------------------------------------------------------------- what becomes of them here


def test_a_folder_that_comes_here_has_what_its_links_led_to_on_the_worker(m: vine.Manager, run: Run, tmp_path: Path) -> None:
    """Inputs are links there, which commands move and copy; links within the folder, and to what is not ours, are links here."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "leaf").write_text("leaf")
    (tmp_path / "tree" / "link").symlink_to("sub/leaf")
    t = vine.Task(
        "mkdir out other && mv in out/moved && cp -a tree out/ && echo x > other/file && ln -s ../other out/other && ln -s .. other/up"
        " && ln -s $PWD/out/moved out/absolute && ln -s moved out/inner && ln -s /no/such out/dead && ln -s /etc/passwd out/foreign"
    )
    t.add_input(m.declare_buffer("moved"), "in")
    t.add_input(m.declare_file(tmp_path / "tree"), "tree")
    t.add_output(m.declare_file(tmp_path / "out"), "out")
    assert run(t).successful(), t.std_output
    out = tmp_path / "out"
    links = {str(each.relative_to(out)): str(each.readlink()) for each in out.rglob("*") if each.is_symlink()}
    assert links == {"inner": "moved", "tree/link": "sub/leaf", "dead": "/no/such", "foreign": "/etc/passwd", "other/up": ".."}
    found = {str(each.relative_to(out)): each.read_text() for each in out.rglob("*") if each.is_file() and not each.is_symlink()}
    assert found == {"moved": "moved", "absolute": "moved", "tree/sub/leaf": "leaf", "other/file": "x\n"}
    (out / "moved").write_text("it is the program's own")


def test_a_program_that_a_task_has_made_is_one_here(m: vine.Manager, run: Run, tmp_path: Path) -> None:
    """For those who may read it; another file is none."""
    t = vine.Task("printf '#!/bin/sh\\necho made\\n' | tee program > text; chmod +x program")
    for name in ("program", "text"):
        t.add_output(m.declare_file(tmp_path / name), name)
    assert run(t).successful(), t.std_output
    assert subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True).stdout == "made\n"
    modes = [(tmp_path / name).stat().st_mode for name in ("program", "text")]
    assert modes[0] & 0o111 == (modes[1] & 0o444) >> 2
    assert not modes[1] & 0o111
