"""What factories tell of their pilots: the newest line, the story, and how much of it is kept."""

from __future__ import annotations

from windlass.manager.pilots import ASKED, ENDED_KEPT, LEFT, POOLS_KEPT, SHOWN, STEPS, PilotBook
from windlass.manager.workers import Worker
from windlass.messages import PilotId, PilotLine, PoolName, Resources, WorkerId, WorkerInfo


def line(pilot: str, phase: str, at: float = 0.0, **more: object) -> PilotLine:
    return PilotLine(PoolName("p"), PilotId(pilot), pilot, phase, at, 0.0, **more)  # type: ignore[arg-type]


def test_a_pilot_has_a_story_of_its_phases() -> None:
    """One step for each phase, with the reason at its beginning; other changes are in the newest line."""
    book = PilotBook()
    book.take("f", [line("1", "queued", 1.0, reason="Priority"), line("1", "queued", 1.0, reason="Resources")])
    book.take("f", [line("1", "running", 5.0, node="n1", log="/logs/1.log")])
    [row] = book.rows([], 0.0)
    assert (row["phase"], row["since"], row["node"], row["log"], row["factory"]) == ("running", 5.0, "n1", "/logs/1.log", "f")
    assert [(step["at"], step["phase"], step["reason"]) for step in row["story"]] == [(1.0, "queued", "Priority"), (5.0, "running", "")]


def test_a_pilot_is_shown_with_its_workers() -> None:
    """They are known by pool and pilot; a pilot of several nodes has several."""
    info = WorkerInfo("n1", 7, Resources(1.0), (), PoolName("p"), PilotId("1"), 0.0, True, "/tmp")
    other = WorkerInfo("n2", 8, Resources(1.0), (), PoolName("q"), PilotId("1"), 0.0, True, "/tmp")
    workers = [Worker(WorkerId("a"), info, 0.0), Worker(WorkerId("b"), other, 0.0)]
    book = PilotBook()
    book.take("f", [line("1", "serving")])
    assert [worker["id"] for worker in book.rows(workers, 0.0)[0]["workers"]] == ["a"]


def test_a_pilot_is_shown_with_a_worker_that_says_an_earlier_name_of_its_pool() -> None:
    """Found by its host, too. Not one of a pool that has a factory of its own."""
    worker = Worker(WorkerId("a"), WorkerInfo("n1", 7, Resources(1.0), (), PoolName("before"), PilotId("1"), 0.0, True, "/tmp"), 0.0)
    book = PilotBook()
    book.take("f", [line("1", "serving")])

    def shown(*offered: str) -> list[str]:
        [row] = book.rows([worker], 0.0, "", [PoolName(name) for name in offered])
        return [one["id"] for one in row["workers"]]

    assert shown("p") == ["a"]
    assert shown("p", "before") == []


def test_of_those_that_have_ended_the_newest_are_kept() -> None:
    """Of each pool; those that live are all kept."""
    book = PilotBook()
    book.take("f", [line("lives", "serving")])
    for number in range(ENDED_KEPT + 5):
        book.take("f", [line(str(number), "ended", float(number), words="oh", failed=True)])
    rows = book.rows([], 0.0)
    assert [row["pilot"] for row in rows][:2] == ["lives", "5"]
    assert len(rows) == ENDED_KEPT + 1
    assert rows[-1]["words"] == "oh"


def test_of_more_than_are_shown_each_can_be_named() -> None:
    """By the beginning of it or of its job, and by where it runs."""
    book = PilotBook()
    book.take("f", [line("first", "serving", node="n1"), line("second", "serving")])
    book.take("f", [line(str(number), "serving") for number in range(SHOWN)])
    worker = Worker(WorkerId("a"), WorkerInfo("n2", 7, Resources(1.0), (), PoolName("p"), PilotId("second"), 0.0, True, "/tmp"), 0.0)

    def beyond(wanted: str) -> list[str]:
        rows = book.rows([worker], 0.0, wanted)
        assert [row["pilot"] for row in rows[-SHOWN:]] == [str(number) for number in range(SHOWN)]
        return [row["pilot"] for row in rows[:-SHOWN]]

    assert [beyond(wanted) for wanted in ("", "x", "fir", "n1", "n2", "n")] == [[], [], ["first"], ["first"], ["second"], []]


