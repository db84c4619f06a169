"""What Slurm says, read right: every answer here was recorded from a real one."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from windlass.errors import OverLimit, Rejected, Unreachable
from windlass.factory import slurm_words as words
from windlass.factory.backend import Cause, JobId, Listed, NotNow, NotSent, PilotRequest, PilotState, Tag
from windlass.factory.slurm import SlurmBackend
from windlass.messages import PoolName, Resources

DATA = Path(__file__).parent / "data" / "slurm"


def recorded(name: str) -> dict[str, Any]:
    """One recorded command: command, exit_code, stdout, stderr."""
    path = DATA / f"{name}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    return next(one for one in json.loads((DATA / "refusals.json").read_text()) if one["name"] == name)


def states(name: str) -> dict[str, PilotState]:
    """The pilots of factory f in a recorded answer, by job."""
    rows = words.read_rows(recorded(name)["stdout"], "windlass")
    return {row.state.job: row.state for row in rows if row.tag == Tag("f", "m")}


def line_of(
    job: str, state: str, reason: str = "None", *, node: str = "", code: str = "0", partition: str = "batch", priority: str = "4294901758"
) -> str:
    """A line of squeue's, of factory f."""
    return "|".join((job, state, reason, node, code, "0", partition, priority, "windlass:f:m:t", "\n"))


def test_the_recorded_answers_are_to_what_is_asked() -> None:
    """The facts below are about the very command that the backend runs."""
    assert recorded("squeue-states")["command"] == " ".join(words.query_words(""))


@pytest.mark.parametrize(
    ("job", "listed", "cause", "exit_status", "reason"),
    [
        ("1_0", Listed.RUNNING, Cause.UNKNOWN, None, ""),
        ("2", Listed.ENDED, Cause.EXIT, 7, "FAILED: exit status 7"),
        ("3", Listed.ENDED, Cause.SIGNAL, None, "FAILED: ended by signal 9"),
        ("4", Listed.ENDED, Cause.EXIT, 0, "COMPLETED"),
        ("5", Listed.ENDED, Cause.CANCELLED, None, "CANCELLED"),
        ("7", Listed.ENDED, Cause.CANCELLED, None, "CANCELLED: JobHeldUser"),
        ("6", Listed.HELD, Cause.UNKNOWN, None, "JobHeldUser: somebody holds it (scontrol release lets it go)"),
        ("8", Listed.HELD, Cause.UNKNOWN, None, "PartitionTimeLimit: its walltime is longer than the partition allows"),
        ("9", Listed.QUEUED, Cause.UNKNOWN, None, "PartitionDown: the partition is down; jobs start when it is up again"),
        (
            "10",
            Listed.HELD,
            Cause.UNKNOWN,
            None,
            "PartitionConfig: the partition has no such nodes, or is not for this account (scontrol show partition says for which)",
        ),
        ("11", Listed.QUEUED, Cause.UNKNOWN, None, "BeginTime"),
        ("12", Listed.ENDED, Cause.NODE, None, "NODE_FAIL: NodeDown"),
        ("13", Listed.ENDING, Cause.UNKNOWN, None, ""),
        ("15", Listed.HELD, Cause.UNKNOWN, None, "launch failed requeued held: its node could not start it; sinfo -R may say why"),
        (
            "16",
            Listed.ENDED,
            Cause.EXIT,
            None,
            "FAILED: JobLaunchFailure: its node could not start it; can it write the log's folder?",
        ),
        ("17", Listed.ENDED, Cause.PREEMPTED, None, "PREEMPTED"),
        ("22", Listed.QUEUED, Cause.UNKNOWN, None, "PartitionDown: the partition is down; jobs start when it is up again"),
    ],
)
def test_each_state_is_read_with_its_cause(job: str, listed: Listed, cause: Cause, exit_status: int | None, reason: str) -> None:
    """Waiting, never starting, running, ending and ended are told apart, and why."""
    state = states("squeue-states")[job]
    assert (state.listed, state.cause, state.exit_status, state.reason) == (listed, cause, exit_status, reason)


