"""What can be told of a manager by who looks for it: it runs, is silent, has ended, or nothing at all."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

import windlass
from windlass import managers
from windlass.cli import main
from windlass.errors import Unreachable, UsageError
from windlass.factory.backend import Tag
from windlass.factory.orphans import state_of_manager
from windlass.identity import ConnectionFile
from windlass.locks import lock, unlock
from windlass.managers import Known, NotRunning, OutOfReach, Presence, await_manager, choose_manager
from windlass.metrics_server import NamedManager
from windlass.status import StatusPort
from windlass.transport import Port

PROGRAM = "import sys, windlass\nwith windlass.Manager(name='elsewhere'):\n    print('here', flush=True)\n    sys.stdin.read()\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is told after a moment, and who connects waits no longer."""
    monkeypatch.setattr(managers, "REACH_TIMEOUT", 0.2)


@pytest.fixture
def stopped(nothing_left_running: None, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A program with a manager, stopped as by Ctrl-Z."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "here\n"
        program.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, program.pid, os.WSTOPPED | os.WNOWAIT)  # until then it may answer
        yield program
        program.send_signal(signal.SIGCONT)
        program.communicate(timeout=60)


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Known:
    """A manager that has ended; a named one leaves its connection file."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    with windlass.Manager(name="night", record=True):
        pass
    return choose_manager("night")


def at(known: Known, *addresses: tuple[str, int]) -> Presence:
    """What is told of it when these are its addresses."""
    return Known(known.name, known.path, msgspec.structs.replace(known.connection, addresses=addresses)).look()


def pilot_of(known: Known) -> Tag:
    """What the pilots of a factory of this manager carry."""
    known.path.with_name("pilots").joinpath("slurm-1").mkdir(parents=True, exist_ok=True)
    return Tag("slurm-1", known.name)


def listener(stack: ExitStack) -> tuple[str, int]:
    """The address of what takes connections and says nothing."""
    address: tuple[str, int] = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()
    return address


def test_a_manager_that_is_stopped_is_there(
    stopped: subprocess.Popen[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to have ended, and `factory clean` took its pilots for orphans."""
    assert choose_manager().name == "elsewhere"
    assert choose_manager("elsewhere").require_running() is Presence.SILENT
    assert state_of_manager(pilot_of(choose_manager())) is Presence.SILENT
    assert main(["manager", "list", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["managers"]
    assert (row["state"], row["error"]) == ("silent", "the manager did not answer within 0.2 s")
    assert main(["manager", "list"]) == 0
    assert "silent" in capsys.readouterr().out
    with windlass.Manager(name="other"), pytest.raises(UsageError, match="2 managers of yours are running"):
        choose_manager()  # the other one is not taken in its place


def test_who_asks_a_manager_that_is_stopped_is_told_so(
    stopped: subprocess.Popen[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that did not answer, and not as one that there is not."""
    opened = Port.open

    def soon(port: Port, timeout: float) -> None:
        opened(port, 0.3)

    monkeypatch.setattr(Port, "open", soon)
    for words in (["status"], ["pilots", "--manager", "elsewhere"], ["report", "elsewhere"], ["manager", "stop"]):
        assert main(words) == 1
        assert "no answer; is its program stopped (Ctrl-Z) or very busy?\n" in capsys.readouterr().err


def test_a_manager_that_is_silent_is_waited_for(stopped: subprocess.Popen[str]) -> None:
    """By a factory that was started while the program was busy. At last it is to try by itself, and tell of it."""
    assert await_manager("elsewhere", None, 0.0, print).look() is Presence.SILENT
    assert await_manager("elsewhere", None, 60.0, lambda text: stopped.send_signal(signal.SIGCONT)).is_running()


def test_a_manager_whose_port_is_free_has_ended(ended: Known) -> None:
    with pytest.raises(NotRunning, match="does not answer: it has ended") as raised:
        ended.require_running()
    assert not isinstance(raised.value, OutOfReach)
    assert at(ended) is Presence.ENDED, "it never had one"
    assert state_of_manager(pilot_of(ended)) is Presence.ENDED


def test_a_manager_that_begins_anew_is_not_gone(ended: Known) -> None:
    """It listens a moment after it has taken its folder, and then adopts the pilots of its last life."""
    descriptor = os.open(ended.lock, os.O_RDWR)
    lock(descriptor)
    assert state_of_manager(pilot_of(ended)) is Presence.UNKNOWN
    unlock(descriptor)


def test_pilots_may_be_a_namesakes(ended: Known) -> None:
    """A run with a state folder of its own, whose manager has the name of one that has ended here."""
    assert state_of_manager(Tag("slurm-2", ended.name)) is Presence.UNKNOWN
    assert state_of_manager(Tag("slurm-2", "nobody")) is Presence.UNKNOWN


def test_a_port_that_has_another_program_by_now_says_nothing(ended: Known, quick: None) -> None:
    """On the machine that the manager ran on its lock tells; one that runs has it."""
    with ExitStack() as stack:
        address = listener(stack)
        assert at(ended, address) is Presence.ENDED
        descriptor = os.open(ended.lock, os.O_RDWR)
        lock(descriptor)
        assert at(ended, address) is Presence.SILENT
        unlock(descriptor)
        ended.lock.write_text("")
        assert at(ended, address) is Presence.SILENT


def hang(address: tuple[str, int], timeout: float) -> socket.socket:
    raise TimeoutError


def unreachable(address: tuple[str, int], timeout: float) -> socket.socket:
    raise OSError("No route to host")


@pytest.mark.parametrize("connect", [hang, unreachable])
def test_what_no_word_comes_from_is_unknown(
    connect: Callable[[tuple[str, int], float], socket.socket],
    ended: Known,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A firewall, or a machine that is down. The end of an earlier run is shown as such. On its own host its lock tells."""
    monkeypatch.setattr(socket, "create_connection", connect)
    assert state_of_manager(pilot_of(ended)) is Presence.ENDED
    ended.lock.write_text("login2")
    assert state_of_manager(pilot_of(ended)) is Presence.UNKNOWN
    with pytest.raises(OutOfReach, match="not reached from here"):
        ended.require_running()
    with pytest.raises(NotRunning, match="no manager of yours is running"):
        choose_manager()
    assert main(["report", "night", "-o", str(ended.path.with_name("r.html"))]) == 0
    assert "is not reached from here" in capsys.readouterr().err
    assert main(["manager", "list"]) == 0
    assert "unknown" in capsys.readouterr().out


def test_the_loopback_of_another_machine_says_nothing(ended: Known) -> None:
    """The port is free here; the manager listens there."""
    ended.lock.write_text("login2")
    assert ended.look() is Presence.UNKNOWN


def test_that_another_machine_refuses_says_nothing(ended: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall before it may do that, and its lock be taken there alone: queued pilots of a manager that runs were removed."""

    def refuse(address: tuple[str, int], timeout: float) -> socket.socket:
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert at(ended, ("10.1.2.3", 9123)) is Presence.ENDED
    ended.lock.write_text("login2")
    assert at(ended, ("10.1.2.3", 9123)) is Presence.UNKNOWN


def test_a_manager_that_ended_by_itself_says_so_to_other_machines(ended: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection may be let through, and locks may be each host's own. One that runs again says so no more."""
    host = os.uname().nodename
    ended.lock.write_text(ended.lock.read_text().replace(host, "login2"))
    assert ended.look() is Presence.ENDED, "of its loopback nothing is known here"
    assert state_of_manager(pilot_of(ended)) is Presence.ENDED
    with monkeypatch.context() as patch:
        patch.setattr(socket, "create_connection", hang)
        assert at(ended, ("10.1.2.3", 9123)) is Presence.ENDED

    def never(host: str) -> bool:
        return False

    with ExitStack() as stack, monkeypatch.context() as patch:
        patch.setattr(managers, "is_loopback", never)
        patch.setattr(managers, "REACH_TIMEOUT", 0.2)
        assert at(ended, listener(stack)) is Presence.SILENT, "it may have begun anew"
    with windlass.Manager(name=ended.name):
        assert ended.lock.read_text() == host
    assert ended.lock.read_text() == f"{host} (ended)"


def test_a_port_that_speaks_otherwise_is_not_the_manager(ended: Known) -> None:
    """Another manager's certificate proves nothing."""
    with windlass.Manager(name="other") as other:
        assert at(ended, ("127.0.0.1", other.port)) is Presence.ENDED


def test_metrics_of_a_silent_manager_are_told_at_once_to_be_none(stopped: subprocess.Popen[str]) -> None:
    """A collector waits ten seconds for the whole page."""
    with pytest.raises(Unreachable, match="did not answer"):
        NamedManager("elsewhere")()


def test_a_page_of_metrics_does_not_wait_for_longer_than_its_reader(ended: Known, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus gives up after ten seconds, and then sees no windlass_up at all. A look may take two, a connection two to be let go."""
    waits: list[float] = []
    opened, asked, of_manager = StatusPort.__init__, StatusPort.ask, windlass.Manager._ask_status  # pyright: ignore[reportPrivateUsage]

    def open_port(port: StatusPort, connection: ConnectionFile, *, timeout: float) -> None:
        waits.append(timeout)
        opened(port, connection)

    def ask(port: StatusPort, timeout: float) -> bytes:
        waits.append(timeout)
        return asked(port)

    def status(manager: windlass.Manager, timeout: float) -> dict[str, Any]:
        waits.append(timeout)
        return of_manager(manager, timeout)

    monkeypatch.setattr(StatusPort, "__init__", open_port)
    monkeypatch.setattr(StatusPort, "ask", ask)
    monkeypatch.setattr(windlass.Manager, "_ask_status", status)
    with windlass.Manager(name="night", metrics=0) as manager, contextlib.closing(NamedManager("night")) as read:
        assert read()["manager"]["name"] == "night"
        with urllib.request.urlopen(manager.metrics_url, timeout=60) as answer:
            assert b"windlass_up 1.0" in answer.read()
    assert waits == [3.0, 3.0, 3.0]
