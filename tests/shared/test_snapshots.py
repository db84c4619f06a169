"""Snapshots: where modules live, what goes into the archive, and that unpacking is safe."""

# Functions and values of any type are what is tested here, and what a module keeps to itself.
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportPrivateUsage=false

from __future__ import annotations

import importlib.util
import io
import math
import os
import subprocess
import sys
import textwrap
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.shared.kept import Kept

import windlass
from windlass import snapshots
from windlass.errors import UsageError
from windlass.homes import BY_VALUE, INSTALLED, LOCAL, home_of
from windlass.manager.journal import _MAGIC
from windlass.messages import ObjectName, ObjectRef
from windlass.objects import content_name

Write = Callable[[str, str], Path]


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) or str(tmp_path) in str(
            getattr(sys.modules[name], "__path__", "")
        ):
            del sys.modules[name]


@pytest.fixture
def write(folder: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return path

    return write


@pytest.fixture
def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process, as a slot, unpacks snapshots."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(snapshots, "call_code_folder", str(tmp_path / "code"))
    monkeypatch.setattr(snapshots, "library_code", ())
    monkeypatch.setattr(snapshots, "_brought", {})
    return tmp_path / "code"


@pytest.fixture
def top() -> str:
    """A module name of this test's own: homes and snapshots are remembered by name."""
    return f"mine_{os.urandom(4).hex()}"


def names_in(archive: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(archive)).namelist()


def read_in(archive: bytes, name: str) -> str:
    return zipfile.ZipFile(io.BytesIO(archive)).read(name).decode()


@pytest.mark.parametrize(
    "name", ["sys", "math", "json", "json.decoder", "os.path", "numpy", "numpy.linalg", "pytest", "windlass", "wsgiref"]
)
def test_the_standard_library_installed_packages_and_windlass_are_installed(name: str) -> None:
    assert home_of(name) == INSTALLED


def test_modules_that_nobody_else_can_import_go_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))
    for name in ("__main__", "__mp_main__", "made_by_hand", "no_such_module", "", __name__):
        assert home_of(name) == BY_VALUE


