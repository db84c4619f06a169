"""Functions from a script, from modules beside it, from editable installs, and from a notebook: run as a user runs them."""

# pyright: reportUnknownMemberType=false
# pytest's syspath_prepend has no types.

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import windlass

SCRIPT = """
import dataclasses, enum, json, site, sys
site.addsitedir(sys.argv[1])  # where the editable installs are known, to this program only

import windlass
import helpers as h
import hooked_package
import plain_package
from toolbox.inner import deep

FACTOR = 3

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Point:
    x: int
    colour: Colour = Colour.RED
    def doubled(self):
        return Point(self.x * 2, self.colour)

class Trouble(Exception):
    def __init__(self, number, reason):
        super().__init__(f"{reason} ({number})")
        self.number = number

class Counter:
    made = 0
    def __init__(self):
        type(self).made += 1
    def __call__(self, x):
        return x + FACTOR

def times(x):
    return x * FACTOR

def by_helper(x):
    return times(x) + 1

def from_body(x):
    import helpers
    return helpers.double(x), helpers.__name__

def from_global(x):
    return h.double(x)

def submodule():
    import toolbox.inner.deep
    return toolbox.inner.deep.depth()

def data_file():
    import toolbox
    return toolbox.read_data()

def move(point):
    return point.doubled()

def make():
    return [Point(1), Point(2, Colour.RED)]

def trouble():
    raise Trouble(7, "main trouble")

def editable():
    return hooked_package.name(), plain_package.name(), plain_package.__file__

def recursive(n):
    return 1 if n < 2 else n * recursive(n - 1)

def main():
    says = {}
    with windlass.Executor("local", cores=1) as pool:
        run = lambda fn, *args: pool.submit(fn, *args).result(30)
        says["function"] = run(times, 5)
        says["helper"] = run(by_helper, 5)
        says["body"] = run(from_body, 5)
        says["global"] = run(from_global, 5)
        says["module function"] = run(h.double, 5)
        says["submodule"] = run(submodule)
        says["deep function"] = run(deep.depth)
        says["data"] = run(data_file)
        says["lambda"] = run(lambda x: x + FACTOR, 1)
        says["recursive"] = run(recursive, 20)
        moved = run(move, Point(4))
        says["class there and back"] = [type(moved) is Point, moved == Point(8), moved.colour is Colour.RED]
        made = run(make)
        says["class made there"] = [type(one) is Point for one in made] + [made[1].colour is Colour.RED, made[0].doubled() == Point(2)]
        says["method"] = run(Point(5).doubled).x
        says["class as function"] = run(Point, 6) == Point(6)
        says["callable object"] = run(Counter(), 1)
        says["local class as argument"] = run(lambda thing: thing.size(), h.Thing(3))
        says["local class as result"] = type(run(h.make_thing, 4)) is h.Thing
        try:
            run(trouble)
        except Trouble as error:
            says["exception"] = [type(error) is Trouble, error.number, str(error), str(error.__cause__)]
        says["editable"] = run(editable)
        says["editable here"] = plain_package.__file__
        # The classes of the program are what they were after results of them have come back.
        says["classes untouched"] = [Point.doubled.__globals__ is globals(), Counter.made]
        before = FACTOR
        globals()["FACTOR"] = 10
        says["changed global"] = [before, run(times, 5)]
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1):
        manager.install_library("lib", times, from_body, submodule, data_file)
        names = ["times", "from_body"]
        says["library"] = [manager.submit(windlass.FunctionCall("lib", name, 2)).result(30) for name in names]
        says["library"] += [manager.submit(windlass.FunctionCall("lib", name)).result(30) for name in ["submodule", "data_file"]]
    print(json.dumps(says))

if __name__ == "__main__":
    main()
"""

