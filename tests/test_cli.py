"""The command line: what is typed, what is printed, how it ends."""

from __future__ import annotations

import inspect
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console

import windlass
from windlass.cli import main
from windlass.cli_factory import TEXTS, TIMES, split_pool_options
from windlass.cli_words import Parser, manager_name
from windlass.errors import Closed, ConnectionRefused, UsageError
from windlass.factory.backend import backend_class
from windlass.factory.local import LocalBackend
from windlass.factory.pool import COMMON_OPTIONS, make_pool
from windlass.managers import choose_manager, known_managers
from windlass.messages import PROTOCOL, GetStatus, Leave, Message
from windlass.status import StatusPort, picture, show_bytes, show_span, show_used
from windlass.tables import print_picture

if TYPE_CHECKING:
    from windlass.identity import ConnectionFile

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).with_name("windlass"))


def double(number: int) -> int:
    return 2 * number


def text_of(status: dict[str, Any], width: int = 200) -> str:
    """What a person sees of a status."""
    console = Console(width=width, force_terminal=False, color_system=None, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(picture(status))
        return console.export_text()


@pytest.fixture
def manager(nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[windlass.Manager]:
    """The only manager of its user."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with windlass.Manager() as manager:
        yield manager


# ---------------------------------------------------------------- words


def test_version_names_what_matters_to_whoever_reports_a_defect(capsys: pytest.CaptureFixture[str]) -> None:
    """Windlass, its protocol, Python and the system, for people and for programs."""
    expected = {
        "windlass": windlass.__version__,
        "protocol": PROTOCOL,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    assert main(["version"]) == 0
    assert capsys.readouterr().out == (
        f"Windlass {windlass.__version__}, protocol {PROTOCOL}, Python {platform.python_version()}, {platform.platform()}\n"
    )
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_version_may_be_asked_for_as_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    """As of most commands."""
    assert main(["--version"]) == 0
    assert windlass.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["factory"]])
def test_a_command_line_without_a_command_shows_the_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And counts as a wrong one, for the sake of scripts."""
    assert main(words) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["statsu"], ["factory", "start"], ["status", "--jsno"], ["version", "extra"]])
def test_words_that_are_not_commands_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, by argparse."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: windlass" in capsys.readouterr().err


RESERVED = {"reservation": "2026.10", "constraint": "9.10", "partition": "true"}


@pytest.mark.parametrize(
    ("words", "rest", "options"),
    [
        ("local", "local", {}),
        ("local --max-pilots 4 --memory 8GB", "local", {"max_pilots": 4, "memory": "8GB"}),
        ("--max-pilots 4 local", "local", {"max_pilots": 4}),
        ("mine slurm --cores=0.5 --exclusive", "mine slurm", {"cores": 0.5, "exclusive": True}),
        ("--exclusive --cores 2 slurm", "slurm", {"exclusive": True, "cores": 2}),
        ("local --port 9123 --cores 2", "local --port 9123", {"cores": 2}),
        ("local --wait=3 --grace 5s", "local --wait=3", {"grace": "5s"}),
        ("slurm --hold no --shared yes", "slurm", {"hold": False, "shared": True}),
        ("slurm --walltime 90 --idle-timeout 0", "slurm", {"walltime": "90", "idle_timeout": 0}),
        ("slurm --setup a --setup b", "slurm", {"setup": ["a", "b"]}),
        ("slurm --setup 1", "slurm", {"setup": ["1"]}),
        ("slurm --account 007 --qos 1e3", "slurm", {"account": "007", "qos": "1e3"}),
        ("slurm --reservation 2026.10 --constraint=9.10 --partition true", "slurm", RESERVED),
        ("slurm --partition 1 --partition 2", "slurm", {"partition": ["1", "2"]}),
        ("slurm --env A=1 --env=B=x=y", "slurm", {"env": {"A": "1", "B": "x=y"}}),
        ("local --pool 7 --python 3", "local", {"pool": "7", "python": "3"}),
        ("slurm --extra-directives --mail-type=FAIL --cores 2", "slurm", {"extra_directives": "--mail-type=FAIL", "cores": 2}),
        ("slurm --extra-directives --a=b --extra-directives=--c", "slurm", {"extra_directives": ["--a=b", "--c"]}),
        ("slurm --container-options --nv --cores 2", "slurm", {"container_options": "--nv", "cores": 2}),
        ("slurm --extra-directives", "slurm", {"extra_directives": True}),
        ("local --help", "local --help", {}),
    ],
)
def test_pool_options_are_taken_out_of_the_command_line(words: str, rest: str, options: dict[str, object]) -> None:
    """``--some-option value`` is ``some_option=value`` of `Factory`, wherever it stands."""
    assert split_pool_options(words.split()) == (rest.split(), options)


