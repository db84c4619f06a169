"""A manager's status as metrics for Prometheus: what is told, under which names, with which labels.

Theory of operation
-------------------
`Metrics` turns the status object (docs/status.md) into families of samples of the `prometheus_client` package; it does so at each scrape,
and between scrapes nothing is done. Names end in their unit, what only grows ends in ``_total``.

Labels are few, and their values bounded: pools, states, outcomes, and names of libraries, of which `LIBRARIES_MOST` are told one by one, in
the order in which they were first seen, and all others together as ``other``. There is nothing by call, function, worker or pilot.

The status forgets library versions that are removed, and factories that have left, so `_Grown` keeps what they had counted: a sum over
versions or factories never falls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from windlass import __version__
from windlass.sums import ADDED, pilots_failed, worker_rows

#: Names of libraries that are told one by one; more are ``other``.
LIBRARIES_MOST: Final = 50
OTHER: Final = "other"
#: Library versions and factories whose counts are kept apart, in case that they come back.
KNOWN_MOST: Final = 1000

Row = Mapping[str, Any]


class _Grown:
    """What only grows of what comes and goes, such as library versions and factories, summed by label."""

    def __init__(self) -> None:
        #: Of each: its label, what it had counted when it last began again at 0, and what it has counted since. Those that are there last.
        self._known: dict[str, tuple[str, float, float]] = {}
        #: Of those that were forgotten, by label.
        self._gone: dict[str, float] = {}

    def sums(self, now: Mapping[str, tuple[str, float]]) -> dict[str, float]:
        """``now``: (label, number) of each that is there. One that is back goes on, or begins again at 0: then its number is smaller."""
        for one, (label, number) in now.items():
            _, before, last = self._known.pop(one, (label, 0.0, 0.0))
            self._known[one] = (label, before + last if number < last else before, number)
        for one in list(islice(self._known, max(0, len(self._known) - max(KNOWN_MOST, len(now))))):
            label, before, last = self._known.pop(one)
            self._gone[label] = self._gone.get(label, 0.0) + before + last
        sums = dict(self._gone)
        for label, before, last in self._known.values():
            sums[label] = sums.get(label, 0.0) + before + last
        return sums


class Metrics:
    """One manager's metrics."""

    def __init__(self) -> None:
        self._id, self._submitted = "", 0
        self._begin()

    def _begin(self) -> None:
        self._names: dict[str, str] = {}
        self._done, self._starts, self._hoisted, self._commands = _Grown(), _Grown(), _Grown(), _Grown()

    def families(self, status: Row) -> Iterator[Metric]:
        """All metrics of a status."""
        manager, submitted = status["manager"], status["calls"]["submitted"]
        if manager["id"] != self._id or submitted < self._submitted:
            self._begin()  # its next life: all that it counts begins at 0, so the libraries of the last one are forgotten, too
        self._id, self._submitted = manager["id"], submitted
        about = InfoMetricFamily("windlass_manager", "The manager that these metrics are of")
        about.add_metric([], {"manager": str(manager.get("name") or manager["id"]), "version": __version__})
        yield about
        yield from _calls(status["calls"])
        yield from self._libraries(status["libraries"])
        yield from _workers(worker_rows(status))
        yield from _pools(status["pools"], pilots_failed(status))
        # Those of a whole factory are told with each of its pools.
        sent = {f"{pool['factory']} {kind}": (kind, number) for pool in status["pools"] for kind, number in pool["commands"].items()}
        yield _counter("batch_commands", "Commands sent to batch systems", ["command"], self._commands.sums(sent).items())
        yield from _transfers(status["transfers"])
        programs = status["programs"]
        connected = sum(not one["gone"] and one["connected"] for one in programs)
        yield _gauge(
            "programs", "Programs that have calls here", ["state"], [("connected", connected), ("away", len(programs) - connected)]
        )

    def _libraries(self, rows: Iterable[Row]) -> Iterator[Metric]:
        rows = list(rows)
        names = [self._name(row["name"]) for row in rows]
        versions = [row["version"] for row in rows]
        both = list(zip(names, rows, strict=True))

        def add(key: str) -> list[tuple[str, float]]:
            sums: dict[str, float] = {}
            for name, row in both:
                sums[name] = sums.get(name, 0.0) + row[key]
            return list(sums.items())

        def grown(of: _Grown, key: str) -> list[tuple[str, float]]:
            now = {version: (name, float(row[key])) for version, name, row in zip(versions, names, rows, strict=True)}
            return list(of.sums(now).items())

        calls = _gauge("library_calls", "Calls that have not ended, by library", ["library", "state"], ())
        for name, number in add("waiting"):
            calls.add_metric([name, "waiting"], number)
        for name, number in add("running"):
            calls.add_metric([name, "running"], number)
        yield calls
        yield _counter("library_calls_returned", "Calls that have returned, by library", ["library"], grown(self._done, "done"))
        yield _gauge("library_slots", "Slots of library instances", ["library"], add("slots"))
        yield _gauge("library_instances", "Library instances", ["library"], add("instances"))
        yield _counter("library_starts", "Library instances started", ["library"], grown(self._starts, "starts"))
        text = "Seconds that hoisted imports and contexts took"
        yield _counter("library_hoisted_seconds", text, ["library"], grown(self._hoisted, "hoisted_seconds"))
        yield _gauge("library_saved_seconds", "Seconds more that imports would have taken in each call", ["library"], add("saved_seconds"))
        means: dict[str, tuple[float, float]] = {}
        for name, row in both:  # weighted by calls, as versions may be of one name
            total, number = means.get(name, (0.0, 0.0))
            means[name] = total + row["mean_seconds"] * row["done"], number + row["done"]
        yield _gauge(
            "library_call_mean_seconds",
            "How long calls take, recent ones most",
            ["library"],
            [(name, total / number if number else 0.0) for name, (total, number) in means.items()],
        )
        failed = [(name, max(float(bool(row["failed"])) for one, row in both if one == name)) for name in dict.fromkeys(names)]
        yield _gauge("library_failed", "1: a version of the library cannot start", ["library"], failed)

    def _name(self, library: str) -> str:
        """The label of a library."""
        if library not in self._names:
            self._names[library] = library if len(self._names) < LIBRARIES_MOST else OTHER
        return self._names[library]


