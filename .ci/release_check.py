"""`make release-check`: builds what would be released, looks at it, and uses it on every Python that this machine has.

Theory of operation
-------------------
Everything is done with what a user gets, in a folder of its own: a copy of the tree's files, a wheel and a source archive made from
it, and for each Python a fresh environment with that wheel, used from an empty folder. Each check has a name and says in a line what
it found; one that fails does not keep the others from being made. The last lines say on which Pythons what was checked, and which of
those that Windlass is meant for are not here.

Pythons are the ``python3.N`` of PATH and of pyenv, the newest of each N, and those that ``--python`` names. ``--tests units`` (what
``make release-check`` does) runs the tests of the parts on each, ``all`` the whole suite, ``none`` only the smoke test. On the first
Python the extras are installed, each in an environment of its own; on the others it is only looked whether they could be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from email.parser import Parser
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What is built and used is for these: the classifiers of pyproject.toml.
MEANT = re.compile(r"Programming Language :: Python :: (3\.\d+)$")
#: What the archive for pip and friends may have beside the package's own files.
BESIDE = {
    "LICENSE",
    "README.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "MANIFEST.in",
    "PKG-INFO",
    "pyproject.toml",
    "setup.cfg",
    ".ci/reproducible.py",
}
TOOLS = ("build", "setuptools>=77", "twine", "cffconvert>=2")
#: What the tests of the parts import beside Windlass; a newer Python may have no wheels of the rest of the extra ``dev``.
TEST_TOOLS = ("build", "hypothesis", "numpy", "pytest", "pytest-asyncio", "pytest-timeout", "pytest-xdist", "setuptools")
UNITS = ("tests/shared", "tests/manager", "tests/factory", "tests/worker", "tests/test_public_api.py", "tests/test_exactly_once.py")
#: Words that never belong into what the world gets: this machine's name, paths and mirrors.
HERE = (os.uname().nodename, str(Path.home()) + "/", str(ROOT) + "/")


class Failed(Exception):
    """A check did not hold; the text says why."""


class Checks:
    """What was checked and what came of it."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def run(self, name: str, check: Callable[[], str | None]) -> bool:
        """Make one check, and say what it found. Whether it held."""
        began = time.monotonic()
        try:
            found = check() or "yes"
        except (Failed, subprocess.TimeoutExpired, OSError, KeyError, ValueError) as error:
            self.failed.append(name)
            print(f"FAILED  {name}: {error}", flush=True)
            return False
        print(f"ok      {name}: {found} ({time.monotonic() - began:.0f} s)", flush=True)
        return True


def run(*words: str | Path, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 900) -> str:
    """The output of a command that has to succeed."""
    whole = {**os.environ, **(env or {})}
    ran = subprocess.run([str(word) for word in words], cwd=cwd, env=whole, capture_output=True, text=True, check=False, timeout=timeout)
    if ran.returncode:
        tail = "\n".join((ran.stdout + ran.stderr).strip().splitlines()[-25:])
        raise Failed(f"{' '.join(map(str, words))}: exit status {ran.returncode}\n{tail}")
    return ran.stdout


# ---------------------------------------------------------------- what is built


def copy_of_the_tree(to: Path) -> Path:
    """The files that git knows, or would, and no others; links stay links."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        source, place = ROOT / name, to / name
        if source.is_symlink() or source.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place, follow_symlinks=False)
    return to


def package_files(tree: Path) -> set[str]:
    """The paths of the package's files below ``windlass/``."""
    found: set[str] = set()
    for folder, _, files in os.walk(tree / "src/windlass", followlinks=True):
        below = Path(folder).relative_to(tree / "src")
        found |= {str(below / name) for name in files}
    return {name for name in found if "__pycache__" not in name}


