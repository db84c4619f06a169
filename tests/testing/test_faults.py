"""Faults as records, rows of them drawn from seeds, and stories in words."""

from __future__ import annotations

from typing import Any, cast

import pytest

import windlass.testing
from windlass.errors import UsageError
from windlass.testing import BadNode, CutConnections, Fault, KillPilot, Preempt, RefuseSubmissions, SlowQueue, Story, chaos
from windlass.testing.faults import HITS_MOST, OfPilot
from windlass.testing.story import SHOWN, Event, doing


def test_a_fault_is_shown_as_one_writes_it() -> None:
    """What a failed test prints can be pasted into one; what was left to the default is left out."""
    assert repr(Preempt(after=3)) == "Preempt(after=3)"
    assert repr(Preempt("n2", notice=1.5, requeue=False)) == "Preempt(node='n2', notice=1.5, requeue=False)"
    assert repr(CutConnections(0.5, silently=True)) == "CutConnections(seconds=0.5, silently=True)"
    assert repr(BadNode("n1")) == "BadNode(node='n1')"


@pytest.mark.parametrize("seed", range(50))
def test_chaos_is_the_same_for_the_same_seed_and_hits_no_call_too_often(seed: int) -> None:
    """Printed and pasted, it is the same row; a call may be lost five times, so no more pilots are hit; moments come in their order."""
    drawn = chaos(seed, 12)
    assert drawn == chaos(seed, 12)
    names = {name: getattr(windlass.testing, name) for name in windlass.testing.__all__}
    assert tuple(eval(f"[{', '.join(map(repr, drawn))}]", names)) == drawn
    assert sum(isinstance(fault, OfPilot) for fault in drawn) <= HITS_MOST
    assert [fault.at for fault in drawn] == sorted(fault.at for fault in drawn)
    assert not any(isinstance(fault, RefuseSubmissions | BadNode) for fault in drawn), "these end a program, or hold it up for seconds"


def test_seeds_differ() -> None:
    """Fifty seeds give fifty rows."""
    assert len({chaos(seed) for seed in range(50)}) == 50


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda: Preempt(after=-1), r"Preempt\(after=-1\): give a number, 0 or more"),
        (lambda: SlowQueue(cast("Any", "1 s")), r"SlowQueue\(seconds='1 s'\): give a number, 0 or more"),
        (lambda: KillPilot(cast("Any", 2)), r"KillPilot\(node=2\): give a text, as in node='n1'"),
    ],
)
def test_what_is_no_fault_is_refused(wrong: object, text: str) -> None:
    """Where it is written, and not in the middle of a test."""
    assert callable(wrong)
    with pytest.raises(UsageError, match=text):
        wrong()


def test_every_public_name_can_be_had() -> None:
    """The lazy names lead somewhere, and there is no other public one."""
    for name in windlass.testing.__all__:
        assert getattr(windlass.testing, name) is not None, name
    assert set(windlass.testing.__all__) <= set(dir(windlass.testing))
    assert all(fault.__doc__ for fault in Fault.__subclasses__())
    with pytest.raises(AttributeError, match=r"module 'windlass\.testing' has no attribute 'FakePol'"):
        _ = windlass.testing.FakePol  # type: ignore[attr-defined]  # pyright: ignore


def test_a_story_reads_as_one() -> None:
    """Zeros are left out, numbers agree with their nouns."""
    story = Story(
        submitted=3, done=2, failed=1, lost=2, retried=1, pilots=2, preemptions=1, refused=1, cuts=2, events=(Event(1.5, "n1: preempted"),)
    )
    assert story.attempts == 6
    assert str(story).splitlines() == [
        "calls:   3 calls submitted: 2 done, 1 failed",
        "         6 attempts; 2 lost with their pilots, 1 by retries",
        "pilots:  2 starts; 1 preempted",
        "batch:   submissions refused: 1, cuts: 2",
        "",
        "     1.50 s  n1: preempted",
    ]
    assert str(Story()).splitlines() == ["calls:   0 calls submitted: none has ended", "         0 attempts", "pilots:  0 starts"]
    assert "  (5 earlier events)" in str(Story(events=tuple(Event(at, "x") for at in range(SHOWN + 5))))


def test_what_a_pool_is_doing_is_told_in_lines() -> None:
    """Calls, libraries that cannot start, pilots, pauses, faults to come."""
    status = {"calls": {"waiting": 2, "done": 1}, "libraries": [{"name": "lib", "failed": "no numpy"}, {"name": "ok", "failed": ""}]}
    assert doing([status], ["n1: serves, 1 running"], ["Preempt(after=9)"], ["fake: Invalid account"]).splitlines() == [
        "calls:   2 waiting, 1 done",
        "library: lib cannot start: no numpy",
        "pilot:   n1: serves, 1 running",
        "paused:  fake: Invalid account",
        "to come: Preempt(after=9)",
    ]
    calls = {"waiting": 3, "submitted": 3}
    idle: dict[str, Any] = {"calls": {"waiting": 0, "submitted": 0}, "libraries": []}
    two = doing([idle, {"calls": calls, "libraries": []}], [], [], [])
    assert two.splitlines() == ["calls:   3 waiting", "pilots:  none"], "managers without calls say nothing beside those with some"
    assert doing([idle, idle], [], [], []).splitlines()[0] == "calls:   none was submitted"
    assert doing([], [], [], []).splitlines() == ["calls:   no manager was made", "pilots:  none"]
