"""Arguments, results and exceptions: what comes back is what went, by the cheapest way that is right, or a text says why it cannot."""

# Functions and values of any type are what is tested here, and what a module keeps to itself.
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportPrivateUsage=false

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import enum
import functools
import importlib
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import cloudpickle
import numpy as np
import pytest

from windlass import pickling, raised
from windlass.commands import CommandResult
from windlass.errors import NotPicklable, RemoteError, RemoteTraceback, SlotDied, StoreFull
from windlass.messages import OUT_OF_BAND_BYTES, ObjectRef
from windlass.object_store import ObjectStore
from windlass.objects import write_results

BIG = OUT_OF_BAND_BYTES


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(tmp_path / "store")
    yield store
    store.check()


def no_put(data: Any) -> Any:
    raise AssertionError("nothing was to be put")


def there_and_back(store: ObjectStore, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    payload, spans = pickling.pack_call(args, kwargs, store.put)
    assert len(payload) < BIG
    return pickling.unpack_call(payload, spans, store.open)


def result_and_back(store: ObjectStore, value: Any) -> Any:
    payload, spans = pickling.pack_result(value, partial(write_results, store.folder))
    assert len(payload) < BIG
    return pickling.unpack_result(payload, spans, store.open)


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int


def run(code: str, *args: object, cwd: Path | None = None) -> str:
    """The output of a fresh interpreter, whose ``__main__`` is a file with `code`."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, args)], capture_output=True, text=True, cwd=cwd or "/")
    assert done.returncode == 0, done.stderr
    return done.stdout


PLAIN: list[Any] = [
    None, 1, -(10**30), 2.5, "text", b"bytes", True, 1j, [1, 2], (1, "a"), {"k": 1.5}, [[1], {"a": (None,)}], {1, 2}, frozenset("ab"),
    bytearray(b"x"), range(3), ..., NotImplemented, type(None), Color.RED, Point(3), collections.OrderedDict(a=1), np.float64(2.5), len,
    np.dot, dict,
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: getattr(value, "__name__", type(value).__name__))
def test_plain_values_come_back_equal_and_of_their_type(value: Any, store: ObjectStore) -> None:
    args, kwargs = there_and_back(store, value, 7, key=value)
    assert args == (value, 7)
    assert kwargs == {"key": value}
    for back in (args[0], result_and_back(store, value), there_and_back(store, value)[0][0]):
        assert back == value
        assert type(back) is type(value)
    assert store.used == 0


def test_without_arguments_the_payload_is_small(store: ObjectStore) -> None:
    payload, spans = pickling.pack_call((), {}, no_put)
    assert (len(payload) < 20, spans) == (True, ())
    assert pickling.unpack_call(payload, (), store.open) == ((), {})


def test_generators_of_random_numbers_that_modules_share_go_by_name(store: ObjectStore) -> None:
    """With their state each call that is given one would draw the same numbers. One's own is a value like others."""
    own = random.Random(3)
    (draw, few, copied), _ = there_and_back(store, random.gauss, [np.random.normal], own)
    assert draw.__self__ is random.__dict__["_inst"]
    assert few[0].__self__ is vars(sys.modules["numpy.random.mtrand"])["_rand"]
    assert copied is not own
    assert copied.getstate() == own.getstate()


def test_small_arrays_stay_in_band_and_writable(store: ObjectStore) -> None:
    array = np.arange(100.0)
    back = there_and_back(store, array)[0][0]
    assert np.array_equal(back, array)
    back[0] = 5
    assert store.used == 0


def test_large_arrays_go_out_of_band_once_and_come_back_writable(store: ObjectStore) -> None:
    array = np.arange(BIG, dtype=np.uint8).reshape(256, -1)
    payload, spans = pickling.pack_call((array, {"deep": [array]}), {"key": array}, store.put)
    assert len(payload) < 1000
    assert {span.size for span in spans} == {BIG}
    assert store.used == BIG
    (first, second), kwargs = pickling.unpack_call(payload, spans, store.open)
    assert np.array_equal(first, array)
    first[0, 0] = 99
    assert first is second["deep"][0] is kwargs["key"]
    assert np.array_equal(pickling.unpack_call(payload, spans, store.open)[0][0], array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((300, 300))[::2, ::3],
        np.asfortranarray(np.random.default_rng(1).random((200, 200))),
        np.zeros((0, 3)),
        np.array([{"a": 1}, None], dtype=object),
        np.zeros(20000, dtype=[("a", "i4"), ("b", "f8")]),
        np.array(5.0),
    ],
    ids=["strided", "fortran", "empty", "objects", "records", "scalar"],
)
def test_arrays_of_all_layouts_come_back(array: Any, store: ObjectStore) -> None:
    for back in (there_and_back(store, array)[0][0], result_and_back(store, array)):
        assert np.array_equal(back, array)
        assert (back.dtype, back.shape) == (array.dtype, array.shape)


