"""Slurm's words: what is asked of its commands, and what their answers mean. Pure; recorded genuine outputs are its tests.

Theory of operation
-------------------
One `squeue` tells of all pilots: a line per job, array tasks one by one, fields ended by ``|``, the job's name last as names may hold
anything.  (The long form of its format, as the short one cannot say how often a job was started again, nor how it ended.)  It is asked
for its header, which it prints as soon as it has got the jobs, however many there are: an answer with a header is a whole one.  Errors on
stderr are no sign, as a site's configuration may bring some with each command; but for that of a user whom squeue does not know for a
moment, and for whom it then finds no jobs.

*A job's name* is ``windlass:FACTORY:MANAGER:TICKET``.  Slurm keeps it from the very submission, so that what was submitted without an
answer is found again, and so that a factory finds the pilots of its earlier life.

*A job's id* is ``17``, or ``17_4`` for a task of an array, with ``@cluster`` where pilots go to named clusters.

*States* are `Listed`: COMPLETING masks the end or the next start, so it is *ending*; a word that is not known is *running*, which changes
nothing; what another cluster of a federation runs, or may run, is *elsewhere*: its connection tells.  PENDING is *held* where its reason
is one that no waiting mends, or its priority says so.

*Refusals* are told apart by their texts, as all have the exit status 1: no answer (`Unreachable`), a limit on jobs (`OverLimit`), what the
site does for a while (`NotNow`), and everything else (`Rejected`).  A command that was killed, or that could not be started, has said
nothing of what was asked."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from windlass.errors import BatchError, OverLimit, Rejected, Unreachable
from windlass.factory.backend import Cause, JobId, Listed, NotNow, NotSent, PilotState, Tag
from windlass.passing import NOT_EXECUTED

#: Of the environment that Slurm's commands are run in. They change answers, and inside a job they change submissions.
SPOILING: Final = ("SQUEUE_", "SINFO_", "SBATCH_", "SLURM_", "SCANCEL_", "SRUN_", "SALLOC_")
#: Which cluster, and who asks: where users have tokens in place of munge, all commands need theirs; so do those of a machine on which
#: Slurm's own authentication listens elsewhere than by default, as for several clusters.
KEPT: Final = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_SOCKET")

#: Widths are limits: what is longer is cut.
FIELDS: Final = (
    "JobArrayID:40|",
    "State:24|",
    "Reason:120|",
    "NodeList:160|",
    "exit_code:12|",
    "RestartCnt:8|",
    "Partition:120|",
    "PriorityLong:16|",
    "Name:300|",
)

SUBMIT: Final = ("sbatch", "--parsable")
#: sbatch says this when jobs are too many, and then waits for 100 s.
QUEUE_FULL: Final = "sleeping and retrying"
#: scancel with more ids than this takes long enough to run into time limits.
CANCEL_BATCH: Final = 200
#: Pilots that live shorter, in seconds, are not warned by Slurm.
WARNED_FROM: Final = 600.0

# ---------------------------------------------------------------- names and ids

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]")


def job_name(prefix: str, tag: Tag, ticket: str) -> str:
    """The name of a submission's jobs."""
    return ":".join([prefix, *(_UNFIT.sub("_", part) for part in (tag.factory, tag.manager, ticket))])


def read_name(prefix: str, name: str) -> tuple[Tag, str] | None:
    """Tag and ticket of a job's name; None: it is not one of ours."""
    parts = name.split(":")
    if len(parts) != 4 or parts[0] != prefix:
        return None
    return Tag(parts[1], parts[2]), parts[3]


def same_tag(tag: Tag) -> Tag:
    """The tag as names carry it."""
    return Tag(_UNFIT.sub("_", tag.factory), _UNFIT.sub("_", tag.manager))


#: What ``sbatch --parsable`` prints; and what it prints without, where a site's wrapper takes that option away.
_SUBMITTED: Final = re.compile(r"(?:Submitted batch job )?(\d+)(?:;(\S+)| on cluster (\S+))?")


