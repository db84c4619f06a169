"""Commands of the shell as calls, on real pilots."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from windlass import (
    CallFailed,
    CallTimeout,
    Command,
    CommandFailed,
    CommandResult,
    Factory,
    FileUnavailable,
    FunctionCall,
    Manager,
    NotPossible,
    SlotDied,
    UsageError,
    attach,
)

Until = Callable[[str, Callable[[], object]], None]


def read(path: Path) -> str:
    return path.read_text()


@pytest.fixture(autouse=True)
def leaves_nothing_running() -> None:
    """One manager serves the whole module."""


@pytest.fixture
def served(shared_manager: Manager) -> Manager:
    """A manager with one pilot of two cores."""
    return shared_manager


def run(manager: Manager, command: Any, **options: Any) -> CommandResult:
    result = manager.submit(Command(command, **options)).result(60)
    assert isinstance(result, CommandResult)
    return result


def test_a_command_finds_its_inputs_and_makes_its_outputs(served: Manager) -> None:
    """In a directory of its own, which is gone afterwards; what it made other commands and calls are given."""
    words = served.declare_buffer("wind lass", "any name")
    pack = Command("gzip < words > packed.gz; pwd", inputs={"words": words}, outputs=["packed.gz"])
    folder = served.submit(pack).result(60).stdout.strip()
    assert not os.path.exists(folder)
    unpack = Command("gunzip < in.gz > out.txt", inputs={"in.gz": pack.outputs["packed.gz"]}, outputs=["out.txt"])
    served.submit(unpack)
    served.install_library("lib", read)
    assert served.submit(FunctionCall("lib", "read", unpack.outputs["out.txt"])).result(60) == "wind lass"
    assert served.fetch_file(unpack.outputs["out.txt"]) == b"wind lass"


def test_what_a_command_writes_comes_back_by_stream_or_together(served: Manager) -> None:
    """And stands in its future as a call's does."""
    future = served.submit(Command("echo out; echo err >&2"))
    result = future.result(60)
    assert (result.exit_code, result.stdout, result.stderr, result.successful) == (0, "out\n", "err\n", True)
    assert (future.stdout, future.stderr) == ("out\n", "err\n")
    assert run(served, "echo out; echo err >&2; echo more", merge_output=True).stdout == "out\nerr\nmore\n"


def test_long_output_is_whole_up_to_its_bound_and_cut_in_the_middle_past_it(served: Manager) -> None:
    """A runaway command fills no memory."""
    assert len(run(served, "yes windlass | head -c 3000000").stdout) == 3_000_000
    cut = run(served, "echo begin; yes windlass | head -c 30000000; echo end").stdout
    assert cut.startswith("begin\n")
    assert cut.endswith("end\n")
    assert "bytes left out" in cut
    assert len(cut) < 100_000


LEFTOVER = """
import ctypes
import os
from windlass import commands
from windlass.worker import slotproc

def nothing_dies(pid):
    pass

slotproc.kill_below = nothing_dies
commands._LEFT_SECONDS = 0.1
print(commands._run("sleep 60 > /dev/null & echo $!", dict(os.environ), False)[0], flush=True)
"""


def test_what_a_command_has_left_and_nobody_can_kill_is_not_waited_for() -> None:
    """It may hang in the kernel, or be another user's."""
    done = subprocess.run([sys.executable, "-c", LEFTOVER], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    left, status = done.stdout.split()
    os.kill(int(left), signal.SIGKILL)
    assert status == "0"


def test_words_are_run_without_a_shell(served: Manager) -> None:
    assert run(served, ["printf", "%s|", "a b", "$HOME", "*"]).stdout == "a b|$HOME|*|"


def test_variables_are_given_and_taken_away(served: Manager) -> None:
    """And libraries of numbers are told how many threads to start, but for JAX, whose callbacks may need more."""
    command = Command('echo $ONE ${HOME-none} $OMP_NUM_THREADS$PJRT_NPROC; test "$WINDLASS_SANDBOX" = "$(pwd)"', env={"ONE": "1"}, cores=2)
    command.set_env_var("HOME")
    assert served.submit(command).result(60).stdout == "1 none 2\n"


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [
        ("echo why >&2; exit 3", 3, r"(?s)^the command 'echo why >&2; exit 3' ended with exit code 3; the end of what it wrote:\nwhy"),
        ("kill -9 $$", -9, r"was killed by signal 9 \(SIGKILL\)"),
        ("sh -c 'kill -15 $$'; exit $?", 143, r"exit code 143, as shells say when .* killed by signal 15 \(SIGTERM\)"),
        ("no-such-program", 127, r"exit code 127, as shells say when there is no such program"),
        (["no-such-program"], 127, r"the program 'no-such-program' cannot be started on the worker: No such file"),
        (["/etc/passwd"], 126, r"cannot be started on the worker: Permission denied"),
    ],
)
def test_a_command_that_fails_says_how(served: Manager, command: Any, code: int, text: str) -> None:
    with pytest.raises(CommandFailed, match=text) as failed:
        run(served, command)
    assert failed.value.exit_code == code
    assert failed.value.signal == {-9: 9, 143: 15}.get(code, 0)


