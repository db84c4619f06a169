"""The dashboard with a crowd behind it: what an update takes in the page, and what looking costs the manager.

*Page.* A core with many workers and calls, whose calls end by hand (`dashboard_crowd`), is served to a headless Chromium as a manager is:
views, patches, the stream, the page. Each update that the page makes is timed by the page itself, from the text of the event to the end of
its drawing. Where there is no Chromium, this part says so and stops the benchmark.

*Manager.* What recording and views take of the manager's thread: the recorder in a second in which ends of calls come in, long calls,
which are recorded one by one, and short ones, of which every worker tells many times in the second. To it comes a view of the whole
crowd, divided by the pause that a dashboard makes after it.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import uvicorn

from browser import Browser, chromium
from common import arguments, in_turns, median, quantile, report
from dashboard_crowd import Crowd
from windlass.dashboard.app import Pages
from windlass.dashboard.feed import Feed
from windlass.dashboard.guard import Guard
from windlass.dashboard.watch import FULL_EVERY, joined, pause
from windlass.manager.books import Books
from windlass.manager.recorder import Recorder
from windlass.manager.workers import Worker
from windlass.messages import CallEnd

#: Calls that are shown one by one, and calls that come by the hundred.
LONG_SECONDS: Final = 2.0
SHORT_SECONDS: Final = 0.001
#: How often each worker tells of short calls in a second.
TURNS: Final = 10


class Served:
    """A crowd's page, served by this process."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd, self.feed, self.guard = crowd, Feed(), Guard()
        self.pages = Pages(self.feed, self.guard)
        self._taken = 0

    async def run(self, updates: int, chosen_pause: float) -> list[float]:
        """Milliseconds that each of so many updates took in the page."""
        with socket.create_server(("127.0.0.1", 0)) as sock:
            config = uvicorn.Config(self.pages.app, log_config=None, access_log=False, lifespan="off", ws="none")
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[sock]))
            self._take()
            link = self.guard.link("127.0.0.1", sock.getsockname()[1])
            browser = await asyncio.to_thread(Browser, 1280, 2200)
            try:
                await asyncio.to_thread(browser.open, link)
                await asyncio.to_thread(browser.until, "window.windlass.updates > 0")
                found: list[float] = []
                for number in range(updates):
                    self.crowd.turn(1.0)
                    self.crowd.submit(sum(len(one.calls) for one in self.crowd.core.workers.values()) // 2)
                    self._take()
                    await asyncio.to_thread(browser.until, f"window.windlass.updates > {number + 1}")
                    found.append(float(await asyncio.to_thread(browser.value, "window.windlass.last")))
                    await asyncio.sleep(chosen_pause)
                return found
            finally:
                await asyncio.to_thread(browser.close)
                self.pages.close()
                server.should_exit = True
                await serving

    def _take(self) -> None:
        self._taken += 1
        pieces = [piece.json for piece in self.crowd.pieces(self.feed.since, self.feed.version, brief=self._taken % FULL_EVERY != 1)]
        self.pages.tell(self.feed.take(joined(pieces)))


def page_part(workers: int, calls: int, updates: int) -> list[float]:
    if not chromium():
        raise SystemExit("no Chromium is here (apt-get install chromium), so the page cannot be measured")
    return asyncio.run(Served(Crowd(workers, calls)).run(updates, 0.2))


class Timed(Recorder):
    """A recorder that knows what processor time each of its parts took, in nanoseconds."""

    def __init__(self, run: str, began_at: float) -> None:
        super().__init__(run, began_at)
        #: Of batches that were looked at, of those that were counted, and of samples.
        self.spent: dict[str, list[int]] = {"looked": [], "counted": [], "sample": []}

    def ended(self, books: Books, worker: Worker, ends: Sequence[CallEnd], now: float) -> None:
        unseen = worker.unseen
        begun = time.thread_time_ns()
        super().ended(books, worker, ends, now)
        spent = time.thread_time_ns() - begun
        self.spent["counted" if worker.unseen > unseen else "looked"].append(spent)

    def sample(self, books: Books, now: float) -> None:
        begun = time.thread_time_ns()
        super().sample(books, now)
        self.spent["sample"].append(time.thread_time_ns() - begun)

    def seconds(self) -> float:
        """All of it: of each kind the median, for the clock itself takes many times as long now and then, and its looks taken off."""
        return sum(max(0.0, median(kind) - look_ns()) * len(kind) for kind in self.spent.values() if kind) / 1e9


def look_ns() -> float:
    """What two looks at the clock add to what lies between them."""
    found: list[int] = []
    for _ in range(2000):
        begun = time.thread_time_ns()
        found.append(time.thread_time_ns() - begun)
    return median(found)


def recording_seconds(workers: int, calls: int, seconds: float, turns: int) -> tuple[float, int]:
    """What a recorder takes in a second in which each worker tells ``turns`` times of calls that took so long; how many calls."""
    crowd = Crowd(workers, calls, seconds=seconds)
    crowd.turn(1.0)
    timed = crowd.core.recorder = Timed("timed", crowd.now)
    gc.collect()
    gc.disable()  # what the crowd leaves behind would be looked through at the recorder's expense
    try:
        ended = sum(crowd.turn(1.0 / turns) for _ in range(turns))
    finally:
        gc.enable()
    return timed.seconds(), ended


def view_seconds(workers: int, calls: int) -> float:
    """Processor time of one view of a crowd that is looked at each second."""
    crowd = Crowd(workers, calls)
    crowd.pieces()
    assert crowd.core.recorder is not None
    recorder, times = crowd.core.recorder, list[float]()
    since, version = crowd.now - recorder.began_at, recorder.timeline.version
    for number in range(2 * FULL_EVERY):
        crowd.turn(1.0)
        begun = time.thread_time()
        pieces = crowd.pieces(since, version, brief=number % FULL_EVERY > 0)
        msgspec.msgpack.encode(pieces)  # as its link does
        times.append(time.thread_time() - begun)
        since, version = crowd.now - recorder.began_at, recorder.timeline.version
    return sum(times) / len(times)


def main() -> None:
    chosen = arguments(__doc__, rounds=3, parts=("page", "manager"), workers=1000, calls=100_000, updates=20)
    figures: dict[str, Any] = {}
    rows: list[tuple[object, ...]] = []
    if "page" in chosen.parts:
        times = page_part(chosen.workers, chosen.calls, chosen.updates)
        figures.update(
            update_ms=round(median(times), 2), update_p95_ms=round(quantile(times, 0.95), 2), update_longest_ms=round(max(times), 2)
        )
        rows.append(("update of the page, ms", figures["update_ms"], figures["update_longest_ms"]))
    if "manager" in chosen.parts:
        crowd = chosen.workers, chosen.calls
        sides: dict[str, Callable[[], tuple[float, int]]] = {
            "long": partial(recording_seconds, *crowd, LONG_SECONDS, 1),
            "short": partial(recording_seconds, *crowd, SHORT_SECONDS, TURNS),
            "view": lambda: (view_seconds(*crowd), 0),
        }
        # What else the machine does can only make it longer.
        runs = {name: min(found) for name, found in in_turns(chosen.rounds, sides).items()}
        (long, long_calls), (short, short_calls), (seen, _) = runs["long"], runs["short"], runs["view"]
        looking = seen / (seen + pause(seen, True))
        figures.update(
            view_ms=round(seen * 1e3, 3),
            looking_percent=round(100 * looking, 3),
            recording_long_percent=round(100 * long, 3),
            recording_short_percent=round(100 * short, 3),
            long_calls=long_calls,
            short_calls=short_calls,
            manager_percent=round(100 * (max(long, short) + looking), 3),
        )
        for name in ("looking", "recording_long", "recording_short", "manager"):
            rows.append((f"{name.replace('_', ' ')}, % of the manager's time", figures[f"{name}_percent"], ""))
    note = "the crowd: workers of 8 cores, of whose calls half end each second; a page of laptop's width, with all its sections in sight"
    report(chosen, f"A dashboard of {chosen.workers:,} workers and {chosen.calls:,} calls", ("", "median", "longest"), rows, figures, note)


if __name__ == "__main__":
    main()
