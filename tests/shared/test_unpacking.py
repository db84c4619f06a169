"""Archives: every kind unpacked as it was packed, hostile and broken ones refused, and nothing left of those."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.shared.modeless import mounted

from windlass.errors import BadTree, CacheFull, UsageError
from windlass.folders import remove_tree
from windlass.trees import scan
from windlass.unpacking import unpack


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "lib" / "deep").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    (root / "lib" / "a b\nc").write_bytes(os.urandom(2_500_000))
    Path(os.fsdecode(os.fsencode(root) + b"/\xff")).write_bytes(b"")
    (root / "run").write_bytes(b"#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "lib" / "deep" / "link").symlink_to("../../run")
    (root / "lib64").symlink_to("lib")
    (root / ("long" * 50)).write_bytes(b"a name over a hundred bytes")
    return root


@pytest.fixture
def into(tmp_path: Path) -> Iterator[Path]:
    """Where to unpack; after a failure nothing may be there or beside it."""
    (tmp_path / "place").mkdir()
    yield tmp_path / "place" / "into"
    assert set(os.listdir(tmp_path / "place")) <= {"into"}


def written(path: Path, mode: str, form: int = tarfile.PAX_FORMAT) -> tarfile.TarFile:
    """A tar archive to add to, in any of tarfile's modes."""
    opener: Any = tarfile.open
    opened: tarfile.TarFile = opener(path, mode, format=form, **({"preset": 0} if mode == "w:xz" else {}))
    return opened


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644, content: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info, content


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_archive_is_unpacked_as_it_was_packed(tree: Path, into: Path, tmp_path: Path, mode: str, form: int) -> None:
    """Names of any bytes, modes, links, empty folders, and times of files, which Python's caches of bytecode need."""
    archive = tmp_path / "archive"
    with written(archive, mode, form) as tar:
        tar.add(tree, arcname=".")
    assert unpack(archive, into) == scan(tree).size
    assert scan(into).name == scan(tree).name
    assert abs((into / "run").stat().st_mtime - (tree / "run").stat().st_mtime) < 1


