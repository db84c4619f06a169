"""What Prometheus finds: real scrapes over HTTP, read by the parser of its own client library."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.shared.ports import silent

import windlass
from windlass import Executor, FunctionCall, Manager
from windlass.errors import UsageError
from windlass.metrics import LIBRARIES_MOST, OTHER, Metrics

Until = Callable[[str, Callable[[], object]], None]
COMMAND = str(Path(sys.executable).with_name("windlass"))
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def double(number: int) -> int:
    return 2 * number


def fail() -> None:
    raise ValueError("no")


def parsed(text: str) -> Samples:
    """The samples of a page, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(url: str) -> Samples:
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return parsed(answer.read().decode())


def test_a_scrape_tells_calls_libraries_workers_and_pilots(until: Until) -> None:
    """By the names in docs/monitoring.md."""
    with Manager(metrics=0) as manager, windlass.Factory(manager, "local", cores=2, max_pilots=1):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", manager.metrics_url)
        before = scrape(manager.metrics_url)
        assert before["windlass_up", ()] == 1
        assert before["windlass_calls_submitted_total", ()] == 0
        manager.install_library("lib", double, fail)
        futures = [manager.submit(FunctionCall("lib", "double", number)) for number in range(20)]
        assert [future.result() for future in futures] == [2 * number for number in range(20)]
        with pytest.raises(ValueError, match="no"):
            manager.submit(FunctionCall("lib", "fail")).result()
        now = scrape(manager.metrics_url)
        assert now["windlass_calls_submitted_total", ()] == 21
        assert now["windlass_calls_ended_total", (("outcome", "returned"),)] == 20
        assert now["windlass_calls_ended_total", (("outcome", "failed"),)] == 1
        assert now["windlass_calls", (("state", "running"),)] == 0
        assert now["windlass_library_calls_returned_total", (("library", "lib"),)] == 20
        assert now["windlass_library_slots", (("library", "lib"),)] == 2
        assert now["windlass_library_call_mean_seconds", (("library", "lib"),)] > 0
        [name] = [one["name"] for one in manager.status()["pools"]]
        pool = ("pool", name)
        assert now["windlass_workers", (pool, ("state", "serving"))] == 1
        assert now["windlass_worker_cores", (pool,)] == 2
        assert now["windlass_pool_paused", (pool,)] == 0
        assert now["windlass_manager_info", (("manager", manager.name), ("version", windlass.__version__))] == 1
        url = manager.metrics_url
        # A version of a library that is removed takes nothing away from what has been counted.
        manager.install_library("lib", double, start_timeout=99)
        assert manager.submit(FunctionCall("lib", "double", 1)).result() == 2
        until("it is counted", lambda: scrape(url)["windlass_library_calls_returned_total", (("library", "lib"),)] == 21)
    with silent(urllib.parse.urlsplit(url).port or 0), pytest.raises(urllib.error.URLError):
        scrape(url)


def test_every_metric_is_documented_and_every_documented_one_is_told() -> None:
    """docs/monitoring.md has a table of them. An alert there counts on it that without workers there is no series of workers."""
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    documented = set(re.findall(r"^\| `(windlass_\w+)`", page, re.MULTILINE))
    with Manager(metrics=0) as manager, Executor(None, manager=manager) as pool:
        call = pool.submit(double, 1)
        with urllib.request.urlopen(manager.metrics_url, timeout=20) as answer:
            text = answer.read().decode()
        told = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
        samples = parsed(text)
        call.cancel()
    assert told == documented
    assert samples["windlass_calls", (("state", "waiting"),)] == 1
    assert not [name for name, _ in samples if name == "windlass_workers"]


