"""What notebooks show: in a real kernel, and of each object; nothing that is put into it becomes HTML."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.manager.future import CallFuture
from windlass.messages import RAISED, CallDone, CallEnd, CallId, EndDetail
from windlass.notebook import NotebookBar, Rows, card

HOSTILE = "<script>alert('x')</script>\"&"


class Reader(HTMLParser):
    """Takes HTML apart, and refuses what is not well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert all(not name.startswith("on") for name, _ in attrs)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def html_of(thing: Any) -> Reader:
    reader = Reader(thing._repr_html_())
    assert set(reader.tags) <= {"div", "b", "span", "table", "tr", "th", "td", "pre", "br"}
    return reader


def square(number: int) -> int:
    return number * number


@pytest.fixture
def manager(nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[windlass.Manager]:
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with windlass.Manager(name="lab") as manager:
        yield manager


def test_all_that_is_put_into_a_card_is_escaped() -> None:
    """In titles, facts, headings, cells and errors."""
    made = card(HOSTILE, HOSTILE, [(HOSTILE, HOSTILE)], [Rows((HOSTILE,), [(HOSTILE,)] * 30)], HOSTILE)
    reader = Reader(made)
    assert "script" not in reader.tags
    assert reader.words.count(HOSTILE) >= 25
    assert "and 10 more" in reader.words
    bar = Reader(NotebookBar(HOSTILE).html(3, 10))
    assert set(bar.tags) == {"div", "span", "progress"}
    assert HOSTILE in bar.words


def test_colours_are_those_of_the_notebook() -> None:
    """Text has the colour around it, and no background of its own: dark themes are read as well as light ones."""
    made = card("x", "y", [("a", "b")], [Rows(("h",), [("c",)])], "wrong")
    assert set(re.findall(r"(?<![-\w])color:([^;\"]+)", made)) == {"inherit", "#d64545"}
    assert set(re.findall(r"background:([^;\"]+)", made)) == {"none"}


def test_a_manager_shows_its_calls_libraries_and_pools(manager: windlass.Manager) -> None:
    """In one line, and as a card; closed it says so."""
    assert repr(manager) == f"<Manager 'lab', port {manager.port}, 0 calls waiting or running, 0 libraries, 0 workers>"
    manager.install_library("numbers", square)
    future = manager.submit(windlass.FunctionCall("numbers", "square", 3))
    assert "1 calls" not in repr(manager)
    assert "1 call waiting or running, 1 library" in repr(manager)
    with windlass.Factory(manager, "local", cores=1, pool="mine") as factory:
        assert future.result(timeout=60) == 9
        words = html_of(manager).words
        for word in ("Manager 'lab'", "numbers", "mine", "local", "1 done"):
            assert word in words, words
        assert re.fullmatch(r"<Factory '.*', running, mine \(local\): (1 serving|no pilots|1 running|1 queued)>", repr(factory))
        assert "mine" in html_of(factory).words
    assert re.fullmatch(r"<Factory '.*', closed, mine \(local\): .*>", repr(factory))
    with windlass.attach(manager.connection_file) as attached:
        assert repr(attached) == "<AttachedManager 'lab', this program has 0 calls waiting or running, 0 libraries>"
        attached.submit_function(square, (3,)).cancel()
        assert repr(attached).endswith(", 1 library>"), "that of functions without one, which `windlass libraries` lists"
        assert "numbers" in html_of(attached).words
    manager.close()
    assert repr(manager) == "<Manager 'lab', closed>"
    assert "closed" in html_of(manager).words


def test_a_factory_that_has_not_begun_says_so(manager: windlass.Manager) -> None:
    factory = windlass.Factory(manager, [windlass.Pool("local", pool="a", cores=1), windlass.Pool("local", pool="b", cores=1)], name="two")
    assert repr(factory) == "<Factory 'two', not started, a (local): no pilots; b (local): no pilots>"
    assert {"a", "b"} <= set(html_of(factory).words.split())
    assert "cores" in html_of(windlass.Pool("slurm", cores=4)).words


def test_a_library_shows_its_functions_and_options() -> None:
    library = windlass.Library("lib", square, abs, imports=["json"], slots=2)
    assert repr(library) == "Library('lib', square, abs, mode='direct', not installed)"
    words = html_of(library).words
    for word in ("library lib", "square, abs", "json", "direct", "2"):
        assert word in words, words
    many = windlass.Library("many", *(_named(f"f{n}") for n in range(40)))
    assert repr(many) == "Library('many', f0, f1, f2, f3, f4, f5, ... 34 more, mode='direct', not installed)"


def _named(name: str) -> Any:
    def function() -> None: ...

    function.__name__ = name
    return function


def test_a_future_shows_its_call_and_its_story(manager: windlass.Manager) -> None:
    """And asking for that unpickles and collects nothing."""
    manager.install_library("numbers", square)
    call = windlass.FunctionCall("numbers", "square", 3)
    call.set_tag(HOSTILE)
    future = manager.submit(call)
    assert repr(future) == f"<CallFuture call=1 numbers.square tag={HOSTILE!r} state=waiting>"
    words = html_of(future).words
    assert "numbers.square call 1" in words
    assert HOSTILE in words
    plain = manager.submit_function(square, (2,))
    assert repr(plain) == "<CallFuture call=2 square state=waiting>"
    failed: CallFuture[Any] = CallFuture(manager._client, CallId(7))  # pyright: ignore[reportPrivateUsage]
    detail = EndDetail(types=("builtins.ValueError",), text=f"Traceback\nValueError: {HOSTILE}")
    failed.finish(CallDone(CallEnd(CallId(7), 1, RAISED, b"not a pickle", detail=detail)))
    assert f"ValueError: {HOSTILE}" in html_of(failed).words
    assert not failed.collected


def test_an_executor_shows_its_factory_and_its_manager(manager: windlass.Manager) -> None:
    with windlass.Executor("local", cores=1, manager=manager) as pool:
        assert re.match(r"<Executor, <Factory '.*'.*>, <Manager 'lab'.*>>", repr(pool))
        assert "Manager 'lab'" in html_of(pool).words
        assert repr(pool.with_options(tag="x")).startswith("<View of an executor with the tag 'x', <Manager 'lab'")
    assert repr(pool) == "<Executor, closed>"
    assert "closed" in html_of(pool).words


# ---------------------------------------------------------------- a real kernel

CELLS = (
    "import windlass\ndef slow(x):\n    import time\n    time.sleep(0.01)\n    return x\npool = windlass.Executor('local', cores=2)",
    "total = sum(pool.map(slow, range(100), progress='squaring <b>'))",
    "pool.manager",
    "pool.shutdown()\nprint(total)",
)


@pytest.mark.skipif(importlib.util.find_spec("ipykernel") is None, reason="ipykernel is not installed")
def test_a_notebook_shows_a_bar_that_moves_and_a_manager(
    nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real kernel: one output that is replaced, from nothing to all; and a card for an object at a cell's end."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    told = asyncio.run(_run_cells(CELLS))
    assert [one["content"] for one in told if one["msg_type"] == "error"] == []
    bars = [one for one in told if one["msg_type"] in ("display_data", "update_display_data")]
    assert {one["content"]["transient"]["display_id"] for one in bars} == {bars[0]["content"]["transient"]["display_id"]}
    assert [one["msg_type"] for one in bars].count("display_data") == 1
    assert 'value="100" max="100"' in bars[-1]["content"]["data"]["text/html"]
    assert "squaring &lt;b&gt;" in bars[-1]["content"]["data"]["text/html"]
    assert "100 of 100" in bars[-1]["content"]["data"]["text/plain"]
    [shown] = [one["content"]["data"] for one in told if one["msg_type"] == "execute_result"]
    assert "<table" in shown["text/html"]
    assert shown["text/plain"].startswith("<Manager '")
    assert [one["content"]["text"] for one in told if one["msg_type"] == "stream"] == ["4950\n"]


QUEUED = """
import time
import windlass
from windlass.factory.fake import FakeBackend, FakeCluster
class Cluster(FakeCluster):
    def cancel(self, jobs, now):
        todo = super().cancel(jobs, now)
        with open({path!r} + str(clusters.index(self)), "w") as file:
            file.write(str(self.alive))
        return todo
clusters = [Cluster(queue_delay=1000) for _ in range(2)]
pools = [windlass.Executor(FakeBackend(cluster=cluster, processes=False), max_pilots=3, min_pilots=3) for cluster in clusters]
futures = [pool.submit(abs, -1) for pool in pools]
while not all(cluster.alive for cluster in clusters):
    time.sleep(0.01)
"""


@pytest.mark.skipif(importlib.util.find_spec("ipykernel") is None, reason="ipykernel is not installed")
def test_the_end_of_a_kernel_waits_for_no_call_and_leaves_no_pilot_in_the_queue(
    nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed some seconds after it was told to end, as when it is started again."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    told = asyncio.run(_run_cells((QUEUED.format(path=str(tmp_path / "alive")),), kill=False))
    assert [one["content"] for one in told if one["msg_type"] == "error"] == []
    assert [(tmp_path / f"alive{number}").read_text() for number in range(2)] == ["0", "0"]
    assert not list((tmp_path / "state" / "managers").iterdir()), "it has ended in order"


async def _run_cells(cells: tuple[str, ...], *, kill: bool = True) -> list[dict[str, Any]]:
    """What a kernel tells whoever shows the notebook; in the end it is killed, or told to end."""
    from jupyter_client.manager import AsyncKernelManager

    kernel: Any = AsyncKernelManager(kernel_name="python3", shutdown_wait_time=20.0)
    await kernel.start_kernel()
    client = kernel.client()
    client.start_channels()
    told: list[dict[str, Any]] = []
    try:
        await client.wait_for_ready(timeout=60)
        for cell in cells:
            sent = client.execute(cell)
            end = time.monotonic() + 60
            while True:
                message = await client.get_iopub_msg(timeout=max(0.1, end - time.monotonic()))
                if message["parent_header"].get("msg_id") != sent:
                    continue
                told.append(message)
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    break
    finally:
        client.stop_channels()
        await kernel.shutdown_kernel(now=kill)
    return told