def test_a_read_only_array_stays_read_only(store: ObjectStore) -> None:
    array = np.zeros(BIG)
    array.flags.writeable = False
    assert not there_and_back(store, array)[0][0].flags.writeable


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_bytes_go_out_of_band_without_a_copy_in_the_stream(kind: Callable[[bytes], Any], store: ObjectStore) -> None:
    data = kind(os.urandom(BIG))
    payload, spans = pickling.pack_call((data, "x"), {"key": data}, store.put)
    assert [span.size for span in spans] == [BIG, BIG]
    args, kwargs = pickling.unpack_call(payload, spans, store.open)
    assert args == (data, "x")
    assert kwargs == {"key": data}
    assert type(args[0]) is kind
    assert result_and_back(store, data) == data


@pytest.mark.parametrize("value", ["x" * BIG, [b"y" * BIG], list(range(BIG)), {"deep": ["z" * BIG]}])
def test_a_stream_that_is_large_itself_becomes_the_first_span(value: Any, store: ObjectStore) -> None:
    array = np.ones(BIG)
    payload, spans = pickling.pack_call((value, array), {}, store.put)
    assert payload == b""
    assert len(spans) == 2
    args, _ = pickling.unpack_call(payload, spans, store.open)
    assert args[0] == value
    assert np.array_equal(args[1], array)
    payload, spans = pickling.pack_result(value, partial(write_results, store.folder))
    assert (payload, len(spans)) == (b"", 1)
    assert pickling.unpack_result(payload, spans, store.open) == value


def test_more_buffers_than_one_message_can_name_stay_in_the_stream(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object is named in the call's message, which has a limit: what is beyond a number of them goes with the stream."""
    monkeypatch.setattr(pickling, "SPANS_MOST", 3)
    arrays = [np.full(BIG, number, dtype=np.uint8) for number in range(6)]
    payload, spans = pickling.pack_result(arrays, partial(write_results, store.folder))
    assert (payload, len(spans)) == (b"", 4), "the stream, and three buffers"
    back = pickling.unpack_result(payload, spans, store.open)
    assert [array.tobytes() for array in back] == [array.tobytes() for array in arrays]
    payload, spans = pickling.pack_call((arrays,), {}, store.put)
    assert (payload, len(spans)) == (b"", 4)
    ((back,), _) = pickling.unpack_call(payload, spans, store.open)
    assert [array.tobytes() for array in back] == [array.tobytes() for array in arrays]


def test_just_below_the_limit_nothing_is_put() -> None:
    payload, spans = pickling.pack_result(b"x" * (BIG - 100), no_put)
    assert not spans
    assert pickling.unpack_result(payload, (), lambda name: memoryview(b"")) == b"x" * (BIG - 100)


def test_functions_and_classes_that_nobody_can_import_go_by_value(store: ObjectStore) -> None:
    """This test's module is one of them: no path leads to it by its name."""
    payload, spans = pickling.pack_call((Point(4), lambda x: x + 1, Color.RED, Point), {}, store.put)
    out = run(
        f"""
        from windlass import pickling
        args, _ = pickling.unpack_call({payload!r}, {spans!r}, None)
        print(args[0], args[1](2), args[2].name, type(args[0]) is args[3])
        """
    )
    assert out.split() == ["Point(x=4)", "3", "RED", "True"]


@pytest.mark.parametrize("homes", [True, False], ids=["program", "worker"])
def test_an_object_of_a_class_by_value_costs_one_call_of_the_hook(homes: bool) -> None:
    """A script's own dataclasses, a hundred thousand of them in a list."""

    class Point:
        def __init__(self) -> None:
            self.at = datetime.date(2026, 11, 28)  # which has no module itself

    def calls(count: int) -> int:
        points, made = [Point() for _ in range(count)], [0]

        def count_calls(frame: Any, event: str, arg: object) -> None:
            made[0] += event == "call"

        before = sys.getprofile()
        sys.setprofile(count_calls)
        try:
            pickling._pickled(points, homes=homes)
        finally:
            sys.setprofile(before)
        return made[0]

    calls(1)
    assert calls(1100) - calls(100) == 2000


def test_how_a_class_by_value_is_pickled_may_be_registered_at_any_time(store: ObjectStore) -> None:
    class Point:
        x = 0

    there_and_back(store, [Point()])
    copyreg.pickle(Point, lambda point: (complex, (7,)))  # type: ignore[arg-type, return-value]
    try:
        assert there_and_back(store, [Point(), Point]) == (([7, Point],), {})
    finally:
        del copyreg.dispatch_table[Point]
    table: Any = cloudpickle.CloudPickler.dispatch_table
    table[Point] = lambda _: (complex, (8,))  # pyright: ignore[reportUnknownLambdaType]
    try:
        assert there_and_back(store, [Point(), Point]) == (([8, Point],), {})
    finally:
        del table[Point]


def test_of_proxies_each_is_looked_at(store: ObjectStore) -> None:
    """On a worker: what a decorator has made may say that it is a function, and stands for any."""

    class Parts:
        def __init__(self, value: Any) -> None:
            self.__dict__["value"] = value

        def __getattr__(self, name: str) -> Any:
            return getattr(self.__dict__["value"], name)

        def __reduce_ex__(self, protocol: object) -> Any:
            return type(self.value), (self.value,)

    def kind_of(proxy: Any) -> type:
        return type(vars(proxy)["value"])

    proxy: Any = type("Proxy", (Parts,), {"__class__": property(kind_of)})
    values = [proxy(7), proxy(lambda: 8), proxy(lambda: 9)]
    number, *functions = pickle.loads(pickling._pickled(values, homes=False)[0].getvalue())
    assert number == 7
    assert [function() for function in functions] == [8, 9]


def test_objects_of_a_kind_are_looked_at_one_by_one_where_they_differ(store: ObjectStore) -> None:
    """Among what goes by value: a shared generator beside others of its class, a cached function of a module beside one of the script."""

    class Point:
        pass

    shared = random.__dict__["_inst"]
    mine = functools.lru_cache(lambda: 7)
    (_, first, generator, cached, own), _ = there_and_back(store, Point(), random.Random(1), shared, urllib.parse.urlsplit, mine)
    assert generator is shared
    assert first.random() == random.Random(1).random()
    assert cached is urllib.parse.urlsplit
    assert own() == 7


def test_what_the_program_defines_comes_back_as_its_own_class_untouched(tmp_path: Path) -> None:
    """A result of a class by value is an instance of the program's class, and that class keeps its methods with their globals."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        textwrap.dedent(
            """
            import sys
            from windlass import pickling
            (thing,), _ = pickling.unpack_call(sys.stdin.buffer.read(), (), None)
            thing.x += 1
            class Derived(type(thing)):
                pass
            sys.stdout.buffer.write(pickling.pack_result([thing, type(thing), Derived()], None)[0])
            """
        )
    )
    out = run(
        """
        import subprocess, sys
        from windlass import pickling
        count = 0
        class Thing:
            x = 1
            y = 1
            def counted(self):
                return count
        method = Thing.counted
        payload, _ = pickling.pack_call((Thing(),), {}, None)
        done = subprocess.run([sys.executable, sys.argv[1]], input=payload, stdout=subprocess.PIPE, check=True)
        Thing.y = 2
        thing, kind, derived = pickling.unpack_result(done.stdout, (), None)
        count = 7
        print(type(thing) is Thing, kind is Thing, thing.x, thing.counted(), Thing.counted is method, isinstance(derived, Thing), Thing.y)
        """,
        worker,
    )
    assert out.split() == ["True", "True", "2", "7", "True", "True", "2"]


def test_a_class_that_only_the_worker_has_travels_by_value() -> None:
    out = run(
        """
        import sys
        from windlass import pickling
        class Made:
            def seven(self): return 7
        sys.stdout.write(pickling.pack_result(Made(), None)[0].hex())
        """
    )
    assert pickling.unpack_result(bytes.fromhex(out), (), lambda name: memoryview(b"")).seven() == 7


def test_a_class_that_the_program_has_stays_what_it_is(tmp_path: Path) -> None:
    """Also where another one has its name meanwhile: made in a loop, say, or by a cell that was run again."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys\n"
        "from windlass import pickling\n"
        "(net,), _ = pickling.unpack_call(sys.stdin.buffer.read(), (), None)\n"
        "sys.stdout.buffer.write(pickling.pack_result(net, None)[0])\n"
    )
    out = run(
        """
        import subprocess, sys
        from windlass import pickling
        nets, results = [], []
        for depth in (1, 2, 3):
            class Net:
                layers = depth
            nets.append(Net())
            payload, _ = pickling.pack_call((nets[-1],), {}, None)
            results.append(subprocess.run([sys.executable, sys.argv[1]], input=payload, stdout=subprocess.PIPE, check=True).stdout)
        found = [pickling.unpack_result(result, (), None) for result in results]
        print(*[net.layers for net in found], *[type(net) is type(was) for net, was in zip(found, nets)])
        """,
        worker,
    )
    assert out.split() == ["1", "2", "3", "True", "True", "True"]


