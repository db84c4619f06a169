"""The noun ``manager`` of the command line: managers that run on their own, and where all commands look for managers.

Theory of operation
-------------------
``start`` runs ``start --foreground`` as a process of its own, in a session of its own, and returns when that serves; with ``--in POOL`` it
submits the same as a job (`windlass.manager_job`).  ``--state-dir`` and ``--trust-state-dir`` are options of every command; they
stand for environment variables, which is how what a command starts learns of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import argparse

    from windlass.managers import Known

DEFAULT_NAME: Final = "default"
#: Seconds without calls, programs and factories after which a manager ends: an hour, so that what was forgotten does not stay.
IDLE_TIMEOUT: Final = "1h"
#: Seconds that a process of one's own gets to serve or to say why not, and to end.
_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 30.0
#: Options of ``manager start`` that are not the pool's: flags, and those with a value.
_FLAGS: Final = frozenset({"--foreground", "--json"})
_WITH_VALUE: Final = frozenset({"--in", "--port", "--idle-timeout", "--listen", "--wait", "--ready-fd", "--pilot"})


@contextmanager
def state_options(words: Sequence[str]) -> Generator[list[str]]:
    """Take ``--state-dir DIR`` and ``--trust-state-dir`` out of a command line; they hold as long as the block lasts."""
    from windlass.errors import UsageError

    rest: list[str] = []
    chosen: dict[str, str] = {}
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        flag, equals, value = word.partition("=")
        if flag == "--state-dir":
            value = value if equals else waiting.pop() if waiting else ""
            if not value or value.startswith("--"):
                raise UsageError("--state-dir needs a folder: write --state-dir DIR")
            chosen["WINDLASS_STATE_DIR"] = str(Path(value).expanduser().absolute())
        elif word == "--trust-state-dir":
            chosen["WINDLASS_TRUST_STATE_DIR"] = "1"
        else:
            rest.append(word)
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield rest
    finally:
        for name, old in before.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


def takes_pool_options(words: Sequence[str]) -> bool:
    """Whether these words may hold options of a pool for the manager's own job."""
    return list(words[:2]) == ["manager", "start"]