def test_a_part_of_a_compiled_module_is_where_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """pybind11 and nanobind make such, without a file: ``jaxlib._jax.pytree``. Its classes are the compiled module's, and cannot travel."""
    for name in ("msgspec._core.part", "msgspec._core.part.more", "msgspec.part", "msgspec.part.more"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert (home_of("msgspec._core.part"), home_of("msgspec._core.part.more")) == (INSTALLED, INSTALLED)
    assert (home_of("msgspec.part"), home_of("msgspec.part.more")) == (BY_VALUE, BY_VALUE), "made by hand, as anybody may"


def test_a_module_on_the_programs_path_is_local_imported_or_not(write: Write, top: str) -> None:
    write(f"{top}.py", "")
    assert home_of(top) == LOCAL
    importlib.import_module(top)
    assert home_of(top) == LOCAL


def test_a_module_of_the_same_name_as_another_file_goes_by_value(write: Write, top: str, tmp_path: Path) -> None:
    """What an import would find elsewhere is another module."""
    write(f"{top}.py", "")
    other = tmp_path / "other.py"
    other.write_text("")
    spec = importlib.util.spec_from_file_location(top, other)
    assert spec is not None
    module = sys.modules[top] = importlib.util.module_from_spec(spec)
    assert module.__file__ == str(other)
    assert home_of(top) == BY_VALUE


def test_what_lies_in_a_site_packages_folder_is_installed(write: Write, folder: Path, top: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"lib/site-packages/{top}/__init__.py", "")
    monkeypatch.syspath_prepend(folder / "lib" / "site-packages")
    assert home_of(top) == INSTALLED


def test_an_editable_install_is_local(write: Write, folder: Path, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its finder, as setuptools makes it, maps the name to the source tree."""
    path = write(f"checkout/src/{top}/__init__.py", "")

    class EditableFinder:
        @classmethod
        def find_spec(cls, name: str, path_: object = None, target: object = None) -> Any:
            return (
                importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)]) if name == top else None
            )

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, EditableFinder])
    assert home_of(top) == LOCAL
    importlib.import_module(top)
    (ref,) = snapshots.snapshots_of([top], kept.put)
    assert names_in(kept.archives[ref.name]) == [f"{top}/__init__.py"]


def test_a_package_goes_whole_without_caches_and_hidden_files(write: Write, folder: Path, top: str, kept: Kept) -> None:
    left_out = [".git/config", ".secret", "__pycache__/x.pyc", "venv/x.py", "env/pyvenv.cfg", "env/lib.py", "old.py~", "node_modules/a.js"]
    left_out += ["run.journal/lock", "run.journal/log", "run.journal/objects/b3-1"]
    like_one = ["sub/lock", "sub/log", "sub/objects/__init__.py"]  # as a journal has, and yet none
    for name in ("__init__.py", "sub/__init__.py", "sub/deep.py", "data/table.csv", *like_one, *left_out):
        write(f"{top}/{name}", _MAGIC.decode() if name == "run.journal/log" else "")
    os.mkfifo(folder / top / "data" / "log")
    (folder / top / "link.py").symlink_to("sub/deep.py")
    (folder / top / "sub" / "circle").symlink_to("..", target_is_directory=True)
    (folder / top / "dangling").symlink_to("nowhere")
    (ref,) = snapshots.snapshots_of([top], kept.put)
    assert names_in(kept.archives[ref.name]) == [
        f"{top}/{name}" for name in ("__init__.py", "data/table.csv", "link.py", "sub/__init__.py", "sub/deep.py", *like_one)
    ]


def test_the_same_source_has_the_same_name_wherever_and_whenever(write: Write, top: str, kept: Kept) -> None:
    path = write(f"{top}.py", "x = 1\n")
    first = snapshots.snapshots_of([top], kept.put)
    os.utime(path, (1, 1))
    assert snapshots.snapshots_of([top], kept.put, max_age=0) == first
    assert len(kept.archives) == 1


def test_changed_source_has_another_name(write: Write, top: str, kept: Kept) -> None:
    write(f"{top}/__init__.py", "x = 1\n")
    first = snapshots.snapshots_of([top], kept.put)
    write(f"{top}/more.py", "y = 1\n")
    assert snapshots.snapshots_of([top], kept.put, max_age=1e9) == first
    second = snapshots.snapshots_of([top], kept.put, max_age=0)
    assert second != first
    write(f"{top}/__init__.py", "x = 22\n")
    assert snapshots.snapshots_of([top], kept.put, max_age=0) not in (first, second)


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("way", ["truncated", "moved away", "half written"])
def test_a_file_that_is_just_being_saved_is_taken_when_it_is_whole(
    write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch, imported: bool, way: str
) -> None:
    """Editors truncate a file and write it, or move it away and write a new one: all calls of the next second would have half of it."""
    path = write(f"{top}.py", "x = 1\n")
    if imported:
        importlib.import_module(top)
    (first,) = snapshots.snapshots_of([top], kept.put)
    rests: list[str] = []

    def rest() -> None:
        rests.append(way)
        importlib.invalidate_caches()
        if len(rests) < 2:
            assert home_of(top) == LOCAL
            path.write_text("x = 1\ny = 22\n"[: 9 + len(rests)])  # more and more of it
        elif len(rests) == 2:
            path.write_text("x = 1\ny = 22\n")

    monkeypatch.setattr(snapshots, "_let_rest", rest)
    if way == "moved away":
        path.unlink()
    else:
        path.write_text("" if way == "truncated" else "x = 1\ny")
    edits = snapshots.edits
    (second,) = snapshots.snapshots_of([top], kept.put, max_age=0)
    assert read_in(kept.archives[second.name], f"{top}.py") == "x = 1\ny = 22\n"
    assert set(kept.archives) == {first.name, second.name}
    assert len(rests) == 3
    assert snapshots.edits == edits + 1
    assert snapshots.snapshots_of([top], kept.put, max_age=0) == (second,)
    assert len(rests) == 3


def test_one_thread_looks_and_others_go_on_with_what_was_known(write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would wait as long."""
    path = write(f"{top}.py", "x = 1\n")
    first = snapshots.snapshots_of([top], kept.put)
    meanwhile: list[tuple[ObjectRef, ...]] = []

    def rest() -> None:
        assert not meanwhile
        monkeypatch.setattr(snapshots, "_let_rest", lambda: None)
        meanwhile.append(snapshots.snapshots_of([top], kept.put, max_age=1e-9))
        monkeypatch.setattr(snapshots, "BEARABLE", 1e-9)
        meanwhile.append(snapshots.snapshots_of([top], kept.put, max_age=1e-9))

    monkeypatch.setattr(snapshots, "_let_rest", rest)
    path.write_text("x = 1\ny = 22\n")
    second = snapshots.snapshots_of([top], kept.put, max_age=0)
    assert meanwhile == [first, second], "what is older than bearable nobody has"
    assert second != first
    assert snapshots.snapshots_of([top], kept.put, max_age=0) == second


def test_a_file_that_is_gone_is_gone(write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(f"{top}.py", "x = 1\n")
    snapshots.snapshots_of([top], kept.put)
    path.unlink()
    rests: list[None] = []
    monkeypatch.setattr(snapshots, "_let_rest", lambda: rests.append(None))
    assert snapshots.snapshots_of([top], kept.put, max_age=0) == ()
    assert home_of(top) == BY_VALUE
    assert len(rests) == 1


def test_an_edit_that_was_undone_while_it_was_looked_at_is_none(
    write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(f"{top}.py", "x = 1\n")
    first, moved = snapshots.snapshots_of([top], kept.put), path.with_name("moved")
    path.rename(moved)
    monkeypatch.setattr(snapshots, "_let_rest", lambda: moved.rename(path))
    edits = snapshots.edits
    assert snapshots.snapshots_of([top], kept.put, max_age=0) == first
    assert snapshots.edits == edits


def test_data_that_changes_all_the_time_is_not_waited_for(write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a log that the program writes beside its modules."""
    write(f"{top}/__init__.py", "")
    write(f"{top}/run.log", "")
    snapshots.snapshots_of([top], kept.put)
    monkeypatch.setattr(snapshots, "_let_rest", lambda: pytest.fail("it waited"))
    write(f"{top}/run.log", "more")
    (ref,) = snapshots.snapshots_of([top], kept.put, max_age=0)
    assert read_in(kept.archives[ref.name], f"{top}/run.log") == "more"


def test_source_that_changes_without_end_is_taken_as_it_is(write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(f"{top}.py", "x = 1\n")
    snapshots.snapshots_of([top], kept.put)
    rests: list[None] = []

    def rest() -> None:
        rests.append(None)
        path.write_text("x" * len(rests))

    monkeypatch.setattr(snapshots, "_let_rest", rest)
    path.write_text("")
    pauses: list[float] = []
    for number in range(1, 7):
        assert len(snapshots.snapshots_of([top], kept.put, max_age=0)) == 1
        assert len(rests) == number * snapshots.LOOKS
        known = snapshots._snapshots[top]
        pauses.append(snapshots._pause(known.unrested))
        snapshots.snapshots_of([top], kept.put)
        assert len(rests) == number * snapshots.LOOKS, "it is left alone for a while"
        known.looked_at = 0.0
    assert pauses == [1, 2, 4, 8, 8, 8]
    assert snapshots.LOOKS * snapshots.REST < 1.0, "a program's loop waits for it"
    monkeypatch.setattr(snapshots, "_let_rest", lambda: None)
    snapshots.snapshots_of([top], kept.put, max_age=0)
    assert snapshots._snapshots[top].unrested == 0


@pytest.mark.parametrize("has_one_too", [False, True])
def test_a_module_stays_where_it_was_imported_from_when_the_program_goes_elsewhere(tmp_path: Path, has_one_too: bool) -> None:
    """A notebook's %cd, with "" on the path, which is another folder then; that may have a module of the same name."""
    program = """
    import os, sys

    from windlass import snapshots
    from windlass.homes import LOCAL, home_of
    from windlass.messages import ObjectName, ObjectRef
    from windlass.objects import content_name

    def taken():
        return snapshots.snapshots_of(["helpers", "parts"], lambda data: ObjectRef(ObjectName(content_name(data)), len(data)), max_age=-1)

    assert "" in sys.path
    import helpers, parts
    before = taken()
    assert len(before) == 2
    os.chdir(sys.argv[1])
    assert taken() == before
    assert snapshots.edits == 0
    import parts.late
    assert home_of("parts.late") == LOCAL
    """
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "parts", there):
        folder.mkdir(parents=True)
    for name in ("helpers.py", "parts/__init__.py", "parts/late.py"):
        (here / name).write_text("text = 'mine'\n")
    if has_one_too:
        (there / "helpers.py").write_text("text = 'of another'\n")
    words = [sys.executable, "-c", textwrap.dedent(program), str(there)]
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_local_modules_that_the_source_imports_come_along(write: Write, top: str, kept: Kept) -> None:
    write(f"{top}.py", f"import json, numpy\ndef late():\n    from {top}_b.deep import x\n")
    write(f"{top}_b/deep.py", f"import {top}_c\nimport {top}\nimport no_such_module\nfrom . import sibling\n")
    write(f"{top}_c.py", "this is no Python\n")
    refs = snapshots.snapshots_of([top], kept.put)
    assert [names_in(kept.archives[ref.name]) for ref in refs] == [[f"{top}.py"], [f"{top}_b/deep.py"], [f"{top}_c.py"]]


def test_a_folder_without_python_files_is_no_package(write: Write, top: str, kept: Kept) -> None:
    """Or ``import data`` in a branch that never runs would send a folder of data that happens to lie there."""
    write(f"{top}/table.csv", "")
    write(f"{top}_main.py", f"try:\n    import {top}\nexcept ImportError:\n    pass\n")
    assert home_of(top) == BY_VALUE
    assert len(snapshots.snapshots_of([f"{top}_main"], kept.put)) == 1
    write(f"{top}_space/code.py", "")
    assert home_of(f"{top}_space") == LOCAL


def test_too_many_files_are_refused(write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_FILES", 2)
    for name in ("__init__", "a", "b"):
        write(f"{top}/{name}.py", "")
    with pytest.raises(UsageError, match="200 MB or 2 files"):
        snapshots.snapshots_of([top], kept.put)


def test_installed_and_unknown_modules_have_no_snapshot(kept: Kept) -> None:
    assert snapshots.snapshots_of(["numpy", "windlass", "no_such_module", "__main__", "math"], kept.put) == ()


def test_large_files_are_left_out_and_too_much_in_all_is_refused(
    write: Write, folder: Path, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(snapshots, "MAX_TOTAL_BYTES", 250)
    write(f"{top}/__init__.py", "")
    write(f"{top}/huge.bin", "x" * 101)
    for number in range(2):
        write(f"{top}/part{number}.bin", "x" * 100)
    (ref,) = snapshots.snapshots_of([top], kept.put, max_age=0)
    assert f"{top}/huge.bin" not in names_in(kept.archives[ref.name])
    write(f"{top}/part2.bin", "x" * 100)
    with pytest.raises(UsageError, match=rf"'{top}' has too many files .* 0 MB or 20000 files; among the largest: .*/part\d.bin \(0 MB\)"):
        snapshots.snapshots_of([top], kept.put, max_age=0)


def test_what_is_left_out_for_its_size_is_told_once(
    write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The program finds it, calls do not, and their error names a folder of the worker's."""
    monkeypatch.setattr(snapshots, "MAX_FILE_BYTES", 100)
    write(f"{top}/__init__.py", "")
    for name in ("weights.pt", "table.csv"):
        write(f"{top}/{name}", "x" * 101)
    for number in range(2):
        snapshots.snapshots_of([top], kept.put, max_age=0)
        write(f"{top}/more.py", f"x = {number}")
    [told] = [record.getMessage() for record in caplog.records]
    assert f"module '{top}' goes to workers without what is over 0 MB: {top}/table.csv (0 MB), {top}/weights.pt (0 MB); " in told
    write(f"{top}/later.bin", "x" * 101)
    snapshots.snapshots_of([top], kept.put, max_age=0)
    assert f": {top}/later.bin (0 MB); " in caplog.records[1].getMessage()


def test_large_shared_libraries_are_code(write: Write, top: str, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there is room for: extension modules with symbols in them have a hundred megabytes."""
    monkeypatch.setattr(snapshots, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(snapshots, "MAX_TOTAL_BYTES", 400)
    write(f"{top}/__init__.py", "x = 1\n")
    for name in ("_core.cpython-311-x86_64-linux-gnu.so", "libs/libcuda.so.12", "libs/libmore.so"):
        write(f"{top}/{name}", "x" * 150)
    write(f"{top}/z.bin", "x" * 90)  # what went before goes still
    (ref,) = snapshots.snapshots_of([top], kept.put)
    assert names_in(kept.archives[ref.name]) == [
        f"{top}/{name}" for name in ("__init__.py", "_core.cpython-311-x86_64-linux-gnu.so", "libs/libcuda.so.12", "z.bin")
    ]


def test_unpacked_source_is_imported_with_submodules_and_data_files(write: Write, top: str, kept: Kept, tmp_path: Path) -> None:
    write(f"{top}/__init__.py", "")
    write(f"{top}/sub/deep.py", "from pathlib import Path\ntext = (Path(__file__).parent / 'data.txt').read_text()\n")
    write(f"{top}/sub/data.txt", "the data")
    tool = write(f"{top}/tool.sh", "#!/bin/sh\n")
    tool.chmod(0o755)
    (ref,) = snapshots.snapshots_of([top], kept.put)
    code = """
        import sys
        from windlass import snapshots
        snapshots.use(snapshots.unpack(sys.stdin.buffer.read(), sys.argv[1]))
        module = __import__(sys.argv[2] + ".sub.deep", fromlist=["text"])
        print(sys.path[0] == sys.argv[1], module.text)
    """
    target = tmp_path / "code" / ref.name
    target.parent.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), target, top], input=kept.archives[ref.name], capture_output=True, check=True, cwd="/"
    )
    assert done.stdout.decode().strip() == "True the data"
    assert os.access(target / top / "tool.sh", os.X_OK)
    assert os.listdir(target.parent) == [ref.name]


class Sent:
    """A program that sends modules to a slot, which is this process; it has edited them in between."""

    def __init__(self) -> None:
        self.archives: dict[str, bytes] = {}

    def __call__(self, *texts: tuple[str, str]) -> list[ObjectName]:
        names: list[ObjectName] = []
        for name, text in texts:
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w") as archive:
                archive.writestr(name, text)
            names.append(ObjectName(content_name(out.getvalue())))
            self.archives[names[-1]] = out.getvalue()
        snapshots.install_all(names, [self.archives[name] for name in names])
        return names


def test_of_a_module_that_comes_with_calls_the_text_that_came_last_is_used(slot: Path, folder: Path, top: str) -> None:
    """Also when an edit is undone, and by others that came with calls and have imported it."""
    sent = Sent()
    user = (f"{top}_user.py", f"from {top} import answer\n")
    for number in (1, 22, 1):
        sent((f"{top}.py", f"answer = {number}\n"), user)
        assert importlib.import_module(f"{top}_user").answer == importlib.import_module(top).answer == number
        same = sys.modules[top]
        sent((f"{top}.py", f"answer = {number}\n"))
        assert importlib.import_module(top) is same
    assert len([path for path in sys.path if path.startswith(str(slot))]) == 2


def test_a_library_keeps_its_text_of_a_module_whatever_comes_with_calls(
    slot: Path, folder: Path, top: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent()
    (name,) = sent((f"{top}/__init__.py", "answer = 1\n"))
    monkeypatch.setattr(snapshots, "library_code", (ObjectRef(name, 1),))
    monkeypatch.setattr(snapshots, "_brought", {})
    first = importlib.import_module(top)
    sent((f"{top}/__init__.py", "answer = 22\n"), (f"{top}_user.py", "number = 1\n"))
    assert importlib.import_module(f"{top}_user").number == 1
    sent((f"{top}_user.py", "number = 22\n"))
    assert importlib.import_module(f"{top}_user").number == 22
    assert importlib.import_module(top) is first


def archive_of(*names: str, mode: int = 0o100644) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.external_attr = mode << 16
            archive.writestr(info, "text")
    return out.getvalue()


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py", "a//b.py", "a/./b.py", "..", "a\\..\\b.py", "folder/"])
def test_an_archive_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is no plain file below its folder; nothing was unpacked"):
        snapshots.unpack(archive_of("good.py", name), tmp_path / "code" / "x")
    assert not list((tmp_path / "code").glob("*"))
    assert sorted(os.listdir(tmp_path)) == ["code"]


def test_an_archive_with_a_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no plain file"):
        snapshots.unpack(archive_of("link", mode=0o120777), tmp_path / "x")


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"no zip", lambda data: data.replace(b"text", b"tExt")])
def test_a_damaged_archive_is_refused_and_leaves_nothing(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="damaged and was not unpacked"):
        snapshots.unpack(damage(archive_of("a.py")), tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_what_is_unpacked_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(archive_of("a.py"))
    folder = snapshots.unpack(path, tmp_path / "x")
    path.unlink()
    assert snapshots.unpack(path, tmp_path / "x") == folder


def test_windlass_never_ships_itself(kept: Kept) -> None:
    assert windlass.__file__ is not None
    assert "site-packages" not in windlass.__file__ or home_of("windlass") == INSTALLED
    assert home_of(np.__name__) == home_of(math.__name__) == INSTALLED