EARLIER = """
import dataclasses, enum, typing
class Color(enum.Enum):
    RED = 1
    BLUE = 2
@dataclasses.dataclass
class Point:
    x: int
    color: Color
    def twice(self): return 2 * self.x
class Pair(typing.NamedTuple):
    a: int
class Base:
    def root(self): return 1
class Derived(Base):
    pass
def wrapped(kind):
    class Wrapper:
        def __init__(self): self.inner = kind()
    Wrapper.__qualname__ = kind.__qualname__
    return Wrapper
@wrapped
class Twice:
    pass
class Outer:
    class Inner:
        pass
class Slim:
    __slots__ = ("y",)
def made():
    class Local: pass
    return Local()
"""


@pytest.mark.parametrize(
    ("edit", "copies"),
    [
        (("", ""), ""),
        (("2 * self.x", "3 * self.x  # mended"), ""),
        (("    RED = 1", "    RED = 1; GREEN = 3"), "Color"),
        (("color: Color", "color: Color; z: int = 0"), ""),
        (("x: int", "z: int"), "Point"),
        (("def twice", "def once"), "Point"),
        (("a: int", "a: int; b: int = 0"), "Pair"),
        (('("y",)', '("y", "z")'), "Slim"),
        (("class Slim", "class Slim(Exception)"), "Slim"),
        (("class Inner", "class Other"), "Inner"),
        (("def root", "def other"), "Derived"),
        (("class Base:", "class Base:\n    z: int"), ""),
        (("class Outer", "class Inner: pass\nclass Outer"), ""),
    ],
)
def test_a_result_of_an_earlier_life_is_of_the_class_that_has_the_name_now(edit: tuple[str, str], copies: str) -> None:
    """Unless that one does not fit: then it is of a copy."""
    values = "[Point(1, Color.RED), Color.BLUE, Pair(5), Outer.Inner(), Slim(), Derived(), Twice(), made()]"
    out = run(
        f"{EARLIER}\nfrom windlass import pickling\nvalues = {values}\n"
        "pickling.pack_call((values,), {}, None)  # gives the classes their numbers, as before a call is sent\n"
        "print(pickling.pack_result(values, None)[0].hex())"
    )
    was = pickling.unpack_result(bytes.fromhex(out), (), lambda name: memoryview(b""))
    assert [type(value).__name__ for value in was] == ["Point", "Color", "Pair", "Inner", "Slim", "Derived", "Wrapper", "Local"]
    out = run(
        EARLIER.replace(*edit)
        + f"""
from windlass import pickling
for _ in range(2):
    found = pickling.unpack_result(bytes.fromhex({out.strip()!r}), (), None)
    own = [globals().get("Point"), Color, Pair, getattr(Outer, "Inner", None), Slim, Derived, Twice]
    print(*[type(value).__name__ for value, kind in zip(found, own) if type(value) is not kind])
    point, color, pair, *_ = found
    assert (point.x, point.color.name, color.name, pair.a, type(found[-1]).__name__) == (1, "RED", "BLUE", 5, "Local")
    assert type(found[-2].inner).__name__ == "Twice" and not hasattr(found[-2].inner, "inner")  # never had that name
"""
    )
    assert out.splitlines() == [copies, copies]