@pytest.mark.parametrize("backend", ["slurm", "htcondor"])
def test_what_batch_systems_take_as_text_is_never_read_as_a_number(backend: str) -> None:
    """sbatch would be asked for another reservation, which there may be."""
    options = inspect.signature(backend_class(backend)).parameters.values()
    assert {option.name for option in options if option.default == ""} <= TEXTS.keys()


def test_a_bare_number_is_refused_for_each_option_that_is_a_time() -> None:
    """A command line's numbers of these stay text, which a pool refuses as it refuses a program's."""
    times: set[str] = set()
    for name in COMMON_OPTIONS:
        try:
            make_pool("local", LocalBackend.defaults, frozenset(), {name: "90"}, name="one")
        except windlass.UsageError as error:
            if "is it seconds" in str(error):
                times.add(name)
    assert times | {"query_interval", "command_timeout"} == TIMES


def test_a_worker_goes_by_before_anything_is_loaded() -> None:
    """Pilots run this; a thousand of them must not load a parser of options that are not theirs."""
    program = "import sys; sys.argv = ['windlass', 'worker', '--no-such-option']; from windlass.cli import main; main()"
    watched = f"import atexit, sys; atexit.register(lambda: print('argparse' in sys.modules, 'rich' in sys.modules)); {program}"
    ran = subprocess.run([sys.executable, "-c", watched], capture_output=True, text=True, check=False, timeout=30)
    assert ran.stdout.split()[-2:] == ["False", "False"]
    assert "no-such-option" in ran.stderr


# ---------------------------------------------------------------- where it is shown


@pytest.mark.parametrize("words", ["explain containers", "explain --json", "explain"])
def test_what_an_encoding_lacks_is_a_question_mark(words: str) -> None:
    """As in a locale like de_DE@euro, whose characters are those of Latin-1."""
    ran = [
        subprocess.run([COMMAND, *words.split()], capture_output=True, check=False, timeout=60, env={**os.environ, "PYTHONIOENCODING": to})
        for to in ("utf-8", "latin-1")
    ]
    assert [(one.returncode, one.stderr) for one in ran] == [(0, b"")] * 2
    assert ran[1].stdout == ran[0].stdout.decode().encode("latin-1", "replace")


@pytest.mark.parametrize("descriptor", [1, 2])
def test_output_that_was_closed_is_missed_by_nobody(descriptor: int) -> None:
    """As some daemons start programs."""
    for words, status in ("version", 0), ("explain", 0), ("explain nothing-of-the-kind", 2):
        code = f"import os, sys; os.close({descriptor}); os.execv(sys.argv[1], sys.argv[1:])"
        ran = subprocess.run([sys.executable, "-c", code, COMMAND, *words.split()], capture_output=True, check=False, timeout=60)
        assert ran.returncode == status, ran.stderr
        assert (ran.stdout, ran.stderr)[descriptor - 1] == b""
        assert bool((ran.stdout, ran.stderr)[2 - descriptor]) == ((status == 0) == (descriptor == 2))


# ---------------------------------------------------------------- status


def test_status_says_that_no_manager_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened, where was looked, what to do."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    assert main(["status"]) == 2
    assert capsys.readouterr().err == (
        f"windlass: no manager of yours is running (looked in {tmp_path}/managers); start the program that has it\n"
    )


