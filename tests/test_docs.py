"""The pages: their programs run, all other code compiles and names what there is, and each error has its place.

Links between pages, and that every page is in the navigation, are looked at when the site is built (``make docs``)."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import pickle
import re
import subprocess
import sys
import tomllib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import windlass
from windlass import errors
from windlass.factory.backend import backend_class, backend_options, known_backends
from windlass.factory.config import read_configuration
from windlass.factory.factory import make_pools
from windlass.factory.pool import COMMON_OPTIONS
from windlass.factory.service import SECONDS
from windlass.manager.call import CallKeywords
from windlass.units import parse_seconds

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
#: Run, with what they print looked at, by tests of their own: pages, and programs by the number of their fence.
RUN_ELSEWHERE = {"walltime", "fitting-in", "commands-0", "from-taskvine-0"}
#: Seconds that a program of a page may take before the test gives up.
PATIENCE = 100
#: What code on pages takes for granted, and what these are.
GIVEN: dict[str, tuple[type, ...]] = {
    "manager": (windlass.Manager, windlass.AttachedManager),
    "pool": (windlass.Executor,),
    "factory": (windlass.Factory,),
    "future": (windlass.CallFuture,),
    "call": (windlass.FunctionCall,),
}
#: Attributes that no class has, only what is made of it.
OF_INSTANCES = {("pool", "manager"), ("pool", "factory"), ("future", "tag")}
#: Functions and values that stand for a reader's own.
READERS = {"simulate", "parameters", "tiny", "seeds"}


def fences(path: Path) -> list[tuple[str, str]]:
    """Words after each fence of a page, and what is in it."""
    return re.findall(r"^```([^\n`]*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def programs() -> Iterator[Any]:
    """Blocks that a page says anybody can run, with what should be printed."""
    for path in PAGES:
        found = fences(path)
        for here, (words, code) in enumerate(found):
            if words == "python run" and not {path.stem, f"{path.stem}-{here}"} & RUN_ELSEWHERE:
                after = found[here + 1] if here + 1 < len(found) else ("", "")
                yield pytest.param(code, after[1] if after[0] == "text" else "", id=f"{path.stem}-{here}")


def code_blocks() -> Iterator[Any]:
    """All Python of all pages; of a file that a page shows piece by piece (``python FILE.py``), each piece with those before it."""
    for path in PAGES:
        files: dict[str, str] = {}
        for here, (words, code) in enumerate(fences(path)):
            match words.split():
                case ["python", name, *_] if name.endswith(".py"):
                    files[name] = f"{files.get(name, '')}{code}\n"
                    yield pytest.param(files[name], id=f"{path.stem}-{here}")
                case ["python", *_]:
                    yield pytest.param(code, id=f"{path.stem}-{here}")
                case _:
                    pass


def test_the_counts_of_taskvines_features_are_those_of_the_rows() -> None:
    """In the head of the table, and in the changelog; rows are numbered without a gap."""
    page = (ROOT / "docs/from-taskvine.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([a-z ]+) \| ", page, re.MULTILINE)
    counts = Counter(word for _, word in rows)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert f"\n{counts['same']} the same, {counts['better']} better, {counts['not here']} not here." in page
    assert counts.total() == counts["same"] + counts["better"] + counts["not here"]
    assert f"all of its {len(rows)} features" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(("code", "printed"), list(programs()))
def test_programs_of_pages_run(
    code: str, printed: str, nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a script, with real local pilots; it prints what the page says, and nothing to stderr."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "script.py").write_text(code)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout
    assert not printed or ran.stdout == printed


@pytest.mark.parametrize("code", list(code_blocks()))
def test_code_of_pages_compiles_and_names_what_there_is(code: str) -> None:
    """Names are bound in the block or taken for granted on all pages; what is asked of Windlass is there, and so are options."""
    tree = ast.parse(code)
    assert list(unknown_names(tree)) == []
    assert list(unknown_attributes(tree)) == []
    assert list(unknown_options(tree)) == []


def unknown_names(tree: ast.AST) -> Iterator[str]:
    """Names that are read and that nobody binds."""
    bound = set(GIVEN) | READERS | set(dir(builtins)) | {"windlass"}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.AsyncFunctionDef(name=name):
                bound.add(name)
            case ast.ExceptHandler(name=str(name)):
                bound.add(name)
            case ast.alias():
                bound.add((node.asname or node.name).partition(".")[0])
            case _:
                pass
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in bound:
            yield node.id


def unknown_attributes(tree: ast.AST) -> Iterator[str]:
    """What is asked of `windlass`, or of a manager, executor, factory or future under its usual name, and is not there."""
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names if alias.asname is None}
    assert all(importlib.util.find_spec(name) for name in imported if name.startswith("windlass."))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        chain: list[str] = []
        here: ast.expr = node
        while isinstance(here, ast.Attribute):
            chain.insert(0, here.attr)
            here = here.value
        if not isinstance(here, ast.Name) or f"{here.id}.{chain[0]}" in imported:
            continue  # a module that the page imports
        found: Any = windlass if here.id == "windlass" else None
        if found is not None:
            for name in chain:
                if not hasattr(found, name):
                    yield ".".join(("windlass", *chain))
                    break
                found = getattr(found, name)
        elif here.id in GIVEN and not any(hasattr(kind, chain[0]) for kind in GIVEN[here.id]) and (here.id, chain[0]) not in OF_INSTANCES:
            yield f"{here.id}.{chain[0]}"


def unknown_options(tree: ast.AST) -> Iterator[str]:
    """Keywords of pools and calls that there are not."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg for word in node.keywords if word.arg}
        match node.func:
            case ast.Attribute(value=ast.Name(id="windlass"), attr="Executor" | "Factory" | "Pool"):
                named = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                backends = [name for name in named if name in known_backends()]
                own = backend_options(backend_class(backends[0])) if backends else frozenset[str]()
                others = {"name", "config", "folder", "manager", "manager_options", "journal", "memoize", "concurrency"}
                yield from given - COMMON_OPTIONS - own - others
            case ast.Attribute(attr="with_options"):
                yield from given - set(CallKeywords.__annotations__)
            case _:
                pass


