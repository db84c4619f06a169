"""Functions of all kinds, defined once, loaded by another process; the same again costs nothing, a changed one is never served stale."""

# Functions and values of any type are what is tested here, and what a module keeps to itself.
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import enum
import functools
import gc
import importlib
import linecache
import logging
import math
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from windlass import functions, pickling, snapshots
from windlass.coroutines import is_async
from windlass.errors import NotPicklable, UsageError
from windlass.functions import Defined, define, pack_context
from windlass.messages import OUT_OF_BAND_BYTES, FunctionDef, LibrarySpec, ObjectRef
from windlass.object_store import ObjectStore

FACTOR: Any = 2
TABLE: Any = [1]


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "store")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder on the path, and a module name of this test's own."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    top = f"mine_{os.urandom(4).hex()}"
    yield folder, top
    for name in [name for name in sys.modules if name.startswith(top)]:
        del sys.modules[name]


LOADER = """
import pickle, sys
from pathlib import Path
import msgspec
from windlass import pickling, snapshots
from windlass.messages import FunctionDef
from windlass.objects import open_in
store, code = sys.argv[1:3]
definition, args, expression = pickle.loads(sys.stdin.buffer.read())
definition = msgspec.msgpack.decode(definition, type=FunctionDef)
for ref in definition.code:
    snapshots.use(snapshots.unpack(Path(store) / ref.name, snapshots.code_folder(code, ref.name)))
blob = open_in(store, definition.object.name) if definition.object else definition.blob
function = pickle.loads(blob)
try:
    result = function(*args)
    print(eval(expression))
except Exception as error:
    print(pickling.pack_exception(error)[1].text)
"""


def called_elsewhere(store: ObjectStore, defined: Defined, *args: Any, expression: str = "repr(result)") -> str:
    """What a fresh process says of a call; it has the definition and the objects, as a worker has."""
    order = pickle.dumps((msgspec.msgpack.encode(defined.definition), args, expression))
    code_folder = store.folder.parent / "code"
    code_folder.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", LOADER, store.folder, code_folder], input=order, capture_output=True, cwd="/")
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def named(x: Any) -> Any:
    return x * FACTOR


def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(function)
    def wrapper(x: Any) -> Any:
        return "wrapped", function(x)

    return wrapper


@decorate
def decorated(x: Any) -> Any:
    return x + 1


class Adder:
    total = 10

    def __init__(self, step: int) -> None:
        self.step = step

    def add(self, x: int) -> int:
        return x + self.step

    def __call__(self, x: int) -> int:
        return x + self.step + self.total

    @classmethod
    def of_class(cls, x: int) -> int:
        return x + cls.total

    @staticmethod
    def static(x: int) -> int:
        return x + 1


def make_closure(n: Any) -> Callable[[Any], Any]:
    return lambda x: x + n


def recursive(x: int) -> int:
    return 1 if x == 0 else x * recursive(x - 1)