def split_pool_options(words: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """Take the pool's options out of the words of ``manager start``."""
    from windlass import cli_factory

    return cli_factory.split_pool_options(words, _FLAGS, _WITH_VALUE)


# ---------------------------------------------------------------- commands


def start(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.errors import UsageError

    idle: float = chosen.idle_timeout
    batch = chosen.pool is not None and chosen.pool != "local"
    if options and not batch:
        names = ", ".join("--" + name.replace("_", "-") for name in options)
        raise UsageError(f"windlass manager start has no option {names}; options of a pool go with --in POOL, where POOL is a batch system")
    if chosen.foreground:
        from windlass.manager.detached import serve

        return serve(chosen.name, chosen.port, listen=chosen.listen or "", idle_timeout=idle, ready=chosen.ready_fd)
    arguments = ["--port", str(chosen.port), "--idle-timeout", f"{idle:g}s"]
    if batch:
        return _start_in(chosen, options, arguments)
    if chosen.listen:
        arguments += ["--listen", chosen.listen]
    return _start_here(chosen.name, arguments)


def _state_words() -> list[str]:
    """The state folder in the words of a command line, for a process that may have another environment."""
    from windlass.identity import state_folder, trusts_state_folder

    return ["--state-dir", str(state_folder()), *(["--trust-state-dir"] if trusts_state_folder() else [])]


def _start_here(name: str, arguments: Sequence[str]) -> int:
    import select
    import subprocess

    from windlass.errors import UsageError
    from windlass.identity import cannot_keep_state, make_private, manager_folder
    from windlass.manager.detached import READY, log_file
    from windlass.managers import choose_manager

    folder = manager_folder(name)
    try:
        make_private(folder)
    except OSError as error:
        raise UsageError(cannot_keep_state(name, folder, error)) from None
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb", buffering=0) as ready, open(log_file(folder), "ab") as log:
        began = log.tell()
        words = [sys.executable, "-P", "-m", "windlass.cli", "manager", "start", name, "--foreground", *arguments, *_state_words()]
        try:
            process = subprocess.Popen(
                [*words, "--ready-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                pass_fds=[theirs],
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        readable, _, _ = select.select([ready], [], [], _START_SECONDS)
        if not readable or ready.read(len(READY)) != READY:
            if not readable:
                process.kill()
            status = process.wait()
            with open(log_file(folder), "rb") as file:
                file.seek(began)
                print(file.read().decode(errors="replace").strip() or f"windlass: the manager ended with status {status}", file=sys.stderr)
            return status if status in (1, 2) else 1
    print(_served(choose_manager(str(folder / "client.json")), f"process {process.pid}, log {log_file(folder)}"))
    process.returncode = 0  # it goes on; nobody here waits for it
    return 0


def _start_in(chosen: argparse.Namespace, options: Mapping[str, object], arguments: Sequence[str]) -> int:
    from windlass.identity import trusts_state_folder
    from windlass.manager_job import submit_manager

    wait: float | None = chosen.wait
    words = [*arguments, *(["--listen", chosen.listen] if chosen.listen else []), *_state_words()]
    known = submit_manager(chosen.name, chosen.pool, options, words, _say, wait=wait, trust=trusts_state_folder())
    if known is None:
        print(
            f"manager {chosen.name} still waits in {chosen.pool}; it can be attached to when it runs\n"
            f"  look:    windlass manager list\n  remove:  windlass manager stop {chosen.name}"
        )
        return 0
    print(_served(known, f"in {chosen.pool}"))
    return 0


def _served(known: Known, where: str) -> str:
    addresses = ", ".join(f"{host} port {port}" for host, port in known.connection.addresses)
    return (
        f"manager {known.name} serves at {addresses} ({where})\n"
        f"  attach:  windlass.attach({known.name!r})\n"
        f"  pilots:  windlass factory run {known.name} {_pool_here()}\n"
        f"  stop:    windlass manager stop {known.name}"
    )


def _pool_here() -> str:
    """A pool that this machine can have, for an example."""
    import shutil

    for program, words in {"sbatch": "slurm --cores 8", "condor_submit": "htcondor --cores 8"}.items():
        if shutil.which(program) is not None:
            return words
    return "local"


def _say(text: str) -> None:
    print(f"windlass: {text}", file=sys.stderr, flush=True)


def stop(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    import json
    import time

    from windlass.errors import UnknownName, UsageError
    from windlass.manager_job import folder_of, remove_job
    from windlass.managers import NotRunning, Presence, choose_manager
    from windlass.messages import EndManager
    from windlass.status import StatusPort

    folder: Path | None = None
    try:
        known = choose_manager(chosen.manager)
        folder = known.path.parent
        silent = known.require_running() is Presence.SILENT
    except (NotRunning, UnknownName):
        if folder is None and chosen.manager is not None:
            folder = folder_of(chosen.manager)
        removed = remove_job(folder) if folder is not None else ""
        if not removed:
            raise
        print(removed)
        return 0
    if silent and (removed := remove_job(folder)):  # it does not hear that it should end
        print(removed)
        return 0
    with StatusPort(known.connection) as port:
        found = json.loads(port.ask())
        if not found["manager"].get("detached"):
            raise UsageError(f"manager {known.describe()} is part of a program and ends with it; end that program")
        port.send(EndManager(f"windlass manager stop on {os.uname().nodename}"))
        end = time.monotonic() + _END_SECONDS
        # One that was ending already may be gone without a word on this line.
        while not port.wait_gone(0.2) and known.look().is_there and time.monotonic() < end:
            pass
    while known.look().is_there:
        if time.monotonic() > end:
            print(f"windlass: manager {known.describe()} was told to end and still answers after {_END_SECONDS:g} s", file=sys.stderr)
            return 1
        time.sleep(0.05)
    from windlass.manager_job import job_file

    job_file(known.path.parent).unlink(missing_ok=True)
    calls = found["calls"]["waiting"] + found["calls"]["running"]
    print(f"manager {known.name} has ended" + (f"; {calls} calls that had not ended were ended with it" if calls else ""))
    return 0


def list_managers(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    import json

    from windlass.identity import state_folder
    from windlass.managers import known_managers

    rows = [_row(known) for known in known_managers()]
    known_names = {row["name"] for row in rows}
    rows += [row for row in _waiting_jobs(state_folder() / "managers") if row["name"] not in known_names]
    if chosen.json:
        print(json.dumps({"managers": rows}))
        return 0
    if not rows:
        print(f"no managers in {state_folder() / 'managers'}; start one:  windlass manager start NAME")
        return 0
    print(f"{'NAME':<24} {'STATE':<10} {'KIND':<10} {'CALLS':>7} {'PROGRAMS':>8}  ADDRESS")
    for row in rows:
        where = ", ".join(row["addresses"]) if row["state"] != "ended" else ""
        address = f"job {row['job']}" if row["state"] == "submitted" else where
        print(f"{row['name']:<24} {row['state']:<10} {row['kind']:<10} {row['calls']:>7} {row['programs']:>8}  {address}".rstrip())
    return 0


def _row(known: Known) -> dict[str, Any]:
    """What is known of a manager; its calls and programs only if it runs."""
    import json

    from windlass.errors import WindlassError
    from windlass.manager_job import has_served, read_job
    from windlass.managers import REACH_TIMEOUT, Presence
    from windlass.status import StatusPort

    found = read_job(known.path.parent)
    addresses = [f"{host}:{port}" for host, port in known.connection.addresses]
    job = found.job if found is not None else ""
    state = known.look()
    row: dict[str, Any] = {"name": known.name, "state": state, "kind": "", "calls": 0, "programs": 0, "addresses": addresses, "job": job}
    if state is Presence.SILENT:
        return {**row, "error": f"the manager did not answer within {REACH_TIMEOUT:g} s"}
    if state is not Presence.RUNNING:
        return {**row, "state": "submitted"} if job and not has_served(known.path.parent) else row
    try:
        with StatusPort(known.connection) as port:
            status = json.loads(port.ask())
    except WindlassError as error:
        return {**row, "state": Presence.SILENT, "error": str(error)}
    calls = status["calls"]["waiting"] + status["calls"]["running"]
    kind = "detached" if status["manager"].get("detached") else "program"
    programs = sum(not program["gone"] for program in status.get("programs", []))
    return {**row, "kind": kind, "calls": calls, "programs": programs}


def _waiting_jobs(folder: Path) -> list[dict[str, Any]]:
    """Managers that were submitted and have never run."""
    from windlass.manager_job import read_job

    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*/job.json")):
        found = read_job(path.parent)
        if found is not None:
            name = path.parent.name
            rows.append({"name": name, "state": "submitted", "kind": "", "calls": 0, "programs": 0, "addresses": [], "job": found.job})
    return rows


# ---------------------------------------------------------------- the parser


def add_parsers(nouns: Any) -> None:
    """Add the parsers."""
    import argparse

    from windlass import cli_words

    noun = nouns.add_parser("manager", help="start, stop and list managers that run on their own, for programs that attach")
    noun.set_defaults(parser=noun)
    verbs = noun.add_subparsers(title="commands", metavar="COMMAND")

    def verb(name: str, command: Callable[..., int], help: str, description: str, usage: str | None = None) -> Any:
        made = verbs.add_parser(
            name, help=help, description=description, usage=usage, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        made.set_defaults(command=command)
        return made

    one = verb(
        "start",
        start,
        "start a manager that outlives this terminal, or one in a job",
        "Start a manager and return when it serves. Programs use it by windlass.attach('NAME'). With --in POOL it runs as a job of that\n"
        "pool, for clusters whose nodes cannot reach this machine; further options are those of the pool, such as --walltime 1d.",
        "windlass manager start [NAME] [--in POOL [--POOL-OPTION VALUE ...]] [--port PORT] [--idle-timeout TIME] [--listen WHERE]\n"
        "                              [--wait SECONDS] [--foreground] [--state-dir DIR] [--trust-state-dir]",
    )
    one.add_argument("name", nargs="?", default=DEFAULT_NAME, help=f"what programs find it by ({DEFAULT_NAME})")
    one.add_argument("--in", dest="pool", metavar="POOL", help="run it as a job there: slurm, htcondor, or a configured pool")
    one.add_argument("--port", type=cli_words.port_or_any, default=0, help="0 (the default): any free one")
    one.add_argument(
        "--idle-timeout",
        type=cli_words.span,
        default=IDLE_TIMEOUT,
        metavar="TIME",
        help="when to end without calls, programs, factories; 0: never (%(default)s)",
    )
    one.add_argument("--listen", metavar="WHERE", help="interface, network or address; default: loopback, in a job the node's address")
    one.add_argument(
        "--wait", type=cli_words.seconds, metavar="SECONDS", help="with --in: how long to wait until it serves; else until it does"
    )
    one.add_argument("--foreground", action="store_true", help="be the manager, in this terminal")
    one.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)
    one.add_argument("--pilot", default="", help=argparse.SUPPRESS)  # jobs say which one they are
    two = verb("stop", stop, "end a manager", "End a manager that runs on its own, and all calls in it; or remove its job.")
    cli_words.manager_name(two, by_itself=True)
    three = verb("list", list_managers, "list your managers", "List managers of the state folder, running or not.")
    three.add_argument("--json", action="store_true", help="one object")
