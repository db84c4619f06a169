"""The status object: how things stand in a manager, as JSON for people's tools (documented in docs/status.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, cast

import msgspec

from windlass.files import shown
from windlass.manager.core import Core
from windlass.manager.inputs import InputsCount
from windlass.manager.libraries import LibraryState
from windlass.manager.pilots import is_meant
from windlass.manager.programs import Program
from windlass.manager.workers import Worker
from windlass.sums import sums_of

#: Files that are shown one by one: those declared last.
FILES_MOST: Final = 200
#: Tags of one program that are told.
_TAGS_MOST: Final = 20
#: Workers are left out when no more pilots than these are left.
PILOTS_LEAST: Final = 100
#: There is room for as many pilots and workers, before anything else is left out.
WORKERS_LEAST: Final = 100
#: A message has at most 1 MiB.
BYTES_MOST: Final = 900 << 10
#: Where that does not do, each of these, and of what was asked for by name, has at most this part of it.
_BESIDES: Final = ("libraries", "files", "pools", "programs")
_SHARES: Final = 8
#: Letters of a text, and items of a list or mapping, of rows that are shortened.
_TEXT_MOST: Final = 500
_ITEMS_MOST: Final = 50


def status(
    core: Core,
    manager: str,
    addresses: Sequence[tuple[str, int]],
    now: float,
    programs: Sequence[tuple[Program, bool]] = (),
    *,
    detached: bool = False,
    moved: tuple[int, int, int] = (0, 0, 0),
    brief: bool = False,
    name: str = "",
    wanted: str = "",
) -> dict[str, Any]:
    """The status object. Times in seconds, memory in bytes. ``programs``: those attached, and whether they are connected;
    ``moved``: bytes of files and of objects that it has sent, and of objects that it has taken in.
    ``brief``: without pilots and files. ``name``: what people call it; ``manager`` is its id, which certificates name.
    ``wanted``: see `GetStatus`."""
    counters = core.counters
    replicas, (under_way, waiting_fetches) = core.replicas.counts(), core.replicas.moving()
    parked = sum(map(len, core.parked.values()))
    return {
        "manager": {
            "id": manager,
            "name": name or manager,
            "addresses": [f"{host}:{port}" for host, port in addresses],
            "at": now,
            "detached": detached,
        },
        "calls": {
            "waiting": sum(state.waiting for state in core.libraries.values()) + parked,
            "waiting_for_inputs": 0,
            "waiting_for_files": parked,
            "running": sum(state.running for state in core.libraries.values()),
            "done": counters.returned,
            "failed": core.failures.calls,
            "cancelled": counters.cancelled,
            "retried": core.failures.retried,
            "lost_attempts": core.failures.lost,
            "submitted": counters.submitted,
            # What goes on for earlier lives is no call of this one.
            "cores_of_earlier_lives": sum(worker.busy for worker in core.workers.values()),
        },
        "libraries": [_library(state) for state in core.libraries.values() if state.instances or state.waiting or not state.removed],
        "workers": [{**_worker(worker, now), "files": replicas.get(worker.id, 0)} for worker in core.workers.values()],
        **({} if brief else {"files": _files(core)}),
        "transfers": {
            "under_way": under_way,
            "waiting": waiting_fetches,
            "bytes_from_manager": moved[0],
            "object_bytes_out": moved[1],
            "object_bytes_in": moved[2],
        },
        "pools": _pools(core),
        **({} if brief else {"pilots": core.pilots.rows(core.workers.values(), now, wanted, {offer.pool for offer in core.all_offers()})}),
        "programs": [
            {
                "name": one.name,
                "calls": len(one.calls) + len(one.found),
                "keep": one.keep,
                "connected": connected,
                "gone": one.gone,
                "kept": len(one.ended),
                "tags": sorted({done.tag for done in one.ended.values()} | core.tags_of(one.calls if one.gone else ()))[:_TAGS_MOST],
            }
            for one, connected in programs
        ],
    }


def add_inputs(found: dict[str, Any], inputs: InputsCount) -> None:
    """Count calls that wait for the results of others, of which the core does not know yet."""
    calls: dict[str, int] = found["calls"]
    calls["waiting"] += inputs.waiting
    calls["waiting_for_inputs"] += inputs.waiting
    calls["failed"] += inputs.failed
    calls["cancelled"] += inputs.cancelled
    calls["submitted"] += inputs.waiting + inputs.failed + inputs.cancelled
    calls["remembered"] = 0


def within(found: dict[str, Any], most: int = BYTES_MOST, wanted: str = "") -> bytes:
    """The status object as JSON of at most so many bytes: of very many pilots without their stories, then fewer of them, then of workers.
    What is counted stays right: see `windlass.sums`. Those that ``wanted`` names (`GetStatus`) are left out last, and keep their stories.

    All else that has no bound has its long texts cut, and where that does not do even with few pilots and workers, gets a share: an answer
    that is too long for a message would end the session of whoever asked."""
    encoded = msgspec.json.encode(found)
    if len(encoded) <= most:
        return encoded
    share = most // _SHARES
    cut: dict[str, Any] = {**found, "cut": True, "sums": sums_of(found["workers"], found["pilots"])}
    cut |= {kind: _shortened(found[kind], share) for kind in _BESIDES if kind in found}
    named_pilots, more, others = _apart(found["pilots"], wanted, share)
    others = [row for row in others if row["phase"] != "ended" or row["failed"]]
    pilots: list[dict[str, Any]] = [{**row, "story": []} for row in others + more]
    named_workers, more, others = _apart(found["workers"], wanted, share)
    workers = more + others

    def encode() -> bytes:
        return msgspec.json.encode({**cut, "pilots": [*pilots, *named_pilots], "workers": [*named_workers, *workers]})

    few: dict[str, Any] = {"pilots": pilots[-PILOTS_LEAST:] + named_pilots, "workers": named_workers + workers[:WORKERS_LEAST]}
    if len(msgspec.json.encode({**cut, **few})) > most:
        cut |= {kind: _newest(cut[kind], share) for kind in _BESIDES if kind in cut}
    while len(encoded := encode()) > most and (pilots or workers):
        # The newest pilots, and the workers that have been here longest.
        if len(pilots) > PILOTS_LEAST or not workers:
            pilots = pilots[(len(pilots) + 1) // 2 :]
        else:
            workers = workers[: len(workers) // 2]
    return encoded


def _apart(rows: list[dict[str, Any]], wanted: str, most: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Those that are meant by name, as many as have at most so many bytes, last who is named in full; others that are meant; the rest."""
    named = sorted((row for row in rows if _is_meant(row, wanted)), key=lambda row: _is_meant(row, wanted, whole=True))
    kept = _newest(_shortened(named, most), most)
    return kept, named[: len(named) - len(kept)], [row for row in rows if not _is_meant(row, wanted)]