class Built:
    """A wheel and a source archive, and the environment with the tools that made them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools = folder / "tools"
        make_environment(Path(sys.executable), self.tools, TOOLS)
        self.date = run("git", "log", "-1", "--format=%ct", cwd=ROOT).strip()
        self.tree = copy_of_the_tree(folder / "one")
        self.dist = self.build(self.tree, "dist")
        (self.wheel,) = self.dist.glob("*.whl")
        (self.archive,) = self.dist.glob("*.tar.gz")

    def build(self, tree: Path, dist: str, *what: str) -> Path:
        """Both, without an isolated environment and so without any network."""
        words = ("-m", "build", "--no-isolation", *(what or ("--sdist", "--wheel")), "--outdir", str(self.folder / dist), str(tree))
        env = {"SOURCE_DATE_EPOCH": self.date, "PIP_NO_INDEX": "1"}
        offline = ("unshare", "-n") if os.getuid() == 0 and shutil.which("unshare") else ()
        run(*offline, self.tools / "bin/python", *words, cwd=self.folder, env=env)
        return self.folder / dist

    def same_again(self) -> str:
        """Another copy of the tree, later, with files of other dates and another umask, gives the same bytes."""
        tree = copy_of_the_tree(self.folder / "two")
        for path in tree.rglob("*"):
            os.utime(path, (0, 0), follow_symlinks=False)
        again = self.build(tree, "again")
        for one in (self.wheel, self.archive):
            if one.read_bytes() != (again / one.name).read_bytes():
                raise Failed(f"{one.name} has other bytes when it is built again with the same SOURCE_DATE_EPOCH")
        return "wheel and source archive have the same bytes"

    def wheel_from_the_archive(self) -> str:
        """As a distributor does it: unpack, build, without a network."""
        with tarfile.open(self.archive) as tar:
            tar.extraction_filter = lambda member, path: member  # ours
            tar.extractall(self.folder / "unpacked")
        (tree,) = (self.folder / "unpacked").iterdir()
        wheel = self.build(tree, "from-archive", "--wheel") / self.wheel.name
        with zipfile.ZipFile(wheel) as made, zipfile.ZipFile(self.wheel) as first:
            if {name: made.read(name) for name in made.namelist()} != {name: first.read(name) for name in first.namelist()}:
                raise Failed("the wheel that is built from the source archive is another one")
        return "has the same files as the one built from the tree"

    def contents(self) -> str:
        """All of the package, its licence and its command, and no junk."""
        package = package_files(self.tree)
        with zipfile.ZipFile(self.wheel) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
            about = {name.partition("/")[2] for name in archive.namelist() if ".dist-info/" in name}
        differ("the wheel", names, package)
        differ("its dist-info", about, {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"})
        with tarfile.open(self.archive) as tar:
            inside = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
            big = [member.name for member in tar.getmembers() if member.size > 200_000]
        inside = {name for name in inside if ".egg-info/" not in name}
        differ("the source archive", inside, BESIDE | {f"src/{name}" for name in package})
        if big:
            raise Failed(f"too large for source: {', '.join(big)}")
        for name in ("windlass/py.typed", "windlass/batch_templates/slurm.sh.j2", "windlass/batch_templates/htcondor.sh.j2"):
            if name not in names:
                raise Failed(f"the wheel has no {name}")
        sizes = [path.stat().st_size // 1024 for path in (self.wheel, self.archive)]
        return f"{len(names)} files of the package, {sizes[0]} KiB as a wheel, {sizes[1]} KiB as a source archive"

    def metadata(self) -> str:
        """`twine check --strict`, and what no tool knows: one version, and nothing of this machine."""
        run(self.tools / "bin/python", "-m", "twine", "check", "--strict", self.wheel, self.archive, cwd=self.folder)
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
            text = archive.read(name).decode()
        about = Parser().parsestr(text)
        version = str(about["Version"])
        for file, pattern in (("CHANGELOG.md", rf"^## \[{re.escape(version)}\] "), ("CITATION.cff", rf"^version: {re.escape(version)}$")):
            if not re.search(pattern, (self.tree / file).read_text(), re.MULTILINE):
                raise Failed(f"{file} does not name version {version}")
        for word in HERE:
            if re.search(rf"(?<![\w.]){re.escape(word)}", text):
                raise Failed(f"the metadata names {word!r}, which is this machine's own")
        urls = about.get_all("Project-URL") or []
        none = "" if urls else " (give pyproject.toml the public ones before a release)"
        return f"version {version}, {len(urls)} project URLs{none}"

    def citation(self) -> str:
        """CITATION.cff is valid in its own schema, which cffconvert has."""
        run(self.tools / "bin/cffconvert", "--validate", "--infile", self.tree / "CITATION.cff", cwd=self.folder)
        return "valid"


def differ(what: str, found: set[str], expected: set[str]) -> None:
    """Raise `Failed` when two sets of files do."""
    if found != expected:
        raise Failed(f"{what} lacks {sorted(expected - found)[:10]} and has {sorted(found - expected)[:10]} too many")


# ---------------------------------------------------------------- where it is used


def make_environment(python: Path, folder: Path, packages: Sequence[str | Path]) -> Path:
    """A fresh environment with these packages; Debian's Pythons have venv without pip, which then comes from outside."""
    plain = subprocess.run([str(python), "-m", "venv", str(folder)], capture_output=True, check=False)
    own = folder / "bin/python"
    if plain.returncode:
        run(python, "-m", "venv", "--clear", "--without-pip", folder, cwd=ROOT)
        run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python", own, "install", "pip", cwd=ROOT)
    if packages:
        run(own, "-m", "pip", "-q", "--disable-pip-version-check", "install", *packages, cwd=folder)
    return own


