"""The stand-in for a schedd gives the answers that a real pool was recorded to give, ad by ad and attribute by attribute."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SAMPLES = [
    json.loads(line) for line in (Path(__file__).parent.parent / "factory" / "data" / "htcondor" / "samples.jsonl").read_text().splitlines()
]
#: Differ from run to run: times, ids, places, what a process used.
VARIES = {
    "QDate", "ClusterId", "EnteredCurrentStatus", "JobStartDate", "JobCurrentStartDate", "CompletionDate", "RemoteWallClockTime",
    "RemoteHost", "LastRemoteHost", "ResidentSetSize",
}  # fmt: skip
#: What was recorded is this much of an ad.
PROJECTION = sorted({name for one in SAMPLES if one["via"] in ("query", "history") for name in one["ad"]})


def recorded(label: str) -> list[dict[str, Any]]:
    return [one["ad"] for one in SAMPLES if one["label"] == label]


def same(found: dict[str, Any], label: str) -> None:
    """Equal names, and equal values of those that do not vary; machines are named otherwise."""
    expected = next(ad for ad in recorded(label) if ad["ProcId"] == found["ProcId"])
    assert sorted(found) == sorted(expected), f"{label}: {set(found) ^ set(expected)}"
    for name in set(found) - VARIES:
        value = found[name]["expr"] if isinstance(found[name], dict) else found[name]
        if isinstance(value, str) and name in ("HoldReason", "VacateReason"):
            assert type(expected[name]) is str
            assert value.split()[:3] == expected[name].replace("slot1_1@vm", found["LastRemoteHost"]).split()[:3]
        else:
            assert value == expected[name], f"{label}: {name}"


class Session:
    """Asks the stand-in as the recording asked the pool."""

    def __init__(self, schedd: Any) -> None:
        self.tell: Callable[..., Any] = schedd.tell

    def submit(self, count: int = 1, **words: str) -> int:
        given = {"universe": "vanilla", "request_memory": "64", "My.WindlassFactory": '"f1"', "executable": "/bin/sleep", **words}
        return int(self.tell("submit", words=given, count=count)["cluster"])

    def query(self, cluster: int, what: str = "query") -> list[dict[str, Any]]:
        more = {"match": -1, "since": None} if what == "history" else {}
        found: list[dict[str, Any]] = self.tell(what, constraint=f"ClusterId == {cluster}", projection=PROJECTION, **more)
        return found

    def until(self, cluster: int, status: int, what: str = "query") -> list[dict[str, Any]]:
        limit = time.monotonic() + 20
        while not (found := self.query(cluster, what)) or {ad["JobStatus"] for ad in found} != {status}:
            assert time.monotonic() < limit, f"never {status}: {found}"
            time.sleep(0.002)
        return found

    def act(self, action: str, cluster: int, text: str, code: int) -> dict[str, Any]:
        found: dict[str, Any] = self.tell("act", action=action, which=f"ClusterId == {cluster}", reason=[text, code])
        return found


@pytest.fixture
def session(schedd: Any) -> Iterator[Session]:
    yield Session(schedd)
    schedd.tell("act", action="Remove", which="true", reason=["the test ends", 1])


def test_two_jobs_from_their_submission_to_their_removal(session: Session) -> None:
    session.tell("set", frozen=True)
    cluster = session.submit(2, arguments="20")
    for ad in session.query(cluster):
        same(ad, "two sleeping jobs: just submitted")
    session.tell("set", frozen=False)
    for ad in session.until(cluster, 2):
        same(ad, "running")
    counts = session.act("Remove", cluster, "scale down", 1)
    [expected] = recorded("act Remove with a reason")
    assert counts == expected
    for ad in session.until(cluster, 3, "history"):
        same(ad, "after remove")


def test_a_missing_executable_and_a_missing_input(session: Session) -> None:
    [ad] = session.until(session.submit(executable="/nonexistent/pilot", arguments="20"), 5)
    same(ad, "missing executable: held")
    [ad] = session.until(session.submit(transfer_input_files="/nonexistent/file"), 5)
    same(ad, "missing input: held")


def test_an_end_by_itself(session: Session, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 2\n")
    script.chmod(0o700)
    [ad] = session.until(session.submit(executable=str(script)), 4, "history")
    same(ad, "exit 7: finished")


def test_what_no_machine_has(session: Session) -> None:
    [ad] = session.query(session.submit(request_memory=str(900 << 10)))
    same(ad, "impossible memory: idle")


def test_hold_release_and_vacate(session: Session) -> None:
    cluster = session.submit(arguments="20")
    session.until(cluster, 2)
    session.act("Hold", cluster, "testing", 3)
    [ad] = session.until(cluster, 5)
    same(ad, "held by user")
    session.act("Release", cluster, "go on", 1)
    [ad] = session.until(cluster, 2)
    same(ad, "released")
    session.tell("set", frozen=True)
    session.tell("vacate", job=f"{cluster}.0")
    [ad] = session.until(cluster, 1)
    same(ad, "vacated while running")


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ({"universe": "nosuch"}, 'bad submit {"universe": "nosuch"}'),
        ({"executable": ""}, 'bad submit {"executable": ""}'),
    ],
)
def test_what_is_refused(session: Session, standin: Any, words: dict[str, str], label: str) -> None:
    with pytest.raises(standin.HTCondorException) as refused:
        session.submit(1, **words)
    [expected] = recorded(label)
    assert str(refused.value) == expected["text"]


def test_a_bad_constraint(session: Session, standin: Any) -> None:
    session.submit()
    with pytest.raises(standin.HTCondorException) as refused:
        session.tell("query", constraint="ClusterId == ((", projection=[])
    [expected] = recorded("bad constraint")
    assert str(refused.value) == expected["text"]


def test_nonsense_in_a_request_is_accepted(session: Session) -> None:
    [ad] = session.query(session.submit(request_memory="banana"))
    same(ad, 'bad submit {"request_memory": "banana"}: just submitted')
