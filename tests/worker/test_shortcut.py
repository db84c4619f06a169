"""Rules of `windlass.worker.shortcut`: what calls get as TMPDIR is short enough for sockets, wherever the scratch folder is."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass.worker import shortcut
from windlass.worker.shortcut import MOST, Shortcut

#: With the largest numbers that a user, a process and an instance may have.
NAME = f"windlass-scratch-4294967295-0c4842e1-4026531836-4194304-31536000000-{'a' * 16}"
BELOW = "i999999-9999/tmp"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder as short as that of HTCondor for a job."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="condor-execute-dir_") as folder:
        yield Path(folder)


def made(base: Path) -> tuple[Path, Shortcut, list[str]]:
    """A scratch folder with its link, and what was announced."""
    (folder := base / NAME / BELOW).mkdir(parents=True)
    told: list[str] = []
    link = Shortcut(str(base / NAME), told.append)
    assert (Path(link.path) / BELOW).samefile(folder)
    return base / NAME, link, told


def test_the_link_is_beside_the_folder_and_leads_there_wherever_that_is_mounted(short: Path) -> None:
    """A job's own folder goes with the job, and with it the link."""
    folder, link, told = made(short)
    assert Path(link.path).parent == short
    assert os.readlink(link.path) == folder.name
    assert len(f"{link.path}/{BELOW}") <= MOST
    assert link.trouble == ""
    assert told == [link.path]
    link.remove()
    assert list(short.iterdir()) == [folder]


def test_a_folder_that_lies_deep_has_its_link_elsewhere(tmp_path: Path) -> None:
    folder, link, told = made(tmp_path / ("deep" * 20))
    try:
        assert os.path.dirname(link.path) == "/tmp"
        assert os.readlink(link.path) == str(folder)
        assert len(f"{link.path}/{BELOW}") <= MOST
        assert told == [link.path]
    finally:
        link.remove()
    assert not os.path.lexists(link.path)
    assert folder.exists()


def test_where_no_link_can_be_made_the_folder_does_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls make sockets."""
    monkeypatch.setattr(shortcut, "PLACES", (str(tmp_path / "none"), "/nonexistent"))
    folder, link, _ = made(tmp_path / ("deep" * 20))
    assert link.path == str(folder)
    assert "AF_UNIX path too long" in link.trouble
    link.keep()
    link.remove()
    assert folder.exists()


def test_links_that_are_not_followed_are_none(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounts may say so (nosymfollow); the next place may be better."""
    followed = os.path.isdir

    def isdir(path: str) -> bool:
        return followed(path) and not path.startswith(str(short))

    monkeypatch.setattr(os.path, "isdir", isdir)
    folder, link, told = made(short)
    assert os.path.dirname(link.path) == "/tmp"
    assert told[1:] == [link.path]
    link.remove()
    assert list(short.iterdir()) == [folder]


def test_a_link_that_was_cleaned_away_is_there_again_and_one_in_use_is_never_old(short: Path) -> None:
    """Cleaners look at no locks for links."""
    folder, link, _ = made(short)
    os.unlink(link.path)
    link.keep()
    assert os.readlink(link.path) == folder.name
    os.utime(link.path, (0.0, 0.0), follow_symlinks=False)
    link.keep()
    assert os.lstat(link.path).st_mtime > time.time() - 60


def test_what_others_made_in_its_place_is_let_alone(short: Path) -> None:
    """Whose it is, the worker sees when it looks after its folders."""
    _, link, _ = made(short)
    os.unlink(link.path)
    Path(link.path).mkdir()
    link.keep()
    link.remove()
    assert Path(link.path).is_dir()