@pytest.mark.parametrize(
    ("code", "reason", "cause", "exit_status", "told"),
    [
        ("1280", "NonZeroExitCode", Cause.EXIT, 5, "FAILED: exit status 5"),
        ("5:0", "NonZeroExitCode", Cause.EXIT, 5, "FAILED: exit status 5"),
        ("127:0", "NonZeroExitCode", Cause.EXIT, 127, "FAILED: exit status 127"),
        ("9", "JobLaunchFailure", Cause.SIGNAL, None, "FAILED: ended by signal 9"),
        ("0:9", "RaisedSignal:9(Killed)", Cause.SIGNAL, None, "FAILED: ended by signal 9"),
        (
            "0:53",
            "RaisedSignal:53(Real-time_signal_19)",
            Cause.EXIT,
            None,
            "FAILED: RaisedSignal:53(Real-time_signal_19): its node could not start it; can it write the log's folder?",
        ),
        ("0:53", "None", Cause.EXIT, None, "FAILED: JobLaunchFailure: its node could not start it; can it write the log's folder?"),
        ("a later form", "NonZeroExitCode", Cause.EXIT, None, "FAILED: NonZeroExitCode"),
    ],
)
def test_an_exit_code_is_read_as_older_and_newer_versions_of_slurm_write_it(
    code: str, reason: str, cause: Cause, exit_status: int | None, told: str
) -> None:
    """And who fails is never read as one that ended well, or its place would be filled again and again."""
    [row] = words.read_rows(line_of("7", "FAILED", reason, node="n1", code=code), "windlass")
    assert (row.state.listed, row.state.cause, row.state.exit_status, row.state.reason) == (Listed.ENDED, cause, exit_status, told)


def test_a_requeued_job_is_the_next_start_from_the_moment_it_is_put_back() -> None:
    """Slurm counts restarts, so a pilot's word is known even to a factory that saw nothing of the first start."""
    assert states("squeue-completing")["11"].restart == 1
    assert states("squeue-completing")["11"].listed is Listed.ENDING
    assert states("squeue-states")["11"].restart == 1
    assert states("squeue-states")["1_0"].restart == 0


def test_tasks_of_an_array_and_jobs_of_several_nodes_are_pilots_each() -> None:
    found = states("squeue-completing")
    assert [found[job].ticket for job in ("1_0", "1_1", "1_2")] == ["f-1"] * 3
    assert found["13"].node == "n[3-4]"
    assert found["10"].node == ""


def test_jobs_of_other_factories_and_other_people_are_left_out() -> None:
    """A name with pipes, quotes and commas confuses nothing."""
    rows = words.read_rows(recorded("squeue-states")["stdout"], "windlass")
    assert {row.tag.factory for row in rows} == {"f", "g", "h"}
    assert "pipes" in recorded("squeue-states")["stdout"]
    assert words.read_rows(recorded("squeue-states")["stdout"], "other") == []


def test_jobs_of_hidden_partitions_are_asked_for() -> None:
    """Slurm hides jobs in a hidden partition from the user whose they are."""
    assert "--all" in words.query_words("")


def test_a_job_that_another_cluster_of_a_federation_runs_has_not_vanished() -> None:
    """All that is left of it here is that it was revoked; until it connects, nothing else would tell that it lives. Of several clusters
    that are asked the one that runs it tells."""
    [row] = words.read_rows(line_of("7", "REVOKED"), "windlass")
    assert (row.state.listed, row.state.reason) == (Listed.ELSEWHERE, "another cluster of the federation has it")
    assert words.read_rows(f"CLUSTER: a\n{line_of('7', 'REVOKED')}", "windlass", clusters=True) == []


@pytest.mark.parametrize(
    "reason", ["PartitionTimeLimit", "PartitionConfig", "Job's account not known, so it can't use this partition (closed allows physics)"]
)
def test_a_partition_s_reason_is_no_verdict_when_the_job_may_go_to_several(reason: str) -> None:
    """Slurm shows the reason of the one it looked at last; which partitions a job may go to, a site may say."""
    for partition, listed in (("short,long", Listed.QUEUED), ("short", Listed.HELD)):
        [row] = words.read_rows(line_of("7", "PENDING", reason, partition=partition), "windlass")
        assert row.state.listed is listed
    [row] = words.read_rows(line_of("7", "PENDING", "JobHeldAdmin", partition="short,long"), "windlass")
    assert row.state.listed is Listed.HELD


