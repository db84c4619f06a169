"""The status object: what does not fit one message is left out, rather than not sent."""

from __future__ import annotations

import json
from collections import Counter
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from windlass.manager.status import BYTES_MOST, within
from windlass.metrics import Metrics
from windlass.screen import View, draw
from windlass.status import picture
from windlass.sums import ADDED, count_workers, pilots_failed


def rows(pilots: int, workers: int) -> dict[str, Any]:
    story = [{"at": 1.0, "phase": "queued", "reason": "x" * 50}] * 20
    return {
        "calls": {"waiting": 3},
        "pilots": [{"pilot": str(n), "pool": "short", "phase": "serving", "failed": n == 1, "story": story} for n in range(pilots)]
        + [{"pilot": "old", "phase": "ended", "failed": False, "story": story}],
        "workers": [
            {"id": f"w{n}", "host": "h" * 100, "pool": "short", "connected": n > 0, "draining": False, **dict.fromkeys(ADDED, 1)}
            for n in range(workers)
        ],
    }


def test_what_fits_is_whole() -> None:
    found = rows(2, 2)
    assert json.loads(within(found, 1 << 20)) == found


@pytest.mark.parametrize(("pilots", "workers"), [(100, 10), (10_000, 10_000), (0, 20_000), (20_000, 0)])
def test_what_does_not_fit_is_cut_and_says_so(pilots: int, workers: int) -> None:
    """Stories and what has ended go first; the rest of the status stays."""
    encoded = within(rows(pilots, workers), 100_000)
    assert len(encoded) <= 100_000
    found = json.loads(encoded)
    assert (found["cut"], found["calls"]) == (True, {"waiting": 3})
    assert all(row["story"] == [] for row in found["pilots"])
    assert "old" not in [row["pilot"] for row in found["pilots"]]
    assert bool(found["pilots"]) == bool(pilots)
    assert bool(found["workers"]) == bool(workers)


def test_pilots_are_left_out_before_workers() -> None:
    """These are what people count, and what there is no other source for."""
    found = json.loads(within(rows(1000, 1001), len(json.dumps(rows(0, 1001))) + 20_000))
    assert len(found["workers"]) == 1001
    assert 0 < len(found["pilots"]) < 1000


def test_who_is_asked_for_by_name_is_there_with_its_story() -> None:
    """The beginning of a pilot or its job, a host, a worker; also one that has ended."""
    found = rows(1000, 3000)
    found["pilots"][0] |= {"job": "x4711", "node": "n1", "workers": [{"host": "n1.site"}]}
    found["workers"][2999] |= {"host": "n1"}

    def told(wanted: str) -> tuple[list[str], list[str]]:
        cut = json.loads(within(found, 50_000, wanted))
        assert cut["cut"]
        return [row["pilot"] for row in cut["pilots"] if row["story"]], [row["id"] for row in cut["workers"] if row["id"] == "w2999"]

    assert told("") == ([], [])
    assert told("x47") == told("n1.site") == (["0"], [])
    assert told("n1") == (["0"], ["w2999"])
    assert told("w2999") == ([], ["w2999"])
    assert told("old") == (["old"], [])


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("programs", [{"name": f"p{n}", "tags": [f"tag {n} {tag}" * 10 for tag in range(20)]} for n in range(2000)]),
        ("libraries", [{"name": f"l{n}", "failed": "x" * 24_000 + "!", "imports": {"m": {"error": "y" * 9999}}} for n in range(50)]),
        ("libraries", [{"name": "large", "functions": [f"function_{n}" for n in range(100_000)]}]),
        ("files", [{"name": f"f{n}", "source": "/folder" * 600 + f"/{n}"} for n in range(300)]),
        ("pools", [{"name": f"p{n}", "paused": "x" * 24_000} for n in range(50)]),
    ],
    ids=["programs", "libraries", "functions", "files", "pools"],
)
def test_whatever_is_large_the_answer_fits_and_leaves_room_for_the_rest(kind: str, rows: list[dict[str, Any]]) -> None:
    """An answer that does not fit ends the session of whoever asked, with all its calls."""
    whole: dict[str, Any] = {"manager": {"id": "m"}, "pilots": [], "workers": [], "libraries": [], "files": [], "pools": [], "programs": []}
    found = json.loads(within({**whole, kind: rows}))
    assert len(within({**whole, kind: rows})) <= BYTES_MOST
    assert (found["cut"], found["manager"]) == (True, {"id": "m"})
    assert found[kind][-1]["name"] == rows[-1]["name"], "the newest"
    if "failed" in rows[0]:
        assert len(found[kind]) == 50
        assert found[kind][0]["failed"].endswith("x!"), "the end says what is wrong"