def test_a_page_of_a_named_manager_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Until) -> None:
    """``windlass metrics NAME``: up is 0 while it is away, and 1 when one of that name is there again."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    with Manager(name="ours") as manager:
        once = subprocess.run([COMMAND, "metrics", "ours", "--once"], capture_output=True, text=True, check=True, timeout=60)
        assert parsed(once.stdout)["windlass_up", ()] == 1
        words = [COMMAND, "metrics", "ours", "--port", "0"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as exporter:
            assert exporter.stdout is not None
            try:
                url = exporter.stdout.readline().split()[2].rstrip(";")
                assert scrape(url)["windlass_manager_info", (("manager", "ours"), ("version", windlass.__version__))] == 1
                manager.close()
                until("it is away", lambda: scrape(url)["windlass_up", ()] == 0)
                assert set(scrape(url)) == {("windlass_up", ()), ("windlass_scrape_seconds", ())}
                with Manager(name="ours"):
                    until("it is back", lambda: scrape(url)["windlass_up", ()] == 1)
            finally:
                exporter.send_signal(signal.SIGINT)
            assert exporter.wait(20) == 130


def test_wrong_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such manager, a port that is taken, an address that is none."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    ran = subprocess.run([COMMAND, "metrics", "nobody"], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 2
    assert "nobody" in ran.stderr
    for wrong in ("here", True, -1, "0.0.0.0", 70000):
        with pytest.raises(UsageError, match=r"write metrics=9464 \(a port of this machine alone, 0: any free one\)"):
            Manager(metrics=wrong)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"metrics cannot be served at 127.0.0.1:{port}: Address already in use; choose another port"):
            Manager(metrics=port)
    assert not [thread for thread in os.listdir("/proc/self/task") if not thread.isdigit()]


def test_a_program_that_does_not_ask_loads_nothing_of_it() -> None:
    """Neither Prometheus' client nor OpenTelemetry."""
    code = (
        "import sys, windlass\n"
        "from windlass.manager.manager import Manager\n"
        "with Manager() as manager: pass\n"
        "print([name for name in sys.modules if name.startswith(('prometheus', 'opentelemetry', 'windlass.metrics'))])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "[]\n"


def rates(
    metrics: Metrics, libraries: dict[str, int], factories: dict[str, int], *, id: str = "m", submitted: int = 0
) -> tuple[float, float]:
    """Calls returned and commands sent, as told of a status with these versions and factories."""
    keys = ("waiting", "running", "starts", "slots", "instances", "hoisted_seconds", "saved_seconds", "mean_seconds", "failed")
    calls = ("waiting", "running", "waiting_for_inputs", "waiting_for_files", "submitted", "done", "failed", "cancelled", "retried")
    transfers = ("under_way", "waiting", "bytes_from_manager", "object_bytes_out", "object_bytes_in")
    status = {
        "manager": {"id": id},
        "calls": {**dict.fromkeys([*calls, "lost_attempts"], 0), "submitted": submitted},
        "libraries": [{"name": "lib", "version": version, **dict.fromkeys(keys, 0), "done": done} for version, done in libraries.items()],
        "pools": [
            {"name": pool, "factory": name, "pilots": {}, "paused": "", "commands": {"submit": sent}}
            for name, sent in factories.items()
            for pool in ("short", "long")
        ],
        "transfers": dict.fromkeys(transfers, 0),
        **dict.fromkeys(("workers", "pilots", "programs"), ()),
    }
    told = {sample.name: sample.value for family in metrics.families(status) for sample in family.samples}
    return told.get("windlass_library_calls_returned_total", 0), told.get("windlass_batch_commands_total", 0)


def test_what_only_grows_does_so_when_libraries_and_factories_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus takes a smaller number for a new start, and a library that is back, as of the next program, has not been called anew."""
    metrics = Metrics()
    assert rates(metrics, {"lib@1": 100}, {"a": 40, "b": 10}) == (100, 50)
    assert rates(metrics, {}, {"a": 40}) == (100, 50)
    assert rates(metrics, {"lib@1": 101}, {}) == (101, 50)
    assert rates(metrics, {"lib@1": 3, "lib@2": 5}, {"a": 1, "c": 2}) == (109, 53), "forgotten, and counted anew"
    monkeypatch.setattr("windlass.metrics.KNOWN_MOST", 1)
    assert rates(metrics, {"lib@2": 6}, {"c": 2}) == (110, 53)
    assert rates(metrics, {"lib@2": 6}, {}) == (110, 53)


@pytest.mark.parametrize(("id", "submitted"), [("m2", 200), ("m", 0)])
def test_all_counters_begin_anew_when_the_manager_does(id: str, submitted: int) -> None:
    """Of libraries as of calls, or the two would disagree for ever. A named manager keeps its id; its calls begin at 0 all the same."""
    metrics = Metrics()
    assert rates(metrics, {"lib@1": 100}, {"a": 40}, submitted=120) == (100, 40)
    assert rates(metrics, {"lib@1": 3}, {"b": 1}, id=id, submitted=submitted) == (3, 1)


def test_libraries_beyond_a_number_are_told_together() -> None:
    """So that a program which makes thousands of libraries does not make thousands of time series."""

    def status(names: list[str], done: int) -> dict[str, object]:
        rows = [
            {
                "name": name,
                "version": f"{name}@1",
                "waiting": 1,
                "running": 0,
                "done": done,
                "slots": 1,
                "instances": 1,
                "starts": 1,
                "hoisted_seconds": 0.5,
                "saved_seconds": 0.0,
                "mean_seconds": 1.0,
                "failed": "",
            }
            for name in names
        ]
        return {**empty, "libraries": rows}

    with Manager() as manager:
        empty = manager.status()
    metrics = Metrics()
    names = [f"lib{number}" for number in range(LIBRARIES_MOST + 10)]

    def told(status: dict[str, object], metric: str) -> dict[str, float]:
        [family] = [one for one in metrics.families(status) if one.name == metric]
        return {sample.labels["library"]: sample.value for sample in family.samples}

    now = told(status(names, 3), "windlass_library_calls_returned")
    assert len(now) == LIBRARIES_MOST + 1
    assert now[OTHER] == 30
    later = told(status(names[-5:], 4), "windlass_library_calls_returned")
    assert later[OTHER] == 5 * 3 + 5 * 4, "what was counted stays counted"
    assert later["lib0"] == 3
