"""The short way between processes of one host: used where it is there, never trusted, and nothing depends on it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.shared.test_transport import LIMIT, Peer, Shell, at, hello, listening, run, until

from windlass import nearby
from windlass.identity import WORKER, Authority
from windlass.listener import Listener
from windlass.store_folders import start_time


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create("m1", tmp_path_factory.mktemp("state") / "m1", [])


def families(listener: Listener) -> list[int]:
    found: list[int] = []
    for connection in listener.connections:
        assert connection._transport is not None  # pyright: ignore[reportPrivateUsage]
        found.append(connection._transport.get_extra_info("socket").family)  # pyright: ignore[reportPrivateUsage]
    return found


async def connected(authority: Authority, listener: Listener) -> Peer:
    peer = Peer(at(authority, listener, WORKER, "w1"), hello(), dial_timeout=LIMIT)
    await until(lambda: peer.welcomes)
    return peer


def test_on_one_host_messages_take_the_short_way(authority: Authority) -> None:
    async def work() -> None:
        async with listening(authority, Shell()) as listener:
            peer = await connected(authority, listener)
            assert families(listener) == [socket.AF_UNIX]
            await peer.close()

    run(work)


def test_what_another_user_has_is_left_alone(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody on the host may take the name."""

    def anothers(sock: socket.socket) -> bool:
        return False

    monkeypatch.setattr(nearby, "is_ours", anothers)

    async def work() -> None:
        async with listening(authority, Shell()) as listener:
            peer = await connected(authority, listener)
            assert families(listener) == [socket.AF_INET]
            await peer.close()

    run(work)


def test_whose_socket_it_is_is_asked_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with one, other:
        assert nearby.is_ours(one)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert nearby.is_ours(one) == (os.getuid() == 0)  # root may do all anyway


def test_what_process_dialled_is_known_and_when_it_has_ended() -> None:
    """Also while nobody has asked for its status; of a connection over the network nothing is."""
    text = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0windlass-test'); input()"
    with socket.socket(socket.AF_UNIX) as listens:
        listens.bind("\0windlass-test")
        listens.listen(1)
        with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE) as child:
            accepted, _ = listens.accept()
            with accepted:
                process = nearby.process_at(accepted)
                assert process is not None
                assert process.pid == child.pid
                assert not process.has_ended()
                child.kill()
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
                assert process.has_ended()
    assert process.has_ended()
    assert nearby.Process(os.getpid(), "1").has_ended()  # the number is another's now
    with socket.socket() as far:
        assert nearby.process_at(far) is None


@pytest.mark.parametrize(
    ("number", "ended"),
    [(errno.EMFILE, False), (errno.ENFILE, False), (errno.ENOMEM, False), (errno.EACCES, False), (errno.ENOENT, True), (errno.ESRCH, True)],
)
def test_a_process_that_cannot_be_looked_at_has_not_ended_for_that(monkeypatch: pytest.MonkeyPatch, number: int, ended: bool) -> None:
    """Its calls would be cancelled, and its folders removed."""
    process = nearby.Process(os.getpid(), start_time(os.getpid()))
    assert not process.has_ended()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        assert process.has_ended() == ended
        assert not nearby.Process(os.getpid(), "").has_ended(), "nothing is known of it"


def test_a_process_whose_first_thread_has_ended_lives_while_others_do() -> None:
    text = """if True:
        import ctypes, threading
        threading.Thread(target=input).start()
        ctypes.CDLL(None).pthread_exit(None)"""
    with subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE) as child:
        process = nearby.Process(child.pid, start_time(child.pid))
        stat = Path(f"/proc/{child.pid}/stat")
        run(lambda: until(lambda: b") Z " in stat.read_bytes()))
        assert not process.has_ended()
        child.kill()
    assert process.has_ended()


def test_where_somebody_else_answers_the_port_itself_is_dialled(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who has the name, and no certificate of the manager's."""
    one, other = socket.socketpair()
    other.close()

    def gone(manager: str, port: int) -> socket.socket:
        return one

    monkeypatch.setattr(nearby, "dialled", gone)

    async def work() -> None:
        one.setblocking(False)
        async with listening(authority, Shell()) as listener:
            peer = await connected(authority, listener)
            assert families(listener) == [socket.AF_INET]
            await peer.close()

    run(work)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\1x"])
def test_cleartext_is_shut_out_there_too(authority: Authority, said: bytes) -> None:
    async def work() -> None:
        async with listening(authority, Shell()) as listener:
            sock = nearby.dialled("m1", listener.addresses[0][1])
            assert sock is not None
            reader, writer = await asyncio.open_unix_connection(sock=sock)
            writer.write(said)
            assert b"Hello" not in await reader.read()
            writer.close()
            assert not listener.links

    run(work)


def test_another_authoritys_certificate_is_shut_out_there_too(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create("m1", tmp_path / "m1", [])

    async def work() -> None:
        shell = Shell()
        async with listening(authority, shell) as listener:
            peer = Peer(at(other, listener, WORKER, "w1"), hello(), manager_timeout=0.1)
            await until(lambda: peer.lost)
            assert not shell.identities
            assert "certificate" in peer.troubles[0]

    run(work)


def test_nobody_listens_under_a_name_that_is_taken() -> None:
    one = nearby.listening("m1", 1)
    assert one is not None
    with one:
        assert nearby.listening("m1", 1) is None
        with nearby.dialled("m1", 1) or pytest.fail("it was not reached"):
            pass
    assert nearby.dialled("m1", 1) is None


def test_want_of_a_descriptor_leaves_it_to_who_dials_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is short of them is told so by the way that he takes then."""

    def none(*_: Any) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", none)
    assert nearby.dialled("m1", 1) is None
    assert nearby.listening("m1", 1) is None


def test_how_far_off_the_other_side_is_the_kernel_knows() -> None:
    """Where it does not, as of a Unix-domain socket, it counts as near."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as there:
        accepted, _ = server.accept()
        with accepted:
            assert 0 < nearby.round_trip_of(there) < 1
    one, other = socket.socketpair()
    with one, other, socket.socket() as nowhere:
        assert nearby.round_trip_of(one) == 0
        assert nearby.round_trip_of(nowhere) == 0, "the kernel has measured none yet, which is no round trip of an hour"
