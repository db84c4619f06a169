"""Which pilots are orphans: those that wait, and whose manager is surely gone."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

import windlass
from windlass import bygone
from windlass.cli import main
from windlass.factory import orphans
from windlass.factory.backend import JobId, Listed, PilotRequest, PilotState, Tag
from windlass.factory.orphans import Found, find_pilots, state_of_manager
from windlass.factory.slurm import SlurmBackend
from windlass.managers import Presence


class Batch:
    """A batch system that lists these."""

    def __init__(self, *listed: tuple[Tag, Listed]) -> None:
        self._listed = [(tag, PilotState(job=JobId(str(number)), listed=state)) for number, (tag, state) in enumerate(listed)]

    def find(self) -> Sequence[tuple[Tag, PilotState]]:
        return self._listed

    def probe(self, request: PilotRequest) -> JobId:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("tag", "listed", "manager", "orphan"),
    [
        (Tag("f", "m"), Listed.QUEUED, Presence.ENDED, True),
        (Tag("f", "m"), Listed.HELD, Presence.ENDED, True),
        (Tag("f", "m"), Listed.QUEUED, Presence.SILENT, False),  # its program is busy, or stopped for a moment
        (Tag("f", "m"), Listed.QUEUED, Presence.UNKNOWN, False),  # it may be where it cannot be seen from here
        (Tag("f", "m"), Listed.RUNNING, Presence.UNKNOWN, False),
        (Tag("f", "m"), Listed.RUNNING, Presence.ENDED, False),  # or begin anew; else its pilots leave
        (Tag("f", "m"), Listed.RUNNING, Presence.RUNNING, False),
        (Tag("f", "m"), Listed.ENDING, Presence.ENDED, False),
        (Tag("manager-m", "m"), Listed.QUEUED, Presence.ENDED, False),  # the manager itself, which waits for its node
    ],
)
def test_an_orphan_is_a_pilot_that_nobody_will_end(tag: Tag, listed: Listed, manager: Presence, orphan: bool) -> None:
    [found] = find_pilots(Batch((tag, listed)), ask=lambda tag: manager)
    assert found.is_orphan() == orphan


@pytest.mark.parametrize("manager", Presence)
def test_that_a_manager_is_gone_is_believed_only_where_nothing_tells(manager: Presence) -> None:
    """Of a manager that is there no pilot is removed, whatever is said."""
    [found, other] = find_pilots(Batch((Tag("f", "m"), Listed.QUEUED), (Tag("f", "n"), Listed.QUEUED)), ask=lambda tag: manager)
    assert found.is_orphan({"m"}) == (manager in (Presence.ENDED, Presence.UNKNOWN))
    assert other.is_orphan({"m"}) == (manager is Presence.ENDED)


def test_what_clean_removes_is_surely_an_orphan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are shown, with what to say where they are orphans too."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    found = {"old": Presence.ENDED, "away": Presence.UNKNOWN, "busy": Presence.SILENT}
    listed = [(Tag("f", name), Listed.QUEUED) for name in found]
    cancelled: list[JobId] = []

    def find(backend: SlurmBackend, factory: str) -> list[Found]:
        return find_pilots(Batch(*listed), factory, lambda tag: found[tag.manager])

    def cancel(backend: SlurmBackend, jobs: Sequence[JobId]) -> None:
        cancelled.extend(jobs)

    monkeypatch.setattr(orphans, "find_pilots", find)
    monkeypatch.setattr(SlurmBackend, "cancel", cancel)
    assert main(["factory", "clean", "slurm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines[1:3]] == [["old", "(ended)"], ["away", "(unknown)"]]
    assert lines[3] == "1 orphan: nothing is removed; add --remove to end these; 1 pilot of running managers is left alone"
    assert lines[4].endswith("where you know that one is gone: windlass factory clean slurm --remove --manager away")
    assert main(["factory", "clean", "slurm", "--remove"]) == 0
    assert cancelled == ["0"]
    assert main(["factory", "clean", "slurm", "--remove", "--manager", "away", "--manager", "busy", "--json"]) == 0
    assert cancelled == ["0", "0", "1"]
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["pilots"]
    assert {row["manager"]: (row["manager_is"], row["removed"]) for row in rows} == {
        "old": ("ended", True),
        "away": ("unknown", True),
        "busy": ("silent", False),
    }


def test_a_factory_of_several_pools_is_meant_by_its_own_name() -> None:
    """In the batch system each pool has a name of its own, which begins with it."""
    batch = Batch(*((Tag(name, "m"), Listed.QUEUED) for name in ("night", "night.gpu", "nightly")))
    assert [one.tag.factory for one in find_pilots(batch, "night", lambda tag: Presence.ENDED)] == ["night", "night.gpu"]


def test_a_manager_without_a_name_that_has_ended_is_known_to_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder goes when it closes, or with the next manager where it was killed; its pilots may be in a queue."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    with windlass.Manager() as closed, windlass.Factory(closed, "fake", cores=1) as factory:
        bygone.expect(tmp_path / "managers" / closed.name)  # as one of Slurm does
        tag = Tag(factory.name, closed.name)
        assert state_of_manager(tag) is Presence.RUNNING
    assert state_of_manager(tag) is Presence.ENDED
    program = """
    import os, pathlib, sys, windlass
    from windlass import bygone
    manager = windlass.Manager()
    factory = windlass.Factory(manager, "fake", cores=1, folder=sys.argv[1]).start()
    bygone.expect(pathlib.Path(os.environ["WINDLASS_STATE_DIR"], "managers", manager.name))
    print(factory.name, manager.name, flush=True)
    os.kill(os.getpid(), 9)
    """
    words = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "elsewhere")]
    killed = Tag(*subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False).stdout.split())
    assert state_of_manager(killed) is Presence.ENDED
    with windlass.Manager():
        assert state_of_manager(killed) is Presence.ENDED
    assert state_of_manager(Tag("f", "m1-12345678")) is Presence.UNKNOWN


def test_names_of_managers_that_have_ended_are_the_last_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bygone, "MOST_BYTES", 200)
    for number in range(100):
        bygone.note(tmp_path, f"m{number}-12345678")
    assert (tmp_path / ".gone").stat().st_size <= 220
    assert "m99-12345678" in bygone.names(tmp_path)
    assert "m0-12345678" not in bygone.names(tmp_path)
    assert bygone.names(tmp_path / "none") == frozenset()
