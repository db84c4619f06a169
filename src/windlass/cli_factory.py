"""The nouns ``factory`` and ``doctor`` of the command line: pools, and options of pools.

Theory of operation
-------------------
The options of pools belong to the pools and backends, which check them and know the near names; here ``--max-pilots 4`` just becomes
``max_pilots=4``.  So that argparse does not have to know them, they are taken out of the words before it sees these.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from windlass.errors import UsageError

if TYPE_CHECKING:
    import argparse

#: Seconds that ``factory run`` waits for its manager: a person starts two programs in two terminals, in whatever order.
MANAGER_WAIT = 60.0

#: The verbs whose words may be options of pools.
VERBS = (["factory", "run"], ["factory", "dry-run"], ["factory", "clean"], ["factory", "config"])
NOUNS = (["doctor"],)


class OwnOption(NamedTuple):
    """An option of ``factory run`` that is not the pool's."""

    flag: str
    metavar: str
    convert: Callable[[str], object]
    default: object
    text: str


def _read(reader: str) -> Callable[[str], object]:
    """A reader of `windlass.cli_words`, which loads argparse: only for who parses."""

    def read(text: str) -> object:
        from windlass import cli_words

        return getattr(cli_words, reader)(text)

    return read


FACTORY_OPTIONS = (
    OwnOption("--port", "PORT", _read("port"), None, "the manager that listens on this port"),
    OwnOption("--manager", "MANAGER", str, None, "the manager's name or connection file"),
    OwnOption("--wait", "SECONDS", _read("seconds"), MANAGER_WAIT, "how long to wait for the manager to be there (%(default)g)"),
)

#: Options of all these verbs that are not the pool's: those that are flags, and those with a value.
FLAGS = frozenset({"--probe", "--remove", "--json"})
WITH_VALUE = frozenset({"--factory", "--queue-patience", "--start-patience"} | {option.flag for option in FACTORY_OPTIONS})

#: Options of batch systems whose values are never numbers, with what they are: a reservation 2026.10 is another one than 2026.1. As others,
#: they are lists where they are given several times.
BATCH_TEXTS = {
    **dict.fromkeys(("partition", "qos", "reservation", "clusters", "job_name", "schedd", "collector"), "NAME"),
    "constraint": "FEATURES",
    "gpu_type": "TYPE",
    "gres": "RESOURCES",
    "requirements": "EXPRESSION",
    "container_image": "IMAGE",
}
#: Options of pools whose values are never numbers, with what they are.
TEXTS = {
    **BATCH_TEXTS,
    **dict.fromkeys(("name", "pool"), "NAME"),
    **dict.fromkeys(("python", "shell", "config", "environment", "template"), "FILE"),
    "scratch": "FOLDER",
    "log_level": "LEVEL",
    "container": "IMAGE",
    "env": "NAME=VALUE",
    "setup": "LINE",
    "account": "ACCOUNT",
}
#: Options that are lengths of time. A bare number of them is refused, as in a text of a program: Slurm would take it for minutes.
TIMES = frozenset(
    {
        *("walltime", "grace", "patience", "stagger", "idle_timeout", "start_cost", "hold", "hello_timeout"),
        *("query_interval", "command_timeout"),  # of batch systems
    }
)
#: Options whose values are themselves options of other programs: the next word is one, whatever it begins with.
WORDS = frozenset({"extra_directives", "container_options"})
#: What is a number on a command line; 007 is not, nor is 1e5: such are names of accounts.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")


def takes_pool_options(words: Sequence[str]) -> bool:
    """Whether these words may hold options of pools."""
    return list(words[:2]) in VERBS or list(words[:1]) in NOUNS


def split_pool_options(
    words: Sequence[str], flags: Collection[str] = FLAGS, with_value: Collection[str] = WITH_VALUE
) -> tuple[list[str], dict[str, object]]:
    """Take the pool's options out of a command line: ``--max-pilots 4`` or ``--max-pilots=4`` → ``max_pilots=4``.

    ``flags``, ``with_value``: options that are the command's own. An option that is followed by another one, or by nothing, is a flag
    (``True``), but for `WORDS`; one that is given several times is a list.
    """
    rest: list[str] = []
    given: dict[str, list[str | bool]] = {}
    waiting = list(reversed(words))
    while waiting:
        word = waiting.pop()
        flag, equals, text = word.partition("=")
        if not word.startswith("--") or word in ("--", "--help") or word in flags:
            rest.append(word)
        elif flag in with_value:
            rest.append(word)
            if not equals and waiting:
                rest.append(waiting.pop())
        else:
            name = flag[2:].replace("-", "_")
            followed = waiting and (name in WORDS or not waiting[-1].startswith("--"))
            value: str | bool = text if equals else waiting.pop() if followed else True
            given.setdefault(name, []).append(value)
    return rest, {name: pool_option(name, values) for name, values in given.items()}


