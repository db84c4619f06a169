"""What factories tell of their pilots: the newest line, the story, and how much of it is kept."""

from __future__ import annotations

from windlass.manager.pilots import ENDED_KEPT, PilotBook
from windlass.manager.workers import Worker
from windlass.messages import PilotId, PilotLine, PoolName, Resources, WorkerId, WorkerInfo


def line(pilot: str, phase: str, at: float = 0.0, **more: object) -> PilotLine:
    return PilotLine(PoolName("p"), PilotId(pilot), pilot, phase, at, 0.0, **more)  # type: ignore[arg-type]


def test_a_pilot_has_a_story_of_its_phases() -> None:
    """One step for each phase, with the reason at its beginning; other changes are in the newest line."""
    book = PilotBook()
    book.take("f", [line("1", "queued", 1.0, reason="Priority"), line("1", "queued", 1.0, reason="Resources")])
    book.take("f", [line("1", "running", 5.0, node="n1", log="/logs/1.log")])
    [row] = book.rows([])
    assert (row["phase"], row["since"], row["node"], row["log"], row["factory"]) == ("running", 5.0, "n1", "/logs/1.log", "f")
    assert [(step["at"], step["phase"], step["reason"]) for step in row["story"]] == [(1.0, "queued", "Priority"), (5.0, "running", "")]


def test_a_pilot_is_shown_with_its_workers() -> None:
    """They are known by pool and pilot; a pilot of several nodes has several."""
    info = WorkerInfo("n1", 7, Resources(1.0), (), PoolName("p"), PilotId("1"), 0.0, True, "/tmp")
    other = WorkerInfo("n2", 8, Resources(1.0), (), PoolName("q"), PilotId("1"), 0.0, True, "/tmp")
    workers = [Worker(WorkerId("a"), info, 0.0), Worker(WorkerId("b"), other, 0.0)]
    book = PilotBook()
    book.take("f", [line("1", "serving")])
    assert [worker["id"] for worker in book.rows(workers)[0]["workers"]] == ["a"]


def test_of_those_that_have_ended_the_newest_are_kept() -> None:
    """Of each pool; those that live are all kept."""
    book = PilotBook()
    book.take("f", [line("lives", "serving")])
    for number in range(ENDED_KEPT + 5):
        book.take("f", [line(str(number), "ended", float(number), words="oh", failed=True)])
    rows = book.rows([])
    assert [row["pilot"] for row in rows][:2] == ["lives", "5"]
    assert len(rows) == ENDED_KEPT + 1
    assert rows[-1]["words"] == "oh"
