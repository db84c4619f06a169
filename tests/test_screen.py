"""The screen of ``windlass status --watch``, as lines: what is shown of what, at which size."""

from __future__ import annotations

from typing import Any

import pytest

from windlass.screen import WIDE, View, draw

WORKER = {
    "id": "node1-4711-aabbccdd",
    "host": "node1",
    "pool": "short",
    "cores": 8.0,
    "running": 8,
    "held": 12,
    "memory_used": 3 << 30,
    "memory_limit": 16 << 30,
    "seconds_left": 3000.0,
    "connected": True,
    "draining": "",
    "idle_seconds": 0.0,
    "libraries": [{"name": "lib", "slots": 8, "phase": "ready"}],
}
PAUSED = (
    "3 pilots in a row ended before they served, the last one so: pilot 17 on node3: exit status 1: "
    "ModuleNotFoundError: No module named 'x'"
)


def status(workers: int = 2, libraries: int = 2) -> dict[str, Any]:
    return {
        "manager": {"id": "lab-1234", "addresses": ["10.0.0.1:9123"], "at": 1_800_000_000.0},
        "calls": {"waiting": 1200, "running": 16, "done": 45_678, "failed": 3, "cancelled": 0, "retried": 2, "lost_attempts": 0},
        "libraries": [
            {"name": f"lib{n}", "waiting": n, "running": 8, "done": 9, "slots": 8, "mean_seconds": 0.2, "longest_seconds": 3.0}
            for n in range(libraries)
        ],
        "workers": [{**WORKER, "id": f"worker-{n}"} for n in range(workers)],
        "pools": [
            {"name": "short", "backend": "slurm", "pilots": {"serving": 2, "queued": 3}, "cores": 8.0, "walltime": 7200.0, "paused": ""},
            {"name": "broken", "backend": "slurm", "pilots": {}, "cores": 4.0, "walltime": 0.0, "paused": PAUSED},
        ],
        "pilots": [
            *({"pool": "short", "phase": "queued", "reason": "Priority", "failed": False} for _ in range(3)),
            {"pool": "broken", "phase": "ended", "reason": "exit status 1", "failed": True},
        ],
    }


CALLS = [
    {"state": "running", "library": "lib1", "function": "f", "tag": "a", "host": "node1", "ran": 75.0},
    *(
        {
            "state": "failed",
            "library": "lib1",
            "function": "f",
            "tag": "a",
            "host": "node2",
            "ended_at": 1_799_999_990.0,
            "error": f"ValueError: no row {n}",
        }
        for n in range(5)
    ),
]


def view(found: dict[str, Any] | None = None, **more: Any) -> View:
    one = View({}, calls=CALLS, name="lab", **more)
    one.take(found or status())
    return one


def shown(one: View, width: int = 80, height: int = 24) -> list[str]:
    return [line.plain.rstrip() for line in draw(one, width, height)]


@pytest.mark.parametrize("width", [1, 20, 40, 79, 80, WIDE - 1, WIDE, 200, 400])
@pytest.mark.parametrize("height", [1, 2, 3, 10, 24, 60])
def test_there_are_as_many_lines_as_the_terminal_has_and_none_is_longer(width: int, height: int) -> None:
    """Whatever there is to show."""
    statuses: list[dict[str, Any]] = [status(), status(1000, 60), status(0, 0), {"manager": {}}]
    for found in statuses:
        lines = draw(view(found), width, height)
        assert len(lines) == height
        assert max(line.cell_len for line in lines) <= max(width, 20)


def test_a_small_terminal_shows_what_matters_most() -> None:
    """How far, at which rate, which pool is paused and why, what to do, what failed; then workers."""
    lines = shown(view(status(workers=50)))
    text = "\n".join(lines)
    assert lines[0].startswith(" windlass  lab  10.0.0.1:9123")
    for words in (
        "1,200 waiting",
        "45,678 done",
        "3 failed",
        "50 workers, 16 slots",
        "97%",
        "2 serving, 3 queued",
        "3 queued: Priority",
        "ModuleNotFoundError: No module named",
        "windlass factory resume broken",
        "ValueError: no row 0",
        "worker-0",
        "more: windlass workers",
        "q ends",
    ):
        assert words in text, text


def test_a_wide_terminal_shows_two_columns() -> None:
    lines = shown(view(), WIDE, 30)
    [heading] = [line for line in lines if line.startswith("library")]
    assert "pool " in heading, "beside the libraries"
    assert any(line.startswith("worker-1") for line in lines)
    assert any("longest running" in line for line in lines)


def test_a_narrow_terminal_leaves_out_what_matters_least() -> None:
    """Whole columns, before names are cut to shreds."""
    [heading] = [line for line in shown(view(), 48, 40) if line.startswith("worker ")]
    assert "libraries" not in heading
    assert "calls" in heading


def test_rate_and_time_left_are_of_the_last_seconds() -> None:
    """And there are none before the second look."""
    one = view()
    assert one.rate() is None
    assert " per s" not in shown(one)[2]
    for second in range(1, 31):
        found = status()
        found["manager"]["at"] += second
        found["calls"]["done"] += 10 * second if second < 15 else 150 + 100 * (second - 15)
        one.take(found)
    assert one.rate() == pytest.approx(100)
    lines = shown(one)
    assert "100 per s" in lines[2]
    assert "12 s left" in lines[2]
    assert "█ 100/s  " in lines[3]
    assert lines[3].startswith("▁▁")


def test_workers_are_scrolled_and_no_further_than_there_are() -> None:
    one = view(status(workers=100))
    one.offset = 40
    assert any(line.startswith("worker-40 ") for line in shown(one, 80, 40))
    one.offset = 4000
    assert any(line.startswith("worker-99 ") for line in shown(one, 80, 40))
    assert one.offset == 99


def test_what_is_wrong_with_the_manager_stands_below() -> None:
    assert shown(view(trouble="no answer for 7 s"))[-1] == "no answer for 7 s"
    assert shown(View({}, trouble="no answer for 7 s")) == [""] * 23 + ["no answer for 7 s"], "also before it has said anything"
    assert shown(view(frozen="12:00:00"))[-1] == "frozen at 12:00:00; p goes on, q ends"


def test_a_terminal_without_such_letters_gets_others() -> None:
    """``LANG=C``: bars, arrows and the sign for what was cut."""
    one = view(status(workers=99), unicode=False)
    found = status()
    found["manager"]["at"] += 1
    found["calls"]["done"] += 5
    one.take(found)
    assert "\n".join(shown(one)).isascii()


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    """Names, errors and reasons may be anybody's."""
    found = status()
    for row in (*found["libraries"], *found["workers"], *found["pools"]):
        for key in ("name", "id", "host", "paused", "draining"):
            if key in row:
                row[key] = "a\x1b[2J\x07\nb"
    one = view(found)
    one.calls = [{**CALLS[1], "error": "\x1b]0;title\x07"}]
    one.name = "\x1b[31m"
    for size in ((80, 60), (200, 60)):
        assert all(line.isprintable() for line in shown(one, *size))


def test_a_status_is_shown_whatever_it_lacks() -> None:
    """The command line of one version looks at managers of others."""
    full = status()
    for missing in full:
        draw(view({key: value for key, value in full.items() if key != missing}), 80, 24)
        draw(view({**full, missing: [{}] if isinstance(full[missing], list) else {}}), 200, 24)
        draw(view({**full, missing: None}), 80, 24)
    draw(View({}), 80, 24)
