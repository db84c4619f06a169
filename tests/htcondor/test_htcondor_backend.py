"""The HTCondor backend on a stand-in for a schedd. `tests/contract` runs the contract on it, `test_real_pool.py` needs a real one."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import windlass
from windlass.errors import OverLimit, Rejected, Unreachable, UsageError
from windlass.factory import logs, shipping
from windlass.factory.backend import Cause, JobId, Listed, NoNodeLeft, NotNow, NotSent, PilotRequest, PilotState, Tag, backend_options
from windlass.factory.environment import Environment
from windlass.factory.htcondor import HTCondorBackend
from windlass.factory.htcondor_words import SubmitOptions, periodic_remove, submit_words
from windlass.messages import PoolName, Resources

RequestOf = Callable[..., PilotRequest]
Seen = dict[JobId, PilotState]
Until = Callable[[HTCondorBackend, Callable[[Seen], object]], Seen]
MakeBackend = Callable[..., HTCondorBackend]


def listed(job: JobId, how: Listed) -> Callable[[Seen], bool]:
    return lambda seen: job in seen and seen[job].listed is how


# ---------------------------------------------------------------- a program's calls on it


def test_a_programs_calls_run_on_pilots_without_shared_files(schedd: Any, tmp_path: Path) -> None:
    """The connection file and Windlass's own modules travel with the job: a worker starts from nothing but its sandbox and a Python."""
    backend = HTCondorBackend(schedd.helper, collector=schedd.place, files="transfer")
    with windlass.Manager() as manager, windlass.Factory(manager, backend, cores=2, max_pilots=1, python=sys.executable):
        manager.install_library("lib", where)
        future = manager.submit(windlass.FunctionCall("lib", "where"))
        package, sandbox = future.result(timeout=60)
        assert package.startswith(sandbox)
        # What was not asked for is what the schedd puts in its place, and not all that the node has.
        assert [worker["memory"] for worker in manager.status()["workers"]] == [64 << 20]


def test_a_programs_calls_run_in_an_environment_that_travels(schedd: Any, tmp_path: Path, packed_environment: Path) -> None:
    """The archive is unpacked from the job's folder to the node's disk, and is then no more in the way."""
    backend = HTCondorBackend(schedd.helper, collector=schedd.place, files="transfer")
    options: dict[str, Any] = {"environment": packed_environment, "scratch": str(tmp_path), "cores": 2, "max_pilots": 1}
    with windlass.Manager() as manager, windlass.Factory(manager, backend, **options):
        manager.install_library("lib", where)
        package, sandbox = manager.submit(windlass.FunctionCall("lib", "where")).result(timeout=60)
        assert package.startswith(f"{tmp_path}/windlass-environments-")
        assert sorted(path.name for path in Path(sandbox).iterdir() if path.suffix == ".gz") == []


