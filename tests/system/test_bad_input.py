"""What cannot be is refused where it is given, in words that say what to write instead; and nothing is lost by it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from windlass import Closed, Executor, Factory, FunctionCall, Manager, NotPicklable, NotPossible, UnknownName, UsageError


def double(number: int) -> int:
    return 2 * number


def half(number: int) -> float:
    return number / 2


def counting() -> Iterator[int]:
    yield 1


async def later() -> int:
    return 1


@pytest.fixture(scope="module")
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """All tests of this module share a manager."""


@pytest.fixture(scope="module")
def wronged(leaves_nothing_running: None) -> Iterator[Manager]:
    """A manager with a waiting call, no pilot, and bad input to come; at the end the call is run as if nothing had been."""
    with Manager(name="wronged") as manager:
        manager.install_library("lib", double, half)
        first = manager.submit(FunctionCall("lib", "double", 21))
        yield manager
        with Factory(manager, "local", cores=1):
            assert first.result(30) == 42, "what was submitted before the bad input is lost"
        assert manager.stats.done == 1
        assert manager.empty()


Wrong = Callable[[Manager], object]


def refused(manager: Manager, wrong: Wrong, kind: type[BaseException], text: str) -> None:
    """``wrong`` raises ``kind`` with this text, and neither calls nor libraries have changed."""
    before = (len(manager._client.pending()), manager.libraries)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(kind) as caught:
        wrong(manager)
    assert str(caught.value) == text
    assert type(caught.value) is kind
    assert (len(manager._client.pending()), manager.libraries) == before  # pyright: ignore[reportPrivateUsage]


def call(**options: Any) -> Wrong:
    """Submit a good call with these options."""
    return lambda manager: manager.submit(FunctionCall("lib", "double", 1).with_options(**options))


def library(*functions: Any, name: Any = "other", **options: Any) -> Wrong:
    """Install a library of these functions, else of a good one."""
    return lambda manager: manager.install_library(manager.create_library(name, *(functions or (double,)), **options))


def factory(backend: Any = "local", **options: Any) -> Wrong:
    """Make a factory."""
    return lambda manager: Factory(manager, backend, **options)


def made(**options: Any) -> Wrong:
    """Make another manager."""
    return lambda _: Manager(**options)


MAKES_CALLABLE = "(install_library makes one callable)"
GO_INTO = "(arguments of the function itself go into FunctionCall(library, function, ...) or submit(function, ...))"
MEMORY_HINT = "write for example '500MB' or '8GB', or a number of bytes"
TIME_HINT = "write for example '90s', '30min', '2h' or '1-12:00:00', or a number of seconds"
PORTS = "write port=9123, port=0 for any free one, or port=(9000, 9100) for the first free one of a range"
LARGER = "is larger than anything there is: at most {} makes sense; look at its unit"
NAMES = "names have letters, digits, '_', '-', '.', and begin with a letter"

NAMES_AND_CALLS: list[tuple[str, Wrong, type[BaseException], str]] = [
    (
        "unknown library",
        lambda m: m.submit(FunctionCall("lbi", "double", 1)),
        UnknownName,
        f"there is no library 'lbi'; did you mean 'lib'? {MAKES_CALLABLE}",
    ),
    (
        "unknown library without a near name",
        lambda m: m.submit(FunctionCall("zzz", "double", 1)),
        UnknownName,
        f"there is no library 'zzz'; known: lib {MAKES_CALLABLE}",
    ),
    (
        "unknown function",
        lambda m: m.submit(FunctionCall("lib", "duoble", 1)),
        UnknownName,
        "there is no function 'duoble' in library 'lib'; did you mean 'double'?",
    ),
    (
        "unknown function without a near name",
        lambda m: m.submit(FunctionCall("lib", "zzz", 1)),
        UnknownName,
        "there is no function 'zzz' in library 'lib'; known: double, half",
    ),
    (
        "a number for a call",
        lambda m: m.submit(3),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        UsageError,
        "submit(3): write submit(FunctionCall('library', 'function', arguments...))",
    ),
    (
        "no library's name",
        lambda _: FunctionCall(3, "double"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        UsageError,
        "FunctionCall(3, ...): the first argument names a library; write FunctionCall('lib', 'function', ...)",
    ),
    (
        "an empty library's name",
        lambda _: FunctionCall("", "double"),
        UsageError,
        "FunctionCall('', ...): the first argument names a library; write FunctionCall('lib', 'function', ...)",
    ),
    (
        "no function's name",
        lambda _: FunctionCall("lib", 3),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        UsageError,
        "FunctionCall('lib', 3, ...): the second argument names a function; write FunctionCall('lib', 'function', ...)",
    ),
    (
        "a call without names",
        lambda _: FunctionCall(),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        TypeError,
        "FunctionCall.__init__() missing 2 required positional arguments: 'library' and 'function'",
    ),
    (
        "removal of an unknown library",
        lambda m: m.remove_library("lob"),
        UnknownName,
        f"there is no library 'lob'; did you mean 'lib'? {MAKES_CALLABLE}",
    ),
    (
        "removal of a number",
        lambda m: m.remove_library(3),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        UsageError,
        "remove_library(3): write remove_library('lib') or give what create_library returned",
    ),
    (
        "an argument that cannot travel",
        lambda m: m.submit(FunctionCall("lib", "double", threading.Lock())),
        NotPicklable,
        "argument 1 ('number', _thread.lock) cannot be pickled: TypeError: cannot pickle '_thread.lock' object;"
        " pass what it is made from, and make it in the function",
    ),
    ("waiting for a text", lambda m: m.wait("x"), UsageError, "wait('x'): give seconds, or None to wait for ever"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ("waiting for True", lambda m: m.wait(True), UsageError, "wait(True): give seconds, or None to wait for ever"),
    ("waiting for NaN", lambda m: m.wait(math.nan), UsageError, "wait(nan): give seconds, or None to wait for ever"),
]

OPTIONS: list[tuple[dict[str, Any], type[BaseException], str]] = [
    ({"cores": -1}, UsageError, "cores=-1 is negative; write cores=1, or leave it out"),
    ({"cores": "two"}, UsageError, "cores='two' is a str; cores is a number: write cores=1.5"),
    ({"cores": math.nan}, UsageError, "cores=nan is a float; cores is a number: write cores=1.5"),
    ({"cores": True}, UsageError, "cores=True is a bool; cores is a number: write cores=1.5"),
    ({"cores": 10**400}, UsageError, "cores " + LARGER.format("1.15e+18")),
    ({"memory": -1}, UsageError, "memory=-1 is negative; write memory=1, or leave it out"),
    ({"memory": 5}, UsageError, "memory=5 is 5 bytes; write memory='5MB' (or 'GB')"),
    ({"memory": "much"}, UsageError, f"memory='much': 'much' is no amount of memory; {MEMORY_HINT}"),
    ({"memory": "5"}, UsageError, f"memory='5': '5' has no unit: is it MB or GB? {MEMORY_HINT}"),
    ({"memory": "5 apples"}, UsageError, f"memory='5 apples': '5 apples' has no unit of memory that is known; {MEMORY_HINT}"),
    ({"memory": "1e400GB"}, UsageError, f"memory='1e400GB': '1e400GB' is no amount of memory: it must be finite; {MEMORY_HINT}"),
    ({"memory": "1e30GB"}, UsageError, "memory " + LARGER.format("1.15e+18")),
    ({"gpus": -1}, UsageError, "gpus=-1 is negative; write gpus=1, or leave it out"),
    ({"gpus": 0.5}, UsageError, "gpus=0.5 is a float; gpus is a whole number: write gpus=2"),
    ({"gpus": 10**30}, UsageError, "gpus " + LARGER.format("2.15e+09")),
    ({"retries": -1}, UsageError, "retries=-1 is negative; write retries=1, or leave it out"),
    ({"retries": 1.5}, UsageError, "retries=1.5 is a float; retries is a whole number: write retries=2"),
    ({"timeout": 0}, UsageError, "timeout=0 leaves no time; write timeout=90 (seconds), or timeout=None for no limit"),
    ({"timeout": "soon"}, UsageError, f"timeout='soon': 'soon' is no length of time; {TIME_HINT}"),
    ({"timeout": "10"}, UsageError, f"timeout='10': '10' has no unit: is it seconds, or minutes as Slurm has it? {TIME_HINT}"),
    (
        {"timeout": "99:99:99"},
        UsageError,
        "timeout='99:99:99': '99:99:99' is no time on a clock: seconds and minutes end at 59, and hours after days at 23; " + TIME_HINT,
    ),
    ({"timeout": 1e300}, UsageError, "timeout " + LARGER.format("3.16e+09")),
    ({"timeout": [1]}, UsageError, "timeout=[1] is a list; timeout is in seconds: write timeout=90, or timeout='2h'"),
    ({"priority": "high"}, UsageError, "priority='high' is a str; priority is a number: write priority=1.5"),
    ({"tag": 3}, UsageError, "tag=3 is an int; a tag is a text: write tag='3'"),
    ({"retry_on": OSError}, UsageError, "retry_on= without retries= retries nothing; write retry_on=..., retries=3"),
    (
        {"retry_on": "Nonsense", "retries": 1},
        UsageError,
        "retry_on='Nonsense' names no built-in exception; write it with its module: retry_on='package.module.Nonsense'",
    ),
    ({"max_losses": -1}, UsageError, "max_losses=-1 is negative; write max_losses=1, or leave it out"),
    ({"timout": 3}, UnknownName, f"there is no option of a call 'timout'; did you mean 'timeout'? {GO_INTO}"),
]

LIBRARIES: list[tuple[str, Wrong, type[BaseException], str]] = [
    ("blank in the name", library(name="a b"), UsageError, f"library name 'a b' cannot be: {NAMES}; write 'a_b'"),
    ("empty name", library(name=""), UsageError, f"library name '' cannot be: {NAMES}; write 'lib'"),
    ("digit first", library(name="1x"), UsageError, f"library name '1x' cannot be: {NAMES}; write 'lib_1x'"),
    (
        "no name",
        library(name=3),
        UsageError,
        "create_library(3, ...): the name comes first; write create_library('lib', function, ...)",
    ),
    (
        "a name for a function",
        library("double"),
        UsageError,
        "create_library('other', ...): 'double' is not a function; write the function itself, without quotes or brackets",
    ),
    (
        "a generator",
        library(counting),
        UsageError,
        "counting() in library 'other' is a generator function, which cannot be called remotely; let it return a list",
    ),
    (
        "an async function",
        library(later),
        UsageError,
        "later() in library 'other' is an async function, which cannot be called remotely;"
        " let it be a plain function that uses asyncio.run()",
    ),
    (
        "an unknown keyword",
        library(imprts=[os]),
        UnknownName,
        "there is no option of create_library 'imprts'; did you mean 'imports'?",
    ),
    ("no slots", library(slots=0), UsageError, "slots=0 cannot be; write slots=1 or more, or leave it out"),
    ("negative cores", library(cores=-1), UsageError, "cores=-1 is negative; write cores=1, or leave it out"),
    ("unknown mode", library(mode="dirct"), UsageError, "mode='dirct'; write mode='direct' or mode='fork'"),
    ("unknown start", library(start="x"), UsageError, "start='x'; write start='fork' or start='spawn'"),
    ("imports of a number", library(imports=3), UsageError, "imports=3; write imports=[numpy, 'scipy.stats'], or imports='auto'"),
    (
        "a context that is none",
        library(context=3),
        UsageError,
        "context=3; write context=function, or context=(function, [args], {'name': value})",
    ),
    ("numbers in env", library(env={"A": 1}), UsageError, "env={'A': 1}: names and values are texts; write env={'A': '1'}"),
    (
        "installing a number",
        lambda m: m.install_library(3),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        UsageError,
        "install_library(3): write install_library('lib', function, ...) or give what create_library returned",
    ),
    (
        "options after creation",
        lambda m: m.install_library(m.create_library("other", double), slots=3),
        UsageError,
        "library 'other' is created already: give functions and options to create_library",
    ),
]

MANAGERS: list[tuple[str, Wrong, type[BaseException], str]] = [
    ("unknown keyword", made(prot=3), UnknownName, "there is no option of Manager 'prot'; did you mean 'port'?"),
    ("port as text", made(port="9123"), UsageError, f"port='9123': {PORTS}"),
    ("port too large", made(port=70000), UsageError, "port=70000 is none: write a number from 1 to 65535, or 0 for any free one"),
    ("range backwards", made(port=(9100, 9000)), UsageError, f"port=(9100, 9000): {PORTS}"),
    ("range of three", made(port=(1, 2, 3)), UsageError, f"port=(1, 2, 3): {PORTS}"),
    (
        "path for a name",
        made(name="../x"),
        UsageError,
        "'../x' cannot name a manager: use a letter, then up to 62 letters, digits, '-' and '_'",
    ),
    ("number for a name", made(name=3), UsageError, "name=3: a manager's name is a text: write name='m3'"),
    ("number for a host", made(host=3), UsageError, "host=3: write a name or an address of this machine, as in host='127.0.0.1'"),
    (
        "another machine's address",
        made(host="192.0.2.1"),
        UsageError,
        "cannot listen on '192.0.2.1', port 0: Cannot assign requested address; choose another host or port",
    ),
    ("no heartbeat", made(heartbeat=0), UsageError, "heartbeat=0 must be a number of seconds over 0: write heartbeat=60"),
    ("silence NaN", made(silence=math.nan), UsageError, "silence=nan must be a number of seconds over 0: write silence=60"),
    (
        "silence within a heartbeat",
        made(silence=1.0),
        UsageError,
        "silence=1 is not longer than heartbeat=5, so every connection would count as cut; write silence=30",
    ),
]

LOCAL = "there is no option of a local pool"

FACTORIES: list[tuple[str, Wrong, type[BaseException], str]] = [
    (
        "no manager",
        lambda _: Factory(),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        TypeError,
        "Factory.__init__() missing 1 required positional argument: 'manager'",
    ),
    (
        "None for a manager",
        lambda _: Factory(None),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        UsageError,
        "Factory(None, ...): the first argument is a Manager, or the name of one that runs elsewhere",
    ),
    ("unknown keyword", factory(max_pilot=3), UnknownName, f"{LOCAL} 'max_pilot'; did you mean 'max_pilots' or 'min_pilots'?"),
    ("unknown backend", factory("locl"), UnknownName, "there is no pool or batch backend 'locl'; did you mean 'local'?"),
    (
        "no pilots",
        factory(max_pilots=0),
        UsageError,
        "max_pilots=0 is not a whole number of at least 1; write for example max_pilots=1",
    ),
    (
        "more at least than at most",
        factory(min_pilots=5, max_pilots=2),
        UsageError,
        "min_pilots=5 is more than max_pilots=2; at most as many can be kept as are allowed",
    ),
    ("negative cores", factory(cores=-1), UsageError, "cores=-1 is not a whole number of cores; write for example cores=8"),
    ("half a core", factory(cores=1.5), UsageError, "cores=1.5 is not a whole number of cores; write for example cores=8"),
    ("absurd memory", factory(memory="lots"), UsageError, f"memory='lots': 'lots' is no amount of memory; {MEMORY_HINT}"),
    ("five bytes", factory(memory=5), UsageError, "memory=5 is 5 bytes, which no pilot has; write for example memory='4GB'"),
    ("absurd walltime", factory(walltime="soon"), UsageError, f"walltime='soon': 'soon' is no length of time; {TIME_HINT}"),
    (
        "walltime without a unit",
        factory(walltime="10"),
        UsageError,
        f"walltime='10': '10' has no unit: is it seconds, or minutes as Slurm has it? {TIME_HINT}",
    ),
    (
        "no walltime to speak of",
        factory(walltime=0.5),
        UsageError,
        "walltime=500ms leaves no time to run anything, as a pilot ends its work before it ends; write at least walltime='2s'",
    ),
    (
        "grace over walltime",
        factory(grace="2h", walltime="1h"),
        UsageError,
        "grace=2h leaves nothing of walltime=1h; give a shorter grace or a longer walltime",
    ),
    (
        "blank in the name",
        factory(name="a b"),
        UsageError,
        "'a b' is no name for a factory; use up to 64 letters, digits, '_', '-' and '.', for example 'night-shift'",
    ),
    ("unknown log level", factory(log_level="loud"), UsageError, "log_level='loud'; write one of 'debug', 'info', 'warning', 'error'"),
    (
        "setup is a number",
        factory(setup=3),
        UsageError,
        "setup=3 is not a list of shell lines; write for example setup=['module load python']",
    ),
]


def pool(wrong: Callable[[Executor], object]) -> Wrong:
    """Do something with an executor on the manager."""
    return lambda manager: wrong(Executor(None, manager=manager))


NO_FUNCTION = "3 of type int is no function; pass the function itself, and its arguments beside it: submit(f, x)"

EXECUTORS: list[tuple[str, Wrong, type[BaseException], str]] = [
    (
        "unknown keyword",
        lambda _: Executor("local", max_pilot=3),
        UnknownName,
        f"{LOCAL} 'max_pilot'; did you mean 'max_pilots' or 'min_pilots'?",
    ),
    (
        "unknown option of its manager",
        lambda _: Executor("local", manager_options={"prot": 3}),
        UnknownName,
        "there is no option of Manager 'prot'; did you mean 'port'?",
    ),
    (
        "options without a factory",
        lambda m: Executor(None, manager=m, cores=3),
        UsageError,
        "backend=None starts no pilots, so options of a pool would change nothing; leave them out, or name a backend",
    ),
    ("submit of a number", pool(lambda e: e.submit(3)), UsageError, NO_FUNCTION),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    ("map of a number", pool(lambda e: e.map(3, [1])), UsageError, NO_FUNCTION),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (
        "map of a generator",
        pool(lambda e: e.map(counting, [1])),
        UsageError,
        "'counting' is a generator function, and a generator cannot travel back; return a list, or submit one call for each item",
    ),
    (
        "map until a text",
        pool(lambda e: e.map(double, [1], timeout="x")),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        UsageError,
        "timeout='x': give seconds until the last result, or None to wait for ever",
    ),
    (
        "map in chunks of none",
        pool(lambda e: e.map(double, [1], chunksize=0)),
        UsageError,
        "chunksize=0 makes no calls; it is the number of inputs per call: write chunksize=1 or more",
    ),
    (
        "unknown option",
        pool(lambda e: e.with_options(timout=3)),  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        UnknownName,
        f"there is no option of a call 'timout'; did you mean 'timeout'? {GO_INTO}",
    ),
]


@pytest.mark.parametrize(("wrong", "kind", "text"), [row[1:] for row in NAMES_AND_CALLS], ids=[row[0] for row in NAMES_AND_CALLS])
def test_a_call_that_names_nothing_is_refused_at_submit(wronged: Manager, wrong: Wrong, kind: type[BaseException], text: str) -> None:
    """Unknown names are told with near ones, wrong things with the line to write."""
    refused(wronged, wrong, kind, text)


@pytest.mark.parametrize(("options", "kind", "text"), OPTIONS, ids=[f"{row[0]}"[:40] for row in OPTIONS])
def test_an_impossible_option_is_refused_where_it_is_written(
    wronged: Manager, options: dict[str, Any], kind: type[BaseException], text: str
) -> None:
    """Wrong types, negative and absurd amounts: each text says what to write."""
    refused(wronged, call(**options), kind, text)


@pytest.mark.parametrize(("wrong", "kind", "text"), [row[1:] for row in LIBRARIES], ids=[row[0] for row in LIBRARIES])
def test_a_library_that_cannot_be_is_refused_in_the_program(wronged: Manager, wrong: Wrong, kind: type[BaseException], text: str) -> None:
    """Nothing of it is installed then."""
    refused(wronged, wrong, kind, text)


@pytest.mark.parametrize(("wrong", "kind", "text"), [row[1:] for row in MANAGERS], ids=[row[0] for row in MANAGERS])
def test_a_manager_that_cannot_be_is_refused_at_once(wronged: Manager, wrong: Wrong, kind: type[BaseException], text: str) -> None:
    """Also what contradicts itself; the other manager goes on."""
    refused(wronged, wrong, kind, text)


@pytest.mark.parametrize(("wrong", "kind", "text"), [row[1:] for row in FACTORIES], ids=[row[0] for row in FACTORIES])
def test_a_factory_that_cannot_be_is_refused_at_once(wronged: Manager, wrong: Wrong, kind: type[BaseException], text: str) -> None:
    """Before it starts anything."""
    refused(wronged, wrong, kind, text)


@pytest.mark.parametrize(("wrong", "kind", "text"), [row[1:] for row in EXECUTORS], ids=[row[0] for row in EXECUTORS])
def test_an_executor_refuses_what_cannot_be_called(wronged: Manager, wrong: Wrong, kind: type[BaseException], text: str) -> None:
    """At the call that is wrong, not when its result is asked for."""
    refused(wronged, wrong, kind, text)


def test_a_port_in_use_is_named_and_the_failed_manager_leaves_nothing(wronged: Manager, state_of_managers: Path) -> None:
    """The text says which port and what else to do; neither folder nor store of the manager that failed stays."""
    folders = sorted((state_of_managers / "managers").iterdir())
    port = wronged.port
    with pytest.raises(UsageError) as caught:
        Manager(port)
    assert str(caught.value) == (
        f"port {port} on '127.0.0.1' is in use: choose another one, a range like port=({port}, {port + 99}), or port=0 for any"
    )
    assert sorted((state_of_managers / "managers").iterdir()) == folders


def test_a_range_of_ports_skips_the_one_in_use(wronged: Manager) -> None:
    """The first free one of the range is taken."""
    with Manager((wronged.port, min(65535, wronged.port + 50))) as second:
        assert wronged.port < second.port <= wronged.port + 50


def test_a_name_in_use_is_refused_and_its_owner_goes_on(wronged: Manager) -> None:
    """The text says where that manager's state is."""
    with pytest.raises(UsageError) as caught:
        Manager(name="wronged")
    assert str(caught.value) == (
        f"manager 'wronged' is running already (state in {wronged.connection_file.parent}); choose another name, or end that one"
    )
    assert wronged.connection_file.exists()


