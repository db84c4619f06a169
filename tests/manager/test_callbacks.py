"""Where callbacks run when threads are short, and in forked copies of the program."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from windlass.manager.callbacks import CallbackThread, hand_over


def test_where_no_thread_can_be_started_they_wait_for_the_next(
    callbacks: CallbackThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As at a limit. It is no matter of the call's: the ends of others come with its own, and must not be lost."""

    def refuse(thread: threading.Thread) -> None:
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    seen: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        hand_over(lambda: seen.append(1))
    assert caplog.messages == ["callbacks wait until another call ends, as no thread can be started for them: can't start new thread"]
    hand_over(lambda: seen.append(2))
    callbacks.close(10)
    assert seen == [1, 2]


def test_a_forked_copy_of_the_program_runs_its_own(callbacks: CallbackThread) -> None:
    """It has none of the program's threads, and what those have still to do is the program's."""
    running, ran = threading.Event(), threading.Event()
    end, log = os.pipe()
    hand_over(running.wait)
    hand_over(lambda: os.write(log, b"the program's"))
    child = os.fork()
    if not child:
        running.set()
        hand_over(ran.set)
        os._exit(0 if ran.wait(20) else 1)
    assert os.waitpid(child, 0)[1] == 0
    running.set()
    callbacks.close(10)
    assert os.read(end, 100) == b"the program's"
    os.close(log)
    os.close(end)
