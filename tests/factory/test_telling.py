"""What the manager is told of pilots: what has changed, once, and never more than a message holds."""

from __future__ import annotations

import msgspec
import pytest

from windlass.factory.backend import Cause, JobId, Listed, PilotState
from windlass.factory.pilots import Ending, Event, Fleet
from windlass.factory.telling import REASON_MOST, WORDS_MOST, Telling
from windlass.messages import MAX_FRAME_BYTES, PilotEnded, PilotId, PilotLine, PoolName, PoolReport


def told(telling: Telling, fleet: Fleet) -> list[PilotLine]:
    telling.look(fleet.pilots.values())
    return list(telling.take()[1])


def ending(job: str, *, failed: bool = True, charge: str = "", reason: str = "exit status 1") -> Ending:
    return Ending(
        JobId(job), PilotId(job), reason, "n1", 0.0, failed, True, ran=5.0, ticket="t", cause=Cause.EXIT, exit_status=1, charge=charge
    )


def queued(*jobs: str) -> Fleet:
    fleet = Fleet()
    fleet.submitted("t", [JobId(job) for job in jobs], 10.0)
    return fleet


def test_a_pilot_is_told_of_when_something_about_it_has_changed() -> None:
    """A pool at rest says nothing, however large it is."""
    telling, fleet = Telling(PoolName("p"), epoch=1000.0), queued("1", "2")
    lines = told(telling, fleet)
    assert [(line.pilot, line.phase, line.since, line.ticket) for line in lines] == [
        ("1", "queued", 1010.0, "t"),
        ("2", "queued", 1010.0, "t"),
    ]
    assert told(telling, fleet) == []
    fleet.listed(
        [PilotState(job=JobId("1"), listed=Listed.QUEUED, reason="Priority"), PilotState(job=JobId("2"), listed=Listed.QUEUED)], 20.0
    )
    assert [(line.pilot, line.reason, line.since) for line in told(telling, fleet)] == [("1", "Priority", 1010.0)]
    fleet.asked([JobId("2")], Event.CANCELLED, 30.0)
    assert [(line.pilot, line.phase, line.since) for line in told(telling, fleet)] == [("2", "cancelling", 1030.0)]
    assert not telling.waits


def test_a_restart_is_another_pilot_of_the_same_job() -> None:
    telling, fleet = Telling(PoolName("p")), queued("1")
    told(telling, fleet)
    fleet.listed([PilotState(job=JobId("1"), listed=Listed.RUNNING, restart=1, node="n1")], 20.0)
    for end in fleet.endings:
        telling.ended(end, "", 20.0)
    lines = told(telling, fleet)
    assert {(line.pilot, line.job, line.restart, line.phase) for line in lines} == {("1", "1", 0, "ended"), ("1+1", "1", 1, "running")}


def test_an_end_is_told_with_all_that_is_known_of_it() -> None:
    telling = Telling(PoolName("p"), epoch=1000.0)
    telling.ended(ending("7+2"), "no such module", 20.0)
    [end], [line] = telling.take()
    assert end == PilotEnded(PilotId("7+2"), "exit status 1: no such module", True)
    assert (line.phase, line.since, line.restart, line.cause, line.exit_status, line.ran) == ("ended", 1020.0, 2, "exit", 1, 5.0)
    assert (line.reason, line.words, line.failed) == ("exit status 1", "no such module", True)


def test_one_that_was_ended_for_being_held_ends_with_that_reason() -> None:
    """How the batch system calls the end that the factory made says nothing."""
    telling = Telling(PoolName("p"))
    telling.ended(ending("7", failed=False, charge="held: no such account", reason="CANCELLED"), "", 20.0)
    [end], [line] = telling.take()
    assert (end.reason, end.failed) == ("held: no such account", False)
    assert (line.reason, line.failed) == ("held: no such account", True)


def test_what_waits_to_be_told_is_told_as_it_is_then() -> None:
    """A pilot that ended meanwhile is told of once."""
    telling, fleet = Telling(PoolName("p")), queued("1")
    telling.look(fleet.pilots.values())
    telling.ended(ending("1"), "", 20.0)
    assert [line.phase for line in telling.take()[1]] == ["ended"]


@pytest.mark.parametrize("letter", ["x", "\N{REPLACEMENT CHARACTER}"])
def test_a_thousand_pilots_that_die_at_once_are_told_of_in_messages_that_fit(letter: str) -> None:
    """Each with long last words, and a hold reason that is an essay; a frame holds 1 MiB."""
    telling = Telling(PoolName("p"))
    for number in range(1000):
        telling.ended(ending(f"{number}", reason=letter * 10_000), letter * 4096, 20.0)
    ends: list[PilotEnded] = []
    lines: list[PilotLine] = []
    while telling.waits:
        some_ends, some_lines = telling.take()
        assert some_ends or some_lines
        assert len(msgspec.msgpack.encode(PoolReport((), some_ends, pilots=some_lines))) < MAX_FRAME_BYTES
        ends += some_ends
        lines += some_lines
    assert [end.pilot for end in ends] == [line.pilot for line in lines] == [f"{number}" for number in range(1000)]
    assert {(len(line.reason), len(line.words)) for line in lines} == {(REASON_MOST, WORDS_MOST)}
