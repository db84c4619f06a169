"""The content of functions and values: the same in every process and every place of a file, another one when what they do is another."""

from __future__ import annotations

import fractions
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import numpy
import pytest

from windlass import own_classes
from windlass.content import content_of, content_of_function, versions_in, versions_of
from windlass.messages import ObjectName, ObjectRef
from windlass.pickling import pack_call

PROGRAM = """
import dataclasses, enum, functools, json, sys, typing
import numpy as np
from windlass.content import content_of, content_of_function

LIMIT = 3
WORDS = {"alpha", "beta", "gamma", "delta"}

class Colour(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Point:
    x: int
    def other(self):
        return Pair(self.x)

class Pair:
    __slots__ = ("a",)
    def __init__(self, a):
        self.a = a
    def back(self):
        return Point(self.a)
    @property
    def twice(self):
        return 2 * self.a

def helper(n):
    return n + 1 if n in {"x", "y", "zz"} else np.sum(n)

def again(p, depth=0):
    if p.x in WORDS and depth < LIMIT:
        return again(p, depth + 1)
    return helper(p.x), Pair, Colour.RED

@functools.lru_cache
def cached(x):
    return x

def outer(scale):
    return lambda x: x * scale

T = typing.TypeVar("T")
B = typing.TypeVar("B", bound="Point")
C = typing.TypeVar("C", bound=Pair)
Pair.kind = C
P = typing.ParamSpec("P")
Ts = typing.TypeVarTuple("Ts")
Uid = typing.NewType("Uid", int)

def logged(fn):
    @functools.wraps(fn)
    def wrapper(x):
        return fn(x)
    return wrapper

@logged
@functools.singledispatch
def shown(x):
    return "any"

@shown.register(int)
def _(x):
    return "int"

@dataclasses.dataclass
class Box(typing.Generic[T]):
    value: T
    def plus(self, other: typing.Union[int, T]):
        return Box[T], typing.Union[int, B], C

print(json.dumps([content.hex() if content else None for content in (
    content_of_function(again, ()),
    content_of_function(cached, ()),
    content_of_function(outer(3), ()),
    content_of_function(functools.partial(again, depth=2), ()),
    content_of_function(Point(3).other, ()),
    content_of_function(np.dot, ()),
    content_of([Point(3), Pair(2), {"s", "t", frozenset({"u", 1})}, Colour.RED, np.arange(100_000), b"b", "s", None]),
    content_of_function(Box(3).plus, ()),
    content_of([Box[int](3), Box]),
    content_of([P, Ts, Uid]),
    content_of_function(shown, ()),
)]))
"""


def run(program: str, **env: str) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True, check=True
    ).stdout.strip()
    words: list[str] = found.strip("[]").split(", ")
    assert all(word != "null" for word in words), found
    return words


def test_contents_are_the_same_in_every_process_and_wherever_the_code_stands() -> None:
    """Other hashes of texts, other numbers of classes, other lines of the file: nothing that a program does."""
    first = run(PROGRAM, PYTHONHASHSEED="1")
    assert len(set(first)) == len(first)
    assert run(PROGRAM, PYTHONHASHSEED="2") == first
    assert run("# a comment above all\n\n\n" + PROGRAM, PYTHONHASHSEED="3") == first


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        ("n + 1 if", "n + 2 if", {0, 3}),  # a helper's helper
        ("LIMIT = 3", "LIMIT = 4", {0, 3}),  # a global
        ('"delta"', '"epsilon"', {0, 3}),  # in a set
        ("2 * self.a", "3 * self.a", {0, 3, 4, 6, 7, 8}),  # a property of a class that is reached
        ("outer(3)", "outer(4)", {2}),  # a closure
        ("depth=2", "depth=1", {3}),
        ("Point(3).other", "Point(4).other", {4}),
        ('bound="Point"', 'bound="Pair"', {7, 8}),
        ("np.dot", "np.vdot", {5}),
        ('"Uid", int', '"Uid", str', {9}),
        ('return "int"', 'return "integer"', {10}),
        ("np.arange(100_000)", "np.arange(100_000)[::-1].copy()", {6}),
    ],
)
def test_what_does_something_else_has_another_content(old: str, new: str, differs: set[int]) -> None:
    assert PROGRAM.count(old) == 1
    before, after = run(PROGRAM), run(PROGRAM.replace(old, new))
    assert {number for number, (one, other) in enumerate(zip(before, after, strict=True)) if one != other} == differs