FINDER = """
import importlib.util, sys
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "hooked_package":
            return importlib.util.spec_from_file_location(name, {path!r}, submodule_search_locations=[{folder!r}])
def install():
    sys.meta_path.append(Finder)
"""


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module look at one run of a script."""


@pytest.fixture(scope="module")
def says(tmp_path_factory: pytest.TempPathFactory, leaves_nothing_running: None) -> dict[str, Any]:
    """What the script said, run by path from another folder."""
    root = tmp_path_factory.mktemp("user")
    project, installed = root / "project", root / "site"
    plain, hooked = root / "plain", root / "hooked"
    for folder in (project / "toolbox" / "inner", installed, plain / "plain_package", hooked / "hooked_package", root / "elsewhere"):
        folder.mkdir(parents=True)
    (project / "script.py").write_text(SCRIPT)
    (project / "helpers.py").write_text(
        "import other_helper\n"
        "def double(x): return other_helper.twice(x)\n"
        "class Thing:\n    def __init__(self, n): self.n = n\n    def size(self): return self.n\n"
        "def make_thing(n): return Thing(n)\n"
    )
    (project / "other_helper.py").write_text("def twice(x): return 2 * x\n")
    # A name that would hide the standard library's must not break the pilot.
    (project / "random_data.txt").write_text("not a module")
    (project / "toolbox" / "__init__.py").write_text(
        "import os\ndef read_data(): return open(os.path.join(os.path.dirname(__file__), 'data.txt')).read()\n"
    )
    (project / "toolbox" / "data.txt").write_text("the data")
    (project / "toolbox" / "inner" / "__init__.py").touch()
    (project / "toolbox" / "inner" / "deep.py").write_text("from .. import read_data\ndef depth(): return ['deep', read_data()]\n")
    (plain / "plain_package" / "__init__.py").write_text("def name(): return __name__\n")
    (hooked / "hooked_package" / "__init__.py").write_text("def name(): return __name__\n")
    # The two ways in which pip installs something as editable: a path, or a finder.
    (installed / "__editable__.plain.pth").write_text(f"{plain}\n")
    (installed / "__editable__.hooked.pth").write_text("import __editable___hooked_finder; __editable___hooked_finder.install()\n")
    package = hooked / "hooked_package"
    (installed / "__editable___hooked_finder.py").write_text(FINDER.format(path=str(package / "__init__.py"), folder=str(package)))
    done = subprocess.run(
        [sys.executable, str(project / "script.py"), str(installed)],
        cwd=root / "elsewhere",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("function", 15),
        ("helper", 16),
        ("lambda", 4),
        ("recursive", 2432902008176640000),
        ("changed global", [3, 50]),
        ("method", 10),
        ("class as function", True),
        ("callable object", 4),
    ],
)
def test_functions_of_the_script_go_by_value(says: dict[str, Any], what: str, expected: object) -> None:
    """With the helpers and globals that they use, as these are at submit."""
    assert says[what] == expected


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("body", [10, "helpers"]),
        ("global", 10),
        ("module function", 10),
        ("submodule", ["deep", "the data"]),
        ("deep function", ["deep", "the data"]),
        ("data", "the data"),
        ("local class as argument", 3),
        ("local class as result", True),
        ("library", [20, [4, "helpers"], ["deep", "the data"], "the data"]),
    ],
)
def test_modules_beside_the_script_go_along(says: dict[str, Any], what: str, expected: object) -> None:
    """The worker cannot import them from where they are: their source travels, with submodules and files beside ``__file__``."""
    assert says[what] == expected


def test_objects_of_classes_in_the_script_keep_their_class(says: dict[str, Any]) -> None:
    """Sent, returned, or made on the worker: what comes back is of the program's own class, enum members are the same objects."""
    assert says["class there and back"] == [True, True, True]
    assert says["class made there"] == [True, True, True, True]
    assert says["classes untouched"] == [True, 1]


def test_exceptions_of_classes_in_the_script_are_caught_as_such(says: dict[str, Any]) -> None:
    """With attributes, although ``__init__`` takes more than the message; its traceback shows the script's own line."""
    is_own, number, text, trace = says["exception"]
    assert (is_own, number, text) == (True, 7, "main trouble (7)")
    assert "in trouble" in trace
    assert 'raise Trouble(7, "main trouble")' in trace


def test_editable_installs_go_along(says: dict[str, Any]) -> None:
    """Both ways of an editable install work, from a snapshot and not from the place that only the program knows."""
    hooked, plain, file = says["editable"]
    assert (hooked, plain) == ("hooked_package", "plain_package")
    assert file != says["editable here"]


def test_functions_of_installed_modules_and_builtins_go_by_name() -> None:
    """What every worker has is named, not sent: NumPy's, the standard library's, builtins."""
    import statistics

    import numpy as np

    with windlass.Executor("local", cores=1) as pool:
        assert pool.submit(statistics.fmean, [1, 2, 3]).result(20) == 2
        assert pool.submit(np.add, 1, 2).result(20) == 3
        assert pool.submit(np.linalg.norm, np.array([3.0, 4.0])).result(20) == 5.0
        assert pool.submit(sorted, [3, 1, 2], reverse=True).result(20) == [3, 2, 1]
        assert pool.submit("a-b".split, "-").result(20) == ["a", "b"]
        assert pool.submit(dict, a=1).result(20) == {"a": 1}


