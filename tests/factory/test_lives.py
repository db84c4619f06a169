"""What a factory is called that was given no name: as in its last life, if that was killed and submitted the same."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from windlass import locks
from windlass.factory.lives import left_behind, made_up, steady_name
from windlass.factory.pool import NAME


def test_a_name_is_made_up_and_no_other_has_it(tmp_path: Path) -> None:
    with steady_name(tmp_path, "slurm", "script") as first, steady_name(tmp_path, "slurm", "script") as second:
        assert first.name is not None
        assert second.name is not None
        assert NAME.match(first.name)
        assert first.name.startswith("slurm-")
        assert first.name != second.name
        assert not first.goes_on
        assert not second.goes_on


def killed(folder: Path, submits: str = "script") -> str:
    """The name that one had."""
    program = """
    import pathlib, sys
    from windlass.factory.lives import steady_name
    with steady_name(pathlib.Path(sys.argv[1]), "slurm", sys.argv[2]) as life:
        print(life.name, flush=True)
        sys.stdin.read()
    """
    words = [sys.executable, "-c", "if True:" + program, str(folder), submits]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        name = one.stdout.readline().strip()
        with steady_name(folder, "slurm", submits) as beside:
            assert beside.name != name
            beside.end()
        one.kill()
    return name


def test_the_next_life_of_one_that_was_killed_goes_on_under_its_name(tmp_path: Path) -> None:
    name = killed(tmp_path)
    with steady_name(tmp_path, "slurm", "script") as after:
        assert (after.name, after.goes_on) == (name, True)
        with steady_name(tmp_path, "slurm", "script") as beside:
            assert (beside.name == name, beside.goes_on) == (False, False)
            beside.end()
        after.end()
    with steady_name(tmp_path, "slurm", "script") as anew:
        assert (anew.name == name, anew.goes_on) == (False, False)


def test_who_submits_something_else_begins_anew(tmp_path: Path) -> None:
    """As where it was killed for an option that was wrong."""
    name = killed(tmp_path)
    with steady_name(tmp_path, "slurm", "another script") as other:
        assert (other.name == name, other.goes_on) == (False, False)
    with steady_name(tmp_path, "slurm", "script") as same:
        assert (same.name, same.goes_on) == (name, True)


def test_of_two_the_one_that_was_killed_is_followed(tmp_path: Path) -> None:
    with steady_name(tmp_path, "slurm", "script") as first:
        name = killed(tmp_path)
        first.end()
    with steady_name(tmp_path, "slurm", "script") as after:
        assert (after.name, after.goes_on) == (name, True)


def test_what_did_not_end_in_order_and_is_another_is_told(tmp_path: Path) -> None:
    """An upgrade changes what is submitted, too."""
    name = killed(tmp_path)
    with steady_name(tmp_path, "slurm", "another script") as other:
        assert left_behind(tmp_path) == [name]
        other.end()
    with steady_name(tmp_path, "slurm", "script"):
        assert left_behind(tmp_path) == []


def test_a_name_is_no_longer_than_names_may_be() -> None:
    assert NAME.match(made_up("p" * 64))


def test_where_nothing_can_be_written_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "pwrite", full)
    with steady_name(tmp_path, "slurm", "script") as life:
        assert life == (None, False, None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_read_is_of_nobody(tmp_path: Path) -> None:
    killed(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"slurm-\xff\n../x")
    with steady_name(tmp_path, "slurm", "script") as life:
        assert life.name is not None
        assert NAME.match(life.name)
        assert not life.goes_on


def test_where_there_are_no_locks_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "lock", refuse)
    with steady_name(tmp_path, "slurm", "script") as life:
        assert life == (None, False, None)