def test_a_worker_does_without_cloudpickle_for_ordinary_values() -> None:
    """A slot that takes and gives arrays, dicts and exceptions stays light."""
    payload, _ = pickling.pack_call((np.zeros(3), {"a": [1, (2,)]}, "x"), {"k": 1}, no_put)
    out = run(
        f"""
        import sys
        from windlass import pickling
        args, kwargs = pickling.unpack_call({payload!r}, (), None)
        for value in (None, 1, args, kwargs, {{"a": args[0]}}, args[0].sum()):
            pickling.pack_result(value, None)
        try:
            1 / 0
        except ZeroDivisionError as error:
            pickling.pack_exception(error)
        print([name for name in ("cloudpickle", "windlass.byvalue") if name in sys.modules])
        """
    )
    assert out.strip() == "[]"


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys; import windlass.pickling, windlass.objects; print([n for n in {} if n in sys.modules])"
    heavy = ["cloudpickle", "numpy", "blake3", "tempfile", "zipfile", "windlass.functions", "windlass.snapshots", "logging", "asyncio"]
    assert run(code.format(heavy)).strip() == "[]"


# ---------------------------------------------------------------- local modules


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that only this test's path has."""
    name = f"local_{os.urandom(4).hex()}"
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / f"{name}.py").write_text("class Thing:\n    def __init__(self, x):\n        self.x = x\n\ndef double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(folder)
    yield name
    sys.modules.pop(name, None)


def test_a_class_of_a_local_module_goes_by_name_and_its_source_comes_along(local: str, store: ObjectStore) -> None:
    module: Any = __import__(local)
    array = np.zeros(BIG)
    payload, spans = pickling.pack_call((module.Thing(5), module.double, array), {"m": module.Thing}, store.put)
    assert len(spans) == 2
    out = run(
        """
        import sys
        from windlass import pickling, snapshots
        from windlass.objects import open_in
        from windlass.messages import ObjectRef
        snapshots.call_code_folder = sys.argv[2]
        """
        + f"""
        (thing, double, array), kwargs = pickling.unpack_call({payload!r}, {spans!r}, lambda name: open_in(sys.argv[1], name))
        module = __import__({local!r})
        print(thing.x, double(4), array.sum(), type(thing) is module.Thing is kwargs["m"], module.__file__.startswith(sys.argv[2]))
        """,
        store.folder,
        store.folder.parent / "code",
    )
    assert out.split() == ["5", "8", "0.0", "True", "True"]


# ---------------------------------------------------------------- what cannot travel


def test_a_full_store_says_so_itself_whatever_is_put(local: str) -> None:
    module: Any = __import__(local)

    def put(data: Any) -> ObjectRef:
        raise StoreFull("no room")

    for value in (np.zeros(BIG), "x" * BIG, module.Thing(1)):
        with pytest.raises(StoreFull, match="no room"):
            pickling.pack_call((value,), {}, put)


def test_an_argument_that_cannot_be_pickled_is_named_by_position(store: ObjectStore) -> None:
    with (
        socket.socket() as connection,
        pytest.raises(
            NotPicklable, match=r"^argument 2 \(socket\.socket\) cannot be pickled: TypeError: cannot pickle 'socket' object; pass what"
        ),
    ):
        pickling.pack_call((1, connection), {}, store.put)


def test_an_argument_that_cannot_be_pickled_is_named_by_keyword_with_the_way_down_to_the_reason() -> None:
    conf = {"level": 1, "parts": [0, Point(threading.Lock())]}  # type: ignore[arg-type]
    with pytest.raises(
        NotPicklable, match=r"^keyword argument 'conf' \(dict\) .* because of its \['parts'\]\[1\]\.x \(_thread\.lock\): TypeError"
    ):
        pickling.pack_call((1,), {"ok": 1, "conf": conf}, no_put)
    with pytest.raises(NotPicklable, match=r"argument 1 \('conf', dict\)"):
        pickling.pack_call((conf,), {}, no_put, parameters=("conf", "other"))


def test_nothing_is_put_when_an_argument_cannot_be_pickled() -> None:
    with pytest.raises(NotPicklable):
        pickling.pack_call((np.zeros(BIG), threading.Lock()), {}, no_put)


def test_a_result_that_cannot_be_pickled_names_its_type_and_the_reason() -> None:
    with pytest.raises(
        NotPicklable, match=r"a result of type list cannot be pickled because of its \[0\] \(_thread\.lock\): TypeError: cannot"
    ):
        pickling.pack_result([threading.Lock()], no_put)
    with pytest.raises(NotPicklable, match="a result of type generator cannot be pickled"):
        pickling.pack_result(iter_of_nothing(), no_put)


def iter_of_nothing() -> Iterator[int]:
    yield from ()


def test_a_value_too_deep_to_pickle_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotPicklable, match="recursion"):
        pickling.pack_result(deep, no_put)