def test_status_of_an_unknown_name_shows_near_ones(manager: windlass.Manager, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing error is the likeliest cause."""
    assert main(["status", manager.name + "x"]) == 2
    assert f"did you mean '{manager.name}'?" in capsys.readouterr().err


def test_status_shows_the_only_manager(manager: windlass.Manager, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name; and the JSON is the documented object."""
    manager.install_library("lib", double)
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"manager {manager.name}, at 127.0.0.1:{manager.port}\n")  # by the name that commands take, not its id
    assert "lib" in shown
    assert main(["status", "--json", "--port", str(manager.port)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calls"]["waiting"] == 0
    assert [library["name"] for library in found["libraries"]] == ["lib"]


def test_every_key_of_the_status_is_documented(manager: windlass.Manager) -> None:
    """docs/status.md names what is there; whoever adds a key describes it."""
    manager.install_library("lib", double)
    with windlass.Factory(manager, "local", cores=1):
        assert manager.submit(windlass.FunctionCall("lib", "double", 1)).result(timeout=30) == 2
        file = manager.declare_buffer("here until its status was asked for")
        with windlass.attach(manager.connection_file) as attached:
            status, end = attached.status(), time.monotonic() + 30
            while not all(status[part] for part in status):  # the factory tells of its pilots a moment later
                assert time.monotonic() < end, f"empty: {[part for part in status if not status[part]]}"
                time.sleep(0.02)
                status = attached.status()
        assert [one["size"] for one in status["files"]] == [file.size]
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/status.md").read_text()))
    assert set(status) == {"manager", "calls", "libraries", "workers", "pools", "programs", "pilots", "files", "transfers"}
    records: list[dict[str, Any]] = [status["manager"], status["calls"], *status["libraries"], *status["workers"], *status["pools"]]
    records += [*status["programs"], *status["pilots"], *status["files"], status["transfers"]]
    for record in records:
        assert set(record) <= documented


def test_the_help_of_factory_names_the_options_of_pools(capsys: pytest.CaptureFixture[str]) -> None:
    """They are the factory's to declare, not the command line's."""
    with pytest.raises(SystemExit):
        main(["factory", "run", "--help"])
    shown = capsys.readouterr().out
    for flag in ("--max-pilots", "--walltime", "--port"):
        assert flag in shown


def test_several_managers_are_listed_and_told_apart_by_name_or_port(manager: windlass.Manager, capsys: pytest.CaptureFixture[str]) -> None:
    """Guessing would show, or serve, the wrong one."""
    with windlass.Manager(name="second") as second:
        assert main(["status"]) == 2
        error = capsys.readouterr().err
        assert f"second (port {second.port})" in error
        assert f"{manager.name} (port {manager.port})" in error
        assert choose_manager(port=second.port).name == "second"
        assert choose_manager("second").name == "second"


def test_a_manager_that_has_ended_is_not_taken_for_a_running_one(manager: windlass.Manager, capsys: pytest.CaptureFixture[str]) -> None:
    """A named one leaves its connection file, for its successor."""
    with windlass.Manager(name="gone") as gone:
        port = gone.port
    assert choose_manager().name == manager.name
    assert [known.is_running() for known in known_managers() if known.name == "gone"] == [False]
    assert main(["status", "gone"]) == 2
    assert capsys.readouterr().err == (
        f"windlass: manager gone (port {port}) does not answer: it has ended, or is out of reach from here; start the program that has it\n"
    )


def test_a_status_is_shown_whatever_it_lacks() -> None:
    """The command line of one version looks at managers of others."""
    assert "says nothing" in text_of({})
    full: dict[str, Any] = {
        "manager": {"name": "mine", "addresses": ["127.0.0.1:9123"]},
        "calls": {"waiting": 3, "running": 2, "done": 1_000_000, "failed": 0, "rate": 1234.5},
        "libraries": [
            {
                "name": "lib",
                "imports": {"numpy": {"seconds": 0.25, "error": ""}, "no": {"error": "it took longer\nthan"}},
                "failed": "why",
                "new": 1,
            }
        ],
        "workers": [
            {"id": "w1", "memory_used": 3 << 30, "seconds_left": None, "libraries": [{"name": "lib", "slots": 2, "phase": "ready"}]}
        ],
        "pools": [{"name": "short", "pilots": {"queued": 2, "running": 0}, "paused": "bad account"}],
    }
    shown = text_of(full)
    for words in ("manager mine, at 127.0.0.1:9123", "1,000,000 done", "0 failed", "1,234 per s", "3.2 GB", "lib (2 slots)", "2 queued"):
        assert words in shown, words
    for words in ("lib: imports: numpy 250 ms, no failed (it took longer)", "lib: failed: why", "short: paused: bad account"):
        assert words in shown, words
    for missing in full:
        text_of({key: value for key, value in full.items() if key != missing})
        text_of({**full, missing: [{}] if isinstance(full[missing], list) else {}})
        text_of({**full, missing: None})


def test_a_manager_without_pools_is_shown_with_what_to_do() -> None:
    """Whoever looks why nothing happens finds it."""
    assert "no pools: `windlass factory run BACKEND` in another terminal" in text_of({"workers": [], "pools": []})


def test_why_pilots_wait_stands_below_their_pool() -> None:
    """Who sees nothing but a number of queued ones, for hours, does not know what to ask next."""
    waiting = [
        {"pool": "short", "phase": "queued", "reason": reason} for reason in ("Priority", "AssocGrpCpuLimit", "AssocGrpCpuLimit", "")
    ]
    other = {"pool": "long", "phase": "running", "reason": "None"}
    text = text_of({"pools": [{"name": "short", "backend": "slurm"}, {"name": "long", "backend": "slurm"}], "pilots": [*waiting, other]})
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if ": " in line] == ["short: 2 queued: AssocGrpCpuLimit", "short: 1 queued: Priority"]


def test_a_status_has_nothing_that_a_terminal_would_obey() -> None:
    """Why a library failed, or a pool is paused, are the words of anybody's program."""
    said = "before\x1b]0;title\x07\x1b[2J\tafter"
    imports = {said: {"seconds": 1.0, "error": ""}, "no": {"error": said}}
    library = {"name": said, "waiting": 1, "failed": said, "notes": [said], "imports": imports}
    worker = {"id": "w", "host": said, "draining": said, "libraries": [{"name": said, "phase": "ready", "slots": 1}]}
    pool = {"name": "p", "backend": "local", "paused": said, "failure": said + said}
    rows = {"libraries": [library], "workers": [worker], "pools": [pool], "pilots": [{"pool": "p", "phase": "held", "reason": said}]}
    text = text_of({"manager": {"id": "m"}, "calls": {}, **rows}, width=2000)
    assert text.count("before") > 5
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[2J after" in text


def test_lines_of_a_status_in_a_pipe_end_with_what_they_say(capsys: pytest.CaptureFixture[str]) -> None:
    """Notes of several lines are no wall of blanks there; they stay below their row."""
    library, pool = {"name": "lib", "failed": f"{'Traceback ' * 9}\n  File x"}, {"name": "p", "paused": "why"}
    print_picture(picture({"libraries": [library], "pools": [pool]}))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line != line.rstrip()] == []
    assert "      File x" in lines
    assert "    when that is mended: windlass factory resume p" in lines


def test_memory_that_no_worker_has_reported_yet_is_no_measurement() -> None:
    """In the first seconds of one."""
    workers = [{"id": "w1", "memory_used": 0, "memory_limit": 16 << 30}, {"id": "w2", "memory_used": 3 << 30, "memory_limit": 16 << 30}]
    shown = text_of({"workers": workers})
    assert "0 B" not in shown
    assert "3.2 GB" in shown
    assert show_used(0) == "-"


def test_of_many_workers_the_first_are_shown() -> None:
    """A terminal has forty lines or so."""
    shown = text_of({"workers": [{"id": f"worker-{number}"} for number in range(1000)]})
    assert "the first 40 of 1000" in shown
    assert "worker-39" in shown
    assert "worker-40" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (26e-6, "26 us"),
        (0.25, "250 ms"),
        (2.5, "2.5 s"),
        (42, "42 s"),
        (300, "5 min"),
        (10_860, "3 h 1 min"),
        (266_400, "3 d 2 h"),
    ],
)
def test_times_are_shown_as_people_say_them(seconds: float, text: str) -> None:
    assert show_span(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1024, "1.0 kB"), (3 << 30, "3.2 GB"), (200 << 30, "215 GB")])
