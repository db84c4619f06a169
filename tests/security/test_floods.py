"""Who belongs here is served, whatever those do who do not: real managers, real workers, real floods."""

# pyright: reportPrivateUsage=false
# How many strangers there are is seen nowhere else.

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import pytest

from windlass import Closed, Factory, FunctionCall, Manager
from windlass.fileserver import PlainFile
from windlass.filewire import parse_address
from windlass.identity import WORKER, Authority, ConnectionFile, Identity, read_connection_file
from windlass.links import Link
from windlass.listener import Listener
from windlass.manager.workers import absurd
from windlass.manifests import unpacked_name
from windlass.messages import (
    MAX_FRAME_BYTES,
    PROTOCOL,
    FileName,
    FileRef,
    FileSource,
    Hello,
    PoolEnvironment,
    Refused,
    Resources,
    Welcome,
    WorkerInfo,
)
from windlass.metrics_http import MOST as PAGES_MOST
from windlass.metrics_http import PageServer
from windlass.metrics_server import TOLD_SHARE, Collector
from windlass.session import encode_one
from windlass.strangers import MOST
from windlass.worker.arrivals import Arrival
from windlass.worker.fetching import Fetcher
from windlass.worker.peers import PeerDoor

MANY = 10_000
LIMIT = 30.0

#: Opens connections that never say anything, tells when all are open, and opens others for those that are closed.
FLOOD = """
import resource, selectors, socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
waiting = selectors.DefaultSelector()
def open_one():
    sock = socket.create_connection((host, port), 30)
    waiting.register(sock, selectors.EVENT_READ)
for number in range(count):
    open_one()
    if number % 256 == 255:
        time.sleep(0.02)  # or the kernel's queue is full, and a connection takes a second
print("open", flush=True)
while True:
    for key, _ in waiting.select():
        waiting.unregister(key.fileobj)
        key.fileobj.close()
        open_one()
"""


@contextmanager
def flooded(port: int, count: int = MANY) -> Generator[None]:
    """So many connections are open that say nothing, and new ones come for those that are closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    each = count if hard == resource.RLIM_INFINITY else min(count, hard - 200)
    sizes = [each] * (count // each) + ([count % each] if count % each else [])
    command = [sys.executable, "-c", FLOOD, "127.0.0.1", str(port)]
    children = [subprocess.Popen([*command, str(size)], stdout=subprocess.PIPE) for size in sizes]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == b"open\n"
        yield
    finally:
        for child in children:
            child.kill()
            child.communicate()


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LIMIT) as answer:
        text: str = answer.read().decode()
    return text


def silent(url: str, word: bytes = b"") -> socket.socket:
    """A connection that begins to say something, at most."""
    address = urllib.parse.urlsplit(url)
    sock = socket.create_connection((address.hostname, address.port), LIMIT)
    sock.sendall(word)
    return sock


def drip(sock: socket.socket) -> None:
    """Say a byte now and then until hung up on."""
    for _ in range(300):
        if select.select([sock], [], [], 0.05)[0]:
            break
        sock.sendall(b"x")
    else:
        pytest.fail("who drips may stay for ever")
    with contextlib.suppress(ConnectionResetError):  # for the last byte, which nobody read
        assert sock.recv(100) == b""


def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def manager(nothing_left_running: None) -> Iterator[Manager]:
    with Manager() as manager:
        manager.install_library("lib", double)
        yield manager


def run(manager: Manager, count: int) -> None:
    futures = [manager.submit(FunctionCall("lib", "double", number)) for number in range(count)]
    assert [future.result(LIMIT) for future in futures] == [2 * number for number in range(count)]


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


def test_ten_thousand_silent_connections_stop_neither_calls_nor_new_workers(manager: Manager) -> None:
    """Calls end while 10,000 connections are opened, and when they are; then another worker joins."""
    listener = manager._server._listener
    assert listener is not None
    with Factory(manager, "local", cores=1, max_pilots=1):
        run(manager, 10)
        during: list[BaseException] = []
        over = threading.Event()

        def work() -> None:
            try:
                while not over.wait(0.02):
                    run(manager, 50)
            except BaseException as error:  # noqa: BLE001 - it is raised below
                during.append(error)

        working = threading.Thread(target=work)
        working.start()
        try:
            with flooded(manager.port):
                run(manager, 500)
                until(lambda: listener.strangers.sent_away > MANY - 2 * MOST, "all have been dealt with")
                assert len(listener.strangers) <= MOST
                with Factory(manager, "local", name="second", cores=1, max_pilots=1, min_pilots=1):
                    until(lambda: len(manager.status()["workers"]) == 2, "another worker joins")
                    run(manager, 500)
        finally:
            over.set()
            working.join()
        assert not during


FEW = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
from windlass import Factory, FunctionCall, Manager
with Manager() as manager:
    manager.install_library("lib", abs)
    print(manager.port, flush=True)
    sys.stdin.readline()
    with Factory(manager, "local", cores=1, max_pilots=1):
        print(manager.submit(FunctionCall("lib", "abs", -5)).result(30), manager._server._listener.strangers.most, flush=True)
"""


