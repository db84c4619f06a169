"""Exceptions and output of calls on a real pilot: as themselves, with the remote traceback; what is written goes to its own call."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# The parts of a split ExceptionGroup are partially unknown.

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

import windlass


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """The tests of this module share a manager and its pilot."""


def error_of(pool: windlass.Executor, function: Callable[..., Any], *args: Any) -> BaseException:
    error = pool.submit(function, *args).exception(20)
    assert error is not None
    return error


# ---------------------------------------------------------------- exceptions


class Plain(Exception):
    pass


class Detailed(Exception):
    """Its ``__init__`` needs more than it hands on."""

    def __init__(self, number: int, *, reason: str) -> None:
        super().__init__(f"{reason}: {number}")
        self.number, self.reason = number, reason


class Locked(Exception):
    """It holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()
        self.number = 5


class Stubborn(Exception):
    """It refuses to be pickled at all."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("I stay here")

    def __new__(cls, *args: object, key: str = "") -> Stubborn:
        if not key:
            raise TypeError("it cannot be made without a key")
        return super().__new__(cls, *args)

    def __init__(self, *args: object, key: str = "") -> None:
        super().__init__(*args)


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@dataclass(frozen=True)
class Frozen(Exception):
    """It lets nobody set its attributes, which Python does past it when it raises one."""

    code: int


def raise_it(error: BaseException) -> None:
    raise error


def test_an_exception_keeps_type_arguments_and_attributes(pool: windlass.Executor) -> None:
    """Built-in or of this module: ``except`` clauses of the program catch it, and find what they look for in it."""

    def fail() -> None:
        raise Detailed(7, reason="too many")

    error = error_of(pool, fail)
    assert type(error) is Detailed
    assert (error.number, error.reason, str(error)) == (7, "too many", "too many: 7")
    missing = error_of(pool, open, "/no/such/file")
    assert isinstance(missing, FileNotFoundError)
    assert missing.filename == "/no/such/file"
    assert error_of(pool, {"a": 1}.pop, "key").args == ("key",)
    assert isinstance(error_of(pool, lambda: 1 / 0), ZeroDivisionError)
    with pytest.raises(UnicodeDecodeError, match="invalid start byte"):
        pool.submit(b"\xff".decode, "utf-8").result(20)


@pytest.mark.parametrize("concurrency", [1, 10], ids=["plain", "async"])
def test_a_frozen_exception_is_as_any_other(pool: windlass.Executor, concurrency: int) -> None:
    """It ends neither its slot nor the threads that ask, of which one has it made and the others wait."""

    def fail(code: int) -> None:
        raise Frozen(code)

    async def fail_later(code: int) -> None:
        fail(code)

    with windlass.Executor(None, manager=pool.manager, concurrency=concurrency) as own, ThreadPoolExecutor(2) as threads:
        future = own.submit(fail if concurrency == 1 else fail_later, 7)
        asking = [threads.submit(future.exception, 20) for _ in range(2)]
        errors = [one.result(20) for one in asking]
        assert future.state == "failed"
        assert [own.submit(abs, -number).result(20) for number in range(2)] == [0, 1]
    for error in errors:
        assert type(error) is Frozen
        assert error.code == 7
        assert "in fail" in str(error.__cause__)
        assert "in answer" not in str(error.__cause__)
    with pytest.raises(Frozen):
        future.result()


def test_the_remote_traceback_is_the_cause_with_names_and_lines(pool: windlass.Executor) -> None:
    """Functions, line numbers and source lines of the program, and no frame of Windlass before them."""

    def inner(x: int) -> int:
        raise Plain(f"no {x}")

    def outer(x: int) -> int:
        return inner(x) + 1

    error = error_of(pool, outer, 3)
    cause = error.__cause__
    assert isinstance(cause, windlass.RemoteTraceback)
    text = str(cause)
    line = inner.__code__.co_firstlineno + 1
    assert f'"{__file__}", line {line}, in inner' in text
    assert 'raise Plain(f"no {x}")' in text
    assert text.index("in outer") < text.index("in inner")
    assert "slot.py" not in text
    with pytest.raises(Plain, match="no 4"):
        pool.submit(outer, 4).result(20)


def test_notes_and_chains_arrive(pool: windlass.Executor) -> None:
    """``add_note``, ``raise ... from``, and an exception during the handling of another one."""

    def fail(explicit: bool) -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError as error:
                if explicit:
                    raise Plain("second") from error
                raise Plain("second")  # noqa: B904
        except Plain as error:
            error.add_note("it was in file 3")
            error.add_note("and that was that")
            raise

    for explicit in (True, False):
        error = error_of(pool, fail, explicit)
        assert type(error) is Plain
        assert error.__notes__ == ["it was in file 3", "and that was that"]
        told = error.__cause__
        assert isinstance(told, windlass.RemoteTraceback)
        origin = told.__cause__ if explicit else told.__context__
        assert isinstance(origin, KeyError)
        assert origin.args == ("first",)
        assert isinstance(origin.__cause__, windlass.RemoteTraceback)


def test_exception_groups_split_as_ever(pool: windlass.Executor) -> None:
    """``except*`` works on what comes back, nested groups too."""

    def fail() -> None:
        raise ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [Detailed(1, reason="deep"), OSError(5, "io")])])

    error = error_of(pool, fail)
    assert isinstance(error, ExceptionGroup)
    values, rest = error.split(ValueError)
    assert values is not None
    assert values.exceptions[0].args == ("a",)
    assert rest is not None
    found = rest.subgroup(Detailed)
    assert found is not None
    inner = found.exceptions[0]
    assert isinstance(inner, ExceptionGroup)
    assert (inner.message, str(inner.exceptions[0])) == ("inner", "deep: 1")


def test_an_exception_that_holds_a_lock_comes_without_it(pool: windlass.Executor) -> None:
    """Its type and its other attributes stay."""

    def fail() -> None:
        raise Locked("locked up")

    error = error_of(pool, fail)
    assert type(error) is Locked
    assert str(error) == "locked up"
    assert error.number == 5
    assert not hasattr(error, "lock")


def test_an_exception_that_cannot_travel_is_told_by_a_remote_error(pool: windlass.Executor) -> None:
    """`RemoteError` has its type, message and traceback; its own cause chain is kept."""

    def fail() -> None:
        try:
            raise KeyError("below")
        except KeyError as error:
            raise Stubborn("I am", key="k") from error

    error = error_of(pool, fail)
    assert type(error) is windlass.RemoteError
    assert "Stubborn: I am" in str(error)
    assert "in fail" in str(error.__cause__)
    assert error.__cause__ is not None
    assert isinstance(error.__cause__.__cause__, KeyError)


def test_an_exception_without_a_text_does_no_harm(pool: windlass.Executor) -> None:
    """A ``__str__`` that raises."""

    def fail() -> None:
        raise Silent("x")

    assert type(error_of(pool, fail)) in (Silent, windlass.RemoteError)


def test_exits_and_interrupts_of_a_function_are_its_exceptions(shared_manager: windlass.Manager) -> None:
    """``sys.exit`` and ``KeyboardInterrupt`` reach the program as themselves, and end no slot."""

    def leave() -> None:
        sys.exit("bye")

    def interrupt() -> None:
        raise KeyboardInterrupt

    def close() -> None:
        raise GeneratorExit

    def call(name: str) -> windlass.CallFuture[Any]:
        return shared_manager.submit(windlass.FunctionCall("exits", name))

    shared_manager.install_library("exits", leave, interrupt, close, os.getpid, slots=1)
    slot = call("getpid").result(20)
    left = call("leave").exception(20)
    assert isinstance(left, SystemExit)
    assert left.code == "bye"
    assert isinstance(call("interrupt").exception(20), KeyboardInterrupt)
    assert isinstance(call("close").exception(20), GeneratorExit)
    with pytest.raises(SystemExit):
        call("leave").result(20)
    assert call("getpid").result(20) == slot


def test_an_exception_of_many_megabytes_is_shortened(pool: windlass.Executor) -> None:
    """A message or an attribute of any size fails the call, not its worker's connection."""

    def fail(size: int) -> None:
        error = Plain("x" * size)
        error.add_note("y" * size)
        raise error

    error = error_of(pool, fail, 5_000_000)
    assert type(error) in (Plain, windlass.RemoteError)
    assert "x" * 100 in str(error)
    assert len(str(error)) < 6_000_000