@pytest.mark.parametrize(
    "reason",
    [
        "None",
        "Priority",
        "Resources",
        "QOSMaxJobsPerUserLimit",
        "AssocGrpCpuLimit",
        "ReqNodeNotAvail, UnavailableNodes:n2",
        "QOSGrpNodeLimit",
    ],
)
def test_what_time_mends_is_waiting(reason: str) -> None:
    assert words.listed_as("PENDING", reason, 0)[0] is Listed.QUEUED


def test_what_is_queued_again_with_the_highest_priority_waits() -> None:
    """Recorded of a job with --requeue=expedite whose node was lost, until that was back (26.05). As a running one it would be ended for
    its silence."""
    lost = line_of("173", "EXPEDITING", "ReqNodeNotAvail, UnavailableNodes:n4", code="0:0")
    [row] = words.read_rows(lost, "windlass")
    assert (row.state.listed, row.state.reason) == (Listed.QUEUED, "ReqNodeNotAvail, UnavailableNodes:n4")
    assert words.listed_as("EXPEDITING", "JobHeldAdmin", 0)[0] is Listed.HELD


@pytest.mark.parametrize(
    "reason", ["QOSMaxWallDurationPerJobLimit", "AssocMaxCpuPerJobLimit", "QOSMinGRES", "BadConstraints", "InvalidQOS"]
)
def test_what_asks_for_too_much_never_starts(reason: str) -> None:
    assert words.listed_as("PENDING", reason, 0)[0] is Listed.HELD


@pytest.mark.parametrize(
    ("reason", "priority", "told"),
    [
        ("user env retrieval failed requeued held", "0", "its node could not load your login environment, which export='NONE' asks for;"),
        ("user_env_retrieval_failed_requeued_held", "0", "its node could not load your login environment, which export='NONE' asks for;"),
        ("JobHoldMaxRequeue", "0", "it was put back too often"),
        ("a later form", "0", "it is held"),
        ("None", "0", "no reason given: it is held"),
        ("a later form", "1", ""),
    ],
)
def test_what_slurm_holds_never_starts_whatever_the_reason(reason: str, priority: str, told: str) -> None:
    """It would be counted as coming for ever: neither started, nor replaced, nor told of."""
    [row] = words.read_rows(line_of("7", "PENDING", reason, priority=priority), "windlass")
    assert row.state.listed is (Listed.HELD if told else Listed.QUEUED)
    assert told in row.state.reason


