"""What a page is told: from whole views of a manager to what has changed between them. Pure.

Theory of operation
-------------------
A `Feed` takes views as they come and keeps the *state*: what a page that opens now has to be told.  `take` gives back the *patch* that
makes the last state this one.  Sections that are small are told as a whole when they have changed; tables (workers, pilots, libraries,
causes, files) by row: ``{"set": {key: row}, "gone": [key]}``.  Rows are made so that they change only when something to be seen has: ages
become times, bytes are rounded.  Samples and lanes grow: their patches are what has come.

The page (``page.js``) applies patches in the same way; a state is the patch from nothing, also for one
that has been without a stream for a while, or was too slow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from windlass.manager.timeline import BLOCKS_MOST, Samples

Row = dict[str, Any]

#: Told as a whole.
_SECTIONS: Final = ("manager", "calls", "transfers", "pools", "programs", "running")
_TABLES: Final = ("workers", "pilots", "libraries", "causes", "files")
#: Memory of a worker is told to so many bytes.
_STEP: Final = 16 << 20
_MORE: Final = 3 * BLOCKS_MOST


class Feed:
    """The newest state of one manager, for pages."""

    def __init__(self) -> None:
        self._sections: Row = {}
        self._tables: dict[str, dict[str, Row]] = {name: {} for name in _TABLES}
        self._record: Row = {}
        self._samples: list[Any] = []
        #: By worker and lane: host and blocks.
        self._lanes: dict[tuple[str, int], tuple[str, list[Any]]] = {}
        self._blocks = 0
        #: The newest view as it came, without what only grows.
        self._newest: Row = {}
        #: What is known: for the next `GetView`.
        self.since, self.version = 0.0, 0
        #: What composing the last view took of the manager's thread, in seconds.
        self.took = 0.0

    def take(self, found: Row) -> Row:
        """Take in a view; the patch for pages that have the state before it."""
        patch: Row = {}
        record: Row = found["record"]
        if record["run"] != self._record.get("run") or not record["since"]:
            # Another life of the manager, or what was noted is told from the beginning.
            self._samples, self._lanes, self._blocks = [], {}, 0
            patch["anew"] = True
        self.took, self.since, self.version = record["took"], record["until"], record["version"]
        told = {key: value for key, value in record.items() if key not in ("took", "until", "since", "version")}
        if told != self._record:
            self._record = patch["record"] = told
        at: float = found["manager"]["at"]
        patch["at"] = at
        sections = {**found, "manager": {key: value for key, value in found["manager"].items() if key != "at"}}
        for name in _SECTIONS:
            if sections[name] != self._sections.get(name):
                self._sections[name] = patch[name] = sections[name]
        for name in _TABLES:
            if name not in found:
                continue  # a brief view
            fresh = dict(_ROWS[name](found[name], at))
            changed = _changed(self._tables[name], fresh)
            if changed:
                patch[name] = changed
                self._tables[name] = fresh
        if found["samples"]:
            patch["samples"] = found["samples"]
            self._samples += found["samples"]
            if len(self._samples) > 2 * Samples.ROWS:
                self._samples = self._samples[::2]
        if found["lanes"]:
            patch["lanes"] = found["lanes"]
            self._take_lanes(found["lanes"])
        self._newest.update((key, value) for key, value in found.items() if key not in ("samples", "lanes"))
        return patch

    def _take_lanes(self, rows: Iterable[list[Any]]) -> None:
        for worker, host, lane, blocks in rows:
            _, known = self._lanes.setdefault((worker, lane), (host, []))
            before = len(known)
            while known and blocks and known[-1][0] >= blocks[0][0]:
                known.pop()
            known += blocks
            self._blocks += len(known) - before
        if self._blocks > _MORE:
            self.since = 0.0  # the manager has made what is long ago coarser meanwhile: have that instead

    def state(self) -> Row:
        """The patch for a page that knows nothing, or forgets what it knew; empty before the first view."""
        if not self._newest:
            return {}
        return {
            "anew": True,
            "whole": True,
            "at": self._newest["manager"]["at"],
            "record": self._record,
            **self._sections,
            **{name: {"set": rows, "gone": []} for name, rows in self._tables.items()},
            "samples": self._samples,
            "lanes": self._all_lanes(),
        }

    def whole(self) -> Row:
        """The newest view with all that was noted, as a run is kept; empty before the first one."""
        if not self._newest:
            return {}
        return {**self._newest, "samples": self._samples, "lanes": self._all_lanes()}

    def _all_lanes(self) -> list[list[Any]]:
        return [[worker, host, lane, blocks] for (worker, lane), (host, blocks) in self._lanes.items()]


def state_of(whole: Row) -> Row:
    """What a page is told of a run that has ended, or of a view that came whole."""
    feed = Feed()
    feed.take({**whole, "record": {**whole["record"], "since": 0.0}})
    return feed.state()


def _changed(old: Mapping[str, Row], new: Mapping[str, Row]) -> Row:
    changed = {key: row for key, row in new.items() if old.get(key) != row}
    gone = [key for key in old if key not in new]
    return {"set": changed, "gone": gone} if changed or gone else {}


# ---------------------------------------------------------------- rows


def _worker_rows(rows: Iterable[Row], at: float) -> Iterable[tuple[str, Row]]:
    for row in rows:
        libraries = cast("list[Row]", row["libraries"])
        left = row["seconds_left"]
        yield (
            row["id"],
            {
                "host": row["host"],
                "pool": row["pool"],
                "pilot": row["pilot"],
                "cores": row["cores"],
                "gpus": row["gpus"],
                "memory": row["memory_limit"] or row["memory"],
                "used": row["memory_used"] // _STEP * _STEP,
                "cache": row["cache_bytes"] >> 20 << 20,
                "files": row["files"],
                "slots": sum(int(one["slots"]) for one in libraries),
                "running": row["running"],
                "held": row["held"],
                "libraries": [[one["name"], one["slots"], one["phase"]] for one in libraries],
                "connected": row["connected"],
                "draining": row["draining"],
                "idle": round((at - row["idle_seconds"]) / 5) * 5 if row["idle_seconds"] >= 5 else 0,
                "ends": round((at + left) / 5) * 5 if left is not None else 0,
            },
        )


def _pilot_rows(rows: Iterable[Row], at: float) -> Iterable[tuple[str, Row]]:
    for row in rows:
        shown = {key: row[key] for key in _PILOT}
        yield f"{row['pool']} {row['pilot']}", {**shown, "workers": [one["id"] for one in row["workers"]]}


_PILOT: Final = (
    "pool", "pilot", "job", "phase", "since", "made_at", "node", "reason", "failed", "cause", "exit_status", "ran", "words", "log", "story",
)  # fmt: skip


def _library_rows(rows: Iterable[Row], at: float) -> Iterable[tuple[str, Row]]:
    for row in rows:
        yield row["version"], row


def _cause_rows(rows: Iterable[Row], at: float) -> Iterable[tuple[str, Row]]:
    for row in rows:
        yield str(row["id"]), row


def _file_rows(rows: Iterable[Row], at: float) -> Iterable[tuple[str, Row]]:
    for row in rows:
        yield row["name"], row


_ROWS: Final = {"workers": _worker_rows, "pilots": _pilot_rows, "libraries": _library_rows, "causes": _cause_rows, "files": _file_rows}