def _submitted(answer: str) -> re.Match[str] | None:
    """The line of sbatch's answer that names the job, maybe after a site's own words."""
    return next((found for line in reversed(answer.splitlines()) if (found := _SUBMITTED.fullmatch(line.strip()))), None)


def names_a_job(answer: str) -> bool:
    """sbatch has made a job, whatever became of sbatch itself then."""
    return _submitted(answer) is not None


def task_ids(answer: str, count: int, array: bool, clusters: bool) -> list[JobId]:
    """Ids of the pilots of a submission from what sbatch printed: ``17`` or ``17;cluster``.

    Raises `Unreachable` when there is no such line, or none with the cluster where ``clusters`` were named: a job may have been made.
    """
    found = _submitted(answer)
    if found is None:
        raise Unreachable(f"sbatch printed no job id but {answer.strip()[:200]!r}")
    cluster = found[2] or found[3]
    if clusters and not cluster:  # each has its own job of that number, which may be another one
        raise Unreachable(f"sbatch did not say which cluster has job {found[1]}; squeue is asked for it by its name")
    at = f"@{cluster}" if clusters and cluster else ""
    names = [f"{found[1]}_{index}" for index in range(count)] if array else [found[1]]
    return [JobId(name + at) for name in names]


def split_job(job: JobId) -> tuple[str, str]:
    """``17_4@cluster`` → ``17_4`` and ``cluster``."""
    name, _, cluster = job.partition("@")
    return name, cluster


def of_clusters(clusters: str) -> tuple[str, ...]:
    """The option that has a command speak to these clusters; none for the one that it is on ("")."""
    return (f"--clusters={clusters}",) if clusters else ()


def cancel_words(jobs: Iterable[JobId]) -> list[tuple[str, ...]]:
    """The command lines that end these: per cluster, and in batches. Tasks of one array are one word: ``17_[0,4]``."""
    by_cluster: dict[str, list[JobId]] = {}
    for job in dict.fromkeys(jobs):
        by_cluster.setdefault(split_job(job)[1], []).append(job)
    commands: list[tuple[str, ...]] = []
    for cluster, members in by_cluster.items():
        for first in range(0, len(members), CANCEL_BATCH):
            tasks: dict[str, list[str]] = {}
            for job in members[first : first + CANCEL_BATCH]:
                number, _, task = split_job(job)[0].partition("_")
                tasks.setdefault(number, []).append(task)
            words = [number if "" in ids else f"{number}_[{','.join(ids)}]" for number, ids in tasks.items()]
            commands.append(("scancel", *of_clusters(cluster), *words))
    return commands


#: Which cluster the lines below are of.
_CLUSTER: Final = "CLUSTER: "
_UNKNOWN_USER: Final = "Invalid user"


def query_words(clusters: str) -> tuple[str, ...]:
    """The command line that asks about all jobs of this user."""
    # --all: jobs in partitions that are hidden are hidden from their own user, too.
    return ("squeue", *of_clusters(clusters), "--all", "--array", "--states=all", "--me", f"--Format={','.join(FIELDS)}")


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.split("|", len(FIELDS) - 1)]


def is_whole(text: str, clusters: str, stderr: str) -> bool:
    """This is a whole answer to `query_words`, with the header of each cluster that was asked for, and about this user.

    Of ``all`` clusters, or of names in brackets, nobody knows here which are missing, but for what was said of them on stderr.
    """
    if _UNKNOWN_USER in stderr:
        return False
    found: set[str] = set()
    cluster = ""
    for line in text.splitlines():
        if line.startswith(_CLUSTER):
            cluster = line.removeprefix(_CLUSTER).strip().lower()
        elif line.count("|") == len(FIELDS) and not line[:1].isdigit():  # jobs begin with their ids
            found.add(cluster)
    asked = {name.strip().lower() for name in clusters.split(",") if name.strip()}
    unnamed = "all" in asked or "[" in clusters
    return bool(found) and ("error" not in stderr if unnamed else asked <= found)


