"""Rules of `windlass.worker.options`: the worker's command line."""

from __future__ import annotations

import pytest

from windlass.errors import UsageError
from windlass.worker.options import Options, parse, usage


def test_every_option_has_its_place() -> None:
    """Both spellings, in the units of the messages."""
    words = "--connection p.json --worker-id w --pool=p --pilot 1.0 --cores 4 --memory 1024 --gpus 1 --walltime 60 --idle-timeout=2.5"
    found = parse([*words.split(), "--scratch", "/a b", "--grace", "3", "--stagger", "9", "--log-level", "INFO"])
    assert found == Options("p.json", "w", "p", "1.0", 4, 1024, 1, 60.0, 2.5, "/a b", 3.0, 9.0, "info")


def test_only_the_connection_is_needed() -> None:
    """The rest is found out, or is unlimited."""
    assert parse(["--connection", "p.json"]) == Options("p.json")


def test_the_later_of_two_counts() -> None:
    """So that a pool's own options can be overruled."""
    assert parse(["--connection", "a", "--connection", "b"]).connection == "b"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "--connection FILE is needed: the pilot.json in the manager's state folder"),
        (["--connection"], "--connection needs a value: --connection FILE"),
        (["p.json"], "there is no option 'p.json'; see --help"),
        (["--idletimeout", "3"], "there is no option '--idletimeout'; did you mean '--idle-timeout'?"),
        (["--cores", "many"], "--cores 'many' cannot be used: give a whole number, as in --cores 4"),
        (["--cores", "-1"], "--cores '-1' cannot be used: give a whole number, as in --cores 4"),
        (["--memory", "8GB"], "--memory '8GB' cannot be used: give a number of bytes, as in --memory 8589934592"),
        (["--walltime", "nan"], "--walltime 'nan' cannot be used: give a number of seconds, as in --walltime 3600"),
        (["--walltime", "inf"], "--walltime 'inf' cannot be used: give a number of seconds, as in --walltime 3600"),
        (["--log-level", "loud"], "--log-level 'loud' cannot be used: give a level, as in --log-level info"),
    ],
)
def test_a_wrong_word_is_named_with_what_to_give(words: list[str], text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert str(caught.value) == text


def test_the_usage_names_every_option() -> None:
    """It is made from the same table."""
    text = usage()
    assert all(f"--{name.replace('_', '-')} " in text for name in Options._fields)
