"""Failures grouped by cause: one traceback and a number, for any number of failures."""

from __future__ import annotations

import pytest

from windlass.manager.calls import LOST
from windlass.manager.causes import CAUSES_MOST, HOSTS_MOST, TEXT_MOST, Causes, clipped, place_of
from windlass.manager.failures import first_line
from windlass.messages import DIED, RAISED, CallEnd, CallId, EndDetail

TRACEBACK = (
    'Traceback (most recent call last):\n  File "/home/me/model.py", line {line}, in simulate\n    solve()\nValueError: seed {seed}\n'
)


def raised(call: int, line: int = 12) -> CallEnd:
    detail = EndDetail(types=("builtins.ValueError", "builtins.Exception"), text=TRACEBACK.format(line=line, seed=call))
    return CallEnd(CallId(call), 1, RAISED, b"x", detail=detail)


def note(causes: Causes, end: CallEnd, function: str, host: str, now: float, *, retried: bool = False) -> None:
    causes.note(end, function, first_line(end), host, now, retried=retried)


def test_failures_that_differ_in_their_words_alone_are_one_cause() -> None:
    """The first one's traceback, the newest one's message, how many, where and when."""
    causes = Causes()
    for call in range(1, 1001):
        note(causes, raised(call), "lib.simulate", f"node{call % 2}", 100.0 + call)
    (row,) = causes.rows()
    assert (row["kind"], row["function"], row["type"], row["place"]) == ("raised", "lib.simulate", "builtins.ValueError", "model.py:12")
    assert (row["calls"], row["retried"], row["first_at"], row["last_at"], row["first_call"]) == (1000, 0, 101.0, 1100.0, 1)
    assert row["text"] == TRACEBACK.format(line=12, seed=1)
    assert row["message"] == "ValueError: seed 1000"
    assert row["hosts"] == {"node1": 500, "node0": 500}


def test_another_line_function_or_kind_of_end_is_another_cause() -> None:
    """The one with the most calls comes first."""
    causes = Causes()
    note(causes, raised(1), "lib.simulate", "a", 1.0)
    for call in (2, 3):
        note(causes, raised(call, line=99), "lib.simulate", "a", 1.0)
    note(causes, raised(4), "lib.other", "a", 1.0)
    note(causes, CallEnd(CallId(5), 1, LOST, detail=EndDetail(text="its worker was lost")), "lib.simulate", "", 1.0)
    assert [(row["place"], row["kind"], row["calls"]) for row in causes.rows()] == [
        ("model.py:99", "raised", 2),
        ("model.py:12", "raised", 1),
        ("model.py:12", "raised", 1),
        ("", "lost with its worker", 1),
    ]


def test_an_attempt_that_is_tried_again_counts_apart() -> None:
    """What goes well at the second try has cost time and is no failed call."""
    causes = Causes()
    note(causes, raised(1), "lib.f", "a", 1.0, retried=True)
    note(causes, raised(1), "lib.f", "a", 2.0, retried=True)
    assert [(row["calls"], row["retried"]) for row in causes.rows()] == [(0, 2)]


def test_a_slot_that_died_shows_the_end_of_what_it_wrote() -> None:
    """Its traceback is the only one there is."""
    causes = Causes()
    note(causes, CallEnd(CallId(1), 1, DIED, stderr=b"Segmentation fault\n", detail=EndDetail(text="killed by SIGSEGV")), "lib.f", "a", 1.0)
    (row,) = causes.rows()
    assert row["text"] == "killed by SIGSEGV\nthe end of its stderr:\nSegmentation fault"


def test_memory_is_bounded_whatever_fails() -> None:
    """So many causes are told apart, of each so many hosts and so much text."""
    causes = Causes()
    for call in range(10 * CAUSES_MOST):
        end = CallEnd(CallId(call), 1, RAISED, b"", detail=EndDetail(types=(f"m.E{call}",), text="x" * (2 * TEXT_MOST)))
        note(causes, end, "lib.f", f"node{call}", 1.0)
    for host in range(100):
        note(causes, CallEnd(CallId(1), 1, RAISED, detail=EndDetail(types=("m.E0",), text="x")), "lib.f", f"other{host}", 1.0)
    rows = causes.rows()
    assert len(rows) == CAUSES_MOST + 1
    assert (rows[0]["kind"], rows[0]["calls"]) == ("others", 9 * CAUSES_MOST)
    assert max(len(row["text"]) for row in rows) < TEXT_MOST + 100
    assert max(len(row["hosts"]) for row in rows) <= HOSTS_MOST
    assert sum(row["calls"] for row in rows) == 10 * CAUSES_MOST + 100


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (TRACEBACK.format(line=3, seed=1), "model.py:3"),
        ('  File "<stdin>", line 1, in <module>', "<stdin>:1"),
        ('  File "/a.py", line 1, in f\n  File "/b/c d.py", line 22\nSyntaxError: x', "c d.py:22"),
        ("no traceback at all", ""),
        ("", ""),
        ('  File "', ":"),
    ],
)
def test_the_place_is_that_of_the_last_frame(text: str, place: str) -> None:
    assert place_of(text) == place


def test_texts_are_cut_in_their_middle() -> None:
    """A traceback begins with where it comes from and ends with what went wrong."""
    text = "begin " + "x" * 2 * TEXT_MOST + " end"
    assert clipped(text).startswith("begin ")
    assert clipped(text).endswith(" end")
    assert "characters left out" in clipped(text)
    assert clipped("short") == "short"