def test_what_is_wrong_in_code_is_found() -> None:
    """So that the test above tests something."""
    assert list(unknown_names(ast.parse("print(nobody)"))) == ["nobody"]
    wrong = ast.parse("windlass.Manger(); manager.sumbit(); pool.submit()")
    assert list(unknown_attributes(wrong)) == ["windlass.Manger", "manager.sumbit"]
    assert list(unknown_options(ast.parse("windlass.Executor('slurm', patition='x')"))) == ["patition"]
    assert list(unknown_options(ast.parse("f.with_options(retires=1)"))) == ["retires"]


def configurations() -> Iterator[Any]:
    """Configuration files of all pages."""
    for path in PAGES:
        for here, (words, text) in enumerate(fences(path)):
            if words.split()[:1] == ["toml"]:
                yield pytest.param(text, id=f"{path.stem}-{here}")


@pytest.mark.parametrize("text", list(configurations()))
def test_pools_of_pages_can_be_made(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table is read as a user's file, and each of its pools is one that a factory takes, with all values checked."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))
    (tmp_path / "windlass.toml").write_text(text)
    configuration = read_configuration(tmp_path / "windlass.toml")
    pools = list(tomllib.loads(text)["pools"])
    assert pools
    for name in pools:
        _, [(_, made)] = make_pools(name, {}, "night", configuration)
        assert made.name == name


def test_the_options_of_every_pool_and_their_defaults_stand_on_the_page_of_pools() -> None:
    """Each in the first table; what a backend decides stands in the second one, as the code has it."""
    page = (ROOT / "docs/pools.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")]
    described = [name for row in rows if len(row) == 3 for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(described) == sorted(COMMON_OPTIONS)
    by_backend = {row[0].strip("`"): row[1:] for row in rows if len(row) == 5}
    assert set(by_backend) == {row[0].strip("`") for row in rows if row[-1] == "the backend's"} | {"max_pilots"}
    for number, backend in enumerate(("local", "slurm", "htcondor", "fake")):
        defaults = backend_class(backend).defaults
        for option, cells in by_backend.items():
            cell, value = cells[number], getattr(defaults, option)
            if option in SECONDS:
                assert (0 if cell == "unlimited" else parse_seconds(cell)) == value, (backend, option)
            elif option != "cores" or not defaults.shared:
                assert cell == f"{value:g}", (backend, option)


#: Folders and papers whose texts people read, in the source and as they run.
SPEAKING = ("docs", "factory", "manager", "worker", "src/windlass", "batch_templates", "examples", "benchmarks", "tests", ".ci", ".github")
#: `windlass` as a name that pip would ask PyPI for: after ``pip install`` and any other words of its line, with extras, or with a version.
FROM_PYPI = re.compile(
    r"pip3? install(?: +[^\s`|]+)*? +['\"]?windlass(?![\w./-])|(?<![\w./])windlass(?:\[[a-z]|==\d|==\{)|\binstall windlass(?![\w./-])"
)


def test_nobody_is_told_to_take_windlass_from_pypi() -> None:
    """Another project has the name there. Pages say PATH-OF-THE-CHECKOUT, or a wheel of it; the program names what packages it lacks."""
    for wrong in (
        "pip install windlass",
        "pip install -U numpy windlass",
        "pip install 'windlass[dask]'",
        "`windlass[dask]`",
        "windlass==0.1.0",
    ):
        assert FROM_PYPI.search(wrong), wrong
    for right in (
        "pip install 'PATH-OF-THE-CHECKOUT[dask]'",
        "pip install /opt/windlass-*.whl numpy",
        "pip install numpy\nwindlass version",
    ):
        assert not FROM_PYPI.search(right), right
    inside = [path for folder in SPEAKING for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".j2", ".yml", ".sh")]
    for path in {path.resolve() for path in [*ROOT.glob("*.md"), *inside]} - {Path(__file__).resolve()}:
        found = FROM_PYPI.search(path.read_text(errors="replace"))
        assert found is None, f"{path.relative_to(ROOT)}: {found[0] if found else ''}"


