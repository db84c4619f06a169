"""Reports and traces: files that need nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from windlass.cli import main
from windlass.dashboard.perfetto import perfetto_json
from windlass.dashboard.report import SCRIPTS, report_html
from windlass.errors import UnknownName, UsageError
from windlass.runs import RUNS_KEPT, find_run, known_runs, read_run, run_name, write_run

if TYPE_CHECKING:
    from dashboard_crowd import Crowd


@pytest.fixture
def whole(on_path: None) -> dict[str, Any]:
    """A run of 6 workers, as it is kept."""
    from dashboard_crowd import Crowd

    crowd: Crowd = Crowd(6, 2000, cores=4)
    for _ in range(15):
        crowd.turn(1.0, 0.5)
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(crowd.whole()))
    return found


def test_a_report_asks_nobody_for_anything(whole: dict[str, Any]) -> None:
    """No address in it leads elsewhere; its own policy allows its own scripts and style, by hash, and nothing else."""
    page = report_html(whole).decode()
    assert re.findall(r"(?:src|href)=\"(?!data:)([^\"]*)\"", page) == ["report.html", "trace.json"]  # hidden there
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert (len(scripts), len(styles)) == (len(SCRIPTS), 1)
    for text in scripts + styles:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy.group(1)
    assert "unsafe" not in policy.group(1)
    assert "connect-src" not in policy.group(1)


def test_what_calls_say_cannot_end_the_script(whole: dict[str, Any]) -> None:
    """An exception's text is data."""
    whole["causes"][0]["message"] = "</script><script>alert(1)</script><!--"
    page = report_html(whole).decode()
    assert "alert(1)</script>" not in page
    data = re.search(r'<script type="application/json" id="report">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert whole["causes"][0]["message"] in [row["message"] for row in json.loads(data.group(1))["causes"]["set"].values()]


def test_a_trace_is_what_the_format_asks_for(whole: dict[str, Any]) -> None:
    """Workers are processes, slots threads, calls complete events with times in microseconds, numbers counters."""
    trace = json.loads(perfetto_json(whole))
    events = trace["traceEvents"]
    by_phase = {phase: [event for event in events if event["ph"] == phase] for phase in "MXC"}
    assert sum(map(len, by_phase.values())) == len(events)
    assert len([event for event in by_phase["M"] if event["name"] == "process_name"]) == 7
    assert sum(event["args"]["calls"] for event in by_phase["X"]) == whole["calls"]["done"] + whole["calls"]["failed"]
    assert all(event["ts"] >= 0 and event["dur"] >= 0 and event["pid"] > 0 and event["tid"] > 0 for event in by_phase["X"])
    assert {event["cat"] for event in by_phase["X"]} == {"call", "failed"}
    named = {(event["pid"], event["tid"]) for event in by_phase["M"] if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in by_phase["X"]} == named
    assert {name for event in by_phase["C"] for name in event["args"]} == set(whole["record"]["sampled"]) - {"at"}


def test_calls_that_began_before_the_recording_are_in_the_trace(whole: dict[str, Any]) -> None:
    """The format knows no times below zero."""
    whole["lanes"][0][3][0][0] = -30.0
    events = json.loads(perfetto_json(whole))["traceEvents"]
    assert min(event["ts"] for event in events if event["ph"] == "X") == 0.0


def test_runs_are_kept_by_name_and_time_and_the_oldest_go(tmp_path: Path) -> None:
    """For their owner alone; the newest of a manager is found by its name."""
    folder = tmp_path / "runs"
    for second in range(RUNS_KEPT + 3):
        write_run(folder, run_name("night" if second % 2 else "day", 1_800_000_000.0 + second), str(second).encode())
    assert len(known_runs(folder)) == RUNS_KEPT
    assert (folder.stat().st_mode & 0o777, next(folder.iterdir()).stat().st_mode & 0o777) == (0o700, 0o600)
    newest = known_runs(folder)[0]
    assert find_run(folder, None).read_bytes() == str(RUNS_KEPT + 2).encode()
    assert find_run(folder, newest).name == f"{newest}.json"
    assert find_run(folder, "night").read_bytes() == str(RUNS_KEPT + 1).encode()
    assert write_run(folder, newest, b"other", replace=False).read_bytes() == str(RUNS_KEPT + 2).encode()


@pytest.mark.parametrize(
    "text", ["", '{"record": ', "[1]", "7", '{"manager": {"id": "m"}, "calls": {}}', '{"record": []}', '{"record": {"run": "x"}}']
)
def test_a_file_that_is_no_run_is_said_so(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A status, say, or a run that a full disk has cut off; no report is written of it."""
    path = tmp_path / "run.json"
    path.write_text(text)
    assert main(["report", str(path), "--output", str(tmp_path / "x.html")]) == 2
    assert f"windlass: {path} holds no run (" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_is_read_as_it_was_written(whole: dict[str, Any], tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path, "night-20260101-000000", msgspec.json.encode(whole))) == whole


def test_a_run_that_there_is_not_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^there is no run yet \(runs are looked for in .*record=True"):
        find_run(tmp_path, None)
    with pytest.raises(UnknownName, match=r"there is no run 'x'; there is no run yet \(runs are looked for in .*record=True"):
        find_run(tmp_path, "x")
    write_run(tmp_path, "night-20260101-000000", b"{}")
    with pytest.raises(UnknownName, match="there is no run 'nigth'; did you mean 'night'"):
        find_run(tmp_path, "nigth")
