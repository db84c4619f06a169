"""What a slot's functions know of the program's classes: as they were when a call was submitted, whatever has run there before."""

from __future__ import annotations

import hashlib
from abc import ABCMeta
from dataclasses import dataclass
from functools import cached_property, lru_cache, singledispatch, singledispatchmethod, wraps
from typing import Any, ClassVar, Generic, NewType, ParamSpec, TypeVar, TypeVarTuple

import msgspec
import pytest

from windlass.errors import NotPicklable
from windlass.functions import look_at
from windlass.messages import FunctionDef, FunctionId
from windlass.worker.slot_functions import GROWTH

state: Any = None


class Job:
    """Its method depends on a global, which calls bind anew."""

    def go(self) -> Any:
        return state


def first(value: Any) -> Any:
    global state
    state = value
    return Job().go()


def second(value: Any) -> Any:
    global state
    state = value
    return Job().go()


async def run(bench: Any, function: Any, *args: Any) -> Any:
    """A call with the function, and what it refers to, as they are now: those that are equal have one id."""
    blob = look_at(function).blob
    bench.ids[function] = key = FunctionId(hashlib.blake2b(blob, digest_size=16).digest())
    (bench.functions / key.hex()).write_bytes(msgspec.msgpack.encode(FunctionDef(key, function.__name__, blob)))
    return bench.value(await bench.run(function, *args))


@pytest.mark.asyncio
@pytest.mark.parametrize("how", [{}, {"mode": "fork"}, {"concurrency": 2}])
async def test_a_class_that_changes_between_submits_is_what_it_was_for_each_call(bench: Any, how: Any) -> None:
    class Config:
        rate = 1

    def train(seed: int) -> Any:
        first = not hasattr(Config, "table")
        if first:
            Config.table = 10 * Config.rate  # type: ignore[attr-defined]
        return seed, Config.rate, Config.table, first  # type: ignore[attr-defined]

    async def later() -> Any:
        return Config.rate

    def of(config: Any) -> Any:
        return config.rate, isinstance(config, Config)

    await bench.serving(bench.spec(**how))
    for seed in range(3):
        for rate in (1, 2):
            Config.rate = rate
            assert await run(bench, train, seed) == (seed, rate, 10 * rate, seed == 0 or how == {"mode": "fork"})
            assert await run(bench, later) == rate
            assert await run(bench, of, Config()) == (rate, True)


@pytest.mark.asyncio
async def test_functions_and_the_methods_that_they_call_have_the_same_globals(bench: Any) -> None:
    """Whatever has brought the class since: another function, or one that is an argument."""

    def apply(function: Any, value: Any) -> Any:
        return function(value)

    await bench.serving(bench.spec())
    for value in range(3):
        assert await run(bench, first, value) == value
        assert await run(bench, second, value + 1) == value + 1
        assert await run(bench, apply, first, value + 2) == value + 2


@pytest.mark.asyncio
async def test_a_registry_of_classes_has_those_that_are_in_use(bench: Any) -> None:
    """No class is made for nothing, which ``__init_subclass__`` would note."""

    class Base:
        registry: ClassVar[dict[str, type]] = {}
        made: ClassVar[list[str]] = []

        def __init_subclass__(cls) -> None:
            Base.registry[cls.__name__] = cls
            Base.made.append(cls.__name__)

    class Sub(Base):
        pass

    def one() -> Any:
        return Base.registry["Sub"] is Sub, len(Base.made)

    def other(sub: Any) -> Any:
        return isinstance(sub, Sub) and type(sub) is Base.registry["Sub"], len(Base.made)

    await bench.serving(bench.spec())
    for _ in range(3):
        assert await run(bench, one) == (True, 1)
        assert await run(bench, other, Sub()) == (True, 1)


@pytest.mark.asyncio
async def test_what_the_context_made_is_of_the_classes_that_later_functions_know(bench: Any) -> None:
    class Model:
        name = "model"

    def make() -> Any:
        return {"model": Model()}

    def own(model: Any) -> Any:
        return isinstance(model, Model)

    def later(number: int, model: Any) -> Any:
        return number, isinstance(model, Model)

    await bench.serving(bench.spec(own, context=(make, (), {})))
    assert await run(bench, later, 1) == (1, True)
    assert bench.value(await bench.run(own)) is True


@pytest.mark.asyncio
async def test_a_result_is_of_the_programs_class_whichever_function_made_it(bench: Any) -> None:
    class Point:
        x = 1

    def first() -> Any:
        return Point()

    def second() -> Any:
        return Point()

    await bench.serving(bench.spec())
    for x in range(2):
        Point.x = x
        for function in (first, second, first):
            assert type(await run(bench, function)) is Point


