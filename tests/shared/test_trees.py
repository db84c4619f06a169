"""Trees on disk: scanned, streamed in pieces of any size, made again, with whatever names; what changed or was damaged is told."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.errors import BadTree, CacheFull, Damaged, SourceChanged, StoreFull, UsageError
from windlass.folders import remove_tree
from windlass.manifests import MAX_MANIFEST_BYTES, Manifest, TreeEntry
from windlass.trees import FileWriter, TreeStream, TreeWriter, file_name, scan

NOBODY = 65534


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files, folders, modes, links, and names of any bytes."""
    root = tmp_path / "tree"
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty folder").mkdir(mode=0o700)
    (root / "sub" / "data").write_bytes(bytes(range(256)) * 20)
    (root / "sub-file").write_bytes(b"sorts between sub and what is in it")
    (root / "sub" / "deeper" / "none").write_bytes(b"")
    (root / "run me").write_bytes(b"#!/bin/sh\n")
    (root / "run me").chmod(0o4755)
    (root / "line\nbreak").write_bytes(b"1")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_bytes(b"2")
    (root / "sub" / "up").symlink_to("../run me")
    (root / "dangling").symlink_to("nowhere")
    (root / "sub" / "deeper").chmod(0o555)
    return root


def stream_of(root: Path) -> bytes:
    stream = TreeStream(scan(root), root)
    data = stream.read(0, stream.size)
    stream.close()
    assert len(data) == stream.size
    return data


def looks(root: Path) -> dict[bytes, tuple[int, bytes]]:
    """All that is in a tree: path to mode and content or target."""
    found: dict[bytes, tuple[int, bytes]] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            content = b""
            if stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                content = Path(os.fsdecode(path)).read_bytes()
            found[path[len(top) :]] = (mode & ~0o7000, content)
    return found


def test_a_tree_is_made_again_from_its_stream(tree: Path, tmp_path: Path) -> None:
    """Content, modes without setuid, links, empty folders and names of any bytes; the copy has the same name."""
    manifest = scan(tree)
    stream = TreeStream(manifest, tree)
    writer = TreeWriter(tmp_path / "copy", manifest.name)
    while writer.received < stream.size:
        writer.feed(stream.read(writer.received, 1000))
    assert writer.commit() == manifest.name
    assert looks(tmp_path / "copy") == looks(tree)
    assert scan(tmp_path / "copy").name == manifest.name
    assert (tmp_path / "copy" / "run me").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
def test_pieces_of_any_size_give_the_same_stream(tree: Path, tmp_path: Path, step: int) -> None:
    whole = stream_of(tree)
    stream = TreeStream(scan(tree), tree)
    assert b"".join(stream.read(at, step) for at in range(0, stream.size, step)) == whole
    assert stream.read(stream.size, 10) == b""
    writer = TreeWriter(tmp_path / "copy")
    for at in range(0, len(whole), step):
        writer.feed(whole[at : at + step])
    writer.commit()
    assert looks(tmp_path / "copy") == looks(tree)


names = st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
trees = st.recursive(st.binary(max_size=3000), lambda inner: st.dictionaries(names, inner, max_size=5), max_leaves=12)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, trees, max_size=5), st.integers(1, 5000), st.integers(0, 5000))
def test_any_tree_arrives_as_it_was(content: dict[bytes, Any], step: int, cut: int) -> None:
    """Also when another stream goes on where the first was cut."""

    def make(path: bytes, what: Any) -> None:
        if isinstance(what, bytes):
            Path(os.fsdecode(path)).write_bytes(what)
        else:
            os.mkdir(path)
            for name, inner in what.items():
                make(os.path.join(path, name), inner)

    with tempfile.TemporaryDirectory() as name:
        source, copy = Path(name, "source"), Path(name, "copy")
        make(os.fsencode(source), content)
        manifest = scan(source)
        writer = TreeWriter(copy, manifest.name)
        for end in (min(cut, manifest.stream_size), manifest.stream_size):
            stream = TreeStream(manifest, source)
            while writer.received < end:
                writer.feed(stream.read(writer.received, min(step, end - writer.received)))
            stream.close()
        assert writer.commit() == manifest.name
        assert looks(copy) == looks(source)


