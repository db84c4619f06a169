"""How a pilot is started: the worker's command and the script around it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from windlass.errors import UsageError
from windlass.factory.backend import PilotRequest
from windlass.factory.launch import pilot_script, with_pilot, worker_command
from windlass.factory.pool import PoolConfig
from windlass.messages import PilotId, Resources

MakePool = Callable[..., PoolConfig]
MakeRequest = Callable[..., PilotRequest]


def test_options_of_the_pool_are_said_once_in_the_workers_words(make_pool: MakePool) -> None:
    pool = make_pool(resources=Resources(0.5, 1024, 2), walltime=3600.0, python="python", scratch="/s", log_level="debug", grace=7.5)
    options = "--cores 0.5 --memory 1024 --gpus 2 --walltime 3600 --idle-timeout 120 --grace 7.5 --scratch /s --log-level debug"
    command = shlex.join(with_pilot(worker_command(pool, Path("/m/pilot.json")), PilotId("17+1")))
    assert command == f"python -P -m windlass.worker --connection /m/pilot.json --pool p {options} --pilot 17+1"


def test_a_frozen_program_is_not_started_as_its_own_pilot(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would start pilots in its turn."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(
        UsageError, match="is a frozen program, of which pilots cannot run the Python: give python=, environment= or container="
    ):
        worker_command(make_pool(), Path("p.json"))
    assert worker_command(make_pool(python="/opt/python"), Path("p.json"))[0] == "/opt/python"


def test_a_program_that_embeds_python_says_what_pilots_run(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no python3 is on its PATH there is no name of one; the empty one "cannot be started: Permission denied"."""
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(UsageError, match=r"sys.executable is empty, as in programs that embed Python, .*: give python=, environment="):
        worker_command(make_pool(), Path("p.json"))
    assert worker_command(make_pool(python="/opt/python"), Path("p.json"))[0] == "/opt/python"


def test_what_a_pool_does_not_say_is_not_said(make_pool: MakePool) -> None:
    command = worker_command(make_pool(resources=Resources()), Path("p.json"))
    assert command == (
        sys.executable,
        "-P",
        "-m",
        "windlass.worker",
        "--connection",
        "p.json",
        "--pool",
        "p",
        "--idle-timeout",
        "120",
        "--grace",
        "30",
    )


def test_with_an_environment_the_python_is_the_one_that_the_script_finds(make_pool: MakePool) -> None:
    """It is first on PATH; where that is only the node knows."""
    assert worker_command(make_pool(environment="/e.tar.gz"), Path("p.json"))[:4] == ("python3", "-P", "-m", "windlass.worker")


def test_pilots_of_the_minimum_do_not_leave_for_being_idle(make_pool: MakePool) -> None:
    assert "--idle-timeout" not in worker_command(make_pool(min_pilots=1), Path("p.json"))


def test_the_script_is_what_it_was_when_somebody_last_read_it(make_request: MakeRequest) -> None:
    request = replace(make_request(""), command=("py thon", "-m", "x"), setup=("module load a", "", "b='c'"), env=(("A", "it's"),))
    assert pilot_script(request, pilot="j 1") == (
        "#!/bin/sh\n"
        "# One Windlass pilot of pool p, submission t-1.\n"
        "\n"
        "WINDLASS_PILOT='j 1'\n"
        "export WINDLASS_PILOT\n"
        "\n"
        "A='it'\"'\"'s'\n"
        "export A\n"
        "\n"
        "setup_failed() {\n"
        '    printf \'windlass pilot: this line of setup= failed with status %s: %s\\n\' "$1" "$2" >&2\n'
        "    exit 5\n"
        "}\n"
        "\n"
        "# Each line runs in this shell, so that what it sets is there for the worker.\n"
        "{\n"
        "module load a\n"
        "} || setup_failed \"$?\" 'module load a'\n"
        "{\n"
        "b='c'\n"
        "} || setup_failed \"$?\" 'b='\"'\"'c'\"'\"''\n"
        "\n"
        "# exec: signals of the batch system reach the worker, not a shell that waits for it.\n"
        "exec 'py thon' -m x --pilot \"$WINDLASS_PILOT\"\n"
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(make_request: MakeRequest, tmp_path: Path) -> None:
    script = tmp_path / "pilot.sh"
    script.write_text(pilot_script(make_request("pass", setup=("A=1", "export A")), pilot="j"))
    subprocess.run(["shellcheck", str(script)], check=True)


def test_a_script_without_setup_is_short(make_request: MakeRequest) -> None:
    script = pilot_script(make_request("pass"), pilot="j")
    assert "setup" not in script
    assert script.endswith(f'exec {shlex.join(make_request("pass").command)} --pilot "$WINDLASS_PILOT"\n')
