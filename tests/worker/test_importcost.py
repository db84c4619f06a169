"""Which network filesystem imports come from, and how much is read there."""

from __future__ import annotations

import pytest

from windlass.worker.importcost import ImportCost, cost_of, note, own_cost
from windlass.worker.node import is_network

MOUNTS = """
21 1 8:1 / / rw - ext4 /dev/sda1 rw
35 21 0:40 / /home rw - nfs4 server:/home rw
36 21 0:41 / /soft\\040ware rw - fuse.sshfs me@server: rw
"""


def test_files_of_network_filesystems_are_counted() -> None:
    """The one with the most comes first."""
    files = ["/home/me/venv/a.py", "/home/me/venv/b/c.py", "/soft ware/x.so", "/usr/lib/os.py"]
    assert cost_of(files, ["/home/me/venv", "/usr/lib"], {}, MOUNTS) == ImportCost((("nfs4", "/home"), ("fuse.sshfs", "/soft ware")), 3)
    assert cost_of(files[2:], [], {}, MOUNTS) == ImportCost((("fuse.sshfs", "/soft ware"),), 1)
    assert cost_of(files[3:], ["/usr/lib"], {}, MOUNTS) is None


def test_links_of_folders_are_followed() -> None:
    """A venv's folder may be a link to another disk, either way."""
    assert cost_of(["/venv/a/b.py"], ["/venv"], {"/venv": "/home/me/venv"}, MOUNTS) == ImportCost((("nfs4", "/home"),), 1)
    assert cost_of(["/home/me/venv/b.py"], ["/home/me/venv"], {"/home/me/venv": "/scratch"}, MOUNTS) is None


def test_what_is_told_has_the_number_and_the_remedy() -> None:
    assert note(ImportCost((("nfs4", "/home"), ("lustre", "/sw")), 1234)) == (
        "imports come from a network filesystem (nfs4 at /home, lustre at /sw): a start reads 1,234 files there;"
        " windlass environment pack makes them one, read once per node"
    )
    assert note(ImportCost((("nfs4", "/home"),), 3)) == note(None) == ""


@pytest.mark.parametrize("kind", ["nfs", "lustre", "gpfs", "fuse", "fuse.sshfs", "fuse.anything"])
def test_filesystems_of_other_machines(kind: str) -> None:
    assert is_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "tmpfs", "overlay", "fuse.squashfuse", "fuse.fuse-overlayfs", "fuseblk", ""])
def test_filesystems_of_this_machine(kind: str) -> None:
    assert not is_network(kind)


def test_here_it_can_be_asked() -> None:
    """Whatever the answer is: it depends on the machine."""
    cost = own_cost()
    assert cost is None or (is_network(cost.places[0][0]) and cost.files > 0)