def test_an_empty_tree_is_a_tree(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    writer = TreeWriter(tmp_path / "copy")
    writer.feed(stream_of(tmp_path / "empty"))
    assert writer.commit() == scan(tmp_path / "empty").name
    assert list((tmp_path / "copy").iterdir()) == []


def test_times_and_owners_are_not_part_of_a_name(tree: Path) -> None:
    before = scan(tree)
    os.utime(tree / "run me", (1, 1))
    after = scan(tree)
    assert before.name == after.name
    assert before.times != after.times


def test_a_file_has_the_name_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    name, status = file_name(tmp_path / "file")
    assert name == "b3-" + blake3.blake3(b"x" * 3_000_000).hexdigest(16)
    assert status.st_size == 3_000_000


def test_what_cannot_be_sent_is_refused_when_it_is_scanned(tmp_path: Path) -> None:
    """Sockets, pipes, links out of the tree; nothing waits for a pipe's writer."""
    root = tmp_path / "t"
    root.mkdir()
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(root / "it"))
        with pytest.raises(BadTree, match=r"t/it is a socket, which cannot go to workers; leave it out of what is declared"):
            scan(root)
    (root / "it").unlink()
    os.mkfifo(root / "it")
    with pytest.raises(BadTree, match="t/it is a pipe"):
        scan(root)
    (root / "it").unlink()
    (root / "it").symlink_to("/etc/passwd")
    with pytest.raises(BadTree, match=r"the tree \S+ has a link it that leads out of it, to /etc/passwd; no worker would have that: put"):
        scan(root)
    with pytest.raises(BadTree, match="null is a device"):
        file_name("/dev/null")
    with pytest.raises(BadTree, match="is a folder"):
        file_name(root)


@pytest.mark.parametrize("path", ["/proc/self/stat", "/proc/self/fdinfo"])
def test_files_that_tell_no_size_are_refused(path: str) -> None:
    """As those of /proc: they would arrive empty."""
    with pytest.raises(UsageError, match=r"/proc/self/\S+ has more in it than the 0 bytes that its file system says"):
        (scan if path.endswith("fdinfo") else file_name)(path)