def test_of_thousands_that_begin_so_the_one_that_is_so_is_told_with_its_story() -> None:
    """Nobody can write more of its name."""
    found = rows(2000, 0)
    found["pilots"] = [{**row, "pilot": f"4711_{n}", "job": f"4711_{n}"} for n, row in enumerate(found["pilots"])]
    cut = json.loads(within(found, wanted="4711_1"))
    assert cut["cut"]
    assert [row["pilot"] for row in cut["pilots"] if row["story"]][-1] == "4711_1"


def test_of_more_workers_on_a_host_than_have_a_share_all_that_there_is_room_for_are_told() -> None:
    found = rows(0, 4000)
    for row in found["workers"][1000:2000]:
        row["host"] = "n1"
    cut = json.loads(within(found, len(json.dumps(found)) // 2, "n1"))
    assert sum(row["host"] == "n1" for row in cut["workers"]) == 1000


def test_libraries_are_left_out_for_pilots_and_workers_only_where_few_of_these_have_no_room() -> None:
    """What runs is not to be unknown by its name."""
    found = rows(2000, 2000)
    imports = {f"module_{n}": {"seconds": 0.1, "error": ""} for n in range(30)}
    libraries = [{"name": f"l{n}", "functions": [f"function_{one}" for one in range(20)], "imports": imports} for n in range(100)]
    cut = json.loads(within({**found, "libraries": libraries}))
    assert cut["cut"]
    assert cut["libraries"] == libraries
    assert len(cut["workers"]) >= 1000


@pytest.mark.parametrize("most", [1 << 30, 50_000])
def test_what_is_counted_is_right_in_a_status_that_was_cut(most: int) -> None:
    """Metrics, `stats` and screens tell what there is, not what one message held."""
    found = json.loads(within(rows(1000, 3000), most))
    assert ("cut" in found) == (len(found["workers"]) < 3000)
    assert (count_workers(found), count_workers(found, connected=True), pilots_failed(found)) == (3000, 2999, {"short": 1})
    calls = [
        "waiting",
        "running",
        "waiting_for_inputs",
        "waiting_for_files",
        "submitted",
        "done",
        "failed",
        "cancelled",
        "retried",
        "lost_attempts",
    ]
    transfers = ("under_way", "waiting", "bytes_from_manager", "object_bytes_out", "object_bytes_in")
    nothing: dict[str, list[Any]] = {"libraries": [], "pools": [], "programs": []}
    whole: dict[str, Any] = {**found, **nothing, "manager": {"id": "m"}}
    whole |= {"calls": dict.fromkeys(calls, 0), "transfers": dict.fromkeys(transfers, 0)}
    told: Counter[str] = Counter()
    for family in Metrics().families(whole):
        for sample in family.samples:
            told[sample.name] += int(sample.value)
    shown = StringIO()
    Console(file=shown, width=200).print(picture(whole))
    assert "workers (the first 40 of 3000)" in shown.getvalue()
    assert "1 pilot has failed" in shown.getvalue()
    assert "3,000 workers" in "\n".join(line.plain for line in draw(View(whole), 120, 20))
    assert (told["windlass_workers"], told["windlass_worker_cores"], told["windlass_pilots_failed"]) == (3000, 3000, 1)
