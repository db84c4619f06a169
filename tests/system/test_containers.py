"""Pilots in container images: in another root, with the signals, the ends and the errors that pilots have outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.system.conftest import Gate

import windlass
from windlass.errors import WindlassError

StartFactory = Callable[..., windlass.Factory]


#: A value that no shell may look at.
ODD = "$HOME `x` \\ \"a\" 'b' %s"


@pytest.fixture
def start_pilots(start_factory: StartFactory, apptainer: Path, image: Path) -> StartFactory:
    """Starts a local factory whose pilots run in the image."""

    def start(**options: Any) -> windlass.Factory:
        return start_factory(**{"container": image, "setup": [f"PATH={apptainer}:$PATH"], **options})

    return start


def look(paths: list[str]) -> dict[str, Any]:
    """What a call sees of where it runs."""
    import numpy

    return {
        "python": sys.executable,
        "numpy": str(numpy.__file__),
        "there": [path for path in paths if os.path.exists(path)],
        "env": dict(os.environ),
        "root": sorted(os.listdir("/")),
    }


def test_worker_and_calls_run_in_the_image(manager: windlass.Manager, start_pilots: StartFactory, image: Path, tmp_path: Path) -> None:
    """Python and packages are the image's, and of this machine is there what is bound, such as /tmp and the state folder."""
    (tmp_path / "data").touch()
    start_pilots(env={"OMP_STACKSIZE": "it's", "OF_THE_USER": ODD, "TOKEN": "for-nobody-else"})
    manager.install_library("lib", look)
    hidden = ["/usr/bin/env", "/usr/share", "/etc/debian_version"]
    seen = manager.submit(windlass.FunctionCall("lib", "look", [*hidden, str(tmp_path / "data")])).result(timeout=60)
    assert seen["python"] == "/usr/local/bin/python3"
    assert seen["numpy"].startswith("/opt/python/")
    assert seen["there"] == [str(tmp_path / "data")]
    assert "usr" in seen["root"]
    assert "srv" not in seen["root"]
    env = seen["env"]
    assert (env["OMP_STACKSIZE"], env["OF_THE_USER"], env["OF_THE_IMAGE"]) == ("it's", ODD, "yes")
    assert env["WINDLASS_CONTAINER"] == str(image)
    assert "apptainer" not in env["PATH"]
    assert env["TOKEN"] == "for-nobody-else"
    assert not [name for name in env if name.startswith("WINDLASS_ENV_")]
    words = [" ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])]
    assert any("windlass.worker" in one for one in words)
    assert not any("for-nobody-else" in one for one in words), "every user of the node can read the words of a process"


def of_env(name: str) -> str:
    return os.environ.get(name, "")


def test_what_env_names_holds_over_the_image(manager: windlass.Manager, start_pilots: StartFactory) -> None:
    """Also the two variables that Apptainer keeps for itself."""
    start_pilots(env={"OF_THE_IMAGE": "no", "LD_LIBRARY_PATH": "/opt/more", "PATH": f"/opt/python/bin:{os.environ['PATH']}"})
    manager.install_library("lib", of_env)
    of = {name: manager.submit(windlass.FunctionCall("lib", "of_env", name)) for name in ("OF_THE_IMAGE", "LD_LIBRARY_PATH", "PATH")}
    assert of["OF_THE_IMAGE"].result(timeout=60) == "no"
    assert of["LD_LIBRARY_PATH"].result(timeout=60) == "/opt/more:/.singularity.d/libs"
    assert of["PATH"].result(timeout=60).startswith("/opt/python/bin:")


def wait_at(gate: Gate) -> str:
    gate.pass_through()
    return "done"


def starter(manager: windlass.Manager) -> psutil.Process:
    """The process that has started the image for the only worker: what the batch system signals."""
    [worker] = manager.status()["workers"]
    return psutil.Process(worker["pid"]).parent() or pytest.fail("the worker has no parent")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_drains_the_worker(manager: windlass.Manager, start_pilots: StartFactory, gate: Gate, number: signal.Signals) -> None:
    """It comes to Apptainer, the worker gets it: what runs ends well, and then the pilot ends by itself."""
    start_pilots(idle_timeout=0)
    manager.install_library("lib", wait_at)
    future = manager.submit(windlass.FunctionCall("lib", "wait_at", gate))
    gate.wait_for(1)
    pilot = starter(manager)
    assert "apptainer" in " ".join(pilot.cmdline()).lower()
    pilot.send_signal(number)
    end = time.monotonic() + 30
    while not (draining := [one for one in manager.status()["workers"] if one["draining"]]) and time.monotonic() < end:
        time.sleep(0.02)
    assert [one["draining"] for one in draining] == [f"{number.name} received"]
    gate.open()
    assert future.result(timeout=30) == "done"
    psutil.wait_procs([pilot], timeout=30)
    assert not pilot.is_running() or pilot.status() == psutil.STATUS_ZOMBIE


def test_a_pilot_ends_before_its_walltime_does(manager: windlass.Manager, start_pilots: StartFactory, gate: Gate) -> None:
    """The drain at the end of the walltime is the worker's own, inside as outside: of several pilots' time no call is cut off."""
    factory = start_pilots(walltime=8, grace=1, max_pilots=1)
    manager.install_library("lib", pilot_after)
    futures = [manager.submit(windlass.FunctionCall("lib", "pilot_after", 0.5, gate, number)) for number in range(40)]
    pilots = {future.result(timeout=100) for future in futures}
    assert len(pilots) > 1
    assert factory.status()["start_failures"] == 0
    assert len(gate.arrived()) == 40, "some began twice"


def pilot_after(seconds: float, gate: Gate, number: int) -> str:
    gate.arrive(f"{number}-{os.getpid()}")
    time.sleep(seconds)
    return os.environ["WINDLASS_PILOT"]


def test_when_apptainer_is_killed_the_worker_goes_as_well(manager: windlass.Manager, start_pilots: StartFactory, gate: Gate) -> None:
    """And the call runs again elsewhere; that nothing stays is proven after each of these tests."""
    start_pilots()
    manager.install_library("lib", wait_at)
    future = manager.submit(windlass.FunctionCall("lib", "wait_at", gate))
    gate.wait_for(1)
    starter(manager).kill()
    gate.wait_for(2)
    gate.open()
    assert future.result(timeout=60) == "done"


def test_when_apptainer_is_killed_what_serves_the_image_goes_as_well(
    manager: windlass.Manager, start_factory: StartFactory, served_image: dict[str, object]
) -> None:
    """Nobody tells it that it is alone; the guardian ends it."""
    start_factory(**served_image)
    manager.install_library("lib", of_env)
    manager.submit(windlass.FunctionCall("lib", "of_env", "HOME")).result(timeout=60)
    pilot = starter(manager)
    assert pilot.name() == "starter"
    [worker] = manager.status()["workers"]
    servers = [child for child in pilot.children() if child.pid != worker["pid"]]
    assert servers
    pilot.kill()
    assert psutil.wait_procs(servers, timeout=30)[1] == []


def read_until_open(gate: Gate) -> str:
    gate.arrive()
    while not (gate.folder / "open").exists():
        Path("/bin/sh").read_bytes()
        time.sleep(0.01)
    return "done"


@pytest.mark.usefixtures("image_file")
def test_calls_run_elsewhere_when_what_serves_the_image_has_ended(
    manager: windlass.Manager, start_factory: StartFactory, served_image: dict[str, object], gate: Gate
) -> None:
    """A call that fails, or whose process dies of it, has not failed by itself."""
    start_factory(**served_image)
    manager.install_library("lib", read_until_open)
    future = manager.submit(windlass.FunctionCall("lib", "read_until_open", gate))
    gate.wait_for(1)
    [worker] = manager.status()["workers"]
    for child in starter(manager).children():
        if child.pid != worker["pid"]:
            child.terminate()
    gate.wait_for(2)
    gate.open()
    assert future.result(timeout=60) == "done"


def test_an_image_file_does_what_a_folder_does(manager: windlass.Manager, start_pilots: StartFactory, image_file: Path) -> None:
    start_pilots(container=image_file)
    manager.install_library("lib", look)
    seen = manager.submit(windlass.FunctionCall("lib", "look", ["/usr/bin/env"])).result(timeout=60)
    assert (seen["python"], seen["there"]) == ("/usr/local/bin/python3", [])
    assert (seen["env"]["OF_THE_IMAGE"], seen["env"]["WINDLASS_CONTAINER"]) == ("yes", str(image_file))


def test_options_of_apptainer_hold(manager: windlass.Manager, start_pilots: StartFactory, image: Path, tmp_path: Path) -> None:
    """Variables that the image is not to have go, but for Windlass's own and those of env=; folders of any name are bound."""
    odd = tmp_path / 'a, b: "c"'
    odd.mkdir()
    start_pilots(container_options="--cleanenv", scratch=odd, env={"OF_THE_USER": ODD, "APPTAINER_BIND": "/usr/share"})
    manager.install_library("lib", look)
    seen = manager.submit(windlass.FunctionCall("lib", "look", ["/usr/share/doc", str(odd)])).result(timeout=60)
    assert seen["there"] == ["/usr/share/doc", str(odd)]
    assert (seen["env"]["OF_THE_USER"], seen["env"]["WINDLASS_CONTAINER"]) == (ODD, str(image))
    assert seen["env"]["PYTHONNOUSERSITE"] == "1"
    assert "WINDLASS_PILOT" not in seen["env"], "what --cleanenv takes away"


PROGRAM = """
import sys, windlass
gate = sys.argv[3]
def wait():
    import pathlib, time
    pathlib.Path(gate).touch()
    time.sleep(600)
with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1, container=sys.argv[1], setup=[f"PATH={sys.argv[2]}:$PATH"]):
    manager.install_library("lib", wait)
    manager.submit(windlass.FunctionCall("lib", "wait")).result()
"""


def test_when_the_program_is_killed_its_pilots_leave(apptainer: Path, image: Path, tmp_path: Path) -> None:
    """Apptainer would wait for the worker; that sees who has started it go. That nothing stays is proven after each test."""
    here = tmp_path / "here"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, image, apptainer, here]) as program:
        while not here.exists():
            assert program.poll() is None
            time.sleep(0.02)
        program.kill()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"python": "/opt/none/python3"}, r"the image .*/image has no /opt/none/python3; python= names the Python in it that has Windlass"),
        ({"setup": ["PATH=/usr/bin:/bin"]}, r"there is neither apptainer nor singularity here to start the image .*setup=\['module load"),
        ({"container_options": "--bnid /x"}, r'exit status 1: Error for command "exec": unknown flag: --bnid; when that is mended'),
        ({"container_options": "--bind /not/there"}, r"exit status 255: FATAL: .*mount source /not/there doesn't exist"),
    ],
)
def test_what_is_wrong_is_told_to_who_waits_for_calls(
    manager: windlass.Manager, start_pilots: StartFactory, options: dict[str, Any], text: str
) -> None:
    start_pilots(max_start_failures=1, **options)
    manager.install_library("lib", of_env)
    with pytest.raises(WindlassError, match=text):
        manager.submit(windlass.FunctionCall("lib", "of_env", "HOME")).result(timeout=60)