def test_times_are_of_the_manager_s_clock() -> None:
    """A factory's clock may be off; how much, the quickest message tells."""
    book = PilotBook()
    book.take("f", [line("1", "queued", 100.0)], said_at=100.0, now=5_000.5)
    assert book.rows([], 0.0)[0]["since"] == 5_000.5
    book.take("f", [line("1", "running", 160.0)], said_at=200.0, now=5_130.0)  # it took half a minute
    assert book.rows([], 0.0)[0]["since"] == 5_060.5


def test_clocks_that_agree_are_left_alone() -> None:
    """A late message does not shift times."""
    book = PilotBook()
    book.take("f", [line("1", "queued", 100.0)], said_at=100.0, now=100.01)
    book.take("f", [line("1", "running", 110.0)], said_at=120.0, now=180.0)
    assert book.rows([], 0.0)[0]["since"] == 110.0


def test_pilots_of_a_factory_that_has_left_count_as_ended_when_they_have_no_worker() -> None:
    """Nobody tells any more what becomes of them."""
    info = WorkerInfo("n1", 7, Resources(1.0), (), PoolName("p"), PilotId("1"), 0.0, True, "/tmp")
    worker = Worker(WorkerId("a"), info, 0.0, idle_since=40.0)
    book = PilotBook()
    book.take("f", [line("1", "serving"), line("2", "running"), line("3", "ended", 5.0, reason="exit status 1"), line("5", "leaving")])
    book.take("g", [line("4", "running")])
    book.factory_left("f", 50.0)
    rows = {row["pilot"]: row for row in book.rows([worker], 60.0)}
    assert {pilot: row["phase"] for pilot, row in rows.items()} == {
        "1": "serving",
        "2": "ended",
        "3": "ended",
        "4": "running",
        "5": "ended",
    }
    assert (rows["2"]["since"], rows["2"]["reason"], rows["2"]["failed"]) == (50.0, LEFT, False)
    assert rows["5"]["reason"] == ASKED
    assert rows["3"]["reason"] == "exit status 1"
    assert (rows["1"]["workers"][0]["idle_seconds"], rows["1"]["workers"][0]["running"]) == (20.0, 0)
    assert {row["pilot"]: row["phase"] for row in book.rows([], 70.0)}["1"] == "ended"


def test_a_factory_that_comes_back_tells_of_its_pilots_again() -> None:
    book = PilotBook()
    book.take("f", [line("1", "serving", 1.0)])
    book.factory_left("f", 50.0)
    assert book.rows([], 60.0)[0]["phase"] == "ended"
    book.take("f", [line("1", "running", 61.0)])
    [row] = book.rows([], 70.0)
    assert [step["phase"] for step in row["story"]] == ["serving", "ended", "running"]


def test_pools_without_a_factory_are_forgotten_the_oldest_first() -> None:
    """A program that opens a factory a minute must not fill its manager."""
    book = PilotBook()
    for number in range(POOLS_KEPT + 3):
        pool = PoolName(f"p{number}")
        book.take(f"f{number}", [PilotLine(pool, PilotId("1"), "1", "serving", 0.0, 0.0)])
        book.factory_left(f"f{number}", 1.0)
    book.take("stays", [line("1", "serving")])
    book.forget_pools([PoolName("p"), PoolName("p0")])
    pools = {row["pool"] for row in book.rows([], 2.0)}
    assert {"p", "p0"} < pools
    assert len(pools) == POOLS_KEPT + 2
    assert "p1" not in pools


def test_a_story_keeps_its_beginning() -> None:
    """And its last steps."""
    book = PilotBook()
    for number in range(2 * STEPS):
        book.take("f", [line("1", "running" if number % 2 else "serving", float(number))])
    story = book.rows([], 0.0)[0]["story"]
    assert len(story) == STEPS
    assert (story[0]["at"], story[-1]["at"]) == (0.0, 2 * STEPS - 1.0)
