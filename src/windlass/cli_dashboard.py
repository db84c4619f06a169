"""``windlass dashboard`` and ``windlass report``: a manager at work in a browser, and what is left of its runs.

Theory of operation: both attach to a manager as any client; see `windlass.dashboard`.  A report of a manager that runs shows it as it is
now, of one that has ended what its run left in the state folder (`windlass.runs`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from windlass.managers import Known


def dashboard(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.addresses import is_loopback
    from windlass.dashboard.child import require_installed
    from windlass.managers import choose_manager

    require_installed()
    known = choose_manager(chosen.manager, chosen.port)
    known.require_running()
    from windlass.dashboard.serve import LOOPBACK, running_dashboard, serve

    host, port = chosen.listen or (LOOPBACK, 0)
    if chosen.child:
        serve(known, lambda link: _tell_parent(known, link, chosen.child == "say"), host=host, port=port, child=True)
        return 0
    if link := running_dashboard(known):
        _show(known, link, chosen, f"manager {known.name} has a dashboard already:")
        return 0
    if not is_loopback(host):
        print(
            "windlass: what this page shows goes over the network unencrypted; ssh -L is safer (windlass explain dashboard)",
            file=sys.stderr,
        )
    words = f"dashboard of manager {known.name} (Ctrl-C ends it):"
    reason = serve(known, lambda link: _show(known, link, chosen, words), host=host, port=port)
    if reason == "signal SIGINT":
        raise KeyboardInterrupt
    print(f"windlass: the dashboard has ended: {reason}; windlass report {known.name} shows the run's end", file=sys.stderr)
    return 0


def _tell_parent(known: Known, link: str, say: bool) -> None:
    if say:
        # In a job standard error is a file, which others may be able to read, and the link lets in whoever has it.
        where = link if sys.stderr.isatty() else f"its link is printed by: windlass dashboard {known.name}"
        print(f"windlass: dashboard of manager {known.name}: {where}", file=sys.stderr, flush=True)
    print(json.dumps({"url": link}), flush=True)


def _show(known: Known, link: str, chosen: argparse.Namespace, words: str) -> None:
    import webbrowser

    from windlass.dashboard.serve import WAY_IN

    if chosen.json:
        print(json.dumps({"url": link}), flush=True)
        return
    print(f"{words}\n  {link}", flush=True)
    if os.environ.get("SSH_CONNECTION"):
        port = link.partition("://")[2].partition("/")[0].rpartition(":")[2]
        host = os.uname().nodename
        print(f"from your own machine:  ssh -N -L {port}:127.0.0.1:{port} {host}   then open the same address", flush=True)
    elif not chosen.no_browser and sys.stdout.isatty() and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(known.path.with_name(WAY_IN).as_uri())


def report(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    import msgspec

    from windlass.dashboard.perfetto import perfetto_json
    from windlass.dashboard.report import report_html

    if chosen.list:
        from windlass.runs import known_runs, runs_folder

        names = known_runs(runs_folder())
        print(json.dumps({"runs": names}) if chosen.json else "\n".join(names) or "no run has been kept: see: windlass explain dashboard")
        return 0
    whole = _whole(chosen)
    run = Path(str(whole["record"]["run"])).name or "run"  # it may come from a file, which may say anything
    page = Path(chosen.output) if chosen.output else Path(f"{run}.html")
    time_line = Path(chosen.trace) if chosen.trace else page.with_suffix(".trace.json")
    page.write_bytes(report_html(whole))
    time_line.write_bytes(perfetto_json(whole))
    if chosen.state:
        Path(chosen.state).write_bytes(msgspec.json.encode(whole))
    if chosen.json:
        print(json.dumps({"run": run, "report": str(page), "trace": str(time_line)}))
    else:
        print(f"run {run}\n  report: {page}\n  trace:  {time_line}  (open it at https://ui.perfetto.dev)")
    return 0


def _whole(chosen: argparse.Namespace) -> dict[str, Any]:
    """The run that is meant: a manager that runs now, or one that has ended."""
    from windlass.errors import UnknownName, UsageError
    from windlass.managers import NotRunning, OutOfReach, choose_manager
    from windlass.runs import find_run, read_run, runs_folder

    if chosen.run and Path(chosen.run).is_file() and chosen.run.endswith(".json") and Path(chosen.run).name != "client.json":
        return read_run(Path(chosen.run))
    try:
        known = choose_manager(chosen.run)
        known.require_running()
    except (UnknownName, NotRunning) as error:
        whole = read_run(find_run(runs_folder(), chosen.run))
        if isinstance(error, OutOfReach):
            print(f"windlass: {error}; this is the last of its runs that has ended", file=sys.stderr)
        return whole
    except UsageError:
        if chosen.run is not None:
            raise
        raise UsageError("several managers run: say which run by its name, or that of its manager; windlass report --list") from None
    return _now(known)


def _now(known: Known) -> dict[str, Any]:
    import queue

    from windlass.dashboard.watch import joined
    from windlass.errors import ConnectionRefused, Unreachable
    from windlass.mailbox import Mailbox
    from windlass.messages import GetView, Message, View
    from windlass.status import ANSWER_TIMEOUT
    from windlass.transport import open_port

    heard: Mailbox[View | str] = Mailbox()

    def hear(message: Message) -> None:
        if isinstance(message, View):
            heard.put(message)

    port = open_port(known.connection, "client", "report", hear, heard.put)
    pieces: list[bytes] = []
    try:
        port.send(GetView())
        while True:
            try:
                answer = heard.get(timeout=ANSWER_TIMEOUT)
            except queue.Empty:
                raise Unreachable(f"manager {known.name} did not answer within {ANSWER_TIMEOUT:g} s") from None
            if isinstance(answer, str):
                raise ConnectionRefused(answer)
            pieces.append(answer.json)
            if not answer.more:
                return joined(pieces)
    finally:
        port.close()


def _listen(text: str) -> tuple[str, int]:
    """``8080``, ``ADDRESS:8080`` or ``[ADDRESS]:8080``."""
    from windlass.cli_words import port_or_any
    from windlass.dashboard.serve import LOOPBACK

    host, colon, port = text.rpartition(":")
    return (host.strip("[]") if colon else LOOPBACK) or LOOPBACK, port_or_any(port)


def add_parsers(nouns: Any) -> None:
    """Add the parsers of ``windlass dashboard`` and ``windlass report``."""
    from windlass.cli_pilots import manager_options

    one = nouns.add_parser(
        "dashboard", help="a page that shows a running manager at work", description="Serve the page, and open it or print its address."
    )
    manager_options(one, by_itself=True)
    one.add_argument("--listen", type=_listen, metavar="[ADDRESS:]PORT", help="where the page is served; else any free port of loopback")
    one.add_argument("--no-browser", action="store_true", help="only print the address")
    one.add_argument("--json", action="store_true", help="one object: url")
    one.add_argument("--child", choices=("say", "quiet"), help=_suppressed())
    one.set_defaults(command=dashboard)

    one = nouns.add_parser(
        "report",
        help="a run as one HTML file, and a trace for Perfetto",
        description="Write how a run ended, or how a manager that runs stands now.",
    )
    one.add_argument("run", nargs="?", metavar="RUN", help="a run, or its manager's name; else the manager that runs, or the newest run")
    one.add_argument("-o", "--output", metavar="FILE", help="the HTML file; else RUN.html")
    one.add_argument("--trace", metavar="FILE", help="the trace; else beside it, RUN.trace.json")
    one.add_argument("--state", metavar="FILE", help="all figures, too, as JSON (windlass explain dashboard)")
    one.add_argument("--list", action="store_true", help="which runs there are, the newest first")
    one.add_argument("--json", action="store_true", help="one object: run, report, trace; with --list: runs")
    one.set_defaults(command=report)


def _suppressed() -> str:
    import argparse

    return argparse.SUPPRESS
