"""Calls with a directory of their own: inputs and outputs by name, files that calls make, and files that are made when they are needed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass import CallFailed, FileUnavailable, FunctionCall, InputFailed, Manager, SlotDied, UsageError

Start = Callable[..., windlass.Factory]
Until = Callable[[str, Callable[[], object]], None]
Kill = Callable[[Manager], None]


def upper(source: str, target: str, note: str = "") -> str:
    """Reads and writes by relative paths."""
    if note:
        with open(note, "a") as file:
            file.write("upper\n")
    Path(target).write_text(Path(source).read_text().upper())
    return os.getcwd()


def read(path: Path | str) -> str:
    return Path(path).read_text()


def names(path: Path) -> list[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*"))


def listing() -> list[str]:
    return sorted(os.listdir("."))


def make_folder(target: str) -> None:
    Path(target, "sub").mkdir(parents=True)
    Path(target, "sub", "a").write_text("a")


def make_odd_folder(target: str, note: str) -> None:
    """What cannot go to other workers."""
    with open(note, "a") as file:
        file.write("made\n")
    make_folder(target)
    Path(target, "sub", "odd").symlink_to("/etc/hosts") if target == "link" else os.mkfifo(Path(target, "sub", "odd"))


def forget(_target: str) -> None:
    """Makes nothing."""


def fail(_target: str) -> None:
    raise ValueError("no such luck")


def table(number: int, note: str) -> Path:
    """A mini task: what it returns is the path of what it made."""
    with open(note, "a") as file:
        file.write(f"{number}\n")
    path = Path("table.txt")
    path.write_text(f"table {number}")
    return path


def slow(word: str) -> str:
    time.sleep(0.3)
    if not word:
        raise ValueError("no word")
    return word


def write(text: str, target: str) -> None:
    Path(target).write_text(text)


def listed(paths: list[Path]) -> list[str]:
    return [path.read_text() for path in paths]


class Odd:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def write_oddly(target: str) -> Odd:
    Path(target).write_text("well")
    return Odd()


@pytest.fixture
def served(manager: Manager, start_factory: Start) -> Manager:
    """A manager with the library and one pilot of one core."""
    start_factory(cores=1)
    made = (make_folder, make_odd_folder, forget, fail, table, slow, write, write_oddly)
    manager.install_library("lib", upper, read, names, listing, listed, *made)
    return manager


def call(function: str, *args: Any) -> FunctionCall:
    return FunctionCall("lib", function, *args)


def test_a_call_finds_its_inputs_by_name_and_its_outputs_become_files(served: Manager) -> None:
    """In a directory that is gone afterwards; other calls have none of it."""
    work = call("upper", "in/words.txt", "out/result.txt")
    work.add_input(served.declare_buffer("words", "whatever"), "in/words.txt")
    result = served.declare_temp("loud.txt")
    work.add_output(result, "out/result.txt")
    folder = served.submit(work).result(60)
    assert not os.path.exists(folder)
    assert served.submit(call("read", result)).result(60) == "WORDS"
    assert served.fetch_file(result) == b"WORDS"
    assert served.submit(call("listing")).result(60) == []


def test_an_output_may_be_a_folder(served: Manager) -> None:
    work = call("make_folder", "made")
    made = served.declare_temp("tree")
    work.add_output(made, "made")
    served.submit(work)
    assert served.submit(call("names", made)).result(60) == ["sub", "sub/a"]


@pytest.mark.parametrize(
    ("odd", "text"),
    [("link", r"'link' has a link sub/odd that leads out of it, to /etc/hosts"), ("pipe", "'pipe' has sub/odd, which is neither")],
)
def test_a_folder_that_cannot_go_to_other_workers_ends_who_made_it(served: Manager, tmp_path: Path, odd: str, text: str) -> None:
    """At once, and not when somebody elsewhere needs it."""
    work = call("make_odd_folder", odd, str(tmp_path / "note"))
    work.add_output(served.declare_temp("tree"), odd)
    with pytest.raises(CallFailed, match=f"its output {text}"):
        served.submit(work).result(60)
    assert (tmp_path / "note").read_text() == "made\n"


def test_a_chain_of_files_runs_without_the_program(served: Manager) -> None:
    """Each call is submitted at once; whoever needs a file waits until it is made."""
    first = served.declare_buffer("chain", "0.txt")
    file = first
    calls: list[Any] = []
    for number in range(5):
        work = call("upper", "in", "out")
        work.add_input(file, "in")
        file = served.declare_temp(f"{number}.txt")
        work.add_output(file, "out")
        calls.append(served.submit(work))
    assert served.submit(call("read", file)).result(60) == "CHAIN"
    assert all(future.done() for future in calls)


@pytest.mark.parametrize("well", [True, False])
def test_a_file_may_be_made_by_a_call_that_waits_for_others(served: Manager, well: bool) -> None:
    """It is not lost because the manager does not know yet what will make it; and what fails before ends those that wait."""
    first = served.submit(call("slow", "word" if well else ""))
    work = call("write", first, "out")
    made = served.declare_temp()
    work.add_output(made, "out")
    served.submit(work)
    consumers = [served.submit(call("read", made)), served.submit(call("listed", [made]))]
    if well:
        assert served.fetch_file(made) == b"word"
        assert [consumer.result(60) for consumer in [*consumers, served.submit(call("read", made))]] == ["word", ["word"], "word"]
        return
    with pytest.raises(FileUnavailable, match=rf"file temp \({made.name}\) could not be made: InputFailed: "):
        served.fetch_file(made)
    for consumer in consumers:
        with pytest.raises(InputFailed):
            consumer.result(60)


def test_a_file_can_be_had_where_what_its_call_returned_cannot(served: Manager) -> None:
    """Whether or not somebody has tried to read that."""
    work = call("write_oddly", "out")
    made = served.declare_temp()
    work.add_output(made, "out")
    future = served.submit(work)
    assert served.fetch_file(made) == b"well"
    with pytest.raises(ValueError, match="no number"):
        future.result(60)
    assert served.fetch_file(made) == b"well"


def test_a_file_that_was_lost_with_its_worker_is_made_again(served: Manager, tmp_path: Path, kill_workers: Kill) -> None:
    """By the call that made it."""
    work = call("upper", "in", "out", str(tmp_path / "note"))
    work.add_input(served.declare_buffer("again"), "in")
    result = served.declare_temp()
    work.add_output(result, "out")
    served.submit(work).result(60)
    kill_workers(served)
    assert served.submit(call("read", result)).result(60) == "AGAIN"
    assert (tmp_path / "note").read_text() == "upper\n" * 2


@pytest.mark.parametrize(
    ("function", "error", "text"), [("forget", CallFailed, "its output 'out' is not there"), ("fail", ValueError, "luck")]
)
def test_what_is_not_made_ends_those_that_wait_for_it(served: Manager, function: str, error: type[Exception], text: str) -> None:
    """Those that were submitted before it was known, and later ones."""
    work = call(function, "out")
    result = served.declare_temp("loud.txt")
    work.add_output(result, "out")
    producer = served.submit(work)
    consumers = [served.submit(call("read", result)) for _ in range(3)]
    with pytest.raises(error, match=text):
        producer.result(60)
    for consumer in [*consumers, served.submit(call("read", result))]:
        with pytest.raises(FileUnavailable, match=r"(?s)^file loud.txt \(r-.*\) could not be made: .*('out' is not there|no such luck)"):
            consumer.result(60)


def test_a_cancelled_producer_ends_those_that_wait_for_it(manager: Manager) -> None:
    """Without a pilot nothing has begun."""
    manager.install_library("lib", upper, read)
    work = call("upper", "in", "out")
    work.add_input(manager.declare_buffer("x"), "in")
    result = manager.declare_temp()
    work.add_output(result, "out")
    producer, consumer = manager.submit(work), manager.submit(call("read", result))
    assert producer.cancel()
    with pytest.raises(FileUnavailable, match="could not be made: the call that makes it was not run"):
        consumer.result(60)


def test_a_mini_task_runs_when_its_file_is_first_needed_and_once(served: Manager, tmp_path: Path, kill_workers: Kill) -> None:
    """And again when it is lost."""
    note = tmp_path / "note"
    file = served.declare_minitask(call("table", 7, str(note)))
    assert served.submit(call("listing")).result(60) == []
    assert not note.exists()
    assert [served.submit(call("read", file)).result(60) for _ in range(3)] == ["table 7"] * 3
    assert note.read_text() == "7\n"
    kill_workers(served)
    assert served.submit(call("read", file)).result(60) == "table 7"
    assert note.read_text() == "7\n7\n"


def test_a_mini_task_may_be_made_of_files_and_of_other_mini_tasks(served: Manager, tmp_path: Path) -> None:
    note = str(tmp_path / "note")
    first = served.declare_minitask(call("table", 1, note), "first.txt")
    loud = FunctionCall("lib", "upper", "in", "out")
    loud.add_input(first, "in")
    second = served.declare_temp()
    loud.add_output(second, "out")
    served.submit(loud)
    assert served.submit(call("read", second)).result(60) == "TABLE 1"


def test_a_mini_task_that_fails_ends_what_needs_its_file(served: Manager) -> None:
    file = served.declare_minitask(call("fail", "x"))
    with pytest.raises(FileUnavailable, match=r"(?s)could not be made: .*ValueError: no such luck"):
        served.submit(call("read", file)).result(60)
    file = served.declare_minitask(call("forget", "x"))
    with pytest.raises(FileUnavailable, match="must return the path of that, and returned NoneType"):
        served.submit(call("read", file)).result(60)


def taken(path: Path | str) -> Path | str:
    """A mini task that returns what it did not make."""
    return path


def test_a_mini_task_takes_nothing_that_it_did_not_make(served: Manager, tmp_path: Path) -> None:
    """Not a file of the user's, and not its own input, which is the cache's."""
    served.install_library("takes", taken)
    precious = tmp_path / "precious.csv"
    precious.write_text("mine")
    source = served.declare_buffer("shared", "b.txt")
    for given in (str(precious), source, "../precious.csv", "."):
        with pytest.raises(FileUnavailable, match=r"its output .* is (not in the call's own directory|not there|neither a regular file)"):
            served.submit(call("read", served.declare_minitask(FunctionCall("takes", "taken", given)))).result(60)
    assert precious.read_text() == "mine"
    assert served.submit(call("read", source)).result(60) == "shared"


def killed(folder: str) -> None:
    Path("left").write_text("x" * 1000)
    Path(folder).write_text(os.getcwd())
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_directory_of_a_call_that_dies_goes_too(served: Manager, tmp_path: Path, until: Until) -> None:
    served.install_library("dies", killed)
    work = FunctionCall("dies", "killed", str(tmp_path / "folder"))
    work.add_input(served.declare_buffer("x"), "x")
    with pytest.raises(SlotDied):
        served.submit(work).result(60)
    until("it is gone", lambda: not os.path.exists((tmp_path / "folder").read_text()))


def test_files_that_calls_made_go_when_nobody_holds_them(served: Manager, tmp_path: Path, until: Until) -> None:
    file = served.declare_minitask(call("table", 7, str(tmp_path / "note")))
    assert served.submit(call("read", file)).result(60) == "table 7"
    assert [one["replicas"] for one in served.status()["files"]] == [1]
    del file
    until("it is gone", lambda: served.status()["files"] == [])


WRONG_ROOMS: list[tuple[Callable[[Any, Any], object], str]] = [
    (lambda m, c: c.add_input(m.declare_buffer("x"), "/etc/passwd"), "not in the call's own directory"),
    (lambda m, c: c.add_input(m.declare_buffer("x"), "../x"), "not in the call's own directory"),
    (lambda m, c: c.add_input(m.declare_buffer("x"), ""), "is a path in the call's directory"),
    (lambda m, c: c.add_input("x", "x"), "the first argument is a declared file"),
    (lambda m, c: [c.add_input(m.declare_buffer("x"), "x"), c.add_output(m.declare_temp(), "x")], "has a file of that path already"),
    (lambda m, c: [c.add_output(m.declare_buffer("x"), "x"), m.submit(c)], "an output becomes a file of declare_temp"),
    (lambda m, c: m.submit(FunctionCall("lib", "read", m.declare_temp())), "is made by no call yet"),
    (lambda m, c: m.fetch_file(m.declare_buffer("x")), "only what calls make can be fetched"),
]


@pytest.mark.parametrize(("spoil", "text"), WRONG_ROOMS)
def test_wrong_rooms_are_refused_where_they_are_written(manager: Manager, spoil: Callable[[Any, Any], object], text: str) -> None:
    manager.install_library("lib", read, forget)
    with pytest.raises(UsageError, match=text):
        spoil(manager, call("forget", "x"))


def test_two_calls_cannot_make_one_file(served: Manager) -> None:
    result = served.declare_temp()
    for expected in (None, "an output becomes a file of declare_temp"):
        work = call("make_folder", "out")
        work.add_output(result, "out")
        if expected is None:
            served.submit(work)
        else:
            with pytest.raises(UsageError, match=expected):
                served.submit(work)
