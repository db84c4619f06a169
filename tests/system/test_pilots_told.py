"""What people see of pilots: ``windlass pilots`` and ``factory resume``, against real managers, factories and pilots."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.cli import main
from windlass.factory.fake import FakeBackend
from windlass.messages import CANNOT_SERVE

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def manager(nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[windlass.Manager]:
    """The only manager of this user."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with windlass.Manager() as manager:
        yield manager


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("pilots", "list")``: exit status, stdout, stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(list(words))
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def pilots(run: Run, *more: str) -> list[dict[str, Any]]:
    status, text, error = run("pilots", "list", "--json", *more)
    assert status == 0, error
    return [json.loads(line) for line in text.splitlines()]


def until(what: str, condition: Callable[[], object], timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


def test_a_serving_pilot_is_listed_shown_and_its_log_is_read(manager: windlass.Manager, run: Run) -> None:
    with windlass.Factory(manager, "local", cores=1, max_pilots=1, min_pilots=1, log_level="info", pool="mine"):
        until("it serves", lambda: [row["phase"] for row in pilots(run)] == ["serving"])
        [row] = pilots(run)
        assert (row["pool"], len(row["workers"])) == ("mine", 1)
        status, text, _ = run("pilots", "list", "--pool", "mine", "--state", "serving")
        assert (status, row["pilot"] in text) == (0, True)
        assert pilots(run, "--state", "queued") == []
        assert run("pilots", "list", "--pool", "mien")[0] == 2
        status, _, error = run("pilots", "list", "--state", "servin")
        assert (status, "did you mean 'serving'" in error) == (2, True)
        status, text, _ = run("pilots", "show", row["pilot"][:-1])
        assert status == 0
        assert " serving\n" in text
        assert "story:" in text
        status, text, _ = run("pilots", "logs", row["pilot"], "--json")
        assert (status, json.loads(text)["pilot"]) == (0, row["pilot"])
    assert pilots(run) == []
    [ended] = pilots(run, "--ended")
    assert (ended["phase"], ended["failed"]) == ("ended", False)
    assert [step["phase"] for step in ended["story"]][-1] == "ended"


def test_pilots_of_a_node_that_cannot_serve_come_more_seldom_until_it_can(manager: windlass.Manager, run: Run, mounted: Path) -> None:
    """Its disk is full: they connect, and leave."""
    manager.install_library("lib", abs)
    ballast = mounted / "ballast"
    with windlass.Factory(manager, "local", cores=1, max_pilots=1, scratch=str(mounted)) as factory:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        call = manager.submit(windlass.FunctionCall("lib", "abs", -1))
        until("it is told", lambda: "pilots in a row left nodes that cannot serve (pilot" in str(factory.status()["waits"]))
        assert "No space left on device" in str(factory.status()["failure"])
        assert (factory.paused, factory.status()["start_failures"]) == ("", 0)
        assert {(row["failed"], row["exit_status"]) for row in pilots(run, "--ended")} == {(False, CANNOT_SERVE)}
        ballast.unlink()
        assert call.result(timeout=60) == 1


def test_a_pilot_that_died_at_start_tells_its_last_words_and_the_pool_is_resumed(
    manager: windlass.Manager, run: Run, tmp_path: Path
) -> None:
    """In the list, in its page, in its log, in the status, and in the exception of a call; and then it works."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 1\n")
    python.chmod(0o700)
    manager.install_library("lib", abs)
    with windlass.Factory(manager, "local", python=str(python), cores=1, max_pilots=1, max_start_failures=1, pool="mine"):
        call = manager.submit(windlass.FunctionCall("lib", "abs", -1))
        with pytest.raises(windlass.NotPossible, match=r"no such module; when that is mended: windlass factory resume mine"):
            call.result(timeout=30)
        [row] = pilots(run, "--ended")
        assert (row["failed"], row["words"]) == (True, "no such module")
        assert "no such module" in " ".join(run("pilots", "list", "--ended")[1].split())
        assert [one["pilot"] for one in pilots(run, "--state", "failed")] == [row["pilot"]]
        shown = run("pilots", "show", row["pilot"])[1]
        assert "failed before it served" in shown
        assert "exit, exit status 1" in shown
        assert run("pilots", "logs", row["pilot"])[1] == "no such module\n"
        Path(row["log"]).unlink()
        status, text, error = run("pilots", "logs", row["pilot"])
        assert (status, text) == (0, "no such module\n")
        assert "is not here: it is on another machine, or gone; its last words:" in error
        assert "windlass factory resume mine" in " ".join(run("status")[1].split())
        status, _, error = run("factory", "resume", "mne")
        assert (status, "did you mean 'mine'" in error) == (2, True)
        python.write_text(f'#!/bin/sh\nexec {__import__("sys").executable} "$@"\n')
        assert run("factory", "resume", "mine")[:2] == (0, "pool mine goes on\n")
        assert manager.submit(windlass.FunctionCall("lib", "abs", -1)).result(timeout=60) == 1
        assert run("factory", "resume")[:2] == (0, "no pool is paused\n")


def test_a_pilot_that_there_is_not_is_refused_with_near_names(manager: windlass.Manager, run: Run) -> None:
    status, _, error = run("pilots", "show", "17")
    assert status == 2
    assert "there is no pilot '17'" in error


def test_a_log_is_followed_until_its_pilot_has_ended(manager: windlass.Manager, run: Run, tmp_path: Path) -> None:
    """What is added is shown, also after the log was cut for its length."""
    python, go = tmp_path / "python", tmp_path / "go"
    python.write_text(f"#!/bin/sh\necho first\nuntil [ -e {go} ]; do sleep 0.05; done\necho last\n")
    python.chmod(0o700)
    with windlass.Factory(manager, "local", python=str(python), cores=1, max_pilots=1, min_pilots=1, max_start_failures=1):
        until("it writes", lambda: [row for row in pilots(run) if Path(row["log"]).read_text()])
        [row] = pilots(run)
        words = [sys.executable, "-m", "windlass.cli", "pilots", "logs", row["job"], "--follow", "--lines", "1"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            assert following.stdout.readline() == "first\n"
            os.truncate(row["log"], 0)
            with open(row["log"], "a") as log:
                log.write("cut\n")
            assert following.stdout.readline() == "cut\n"
            go.touch()
            assert following.stdout.readline() == "last\n"
            assert following.stdout.read() == ""
            assert following.wait(timeout=30) == 0


def test_a_queued_pilot_has_no_log_yet(manager: windlass.Manager, run: Run) -> None:
    """And it is said so, rather than that a file is missing."""
    with windlass.Factory(manager, FakeBackend(queue_delay=(600.0, 600.0)), max_pilots=1, min_pilots=1, cores=1):
        until("it is queued", lambda: pilots(run, "--state", "queued"))
        [row] = pilots(run)
        assert run("pilots", "logs", row["pilot"]) == (1, "", "windlass: it has not started, so there is no log of it yet\n")
        status, text, _ = run("pilots", "logs", row["pilot"], "--json")
        assert (status, json.loads(text)["lines"], json.loads(text)["why"] != "") == (0, [], True)
        status, _, error = run("pilots", "logs", row["pilot"], "--follow", "--json")
        assert (status, "do not go together" in error) == (2, True)


def test_pilots_of_a_factory_that_has_closed_are_not_shown_as_living(manager: windlass.Manager, run: Run) -> None:
    """Also where it ended them without waiting for the batch system to say so."""
    with windlass.Factory(manager, "local", cores=1, max_pilots=1, min_pilots=1) as factory:
        until("it serves", lambda: pilots(run, "--state", "serving"))
        factory.close(0.0)
        until("it is gone", lambda: pilots(run) == [])
    status, text, _ = run("pilots", "list")
    assert (status, text) == (0, "no pilots; --ended shows 1 that ended\n")
