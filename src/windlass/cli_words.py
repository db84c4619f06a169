"""The words of a command line: how they are read, and what is said of wrong ones.

Theory of operation: argparse says what was wrong, and its usage line comes before that; here it learns near names of commands, and what
to write instead of a value.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from windlass.errors import UnknownName, UsageError
from windlass.units import parse_seconds


class Parser(argparse.ArgumentParser):
    """A parser that knows near names of its commands."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            text = str(UnknownName("command", str(value), map(str, action.choices)))
            if not text.endswith("?") and any("--manager" in one.option_strings for one in self._actions):
                text += f"; a manager is named by --manager {value}"
            raise argparse.ArgumentError(None, text)


class _ManagerName(argparse.Action):
    """Which manager is meant, by itself or behind ``--manager``: there the last one, as an alias may have the option already."""

    _BEHIND_OPTION = "manager_is_behind_option"

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        before, was_option = getattr(namespace, self.dest, None), getattr(namespace, self._BEHIND_OPTION, False)
        if before is not None and was_option != bool(option):
            itself, other = (before, values) if option else (values, before)
            raise UsageError(f"{itself} and --manager {other}: name the manager once")
        setattr(namespace, self.dest, values)
        setattr(namespace, self._BEHIND_OPTION, bool(option))


def manager_name(parser: Any, *, by_itself: bool, **more: Any) -> None:
    """Add ``--manager NAME``, which all commands take that are about a manager; ``by_itself``: the name alone means it as well."""
    text = "the manager's name, state folder or connection file; else the only one of yours that runs"
    if by_itself:
        parser.add_argument("manager", nargs="?", metavar="NAME", action=_ManagerName, default=argparse.SUPPRESS, help=text)
    parser.add_argument("--manager", metavar="NAME", action=_ManagerName, help="the same" if by_itself else text, **more)


def left_over(chosen: argparse.Namespace, words: list[str]) -> str:
    """What is said of words that mean nothing to a command."""
    meant = getattr(chosen, "manager", "") is None and not words[0].startswith("-")
    return f"unrecognized arguments: {' '.join(words)}" + (f"; a manager is named by --manager {words[0]}" if meant else "")


def port(text: str) -> int:
    """A port that something listens on."""
    return _port(text, 1)


def port_or_any(text: str) -> int:
    """The same, or 0."""
    return _port(text, 0)


def ports(text: str) -> int | tuple[int, int]:
    """A port, or the first and the last of some: the first free one of these."""
    first, dash, last = text.partition("-")
    if not dash:
        return port(text)
    ends = port(first), port(last)
    if ends[0] > ends[1]:
        raise argparse.ArgumentTypeError(f"{text!r} has its larger end first: write {last}-{first}")
    return ends


def _port(text: str, least: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no port: write a number from 1 to 65535" + ("" if least else ", or 0 for any free one")
        )
    return int(text)


def count(text: str) -> int:
    """A number of things."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things: write a whole number, such as 20")
    return int(text)


def span(text: str) -> float:
    """A length of time, such as ``2h``. Seconds."""
    try:
        return 0.0 if text == "0" else parse_seconds(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """The same, or a number of seconds."""
    try:
        read = float(text)
    except ValueError:
        return span(text)
    if not 0 <= read < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time: write a number of seconds, such as 10")
    return read


def pause(text: str) -> float:
    """The same, and not zero: of ``--watch``, which may have taken the name behind it for its value."""
    try:
        read = seconds(text)
    except argparse.ArgumentTypeError as error:
        if text[:1].isalpha() and text.lower() not in ("nan", "inf", "infinity"):
            raise argparse.ArgumentTypeError(f"{error}; a manager's name goes before it: windlass status {text} --watch") from None
        raise
    if not read:
        raise argparse.ArgumentTypeError(f"{text!r} is no pause: write a number of seconds over 0, such as 1")
    return read