def test_an_unknown_manager_is_told_with_near_names(wronged: Manager, state_of_managers: Path) -> None:
    """A factory for a manager elsewhere finds it by name."""
    refused(
        wronged,
        lambda _: Factory("wrongd"),
        UnknownName,
        f"there is no manager 'wrongd'; did you mean 'wronged'? (managers are looked for in {state_of_managers / 'managers'})",
    )


def test_a_call_that_no_pool_can_ever_run_is_refused_with_the_reason(leaves_nothing_running: None) -> None:
    """What is needed and what each pool gives; at submit when the pools are known, as the future's end when they come later."""
    with Manager() as manager:
        manager.install_library("lib", double)
        early = manager.submit(FunctionCall("lib", "double", 1).with_options(cores=64))
        fits = manager.submit(FunctionCall("lib", "double", 4))
        text = "no pool can ever run this call of library 'lib': it needs 64 cores; pool 'small' gives 1 core, 4 GB of memory per pilot"
        with Factory(manager, "local", cores=1, memory="4GB", pool="small"):
            with pytest.raises(NotPossible) as ended:
                early.result(30)
            assert str(ended.value) == text
            with pytest.raises(NotPossible) as refused_at_once:
                manager.submit(FunctionCall("lib", "double", 1).with_options(cores=64))
            assert str(refused_at_once.value) == text
            with pytest.raises(NotPossible) as no_gpu:
                manager.submit(FunctionCall("lib", "double", 1).with_options(gpus=1))
            assert str(no_gpu.value) == (
                "no pool can ever run this call of library 'lib': it asks for 1 GPUs, and library 'lib' has none:"
                " create the library with gpus=1 or more"
            )
            # More seconds than a thread can wait for are no error.
            assert manager.wait(1e300) is fits
            assert fits.result() == 8