def test_with_check_off_any_end_is_a_result(served: Manager) -> None:
    """Outputs that are there are kept, and whoever needs the others hears it."""
    command = Command("echo x > made; exit 4", outputs=["made", "unmade"], check=False)
    future = served.submit(command)
    served.install_library("lib", read)
    waits = served.submit(FunctionCall("lib", "read", command.outputs["unmade"]))
    result = future.result(60)
    assert (result.exit_code, result.missing, result.successful) == (4, ("unmade",), False)
    assert served.fetch_file(command.outputs["made"]) == b"x\n"
    with pytest.raises(FileUnavailable, match="did not leave it behind"):
        waits.result(60)
    with pytest.raises(CommandFailed, match="exit code 4, and its output 'unmade' is not there"):
        result.check()
    nothing = Command("true", outputs=["unmade"], check=False)
    assert served.submit(nothing).result(60).missing == ("unmade",)
    with pytest.raises(FileUnavailable, match="did not leave it behind"):
        served.submit(FunctionCall("lib", "read", nothing.outputs["unmade"])).result(60)


def test_an_output_that_is_not_made_is_a_failure(served: Manager) -> None:
    with pytest.raises(CommandFailed, match="ended well, but its output 'out' is not there") as failed:
        run(served, "true", outputs=["out"])
    assert failed.value.missing == ("out",)


