"""``windlass logs --follow``: which end of which pilot ends it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import windlass
from windlass.cli_pilots import STATUS_SECONDS, PilotEnd
from windlass.errors import ConnectionRefused
from windlass.messages import GetStatus, Message

if TYPE_CHECKING:
    from windlass.status import StatusPort

PILOT = {"factory": "night", "pool": "short", "pilot": "812", "phase": "serving"}


class Asked:
    """A manager that answers when the test says so."""

    def __init__(self) -> None:
        self.questions: list[Message] = []
        self.answers: list[bytes | None] = []

    def send(self, *messages: Message) -> None:
        self.questions += messages

    def answer(self, timeout: float) -> bytes | None:
        assert timeout == 0, "nobody waits for it"
        answer = self.answers.pop(0)
        if answer == b"":
            raise ConnectionRefused("the manager was closed")
        return answer


def shows(*rows: dict[str, str]) -> bytes:
    return json.dumps({"pilots": rows}).encode()


def test_a_manager_that_does_not_answer_is_no_end_and_is_not_asked_again() -> None:
    """Its program may be busy or stopped: what it says then is taken in, however late."""
    asked = Asked()
    end = PilotEnd(cast("StatusPort", asked), PILOT, now=0.0)
    assert not end.is_told(STATUS_SECONDS / 2)
    assert asked.questions == []
    asked.answers = [None, None, shows(PILOT)]
    assert not any(end.is_told(now) for now in (4.0, 100.0, 101.0))
    assert asked.questions == [GetStatus("812")]
    asked.answers = [shows({**PILOT, "phase": "ended"})]
    assert end.is_told(105.0)
    assert asked.questions == [GetStatus("812")] * 2


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        (shows({**PILOT, "pool": "long", "phase": "ended"}, PILOT), False),
        (shows({**PILOT, "pool": "long"}, {**PILOT, "phase": "ended"}), True),
        (shows(), True),
        (b"", True),
    ],
)
def test_it_ends_with_that_pilot_or_with_who_could_tell(answer: bytes, ended: bool) -> None:
    """Two pools may have a job of the same number, as their clusters number them each for itself."""
    asked = Asked()
    asked.answers = [answer]
    assert PilotEnd(cast("StatusPort", asked), PILOT, now=0.0).is_told(4.0) == ended


LOGS = """
import sys, time
from windlass import cli, cli_pilots

class Telling(cli_pilots.PilotEnd):
    def is_told(self, now):
        ended = super().is_told(now)
        print(time.time(), ended, file=sys.stderr, flush=True)
        return ended

cli_pilots.PilotEnd, cli_pilots.STATUS_SECONDS, cli_pilots.FOLLOW_SECONDS = Telling, 0.0, 0.01
sys.exit(cli.main(sys.argv[1:]))
"""


def test_another_manager_that_starts_meanwhile_is_no_end(
    nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which manager is meant is settled at the beginning, when there was only one; the end of its pilot ends it."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with windlass.Manager(name="lab") as manager, windlass.Factory(manager, "local", cores=1, max_pilots=1, min_pilots=1) as factory:
        manager.install_library("lib", abs)
        manager.submit(windlass.FunctionCall("lib", "abs", 1)).result(60)
        words = [sys.executable, "-c", LOGS, "logs", "loc", "--follow"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr is not None
            while (said := running.stderr.readline()) and not said.endswith("False\n"):
                pass
            with windlass.Manager(name="other"):
                since = time.time()
                looks = 0
                while looks < 10:
                    at, ended = running.stderr.readline().split()
                    assert ended == "False"
                    looks += float(at) > since
            factory.close()
            *_, last = running.stderr
            assert last.endswith("True\n")
            assert running.wait(60) == 0
