"""Container images on real Slurm: the job's script becomes the program that starts the image, whose worker gets Slurm's signals."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import windlass
from windlass.testing import SlurmCluster

StartFactory = Callable[..., windlass.Factory]


def where(number: int) -> tuple[int, str, str]:
    import numpy

    return int(numpy.dot([number], [number])), sys.executable, os.environ["SLURM_JOB_ID"]


def touch_and_wait(here: Path, go: Path) -> str:
    here.touch()
    while not go.exists():
        time.sleep(0.01)
    return "done"


@pytest.mark.parametrize("nodes", [1, 2])
def test_pilots_run_in_the_image(manager: windlass.Manager, start_factory: StartFactory, apptainer: Path, image: Path, nodes: int) -> None:
    """Also those of several nodes, each of which starts the image for itself; Slurm's variables go in."""
    start_factory(container=image, setup=[f"PATH={apptainer}:$PATH"], nodes=nodes, max_pilots=1)
    manager.install_library("lib", where)
    results = [manager.submit(windlass.FunctionCall("lib", "where", number)).result(timeout=100) for number in range(4)]
    assert [result[0] for result in results] == [0, 1, 4, 9]
    assert {result[1] for result in results} == {"/usr/local/bin/python3"}
    assert len({result[2] for result in results}) == 1


@pytest.mark.parametrize("how", [("--signal=USR1", "--batch"), ("--signal=TERM", "--full")])
def test_slurms_signals_drain_the_worker(
    manager: windlass.Manager,
    start_factory: StartFactory,
    slurm: SlurmCluster,
    apptainer: Path,
    image: Path,
    tmp_path: Path,
    how: tuple[str, ...],
) -> None:
    """The warning before the end, to the batch script alone, and SIGTERM to all of the job: then the worker gets it twice."""
    start_factory(container=image, setup=[f"PATH={apptainer}:$PATH"], max_pilots=1)
    manager.install_library("lib", touch_and_wait)
    here, go = tmp_path / "here", tmp_path / "go"
    future = manager.submit(windlass.FunctionCall("lib", "touch_and_wait", here, go))
    end = time.monotonic() + 60
    while not here.exists() and time.monotonic() < end:
        time.sleep(0.02)
    [worker] = manager.status()["workers"]
    slurm.run("scancel", *how, worker["pilot"])
    while not any(one["draining"] for one in manager.status()["workers"]) and time.monotonic() < end:
        time.sleep(0.02)
    assert [one["draining"] for one in manager.status()["workers"]] == [f"SIG{how[0][-4:].lstrip('=')} received"]
    go.touch()
    assert future.result(timeout=60) == "done"


def read_until(here: Path, go: Path) -> str:
    """Needs the image all the time."""
    with here.open("a") as file:
        file.write("begun\n")
    while not go.exists():
        Path("/bin/sh").read_bytes()
        time.sleep(0.01)
    return "done"


@pytest.mark.usefixtures("image_file")
@pytest.mark.parametrize("nodes", [1, 2])
def test_calls_run_again_when_slurm_ends_what_serves_the_image(
    manager: windlass.Manager, start_factory: StartFactory, slurm: SlurmCluster, served_image: dict[str, object], tmp_path: Path, nodes: int
) -> None:
    """A signal to all of a job, or of its steps, ends that at once: the worker drains no more, and what failed is not the call's fault."""
    start_factory(**served_image, nodes=nodes, max_pilots=1)
    manager.install_library("lib", read_until)
    here, go = tmp_path / "here", tmp_path / "go"
    future = manager.submit(windlass.FunctionCall("lib", "read_until", here, go))
    end = time.monotonic() + 60
    while not here.exists() and time.monotonic() < end:
        time.sleep(0.02)
    pilot = manager.status()["workers"][0]["pilot"]
    slurm.run("scancel", *(["--signal=TERM", "--full"] if nodes == 1 else ["--signal=USR1"]), pilot)
    while here.read_text().count("begun") < 2 and time.monotonic() < end:
        time.sleep(0.02)
    go.touch()
    assert future.result(timeout=60) == "done"