def test_a_word_that_is_not_known_ends_nothing() -> None:
    """Another version of Slurm may have more states: unknown is not gone."""
    assert words.listed_as("LEVITATING", "None", 0)[0] is Listed.RUNNING


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sbatch-bad-partition", Rejected),
        ("sbatch-bad-constraint", Rejected),
        ("sbatch-bad-gres", Rejected),
        ("sbatch-bad-node", Rejected),
        ("sbatch-bad-reservation", Rejected),
        ("sbatch-bad-mem-syntax", Rejected),
        ("sbatch-bad-time-syntax", Rejected),
        ("sbatch-bad-option", Rejected),
        ("sbatch-bad-directive", Rejected),
        ("sbatch-too-much-mem", Rejected),
        ("sbatch-huge-script", Rejected),
        ("sbatch-array-too-large", Rejected),
        ("enforce-sbatch-group", Rejected),
        ("enforce-sbatch-time-over-max", Rejected),
        ("enforce-sbatch-too-many-cpus", Rejected),
        ("maxjobcount-sbatch", OverLimit),
        ("ctld-down-sbatch", NotSent),
        ("ctld-hung-sbatch", Unreachable),
        ("munge-down-sbatch", NotSent),
        ("conf-missing-sbatch", NotSent),
        ("conf-missing-squeue", NotSent),
        ("conf-none-squeue", NotSent),
        ("conf-unparsable-squeue", NotSent),
        ("squeue-hung", Unreachable),
        ("squeue-down", NotSent),
        ("squeue-munge", NotSent),
        ("ctld-down-scancel", NotSent),
        ("ctld-hung-scancel", Unreachable),
        ("munge-down-scancel", NotSent),
    ],
)
def test_a_failure_is_a_refusal_a_limit_or_silence(name: str, kind: type[Exception]) -> None:
    """Pause, wait for own pilots, or ask again: each text means one of the three. Of a silence some say that nothing was sent."""
    sample = recorded(name)
    assert sample["exit_code"] != 0
    error = words.refusal("sbatch", sample["exit_code"], sample["stderr"])
    assert type(error) is kind, error


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy",
            OverLimit,
        ),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates ...", OverLimit),
        (
            "sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Job violates accounting/QOS policy (job submit limit, ...)",
            Rejected,
        ),
        *(
            (f"sbatch: error: {policy}\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job ...)", kind)
            for policy, kind in (
                ("QOSMinGRES", Rejected),
                ("QOSMinCpuNotSatisfied", Rejected),
                ("QOSGrpGRES", Rejected),
                ("QOSMaxCpuPerUserLimit", Rejected),
                ("QOSMaxMemoryPerUser", Rejected),
                ("AssocGrpCpuLimit", Rejected),
                ("AssocMaxCpuPerNode", Rejected),
                ("QOSGrpSubmitJobsLimit", OverLimit),
                ("AssocGrpSubmitJobsLimit", OverLimit),
                ("AssocMaxJobsLimit", OverLimit),
            )
        ),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)", OverLimit),
        ("sbatch: error: Batch job submission failed: Resource temporarily unavailable", OverLimit),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", Rejected),
        ("", Rejected),
    ],
)
def test_policies_are_limits_unless_no_waiting_mends_them(text: str, kind: type[Exception]) -> None:
    """From Slurm's sources: these need its accounting, which the recorded cluster had not. A group's cores, too, are compared with what the
    one job asks for."""
    assert type(words.refusal("sbatch", 1, text)) is kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", Unreachable),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", NotSent),
        ("Can't run on any of the specified clusters", NotSent),
    ],
)
def test_that_one_of_several_clusters_is_down_says_nothing_of_what_another_was_sent(text: str, kind: type[Exception]) -> None:
    """From Slurm's sources: sbatch asks all of them first. What was sent, and repeated as if it were not, would be there twice."""
    down = "sbatch: error: Problem with submit to cluster b: Unable to contact slurm controller (connect failure)\n"
    assert type(words.refusal("sbatch", 1, f"{down}sbatch: error: {text}\n")) is kind


@pytest.mark.parametrize(
    "text",
    [
        "Batch job submission failed: Required partition not available (inactive or drain)",
        "'b' can't be reached now, or it is an invalid entry for --cluster.  Use 'sacctmgr list clusters' to see available clusters.",
        "No clusters can be reached now. Contact your admin to resolve the problem.",
        "There is a problem talking to the database: Connection refused.  Only local cluster communication is available, remove --cluster",
        "Batch job submission failed: Incompatible versions of client and server code",
        "Batch job submission failed: I/O error writing script/environment to file",
    ],
)
def test_what_a_site_does_for_a_while_is_no_refusal_for_good(text: str) -> None:
    """From Slurm's sources. A pool would be paused for it, and its calls end."""
    assert type(words.refusal("sbatch", 1, f"sbatch: error: {text}\n")) is NotNow


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Batch job submission failed: Invalid account or account/partition combination specified", Rejected),
        ("Batch job submission failed: Required partition not available (inactive or drain)", NotNow),
        ("Batch job submission failed: Resource temporarily unavailable", OverLimit),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", NotSent),
        ("error while loading shared libraries: libslurmfull.so: cannot open shared object file", Unreachable),
    ],
)
def test_what_slurm_has_refused_is_refused_though_a_wrapper_ends_in_another_way(text: str, kind: type[Exception]) -> None:
    """As where a wrapper's last command is not there: the refusal would be taken for an sbatch that could not be started."""
    assert type(words.refusal("sbatch", 127, f"sbatch: error: {text}\nsbatch: line 3: log_it: command not found\n")) is kind


def test_a_refusal_says_what_slurm_said_in_one_line() -> None:
    sample = recorded("sbatch-bad-partition")
    text = str(words.refusal("sbatch", 1, sample["stderr"]))
    assert text == "invalid partition specified: nosuch; Batch job submission failed: Invalid partition name specified"
    assert str(words.refusal("sbatch", 3, "")) == "sbatch ended with exit status 3 and said nothing"
    assert str(words.refusal("squeue", None, "")) == "squeue gave no answer in time"


