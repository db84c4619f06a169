"""The command `windlass`: nouns and verbs over the same doors that any program has.

Theory of operation
-------------------
``main(argv)`` reads the words, loads what the chosen command needs and nothing else (a pilot runs ``windlass worker``, so that
one goes by before even argparse is loaded), and turns errors into one line on stderr and an exit status:

====  =======================================================================================
 0    done; for ``worker``: an orderly end
 1    it failed, and the text says why (no answer, a batch system's refusal, a demo that went wrong)
 2    the command line is wrong, or names a manager, backend or option that there is not
 3    ``worker``: refused by the manager
 4    ``worker``: manager not reached within its time-out
 5    ``worker``: cannot start
130   interrupted (Ctrl-C)
141   whoever read the output has gone, ``head`` for instance
====  =======================================================================================

What belongs to a noun with many verbs is in a module of its own (`windlass.cli_factory`).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130
#: As of a program that SIGPIPE has ended.
UNREAD_STATUS = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["worker"]:
        from windlass.worker.main import main as worker_main

        return worker_main(words[1:])
    if argv is None:
        _prepare_output()
    if "_ARGCOMPLETE" in os.environ:
        from windlass.cli_completion import complete

        complete(_parser())
    from windlass import cli_manager
    from windlass.errors import UsageError, WindlassError

    try:
        try:
            with cli_manager.state_options(words) as rest:
                return _run(rest)
        finally:
            sys.stdout.flush()  # here, where it can still be told that nobody reads it
    except UsageError as error:
        print(f"windlass: {error}", file=sys.stderr)
        return USAGE_STATUS
    except WindlassError as error:
        print(f"windlass: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        _forget_output()
        return UNREAD_STATUS
    except OSError as error:  # a disk that is full, a folder that may not be written to
        print(f"windlass: {error}", file=sys.stderr)
        return 1


def _prepare_output() -> None:
    """What is shown goes through every terminal and pipe, and where somebody has closed these, nowhere."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:  # these stay open, or the next file would have the number of a standard stream
        pass
    os.close(free)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":  # Latin-1 has no arrow, and UTF-8 no broken file names
            stream.reconfigure(errors="replace")


def _forget_output() -> None:
    """What is left of it goes nowhere, or the interpreter would complain at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # it is no file
        pass


def _run(words: list[str]) -> int:
    from windlass import cli_factory, cli_manager

    options: dict[str, object] = {}
    if words == ["--version"]:
        words = ["version"]
    if cli_factory.takes_pool_options(words):
        words, options = cli_factory.split_pool_options(words)
    elif cli_manager.takes_pool_options(words):
        words, options = cli_manager.split_pool_options(words)
    parser = _parser(with_options=bool({"-h", "--help"} & set(words)))
    chosen, more = parser.parse_known_args(words)
    if more:
        from windlass.cli_words import left_over

        parser.error(left_over(chosen, more))
    command: Callable[[argparse.Namespace, Mapping[str, object]], int] | None = getattr(chosen, "command", None)
    if command is None:
        getattr(chosen, "parser", parser).print_help()
        return USAGE_STATUS
    return command(chosen, options)


# ---------------------------------------------------------------- commands


def demo(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.demo import run_demo

    return run_demo()


def version(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    """One line with all that a report of a defect has to say of where it was seen."""
    import json
    import platform

    import windlass
    from windlass.messages import PROTOCOL

    python, machine = platform.python_version(), platform.platform()  # as in Linux-6.1.0-x86_64-with-glibc2.36
    if chosen.json:
        print(json.dumps({"windlass": windlass.__version__, "protocol": PROTOCOL, "python": python, "platform": machine}))
    else:
        print(f"Windlass {windlass.__version__}, protocol {PROTOCOL}, Python {python}, {machine}")
    return 0


def status(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    import json

    from windlass.managers import choose_manager

    known = choose_manager(chosen.manager, chosen.port)
    known.require_running()
    if chosen.watch is not None:
        from windlass.cli_watch import watch

        return watch(known, chosen.watch, as_json=chosen.json)
    from windlass.status import StatusPort, picture
    from windlass.tables import print_picture

    with StatusPort(known.connection) as port:
        text = port.ask()
    if chosen.json:
        print(text.decode())
    else:
        print_picture(picture(json.loads(text)))
    return 0


# ---------------------------------------------------------------- the parser


def _parser(*, with_options: bool = False) -> argparse.ArgumentParser:
    """``with_options``: the help names the options of all pools, which takes a while."""
    import argparse

    from windlass import (
        cli_completion,
        cli_dashboard,
        cli_environment,
        cli_explain,
        cli_factory,
        cli_lists,
        cli_manager,
        cli_metrics,
        cli_pilots,
        cli_words,
    )

    exits = "exit status: 0 done, 1 failed (the text says why), 2 wrong command line, 130 interrupted; see: windlass explain command-line"
    parser = cli_words.Parser(
        prog="windlass",
        description="Run Python functions on HTCondor and Slurm, with imports hoisted once per node.",
        epilog=exits,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND")

    one = nouns.add_parser("demo", help="see the main job done on this machine, with what happens shown")
    one.set_defaults(command=demo)

    nouns.add_parser("worker", help="what pilots run: windlass worker --connection FILE", add_help=False)

    cli_manager.add_parsers(nouns)
    cli_factory.add_parsers(nouns, with_options=with_options)
    cli_pilots.add_parsers(nouns)
    cli_lists.add_parsers(nouns)
    cli_environment.add_parsers(nouns)
    cli_explain.add_parsers(nouns)
    cli_completion.add_parsers(nouns)
    cli_dashboard.add_parsers(nouns)
    cli_metrics.add_parsers(nouns)

    look = nouns.add_parser(
        "status",
        help="show a running manager: calls, libraries, workers, pools",
        epilog=exits,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli_pilots.manager_options(look, by_itself=True)
    look.add_argument(
        "--watch",
        nargs="?",
        type=cli_words.pause,
        const=1.0,
        metavar="SECONDS",
        help="a screen that is kept up to date, every second or so many; q ends",
    )
    look.add_argument("--json", action="store_true", help="the status object (windlass explain status), one line each time")
    look.set_defaults(command=status)

    number = nouns.add_parser("version", help="versions of Windlass, its protocol, Python and the system")
    number.add_argument("--json", action="store_true", help="the same as one JSON object")
    number.set_defaults(command=version)
    return parser


if __name__ == "__main__":
    sys.exit(main())