def test_exceptions_are_arguments_and_results_too(pool: windlass.Executor) -> None:
    """As values they are no failure; one that was an argument may be raised there."""
    made = pool.submit(Plain, "as a value").result(20)
    assert type(made) is Plain
    assert made.args == ("as a value",)
    error = error_of(pool, raise_it, made)
    assert type(error) is Plain
    assert "in raise_it" in str(error.__cause__)


# ---------------------------------------------------------------- output


def test_all_that_a_call_writes_is_its_own(pool: windlass.Executor) -> None:
    """``print``, the descriptor, a child process, a C library: in ``stdout`` and ``stderr`` of the call's future, in order."""

    def write() -> str:
        import ctypes

        print("from print")
        print("error from print", file=sys.stderr)
        sys.stdout.flush()
        os.write(1, b"from fd\n")
        os.write(2, b"error from fd\n")
        subprocess.run(["sh", "-c", "echo from child; echo error from child >&2"], check=True)
        ctypes.CDLL(None).puts(b"from C")
        print("ünï", end="")
        return "result"

    future = pool.submit(write)
    assert (future.stdout, future.stderr) == ("", "")
    assert future.result(20) == "result"
    assert sorted(future.stdout.splitlines()) == sorted(["from print", "from fd", "from child", "from C", "ünï"])
    assert future.stdout.startswith("from print\nfrom fd\nfrom child\n")
    assert future.stderr == "error from print\nerror from fd\nerror from child\n"
    assert future.std_output == future.stdout