def pythons(named: Sequence[str]) -> dict[str, Path]:
    """By minor version, the newest that is here of each; those that were named come before all others."""
    folders = [Path(one) for one in os.get_exec_path()]
    folders += sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin"))
    others = [str(path) for folder in folders for path in sorted(folder.glob("python3.*")) if re.fullmatch(r"python3\.\d+t?", path.name)]
    found: dict[str, tuple[tuple[bool, tuple[int, ...]], Path]] = {}
    code = "import json, sys, sysconfig; print(json.dumps([list(sys.version_info[:3]), sysconfig.get_config_var('Py_GIL_DISABLED') or 0]))"
    for index, one in enumerate([*named, *others]):
        asked = subprocess.run([one, "-c", code], capture_output=True, text=True, check=False)
        if asked.returncode:
            continue  # a shim of pyenv for a version that is not chosen
        version, free_threaded = json.loads(asked.stdout)
        key = f"{version[0]}.{version[1]}{'t' if free_threaded else ''}"
        rank = (index < len(named), tuple(version))
        if version >= [3, 11] and (key not in found or rank > found[key][0]):
            found[key] = (rank, Path(one))
    return {key: found[key][1] for key in sorted(found, key=lambda key: (int(key.partition(".")[2].rstrip("t")), key))}


class Used:
    """The wheel in a fresh environment of one Python, used from an empty folder."""

    def __init__(self, key: str, python: Path, built: Built) -> None:
        self.key, self.python, self.built = key, python, built
        self.folder = built.folder / f"python{key}"
        self.home = self.folder / "empty"
        self.env = {"WINDLASS_STATE_DIR": str(self.folder / "state"), "PYTHONWARNINGS": "error", "PYTHONDONTWRITEBYTECODE": "1"}
        self.own = self.folder / "venv/bin/python"

    def install(self) -> str:
        self.home.mkdir(parents=True)
        make_environment(self.python, self.folder / "venv", [self.built.wheel])
        run(self.own, "-m", "pip", "check", cwd=self.home)
        return run(self.own.with_name("windlass"), "version", cwd=self.home, env=self.env).strip()

    def quickstart(self) -> str:
        """The README's program, with warnings as errors."""
        shutil.copy(self.built.tree / "examples/quickstart.py", self.home)
        return run(self.own, "quickstart.py", cwd=self.home, env=self.env, timeout=300).strip()

    def demo(self) -> str:
        out = run(self.own.with_name("windlass"), "demo", cwd=self.home, env=self.env, timeout=300)
        if "Nothing is left running" not in out:
            raise Failed("the demo did not come to its end:\n" + out[-2000:])
        return "ran to its end"

    def extra(self, name: str, *, for_good: bool) -> str:
        """The wheel with one of its extras, in an environment of its own; or only whether pip finds wheels of all that it needs."""
        wanted = f"{self.built.wheel}[{name}]"
        if not for_good:
            run(self.own, "-m", "pip", "-q", "install", "--dry-run", "--only-binary", ":all:", wanted, cwd=self.home)
            return "could be installed"
        folder = self.folder / f"extra-{name}"
        own = make_environment(self.python, folder, [wanted])
        run(own, "-m", "pip", "check", cwd=self.home)
        run(own, "-c", "import windlass; [getattr(windlass, name) for name in windlass.__all__]", cwd=self.home, env=self.env)
        shutil.rmtree(folder)
        return "installed, and pip check finds nothing amiss"

    def tests(self, what: str, jobs: int) -> str:
        """Those of a copy of the tree, on the installed wheel."""
        tree = copy_of_the_tree(self.folder / "tree")
        run(self.own, "-m", "pip", "-q", "install", *([f"{self.built.wheel}[dev]"] if what == "all" else TEST_TOOLS), cwd=self.home)
        words = ["-q", "-n", str(jobs), "--dist", "loadfile", "-p", "no:cacheprovider", *(UNITS if what == "units" else ())]
        out = run(self.own.with_name("pytest"), *words, cwd=tree, env={"WINDLASS_STATE_DIR": str(self.folder / "state")}, timeout=7200)
        return out.strip().splitlines()[-1].strip("= ")


