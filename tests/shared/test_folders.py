"""Removing trees that resist, and the errors of writing into folders."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from windlass.errors import CacheFull, Damaged
from windlass.folders import remove_tree, writing


def test_any_tree_can_be_removed(tmp_path: Path) -> None:
    """Files, links (not what they point to), and folders deeper than recursion goes; what is absent is removed."""
    top = tmp_path / "top"
    (tmp_path / "kept").write_text("kept")
    deep = top
    for _ in range(700):
        deep /= "d"
    deep.mkdir(parents=True)
    (top / "link").symlink_to(tmp_path)
    (top / "d" / "file").touch()
    for path in (top, top, deep):
        remove_tree(path)
    assert not top.exists()
    top.symlink_to(tmp_path)
    remove_tree(top)
    assert os.listdir(tmp_path) == ["kept"]
    remove_tree(os.fsencode(tmp_path / "kept"))
    assert os.listdir(tmp_path) == []


def test_several_may_remove_the_same(tmp_path: Path) -> None:
    """None of them leaves something because another was there first."""
    top = tmp_path / "top"
    for number in range(50):
        (top / str(number)).mkdir(parents=True)
        for each in range(20):
            (top / str(number) / str(each)).touch()
    threads = [threading.Thread(target=remove_tree, args=(top,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not top.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_with_the_kernels_words(number: int) -> None:
    with (
        pytest.raises(
            CacheFull, match=rf"no room in /a/b: {os.strerror(number)}; nothing of it is kept: free some space there, or"
        ) as caught,
        writing("/a/b"),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_stay_what_they_are() -> None:
    """Those of Windlass above all, some of which are OSErrors too."""
    for error in (PermissionError(errno.EACCES, "no"), CacheFull("mine"), Damaged("mine"), ValueError("x")):
        with pytest.raises(type(error)) as caught, writing("/a"):
            raise error
        assert caught.value is error
        assert error.__cause__ is None


def test_a_place_that_is_gone_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(Damaged, match=r"none' was removed while it was written|none was removed while it was written"),
        writing(tmp_path / "none"),
    ):
        (tmp_path / "none" / "x").write_text("x")
