"""What is built from the tree is all of it, and the tree's own tools see all of it.

The parts of the import package `windlass` stand in root folders, reached through links in ``src/windlass``.  A checkout without the
links, or a tool that walks none, gives an empty package without a word; so a wheel and a source archive are built here, from a copy of
the tree.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import windlass

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("manager", "worker", "factory", "batch_templates")


def package_files() -> set[str]:
    """Paths below ``windlass/`` of all files that belong into the package."""
    own = ROOT / "src" / "windlass"
    # Real folders alone: the parts are links, which `os.walk` does not follow.
    found = {f"windlass/{Path(folder).relative_to(own) / name}" for folder, _, names in os.walk(own) for name in names}
    for part in PARTS:
        found |= {f"windlass/{path.relative_to(ROOT)}" for path in (ROOT / part).rglob("*") if path.is_file()}
    return {name for name in found if "__pycache__" not in name}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source archive, built from a copy of the tree, without asking a package index."""
    tree = tmp_path_factory.mktemp("copy") / "windlass"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tree)
    for name in (".ci", "src", "docs", *PARTS):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "_build"))
    ran = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(tree / "dist"), str(tree)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return tree / "dist"


def test_the_wheel_has_every_file_of_the_package(built: Path) -> None:
    """Modules, templates and py.typed of all four root folders, and nothing of tests or tools."""
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package_files()
    assert len(names) > len(PARTS)


def test_the_wheel_explains_errors_where_there_is_no_repository(built: Path, tmp_path: Path) -> None:
    """The pages are in it, as files: ``windlass explain`` of the unpacked wheel shows what stands in the repository."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    page = tmp_path / "windlass" / "pages" / "troubleshooting.md"
    assert not page.is_symlink()
    assert page.read_text() == (ROOT / "docs" / "troubleshooting.md").read_text()
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from windlass.cli import main; sys.exit(main(sys.argv[1:]))"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "explain", "WorkersLost"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("WorkersLost\n\nThe call was lost with its worker")


def test_the_wheel_has_the_command_the_plugin_and_the_licence(built: Path) -> None:
    """``pip install`` gives a command `windlass`, and pytest the fixture `windlass_pool`."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        info = f"windlass-{windlass.__version__}.dist-info/"
        points = archive.read(info + "entry_points.txt").decode()
        assert "[console_scripts]\nwindlass = windlass.cli:main" in points
        assert "[pytest11]\nwindlass = windlass.testing.plugin" in points
        assert info + "licenses/LICENSE" in archive.namelist()


def test_the_source_archive_has_every_file_of_the_package(built: Path) -> None:
    """A wheel can be built from it: the linked folders are in it as files."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    assert {f"src/{name}" for name in package_files()} <= names


def test_the_links_of_the_package_lead_to_the_root_folders() -> None:
    """A checkout that made files of the links (core.symlinks=false) would import nothing."""
    for part in PARTS:
        link = ROOT / "src/windlass" / part
        assert link.is_symlink()
        assert link.resolve() == ROOT / part


def test_the_pages_of_the_package_are_links_to_the_documentation() -> None:
    """Written once: a copy would grow old."""
    for page in (ROOT / "src/windlass/pages").iterdir():
        assert page.is_symlink(), page
        assert page.resolve() == ROOT / "docs" / page.name


def test_every_public_name_can_be_had() -> None:
    """The package's lazy names lead somewhere, and there is no other public one."""
    for name in windlass.__all__:
        assert getattr(windlass, name) is not None, name
    assert set(windlass.__all__) <= set(dir(windlass))
    with pytest.raises(AttributeError, match="module 'windlass' has no attribute 'Manger'"):
        _ = windlass.Manger  # type: ignore[attr-defined]  # pyright: ignore


def test_every_error_is_public() -> None:
    """Whoever catches one finds it beside `Manager`."""
    errors = importlib.import_module("windlass.errors")
    own = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert own <= set(windlass.__all__)


def test_the_version_is_told_once() -> None:
    """The installed distribution, the package and the changelog agree."""
    assert metadata.version("windlass") == windlass.__version__
    assert re.search(rf"^## \[{re.escape(windlass.__version__)}\] ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_type_checkers_and_coverage_are_told_of_every_folder() -> None:
    """Pyright and coverage walk no links: each folder is named; `make lint` compares pyright's count of files with the tree."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert {f"src/windlass/{part}" for part in PARTS} | {"src/windlass", "tests", "examples", "benchmarks"} <= set(
        tools["pyright"]["include"]
    )
    assert {"src/windlass", "manager", "worker", "factory"} == set(tools["coverage"]["run"]["source"])


def test_every_ignored_rule_has_its_reason() -> None:
    """An ignore without a reason outlives it."""
    text = (ROOT / "pyproject.toml").read_text()
    ignores = text.partition("ignore = [")[2].partition("]")[0].strip().splitlines()
    assert ignores
    for line in ignores:
        assert "#" in line, line
