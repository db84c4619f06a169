"""What a packed environment holds: names in the archive, and where each comes from.

Theory of operation
-------------------
The interpreter is asked where things are (`ask`), never guessed; it need not be the one that runs this program, nor have Windlass.
`contents` then makes one tree that any interpreter finds by itself, as it looks for its standard library beside the program::

    bin/python3.11, python3, python      the program, not a venv's link to it
    bin/...                              scripts of installed packages; their first lines look for the Python beside them
    lib/...                              shared libraries (`windlass.environment_libraries`)
    lib/python3.11/                      standard library
    lib/python3.11/site-packages/        all packages, in the one folder in which this interpreter looks (Debian's differs)

So neither PYTHONHOME nor ``pyvenv.cfg`` is needed, and no path is written anywhere.

*One folder for packages.*  A venv that sees the system's packages, a user's own folder and editable installs are several places on
``sys.path``.  They are laid over each other in that order, by top-level names: what comes first wins, as it does for imports; folders
without ``__init__.py`` (namespace packages) are merged.  Imports get shorter by that.  Lines of ``.pth`` files that name such places are
dropped, or a node that happens to have them would look there.

*Editable installs* are source trees; links in them are followed where they lead out of the tree (Windlass's own do).  Of a project's root
folder, which holds more than code, only packages and modules are taken.

A *conda environment* is taken whole, as its packages load each other's libraries by names that nobody declares.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final, cast

from windlass.errors import UnknownName, UsageError

#: Seconds for an interpreter to say where things are; from a slow filesystem it takes a while.
ASK_SECONDS: Final = 60.0

_QUESTIONS: Final = """
import importlib.util, json, os, site, sys, sysconfig
print(json.dumps({
    "executable": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "version": list(sys.version_info[:3]), "implementation": sys.implementation.name, "cache_tag": sys.implementation.cache_tag or "",
    "magic": importlib.util.MAGIC_NUMBER.hex(), "prefix": sys.prefix, "base_prefix": sys.base_prefix,
    "stdlib": sysconfig.get_path("stdlib"), "platstdlib": sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}),
    "path": [one for one in sys.path if one],
    "sites": site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else []),
}))
"""
#: Where the program itself, outside any venv, looks for packages below a prefix.
_SITE_QUESTION: Final = "import json, os, site; print(json.dumps([os.path.relpath(one, '/P') for one in site.getsitepackages(['/P'])]))"

#: Of the standard library: tests, and what needs a display.
_STDLIB_SKIPPED: Final = frozenset({"test", "idlelib", "turtledemo", "tkinter", "site-packages", "dist-packages", "EXTERNALLY-MANAGED"})
_STDLIB_TESTS: Final = frozenset({"test", "tests", "idle_test", "__phello__"})
_VENV_FOLDERS: Final = ("share", "etc")
_CONDA_SKIPPED: Final = frozenset(
    {"pkgs", "envs", "conda-meta", "include", "man", "share/doc", "share/man", "share/info", "share/gtk-doc", "share/locale"}
)
#: Folders with programs of many packages: what belongs to this environment cannot be told there.
_COMMON_PREFIXES: Final = ("/usr", "/usr/local", "/")
_FOLDERS_SKIPPED: Final = frozenset({"__pycache__", ".git", ".hg", ".svn", ".tox", ".nox", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
_PROJECT_FILES: Final = ("pyproject.toml", "setup.py", "setup.cfg", ".git")
_DISTRIBUTION: Final = re.compile(r"(.+?)(-[0-9][^-]*)?(-py[0-9.]+)?\.(dist-info|egg-info)\Z")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Where an interpreter has what."""

    executable: str
    version: tuple[int, int, int]
    implementation: str
    cache_tag: str
    magic: bytes
    prefix: str
    base_prefix: str
    stdlib: str
    platstdlib: str
    path: tuple[str, ...]
    #: Folders of packages that are there, in the order of ``path``.
    sites: tuple[str, ...]
    #: The folder of packages in the archive.
    site: str

    @property
    def short(self) -> str:
        """``3.11``."""
        return f"{self.version[0]}.{self.version[1]}"

    @property
    def is_conda(self) -> bool:
        return self.prefix == self.base_prefix and os.path.isdir(os.path.join(self.prefix, "conda-meta"))


@dataclass(slots=True)
class Entry:
    """One name in the archive: a file of this machine, or bytes, or a link."""

    source: str = ""
    data: bytes | None = None
    link: str = ""
    executable: bool = False


