"""Exit statuses: docs/command-line.md has a row for each command, and each command keeps to it."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import windlass
from windlass import cli
from windlass.factory.fake import FakeBackend

PAGE = Path(__file__).resolve().parent.parent / "docs" / "command-line.md"
COMMAND = str(Path(sys.executable).with_name("windlass"))


def commands(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[str]:
    """All commands that do something, by their words."""
    below: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            below.update(action.choices)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if path and (not below or parser.get_default("command") is not None):
        yield " ".join(path)
    for name, one in below.items():
        yield from commands(one, (*path, name))


def documented() -> set[str]:
    """The commands of the table."""
    table = PAGE.read_text().partition("| command | 0 | 1 | 2 |")[2].partition("\n\n")[0]
    return {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z -]+)`", row.split("|")[1])}


def exit_of(words: str) -> int:
    """As a shell sees it."""
    try:
        return cli.main(words.split())
    except SystemExit as ended:  # argparse's
        return int(str(ended.code))


@pytest.fixture
def manager(nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[windlass.Manager]:
    """The only manager of its user, with a pilot that waits in a queue."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    with windlass.Manager(name="lab") as manager:
        manager.install_library("lib", abs)
        yield manager


def test_each_command_has_a_row() -> None:
    assert documented() == set(commands(cli._parser()))  # pyright: ignore[reportPrivateUsage]


DONE = (
    *(
        "status",
        "status lab",
        "status --json",
        "status --help",
        "pilots",
        "pilots list",
        "pilots --state failed",
        "workers",
        "workers --state idle",
    ),
    *(
        "libraries",
        "libraries --library lib --json",
        "calls",
        "calls --tag nobody-has-this --json",
        "calls --most 0",
        "files",
        "files --source x",
    ),
    *("factory resume", "factory dry-run local", "factory config show local", "manager list", "version", "--version", "completion bash"),
    *("explain", "explain --json", "explain Closed", "explain docs/troubleshooting.md#closed", "explain no module named windlass --json"),
)
WRONG = (
    *(
        "status nobody",
        "status --port 1",
        "status --watch 0",
        "status lab more",
        "pilots --pool x",
        "pilots show x",
        "logs x",
        "pilots logs x",
    ),
    *("workers --host x", "libraries --library x", "calls --library x", "calls --manager nobody", "files --state x", "files --level x"),
    *("factory", "factory run locl", "factory dry-run locl", "factory config show nobody", "factory clean nobody", "factory resume nobody"),
    *(
        "doctor nobody",
        "manager",
        "manager start 3x",
        "manager stop nobody",
        "manager list x",
        "version x",
        "completion x",
        "completion",
        "nothing",
        "",
    ),
    *("environment", "environment pack --from /nowhere", "demo x", "explain WorkerLost", "explain what nobody ever wrote"),
)


@pytest.mark.parametrize("words", DONE)
def test_what_was_done_is_0(words: str, manager: windlass.Manager, capsys: pytest.CaptureFixture[str]) -> None:
    """Also a list in which there is nothing, and an answer that is no."""
    assert exit_of(words) == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words_and_names_are_2(words: str, manager: windlass.Manager, capsys: pytest.CaptureFixture[str]) -> None:
    """With a text that says so."""
    assert exit_of(words) == 2
    shown = capsys.readouterr()
    assert shown.err or shown.out


def test_without_a_manager_what_asks_one_is_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    for words in (
        "status",
        "status --watch",
        "pilots",
        "workers",
        "libraries",
        "calls",
        "files",
        "logs x",
        "factory resume",
        "manager stop",
    ):
        assert exit_of(words) == 2, words
        assert "no manager of yours is running" in capsys.readouterr().err, words


def test_a_pilot_without_a_log_is_1(manager: windlass.Manager, capsys: pytest.CaptureFixture[str]) -> None:
    """It waits in the queue; as JSON that is an answer, with why."""
    with windlass.Factory(manager, FakeBackend(queue_delay=(600.0, 600.0)), max_pilots=1, min_pilots=1, cores=1):
        pilots: list[str] = []
        while not pilots:
            pilots = [row["pilot"] for row in manager.status()["pilots"]]
        assert exit_of(f"logs {pilots[0]}") == 1
        assert exit_of(f"logs {pilots[0]} --json") == 0
        assert exit_of(f"logs {pilots[0]} --json --follow") == 2
        assert capsys.readouterr().err


def test_what_a_system_refuses_is_1(tmp_path: Path) -> None:
    """A full disk is a failure of the command, not a wrong command line."""
    with open("/dev/full", "w") as full:
        ran = subprocess.run([COMMAND, "version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (1, "windlass: [Errno 28] No space left on device\n")