def test_ids_are_read_from_what_sbatch_prints() -> None:
    """A site's own words may stand before the id; without one a job may have been made all the same."""
    assert words.task_ids(recorded("sbatch-parsable")["stdout"], 1, False, False) == ["2"]
    assert words.task_ids(recorded("sbatch-array")["stdout"], 3, True, False) == ["22_0", "22_1", "22_2"]
    assert words.task_ids("17;east\n", 2, True, True) == ["17_0@east", "17_1@east"]
    assert words.task_ids("17;east\n", 1, False, False) == ["17"]
    assert words.task_ids("Welcome!\n18\n", 1, False, False) == ["18"]
    assert words.task_ids("Submitted batch job 19\n", 2, True, False) == ["19_0", "19_1"]
    assert words.task_ids("Submitted batch job 20 on cluster east\n", 1, False, True) == ["20@east"]
    with pytest.raises(Unreachable, match="printed no job id"):
        words.task_ids("all is well", 1, False, False)
    with pytest.raises(Unreachable, match="did not say which cluster has job 17"):
        words.task_ids("17\n", 1, False, True)


def test_cancelling_names_each_array_once_and_each_cluster_apart() -> None:
    jobs = [JobId(job) for job in ("5_0", "5_2", "6", "5_0", "7_1@east", "8@east")]
    assert words.cancel_words(jobs) == [("scancel", "5_[0,2]", "6"), ("scancel", "--clusters=east", "7_[1]", "8")]
    assert words.cancel_words([]) == []


def test_cancelling_many_goes_in_batches() -> None:
    """One scancel of thousands runs into time limits."""
    commands = words.cancel_words([JobId(str(number)) for number in range(450)])
    assert [len(command) - 1 for command in commands] == [200, 200, 50]


def test_jobs_that_have_ended_are_no_error_of_scancel() -> None:
    assert recorded("scancel-many")["exit_code"] == 0
    assert words.only_ended(recorded("scancel-tag-me")["stderr"])
    assert words.only_ended(NOISE + recorded("scancel-tag-me")["stderr"])
    assert not words.only_ended(recorded("scancel-other-user")["stderr"])
    assert not words.only_ended("")
    assert not words.only_ended(NOISE)
    silence = "scancel: error: Unable to contact slurm controller (connect failure)\n"
    assert not words.only_ended(recorded("scancel-tag-me")["stderr"] + silence)


def test_a_name_carries_the_tag_and_the_ticket_there_and_back() -> None:
    tag = Tag("night-shift", "m17-ab12")
    name = words.job_name("windlass", tag, "night-shift-ab-3")
    assert words.read_name("windlass", name) == (tag, "night-shift-ab-3")
    assert words.read_name("other", name) is None
    assert words.read_name("windlass", "windlass") is None
    assert words.job_name("windlass", Tag("a:b", "c"), "t") == "windlass:a_b:c:t"


def test_answers_of_several_clusters_are_told_apart() -> None:
    """Each cluster's jobs stand below its name, and ids are unique only within one."""
    line = recorded("squeue-states")["stdout"].splitlines()[1]
    answer = f"CLUSTER: east\n{line}\n\nCLUSTER: west\n{line}\n"
    rows = words.read_rows(answer, "windlass", clusters=True)
    number = line.split("|")[0].strip()
    assert [row.state.job for row in rows] == [f"{number}@east", f"{number}@west"]
    assert words.split_job(rows[0].state.job) == (number, "east")


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "UNLIMITED"), (1.0, "1"), (60.0, "1"), (61.0, "2"), (7200.0, "120")])
def test_walltimes_are_whole_minutes_rounded_up(seconds: float, text: str) -> None:
    assert words.minutes(seconds) == text


def test_gpus_and_other_resources_make_one_request() -> None:
    assert words.gres_words(0, "a100", "") == ""
    assert words.gres_words(2, "", "") == "gpu:2"
    assert words.gres_words(2, "a100", "tmp:10G") == "gpu:a100:2,tmp:10G"