@dataclass(slots=True)
class Contents:
    """What goes into the archive, by name."""

    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    #: Distributions that are there, by normalized name.
    distributions: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, name: str, entry: Entry) -> None:
        """Add it, unless the name is there already."""
        self.entries.setdefault(os.path.normpath(name).lstrip("/"), entry)


def ask(source: str | os.PathLike[str] | None) -> Interpreter:
    """Find the interpreter of a prefix (or program; None: the one that runs this) and ask it. Raises `UsageError`."""
    python = sys.executable if source is None else _program_of(Path(source))
    # -E: what this shell has set is not the environment's. -P: nor is the current folder.
    given = _run(python, "-E", "-P", "-c", _QUESTIONS)
    if given["implementation"] != "cpython":
        raise UsageError(f"{python} is {given['implementation']}, and only CPython can be packed")
    if not os.path.isfile(os.path.join(given["stdlib"], "os.py")):
        raise UsageError(f"{python} has no standard library in {given['stdlib']}; give --from the folder that it is installed in")
    [*inside] = cast("list[str]", _run(given["executable"], "-I", "-S", "-c", _SITE_QUESTION))
    return Interpreter(
        executable=given["executable"],
        version=tuple(given["version"]),
        implementation=given["implementation"],
        cache_tag=given["cache_tag"],
        magic=bytes.fromhex(given["magic"]),
        prefix=os.path.realpath(given["prefix"]),
        base_prefix=os.path.realpath(given["base_prefix"]),
        stdlib=os.path.realpath(given["stdlib"]),
        platstdlib=os.path.realpath(given["platstdlib"]),
        path=tuple(given["path"]),
        sites=tuple(one for one in given["path"] if one in given["sites"] and os.path.isdir(one)),
        site=inside[0],
    )


def _program_of(source: Path) -> str:
    if source.is_file():
        return str(source)
    for name in ("bin/python3", "bin/python"):
        if (source / name).exists():
            return str(source / name)
    raise UsageError(f"there is no Python in {os.fspath(source)!r}; give the folder that has bin/python3, or the program itself")


