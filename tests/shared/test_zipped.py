"""Modules in zip archives on the path: found, read and followed as those in folders, at no cost of each look."""

# What a module keeps to itself is what is tested here.
# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

from __future__ import annotations

import encodings
import importlib
import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.shared.kept import Kept

from windlass import homes, snapshots, zipped
from windlass.homes import BY_VALUE, INSTALLED, LOCAL, home_of


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What is imported from it is forgotten afterwards. The archives there are put on the path by who wants them."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in [name for name in set(sys.modules) - before if name.startswith(("mine_", "colorsys"))]:
        del sys.modules[name]


@pytest.fixture
def top() -> str:
    """A module name of this test's own: homes and snapshots are remembered by name."""
    return f"mine_{os.urandom(4).hex()}"


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One for each time that edited source was waited for."""
    rests: list[str] = []
    monkeypatch.setattr(snapshots, "_let_rest", lambda: rests.append("a rest"))
    return rests


def write(archive: Path, **texts: str) -> Path:
    """``a__b``: b.py in a folder a, which has an entry of its own."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as written:
        for name, text in texts.items():
            *above, _ = parts = name.split("__")
            for folder in above:
                written.writestr(f"{folder}/", "")
            written.writestr("/".join(parts) + ".py", text)
    return archive


@pytest.mark.parametrize("below", ["", "lib/"])
def test_modules_in_a_zip_archive_on_the_path_are_local(below: str, folder: Path, top: str, kept: Kept) -> None:
    """As those of a program that `python -m zipapp` made: nodes have none of them."""
    archive = folder / "program.pyz"
    package = {
        "__init__.py": "",
        "deep/__init__.py": "",
        "deep/shapes.py": "from .. import more",
        "more.py": "",
        "table.csv": "1,2",
        "old.pyc": "",
    }
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("__main__.py", "")
        written.writestr(f"{below}{top}_one.py", f"import {top}\n")
        written.writestr(f"{below}{top}_compiled.pyc", "")
        for name, text in package.items():
            written.writestr(f"{below}{top}/{name}", text)
    sys.path.insert(0, str(archive / below))
    assert home_of(f"{top}_one") == LOCAL
    importlib.import_module(f"{top}_one")
    assert home_of(f"{top}_one") == home_of(top) == home_of(f"{top}.deep.shapes") == LOCAL
    assert home_of(f"{top}_compiled") == home_of(f"{top}_other") == BY_VALUE
    snapshots.snapshots_of([f"{top}_one"], kept.put)
    listed = [
        {name: archived.read(name) for name in archived.namelist()}
        for archived in (zipfile.ZipFile(io.BytesIO(data)) for data in kept.archives.values())
    ]
    whole = {f"{top}/{name}": text.encode() for name, text in package.items() if not name.endswith(".pyc")}
    assert sorted(listed, key=len) == [{f"{top}_one.py": f"import {top}\n".encode()}, whole]


def counted(monkeypatch: pytest.MonkeyPatch, of: Any, name: str) -> list[object]:
    """What that function is called with from now on."""
    calls: list[object] = []
    whole: Callable[[Any], Any] = getattr(of, name)

    def call(argument: object) -> object:
        calls.append(argument)
        return whole(argument)

    monkeypatch.setattr(of, name, call)
    return calls