def test_short_lives_get_no_warning_that_may_be_a_minute_early() -> None:
    assert words.warning_seconds(3600.0, 30.0) == 30
    assert words.warning_seconds(0.0, 30.0) == 30
    assert words.warning_seconds(300.0, 30.0) == 0
    assert words.warning_seconds(3600.0, 0.0) == 0


def test_the_size_of_arrays_is_read_from_the_configuration() -> None:
    config = recorded("scontrol-config-max")["stdout"]
    assert words.read_max_array(config) == 1001
    assert words.read_max_array(f"{config}\nSchedulerParameters     = defer,max_array_tasks=10\n") == 10
    assert words.read_max_array("") == 0


NOISE = "squeue: error: Ignoring obsolete FastSchedule=1 option. Please remove from your configuration.\n"


def test_an_answer_is_whole_by_its_header_whatever_is_said_beside_it() -> None:
    """At some sites each command complains of the configuration: no pilots would ever be submitted there."""
    answer = recorded("squeue-states")["stdout"]
    header = answer.splitlines()[0]
    assert words.is_whole(answer, "", NOISE)
    assert words.is_whole(header, "", "")  # there are no jobs
    assert not words.is_whole("", "", NOISE)
    assert not words.is_whole(answer.partition("\n")[2], "", "")
    short = re.sub(r"^((?:[^|]*\|){4})[^|]*\|", r"\1", answer, flags=re.MULTILINE)
    assert not words.is_whole(short, "", "squeue: error: Invalid job format specification: exit_code\n")
    assert not words.is_whole(header, "", "squeue: error: Invalid user: 1000\n")


def test_of_several_clusters_each_has_to_be_there() -> None:
    """One that nobody reaches is left out, with the exit status 0."""
    assert "--clusters=a,b" in words.query_words("a,b")
    header = recorded("squeue-states")["stdout"].splitlines()[0]
    one, both = f"CLUSTER: a\n{header}\n", f"CLUSTER: a\n{header}\n\nCLUSTER: b\n{header}\n"
    away = "squeue: error: 'b' can't be reached now, or it is an invalid entry for --cluster.  Use 'sacctmgr list clusters' to see ...\n"
    assert words.is_whole(both, "a,B", NOISE)
    assert not words.is_whole(one, "a,b", away)
    assert not words.is_whole(one, "a,b", "")
    assert words.is_whole(both, "all", "")
    assert not words.is_whole(one, "all", away)
    assert words.is_whole(both, "c[1-2]", "")  # Slurm knows what that means
    assert not words.is_whole(one, "c[1-2]", away)