def _run(python: str, *words: str) -> Any:
    try:
        ran = subprocess.run([python, *words], capture_output=True, text=True, timeout=ASK_SECONDS, check=False, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{python} cannot be asked where its packages are: {error}") from None
    try:
        return json.loads(ran.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        said = ran.stderr.strip().splitlines()[-1:] or [f"exit status {ran.returncode}"]
        raise UsageError(f"{python} cannot be asked where its packages are: {said[0]}; it must be a CPython of 3.11 or later") from None


# ---------------------------------------------------------------- the tree


def contents(of: Interpreter, exclude: Iterable[str] = ()) -> Contents:
    """All but shared libraries and compiled code. ``exclude``: distributions to leave out.

    Raises `UnknownName` for one that is not installed, `UsageError` for what cannot be packed.
    """
    made = Contents()
    left_out = _files_of(of, exclude)
    made.add(f"bin/python{of.short}", Entry(of.executable, executable=True))
    for name in ("python3", "python"):
        made.add(f"bin/{name}", Entry(link=f"python{of.short}"))
    for folder in dict.fromkeys((of.stdlib, of.platstdlib)):
        _add_tree(made, folder, os.path.relpath(folder, of.base_prefix), _keep_of_stdlib)
    for place in of.path:
        if place in of.sites:
            _add_site(made, of, place, left_out)
        elif os.path.isdir(place) and not _within(place, of.stdlib) and not _within(place, of.platstdlib):
            _add_sources(made, of, place)
    if of.is_conda:
        _add_tree(made, of.prefix, "", lambda name, _: _keep_of_conda(name, of))
    if of.prefix not in _COMMON_PREFIXES:
        _add_programs(made, of, left_out)
        for name in () if of.is_conda else _VENV_FOLDERS:
            if os.path.isdir(os.path.join(of.prefix, name)):
                _add_tree(made, os.path.join(of.prefix, name), name, lambda inner, _: not inner.startswith("man"))
    return made


def _keep_of_stdlib(name: str, is_folder: bool) -> bool:
    parts = name.split("/")
    if parts[0] in _STDLIB_SKIPPED or (is_folder and parts[-1] in _STDLIB_TESTS) or name == "turtle.py":
        return False
    if parts[0].startswith("config-") and name.endswith((".a", ".o", ".so")):  # for linking programs that embed Python
        return False
    return not parts[-1].startswith(("_tkinter.", "_ctypes_test.", "_testcapi."))


def _keep_of_conda(name: str, of: Interpreter) -> bool:
    inside_stdlib = os.path.relpath(of.stdlib, of.prefix)
    return name not in _CONDA_SKIPPED and name != inside_stdlib and name != "bin" and not name.endswith(".a")


def _within(path: str, folder: str) -> bool:
    real = os.path.realpath(path)
    return real == folder or real.startswith(folder + "/")


def _add_tree(made: Contents, root: str, name: str, keep: Callable[[str, bool], bool], left_out: frozenset[str] = frozenset()) -> None:
    """A folder. ``keep(inner, is_folder)`` says which; links that lead out of it are followed."""
    base = os.path.realpath(root)

    def walk(folder: str, inner: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if real in above:  # a link to a folder above it
            return
        try:
            found = sorted(os.scandir(folder), key=lambda one: one.name)
        except OSError as error:
            raise UsageError(f"{folder} cannot be read: {error.strerror}") from None
        for one in found:
            within = f"{inner}/{one.name}" if inner else one.name
            is_folder = one.is_dir()
            if one.name in _FOLDERS_SKIPPED or one.name.endswith(".pyc") or one.path in left_out or not keep(within, is_folder):
                continue
            if one.is_symlink():
                target = os.readlink(one.path)
                if not os.path.isabs(target) and _within(one.path, base) and os.path.normpath(f"{inner}/{target}")[:2] != "..":
                    made.add(f"{name}/{within}", Entry(link=target))
                    continue
            if is_folder:
                if not os.path.exists(os.path.join(one.path, "pyvenv.cfg")):
                    walk(one.path, within, (*above, real))
            elif one.is_file():
                made.add(f"{name}/{within}", Entry(os.path.realpath(one.path), executable=os.access(one.path, os.X_OK)))

    walk(root, "", ())


# ---------------------------------------------------------------- packages


def normalized(name: str) -> str:
    """The name of a distribution as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _files_of(of: Interpreter, exclude: Iterable[str]) -> frozenset[str]:
    """Paths of the files of distributions that are left out."""
    wanted = {normalized(name): name for name in exclude}
    if not wanted:
        return frozenset()
    found: dict[str, metadata.Distribution] = {}
    for one in metadata.distributions(path=list(of.sites)):
        found.setdefault(normalized(one.metadata["Name"]), one)
    paths: set[str] = set()
    for name, given in wanted.items():
        if name not in found:
            raise UnknownName("installed distribution", given, found, within=f"in {of.prefix}")
        if name == "windlass":
            raise UsageError("an environment without windlass runs no worker; leave it in")
        paths.update(os.path.normpath(str(file.locate())) for file in found[name].files or ())
    return frozenset(paths)


def _taken(made: Contents, of: Interpreter) -> set[str]:
    """Top-level names of the folder of packages that are regular modules or packages."""
    inside = of.site + "/"
    names = [name[len(inside) :] for name in made.entries if name.startswith(inside)]
    packages = {name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith("/__init__.py")}
    return packages | {name for name in names if "/" not in name}


def _add_site(made: Contents, of: Interpreter, folder: str, left_out: frozenset[str]) -> None:
    """A folder of packages, below what is there."""
    taken = _taken(made, of)
    there = dict(made.distributions)
    dropped: set[str] = set()
    for name in sorted(os.listdir(folder)):
        if name.endswith(".pth") and name not in taken and os.path.join(folder, name) not in left_out:
            dropped |= _add_pth(made, of, folder, name)
        elif (match := _DISTRIBUTION.match(name)) is not None:
            distribution = normalized(match[1])
            if distribution in there:
                dropped.add(name)
            made.distributions.setdefault(distribution, os.path.join(folder, name))

    def keep(inner: str, is_folder: bool) -> bool:
        top, _, below = inner.partition("/")
        if below == "direct_url.json" and top.endswith(".dist-info"):
            return False  # it would say that the package is installed as a link to its sources
        return top not in taken and top not in dropped and not top.endswith(".pth")

    _add_tree(made, folder, of.site, keep, left_out)


def _add_pth(made: Contents, of: Interpreter, folder: str, name: str) -> set[str]:
    """A ``.pth`` file, without the places that are packed anyway. Returns names of this folder that are not needed any more."""
    try:
        lines = Path(folder, name).read_text(errors="surrogateescape").splitlines()
    except OSError as error:
        raise UsageError(f"{os.path.join(folder, name)} cannot be read: {error.strerror}") from None
    kept: list[str] = []
    finders: set[str] = set()
    for line in lines:
        if (match := re.match(r"import (__editable___\w+_finder)\b", line)) is not None:
            _add_mapped(made, of, Path(folder, f"{match[1]}.py"))
            finders.add(f"{match[1]}.py")
        elif line.startswith(("import ", "import\t")):
            if "editable" in line or "editable" in name:
                raise UsageError(
                    f"{os.path.join(folder, name)} belongs to an editable install whose builder looks for changes at each import;"
                    " install that package as usual (pip install FOLDER) and pack again"
                )
            kept.append(line)
        elif line.strip() and not line.startswith("#") and not os.path.isabs(line.strip()):
            kept.append(line)
    if kept:
        made.add(f"{of.site}/{name}", Entry(data="\n".join([*kept, ""]).encode(errors="surrogateescape")))
    return finders


def _add_mapped(made: Contents, of: Interpreter, finder: Path) -> None:
    """The packages of an editable install that setuptools' finder maps to folders."""
    try:
        tree = ast.parse(finder.read_text())
    except (OSError, SyntaxError) as error:
        raise UsageError(f"{finder} of an editable install cannot be read: {error}") from None
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
        if not isinstance(target, ast.Name) or target.id not in ("MAPPING", "NAMESPACES"):
            continue
        mapped = cast("dict[str, str | list[str]]", ast.literal_eval(cast("Any", node).value))
        for module, places in mapped.items():
            inside = f"{of.site}/{module.replace('.', '/')}"
            for place in [places] if isinstance(places, str) else places:
                if os.path.isdir(place):
                    _add_tree(made, place, inside, lambda _, __: True)
                elif os.path.isfile(f"{place}.py") or os.path.isfile(place):
                    file = f"{place}.py" if os.path.isfile(f"{place}.py") else place
                    made.add(f"{os.path.dirname(inside)}/{os.path.basename(file)}", Entry(os.path.realpath(file)))


def _add_sources(made: Contents, of: Interpreter, folder: str) -> None:
    """A folder of sources that an editable install, or a person, has put on ``sys.path``."""
    taken = _taken(made, of)
    is_project = any(os.path.exists(os.path.join(folder, name)) for name in _PROJECT_FILES)

    def keep(inner: str, is_folder: bool) -> bool:
        if "/" in inner:
            return True
        if inner in taken or inner.startswith(".") or _DISTRIBUTION.match(inner):
            return False
        if is_folder and is_project:
            return os.path.exists(os.path.join(folder, inner, "__init__.py"))
        return is_folder or inner.endswith((".py", ".so"))

    _add_tree(made, folder, of.site, keep)


# ---------------------------------------------------------------- programs

_FINDS_PYTHON: Final = b"""#!/bin/sh
'''exec' "${0%/*}/python3" "$0" "$@"
' '''
"""


def _add_programs(made: Contents, of: Interpreter, left_out: frozenset[str]) -> None:
    folder = os.path.join(of.prefix, "bin")
    for one in sorted(os.scandir(folder), key=lambda one: one.name):
        skipped = re.fullmatch(r"python[0-9.]*|[Aa]ctivate.*|deactivate|pydoc.*|idle.*", one.name) is not None
        if skipped or one.path in left_out or not one.is_file() or not os.access(one.path, os.X_OK):
            continue
        with open(one.path, "rb") as file:
            script = file.read() if file.read(2) == b"#!" else b""
        data = relocated_script(b"#!" + script, (of.prefix, of.base_prefix)) if script else None
        made.add(f"bin/{one.name}", Entry(os.path.realpath(one.path), data=data, executable=True))


def relocated_script(script: bytes, prefixes: Iterable[str]) -> bytes | None:
    """A script whose first line names a Python of these prefixes, so that it takes the one beside it; None: it names another program."""
    first, _, rest = script.partition(b"\n")
    homes = [os.fsencode(prefix) for prefix in prefixes if prefix not in _COMMON_PREFIXES]
    if first.strip() == b"#!/bin/sh" and rest.startswith(b"'''exec' "):  # pip's, where the path is too long for a first line
        line, _, rest = rest.partition(b"\n")
        _, _, rest = rest.partition(b"\n")
        return _FINDS_PYTHON + rest if any(home in line for home in homes) else None
    if b"python" in first and any(home + b"/" in first for home in homes):
        return _FINDS_PYTHON + rest
    return None


def names_of_modules(made: Contents) -> Iterator[str]:
    """Names of Python's source files."""
    return (name for name, entry in made.entries.items() if name.endswith(".py") and (entry.source or entry.data is not None))
