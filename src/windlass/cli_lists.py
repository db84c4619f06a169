"""The nouns ``workers``, ``libraries``, ``calls`` and ``files`` of the command line: what there is, by filters, as a table or as JSON.

Theory of operation
-------------------
All but calls are rows of the manager's status (docs/status.md) with a ``state`` put before them; calls are asked for by a message of
their own, which costs a manager of millions of calls some milliseconds (`windlass.manager.listing`). A filter that names something that
there is not is refused with near names; one that fits nothing now is an empty list, and success.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import argparse

    from windlass.tables import Column

Row = Mapping[str, Any]

WORKER_STATES: Final = ("busy", "idle", "draining", "cut")
LIBRARY_STATES: Final = ("running", "waiting", "idle", "failed", "removed")
FILE_STATES: Final = ("here", "wanted", "away", "declared", "lost")
FILE_LEVELS: Final = ("call", "workflow", "worker", "forever")
CALL_STATES: Final = ("running", "sent", "waiting", "failed")
#: Of each state, unless ``--most`` says otherwise.
CALLS_SHOWN: Final = 20


def state_of_worker(row: Row) -> str:
    """What people call it."""
    return "cut" if not row["connected"] else "draining" if row["draining"] else "busy" if row["held"] or row.get("busy_cores") else "idle"


def state_of_library(row: Row) -> str:
    """What people call it."""
    if row["failed"]:
        return "failed"
    busy = "running" if row["running"] else "waiting" if row["waiting"] else ""
    return busy or ("removed" if row["removed"] else "idle")


def state_of_file(row: Row) -> str:
    """What people call it: "here" is at least one replica."""
    if row["lost"]:
        return "lost"
    return "here" if row["replicas"] else "away" if row.get("away") else "wanted" if row["waiting"] else "declared"


def require_known(kind: str, value: str, known: Iterable[str], *, cut: bool = False) -> None:
    """Raise `UnknownName` for a filter that names what there is not. "" is no filter; where some were ``cut``, it may be one of these."""
    from windlass.errors import UnknownName

    if value and not cut and value not in (names := set(known)):
        raise UnknownName(kind, value, names, within="of this manager")


def require_words(kind: str, values: Iterable[str], known: Sequence[str]) -> None:
    """Raise `UnknownName` for a word that is none of these."""
    from windlass.errors import UnknownName

    for value in values:
        if value and value not in known:
            raise UnknownName(kind, value, known)


# ---------------------------------------------------------------- commands


def list_workers(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.cli_pilots import status_of

    require_words("state of workers", chosen.state, WORKER_STATES)
    status = status_of(chosen, chosen.host)
    rows: list[Row] = [{"state": state_of_worker(row), **row} for row in status["workers"]]
    cut = bool(status.get("cut"))
    require_known("pool", chosen.pool, [row["pool"] for row in rows] + [pool["name"] for pool in status["pools"]], cut=cut)
    require_known("library", chosen.library, [row["name"] for row in status["libraries"]], cut=cut)
    require_known("host", chosen.host, [row["host"] for row in rows])
    rows = [
        row
        for row in rows
        if (not chosen.state or row["state"] in chosen.state)
        and chosen.pool in ("", row["pool"])
        and chosen.host in ("", row["host"])
        and (not chosen.library or any(one["name"] == chosen.library for one in row["libraries"]))
    ]
    return _print(chosen, rows, _worker_columns(), "workers", cut)


def _worker_columns() -> Sequence[Column]:
    from windlass.status import show_bytes, show_hosted, show_left, show_plain, show_span, show_used
    from windlass.tables import Column, number_column, text_column

    return (
        text_column("worker", "id"),
        text_column("host"),
        text_column("pool"),
        text_column("pilot"),
        text_column("state"),
        Column("cores", lambda row: show_plain(row["cores"]), right=True),
        Column("gpus", lambda row: show_plain(row["gpus"]) if row["gpus"] else "", right=True),
        number_column("running"),
        number_column("held"),
        Column("idle", lambda row: show_span(row["idle_seconds"]) if row["idle_seconds"] else "", right=True),
        Column("memory", lambda row: f"{show_used(row['memory_used'])} of {show_bytes(row['memory_limit'])}", right=True),
        Column("time left", lambda row: show_left(row["seconds_left"]), right=True),
        Column("libraries", lambda row: show_hosted(row["libraries"])),
        text_column("remark", "draining"),
    )


def list_libraries(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.cli_pilots import status_of
    from windlass.status import show_imports, show_span
    from windlass.tables import Column, number_column, text_column

    require_words("state of libraries", chosen.state, LIBRARY_STATES)
    status = status_of(chosen)
    rows = [{"state": state_of_library(row), **row} for row in status["libraries"]]
    cut = bool(status.get("cut"))
    require_known("library", chosen.library, [row["name"] for row in rows], cut=cut)
    rows = [row for row in rows if (not chosen.state or row["state"] in chosen.state) and chosen.library in ("", row["name"])]
    columns = (
        text_column("library", "name"),
        text_column("version"),
        text_column("state"),
        number_column("waiting"),
        number_column("running"),
        number_column("done"),
        number_column("instances"),
        number_column("slots"),
        Column("mean", lambda row: show_span(row["mean_seconds"]) if row["done"] else "", right=True),
        Column("longest", lambda row: show_span(row["longest_seconds"]) if row["done"] else "", right=True),
        Column("saved", lambda row: show_span(row["saved_seconds"]) if row["saved_seconds"] else "", right=True),
        Column("imports", lambda row: show_imports(row["imports"])),
        Column("remark", lambda row: " ".join([str(row["failed"]).strip().partition("\n")[0], *row["notes"]]).strip()),
    )
    return _print(chosen, rows, columns, "libraries", cut and not rows)


def list_files(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.cli_pilots import status_of
    from windlass.status import show_bytes
    from windlass.tables import Column, number_column, text_column

    require_words("state of files", chosen.state, FILE_STATES)
    require_words("level of files", [chosen.level], FILE_LEVELS)
    rows = [{"state": state_of_file(row), **row} for row in status_of(chosen)["files"]]
    rows = [
        row
        for row in rows
        if (not chosen.state or row["state"] in chosen.state)
        and chosen.level in ("", row["level"])
        and (not chosen.source or chosen.source in row["source"] or fnmatchcase(row["source"], chosen.source))
    ]
    columns = (
        text_column("file", "name"),
        text_column("source"),
        Column("size", lambda row: show_bytes(row["size"]) if row["size"] >= 0 else "?", right=True),
        text_column("level"),
        text_column("state"),
        number_column("replicas"),
        number_column("waiting"),
        number_column("read", "origin_reads"),
        Column("remark", lambda row: str(row["lost"] or row.get("away", ""))),
    )
    return _print(chosen, rows, columns, "files")


def list_calls(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.managers import choose_manager
    from windlass.messages import GetStatus, ListCalls
    from windlass.status import StatusPort

    require_words("state of calls", chosen.state, CALL_STATES)
    known = choose_manager(chosen.manager, chosen.port)
    known.require_running()
    states = [state for state in CALL_STATES if not chosen.state or state in chosen.state]
    with StatusPort(known.connection) as port:
        if chosen.library or chosen.host:
            status = json.loads(port.ask(about=GetStatus(chosen.host)))
            require_known("library", chosen.library, [row["name"] for row in status["libraries"]], cut=bool(status.get("cut")))
            if chosen.state != ["failed"]:  # whose workers may have gone
                require_known("host", chosen.host, [name for row in status["workers"] for name in (row["host"], row["id"])])
        found = json.loads(port.ask(about=ListCalls(tuple(states), chosen.library, chosen.tag, chosen.host, chosen.most)))
    rows: list[Row] = found["calls"]
    if chosen.json or not rows:
        return _print(chosen, rows, (), "calls", found["cut"])
    _print_calls(rows, found["at"])
    sys.stdout.flush()
    print(told_rest(rows, states, found, chosen.most), file=sys.stderr)
    return 0


def _print_calls(rows: Sequence[Row], now: float) -> None:
    from windlass.status import show_span
    from windlass.tables import Column, number_column, print_table, text_column

    print_table(
        rows,
        (
            number_column("call"),
            text_column("program"),
            text_column("library"),
            text_column("function"),
            text_column("tag"),
            text_column("state"),
            text_column("host"),
            text_column("pilot"),
            Column("waited", lambda row: show_span(row["waited"]), right=True),
            Column("ran", lambda row: show_span(row["ran"]) if row["ran"] else "", right=True),
            Column("attempts", lambda row: str(row["attempts"]) if row["attempts"] > 1 else "", right=True),
            Column("ended", lambda row: f"{show_span(max(0.0, now - row['ended_at']))} ago" if row["ended_at"] else "", right=True),
            Column("error", lambda row: row["error"] or (f"before: {row['outcome']}" if row["outcome"] else "")),
        ),
    )


def told_rest(rows: Sequence[Row], states: Sequence[str], found: Mapping[str, Any], most: int) -> str:
    """How many are shown, and how many there are; and how to see more, where there may be more."""
    counts: Mapping[str, int | None] = found["counts"]
    parts: list[str] = []
    more = bool(found["cut"])
    for state in states:
        shown = sum(row["state"] == state for row in rows)
        if state in ("running", "sent"):
            continue
        whole = counts.get(state)
        more = more or (shown < whole if whole is not None else shown >= most)
        parts.append(f"{shown:,} of {whole:,} {state}" if whole is not None else f"{shown:,} {state}")
    held = [state for state in states if state in ("running", "sent")]
    if held:
        shown, whole = sum(row["state"] in held for row in rows), counts.get("sent")
        more = more or (shown < whole if whole is not None else shown >= most)
        parts.insert(0, f"{shown:,} of {whole:,} at workers" if whole is not None else f"{shown:,} at workers")
    return f"({', '.join(parts)}{'; not all were looked at' if found['cut'] else ''}{'; --most N shows more' if more else ''})"


def _print(chosen: argparse.Namespace, rows: Sequence[Row], columns: Sequence[Column], kind: str, cut: bool = False) -> int:
    """Print a list in the way that was asked for."""
    from windlass.tables import print_json, print_table

    if chosen.json:
        print_json(rows)
    elif rows:
        print_table(rows, columns)
    else:
        print(f"no such {kind}" if is_filtered(chosen) else f"no {kind}")
    if cut:
        sys.stdout.flush()
        print(f"windlass: there are so many that some {kind} are left out", file=sys.stderr)
    return 0


def is_filtered(chosen: argparse.Namespace) -> bool:
    """Whether some may have been left out by a filter."""
    return any(getattr(chosen, name, None) for name in ("state", "pool", "host", "library", "tag", "source", "level"))


# ---------------------------------------------------------------- the parsers


def add_state(parser: Any, states: Sequence[str], **more: Any) -> None:
    """Add ``--state``, which may be given several times."""
    parser.add_argument(
        "--state",
        action="append",
        metavar="STATE",
        help=f"only in this state (may be repeated): {', '.join(states)}",
        **{"default": [], **more},
    )


def add_parsers(nouns: Any) -> None:
    """Add the parsers."""
    from windlass import cli_words
    from windlass.cli_pilots import manager_options

    def noun(name: str, command: Any, help: str, description: str) -> Any:
        made = nouns.add_parser(name, help=help, description=description)
        made.add_argument("--json", action="store_true", help="one object a line; its keys: windlass explain status")
        manager_options(made, by_itself=True)
        made.set_defaults(command=command)
        return made

    one = noun("workers", list_workers, "the workers of a manager", "List the workers that are connected, or may come back.")
    add_state(one, WORKER_STATES)
    one.add_argument("--pool", default="", help="only of this pool")
    one.add_argument("--host", default="", help="only on this host")
    one.add_argument("--library", default="", help="only those with an instance of this library")

    one = noun("libraries", list_libraries, "the libraries of a manager", "List the versions of libraries, with what hoisting saved.")
    add_state(one, LIBRARY_STATES)
    one.add_argument("--library", default="", help="only of this name")

    one = noun(
        "calls",
        list_calls,
        "the calls of a manager",
        "List calls that have not ended, and the last that failed: at most 20 of each state, of those that run the longest, of others the"
        " newest. Calls that have ended well, and those that wait for the results of others, are not listed.",
    )
    add_state(one, CALL_STATES)
    one.add_argument("--library", default="", help="only of this library")
    one.add_argument("--tag", default="", help="only with this tag")
    one.add_argument("--host", default="", help="only at workers of this host")
    one.add_argument("--most", type=cli_words.count, default=CALLS_SHOWN, metavar="N", help="of each state so many at most (%(default)s)")

    one = noun("files", list_files, "the declared files of a manager", "List the 200 files that were declared last, and where they are.")
    add_state(one, FILE_STATES)
    one.add_argument("--source", default="", help="only from sources with this in them, or that fit this pattern (*, ?)")
    one.add_argument("--level", default="", help=f"only of this level of the cache: {', '.join(FILE_LEVELS)}")
