"""The noun ``metrics`` of the command line: a page for Prometheus about a manager that runs elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse


def metrics(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.metrics_server import Exporter, NamedManager, page

    read = NamedManager(chosen.manager)
    try:
        if chosen.once:
            print(page(read), end="")
            return 0
        read()  # a wrong name is told at once; later a manager may go and come
        exporter = Exporter(read, chosen.address, chosen.port)
        try:
            print(f"metrics at {exporter.url}; Ctrl-C ends this", flush=True)
            threading.Event().wait()
        finally:
            exporter.close()
    finally:
        read.close()
    return 0


def add_parsers(nouns: Any) -> None:
    """Add the parser."""
    from windlass import cli_words
    from windlass.metrics_server import LOOPBACK, PORT

    one = nouns.add_parser(
        "metrics",
        help="serve a manager's metrics to Prometheus",
        description="Serve metrics of a manager over HTTP, read anew at each scrape, until interrupted; see: windlass explain monitoring",
        epilog="exit status: 0 done, 1 no answer, 2 wrong command line, no such manager or no such port, 130 interrupted",
    )
    cli_words.manager_name(one, by_itself=True)
    one.add_argument("--port", type=cli_words.port_or_any, default=PORT, help=f"where the page is served (default {PORT}; 0: any free one)")
    one.add_argument("--address", default=LOOPBACK, help=f"on which of this machine's addresses (default {LOOPBACK})")
    one.add_argument("--once", action="store_true", help="print the page and end, for a collector of text files")
    one.set_defaults(command=metrics)
