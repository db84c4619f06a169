"""Manifests: what names a tree, and that no hostile manifest is one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.errors import BadTree
from windlass.manifests import Manifest, TreeEntry, decode_manifest, is_file_name, leads_out, show

DIGEST = bytes(16)


def file(path: bytes, size: int = 1, mode: int = 0o644, digest: bytes = DIGEST) -> TreeEntry:
    return TreeEntry(path, "f", mode, size, digest)


def folder(path: bytes, mode: int = 0o755) -> TreeEntry:
    return TreeEntry(path, "d", mode)


def link(path: bytes, target: bytes) -> TreeEntry:
    return TreeEntry(path, "l", target=target)


def decoded(*entries: TreeEntry, mode: int = 0o755) -> Manifest:
    return decode_manifest(Manifest(mode, entries).encode())


def test_what_is_encoded_is_decoded() -> None:
    """Name, size and the stream's size are the same on both ends."""
    entries = (folder(b"a"), file(b"a/x", 5), link(b"a/y", b"../b"), file(b"b", 7, 0o755))
    there = Manifest(0o750, entries)
    here = decode_manifest(there.encode())
    assert (here.mode, here.entries, here.name) == (0o750, entries, there.name)
    assert (here.size, here.stream_size) == (12, 8 + len(there.encode()) + 12)
    assert [entry.path for entry in here.files] == [b"a/x", b"b"]
    assert is_file_name(here.name)
    assert here.name.startswith("t3-")


def test_a_mode_a_target_or_a_digest_changes_the_name() -> None:
    names = {
        Manifest(0o755, entries).name
        for entries in (
            (),
            (file(b"a"),),
            (file(b"a", mode=0o755),),
            (file(b"a", digest=b"1" * 16),),
            (link(b"a", b"b"),),
            (link(b"a", b"c"),),
        )
    }
    assert len(names) == 6


@pytest.mark.parametrize("path", [b"", b"/etc/passwd", b"a/../../b", b"..", b".", b"a//b", b"a/", b"./a", b"a\0b"])
def test_a_path_that_could_lead_out_is_refused(path: bytes) -> None:
    with pytest.raises(BadTree, match="could lead out of the tree; nothing of it is kept"):
        decoded(folder(b"a"), file(path))


@pytest.mark.parametrize(
    "entries",
    [
        (file(b"a"), file(b"a")),
        (file(b"b"), file(b"a")),
        (folder(b"a"), file(b"a")),
    ],
)
def test_a_path_comes_once_and_in_order(entries: tuple[TreeEntry, ...]) -> None:
    with pytest.raises(BadTree, match="a manifest names a twice or out of order"):
        decoded(*entries)


@pytest.mark.parametrize("above", [file(b"a"), link(b"a", b"b"), folder(b"b")])
def test_only_folders_hold_something(above: TreeEntry) -> None:
    """Nothing is written through a link, and no folder comes into being unsaid."""
    entries = sorted((above, file(b"a/x")), key=lambda entry: entry.path)
    with pytest.raises(BadTree, match="a manifest has a/x below something that is no folder of it"):
        decoded(*entries)


@pytest.mark.parametrize(
    "entry",
    [
        file(b"a", -1),
        file(b"a", mode=0o4755),
        file(b"a", mode=0o200),
        file(b"a", digest=b""),
        TreeEntry(b"a", "f", 0o644, 1, DIGEST, b"target"),
        folder(b"a", 0o1777),
        folder(b"a", 0o400),
        TreeEntry(b"a", "d", 0o755, 5),
        link(b"a", b""),
        link(b"a", b"b\0c"),
        TreeEntry(b"a", "l", 0o777, target=b"b"),
    ],
)
def test_facts_that_cannot_be_are_refused(entry: TreeEntry) -> None:
    with pytest.raises(BadTree, match="a manifest has an entry a that cannot be"):
        decoded(entry)


@pytest.mark.parametrize("mode", [0o2755, 0o055, -1])
def test_a_mode_of_the_folder_itself_that_cannot_be_is_refused(mode: int) -> None:
    with pytest.raises(BadTree, match="a manifest gives its folder the mode"):
        decoded(mode=mode)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"junk", msgspec.msgpack.encode([1, 0o755, [[b"a", "s"]]]), msgspec.msgpack.encode([1, 0o755])]
)
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(BadTree, match="a manifest cannot be read"):
        decode_manifest(data)


def test_a_manifest_of_a_later_format_says_so() -> None:
    with pytest.raises(BadTree, match="has format 2; this Windlass reads format 1: use one version everywhere"):
        decode_manifest(msgspec.msgpack.encode([2, 0o755, []]))


@given(st.binary(max_size=60))
def test_no_bytes_do_anything_else_than_being_refused_or_read(data: bytes) -> None:
    try:
        manifest = decode_manifest(data)
    except BadTree:
        return
    assert manifest.encode() == data


@pytest.mark.parametrize(
    ("links", "out"),
    [
        ({b"a": b"b"}, False),
        ({b"a": b"d/../b"}, False),
        ({b"a": b".."}, True),
        ({b"a": b"/etc"}, True),
        ({b"d/a": b"../b"}, False),
        ({b"d/a": b".."}, False),
        ({b"d/a": b"../.."}, True),
        ({b"d/a": b"../../d/b"}, True),
        ({b"a": b"a"}, False),
        ({b"a": b"b", b"b": b"a"}, False),
        # by way of another link: d/e/up is the top, so d/e/up/.. is above it
        ({b"d/e/up": b"../..", b"a": b"d/e/up/.."}, True),
        ({b"d/e/up": b"../..", b"a": b"d/e/up/d"}, False),
        ({b"l": b"d/e", b"a": b"l/../.."}, False),
        ({b"l": b"d/e", b"a": b"l/../../.."}, True),
    ],
)
def test_a_link_out_is_found_also_by_way_of_others(links: dict[bytes, bytes], out: bool) -> None:
    """As the kernel walks, not as the text reads."""
    assert any(leads_out(path, links) for path in links) == out
    if out:
        folders = [folder(b"d"), folder(b"d/e")]
        with pytest.raises(BadTree, match=r"a manifest has a link \S+ that leads out of it, to \S+; no worker would have that"):
            decoded(*sorted((*folders, *(link(*each) for each in links.items())), key=lambda entry: entry.path))


@pytest.mark.parametrize(
    "name", ["", "b3-", "b3-" + "G" * 32, "z3-" + "0" * 32, "b3-/" + "0" * 31, "../" + "0" * 32, "t3-" + "0" * 33, "b3-" + "٣" * 32]
)
def test_a_name_that_could_be_another_path_is_none(name: str) -> None:
    assert not is_file_name(name)


@pytest.mark.parametrize("head", ["b3", "t3", "u3", "x3", "r"])
def test_five_heads_make_names(head: str) -> None:
    assert is_file_name(head + "-" + "0f" * 16)


@pytest.mark.parametrize(
    ("path", "shown"),
    [(b"a/b", "a/b"), (b"two words", "'two words'"), (b"a\nb", r"'a\nb'"), (b"\xff", r"'\udcff'"), ("é", "é"), (b"", "''")],
)
def test_a_path_is_shown_on_one_line(path: bytes | str, shown: str) -> None:
    assert show(path) == shown