def test_a_command_is_tried_again_when_that_is_asked_for(served: Manager, tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = f"echo x >> {note}; test $(wc -l < {note}) = 3"
    run(served, command, retries=5, retry_on=CommandFailed)
    assert note.read_text() == "x\n" * 3


#: Says who it is and stays: in the group, in a session of its own, and in one whose parent has ended.
STAYS = "sleep 600 & echo $! >> {0}; setsid sleep 600 & echo $! >> {0}; (setsid sh -c 'echo $$ >> {0}; exec sleep 600' &) ; "


def is_gone(pid: int) -> bool:
    """Whether it has ended; nobody may have asked for its status yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def all_gone(note: Path) -> bool:
    pids = [int(word) for word in note.read_text().split()]
    return len(pids) == 3 and all(map(is_gone, pids))


def test_nothing_that_a_command_started_outlives_it(served: Manager, tmp_path: Path, until: Until) -> None:
    note = tmp_path / "note"
    run(served, STAYS.format(note) + f"while test $(wc -l < {note}) != 3; do sleep 0.01; done")
    until("all that it started is gone", lambda: all_gone(note))


@pytest.mark.parametrize("end", ["timeout", "cancel"])
def test_a_command_is_ended_with_all_that_it_started(served: Manager, tmp_path: Path, until: Until, end: str) -> None:
    """What it had written is there."""
    note = tmp_path / "note"
    note.touch()
    command = Command(f"echo begun; {STAYS.format(note)} sleep 600")
    future = served.submit(command.with_options(timeout=2) if end == "timeout" else command)
    if end == "timeout":
        with pytest.raises(CallTimeout):
            future.result(60)
        assert future.stdout == "begun\n"
    else:
        until("it runs", lambda: len(note.read_text().split()) == 3)
        assert future.cancel()
    until("all that it started is gone", lambda: all_gone(note))
    assert run(served, "echo next").stdout == "next\n"


def test_a_command_ends_with_its_slot(served: Manager, tmp_path: Path, until: Until) -> None:
    note = tmp_path / "note"
    note.touch()
    future = served.submit(Command(f"echo $$ $PPID >> {note}; sleep 600 & echo $! >> {note}; wait"))
    until("it runs", lambda: len(note.read_text().split()) == 3)
    shell, slot, sleep = (int(word) for word in note.read_text().split())
    os.kill(slot, signal.SIGKILL)
    with pytest.raises(SlotDied):
        future.result(60)
    until("shell and child are gone", lambda: is_gone(shell) and is_gone(sleep))


def test_a_link_that_is_an_output_becomes_what_it_leads_to(served: Manager) -> None:
    """Also one to an input, which stays the cache's; one that leads nowhere is no output."""
    words = served.declare_buffer("words")
    command = Command(
        "mkdir -p d/e; echo x > d/e/f; ln -s d tree; ln -s in out; ln -s nowhere lost",
        inputs={"in": words},
        outputs=["tree", "out", "lost"],
        check=False,
    )
    assert served.submit(command).result(60).missing == ("lost",)
    assert served.fetch_file(command.outputs["out"]) == b"words"
    assert run(served, "cat t/e/f w", inputs={"t": command.outputs["tree"], "w": words}).stdout == "x\nwords"


def test_a_link_to_a_program_becomes_a_program(served: Manager) -> None:
    """As what make install leaves: a name with a version, and a link to it. Whoever brings it home has to know."""
    words = "cp /bin/true t-1.2; chmod 555 t-1.2; ln -s t-1.2 t; echo > f; ln -s f plain"
    assert run(served, words, outputs=["t", "plain"]).executable == ("t",)


def test_what_a_linked_folder_leads_to_is_left_as_it_is(served: Manager, tmp_path: Path) -> None:
    """Outputs below a link that leads out of the call's own directory are refused: nothing there is copied, packed or removed."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "precious").write_text("years of work")
    (tmp_path / "newest").symlink_to("results")
    for path in ("d/results", "d/newest"):
        command = Command(f"rmdir d; ln -s {tmp_path} d", outputs=[path], check=False)
        command.packed = (path,)
        with pytest.raises(CallFailed, match="is not in the call's own directory"):
            served.submit(command).result(60)
    assert (tmp_path / "results" / "precious").read_text() == "years of work"
    assert os.readlink(tmp_path / "newest") == "results"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["newest", "results"]


@pytest.mark.parametrize("target", [".", "..", "/"])
def test_a_link_to_a_folder_around_it_is_no_output(served: Manager, target: str) -> None:
    """A copy would have itself in it, and end when the disk is full."""
    assert run(served, f"ln -s {target} out", outputs=["out"], check=False).missing == ("out",)


def test_what_a_command_made_beside_an_output_stays_what_it_is(served: Manager) -> None:
    """Copies and archives have names of their own."""
    words = "echo a > a; ln -s a out; echo other > out.copied; mkdir f; echo other > f.packed"
    command = Command(words, outputs=["out", "out.copied", "f", "f.packed"])
    command.packed = ("f",)
    served.submit(command).result(60)
    assert [served.fetch_file(command.outputs[path]) for path in ("out", "out.copied", "f.packed")] == [b"a\n", b"other\n", b"other\n"]


def test_what_a_command_made_is_saved_whole_or_not_at_all(served: Manager, tmp_path: Path) -> None:
    """Where nothing else is."""
    command = Command("echo made > out", outputs=["out"])
    served.submit(command)
    served.save_file(command.outputs["out"], tmp_path / "here")
    assert (tmp_path / "here").read_text() == "made\n"
    missing = Command("true", outputs=["out"], check=False)
    served.submit(missing)
    with pytest.raises(FileUnavailable):
        served.save_file(missing.outputs["out"], tmp_path / "there")
    assert [each.name for each in tmp_path.iterdir()] == ["here"]


def test_commands_find_the_gpus_that_are_theirs(manager: Manager) -> None:
    """Each a number of them; a library of its own has as many."""
    with Factory(manager, "local", cores=2, gpus=2, env={"CUDA_VISIBLE_DEVICES": "3,5"}):
        show = "echo $CUDA_VISIBLE_DEVICES"
        assert run(manager, show, gpus=1).stdout.strip() in ("3", "5")
        assert sorted(run(manager, show, gpus=2).stdout.strip().split(",")) == ["3", "5"]
        with pytest.raises(NotPossible, match="GPU"):
            run(manager, show, gpus=3)


def test_commands_go_through_a_manager_elsewhere(manager: Manager) -> None:
    with Factory(manager, "local", cores=1), attach(manager.connection_file) as attached:
        first = Command("echo elsewhere > out", outputs=["out"])
        attached.submit(first)
        second = Command("cat in", inputs={"in": first.outputs["out"]})
        assert attached.submit(second).result(60).stdout == "elsewhere\n"
        assert attached.fetch_file(first.outputs["out"]) == b"elsewhere\n"


def test_a_command_may_be_a_mini_task(served: Manager, tmp_path: Path) -> None:
    """It runs once, when its file is first needed."""
    note = tmp_path / "note"
    archive = served.declare_buffer("words", "a.txt")
    made = served.declare_minitask(
        Command(f"echo x >> {note}; mkdir out; cp in out/copy", inputs={"in": archive}, outputs=["out"]), "unpacked"
    )
    assert not note.exists()
    assert [run(served, "cat d/copy", inputs={"d": made}).stdout for _ in range(2)] == ["words"] * 2
    assert note.read_text() == "x\n"


def test_a_folder_that_a_command_made_says_how_it_is_saved(served: Manager, tmp_path: Path) -> None:
    """By its name, as the program knows it, not by the id of what is on the worker."""
    command = Command("mkdir tree; touch tree/leaf", outputs=["tree"])
    served.submit(command)
    with pytest.raises(FileUnavailable, match=r"^temp 'tree' is a folder, .*; have the call that makes it pack it"):
        served.save_file(command.outputs["tree"], tmp_path / "tree")


def test_words_of_a_command_may_be_paths(served: Manager) -> None:
    """As with subprocess."""
    assert run(served, ["echo", Path("a/b"), "c"]).stdout == "a/b c\n"


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: Command(""), r"Command\(''\): write a text for the shell"),
    (lambda: Command([]), "or a list of words"),
    (lambda: Command(["a", 1]), r"word 1 is 1, of type int; write str\(1\)"),  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    (lambda: Command("x", outputs="out"), r"write outputs=\['out'\]"),
    (lambda: Command("x", outputs=["../out"]), "not in the call's own directory"),
    (lambda: Command("x", inputs=["in"]), "write inputs="),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda: Command("x", env={"A": 1}), "write names and texts"),  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    (lambda: Command("x", env="A=1"), "write names and texts"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda: Command("x", check="no"), "check='no'; write check=True"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (lambda: Command("x", timeuot=3), "did you mean 'timeout'"),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
]


@pytest.mark.parametrize(("write", "text"), WRONG)
def test_wrong_commands_are_refused_where_they_are_written(write: Callable[[], object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        write()


def test_a_mini_task_of_a_command_makes_one_file(manager: Manager) -> None:
    for wrong in (Command("x"), Command("x", outputs=["a", "b"]), Command("x", outputs=["a"], check=False)):
        with pytest.raises(UsageError, match="as a mini task makes one file"):
            manager.declare_minitask(wrong)


CAP_DAC_OVERRIDE = 1
PR_CAPBSET_DROP = 24
COPIES = """
import shutil
from windlass import Command, Executor, FunctionCall

def annotate(path):
    {function}
    with open("work", "a") as file:
        file.write("3\\n")
    return open("work").read()

with Executor("local", cores=1) as pool:
    file = pool.manager.declare_buffer("2\\n1\\n", "in.txt")
    command = Command("{command} && sort -o work work && cat work", inputs={{"in": file}})
    print([pool.manager.submit(command).result(60).stdout, pool.submit(annotate, file).result(60)])
"""


@pytest.mark.parametrize(
    ("command", "function", "right"),
    [("cat in > work", 'shutil.copyfile(path, "work")', True), ("cp -L in work", 'shutil.copy(path, "work")', False)],
)
def test_a_copy_as_pages_say_it_can_be_written_to(tmp_path: Path, command: str, function: str, right: bool) -> None:
    """By who is not root: for root no mode is anything. The modes of inputs, which `cp` copies, are those of files that calls share."""
    pages = Path(__file__).parents[2] / "docs"
    assert command in (pages / "commands.md").read_text()
    assert not right or f"`{function}` or `{command}`" in (pages / "files.md").read_text()
    program = tmp_path / "program.py"
    program.write_text(COPIES.format(command=command, function=function))
    prctl = ctypes.CDLL(None).prctl
    ended = subprocess.run(
        [sys.executable, program],
        preexec_fn=lambda: prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (ended.stdout == "['1\\n2\\n', '2\\n1\\n3\\n']\n") is right, ended.stderr
    assert right or "Permission denied" in ended.stderr
