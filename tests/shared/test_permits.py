"""Permits: who may read what from whom, and for how long."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from windlass.identity import Authority, read_connection_file
from windlass.permits import SLACK, NotPermitted, check_permit

NAME = "b3-" + "a" * 32


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create("m1", tmp_path_factory.mktemp("state") / "m1")


@pytest.fixture(scope="module")
def ca(authority: Authority) -> str:
    return read_connection_file(authority.pilot_file).ca


def test_a_permit_lets_its_reader_read_its_file_from_its_source(authority: Authority, ca: str) -> None:
    """Whoever checks needs no more than the authority's certificate, and keeps no state: the same permit serves again after a cut."""
    permit = authority.permit(NAME, "w1", "w2")
    for _ in range(2):
        check_permit(ca, permit, name=NAME, source="w1", reader="w2", now=time.time())


@pytest.mark.parametrize(
    ("name", "source", "reader", "text"),
    [
        ("b3-" + "b" * 32, "w1", "w2", rf"the permit that w2 showed is for file {NAME}, not for b3-b+"),
        (NAME, "w3", "w2", r"the permit that w2 showed is for source w1, not for w3"),
        (NAME, "w1", "w3", r"the permit that w3 showed is for reader w2, not for w3"),
    ],
)
def test_a_permit_is_of_no_use_for_anything_else(authority: Authority, ca: str, name: str, source: str, reader: str, text: str) -> None:
    """Another file, another source, another reader: refused, and the text says in what it differs."""
    with pytest.raises(NotPermitted, match=text):
        check_permit(ca, authority.permit(NAME, "w1", "w2"), name=name, source=source, reader=reader, now=time.time())


def test_a_permit_ends(authority: Authority, ca: str) -> None:
    """Later than its end it is refused; clocks that differ a little do no harm."""
    now = time.time()
    permit = authority.permit(NAME, "w1", "w2", seconds=-50)
    check_permit(ca, permit, name=NAME, source="w1", reader="w2", now=now)
    with pytest.raises(
        NotPermitted, match=rf"the permit of w2 to read {NAME} ended 7[45]. s ago by the clock of w1: ask the manager for a new one"
    ):
        check_permit(ca, permit, name=NAME, source="w1", reader="w2", now=now + SLACK + 100)


def test_no_permit_at_all_is_refused(ca: str) -> None:
    with pytest.raises(NotPermitted, match=rf"w2 showed no permit to read {NAME} from w1: ask the manager for one"):
        check_permit(ca, b"", name=NAME, source="w1", reader="w2", now=0)


def test_another_managers_permit_is_refused(ca: str, tmp_path: Path) -> None:
    foreign = Authority.create("m1", tmp_path / "m1").permit(NAME, "w1", "w2")
    with pytest.raises(NotPermitted, match=rf"what w2 showed to read {NAME} is no permit of this manager"):
        check_permit(ca, foreign, name=NAME, source="w1", reader="w2", now=time.time())


def test_no_changed_byte_of_a_permit_goes_unseen(authority: Authority, ca: str) -> None:
    """Damaged, cut short, lengthened, or not of this kind at all: each is refused as what it is, and none is an error of another kind."""
    permit = authority.permit(NAME, "w1", "w2")
    wrong = [permit[:at] + bytes([permit[at] ^ bit]) + permit[at + 1 :] for at in range(len(permit)) for bit in (1, 0x80)]
    for bad in [*wrong, permit[:-1], permit + b"\0", b"\xc0", b"x" * 100_000]:
        with pytest.raises(NotPermitted, match="is no permit of this manager"):
            check_permit(ca, bad, name=NAME, source="w1", reader="w2", now=time.time())
