"""A pilot that can never serve says why in each place where somebody looks: in the factory's log, in the status, and in the exception of
the calls that can therefore never run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.cli import main
from windlass.testing import SlurmCluster

StartFactory = Callable[..., windlass.Factory]
Until = Callable[..., None]


@pytest.fixture
def closed(slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """A cluster without accounting whose partition ``closed`` is for one account only."""
    with SlurmCluster(tmp_path / "slurm", nodes=1, lines={"PartitionName": "closed Nodes=ALL AllowAccounts=physics"}) as cluster:
        monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
        yield cluster


@dataclass(frozen=True)
class Places:
    """What is said where."""

    log: str
    status: str
    exception: str
    #: Rows of pilots that have ended.
    pilots: list[dict[str, Any]]


@pytest.fixture
def places(
    manager: windlass.Manager,
    start_factory: StartFactory,
    until: Until,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Places]:
    """``places(own={...}, python=...)``: what people find who wait for a call that such a pool should run."""

    def look(**options: Any) -> Places:
        start_factory(name="mine", pool="mine", max_pilots=1, max_start_failures=1, **options)
        manager.install_library("lib", abs)
        with pytest.raises(windlass.NotPossible) as raised:
            manager.submit(windlass.FunctionCall("lib", "abs", -1)).result(timeout=60)
        assert main(["status", manager.name]) == 0
        status = " ".join(capsys.readouterr().out.split())
        warnings = " ".join(" ".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING").split())
        rows = [row for row in manager.status()["pilots"] if row["phase"] == "ended"]
        return Places(warnings, status, " ".join(str(raised.value).split()), rows)

    return look


def check(places: Places, *texts: str) -> None:
    """Everybody is told the same, and what to do."""
    for text in (*texts, "when that is mended: windlass factory resume mine"):
        for place in ("log", "status", "exception"):
            assert text in getattr(places, place), f"not in the {place}: {text}: {places}"
    assert "mine is paused" in places.log


def test_a_python_that_is_not_there(places: Callable[..., Places]) -> None:
    """The shell's own words."""
    said = places(python="/no/such/python")
    check(said, "exit status 127", "/no/such/python: not found")
    [row] = said.pilots
    assert (row["failed"], row["cause"], row["exit_status"], row["reason"]) == (True, "exit", 127, "FAILED: exit status 127")
    assert row["words"].endswith("exec: /no/such/python: not found")
    assert Path(row["log"]).read_text().strip() == row["words"]


def test_a_line_of_setup_that_fails(places: Callable[..., Places]) -> None:
    """With the line."""
    said = places(setup=["module load nothing"])
    check(said, "module: not found", "this line of setup= failed with status 127: module load nothing")
    assert [(row["failed"], row["exit_status"]) for row in said.pilots] == [(True, 5)]


def test_a_partition_that_there_is_not(places: Callable[..., Places]) -> None:
    """Refused: there never was a pilot."""
    said = places(own={"partition": "nosuch"})
    check(said, "Invalid partition name specified")
    assert said.pilots == []


def test_an_account_that_may_not_use_the_partition(closed: SlurmCluster, places: Callable[..., Places], until: Until) -> None:
    """Without accounting Slurm takes the job and says in a sentence that it will never start; newer ones let it run."""
    words = ("--parsable", "--partition=closed", "--account=wrong", "--output=/dev/null", "--wrap=sleep 600")
    job = closed.run("sbatch", *words).stdout.strip()

    def judged() -> str:
        return closed.run("squeue", "-h", "-j", job, "-o", "%T %r").stdout.strip()

    until("it is judged", lambda: judged() not in ("PENDING None", "PENDING Priority"))
    waits = judged().startswith("PENDING")
    closed.run("scancel", job)
    if not waits:
        pytest.skip("this release of Slurm looks at no account where it keeps none")
    said = places(own={"partition": "closed", "account": "wrong"})
    check(said, "it can't use this partition (closed allows physics)")


def test_a_pilot_that_never_connects_is_ended_and_its_last_words_are_told(places: Callable[..., Places], tmp_path: Path) -> None:
    """They come after the pause, when it has ended, and everybody is told all the same."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'waiting for a licence' >&2\nexec sleep 600\n")
    python.chmod(0o755)
    # Long enough for its node to start it: Slurm lists it as running before that.
    said = places(python=str(python), hello_timeout="5s")
    check(said, "s without connecting: ", "waiting for a licence")
    [row] = said.pilots
    assert row["failed"]
    assert "waiting for a licence" in row["words"]
    assert "without connecting" in row["reason"]