def pool_option(name: str, values: Sequence[str | bool]) -> object:
    """What the words given for an option mean. Names and lines stay text, whatever they look like."""
    if name in TEXTS and True in values:
        raise UsageError(f"--{name.replace('_', '-')} needs a value: write --{name.replace('_', '-')} {TEXTS[name]}")
    if name == "env":
        pairs = [str(value).partition("=") for value in values]
        for variable, equals, _ in pairs:
            if not equals:
                raise UsageError(f"--env {variable}: write --env {variable}=VALUE")
        return {variable: text for variable, _, text in pairs}
    if name == "setup":
        return [str(value) for value in values]
    if name == "container_options":
        return " ".join(map(str, values)) if True not in values else True
    if name in TEXTS and name not in BATCH_TEXTS:
        return values[-1]
    read = [value if isinstance(value, bool) or name in TEXTS else pool_value(value, as_time=name in TIMES) for value in values]
    return read[0] if len(read) == 1 else read


def pool_value(text: str, *, as_time: bool = False) -> object:
    """``4`` → 4, ``0.5`` → 0.5, ``yes`` → True; anything else (``8GB``, ``2h``) stays text for the pool to read, of times but ``0`` all."""
    if text in ("yes", "true"):
        return True
    if text in ("no", "false"):
        return False
    if _NUMBER.fullmatch(text) and (not as_time or float(text) == 0):
        return float(text) if "." in text else int(text)
    return text


# ---------------------------------------------------------------- commands


