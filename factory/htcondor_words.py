"""HTCondor's words: submit descriptions out; job ads, counts and error texts in. Pure.

Theory of operation
-------------------
`submit_words` makes the submit description of one submission, which is one cluster: its jobs differ in their number only.  Shell text
never stands in it (``$(x)`` and ``$$(x)`` mean something there): the pilot's shell is in a script file, and a literal ``$`` of a path is
written ``$(DOLLAR)``.  Our own attributes (``My.Windlass...``) are what queries go by.

`queue_state` reads an ad of the queue, `history_state` one of the history.  Ads come with every expression evaluated, but still with
values of any type, as a user's ``request_memory = banana`` is accepted: each value is taken only where its type is right.

*Two dollars.*  ``$(DOLLAR)`` is a macro that stands for ``$``, but two of them after each other are read as ``$$(DOLLAR)``, the attribute
``DOLLAR`` of the machine: so what has ``$$`` in it cannot be written in a submit description at all, and is refused.

*Counts.*  The counts of an action are texts (``"TotalSuccess": "2"``) in some answers and numbers in others; `refusal` takes both.

*Restarts.*  A job that is vacated starts again under the same id.  ``NumShadowStarts`` counts starts, but also each reconnection after a
restart of the schedd, when the pilot runs on; so restarts are counted as starts less ``NumJobReconnects``.  The pilot's script counts in
the same way, from the ad that it finds on its node.  The queue learns of a reconnection late, up to many minutes after it, and counts the
start at once; but reconnections leave the time of the current start (``JobCurrentStartDate``) alone, which tells that it is still the same
incarnation (`Incarnation`).  A factory that did not see the start knows a reconnection by a shadow that is younger than that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from windlass.addresses import is_named
from windlass.errors import BatchError, OverLimit, Rejected, Unreachable, UsageError
from windlass.factory.backend import Cause, JobId, Listed, NotNow, NotSent, PilotRequest, PilotState, Tag
from windlass.factory.history import NODE_AVOIDED

#: The attributes of a factory's `Tag`.
TAG_PROJECTION: Final = ("WindlassFactory", "WindlassManager")
#: All that is asked of an ad in the queue or in the history.
PROJECTION: Final = (
    "ClusterId",
    "ProcId",
    "JobStatus",
    "WindlassTicket",
    "NumShadowStarts",
    "NumJobReconnects",
    "JobCurrentStartDate",
    "JobCurrentStartExecutingDate",
    "TransferringInput",
    "ShadowBday",
    "RemoteHost",
    "LastRemoteHost",
    "HoldReason",
    "HoldReasonCode",
    "HoldReasonSubCode",
    "LastHoldReason",
    "LastHoldReasonCode",
    "LastHoldReasonSubCode",
    "LastJobStatus",
    "VacateReason",
    "LastRejMatchReason",
    "RemoveReason",
    "ExitBySignal",
    "ExitSignal",
    "ExitCode",
)

IDLE: Final = 1
RUNNING: Final = 2
REMOVED: Final = 3
COMPLETED: Final = 4
HELD: Final = 5
TRANSFERRING: Final = 6
SUSPENDED: Final = 7

#: Held while its input is uploaded (``spool=True``): it will start by itself.
HOLD_SPOOLING: Final = 16
#: Seconds for which a pilot keeps away from hosts that programs have blocked. From one that still is it is sent away at once, so that with
#: an hour a busy pool would never serve; and one that is not any more may be all that is free, while the others are taken for days.
BLOCKED_AVOIDED: Final = 86_400.0
#: Reason code that our own removals carry.
REMOVE_CODE: Final = 1
#: Seconds beyond the walltime until HTCondor removes a pilot that should have left by itself; and one that has never begun, as its input
#: is transferred first.
WALLTIME_MARGIN: Final = 300
INPUT_MARGIN: Final = 86_400
#: One whose input has been on its way for so many seconds is not waited for any more.
INPUT_LONGEST: Final = 6 * 3600
#: Seconds that a held pilot is left for people to look at when no factory removes it.
HELD_KEPT: Final = 3600
#: The same for one whose files never came, as its factory ended while it uploaded them.
SPOOLING_KEPT: Final = 86_400
#: What removals of pilots say whose files never came, by the backend and by the process that uploads.
NOT_UPLOADED: Final = "Windlass: the upload of its files"
#: Bytes that one submission uploads (``spool=True``), unless a single pilot has more: at first, and where uploads have turned out to take
#: less than so many seconds.
UPLOAD_MOST: Final = 64 << 20
UPLOAD_LARGEST: Final = 1 << 30
UPLOAD_QUICK: Final = 10.0
#: Bytes a second for which an upload has time; and the seconds that it has in the end, where it was cut off again and again.
UPLOAD_PACE: Final = 1 << 20
UPLOAD_LONGEST: Final = 4 * 3600.0

JOB: Final = re.compile(r"\d+\.\d+\Z")
# ---------------------------------------------------------------- out: the submit description


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """What a pool says beside what every backend has."""

    requirements: str = ""
    #: Attributes of the job ad: names and Python values.
    attributes: tuple[tuple[str, object], ...] = ()
    #: Further submit commands, as they are written in a submit file.
    directives: tuple[tuple[str, str], ...] = ()
    container_image: str = ""
    #: Bytes; 0: the pool's default.
    disk: int = 0
    #: Nodes see the user's files by the same paths.
    shared_files: bool = True


def escaped(text: str) -> str:
    """A text as it is written in a submit description. Raises `UsageError` for what cannot be written there."""
    if "\n" in text or "\r" in text:
        raise UsageError(f"{text!r} has several lines, which no submit description can hold; write it in one")
    if "$$" in text:  # two $(DOLLAR) after each other are read as $$(DOLLAR)
        raise UsageError(f"{text!r} has '$$', which no submit description can hold; use another name")
    return text.replace("$", "$(DOLLAR)")


def literal(value: object) -> str:
    """A Python value as a literal of submit descriptions and constraints. Raises `UsageError` where there is none.

    In both, a backslash means something only before a quote."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        if value.endswith("\\") or '\\"' in value:
            raise UsageError(f"{value!r} has a backslash at its end or before a quote, which HTCondor cannot read; write it otherwise")
        return '"' + value.replace('"', '\\"') + '"'
    raise UsageError(f"{value!r} is no value for an attribute of a job; give a text, a number, True or False")