def main() -> int:
    options = argparse.ArgumentParser(prog="make release-check ARGS=…", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--python", action="append", default=[], metavar="PATH", help="another Python to check on; may be repeated")
    options.add_argument("--only", action="append", default=[], metavar="3.N", help="only this Python; may be repeated")
    options.add_argument("--tests", choices=("none", "units", "all"), default="units", help="what of the test suite runs on each Python")
    options.add_argument("--extras", metavar="NAMES", help="extras that are tried, with commas; all unless given, '' for none")
    options.add_argument("--jobs", type=int, default=2, help="test files at a time")
    chosen = options.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    meant = [found[1] for line in project["classifiers"] if (found := MEANT.match(line))]
    extras = list(project["optional-dependencies"]) if chosen.extras is None else list(filter(None, chosen.extras.split(",")))
    checks, told = Checks(), dict[str, str]()
    with tempfile.TemporaryDirectory(prefix="windlass-release-") as folder:
        built = Built(Path(folder))
        for name, check in (
            ("contents of wheel and source archive", built.contents),
            ("metadata", built.metadata),
            ("citation", built.citation),
            ("built again", built.same_again),
            ("wheel from the source archive, without a network", built.wheel_from_the_archive),
        ):
            checks.run(name, check)
        here = {key: python for key, python in pythons(chosen.python).items() if not chosen.only or key in chosen.only}
        for index, (key, python) in enumerate(here.items()):
            used, before = Used(key, python, built), len(checks.failed)
            if checks.run(f"Python {key}: install", used.install):
                checks.run(f"Python {key}: quickstart", used.quickstart)
                checks.run(f"Python {key}: demo", used.demo)
                for extra in extras:
                    checks.run(f"Python {key}: extra {extra}", partial(used.extra, extra, for_good=not index))
                if chosen.tests != "none":
                    checks.run(f"Python {key}: tests ({chosen.tests})", partial(used.tests, chosen.tests, chosen.jobs))
            version = run(python, "-c", "import platform; print(platform.python_version())", cwd=ROOT).strip()
            told[key] = version + (" with failures" if len(checks.failed) > before else "")
            shutil.rmtree(used.folder, ignore_errors=True)
    absent = [key for key in meant if key not in here]
    beyond = [key for key in here if key not in meant]
    print(f"\nchecked on Python {', '.join(told.values()) or '(none)'}")
    if absent:
        print(f"not checked, as there is none here or it was left out: Python {', '.join(absent)}")
    if beyond:
        print(f"checked beyond what pyproject.toml's classifiers name: Python {', '.join(beyond)}")
    print(f"{len(checks.failed)} checks failed" + "".join(f"\n  {name}" for name in checks.failed))
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