@pytest.mark.parametrize("imported", [False, True])
def test_the_directory_of_an_archive_is_read_once(
    imported: bool, folder: Path, top: str, kept: Kept, rests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a program of 60 packages with 12,000 files took 3 s each second, in which it could submit nothing."""
    tops = [f"{top}_{number}" for number in range(20)]
    texts = {one: f"import {following}\n" for one, following in zip(tops, [*tops[1:], "sys"], strict=True)}
    archive = write(folder / "program.pyz", **texts)
    sys.path.insert(0, str(archive))
    if imported:
        importlib.import_module(tops[0])
    read = counted(monkeypatch, zipped, "_places")
    assert sorted(kept.texts(tops[0])) == sorted(texts.values())
    assert sorted(kept.texts(tops[0])) == sorted(texts.values())
    assert read == [str(archive)]


def test_of_an_archive_that_is_built_anew_only_what_has_another_text_is_taken_anew(
    folder: Path, top: str, kept: Kept, rests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = [f"{top}_{number}" for number in range(5)]
    texts = dict.fromkeys(tops, "x = 1\n")
    archive = write(folder / "program.pyz", **texts)
    sys.path.insert(0, str(archive))
    assert kept.texts(*tops) == ["x = 1\n"] * 5
    read, made = counted(monkeypatch, zipped, "_places"), counted(monkeypatch, snapshots, "_zipped")
    write(archive, **texts | {tops[3]: "x = 2\n"})
    os.utime(archive, (1, 1))
    assert kept.texts(*tops) == ["x = 1\n"] * 3 + ["x = 2\n", "x = 1\n"]
    assert (len(read), len(made), len(rests)) == (1, 1, 1)


@pytest.mark.parametrize("imported", [False, True])
def test_a_namespace_package_in_an_archive_is_local_imported_or_not(imported: bool, folder: Path, top: str, kept: Kept) -> None:
    sys.path.insert(0, str(write(folder / "program.pyz", **{f"{top}__one": "x = 1\n"})))
    if imported:
        importlib.import_module(f"{top}.one")
    assert home_of(top) == home_of(f"{top}.one") == LOCAL
    assert kept.texts(top) == ["x = 1\n"]


@pytest.mark.parametrize("imported", [False, True])
def test_a_standard_library_in_an_archive_is_installed(imported: bool, folder: Path, top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules travelled, and stood before the node's own. Others in it are the program's, as is one of such a name elsewhere."""
    archive = write(folder / "python.zip", colorsys="x = 1\n", **{top: "x = 1\n"})
    sys.path.insert(0, str(archive))
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    if imported:
        importlib.import_module("colorsys")
        importlib.import_module(top)
    with monkeypatch.context() as patch:
        patch.setattr(encodings, "__file__", f"{archive}/encodings/__init__.py")
        assert (home_of("colorsys"), home_of(top)) == (INSTALLED, LOCAL)
    homes._homes.pop("colorsys")
    assert home_of("colorsys") == LOCAL


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("way", ["half written", "written while it is read"])
def test_of_an_archive_that_is_just_being_written_what_it_had_is_taken(
    imported: bool, way: str, folder: Path, top: str, kept: Kept, rests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module would be left out, and calls of the next second end with ModuleNotFoundError."""
    archive = write(folder / "program.pyz", **{top: "x = 1\n", f"{top}_other": "y = 1\n"})
    sys.path.insert(0, str(archive))
    if imported:
        importlib.import_module(top)
    assert home_of(top) == home_of(f"{top}_other") == LOCAL
    assert kept.texts(top, f"{top}_other") == ["x = 1\n", "y = 1\n"]
    write(archive, **{top: "x = 22\n", f"{top}_other": "y = 1\n"})
    whole = archive.read_bytes()
    places = zipped._places
    if way == "half written":
        archive.write_bytes(whole[:40])
    else:

        def then_written(path: str) -> Any:
            found = places(path)
            archive.write_bytes(whole[:40])
            return found

        monkeypatch.setattr(zipped, "_places", then_written)
    assert kept.texts(top, f"{top}_other") == ["x = 1\n", "y = 1\n"]
    assert home_of(top) == home_of(f"{top}_other") == LOCAL
    monkeypatch.setattr(zipped, "_places", places)
    archive.write_bytes(whole)
    assert kept.texts(top) == ["x = 22\n"]


def test_what_was_never_read_of_an_archive_is_read_when_that_is_whole(folder: Path, top: str, kept: Kept) -> None:
    archive = write(folder / "program.pyz", **{top: "x = 1\n"})
    sys.path.insert(0, str(archive))
    importlib.import_module(top)
    assert home_of(top) == LOCAL
    whole = archive.read_bytes()
    archive.write_bytes(whole[:40])
    assert kept.texts(top) == []
    archive.write_bytes(whole)
    assert kept.texts(top) == ["x = 1\n"]


def test_an_archive_that_the_path_names_from_where_the_program_was_stays_where_it_is(
    folder: Path, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module was LOCAL for good and its snapshot empty from then on."""
    write(folder / "lib.zip", **{top: "x = 1\n"})
    monkeypatch.chdir(folder)
    sys.path.insert(0, "lib.zip")
    importlib.import_module(top)
    assert kept.texts(top) == ["x = 1\n"]
    monkeypatch.chdir("/")
    assert kept.texts(top) == ["x = 1\n"]
    assert home_of(top) == LOCAL


@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_file_in_an_archive_is_read(packed: int, folder: Path) -> None:
    """Also of one that has a line before it, as zipapp writes it."""
    archive = folder / "program.pyz"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as written:
        written.writestr("größe/a.py", "a = 1\n" * 100)
        written.writestr("empty.py", "")
    archive.write_bytes(b"#!/usr/bin/env python3\n" + out.getvalue())
    assert zipped.read(f"{archive}/größe/a.py") == b"a = 1\n" * 100
    assert zipped.read(f"{archive}/empty.py") == b""
    with pytest.raises(zipped.Unreadable, match=r"cannot read b.py in .*: it is not there any more"):
        zipped.read(f"{archive}/b.py")
    archive.write_bytes(archive.read_bytes().replace(b"a = 1", b"a = 2") if packed == zipfile.ZIP_STORED else archive.read_bytes()[:60])
    with pytest.raises(zipped.Unreadable, match="its check sum is another" if packed == zipfile.ZIP_STORED else "is no zip archive"):
        zipped.read(f"{archive}/größe/a.py")


def test_an_archive_on_the_path_that_is_damaged_has_nothing(folder: Path, top: str) -> None:
    (folder / "damaged.pyz").write_bytes(b"PK no archive")
    place = str(folder / "damaged.pyz" / f"{top}.py")
    assert not zipped.exists(place)
    with pytest.raises(zipped.Unreadable, match="is no zip archive that can be read"):
        zipped.read(place)
    with pytest.raises(FileNotFoundError):
        zipped.read(str(folder / "none.pyz" / f"{top}.py"))