def have_slurm_say(words: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Slurm's commands fail with these words of the shell's."""
    for name in ("sbatch", "squeue", "scancel"):
        (folder / name).write_text(f'#!/bin/sh\necho "{words}" >&2\nexit 1\n')
        (folder / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_commands_have_the_token_of_their_user_and_pilots_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Slurm knows users by tokens instead of munge, none of its commands works without; sbatch would hand it on to jobs."""
    have_slurm_say("token $SLURM_JWT job$SLURM_JOB_ID", monkeypatch, tmp_path)
    monkeypatch.setenv("SLURM_JWT", "eyJ")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    backend = SlurmBackend()
    with pytest.raises(Unreachable, match=r"token eyJ job(\n|$)"):
        backend.query()
    request = PilotRequest(ticket="t", pool=PoolName("p"), command=("worker",), resources=Resources())
    script = backend.describe(request, 1)
    assert script.index("unset SLURM_JWT") < script.index("exec worker")
    assert "eyJ" not in script


def test_workers_of_several_nodes_are_started_as_no_parallel_program() -> None:
    """Open MPI takes a process with a step's number for a task of it, and Slurm's own part in MPI is a site's default."""
    request = PilotRequest(ticket="t", pool=PoolName("p"), command=("worker", "a b"), resources=Resources(), nodes=2)
    script = SlurmBackend().describe(request, 1)
    assert " --mpi=none " in script
    start = shlex.split(script[script.index("exec srun") : script.index("END OF SCRIPT", 200)])[-1]
    worker = start.replace("exec worker", "env; echo")
    env = {"SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "WINDLASS_PILOT": "17", "SLURM_NODEID": "1"}
    env |= {"SLURM_OVERLAP": "1", "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_MEM_BIND": "none"}
    env |= {"SLURMD_NODENAME": "n2", "SLURM_CPUS_ON_NODE": "8", "SLURM_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "17"}
    ran = subprocess.run(["/bin/sh", "-c", worker], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("a b --pilot 17\n")
    told = {line.partition("=")[0]: line.partition("=")[2] for line in ran.stdout.splitlines() if line.startswith("SLURM")}
    assert told == {
        "SLURM_JOB_ID": "17",
        "SLURMD_NODENAME": "n2",
        "SLURM_NODELIST": "n2",
        "SLURM_JOB_NODELIST": "n2",
        "SLURM_NNODES": "1",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_TASKS_PER_NODE": "8",
        "SLURM_CPUS_ON_NODE": "8",
        "SLURM_JOB_CPUS_PER_NODE": "8",
    }


def test_workers_of_several_nodes_have_what_setup_and_env_say(tmp_path: Path) -> None:
    """A shell that reads a profile once more, on each node, undoes what setup= has done; and env= may mean what srun sets as well."""
    (tmp_path / ".profile").write_text("PATH=/nowhere\n")
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("srun", 'while [ "${1#--}" != "$1" ]; do shift; done; exec env SLURM_MPI_TYPE=none SLURM_PROCID=1 "$@"'),
        ("worker", "env"),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o700)
    setup = (f"PATH={tmp_path}/bin:/usr/bin:/bin", "export PATH")
    own = (("SLURM_MPI_TYPE", "it's pmix"),)
    request = PilotRequest(
        ticket="t", pool=PoolName("p"), command=("worker",), resources=Resources(), nodes=2, setup=setup, env=own, shell="/bin/bash -l"
    )
    script = "\n".join(SlurmBackend().describe(request, 1).splitlines()[1:-1])
    env = {"HOME": str(tmp_path), "SLURM_JOB_ID": "17", "PATH": os.environ["PATH"]}
    ran = subprocess.run(["/bin/bash", "-l"], input=script, env=env, capture_output=True, text=True, check=True)
    assert "SLURM_MPI_TYPE=it's pmix\n" in ran.stdout
    assert f"PATH={tmp_path}/bin:/usr/bin:/bin\n" in ran.stdout
    assert "SLURM_PROCID" not in ran.stdout


def test_commands_know_where_slurm_authenticates_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a machine of several clusters that is no default. On a node the path may be nothing; one that is there is the node's own."""
    have_slurm_say("socket $SLURM_SACK_SOCKET.", monkeypatch, tmp_path)
    monkeypatch.setenv("SLURM_SACK_SOCKET", "/run/slurm-a/sack.socket")
    backend = SlurmBackend()
    with pytest.raises(Unreachable, match=r"socket /run/slurm-a/sack\.socket\."):
        backend.query()
    command = ("sh", "-c", "echo ${SLURM_SACK_SOCKET:-none}")
    request = PilotRequest(ticket="t", pool=PoolName("p"), command=command, resources=Resources())
    script = backend.describe(request, 1).partition("\n")[2].rpartition("\nEND OF SCRIPT")[0]
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "s"))
        for path, seen in (("/run/slurm-a/sack.socket", "none"), (str(tmp_path / "s"), str(tmp_path / "s"))):
            env = {"SLURM_JOB_ID": "17", "SLURM_SACK_SOCKET": path, "PATH": os.environ["PATH"]}
            assert subprocess.run(["/bin/sh", "-c", script], env=env, capture_output=True, text=True, check=True).stdout == f"{seen}\n"


def test_pilots_that_take_the_environment_of_who_submits_them_get_its_language(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With ``export="ALL"`` sbatch hands its own on: English is for what is read."""
    have_slurm_say("in $LANG or $LC_ALL.", monkeypatch, tmp_path)
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    backend = SlurmBackend(export="ALL")
    with pytest.raises(Unreachable, match=r"in C.UTF-8 or C\."):
        backend.query()
    request = PilotRequest(ticket="t", pool=PoolName("p"), command=("worker",), resources=Resources())
    with pytest.raises(Rejected, match=r"in C.UTF-8 or \."):
        backend.submit(request, 1)
