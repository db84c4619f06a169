"""HTCondor's words, against ads that a real pool gave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from windlass.errors import OverLimit, Rejected, Unreachable, UsageError
from windlass.factory.backend import Cause, JobId, Listed, NotNow, NotSent, PilotRequest, Tag
from windlass.factory.htcondor_options import OWN_COMMANDS, checked_attributes, checked_directives, doubtful_directives
from windlass.factory.htcondor_words import (
    Incarnation,
    SubmitOptions,
    Uploads,
    constraint_of,
    constraint_of_jobs,
    description,
    fitting,
    history_state,
    incarnation,
    literal,
    only_avoided,
    periodic_remove,
    queue_state,
    refusal,
    submit_error,
    submit_words,
)
from windlass.messages import PoolName, Resources

#: Recorded on a real pool (25.14): label, by which call it came, the ad.
SAMPLES = [json.loads(line) for line in (Path(__file__).parent / "data" / "htcondor" / "samples.jsonl").read_text().splitlines()]

Ad = dict[str, Any]

#: What keeps a job away from a node, for an hour.
NOT_N1 = '((TARGET.Machine == "n1" || substr(TARGET.Machine, 0, 3) == "n1.") =!= true || time() - QDate > 3600)'


def sample(label: str) -> Ad:
    """The first recorded ad of this label."""
    return dict(next(one["ad"] for one in SAMPLES if one["label"] == label))


# ---------------------------------------------------------------- ads


def test_every_recorded_ad_is_read() -> None:
    """As what it is labelled, and none is lost."""
    expected = {
        "just submitted": Listed.QUEUED,
        "running": Listed.RUNNING,
        "after remove": Listed.ENDED,
        "held": Listed.HELD,
        "held by user": Listed.HELD,
        "finished": Listed.ENDED,
        "idle": Listed.QUEUED,
        "released": Listed.RUNNING,
        "vacated while running": Listed.QUEUED,
    }
    read = 0
    for one in SAMPLES:
        if one["via"] in ("query", "history"):
            state = (queue_state if one["via"] == "query" else history_state)(one["ad"])
            assert state is not None
            assert state.listed is expected[one["label"].rpartition(": ")[2]], one["label"]
            assert state.job == f"{one['ad']['ClusterId']}.{one['ad']['ProcId']}"
            read += 1
    assert read == 19


def test_a_running_job_tells_its_node() -> None:
    state = queue_state(sample("running"))
    assert state is not None
    assert (state.job, state.node, state.restart, state.reason) == ("28.1", "vm", 0, "")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (
            "missing executable: held",
            "Error from slot1_1@vm: Failed to execute '/nonexistent/pilot' with arguments 20: (errno=2: 'No such file or directory')"
            " (hold code 6/2)",
        ),
        (
            "missing input: held",
            "Transfer input files failure at access point vm while sending files to execution point slot1_2@vm. Details: 1 total failures:"
            " first failure: reading from file /nonexistent/file: (errno 2) No such file or directory (hold code 13/2)",
        ),
        ("held by user", "testing (by user alice) (hold code 1/3)"),
    ],
)
def test_a_held_job_says_why_with_its_codes(label: str, reason: str) -> None:
    state = queue_state(sample(label))
    assert state is not None
    assert (state.listed, state.reason, state.node) == (Listed.HELD, reason, "vm")


@pytest.mark.parametrize(
    ("changes", "listed"),
    [
        ({}, Listed.RUNNING),
        ({"TransferringInput": True}, Listed.QUEUED),
        ({"TransferringInput": True, "JobCurrentStartExecutingDate": 5}, Listed.QUEUED),  # of an earlier start
        ({"TransferringInput": True, "JobCurrentStartExecutingDate": 1795339900}, Listed.RUNNING),
        ({"TransferringInput": False}, Listed.RUNNING),
    ],
)
def test_a_job_whose_input_is_on_its_way_does_not_run_yet(changes: Ad, listed: Listed) -> None:
    """Its pilot cannot connect, and would be ended for that after some minutes."""
    state = queue_state(sample("running") | changes)
    assert state is not None
    assert state.listed is listed


def test_a_job_whose_input_hangs_is_not_waited_for_for_ever() -> None:
    """Its pilot counts as running then, and so as one that does not connect."""
    ad = sample("running") | {"TransferringInput": True}
    started = ad["JobCurrentStartDate"]
    states = [queue_state(ad, None, started + hours * 3600.0) for hours in (5, 7)]
    assert [state.listed for state in states if state] == [Listed.QUEUED, Listed.RUNNING]


def test_a_job_whose_input_is_being_uploaded_is_held_and_yet_coming() -> None:
    """``spool=True`` submits jobs on hold, and HTCondor releases them."""
    state = queue_state(sample("held by user") | {"HoldReasonCode": 16, "HoldReason": "Spooling input data files"})
    assert state is not None
    assert (state.listed, state.reason) == (Listed.QUEUED, "Spooling input data files")


def test_what_no_machine_has_is_told_apart_from_waiting() -> None:
    waiting, impossible = queue_state(sample("impossible memory: just submitted")), queue_state(sample("impossible memory: idle"))
    assert waiting is not None
    assert impossible is not None
    assert (waiting.reason, impossible.reason) == ("", "no match found")


@pytest.mark.parametrize(
    ("label", "changes", "end"),
    [
        ("exit 7: finished", {}, (Cause.EXIT, 2, "exit status 2")),  # as recorded: a shell that could not read its script
        ("exit 7: finished", {"ExitBySignal": True, "ExitSignal": 9}, (Cause.SIGNAL, None, "ended by signal 9")),
        ("exit 7: finished", {"ExitCode": None}, (Cause.UNKNOWN, None, "ended, and HTCondor does not say how")),
        # The ad of a removed job says ExitSignal 15, which is not how the pilot ended.
        ("after remove", {}, (Cause.CANCELLED, None, "scale down (by user alice)")),
        (
            "after remove",
            {"RemoveReason": "The job attribute PeriodicRemove expression 'x' evaluated to TRUE"},
            (Cause.WALLTIME, None, "The job attribute PeriodicRemove expression 'x' evaluated to TRUE"),
        ),
        (
            "after remove",
            {
                "RemoveReason": "The job attribute PeriodicRemove expression 'x' evaluated to TRUE",
                # As a removal leaves them; a pilot that ran again since then was not held.
                "LastJobStatus": 5,
                "LastHoldReasonCode": 34,
                "LastHoldReason": "memory",
            },
            (Cause.UNKNOWN, None, "memory (hold code 34): The job attribute PeriodicRemove expression 'x' evaluated to TRUE"),
        ),
        (
            "after remove",
            {"RemoveReason": "The system macro SYSTEM_PERIODIC_REMOVE expression 'x' evaluated to TRUE"},
            (Cause.UNKNOWN, None, "The system macro SYSTEM_PERIODIC_REMOVE expression 'x' evaluated to TRUE"),
        ),
    ],
)
def test_the_history_tells_how_a_job_ended(label: str, changes: Ad, end: tuple[Cause, int | None, str]) -> None:
    state = history_state(sample(label) | changes)
    assert state is not None
    assert (state.cause, state.exit_status, state.reason) == end


def test_a_removed_job_whose_shadow_is_out_has_not_ended() -> None:
    state = queue_state(sample("after remove") | {"JobStatus": 3})
    assert state is not None
    assert state.listed is Listed.ENDING


@pytest.mark.parametrize(("status", "listed"), [(6, Listed.ENDING), (7, Listed.RUNNING), (4, Listed.ENDED), (99, Listed.ENDING)])
def test_the_other_states_of_a_job(status: int, listed: Listed) -> None:
    state = queue_state(sample("running") | {"JobStatus": status})
    assert state is not None
    assert state.listed is listed


@pytest.mark.parametrize(
    "ad",
    [
        {},
        {"ClusterId": 1, "ProcId": 0},
        {"ClusterId": "1", "ProcId": 0, "JobStatus": 1},
        {"ClusterId": 1, "ProcId": -1, "JobStatus": 1},
        {"ClusterId": True, "ProcId": 0, "JobStatus": 1},
        {"ClusterId": 1, "ProcId": 0, "JobStatus": [1]},
    ],
)
def test_what_is_no_ad_of_a_job_is_left_out(ad: Ad) -> None:
    assert queue_state(ad) is None


def test_values_of_wrong_types_are_as_if_they_were_not_there() -> None:
    """``request_memory = banana`` is accepted, and what is an error in an expression can have any type."""
    wrong: Ad = {"NumShadowStarts": "many", "RemoteHost": 7, "HoldReason": ["x"], "HoldReasonCode": 1e300, "WindlassTicket": None}
    state = queue_state(sample("held by user") | wrong | {"LastRemoteHost": 3.0, "HoldReasonSubCode": float("nan")})
    assert state is not None
    assert (state.restart, state.node, state.ticket, state.reason) == (0, "", "", "held, and HTCondor does not say why")


# ---------------------------------------------------------------- restarts


def test_restarts_count_starts_of_the_job() -> None:
    """Waiting is about the start to come, all else about the newest one."""
    told = {"held by user": 0, "released": 1, "vacated while running": 2}
    for label, restart in told.items():
        state = queue_state(sample(label))
        assert state is not None
        assert state.restart == restart, label
    assert queue_state(sample("vacated while running") | {"LastRejMatchReason": "no match found"}).reason == (  # type: ignore[union-attr]
        "Job vacated by schedd; no match found"
    )
    assert queue_state(sample("vacated while running")).reason == "Job vacated by schedd"  # type: ignore[union-attr]


#: A running pilot before and after its schedd was killed, then vacated, then running again; recorded on a real pool.
BEFORE = {"JobStatus": 2, "NumShadowStarts": 2, "JobCurrentStartDate": 1795356255, "ShadowBday": 1795356255}
RECONNECTED = {"JobStatus": 2, "NumShadowStarts": 3, "JobCurrentStartDate": 1795356255, "ShadowBday": 1795356266}
VACATED = {"JobStatus": 1, "NumShadowStarts": 3, "NumJobReconnects": 1, "JobCurrentStartDate": 1795356255, "ShadowBday": 1795356266}
AGAIN = {"JobStatus": 2, "NumShadowStarts": 4, "NumJobReconnects": 1, "JobCurrentStartDate": 1795356320, "ShadowBday": 1795356320}


def test_a_reconnection_after_a_restart_of_the_schedd_is_no_restart_of_the_pilot() -> None:
    """The queue counts the new shadow as a start at once, and the reconnection only minutes later."""
    known: Incarnation | None = None
    restarts: list[int] = []
    for ad in (BEFORE, RECONNECTED, VACATED, AGAIN):
        known = incarnation(ad, known)
        restarts.append(known.restart)
    assert restarts == [1, 1, 2, 2]


def test_a_factory_that_did_not_see_the_start_counts_the_same() -> None:
    assert [incarnation(ad, None).restart for ad in (BEFORE, RECONNECTED, VACATED, AGAIN)] == [1, 1, 2, 2]


def test_a_pilot_that_was_held_while_it_waited_is_not_taken_for_the_one_before() -> None:
    waiting = incarnation(VACATED, None)
    assert incarnation(VACATED | {"JobStatus": 5}, waiting).restart == waiting.restart == 2


def test_the_end_of_a_job_is_the_end_of_its_newest_start() -> None:
    ad = {"ClusterId": 1, "ProcId": 0, **RECONNECTED, "JobStatus": 3, "RemoveReason": "x"}
    assert history_state(ad, Incarnation(4, 7)).restart == 4  # type: ignore[union-attr]


# ---------------------------------------------------------------- counts and errors


def test_recorded_counts_of_an_action_are_taken_for_done() -> None:
    assert refusal(sample("act Remove with a reason"), "removal") == ""


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"TotalPermissionDenied": "2", "TotalSuccess": "0"}, "removal: 2 denied, 0 done"),
        ({"TotalError": 1, "TotalPermissionDenied": 1}, "removal: 1 denied, 1 in error, 2 done"),
        ({"TotalNotFound": "2", "TotalSuccess": "0"}, ""),
        ({"TotalAlreadyDone": "2", "TotalBadStatus": "1", "TotalSuccess": "0"}, ""),
        ({"TotalSuccess": None}, "the schedd's answer to 'removal' lacks TotalSuccess"),
        ({"TotalError": "many"}, "the schedd's answer to 'removal' lacks TotalError"),
    ],
)
def test_counts_of_an_action_tell_what_was_not_done(changes: Ad, text: str) -> None:
    assert refusal(sample("act Remove with a reason") | changes, "removal") == text


UPLOAD = "DCSchedd::spoolJobFiles:7002:File transfer failed for target job 22.0: "


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((one["ad"]["text"], Rejected) for one in SAMPLES if one["via"] == "exception" and one["label"].startswith("bad submit")),
        ("Failed to create a cluster ad, errmsg=x", Rejected),
        ("Unable to commit transaction, SCHEDD:1:Submit requirement NeedsAccount is not met", Rejected),
        # The helper has removed what lacks its files.
        (f"{UPLOAD}TOOL at A failed to send file(s) to B: |Error: reading from file /a b: (errno 2) No such file or directory", Rejected),
        (f"{UPLOAD}TOOL at A failed to send file(s) to B: error reading from /a: (errno 13) Permission denied; SCHEDD ...", Rejected),
        ("DCSchedd::spoolJobFiles:7001:File transfer initialization failed for target job 22.0", Rejected),
        (f"{UPLOAD}TOOL at A failed to send file(s) to B: reading from file /a: (errno 116) Stale file handle", NotNow),
        (f"{UPLOAD}TOOL at A failed to send file(s) to B; SCHEDD at C failed to write to file /a: (errno 28) No space left", NotNow),
        (UPLOAD, NotNow),
        ("DCSchedd::spoolJobFiles:6001:Failed to connect to schedd (<127.0.0.1:1>)", NotNow),
        ("Unable to commit transaction, ", Unreachable),
        ("Failed to create new cluster.SCHEDD:22:MAX_JOBS_SUBMITTED exceeded. Current=10, Limit=10", OverLimit),
        ("expected next ProcId to be 3, but Schedd says -3", OverLimit),
        ("expected next ProcId to be 0, but Schedd says -4", OverLimit),
        ("expected next ProcId to be 0, but Schedd says -6", Rejected),
        ("expected next ProcId to be 0, but Schedd says -1", Unreachable),
        ("Failed to create new cluster.", Unreachable),
        ("Failed to connect to schedd, errmsg=CEDAR:6001:Failed to connect to <127.0.0.1:35275>", NotSent),
        ("there is no schedd absent; condor_status -schedd lists those that are there", NotSent),
        ("Failed to send Cluster Ad", Unreachable),
        ("", Unreachable),
    ],
)
def test_errors_of_a_submission_are_told_apart(text: str, kind: type[Exception]) -> None:
    """Only what the schedd, or the submit language, has said no to is refused; silence may have submitted."""
    assert type(submit_error(text)) is kind


def test_a_limit_on_jobs_is_told_by_its_name() -> None:
    """The schedd gives a number, of which nobody would know what it means, nor whom to ask for more."""
    told = str(submit_error("expected next ProcId to be 0, but Schedd says -3"))
    assert told == ("the schedd takes no more jobs, by its setting MAX_JOBS_PER_OWNER (expected next ProcId to be 0, but Schedd says -3)")
    assert str(submit_error("MAX_JOBS_SUBMITTED exceeded")) == "MAX_JOBS_SUBMITTED exceeded"


# ---------------------------------------------------------------- submit descriptions


def words(options: SubmitOptions | None = None, inputs: tuple[str, ...] = (), folder: str = "/logs", **changes: Any) -> dict[str, str]:
    request = replace(PilotRequest(ticket="f-1", pool=PoolName("p"), command=("python",), resources=Resources(4.0)), **changes)
    return submit_words(
        request, Tag("f", "m"), "alice", script=f"{folder}/f-1.sh", folder=folder, inputs=inputs, options=options or SubmitOptions()
    )


def test_the_submit_description_is_what_it_was_when_somebody_last_read_it() -> None:
    given = words(resources=Resources(3.5, 5 << 30, 2), walltime=3600.0, grace=20.0, avoid=("n1",))
    assert description(given, 5) == (
        "universe = vanilla\n"
        "executable = /logs/f-1.sh\n"
        'environment = "WINDLASS_JOB=$(ClusterId).$(ProcId)"\n'
        "initialdir = /logs\n"
        "output = /logs/$(ClusterId).$(ProcId).log\n"
        "error = /logs/$(ClusterId).$(ProcId).log\n"
        "batch_name = windlass-f\n"
        "request_cpus = 4\n"
        "request_memory = 5120\n"
        "request_gpus = 2\n"
        "should_transfer_files = IF_NEEDED\n"
        "when_to_transfer_output = ON_EXIT\n"
        'transfer_output_files = ""\n'
        f"requirements = {NOT_N1}\n"
        "kill_sig = SIGTERM\n"
        "job_max_vacate_time = 20\n"
        "want_graceful_removal = true\n"
        "periodic_remove = (JobStatus == 5 && HoldReasonCode =!= 16 && time() - EnteredCurrentStatus > 3600)"
        " || (JobStatus == 5 && time() - EnteredCurrentStatus > 86400)"
        " || (JobStatus == 2 && time() - JobCurrentStartDate > 3900"
        " && (((JobCurrentStartExecutingDate >= JobCurrentStartDate) =?= true && time() - JobCurrentStartExecutingDate > 3900)"
        " || time() - JobCurrentStartDate > 90300))\n"
        "leave_in_queue = false\n"
        'My.WindlassFactory = "f"\n'
        'My.WindlassUser = "alice"\n'
        'My.WindlassManager = "m"\n'
        'My.WindlassTicket = "f-1"\n'
        'My.WindlassPool = "p"\n'
        "queue 5\n"
    )


def test_the_options_of_the_pool_come_in() -> None:
    options = SubmitOptions(
        requirements="HasCVMFS || Site == 1",
        attributes=(("ProjectName", 'a "b" \\ c'), ("Nice", True), ("Weight", 2)),
        directives=(("accounting_group", "physics"), ("+Old", "3"), ("transfer_input_files", "/x, /y")),
        container_image="docker://python:3.11",
        disk=3000,
        shared_files=False,
    )
    given = words(options, ("/m/pilot.json",), avoid=("n1",))
    assert given["requirements"] == f"(HasCVMFS || Site == 1) && {NOT_N1}"
    assert (given["My.ProjectName"], given["My.Nice"], given["My.Weight"]) == ('"a \\"b\\" \\ c"', "true", "2")
    assert (given["accounting_group"], given["+Old"]) == ("physics", "3")
    assert (given["universe"], given["container_image"], given["request_disk"]) == ("container", "docker://python:3.11", "3")
    assert (given["should_transfer_files"], given["transfer_input_files"]) == ("YES", "/m/pilot.json, /x, /y")


def test_a_dollar_means_nothing_in_a_path_or_a_value() -> None:
    given = words(SubmitOptions(attributes=(("A", "$(x) $y"),)), ("/in $(z)",), folder="/a $(Name)")
    assert given["initialdir"] == "/a $(DOLLAR)(Name)"
    assert given["output"] == "/a $(DOLLAR)(Name)/$(ClusterId).$(ProcId).log"
    assert given["transfer_input_files"] == "/in $(DOLLAR)(z)"
    assert given["My.A"] == '"$(DOLLAR)(x) $(DOLLAR)y"'


def test_what_the_submit_language_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="has several lines"):
        words(folder="/a\nqueue 100")
    with pytest.raises(UsageError, match=r"has '\$\$', which no submit description can hold"):
        words(folder="/a $$(Name)")
    with pytest.raises(UsageError, match="has a comma"):
        words(inputs=("/a,b",))
    with pytest.raises(UsageError, match="is no value for an attribute of a job"):
        literal(None)
    for text in ("a\\", 'a\\"b'):
        with pytest.raises(UsageError, match="has a backslash at its end or before a quote, which HTCondor cannot read"):
            literal(text)


def test_a_pilot_without_walltime_is_removed_only_when_it_is_held() -> None:
    assert "JobCurrentStartDate" not in periodic_remove(0)
    assert "JobStatus == 5" in periodic_remove(0)


@pytest.mark.parametrize(
    ("count", "size", "at_once", "seconds"), [(32, 0, 32, 0.0), (32, 20 << 20, 3, 60.0), (32, 512 << 20, 1, 512.0), (2, 1 << 20, 2, 2.0)]
)
def test_uploads_go_in_parts_that_there_is_time_for(count: int, size: int, at_once: int, seconds: float) -> None:
    """All that is asked of the schedd meanwhile waits for them."""
    assert Uploads().part(count, size) == (at_once, seconds)


def test_where_uploads_are_quick_the_parts_grow() -> None:
    """Pilots with 70 MB each would be submitted one by one, and there may be 24 submissions in ten minutes."""
    uploads, counts = Uploads(), list[int]()
    for _ in range(7):
        count, _ = uploads.part(32, 70 << 20)
        counts.append(count)
        uploads.done(count * (70 << 20), 9.0)
    assert counts == [1, 1, 3, 7, 14, 14, 14]
    uploads.done(14 * (70 << 20), 60.0)
    uploads.done(4096, 0.1)
    assert uploads.part(32, 70 << 20)[0] == 14
    uploads.cut_off(1010.0)
    assert uploads.part(32, 70 << 20)[0] == 1


def test_an_upload_that_is_cut_off_gets_there_at_last() -> None:
    """Also over a slow line, and when not all of the files are known: it would be begun anew day and night."""
    uploads, times = Uploads(), list[float]()
    for _ in range(12):
        _, seconds = uploads.part(1, 0)
        times.append(seconds)
        uploads.cut_off(30.0 + seconds)
    assert times[:4] == [0.0, 60.0, 180.0, 420.0]
    assert times[-1] == 14_400.0
    uploads.done(0, 100.0)
    assert uploads.part(1, 0) == (1, 200.0)


def test_directives_are_read_as_people_write_them() -> None:
    expected = (("accounting_group", "a"), ("+Project", '"b = c"'))
    assert checked_directives({"Accounting_Group": "a", "+Project": '"b = c"'}) == expected
    assert checked_directives('accounting_group = a\n\n+Project = "b = c"\n') == expected
    assert checked_directives(["accounting_group=a", '+Project="b = c"']) == expected


def test_each_command_that_windlass_writes_is_refused_as_a_directive() -> None:
    for name in {*words(SubmitOptions(container_image="x", disk=1, requirements="x"), resources=Resources(1, 1 << 30, 1)), "queue"}:
        if not name.startswith("My.") and name not in ("kill_sig", "want_graceful_removal"):
            assert name in OWN_COMMANDS, name
            with pytest.raises(UsageError, match="which Windlass writes itself"):
                checked_directives({name: "x"})


def test_attributes_by_which_pilots_are_found_are_not_for_users() -> None:
    for given in ({"+WindlassFactory": "x"}, {"My.WindlassTicket": "x"}):
        with pytest.raises(UsageError, match="attributes that begin with Windlass are those by which pilots are found"):
            checked_directives(given)
    with pytest.raises(UsageError, match="attributes that begin with Windlass"):
        checked_attributes({"windlassUser": "x"})


def test_a_misspelt_command_is_told_as_htcondor_would_not_notice_it() -> None:
    """Its bindings take any word for a variable of the user's own, so this is a warning and no refusal."""
    given = checked_directives({"acounting_group": "a", "my_own": "b", "priority": "3", "+X": "1", "request_licenses": "2", "My.Y": "2"})
    assert doubtful_directives(given) == [
        "extra_directives= has 'acounting_group', which Windlass does not know, and HTCondor ignores what it does not know;"
        " did you mean 'accounting_group'?",
        "extra_directives= has 'my_own', which Windlass does not know, and HTCondor ignores what it does not know",
    ]


