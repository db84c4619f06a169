"""What goes into a packed environment, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from windlass import environment
from windlass.environment_archive import GzipBlocks, boot_of, head_of, unchecked
from windlass.environment_contents import Interpreter, ask, contents, relocated_script
from windlass.environment_libraries import is_nodes
from windlass.errors import UnknownName, UsageError


class Venv:
    """A venv that is put together by hand."""

    def __init__(self, folder: Path, *options: str) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", *options, folder], check=True, timeout=60)
        self.folder = folder
        [self.site] = folder.glob("lib/python3.*/site-packages")

    def write(self, name: str, text: str = "") -> Path:
        """A file of its packages."""
        path = self.site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def contents(self, *exclude: str) -> dict[str, str]:
        """Names in its folder of packages, in the archive, with what they hold."""
        of = ask(self.folder)
        found = contents(of, exclude).entries
        inside = of.site + "/"
        return {
            name.removeprefix(inside): entry.link or (entry.data.decode() if entry.data is not None else Path(entry.source).read_text())
            for name, entry in found.items()
            if name.startswith(inside)
        }


@pytest.fixture
def venv(tmp_path: Path) -> Venv:
    return Venv(tmp_path / "venv")


def test_packages_are_taken_without_caches_of_others(venv: Venv) -> None:
    venv.write("one/__init__.py", "1")
    venv.write("one/__pycache__/__init__.cpython-38.pyc")
    venv.write("one/data file.txt", "d")
    venv.write("space/two.py", "2")
    assert venv.contents() == {"one/__init__.py": "1", "one/data file.txt": "d", "space/two.py": "2"}


def test_editable_installs_are_taken_from_where_they_are(venv: Venv, tmp_path: Path) -> None:
    """Lines of .pth files and setuptools' finders; links out of the tree are followed, and nothing names the old place."""
    source, mapped = tmp_path / "project" / "src", tmp_path / "mapped"
    (source / "three").mkdir(parents=True)
    (source / "three" / "__init__.py").write_text("3")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "part.py").write_text("part")
    (source / "three" / "part").symlink_to("../../../elsewhere")
    (source / "three" / "again.py").symlink_to("__init__.py")
    (source / "three.egg-info").mkdir()
    (source / "three.egg-info" / "PKG-INFO").write_text("")
    mapped.mkdir()
    (mapped / "__init__.py").write_text("4")
    (tmp_path / "single.py").write_text("5")
    venv.write("three.pth", f"{source}\n")
    venv.write("__editable__.four.pth", "import __editable___four_finder; __editable___four_finder.install()")
    finder = f"from x import y\nMAPPING: dict[str, str] = {{'four': {str(mapped)!r}, 'single': {str(tmp_path / 'single')!r}}}\n"
    venv.write("__editable___four_finder.py", finder)
    venv.write("four-1.dist-info/direct_url.json", "{}")
    venv.write("four-1.dist-info/METADATA", "Name: four")
    assert venv.contents() == {
        "three/__init__.py": "3",
        "three/again.py": "__init__.py",
        "three/part/part.py": "part",
        "four/__init__.py": "4",
        "single.py": "5",
        "four-1.dist-info/METADATA": "Name: four",
    }