def test_a_closed_manager_refuses_and_says_that_it_is_closed(leaves_nothing_running: None) -> None:
    """Submit, install, remove, status, factories: `Closed`. Waiting ends at once, what is left over can still be asked for."""
    manager = Manager(name="shut")
    manager.install_library("lib", double)
    waiting = manager.submit(FunctionCall("lib", "double", 1))
    executor = Executor(None, manager=manager)
    manager.close()
    refusing: list[Callable[[], object]] = [
        lambda: manager.submit(FunctionCall("lib", "double", 1)),
        lambda: manager.submit(FunctionCall("unknown", "double", 1)),
        lambda: manager.submit_function(double, (1,)),
        lambda: manager.install_library("other", double),
        lambda: manager.remove_library("lib"),
        lambda: manager.status(),
        lambda: manager.stats,
        lambda: executor.submit(double, 1),
        lambda: Factory(manager, "local").start(),
    ]
    for refuses in refusing:
        with pytest.raises(Closed) as caught:
            refuses()
        assert str(caught.value) == "manager 'shut' is closed (the manager was closed); make another one"
    with pytest.raises(Closed, match="the manager was closed"):
        waiting.result(0)
    assert manager.wait() is None
    assert manager.empty()
    assert manager.hungry() == 0
    manager.close()


def test_a_state_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what to set instead."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(UsageError) as caught:
        Manager(name="homeless")
    assert str(caught.value) == (
        f"manager 'homeless' cannot keep its state in {tmp_path}/file/managers/homeless: Not a directory;"
        " name a folder that you can write to by --state-dir, state_dir= or WINDLASS_STATE_DIR"
    )


def test_a_relative_state_folder_is_found_by_pilots_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It counts from where the program is; pilots get the whole path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINDLASS_STATE_DIR", "here")
    with Manager() as manager:
        assert manager.pilot_file.is_absolute()
        assert manager.pilot_file.is_relative_to(tmp_path / "here")
