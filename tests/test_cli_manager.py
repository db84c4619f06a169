"""The noun ``manager`` and the options of the state folder, as words. What they do is in tests/system and tests/slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from windlass.cli import main
from windlass.cli_manager import split_pool_options, state_options
from windlass.errors import UsageError


def test_options_of_the_managers_job_are_told_from_those_of_its_pool() -> None:
    """What is not the command's own is the pool's."""
    own, pool = split_pool_options(
        ["manager", "start", "x", "--in", "slurm", "--walltime", "2d", "--port=9000", "--memory=4GB", "--wait", "5min", "--exclusive"]
    )
    assert own == ["manager", "start", "x", "--in", "slurm", "--port=9000", "--wait", "5min"]
    assert pool == {"walltime": "2d", "memory": "4GB", "exclusive": True}


@pytest.mark.parametrize("words", [["--state-dir", "here"], ["--state-dir=here"]])
def test_the_state_folder_holds_as_long_as_the_command(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wherever it stands; afterwards the environment is what it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINDLASS_STATE_DIR", "/before")
    monkeypatch.delenv("WINDLASS_TRUST_STATE_DIR", raising=False)
    with state_options(["status", *words, "--json", "--trust-state-dir"]) as rest:
        assert rest == ["status", "--json"]
        assert os.environ["WINDLASS_STATE_DIR"] == str(tmp_path / "here")
        assert os.environ["WINDLASS_TRUST_STATE_DIR"] == "1"
    assert os.environ["WINDLASS_STATE_DIR"] == "/before"
    assert "WINDLASS_TRUST_STATE_DIR" not in os.environ


@pytest.mark.parametrize("words", [["status", "--state-dir"], ["status", "--state-dir", "--json"]])
def test_a_state_folder_must_be_named(words: list[str]) -> None:
    with pytest.raises(UsageError, match="--state-dir needs a folder: write --state-dir DIR"), state_options(words):
        pass


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["start", "x", "--cores", "4"], "has no option --cores; options of a pool go with --in POOL"),
        (["start", "x", "--in", "local", "--cores", "4"], "has no option --cores"),
        (["start", "3x"], "'3x' cannot name a manager"),
        (["start", "x", "--in", "slrum"], "did you mean 'slurm'"),
        (["start", "x", "--listen", "nowhere0", "--foreground"], "cannot listen on 'nowhere0'"),
        (["stop", "nosuch"], "no manager 'nosuch'"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With status 2, and no process behind."""
    assert main(["manager", *words]) == 2
    assert text in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["manager", "start", "--help"])
    shown = capsys.readouterr().out
    assert "--in POOL" in shown
    assert "--ready-fd" not in shown
