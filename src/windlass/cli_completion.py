"""Completion of command lines in bash, zsh and fish: commands and options from the parser, names from what runs now.

Theory of operation
-------------------
``windlass completion SHELL`` prints a few lines for the shell's start-up file, which are argcomplete's: at each TAB the shell runs
``windlass`` itself with the line in the environment, and `complete` answers. So what is offered is always what this very Windlass knows.

Names of managers are folders of the state folder. Names of pilots, libraries, pools, hosts and tags are asked of the manager that the
line means; where that does not answer within `ASK_SECONDS`, or several run and none is named, nothing is offered: a TAB must never wait
or say an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from windlass.errors import UsageError

if TYPE_CHECKING:
    import argparse

SHELLS: Final = ("bash", "zsh", "fish")
#: Seconds that a TAB waits at most for a manager to be found and to answer.
ASK_SECONDS: Final = 2.0
#: What argcomplete sets when the shell asks.
ASKED: Final = "_ARGCOMPLETE"
_MISSING: Final = "shell completion needs the package argcomplete: pip install 'argcomplete>=3.3'"
#: Calls whose tags are offered.
_TAGS_FROM: Final = 200

Completer = Callable[..., Iterable[str]]


def completion(chosen: argparse.Namespace, options: Mapping[str, object]) -> int:
    """Print what a shell is to evaluate."""
    from windlass.cli_lists import require_words

    require_words("shell", [chosen.shell], SHELLS)
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise UsageError(_MISSING) from None
    print(shellcode(["windlass"], shell=chosen.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks, and end the process."""
    try:
        import argcomplete
    except ImportError:
        return
    attach(parser)
    argcomplete.autocomplete(parser, always_complete_options=False, exclude=["worker"])


def attach(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> None:
    """Tell each option and word of the parser, and of those below it, where its values come from."""
    import argparse

    _add_everywhere(parser, path)
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            for name, below in action.choices.items():  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
                attach(below, (*path, name))  # pyright: ignore[reportUnknownArgumentType]
        elif (completer := _completer(path, action.dest)) is not None:
            action.completer = completer  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def _add_everywhere(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> None:
    """Options that are taken out before the parser sees the words: those of the state folder, and of pools."""
    from argcomplete.completers import DirectoriesCompleter

    from windlass import cli_factory

    folder = parser.add_argument("--state-dir", metavar="DIR")
    folder.completer = DirectoriesCompleter()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    parser.add_argument("--trust-state-dir", action="store_true")
    words = list(path)
    if cli_factory.takes_pool_options(words) or words == ["manager", "start"]:
        from windlass.factory.pool import COMMON_OPTIONS

        known = set(parser._option_string_actions)  # pyright: ignore[reportPrivateUsage]
        for name in COMMON_OPTIONS:
            if (flag := f"--{name.replace('_', '-')}") not in known:
                parser.add_argument(flag, metavar="VALUE")


def _completer(path: tuple[str, ...], dest: str) -> Completer | None:
    """What offers values for an option or word of a command."""
    from windlass import cli_lists, cli_pilots

    states = {
        "pilots": cli_pilots.STATES,
        "workers": cli_lists.WORKER_STATES,
        "libraries": cli_lists.LIBRARY_STATES,
        "calls": cli_lists.CALL_STATES,
        "files": cli_lists.FILE_STATES,
    }
    noun = path[0] if path else ""
    words = {
        "state": states.get(noun, ()),
        "level": cli_lists.FILE_LEVELS,
        "shell": SHELLS,
    }
    if words.get(dest):
        offered = words[dest]
        return _fixed(offered)
    if dest == "manager" or (dest == "name" and noun == "manager"):
        return managers
    if dest == "what":
        return _explained
    if dest in ("words", "backend") or (dest == "pool" and noun in ("doctor", "manager")):
        return kinds_of_pools
    return {
        "pilot": _of(lambda status: [row["pilot"] for row in status["pilots"]]),
        "library": _of(lambda status: [row["name"] for row in status["libraries"]]),
        "pool": _of(lambda status: [row["name"] for row in status["pools"]]),
        "host": _of(lambda status: [row["host"] for row in status["workers"]]),
        "tag": _tags,
    }.get(dest)


# ---------------------------------------------------------------- names


def managers(**_: object) -> list[str]:
    """Names of managers in the state folder."""
    from windlass.identity import state_folder

    with os.scandir(state_folder() / "managers") as entries:
        return sorted(entry.name for entry in entries if os.path.exists(os.path.join(entry.path, "client.json")))


def kinds_of_pools(**_: object) -> list[str]:
    """Backends, and pools of the configuration."""
    from windlass.factory.backend import known_backends
    from windlass.factory.config import read_configuration

    return [*known_backends(), *read_configuration(None).pools]


def _explained(**_: object) -> list[str]:
    from windlass import cli_explain

    return cli_explain.names()


def _fixed(words: Iterable[str]) -> Completer:
    def offer(**_: object) -> Iterable[str]:
        return words

    return offer


def _of(names: Callable[[Any], Iterable[str]]) -> Completer:
    def offer(parsed_args: argparse.Namespace, **_: object) -> Iterable[str]:
        return sorted(set(names(_ask(parsed_args))))

    return offer


def _tags(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    from windlass.messages import ListCalls

    return sorted({row["tag"] for row in _ask(parsed_args, ListCalls(most=_TAGS_FROM))["calls"]} - {""})


def _ask(parsed: argparse.Namespace, about: Any = None) -> Any:
    """The answer of the manager that the line means. Raises what keeps it from coming, which argcomplete takes for nothing to offer.

    The time is for all of it: several managers may have to be tried, at several addresses. So it is done on a thread, which ends with the
    process, and that when the shell has its answer.
    """
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(_answer(parsed, about))
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            answer.set_exception(error)

    threading.Thread(target=work, name="windlass-completion", daemon=True).start()
    return answer.result(ASK_SECONDS)


def _answer(parsed: argparse.Namespace, about: Any) -> Any:
    import json

    from windlass.managers import choose_manager
    from windlass.status import StatusPort

    state_dir = getattr(parsed, "state_dir", None)
    known = choose_manager(getattr(parsed, "manager", None), getattr(parsed, "port", None), state_dir=state_dir)
    with StatusPort(known.connection) as port:
        return json.loads(port.ask(about=about))


def add_parsers(nouns: Any) -> None:
    """Add the parser of ``windlass completion``."""
    import argparse

    one = nouns.add_parser(
        "completion",
        help="what a shell needs to complete command lines",
        description="Print what a shell needs to complete command lines. Put into its start-up file:\n\n"
        '  ~/.bashrc:                   eval "$(windlass completion bash)"\n'
        '  ~/.zshrc, after compinit:    eval "$(windlass completion zsh)"\n'
        "  ~/.config/fish/config.fish:  windlass completion fish | source",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    one.add_argument("shell", metavar="SHELL", help="bash, zsh or fish")
    one.set_defaults(command=completion)