def nodes_words(clusters: str) -> tuple[str, ...]:
    """The command line that asks for the names of all nodes."""
    return ("sinfo", *of_clusters(clusters), "--all", "--noheader", "--Node", "--format=%N")


def read_nodes(text: str) -> set[str]:
    """The names in an answer to `nodes_words`."""
    return {line.strip() for line in text.splitlines() if line.strip() and not line.startswith(_CLUSTER)}


def partitions_words(clusters: str) -> tuple[str, ...]:
    """The command line that asks which partitions take jobs."""
    return ("sinfo", *of_clusters(clusters), "--all", "--noheader", "--format=%P|%a")


#: sbatch takes long options that are cut short, too.
_PARTITION: Final = re.compile(r"(?:-p|--part\w*(?:=|$))(.*)")


def partition_of(script: str) -> str:
    """The partitions that the ``#SBATCH`` lines of a script ask for, whoever wrote them; "": the site chooses. As in Slurm's own eyes,
    what follows the first command is none of them: it may be another job's script."""
    words: list[str] = []
    for line in itertools.takewhile(lambda line: line.strip()[:1] in ("", "#"), script.splitlines()):
        if line.startswith("#SBATCH"):
            words += line.removeprefix("#SBATCH").split()
    found = ""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if option := _PARTITION.fullmatch(word):
            found = (option[1] or after).strip("'\"")
    return found


def are_open(text: str, partition: str) -> bool:
    """By an answer to `partitions_words` it is known that jobs for these partitions are taken. Where the site chooses ("") a plugin of its
    own may mean any, so that each has to be open."""
    rows = [line.strip().rpartition("|") for line in text.splitlines() if "|" in line]
    if not partition:
        return {state for _, _, state in rows} == {"up"}
    names = {name.strip() for name in partition.split(",")}
    return any(state == "up" and name.rstrip("*") in names for name, _, state in rows)


# ---------------------------------------------------------------- states

#: It waits for its start; the second: after ``--requeue=expedite``, with the highest priority.
PENDING: Final = ("PENDING", "EXPEDITING")
#: Slurm's states but for those and FAILED.
STATES: Final[Mapping[str, tuple[Listed, Cause]]] = {
    "CONFIGURING": (Listed.QUEUED, Cause.UNKNOWN),  # its node is being started
    "POWER_UP_NODE": (Listed.QUEUED, Cause.UNKNOWN),
    "RUNNING": (Listed.RUNNING, Cause.UNKNOWN),
    "SUSPENDED": (Listed.RUNNING, Cause.UNKNOWN),
    "STOPPED": (Listed.RUNNING, Cause.UNKNOWN),
    "RESIZING": (Listed.RUNNING, Cause.UNKNOWN),
    "SIGNALING": (Listed.RUNNING, Cause.UNKNOWN),
    "COMPLETING": (Listed.ENDING, Cause.UNKNOWN),
    "STAGE_OUT": (Listed.ENDING, Cause.UNKNOWN),
    "REQUEUED": (Listed.ENDING, Cause.UNKNOWN),
    "REQUEUE_FED": (Listed.ENDING, Cause.UNKNOWN),
    "SPECIAL_EXIT": (Listed.HELD, Cause.UNKNOWN),
    "REQUEUE_HOLD": (Listed.HELD, Cause.UNKNOWN),
    "RESV_DEL_HOLD": (Listed.HELD, Cause.UNKNOWN),
    "COMPLETED": (Listed.ENDED, Cause.EXIT),
    "CANCELLED": (Listed.ENDED, Cause.CANCELLED),
    "TIMEOUT": (Listed.ENDED, Cause.WALLTIME),
    "DEADLINE": (Listed.ENDED, Cause.WALLTIME),
    "PREEMPTED": (Listed.ENDED, Cause.PREEMPTED),
    "NODE_FAIL": (Listed.ENDED, Cause.NODE),
    "BOOT_FAIL": (Listed.ENDED, Cause.NODE),
    "OUT_OF_MEMORY": (Listed.ENDED, Cause.SIGNAL),
}
#: What a federation's other clusters keep of a job that one of them runs, and some minutes longer; of that one it says nothing more. So
#: is shown as well what waits in the others alone, as this one can never run it.
ELSEWHERE: Final = "REVOKED"

