"""Lists of the command line (workers, libraries, calls, files, pilots): filters, tables, JSON lines, pipes, exit statuses."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import windlass
import windlass.manager.server
from windlass.cli import main
from windlass.manager.status import within
from windlass.manual import manual
from windlass.messages import CallList, ListCalls, Message
from windlass.tables import clean, print_table, text_column

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).with_name("windlass"))

Run = Callable[..., tuple[int, str, str]]


def wait_for(path: str) -> None:
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)


def refuse(number: int) -> None:
    raise ValueError(f"no such row: {number}\n\x1b[2Jand more")


@pytest.fixture
def manager(nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[windlass.Manager]:
    """The only manager of its user."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with windlass.Manager(name="lab") as manager:
        yield manager


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("workers")``: exit status, stdout, stderr."""
    monkeypatch.delenv("COLUMNS", raising=False)  # whoever runs the tests may have a terminal of some width

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(words))
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def rows(run: Run, *words: str) -> list[dict[str, Any]]:
    status, text, error = run(*words, "--json")
    assert status == 0, error
    return [json.loads(line) for line in text.splitlines()]


def until(what: str, condition: Callable[[], object], timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


def call(function: str, *args: object, tag: str = "") -> windlass.FunctionCall:
    made = windlass.FunctionCall("lib", function, *args)
    if tag:
        made.set_tag(tag)
    return made


# ---------------------------------------------------------------- with a manager that works


@pytest.fixture
def busy(manager: windlass.Manager, tmp_path: Path) -> Iterator[windlass.Manager]:
    """A manager with one pilot of one slot that runs a call, three calls that wait, and one that has failed."""
    manager.install_library("lib", wait_for, refuse)
    manager.install_library("other", abs)
    file = manager.declare_buffer("what a call needs")
    go = tmp_path / "go"
    with windlass.Factory(manager, "local", cores=1, max_pilots=1, min_pilots=1, pool="mine"):
        failed = manager.submit(call("refuse", 7, tag="early"))
        failed.wait(60)
        futures = [manager.submit(call("wait_for", str(go), tag=f"t{number % 2}")) for number in range(4)]
        # What was sent ahead comes back, as the call before it turns out to be long.
        until("one runs and nothing waits behind it", lambda: manager.status()["calls"]["waiting"] == 3)
        yield manager
        go.touch()
        for future in futures:
            future.wait(60)
    assert file.size > 0


def test_lists_show_what_a_manager_has_and_filters_leave_out_what_does_not_fit(busy: windlass.Manager, run: Run) -> None:
    """Each noun, by the filters that suit it; a filter that fits nothing is an empty list and success."""
    [worker] = rows(run, "workers")
    assert (worker["pool"], worker["state"]) == ("mine", "busy")
    filters = ["--host", worker["host"], "--pool", "mine", "--library", "lib", "--state", "busy"]
    assert [row["id"] for row in rows(run, "workers", *filters)] == [worker["id"]]
    assert rows(run, "workers", "--state", "draining", "--state", "cut") == []
    status, text, _ = run("workers", "--state", "draining")
    assert (status, text) == (0, "no such workers\n")
    status, text, _ = run("workers")
    assert (status, worker["id"] in text, "lib (1 slot)" in text) == (0, True, True)

    libraries = {row["name"]: row for row in rows(run, "libraries")}
    assert (libraries["lib"]["state"], libraries["other"]["state"]) == ("running", "idle")
    assert [row["name"] for row in rows(run, "libraries", "--state", "idle")] == ["other"]
    assert [row["name"] for row in rows(run, "libraries", "--library", "lib")] == ["lib"]
    assert "lib@" in run("libraries")[1]

    [pilot] = rows(run, "pilots", "--host", worker["host"], "--state", "serving")
    assert (pilot["state"], pilot["pilot"]) == ("serving", worker["pilot"])
    for words in (("--pool", "mine", "list"), ("list", "--pool", "mine"), ("--manager", "lab", "list")):
        assert [row["pilot"] for row in rows(run, "pilots", *words)] == [pilot["pilot"]]
    status, text, error = run("logs", worker["pilot"], "--json")
    assert (status, json.loads(text)["pilot"]) == (0, worker["pilot"]), error

    [file] = rows(run, "files")
    assert (file["size"], file["state"]) == (len("what a call needs"), "declared")
    assert rows(run, "files", "--state", "lost") == rows(run, "files", "--level", "forever") == rows(run, "files", "--source", "/no*") == []
    assert run("files")[0] == 0


def test_calls_are_listed_by_state_library_tag_and_number(busy: windlass.Manager, run: Run) -> None:
    """Those that run, the newest that wait, the last that failed, with what is known of each; and a count of the rest."""
    listed = rows(run, "calls")
    assert [row["state"] for row in listed] == ["running", "waiting", "waiting", "waiting", "failed"]
    running, newest, failed = listed[0], listed[1], listed[4]
    assert (running["library"], running["function"], running["tag"], running["attempts"]) == ("lib", "wait_for", "t0", 1)
    assert (running["host"], running["pilot"]) == (os.uname().nodename, rows(run, "pilots")[0]["pilot"])
    assert running["ran"] > 0
    assert newest["call"] > listed[2]["call"] > listed[3]["call"] > running["call"], "the newest first"
    assert (newest["waited"] > 0, newest["host"], newest["ran"]) == (True, "", 0.0)
    assert (failed["function"], failed["error"], failed["outcome"]) == ("refuse", "ValueError: no such row: 7", "raised")
    assert failed["host"] == running["host"]
    assert [row["tag"] for row in rows(run, "calls", "--tag", "t1")] == ["t1", "t1"]
    assert [row["state"] for row in rows(run, "calls", "--host", running["host"])] == ["running", "failed"]
    assert rows(run, "calls", "--library", "other") == []
    assert [row["call"] for row in rows(run, "calls", "--state", "waiting", "--most", "1")] == [newest["call"]]
    status, text, error = run("calls", "--most", "1")
    assert (status, "(1 of 1 at workers, 1 of 3 waiting, 1 of 1 failed; --most N shows more)" in error) == (0, True), error
    assert "no such row: 7" in text
    error = run("calls", "--most", "5")[2]
    assert "(1 of 1 at workers, 3 of 3 waiting, 1 of 1 failed)" in error, "nothing is left to show"


def test_calls_of_programs_that_are_attached_have_their_names_and_numbers(manager: windlass.Manager, run: Run) -> None:
    """A call's number is the one that its program knows it by."""
    manager.install_library("lib", wait_for)
    manager.submit(call("wait_for", "/nowhere"))
    with windlass.attach(manager.connection_file) as attached:
        attached.install_library("lib", wait_for)
        future = attached.submit(call("wait_for", "/nowhere", tag="theirs"))
        until("it has come", lambda: rows(run, "calls", "--tag", "theirs"))
        by_tag = {row["tag"]: row for row in rows(run, "calls")}
        assert (by_tag[""]["call"], by_tag[""]["program"]) == (1, "")
        assert by_tag["theirs"]["call"] == future.call_id
        assert by_tag["theirs"]["program"].startswith("program-")


