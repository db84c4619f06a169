"""Commands of a batch system: bounded in time and output, and alone with a clean environment."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from windlass.factory.commands import clean_environment, run_command


def test_status_and_both_outputs_come_back_and_the_text_goes_in() -> None:
    ran = run_command(["/bin/sh", "-c", "cat; echo oh >&2; exit 3"], env={}, timeout=20, text="grüße\n")
    assert (ran.status, ran.stdout, ran.stderr) == (3, "grüße\n", "oh\n")
    assert not ran.timed_out
    assert not ran.cut


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path, gone: Callable[[int], None]) -> None:
    """What it wrote until then is kept; a child that holds its output open makes nobody wait."""
    pid = tmp_path / "pid"
    begun = time.monotonic()
    ran = run_command(["/bin/sh", "-c", f"sleep 100 & echo $! > {pid}; echo here; wait"], env=dict(os.environ), timeout=2.0)
    assert ran.timed_out
    assert ran.stdout == "here\n"
    assert time.monotonic() - begun < 50
    gone(int(pid.read_text()))


@pytest.mark.parametrize("held", ["", ">/dev/null", "2>/dev/null"])
def test_a_command_that_has_ended_has_answered_though_its_output_is_held(tmp_path: Path, gone: Callable[[int], None], held: str) -> None:
    """By what a wrapper has left in the background: each answer would take the whole time, and count as none."""
    pid = tmp_path / "pid"
    ran = run_command(["/bin/sh", "-c", f"sleep 600 {held} & echo $! > {pid}; echo here; exit 3"], env=dict(os.environ), timeout=60.0)
    left = int(pid.read_text())
    os.kill(left, signal.SIGKILL)
    gone(left)
    assert (ran.status, ran.stdout, ran.timed_out) == (3, "here\n", False)


def test_what_comes_through_another_program_after_the_end_is_part_of_the_answer() -> None:
    """As where a wrapper keeps a copy with tee."""
    script = "{ while kill -0 $$ 2>/dev/null; do :; done; echo rows; echo end >&2; } & exit 0"
    ran = run_command(["/bin/sh", "-c", script], env=dict(os.environ), timeout=60.0)
    assert (ran.status, ran.stdout, ran.stderr) == (0, "rows\n", "end\n")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each look for output after the command's end, whether there was any; and no time passes."""
    looks: list[bool] = []
    ended = False
    poll: Callable[[subprocess.Popen[bytes]], int | None] = subprocess.Popen[bytes].poll

    def note_end(process: subprocess.Popen[bytes]) -> int | None:
        nonlocal ended
        status = poll(process)
        ended = status is not None
        return status

    class Noted(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            ready = super().select(timeout)
            if ended:
                looks.append(bool(ready))
            return ready

    monkeypatch.setattr(subprocess.Popen, "poll", note_end)
    monkeypatch.setattr(selectors, "DefaultSelector", Noted)
    monkeypatch.setattr("windlass.factory.commands.time", SimpleNamespace(monotonic=lambda: 0.0))
    return looks


@pytest.mark.parametrize(("timeout", "empty"), [(60.0, 10), (1.0, 2)])
def test_an_answer_is_over_after_so_many_looks_that_find_nothing(
    tmp_path: Path, gone: Callable[[int], None], looks: list[bool], timeout: float, empty: int
) -> None:
    """Not after seconds: a thread that got no turn for some would take what waits in the pipe for nothing."""
    pid = tmp_path / "pid"
    ran = run_command(["/bin/sh", "-c", f"sleep 600 & echo $! > {pid}; echo here; exit 3"], env=dict(os.environ), timeout=timeout)
    left = int(pid.read_text())
    os.kill(left, signal.SIGKILL)
    gone(left)
    assert (ran.status, ran.stdout, ran.cut) == (3, "here\n", False)
    assert looks[-empty:] == [False] * empty
    assert looks.count(False) == empty


@pytest.mark.parametrize(
    ("noise", "timeout", "cut"),
    [
        ("while sleep 0.5; do echo x >&2; done", 30.0, False),  # that is no part of the answer
        ("while sleep 0.05; do echo x; done", 4.0, True),  # nobody knows whether that is
    ],
)
def test_a_command_that_has_ended_has_answered_whatever_is_said_in_its_place(
    tmp_path: Path, gone: Callable[[int], None], noise: str, timeout: float, cut: bool
) -> None:
    """What it has left in the background may speak for ever."""
    pid = tmp_path / "pid"
    ran = run_command(["/bin/sh", "-c", f"{{ {noise}; }} & echo $! > {pid}; echo rows; exit 0"], env=dict(os.environ), timeout=timeout)
    left = int(pid.read_text())
    os.kill(left, signal.SIGKILL)
    gone(left)
    assert (ran.status, ran.stdout.split()[0], ran.cut) == (0, "rows", cut)


def test_a_text_on_stderr_ends_it_at_once() -> None:
    """Some commands say that they cannot go on, and then wait."""
    ran = run_command(
        ["/bin/sh", "-c", "echo 'full, sleeping and retrying' >&2; exec sleep 100"], env=dict(os.environ), timeout=60, stop_at="sleeping"
    )
    assert ran.stopped
    assert not ran.timed_out
    assert ran.status is None


def test_more_output_than_is_kept_is_read_and_dropped() -> None:
    """A command that writes without end neither blocks nor fills the memory."""
    ran = run_command(["/bin/sh", "-c", "head -c 1000000 /dev/zero"], env=dict(os.environ), timeout=60, limit=1000)
    assert ran.status == 0
    assert ran.cut
    assert len(ran.stdout) == 1000


def test_a_command_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        run_command(["/no/such/command"], env={}, timeout=1)


def test_no_folder_for_temporary_files_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a login goes with the login, while a program may go on for days."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert run_command(["/bin/cat"], env={}, timeout=20, text="script").stdout == "script"


def test_a_command_works_in_a_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch refuses all where its folder was removed, as a job's scratch is when that ends."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run_command(["/bin/pwd", "-P"], env={}, timeout=20).stdout == f"{folder}\n"
    folder.rmdir()
    assert run_command(["/bin/pwd", "-P"], env={}, timeout=20).stdout == "/\n"


LIMIT = """
import resource, sys
from windlass import descriptors
from windlass.factory.commands import run_command

def told(unraised):
    return run_command(["/bin/sh", "-c", "ulimit -Sn; ulimit -Hn"], env={}, timeout=20, unraised=unraised).stdout.split()

resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
assert told(True) == ["100", "200"]
descriptors.allow_many()
assert told(False) == ["200", "200"]
assert told(True) == ["100", "200"]
assert run_command(["/bin/sh", "-c", "cat; exit 3"], env={}, timeout=20, text="script", unraised=True).stdout == "script"
for command in (sys.argv[1], "/no/such/sbatch"):
    try:
        run_command([command], env={}, timeout=20, unraised=True)
    except OSError as error:
        print(error)
"""


def test_a_limit_that_was_raised_is_not_handed_on(tmp_path: Path) -> None:
    """sbatch hands it on to jobs, and the first line of each pilot's log would be that its node allows less."""
    nothing = tmp_path / "sbatch"
    nothing.touch()
    ran = subprocess.run([sys.executable, "-c", LIMIT, str(nothing)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = [f"[Errno 13] Permission denied: '{nothing}'", "[Errno 2] No such file or directory: '/no/such/sbatch'"]
    assert ran.stdout.splitlines() == lines


def test_variables_that_change_answers_are_taken_out() -> None:
    """What the shell, or the job that the program itself runs in, says to the batch system is not for our commands."""
    environ = {"SQUEUE_FORMAT": "%i", "SBATCH_ACCOUNT": "x", "SLURM_MEM_PER_CPU": "1", "SLURM_CONF": "/c", "HOME": "/h"}
    assert clean_environment(environ, ("SQUEUE_", "SBATCH_", "SLURM_"), ("SLURM_CONF",), LC_ALL="C") == {
        "SLURM_CONF": "/c",
        "HOME": "/h",
        "LC_ALL": "C",
    }