#: Slurm gives it to what is held, whatever the reason, and to nothing else.
HELD_PRIORITY: Final = "0"
#: Reasons for which a pending job never starts by itself, and what they mean. Limits on *how many* run now are not among them.
NEVER: Final[Mapping[str, str]] = {
    "JobHeldUser": "somebody holds it (scontrol release lets it go)",
    "JobHeldAdmin": "an administrator holds it",
    "launch failed requeued held": "its node could not start it; sinfo -R may say why",
    "job requeued in held state": "it was put back and is held",
    "user env retrieval failed requeued held": "its node could not load your login environment, which export='NONE' asks for;"
    " export='NIL' does without, and setup= and env= say what is needed",
    "JobHoldMaxRequeue": "it was put back too often",
    "BadConstraints": "no node has what it asks for",
    "DependencyNeverSatisfied": "it depends on what never happens",
    "ReservationDeleted": "its reservation is gone",
    "AccountNotAllowed": "its account may not use the partition",
    "InvalidAccount": "there is no such account",
    "InvalidQOS": "there is no such QOS, or it may not be used",
    "QOSNotAllowed": "its QOS may not be used here",
    "Association": "its user has no account here",
}
#: The same, where the job can go to one partition only; of several, Slurm shows the reason of the one that it looked at last.
NEVER_IN_PARTITION: Final[Mapping[str, str]] = {
    "PartitionTimeLimit": "its walltime is longer than the partition allows",
    "PartitionNodeLimit": "it asks for more nodes, or fewer, than the partition allows",
    "PartitionConfig": "the partition has no such nodes, or is not for this account (scontrol show partition says for which)",
}
#: What a job waits for that an administrator ends, as after an upgrade: places in the queue are not to be given up for it.
CLOSED: Final[Mapping[str, str]] = {
    "PartitionDown": "the partition is down; jobs start when it is up again",
    "PartitionInactive": "the partition is inactive; jobs start when it is up again",
}
#: Limits that one pilot may be over by itself, or that time alone does not mend; squeue has the same words for both, so they wait.
_WAITS: Final = (
    (
        re.compile(r"(Assoc|QOS)Grp((?!\w*RunMinutes)\w*Minutes(Limit)?|WallLimit)"),
        "the time of the account or QOS is used up, or less is left than this walltime takes; a shorter one, or another account, may start",
    ),
    (
        re.compile(r"(Assoc|QOS)(Grp|Max)(?!Jobs|Submit)\w+|Max(?!Jobs|Submit)\w+PerAccount"),
        "so much at a time; it starts when enough has ended, and never if it asks for more than the limit by itself",
    ),
)
#: Sentences that say who may use the partition; Slurm takes such jobs, unless a site has it refuse them, and never starts them.
_NOT_PERMITTED: Final = re.compile(
    r"((Job|User)'s (account|QOS|group)s? not (known, so it can't|permitted to)|uid \d+ not in group permitted to) use this partition"
)
#: A limit on what one job may ask for.
_PER_JOB: Final = re.compile(r"(Assoc|QOS)(Max\w*PerJob(Limit)?|Max\w*PerNode(Limit)?|MaxWallDurationPerJobLimit|Min\w+)")


