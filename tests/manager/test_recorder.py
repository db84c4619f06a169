"""What a recorder notes of a core's run, and what it costs a core that has none."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from windlass.dashboard.watch import joined
from windlass.manager.recorder import LOOKS_MOST, RUNNING_MOST, Recorder
from windlass.manager.views import PIECE_BYTES
from windlass.messages import RETURNED, CallEnd, CallId, CallsEnded, WorkerId

if TYPE_CHECKING:
    import dashboard_crowd

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def crowds(monkeypatch: pytest.MonkeyPatch) -> type[dashboard_crowd.Crowd]:
    """The benchmark's core with workers that run calls by hand."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import dashboard_crowd

    return dashboard_crowd.Crowd


TIMES = (math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0, 1.0, 1.8e9, 1e-300)


def recorder_of(crowd: dashboard_crowd.Crowd) -> Recorder:
    assert crowd.core.recorder is not None
    return crowd.core.recorder


def blocks_of(whole: dict[str, Any]) -> list[Any]:
    return [block for *_, blocks in whole["lanes"] for block in blocks]


def test_long_calls_are_blocks_of_their_own(crowds: type[dashboard_crowd.Crowd]) -> None:
    """Each with its function, its times and whether it failed; a worker has no more lanes than slots."""
    crowd = crowds(3, 200, cores=4)
    ended = sum(crowd.turn(3.0, 0.3) for _ in range(40))
    whole = crowd.whole()
    blocks = blocks_of(whole)
    assert ended == sum(block.calls for block in blocks) > 50
    assert all(block.call for block in blocks if block.calls == 1)
    assert {whole["record"]["names"][block.what] for block in blocks} == {"model.simulate", "tables.shape"}
    assert sum(block.failed for block in blocks) == crowd.core.failures.calls > 0
    assert max(lane for _, _, lane, _ in whole["lanes"]) < 4
    assert all(0.0 <= block.start <= block.end <= crowd.now - whole["record"]["began_at"] for block in blocks)


@pytest.mark.parametrize("seed", range(20))
def test_times_that_are_none_do_no_harm(crowds: type[dashboard_crowd.Crowd], seed: int) -> None:
    """A worker may say anything; the core goes on, and what is told are numbers."""
    chance = random.Random(seed)
    crowd = crowds(1, 200, cores=2, seconds=0.001)
    for _ in range(4):
        crowd.now += chance.choice([0.01, 2.0])
        for worker in list(crowd.core.workers.values()):
            calls = list(worker.calls.values())[: chance.randrange(1, 8)]
            ends = [
                CallEnd(one.spec.call, one.attempt, RETURNED, b"", started_at=chance.choice(TIMES), ended_at=chance.choice(TIMES))
                for one in calls
            ]
            crowd.core.worker_said(worker.id, [CallsEnded(ends)], crowd.now)
        crowd.core.tick(crowd.now)
    for block in blocks_of(crowd.whole()):
        assert all(math.isfinite(number) for number in (block.start, block.end, block.busy))


def test_short_calls_become_stretches_that_tell_how_many_they_are(crowds: type[dashboard_crowd.Crowd]) -> None:
    """All of them are counted, though few are looked at."""
    crowd = crowds(2, 20_000, cores=2, seconds=0.001)
    ended = sum(crowd.turn(0.05, 1.0) for _ in range(40))
    blocks = blocks_of(crowd.whole())
    assert sum(block.calls for block in blocks) == ended > 1000
    assert len(blocks) < 200


def test_what_a_second_costs_is_bounded(crowds: type[dashboard_crowd.Crowd]) -> None:
    """Of very many batches the first ones of a second are looked at; of all others only the number is taken, and none is forgotten."""
    crowd = crowds(400, 40_000, cores=2, seconds=0.002)
    recorder = recorder_of(crowd)
    before = recorder.timeline.version
    ended = sum(crowd.turn(0.05, 1.0) for _ in range(19))
    assert recorder.timeline.version - before < LOOKS_MOST + 400 * 2
    assert sum(block.calls for block in blocks_of(crowd.whole())) > 0.9 * ended


def test_a_core_without_a_recorder_notes_nothing_but_causes(crowds: type[dashboard_crowd.Crowd]) -> None:
    """Who looks later still finds why calls failed."""
    crowd = crowds(2, 400, record=False)
    for _ in range(10):
        crowd.turn(1.0, 1.0)
    assert crowd.core.recorder is None
    causes = crowd.core.failures.causes.rows()
    assert sum(row["calls"] for row in causes) == crowd.core.failures.calls > 0
    assert all(row["function"].startswith(("model.", "tables.")) and row["place"].startswith("model.py:") for row in causes)


