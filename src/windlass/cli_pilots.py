"""The noun ``pilots`` of the command line: which there are, what became of them, what they wrote; and ``factory resume``.

Theory of operation
-------------------
All of it is in the manager's status (docs/status.md, ``pilots``), which factories fill with what their batch systems say.  A pilot's
output is read from its log, whose path the factory told; where this machine does not see it, or it is gone, the last words that the
manager keeps of failed pilots are shown, and it is said which of the two it is.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    import argparse

    from windlass.status import StatusPort

Row = Mapping[str, Any]

#: Seconds between looks at a log that is followed, and for a pool to be seen to go on.
FOLLOW_SECONDS: Final = 0.3
STATUS_SECONDS: Final = 3.0
RESUME_SECONDS: Final = 5.0
#: What ``--state`` takes: phases, and failures, which are ends.
STATES: Final = ("queued", "running", "serving", "leaving", "cancelling", "ending", "held", "ended", "failed")


def status_of(chosen: argparse.Namespace, wanted: str = "") -> dict[str, Any]:
    """The status of the manager that is meant, with what is ``wanted`` by name (`GetStatus`). Raises `UsageError`, `ConnectionRefused`."""
    from windlass.messages import GetStatus

    with _port_of(chosen) as port:
        return cast("dict[str, Any]", json.loads(port.ask(about=GetStatus(wanted))))


def _port_of(chosen: argparse.Namespace) -> StatusPort:
    """To the manager that is meant. Raises `UsageError`, `ConnectionRefused`."""
    from windlass.managers import choose_manager
    from windlass.status import StatusPort

    known = choose_manager(chosen.manager, chosen.port)
    known.require_running()
    return StatusPort(known.connection)


def find(rows: Sequence[Row], word: str) -> Row:
    """The pilot meant by its word, its job, or the beginning of one of these.

    Raises:
        UnknownName: there is none; the text has near names. UsageError: several begin so; the text lists them.
    """
    from windlass.errors import UnknownName, UsageError

    exact = [row for row in rows if word in (row["pilot"], row["job"])]
    found = exact or [row for row in rows if str(row["pilot"]).startswith(word) or str(row["job"]).startswith(word)]
    if not found:
        raise UnknownName("pilot", word, [str(row["pilot"]) for row in rows], "(windlass pilots --ended shows all)")
    # Of several starts of a job the newest; of several jobs none.
    if len({row["job"] for row in found}) > 1:
        raise UsageError(f"{len(found)} pilots begin with {word!r}: {', '.join(str(row['pilot']) for row in found[:10])}; write more of it")
    return max(found, key=lambda row: (row["restart"], row["since"]))


def state_of(row: Row) -> str:
    """What people call it: of those that have ended, whether they failed."""
    return "failed" if row["failed"] and row["phase"] == "ended" else str(row["phase"])


# ---------------------------------------------------------------- commands


def list_pilots(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.cli_lists import is_filtered, require_known, require_words
    from windlass.tables import print_json

    require_words("state of pilots", chosen.state, STATES)
    status = status_of(chosen, chosen.host)
    pools = {pool["name"] for pool in status["pools"]} | {row["pool"] for row in status["pilots"]}
    require_known("pool", chosen.pool, pools, cut=bool(status.get("cut")))
    require_known("host", chosen.host, [host for row in status["pilots"] for host in hosts_of(row)])
    rows = [
        {"state": state_of(row), **row}
        for row in status["pilots"]
        if (chosen.ended or row["phase"] != "ended" or {"ended", "failed"} & set(chosen.state))
        and chosen.pool in ("", row["pool"])
        and (not chosen.host or chosen.host in hosts_of(row))
        and (not chosen.state or {row["phase"], state_of(row)} & set(chosen.state))
    ]
    if chosen.json:
        print_json(rows)
    elif rows:
        _print_table(rows, status["manager"]["at"])
    else:
        ended = sum(row["phase"] == "ended" for row in status["pilots"])
        print("no such pilots" if is_filtered(chosen) else "no pilots", end="")
        print(f"; --ended shows {ended} that ended" if ended and not (chosen.ended or chosen.state) else "")
    if status.get("cut"):
        sys.stdout.flush()
        print("windlass: of very many pilots the newest; the manager's answer holds no more", file=sys.stderr)
    return 0


def hosts_of(row: Row) -> set[str]:
    """Where it runs, by the batch system's word and by its workers'."""
    return {str(row["node"]), *(worker["host"] for worker in row["workers"])} - {""}


def _print_table(rows: Sequence[Row], now: float) -> None:
    from windlass.status import show_span
    from windlass.tables import Column, print_table, text_column

    def calls(row: Row) -> str:
        return str(sum(worker["running"] for worker in row["workers"])) if row["workers"] else ""

    columns = (
        text_column("pilot"),
        text_column("pool"),
        text_column("state"),
        Column("for", lambda row: show_span(max(0.0, now - row["since"])), right=True),
        Column("ran", lambda row: show_span(row["ran"]) if row["ran"] else "", right=True),
        Column("node", lambda row: ", ".join(sorted(hosts_of(row)))),
        Column("calls", calls, right=True),
        Column("reason", why),
    )
    print_table(rows, columns)


def why(row: Row) -> str:
    """The batch system's words, and the pilot's own last ones."""
    words = str(row["words"]).strip().splitlines()[-1:] or [""]
    return f"{row['reason']}: {words[0]}" if words[0] else str(row["reason"])


def show_pilot(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    status = status_of(chosen, chosen.pilot)
    row = find(status["pilots"], chosen.pilot)
    if chosen.json:
        print(json.dumps(row))
        return 0
    from windlass.status import show_span
    from windlass.tables import clean

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
            print(clean(f"  {name + ':':<12}{value}"))
    print("story:")
    ends = [step["at"] for step in row["story"][1:]] + [status["manager"]["at"]]
    for step, end in zip(row["story"], ends, strict=False):
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(step["at"]))
        took = "" if step["phase"] == "ended" else show_span(max(0.0, end - step["at"]))
        print(clean(f"  {at}  {took:>10}  {step['phase']}{': ' + step['reason'] if step['reason'] else ''}"))
    if row["words"]:
        print("its last words:")
        print("\n".join(f"  {clean(line)}" for line in str(row["words"]).splitlines()))
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
    from windlass.messages import GetStatus

    if chosen.follow and chosen.json:
        raise UsageError("--follow and --json do not go together; --json prints one object")
    with _port_of(chosen) as port, ExitStack() as opened:
        row = find(json.loads(port.ask(about=GetStatus(chosen.pilot)))["pilots"], chosen.pilot)
        file: TextIO | None = None
        try:
            if not row["log"]:
                raise FileNotFoundError
            file = opened.enter_context(open(str(row["log"]), errors="replace"))
            lines, why = list(deque(file, maxlen=chosen.lines)), ""
        except OSError as error:
            lines, why = [line + "\n" for line in str(row["words"]).splitlines()], _why_no_log(row, error)
        if chosen.json:
            path = "" if why else str(row["log"])
            print(json.dumps({"pilot": row["pilot"], "log": path, "lines": [line.rstrip("\n") for line in lines], "why": why}))
            return 0
        if why:
            print(f"windlass: {why}" + ("; its last words:" if lines else ""), file=sys.stderr)
        elif not lines:
            print("windlass: it has written nothing" + ("" if row["phase"] == "ended" else " yet"), file=sys.stderr)
        sys.stdout.writelines(lines)
        if file is not None and not why and chosen.follow:
            _follow(file, PilotEnd(port, row, time.monotonic()))
        return 1 if why and not lines else 0


def _why_no_log(row: Row, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"its log {row['log']} cannot be read here: {error.strerror or error}"
    if row["phase"] in ("queued", "held"):
        return "it has not started, so there is no log of it yet"
    if row["phase"] in ("cancelling", "ended") and not row["ran"] and row["exit_status"] is None and not row["words"]:
        return "it was not seen to run, and there is no log of it"
    return f"its log {row['log']} is not here: it is on another machine, or gone" if row["log"] else "nobody has said where its log is"


def _follow(file: TextIO, end: PilotEnd) -> None:
    """Print what is added until the pilot has ended, or somebody interrupts."""
    from windlass.factory.processes import GrowingLog

    log, ended = GrowingLog(file), False
    while True:
        more = log.more()
        sys.stdout.write(more)
        sys.stdout.flush()
        if ended and not more:
            return
        ended = ended or end.is_told(time.monotonic())
        time.sleep(FOLLOW_SECONDS)


class PilotEnd:
    """Whether a pilot has ended, by its manager. That is asked now and then and never waited for: it may be busy or stopped, and the log
    grows meanwhile. What it answers then is of use still."""

    def __init__(self, port: StatusPort, row: Row, now: float) -> None:
        self._port = port
        self._pilot = self._name(row)
        self._waiting = False
        self._asked_at = now

    def is_told(self, now: float) -> bool:
        """For good."""
        from windlass.errors import ConnectionRefused
        from windlass.messages import GetStatus

        try:
            if not self._waiting and now - self._asked_at > STATUS_SECONDS:
                self._port.send(GetStatus(self._pilot[-1]))
                self._waiting, self._asked_at = True, now
            answer = self._port.answer(0.0) if self._waiting else None
        except ConnectionRefused:
            return True  # the manager has gone, and with it whoever could tell
        if answer is None:
            return False
        self._waiting = False
        return all(row["phase"] == "ended" for row in json.loads(answer)["pilots"] if self._name(row) == self._pilot)

    @staticmethod
    def _name(row: Row) -> tuple[str, str, str]:
        """Two pools may have a job of the same number."""
        return str(row["factory"]), str(row["pool"]), str(row["pilot"])


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


def manager_options(parser: Any, *, by_itself: bool = False, **more: Any) -> None:
    """Add the words by which a command is told which manager is meant; ``by_itself``: its name needs no option."""
    from windlass import cli_words

    cli_words.manager_name(parser, by_itself=by_itself, **more)
    parser.add_argument("--port", type=cli_words.port, help="the manager that listens on this port", **more)


def add_parsers(nouns: Any) -> None:
    """Add the parsers of ``windlass pilots`` and ``windlass logs``."""
    import argparse

    from windlass.cli_lists import add_state

    def listing(parser: Any, **more: Any) -> None:
        add_state(parser, STATES, **more)
        parser.add_argument("--pool", help="only of this pool", **{"default": "", **more})
        parser.add_argument("--host", help="only on this node", **{"default": "", **more})
        parser.add_argument("--ended", action="store_true", help="those that have ended, too: the last 100 of each pool", **more)
        parser.add_argument("--json", action="store_true", help="one object a line; its keys: windlass explain status", **more)
        manager_options(parser, **more)
        parser.set_defaults(command=list_pilots)

    text = "List pilots, with the batch system's own words on each."
    pilots = nouns.add_parser("pilots", help="the pilots of a manager; show and logs tell of one", description=text)
    listing(pilots)
    verbs = pilots.add_subparsers(title="commands", metavar="COMMAND")
    # What was said before the verb stays: what it has no word for is not set again.
    unset = argparse.SUPPRESS
    listing(verbs.add_parser("list", help="which there are", description=text), default=unset)

    one = verbs.add_parser("show", help="all that is known of one, and its story")
    one.add_argument("pilot", help="as the list shows it, or the beginning of it")
    one.add_argument("--json", action="store_true", help="one object; its keys: windlass explain status", default=unset)
    manager_options(one, default=unset)
    one.set_defaults(command=show_pilot)

    _add_logs(verbs, "logs", default=unset)
    _add_logs(nouns, "logs")


def _add_logs(parsers: Any, name: str, **more: Any) -> None:
    from windlass import cli_words

    one = parsers.add_parser(
        name, help="what a pilot has written", description="Print the pilot's own output, or its last words where that is gone."
    )
    one.add_argument("pilot", help="as windlass pilots shows it, or the beginning of it")
    one.add_argument("--lines", type=cli_words.count, metavar="N", help="the last N lines only")
    one.add_argument("--follow", action="store_true", help="and what it goes on to write, until it ends")
    one.add_argument("--json", action="store_true", help="one object: pilot, log, lines, why", **more)
    manager_options(one, **more)
    one.set_defaults(command=pilot_logs)


def add_resume(verbs: Any) -> None:
    """Add ``windlass factory resume``."""
    one = verbs.add_parser(
        "resume",
        help="let a paused pool go on: what was wrong is mended",
        description="Tell the factories of a running manager that the reason of a pause is mended. Without POOL: all that are paused.",
    )
    one.add_argument("pool", nargs="?", default="", metavar="POOL", help="a pool's name, as windlass status shows it")
    manager_options(one)
    one.set_defaults(command=resume)
