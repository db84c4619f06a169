"""Output of calls: all of it when short, head and tail when long."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from windlass.memory_files import memory_file
from windlass.worker import capture


@pytest.fixture
def file() -> Iterator[int]:
    """An empty file as slots have it for their standard output."""
    descriptor = memory_file("test", append=True)
    yield descriptor
    os.close(descriptor)


def test_what_was_written_is_taken_once(file: int) -> None:
    """And the next call begins with an empty file, whoever writes."""
    assert capture.take(file) == b""
    os.write(file, b"one ")
    os.write(os.dup(file), b"two")
    assert capture.take(file) == b"one two"
    assert capture.take(file) == b""
    os.write(file, b"three")
    assert capture.take(file) == b"three"


@pytest.mark.parametrize("extra", [0, 1, 5000])
def test_long_output_keeps_its_head_and_tail_and_says_what_is_missing(file: int, extra: int) -> None:
    """To the byte."""
    text = b"a" * capture.HEAD + b"m" * extra + b"z" * capture.TAIL
    os.write(file, text)
    note = f"\n... {extra} bytes left out ...\n".encode() if extra else b""
    assert capture.take(file) == b"a" * capture.HEAD + note + b"z" * capture.TAIL


def test_trimming_gives_back_memory_and_changes_nothing_that_is_kept(file: int) -> None:
    """While it grows; short files are left alone."""
    trimmed = capture.trim(file)
    assert trimmed == 0
    os.write(file, b"a" * capture.HEAD)
    for _ in range(5):
        os.write(file, b"m" * (3 << 20))
        trimmed = capture.trim(file, trimmed)
    assert trimmed >= capture.TRIM_BYTES
    assert os.fstat(file).st_blocks * 512 < 7 << 20
    os.write(file, b"z" * capture.TAIL)
    capture.trim(file)
    text = capture.take(file)
    assert text.startswith(b"a" * capture.HEAD + b"\n... ")
    assert text.endswith(b"...\n" + b"z" * capture.TAIL)
    assert f"{15 << 20} bytes left out".encode() in text
    assert capture.trim(file, trimmed) == 0, "the slot has emptied it since"
