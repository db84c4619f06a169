"""Patches: what pages are told makes of the state they have the state that is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from windlass.dashboard.feed import Feed, state_of
from windlass.dashboard.watch import FULL_EVERY, PACE, QUIET, SHARE, joined, pause

if TYPE_CHECKING:
    from dashboard_crowd import Crowd


class Page:
    """Applies patches as page.js does."""

    def __init__(self) -> None:
        self.sections: dict[str, Any] = {}
        self.tables: dict[str, dict[str, Any]] = {}
        self.samples: list[Any] = []
        self.lanes: dict[tuple[str, int], list[Any]] = {}

    def apply(self, patch: dict[str, Any]) -> None:
        patch = json.loads(json.dumps(patch))
        if patch.get("anew"):
            self.samples, self.lanes = [], {}
        if patch.get("whole"):
            self.tables = {}
        for name in ("manager", "calls", "transfers", "pools", "programs", "running", "record"):
            if name in patch:
                self.sections[name] = patch[name]
        for name in ("workers", "pilots", "libraries", "causes", "files"):
            table = self.tables.setdefault(name, {})
            table.update(patch.get(name, {}).get("set", {}))
            for key in patch.get(name, {}).get("gone", ()):
                del table[key]
        self.samples += patch.get("samples", [])
        for worker, _, lane, blocks in patch.get("lanes", ()):
            known = self.lanes.setdefault((worker, lane), [])
            while known and known[-1][0] >= blocks[0][0]:
                known.pop()
            known += blocks


def look(crowd: Crowd, feed: Feed, number: int = 0) -> dict[str, Any]:
    pieces = crowd.pieces(feed.since, feed.version, brief=bool(number % FULL_EVERY))
    return feed.take(joined([piece.json for piece in pieces]))


@pytest.fixture
def crowd(on_path: None) -> Crowd:
    from dashboard_crowd import Crowd

    return Crowd(6, 3000, cores=4)


def test_patches_lead_to_the_state_whenever_a_page_opens(crowd: Crowd) -> None:
    """The first page takes every patch, others the state at some time and the patches after it, one of them after it had
    been without a stream; all see the same."""
    feed, pages, late = Feed(), [Page()], Page()
    assert feed.state() == feed.whole() == {}
    for number in range(12):
        if number == 6:
            from windlass.messages import WorkerId

            crowd.core.worker_lost(WorkerId("w3"), "gone", crowd.now)
        patch = look(crowd, feed, number)
        for page in (*pages, *([late] if number < 4 or number > 8 else [])):
            page.apply(patch)
        if number % 4 == 1:
            pages.append(Page())
            pages[-1].apply(feed.state())
        if number == 8:
            late.apply(feed.state())
        crowd.turn(1.0, 0.5)
    states = [vars(page) for page in (*pages, late)]
    assert states[0]["lanes"]
    assert "w3" not in states[0]["tables"]["workers"]
    assert all(state == states[0] for state in states)


def test_what_has_not_changed_is_not_told_again(crowd: Crowd) -> None:
    """Time alone changes nothing but the time."""
    feed = Feed()
    look(crowd, feed)
    crowd.now += 0.5
    patch = look(crowd, feed)
    assert set(patch) == {"at"}


def test_one_worker_that_changes_is_one_row(crowd: Crowd) -> None:
    feed = Feed()
    look(crowd, feed)
    (worker, *_) = crowd.core.workers.values()
    worker.memory_used = 20 << 30
    patch = look(crowd, feed)
    assert list(patch["workers"]["set"]) == [worker.id]
    assert patch["workers"]["set"][worker.id]["used"] == 20 << 30
    assert patch["workers"]["gone"] == []


def test_a_manager_that_was_started_anew_begins_anew(crowd: Crowd, on_path: None) -> None:
    """What was noted in its earlier life is not on the page any more."""
    from dashboard_crowd import Crowd

    feed, page = Feed(), Page()
    page.apply(look(crowd, feed))
    crowd.turn(2.0, 1.0)
    page.apply(look(crowd, feed))
    assert page.lanes
    other = Crowd(1, 10)
    assert other.core.recorder is not None
    other.core.recorder.run = "another"
    patch = look(other, feed)
    assert patch["anew"]
    page.apply(patch)
    assert page.lanes == {}


def test_a_kept_run_shows_what_a_page_would(crowd: Crowd) -> None:
    """From JSON and back, as it stands in a file."""
    feed, page = Feed(), Page()
    for _ in range(3):
        crowd.turn(1.0, 1.0)
        page.apply(look(crowd, feed))
    report = Page()
    report.apply(state_of(json.loads(json.dumps(feed.whole()))))
    assert vars(report) == vars(page)


def test_what_is_long_ago_is_asked_for_again_when_there_is_too_much(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager has made it coarser meanwhile."""
    monkeypatch.setattr("windlass.dashboard.feed._MORE", 10)
    feed = Feed()
    crowd.turn(3.0, 1.0)
    look(crowd, feed)
    assert feed.since == 0.0
    assert look(crowd, feed)["anew"]


def test_the_pace_costs_the_manager_a_bounded_share() -> None:
    """However long an answer takes; without a page it is asked seldom."""
    for took in (0.0, 0.001, 0.05, 3.0):
        for watched in (True, False):
            assert took <= SHARE * pause(took, watched) + 1e-9
    assert (pause(0.001, True), pause(0.001, False)) == (PACE, QUIET)