@pytest.mark.parametrize("payload", [b"", b"\x80", b"garbage", pickle.dumps(3), pickle.dumps((1,)), pickle.dumps((1, 2))[:-3]])
def test_damaged_arguments_are_refused(payload: bytes, store: ObjectStore) -> None:
    with pytest.raises(NotPicklable, match="the call's arguments cannot be unpickled on the worker"):
        pickling.unpack_call(payload, (), store.open)


def test_what_to_do_about_an_error_of_windlass_is_said_once() -> None:
    """Not in the remote traceback as well; and a call that Windlass itself fails, as it does a command's, has no frames of the user's."""

    def of_users() -> None:
        raise SlotDied("it died")

    for raises, remote in ((of_users, True), (CommandResult(exit_code=3).check, False)):
        error = thrown(raises)
        assert error.__traceback__ is not None
        payload, detail = pickling.pack_exception(error.with_traceback(error.__traceback__.tb_next))  # as a slot does
        back = pickling.unpack_exception(payload)
        assert "".join(traceback.format_exception(back)).count("what to do: ") == 1
        assert isinstance(back.__cause__, RemoteTraceback) == remote
        assert str(error) in detail.text


def test_a_result_of_a_module_that_is_not_here_says_so(store: ObjectStore) -> None:
    payload = b"\x80\x05cno_such_module\nThing\n."
    with pytest.raises(NotPicklable, match=r"No module named 'no_such_module'; is it installed on this side too?"):
        pickling.unpack_result(payload, (), store.open)


def test_a_lost_object_is_a_key_error(store: ObjectStore) -> None:
    payload, spans = pickling.pack_result(np.zeros(BIG), partial(write_results, store.folder))
    store.discard(spans[0].name)
    with pytest.raises(KeyError):
        pickling.unpack_result(payload, spans, store.open)


# ---------------------------------------------------------------- exceptions


class Simple(Exception):
    pass


class NeedsMore(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"code {code}: {reason}")
        self.code, self.reason = code, reason