def _is_meant(row: Mapping[str, Any], wanted: str, *, whole: bool = False) -> bool:
    """Whether this word is one of a pilot or worker: its own, for a pilot also the beginning (but if ``whole``), or its host's."""
    own = [row.get("pilot", ""), row.get("job", "")]
    hosts = [one["host"] for one in row.get("workers", ())]
    return is_meant(wanted, [] if whole else own, [row.get(key, "") for key in ("id", "host", "node")] + hosts + own)


def _shortened(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """These rows, with short texts if they have more bytes than ``most``."""
    return [_short(row) for row in rows] if len(msgspec.json.encode(rows)) > most else rows


def _newest(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """As many of these rows, the last of them, as have at most so many bytes, or half as many."""
    while len(msgspec.json.encode(rows)) > most:
        rows = rows[(len(rows) + 1) // 2 :]
    return rows


def _short(value: object) -> Any:
    """With the ends of long texts, where errors and paths say what matters, and the first of many."""
    if isinstance(value, str):
        return value if len(value) <= _TEXT_MOST else f"... {value[-_TEXT_MOST:]}"
    if isinstance(value, dict):
        return {key: _short(one) for key, one in islice(cast("dict[str, object]", value).items(), _ITEMS_MOST)}
    return [_short(one) for one in cast("list[object]", value)[:_ITEMS_MOST]] if isinstance(value, list) else value


def _library(state: LibraryState) -> dict[str, Any]:
    notes = sorted({note for one in state.instances.values() if one.ready is not None for note in one.ready.notes})
    imports = {
        spent.module: {"seconds": spent.seconds, "error": spent.error}
        for one in state.instances.values()
        if one.ready is not None
        for spent in one.ready.imports
    }
    return {
        "name": state.spec.name,
        "version": state.spec.id,
        "mode": state.spec.mode,
        "functions": [function.name for function in state.spec.functions],
        "waiting": state.waiting,
        "running": state.running,
        "done": state.done,
        "instances": len(state.instances),
        "slots": state.slots,
        "concurrency": state.spec.concurrency,
        "mean_seconds": state.durations.mean,
        "longest_seconds": state.durations.longest,
        "imports": imports,
        "starts": state.starts,
        "hoisted_seconds": state.hoisted_seconds,
        # Without hoisting each call would import what each start imported once.
        "saved_seconds": max(0.0, state.hoisted_seconds / state.starts * (state.done - state.starts)) if state.starts else 0.0,
        "failed": state.failed,
        "removed": state.removed,
        "notes": notes,
    }


def _worker(worker: Worker, now: float) -> dict[str, Any]:
    of = worker.info.resources
    return {
        "id": worker.id,
        "host": worker.info.host,
        "pid": worker.info.pid,
        "pool": worker.info.pool,
        "pilot": worker.info.pilot,
        "cores": of.cores,
        "memory": of.memory,
        "gpus": of.gpus,
        "memory_used": worker.memory_used,
        "memory_limit": worker.memory_limit,
        "cache_bytes": worker.cache_bytes,
        "busy_cores": worker.busy,
        "running": sum(min(one.outstanding, one.running_most) for one in worker.instances.values()),
        "held": len(worker.calls),
        "connected": worker.connected,
        "draining": worker.draining,
        "idle_seconds": 0.0 if worker.calls or worker.busy else max(0.0, now - worker.idle_since),
        "seconds_left": worker.ends_at - now if worker.ends_at else None,
        "libraries": [{"name": one.spec.name, "slots": one.slots, "phase": one.phase.value} for one in worker.instances.values()],
    }


def _files(core: Core) -> list[dict[str, Any]]:
    known = core.replicas.files
    newest = list(islice(reversed(known.values()), FILES_MOST))
    return [
        {
            "name": file.ref.name,
            "source": (file.origin.path or shown(file.origin.url) or file.origin.shared or file.ref.base).encode(errors="replace").decode(),
            "size": file.ref.size,
            "level": file.ref.level,
            "replicas": len(file.holders),
            "waiting": len(file.waiting) + len(file.fetching),
            "origin_reads": file.origin_reads,
            "away": file.away,
            "lost": file.lost,
        }
        for file in reversed(newest)
    ]


def _pools(core: Core) -> list[dict[str, Any]]:
    pools: list[dict[str, Any]] = []
    for factory, report in core.reports.items():
        for offer in report.offers:
            pools.append(
                {
                    "name": offer.pool,
                    "factory": factory,
                    "backend": offer.backend,
                    "pilots": {state: number for pool, state, number in report.counts if pool == offer.pool},
                    "cores": offer.resources.cores,
                    "memory": offer.resources.memory,
                    "gpus": offer.resources.gpus,
                    "walltime": offer.walltime,
                    "paused": offer.paused,
                    "failure": next((text for pool, text in report.failures if pool == offer.pool), ""),
                    "commands": dict(report.commands),
                }
            )
    return pools