T = TypeVar("T")


class Bare:
    __slots__ = ()


class Slim(Bare):
    __slots__ = ("__own", "x")

    def __init__(self, x: int) -> None:
        self.x, self.__own = x, x + 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slim) and (self.x, self.__own) == (other.x, other.__own)

    __hash__ = None  # type: ignore[assignment]


class Open(Slim, Generic[T]):
    __slots__ = ("__dict__", "__weakref__")


@dataclass(slots=True)
class Record:
    x: int
    name: str = "none"


@dataclass(slots=True, frozen=True)
class Frozen:
    x: int


class Fields:
    __slots__ = _fields = ("a", "b")

    def __init__(self, a: int) -> None:
        self.a = self.b = a

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self.a == other.a == other.b

    __hash__ = None  # type: ignore[assignment]


class Replaced:
    __slots__ = ("_x", "x")

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Replaced) and self.x == other.x

    __hash__ = None  # type: ignore[assignment]


Replaced.x = property(lambda self: self._x, lambda self, x: setattr(self, "_x", abs(x)))  # type: ignore[assignment,misc]  # pyright: ignore
Replaced.y = Replaced._x  # type: ignore[attr-defined]  # pyright: ignore


class Caching:
    def __init__(self, x: int) -> None:
        self.x = x

    @lru_cache  # noqa: B019
    def root(self) -> int:
        return self.x

    @cached_property
    def again(self) -> int:
        return self.x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Caching) and self.x == other.x

    __hash__ = object.__hash__


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", [Slim, Open, Record, Frozen, Fields, Replaced, Caching])
async def test_instances_of_any_class_go_and_come(bench: Any, kind: Any) -> None:
    """With slots, and with methods that have caches."""

    def same(value: Any) -> Any:
        return value

    def make(x: int) -> Any:
        made = kind(x)
        return made, hasattr(made, "__dict__"), getattr(made, "y", None)

    await bench.serving(bench.spec())
    value = kind(-1)
    back = await run(bench, same, value)
    assert type(back) is kind
    assert back == value
    made, has_dict, alias = await run(bench, make, -2)
    assert type(made) is kind
    assert made == kind(-2)
    assert has_dict == hasattr(value, "__dict__")
    assert alias == getattr(kind(-2), "y", None)


def test_what_a_class_is_generic_in_comes_along_from_where_it_cannot_be_imported() -> None:
    """A TypeVar is looked for in its module else, which is not on every node."""

    def uses() -> Any:
        return Open[int](1), T

    assert b"subimport" not in look_at(uses).blob


@pytest.mark.asyncio
async def test_functions_that_dispatch_by_type_go_and_come(bench: Any) -> None:
    """With what they dispatch to, also where that calls them; as methods too. What is registered later is there for later calls."""

    @singledispatch
    def show(value: Any) -> Any:
        """Shown."""
        return "other"

    @show.register(list)
    def _(value: list[Any]) -> Any:
        return [show(one) for one in value]

    @show.register(Slim)
    def _(value: Slim) -> Any:
        return "slim"

    class Shows:
        @singledispatchmethod
        def go(self, value: Any) -> Any:
            return "any"

        @go.register
        def _(self, value: int) -> Any:
            return value + 1

    def use(value: Any) -> Any:
        return show(value), Shows().go(value), Shows().go(1)

    def give() -> Any:
        return show

    await bench.serving(bench.spec())
    assert await run(bench, show, [1, Slim(1)]) == ["other", "slim"]
    assert await run(bench, use, [1]) == (["other"], "any", 2)
    back = await run(bench, give)
    assert (back([Slim(1)]), back.__name__, back.__doc__) == (["slim"], "show", "Shown.")
    with pytest.raises(TypeError, match="show requires at least 1 positional argument"):
        back()
    show.register(int, hex)
    assert await run(bench, show, [1]) == ["0x1"]


@pytest.mark.asyncio
async def test_a_wrapper_of_what_dispatches_by_type_goes_and_comes(bench: Any) -> None:
    """`functools.wraps` gives it the functions that register and look, which have weak references."""

    def noted(function: Any) -> Any:
        @wraps(function)
        def wrapper(value: Any) -> Any:
            return [function(value)]

        return wrapper

    @singledispatch
    def plain(value: Any) -> Any:
        """Shown."""
        return "other"

    @plain.register(int)
    def _(value: int) -> Any:
        return "int"

    show = noted(noted(plain))

    def give(value: Any) -> Any:
        return show, show.dispatch(int)(value), sorted(kind.__name__ for kind in show.registry)

    await bench.serving(bench.spec())
    assert await run(bench, show, 1) == [["int"]]
    back, *rest = await run(bench, give, 1)
    assert rest == ["int", ["int", "object"]]
    assert (back("x"), back(1), back.__doc__) == ([["other"]], [["int"]], "Shown.")
    back.register(str, str.upper)
    assert back("x") == [["X"]]