def own_attributes(tag: Tag, user: str) -> dict[str, str]:
    """The attributes by which a factory finds its pilots. ``user``: another user may have a factory of the same name."""
    attributes = {"WindlassFactory": tag.factory, "WindlassUser": user}
    return attributes | {"WindlassManager": tag.manager} if tag.manager else attributes


def submit_words(
    request: PilotRequest, tag: Tag, user: str, *, script: str, folder: str, inputs: Sequence[str], options: SubmitOptions
) -> dict[str, str]:
    """The submit description. ``script`` starts the pilot; its log goes to ``folder``; ``inputs`` are files that travel with it."""
    transfer = not options.shared_files
    log = f"{escaped(folder)}/$(ClusterId).$(ProcId).log"
    own = {**own_attributes(tag, user), "WindlassTicket": request.ticket, "WindlassPool": str(request.pool)}
    words = {
        "universe": "container" if options.container_image else "vanilla",
        "executable": escaped(script),
        "environment": '"WINDLASS_JOB=$(ClusterId).$(ProcId)"',
        "initialdir": escaped(folder),
        "output": log,
        "error": log,
        "batch_name": escaped(f"windlass-{tag.factory}"),
        "request_cpus": f"{max(1, -int(-request.resources.cores // 1))}",
    }
    if options.container_image:
        words["container_image"] = escaped(options.container_image)
    if request.resources.memory:
        words["request_memory"] = str(-(-request.resources.memory // (1 << 20)))  # MiB
    if request.resources.gpus:
        words["request_gpus"] = str(request.resources.gpus)
    if options.disk:
        words["request_disk"] = str(-(-options.disk // 1024))  # KiB
    # IF_NEEDED runs in place where the pool says that files are shared, and matches also where they are and the pool does not say so.
    words["should_transfer_files"] = "YES" if transfer else "IF_NEEDED"
    words["when_to_transfer_output"] = "ON_EXIT"
    words["transfer_output_files"] = '""'  # none; otherwise all that the worker leaves in its folder
    extra = dict(options.directives)
    files = [_listed_path(path) for path in inputs]
    if more := extra.pop("transfer_input_files", ""):
        files.append(more)
    if files:
        words["transfer_input_files"] = ", ".join(files)
    requirements = [f"({options.requirements})"] if options.requirements else []
    requirements += [_keeps_away(node, BLOCKED_AVOIDED if node in request.blocked else NODE_AVOIDED) for node in request.avoid]
    if requirements:
        words["requirements"] = " && ".join(requirements)
    # An end is SIGTERM, the grace, SIGKILL, also when the pilot is removed.
    words["kill_sig"] = "SIGTERM"
    words["job_max_vacate_time"] = f"{max(1, round(request.grace))}"
    words["want_graceful_removal"] = "true"
    words["periodic_remove"] = periodic_remove(request.walltime)
    words["leave_in_queue"] = "false"
    words |= {f"My.{name}": escaped(literal(value)) for name, value in options.attributes}
    words |= {f"My.{name}": escaped(literal(value)) for name, value in own.items()}
    words |= extra
    return words


def _keeps_away(node: str, seconds: float) -> str:
    """A job that has waited for so many ``seconds`` takes any node: by then it may be the only one, or mended, or not blocked any more.

    Names are meant as by `is_named`: users know a host by what it calls itself, and HTCondor may add its domain. ``==`` is blind to case.
    """
    first, dot, _ = node.partition(".")
    other = f"TARGET.Machine == {literal(first)}" if dot else f"substr(TARGET.Machine, 0, {len(first) + 1}) == {literal(f'{first}.')}"
    met = f"(TARGET.Machine == {literal(node)} || {other})"
    return f"({escaped(met)} =!= true || time() - QDate > {round(seconds)})"


def fitting(request: PilotRequest, options: SubmitOptions) -> str:
    """A pilot's requirements as far as they are known here, whatever nodes it is to avoid: for `only_avoided`."""
    needs = [f"({options.requirements})"] if options.requirements else []
    needs.append(f"TARGET.Cpus >= {max(1, -int(-request.resources.cores // 1))}")
    if request.resources.memory:
        needs.append(f"TARGET.Memory >= {-(-request.resources.memory // (1 << 20))}")
    if request.resources.gpus:
        needs.append(f"TARGET.GPUs >= {request.resources.gpus}")
    return " && ".join(needs)


def only_avoided(machines: Iterable[object], avoid: Sequence[str]) -> str:
    """Why a pilot that keeps away from nodes would wait for ever; "": it would not, as far as is known. ``machines``: those that fit it."""
    names = {str(machine).lower() for machine in machines}
    if not names or not all(any(is_named(machine, name) for name in avoid) for machine in names):
        return ""
    return f"pilots have died on every machine that fits them, or programs have blocked it ({', '.join(sorted(names))})"


def _listed_path(path: str) -> str:
    if "," in path:
        raise UsageError(f"{path!r} has a comma, and HTCondor separates the files to transfer by commas; move or link it elsewhere")
    return escaped(path)


def periodic_remove(walltime: float) -> str:
    """What the schedd removes by itself, also when no factory lives any more."""
    terms = [
        f"(JobStatus == {HELD} && HoldReasonCode =!= {HOLD_SPOOLING} && time() - EnteredCurrentStatus > {HELD_KEPT})",
        f"(JobStatus == {HELD} && time() - EnteredCurrentStatus > {SPOOLING_KEPT})",
    ]
    if walltime:
        # The pilot leaves by itself before its walltime, which it counts from its own start; this is for one that cannot. What it says
        # of its start may be of an earlier one, or missing while input is transferred: each part has to be true or false then, too.
        longest, started = round(walltime) + WALLTIME_MARGIN, "time() - JobCurrentStartDate"
        began = "(JobCurrentStartExecutingDate >= JobCurrentStartDate) =?= true"
        overdue = f"({began} && time() - JobCurrentStartExecutingDate > {longest}) || {started} > {longest + INPUT_MARGIN}"
        terms.append(f"(JobStatus == {RUNNING} && {started} > {longest} && ({overdue}))")
    return " || ".join(terms)


@dataclass(slots=True)
class Uploads:
    """How much a submission uploads, and how long that may take, by what became of earlier ones. Times in seconds."""

    most: int = UPLOAD_MOST
    #: An upload has as long, whatever is known of its size.
    least: float = 0.0

    def part(self, count: int, size: int) -> tuple[int, float]:
        """Of ``count`` pilots with files of ``size`` bytes each: how many to submit at once, and how long their upload may take."""
        count = max(1, min(count, self.most // max(1, size)))
        return count, max(self.least, count * size / UPLOAD_PACE)

    def done(self, sent: int, took: float) -> None:
        """So many bytes took so long."""
        self.least = min(self.least, 2 * took)
        if took < UPLOAD_QUICK and sent >= self.most // 2:
            self.most = min(UPLOAD_LARGEST, 2 * self.most)

    def cut_off(self, limit: float) -> None:
        """An upload took longer than ``limit``; begun anew with no more time, it would be cut off for ever."""
        self.most, self.least = UPLOAD_MOST, min(UPLOAD_LONGEST, 2 * limit)


def description(words: Mapping[str, str], count: int) -> str:
    """A submit description as a submit file."""
    return "".join(f"{name} = {value}\n" for name, value in words.items()) + f"queue {count}\n"


# ---------------------------------------------------------------- constraints


def constraint_of(tag: Tag, user: str) -> str:
    """Which jobs are pilots of this factory."""
    return " && ".join(f"{name} == {literal(value)}" for name, value in own_attributes(tag, user).items())


def constraint_of_user(user: str) -> str:
    """Which jobs are pilots of this user, whichever factory's."""
    return f"WindlassUser == {literal(user)} && WindlassFactory =!= undefined"


def tag_of(ad: Mapping[str, object]) -> Tag:
    """The factory and manager of a pilot."""
    return Tag(_text(ad, "WindlassFactory"), _text(ad, "WindlassManager"))


def constraint_of_jobs(jobs: Iterable[JobId]) -> str:
    """These jobs, grouped by cluster."""
    clusters: dict[str, list[str]] = {}
    for job in jobs:
        cluster, _, proc = job.partition(".")
        clusters.setdefault(cluster, []).append(proc)
    return " || ".join(
        f"(ClusterId == {cluster} && ({' || '.join(f'ProcId == {proc}' for proc in procs)}))" for cluster, procs in clusters.items()
    )


# ---------------------------------------------------------------- in: ads


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of a job, as the factory counts it."""

    restart: int
    #: The schedd's ``JobCurrentStartDate``.
    started: int


def _whole(ad: Mapping[str, object], name: str) -> int | None:
    value = ad.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 1 << 62:
        return None
    return int(value)


def _text(ad: Mapping[str, object], name: str) -> str:
    value = ad.get(name)
    return value.strip() if isinstance(value, str) else ""


def job_of(ad: Mapping[str, object]) -> JobId | None:
    """The job of an ad; None: the ad does not say."""
    cluster, proc = _whole(ad, "ClusterId"), _whole(ad, "ProcId")
    return None if cluster is None or proc is None or cluster < 0 or proc < 0 else JobId(f"{cluster}.{proc}")


def node_of(ad: Mapping[str, object]) -> str:
    """The machine that a job runs on, or ran on last: ``slot1_2@node`` without the slot."""
    host = _text(ad, "RemoteHost") or _text(ad, "LastRemoteHost")
    return host.rpartition("@")[2]


def _starts(ad: Mapping[str, object], reconnected: bool = False) -> int:
    reconnections = max(_whole(ad, "NumJobReconnects") or 0, int(reconnected))
    return max(0, (_whole(ad, "NumShadowStarts") or 0) - reconnections)


def incarnation(ad: Mapping[str, object], known: Incarnation | None) -> Incarnation:
    """Which start of the job an ad is about; ``known``: the newest that the job was seen in."""
    started = _whole(ad, "JobCurrentStartDate") or 0
    status = _whole(ad, "JobStatus")
    if status == IDLE:
        # The start to come.
        return Incarnation(_starts(ad), started)
    if known is not None and known.started == started and started:
        return known
    reconnected = status == RUNNING and 0 < started < (_whole(ad, "ShadowBday") or 0)
    return Incarnation(max(0, _starts(ad, reconnected) - 1), started)


def queue_state(ad: Mapping[str, object], known: Incarnation | None = None, now: float = 0.0) -> PilotState | None:
    """How an ad of the queue lists its pilot ``now`` (seconds since the epoch); None: it is no ad of a job."""
    job, status = job_of(ad), _whole(ad, "JobStatus")
    if job is None or status is None:
        return None
    restart = incarnation(ad, known).restart
    ticket, node = _text(ad, "WindlassTicket"), node_of(ad)
    match status:
        case 1:  # idle
            reasons = [_text(ad, "VacateReason") if restart else "", _text(ad, "LastRejMatchReason")]
            reason = "; ".join(reason for reason in reasons if reason)
            return PilotState(job=job, listed=Listed.QUEUED, ticket=ticket, restart=restart, reason=reason)
        case 2 if _awaits_input(ad, now):  # nothing of it runs yet that could connect
            reason = "its input is being transferred"
            return PilotState(job=job, listed=Listed.QUEUED, ticket=ticket, restart=restart, node=node, reason=reason)
        case 2 | 7:  # running; suspended
            reason = "suspended" if status == SUSPENDED else ""
            return PilotState(job=job, listed=Listed.RUNNING, ticket=ticket, restart=restart, node=node, reason=reason)
        case 5 if _whole(ad, "HoldReasonCode") == HOLD_SPOOLING:
            return PilotState(job=job, listed=Listed.QUEUED, ticket=ticket, restart=restart, reason=_text(ad, "HoldReason"))
        case 5:
            return PilotState(job=job, listed=Listed.HELD, ticket=ticket, restart=restart, node=node, reason=hold_reason(ad))
        case 3:  # its shadow is still out
            return PilotState(job=job, listed=Listed.ENDING, ticket=ticket, restart=restart, node=node, reason=_text(ad, "RemoveReason"))
        case 4:
            return history_state(ad, known)
        case _:  # transferring output, and what may be invented yet
            return PilotState(job=job, listed=Listed.ENDING, ticket=ticket, restart=restart, node=node)


def _awaits_input(ad: Mapping[str, object], now: float) -> bool:
    """A job has its machine and does not run there yet; what is said of its start may be of an earlier one."""
    began, started = _whole(ad, "JobCurrentStartExecutingDate") or 0, _whole(ad, "JobCurrentStartDate") or 0
    return ad.get("TransferringInput") is True and began < started and now - started < INPUT_LONGEST


def is_spooling(ad: Mapping[str, object]) -> bool:
    """The schedd waits for this job's files."""
    return _whole(ad, "JobStatus") == HELD and _whole(ad, "HoldReasonCode") == HOLD_SPOOLING


def is_given_up(ad: Mapping[str, object]) -> bool:
    """This job is being removed as its files never came."""
    return _whole(ad, "JobStatus") == REMOVED and NOT_UPLOADED in _text(ad, "RemoveReason")


def hold_reason(ad: Mapping[str, object], last: str = "") -> str:
    """Why a job is held (``last="Last"``: was, before it was removed), with the codes by which HTCondor's manual lists reasons."""
    code, subcode = _whole(ad, f"{last}HoldReasonCode"), _whole(ad, f"{last}HoldReasonSubCode")
    codes = "" if code is None else f" (hold code {code}" + (f"/{subcode})" if subcode else ")")
    return (_text(ad, f"{last}HoldReason") or "held, and HTCondor does not say why") + codes


def history_state(ad: Mapping[str, object], known: Incarnation | None = None) -> PilotState | None:
    """How a job ended; None: it is no ad of a job."""
    job = job_of(ad)
    if job is None:
        return None
    cause, reason, exit_status = _end(ad)
    return PilotState(
        job=job,
        listed=Listed.ENDED,
        ticket=_text(ad, "WindlassTicket"),
        # The newest that is known, at least: the end of a job is the end of all its starts.
        restart=max(incarnation(ad, known).restart, known.restart if known else 0),
        node=node_of(ad),
        reason=reason,
        cause=cause,
        exit_status=exit_status,
    )


def _end(ad: Mapping[str, object]) -> tuple[Cause, str, int | None]:
    if _whole(ad, "JobStatus") == REMOVED:  # its ExitSignal is that of the removal
        reason = _text(ad, "RemoveReason") or "removed"
        if "SYSTEM_PERIODIC_REMOVE" in reason.upper():
            return Cause.UNKNOWN, reason, None  # the administrators' rule, whatever it is about
        if "PeriodicRemove" in reason:
            held = _whole(ad, "LastJobStatus") == HELD  # a removal takes the reason of the hold away, and keeps it as the last one
            return (Cause.UNKNOWN, f"{hold_reason(ad, 'Last')}: {reason}", None) if held else (Cause.WALLTIME, reason, None)
        return Cause.CANCELLED, reason, None
    by_signal, number, code = ad.get("ExitBySignal"), _whole(ad, "ExitSignal"), _whole(ad, "ExitCode")
    if by_signal is True and number is not None:
        return Cause.SIGNAL, f"ended by signal {number}", None
    if by_signal is not True and code is not None:
        return Cause.EXIT, f"exit status {code}", code
    return Cause.UNKNOWN, "ended, and HTCondor does not say how", None


# ---------------------------------------------------------------- in: counts and errors


def refusal(counts: Mapping[str, object], asked: str) -> str:
    """What the schedd did not do of an action, for people to read; "": it did all, or there was nothing left to do.

    Denied actions raise nothing: only these counts tell. Jobs that have left the queue, or are being removed, are no failure.
    """
    numbers: dict[str, int] = {}
    for name in ("TotalSuccess", "TotalPermissionDenied", "TotalError"):
        value = counts.get(name)
        try:
            numbers[name] = int(cast("str | int", value))
        except (TypeError, ValueError):
            return f"the schedd's answer to {asked!r} lacks {name}"
    wrong = [f"{numbers[name]} {word}" for name, word in (("TotalPermissionDenied", "denied"), ("TotalError", "in error")) if numbers[name]]
    return f"{asked}: {', '.join(wrong)}, {numbers['TotalSuccess']} done" if wrong else ""


#: Texts of the bindings about a submission that the schedd, or the submit language, refused as it is.
REFUSED: Final = re.compile(
    r"Failed to create job ad|Failed to create a cluster ad|invalid Queue statement|Unable to commit transaction, SCHEDD:"
    r"|Schedd says -(5|6|7)\b|Failed to create new cluster\.SCHEDD:"
)
#: An upload that failed, after which its jobs were removed; and what was wrong where it began: a file that is not there, or that the user
#: may not read. All else passes: a full disk of the schedd's, a connection that was cut.
UPLOAD_FAILED: Final = "DCSchedd::spoolJobFiles:"
UNREADABLE: Final = re.compile(r"reading from [^;]*\(errno (2|13|20|21|36|40)\)|File transfer initialization failed")
#: Texts of one that was not even sent.
NOT_SENT: Final = re.compile(r"^(Failed to connect to schedd|Unable to locate local daemon|there is no schedd)")
#: The settings by which a schedd limits jobs, by the numbers that are all it says of them.
LIMITS: Final[Mapping[str, str]] = {"2": "MAX_JOBS_SUBMITTED", "3": "MAX_JOBS_PER_OWNER", "4": "MAX_JOBS_PER_SUBMISSION"}
LIMITED: Final = re.compile(rf"{'|'.join(LIMITS.values())}|Schedd says -({'|'.join(LIMITS)})\b")


def submit_error(text: str) -> BatchError:
    """What an error of the bindings means for a submission."""
    words = " ".join(text.split())
    limited = LIMITED.search(words)
    if limited:
        setting = LIMITS.get(limited[1] or "")
        return OverLimit(f"the schedd takes no more jobs, by its setting {setting} ({words})" if setting else words)
    if REFUSED.search(words):
        return Rejected(words)
    if UPLOAD_FAILED in words:
        return Rejected(words) if UNREADABLE.search(words) else NotNow(words)
    return (NotSent if NOT_SENT.search(words) else Unreachable)(f"submission: {words}")