def _calls(calls: Row) -> Iterator[Metric]:
    yield _gauge("calls", "Calls that have not ended", ["state"], [(state, calls[state]) for state in ("waiting", "running")])
    waits = [(what, calls[f"waiting_for_{what}"]) for what in ("inputs", "files")]
    yield _gauge("calls_waiting_for", "Waiting calls that lack results of others, or files that are being made", ["what"], waits)
    yield _counter("calls_submitted", "Calls submitted", [], [((), calls["submitted"])])
    ended = [("returned", calls["done"]), ("failed", calls["failed"]), ("cancelled", calls["cancelled"])]
    yield _counter("calls_ended", "Calls that have ended", ["outcome"], ended)
    yield _counter("attempts_retried", "Attempts that failed and were worth another", [], [((), calls["retried"])])
    yield _counter("attempts_lost", "Attempts lost with their worker", [], [((), calls["lost_attempts"])])


def _workers(rows: Iterable[Row]) -> Iterator[Metric]:
    states: dict[tuple[str, str], float] = {}
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        pool = row["pool"]
        state = "cut" if not row["connected"] else "draining" if row["draining"] else "serving"
        states[pool, state] = states.get((pool, state), 0) + row.get("workers", 1)
        mine = sums.setdefault(pool, {})
        for key in ADDED:
            mine[key] = mine.get(key, 0) + row[key]
    yield _gauge("workers", "Workers", ["pool", "state"], states.items())
    for name, key, text in (
        ("worker_cores", "cores", "Cores of all workers"),
        ("worker_memory_bytes", "memory", "Memory of all workers"),
        ("worker_memory_used_bytes", "memory_used", "Memory in use, as workers last reported"),
        ("worker_gpus", "gpus", "GPUs of all workers"),
        ("worker_calls_running", "running", "Calls in slots"),
        ("worker_calls_held", "held", "Calls that workers have: in slots, and queued there"),
    ):
        yield _gauge(name, text, ["pool"], [(pool, mine[key]) for pool, mine in sums.items()])


def _pools(pools: Iterable[Row], failures: Mapping[str, int]) -> Iterator[Metric]:
    pools = list(pools)
    counts: dict[tuple[str, str], float] = {}
    paused: dict[str, float] = {}
    for pool in pools:
        for state, number in pool["pilots"].items():
            counts[pool["name"], state] = counts.get((pool["name"], state), 0) + number
        paused[pool["name"]] = max(paused.get(pool["name"], 0.0), float(bool(pool["paused"])))
    failed = {pool["name"]: 0 for pool in pools} | dict(failures)
    yield _gauge("pilots", "Pilots, as factories count them", ["pool", "state"], counts.items())
    yield _gauge("pilots_failed", "Pilots, among the last 100 that ended, that ended before they served", ["pool"], failed.items())
    yield _gauge("pool_paused", "1: the pool submits nothing until somebody mends what the status says", ["pool"], paused.items())


def _transfers(row: Row) -> Iterator[Metric]:
    states = [(state, row[state]) for state in ("under_way", "waiting")]
    yield _gauge("transfers", "Fetches of declared files by workers", ["state"], states)
    moved = [("files_out", "bytes_from_manager"), ("objects_out", "object_bytes_out"), ("objects_in", "object_bytes_in")]
    text = "Bytes between manager and workers: of declared files, and of large arguments and results"
    yield _counter("transferred_bytes", text, ["what"], [(what, row[key]) for what, key in moved])


def _gauge(name: str, text: str, labels: list[str], samples: Iterable[tuple[str | tuple[str, ...], float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"windlass_{name}", text, labels=labels)
    _add(family, samples)
    return family


def _counter(name: str, text: str, labels: list[str], samples: Iterable[tuple[str | tuple[str, ...], float]]) -> CounterMetricFamily:
    """The client adds ``_total``."""
    family = CounterMetricFamily(f"windlass_{name}", text, labels=labels)
    _add(family, samples)
    return family


def _add(family: GaugeMetricFamily | CounterMetricFamily, samples: Iterable[tuple[str | tuple[str, ...], float]]) -> None:
    for values, number in samples:
        family.add_metric([values] if isinstance(values, str) else list(values), number)
