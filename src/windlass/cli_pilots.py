"""The noun ``pilots`` of the command line: which there are, what became of them, what they wrote; and ``factory resume``.

Theory of operation
-------------------
All of it is in the manager's status (docs/status.md, ``pilots``), which factories fill with what their batch systems say.  A pilot's
output is read from its log, whose path the factory told; where this machine does not see it, or it is gone, the last words that the
manager keeps of failed pilots are shown, and it is said which of the two it is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    import argparse

Row = Mapping[str, Any]

#: Seconds between looks at a log that is followed, and for a pool to be seen to go on.
FOLLOW_SECONDS: Final = 0.3
STATUS_SECONDS: Final = 3.0
RESUME_SECONDS: Final = 5.0
#: What ``--state`` takes: phases, and failures, which are ends.
STATES: Final = ("queued", "running", "serving", "leaving", "cancelling", "ending", "held", "ended", "failed")


def status_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """The status of the manager that is meant. Raises `UsageError`, `ConnectionRefused`."""
    from windlass.managers import choose_manager
    from windlass.status import StatusPort

    known = choose_manager(chosen.manager, chosen.port)
    known.require_running()
    with StatusPort(known.connection) as port:
        return cast("dict[str, Any]", json.loads(port.ask()))


def find(rows: Sequence[Row], word: str) -> Row:
    """The pilot meant by its word, its job, or the beginning of one of these.

    Raises:
        UnknownName: there is none; the text has near names. UsageError: several begin so; the text lists them.
    """
    from windlass.errors import UnknownName, UsageError

    exact = [row for row in rows if word in (row["pilot"], row["job"])]
    found = exact or [row for row in rows if str(row["pilot"]).startswith(word) or str(row["job"]).startswith(word)]
    if not found:
        raise UnknownName("pilot", word, [str(row["pilot"]) for row in rows], "(windlass pilots list --ended shows all)")
    # Of several starts of a job the newest; of several jobs none.
    if len({row["job"] for row in found}) > 1:
        raise UsageError(f"{len(found)} pilots begin with {word!r}: {', '.join(str(row['pilot']) for row in found[:10])}; write more of it")
    return max(found, key=lambda row: (row["restart"], row["since"]))


def state_of(row: Row) -> str:
    """What people call it: of those that have ended, whether they failed."""
    return "failed" if row["failed"] and row["phase"] == "ended" else str(row["phase"])


# ---------------------------------------------------------------- commands


def list_pilots(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.errors import UnknownName

    status = status_of(chosen)
    pools = {pool["name"] for pool in status["pools"]} | {row["pool"] for row in status["pilots"]}
    if chosen.state and chosen.state not in STATES:
        raise UnknownName("state of pilots", chosen.state, STATES)
    if chosen.pool and chosen.pool not in pools:
        raise UnknownName("pool", chosen.pool, pools, within="of this manager")
    rows = [
        row
        for row in status["pilots"]
        if (chosen.ended or row["phase"] != "ended" or chosen.state in ("ended", "failed"))
        and chosen.pool in ("", row["pool"])
        and chosen.state in ("", row["phase"], state_of(row))
    ]
    cut = "of very many pilots the newest; the manager's answer holds no more"
    if chosen.json:
        print(json.dumps({"pilots": rows, "cut": bool(status.get("cut"))}))
    elif rows:
        _print_table(rows, status["manager"]["at"])
        print(f"({cut})" if status.get("cut") else "", end="\n" if status.get("cut") else "")
    else:
        ended = sum(row["phase"] == "ended" for row in status["pilots"])
        print("no such pilots" if chosen.state or chosen.pool else "no pilots", end="")
        print(f"; --ended shows {ended} that ended" if ended and not (chosen.ended or chosen.state) else "")
    return 0


def _print_table(rows: Sequence[Row], now: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from windlass.status import show_span

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("pilot", "pool", "state", "for", "ran", "node", "calls", "reason"):
        table.add_column(column, justify="right" if column in ("for", "ran", "calls") else "left", overflow="fold")
    for row in rows:
        calls = str(sum(worker["running"] for worker in row["workers"])) if row["workers"] else ""
        words = str(row["words"]).strip().splitlines()[-1:] or [""]
        reason = f"{row['reason']}: {words[0]}" if words[0] else row["reason"]
        ran = show_span(row["ran"]) if row["ran"] else ""
        values = (row["pilot"], row["pool"], state_of(row), show_span(max(0.0, now - row["since"])), ran, row["node"], calls, reason)
        table.add_row(*(Text(str(value)) for value in values))
    Console().print(table)


def show_pilot(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    status = status_of(chosen)
    row = find(status["pilots"], chosen.pilot)
    if chosen.json:
        print(json.dumps(row))
        return 0
    from windlass.status import show_span

    print(f"pilot {row['pilot']} of pool {row['pool']}, factory {row['factory']}")
    restarted = f" (started again {row['restart']} time{'s' * (row['restart'] != 1)})" if row["restart"] else ""
    over = [f"{row['cause']}" if row["cause"] not in ("", "unknown") else ""]
    over += [f"exit status {row['exit_status']}"] if row["exit_status"] is not None else []
    facts = [
        ("job", f"{row['job']}{restarted}"),
        ("submission", row["submission"]),
        ("state", f"{row['phase']}{', failed before it served' if row['failed'] else ''}"),
        ("node", row["node"]),
        ("ran", show_span(row["ran"]) if row["ran"] else ""),
        ("end", ", ".join(part for part in over if part)),
        ("reason", row["reason"]),
        ("log", row["log"]),
    ]
    facts += [("worker", _worker(one)) for one in row["workers"]]
    for name, value in facts:
        if value:
            print(f"  {name + ':':<12}{value}")
    print("story:")
    ends = [step["at"] for step in row["story"][1:]] + [status["manager"]["at"]]
    for step, end in zip(row["story"], ends, strict=True):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(step["at"]))
        took = "" if step["phase"] == "ended" else show_span(max(0.0, end - step["at"]))
        print(f"  {at}  {took:>10}  {step['phase']}{': ' + step['reason'] if step['reason'] else ''}")
    if row["words"]:
        print("its last words:")
        print("\n".join(f"  {line}" for line in str(row["words"]).splitlines()))
    return 0


def _worker(worker: Row) -> str:
    from windlass.status import show_span

    calls = f"{worker['running']} call{'s' * (worker['running'] != 1)} running"
    waiting = worker["held"] - worker["running"]
    does = f"{calls}, {waiting} waiting" if waiting > 0 else calls
    idle = f"idle for {show_span(worker['idle_seconds'])}" if not worker["held"] else does
    return f"{worker['id']} on {worker['host']}, {idle}{'' if worker['connected'] else ', its connection is cut'}"


def pilot_logs(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.errors import UsageError

    if chosen.follow and chosen.json:
        raise UsageError("--follow and --json do not go together; --json prints one object")
    row = find(status_of(chosen)["pilots"], chosen.pilot)
    path, why = str(row["log"]), ""
    try:
        if not path:
            raise FileNotFoundError
        with open(path, errors="replace") as file:
            lines = list(deque(file, maxlen=chosen.lines))
            if not chosen.json:
                sys.stdout.writelines(lines)
                if not lines:
                    print("windlass: it has written nothing" + ("" if row["phase"] == "ended" else " yet"), file=sys.stderr)
                if chosen.follow:
                    _follow(file, chosen, str(row["pilot"]))
                return 0
    except OSError as error:
        lines, why = [line + "\n" for line in str(row["words"]).splitlines()], _why_no_log(row, error)
        path = ""
    if chosen.json:
        print(json.dumps({"pilot": row["pilot"], "log": path, "lines": [line.rstrip("\n") for line in lines], "why": why}))
        return 0
    print(f"windlass: {why}" + ("; its last words:" if lines else ""), file=sys.stderr)
    sys.stdout.writelines(lines)
    return 0 if lines else 1


def _why_no_log(row: Row, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"its log {row['log']} cannot be read here: {error.strerror or error}"
    if row["phase"] in ("queued", "held"):
        return "it has not started, so there is no log of it yet"
    if row["phase"] in ("cancelling", "ended") and not row["ran"] and row["exit_status"] is None and not row["words"]:
        return "it was not seen to run, and there is no log of it"
    return f"its log {row['log']} is not here: it is on another machine, or gone" if row["log"] else "nobody has said where its log is"


def _follow(file: TextIO, chosen: argparse.Namespace, pilot: str) -> None:
    """Print what is added until the pilot has ended, or somebody interrupts."""
    ended = False
    looked = time.monotonic()
    while True:
        if os.fstat(file.fileno()).st_size < file.buffer.tell():
            file.seek(0)  # it was cut, as it had grown too long
        more = file.read()
        sys.stdout.write(more)
        sys.stdout.flush()
        if ended and not more:
            return
        if not ended and time.monotonic() - looked > STATUS_SECONDS:
            looked = time.monotonic()
            ended = _has_ended(chosen, pilot)
        time.sleep(FOLLOW_SECONDS)


def _has_ended(chosen: argparse.Namespace, pilot: str) -> bool:
    from windlass.errors import WindlassError

    try:
        return next((row["phase"] for row in status_of(chosen)["pilots"] if row["pilot"] == pilot), "ended") == "ended"
    except WindlassError:
        return True  # the manager has gone, and with it whoever could tell


def resume(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    """Tell the factories of a manager that what paused a pool is mended."""
    from windlass.errors import UnknownName
    from windlass.managers import choose_manager
    from windlass.messages import PoolName, ResumePool
    from windlass.status import StatusPort

    known = choose_manager(chosen.manager, chosen.port)
    known.require_running()
    with StatusPort(known.connection) as port:
        pools: list[Row] = json.loads(port.ask())["pools"]
        if chosen.pool and chosen.pool not in [pool["name"] for pool in pools]:
            raise UnknownName("pool", chosen.pool, [pool["name"] for pool in pools], within="of this manager")
        paused = [pool["name"] for pool in pools if pool["paused"] and chosen.pool in ("", pool["name"])]
        if not paused:
            print("no pool is paused" if not chosen.pool else f"pool {chosen.pool} is not paused")
            return 0
        port.send(ResumePool(PoolName(chosen.pool)))
        end = time.monotonic() + RESUME_SECONDS
        while True:
            still = [pool["name"] for pool in json.loads(port.ask())["pools"] if pool["paused"] and pool["name"] in paused]
            if not still or time.monotonic() > end:
                break
            time.sleep(0.05)
    for name in paused:
        print(f"pool {name} {'is paused again, or still: see windlass status' if name in still else 'goes on'}")
    return 1 if still else 0


# ---------------------------------------------------------------- the parsers


def _manager_options(parser: Any) -> None:
    parser.add_argument("--manager", metavar="MANAGER", help="the manager's name or connection file; else the only one of yours that runs")
    from windlass import cli_words

    parser.add_argument("--port", type=cli_words.port, help="the manager that listens on this port")


def add_parsers(nouns: Any) -> None:
    """Add the parsers of ``windlass pilots``."""
    from windlass import cli_words

    pilots = nouns.add_parser("pilots", help="the pilots of a manager: list, show, logs")
    pilots.set_defaults(parser=pilots)
    verbs = pilots.add_subparsers(title="commands", metavar="COMMAND")

    one = verbs.add_parser("list", help="which there are", description="List pilots, with the batch system's own words on each.")
    one.add_argument("--pool", default="", help="only of this pool")
    one.add_argument("--state", default="", help=f"only in this state: {', '.join(STATES)}")
    one.add_argument("--ended", action="store_true", help="those that have ended, too: the last 100 of each pool")
    one.add_argument("--json", action="store_true", help="one object: pilots, as in docs/status.md")
    _manager_options(one)
    one.set_defaults(command=list_pilots)

    one = verbs.add_parser("show", help="all that is known of one, and its story")
    one.add_argument("pilot", help="as list shows it, or the beginning of it")
    one.add_argument("--json", action="store_true", help="one object, as in docs/status.md")
    _manager_options(one)
    one.set_defaults(command=show_pilot)

    one = verbs.add_parser(
        "logs", help="what one has written", description="Print the pilot's own output, or its last words where that is gone."
    )
    one.add_argument("pilot", help="as list shows it, or the beginning of it")
    one.add_argument("--lines", type=cli_words.count, metavar="N", help="the last N lines only")
    one.add_argument("--follow", action="store_true", help="and what it goes on to write, until it ends")
    one.add_argument("--json", action="store_true", help="one object: pilot, log, lines")
    _manager_options(one)
    one.set_defaults(command=pilot_logs)


def add_resume(verbs: Any) -> None:
    """Add ``windlass factory resume``."""
    one = verbs.add_parser(
        "resume",
        help="let a paused pool go on: what was wrong is mended",
        description="Tell the factories of a running manager that the reason of a pause is mended. Without POOL: all that are paused.",
    )
    one.add_argument("pool", nargs="?", default="", metavar="POOL", help="a pool's name, as windlass status shows it")
    _manager_options(one)
    one.set_defaults(command=resume)