# ---------------------------------------------------------------- errors


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.WindlassError)]
HEADINGS = {found.lower() for found in re.findall(r"^#+ (\w+)$", (ROOT / errors.PAGE).read_text(), re.MULTILINE)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_error_has_its_place_among_the_troubles(kind: type[errors.WindlassError]) -> None:
    """The class names page and anchor; the anchor is the heading with its name."""
    page, _, anchor = kind.page.partition("#")
    assert page == errors.PAGE
    assert kind.topic == kind.__name__
    assert anchor == kind.__name__.lower()
    assert anchor in HEADINGS


def test_a_traceback_ends_with_the_place_that_says_what_to_do() -> None:
    """As a note: the text of an error stays what happened. What others derive is explained where its base is."""

    class Own(windlass.CallFailed):
        pass

    error = Own("it failed")
    assert str(error) == "it failed"
    assert error.__dict__ == {}
    last = traceback.format_exception(error)[-1]
    assert last == "what to do: windlass explain CallFailed\n"


def test_an_uncaught_error_shows_its_place() -> None:
    """Python's own display, which does not go by the module traceback."""
    ran = subprocess.run(
        [sys.executable, "-c", "import windlass; raise windlass.Closed('it is over')"], capture_output=True, text=True, check=False
    )
    assert ran.stderr.splitlines()[-2:] == ["windlass.errors.Closed: it is over", "what to do: windlass explain Closed"]


def test_notes_are_added_to_one_error_only_and_travel_with_it() -> None:
    """One list for each; a pickle has it once."""
    first, second = windlass.Closed("one"), windlass.Closed("two")
    first.add_note("attempt 1")
    assert first.__notes__ == ["what to do: windlass explain Closed", "attempt 1"]
    assert second.__notes__ == ["what to do: windlass explain Closed"]
    assert pickle.loads(pickle.dumps(first)).__notes__ == first.__notes__


# ---------------------------------------------------------------- the site


def check_site() -> ModuleType:
    """``.ci/check_site.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("check_site", ROOT / ".ci/check_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_dead_links_and_assets_of_other_hosts_are_found_in_a_site(tmp_path: Path) -> None:
    """A file and an anchor that are not there, a script, a picture and a font from elsewhere; what a reader may follow is left alone."""
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">x</a><a href="https://example.org/">x</a><a href="b.html#gone">x</a><a href="c.html">x</a>'
        '<script src="https://example.org/x.js"></script><img src="//example.org/x.png"><p style="background: url(http://example.org/y)">'
    )
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1><img src="data:image/png;base64,AA==">')
    (tmp_path / "s.css").write_text("@font-face { src: url('https://example.org/f.woff2') } p { background: url(b.png) }")
    assert check_site().problems(tmp_path) == [
        "a.html: fetches https://example.org/x.js",
        "a.html: fetches //example.org/x.png",
        "a.html: fetches http://example.org/y",
        "a.html: b.html#gone names an anchor that is not there",
        "a.html: c.html leads nowhere",
        "s.css: fetches https://example.org/f.woff2",
    ]


def test_every_public_name_is_in_the_reference() -> None:
    """Errors by their module, all others by name."""
    text = (ROOT / "docs/api.md").read_text()
    for name in windlass.__all__:
        known = hasattr(errors, name) or name in ("__version__", "environment")
        assert known or f"windlass.{name}\n" in text, name


def test_every_public_name_says_what_it_is() -> None:
    """Classes, functions and their public methods have a docstring: the reference is made of them."""
    for name in set(windlass.__all__) - {"__version__"}:
        value = getattr(windlass, name)
        assert value.__doc__, name
        if isinstance(value, type):
            for own, member in vars(value).items():
                if not own.startswith("_") and (callable(member) or isinstance(member, property)):
                    assert inspect.getdoc(getattr(value, own)), f"{name}.{own}"