def test_an_edited_helper_is_used_by_the_next_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is edited while the program runs (as notebooks' users do) is sent again; old pilots load the new text.

    That holds for functions that use it, for others that are given an instance of a class of it, also one that a call gave before
    the edit, and when the edit is undone.
    """
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    helper, given = tmp_path / "edited_helper.py", tmp_path / "edited_given.py"
    text = "ANSWER = 1\nclass Thing:\n    def answer(self): return ANSWER\n"
    for path in (helper, given):
        path.write_text(text)
    things = [importlib.import_module(name).Thing() for name in ("edited_helper", "edited_given")]

    def answer() -> int:
        import edited_helper  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

        return int(edited_helper.ANSWER)  # pyright: ignore[reportUnknownArgumentType]

    def answer_of(thing: Any) -> int:
        return int(thing.answer())

    def answers_of(*things: Any) -> list[int]:
        return [thing.answer() for thing in things]

    def same(thing: Any) -> Any:
        return thing

    with windlass.Executor("local", cores=1) as pool:

        def answers() -> list[int]:
            calls = [*(pool.submit(answer_of, thing) for thing in things), pool.submit(answer)]
            return [call.result(20) for call in calls]

        assert answers() == [1, 1, 1]
        before = [pool.submit(same, thing) for thing in things]
        for number in (22, 1):
            for path in (helper, given):
                path.write_text(text.replace("1", str(number)))
            # Files are looked at once a second; until then the old text is right.
            for _ in range(1000):
                found = answers()
                if found == [number] * 3:
                    break
                assert set(found) <= {1, 22}
                _wait_a_little()
            assert answers() == [number] * 3
            assert pool.submit(answers_of, *before, *things).result(20) == [number] * 4


def _wait_a_little() -> None:
    import time

    time.sleep(0.05)  # the cache of files is a matter of time alone


MAKES = """
import windlass
pool = windlass.Executor("local", cores=1)

def double(x):
    return 2 * x
"""


def test_a_module_that_makes_an_executor_when_it_is_imported_makes_none_on_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that a call imports; but a call may make one, and the function of a context."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "makes_a_pool.py").write_text(MAKES)
    module = importlib.import_module("makes_a_pool")
    told = "module 'makes_a_pool' makes an Executor when it is imported"

    def imports_it() -> int:
        import makes_a_pool  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

        return int(makes_a_pool.double(1))  # pyright: ignore[reportUnknownArgumentType]

    def makes_one() -> str:
        with windlass.Executor(None) as inner:
            return type(inner).__name__

    def given(context: str) -> str:
        return context

    with module.pool as pool:
        with pytest.raises(windlass.WindlassError, match=told):
            pool.submit(module.double, 2).result(30)
        with pytest.raises(windlass.WindlassError, match=told):
            pool.submit(imports_it).result(30)
        assert pool.submit(makes_one).result(30) == "Executor"
        pool.manager.install_library("lib", given, context=(makes_one, [], {}))
        assert pool.manager.submit(windlass.FunctionCall("lib", "given")).result(30) == "Executor"


def test_a_module_that_cannot_be_imported_on_the_worker_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as something that cannot be pickled, and with the module's frames alone; as is one that was edited until it lacks a name."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "table.pickle").write_text("1")
    reads, edited = tmp_path / "reads_beside_it.py", tmp_path / "edited_away.py"
    reads.write_text("import pathlib\nONE = pathlib.Path(__file__).with_name('table.pickle').read_text()\ndef one():\n    return ONE\n")
    edited.write_text("def go():\n    return 1\n")
    one, go = (getattr(importlib.import_module(file.stem), name) for file, name in ((reads, "one"), (edited, "go")))

    class Given:
        def __reduce__(self) -> tuple[Any, ...]:
            return one, ()

    def takes(given: object) -> object:
        return given

    edited.write_text("def gone():\n    return 1\n")
    told = r"module 'reads_beside_it' cannot be imported there: FileNotFoundError: .*'; a module beside the script travels alone, a package"
    with windlass.Executor("local", cores=1) as pool:
        calls: list[tuple[str, tuple[Any, ...]]] = [("function 'one' of", (one,)), ("the arguments of 'takes'", (takes, Given()))]
        for what, call in calls:
            with pytest.raises(windlass.CallFailed, match=f"^{what}.* cannot be loaded on the worker: {told}") as caught:
                pool.submit(*call).result(30)
            files = [line.split('"')[1] for line in str(caught.value).splitlines() if line.startswith("  File ")]
            assert files[0].endswith("/reads_beside_it.py")
            assert not any("windlass/worker" in file or "cloudpickle" in file for file in files)
        with pytest.raises(windlass.CallFailed, match=r": module 'edited_away' has no 'go' there: the file was edited since") as lacks:
            pool.submit(go).result(30)
        assert "Traceback" not in str(lacks.value)
        manager: Any = pool.manager
        manager.install_library("lib", one)
        with pytest.raises(windlass.LibraryFailed, match=f"function 'one' of library 'lib' cannot be loaded: {told}") as failed:
            manager.submit(windlass.FunctionCall("lib", "one")).result(30)
        assert "hoist.py" not in str(failed.value)


def test_a_module_of_the_program_s_that_is_imported_by_a_computed_name_is_told_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to install it on the node: the function is to import it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plug_a.py").write_text("def go():\n    return 1\n")

    def by_name(name: str) -> int:
        return int(importlib.import_module(name).go())

    def by_statement(name: str) -> int:
        import plug_a  # type: ignore[import-not-found]  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]

        return int(importlib.import_module(name).go())

    with windlass.Executor("local", cores=1) as pool:
        with pytest.raises(ModuleNotFoundError) as caught:
            pool.submit(by_name, "plug_a").result(30)
        (note,) = caught.value.__notes__
        assert "a module of the program's, and did not travel" in note
        assert note.endswith("write `import plug_a` in the function")
        with pytest.raises(ModuleNotFoundError) as caught:
            pool.submit(by_name, "plug_b").result(30)
        assert caught.value.__notes__[0].endswith("which must have what calls import; see: windlass explain environments")
        assert pool.submit(by_statement, "plug_a").result(30) == 1


NOTEBOOK = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for cell in json.loads(sys.argv[1]):
    result = shell.run_cell(cell, store_history=True)
    result.raise_error()
"""
CELLS = [
    "import windlass, math\nmanager = windlass.Manager()\nfactory = windlass.Factory(manager, 'local', cores=1)\nfactory.start()",
    "scale = 2\nclass Box:\n    def __init__(self, size): self.size = size\n    def grow(self): return Box(self.size * scale)",
    "def area(r):\n    return math.floor(math.pi * r * r)\ndef fail(box):\n    raise ValueError(f'too small: {box.size}')",
    "manager.install_library('lib', area, fail)\ncall = lambda *a: manager.submit(windlass.FunctionCall('lib', *a)).result(30)",
    "assert call('area', 2) == 12",
    "pool = windlass.Executor(None, manager=manager)\nbox = pool.submit(Box(3).grow).result(30)\nassert type(box) is Box and box.size == 6",
    "def area(r):\n    return 'second version'\nmanager.install_library('lib', area, fail)\nassert call('area', 2) == 'second version'",
    "try:\n    call('fail', Box(1))\nexcept ValueError as error:\n    text = str(error.__cause__)\n"
    "assert 'in fail' in text and 'raise ValueError(f' in text, text",
    "scale = 5\nassert pool.submit(Box(3).grow).result(30).size == 15",
    "factory.close(); manager.close()\nprint('all cells ran')",
]


@pytest.mark.skipif(importlib.util.find_spec("IPython") is None, reason="IPython is not installed")
def test_a_notebook_works_cell_by_cell() -> None:
    """Functions and classes of cells, a function defined again, globals changed between cells, tracebacks with the cell's lines."""
    done = subprocess.run([sys.executable, "-c", NOTEBOOK, json.dumps(CELLS)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("all cells ran")


CONSOLE = """
import windlass

def twice(x):
    return 2 * x

with windlass.Executor("local", cores=1) as pool:
    print(pool.submit(twice, 21).result(30))

"""


@pytest.mark.parametrize("how", [["-"], ["-i", "-q"], ["-c", CONSOLE]])
def test_functions_without_a_file_work(how: list[str]) -> None:
    """Typed at the prompt, piped in, or given with ``-c``: there is no file that a worker could read."""
    given = "" if how[0] == "-c" else CONSOLE
    done = subprocess.run([sys.executable, *how], input=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("42")


def test_functions_with_much_data_in_them_are_let_go(caplog: pytest.LogCaptureFixture) -> None:
    """An optimiser that submits a new partial each time: together they are larger than what a worker may hold of its pilot's memory."""
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1, memory="512MB", max_pilots=1):
        for _ in range(90):
            future = manager.submit_function(functools.partial(len, os.urandom(3 << 20)))
            assert future.result(60) == 3 << 20
    (told,) = [message for message in caplog.messages if "other data" in message]
    assert told.startswith("len was submitted with other data in it 86 times")