def test_looking_at_a_class_makes_no_other_of_it() -> None:
    """Before Python 3.14 who looks for annotations puts an empty dict of them into a class that has none."""

    class Bare:
        pass

    class Bases(Bare):
        x: int

    before = [content_of(Bare), content_of(Bases)]
    assert own_classes.fits(Bare, type("Bare", (), {"__qualname__": Bare.__qualname__, "__module__": Bare.__module__}))
    assert "__annotations__" not in vars(Bare)
    assert Bare.__annotations__ == {}
    assert [content_of(Bare), content_of(Bases)] == before
    assert None not in before
    del Bases.__annotations__
    assert content_of(Bases) != before[1]


def test_a_local_module_counts_with_its_source(tmp_path: Path) -> None:
    """A function of one goes by name, and so does a class among the arguments."""
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1] if len(sys.argv) > 1 else FOLDER); import helpers\n"
        "from windlass.content import content_of\n"
        "print(json.dumps([content_of(helpers.Thing()).hex()]))"
    ).replace("FOLDER", repr(str(tmp_path)))
    (tmp_path / "helpers.py").write_text("class Thing:\n    size = 1\n")
    before = run(program)
    (tmp_path / "helpers.py").write_text("class Thing:\n    size = 2\n")
    assert run(program, PYTHONDONTWRITEBYTECODE="1") != before


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., None]:
    """Put a distribution with a module of its name into a folder of installed ones; again: install it anew."""

    def install(name: str, version: str, text: str = "", **files: str) -> None:
        place = tmp_path / "site-packages"
        about = place / f"{name}-0.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.py").write_text(text)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for file, content in files.items():
            (about / file.replace("_json", ".json").replace("_txt", ".txt")).write_text(content)

    return install


#: Of a function, of a class of a local module, and of a function that goes by value among the arguments.
USES = """
import json, sys
sys.path[:0] = FOLDERS
import helpers
from windlass import functions
from windlass.content import content_of, content_of_function
from windlass.messages import ObjectName, ObjectRef
from windlass.objects import content_name

def put(data):
    return ObjectRef(ObjectName(content_name(data)), len(data))

def by_value(x):
    return helpers.paint(x)

def imports(x):
    import colour_package
    return x

def of(fn):
    return content_of_function(fn, functions.define(fn, put).definition.code)

found = [of(helpers.paint), of(by_value), of(imports), content_of([helpers.Thing()]), content_of({imports})]
print(json.dumps([content.hex() for content in found]))
"""


def test_versions_count_of_what_the_source_of_a_local_module_imports(tmp_path: Path, package: Callable[..., None]) -> None:
    """Nothing of that is in the code of a function that goes by name. What nobody imports does not count, nor what is only imported now."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "helpers.py").write_text("import deep\n\ndef paint(x):\n    return deep.paint(x)\n\nclass Thing:\n    pass\n")
    (project / "deep.py").write_text("def paint(x):\n    import colour_package\n    return x\n")
    package("colour_package", "1")
    package("other_package", "1")
    program = USES.replace("FOLDERS", repr([str(project), str(tmp_path / "site-packages")]))
    before = run(program)
    package("colour_package", "1", "__version__ = 'told'")
    package("other_package", "2")
    assert run(program) == before
    assert run(program.replace("import helpers\n", "import helpers, colour_package\n", 1)) == before
    package("colour_package", "2")
    assert all(new != old for new, old in zip(run(program), before, strict=True))


def test_a_package_of_which_only_subpackages_have_code_counts_whether_it_is_imported_or_not(
    tmp_path: Path, package: Callable[..., None]
) -> None:
    """As google or opentelemetry, whose folder several distributions share."""
    program = USES.replace("FOLDERS", repr([str(tmp_path / "project"), str(tmp_path / "site-packages")]))
    program = program.replace("import colour_package", "import colour_space.paints")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "helpers.py").write_text(
        "def paint(x):\n    import colour_space.paints\n    return x\n\nclass Thing:\n    pass\n"
    )
    package("colour_paints", "1", top_level_txt="colour_space\n")
    paints = tmp_path / "site-packages" / "colour_space" / "paints"
    paints.mkdir(parents=True)
    (paints / "__init__.py").write_text("")
    before = run(program)
    assert run(program.replace("import helpers\n", "import helpers, colour_space.paints\n", 1)) == before
    package("colour_paints", "2", top_level_txt="colour_space\n")
    assert all(new != old for new, old in zip(run(program), before, strict=True))


def test_versions_count_of_what_a_stream_names() -> None:
    """A model of a package, as an argument: the function that is given it calls its methods, and names nothing of the package itself."""
    payload, _ = pack_call(({"x": numpy.arange(3)}, fractions.Fraction(1, 2), numpy.float64(1)), {}, NotImplemented)
    assert versions_in(payload) == f"{versions_of('numpy')}\n"
    assert versions_in(pack_call((["numpy", "ndarray"] * 50, fractions.Fraction(1, 2)), {}, NotImplemented)[0]) == ""
    assert versions_in(pack_call((["numpy", "ndarray"] * 50,), {}, NotImplemented)[0]) == ""


def test_source_counts_and_not_the_archive_that_it_travels_in(tmp_path: Path) -> None:
    """Another cluster's zlib packs it otherwise, and a copy may have lost who can execute a file."""
    (tmp_path / "helpers.py").write_text(
        "def paint(x):\n    return x\n\nclass Thing:\n    pass\n" + "".join(f"x{n} = {n}\n" for n in range(99))
    )
    program = USES.replace("FOLDERS", repr([str(tmp_path)]))
    other = """
import zipfile
plain = zipfile.ZipFile
zipfile.ZipFile = lambda *words, **named: plain(*words, **{**named, "compresslevel": 9})
"""
    before = run(program)
    assert run(other + program) == before
    (tmp_path / "helpers.py").chmod(0o755)
    assert run(program) == before