def test_a_manager_with_few_descriptors_keeps_most_of_them_for_its_workers(nothing_left_running: None) -> None:
    """300 in all, and 1,000 connections that say nothing: a worker joins, and its call ends."""
    child = subprocess.Popen([sys.executable, "-c", FEW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    with flooded(int(child.stdout.readline()), 1000):
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "5 75\n"
    child.communicate()
    assert child.returncode == 0


def known_worker(manager: Manager) -> tuple[ConnectionFile, Hello]:
    """What a worker that has enrolled shows and says."""
    certificate, key = manager._server.authority.credential(WORKER, "slow")
    known = read_connection_file(manager.pilot_file)
    info = WorkerInfo("host", 1, Resources(1.0, 1 << 30), accepting=False)  # no call is to wait for it
    shown = msgspec.structs.replace(known, role=WORKER, certificate=certificate.decode(), key=key.decode())
    return shown, Hello("worker", PROTOCOL, "0", sys.version_info[:2], "slow", worker=info)


def dialled(connection: ConnectionFile) -> ssl.SSLSocket:
    """TLS with the manager, as this worker."""
    plain = socket.create_connection(connection.addresses[0], timeout=LIMIT)
    return connection.client_context().wrap_socket(plain, server_hostname=connection.manager)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def test_a_peer_that_says_its_hello_byte_by_byte_is_cut_at_the_deadline(tmp_path: Path) -> None:
    """Bytes that keep coming are no reason to wait longer: it is the whole Hello that has `handshake_timeout` seconds."""
    authority = Authority.create("m1", tmp_path / "m1")

    async def work() -> None:
        listener = Listener(authority, Nobody(), handshake_timeout=2.0)
        await listener.listen(["127.0.0.1"])
        connection = msgspec.structs.replace(read_connection_file(authority.client_file), addresses=tuple(listener.addresses))
        reader, writer = await asyncio.open_connection(*listener.addresses[0], ssl=connection.client_context(), server_hostname="m1")
        said = 0
        body = framed(encode_one(Hello("client", PROTOCOL, "0", (3, 11), "c")))
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            if said < len(body) - 1:
                writer.write(body[said : said + 1])
                said += 1
            await asyncio.wait([ended], timeout=0.1)
        assert 2 < said < len(body) - 1
        assert not listener.connections
        writer.close()
        await listener.close()

    asyncio.run(work())


class Nobody:
    """A handler that nobody comes to."""

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        raise AssertionError(hello)

    def attach(self, session: str, link: Link) -> None:
        raise AssertionError(session)


def test_a_worker_that_stalls_in_a_frame_costs_nobody_else_anything(manager: Manager) -> None:
    """It announces a frame of 1 MiB and sends it byte by byte: a connection of its own, and a megabyte at most."""
    connection, hello = known_worker(manager)
    with dialled(connection) as sock, Factory(manager, "local", cores=1, max_pilots=1):
        sock.sendall(framed(encode_one(hello)))
        assert sock.recv(100)
        until(lambda: any(worker["id"] == "slow" for worker in manager.status()["workers"]), "it has joined")
        sock.sendall(struct.pack(">I", MAX_FRAME_BYTES))
        for _ in range(5):
            run(manager, 100)
            sock.sendall(b"x")
        assert any(worker["id"] == "slow" and worker["connected"] for worker in manager.status()["workers"])


#: The beginning of the first numbered frame of a session.
HEAD = b"\x93\x01\x00"

HOSTILE = {
    "a frame of 4 GB": b"\xff\xff\xff\xff",
    "a list of four billion": framed(HEAD + b"\xdd\xff\xff\xff\xff"),
    "lists in lists": framed(HEAD + b"\x91" * 900_000 + b"\xc0"),
    "maps in maps": framed(HEAD + b"\x81\xa1a" * 300_000 + b"\xc0"),
    "a field of lists in lists": framed(HEAD + b"\x91\x93\xa7Goodbye\xa1x" + b"\x91" * 900_000 + b"\xc0"),
    "text that is none": framed(HEAD + b"\x91\x92\xa7Goodbye\xa2\xff\xff"),
    "a tag that is no text": framed(HEAD + b"\x91\x92\xa2\xff\xff\xc0"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_worker_that_says_what_cannot_be_read_loses_its_session_and_nobody_else_does(
    manager: Manager, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Huge, endless, nested or damaged: it is refused as a breach of the protocol, not as a defect, and the manager goes on."""
    caplog.set_level("INFO")
    connection, hello = known_worker(manager)
    with dialled(connection) as sock:
        sock.sendall(framed(encode_one(hello)))
        assert sock.recv(100)
        until(lambda: manager.status()["workers"], "it has joined")
        with contextlib.suppress(OSError):
            sock.sendall(HOSTILE[what])
            while sock.recv(65536):
                pass
    until(lambda: not manager.status()["workers"], "its session is over")
    assert "broke the protocol" in caplog.text
    assert "defect" not in caplog.text
    assert "Traceback" not in caplog.text


def test_a_worker_that_cannot_have_what_it_says_is_refused(manager: Manager) -> None:
    """Placement reckons with these numbers."""
    connection, hello = known_worker(manager)
    for resources, text in (
        (Resources(float("nan")), "a worker cannot have nan cores"),
        (Resources(float("inf")), "a worker cannot have inf cores"),
        (Resources(-1.0), "a worker cannot have -1.0 cores"),
        (Resources(1.0, 1 << 62), f"a worker cannot have {1 << 62} bytes of memory"),
        (Resources(1.0, 0, 2), "a worker with 2 GPUs cannot have 0 ids of them"),
    ):
        with dialled(connection) as sock:
            info = WorkerInfo("host", 1, resources)
            sock.sendall(framed(encode_one(msgspec.structs.replace(hello, worker=info))))
            assert text.encode() in sock.recv(1000)
    with Factory(manager, "local", cores=1, max_pilots=1):
        run(manager, 10)


def test_a_worker_cannot_say_what_the_environment_of_others_is() -> None:
    """All with an environment of that name run the Python in it: its name must be that of its archive, whose name is its content."""
    packed, other, named = (f"{head}-{digit * 32}" for head, digit in (("b3", "1"), ("b3", "2"), ("x3", "1")))

    def said(unpacked: str, packed: str, size: int = 9, level: str = "forever") -> str:
        refs = FileRef(FileName(unpacked), -1, "e", level), FileRef(FileName(packed), size, "e.tar.gz", level)
        return absurd(WorkerInfo("host", 1, Resources(1.0), environment=PoolEnvironment(*refs, "/shared/e.tar.gz")))

    right = unpacked_name(packed)
    assert said(right, packed) == ""
    assert said(right, other) == f"environment {right} is not what is unpacked of {other}"
    assert "is not what is unpacked of" in said(unpacked_name(named), named)
    assert "is not what is unpacked of" in said(unpacked_name("b3-../../x"), "b3-../../x")
    assert "cannot have -1 bytes" in said(right, packed, -1)
    assert "the levels 'call' and 'call'" in said(right, packed, 9, "call")


def test_a_peers_door_serves_those_it_knows_while_strangers_crowd_it(tmp_path: Path) -> None:
    """Who has shown no certificate leaves first; `connections` of them say nothing, and a worker fetches its file all the same."""
    authority = Authority.create("m1", tmp_path / "m1")
    connection = read_connection_file(authority.pilot_file)
    (tmp_path / "file").write_bytes(b"content")
    name = FileName("r-" + "0" * 32)
    door = PeerDoor(connection, "w1", *authority.credential(WORKER, "w1"), lambda _: PlainFile(tmp_path / "file", 7), connections=20)
    addresses = door.open("127.0.0.1")
    strangers = [socket.create_connection(parse_address(addresses[0])) for _ in range(100)]

    async def fetch() -> bytes:
        fetcher = Fetcher(connection, "w2", *authority.credential(WORKER, "w2"))
        arrival = Arrival(FileRef(name, 7, "x"), tmp_path / "here")
        await fetcher.fetch(arrival, FileSource("w1", addresses, authority.permit(name, "w1", "w2")))
        await fetcher.close()
        return (tmp_path / "here").read_bytes()

    try:
        assert asyncio.run(fetch()) == b"content"
    finally:
        for sock in strangers:
            sock.close()
        door.close()


def test_silent_connections_to_the_page_of_metrics_cost_a_few_threads_and_stop_no_scrape(nothing_left_running: None) -> None:
    """It is served by the program itself, and on a login node anybody reaches it. When the manager ends, so do they."""
    without = threading.active_count()
    with Manager(metrics=0) as manager, ExitStack() as opened:
        before = threading.active_count()
        strangers = [opened.enter_context(silent(manager.metrics_url, b"GET /me")) for _ in range(3 * PAGES_MOST)]
        assert "windlass_up 1.0" in scrape(manager.metrics_url)
        assert threading.active_count() <= before + PAGES_MOST
        assert strangers[0].recv(100) == b"", "those that have been open longest leave first"
        manager.close()
        drip(strangers[-1])
        until(lambda: threading.active_count() <= without, "the threads of silent connections end with the manager")


def test_who_takes_too_long_to_ask_for_the_page_of_metrics_is_hung_up_on() -> None:
    """A byte now and then is not silence."""
    with PageServer("127.0.0.1", 0, lambda *_: [b""], longest=0.1) as server, ExitStack() as opened:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        opened.callback(thread.join)
        opened.callback(server.shutdown)
        drip(opened.enter_context(silent(f"http://127.0.0.1:{server.server_port}", b"GET")))


def test_who_asks_for_metrics_again_and_again_does_not_keep_the_manager_busy() -> None:
    """What took a second to tell is told again for some; a manager that did not answer is asked anew."""
    now, asked = [0.0], [0]

    def read() -> dict[str, object]:
        asked[0] += 1
        now[0] += 0.3
        if asked[0] == 1:
            raise Closed("the manager is being made")
        return status

    def up() -> float:
        return next(iter(collector.collect())).samples[0].value

    with Manager() as manager:
        status = manager.status()
    collector = Collector(read, lambda: now[0])
    assert [up(), up(), up(), up()] == [0.0, 1.0, 1.0, 1.0]
    assert asked == [2]
    now[0] += TOLD_SHARE * 0.3
    assert up() == 1.0
    assert asked == [3]