def test_what_is_not_there_or_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none cannot be read: No such file or directory"):
        scan(tmp_path / "none")
    with pytest.raises(UsageError, match="none cannot be read: No such file or directory"):
        file_name(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is no folder, so it is no directory tree"):
        scan(tmp_path / "file")


@pytest.mark.parametrize("how", ["gone", "longer", "same size", "a link", "cut while it is open"])
def test_a_file_that_is_no_longer_what_was_scanned_is_told(tmp_path: Path, how: str) -> None:
    root = tmp_path / "t"
    root.mkdir()
    file = root / "file"
    file.write_bytes(b"a" * 10_000)
    manifest = scan(root)
    stream = TreeStream(manifest, root)
    start = stream.size - 10_000
    if how == "cut while it is open":
        assert stream.read(start, 10) == b"a" * 10
        os.truncate(file, 100)
    elif how == "longer":
        file.write_bytes(b"a" * 10_001)
    elif how == "same size":
        file.write_bytes(b"b" * 10_000)
        os.utime(file, ns=(0, manifest.times[0] + 1))
    else:
        file.rename(tmp_path / "file")
        if how == "a link":
            file.symlink_to(tmp_path / "file")
    text = (
        "can no longer be read" if how in ("gone", "a link") else "was changed after it was declared; declare it again, and leave it alone"
    )
    with pytest.raises(SourceChanged, match=text):
        stream.read(start + 10, 10_000)
    stream.close()


def test_that_a_file_cannot_be_opened_just_now_is_no_change_of_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads is to ask again."""
    stream = TreeStream(scan(tree), tree)

    def fails(*_args: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fails)
        with pytest.raises(OSError, match="Too many open files") as caught:
            stream.read(0, stream.size)
    assert caught.value.errno == errno.EMFILE
    assert len(stream.read(0, stream.size)) == stream.size
    stream.close()


def test_a_flipped_byte_is_found_in_its_file_or_the_manifest(tree: Path, tmp_path: Path) -> None:
    whole = bytearray(stream_of(tree))
    name = scan(tree).name
    for at in (20, len(whole) - 1):
        whole[at] ^= 1
        writer = TreeWriter(tmp_path / str(at), name)
        with pytest.raises(Damaged, match="was damaged on its way"):
            writer.feed(whole)
        writer.close()
        whole[at] ^= 1


def test_too_few_or_too_many_bytes_are_no_tree(tree: Path, tmp_path: Path) -> None:
    whole = stream_of(tree)
    for number, (data, text) in enumerate(
        [
            (whole[:-1], rf"was cut off after {len(whole) - 1} of {len(whole)} bytes; fetch it again"),
            (whole[:5], r"was cut off after 5 bytes"),
            (whole + b"x", "has more bytes than its manifest says"),
        ]
    ):
        writer = TreeWriter(tmp_path / str(number), scan(tree).name)
        with pytest.raises(Damaged, match=text):  # noqa: PT012 - either may find it
            writer.feed(data)
            writer.commit()
        writer.close()


def test_a_hostile_manifest_makes_nothing(tmp_path: Path) -> None:
    """Not even the folder; and a length that cannot be is not waited for."""
    for entry in (TreeEntry(b"../x", "f", 0o644, 0, bytes(16)), TreeEntry(b"x", "l", target=b"/etc/passwd")):
        encoded = Manifest(0o755, (entry,)).encode()
        with pytest.raises(BadTree):
            TreeWriter(tmp_path / "copy").feed(len(encoded).to_bytes(8, "big") + encoded)
    with pytest.raises(BadTree, match=f"more than {MAX_MANIFEST_BYTES} are not accepted"):
        TreeWriter(tmp_path / "copy").feed(b"\xff" * 8)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_made_from_its_bytes_and_checked(tmp_path: Path) -> None:
    data = b"some content"
    name = "b3-" + blake3.blake3(data).hexdigest(16)
    writer = FileWriter(tmp_path / "good", name)
    writer.feed(data[:5])
    writer.feed(memoryview(data)[5:])
    assert writer.received == len(data)
    assert writer.commit() == name
    assert (tmp_path / "good").read_bytes() == data
    writer = FileWriter(tmp_path / "wrong", name)
    writer.feed(b"other")
    with pytest.raises(Damaged, match=f"file {name} was damaged on its way: 5 bytes came and their name is b3-.*; fetch it again"):
        writer.commit()
    writer = FileWriter(tmp_path / "any", "x3-" + "0" * 32)
    writer.feed(data)
    assert writer.commit() == name


def test_a_full_disk_is_told_as_such(mounted: Path, tmp_path: Path) -> None:
    """For files and for trees, with the kernel's errno."""
    file = FileWriter(mounted / "file")
    with pytest.raises(CacheFull, match=r"no room in \S+/file: No space left on device; nothing of it is kept: free some space") as caught:
        file.feed(bytes(2 << 20))
    assert isinstance(caught.value, StoreFull)
    file.close()
    (mounted / "file").unlink()
    (tmp_path / "t").mkdir()
    for number in range(20):
        (tmp_path / "t" / str(number)).write_bytes(bytes(100_000))
    tree = TreeWriter(mounted / "tree")
    with pytest.raises(CacheFull):
        tree.feed(stream_of(tmp_path / "t"))
    tree.close()


def test_a_place_removed_while_a_tree_is_written_is_told(tree: Path, tmp_path: Path) -> None:
    whole = stream_of(tree)
    writer = TreeWriter(tmp_path / "copy")
    half = scan(tree).stream_size - scan(tree).size
    writer.feed(whole[:half])
    remove_tree(tmp_path / "copy")
    with pytest.raises(Damaged, match="copy was removed while it was written; nothing of it is kept: fetch it again"):
        writer.feed(whole[half:])
    writer.close()


def test_a_folder_without_permission_to_write_is_made_and_removed_by_its_owner() -> None:
    """Not only by root, for whom permissions mean nothing: then the process becomes nobody first."""
    program = f"""if True:
        import os, tempfile
        import blake3
        from windlass.trees import *
        from windlass.folders import remove_tree
        if not os.getuid():
            os.setgroups([])
            os.setgid({NOBODY})
            os.setuid({NOBODY})
        base = tempfile.mkdtemp(prefix="windlass-owner-", dir="/tmp")
        os.makedirs(base + "/s/locked")
        with open(base + "/s/locked/file", "w") as file:
            file.write("x")
        os.chmod(base + "/s/locked/file", 0o400)
        os.chmod(base + "/s/locked", 0o500)
        os.chmod(base + "/s", 0o500)
        manifest = scan(base + "/s")
        writer, stream = TreeWriter(base + "/c"), TreeStream(manifest, base + "/s")
        writer.feed(stream.read(0, stream.size))
        assert writer.commit() == manifest.name == scan(base + "/c").name
        assert os.stat(base + "/c/locked").st_mode & 0o777 == 0o500
        try:
            open(base + "/c/locked/new", "w")
        except PermissionError:
            print("locked")
        remove_tree(base)
        assert not os.path.exists(base)
        """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stdout) == (0, "locked\n"), ran.stderr


def test_a_scan_sets_bits_that_the_owner_needs_to_send_it_on(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "file").touch(mode=0o200)
    if os.getuid() == 0:
        assert [entry.mode for entry in scan(tmp_path / "t").entries] == [0o600]
    else:
        with pytest.raises(UsageError, match="file cannot be read: Permission denied"):
            scan(tmp_path / "t")