def test_a_node_with_another_python_says_so(schedd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no files are shared `python=` is each node's own. What it says of itself (no option -P, no module msgspec._core) is no help."""
    monkeypatch.setattr(shipping, "check", partial(shipping.check, "3.99"))
    backend = HTCondorBackend(schedd.helper, collector=schedd.place, files="transfer", query_interval=0.05)
    options: dict[str, Any] = {"cores": 1, "max_pilots": 1, "min_pilots": 1, "max_start_failures": 1, "python": sys.executable}
    with windlass.Manager() as manager, windlass.Factory(manager, backend, **options) as factory:
        wait_until(lambda: factory.status()["paused"])
        here = f"{sys.version_info[0]}.{sys.version_info[1]}"
        assert (
            f"windlass pilot on {os.uname().nodename}: {sys.executable} is Python {here}, and the factory runs 3.99: functions cannot be"
            " sent to it; python= names one that all nodes have, requirements= keeps away from nodes like this, environment= or container="
            " brings one along"
        ) in str(factory.status()["paused"])


def test_a_node_that_cannot_load_what_came_says_so() -> None:
    """It is of another kind of machine, say."""
    ran = subprocess.run([sys.executable, "-S", "-c", shipping.check(), "-P"], env={}, capture_output=True, text=True, check=False)
    assert ran.returncode == 5
    assert f"{sys.executable} cannot load the Windlass that came with the job (No module named 'windlass'); python= names" in ran.stderr


def where() -> tuple[str, str]:
    import os

    import windlass

    return str(windlass.__file__), os.environ["_CONDOR_SCRATCH_DIR"]


def test_a_mute_schedd_does_not_stop_the_program(schedd: Any) -> None:
    """It takes connections and never answers. The bindings would hold the GIL all that time; calls on other pilots go on."""
    schedd.tell("set", frozen=True)
    backend = HTCondorBackend(schedd.helper, collector=schedd.place, query_interval=0.2, command_timeout=1.0)
    with (
        windlass.Manager() as manager,
        windlass.Factory(manager, "local", cores=1, max_pilots=1),
        windlass.Factory(manager, backend, cores=1, max_pilots=1, min_pilots=1, grace=1) as factory,
    ):
        manager.install_library("lib", double)
        assert manager.submit(windlass.FunctionCall("lib", "double", 1)).result(timeout=30) == 2
        wait_until(lambda: factory.status()["pilots"] == {"queued": 1})
        done: list[int] = []
        with schedd.mute():
            while "no answer to query" not in str(factory.status()["failure"]):
                done.append(manager.submit(windlass.FunctionCall("lib", "double", len(done))).result(timeout=30))
        assert len(done) > 10
        assert done == [2 * number for number in range(len(done))]


def wait_until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def double(number: int) -> int:
    return number * 2


# ---------------------------------------------------------------- what is submitted


def test_one_submission_is_one_cluster(backend: HTCondorBackend, request_of: RequestOf, schedd: Any) -> None:
    schedd.tell("set", frozen=True)
    assert backend.submit(request_of(), 3) == ["1.0", "1.1", "1.2"]
    assert backend.submit(request_of(ticket="t-2"), 1) == ["2.0"]
    assert {state.job: state.ticket for state in backend.query()} == {"1.0": "t-1", "1.1": "t-1", "1.2": "t-1", "2.0": "t-2"}


def test_one_query_tells_of_all_pilots_and_none_of_other_factories(
    backend: HTCondorBackend, make_backend: MakeBackend, request_of: RequestOf, schedd: Any
) -> None:
    schedd.tell("set", frozen=True)
    other = make_backend(Tag("f1", "m2"))
    backend.submit(request_of(), 50)
    assert other.query() == []
    assert len(backend.query()) == 50
    other.cancel_all()
    assert len(backend.query()) == 50
    assert schedd.tell("asked").count("query") == 3


def test_a_factory_of_the_same_name_finds_the_pilots_of_an_earlier_life(
    make_backend: MakeBackend, request_of: RequestOf, until: Until
) -> None:
    first = make_backend()
    [job] = first.submit(request_of(), 1)
    first.close()
    second = make_backend()
    assert until(second, listed(job, Listed.RUNNING))[job].ticket == "t-1"
    second.cancel_all()
    until(second, listed(job, Listed.ENDED))


def test_logs_are_told_by_run_and_found_by_a_later_one(
    make_backend: MakeBackend, request_of: RequestOf, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of those that have ended only so many are kept, the oldest going first."""
    monkeypatch.setattr(logs, "LOGS_KEPT", 1)
    first = make_backend()
    [job] = first.submit(request_of("echo first >&2; exec sleep 600"), 1)
    log = Path(first.log(job))
    until(first, lambda seen: log.exists() and "first" in log.read_text())
    first.close()
    second = make_backend()
    assert until(second, listed(job, Listed.RUNNING))[job].log == str(log)
    [other] = second.submit(request_of("echo second >&2; exit 1"), 1)
    assert until(second, listed(other, Listed.ENDED))[other].log == second.log(other) != str(log)
    assert (second.tail(other), log.parent.parent) == ("second", Path(second.log(other)).parent.parent)
    assert log.exists(), "it lives"
    second.cancel_all()
    until(second, listed(job, Listed.ENDED))
    [third] = second.submit(request_of("echo third >&2; exit 1"), 1)
    until(second, listed(third, Listed.ENDED))
    assert (log.exists(), Path(second.log(third)).exists()) == (False, True)


def test_shell_text_reaches_the_pilot_as_it_was_written(backend: HTCondorBackend, request_of: RequestOf, until: Until) -> None:
    """``$(x)`` and ``$$(x)`` mean something in the submit language, so no shell text may stand there."""
    words = 'echo "$$(Machine) $(ClusterId) $((1+1)) $A" >&2; exit 1'
    [job] = backend.submit(
        request_of(words, setup=("A='$$(Name)'",), env=(("B", "$$(B)"),), command=("/bin/sh", "-c", "echo \"$B\" '$$(C)' >&2; exit 1")), 1
    )
    until(backend, listed(job, Listed.ENDED))
    assert backend.tail(job) == "$$(B) $$(C)"


def test_a_python_that_is_named_without_its_folder_knows_where_it_is(backend: HTCondorBackend, request_of: RequestOf, until: Until) -> None:
    """HTCondor starts jobs without PATH, and shells do not pass on the one that they fall back to."""
    [job] = backend.submit(request_of("env | grep '^PATH=' >&2; exit 1"), 1)
    until(backend, listed(job, Listed.ENDED))
    assert backend.tail(job).startswith("PATH=/")


def test_a_folder_may_have_a_dollar_in_its_name(make_backend: MakeBackend, request_of: RequestOf, until: Until, tmp_path: Path) -> None:
    backend = make_backend(None)
    backend.open(Tag("f1"), tmp_path / "a $(ClusterId) b", lambda: None)
    [job] = backend.submit(request_of("echo said >&2; exit 1"), 1)
    until(backend, listed(job, Listed.ENDED))
    assert backend.tail(job) == "said"
    backend.close()


def test_a_description_is_what_is_submitted(make_backend: MakeBackend, request_of: RequestOf) -> None:
    text = make_backend(None, requirements="HasGPU", attributes={"ProjectName": "sim"}, disk="2GB").describe(request_of(), 3)
    for line in (
        "queue 3",
        'My.ProjectName = "sim"',
        "requirements = (HasGPU)",
        'My.WindlassFactory = "FACTORY"',
        "exec /bin/sh -c 'sleep 600'",
    ):
        assert line in text.splitlines() or line in text, line


def test_a_misspelt_submit_command_is_told(make_backend: MakeBackend, caplog: pytest.LogCaptureFixture) -> None:
    """HTCondor neither refuses it nor warns, so that somebody must say it."""
    with caplog.at_level(logging.WARNING, "windlass.factory"):
        make_backend(None, extra_directives={"acounting_group": "physics"})
    assert "did you mean 'accounting_group'?" in caplog.text


# ---------------------------------------------------------------- how pilots end


@pytest.mark.parametrize(
    ("body", "cause", "status", "reason"),
    [
        ("exit 7", Cause.EXIT, 7, "exit status 7"),
        ("exit 0", Cause.EXIT, 0, "exit status 0"),
        ("kill -9 $$", Cause.SIGNAL, None, "ended by signal 9"),
    ],
)
def test_the_history_tells_how_a_pilot_ended(
    backend: HTCondorBackend, request_of: RequestOf, until: Until, body: str, cause: Cause, status: int | None, reason: str
) -> None:
    [job] = backend.submit(request_of(body), 1)
    end = until(backend, listed(job, Listed.ENDED))[job]
    assert (end.cause, end.exit_status, end.reason, end.node, end.ticket) == (cause, status, reason, "standin", "t-1")


def test_many_ends_cost_one_look_at_the_history(backend: HTCondorBackend, request_of: RequestOf, until: Until, schedd: Any) -> None:
    jobs = backend.submit(request_of("exit 1"), 20)
    wait_until(lambda: len(schedd.tell("history", constraint="true", projection=["ProcId"], match=-1, since=None)) == 20)
    before = schedd.tell("asked").count("history")
    assert {state.job for state in backend.query() if state.listed is Listed.ENDED} == set(jobs)
    assert schedd.tell("asked").count("history") == before + 1
    assert backend.query() == []
    assert schedd.tell("asked").count("history") == before + 1


def test_a_history_that_is_lost_costs_only_the_reason(backend: HTCondorBackend, request_of: RequestOf, until: Until, schedd: Any) -> None:
    """The pilot is not listed any more, and the history is not asked for ever."""
    schedd.tell("set", lost_history=True)
    [job] = backend.submit(request_of("exit 7"), 1)
    until(backend, lambda seen: job not in {state.job for state in backend.query()})
    for _ in range(5):
        assert backend.query() == []
    assert 1 <= schedd.tell("asked").count("history") <= 2


def test_removals_need_no_history(backend: HTCondorBackend, request_of: RequestOf, until: Until, schedd: Any) -> None:
    jobs = backend.submit(request_of(), 2)
    until(backend, lambda seen: all(listed(job, Listed.RUNNING)(seen) for job in jobs))
    backend.cancel(jobs)
    seen = until(backend, lambda seen: all(listed(job, Listed.ENDED)(seen) for job in jobs))
    assert {seen[job].cause for job in jobs} == {Cause.CANCELLED}
    assert "history" not in schedd.tell("asked")


def test_a_pilot_that_does_not_listen_is_killed_after_its_grace(
    backend: HTCondorBackend, request_of: RequestOf, until: Until, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    [job] = backend.submit(request_of(f"trap '' TERM; echo >{ready}; while :; do sleep 0.05; done", grace=1.0), 1)
    wait_for_lines(ready, 1)
    backend.cancel([job])
    until(backend, listed(job, Listed.ENDING))
    assert until(backend, listed(job, Listed.ENDED))[job].cause is Cause.CANCELLED


def test_a_vacated_pilot_is_another_one_under_the_same_id(
    backend: HTCondorBackend, request_of: RequestOf, until: Until, schedd: Any, tmp_path: Path
) -> None:
    """The pilot's own word, made on the node, and the restart that the queue tells are the same, whatever reconnections there were."""
    said = tmp_path / "said"
    body = f'echo "$WINDLASS_PILOT" >>{said}; exec sleep 600'
    [job] = backend.submit(request_of(body), 1)
    assert until(backend, listed(job, Listed.RUNNING))[job].restart == 0
    schedd.tell("reconnect", job=job)
    assert until(backend, listed(job, Listed.RUNNING))[job].restart == 0
    wait_for_lines(said, 1)
    schedd.tell("set", frozen=True)
    schedd.tell("vacate", job=job)
    waiting = until(backend, listed(job, Listed.QUEUED))[job]
    assert (waiting.restart, waiting.reason) == (1, "Job vacated by schedd")
    schedd.tell("set", frozen=False)
    assert until(backend, listed(job, Listed.RUNNING))[job].restart == 1
    assert wait_for_lines(said, 2) == [job, f"{job}+1"]
    backend.cancel_all()
    until(backend, listed(job, Listed.ENDED))


def wait_for_lines(path: Path, number: int) -> list[str]:
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= number)
    return path.read_text().splitlines()


def test_a_held_pilot_says_why_and_can_be_removed(backend: HTCondorBackend, request_of: RequestOf, until: Until, schedd: Any) -> None:
    [job] = backend.submit(request_of(), 1)
    until(backend, listed(job, Listed.RUNNING))
    schedd.tell("act", action="Hold", which=[job], reason=["testing", 3])
    assert until(backend, listed(job, Listed.HELD))[job].reason == "testing (by user alice) (hold code 1/3)"
    backend.cancel([job])
    assert until(backend, listed(job, Listed.ENDED))[job].cause is Cause.CANCELLED


def test_a_missing_input_holds_a_pilot_at_its_start(make_backend: MakeBackend, request_of: RequestOf, until: Until, tmp_path: Path) -> None:
    backend = make_backend(extra_directives={"transfer_input_files": str(tmp_path / "absent")})
    [job] = backend.submit(request_of(), 1)
    state = until(backend, listed(job, Listed.HELD))[job]
    assert state.reason.startswith("Transfer input files failure")
    assert state.reason.endswith("No such file or directory (hold code 13/2)")
    assert state.node == "standin"
    backend.cancel_all()


def test_what_no_machine_has_waits_with_its_reason(backend: HTCondorBackend, request_of: RequestOf, until: Until) -> None:
    """HTCondor accepts it and never says no; the reason of waiting tells it apart from a long queue."""
    [job] = backend.submit(request_of(resources=Resources(1.0, 900 << 30)), 1)
    assert until(backend, lambda seen: seen[job].reason)[job].reason == "no match found"
    backend.cancel_all()


def test_pilots_keep_away_from_nodes_where_pilots_die(backend: HTCondorBackend, request_of: RequestOf, until: Until, schedd: Any) -> None:
    schedd.tell("set", slots_elsewhere=["other"])
    [job] = backend.submit(request_of(avoid=("standin",)), 1)
    assert until(backend, lambda seen: seen[job].reason)[job].reason == "no match found"
    assert backend.query()[0].listed is Listed.QUEUED
    backend.cancel_all()


@pytest.mark.parametrize(
    ("machine", "node", "goes"),
    [
        ("n1.site.edu", "n1", False),
        ("n1", "n1.site.edu", False),
        ("n1.site.edu", "n1.site.edu", False),
        ("n10.site.edu", "n1", True),
        ("n1.other.edu", "n1.site.edu", True),
        (None, "n1", True),
    ],
)
def test_machines_to_avoid_may_be_named_with_their_domain_or_without(standin: Any, machine: str | None, node: str, goes: bool) -> None:
    """As `windlass status` shows hosts, which is what they call themselves, and as HTCondor knows machines."""
    request = PilotRequest(ticket="t", pool=PoolName("p"), command=(), resources=Resources(), avoid=(node,))
    words = submit_words(request, Tag("f"), "alice", script="/s", folder="/f", inputs=(), options=SubmitOptions())
    met = standin.evaluate(words["requirements"], {"QDate": time.time()}, {} if machine is None else {"Machine": machine})
    assert met is goes


@pytest.mark.parametrize(
    ("blocked", "hours", "goes"), [((), 0.9, False), ((), 1.1, True), (("n1",), 1.1, False), (("n1",), 23.9, False), (("n1",), 24.1, True)]
)
def test_what_has_waited_long_takes_a_machine_to_avoid_and_after_a_day_one_that_was_blocked(
    standin: Any, blocked: tuple[str, ...], hours: float, goes: bool
) -> None:
    """It would be sent away at once, and the next one an hour later: the pool of a busy site would never serve. But a block may have ended
    long ago, while the other machines are taken."""
    avoid = ("n1", "n2")
    request = PilotRequest(ticket="t", pool=PoolName("p"), command=(), resources=Resources(), avoid=avoid, blocked=blocked)
    words = submit_words(request, Tag("f"), "alice", script="/s", folder="/f", inputs=(), options=SubmitOptions())
    queued = {"QDate": time.time() - hours * 3600}
    assert [standin.evaluate(words["requirements"], queued, {"Machine": machine}) for machine in ("n1", "n2")] == [goes, hours > 1]


def test_pilots_that_no_machine_is_left_for_are_refused(backend: HTCondorBackend, request_of: RequestOf, schedd: Any) -> None:
    """HTCondor would take them, and they would wait for ever."""
    schedd.tell("set", slots_elsewhere=["other"])
    with pytest.raises(NoNodeLeft, match=r"every machine that fits them, or programs have blocked it \(other, standin\)"):
        backend.submit(request_of(avoid=("other", "standin")), 1)
    schedd.tell("set", slots_elsewhere=[], collector_is_down=True)
    assert len(backend.submit(request_of(avoid=("standin",)), 1)) == 1, "what is not known is no refusal"
    backend.cancel_all()


def test_a_pool_whose_only_node_is_bad_pauses_and_its_calls_end_with_the_reason(schedd: Any) -> None:
    """Two deaths make the node avoided; the next submission finds no other one, is tried once more without, and so is paused in the end."""
    backend = HTCondorBackend(schedd.helper, collector=schedd.place, query_interval=0.05)
    with (
        windlass.Manager() as manager,
        windlass.Factory(manager, backend, cores=1, max_pilots=2, setup=["echo no such disk >&2; exit 3"], max_start_failures=2) as factory,
    ):
        manager.install_library("lib", double)
        future = manager.submit(windlass.FunctionCall("lib", "double", 1))
        with pytest.raises(windlass.WindlassError, match=r"2 pilots in a row ended before they served, the last one so:.*no such disk"):
            future.result(timeout=60)
        assert factory.paused


def test_files_are_uploaded_to_a_schedd_on_another_machine(make_backend: MakeBackend, request_of: RequestOf, until: Until) -> None:
    """What pilots write there does not come back."""
    backend = make_backend(files="transfer", spool=1)
    [job] = backend.submit(request_of("echo no such disk >&2; exit 3"), 1)
    assert until(backend, listed(job, Listed.ENDED))[job].exit_status == 3
    assert backend.tail(job) == ""


def test_pilots_whose_files_cannot_be_uploaded_do_not_stay(
    make_backend: MakeBackend, request_of: RequestOf, until: Until, tmp_path: Path
) -> None:
    """HTCondor keeps such jobs on hold, waiting for their files, for ever."""
    backend = make_backend(files="transfer", spool="yes", extra_directives={"transfer_input_files": str(tmp_path / "absent")})
    with pytest.raises(Rejected, match=r"spoolJobFiles.*absent: "):
        backend.submit(request_of(), 3)
    assert backend.query() == []


def test_an_upload_that_fails_on_the_way_or_at_the_other_end_is_tried_again(
    make_backend: MakeBackend, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch, schedd: Any
) -> None:
    """A full disk of the schedd's would pause the pool for good."""
    text = "DCSchedd::spoolJobFiles:7002:File transfer failed for target job 1.0: SCHEDD failed to receive file(s): (errno 28) No space"
    monkeypatch.setenv("STANDIN_UPLOAD", f"fails: {text}")
    backend = make_backend(spool=True)
    with pytest.raises(NotNow, match=re.escape(text)):
        backend.submit(request_of(), 2)
    assert schedd.tell("query", constraint="true", projection=["ClusterId"]) == []


def test_pilots_whose_upload_failed_and_that_could_not_be_removed_may_be_there(
    make_backend: MakeBackend, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch, schedd: Any
) -> None:
    """Told as a submission of which nothing is left, nobody would ask for them: they would stay in the queue, and others be submitted."""
    text = "DCSchedd::spoolJobFiles:6001:Failed to connect to schedd (<127.0.0.1:1>), and the schedd is away"
    monkeypatch.setenv("STANDIN_UPLOAD", f"fails: {text}")
    backend = make_backend(spool=True)
    told = re.escape(f"{text}; and its jobs could not be removed: Failed to connect to schedd.")
    with pytest.raises(Unreachable, match=f"^{told}") as error:
        backend.submit(request_of(), 2)
    assert not isinstance(error.value, NotSent)
    assert len(schedd.tell("query", constraint="true", projection=["ClusterId"])) == 2
    assert backend.query() == []
    assert schedd.tell("query", constraint="true", projection=["ClusterId"]) == []


def test_pilots_whose_upload_was_cut_off_are_removed_and_never_counted(
    make_backend: MakeBackend, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch, schedd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The process that uploads is killed when its time is over; the schedd has taken the jobs, and keeps them on hold for ever."""
    monkeypatch.setenv("STANDIN_UPLOAD", "hangs")
    backend = make_backend(spool=True, command_timeout=1)
    with pytest.raises(Unreachable, match="no answer to submit within 1"):
        backend.submit(request_of(), 2)
    assert "took longer than 1 s; command_timeout= gives it more, and the next one has up to 3 s by itself" in caplog.text
    monkeypatch.delenv("STANDIN_UPLOAD")
    assert backend.query() == []
    assert schedd.tell("query", constraint="true", projection=["ClusterId"]) == []


def test_pilots_that_are_removed_as_their_files_never_came_are_none(make_backend: MakeBackend, request_of: RequestOf, schedd: Any) -> None:
    """They stay in the queue for a moment, and would count as taken away by somebody when they have left it."""
    schedd.tell("set", frozen=True)
    first = make_backend()
    [job] = first.submit(request_of(), 1)
    first.close()
    for name, value in (("RemoveReason", '"Windlass: the upload of its files failed (by user alice)"'), ("JobStatus", "3")):
        schedd.tell("edit", which="ClusterId == 1", name=name, value=value)
    assert make_backend().query() == []
    schedd.tell("edit", which="ClusterId == 1", name="RemoveReason", value='"Windlass: not needed any more (by user alice)"')
    assert [(state.job, state.listed) for state in make_backend().query()] == [(job, Listed.ENDING)]


def test_a_factory_that_closes_waits_for_no_upload(schedd: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One may take an hour, and the program would end before anybody has removed the pilots."""
    monkeypatch.setenv("STANDIN_UPLOAD", "hangs")
    big = tmp_path / "big"
    big.touch()
    os.truncate(big, 500 << 20)
    backend = HTCondorBackend(
        schedd.helper, collector=schedd.place, spool=True, query_interval=0.05, extra_directives={"transfer_input_files": str(big)}
    )

    def held() -> list[Any]:
        found: list[Any] = schedd.tell("query", constraint="JobStatus == 5", projection=["ClusterId"])
        return found

    with windlass.Manager() as manager, windlass.Factory(manager, backend, cores=1, max_pilots=1, min_pilots=1, grace=1) as factory:
        wait_until(held)
        factory.close(0)
        assert factory.wait(0)
        assert held() == []


@pytest.mark.parametrize(
    "options",
    [
        {"extra_directives": {"transfer_input_files": "FOLDER/a,FOLDER/b"}},
        {"extra_directives": {"transfer_input_files": "FOLDER/a, FOLDER/b"}},
        {"extra_directives": {"transfer_input_files": "FOLDER"}},
        {"container_image": "FOLDER/b"},
    ],
)
def test_what_is_uploaded_is_counted_however_it_is_named(
    make_backend: MakeBackend, request_of: RequestOf, schedd: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    """What is not counted has too little time, and would be begun anew for ever."""
    schedd.tell("set", frozen=True)
    folder = tmp_path / "inputs"
    folder.mkdir()
    for name, size in (("a", 10), ("b", 60)):
        (folder / name).touch()
        os.truncate(folder / name, size << 20)
    given = json.loads(json.dumps(options).replace("FOLDER", str(folder)))
    assert len(make_backend(spool=True, **given).submit(request_of(), 3)) == 1


def test_pilots_that_wait_for_a_schedd_to_note_their_upload_are_coming(
    make_backend: MakeBackend, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN_UPLOAD", "is noted late")
    backend = make_backend(spool=True)
    [job] = backend.submit(request_of(), 1)
    assert [(state.job, state.listed) for state in backend.query()] == [(job, Listed.QUEUED)]


def test_credentials_that_jobs_ask_for_are_issued_before_they_are_submitted(
    make_backend: MakeBackend, request_of: RequestOf, schedd: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As by condor_submit: the bindings do so only when they are told to. Where the user has to consent first, the pool waits for that."""
    schedd.tell("set", frozen=True)
    monkeypatch.setenv("STANDIN_CREDENTIALS", "https://credentials.example.org/1")
    asks = make_backend(extra_directives={"use_oauth_services": "scitokens"})
    with pytest.raises(NotNow, match=r"when you have allowed it at https://credentials\.example\.org/1"):
        asks.submit(request_of(), 1)
    assert make_backend().submit(request_of(), 1) == ["1.0"]
    monkeypatch.setenv("STANDIN_CREDENTIALS", "error: no credential daemon")
    asks = make_backend(extra_directives={"use_oauth_services": "scitokens"})
    assert [asks.submit(request_of(), 1) for _ in range(2)] == [["2.0"], ["3.0"]]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["HTCondor says to submit: no credentials could be stored for jobs: no credential daemon"], "once"
    caplog.clear()
    assert make_backend(extra_directives={"use_scitokens": "False"}).submit(request_of(), 1) == ["4.0"]
    assert "credentials" not in caplog.text


@pytest.mark.parametrize(
    ("started", "began", "removed"),
    [(3000, 3000, False), (4000, 4000, True), (4000, 1000, False), (4000, None, False), (4000, 90_000, False), (91_000, None, True)],
)
def test_the_schedd_counts_a_pilot_s_walltime_from_its_own_start(standin: Any, started: int, began: int | None, removed: bool) -> None:
    """Its input may have been on its way for longer than an hour. Seconds ago; what began before it started was an earlier start."""
    now = int(time.time())
    ad = {"JobStatus": 2, "JobCurrentStartDate": now - started, "EnteredCurrentStatus": now - started}
    ad |= {} if began is None else {"JobCurrentStartExecutingDate": now - began}
    assert bool(standin.evaluate(periodic_remove(3600), ad)) is removed


# ---------------------------------------------------------------- what the schedd refuses, and does not answer


def test_a_limit_on_jobs_is_no_refusal(backend: HTCondorBackend, request_of: RequestOf, schedd: Any) -> None:
    schedd.tell("set", frozen=True, max_jobs=3)
    with pytest.raises(OverLimit, match="expected next ProcId to be 3, but Schedd says -3"):
        backend.submit(request_of(), 4)
    backend.submit(request_of(), 3)
    with pytest.raises(OverLimit, match=r"MAX_JOBS_SUBMITTED exceeded\. Current=3, Limit=3"):
        backend.submit(request_of(), 1)
    backend.cancel_all()


def test_several_nodes_in_a_pilot_are_refused(backend: HTCondorBackend, request_of: RequestOf) -> None:
    with pytest.raises(Rejected, match="nodes=2: a pilot of HTCondor has one node"):
        backend.submit(request_of(nodes=2), 1)


def test_denied_removals_are_not_taken_for_done(backend: HTCondorBackend, request_of: RequestOf, schedd: Any) -> None:
    """The schedd raises nothing; only its counts tell."""
    schedd.tell("set", frozen=True, denied=True)
    jobs = backend.submit(request_of(), 2)
    with pytest.raises(Rejected, match="removal of pilots: 2 denied, 0 done"):
        backend.cancel(jobs)
    with pytest.raises(Rejected, match="removal of pilots: 2 denied"):
        backend.cancel_all()
    schedd.tell("set", denied=False)
    backend.cancel_all()


def helpers() -> list[psutil.Process]:
    """Those of this process that live; it may have other children, in any state, from tests before."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # a zombie is one of these
            if "helper" in child.cmdline():
                found.append(child)
    return found


def test_a_mute_schedd_costs_the_time_of_one_request_and_the_next_one_finds_it_again(
    make_backend: MakeBackend, request_of: RequestOf, schedd: Any
) -> None:
    """The helper is killed in its call; a submission that was not answered shows by its ticket when the schedd is back."""
    backend = make_backend(command_timeout=1.0)
    assert backend.query() == []
    schedd.tell("set", frozen=True)
    with schedd.mute():
        with pytest.raises(Unreachable, match=r"the schedd gave no answer to query within 1 s"):
            backend.query()
        with pytest.raises(Unreachable, match="no answer to submit"):
            backend.submit(request_of(ticket="t-9"), 2)
        with pytest.raises(Unreachable, match="no answer to remove"):
            backend.cancel_all()
        assert helpers() == []
    # What reached its socket is done all the same when it goes on, in the order of asking: the submission, then the removal.
    assert {"submit", "act"} <= set(schedd.tell("asked"))
    [*jobs] = make_backend().query()
    assert jobs == []
    assert {ad["WindlassTicket"] for ad in schedd.tell("history", constraint="true", projection=[], match=-1, since=None)} == {"t-9"}


def test_other_threads_run_while_a_schedd_is_mute(make_backend: MakeBackend, schedd: Any) -> None:
    """The stand-in's call holds the GIL, as the real one does: made in this process, it would stop every thread."""
    backend = make_backend(command_timeout=1.5)
    backend.query()
    turns = 0
    stop = threading.Event()

    def turn() -> None:
        nonlocal turns
        while not stop.wait(0.001):
            turns += 1

    thread = threading.Thread(target=turn)
    with schedd.mute():
        thread.start()
        with pytest.raises(Unreachable):
            backend.query()
    stop.set()
    thread.join()
    assert turns > 20


def test_a_helper_that_dies_is_replaced(backend: HTCondorBackend, request_of: RequestOf) -> None:
    backend.query()
    [helper] = helpers()
    helper.send_signal(signal.SIGKILL)
    helper.wait()
    assert backend.query() == []


def test_a_schedd_that_is_down_is_silence_with_a_text(make_backend: MakeBackend, schedd: Any, request_of: RequestOf) -> None:
    backend = make_backend(collector="/nowhere/schedd")
    with pytest.raises(Unreachable, match="Failed to connect to schedd, errmsg=No such file or directory"):
        backend.query()
    with pytest.raises(Unreachable, match="Failed to connect to schedd"):
        backend.submit(request_of(), 1)


def test_a_schedd_that_nobody_knows_is_named(make_backend: MakeBackend) -> None:
    with pytest.raises(Unreachable, match=r"^query: there is no schedd absent in pool .*; condor_status -schedd lists those"):
        make_backend(schedd="absent").query()


def test_closing_ends_the_helper_and_may_be_done_twice(backend: HTCondorBackend) -> None:
    backend.query()
    backend.close()
    backend.close()
    assert helpers() == []


# ---------------------------------------------------------------- for the command line


def test_all_pilots_of_the_user_are_found_and_can_be_ended_without_a_factory(
    make_backend: MakeBackend, request_of: RequestOf, until: Until, schedd: Any
) -> None:
    schedd.tell("set", frozen=True)
    first, second = make_backend(Tag("f1", "m1")), make_backend(Tag("f2", "m2"))
    [*jobs] = [*first.submit(request_of(), 1), *second.submit(request_of(), 1)]
    bare = make_backend(None)
    found = bare.find()
    assert [(tag, state.job, state.listed) for tag, state in found] == [
        (Tag("f1", "m1"), jobs[0], Listed.QUEUED),
        (Tag("f2", "m2"), jobs[1], Listed.QUEUED),
    ]
    bare.cancel(jobs)
    assert bare.find() == []
    bare.close()


def test_a_probe_is_submitted_held_and_removed(make_backend: MakeBackend, request_of: RequestOf, schedd: Any) -> None:
    bare = make_backend(None)
    assert bare.probe(request_of()) == "1.0"
    [ad] = schedd.tell("history", constraint="true", projection=[], match=-1, since=None)
    assert (ad["LastHoldReasonCode"], ad["JobStatus"], ad.get("NumShadowStarts")) == (15, 3, None)
    with pytest.raises(Rejected, match="nodes=2"):
        bare.probe(request_of(nodes=2))
    bare.close()


def test_a_template_of_the_users_takes_the_place_of_ours(
    make_backend: MakeBackend, request_of: RequestOf, until: Until, tmp_path: Path
) -> None:
    own = tmp_path / "own.sh.j2"
    own.write_text('{% extends "htcondor.sh.j2" %}{% block launch %}echo "own: $WINDLASS_PILOT" >&2; exit 1{% endblock %}')
    backend = make_backend(template=own)
    [job] = backend.submit(request_of(), 1)
    until(backend, listed(job, Listed.ENDED))
    assert backend.tail(job) == f"own: {job}"
    own.write_text("{{ nonsense }}")
    with pytest.raises(Rejected, match="'nonsense' is undefined"):
        backend.submit(request_of(), 1)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("environment", [None, Environment("/shared/e.tar.gz", "u3-0", "0", 1, 1, "gzip")], ids=["python", "environment"])
@pytest.mark.parametrize("options", [{}, {"files": "transfer"}])
def test_shellcheck_finds_nothing_in_the_script(
    make_backend: MakeBackend, request_of: RequestOf, options: dict[str, str], environment: Environment | None, tmp_path: Path
) -> None:
    request = request_of(
        setup=("module load python",),
        env=(("A", "b c"),),
        command=("python3", "-m", "x", "--connection", "/m/pilot.json"),
        environment=environment,
    )
    text = make_backend(None, **options).describe(request, 1)
    script = tmp_path / "script.sh"
    script.write_text(text.partition(" is:\n")[2])
    subprocess.run(["shellcheck", str(script)], check=True)


def test_an_environment_travels_with_the_job_where_no_files_are_shared(make_backend: MakeBackend, request_of: RequestOf) -> None:
    """As an input file, unpacked from the job's folder and then removed; Windlass's own modules stay at home."""
    request = request_of(environment=Environment("/shared/e.tar.gz", "u3-0", "0", 1, 1, "gzip"))
    text = make_backend(None, files="transfer").describe(request, 1)
    assert "transfer_input_files = /shared/e.tar.gz\n" in text
    assert "\nwindlass_archive=e.tar.gz\n" in text
    assert "\nrm -f e.tar.gz\n" in text
    assert "windlass-modules" not in text
    text = make_backend(None).describe(request, 1)
    assert "transfer_input_files" not in text
    assert "\nwindlass_archive=/shared/e.tar.gz\n" in text
    assert "rm -f e.tar.gz" not in text


# ---------------------------------------------------------------- options


def test_without_the_bindings_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec

    def without_bindings(name: str, package: str | None = None) -> object:
        return None if name == "htcondor2" else find(name, package)

    monkeypatch.setattr("importlib.util.find_spec", without_bindings)
    with pytest.raises(UsageError, match=r"not installed here; run  pip install 'htcondor>=25'"):
        HTCondorBackend().open(Tag("f1"), tmp_path, lambda: None)


def test_bindings_that_do_not_load_are_told_so(tmp_path: Path) -> None:
    """A helper that runs where they are not: the text is the import's own."""
    backend = HTCondorBackend((sys.executable, "-c", 'print(\'{"error": "no bindings: libmunge.so.2 is missing"}\')'))
    backend.open(Tag("f1"), tmp_path, lambda: None)
    with pytest.raises(Unreachable, match=r"pip install 'htcondor>=25' \(libmunge.so.2 is missing\)"):
        backend.query()
    backend.close()


def test_the_options_of_a_pool_are_these() -> None:
    """`helper` is for tests and no option of a pool."""
    assert backend_options(HTCondorBackend) == {
        "schedd",
        "collector",
        "requirements",
        "attributes",
        "extra_directives",
        "container_image",
        "disk",
        "files",
        "spool",
        "template",
        "query_interval",
        "command_timeout",
    }


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"files": "share"}, "files='share'; write files='shared' where nodes see your files"),
        (
            {"extra_directives": {"executable": "x"}},
            "extra_directives= has 'executable', which Windlass writes itself; use the option setup= and python=",
        ),
        ({"extra_directives": {"Request_Cpus": "x"}}, "use the option cores="),
        ({"extra_directives": {"max_materialize": 5}}, "use the option max_queued="),
        ({"attributes": {"WindlassFactory": "x"}}, "so use another name"),
        ({"extra_directives": "nonsense"}, "is no submit command"),
        ({"extra_directives": [3]}, "is not a mapping"),
        ({"extra_directives": {"a": "1\nqueue 5"}}, "several lines"),
        ({"attributes": {"a b": 1}}, "is no attribute of a job"),
        ({"attributes": {"a": object()}}, "is no value for an attribute"),
        ({"requirements": "a\nqueue"}, "several lines"),
        ({"template": "/absent.j2"}, "template='/absent.j2': there is no such file"),
        ({"disk": "much"}, "disk='much'"),
        ({"command_timeout": 0}, "is not a time"),
        ({"query_interval": "soon"}, "query_interval='soon'"),
        ({"spool": "maybe"}, "spool='maybe'; write spool=True or spool=False"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as refused:
        HTCondorBackend(**options)
    assert text in str(refused.value)


def test_pools_of_one_schedd_are_asked_for_with_one_query(make_backend: MakeBackend, request_of: RequestOf, until: Until) -> None:
    """Each hears of its own pilots."""
    first, second = make_backend(Tag("f.first", "m1")), make_backend(Tag("f.second", "m1"))
    assert first.site == second.site != make_backend(collector="elsewhere").site
    [one] = first.submit(request_of(ticket="f.first-1"), 1)
    [other] = second.submit(request_of(ticket="f.second-1"), 1)
    states = first.query_with([second])
    assert [[state.job for state in of_one] for of_one in states] == [[one], [other]]
    second.cancel([other])
    until(second, lambda seen: seen[other].cause is Cause.CANCELLED)  # it stays in the queue for as long as it takes to end
    assert [[state.job for state in of_one] for of_one in first.query_with([second])] == [[one], []]
    first.cancel([one])