def test_of_a_projects_root_only_code_is_taken(venv: Venv, tmp_path: Path) -> None:
    """It may hold gigabytes of data, and the venv itself."""
    project = tmp_path
    for name in ("pyproject.toml", "five/__init__.py", "five/sub/x.py", "data/big.bin", ".git/config", "tool.py", "notes.txt"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    venv.write("five.pth", f"{project}\n")
    assert sorted(venv.contents()) == ["five/__init__.py", "five/sub/x.py", "tool.py"]


def test_an_editable_install_that_is_built_at_import_is_refused(venv: Venv) -> None:
    venv.write("_six_editable.pth", "import _six_editable_loader")
    with pytest.raises(
        UsageError, match=r"_six_editable.pth belongs to an editable install whose builder looks for changes at each import"
    ):
        venv.contents()


def test_other_lines_of_pth_files_stay(venv: Venv) -> None:
    venv.write("x.pth", "# a note\nimport os; os.environ\nbelow\n/not/there\n")
    assert venv.contents() == {"x.pth": "import os; os.environ\nbelow\n"}


def test_what_comes_first_on_the_path_wins(tmp_path: Path) -> None:
    """A venv over another place: whole packages and distributions hide, folders without __init__ are merged."""
    venv, below = Venv(tmp_path / "venv"), tmp_path / "below"
    venv.write("same/__init__.py", "above")
    venv.write("space/one.py", "1")
    venv.write("same-2.dist-info/METADATA", "Name: same")
    for name in ("same/__init__.py", "same/more.py", "space/two.py", "other.py"):
        (below / name).parent.mkdir(parents=True, exist_ok=True)
        (below / name).write_text("below")
    venv.write("below.pth", f"{below}\n")
    assert venv.contents() == {
        "same/__init__.py": "above",
        "space/one.py": "1",
        "space/two.py": "below",
        "other.py": "below",
        "same-2.dist-info/METADATA": "Name: same",
    }


def test_distributions_are_left_out_by_name(venv: Venv) -> None:
    """With all that their own lists name, however the name is spelt."""
    venv.write("big_tool/__init__.py")
    venv.write("big.pth", "import big_tool")
    venv.write("big_tool-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: Big.Tool\nVersion: 1\n")
    venv.write(
        "big_tool-1.dist-info/RECORD", "big_tool/__init__.py,,\nbig.pth,,\nbig_tool-1.dist-info/METADATA,,\nbig_tool-1.dist-info/RECORD,,\n"
    )
    venv.write("kept.py")
    assert list(venv.contents("big-tool")) == ["kept.py"]
    with pytest.raises(UnknownName, match=r"there is no installed distribution 'bigtool' in .*; did you mean 'big-tool'\?"):
        venv.contents("bigtool")


def test_a_conda_environment_is_taken_whole(tmp_path: Path) -> None:
    """Its libraries load each other by names that nobody declares; its records, headers and papers stay."""
    inside = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}"
    names = ("conda-meta/history", "lib/libmkl_core.so.2", "include/x.h", "share/doc/x", "share/zone/y", "ssl/cert.pem", "lib/libx.a")
    for name in (*names, f"{inside}/os.py", f"{inside}/test/t.py", f"{inside}/site-packages/mine.py", "bin/python3.11"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "lib/libmkl.so").symlink_to("libmkl_core.so.2")
    prefix, packages = str(tmp_path), str(tmp_path / inside / "site-packages")
    stdlib = str(tmp_path / inside)
    of = replace(
        ask(None),
        executable=f"{prefix}/bin/python3.11",
        prefix=prefix,
        base_prefix=prefix,
        stdlib=stdlib,
        platstdlib=stdlib,
        path=(stdlib, packages),
        sites=(packages,),
        site=f"{inside}/site-packages",
    )
    taken = {name: entry.link for name, entry in contents(of).entries.items() if not name.startswith("bin/")}
    assert taken == {
        "lib/libmkl_core.so.2": "",
        "lib/libmkl.so": "libmkl_core.so.2",
        "share/zone/y": "",
        "ssl/cert.pem": "",
        f"{inside}/os.py": "",
        f"{inside}/site-packages/mine.py": "",
    }


def test_scripts_look_for_the_python_beside_them() -> None:
    old = b"#!/home/me/venv/bin/python3.11\nimport x\n"
    new = b"#!/bin/sh\n'''exec' \"${0%/*}/python3\" \"$0\" \"$@\"\n' '''\nimport x\n"
    assert relocated_script(old, ["/home/me/venv"]) == new
    long = b"#!/bin/sh\n'''exec' \"/home/me/venv/bin/python\" \"$0\" \"$@\"\n' '''\nimport x\n"
    assert relocated_script(long, ["/home/me/venv"]) == new
    for other in (b"#!/bin/sh\necho\n", b"#!/usr/bin/env python3\n", b"#!/usr/bin/python3\n", b"#!/home/me/venv/bin/perl\n"):
        assert relocated_script(other, ["/home/me/venv", "/usr"]) is None


