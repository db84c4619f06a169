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
====  =======================================================================================

The options of pools belong to the backends, which check them and know the near names; here ``--max-pilots 4`` just becomes
``max_pilots=4``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import argparse

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130
#: Seconds that ``factory run`` waits for its manager: a person starts two programs in two terminals, in whatever order.
MANAGER_WAIT = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["worker"]:
        from windlass.worker.main import main as worker_main

        return worker_main(words[1:])
    from windlass.errors import UsageError, WindlassError

    try:
        return _run(words)
    except UsageError as error:
        print(f"windlass: {error}", file=sys.stderr)
        return USAGE_STATUS
    except WindlassError as error:
        print(f"windlass: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS
    except BrokenPipeError:  # the reader of our output, head for instance, has gone
        sys.stderr.close()  # or the interpreter complains at its end
        return 1


def _run(words: list[str]) -> int:
    options: dict[str, object] = {}
    if words == ["--version"]:
        words = ["version"]
    if words[:2] in (["factory", "run"], ["factory", "dry-run"], ["factory", "clean"]):
        words, options = split_pool_options(words)
    parser = _parser(_pool_options() if words[:1] == ["factory"] and {"-h", "--help"} & set(words) else "")
    chosen = parser.parse_args(words)
    command: Callable[[argparse.Namespace, Mapping[str, object]], int] | None = getattr(chosen, "command", None)
    if command is None:
        getattr(chosen, "parser", parser).print_help()
        return USAGE_STATUS
    return command(chosen, options)


# ---------------------------------------------------------------- options of pools


class OwnOption(NamedTuple):
    """An option of ``factory run`` that is not the pool's."""

    flag: str
    metavar: str
    convert: Callable[[str], object]
    default: object
    text: str


FACTORY_OPTIONS = (
    OwnOption("--port", "PORT", int, None, "the manager that listens on this port"),
    OwnOption("--wait", "SECONDS", float, MANAGER_WAIT, "how long to wait for the manager to be there (%(default)g)"),
)

#: Options of ``factory dry-run`` and ``factory clean``: those that are flags, and those with a value.
FLAGS = frozenset({"--probe", "--remove", "--json"})
WITH_VALUE = frozenset({"--factory"})

#: Options of pools whose values are never numbers.
TEXTS = {"name", "pool", "python", "shell", "scratch", "log_level"}


def split_pool_options(words: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """Take the pool's options out of a command line: ``--max-pilots 4`` or ``--max-pilots=4`` → ``max_pilots=4``.

    An option that is followed by another one, or by nothing, is a flag (``True``); one that is given several times is a list.
    """
    own = {option.flag for option in FACTORY_OPTIONS} | WITH_VALUE
    rest: list[str] = []
    given: dict[str, list[str | bool]] = {}
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        flag, equals, text = word.partition("=")
        if not word.startswith("--") or word in ("--", "--help") or word in FLAGS:
            rest.append(word)
        elif flag in own:
            rest.append(word)
            if not equals and waiting:
                rest.append(waiting.pop())
        else:
            followed = waiting and not waiting[-1].startswith("--")
            value: str | bool = text if equals else waiting.pop() if followed else True
            given.setdefault(flag[2:].replace("-", "_"), []).append(value)
    return rest, {name: pool_option(name, values) for name, values in given.items()}


def pool_option(name: str, values: Sequence[str | bool]) -> object:
    """What the words given for an option mean. Names and lines stay text, whatever they look like."""
    if name == "env":
        pairs = [str(value).partition("=") for value in values]
        return {variable: text for variable, _, text in pairs}
    if name == "setup":
        return [str(value) for value in values]
    if name in TEXTS:
        return values[-1]
    read = [value if isinstance(value, bool) else pool_value(value) for value in values]
    return read[0] if len(read) == 1 else read


def pool_value(text: str) -> object:
    """``4`` → 4, ``0.5`` → 0.5, ``yes`` → True; anything else (``8GB``, ``2h``) stays text for the pool to read."""
    if text in ("yes", "true"):
        return True
    if text in ("no", "false"):
        return False
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# ---------------------------------------------------------------- commands


def demo(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.demo import run_demo

    return run_demo()


def version(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    import json
    import platform

    import windlass
    from windlass.messages import PROTOCOL

    if chosen.json:
        print(json.dumps({"windlass": windlass.__version__, "protocol": PROTOCOL, "python": platform.python_version()}))
    else:
        print(f"Windlass {windlass.__version__}, protocol {PROTOCOL}, Python {platform.python_version()}")
    return 0


def factory_run(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.factory.factory import check, run
    from windlass.managers import await_manager

    manager, backend = _manager_and_backend(chosen.words)
    check(backend, options)  # a slip is told now, not after the wait
    known = await_manager(manager, chosen.port, chosen.wait, lambda text: print(f"windlass: {text}", file=sys.stderr, flush=True))
    return run(str(known.path), backend, options)


def factory_dry_run(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.factory.factory import dry_run

    _, backend = _manager_and_backend(chosen.words)
    print(dry_run(backend, options))
    if chosen.probe:
        from windlass.factory.orphans import probe

        print(f"\n{probe(backend, options)}")
    return 0


def factory_clean(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.factory.orphans import clean

    print(clean(chosen.backend, options, factory=chosen.factory, remove=chosen.remove, as_json=chosen.json))
    return 0


def _manager_and_backend(words: Sequence[str]) -> tuple[str | None, str]:
    """``[MANAGER] BACKEND``: the last word is the backend."""
    from windlass.errors import UsageError

    if len(words) > 2:
        raise UsageError(f"factory takes [MANAGER] BACKEND and options like --cores 4, but got {' '.join(words)}")
    return (words[0] if len(words) == 2 else None), words[-1]


def status(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    import json
    import time

    from rich.console import Console

    from windlass.errors import ConnectionRefused
    from windlass.managers import choose_manager
    from windlass.status import StatusPort, picture

    known = choose_manager(chosen.name, chosen.port)
    known.require_running()
    console = Console()
    with StatusPort(known.connection) as port:
        while True:
            try:
                text = port.ask()
            except ConnectionRefused as error:
                if chosen.watch is None or not console.is_terminal:
                    raise
                console.print(f"the manager has gone: {error}", markup=False)
                return 0
            if chosen.json:
                print(text.decode(), flush=True)
            else:
                if chosen.watch is not None and console.is_terminal:
                    console.clear()
                console.print(picture(json.loads(text)))
            if chosen.watch is None:
                return 0
            time.sleep(chosen.watch)


# ---------------------------------------------------------------- the parser


def _pool_options() -> str:
    """The names of all options of pools, for the help."""
    import textwrap

    from windlass.factory.backend import backend_class, backend_options, known_backends
    from windlass.factory.pool import COMMON_OPTIONS

    def flags(names: Iterable[str]) -> str:
        text = " ".join("--" + name.replace("_", "-") for name in sorted(names))
        return textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)

    parts = ["options of every pool:\n" + flags(COMMON_OPTIONS)]
    for backend in known_backends():
        own = backend_options(backend_class(backend))
        if own:
            parts.append(f"and of backend {backend}:\n{flags(own)}")
    return "\n\n" + "\n".join(parts)


def _parser(pool_options: str = "") -> argparse.ArgumentParser:
    import argparse

    class Formatter(argparse.RawDescriptionHelpFormatter):
        """Descriptions as they are written."""

    exits = "exit status: 0 done, 1 failed (the text says why), 2 wrong command line, 130 interrupted; see docs/command-line.md"
    parser = argparse.ArgumentParser(
        prog="windlass",
        description="Run Python functions on HTCondor and Slurm, with imports hoisted once per node.",
        epilog=exits,
        formatter_class=Formatter,
    )
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND")

    one = nouns.add_parser("demo", help="see the main job done on this machine, with what happens shown")
    one.set_defaults(command=demo)

    nouns.add_parser("worker", help="what pilots run: windlass worker --connection FILE", add_help=False)

    factory = nouns.add_parser("factory", help="keep the pilots running that a manager could use")
    factory.set_defaults(parser=factory)
    verbs = factory.add_subparsers(title="commands", metavar="COMMAND")
    about = (
        "Options of the pool are those of windlass.Factory, written --max-pilots 4 for max_pilots=4. --setup (a line of shell)\n"
        "and --env NAME=VALUE may be repeated. A misspelt one is refused with its near names." + pool_options
    )
    run = verbs.add_parser(
        "run",
        help="run a factory until interrupted or until its manager ends",
        usage="windlass factory run [MANAGER] BACKEND [--port PORT] [--wait SECONDS] [--POOL-OPTION VALUE ...]",
        description="Serve a running manager with pilots. Without MANAGER: the only one of yours that runs, or that on --port.\n\n" + about,
        epilog="Ctrl-C removes queued pilots and lets running ones finish their calls; a second Ctrl-C ends them.",
        formatter_class=Formatter,
    )
    run.add_argument(
        "words", nargs="+", metavar="[MANAGER] BACKEND", help="a manager's name or connection file; local, slurm, htcondor, fake"
    )
    for option in FACTORY_OPTIONS:
        run.add_argument(option.flag, metavar=option.metavar, type=option.convert, default=option.default, help=option.text)
    run.set_defaults(command=factory_run)
    dry = verbs.add_parser(
        "dry-run",
        help="print exactly what would be submitted",
        usage="windlass factory dry-run BACKEND [--probe] [--POOL-OPTION VALUE ...]",
        description="Print what a factory would submit with these options, and submit nothing.\n\n" + about,
        formatter_class=Formatter,
    )
    dry.add_argument("words", nargs="+", metavar="BACKEND", help="local, slurm, htcondor or fake")
    dry.add_argument("--probe", action="store_true", help="submit one held pilot too, and remove it: is the account right, the partition?")
    dry.set_defaults(command=factory_dry_run)
    clean = verbs.add_parser(
        "clean",
        help="list pilots whose manager is gone, and remove them",
        usage="windlass factory clean BACKEND [--remove] [--factory NAME] [--json] [--BACKEND-OPTION VALUE ...]",
        description="List your pilots in a batch system whose managers do not run any more. Pilots that run leave by themselves;\n"
        "queued ones wait until they start.",
        formatter_class=Formatter,
    )
    clean.add_argument("backend", metavar="BACKEND", help="slurm or htcondor")
    clean.add_argument("--remove", action="store_true", help="end them")
    clean.add_argument("--factory", metavar="NAME", default="", help="only pilots of this factory")
    clean.add_argument("--json", action="store_true", help="all pilots, one object")
    clean.set_defaults(command=factory_clean)

    look = nouns.add_parser(
        "status", help="show a running manager: calls, libraries, workers, pools", epilog=exits, formatter_class=Formatter
    )
    look.add_argument("name", nargs="?", help="the manager's name (or connection file); else the only one of yours that runs")
    look.add_argument("--port", type=int, help="the manager that listens on this port")
    look.add_argument("--watch", nargs="?", type=float, const=1.0, metavar="SECONDS", help="again and again, every second or so many")
    look.add_argument("--json", action="store_true", help="the status object of docs/status.md, one line each time")
    look.set_defaults(command=status)

    number = nouns.add_parser("version", help="versions of Windlass, its protocol and Python")
    number.add_argument("--json", action="store_true", help="the same as one JSON object")
    number.set_defaults(command=version)
    return parser


if __name__ == "__main__":
    sys.exit(main())
