"""The Slurm backend: pilots as jobs and tasks of job arrays.

Theory of operation
-------------------
Slurm is spoken to by its commands, with what `windlass.factory.slurm_words` says, in an environment that says nothing of ours:

=========  ====================================================================================================
submit     ``sbatch --parsable`` with the script on its stdin, an array for several pilots; nothing on the command line, so the
           script that a dry run prints is all there is
query      one ``squeue`` for all jobs of the user; those of other factories are left out here.  Anything but a whole answer is none
cancel     ``scancel`` with the ids, in batches; for all of a factory's, those that squeue shows then
=========  ====================================================================================================

A command that gets no answer has its own time limit; what became of a submission is told by its unique job name in the next answer
of squeue.  A pilot's output is in ``FOLDER/RUN/JOB.log`` (`windlass.factory.logs`), on a filesystem that nodes and the factory
share; Slurm's own last line is in it, too."""

from __future__ import annotations

import errno
import logging
import math
import os
import pwd
import re
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final, cast

from windlass.addresses import is_named
from windlass.errors import BatchError, OverLimit, Rejected, Unreachable, UsageError, require_flag
from windlass.factory import slurm_words, values
from windlass.factory.backend import (
    PROBE,
    Backend,
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
from windlass.factory.commands import Ran, clean_environment, run_command
from windlass.factory.launch import own_template, pilot_script
from windlass.factory.logs import PilotLogs
from windlass.factory.pool import NAME
from windlass.factory.processes import tail_of
from windlass.passing import NOT_EXECUTED, PASSING

log = logging.getLogger("windlass.factory")

#: Seconds until larger arrays are tried again where a site refuses them and nothing says why.
FEWER_FOR: Final = 3600.0
#: Seconds for which a pilot that no answer has had is ended with the factory: so long it is waited for (`windlass.factory.pilots`), and an
#: hour more looked for (`windlass.factory.core`).
THOUGHT_OF: Final = 3900.0


class SlurmBackend:
    """Pilots in a Slurm cluster.

    Args:
        partition, account, qos, constraint, reservation, clusters: as sbatch takes them.
        gpu_type: of the pool's ``gpus``, as in ``--gres=gpu:TYPE:N``; ``gres``: anything else of the kind.
        exclusive: whole nodes (True), or ``"user"``, ``"mcs"``.
        requeue: whether a preempted pilot, or one of a lost node, is queued again by Slurm; None: as the site has it.
        export: ``"NONE"`` (the node's login environment, and the pool's ``env``), ``"NIL"``, ``"ALL"``, or names.
        extra_directives: further ``#SBATCH`` lines.
        job_name: what the names of jobs begin with.
        template: a file to take in place of ``slurm.sh.j2``.
        command_timeout: seconds for each of Slurm's commands. ``query_interval``: seconds between two of squeue, at least.
    """

    name: ClassVar[str] = "slurm"
    defaults: ClassVar[PoolDefaults] = PoolDefaults(max_pilots=4, cores=1.0, walltime=3600.0)
    limits: ClassVar[CommandLimits] = CommandLimits()
    max_batch: ClassVar[int] = 500

    def __init__(
        self,
        *,
        partition: str = "",
        account: str = "",
        qos: str = "",
        constraint: str = "",
        reservation: str = "",
        clusters: str = "",
        gpu_type: str = "",
        gres: str = "",
        exclusive: bool | str = False,
        requeue: bool | None = None,
        export: str = "NONE",
        extra_directives: str | Sequence[str] = (),
        job_name: str = "windlass",
        template: str | os.PathLike[str] = "",
        query_interval: str | float = 30.0,
        command_timeout: str | float = 60.0,
    ) -> None:
        self.query_interval = _positive("query_interval", query_interval)
        self._timeout = _positive("command_timeout", command_timeout)
        asked = {
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "reservation": reservation,
            "clusters": clusters,
        }
        self._asked = [(option, _text(option, value)) for option, value in asked.items() if value not in ("", None)]
        self._clusters = _text("clusters", clusters)
        self._gpu_type, self._gres = _text("gpu_type", gpu_type), _text("gres", gres)
        if exclusive not in (False, None, ""):
            self._asked.append(("exclusive", "" if exclusive is True else _text("exclusive", exclusive)))
        if requeue is not None:
            require_flag("requeue", requeue)
            self._asked.append(("requeue" if requeue else "no-requeue", ""))
        self._export = _text("export", export)
        self._directives = _directives(extra_directives)
        self._prefix = _text("job_name", job_name)
        if not NAME.match(self._prefix):
            raise UsageError(f"job_name={job_name!r} is no name for jobs; use up to 64 letters, digits, '_', '-' and '.'")
        self._template = own_template(template)
        #: Of sbatch, which may hand all of it on to the pilot (``export="ALL"``); and of the others, whose answers are read.
        self._submit_env = clean_environment(os.environ, slurm_words.SPOILING, slurm_words.KEPT)
        self._env = clean_environment(os.environ, slurm_words.SPOILING, slurm_words.KEPT, LC_ALL="C")
        self._tag = Tag("FACTORY", "MANAGER")
        self._folder = Path("FOLDER")
        #: Something was submitted, or may have been: Slurm fails a job that finds no folder for its output.
        self._may_have_sent = False
        self._logs: PilotLogs | None = None
        #: Pilots that were held in the last answer.
        self._doubtful: set[JobId] = set()
        #: Pilots that had not ended when they were last heard of.
        self._live: set[JobId] = set()
        #: Those of them that no answer has had yet, which may be older than they are, and until when they are thought of.
        self._unlisted: dict[JobId, float] = {}
        #: Nodes that pilots were on.
        self._nodes: set[str] = set()
        #: What squeue last said beside its answer, without numbers.
        self._complaint = ""
        #: Names of nodes to avoid that Slurm was asked about, as it refused one of them, and what it calls the nodes that each means.
        self._called: dict[str, tuple[str, ...]] = {}
        #: Slurm has taken a pilot that might go anywhere, when it was asked as one was refused with nodes to avoid.
        self._fits = False
        #: Tasks that an array may have by the configuration, where one was refused for its size; 0: not known.
        self._max_array = 0
        #: Tasks that it may have until then, as one was refused and nothing says why; 0: none was.
        self._fewer, self._fewer_until = 0, -math.inf

    # ---------------------------------------------------------------- the protocol

    def open(self, tag: Tag, folder: Path, wake: Callable[[], None]) -> None:
        """As the protocol says. Raises `UsageError` where Slurm's commands are not installed."""
        self.require_commands()
        self._logs = PilotLogs(folder, name_of=_log_name)
        self._tag, self._folder = slurm_words.same_tag(tag), self._logs.run

    @staticmethod
    def require_commands() -> None:
        """Raises `UsageError` where Slurm's commands are not installed."""
        missing = [program for program in ("sbatch", "squeue", "scancel") if shutil.which(program) is None]
        if missing:
            raise UsageError(
                f"this machine has no {' and no '.join(missing)}: start the factory where jobs are submitted to Slurm, or add Slurm's"
                " folder to PATH"
            )

    def submit(self, request: PilotRequest, count: int) -> Sequence[JobId]:
        most = self._fewer if time.monotonic() < self._fewer_until else self._max_array
        count = min(count, most) if most else count
        excluded = self._excluded(request.avoid)
        ran = self._submit(replace(request, avoid=excluded), count)
        if ran.status != 0 and count > 1 and slurm_words.is_array_refused(ran.stderr):
            if not self._max_array:  # how large arrays may be is worth a command when the first is refused, and only then
                self._max_array = slurm_words.read_max_array(self._told(("scontrol", "show", "config"))) or self.max_batch
                if self._max_array < count:
                    return self.submit(request, self._max_array)
            # A site may have rules of its own, which may end.
            self._fewer, self._fewer_until = min(self._fewer or count, count // 2), time.monotonic() + FEWER_FOR
            raise OverLimit(f"an array of {count} pilots is refused: {slurm_words.tidy(ran.stderr)}")
        if ran.status and excluded and slurm_words.are_nodes_unknown(ran.stderr):
            # Hosts that the program blocked go by their own names: in a domain, or of another pool.
            self._called |= self._ask_names(request.avoid)
            if self._excluded(request.avoid) == excluded:  # as if never said: rather pilots there than none at all
                self._called |= dict.fromkeys(request.avoid, ())
            return self.submit(request, count)
        if ran.stopped:
            raise OverLimit(f"Slurm has too many jobs: {slurm_words.tidy(ran.stderr)}")
        if ran.status != 0 and not slurm_words.names_a_job(ran.stdout):
            refused = slurm_words.refusal("sbatch", ran.status, ran.stderr)
            if excluded and slurm_words.lacks_nodes(ran.stderr) and self._fits_somewhere(request):
                raise NoNodeLeft(str(refused))
            if isinstance(refused, NotNow) and slurm_words.lacks_partition(ran.stderr) and self._is_open(request):
                raise Rejected(str(refused))
            raise refused
        jobs = slurm_words.task_ids(ran.stdout, count, count > 1, bool(self._clusters))
        self._live |= set(jobs)
        self._unlisted |= dict.fromkeys(jobs, time.monotonic() + THOUGHT_OF)
        if self._logs is not None:
            self._logs.submitted(jobs)
        return jobs

    def _submit(self, request: PilotRequest, count: int, *, later: bool = False) -> Ran:
        script = self._script(request, count, later=later)
        self._may_have_sent = True
        try:
            return run_command(
                slurm_words.SUBMIT,
                env=self._submit_env,
                timeout=self._timeout,
                text=script,
                stop_at=slurm_words.QUEUE_FULL,
                unraised=True,  # sites hand limits of the submitting process on to jobs, and complain there where nodes allow less
            )
        except OSError as error:
            # It was there when the factory began: it comes back, as when its packages are replaced, or their folder is mounted again.
            passes = error.errno in PASSING or error.errno == errno.ENOENT
            raise (NotSent if passes else Rejected)(f"cannot start sbatch: {error.strerror or error}") from None

    def _fits_somewhere(self, request: PilotRequest) -> bool:
        """Some node has what is asked, where none is to be avoided: Slurm has one text for both, and is asked once."""
        if not self._fits:
            try:
                self.probe(replace(request, avoid=(), ticket=PROBE))
            except Rejected as refused:
                return not slurm_words.lacks_nodes(str(refused))
            except BatchError:
                return True  # the next try asks again, unless Slurm took it
        return True

    def _is_open(self, request: PilotRequest) -> bool:
        """The partition that is meant takes jobs, for all that is known. Slurm has one text for one that takes none for now, and for a job
        that no partition of several would ever take. To wait for what never comes says so; to give up ends calls."""
        try:
            told = self._told(slurm_words.partitions_words(self._clusters))
        except Unreachable:
            return False  # the next try asks again
        return slurm_words.are_open(told, slurm_words.partition_of(self._script(request, 1)))

    def _excluded(self, avoid: Sequence[str]) -> tuple[str, ...]:
        """Nodes to avoid as Slurm calls them, as far as it was asked."""
        return tuple(dict.fromkeys(node for name in avoid for node in self._called.get(name, (name,))))

    def _ask_names(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """What Slurm calls the nodes that each of these names means; () where there are none. Raises `Unreachable`."""
        # A site may show its nodes to nobody.
        nodes = self._nodes | slurm_words.read_nodes(self._told(slurm_words.nodes_words(self._clusters)))
        return {name: tuple(sorted(node for node in nodes if is_named(node, name))) for name in names}

    def _told(self, command: Sequence[str]) -> str:
        """What Slurm tells of itself; "": nothing, as there is no such command, or not for this user. Raises `NotSent`."""
        try:
            ran = self._run(command)
        except OSError as error:
            if error.errno in PASSING:
                raise NotSent(f"cannot start {command[0]}: {error.strerror or error}") from None
            return ""
        if ran.status in NOT_EXECUTED:
            return ""
        refused = slurm_words.refusal(command[0], ran.status, ran.stderr) if ran.status != 0 else None
        if isinstance(refused, Unreachable | NotNow):
            raise NotSent(str(refused))
        return "" if refused else ran.stdout

    def query(self) -> Sequence[PilotState]:
        return self._own(self._rows())

    @property
    def site(self) -> str:
        return f"{self._env.get('SLURM_CONF', '')} {self._clusters} {self._prefix}"

    def query_with(self, others: Sequence[Backend]) -> Sequence[Sequence[PilotState]]:
        rows = self._rows()
        return [one._own(rows) for one in (self, *cast("Sequence[SlurmBackend]", others))]

    def _own(self, rows: Sequence[slurm_words.Row]) -> Sequence[PilotState]:
        """What an answer says of this backend's pilots."""
        own = [row.state for row in rows if row.tag == self._tag]
        self._end_probes([state.job for state in own if state.ticket == PROBE and state.listed is not Listed.ENDED])
        states = self._confirmed([state for state in own if state.ticket != PROBE])
        listed, now = {state.job for state in states}, time.monotonic()
        self._unlisted = {job: until for job, until in self._unlisted.items() if job not in listed and now < until}
        self._live = {state.job for state in states if state.listed is not Listed.ENDED} | self._unlisted.keys()
        self._nodes |= {state.node for state in states if state.node}
        return states if self._logs is None else self._logs.looked_after(states)

    def _end_probes(self, left: Sequence[JobId]) -> None:
        """Probes whose cancellation was lost."""
        try:
            self.cancel(left)
        except Unreachable as error:
            log.info("probes %s are left, and are cancelled with the next query: %s", ", ".join(left), error)

    def _confirmed(self, states: Sequence[PilotState]) -> list[PilotState]:
        """One that seems never to start is believed the second time in a row: while nodes come and go, reasons do as well."""
        doubtful, self._doubtful = self._doubtful, {state.job for state in states if state.listed is Listed.HELD}
        return [replace(state, listed=Listed.QUEUED) if state.job in self._doubtful - doubtful else state for state in states]

    def _rows(self) -> list[slurm_words.Row]:
        try:
            ran = self._run(slurm_words.query_words(self._clusters))
        except OSError as error:
            raise Unreachable(f"cannot start squeue: {error.strerror or error}") from None
        if ran.status != 0:
            raise Unreachable(str(slurm_words.refusal("squeue", ran.status, ran.stderr)))
        complaint = slurm_words.tidy(ran.stderr)
        if ran.cut or not slurm_words.is_whole(ran.stdout, self._clusters, ran.stderr):
            raise Unreachable(f"squeue gave no whole answer: {complaint or ('it has no end' if ran.cut else 'it lacks the header')}")
        if (told := re.sub(r"\d+", "", complaint)) != self._complaint:  # there may be a time in it
            self._complaint = told
            log.info("squeue answers, and says beside it: %s", complaint or "nothing any more")
        return slurm_words.read_rows(ran.stdout, self._prefix, clusters=bool(self._clusters))

    def cancel(self, jobs: Sequence[JobId]) -> None:
        for command in slurm_words.cancel_words(jobs):
            self._cancel(command)
        for job in jobs:
            self._unlisted.pop(job, None)

    def cancel_all(self) -> None:
        """As the protocol says. A factory that ends needs an answer, so this takes two commands: scancel by name knows whole names only."""
        try:
            self.query()
        except Unreachable:
            self.cancel(sorted(self._live))  # a controller that hangs may still take it
            raise
        self.cancel(sorted(self._live))

    def _cancel(self, command: Sequence[str]) -> None:
        try:
            ran = self._run(command)
        except OSError as error:
            raise Unreachable(f"cannot start scancel: {error.strerror or error}") from None
        if ran.status != 0 and not slurm_words.only_ended(ran.stderr):
            raise Unreachable(str(slurm_words.refusal("scancel", ran.status, ran.stderr)))

    def log(self, job: JobId) -> str:
        return "" if self._logs is None else str(self._logs.place(job))

    def tail(self, job: JobId) -> str:
        return "" if self._logs is None else tail_of(self._logs.place(job))

    def describe(self, request: PilotRequest, count: int) -> str:
        script = self._script(request, count)
        return f"{shlex.join(slurm_words.SUBMIT)} << 'END OF SCRIPT'\n{script.rstrip()}\nEND OF SCRIPT"

    def close(self) -> None:
        """Nothing runs here between commands."""
        if self._logs is not None and not self._may_have_sent:
            self._logs.close()

    # ---------------------------------------------------------------- for the command line

    def find(self) -> Sequence[tuple[Tag, PilotState]]:
        """All pilots of this user, whichever factory's, that have not ended. Raises `Unreachable`."""
        return [(row.tag, row.state) for row in self._rows() if row.state.listed is not Listed.ENDED]

    def probe(self, request: PilotRequest) -> JobId:
        """Submit one pilot that may not start yet, and remove it: the id that it had. Raises as `submit`.

        Not held: for such a job no nodes are looked for. And not by ``sbatch --test-only``, which refuses as well what has to wait for
        nodes that are drained or down.
        """
        self.require_commands()
        name = slurm_words.job_name(self._prefix, self._tag, request.ticket)
        ran = self._submit(request, 1, later=True)
        try:
            if ran.status != 0 and not slurm_words.names_a_job(ran.stdout):
                raise OverLimit(slurm_words.tidy(ran.stderr)) if ran.stopped else slurm_words.refusal("sbatch", ran.status, ran.stderr)
            self._fits = True
            [job] = slurm_words.task_ids(ran.stdout, 1, False, bool(self._clusters))
        except Unreachable:
            self._cancel(("scancel", *slurm_words.of_clusters(self._clusters), f"--user={_user()}", f"--name={name}"))
            raise
        self.cancel([job])
        return job

    # ---------------------------------------------------------------- small things

    def _script(self, request: PilotRequest, count: int, *, later: bool = False) -> str:
        resources = request.resources
        folder = str(self._folder).replace("%", "%%")
        asked = [*self._asked, ("begin", "now+1hour")] if later else self._asked
        return pilot_script(
            replace(request, shell=shutil.which(request.shell) or request.shell),
            template=self._template or "slurm.sh.j2",
            job_name=slurm_words.job_name(self._prefix, self._tag, request.ticket),
            output=f"{folder}/{'%A_%a' if count > 1 else '%j'}.log",
            export=self._export,
            array=count if count > 1 else 0,
            cores=max(1, round(resources.cores)),
            memory=-(-resources.memory // (1 << 20)),
            gres=slurm_words.gres_words(resources.gpus, self._gpu_type, self._gres),
            time=slurm_words.minutes(request.walltime),
            warning=slurm_words.warning_seconds(request.walltime, request.grace),
            asked=asked,
            extra_directives=self._directives,
            several_clusters=bool(self._clusters),
        )

    def _run(self, command: Sequence[str]) -> Ran:
        return run_command(command, env=self._env, timeout=self._timeout)


def _log_name(job: JobId) -> str:
    """What the script's ``--output`` makes of a job's id."""
    return slurm_words.split_job(job)[0]


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _text(option: str, value: object) -> str:
    if value is None:
        return ""
    text = ",".join(map(str, cast("Sequence[object]", value))) if isinstance(value, list | tuple) else str(value)
    of_words = isinstance(value, str | int | float | list | tuple) and not isinstance(value, bool)
    if not of_words or not slurm_words.one_line([text]):
        raise UsageError(f"{option}={value!r} is not what sbatch takes for --{option.replace('_', '-')}; write it as on its command line")
    return text


def _positive(option: str, value: object) -> float:
    read = values.seconds({option: value}, option, 0.0)
    if not 0 < read < 1e6:
        raise UsageError(f"{option}={value!r} is no time to wait; write for example {option}='30s'")
    return read


def _directives(value: object) -> tuple[str, ...]:
    lines = value.splitlines() if isinstance(value, str) else cast("Sequence[object]", value)
    try:
        return tuple(slurm_words.directive(str(line)) for line in lines if str(line).strip())
    except (ValueError, TypeError):
        raise UsageError(f"extra_directives={value!r}: write lines as in a batch script, for example ['--mail-type=END']") from None
