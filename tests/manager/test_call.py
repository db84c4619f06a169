"""Calls and their options: what is accepted, what it becomes, and the line that a refusal shows."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from windlass.errors import UnknownName, UsageError
from windlass.files import File
from windlass.manager.call import DEFAULT_OPTIONS, FunctionCall, intern_options, merge_options, needs_of, refuse_as_arguments
from windlass.manager.command import Command
from windlass.messages import CallOptions, Resources


class LocalError(Exception):
    pass


def options_of(**given: Any) -> CallOptions:
    return FunctionCall("lib", "f").with_options(**given).options


class TestFunctionCall:
    def test_it_holds_names_and_arguments(self) -> None:
        call = FunctionCall("lib", "f", 1, "two", three=3)
        assert (call.library, call.function, call.args, call.kwargs) == ("lib", "f", (1, "two"), {"three": 3})
        assert (call.options, call.tag) == (DEFAULT_OPTIONS, None)

    def test_all_its_keywords_are_the_functions(self) -> None:
        """Options never steal an argument, whatever its name."""
        call = FunctionCall("lib", "f", timeout=1, retries=2, tag="x", library="y", function="z", self=5)
        assert call.kwargs == {"timeout": 1, "retries": 2, "tag": "x", "library": "y", "function": "z", "self": 5}
        assert call.options == DEFAULT_OPTIONS

    def test_a_library_object_and_a_function_stand_for_their_names(self) -> None:
        class Lib:
            name = "lib"

        def work() -> None: ...

        call = FunctionCall(Lib(), work)
        assert (call.library, call.function) == ("lib", "work")

    @pytest.mark.parametrize(
        ("library", "function", "text"),
        [
            (math.sqrt, "f", r"the first argument names a library; write FunctionCall\('lib', 'function', \.\.\.\)"),
            ("", "f", "the first argument names a library"),
            (
                "lib",
                3,
                r"FunctionCall\('lib', 3, \.\.\.\): the second argument names a function; write FunctionCall\('lib', 'function', \.\.\.\)",
            ),
        ],
    )
    def test_what_cannot_be_a_name_is_refused_with_the_right_line(self, library: Any, function: Any, text: str) -> None:
        with pytest.raises(UsageError, match=text):
            FunctionCall(library, function)

    def test_with_options_leaves_the_call_as_it_is(self) -> None:
        call = FunctionCall("lib", "f", 1)
        other = call.with_options(timeout=5, tag="x")
        assert (call.options, call.tag) == (DEFAULT_OPTIONS, None)
        assert (other.options.timeout, other.tag, other.args) == (5.0, "x", (1,))
        assert other.with_options(retries=1).options == CallOptions(timeout=5.0, retries=1)

    def test_its_repr_shows_no_large_arguments(self) -> None:
        call = FunctionCall("lib", "f", 1, "x" * 100, [0] * 1000, key=None)
        assert repr(call) == f"FunctionCall('lib', 'f', 1, 'x{'x' * 35}..., <list>, key=None)"

    def test_taskvines_setters_change_it_in_taskvines_units(self) -> None:
        call = FunctionCall("lib", "f")
        call.set_priority(-2)
        call.set_tag("t")
        call.set_retries(3)
        call.set_time_max(60)
        call.set_cores(2)
        call.set_memory(512)
        call.set_gpus(1)
        assert call.tag == "t"
        assert call.options == CallOptions(timeout=60.0, retries=3, priority=-2.0, needs=Resources(2.0, 512 << 20, 1))
        call.set_memory("2GiB")
        assert call.options.needs.memory == 2 << 30


class TestOptions:
    def test_all_of_them(self) -> None:
        options = options_of(
            timeout="2min",
            retries=3,
            retry_on=(OSError, "pkg.Error"),
            priority=1,
            cores=2,
            memory="2GiB",
            gpus=1,
            expected_time=30,
            max_losses=2,
        )
        assert options == CallOptions(
            timeout=120.0,
            retries=3,
            retry_on=("builtins.OSError", "pkg.Error"),
            priority=1.0,
            needs=Resources(2.0, 2 << 30, 1),
            max_losses=2,
            expected_time=30.0,
        )

    def test_equal_ones_are_one_object(self) -> None:
        assert options_of(timeout=5) is options_of(timeout=5.0)
        assert options_of(retries=0) is DEFAULT_OPTIONS

    def test_a_program_with_options_for_each_call_fills_no_memory(self) -> None:
        kept = intern_options(CallOptions(priority=-1.0))
        for number in range(10_000):
            intern_options(CallOptions(priority=float(number)))
        assert intern_options(CallOptions(priority=-1.0)) == kept
        assert intern_options(CallOptions()) is DEFAULT_OPTIONS

    def test_memory_auto_grows_and_a_figure_does_not(self) -> None:
        auto = options_of(memory="auto")
        assert (auto.grow_memory, auto.needs.memory) == (True, 0)
        fixed, _ = merge_options(auto, None, {"memory": "1GiB"})
        assert (fixed.grow_memory, fixed.needs.memory) == (False, 1 << 30)

    def test_none_is_no_limit(self) -> None:
        assert options_of(timeout=None, expected_time=None) == DEFAULT_OPTIONS

    @pytest.mark.parametrize(
        ("given", "names"),
        [
            (OSError, ("builtins.OSError",)),
            ("ValueError", ("builtins.ValueError",)),
            ("a.b.Error", ("a.b.Error",)),
            ([OSError, "OSError", LocalError], ("builtins.OSError", f"{__name__}.LocalError")),
        ],
    )
    def test_retry_on_takes_classes_and_names(self, given: Any, names: tuple[str, ...]) -> None:
        assert options_of(retries=1, retry_on=given).retry_on == names

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"timeout": -1}, "timeout=-1 leaves no time; write timeout=90 (seconds), or timeout=None for no limit"),
            ({"timeout": 0}, "timeout=0 leaves no time; write timeout=90 (seconds), or timeout=None for no limit"),
            ({"timeout": [3]}, "timeout=[3] is a list; timeout is in seconds: write timeout=90, or timeout='2h'"),
            ({"timeout": math.nan}, "timeout=nan is not a finite number; timeout is in seconds: write timeout=90, or timeout='2h'"),
            ({"retries": -2}, "retries=-2 is negative; write retries=2, or leave it out"),
            ({"retries": True}, "retries=True is a bool; retries is a whole number: write retries=2"),
            ({"retries": 1.5}, "retries=1.5 is a float; retries is a whole number: write retries=2"),
            ({"priority": "high"}, "priority='high' is a str; priority is a number: write priority=1.5"),
            ({"tag": 3}, "tag=3 is an int; a tag is a text: write tag='3'"),
            ({"tag": "a\udcff"}, "tag='a\\udcff' has parts of letters, which no message can say; write tag='a?'"),
            ({"cores": -1}, "cores=-1 is negative; write cores=1, or leave it out"),
            ({"memory": 2000}, "memory=2000 is 2000 bytes; write memory='2000MB' (or 'GB')"),
            ({"gpus": 0.5}, "gpus=0.5 is a float; gpus is a whole number: write gpus=2"),
            ({"retry_on": OSError}, "retry_on= without retries= retries nothing; write retry_on=..., retries=3"),
            ({"retry_on": 3}, "retry_on=3 is an int; write retry_on=OSError, or retry_on=(OSError, 'package.module.Error')"),
            ({"retry_on": int}, "retry_on=int is not an exception class; write retry_on=OSError"),
            ({"retry_on": [OSError()]}, "retry_on has OSError(), an OSError; write a class, as in retry_on=OSError, not an instance"),
            (
                {"retry_on": "MyError"},
                "retry_on='MyError' names no built-in exception; write it with its module: retry_on='package.module.MyError'",
            ),
            (
                {"time_out": 3},
                "there is no option of a call 'time_out'; did you mean 'timeout'? (arguments of the function itself go into "
                "FunctionCall(library, function, ...) or submit(function, ...))",
            ),
        ],
    )
    def test_what_cannot_be_is_refused_with_the_right_line(self, given: dict[str, Any], text: str) -> None:
        with pytest.raises(UsageError) as caught:
            options_of(**given)
        assert str(caught.value) == text

    @pytest.mark.parametrize("path", ["a\udcff", "d\udcff/out"])
    def test_paths_that_no_message_can_say_are_refused(self, path: str) -> None:
        """A worker that cannot be told of its calls would be lost, and each after it."""
        call, file = FunctionCall("lib", "f"), File(0, None, "x")
        for add in (call.add_input, call.add_output):
            with pytest.raises(UsageError, match="no message can say it"):
                add(file, path)
        with pytest.raises(UsageError, match="its path is not UTF-8, and no message can say it; declare a link"):
            call.add_input(File(0, None, path, path=path), "a")

    @pytest.mark.parametrize(
        ("path", "text"),
        [
            ("a/b", "the call has a file of that path already"),
            ("a//b/", "the call has a file of that path already"),
            ("a/b/c/d", "the call has 'a/b' already, and inputs and outputs cannot be within each other"),
            ("a", "the call has 'a/b' already, and inputs and outputs cannot be within each other"),
        ],
    )
    def test_paths_that_are_taken_are_refused(self, path: str, text: str) -> None:
        call = FunctionCall("lib", "f")
        call.add_output(File(0, None, "x"), "a/b")
        for one in (call, call.with_options(tag="twin")):
            with pytest.raises(UsageError, match=text):
                one.add_input(File(0, None, "y"), path)
        call.add_input(File(0, None, "y"), "a/bc")

    @pytest.mark.parametrize(
        ("first", "second", "text"),
        [
            ("out", "out", "the call makes that path already; give each output once"),
            ("out/", "./out", "the call makes that path already; give each output once"),
            ("out", "out/x", "the call makes 'out' already, and no output can be in another one: take the folder alone"),
            ("out/x", "out", "the call makes 'out/x' already, and no output can be in another one: take the folder alone"),
        ],
    )
    def test_outputs_that_would_be_taken_away_from_each_other_are_refused(self, first: str, second: str, text: str) -> None:
        """Or the command would run for hours, and then fail as what it made is there no more."""
        with pytest.raises(UsageError, match=text):
            Command("make", outputs=[first, second])
        call = FunctionCall("lib", "f")
        for one in (Command("make", outputs=[first]), Command("make", outputs=[first]).with_options(tag="twin"), call):
            if one is call:
                call.add_output(File(0, None, "x"), first)
            with pytest.raises(UsageError, match=text):
                one.add_output(File(0, None, "y"), second)
        Command("make", outputs=["out", "out2", "other/x", "other/y"])

    @pytest.mark.parametrize(("made", "given"), [("a", "a"), ("a/b", "a"), ("a", "a/b")])
    def test_an_output_is_no_input_too(self, made: str, given: str) -> None:
        file = File(0, None, "x")
        with pytest.raises(UsageError, match="the call has"):
            Command("make", inputs={given: file}, outputs=[made])
        with pytest.raises(UsageError, match="the call has"):
            Command("make", outputs=[made]).add_input(file, given)

    def test_a_path_more_costs_no_look_at_all_others(self) -> None:
        """A command with 6,000 inputs took seconds to be written down."""

        class Unseen(dict[str, File]):
            def __iter__(self) -> Iterator[str]:
                raise AssertionError

            keys = values = items = __iter__  # type: ignore[assignment]

        call, made = FunctionCall("lib", "f"), File(0, None, "y")
        call.inputs, call.outputs = Unseen(), Unseen()
        call.add_input(File(0, None, "x"), "a")
        call.add_output(made, "b/c")
        with pytest.raises(UsageError, match="the call makes that file already, from 'b/c'; declare another one"):
            call.add_output(made, "d")

    def test_an_unknown_option_is_an_unknown_name(self) -> None:
        with pytest.raises(UnknownName):
            options_of(whatever=1)

    @pytest.mark.parametrize("given", [{"timeout": "soon"}, {"memory": "much"}, {"expected_time": ""}])
    def test_texts_that_are_no_amounts_are_refused_by_name(self, given: dict[str, Any]) -> None:
        ((key, value),) = given.items()
        with pytest.raises(UsageError, match=f"^{key}={value!r}"):
            options_of(**given)

    def test_a_refused_option_changes_nothing(self) -> None:
        call = FunctionCall("lib", "f")
        call.set_retries(2)
        with pytest.raises(UsageError):
            call.set_retries(-1)
        assert call.options == CallOptions(retries=2)


def test_needs_are_read_as_people_write_them() -> None:
    assert needs_of(None, None, None) == Resources()
    assert needs_of(0.5, 4 << 30, 2) == Resources(0.5, 4 << 30, 2)


def test_words_of_options_are_arguments_where_a_function_may_take_them() -> None:
    """A decorator may take what the function that it wraps does not have."""

    class Solver:
        def __init__(self, timeout: float) -> None:
            self.timeout = timeout

        def __call__(self, *, memory: int) -> int:
            return memory

    def limited(function: Callable[[], int]) -> Callable[..., int]:
        @functools.wraps(function)
        def inner(*, timeout: float) -> int:
            return function() + int(timeout)

        return inner

    def shows_another(*, timeout: float, **words: object) -> int:
        return int(timeout)

    shows_another.__signature__ = inspect.signature(lambda: None)  # type: ignore[attr-defined]

    def plain() -> int:
        return 1

    def anything(**words: object) -> int:
        return len(words)

    takes: list[tuple[Callable[..., Any], str]] = [
        (anything, "tag"),
        (limited(plain), "timeout"),
        (shows_another, "timeout"),
        (Solver, "timeout"),
        (Solver(1.0), "memory"),
        (functools.partial(Solver, timeout=2.0), "timeout"),
        (dict, "cores"),
    ]
    for function, word in takes:
        refuse_as_arguments(function, {word: 1}, "{}")
    refuse_as_arguments(plain, {"word": 1}, "{}")  # Python says what is wrong with that
    with pytest.raises(UsageError, match=r"^plain\(\) has no parameter 'timeout', .* are given by with_options\(timeout=1, cores=2\)"):
        refuse_as_arguments(plain, {"timeout": 1, "word": 1, "cores": 2}, "with_options({})")
