"""Whose it is: what others put under names that they could read counts for nothing, and holds nobody up."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from windlass.ownership import NOBODY, NotOurs, is_ours, kind_of, make_ours, open_ours, require_ours, root_is_nobody, same_host

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make what is another user's")


def test_a_token_that_somebody_else_put_there_proves_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    """A manager's folder has a name that all can read; on other nodes anybody can make one of that name."""
    token = tmp_path / ".token"
    os.mkfifo(token)
    assert not same_host(str(tmp_path), "x")
    token.unlink()
    (tmp_path / "elsewhere").write_text("x")
    token.symlink_to("elsewhere")
    assert not same_host(str(tmp_path), "x")
    token.unlink()
    token.write_text("x")
    assert same_host(str(tmp_path), "x")
    if os.getuid() == 0:
        os.chown(token, NOBODY, NOBODY)
        assert not same_host(str(tmp_path), "x")


def test_only_a_plain_file_of_this_user_is_opened(tmp_path: Path) -> None:
    """Nobody waits for a FIFO, and nothing is left open."""
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        open_ours(path)
    path.write_bytes(b"mine")
    with os.fdopen(open_ours(path), "rb") as file:
        assert file.read() == b"mine"
    before = os.listdir("/proc/self/fd")
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    for kind in ("link", "fifo", "socket", "folder"):
        with pytest.raises(NotOurs):
            open_ours(tmp_path / kind)
    assert os.listdir("/proc/self/fd") == before


@as_root
def test_a_folder_is_made_with_what_is_missing_above_it_and_used_again_if_it_is_ours(tmp_path: Path) -> None:
    """All of it private; a folder that another user made is not used, whatever he allows there."""
    inner = tmp_path / "scratch" / "code"
    require_ours(inner)
    for _ in range(2):
        make_ours(str(inner))
        assert [path.stat().st_mode & 0o777 for path in (inner, inner.parent)] == [0o700] * 2
    os.chown(inner, NOBODY, NOBODY)
    inner.chmod(0o777)
    for look in (make_ours, require_ours):
        with pytest.raises(NotOurs, match=rf"it belongs to another user \(number {NOBODY}\)"):
            look(str(inner))


@pytest.mark.parametrize(
    ("kind", "numbers", "ours"),
    [
        ("nfs4", "         0          0 4294967295\n", True),
        ("nfs", "0 0 4294967295", True),
        ("tmpfs", "0 0 4294967295", False),
        ("", "0 0 4294967295", False),
        ("nfs4", "0 1000 1\n1 100000 65536\n", False),
        ("nfs4", "", False),
    ],
)
def test_what_is_nobodys_is_roots_only_where_servers_do_not_trust_root(kind: str, numbers: str, ours: bool) -> None:
    """On a local disk nobody is somebody else, and in a user namespace it is everybody else."""
    assert root_is_nobody(kind, numbers) is ours


@as_root
def test_what_is_nobodys_on_a_local_disk_is_not_roots(tmp_path: Path) -> None:
    """Services run as nobody, and what they could put into root's place would run as root."""
    os.chown(tmp_path, NOBODY, NOBODY)
    assert kind_of(os.stat(tmp_path).st_dev) not in ("nfs", "nfs4")
    assert not is_ours(os.stat(tmp_path))