def test_clocks_of_workers_that_are_off_are_put_right(crowds: type[dashboard_crowd.Crowd]) -> None:
    """By an hour, here; a call's length stays what it was."""
    crowd = crowds(1, 10, cores=1)
    (worker,) = crowd.core.workers.values()
    (call,) = list(worker.calls.values())[:1]
    crowd.now += 5.0
    end = CallEnd(call.spec.call, 1, RETURNED, b"", started_at=crowd.now + 3596.0, ready_at=crowd.now + 3596.0, ended_at=crowd.now + 3600.0)
    crowd.core.worker_said(worker.id, [CallsEnded([end])], crowd.now)
    (block,) = blocks_of(crowd.whole())
    assert (block.start, block.end) == (1.0, 5.0)


def test_late_answers_and_calls_that_did_not_start_are_not_on_the_time_line(crowds: type[dashboard_crowd.Crowd]) -> None:
    crowd = crowds(1, 1, cores=1)
    (worker,) = crowd.core.workers.values()
    crowd.core.worker_said(worker.id, [CallsEnded([CallEnd(CallId(999), 1, RETURNED, started_at=1.0, ended_at=2.0)])], crowd.now)
    crowd.core.worker_said(worker.id, [CallsEnded([CallEnd(CallId(1), 1, RETURNED)])], crowd.now)
    crowd.core.worker_said(worker.id, [CallsEnded([])], crowd.now)
    assert blocks_of(crowd.whole()) == []


def test_calls_that_run_for_long_are_told_of_while_they_run(crowds: type[dashboard_crowd.Crowd]) -> None:
    """As many of a worker as it has slots, since they were sent; of very many some."""
    crowd = crowds(2, 50, cores=2)
    assert crowd.whole()["running"] == []
    crowd.now += 60.0
    running = crowd.whole()["running"]
    assert [worker for worker, *_ in running] == ["w0", "w0", "w1", "w1"]
    assert all(since == 0.0 for *_, since in running)
    many = crowds(400, 10_000)
    many.now += 60.0
    assert len(many.whole()["running"]) <= RUNNING_MOST + 8


def test_a_worker_that_has_gone_keeps_its_lanes(crowds: type[dashboard_crowd.Crowd]) -> None:
    """What ran there did run."""
    crowd = crowds(2, 100)
    crowd.turn(3.0, 1.0)
    crowd.core.worker_lost(WorkerId("w0"), "preempted", crowd.now)
    assert {worker for worker, *_ in crowd.whole()["lanes"]} == {"w0", "w1"}
    lost = [row for row in crowd.core.failures.causes.rows() if row["kind"] == "lost with its worker"]
    assert sum(row["retried"] for row in lost) == crowd.core.failures.lost > 0


def test_views_fit_into_messages_and_say_what_is_new(crowds: type[dashboard_crowd.Crowd]) -> None:
    """Joined they are the whole; a brief one lacks pilots and files, and what was told before is not told again."""
    crowd = crowds(1000, 20_000)
    crowd.turn(3.0, 0.5)
    first = crowd.pieces()
    assert all(len(piece.json) <= PIECE_BYTES for piece in first)
    assert [piece.more for piece in first] == [True] * (len(first) - 1) + [False]
    whole = joined([piece.json for piece in first])
    assert (len(whole["workers"]), len(whole["pilots"])) == (1000, 1001)
    assert [bool(row["story"]) for row in whole["pilots"]] == [row["failed"] for row in whole["pilots"]]
    record = whole["record"]
    ended = crowd.turn(1.0, 0.01)
    news = joined([piece.json for piece in crowd.pieces(record["until"], record["version"], brief=True)])
    assert "pilots" not in news
    assert "files" not in news
    assert sum(block[3] for *_, blocks in news["lanes"] for block in blocks) >= ended
    assert len(news["lanes"]) < len(whole["lanes"])
    assert all(row[0] > record["until"] for row in news["samples"])


def test_samples_say_how_many_there_are_of_what(crowds: type[dashboard_crowd.Crowd]) -> None:
    """The names of their numbers stand beside them."""
    crowd = crowds(2, 100, cores=4)
    crowd.turn(2.0, 1.0)
    whole = crowd.whole()
    row = dict(zip(whole["record"]["sampled"], whole["samples"][-1], strict=True))
    assert row["workers"] == 2
    assert row["slots"] == 8
    assert row["running"] == 8
    assert row["done"] + row["failed"] + row["waiting"] + sum(len(one.calls) for one in crowd.core.workers.values()) == 100