def why_never(reason: str, *, several_partitions: bool = False, held: bool = False) -> str:
    """Why a pending job with this reason never starts; "": it waits."""
    sentence, reason = reason, reason.strip("()")
    meaning = NEVER.get(reason, NEVER.get(reason.replace("_", " ")))
    if meaning is None and not several_partitions:
        meaning = NEVER_IN_PARTITION.get(reason)
        if _NOT_PERMITTED.match(sentence):
            return sentence
    if meaning is None and _PER_JOB.fullmatch(reason):
        meaning = "it asks for more than one job may have"
    if meaning is None and held:
        meaning = "it is held"
    return f"{reason or 'no reason given'}: {meaning}" if meaning else ""


def listed_as(
    state: str, reason: str, wait_status: int, *, several_partitions: bool = False, held: bool = False
) -> tuple[Listed, Cause, str, int | None]:
    """How Slurm's state, reason and exit code (a wait status) read: listed, cause, reason in words, exit status.

    ``several_partitions``: the job may go to more than one. ``held``: its priority is that of held ones.
    """
    reason = "" if reason in ("None", "N/A") else reason
    if state in PENDING:
        never = why_never(reason, several_partitions=several_partitions, held=held)
        if never:
            return Listed.HELD, Cause.UNKNOWN, never, None
        waits = CLOSED.get(reason) or next((meaning for limit, meaning in _WAITS if limit.fullmatch(reason)), "")
        return Listed.QUEUED, Cause.UNKNOWN, f"{reason}: {waits}" if waits else reason, None
    if state == "FAILED":
        return _failed(reason, wait_status)
    if state == ELSEWHERE:
        return Listed.ELSEWHERE, Cause.UNKNOWN, "another cluster of the federation has it", None
    listed, cause = STATES.get(state, (Listed.RUNNING, Cause.UNKNOWN))
    if listed is not Listed.ENDED:
        return listed, cause, reason, None
    words = state if not reason or reason.replace("_", "").upper() == state.replace("_", "") else f"{state}: {reason}"
    return listed, cause, words, 0 if state == "COMPLETED" else None


#: The signal that Slurm gives as that of a job which its node could not start; from 23.02 on its name is the reason, too.
NOT_STARTED: Final = 53


def _failed(reason: str, wait_status: int) -> tuple[Listed, Cause, str, int | None]:
    status, number = wait_status >> 8, wait_status & 0x7F
    if 0 < number < 32:  # Slurm calls it a failed launch when the script, that is the pilot, dies of a signal
        return Listed.ENDED, Cause.SIGNAL, f"FAILED: ended by signal {number}", None
    if reason == "NonZeroExitCode":
        return Listed.ENDED, Cause.EXIT, f"FAILED: exit status {status}" if status else f"FAILED: {reason}", status or None
    if reason == "JobLaunchFailure" or number == NOT_STARTED:
        words = reason or "JobLaunchFailure"
        return Listed.ENDED, Cause.EXIT, f"FAILED: {words}: its node could not start it; can it write the log's folder?", None
    return Listed.ENDED, Cause.UNKNOWN, f"FAILED: {reason}" if reason else "FAILED", status or None


def read_wait_status(text: str) -> int:
    """squeue's exit code, which is a wait status; later versions of Slurm (seen in 26.05) write exit status and signal: ``5:0``."""
    status, colon, number = text.partition(":")
    if not status.isdigit() or (colon and not number.isdigit()):
        return 0
    return int(status) << 8 | int(number) if colon else int(status)


@dataclass(frozen=True, slots=True)
class Row:
    """One of our jobs in an answer of squeue."""

    tag: Tag
    state: PilotState


