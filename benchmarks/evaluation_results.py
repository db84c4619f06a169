"""What `evaluation.py` has measured: kept as JSON, and told as figures and tables. Pure but for reading and writing the files.

A *point* is a setting (library, imports, environment, function time) with what was measured of it; of several rounds the median is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from common import median
from evaluation_cell import ARCHIVE, MODULES, Run, Setting
from slowfs import Counts

IMPORTS: Final = {"call": "in each call", "library": "hoisted per library"}
ENVIRONMENTS: Final = {"shared": "shared file system", "cache": "worker's cache"}


@dataclass(frozen=True)
class Point:
    setting: Setting
    run: Run


@dataclass
class Results:
    """Everything of one evaluation."""

    #: Seconds of a metadata operation, and for how long its answer holds.
    delay: float
    valid: float
    #: How many calls the seconds are told for.
    calls: int
    machine: Mapping[str, Any]
    #: Bytes of the archive of the environment.
    archive_bytes: int
    points: list[Point] = field(default_factory=list[Point])
    #: The same with one node, where the others have several: what the first node asks.
    single: list[Point] = field(default_factory=list[Point])
    #: Seconds of the import alone, by "library environment".
    import_s: dict[str, float] = field(default_factory=dict[str, float])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        said: dict[str, Any] = json.loads(path.read_text())
        points, single = ([_point(one) for one in said.pop(name)] for name in ("points", "single"))
        return cls(**said, points=points, single=single)

    @property
    def libraries(self) -> list[str]:
        """Those that were measured in all ways, in growing weight, and those of no known weight."""
        named = dict.fromkeys([*MODULES, *(point.setting.library for point in self.points)])
        return [name for name in named if self.times_of(name)]

    @property
    def times(self) -> list[float]:
        """Those of all libraries."""
        return sorted({one for name in self.libraries for one in self.times_of(name)})

    def times_of(self, library: str) -> list[float]:
        """Those that the library was measured with, in all ways: an evaluation may have been stopped."""
        measured = {point.setting for point in self.points}
        ways = [(library, imports, environment) for imports in IMPORTS for environment in ENVIRONMENTS]
        return [one for one in sorted({setting.seconds for setting in measured}) if measured >= {Setting(*way, one) for way in ways}]

    def median(self, setting: Setting, of: Callable[[Run], float]) -> float:
        """Of all rounds of a setting. Raises `StatisticsError` when it was not measured."""
        return median(of(point.run) for point in self.points if point.setting == setting)

    def seconds(self, setting: Setting) -> float:
        """For all calls."""
        return self.median(setting, lambda run: run.seconds_for(self.calls))

    def ideal(self, library: str, environment: str, seconds: float) -> float:
        """One import, and the functions' own time divided by the slots."""
        slots = self.points[0].run.slots
        return self.import_s[f"{library} {environment}"] + self.calls * seconds / slots

    def per_extra_node(self, environment: str, of: Callable[[Counts], int]) -> float:
        """What each further node adds until it has answered calls, of the hoisted heaviest library."""
        setting = Setting(self.libraries[-1], "library", environment, self.times_of(self.libraries[-1])[0])
        one = median(of(point.run.start + point.run.first) for point in self.single if point.setting == setting)
        several = self.median(setting, lambda run: of(run.start + run.first))
        return (several - one) / (self.points[0].run.nodes - 1)

    def figures(self) -> dict[str, float]:
        """The headline figures, of the heaviest library and the shortest function."""
        library = self.libraries[-1]
        seconds = self.times_of(library)[0]

        def at(imports: str, environment: str) -> Setting:
            return Setting(library, imports, environment, seconds)

        ideal = self.ideal(library, "shared", seconds)
        hoisted = at("library", "cache")
        return {
            "hoisted_vs_ideal": round(self.seconds(at("library", "shared")) / ideal, 2),
            "unhoisted_vs_ideal": round(self.seconds(at("call", "shared")) / ideal, 1),
            "cache_hoisted_s": round(self.seconds(hoisted), 2),
            "shared_unhoisted_s": round(self.seconds(at("call", "shared")), 1),
            "ops_per_call_unhoisted": round(self.median(at("call", "shared"), lambda run: run.per_call)),
            "ops_per_call_hoisted": round(max(self.median(at("library", one), lambda run: run.per_call) for one in ENVIRONMENTS), 2),
            "ops_per_node_shared": round(self.median(at("library", "shared"), lambda run: run.per_node)),
            "ops_per_node_cache": round(self.median(hoisted, lambda run: run.per_node)),
            "ops_per_extra_node": round(self.per_extra_node("cache", lambda counts: counts.total), 1),
            "metadata_ops_per_extra_node": round(self.per_extra_node("cache", lambda counts: counts.metadata), 1),
            "ops_per_extra_node_shared": round(self.per_extra_node("shared", lambda counts: counts.total), 1),
            "mb_per_extra_node": round(self.per_extra_node("cache", lambda counts: counts.bytes) / 1e6, 1),
            "archive_reads": round(self.median(hoisted, lambda run: (run.start + run.first).read.get(ARCHIVE, 0)) / self.archive_bytes, 2),
        }

    def tables(self) -> str:
        """The tables in Markdown."""
        return "\n\n".join([self._by_library(), self._by_time()]) + "\n"

    def _by_library(self) -> str:
        seconds = self.times[0]
        rows: list[Sequence[object]] = []
        for library in (one for one in self.libraries if seconds in self.times_of(one)):
            for environment, place in ENVIRONMENTS.items():
                for imports, way in IMPORTS.items():
                    setting = Setting(library, imports, environment, seconds)
                    rows.append(
                        (
                            library,
                            place,
                            way,
                            _round(self.median(setting, lambda run: run.start_s)),
                            _round(self.seconds(setting)),
                            _round(self.seconds(setting) / self.calls),
                            _round(self.median(setting, lambda run: (run.start + run.first).metadata / run.nodes)),
                            _round(self.median(setting, lambda run: (run.start + run.first).bytes / run.nodes / 1e6)),
                            _round(self.median(setting, lambda run: run.rest.metadata / run.rest_calls)),
                            _round(self.median(setting, lambda run: run.per_call)),
                        )
                    )
                rows.append((library, place, "ideal", "", _round(self.ideal(library, environment, seconds)), "", "", "", "", ""))
        heads = (
            "library",
            "environment",
            "imports",
            "pilots' start, s",
            f"{self.calls} calls, s",
            "s per call",
            "metadata operations per node",
            "MB read per node",
            "metadata operations per call",
            "all operations per call",
        )
        return f"Calls of {seconds:g} s:\n\n{_markdown(heads, rows)}"

    def _by_time(self) -> str:
        rows = [
            (
                library,
                place,
                way,
                *(
                    _round(self.seconds(Setting(library, imports, environment, one)) if imports else self.ideal(library, environment, one))
                    if one in self.times_of(library)
                    else ""
                    for one in self.times
                ),
            )
            for library in self.libraries
            for environment, place in ENVIRONMENTS.items()
            for imports, way in (*IMPORTS.items(), ("", "ideal"))
        ]
        heads = ("library", "environment", "imports", *(f"{seconds:g} s" for seconds in self.times))
        return f"Seconds for {self.calls} calls, by the function's own time:\n\n{_markdown(heads, rows)}"


def _point(said: Mapping[str, Any]) -> Point:
    run: dict[str, Any] = dict(said["run"])
    run |= {name: Counts(**run[name]) for name in ("start", "first", "rest")}
    return Point(Setting(**said["setting"]), Run(**run))


def _round(value: float) -> str:
    """Three digits, and no more decimals than say something."""
    return "0" if value == 0 else f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _markdown(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    words = [str(head) for head in heads]
    lines = ["| " + " | ".join(words) + " |", "|" + "---|" * len(words)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])