def test_what_fits_a_pilot_is_asked_without_the_nodes_to_avoid() -> None:
    request = PilotRequest(ticket="t", pool=PoolName("p"), command=(), resources=Resources(3.5, 5 << 30, 2), avoid=("n1",))
    assert fitting(request, SubmitOptions(requirements="HasX || Y")) == (
        "(HasX || Y) && TARGET.Cpus >= 4 && TARGET.Memory >= 5120 && TARGET.GPUs >= 2"
    )
    assert fitting(replace(request, resources=Resources(1.0)), SubmitOptions()) == "TARGET.Cpus >= 1"


def test_only_machines_that_are_all_avoided_are_a_refusal() -> None:
    """Where none is known (an empty pool that grows by itself, others that jobs flock to) waiting is right."""
    assert only_avoided(["n1", "N2"], ("n1", "n2", "n3")) == (
        "pilots have died on every machine that fits them, or programs have blocked it (n1, n2)"
    )
    assert only_avoided(["n1", "n4"], ("n1",)) == ""
    assert only_avoided([], ("n1",)) == ""
    assert only_avoided(["n1.site.edu", "n2"], ("n1", "n2.site.edu"))
    assert only_avoided(["n10.site.edu"], ("n1",)) == ""


def test_attributes_are_read_as_people_write_them() -> None:
    assert checked_attributes({"+ProjectName": "sim", "Count": 3}) == (("ProjectName", "sim"), ("Count", 3))
    assert checked_attributes("ProjectName=sim") == (("ProjectName", "sim"),)
    assert checked_attributes(["ProjectName = sim"]) == (("ProjectName", "sim"),)


def test_constraints_name_the_factory_and_the_jobs() -> None:
    assert constraint_of(Tag("f", "m"), "al") == 'WindlassFactory == "f" && WindlassUser == "al" && WindlassManager == "m"'
    assert constraint_of(Tag("f"), 'a"b') == 'WindlassFactory == "f" && WindlassUser == "a\\"b"'
    jobs = [JobId("1.0"), JobId("2.0"), JobId("1.7")]
    assert constraint_of_jobs(jobs) == "(ClusterId == 1 && (ProcId == 0 || ProcId == 7)) || (ClusterId == 2 && (ProcId == 0))"