def test_calls_do_not_get_each_others_output(pool: windlass.Executor) -> None:
    """Hundreds of calls in two slots: each future has its own line, and silent ones have nothing."""

    def write(number: int) -> int:
        if number % 3:
            print("number", number)
        return number

    futures = [pool.submit(write, number) for number in range(300)]
    for number, future in enumerate(futures):
        assert future.result(20) == number
        assert future.stdout == (f"number {number}\n" if number % 3 else "")


def test_output_of_a_call_that_fails_is_kept(pool: windlass.Executor) -> None:
    """What it wrote before it raised is there."""

    def write() -> None:
        print("before", end="")
        raise Plain

    future = pool.submit(write)
    assert isinstance(future.exception(20), Plain)
    assert future.stdout == "before"


def test_long_output_keeps_its_beginning_and_end(pool: windlass.Executor) -> None:
    """20 MB are bounded to some 64 KiB, with a line that says how many bytes are missing."""

    def write() -> None:
        print("the beginning")
        for _ in range(200):
            os.write(1, b"x" * 100_000)
        print("\nthe end")

    future = pool.submit(write)
    future.result(30)
    assert future.stdout.startswith("the beginning\n")
    assert future.stdout.endswith("\nthe end\n")
    assert len(future.stdout) < 100_000
    assert "bytes left out" in future.stdout


def test_bytes_that_are_no_text_are_replaced(pool: windlass.Executor) -> None:
    """Binary output does not break reading it."""
    future = pool.submit(os.write, 1, b"a\xffb")
    assert future.result(20) == 3
    assert future.stdout == "a\ufffdb"


@pytest.mark.parametrize("harm", ["close", "replace", "none"])
def test_a_call_that_breaks_its_streams_breaks_them_for_no_other(shared_manager: windlass.Manager, harm: str) -> None:
    """What it printed before is kept, and the next call in the same slot prints as ever."""

    def break_it() -> int:
        print("before")
        if harm == "close":
            sys.stdout.close()
        elif harm == "replace":
            import io

            sys.stdout = io.StringIO()
        else:
            sys.stdout = None
        return os.getpid()

    def say() -> int:
        print("I can speak")
        return os.getpid()

    shared_manager.install_library("speech", break_it, say, slots=1)
    broken, after = [shared_manager.submit(windlass.FunctionCall("speech", name)) for name in ("break_it", "say")]
    assert broken.result(20) == after.result(20), "they ran in the same slot"
    assert broken.stdout == "before\n"
    assert after.stdout == "I can speak\n"


def test_reading_standard_input_gives_nothing(pool: windlass.Executor) -> None:
    """``input()`` fails at once instead of waiting for somebody to type."""
    assert isinstance(error_of(pool, input), EOFError)
    assert pool.submit(lambda: sys.stdin.read()).result(20) == ""