def read_rows(text: str, prefix: str, *, clusters: bool = False) -> list[Row]:
    """All jobs of Windlass's in an answer of `query_words`; those that others made are left out."""
    rows: list[Row] = []
    cluster = ""
    for line in text.splitlines():
        if line.startswith(_CLUSTER):
            cluster = line.removeprefix(_CLUSTER).strip()
            continue
        fields = _fields(line)
        if len(fields) != len(FIELDS):
            continue
        job, word, reason, nodes, wait_status, restarts, partition, priority, name = fields
        known = read_name(prefix, name.removesuffix("|").strip())
        if known is None or (word == ELSEWHERE and clusters):  # of several clusters, the one that runs it tells
            continue
        tag, ticket = known
        status = read_wait_status(wait_status)
        several, held = "," in partition, priority == HELD_PRIORITY
        listed, cause, words, exit_status = listed_as(word, reason, status, several_partitions=several, held=held)
        state = PilotState(
            job=JobId(f"{job}@{cluster}" if clusters and cluster else job),
            listed=listed,
            ticket=ticket,
            restart=int(restarts) if restarts.isdigit() else None,
            node=nodes if nodes not in ("(null)", "None") else "",
            reason=words,
            cause=cause,
            exit_status=exit_status,
        )
        rows.append(Row(tag, state))
    return rows


# ---------------------------------------------------------------- refusals

#: No answer, or one that says nothing of what was asked.
_UNREACHABLE: Final = re.compile(
    r"Unable to contact slurm controller|Socket timed out|authentication error|Munge (en|de)code failed|Unexpected message received"
    r"|Zero Bytes were transmitted|Unable to process configuration file|Could not establish a configuration source|cannot stat file"
    r"|[Cc]onnect(ion)? (failure|refused|timed out)|standby mode|[Cc]ommunication connection|Transport endpoint|Insane message length"
    r"|Invalid authentication credential|Header lengths|[Ff]ailed to fetch config|[Bb]roken pipe|Connection reset|Job credential"
    r"|Unable to resolve|Temporary failure in name resolution|slurm_persist_conn|shutting down"
)
#: Those of them where it was not even sent; and what is said of one of several clusters, before another one is chosen.
_NOT_SENT: Final = re.compile(
    r"\(connect failure\)|Munge encode failed|Unable to process configuration file|Could not establish a configuration source"
)
_OF_OTHERS: Final = "Problem with submit to cluster"
#: What sbatch ends with where Slurm has refused a job.
_FAILED: Final = "submission failed"
_NO_PARTITION: Final = "Required partition not available"
#: The site takes no such job for now, whatever it asks for: for maintenance, as one of its parts is away, or its controller's disk full.
_NOT_NOW: Final = re.compile(
    rf"{_NO_PARTITION}|can't be reached now|No clusters can be reached|problem talking to the database"
    r"|Incompatible versions of client and server|I/O error writing script/environment to file"
)
#: Too many jobs for now.
_OVER_LIMIT: Final = re.compile(
    rf"{QUEUE_FULL}|Resource temporarily unavailable|job queue full|MaxSubmit\w*|GrpSubmit\w*|QOS\w*Submit\w*|Assoc\w*Submit\w*"
    r"|violates accounting/QOS policy|[Rr]ate limit|[Tt]oo many jobs|exceeds? .*job (count|limit)"
)
#: The policy that is violated, where sbatch names it. It says so of a job as if that were alone, but for limits on how many jobs there are.
_POLICY: Final = re.compile(r"\b(?:Assoc|QOS)(?:Grp|Max|Min)\w+")
_OF_MANY: Final = re.compile("Submit|Jobs")
#: What scancel says of jobs that have ended or that there never were.
_ENDED_ALREADY: Final = re.compile(r"Invalid job id specified|already completing or completed")
_OF_A_JOB: Final = re.compile(r"\bjob\b", re.IGNORECASE)