def test_an_image_that_has_gone_is_told(manager: windlass.Manager, start_factory: StartFactory, apptainer: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.sif"
    gone.touch()
    factory = windlass.Factory(manager, "local", cores=1, container=gone, setup=[f"PATH={apptainer}:$PATH"], max_start_failures=1)
    gone.unlink()
    with factory:
        manager.install_library("lib", of_env)
        with pytest.raises(WindlassError, match=r"the image .*/gone\.sif is not there, or this node does not see it"):
            manager.submit(windlass.FunctionCall("lib", "of_env", "HOME")).result(timeout=60)


def test_an_image_without_windlass_is_told(manager: windlass.Manager, start_pilots: StartFactory, image: Path, tmp_path: Path) -> None:
    """Its Python loads none: here because the image says so."""
    bare = tmp_path / "bare"
    subprocess.run(["cp", "-al", image, bare], check=True)
    # The second is where Debian's own Python has its packages.
    places = "opt/python/lib/python3*/site-packages/windlass", "opt/python/local/lib/python3*/dist-packages/windlass"
    [package] = [found for place in places for found in bare.glob(place)]
    package.rename(package.with_name("other"))
    start_pilots(container=bare, max_start_failures=1)
    manager.install_library("lib", of_env)
    text = rf"the image {bare} has no Windlass that its /usr/local/bin/python3 can load \(.*\); put Windlass {windlass.__version__} into it"
    with pytest.raises(WindlassError, match=text):
        manager.submit(windlass.FunctionCall("lib", "of_env", "HOME")).result(timeout=60)


def test_the_doctor_tells_of_the_image(apptainer: Path, image: Path) -> None:
    """A healthy pilot tells the image beside its Python; one that does not start, where to read what is needed."""
    from windlass.factory.doctor import as_text, check_up, healthy

    options: dict[str, object] = {"container": str(image), "setup": [f"PATH={apptainer}:$PATH"], "cores": 1}
    legs = check_up("local", options, lambda text: None)
    [python] = [leg.text for leg in legs if leg.name == "python"]
    assert healthy(legs), as_text(legs)
    assert python.startswith("/usr/local/bin/python3, Python ")
    assert python.endswith(f", in the image {image}")
    legs = check_up("local", {**options, "setup": ["PATH=/usr/bin:/bin"]}, lambda text: None)
    [worker] = [leg for leg in legs if leg.name == "worker"]
    assert "there is neither apptainer nor singularity here" in worker.text
    assert worker.advice == "what an image needs, and what nodes need to start it: windlass explain containers"
