"""The HTCondor backend: each pilot is a job of a schedd, each submission one cluster.

Theory of operation
-------------------
A process of its own talks to the schedd (`windlass.factory.condor_client` says why); what is said to it and what its answers mean is in
`windlass.factory.htcondor_words`.

One query per cycle asks for the jobs that carry the factory's attributes.  A job leaves the queue when it ends, so one that was there,
or was submitted, and is not listed any more has ended: the history is asked how, once for all of them, and as far back as they can be.
Removals that the schedd has acknowledged need no history.  A history that does not answer costs nothing but the reason of an end: the
pilot is then not listed, and the factory takes it for ended the second time.

*Nodes to avoid* are a requirement of the job.  HTCondor accepts requirements that nothing meets, and such a job waits for ever; so before
such a submission the collector is asked which machines would fit, and where all of them are to be avoided the submission counts as refused.
What that means is the history's business: it tries once without, and from then on deaths lead to a pause.  A pilot that waits for other
reasons takes an avoided node again after an hour.

*Files.*  With ``files="shared"`` (the default) nodes see the user's files by the same paths, and only the script and the log may travel.
With ``files="transfer"`` they share nothing with the access point, and what a pilot needs travels with the job: the connection file and,
unless ``environment=`` brings a whole Python, Windlass's own modules (`windlass.factory.shipping`).  Logs come back when a pilot ends by
itself.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pwd
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final, cast

from windlass.errors import BatchError, Rejected, Unreachable, UsageError
from windlass.factory import htcondor_options as options_of
from windlass.factory import htcondor_words as words_of
from windlass.factory import values
from windlass.factory.backend import (
    RESTART_MARK,
    Backend,
    Cause,
    CommandLimits,
    JobId,
    Listed,
    NoNodeLeft,
    NotNow,
    NotSent,
    PilotRequest,
    PilotState,
    PoolDefaults,
    Tag,
)
from windlass.factory.condor_client import COMMAND, CondorClient, NoBindings, Refused
from windlass.factory.condor_helper import CONSENT, NOT_REMOVED
from windlass.factory.htcondor_words import Incarnation, SubmitOptions
from windlass.factory.launch import own_template, pilot_script, write_script
from windlass.factory.logs import OWN_LOG, PilotLogs
from windlass.factory.processes import tail_of
from windlass.passing import PASSING
from windlass.units import parse_memory, parse_seconds

log = logging.getLogger("windlass.factory")

#: Queries in which the history is asked about a job; the factory takes it for ended by then.
HISTORY_TRIES: Final = 2
#: Seconds before it was last seen that a job's end can lie, by the schedd's clock: clocks differ, removals take time.
HISTORY_SLACK: Final = 3600

CONNECTION: Final = "pilot.json"
MODULES: Final = "windlass-modules"

MISSING: Final = "the htcondor backend needs HTCondor's Python bindings, which are not installed here; run  pip install 'htcondor>=25'"


class HTCondorBackend:
    """Pilots as jobs of HTCondor.

    Args:
        helper: the command of the process that talks to the schedd, for tests.
        schedd, collector: a schedd by its name, and the pool (``host:port`` of its collector) that it is in; else this machine's.
        requirements: a ClassAd expression that machines must meet.
        attributes: further attributes of the job ad (``+Name`` of a submit file): ``{"ProjectName": "sim"}``.
        extra_directives: further submit commands: ``{"accounting_group": "physics"}``.
        container_image: the image that pilots run in; ``python=`` is then the interpreter inside.
        disk: of one pilot, as ``"10GB"``.
        files: ``"shared"`` or ``"transfer"``.
        spool: the schedd's machine does not see the user's files, so they are uploaded to it; logs do not come back.
        template: a file to take in place of ``htcondor.sh.j2``.
        query_interval, command_timeout: between queries, and for one request.
    """

    name: ClassVar[str] = "htcondor"
    #: The schedd answers from its queue; so long it may take to carry out what it was sent before it was asked.
    defaults: ClassVar[PoolDefaults] = PoolDefaults(unlisted=30.0)
    limits: ClassVar[CommandLimits] = CommandLimits()
    #: Far below what schedds take in one submission (20,000 by default).
    max_batch: ClassVar[int] = 1000

    def __init__(
        self,
        helper: Sequence[str] = COMMAND,
        *,
        schedd: str = "",
        collector: str = "",
        requirements: str = "",
        attributes: object = (),
        extra_directives: object = (),
        container_image: str = "",
        disk: str | int | float = 0,
        files: str = "shared",
        spool: bool | int | str = False,
        template: str | os.PathLike[str] = "",
        query_interval: str | int | float = 30.0,
        command_timeout: str | int | float = 30.0,
    ) -> None:
        if files not in ("shared", "transfer"):
            raise UsageError(f"files={files!r}; write files='shared' where nodes see your files, or files='transfer' where they do not")
        self._template = own_template(template)
        if not isinstance(requirements, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"requirements={requirements!r} is no expression; write a text, as in requirements='HasAVX2'")
        if "\n" in requirements:
            raise UsageError("requirements= has several lines; write the expression in one")
        self.query_interval = _seconds("query_interval", query_interval)
        self._limit = _seconds("command_timeout", command_timeout)
        self._options = SubmitOptions(
            requirements=requirements,
            attributes=options_of.checked_attributes(attributes),
            directives=options_of.checked_directives(extra_directives),
            container_image=container_image,
            disk=_bytes("disk", disk),
            shared_files=files == "shared",
        )
        for doubt in options_of.doubtful_directives(self._options.directives):
            log.warning("%s", doubt)
        self._spool = values.flag("spool", spool)
        self._uploads = words_of.Uploads()
        self._helper, self._where = tuple(helper), (collector, schedd)
        self._user = _user()
        self._tag = Tag("FACTORY", "MANAGER")
        self._folder = Path("FOLDER")
        self._logs: PilotLogs | None = None
        self._client: CondorClient | None = None
        #: The last warnings of the bindings.
        self._warned: tuple[str, ...] = ()
        #: Jobs that are there, or were when last listed: their newest incarnation, and when they were last seen or submitted.
        self._known: dict[JobId, Incarnation | None] = {}
        self._seen_at: dict[JobId, float] = {}
        self._tickets: dict[JobId, str] = {}
        #: Removals that the schedd acknowledged.
        self._removed: set[JobId] = set()
        #: Jobs that are not listed any more, with the number of times that the history was asked about them.
        self._left: dict[JobId, int] = {}

    def open(self, tag: Tag, folder: Path, wake: Callable[[], None]) -> None:
        self.require_bindings()
        # Where files travel, a running pilot's output is on its node: there is nothing to cut before it ends.
        self._logs = PilotLogs(folder, trims=self._options.shared_files and not self._spool)
        self._tag, self._folder = tag, self._logs.run
        self._client = CondorClient(self._helper, *self._where, self._folder / OWN_LOG)

    def require_bindings(self) -> None:
        """Raises `UsageError` where HTCondor's bindings are not installed, or no Python could load them."""
        if self._helper == COMMAND and getattr(sys, "frozen", False):
            raise UsageError(
                f"{sys.executable} is a frozen program, which would be started again instead of HTCondor's bindings: "
                "run the factory on its own, with windlass factory"
            )
        if self._helper == COMMAND and importlib.util.find_spec("htcondor2") is None:
            raise UsageError(MISSING)

    # ---------------------------------------------------------------- submitting

    def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
        try:
            words, script = self._words(request, self._inputs(request))
            self._write(request, script)
        except UsageError as error:
            raise Rejected(str(error)) from None
        except OSError as error:
            raise (NotSent if error.errno in PASSING else Rejected)(f"cannot write what is to be submitted: {error}") from None
        if request.avoid:
            self._require_other_nodes(request)
        size = self._upload_size(request, words) if self._spool else 0
        count, seconds = self._uploads.part(count, size)
        began = time.monotonic()
        try:
            made = self._ask("submit", seconds, words=words, count=count, spool=self._spool)
        except Refused as error:
            raise _submit_error(str(error)) from None
        except Unreachable:
            if self._spool and time.monotonic() - began >= self._limit + seconds:
                self._cut_off(count, size, self._limit + seconds)
            raise
        self._uploads.done(count * size, time.monotonic() - began)
        cluster, first, number = (_count(made, name) for name in ("cluster", "first", "count"))
        jobs = [JobId(f"{cluster}.{first + index}") for index in range(number)]
        for job in jobs:
            self._known[job], self._seen_at[job], self._tickets[job] = None, time.time(), request.ticket
        if self._logs is not None:
            self._logs.submitted(jobs)
        return jobs

    def _upload_size(self, request: PilotRequest, words: Mapping[str, str]) -> int:
        """Bytes of the files that a pilot brings with it, as far as they are known here."""
        named = words.get("transfer_input_files", "").replace("$(DOLLAR)", "$").split(",")
        names = [str(self._script_path(request)), self._options.container_image, *(name.strip() for name in named)]
        return sum(_size(self._folder / name) for name in names if name)

    def _cut_off(self, count: int, size: int, limit: float) -> None:
        self._uploads.cut_off(limit)
        log.warning(
            "the upload of files for %d pilots, %.0f MB each as far as is known, took longer than %.0f s; command_timeout= gives it more,"
            " and the next one has up to %.0f s by itself",
            count,
            size / 1e6,
            limit,
            self._limit + self._uploads.least,
        )

    def _require_other_nodes(self, request: PilotRequest) -> None:
        """Raises `NoNodeLeft` where all machines that fit are to be avoided: HTCondor would take pilots, and they would wait for ever."""
        try:
            machines = self._ask_safely("machines", requirements=words_of.fitting(request, self._options))
        except BatchError as error:
            log.info("which machines are left for pilots is not known: %s", error)
            return
        why = words_of.only_avoided(cast("list[object]", machines), request.avoid) if isinstance(machines, list) else ""
        if why:
            raise NoNodeLeft(why)

    def _words(self, request: PilotRequest, inputs: Sequence[str]) -> tuple[dict[str, str], str]:
        """The submit description and the script. Raises `UsageError`."""
        if request.nodes > 1:
            raise UsageError(f"nodes={request.nodes}: a pilot of HTCondor has one node; leave nodes= out and let max_pilots= say how many")
        script = self._script(request)
        place = self._script_path(request)
        words = words_of.submit_words(
            request, self._tag, self._user, script=str(place), folder=str(self._folder), inputs=inputs, options=self._options
        )
        return words, script

    def _script_path(self, request: PilotRequest) -> Path:
        return self._folder / f"{request.ticket}.sh"

    def _script(self, request: PilotRequest) -> str:
        if self._options.shared_files:
            return pilot_script(request, template=self._template or "htcondor.sh.j2", restart_mark=RESTART_MARK, in_image=True, files=False)
        from windlass.factory.shipping import check

        command = list(request.command)
        connects = "--connection" in command
        if connects:
            command[command.index("--connection") + 1] = CONNECTION
        environment = request.environment
        if environment is not None:  # it comes with the job, into its folder
            environment = replace(environment, archive=Path(environment.archive).name, boot=None)
        return pilot_script(
            replace(request, command=tuple(command), environment=environment),
            template=self._template or "htcondor.sh.j2",
            restart_mark=RESTART_MARK,
            in_image=True,
            files=True,
            modules="" if environment else MODULES,
            connection=CONNECTION if connects else "",
            check=check() if connects and environment is None else "",
        )

    def _inputs(self, request: PilotRequest) -> list[str]:
        """The files that travel with the job."""
        if self._options.shared_files:
            return []
        command = list(request.command)
        connection = [command[command.index("--connection") + 1]] if "--connection" in command else []
        environment = request.environment
        return [*connection, str(self._folder / f"{MODULES}.tar") if environment is None else environment.archive]

    def _write(self, request: PilotRequest, script: str) -> None:
        write_script(self._script_path(request), script)
        modules = self._folder / f"{MODULES}.tar"
        if not self._options.shared_files and request.environment is None and not modules.exists():
            from windlass.factory.shipping import write_modules

            write_modules(modules)

    def describe(self, request: PilotRequest, count: int) -> str:
        words, script = self._words(request, self._inputs(request))
        return f"{words_of.description(words, count)}\n# {self._script_path(request)} is:\n{script}"

    # ---------------------------------------------------------------- looking

    def query(self) -> Sequence[PilotState]:
        [states] = self.query_with(())
        return states

    @property
    def site(self) -> str:
        return f"{self._helper} {self._where}"

    def query_with(self, others: Sequence[Backend]) -> Sequence[Sequence[PilotState]]:
        several = (self, *cast("Sequence[HTCondorBackend]", others))
        constraint = " || ".join(f"({words_of.constraint_of(one._tag, one._user)})" for one in several)
        started = time.time()
        ads = _ads(self._ask_safely("query", constraint=constraint, projection=[*words_of.PROJECTION, *words_of.TAG_PROJECTION]))
        return [one._listed([ad for ad in ads if words_of.tag_of(ad) == one._tag], started) for one in several]

    def _listed(self, ads: Sequence[Mapping[str, object]], started: float) -> Sequence[PilotState]:
        """What the queue says of this backend's pilots, and how those ended that have left it."""
        states: list[PilotState] = []
        abandoned: list[JobId] = []
        for ad in ads:
            job = words_of.job_of(ad)
            if job is not None and job not in self._known and words_of.is_spooling(ad):
                # Requests go one by one: who would upload its files was cut off. It would be waited for, and stay held, for ever.
                abandoned.append(job)
                continue
            if job is not None and job not in self._known and words_of.is_given_up(ad):
                continue  # it never was a pilot, and nobody has taken one away
            state = words_of.queue_state(ad, self._known.get(job) if job else None, started)
            if state is not None:
                states.append(state)
                self._known[state.job] = words_of.incarnation(ad, self._known.get(state.job))
                self._seen_at[state.job] = started
        listed = {state.job for state in states}
        for job in [job for job in self._known if job not in listed]:
            self._left.setdefault(job, 0)
        for job in [job for job in self._left if job in listed]:
            del self._left[job]
        self._end_abandoned(abandoned)
        states += self._ends()
        return states if self._logs is None else self._logs.looked_after(states)

    def _end_abandoned(self, jobs: Sequence[JobId]) -> None:
        if jobs:
            log.info("the upload of the files of %s was cut off; they are removed", ", ".join(jobs))
            try:
                self._remove(jobs, "the upload of its files was cut off")
            except BatchError as error:
                log.info("they are left, and are removed with the next query: %s", error)

    def _ends(self) -> list[PilotState]:
        """How jobs ended that have left the queue."""
        ends: list[PilotState] = []
        for job in [job for job in self._left if job in self._removed]:
            known = self._known.get(job)
            ends.append(
                PilotState(
                    job=job,
                    listed=Listed.ENDED,
                    ticket=self._tickets.get(job, ""),
                    restart=known.restart if known else 0,
                    reason="removed by the factory",
                    cause=Cause.CANCELLED,
                )
            )
        asked = [job for job in self._left if job not in self._removed]
        if asked:
            ends += self._from_history(asked)
        for job in [*(end.job for end in ends), *(job for job, tries in self._left.items() if tries >= HISTORY_TRIES)]:
            self._forget(job)
        return ends

    def _from_history(self, jobs: Sequence[JobId]) -> list[PilotState]:
        for job in jobs:
            self._left[job] += 1
        since = int(min(self._seen_at[job] for job in jobs)) - HISTORY_SLACK
        try:
            ads = _ads(
                self._ask_safely(
                    "history",
                    constraint=words_of.constraint_of_jobs(jobs),
                    projection=list(words_of.PROJECTION),
                    match=len(jobs),
                    since=f"EnteredCurrentStatus < {since}",
                )
            )
        except BatchError as error:
            log.info("how %d pilots ended is not known: %s", len(jobs), error)
            return []
        ends: dict[JobId, PilotState] = {}
        for ad in ads:
            found = words_of.job_of(ad)
            end = words_of.history_state(ad, self._known.get(found) if found else None)
            if end is not None and end.job in jobs:
                ends[end.job] = end
        return list(ends.values())

    def _forget(self, job: JobId) -> None:
        for table in (self._known, self._seen_at, self._tickets, self._left):
            table.pop(job, None)
        self._removed.discard(job)

    def log(self, job: JobId) -> str:
        return "" if self._logs is None else str(self._logs.place(job))

    def tail(self, job: JobId) -> str:
        return "" if self._logs is None else tail_of(self._logs.place(job))

    # ---------------------------------------------------------------- for the command line

    def find(self) -> Sequence[tuple[Tag, PilotState]]:
        """All pilots of this user, whichever factory's, that have not ended. Raises `Unreachable`."""
        projection = [*words_of.PROJECTION, *words_of.TAG_PROJECTION]
        ads = _ads(self._ask_safely("query", constraint=words_of.constraint_of_user(self._user), projection=projection))
        found = [(words_of.tag_of(ad), words_of.queue_state(ad)) for ad in ads]
        return [(tag, state) for tag, state in found if state is not None and state.listed is not Listed.ENDED]

    def probe(self, request: PilotRequest) -> JobId:
        """Submit one pilot that is held, and remove it: the id that it had. Raises as `submit`."""
        try:
            words, _ = self._words(request, self._inputs(request))
        except UsageError as error:
            raise Rejected(str(error)) from None
        words["initialdir"] = "/"  # must be there, and nothing is written to it
        try:
            made = self._ask("submit", words={**words, "hold": "true"}, count=1, spool=False)
        except Refused as error:
            raise _submit_error(str(error)) from None
        except Unreachable:
            self._remove(words_of.constraint_of(self._tag, self._user), "it was a probe")
            raise
        job = JobId(f"{_count(made, 'cluster')}.{_count(made, 'first')}")
        self._remove([job], "it was a probe")
        return job

    # ---------------------------------------------------------------- ending

    def cancel(self, jobs: Sequence[JobId]) -> None:
        ids = [job for job in jobs if words_of.JOB.match(job)]
        if not ids:
            return
        counts = self._remove(ids, "not needed any more")
        if str(counts.get("TotalSuccess")) == str(len(ids)):
            self._removed.update(job for job in ids if job in self._known)

    def cancel_all(self) -> None:
        self._remove(words_of.constraint_of(self._tag, self._user), "the factory ends")
        self._removed.update(self._known)

    def _remove(self, which: Sequence[str], reason: str) -> Mapping[str, object]:
        counts = self._ask_safely("remove", which=which, reason=f"Windlass: {reason}", code=words_of.REMOVE_CODE)
        if not isinstance(counts, dict):
            raise Unreachable("the schedd's answer to a removal is none")
        counts = cast("dict[str, object]", counts)
        refused = words_of.refusal(counts, "removal of pilots")
        if refused:
            raise Rejected(refused)
        return counts

    def hurry(self) -> None:
        if self._client is not None:
            self._client.hurry()

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._logs is not None:
            self._logs.close()

    # ---------------------------------------------------------------- the schedd

    def _ask(self, do: str, more: float = 0.0, /, **arguments: object) -> object:
        """``more`` seconds than a request has else. Raises `Refused` with the bindings' own text, and `Unreachable`."""
        if self._client is None:  # for the command line, which opens nothing
            self.require_bindings()
            self._client = CondorClient(self._helper, *self._where, None)
        try:
            value: object = self._client.ask(do, self._limit, more, **arguments)
        except NoBindings as error:
            raise Unreachable(f"{MISSING} ({error})") from None
        for warning in self._client.warnings:
            level = logging.INFO if warning in self._warned else logging.WARNING  # as each submission may bring it
            log.log(level, "HTCondor says to %s: %s", do, warning)
        self._warned = self._client.warnings or self._warned
        return value

    def _ask_safely(self, do: str, **arguments: object) -> object:
        """As `_ask`, with what was asked beside the bindings' texts, which can be empty; without what Windlass wrote itself."""
        try:
            return self._ask(do, **arguments)
        except Refused as error:
            asked = f"{do} of {arguments['requirements']}" if "requirements" in arguments else do
            raise Unreachable(f"{asked}: {' '.join(str(error).split())}") from None


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _submit_error(text: str) -> BatchError:
    if NOT_REMOVED in text:  # a query shows them, and whether their files came all the same
        return Unreachable(" ".join(text.split()))
    return NotNow(text) if text.startswith(CONSENT) else words_of.submit_error(text)


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    try:
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0  # what is wrong with it will be told


def _ads(value: object) -> list[dict[str, object]]:
    """Raises `Unreachable` for what is no list of ads: unknown is not gone."""
    if not isinstance(value, list):
        raise Unreachable(f"the schedd's answer is no list of jobs: {value!r:.100}")
    return [cast("dict[str, object]", ad) for ad in cast("list[object]", value) if isinstance(ad, dict)]


def _count(value: object, name: str) -> int:
    number = cast("dict[str, object]", value).get(name) if isinstance(value, dict) else None
    if not isinstance(number, int):
        raise Unreachable(f"the schedd's answer to a submission lacks {name}")
    return number


def _seconds(name: str, value: str | int | float) -> float:
    try:
        seconds = parse_seconds(value)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}={value!r}: {error}") from None
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{name}={value!r} is not a time; write for example {name}='30 s'")
    return seconds


def _bytes(name: str, value: str | int | float) -> int:
    try:
        return parse_memory(value) if value else 0
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}={value!r}: {error}") from None