def factory_run(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.factory.service import check, named, pools_meant, run, unless_interrupted
    from windlass.managers import await_manager

    manager, pools = _manager_and_pools(chosen.words, chosen.manager, options)
    options = named(pools, options)
    pools = pools_meant(pools, options)
    check(pools, options)  # a slip is told now, not after the wait

    def say(text: str) -> None:
        print(f"windlass: {text}", file=sys.stderr, flush=True)

    known = unless_interrupted(lambda: await_manager(manager, chosen.port, chosen.wait, say))
    return run(str(known.path), pools, options) if known is not None else 0


def factory_dry_run(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.factory.service import dry_run, pools_meant

    pools = pools_meant(chosen.words, options)
    print(dry_run(pools, options))
    if chosen.probe:
        from windlass.factory.orphans import probe

        for pool in pools:
            print(f"\n{probe(pool, options)}")
    return 0


def factory_clean(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.factory.orphans import clean

    print(clean(chosen.backend, options, factory=chosen.factory, gone=chosen.manager, remove=chosen.remove, as_json=chosen.json))
    return 0


def factory_config(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.factory.service import show

    print(show(chosen.words, options, as_json=chosen.json))
    return 0


def doctor(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    from windlass.factory.doctor import as_json, as_text, check_up, healthy

    patience = {"queue_patience": chosen.queue_patience, "start_patience": chosen.start_patience}
    legs = check_up(chosen.pool, options, lambda text: print(text, file=sys.stderr, flush=True), port=chosen.port, **patience)
    print(as_json(legs) if chosen.json else as_text(legs))
    return 0 if healthy(legs) else 1


def _manager_and_pools(words: Sequence[str], manager: str | None, options: Mapping[str, object]) -> tuple[str | None, list[str]]:
    """``[MANAGER] POOL ...``: a first word that is neither a pool nor a backend is the manager's.

    If others follow, or the configuration says which pools are meant; and a slip in a pool's name is none of a manager.
    """
    from difflib import get_close_matches

    from windlass.factory.backend import known_backends
    from windlass.factory.factory import configuration_of

    configuration = configuration_of(options)
    known = [*known_backends(), *configuration.pools]
    if manager is None and words and words[0] not in known:
        alone = len(words) == 1
        if not alone or (configuration.factory.get("pools") and not get_close_matches(words[0], known)):
            return words[0], list(words[1:])
        if _is_manager(words[0]):
            raise UsageError(
                f"{words[0]} is a manager; say also of which pool or backend it gets pilots ({', '.join(known)}), as in"
                f"  windlass factory run {words[0]} {known[0]}"
            )
    return manager, list(words)


def _is_manager(word: str) -> bool:
    from windlass.errors import WindlassError
    from windlass.identity import find_manager

    try:
        find_manager(word)
    except (WindlassError, OSError):
        return False
    return True


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


def add_parsers(nouns: Any, *, with_options: bool) -> None:
    """Add the parsers; ``with_options``: their help names the options of all pools."""
    import argparse

    from windlass import cli_pilots, cli_words

    raw = argparse.RawDescriptionHelpFormatter
    factory = nouns.add_parser("factory", help="keep the pilots running that a manager could use")
    factory.set_defaults(parser=factory)
    verbs = factory.add_subparsers(title="commands", metavar="COMMAND")
    about = (
        "POOL is a backend (local, slurm, htcondor, fake) or the name of a pool in a configuration file (--config FILE; see:\n"
        "windlass explain pools). Options of the pool are those of windlass.Factory, written --max-pilots 4 for max_pilots=4.\n"
        "--setup (a line of shell) and --env NAME=VALUE may be repeated. A misspelt one is refused with its near names."
        + (_pool_options() if with_options else "")
    )
    run = verbs.add_parser(
        "run",
        help="run a factory until interrupted or until its manager ends",
        usage="windlass factory run [MANAGER] POOL [POOL ...] [--port PORT] [--wait SECONDS] [--POOL-OPTION VALUE ...]",
        description="Serve a running manager with pilots. Without MANAGER: the only one of yours that runs, or that on --port.\n"
        "Of several pools the first that fits gets a call's pilots, then the next.\n\n" + about,
        epilog="Ctrl-C removes queued pilots and lets running ones finish their calls; a second Ctrl-C ends them. A closed terminal is as\n"
        "one Ctrl-C, without haste; with nohup the factory goes on. When it is killed its pilots stay, and the same command takes them\n"
        "over.",
        formatter_class=raw,
    )
    run.add_argument("words", nargs="*", metavar="[MANAGER] POOL", help="a manager's name or connection file; pools or backends")
    for option in FACTORY_OPTIONS:
        run.add_argument(option.flag, metavar=option.metavar, type=option.convert, default=option.default, help=option.text)
    run.set_defaults(command=factory_run)
    dry = verbs.add_parser(
        "dry-run",
        help="print exactly what would be submitted",
        usage="windlass factory dry-run POOL [POOL ...] [--probe] [--POOL-OPTION VALUE ...]",
        description="Print what a factory would submit with these options, and submit nothing.\n\n" + about,
        formatter_class=raw,
    )
    dry.add_argument("words", nargs="*", metavar="POOL", help="pools or backends")
    asks = "submit one pilot too, which does not start, and remove it: is the account right, the partition?"
    dry.add_argument("--probe", action="store_true", help=asks)
    dry.set_defaults(command=factory_dry_run)
    clean = verbs.add_parser(
        "clean",
        help="list pilots whose manager is gone, and remove them",
        usage="windlass factory clean POOL [--remove] [--factory NAME] [--manager NAME ...] [--json] [--BACKEND-OPTION VALUE ...]",
        description="List your pilots in a batch system whose managers do not run any more. Pilots that run leave by themselves;\n"
        "queued ones wait until they start. Those of managers of which nothing can be told from here are shown, and not removed.",
        formatter_class=raw,
    )
    clean.add_argument("backend", metavar="POOL", help="slurm, htcondor, or a configured pool of one of these")
    clean.add_argument("--remove", action="store_true", help="end them")
    clean.add_argument("--factory", metavar="NAME", default="", help="only pilots of this factory")
    clean.add_argument(
        "--manager",
        metavar="NAME",
        action="append",
        default=[],
        help="this manager is gone, even if that cannot be told from here; may be repeated",
    )
    clean.add_argument("--json", action="store_true", help="all pilots, one object")
    clean.set_defaults(command=factory_clean)
    cli_pilots.add_resume(verbs)
    config = verbs.add_parser("config", help="what the configuration files say")
    config.set_defaults(parser=config)
    show = config.add_subparsers(title="commands", metavar="COMMAND").add_parser(
        "show",
        help="each option of a pool with its value and where it comes from",
        usage="windlass factory config show [POOL ...] [--json] [--POOL-OPTION VALUE ...]",
        description="Print each option with its value and where it comes from. Without POOL: all configured pools.\n\n" + about,
        formatter_class=raw,
    )
    show.add_argument("words", nargs="*", metavar="POOL", help="pools or backends")
    show.add_argument("--json", action="store_true", help="one object: files, and by pool a list of option, value, origin")
    show.set_defaults(command=factory_config)

    look = nouns.add_parser(
        "doctor",
        help="run one pilot of a pool and say of each leg of its way whether it holds",
        usage="windlass doctor POOL [--json] [--port PORTS] [--queue-patience TIME] [--start-patience TIME] [--POOL-OPTION VALUE ...]",
        description="Submit one real pilot, run a call in it, end it, and report: is the state folder seen on the node, is Python found,\n"
        "which addresses of the manager answer, how far off is the clock, what is scratch, how long does it take.\n\n" + about,
        epilog="exit status: 0 every leg holds, 1 one failed, 2 wrong command line",
        formatter_class=raw,
    )
    look.add_argument("pool", metavar="POOL", help="a backend, or a pool of a configuration file")
    look.add_argument("--json", action="store_true", help="one object: healthy, and the legs")
    look.add_argument(
        "--port",
        type=cli_words.ports,
        metavar="PORTS",
        default=0,
        help="where its manager listens, as yours will: 50000, or 50000-50100 for the first free one of these; else any free one",
    )
    look.add_argument(
        "--queue-patience", type=cli_words.span, metavar="TIME", default="10min", help="how long it may wait in the queue (%(default)s)"
    )
    look.add_argument(
        "--start-patience", type=cli_words.span, metavar="TIME", default="2min", help="and from its start until it serves (%(default)s)"
    )
    look.set_defaults(command=doctor)