def refusal(program: str, status: int | None, stderr: str) -> BatchError:
    """The error that a failed command stands for. ``status``: as of `Ran`; None: it was killed for its time limit."""
    text = tidy(stderr)
    if status is None:
        return Unreachable(f"{program} gave no answer in time" + (f": {text}" if text else ""))
    if status < 0:
        return Unreachable(f"{program} was killed by signal {-status}" + (f": {text}" if text else ""))
    text = text or f"{program} ended with exit status {status} and said nothing"
    if _NOT_NOW.search(stderr):  # first: it may say as well which connection failed
        return NotNow(text)
    if _UNREACHABLE.search(stderr):
        own = "\n".join(line for line in stderr.splitlines() if _OF_OTHERS not in line)
        sent = _UNREACHABLE.search(own) and not _NOT_SENT.search(own)
        return (Unreachable if sent else NotSent)(f"{program}: {text}")
    policies = _POLICY.findall(stderr)
    if policies and not any(_OF_MANY.search(policy) for policy in policies):
        return Rejected(text)
    if _OVER_LIMIT.search(stderr):
        return OverLimit(text)
    if status in NOT_EXECUTED and _FAILED not in stderr:  # a site's wrapper may end so after what it has wrapped has answered
        return Unreachable(f"{program} could not be started: {text}")
    return Rejected(text)


def tidy(stderr: str) -> str:
    """What a command said, in one line without the name of the command before each part."""
    parts = [re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in stderr.splitlines()]
    return "; ".join(dict.fromkeys(part for part in parts if part))[:2000]


def is_array_refused(stderr: str) -> bool:
    """sbatch refused the size of the array."""
    return "Invalid job array specification" in stderr


def lacks_partition(stderr: str) -> bool:
    """sbatch refused as no partition takes the job: for now, or this job never."""
    return _NO_PARTITION in stderr


def are_nodes_unknown(stderr: str) -> bool:
    """sbatch refused names of nodes."""
    return "Invalid node name specified" in stderr


def lacks_nodes(stderr: str) -> bool:
    """sbatch refused as no node has what is asked, or none is left beside those that are excluded."""
    return "Requested node configuration is not available" in stderr


def only_ended(stderr: str) -> bool:
    """scancel complained of no jobs but those that have ended, and of no silence."""
    lines = [line for line in stderr.splitlines() if _OF_A_JOB.search(line) or _UNREACHABLE.search(line)]
    return bool(lines) and all(_ENDED_ALREADY.search(line) for line in lines)


def read_max_array(config: str) -> int:
    """How many tasks an array may have by what ``scontrol show config`` printed; 0: it does not say."""
    found = [re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE), re.search(r"\bmax_array_tasks=(\d+)", config)]
    return min((max(1, int(limit[1])) for limit in found if limit), default=0)


# ---------------------------------------------------------------- options


def minutes(walltime: float) -> str:
    """A walltime (seconds; 0: unlimited) for ``--time``, which counts in minutes."""
    return str(math.ceil(walltime / 60)) if walltime else "UNLIMITED"


def gres_words(gpus: int, gpu_type: str, gres: str) -> str:
    """What ``--gres`` asks of each node; "": nothing."""
    own = f"gpu:{gpu_type}:{gpus}" if gpu_type else f"gpu:{gpus}"
    return ",".join(part for part in (own if gpus else "", gres) if part)


def directive(line: str) -> str:
    """A user's ``#SBATCH`` line without that word. Raises ValueError for what is none."""
    text = line.strip().removeprefix("#SBATCH").strip()
    if not text.startswith("-") or "\n" in text or "\r" in text:
        raise ValueError(line)
    return text


def one_line(values: Sequence[str]) -> bool:
    """None of these can end a ``#SBATCH`` line."""
    return not any(character in value for value in values for character in "\n\r\0")


def warning_seconds(walltime: float, grace: float) -> int:
    """How long before the end Slurm is to warn a pilot, in seconds; 0: not at all.

    Slurm may be a minute early, which would take too much of a short life; the worker knows its end without it.
    """
    return math.ceil(grace) if grace and (not walltime or walltime >= WARNED_FROM) else 0