def test_a_package_that_was_installed_anew_counts_without_a_new_version(
    tmp_path: Path, package: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pip install .`` after a bug was mended: pip notes where it came from, and what was installed. Of what comes from an index the
    version says it all, and of what was not installed by pip there are the files."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages"), *sys.path])
    url = '{"dir_info": {}, "url": "file:///home/me/shade"}'

    def told(text: str, **files: str) -> str:
        package("shade_package", "1", text, **files)
        versions_of.cache_clear()
        return versions_of("shade_package")

    def record(text: str, more: str = "") -> str:
        return f"shade_package.py,sha256={text},5\nshade_package-0.dist-info/RECORD,,\n{more}"

    assert told("x = 1", RECORD=record("one")) == told("x = 2", RECORD=record("two")) == "shade_package shade-package=1"
    of_folder = told("x = 2", RECORD=record("two"), direct_url_json=url)
    assert of_folder.startswith("shade_package shade-package=1+")
    others = "../../../bin/shade,sha256=y,3\n__pycache__/shade_package.cpython-311.pyc,,\n"
    assert told("x = 2", RECORD=record("two", others)) == of_folder
    assert told("x = 3", RECORD=record("three")) != of_folder
    assert told("x = 3", direct_url_json=url.replace("{}", '{"editable": true}')) == "shade_package shade-package=1"
    shutil.rmtree(tmp_path / "site-packages" / "shade_package-0.dist-info")
    versions_of.cache_clear()
    without = versions_of("shade_package")
    (tmp_path / "site-packages" / "shade_package.py").write_text("x = 4")
    versions_of.cache_clear()
    assert versions_of("shade_package") != without


def double(x: int) -> int:
    return 2 * x


def test_what_else_decides_about_results_counts() -> None:
    """Snapshots, and whatever a library adds: a context, variables."""
    plain = content_of_function(double, ())
    assert plain == content_of_function(double, ())
    with_code = content_of_function(double, (ObjectRef(ObjectName("b3-" + "1" * 32), 5),))
    with_more = content_of_function(double, (), ("OMP_NUM_THREADS", 4))
    assert len({plain, with_code, with_more}) == 3


def test_what_cannot_be_pickled_has_no_content() -> None:
    lock = threading.Lock()
    assert content_of(lock) is None
    assert content_of([1, (2, lock)]) is None


def test_texts_bytes_and_numbers_are_told_apart() -> None:
    assert len({content_of(value) for value in ("a", b"a", 1, 1.0, True, "1", (1,), [1], {1}, frozenset({1}))}) == 10
    assert content_of({"b": 1, "a": 2}) != content_of({"a": 2, "b": 1})  # whose order is theirs


class Energy(float):
    def __repr__(self) -> str:
        return f"{self:.2f} eV"


class Parts:
    """Of bytes that leave the stream, and nothing in it says how many they are."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        return Parts, tuple(map(PickleBuffer, self.parts))


def test_no_two_values_have_one_content() -> None:
    """Though they say the same of themselves, or their buffers one after the other are the same."""
    assert content_of({Energy(1.001)}) != content_of({Energy(1.004)})
    assert content_of({Energy(1.001)}) == content_of({Energy(1.001)})
    assert content_of(Parts(b"ab", b"c")) != content_of(Parts(b"a", b"bc"))


def test_a_distribution_counts_with_all_that_it_requires() -> None:
    """numpy under scipy decides about results as much as scipy."""
    told = versions_of("hypothesis")
    assert "hypothesis=" in told
    assert "sortedcontainers=" in told
    assert "pytest=" not in told  # an extra
    assert versions_of("nothing_of_the_kind").startswith("nothing_of_the_kind ")
