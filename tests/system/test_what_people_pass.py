"""What goes into calls and comes back: callables, keywords, values, large arrays, and clear words for what cannot travel."""

# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUntypedNamedTuple=false
# People pass what has no types.

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import functools
import math
import operator
import os
import pathlib
import re
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

import windlass
from windlass import FunctionCall

#: 100 MB.
LARGE = 12_500_000


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module share a manager and its pilot."""


@pytest.fixture
def manager(shared_manager: windlass.Manager) -> Iterator[windlass.Manager]:
    """The shared manager; the test's libraries are removed after it."""
    yield shared_manager
    for name in shared_manager.libraries:
        shared_manager.remove_library(name)


# ---------------------------------------------------------------- callables


def plus(a: int, b: int = 1) -> int:
    return a + b


def logged(function: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(function)
    def wrapper(*args: int, **kwargs: int) -> int:
        return 100 + function(*args, **kwargs)

    return wrapper


@logged
def decorated(a: int) -> int:
    return a


@functools.lru_cache
def cached(a: int) -> int:
    return a * 3


@functools.singledispatch
def dispatching(a: object) -> str:
    return f"other {a!r}"


@dispatching.register
def _(a: int) -> str:
    return f"number {a}"


class Machine:
    """Methods of all kinds."""

    step = 2

    def __init__(self, start: int) -> None:
        self.start = start

    def run(self, a: int) -> int:
        return self.start + self.step * a

    @classmethod
    def by_class(cls, a: int) -> int:
        return cls.step * a

    @staticmethod
    def plain(a: int) -> int:
        return -a

    def __call__(self, a: int) -> int:
        return self.run(a) + 1000


class Lazy:
    """A property that is computed once."""

    @functools.cached_property
    def number(self) -> int:
        return 7

    def times(self, a: int) -> int:
        return self.number * a


def by_cached_helper(a: int) -> int:
    return cached(a) + cached(a)


class Faster(Machine):
    """A subclass whose method calls its base's."""

    def run(self, a: int) -> int:
        return super().run(a) * 10


def make_adder(n: int) -> Callable[[int], int]:
    def add(a: int) -> int:
        return a + n

    return add


CALLABLES: dict[str, tuple[Any, Any]] = {
    "function": (plus, 6),
    "lambda": (lambda a: a**2, 25),
    "lambda with a default": (lambda a, n=7: a + n, 12),
    "closure": (make_adder(10), 15),
    "partial": (functools.partial(plus, b=20), 25),
    "partial of a partial of a lambda": (functools.partial(functools.partial(lambda x, y, a: (x, y, a), 1), 2), (1, 2, 5)),
    "decorated": (decorated, 105),
    "cached": (cached, 15),
    "cached helper": (by_cached_helper, 30),
    "cached property": (Lazy().times, 35),
    "dispatching": (dispatching, "number 5"),
    "bound method": (Machine(1).run, 11),
    "method that calls super": (Faster(1).run, 110),
    "class method": (Machine.by_class, 10),
    "static method": (Machine.plain, -5),
    "callable object": (Machine(1), 1011),
    "builtin": (bin, "0b101"),
    "builtin class": (list[int]().__class__, TypeError),
    "exception class": (ValueError, ValueError),
    "math": (math.factorial, 120),
    "operator": (operator.itemgetter(0), TypeError),
    "ufunc": (np.square, 25),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_all_kinds_of_callables_run(pool: windlass.Executor, kind: str) -> None:
    """Whatever can be called with 5 here gives there what it gives here."""
    function, expected = CALLABLES[kind]
    future = pool.submit(function, 5)
    if expected is TypeError:
        with pytest.raises(TypeError):
            future.result(20)
    elif expected is ValueError:
        assert type(future.result(20)) is ValueError
        assert future.result().args == (5,)
    else:
        assert future.result(20) == expected


def test_functions_are_arguments_and_results_too(pool: windlass.Executor) -> None:
    """A call may be given functions, and return one that it has made."""

    def compose(first: Callable[[int], int], second: Callable[[int], int]) -> Callable[[int], int]:
        return lambda a: second(first(a))

    composed = pool.submit(compose, cached, make_adder(1)).result(20)
    assert composed(5) == 16
    assert pool.submit(composed, 6).result(20) == 19
    assert pool.submit(make_adder, 3).result(20)(4) == 7


def test_libraries_take_callables_of_all_kinds_too(manager: windlass.Manager) -> None:
    """By the name that people see: the function's own, below partials; lambdas are numbered."""
    manager.install_library("lib", decorated, functools.partial(plus, b=5), Machine(1).run, math.factorial, lambda a: a - 1)
    results = [manager.submit(FunctionCall("lib", name, 4)) for name in ("decorated", "plus", "run", "factorial", "lambda_5")]
    assert [future.result(20) for future in results] == [104, 9, 9, 24, 3]


def test_keywords_of_the_function_are_never_options_of_the_call(pool: windlass.Executor, manager: windlass.Manager) -> None:
    """Names that Windlass uses itself reach the function: ``timeout=``, ``library=``, ``function=``, ``self=``, ``fn=``, ``tag=``..."""

    def keywords(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
        return args, kwargs

    given: dict[str, object] = dict.fromkeys(
        ("timeout", "library", "function", "self", "fn", "tag", "cores", "options", "args", "kwargs"), 1
    )
    assert pool.submit(keywords, 1, 2, **given).result(20) == ((1, 2), given)
    manager.install_library("lib", keywords)
    call = FunctionCall("lib", "keywords", 1, 2, **given).with_options(timeout=60, tag="mine")
    assert manager.submit(call).result(20) == ((1, 2), given)


def test_arguments_are_what_they_were_at_submit(pool: windlass.Executor) -> None:
    """What the program changes afterwards does not reach a call that waits."""
    numbers = [1, 2, 3]
    future = pool.submit(sum, numbers)
    numbers.append(1000)
    assert future.result(20) == 6


# ---------------------------------------------------------------- values


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


class Flags(enum.Flag):
    A = 1
    B = 2


class Pair(NamedTuple):
    left: int
    right: str


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    number: int
    inner: Pair


@dataclasses.dataclass
class Tree:
    value: int
    children: list[Tree] = dataclasses.field(default_factory=lambda: list[Tree]())


Old = collections.namedtuple("Old", "x y")

VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**70,
    10**5000,
    1.5,
    math.inf,
    -0.0,
    1j,
    "",
    "häß\u2028lich 🎈\0",
    "\ud800",
    b"",
    b"\0\xff" * 40_000,
    bytearray(b"abc"),
    (),
    (1,),
    ((1, 2), [3, {4: (5,)}]),
    [[[[]]]],
    {"a": {1: {None: ()}}},
    {(1, 2): "tuple key"},
    {1, 2, 3},
    frozenset({"a"}),
    range(10, 0, -2),
    slice(1, None, 2),
    ...,
    NotImplemented,
    decimal.Decimal("1.10"),
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    pathlib.PurePosixPath("/a/b"),
    re.compile("a+", re.IGNORECASE),
    Colour.BLUE,
    Flags.A | Flags.B,
    Pair(1, "r"),
    Old(1, 2),
    Frozen(1, Pair(2, "x")),
    Tree(1, [Tree(2), Tree(3, [Tree(4)])]),
    Colour,
    int,
    len,
    collections.OrderedDict([("b", 1), ("a", 2)]),
    collections.Counter("hello"),
    collections.deque([1, 2], maxlen=3),
    np.float32(1.5),
    np.datetime64("2026-01-01"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_values_come_back_equal_and_of_their_type(pool: windlass.Executor, value: Any) -> None:
    """There and back, through classes of this module by value, a value is what it was."""

    def echo(it: Any) -> Any:
        return it

    back = pool.submit(echo, value).result(20)
    assert back == value
    assert type(back) is type(value)
    if isinstance(value, enum.Enum | type):
        assert back is value


def test_nan_stays_nan_and_shared_parts_stay_shared(pool: windlass.Executor) -> None:
    """What equality cannot see: NaN, one object in two places, and a list that holds itself."""

    def echo(it: Any) -> Any:
        return it

    assert math.isnan(pool.submit(echo, math.nan).result(20))
    part = [1]
    both = pool.submit(echo, [part, part]).result(20)
    assert both[0] is both[1]
    circle: list[Any] = [1]
    circle.append(circle)
    back = pool.submit(echo, circle).result(20)
    assert back[1] is back


def test_deep_values_travel_or_say_that_they_are_too_deep(pool: windlass.Executor) -> None:
    """A list nested 400 deep is fine; one nested beyond the recursion limit is refused by name, not by a crash."""

    def depth(nested: list[Any]) -> int:
        count = 0
        while nested:
            nested, count = nested[0], count + 1
        return count

    def nest(levels: int) -> list[Any]:
        nested: list[Any] = []
        for _ in range(levels):
            nested = [nested]
        return nested

    assert pool.submit(depth, nest(400)).result(20) == 400
    with pytest.raises(windlass.NotPicklable, match="argument 1"):
        pool.submit(depth, nest(100_000))


def test_classes_that_travel_by_reference_with_state_come_back(pool: windlass.Executor) -> None:
    """Instances of installed classes with ``__getstate__`` and buffers inside (as data frames have) are rebuilt by their class."""
    from sklearn.linear_model import LinearRegression

    x = np.arange(200_000.0).reshape(-1, 2)

    def fit(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> LinearRegression:
        return LinearRegression().fit(x, y)

    model = pool.submit(fit, x, x[:, 0] * 2 + 1).result(60)
    assert type(model) is LinearRegression
    assert model.predict(x[:3]) == pytest.approx([1, 5, 9])


def test_recursion_and_warnings_stay_in_the_call(pool: windlass.Executor) -> None:
    """Endless recursion is the call's RecursionError; a warning goes to its stderr; the slot lives on."""

    def endless(n: int) -> int:
        return endless(n + 1)

    def warn() -> int:
        warnings.warn("look out", UserWarning, stacklevel=1)
        return os.getpid()

    with pytest.raises(RecursionError, match="maximum recursion depth"):
        pool.submit(endless, 0).result(20)
    future = pool.submit(warn)
    assert future.result(20) != os.getpid()
    assert "UserWarning: look out" in future.stderr


# ---------------------------------------------------------------- large data


def objects_of(manager: windlass.Manager) -> set[str]:
    return set(manager._store.names())  # pyright: ignore[reportPrivateUsage]


def test_a_large_array_travels_out_of_band_there_and_back(pool: windlass.Executor, shared_manager: windlass.Manager, gate: Any) -> None:
    """100 MB go through the object store while the call waits, come back writable, and nothing of them stays in the store."""
    array = np.arange(LARGE, dtype=np.float64)

    def negative(it: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        gate.pass_through("negative")
        return -it

    before = objects_of(shared_manager)
    future = pool.submit(negative, array)
    [there] = objects_of(shared_manager) - before
    assert shared_manager._store.size(there) == array.nbytes  # pyright: ignore[reportPrivateUsage]
    gate.open()
    back = future.result(60)
    assert np.array_equal(back, -array)
    back[0] = 5.0
    assert back.flags.writeable
    del future
    left = objects_of(shared_manager) - before - {there}
    assert not left, "the result is read, so its object is gone"


def test_arguments_that_a_call_changes_change_nowhere_else(pool: windlass.Executor) -> None:
    """A function may write into its array, even when two calls share what they were given."""
    array = np.zeros(100_000)

    def write(it: npt.NDArray[np.float64], value: float) -> tuple[float, float]:
        before = float(it[0])
        it[:] = value
        return before, float(it[-1])

    futures = [pool.submit(write, array, float(number)) for number in range(1, 9)]
    assert [future.result(20) for future in futures] == [(0.0, float(number)) for number in range(1, 9)]
    assert not array.any()


def test_the_same_array_for_many_calls_is_one_object(pool: windlass.Executor, shared_manager: windlass.Manager, gate: Any) -> None:
    """Twenty calls with the same 8 MB wait with one object in the store, whichever way it is passed."""
    array = np.random.default_rng(1).random(1_000_000)
    before = objects_of(shared_manager)

    def total(number: int, *, it: npt.NDArray[np.float64]) -> float:
        gate.pass_through(str(number))
        return float(it.sum()) + number

    futures = [pool.submit(total, number, it=array) for number in range(20)]
    assert len(objects_of(shared_manager) - before) == 1
    gate.open()
    assert [future.result(30) for future in futures] == [float(array.sum()) + number for number in range(20)]


def test_a_closure_over_a_large_array_is_sent_once(pool: windlass.Executor, shared_manager: windlass.Manager) -> None:
    """The function is one object, pickled when it is first submitted; its calls carry only their own arguments."""
    array = np.random.default_rng(2).random(1_000_000)

    def at(index: int) -> float:
        return float(array[index])

    before = objects_of(shared_manager)
    futures = [pool.submit(at, index) for index in range(20)]
    assert len(objects_of(shared_manager) - before) == 1
    assert [future.result(30) for future in futures] == [float(array[index]) for index in range(20)]


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(40_000.0).reshape(200, 200)),
        np.arange(80_000.0)[::2],
        np.arange(40_000.0).reshape(100, 20, 20).transpose(2, 0, 1),
        np.zeros((100_000, 0)),
        np.array([f"text {n}" for n in range(20_000)]),
        np.array([(1, 2.5)] * 10_000, dtype=[("a", "i4"), ("b", "f8")]),
        np.array([{"a": 1}, None, "x"], dtype=object),
        np.ma.masked_array(np.arange(20_000), mask=np.arange(20_000) % 2 == 0),
        np.arange(100_000.0).astype(">f8"),
    ],
    ids=["fortran", "strided", "transposed", "empty", "texts", "records", "objects", "masked", "big-endian"],
)
def test_arrays_of_all_layouts_come_back(pool: windlass.Executor, array: npt.NDArray[Any]) -> None:
    """Contiguous or not, in and out of band: values, dtype and shape are kept."""

    def echo(it: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return it

    back = pool.submit(echo, array).result(20)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert np.array_equal(back, array)


def test_large_bytes_texts_and_lists_travel(pool: windlass.Executor) -> None:
    """What is no buffer is large as well: 8 MB of bytes, of text, and a list of 200,000 numbers, in one call."""

    def sizes(*args: Any) -> tuple[list[int], tuple[Any, ...]]:
        return [len(it) for it in args], args

    given = (b"x" * 8_000_000, "ä" * 4_000_000, list(range(200_000)), bytearray(1_000_000))
    counts, back = pool.submit(sizes, *given).result(30)
    assert counts == [8_000_000, 4_000_000, 200_000, 1_000_000]
    assert back == given
    assert [type(it) for it in back] == [bytes, str, list, bytearray]


def test_a_result_may_be_a_view_of_an_argument(pool: windlass.Executor) -> None:
    """What a function returns may share memory with what it was given."""
    array = np.arange(200_000.0)

    def half(it: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return it[:100_000], it

    first, whole = pool.submit(half, array).result(20)
    assert np.array_equal(first, array[:100_000])
    assert np.array_equal(whole, array)


# ---------------------------------------------------------------- what cannot travel


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(("function", "words"), [(generator, "generator"), (async_generator, "async"), (Faster, None)])
def test_generators_are_refused_at_once(
    pool: windlass.Executor, manager: windlass.Manager, function: Callable[..., Any], words: str | None
) -> None:
    """At submit and at create_library, by name and with what to do instead; a class is no such thing."""
    if words is None:
        assert type(pool.submit(function, 1).result(20)) is function
        return
    with pytest.raises(windlass.UsageError, match=f"{function.__name__}.*{words}"):
        pool.submit(function)
    with pytest.raises(windlass.UsageError, match=f"{function.__name__}.*{words}"):
        manager.create_library("lib", function)


@pytest.mark.parametrize("what", ["generator", "coroutine", "lock", "threads"])
def test_results_that_cannot_travel_say_what_they_were(pool: windlass.Executor, what: str) -> None:
    """The call ends with `NotPicklable`: function, type of the result, and what to do; the slot lives on."""

    def give() -> Any:
        if what == "generator":
            return (n for n in range(3))
        if what == "coroutine":

            async def inner() -> int:
                return 1

            return inner()
        if what == "lock":
            return {"deep": [threading.Lock()]}
        return [threading.Thread(target=print)]

    with pytest.raises(windlass.NotPicklable, match="'give' returned a ") as caught:
        pool.submit(give).result(20)
    words = {"generator": "list", "coroutine": "await there", "lock": "'deep'", "threads": "because of its [0]._"}
    assert words[what] in str(caught.value)
    assert pool.submit(plus, 1).result(20) == 2


def test_arguments_that_cannot_travel_are_named_at_submit(pool: windlass.Executor, manager: windlass.Manager) -> None:
    """Which argument, its type, and the part of it that is to blame; nothing is queued."""
    with pytest.raises(windlass.NotPicklable, match=r"argument 2 .*lock"):
        pool.submit(plus, 1, threading.Lock())  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    with pytest.raises(windlass.NotPicklable, match=r"keyword argument 'b' .*\['key'\].*lock"):
        pool.submit(plus, 1, b={"key": threading.Lock()})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    manager.install_library("lib", plus)
    with pytest.raises(windlass.NotPicklable, match=r"argument 1 "):
        manager.submit(FunctionCall("lib", "plus", (n for n in range(3))))
    lock = threading.Lock()
    with pytest.raises(windlass.NotPicklable, match=r"function '<lambda>'.*lock"):
        pool.submit(lambda: lock.locked())
    assert manager.wait(0) is None
    assert manager.submit(FunctionCall("lib", "plus", 1)).result(20) == 2


def test_arguments_that_cannot_be_read_there_end_the_call_with_a_reason(pool: windlass.Executor) -> None:
    """Unpickling that fails on the worker is told with its traceback, and charged to no slot."""

    class Thorny:
        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("not a number",)

    with pytest.raises(windlass.WindlassError, match=r"(?s)arguments of 'plus' cannot be loaded on the worker.*not a number"):
        pool.submit(plus, Thorny()).result(20)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    assert pool.submit(plus, 1).result(20) == 2


def test_results_that_cannot_be_read_here_raise_where_they_are_asked_for(pool: windlass.Executor) -> None:
    """A result that only the worker can make sense of is the call's error, and no one else's."""

    class OnlyThere:
        def __reduce__(self) -> tuple[Any, ...]:
            return int, ("only there",)

    with pytest.raises(windlass.NotPicklable, match=r"(?s)result cannot be unpickled here.*only there"):
        pool.submit(OnlyThere).result(20)
    assert pool.submit(plus, 1).result(20) == 2