@pytest.mark.parametrize("name", ["libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "libcuda.so.1", "libnvidia-ml.so.1"])
def test_libraries_of_the_node_stay_there(name: str) -> None:
    assert is_nodes(name)


@pytest.mark.parametrize("name", ["libstdc++.so.6", "libssl.so.3", "libcrypt.so.1", "libcudart.so.12", "libmkl_rt.so.2", "libgomp.so.1"])
def test_others_are_taken_along(name: str) -> None:
    assert not is_nodes(name)


# ---------------------------------------------------------------- the archive


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> environment.Packed:
    """A venv with one module, which has no Windlass of its own."""
    folder = tmp_path_factory.mktemp("packed")
    venv = Venv(folder / "venv")
    venv.write("mine.py", "VALUE = 5\n")
    venv.write("broken.py", "this is no Python\n")
    return environment.pack(folder, source=venv.folder)


def test_an_archive_is_named_by_its_content_and_says_what_it_is(packed: environment.Packed) -> None:
    assert packed.path.name == f"windlass-environment-{packed.sha256[:16]}.tar.gz"
    assert packed.path.stat().st_size == packed.size
    head = head_of(packed)
    assert head is not None
    assert (head.python, head.size, head.files) == (".".join(map(str, sys.version_info[:3])), packed.unpacked, packed.files)
    assert os.listdir(packed.path.parent) == [packed.path.name, "venv"] or len(os.listdir(packed.path.parent)) == 2


def test_it_has_what_a_worker_needs_and_no_tests(packed: environment.Packed) -> None:
    """Windlass is added, with what it imports; all code is compiled, and nobody need look whether it still fits."""
    with tarfile.open(packed) as tar:
        members = {member.name: member for member in tar}
        site = ask(None).site
        tag = sys.implementation.cache_tag
        for name in ("mine", "windlass/worker/main", "msgspec/__init__", "cryptography/__init__"):
            folder, _, stem = f"{site}/{name}".rpartition("/")
            data = tar.extractfile(f"{folder}/__pycache__/{stem}.{tag}.pyc")
            assert data is not None
            assert data.read(8)[4:] == b"\1\0\0\0", name
    assert f"{site}/broken.py" in members
    assert not [name for name in members if name.startswith(f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/test/")]
    assert {(member.uid, member.uname, member.mtime) for member in members.values()} == {(0, "", 1_000_000_000)}
    assert not [name for name in members if name.startswith(("/", "..")) or ("/__pycache__/" in name and tag not in name)]


def test_its_boot_starts_a_worker_and_is_small(packed: environment.Packed, tmp_path: Path) -> None:
    """Wherever it lies, with nothing else there; nothing in it is read that a worker needs not."""
    head = head_of(packed)
    assert head is not None
    assert head.boot is not None
    data = boot_of(packed)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (head.boot.size, head.boot.sha256)
    assert len(data) < 12 << 20
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert not [name for name in tar.getnames() if name.endswith(".py") or "mine" in name or "/unittest/" in name]
        tar.extraction_filter = lambda member, path: member
        tar.extractall(tmp_path / "boot")
    words = [str(tmp_path / "boot/bin/python3"), "-P", "-m", "windlass.worker", "--help"]
    ran = subprocess.run(words, capture_output=True, text=True, check=True, cwd="/", env={})
    assert ran.stdout.startswith("usage: windlass worker")


def test_two_packs_of_the_same_are_one(packed: environment.Packed, tmp_path: Path) -> None:
    again = environment.pack(tmp_path / "named.tgz", source=packed.path.parent / "venv")
    assert again.path == tmp_path / "named.tgz"
    assert again.sha256 == packed.sha256


def test_a_pack_that_cannot_be_written_leaves_nothing(tmp_path: Path, packed: environment.Packed) -> None:
    with pytest.raises(UsageError, match=r"the archive cannot be written in /proc: "):
        environment.pack("/proc/e.tar.gz", source=packed.path.parent / "venv")


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no Python in .*; give the folder that has bin/python3, or the program itself"):
        environment.pack(source=tmp_path)
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\necho no >&2\nexit 3\n")
    fake.chmod(0o755)
    with pytest.raises(UsageError, match=r"python3 cannot be asked where its packages are: no; it must be a CPython of 3\.11 or later"):
        environment.pack(source=fake)


def test_compiled_code_is_taken_only_where_it_fits(tmp_path: Path) -> None:
    """By time and size of its source, or by its digest."""
    import importlib.util
    import py_compile

    of = ask(None)
    source = tmp_path / "m.py"
    source.write_text("x = 1\n")
    assert unchecked(source, of) is None
    for mode in (py_compile.PycInvalidationMode.TIMESTAMP, py_compile.PycInvalidationMode.CHECKED_HASH):
        source.write_text("x = 1\n")
        py_compile.compile(str(source), invalidation_mode=mode)
        data = unchecked(source, of)
        assert data is not None
        assert data[4:16] == b"\1\0\0\0" + importlib.util.source_hash(b"x = 1\n")
        source.write_text("x = 22\n")
        assert unchecked(source, of) is None


def test_blocks_of_gzip_are_one_file(tmp_path: Path) -> None:
    data = os.urandom(3 << 20) + bytes(5 << 20)
    with (tmp_path / "x.gz").open("wb") as file:
        packed = GzipBlocks(file, 3)
        for start in range(0, len(data), 700_001):
            packed.write(data[start : start + 700_001])
        packed.close()
    assert subprocess.run(["gzip", "-dc", tmp_path / "x.gz"], capture_output=True, check=True).stdout == data


def test_the_command_says_what_it_made(
    venv: Venv, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from windlass.cli import main

    monkeypatch.setattr("windlass.environment_archive.make_boot", Mock(return_value=None))  # a second boot would take seconds
    assert main(["environment", "pack", "--from", str(venv.folder), "-o", str(tmp_path / "e.tgz"), "--json"]) == 0
    out, err = capfd.readouterr()
    said = json.loads(out)
    assert said["path"] == str(tmp_path / "e.tgz")
    assert set(said) == {"path", "sha256", "size", "unpacked", "files", "python", "windlass"}
    assert "files found in" in err
    assert main(["environment", "pack", "--from", str(tmp_path / "absent")]) == 2
    assert "windlass: there is no Python in" in capfd.readouterr().err


def test_an_interpreter_is_asked_not_guessed() -> None:
    of = ask(None)
    assert isinstance(of, Interpreter)
    assert of.version == sys.version_info[:3]
    assert os.path.realpath(sys.prefix) == of.prefix
    assert os.path.isfile(os.path.join(of.stdlib, "os.py"))
