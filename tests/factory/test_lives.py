"""What a factory is called that was given no name: as in its last life, unless that lives."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from windlass import locks
from windlass.factory.lives import pools_name, steady_name
from windlass.factory.pool import NAME


def test_it_is_called_by_its_pools() -> None:
    assert pools_name(["slurm"]) == "slurm"
    assert pools_name(["short", "gpu"]) == "short-gpu"
    long = [f"pool-{number}" for number in range(30)]
    assert NAME.match(pools_name(long))
    assert pools_name(long) != pools_name([*long, "more"])


def test_the_next_life_has_the_name_of_the_last_and_two_at_a_time_have_two(tmp_path: Path) -> None:
    with steady_name(tmp_path, ["slurm"]) as first, steady_name(tmp_path, ["slurm"]) as second, steady_name(tmp_path, ["gpu"]) as other:
        assert (first, second, other) == ("slurm", "slurm-2", "gpu")
    with steady_name(tmp_path, ["slurm"]) as again:
        assert again == "slurm"


def test_one_that_was_killed_leaves_its_name(tmp_path: Path) -> None:
    program = """
    import pathlib, sys
    from windlass.factory.lives import steady_name
    with steady_name(pathlib.Path(sys.argv[1]), ["slurm"]) as name:
        print(name, flush=True)
        sys.stdin.read()
    """
    words = [sys.executable, "-c", "if True:" + program, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "slurm\n"
        with steady_name(tmp_path, ["slurm"]) as beside:
            assert beside == "slurm-2"
        first.kill()
        first.wait(30)
        with steady_name(tmp_path, ["slurm"]) as after:
            assert after == "slurm"


def test_a_name_that_was_given_holds_and_is_nobody_elses(tmp_path: Path) -> None:
    """Also where its earlier life is there still: to take over from that it is given."""
    with steady_name(tmp_path, ["gpu"], "slurm") as given, steady_name(tmp_path, ["slurm"]) as found:
        assert (given, found) == ("slurm", "slurm-2")
        with steady_name(tmp_path, ["gpu"], "slurm") as again:
            assert again == "slurm"


def test_where_there_are_no_locks_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "lock", refuse)
    with steady_name(tmp_path, ["slurm"]) as name, steady_name(tmp_path, ["slurm"], "night") as given:
        assert (name, given) == (None, "night")