@pytest.mark.parametrize(
    ("function", "name", "result"),
    [
        (named, "named", "6"),
        (lambda x: x - 1, "<lambda>", "2"),
        (make_closure(4), "<lambda>", "7"),
        (decorated, "decorated", "('wrapped', 4)"),
        (recursive, "recursive", "6"),
        (Adder(2).add, "add", "5"),
        (Adder(2), "Adder", "15"),
        (Adder.of_class, "of_class", "13"),
        (Adder.static, "static", "4"),
        (functools.partial(pow, 2), "pow", "8"),
        (functools.partial(named), "named", "6"),
        (math.factorial, "factorial", "6"),
        (str, "str", "'3'"),
        (np.negative, "negative", "np.int64(-3)"),
        ([1, 2, 3].count, "count", "1"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value)[:20],
)
def test_functions_of_all_kinds_can_be_called_elsewhere(function: Callable[..., Any], name: str, result: str, store: ObjectStore) -> None:
    defined = define(function, store.put)
    assert defined.definition.name == name
    assert len(defined.definition.id) == 16
    assert called_elsewhere(store, defined, 3) == result


def test_generators_that_modules_share_go_by_name(store: ObjectStore) -> None:
    """``from random import randint``: with the generator's state each slot would draw the same numbers."""
    from random import randint

    from numpy.random import normal

    def draw() -> Any:
        return randint, normal

    defined = define(draw, store.put)
    shared = "result[0].__self__ is sys.modules['random']._inst, result[1].__self__ is sys.modules['numpy.random.mtrand']._rand"
    assert called_elsewhere(store, defined, expression=shared) == "(True, True)"
    assert {"random", "numpy.random.mtrand"} <= {spec.module for spec in defined.imports}
    own = __import__("random").Random(5)
    assert called_elsewhere(store, define(lambda: own.random(), store.put)) == repr(__import__("random").Random(5).random())


def test_who_pickles_much_with_each_submit_is_told_once(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    data, few, kind = np.zeros(functions.HEAVY_BYTES), [1, 2], np.ndarray  # which has an nbytes, too

    class Proxy:
        def __getattr__(self, name: str) -> Any:
            raise LookupError("not yet") if name == "nbytes" else AttributeError(name)

    proxy = Proxy()

    def pick(number: int) -> Any:
        assert isinstance(data, kind)
        return data[number], few

    def pick_by_proxy(number: int) -> Any:
        return pick(number), proxy

    define(pick, store.put)
    assert not caplog.records, "once is fine"
    for _ in range(3):
        define(pick, store.put)
    (told,) = caplog.messages
    assert told.startswith("pick refers to 34 MB ('data' above all), which each submit pickles again, as it may have changed: pass it as")
    assert called_elsewhere(store, define(pick, store.put), 3) == "(np.float64(0.0), [1, 2])"
    for _ in range(3):
        define(pick_by_proxy, store.put)
    assert len(caplog.messages) == 2


def test_a_heavy_method_is_told_of_as_well(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    """Each time that a program says ``model.method`` it is a new object."""

    class Model:
        def __init__(self) -> None:
            self.parts = [np.zeros(functions.HEAVY_BYTES)]

        def evaluate(self, number: int) -> Any:
            return self.parts[0][number]

        def other(self, number: int) -> Any:
            return self.parts[0][number]

    model = Model()
    define(model.evaluate, store.put)
    assert not caplog.records, "once is fine"
    for _ in range(3):
        define(model.evaluate, store.put)
    (told,) = caplog.messages
    assert told.startswith("evaluate refers to 34 MB ('self' above all), which each submit pickles again")
    define(model.other, store.put)
    define(Model().evaluate, store.put)
    assert len(caplog.messages) == 1
    define(model.other, store.put)
    assert len(caplog.messages) == 2
    gc.collect()  # what other tests have left
    kept = len(functions._kept)
    del model
    gc.collect()
    assert len(functions._kept) == kept - 2


def test_who_submits_much_data_as_functions_is_told_once(
    store: ObjectStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each version is kept, as it may be called again."""
    monkeypatch.setattr(functions, "MANY_BYTES", 20 * OUT_OF_BAND_BYTES)
    monkeypatch.setattr(functions, "_versions", {})
    for _ in range(3):
        define(functools.partial(len, os.urandom(10 * OUT_OF_BAND_BYTES)), store.put)
    assert not caplog.records, "few, if large"
    for _ in range(functions.MANY_VERSIONS):
        define(functools.partial(len, os.urandom(OUT_OF_BAND_BYTES)), store.put)
    (told,) = caplog.messages
    assert told.startswith("len was submitted with other data in it 16 times (a closure, a partial, a method, or globals that change)")


def test_who_pickles_much_but_once_is_told_nothing(store: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot change is pickled again for another manager alone. And what has no hash is a function as well."""
    data = b"x" * (functions.HEAVY_BYTES + 1)
    other = ObjectStore(tmp_path / "other")

    def pick(number: int) -> int:
        return data[number]

    for each in (store, other, store):
        define(pick, each.put)
    assert not caplog.records

    @dataclasses.dataclass
    class Model:
        weights: Any

        def __call__(self, number: int) -> Any:
            return self.weights[number]

    model = Model(np.zeros(functions.HEAVY_BYTES))
    for _ in range(3):
        define(model, store.put)
    assert [text.partition(",")[0] for text in caplog.messages] == [
        "Model refers to 34 MB (its globals",
    ]


def test_the_records_of_defined_functions_go_through_the_wire_format(store: ObjectStore) -> None:
    definition = define(named, store.put).definition
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(definition), type=FunctionDef) == definition


def test_a_function_of_main_or_a_notebook_goes_with_its_source_lines(store: ObjectStore) -> None:
    source = "\n\ndef in_cell(x):\n    y = x\n    return 1 / y\n"
    filename = "<ipython-input-7-abc>"
    lines: list[str] = list(source.splitlines(keepends=True))
    linecache.cache[filename] = (len(source), None, lines, filename)
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, filename, "exec"), space)
    told = called_elsewhere(store, define(space["in_cell"], store.put), 0)
    assert 'File "<ipython-input-7-abc>", line 5, in in_cell\n    return 1 / y' in told
    assert told.endswith("ZeroDivisionError: division by zero")


def test_code_that_was_made_by_exec_needs_no_module(store: ObjectStore) -> None:
    space: dict[str, Any] = {}
    exec("import math\ndef made(x):\n    return math.floor(x)\n", space)
    assert called_elsewhere(store, define(space["made"], store.put), 2.5) == "2"


def test_a_local_modules_function_goes_by_name_with_its_source(project: tuple[Path, str], store: ObjectStore) -> None:
    folder, top = project
    (folder / top).mkdir()
    (folder / top / "__init__.py").write_text("")
    (folder / top / "core.py").write_text(
        f"from {top}.data import load\ndef work(x):\n    import {top}_extra as e\n    return x, load(), e.y\n"
    )
    (folder / top / "data.py").write_text(
        "from pathlib import Path\ndef load():\n    return (Path(__file__).parent / 'd.txt').read_text()\n"
    )
    (folder / top / "d.txt").write_text("data")
    (folder / f"{top}_extra.py").write_text("y = 5\n")
    work = importlib.import_module(f"{top}.core").work
    defined = define(work, store.put)
    assert len(defined.definition.code) == 2
    assert [spec.module for spec in defined.imports] == [f"{top}.core", f"{top}_extra"]
    assert called_elsewhere(store, defined, 1) == "(1, 'data', 5)"


def test_a_local_module_that_a_body_imports_comes_along(project: tuple[Path, str], store: ObjectStore) -> None:
    folder, top = project
    (folder / f"{top}.py").write_text("y = 6\n")
    space: dict[str, Any] = {}
    exec(f"def body():\n    import {top}\n    return {top}.y\n", space)
    defined = define(space["body"], store.put)
    assert len(defined.definition.code) == 1
    assert called_elsewhere(store, defined) == "6"


def test_edited_source_gives_another_definition(project: tuple[Path, str], store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass.snapshots.MAX_AGE", -1.0)
    folder, top = project
    path = folder / f"{top}.py"
    path.write_text("def f(): return 1\n")
    function = importlib.import_module(top).f
    first = define(function, store.put).definition
    assert define(function, store.put).definition is first
    path.write_text("def f(): return 22\n")
    snapshots._snapshots[top].looked_at = -1e9  # as if a second had gone by
    second = define(function, store.put)
    assert second.definition.id != first.id
    assert called_elsewhere(store, second) == "22"


def test_installed_functions_go_by_name_without_code(store: ObjectStore) -> None:
    definition = define(np.linalg.norm, store.put).definition
    assert definition.code == ()
    assert len(definition.blob) < 200


def test_a_large_closure_goes_as_an_object(store: ObjectStore) -> None:
    array = np.ones(OUT_OF_BAND_BYTES)
    definition = define(lambda: array.sum(), store.put).definition
    assert definition.blob == b""
    assert definition.object is not None
    assert definition.object.size > array.nbytes
    assert store.has(definition.object.name)


def test_parameters_are_known_for_error_texts(store: ObjectStore) -> None:
    def function(a: int, /, b: int, *rest: int, key: int = 0) -> None: ...

    defined = define(function, store.put)
    assert defined.parameters == ("a", "b")
    assert str(defined.signature).startswith("(a: ")
    assert define(print, store.put).definition.name == "print"
    assert define(min, store.put).signature is None


# ---------------------------------------------------------------- once, and never stale


@pytest.mark.parametrize("function", [named, make_closure((1, "a")), decorated, math.sqrt, np.dot, functools.partial(named, 3), str, Adder])
def test_the_same_function_again_is_the_same_definition(function: Callable[..., Any], store: ObjectStore) -> None:
    first = define(function, store.put)
    again = define(function, store.put)
    assert again.definition.id == first.definition.id
    assert again is first


def test_functions_of_the_same_content_have_the_same_id(store: ObjectStore) -> None:
    first, second = make_closure(4), make_closure(4)
    assert define(first, store.put).definition.id == define(second, store.put).definition.id
    assert define(make_closure(5), store.put).definition.id != define(first, store.put).definition.id
    adder = Adder(2)
    assert define(adder.add, store.put).definition.id == define(adder.add, store.put).definition.id


def test_a_global_that_is_bound_anew_is_seen(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert called_elsewhere(store, define(named, store.put), 3) == "6"
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 5)
    assert called_elsewhere(store, define(named, store.put), 3) == "15"


def test_a_global_that_comes_into_being_is_seen(store: ObjectStore) -> None:
    space: dict[str, Any] = {}
    exec("def late(): return LATE\n", space)
    assert "NameError" in called_elsewhere(store, define(space["late"], store.put))
    space["LATE"] = 4
    assert called_elsewhere(store, define(space["late"], store.put)) == "4"


def test_a_mutable_global_that_changes_in_place_is_seen(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads() -> Any:
        return TABLE

    monkeypatch.setattr(sys.modules[__name__], "TABLE", [1])
    first = define(reads, store.put)
    assert define(reads, store.put).definition.id == first.definition.id
    TABLE.append(2)
    assert called_elsewhere(store, define(reads, store.put)) == "[1, 2]"


def test_a_table_that_changes_behind_its_own_method_is_seen(store: ObjectStore) -> None:
    """``get = table.get`` is written in C, as functions of modules are, which do not change."""
    table = {1: "old"}
    get, root = table.get, math.sqrt

    def reads() -> Any:
        return get(1), root(4)

    assert called_elsewhere(store, define(reads, store.put)) == "('old', 2.0)"
    table[1] = "new"
    assert called_elsewhere(store, define(reads, store.put)) == "('new', 2.0)"


def test_what_goes_by_its_name_is_pickled_once(store: ObjectStore) -> None:
    """Loggers, generators that modules share, functions of modules in C, methods of such as do not change."""
    from random import randint, random

    log, root, of_class, of_numpy = logging.getLogger(__name__), math.sqrt, Adder.of_class, (np.dot, np.add, np.float64(1), np)

    class Has:
        one = staticmethod(root)
        two = property(lambda self: 2)

    def refers() -> Any:
        return log, root, of_class, randint, random, of_numpy, math, os.path, Has

    assert define(refers, store.put) is define(refers, store.put)
    assert define(Adder.of_class, store.put) is define(Adder.of_class, store.put)


def test_a_module_made_by_hand_that_changes_is_seen(store: ObjectStore) -> None:
    """As one that was loaded by its path and is not in `sys.modules`: it goes with all that it has."""
    config = ModuleType(f"config_{os.urandom(4).hex()}")
    vars(config)["N"] = 1

    def reads() -> Any:
        return config.N

    assert called_elsewhere(store, define(reads, store.put)) == "1"
    vars(config)["N"] = 2
    assert called_elsewhere(store, define(reads, store.put)) == "2"


def test_an_object_of_a_module_that_looks_like_a_function_and_changes_is_seen(project: tuple[Path, str], store: ObjectStore) -> None:
    """What a decorator makes that is a class: its module has it under its name, yet it goes with its attributes."""
    folder, name = project
    (folder / f"{name}.py").write_text(
        textwrap.dedent("""
            import functools

            class task:
                def __init__(self, function):
                    functools.update_wrapper(self, function)
                    self.theta = 1.0

                def __call__(self):
                    return self.theta

            @task
            def predict(): ...
        """)
    )
    predict = importlib.import_module(name).predict

    def uses() -> Any:
        return predict()

    for function in (predict, uses):
        predict.theta = 1.0
        assert called_elsewhere(store, define(function, store.put)) == "1.0"
        predict.theta = 2.0
        assert called_elsewhere(store, define(function, store.put)) == "2.0"


def test_a_record_or_what_a_property_calls_that_changes_is_seen(store: ObjectStore) -> None:
    record: Any = np.zeros(1, [("a", int)])[0]
    partial = functools.partial(lambda table, _: table[0], [1])

    class Has:
        read = property(partial)

    def reads() -> Any:
        return int(record["a"])

    def reads_property() -> Any:
        return Has().read

    assert called_elsewhere(store, define(reads, store.put)) == "0"
    assert called_elsewhere(store, define(reads_property, store.put)) == "1"
    record["a"] = 2
    partial.args[0][0] = 3
    assert called_elsewhere(store, define(reads, store.put)) == "2"
    assert called_elsewhere(store, define(reads_property, store.put)) == "3"


def test_a_closure_that_changes_is_seen(store: ObjectStore) -> None:
    count, items = 1, np.zeros(2)

    def reads() -> Any:
        return count, items.tolist()

    assert called_elsewhere(store, define(reads, store.put)) == "(1, [0.0, 0.0])"
    count = 2
    assert called_elsewhere(store, define(reads, store.put)) == "(2, [0.0, 0.0])"
    items[0] = 7
    assert called_elsewhere(store, define(reads, store.put)) == "(2, [7.0, 0.0])"


def test_a_changed_helper_default_attribute_or_code_is_seen(store: ObjectStore) -> None:
    def helper(x: int = 1) -> int:
        return x

    def function(*, y: int = 1) -> Any:
        return helper(), y, getattr(function, "extra", None)

    def other() -> Any:
        return "other"

    ids = [define(function, store.put).definition.id]
    helper.__defaults__ = (2,)
    ids.append(define(function, store.put).definition.id)
    assert function.__kwdefaults__ is not None
    function.__kwdefaults__["y"] = 2
    ids.append(define(function, store.put).definition.id)
    function.__kwdefaults__ = {"y": 3}
    ids.append(define(function, store.put).definition.id)
    function.extra = 4  # type: ignore[attr-defined]
    ids.append(define(function, store.put).definition.id)
    assert called_elsewhere(store, define(function, store.put)) == "(2, 3, 4)"
    helper.__code__ = other.__code__
    ids.append(define(function, store.put).definition.id)
    assert len(set(ids)) == len(ids)


def test_a_changed_class_is_seen(store: ObjectStore) -> None:
    class Setting(enum.Enum):
        ON = 1

    @dataclasses.dataclass
    class Config:
        x: int = 1
        mode: Setting = Setting.ON

        def get(self) -> int:
            return self.x

    def function() -> Any:
        return Config().get()

    first = define(function, store.put)
    assert define(function, store.put) is first
    Config.get = lambda self: 99  # type: ignore[method-assign]
    assert called_elsewhere(store, define(function, store.put)) == "99"


def test_a_class_stays_what_it_is_when_an_instance_is_pickled(store: ObjectStore) -> None:
    """Though pickle notes something in it then."""

    class Thing:
        pass

    def function() -> Any:
        return Thing

    first = define(function, store.put)
    pickling.pack_call((Thing(),), {}, store.put)
    assert "__slotnames__" in vars(Thing)
    assert define(function, store.put) is define(function, store.put)
    assert define(function, store.put).definition.id == first.definition.id


def test_the_cache_keeps_no_function_alive(store: ObjectStore) -> None:
    function = make_closure(12345)
    define(function, store.put)
    gone = weakref.ref(function)
    key = id(function)
    assert key in functions._kept
    del function
    gc.collect()
    assert gone() is None
    assert key not in functions._kept


def test_the_cache_is_bounded(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_MAX_KEPT", 10)
    closures = [make_closure(number) for number in range(30)]
    ids = {define(closure, store.put).definition.id for closure in closures}
    assert len(ids) == 30
    assert len(functions._kept) <= 10


def test_each_store_gets_what_the_definition_needs(store: ObjectStore, tmp_path: Path) -> None:
    text = "x" * OUT_OF_BAND_BYTES
    function = make_closure(text)
    other = ObjectStore(tmp_path / "other")
    for one in (store, other, store):
        definition = define(function, one.put).definition
        assert definition.object is not None
        assert one.has(definition.object.name)


def test_threads_may_define_at_once(store: ObjectStore) -> None:
    ids: set[bytes] = set()

    def work() -> None:
        for number in range(20):
            ids.add(define(make_closure(number), store.put).definition.id)
            ids.add(define(named, store.put).definition.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 21


# ---------------------------------------------------------------- what cannot be a function


def generator() -> Iterator[int]:
    yield 1


async def coroutine() -> int:
    return 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class GeneratorCallable:
    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize("function", [generator, functools.partial(generator), GeneratorCallable(), GeneratorCallable().__call__])
def test_a_generator_function_is_refused(function: Callable[..., Any], store: ObjectStore) -> None:
    with pytest.raises(
        UsageError, match="is a generator function, and a generator cannot travel back; return a list, or submit one call for each"
    ):
        define(function, store.put)


@pytest.mark.parametrize("function", [async_generator, functools.partial(async_generator)])
def test_an_async_generator_function_is_refused(function: Callable[..., Any], store: ObjectStore) -> None:
    with pytest.raises(UsageError, match="is an async generator function, and a generator cannot travel back; let it be an async function"):
        define(function, store.put)


class AsyncCallable:
    async def __call__(self) -> int:
        return 1


def test_async_functions_are_known_as_such() -> None:
    """Inside of partials and methods too; a class and a plain function that gives a coroutine are none, as nobody can see that."""
    for one in (
        coroutine,
        functools.partial(coroutine),
        functools.partial(functools.partial(coroutine)),
        AsyncCallable(),
        AsyncCallable().__call__,
    ):
        assert is_async(one), one
    for other in (len, generator, async_generator, lambda: coroutine(), AsyncCallable, functools.partial(int, "1"), object()):
        assert not is_async(other), other


def test_a_generator_made_into_a_list_by_a_decorator_is_fine(store: ObjectStore) -> None:
    @functools.wraps(generator)
    def listed() -> list[int]:
        return [1]

    assert called_elsewhere(store, define(listed, store.put)) == "[1]"


@pytest.mark.parametrize("value", [3, None, "name", [len], generator()])
def test_what_cannot_be_called_is_refused(value: Any, store: ObjectStore) -> None:
    with pytest.raises(UsageError, match=r"is no function; pass the function itself, and its arguments beside it: submit\(f, x\)"):
        define(value, store.put)


def test_a_function_that_cannot_travel_says_because_of_what(store: ObjectStore) -> None:
    lock = threading.Lock()

    def locked() -> Any:
        return lock

    with pytest.raises(
        NotPicklable, match=r"the function 'locked' cannot be pickled because of its closure variable 'lock' \(_thread\.lock\)"
    ):
        define(locked, store.put)
    space: dict[str, Any] = {"connection": lock}
    exec("def uses(): return connection\n", space)
    with pytest.raises(
        NotPicklable, match=r"because of its global 'connection' \(_thread\.lock\): TypeError: .*; make that inside the function"
    ):
        define(space["uses"], store.put)


class Service:
    """Holds what cannot travel."""

    def __init__(self) -> None:
        self.inner = {"lock": threading.Lock()}

    def serve(self, number: int) -> int:
        return number


@pytest.mark.parametrize(
    ("function", "because"),
    [
        (Service().serve, r"self\.inner\['lock'\] \(_thread\.lock\)"),
        (functools.partial(Service().serve, 1), r"func self\.inner\['lock'\]"),
        (functools.partial(print, [threading.Lock()]), r"args\[0\]\[0\] \(_thread\.lock\)"),
    ],
    ids=["method", "partial of a method", "partial's argument"],
)
def test_a_method_or_a_partial_that_cannot_travel_says_which_part(function: Callable[..., Any], because: str, store: ObjectStore) -> None:
    """Of its object or its arguments."""
    with pytest.raises(NotPicklable, match=rf"cannot be pickled because of its {because}"):
        define(function, store.put)


# ---------------------------------------------------------------- contexts


def test_a_context_is_packed_with_what_it_needs(project: tuple[Path, str], store: ObjectStore) -> None:
    folder, top = project
    (folder / f"{top}.py").write_text("def build(n, *, plus=0): return {'n': n + plus}\n")
    build = importlib.import_module(top).build
    blob, code, imports = pack_context(build, (4,), {"plus": 1}, store.put)
    assert len(code) == 1
    assert [spec.module for spec in imports] == [top]
    LibrarySpec(id="x@1", name="x", python=(3, 11), context=blob, code=code)  # type: ignore[arg-type]
    function, args, kwargs = pickle.loads(blob)
    assert function(*args, **kwargs) == {"n": 5}
    with pytest.raises(NotPicklable, match="the context function 'build', or an argument of it, cannot be pickled"):
        pack_context(build, (threading.Lock(),), {}, store.put)


def test_a_store_that_is_full_says_so_itself(store: ObjectStore) -> None:
    def put(data: Any) -> ObjectRef:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        define(make_closure("y" * OUT_OF_BAND_BYTES), put)


def test_loading_a_function_needs_no_more_than_pickling(store: ObjectStore) -> None:
    """A slot that loads functions by value imports cloudpickle for them, and nothing of what made them."""
    loaded = "[name for name in ('windlass.functions', 'windlass.byvalue', 'windlass.imports') if name in sys.modules]"
    assert called_elsewhere(store, define(named, store.put), 3, expression=loaded) == "[]"


def test_a_script_can_define_its_functions_and_run_elsewhere(tmp_path: Path, store: ObjectStore) -> None:
    """``__main__`` is another module on the worker, and still the script's functions and classes work there."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import pickle, sys
            from pathlib import Path
            import msgspec
            from windlass.functions import define
            from windlass.object_store import ObjectStore
            import beside
            BASE = 100
            class Thing:
                def __init__(self, x): self.x = x
                def __repr__(self): return f"Thing({self.x})"
            def helper(x): return Thing(x + BASE)
            def work(x): return helper(beside.double(x))
            definition = define(work, ObjectStore(Path(sys.argv[1])).put).definition
            sys.stdout.buffer.write(msgspec.msgpack.encode(definition))
            """
        )
    )
    (tmp_path / "beside.py").write_text("def double(x): return 2 * x\n")
    made = subprocess.run([sys.executable, script, store.folder], capture_output=True, check=True).stdout
    definition = msgspec.msgpack.decode(made, type=FunctionDef)
    assert called_elsewhere(store, Defined(definition, (), None), 4) == "Thing(108)"