@pytest.mark.asyncio
async def test_functions_that_wrap_themselves_go(bench: Any) -> None:
    """As a decorator makes one that is switched off."""

    def one(value: Any) -> Any:
        return value

    def other(value: Any) -> Any:
        return [value]

    wraps(one)(one)
    one.__wrapped__ = other  # type: ignore[attr-defined]
    other.__wrapped__ = one  # type: ignore[attr-defined]

    def alone(value: Any) -> Any:
        return value

    wraps(alone)(alone)
    await bench.serving(bench.spec())
    assert await run(bench, one, 1) == 1
    assert await run(bench, alone, 2) == 2


P = ParamSpec("P")
Ts = TypeVarTuple("Ts")
Uid = NewType("Uid", int)
Uids = NewType("Uids", Bare)


class Calls(Generic[P]):
    def __init__(self, x: Any) -> None:
        self.x = x


class Rows(Generic[*Ts]):
    pass


@pytest.mark.asyncio
async def test_names_that_typing_makes_go_and_come(bench: Any) -> None:
    """They are looked for in their module else, which is not on every node."""

    def use(value: Any) -> Any:
        same = Calls.__parameters__ == (P,) and Rows.__parameters__ == (Ts,) and Uids.__supertype__ is Bare  # type: ignore[attr-defined]
        return Calls(Uid(value)), Rows(), same, (P, Ts, Uid, Uids), (repr(P), Uid.__qualname__, repr(Uid))

    assert b"subimport" not in look_at(use).blob
    await bench.serving(bench.spec())
    for _ in range(2):
        calls, rows, same, names, words = await run(bench, use, 1)
        assert (type(calls), calls.x, type(rows), same) == (Calls, 1, Rows, True)
        assert all(one is other for one, other in zip(names, (P, Ts, Uid, Uids), strict=True))
        assert words == ("~P", "Uid", f"{__name__}.Uid")


class Tagged(metaclass=ABCMeta):  # noqa: B024
    def __init_subclass__(cls, tag: str, *, level: int, **more: Any) -> None:
        cls.tag, cls.level = tag, level  # type: ignore[attr-defined]


class ByMeta(type):
    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        return super().__new__(cls, name, bases, namespace, **({"tag": name} if bases not in ((), (object,)) else {}))


def test_a_class_that_cannot_be_made_without_its_keywords_is_refused_at_once() -> None:
    """Python does not keep them, so no other process can make it; the text says what can be done."""

    class Bee(Tagged, tag="bee", level=1):
        pass

    told = r"class .*Bee was made with keywords \(tag, level\) that do not travel: .*defaults.*, or put the class into a module"
    with pytest.raises(NotPicklable, match=told):
        look_at(lambda: Bee().tag)  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_a_class_whose_keywords_have_defaults_or_come_from_its_metaclass_travels(bench: Any) -> None:
    class Defaulted:
        def __init_subclass__(cls, tag: str = "none") -> None:
            cls.tag = tag  # type: ignore[attr-defined]

    class Bee(Defaulted, tag="bee"):
        pass

    class Made(metaclass=ByMeta):
        def __init_subclass__(cls, tag: str) -> None:
            cls.tag = tag  # type: ignore[attr-defined]

    class Fly(Made):
        pass

    def tags() -> Any:
        return Bee.tag, Fly.tag  # type: ignore[attr-defined]

    await bench.serving(bench.spec())
    assert await run(bench, tags) == ("bee", "Fly")


@pytest.mark.asyncio
async def test_what_functions_keep_in_their_classes_does_not_fill_a_slot(bench: Any) -> None:
    """Each closure is a function with classes of its own, and each of them loads the model."""

    class Model:
        net: bytearray | None = None

    def closure(number: int) -> Any:
        def use() -> Any:
            if Model.net is None:
                Model.net = bytearray(b"x") * (16 << 20)
            with open("/proc/self/statm") as file:
                return number, int(file.read().split()[1]) * 4096

        return use

    await bench.serving(bench.spec())
    numbers, sizes = zip(*[await run(bench, closure(number)) for number in range(30)], strict=True)
    assert numbers == tuple(range(30))
    assert max(sizes) - min(sizes) < GROWTH + (64 << 20)