@pytest.mark.parametrize("name", ["PKG-INFO", "BZh91AY"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_archive_is_one_whatever_its_first_member_is_called(into: Path, tmp_path: Path, name: str, form: int) -> None:
    """It begins with that name, which is also how a zip or what bzip2 has compressed begins."""
    with written(tmp_path / "archive", "w", form) as tar:
        tar.addfile(member(name)[0])
    unpack(tmp_path / "archive", into)
    assert os.listdir(into) == [name]


def test_a_zip_archive_is_unpacked_with_modes_and_links(into: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.mkdir("folder")
        for name, mode, content in (
            ("folder/run", stat.S_IFREG | 0o4755, b"x" * 3_000_000),
            ("é \n", stat.S_IFREG | 0o640, b"2"),
            ("link", stat.S_IFLNK | 0o777, b"folder/run"),
        ):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            zipped.writestr(info, content)
        other = zipfile.ZipInfo("plain")
        other.create_system, other.external_attr = 0, 0x20  # from MS-DOS
        zipped.writestr(other, b"3")
    assert unpack(archive, into) == 3_000_002
    assert (into / "folder" / "run").stat().st_mode & 0o7777 == 0o755
    assert (into / "é \n").stat().st_mode & 0o7777 == 0o640
    assert (into / "plain").stat().st_mode & 0o7777 == 0o644
    assert os.readlink(into / "link") == "folder/run"


def test_zstd_is_read_where_a_library_is_and_else_says_what_to_do(tree: Path, into: Path, tmp_path: Path) -> None:
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("there is no zstd here to pack with")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tree, arcname=".")
    subprocess.run([program, "-q", tmp_path / "a.tar", "-o", tmp_path / "a.tar.zst"], check=True)
    if any(importlib.util.find_spec(name) for name in ("compression", "zstandard", "pyzstd")):
        unpack(tmp_path / "a.tar.zst", into)
        assert scan(into).name == scan(tree).name
    else:
        with pytest.raises(BadTree, match="is compressed with zstd, and this Python cannot read that; pack it with gzip or xz, or install"):
            unpack(tmp_path / "a.tar.zst", into)


def test_hard_links_and_later_members_mean_what_tar_means(into: Path, tmp_path: Path) -> None:
    """Through a link to a link as well; the later of two members with one path counts."""
    archive = packed(
        tmp_path / "a.tar",
        member("a", content=b"old"),
        member("hard", tarfile.LNKTYPE, "./a"),
        member("a", content=b"newer"),
        member("soft", tarfile.SYMTYPE, "hard"),
        member("both", tarfile.LNKTYPE, "soft"),
        member("hard", tarfile.LNKTYPE, "hard"),
        member("f", tarfile.DIRTYPE, mode=0o755),
        member("f/x"),
        member("./f/", tarfile.DIRTYPE, mode=0o700),
        member("changed", tarfile.SYMTYPE, "a"),
        member("changed", content=b"a file now"),
    )
    unpack(archive, into)
    assert (into / "a").read_bytes() == b"newer"
    assert (into / "hard").read_bytes() == b"old"
    assert os.readlink(into / "both") == "hard"
    assert (into / "f").stat().st_mode & 0o777 == 0o700
    assert not (into / "changed").is_symlink()
    assert (into / "changed").read_bytes() == b"a file now"


def test_hard_links_are_copies_where_there_are_none(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tar", member("a", content=b"old"), member("b", tarfile.LNKTYPE, "a"), member("a", content=b"newer"))
    with mounted(tmp_path / "without") as folder:
        assert unpack(archive, folder / "into") == 11
        assert [(folder / "into" / name).read_bytes() for name in ("a", "b")] == [b"newer", b"old"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_name_that_the_file_system_does_not_take_is_the_archives_fault(into: Path, tmp_path: Path, kind: str) -> None:
    """Of 258 bytes."""
    made = {
        "folder": member("字" * 86, tarfile.DIRTYPE),
        "file": member("字" * 86),
        "link": member("字" * 86, tarfile.SYMTYPE, "x"),
    }
    with pytest.raises(BadTree, match=r"a\.tar has 字+, which cannot be made here: File name too long; nothing of it is kept"):
        unpack(packed(tmp_path / "a.tar", member("x"), made[kind]), into)


def test_a_name_in_a_zip_that_is_no_text_is_the_archives_fault(into: Path, tmp_path: Path) -> None:
    """It says that it is UTF-8, and is not."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("é", b"")
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(BadTree, match=r"cannot be unpacked: .*can't decode byte"):
        unpack(tmp_path / "a.zip", into)


HOSTILE = {
    "absolute": ([member("/tmp/windlass-was-here")], "has the path /tmp/windlass-was-here, which could lead out of the tree"),
    "up": ([member("../was-here")], "has the path ../was-here, which could lead out"),
    "up inside": ([member("a/../../was-here")], "which could lead out"),
    "absolute link": ([member("a", tarfile.SYMTYPE, "/etc/passwd")], "has a link a that leads out of it, to /etc/passwd"),
    "link up": (
        [member("d", tarfile.DIRTYPE), member("d/a", tarfile.SYMTYPE, "../../x")],
        "has a link d/a that leads out of it, to ../../x",
    ),
    "link by link": (
        [member("d/up", tarfile.SYMTYPE, ".."), member("a", tarfile.SYMTYPE, "d/up/../etc")],
        "has a link a that leads out of it",
    ),
    "through a link": ([member("d", tarfile.SYMTYPE, "."), member("d/x")], "has something below d, which is no folder in it"),
    "through a file": ([member("d"), member("d/x")], "has something below d, which is no folder in it"),
    "folder for link": ([member("d", tarfile.SYMTYPE, "."), member("d", tarfile.DIRTYPE)], "has d as a folder and as something else"),
    "link for folder": ([member("d", tarfile.DIRTYPE), member("d", tarfile.SYMTYPE, "e")], "has d as a folder and as something else"),
    "hard link out": ([member("a", tarfile.LNKTYPE, "/etc/passwd")], "has the path /etc/passwd, which could lead out"),
    "hard link up": ([member("a", tarfile.LNKTYPE, "../x")], "which could lead out"),
    "hard link to nothing": ([member("a", tarfile.LNKTYPE, "b")], "has a hard link a to b, which is not in it before"),
    "device": ([member("null", tarfile.CHRTYPE)], "has null, which is a device or a pipe"),
    "pipe": ([member("fifo", tarfile.FIFOTYPE)], "has fifo, which is a device or a pipe"),
    "no target": ([member("a", tarfile.SYMTYPE, "")], "has a link a that points nowhere"),
    "no name": ([member(".")], "has a member without a name"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tar_archive_is_refused_and_nothing_is_left(into: Path, tmp_path: Path, case: str) -> None:
    members, text = HOSTILE[case]
    archive = packed(tmp_path / "a.tar", member("good", content=b"x"), *members)
    with pytest.raises(BadTree, match=text):
        unpack(archive, into)
    assert not into.exists()
    assert not Path("/tmp/windlass-was-here").exists()
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("name", "mode", "content", "text"),
    [
        ("/etc/x", stat.S_IFREG, b"", "which could lead out"),
        ("../x", stat.S_IFREG, b"", "which could lead out"),
        ("../x/", stat.S_IFDIR, b"", "which could lead out"),
        ("a", stat.S_IFLNK, b"/etc/passwd", "has a link a that leads out of it"),
        ("a", stat.S_IFLNK, b"x" * 5000, "has a link a that points nowhere"),
        ("a", stat.S_IFIFO, b"", "has a, which is a device or a pipe"),
        ("./", stat.S_IFREG, b"", ""),
    ],
)
def test_a_hostile_zip_archive_is_refused(into: Path, tmp_path: Path, name: str, mode: int, content: bytes, text: str) -> None:
    info = zipfile.ZipInfo("placeholder")
    info.filename, info.create_system, info.external_attr = name, 3, (mode | 0o755) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr(info, content)
    if text:
        with pytest.raises(BadTree, match=text):
            unpack(tmp_path / "a.zip", into)
        assert not into.exists()
    else:
        assert unpack(tmp_path / "a.zip", into) == 0


def test_a_link_into_the_tree_by_way_of_others_is_fine(into: Path, tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tar", member("d/e/up", tarfile.SYMTYPE, "../.."), member("a", tarfile.SYMTYPE, "d/e/up/b"), member("b"))
    unpack(archive, into)
    assert (into / "a").exists()


def cut_off(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_archive_that_is_cut_off_is_refused(tree: Path, into: Path, tmp_path: Path, mode: str) -> None:
    with written(tmp_path / "a", mode) as tar:
        tar.add(tree, arcname=".")
    (tmp_path / "a").write_bytes(cut_off((tmp_path / "a").read_bytes()))
    with pytest.raises(BadTree, match=r"cannot be unpacked: .*; is it whole, and tar or zip|is cut off"):
        unpack(tmp_path / "a", into)
    assert not into.exists()


def test_a_tar_archive_that_is_cut_between_two_files_is_refused(into: Path, tmp_path: Path) -> None:
    """tarfile by itself takes that for the archive's end."""
    data = packed(tmp_path / "a.tar", member("a", content=b"x" * 512), member("b", content=b"y")).read_bytes()
    for broken in (data[:1024], data[:1024] + b"j" * 512 + data[1536:]):
        (tmp_path / "a.tar").write_bytes(broken)
        with pytest.raises(BadTree, match="its list of files breaks off or is damaged"):
            unpack(tmp_path / "a.tar", into)
        assert not into.exists()


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_a_wrong_checksum_is_found(into: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "gz":
        packed(path, member("a", content=b"content"))
        path.write_bytes(flipped(gzip.compress(path.read_bytes())))
    else:
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("a", b"content" * 1000)
        path.write_bytes(path.read_bytes().replace(b"content", b"contend", 1))
    with pytest.raises(BadTree, match="cannot be unpacked"):
        unpack(path, into)
    assert not into.exists()


@pytest.mark.parametrize("data", [b"", b"junk" * 1000, b"PK\3\4junk", b"\x1f\x8bjunk", b"BZh9junk", b"\xfd7zXZ\0junk"])
def test_what_is_no_archive_is_refused(into: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(BadTree, match=r"the archive \S+ cannot be unpacked: .*; is it whole, and tar or zip\?"):
        unpack(tmp_path / "a", into)
    assert not into.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_archive_is_refused_or_stays_inside(into: Path, tmp_path: Path, at: int, value: int) -> None:
    """Whatever one byte becomes: no other error, nothing outside."""
    data = bytearray(packed(tmp_path / "a.tar", member("d", tarfile.DIRTYPE, mode=0o755), *HOSTILE_ENOUGH).read_bytes())
    data[at % len(data)] = value
    (tmp_path / "a.tar").write_bytes(data)
    try:
        unpack(tmp_path / "a.tar", into)
    except BadTree:
        assert not into.exists()
    else:
        remove_tree(into)
    assert set(os.listdir(tmp_path)) == {"a.tar", "place"}


HOSTILE_ENOUGH = (member("d/a", content=b"x"), member("d/l", tarfile.SYMTYPE, "a"), member("d/h", tarfile.LNKTYPE, "d/a"))


def test_what_cannot_be_read_says_so(into: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none cannot be read: No such file or directory"):
        unpack(tmp_path / "none", into)
    assert not into.exists()


def test_room_is_asked_for_before_it_is_used(into: Path, tmp_path: Path) -> None:
    """An archive says little of how large it becomes; who unpacks it into a cache is told piece by piece, and may refuse."""
    archive = packed(tmp_path / "a.tar.gz", member("zeros", content=bytes(20_000_000)))
    asked: list[int] = []

    def room(count: int) -> None:
        asked.append(count)
        if sum(asked) > 5_000_000:
            raise CacheFull("no room")

    with pytest.raises(CacheFull, match="no room"):
        unpack(archive, into, room)
    assert max(asked) <= 1 << 20
    assert not into.exists()
    asked = []
    assert unpack(archive, into, asked.append) == sum(asked) == 20_000_000
