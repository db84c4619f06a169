"""A manager as a job of a batch system, where compute nodes cannot reach the login node.

Theory of operation
-------------------
`submit_manager` asks a pool's backend for one job whose command is the manager in the foreground, and waits until the manager has written
its connection file into the state folder, which both sides must see, and answers from here.  Meanwhile it shows what the batch system
says of the job, within the budget of commands that pilots have too.  A job that dies tells its own last words.

Which job it is stays in ``job.json`` beside the connection file, so that ``windlass manager stop`` can remove one that still waits.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from windlass.errors import BatchError, Rejected, Unreachable, UsageError
from windlass.factory.backend import Backend, JobId, Listed, PilotRequest, PilotState, Tag, known_backends
from windlass.factory.factory import configuration_of, make_backend
from windlass.factory.launch import python_of, request_of
from windlass.factory.pool import PoolConfig
from windlass.identity import make_private, manager_folder, read_connection_file
from windlass.managers import Known
from windlass.messages import HOST

#: Seconds that a manager in a job may live, unless the pool or the user says otherwise: longer than pilots, which come and go.
WALLTIME: Final = "12h"
#: Seconds between looks at the state folder.
LOOK_SECONDS: Final = 0.25
#: Seconds between questions to the batch system in the first minute, when people look; afterwards it is the pool's interval.
ASK_SECONDS: Final = 6.0
#: A job that runs for so many seconds should have written its connection file, and answer.
SETTLED_SECONDS: Final = 20.0
#: Seconds before its walltime is over at which it is warned, and closes, at most.
GRACE: Final = 30.0


class Job(msgspec.Struct, frozen=True):
    """The job of a manager: ``job.json``."""

    pool: str
    options: dict[str, object]
    job: str


def job_file(folder: Path) -> Path:
    return folder / "job.json"


def read_job(folder: Path) -> Job | None:
    """The job that a manager was submitted as; None: it was not."""
    try:
        return msgspec.json.decode(job_file(folder).read_bytes(), type=Job)
    except (OSError, msgspec.MsgspecError):
        return None


def has_served(folder: Path) -> bool:
    """Whether a manager has written its connection file since its job was submitted. Once it serves no more, that job has ended."""
    try:
        return (folder / "client.json").stat().st_mtime_ns > job_file(folder).stat().st_mtime_ns
    except OSError:
        return False


def submit_manager(
    name: str,
    pool: str,
    options: Mapping[str, object],
    arguments: Sequence[str],
    say: Callable[[str], None],
    *,
    wait: float | None = None,
    trust: bool | None = None,
) -> Known | None:
    """Submit the manager ``name`` to a pool, with these further arguments of ``windlass manager start``; it, when it answers.

    None: ``wait`` seconds are over, and the job still waits. An interrupt removes the job. Raises `UsageError`, `BatchError` (`Rejected`
    with the job's last words when it ended).
    """
    folder = manager_folder(name)
    connection = folder / "client.json"
    if connection.is_file() and Known(name, connection, read_connection_file(connection, trust=trust)).look().is_there:
        raise UsageError(f"manager {name!r} is running already; choose another name, or end that one:  windlass manager stop {name}")
    made, config = make_backend(pool, of_one_job(pool, options))
    make_private(folder, trust)
    before = _content(connection)
    python = python_of(config)
    command = (python, "-P", "-m", "windlass.cli", "manager", "start", name, "--foreground", "--listen", _listen(config), *arguments)
    ticket = f"manager-{name}-{secrets.token_hex(2)}"
    request = request_of(config, folder / "pilot.json")
    # A pool's grace is for calls; the manager would close so long before its walltime.
    request = _with_all_of_it(replace(request, ticket=ticket, command=command, grace=min(request.grace, GRACE)), folder)
    made.open(_tag(name), folder / "job", lambda: None)
    try:
        earlier = read_job(folder)
        if earlier is not None and any(_alive(state) for state in made.query()):
            raise UsageError(f"manager {name!r} is submitted already, as job {earlier.job}; to remove it:  windlass manager stop {name}")
        try:
            job = made.submit(request, 1)[0]
        except (Unreachable, KeyboardInterrupt):
            with contextlib.suppress(BatchError):
                made.cancel_all()  # it may have been taken all the same, and nobody would know of it
            raise
        try:
            job_file(folder).write_bytes(msgspec.json.encode(Job(pool, dict(options), job)))
            say(f"manager {name} is submitted to {pool} as job {job}; waiting until it serves (Ctrl-C removes it)")
            return _Waiting(name, connection, before, made, job, say, trust).wait(wait)
        except BaseException as error:
            if isinstance(error, Rejected):
                raise  # it has ended by itself
            made.cancel([job])
            job_file(folder).unlink(missing_ok=True)
            say(f"job {job} is removed")
            raise
    finally:
        made.close()


def _with_all_of_it(request: PilotRequest, folder: Path) -> PilotRequest:
    """The same, with what a manager needs and a worker does not: its part of Windlass, which no boot has, and the whole state folder."""
    environment, container = request.environment, request.container
    if environment is not None:
        environment = replace(environment, boot=None)
    if container is not None:
        container = replace(container, binds=(str(folder.parents[1]), *container.binds))
    return replace(request, environment=environment, container=container)


class _Waiting:
    """Waits for a manager that was submitted."""

    def __init__(
        self, name: str, connection: Path, before: bytes, backend: Backend, job: JobId, say: Callable[[str], None], trust: bool | None
    ) -> None:
        self._name, self._connection, self._before = name, connection, before
        self._backend, self._job, self._say, self._trust = backend, job, say, trust
        self._began = time.monotonic()
        self._shown = ""
        self._running_since = 0.0
        self._hinted = False
        self._seen = False
        self._missing = 0

    def wait(self, seconds: float | None) -> Known | None:
        ask_at = self._began + 2.0
        while True:
            known = self._answering()
            if known is not None:
                return known
            now = time.monotonic()
            if seconds is not None and now - self._began >= seconds:
                return None
            if now >= ask_at:
                self._ask()
                # More often while people look; a minute later at the pool's own pace.
                pace = self._backend.query_interval if now - self._began > 60 else min(ASK_SECONDS, self._backend.query_interval)
                ask_at = time.monotonic() + pace
            self._hint()
            time.sleep(LOOK_SECONDS)

    def _answering(self) -> Known | None:
        content = _content(self._connection)
        if not content or content == self._before:
            return None
        known = Known(self._name, self._connection, read_connection_file(self._connection, trust=self._trust))
        return known if known.connection.addresses and known.is_running() else None

    def _ask(self) -> None:
        try:
            states = [state for state in self._backend.query() if state.job == self._job]
        except Unreachable as error:
            self._show(f"no answer from the batch system: {error}")
            return
        if not states:
            # Unknown is not gone; but what was listed and is so no more, twice in a row, has ended.
            self._missing += 1
            if self._seen and self._missing >= 2:
                self._ended("the batch system does not list it any more")
            return
        self._seen, self._missing = True, 0
        state = states[0]
        if state.listed is Listed.ENDED:
            self._ended(state.reason)
        if state.listed is Listed.RUNNING and not self._running_since:
            self._running_since = time.monotonic()
        words = [
            f"job {self._job} is {state.listed.value}",
            f"on {state.node}" if state.node else "",
            f"({state.reason})" if state.reason else "",
        ]
        self._show(" ".join(word for word in words if word))

    def _ended(self, reason: str) -> None:
        words = self._backend.tail(self._job).strip()
        job_file(self._connection.parent).unlink(missing_ok=True)
        raise Rejected(
            f"job {self._job} of manager {self._name!r} ended before it served ({reason or 'no reason is known'})"
            + (f"; its last words:\n{words}" if words else f"; its log, if any, is in {self._connection.parent / 'job'}")
        )

    def _hint(self) -> None:
        """A job that runs and is not seen: why that may be."""
        if self._hinted or not self._running_since or time.monotonic() - self._running_since < SETTLED_SECONDS:
            return
        self._hinted = True
        content = _content(self._connection)
        if not content or content == self._before:
            self._say(
                f"the job runs, but its connection file is not seen at {self._connection}: the state folder must be on a file "
                "system that this machine and the job's node share; give such a one with --state-dir"
            )
        else:
            where = ", ".join(f"{host} port {port}" for host, port in read_connection_file(self._connection, trust=self._trust).addresses)
            self._say(f"the job runs and wrote its connection file, but does not answer here at {where}: try --listen INTERFACE")

    def _show(self, text: str) -> None:
        if text != self._shown:
            self._shown = text
            self._say(text)


def of_one_job(pool: str, options: Mapping[str, object]) -> dict[str, object]:
    """Options for the one job of a manager: what suits many pilots does not suit it.

    Its walltime is the one given, else that of a configured pool, else `WALLTIME`; what ``[defaults]`` and a backend's table say of
    walltimes holds for configured pools only. Raises `UsageError`, `UnknownName`.
    """
    fixed: dict[str, object] = {"max_pilots": 1, "min_pilots": 0, "nodes": 1}
    wrong = sorted(fixed.keys() & options.keys())
    if wrong:
        raise UsageError(f"{', '.join('--' + name.replace('_', '-') for name in wrong)}: a manager is one job on one node; leave that out")
    said = configuration_of(options).spec(pool, {}).options
    if {**said, **options}.get("files") == "transfer":
        where = "--files transfer" if "files" in options else f"pool {pool!r} has files='transfer'"
        raise UsageError(f"{where}: a manager in a job keeps its state folder where programs see it too, so the node must share it")
    default: dict[str, object] = {"cores": 1, "gpus": 0}
    if pool in known_backends() or "walltime" not in said:
        default["walltime"] = WALLTIME
    return {**default, **options, **fixed}


def remove_job(folder: Path) -> str:
    """Remove the job of a manager that does not run (yet): what was done; "" when it has none. Raises `BatchError`."""
    found, name = read_job(folder), folder.name
    if found is None:
        return ""
    made, _ = make_backend(found.pool, of_one_job(found.pool, found.options))
    try:
        made.open(_tag(name), folder / "job", lambda: None)
        # One that has served may wait again, requeued; but where it has ended, its id may be another job's by now.
        over = has_served(folder) and not any(state.job == found.job and _alive(state) for state in made.query())
        if not over:
            made.cancel([JobId(found.job)])
    finally:
        made.close()
    job_file(folder).unlink(missing_ok=True)
    return "" if over else f"job {found.job} of manager {name} is removed from {found.pool}"


def folder_of(word: str) -> Path | None:
    """The folder of a manager that has no connection file yet, by its name or this folder; None: it cannot be one."""
    path = Path(word).expanduser()
    if job_file(path).is_file():
        return path.absolute()
    with contextlib.suppress(UsageError):
        return manager_folder(word)
    return None


def _tag(name: str) -> Tag:
    return Tag(f"manager-{name}"[:64], name)


def _alive(state: PilotState) -> bool:
    return state.listed is not Listed.ENDED


def _listen(config: PoolConfig) -> str:
    return config.interface or config.network or (HOST if config.remote else "")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