class Doubles(Exception):
    """Pickles without complaint, and has another message when it is read."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no such name: {name}")


class Holds(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock, self.number = threading.Lock(), 3


class Unpicklable(Exception):
    pass


class Text(str):
    """A kind of text, as some packages have them."""


class TellsText(Exception):
    def __str__(self) -> str:
        return Text(f"cannot read {self.args[0]}")


def thrown(function: Callable[[], object]) -> BaseException:
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - that is what is asked for
        return error
    raise AssertionError("it did not raise")


def sent(exc: BaseException) -> BaseException:
    payload, _ = pickling.pack_exception(exc)
    return pickling.unpack_exception(payload)


def fails(exc: BaseException) -> Callable[[], object]:
    def innermost() -> None:
        raise exc

    return innermost


@pytest.mark.usefixtures("as_python_pickles")
@pytest.mark.parametrize(
    "exc",
    [ValueError("bad"), KeyError("k"), Simple("a", 2), OSError(2, "No such file", "/x"), SystemExit(3), KeyboardInterrupt(),
     UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"), StopIteration(5), Simple(np.arange(3).tolist())],
    ids=repr,
)  # fmt: skip
def test_an_exception_keeps_type_arguments_and_message(exc: BaseException) -> None:
    back = sent(thrown(fails(exc)))
    assert type(back) is type(exc)
    assert (back.args, str(back)) == (exc.args, str(exc))


def test_attributes_and_notes_are_kept() -> None:
    exc = Simple("x")
    exc.detail = {"a": 1}  # type: ignore[attr-defined]
    exc.add_note("while reading row 7")
    back: Any = sent(thrown(fails(exc)))
    assert back.detail == {"a": 1}
    assert back.__notes__ == ["while reading row 7"]
    assert isinstance(sent(FileNotFoundError(2, "gone", "f")), FileNotFoundError)


def test_an_init_with_other_arguments_is_no_obstacle() -> None:
    back = sent(thrown(fails(NeedsMore(5, reason="late"))))
    assert isinstance(back, NeedsMore)
    assert (str(back), back.code, back.reason) == ("code 5: late", 5, "late")
    back = sent(thrown(fails(Doubles("x"))))
    assert (type(back), str(back)) == (Doubles, "no such name: x")


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenInSlots(Exception):
    code: int


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


@dataclasses.dataclass(frozen=True)
class FrozenEmpty(Exception):
    pass


@pytest.mark.usefixtures("as_python_pickles")
@pytest.mark.parametrize("exc", [FrozenInSlots(3), Frozen(3), FrozenEmpty()], ids=lambda exc: type(exc).__name__)
def test_a_frozen_exception_arrives_as_any_other(exc: BaseException) -> None:
    """Python raises, chains and traces them past their own way to set attributes, so nobody expects them to be special."""
    back = sent(thrown(fails(exc)))
    assert (type(back), back.args, getattr(back, "code", None)) == (type(exc), exc.args, getattr(exc, "code", None))
    assert isinstance(back.__cause__, RemoteTraceback)


def test_attributes_that_cannot_travel_are_left_behind() -> None:
    back: Any = sent(thrown(fails(Holds("busy"))))
    assert type(back) is Holds
    assert (str(back), back.number, hasattr(back, "lock")) == ("busy", 3, False)


def test_an_exception_that_cannot_travel_becomes_a_remote_error_that_names_it() -> None:
    back = sent(thrown(fails(Unpicklable(threading.Lock()))))
    assert type(back) is RemoteError
    assert "Unpicklable: <unlocked _thread.lock" in str(back)
    assert "in innermost" in str(back.__cause__)


def test_the_cause_is_the_remote_traceback_from_the_users_first_frame_on() -> None:
    back = sent(thrown(fails(ValueError("bad"))))
    assert isinstance(back.__cause__, RemoteTraceback)
    text = str(back.__cause__)
    assert "in innermost" in text
    assert "raise exc" in text
    assert text.rstrip().endswith("ValueError: bad")


def test_windlass_own_frames_are_left_out() -> None:
    exc = thrown(lambda: pickling.pack_result(Explodes(), no_put))
    assert isinstance(exc, NotPicklable)
    assert exc.__cause__ is not None
    text = pickling.pack_exception(exc.__cause__)[1].text
    assert "in __reduce__" in text
    assert os.path.join("windlass", "pickling.py") not in text


class Explodes:
    def __reduce__(self) -> str:
        raise ZeroDivisionError("user code")


def test_the_chain_is_kept_each_with_its_own_traceback() -> None:
    def inner() -> None:
        raise KeyError("inner")

    def middle() -> None:
        try:
            inner()
        except KeyError as error:
            raise Simple("middle") from error

    def outer() -> None:
        try:
            middle()
        except Simple:
            raise ValueError("outer")  # noqa: B904 - the context is what is tested

    exc = thrown(outer)
    payload, detail = pickling.pack_exception(exc)
    back = pickling.unpack_exception(payload)
    remote = back.__cause__
    assert isinstance(remote, RemoteTraceback)
    middle_back = remote.__context__
    assert isinstance(middle_back, Simple)
    assert back.__context__ is middle_back
    assert middle_back.__cause__ is not None
    inner_back = middle_back.__cause__.__cause__
    assert isinstance(inner_back, KeyError)
    assert "in inner" in str(inner_back.__cause__)
    story = "".join(traceback.format_exception(back))
    places = [story.index(text) for text in ("KeyError: 'inner'", "Simple: middle", "ValueError: outer")]
    assert places == sorted(places)
    assert [detail.text.count(text) for text in ("KeyError: 'inner'", "Simple: middle", "ValueError: outer")] == [1, 1, 1]


def test_what_an_exception_costs_does_not_grow_with_the_square_of_its_chain() -> None:
    """A parser that raises anew at each level, or a loop that tries again, makes chains of hundreds."""
    shown = [0]

    class Counted(Exception):
        def __str__(self) -> str:
            shown[0] += 1
            return "counted"

    def costs(length: int) -> int:
        last: Exception | None = None
        for _ in range(length):
            last, cause = Counted(), last
            last.__cause__ = cause
        assert last is not None
        shown[0] = 0
        pickling.pack_exception(last)
        return shown[0]

    assert costs(60) < 3 * costs(30)
    assert costs(1000) < 2 * costs(100), "no more than the first ones are told"


def test_what_groups_in_groups_cost_does_not_grow_with_the_cube_of_their_depth() -> None:
    """As where each task group raises anew what the one inside it has raised."""
    shown = [0]

    class Counted(Exception):
        def __str__(self) -> str:
            shown[0] += 1
            return "counted"

    def costs(depth: int) -> int:
        last: Exception = Counted()
        for _ in range(depth):
            last, inner = ExceptionGroup("g", [last, Counted()]), last
            last.__context__ = inner
        shown[0] = 0
        pickling.pack_exception(last)
        return shown[0]

    assert costs(60) < 3 * costs(30)


def test_groups_are_shown_as_python_shows_them() -> None:
    """Wide ones, deep ones, with causes, notes and tracebacks of their members."""

    def raised_one(exc: Exception) -> Exception:
        try:
            raise exc from KeyError("cause")
        except Exception as error:  # noqa: BLE001 - any
            error.add_note("note")
            return error

    def deep(count: int) -> Exception:
        return ExceptionGroup("deep", [deep(count - 1) if count else raised_one(Simple("last")), SyntaxError("x", ("f", 1, 1, "a b"))])

    wide = ExceptionGroup("wide", [raised_one(Simple(str(number))) for number in range(20)])
    for exc in (wide, *map(deep, range(15)), ExceptionGroup("both", [wide, raised_one(deep(3))])):
        text = "".join(traceback.TracebackException.from_exception(exc, compact=True).format(chain=False))
        assert raised._traceback(exc) == text


def test_many_notes_are_not_each_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = [0]

    class Counted(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared[0] += 1
            return str(self) == other

    exc = Simple("x")
    for number in range(500):
        exc.add_note(f"row {number}")
    payload, _ = pickling.pack_exception(exc)
    whole = raised._notes
    monkeypatch.setattr(raised, "_notes", lambda one: tuple(map(Counted, whole(one))))
    back: Any = pickling.unpack_exception(payload)
    assert back.__notes__ == exc.__notes__
    assert compared[0] < 5 * 500


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = Simple("first"), Simple("second")
    first.__cause__, second.__cause__ = second, first
    back = sent(first)
    assert str(back) == "first"
    assert str(back.__context__) == "second"


def test_a_suppressed_context_stays_suppressed() -> None:
    def quiet() -> None:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None

    back = sent(thrown(quiet))
    assert "hidden" not in "".join(traceback.format_exception(back))


def test_groups_come_back_with_their_members_and_their_causes() -> None:
    def both() -> None:
        members: list[Exception] = []
        for exc in (ValueError("one"), NeedsMore(2, reason="two")):
            try:
                raise exc from KeyError("why")
            except Exception as error:  # noqa: BLE001 - any of those above
                members.append(error)
        raise ExceptionGroup("many", [*members, ExceptionGroup("inner", [TypeError("three")])])

    back = sent(thrown(both))
    assert isinstance(back, ExceptionGroup)
    assert back.message == "many"
    one, two, inner = back.exceptions
    assert (type(one), type(two), type(inner)) == (ValueError, NeedsMore, ExceptionGroup)
    assert isinstance(one.__cause__, RemoteTraceback)
    assert isinstance(one.__cause__.__cause__, KeyError)
    assert back.subgroup(TypeError) is not None


def test_a_group_with_a_member_that_cannot_travel_is_a_group_still() -> None:
    back = sent(ExceptionGroup("many", [ValueError("one"), Unpicklable(threading.Lock())]))
    assert isinstance(back, ExceptionGroup)
    assert [type(member) for member in back.exceptions] == [ValueError, RemoteError]


def test_the_detail_has_all_classes_by_name() -> None:
    _, detail = pickling.pack_exception(FileNotFoundError(2, "gone"))
    assert detail.types[:2] == ("builtins.FileNotFoundError", "builtins.OSError")
    assert "builtins.Exception" in detail.types


def test_an_exception_of_any_size_fits_into_a_frame() -> None:
    exc = ValueError("x" * 2_000_000, np.zeros(1_000_000))
    exc.add_note("y" * 2_000_000)
    exc.__cause__ = Simple("z" * 3_000_000)
    payload, detail = pickling.pack_exception(exc)
    assert len(payload) < 300_000
    assert len(detail.text) < 40_000
    back = pickling.unpack_exception(payload)
    assert isinstance(back, ValueError)
    assert back.args[1] == "<numpy.ndarray left out>"
    assert isinstance(back.__context__, Simple)
    long = Simple("0")
    for number in range(1, 500):
        later = Simple(str(number))
        later.__cause__ = long
        long = later
    payload, _ = pickling.pack_exception(long)
    assert len(payload) < 300_000
    assert str(pickling.unpack_exception(payload)) == "499"


def test_an_exception_that_carries_much_comes_as_itself_without_most_of_it() -> None:
    """Those of Python carry the file that is not UTF-8, the text that is no JSON, all that a command has written."""
    failed: Any = sent(thrown(fails(CalledProcessError(3, ["simulate"], b"o" * 300_000, b"cannot open x\n" + b"e" * 300_000))))
    assert (type(failed), failed.returncode, failed.cmd) == (CalledProcessError, 3, ["simulate"])
    assert str(failed) == str(subprocess.CalledProcessError(3, ["simulate"]))
    assert failed.stderr.startswith(b"cannot open x\neee")
    assert b"\n... " in failed.stderr
    assert len(failed.stderr) < 20_000
    told = "large parts of this exception were cut or left out on the way: "
    assert failed.__notes__ == [f"{told}'output' (300,000 bytes), 'stderr' (300,014 bytes)"]

    for text in ('["' + "x" * 300_000, "[" + "\n" * 300_000 + "x"):
        broken = thrown(partial(json.loads, text))
        back: Any = sent(broken)
        assert (type(back), str(back)) == (json.JSONDecodeError, str(broken))
        assert back.__notes__ == [f"{told}'doc' ({len(text):,} characters)"]

    near = thrown((b"ab\xff" + b"x" * 300_000).decode)
    back = sent(near)
    assert (type(back), str(back), back.object[back.start]) == (UnicodeDecodeError, str(near), 0xFF)
    back = sent(thrown((b"x" * 300_000 + b"\xff" + b"y" * 100).decode))
    assert type(back) is UnicodeDecodeError
    assert "position 300000" in str(back)
    assert back.object.endswith(b"xxx\xff" + b"y" * 100)
    assert len(back.object) < 20_000
    assert back.__notes__ == [f"{told}argument 2 (300,101 bytes)"]


def test_members_of_a_group_that_carries_much_come_as_themselves() -> None:
    back: Any = sent(ExceptionGroup("many", [Simple("x" * 300_000), NeedsMore(5, reason="late")]))
    assert [type(member) for member in back.exceptions] == [Simple, NeedsMore]
    assert back.exceptions[0].args[0].startswith("xxx")
    assert back.exceptions[1].code == 5


class OfTable(Exception):
    """It cannot be made of anything else."""

    def __new__(cls, table: object) -> OfTable:  # pyright: ignore[reportInconsistentConstructor]
        if not isinstance(table, list):
            raise TypeError("no table")
        return super().__new__(cls, table)

    def __str__(self) -> str:
        return "bad table"


def test_an_exception_that_is_too_large_and_cannot_be_cut_says_so() -> None:
    """Else people look for a class that cannot be pickled."""
    back: Any = sent(thrown(fails(OfTable(list(range(200_000))))))
    assert type(back) is RemoteError
    assert str(back).partition("\n")[0].endswith("OfTable: bad table")
    assert back.__notes__[-1].startswith("this exception is too large to come as itself: it has ")


def test_a_missing_module_is_told_with_its_node_and_python() -> None:
    """Who reads it has the module, as a rule, and would look for it in the wrong place."""
    place = f"on node {os.uname().nodename}, by {sys.executable} (Python {sys.version.split()[0]})"
    back: Any = sent(thrown(lambda: importlib.import_module("no_such_module")))
    assert (type(back), str(back)) == (ModuleNotFoundError, "No module named 'no_such_module'")
    assert back.__notes__ == [f"{place}, which must have what calls import; see: windlass explain environments"]
    back = sent(ModuleNotFoundError("No module named 'numpy._core'", name="numpy._core"))
    assert back.__notes__[0].startswith(f"{place}: NumPy {np.__version__} is there, and another version in the program")
    with pytest.raises(NotPicklable) as caught:
        pickling.unpack_call(b"\x80\x05cno_such_module\nThing\n.", (), no_put)
    assert f"No module named 'no_such_module'; {place}, which must have" in str(caught.value)


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> str:
        raise RuntimeError("no pickle")


def test_telling_of_an_exception_never_raises() -> None:
    back = sent(thrown(fails(Hostile())))
    assert type(back) is Hostile
    assert "in innermost" in str(back.__cause__)
    assert "Hostile" in str(sent(thrown(fails(Hostile(threading.Lock())))))


def test_an_exception_that_names_a_file_that_is_not_utf_8_is_told() -> None:
    """Such a name, as `os.listdir` gives it, cannot be encoded; the exception itself keeps it."""
    name = os.fsdecode(b"caf\xe9.dat")
    error = ExceptionGroup(f"bad {name}", [ValueError(f"cannot read {name}")])
    error.add_note(f"beside {name}")
    back: Any = sent(thrown(fails(error)))
    assert back.exceptions[0].args == (f"cannot read {name}",)
    assert back.__notes__ == [f"beside {name}"]
    assert r"cannot read caf\udce9.dat" in str(back.__cause__)
    assert r"cannot read caf\udce9.dat" in str(sent(thrown(fails(TellsText(name)))).__cause__)


def test_an_exception_from_a_prompt_is_told_when_the_working_directory_is_gone(tmp_path: Path) -> None:
    """Code of a prompt has a file name that is no whole path."""
    gone = tmp_path / "gone"
    gone.mkdir()
    told = run(
        """
        import os, pathlib, sys
        from windlass import pickling
        pathlib.Path.cwd().rmdir()
        try:
            exec(compile("def fail(): raise ValueError('why')\\nfail()", "<stdin>", "exec"))
        except ValueError as error:
            print(pickling.pack_exception(error)[1].text)
        """,
        cwd=gone,
    )
    assert 'File "<stdin>", line 1, in fail' in told
    assert "ValueError: why" in told


def test_an_exception_whose_class_is_not_here_is_told_by_name() -> None:
    out = run(
        """
        import sys, types
        from windlass import pickling
        module = sys.modules["only_there"] = types.ModuleType("only_there")
        class Odd(Exception): pass
        Odd.__module__ = "only_there"
        module.Odd = Odd
        try:
            raise Odd("strange")
        except Odd as error:
            print(pickling.pack_exception(error)[0].hex())
        """
    )
    back = pickling.unpack_exception(bytes.fromhex(out))
    assert type(back) is RemoteError
    assert "only_there.Odd: strange (it cannot be unpickled here: ModuleNotFoundError: No module named 'only_there')" in str(back)


@pytest.mark.parametrize("payload", [b"", b"\x90", b"garbage", b"\x91\x91\xa1a", pickle.dumps(ValueError(1))])
def test_damaged_exceptions_are_refused(payload: bytes) -> None:
    with pytest.raises(NotPicklable, match="its bytes are damaged"):
        pickling.unpack_exception(payload)