def test_a_part_of_the_same_process_may_ask_too(manager: windlass.Manager) -> None:
    """By its port, as for the status."""
    answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
    port = manager.open_port("client", "asks", answers.put)
    manager.install_library("lib", abs)
    manager.submit(call("abs", -1))
    port.send(ListCalls(("waiting",)))
    answer = answers.get(timeout=60)
    assert isinstance(answer, CallList)
    assert [row["function"] for row in json.loads(answer.json)["calls"]] == ["abs"]


def test_every_key_of_a_row_is_documented(busy: windlass.Manager, run: Run) -> None:
    """docs/status.md names what programs may count on."""
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/status.md").read_text()))
    for noun in ("pilots", "workers", "libraries", "calls", "files"):
        found = rows(run, noun)
        assert found, noun
        assert {key for row in found for key in row} <= documented, noun


def test_of_more_pilots_and_workers_than_fit_each_can_be_named(busy: windlass.Manager, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were left out for others are there for who asks for them: their story, their log, their host and its calls."""
    [pilot], [worker] = rows(run, "pilots"), rows(run, "workers")

    def crowded(found: dict[str, Any], **more: Any) -> bytes:
        other: dict[str, Any] = {"node": "", "workers": []}
        pilots = [{**row, "pilot": f"other{n}", "job": f"other{n}", **other} for row in found["pilots"] for n in range(2000)]
        workers = [{**row, "id": f"other{n}", "host": "other"} for row in found["workers"] for n in range(4000)]
        return within({**found, "pilots": found["pilots"] + pilots, "workers": workers + found["workers"]}, **more)

    monkeypatch.setattr(windlass.manager.server, "within", crowded)
    assert pilot["pilot"] not in {row["pilot"] for row in rows(run, "pilots")}
    status, text, error = run("pilots", "show", pilot["pilot"])
    assert (status, error) == (0, "")
    assert "serving" in text.partition("story:")[2]
    assert run("logs", pilot["job"])[0] == 0
    assert [row["id"] for row in rows(run, "workers", "--host", worker["host"])] == [worker["id"]]
    assert [row["pilot"] for row in rows(run, "pilots", "--host", worker["host"])] == [pilot["pilot"]]
    assert rows(run, "calls", "--host", worker["host"])
    for noun, option in (("workers", "--library"), ("workers", "--pool"), ("pilots", "--pool"), ("libraries", "--library")):
        status, text, error = run(noun, option, "nosuch")
        assert (status, text.strip()) == (0, f"no such {noun}"), "it may be among those that were left out"
        assert error
    status, text, error = run("pilots", "show", "other1999")
    assert (status, "story" in text) == (0, True)


def test_what_a_reader_does_not_want_is_no_error(busy: windlass.Manager) -> None:
    """``windlass calls | head -1``: one line, no traceback, and the status of a program that SIGPIPE has ended."""
    for words in ("calls", "calls --json", "status", "--help", "workers"):
        ran = subprocess.run(
            ["bash", "-c", f"{COMMAND} {words} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert ran.stdout.strip() in ("0", "141"), words
        assert "Traceback" not in ran.stderr
        assert "Exception" not in ran.stderr
    # Closed before anything is written.
    code = "import os, sys; os.close(1); r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.execv(sys.argv[1], sys.argv[1:])"
    ran = subprocess.run(
        [sys.executable, "-c", code, COMMAND, "status", "--json"], stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stderr) == (141, "")


def test_rows_are_whole_where_nobody_has_a_width(busy: windlass.Manager) -> None:
    """``grep`` sees the row, and not a part of it."""
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    ran = subprocess.run([COMMAND, "workers"], capture_output=True, text=True, timeout=60, check=True, env=env)
    lines = ran.stdout.splitlines()
    assert len(lines) == 2
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_colours_that_are_asked_for_make_no_terminal_of_a_pipe(
    variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As CI and profiles of shells do: rows are whole all the same."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv(variable, "1")
    print_table([{"reason": "why " * 100}], [text_column("reason")])
    assert len(capsys.readouterr().out.splitlines()) == 2
    explain = "Closed"
    assert main(["explain", explain]) == 0
    assert manual().named(explain).text in capsys.readouterr().out  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]


# ---------------------------------------------------------------- wrong words


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("workers --state idel", "there is no state of workers 'idel'; did you mean 'idle'?"),
        ("libraries --state gone", "there is no state of libraries 'gone'; known: failed, idle, removed, running, waiting"),
        ("calls --state queued", "there is no state of calls 'queued'"),
        ("files --state her", "did you mean 'here'?"),
        ("files --level work", "there is no level of files 'work'; did you mean 'worker' or 'workflow'?"),
        ("workers --library lbi", "there is no library 'lbi' of this manager; did you mean 'lib'?"),
        ("calls --library lbi", "there is no library 'lbi' of this manager; did you mean 'lib'?"),
        ("libraries --library lbi", "did you mean 'lib'?"),
        ("workers --pool x", "there is no pool 'x' of this manager"),
        ("workers --host x", "there is no host 'x' of this manager"),
        ("calls --host x", "there is no host 'x' of this manager"),
        ("pilots --host x", "there is no host 'x' of this manager"),
        ("logs x", "there is no pilot 'x'"),
        ("completion bsh", "there is no shell 'bsh'; did you mean 'bash' or 'zsh'?"),
    ],
)
def test_a_filter_that_names_what_there_is_not_is_refused(words: str, text: str, manager: windlass.Manager, run: Run) -> None:
    """With status 2 and near names: an empty list would be taken for an answer."""
    manager.install_library("lib", abs)
    status, out, error = run(*words.split())
    assert (status, out) == (2, "")
    assert text in error


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    """Tags, names and errors come from anybody's program."""
    assert clean("plain ümlaut 漢") == "plain ümlaut 漢"
    assert clean("a\x1b[2Jb\rc\x07\nd") == "a?[2Jb?c?\nd"