def test_sizes_are_shown_as_people_say_them(size: int, text: str) -> None:
    assert show_bytes(size) == text


# ---------------------------------------------------------------- factory


def test_a_dry_run_prints_what_would_be_started_and_starts_nothing(nothing_left_running: None, capsys: pytest.CaptureFixture[str]) -> None:
    """With the plan in the user's units."""
    assert main(["factory", "dry-run", "local", "--cores", "2", "--max-pilots", "3"]) == 0
    shown = capsys.readouterr().out
    assert "windlass.worker" in shown
    assert "3" in shown


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("local --max-pilot 3", "did you mean 'max_pilots'"),
        ("locl", "did you mean 'local'"),
        ("local mine", "there is no pool or batch backend 'mine'"),
    ],
)
def test_a_wrong_pool_is_refused_with_near_names(words: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing falls back to something else silently."""
    assert main(["factory", "dry-run", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("windlass: ")
    assert re.search(text, error)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("locl", "did you mean 'local'"),
        ("local mine", "there is no pool or batch backend 'mine'"),
        ("local --cors 4", "there is no option of a local pool 'cors'"),
        ("local --cores two", "cores='two' is not"),
        ("local --name a/b", "no name for a factory"),
    ],
)
def test_a_wrong_pool_is_refused_before_the_manager_is_waited_for(
    words: str, text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts the factory first learns of a slip at once, not when the manager is there or the wait is over."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    assert main(["factory", "run", *words.split()]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "waiting" not in error


def test_a_dry_run_takes_every_option_that_a_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """The name of the factory and its folder are no options of pools."""
    assert main(["factory", "dry-run", "local", "--name", "night-shift", "--folder", "/tmp/here"]) == 0
    assert "windlass.worker" in capsys.readouterr().out


def test_a_factory_that_finds_no_manager_gives_up_after_its_wait(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says for what it waited."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    assert main(["factory", "run", "local", "--wait", "0.3", "--port", "9"]) == 2
    error = capsys.readouterr().err
    assert "waiting up to 0.3 s for a manager on port 9" in error
    assert "no manager of yours is running on port 9" in error


def test_a_factory_serves_a_manager_of_another_program_until_it_is_interrupted(manager: windlass.Manager) -> None:
    """The manager is found by its port; Ctrl-C is an orderly end."""
    manager.install_library("lib", double)
    future = manager.submit(windlass.FunctionCall("lib", "double", 21))
    words = [COMMAND, "factory", "run", "local", "--port", str(manager.port), "--cores", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        try:
            assert future.result(timeout=30) == 42
            assert main(["status"]) == 0
        finally:
            running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=30)
    assert running.returncode == 0, said


def test_config_show_tells_each_option_and_where_it_is_from(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ``--config`` names a file; several pools are shown, and dry-run too."""
    own = tmp_path / "own.toml"
    own.write_text('[pools.short]\nbackend = "local"\ncores = 1\n[pools.wide]\nbackend = "local"\ncores = 2\n')
    monkeypatch.chdir(tmp_path)
    assert main(["factory", "config", "show", "--config", str(own), "--max-pilots", "3"]) == 0
    shown = capsys.readouterr().out
    assert "pool short:" in shown
    assert "pool wide:" in shown
    assert re.search(rf"cores +2 +{own} \[pools\.wide\]", shown)
    assert re.search(r"max_pilots +3 +command line", shown)
    assert main(["factory", "config", "show", "wide", "--config", str(own), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["pools"]) == ["wide"]
    assert main(["factory", "dry-run", "short", "wide", "--config", str(own)]) == 0
    shown = capsys.readouterr().out
    assert "--pool short --cores 1" in shown
    assert "--pool wide --cores 2" in shown
    assert main(["factory", "run", "--config", str(own)]) == 2
    assert "say which pool or backend: short, wide, local" in capsys.readouterr().err


def test_a_manager_lost_while_nobody_asks_is_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the port's being closed, which is how whoever asks next finds it."""

    class Lost:
        """A port whose manager was lost as soon as it was there."""

        def __init__(self, *words: object, timeout: float) -> None:
            *_, on_lost = words
            cast("Callable[[str], None]", on_lost)("it was started anew")

        def send(self, *messages: Message) -> None:
            raise Closed("the port is closed")

        def close(self) -> None: ...

    monkeypatch.setattr("windlass.transport.open_port", Lost)
    heard: list[Message] = []
    for hear in (None, heard.append):
        with StatusPort(cast("ConnectionFile", None), hear) as port:
            with pytest.raises(ConnectionRefused, match=r"^it was started anew"):
                port.ask()
            with pytest.raises(ConnectionRefused, match=r"^it was started anew"):
                port.send(GetStatus())
    assert heard == [Leave("it was started anew")]


def test_of_managers_behind_the_option_the_last_one_is_meant() -> None:
    """An alias may have it already. With one by itself there are two answers to one question."""
    parser = Parser()
    manager_name(parser, by_itself=True)
    assert parser.parse_args(["--manager", "a", "--manager", "b"]).manager == "b"
    for words in ("a --manager b", "--manager b a", "--manager c --manager b a"):
        with pytest.raises(UsageError, match=r"^a and --manager b: name the manager once"):
            parser.parse_args(words.split())
