"""Objects over real data connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.shared.ports import silent

from windlass import bulk, datastream, nearby, transport, turns
from windlass.bulk import BULK_BYTES, BulkServer, NotNow, ObjectGone
from windlass.dataplane import DataClient, DataServer
from windlass.errors import UsageError
from windlass.fileserver import FileServer
from windlass.identity import WORKER, Authority, Identity, read_connection_file
from windlass.incoming import Incoming
from windlass.links import Link
from windlass.listener import KEEPALIVE, Listener
from windlass.messages import PROTOCOL, GetObject, Hello, ObjectName, ObjectRef, PutObject, Refused, Welcome
from windlass.object_store import ObjectStore
from windlass.objects import content_name

LIMIT = 20.0


class Shell:
    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        return Welcome(hello.session, 0, "m1", "0")

    def attach(self, session: str, link: Link) -> None:
        raise AssertionError("there are data connections only")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create("m1", tmp_path_factory.mktemp("state") / "m1")


class Ends:
    """A manager's and a worker's side of objects. ``bulk``: large ones go past the loops, as they do at a real manager."""

    large_go_past_the_loops = True

    def __init__(self, authority: Authority, tmp_path: Path) -> None:
        self.theirs = ObjectStore(tmp_path / "manager", 1 << 30)
        self.ours = ObjectStore(tmp_path / "worker", 1 << 30)
        self.server = DataServer(self.theirs)
        self.files = FileServer(lambda name: None, lambda identity, request: "no")
        self.listener = Listener(authority, Shell(), serve_data=self.server, files=self.files)
        self.authority = authority
        self.bulk = self.large_go_past_the_loops

    async def open(self) -> None:
        self.files.objects = BulkServer(self.server, asyncio.get_running_loop())
        await self.listener.listen(["127.0.0.1"])
        certificate, key = self.authority.credential(WORKER, "w1")
        connection = msgspec.structs.replace(
            read_connection_file(self.authority.pilot_file), addresses=tuple(self.listener.addresses), path=""
        )
        hello = Hello("worker", PROTOCOL, "0", (3, 11), "w1")
        self.client = DataClient(connection, lambda: hello, self.ours, bulk_bytes=BULK_BYTES if self.bulk else sys.maxsize)
        self.client.use_certificate(certificate, key)

    def cut(self) -> None:
        for accepted in list(self.listener.data_transports):
            accepted.abort()
        self.files.cut_all()


@pytest.fixture(params=["loops", "threads"], autouse=True)
def way(request: pytest.FixtureRequest) -> None:
    """How large objects go; every test is of both."""
    Ends.large_go_past_the_loops = request.param == "threads"


@asynccontextmanager
async def ends(authority: Authority, tmp_path: Path) -> AsyncGenerator[Ends]:
    both = Ends(authority, tmp_path)
    await both.open()
    try:
        async with asyncio.timeout(LIMIT):
            yield both
    finally:
        await both.client.close()
        await both.listener.close()
        both.files.close()


def test_objects_of_all_sizes_come_whole(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            contents = [os.urandom(size) for size in (1, 4, 65536, 262144, 262145, 5_000_000)] + [b""]
            refs = [both.theirs.put(content) for content in contents]
            await asyncio.gather(*(both.client.get(ref) for ref in refs))
            assert [bytes(both.ours.open(ref.name)) for ref in refs] == contents

    asyncio.run(work())


def test_objects_are_given_and_are_the_same(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            contents = [os.urandom(size) for size in (1, 3_000_000, 700_000)] + [b""]
            refs = [both.ours.put_result(content) for content in contents]
            await asyncio.gather(*(both.client.put(ref.name, both.ours.path(ref.name)) for ref in refs))
            assert [bytes(both.theirs.open(ref.name)) for ref in refs] == contents

    asyncio.run(work())


def test_objects_move_in_prompt_turns(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or beside a program that computes each record would wait for the usual interval, 5 ms."""
    seen: list[float] = []
    taken_in = Incoming.write

    def write(incoming: Incoming, chunk: memoryview) -> None:
        seen.append(sys.getswitchinterval())
        taken_in(incoming, chunk)

    monkeypatch.setattr(Incoming, "write", write)
    turns.leave()  # a loop of another test
    before = sys.getswitchinterval()

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            await both.client.get(both.theirs.put(os.urandom(3_000_000)))
            given = both.ours.put_result(os.urandom(3_000_000))
            await both.client.put(given.name, both.ours.path(given.name))

    try:
        asyncio.run(work())
    finally:
        turns.leave()
    assert seen
    assert max(seen) <= turns.PROMPT * 1.01
    assert sys.getswitchinterval() == before


def test_a_data_connection_whose_host_vanished_is_noticed(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing beats on it. Of a worker's host that lost its power the manager would keep descriptor and buffers for ever: so the kernel
    asks."""

    def elsewhere(manager: str, port: int) -> None:
        return None

    monkeypatch.setattr(nearby, "dialled", elsewhere)

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            await both.client.get(both.theirs.put(b"some"))
            [accepted] = (transport.get_extra_info("socket") for transport in both.listener.data_transports)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert {option: accepted.getsockopt(socket.IPPROTO_TCP, option) for option in KEEPALIVE} == KEEPALIVE

    asyncio.run(work())


def test_of_data_connections_that_have_ended_nothing_is_kept(authority: Authority, tmp_path: Path) -> None:
    """Each has a buffer and a state of TLS, and there may have been thousands."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            for number in range(3):
                await both.client.get(both.theirs.put(b"%d" % number))
                assert both.listener.data_transports
                both.cut()
                while both.listener.data_transports:
                    await asyncio.sleep(0)

    asyncio.run(work())


def test_many_requests_both_ways_at_once(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            gets = [both.theirs.put(os.urandom(100_000)) for _ in range(40)]
            puts = [both.ours.put(os.urandom(100_000)) for _ in range(40)]
            await asyncio.gather(
                *(both.client.get(ref) for ref in gets), *(both.client.put(ref.name, both.ours.path(ref.name)) for ref in puts)
            )
            assert all(both.ours.has(ref.name) for ref in gets)
            assert all(both.theirs.verify(ref.name) for ref in puts)

    asyncio.run(work())


def test_one_object_asked_for_often_travels_once(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            ref = both.theirs.put(os.urandom(500_000))
            await asyncio.gather(*(both.client.get(ref) for _ in range(10)))
            assert both.server.bytes_out == ref.size

    asyncio.run(work())


def test_what_the_manager_does_not_have_is_said_and_others_go_on(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            missing = ObjectRef(ObjectName("b3-" + "0" * 32), 10)
            with pytest.raises(ObjectGone, match=rf"object {missing.name}: the manager does not have it any more"):
                await both.client.get(missing)
            ref = both.theirs.put(b"here")
            await both.client.get(ref)

    asyncio.run(work())


def test_a_refused_object_is_read_away_and_the_connection_stays_good(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            file = tmp_path / "file"
            file.write_bytes(os.urandom(1_000_000))
            with pytest.raises(ObjectGone, match="cannot be an object"):
                await both.client.put(ObjectName("../evil"), file)
            with pytest.raises(ObjectGone, match="damaged on its way"):
                await both.client.put(ObjectName("b3-" + "0" * 32), file)
            await both.client.get(both.theirs.put(b"here"))
            assert len(both.listener.data_transports) == 1
            assert both.files.accepted == both.bulk

    asyncio.run(work())


def test_no_room_is_told_from_what_can_never_be(authority: Authority, tmp_path: Path) -> None:
    """A store that is full now may have room later; one that is too small never will."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            both.theirs.limit = 1_500_000
            both.theirs.put(b"x" * 1_000_000, pin=True)
            file = tmp_path / "file"
            file.write_bytes(b"y" * 1_000_000)
            name = content_name(file.read_bytes())
            with pytest.raises(NotNow, match="does not fit"):
                await both.client.put(name, file)
            both.theirs.limit = 500_000
            with pytest.raises(ObjectGone, match="does not fit") as caught:
                await both.client.put(name, file)
            assert not isinstance(caught.value, NotNow)

    asyncio.run(work())


@pytest.mark.parametrize(("number", "passes"), [(errno.EMFILE, True), (errno.ENOMEM, True), (errno.EIO, True), (errno.EACCES, False)])
def test_trouble_of_the_manager_that_passes_is_told_from_what_lasts(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
) -> None:
    """It says nothing against the object or the call: who asks may ask again."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            ref = both.theirs.put(os.urandom(1_000_000))
            file = tmp_path / "file"
            file.write_bytes(os.urandom(1_000_000))
            name = content_name(file.read_bytes())
            with monkeypatch.context() as patch:
                patch.setattr(both.theirs, "open", fail)
                patch.setattr(both.theirs, "open_file", fail)
                patch.setattr(both.theirs, "receive", fail)
                with pytest.raises(ObjectGone, match=os.strerror(number)) as caught:
                    await both.client.get(ref)
                assert isinstance(caught.value, NotNow) == passes
                with pytest.raises(ObjectGone, match=os.strerror(number)) as caught:
                    await both.client.put(name, file)
                assert isinstance(caught.value, NotNow) == passes
            await both.client.get(ref)
            await both.client.put(name, file)
            assert both.ours.verify(ref.name)
            assert both.theirs.verify(name)

    asyncio.run(work())


def test_a_cut_is_made_good_once(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            await both.client.get(both.theirs.put(b"first"))
            ref = both.theirs.put(os.urandom(30_000_000))
            task = asyncio.create_task(both.client.get(ref))
            while not both.server.bytes_out > 5:
                await asyncio.sleep(0)
            both.cut()
            await task
            assert both.ours.verify(ref.name)

    asyncio.run(work())


def test_a_cut_is_made_good_where_the_store_was_cleaned_away_meanwhile(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had come of it is gone, and who waits for it hears of the cut all the same."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            await both.client.get(both.theirs.put(b"first"))
            ref = both.theirs.put(os.urandom(30_000_000))
            receive, begun, gone = both.ours.receive, threading.Event(), threading.Event()

            def waits(name: str, size: int, **how: bool) -> Incoming:
                incoming = receive(name, size, **how)
                begun.set()
                if both.bulk:  # on a thread; on the loop the bytes come in later turns
                    gone.wait(30)
                return incoming

            monkeypatch.setattr(both.ours, "receive", waits)
            task = asyncio.create_task(both.client.get(ref))
            while not begun.is_set():
                await asyncio.sleep(0)
            shutil.rmtree(both.ours.folder)
            both.cut()
            gone.set()
            await task
            assert both.ours.verify(ref.name)
            both.ours.check()

    asyncio.run(work())


def test_after_a_cut_of_the_control_connection_data_connections_are_made_anew(authority: Authority, tmp_path: Path) -> None:
    """They may be half-open, which they would not notice for long; what was under way is asked for again."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            await both.client.get(both.theirs.put(b"first"))
            [old] = both.listener.data_transports
            ref = both.theirs.put(os.urandom(30_000_000))
            task = asyncio.create_task(both.client.get(ref))
            while not both.server.bytes_out > 5:
                await asyncio.sleep(0)
            both.client.use_welcome(Welcome("", 0, "m1", "0"))
            await task
            assert both.ours.verify(ref.name)
            assert old.is_closing()
            assert both.files.accepted in ((1, 2) if both.bulk else (0,))

    asyncio.run(work())


@pytest.mark.parametrize("error", [PermissionError(13, "its token is over"), UsageError("others can read it")], ids=["token", "modes"])
def test_where_the_manager_moves_the_file_that_says_where_may_be_out_of_reach(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What cannot be read is no reason to give an object up: a cut connection is told as one, so that it is tried again."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            authority.set_addresses(both.listener.addresses)
            client = both.client
            client._connection = read_connection_file(authority.pilot_file)  # pyright: ignore[reportPrivateUsage]
            [(_, left)] = both.listener.addresses
            await both.listener.close()
            both.listener = Listener(authority, Shell(), serve_data=both.server, files=both.files)
            await both.listener.listen(["127.0.0.1"])
            authority.set_addresses(both.listener.addresses)
            ref = both.ours.put(b"result")

            def fails(path: str) -> None:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(transport, "read_connection_file", fails)
                with silent(left), pytest.raises(ConnectionError, match="Connection refused"):
                    await client.put(ref.name, both.ours.path(ref.name))
            await client.put(ref.name, both.ours.path(ref.name))
            assert both.theirs.has(ref.name)

    asyncio.run(work())


def test_on_the_same_host_objects_are_linked_and_not_sent(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            both.client.use_welcome(
                Welcome("", 0, "m1", "0", store=str(both.theirs.folder), store_token=(both.theirs.folder / ".token").read_text())
            )
            assert both.client.shares_host
            ref = both.theirs.put(os.urandom(2_000_000))
            await both.client.get(ref)
            assert both.ours.path(ref.name).stat().st_ino == both.theirs.path(ref.name).stat().st_ino
            result = both.ours.put_result(os.urandom(2_000_000))
            await both.client.put(result.name, both.ours.path(result.name))
            assert both.ours.path(result.name).stat().st_ino == both.theirs.path(result.name).stat().st_ino
            assert (both.server.bytes_in, both.server.bytes_out) == (0, 0)
            copied = both.ours.put_result(os.urandom(2_000_000))
            await both.client.put(copied.name, both.ours.path(copied.name), as_bytes=True)
            assert both.theirs.path(copied.name).read_bytes() == both.ours.path(copied.name).read_bytes()
            assert both.ours.path(copied.name).stat().st_ino != both.theirs.path(copied.name).stat().st_ino
            both.client.use_welcome(Welcome("", 0, "m1", "0", store=str(both.theirs.folder), store_token="wrong"))
            assert not both.client.shares_host

    asyncio.run(work())


def test_the_manager_takes_by_path_nothing_but_results(authority: Authority, tmp_path: Path) -> None:
    """A path comes from the network. Were any file of the user's taken in, whoever has a worker's certificate could fetch it afterwards;
    and a content name is believed only after hashing. What is refused by path is sent as bytes, so nothing is lost."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            both.client.use_welcome(
                Welcome("", 0, "m1", "0", store=str(both.theirs.folder), store_token=(both.theirs.folder / ".token").read_text())
            )
            private = tmp_path / "id_ed25519"
            private.write_bytes(os.urandom(3000))
            name = ObjectName("r-" + os.urandom(16).hex())
            await both.client.put(name, private)
            assert both.theirs.path(name).stat().st_ino != private.stat().st_ino
            assert both.server.bytes_in == 3000
            wrong = both.ours.folder / ("b3-" + "0" * 32)
            wrong.write_bytes(b"other content")
            with pytest.raises((ObjectGone, ConnectionError), match="damaged"):
                await both.client.put(ObjectName(wrong.name), wrong)
            assert not both.theirs.has(wrong.name)

    asyncio.run(work())


def test_large_objects_take_the_way_of_the_small_ones_where_there_is_no_other(authority: Authority, tmp_path: Path) -> None:
    """A manager that serves no more threads hangs up; what is under way goes on by the loop."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            both.files.close()
            ref = both.theirs.put(os.urandom(3_000_000))
            await both.client.get(ref)
            assert both.ours.verify(ref.name)
            result = both.ours.put_result(os.urandom(3_000_000))
            await both.client.put(result.name, both.ours.path(result.name))
            assert both.theirs.open(result.name) == both.ours.open(result.name)
            assert both.files.accepted == 0

    asyncio.run(work())


def test_who_may_not_have_an_object_does_not_get_it_by_either_way(authority: Authority, tmp_path: Path) -> None:
    """It is the manager's loop that says so."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            here, asked = threading.get_ident(), list[tuple[str, bool]]()

            def may_have(worker: str, name: ObjectName) -> bool:
                asked.append((worker, threading.get_ident() == here))
                return False

            both.server.may_have = may_have
            ref = both.theirs.put(os.urandom(1_000_000))
            with pytest.raises(ObjectGone, match="worker w1 was not told of it, or needs it no more"):
                await both.client.get(ref)
            assert asked[-1] == ("w1", True)
            assert not both.ours.has(ref.name)

    asyncio.run(work())


@pytest.mark.parametrize("changing", [None, RuntimeError("dictionary changed size during iteration"), KeyError("gone")], ids=str)
def test_who_may_have_an_object_is_asked_on_the_loop_where_that_changes_meanwhile(
    changing: Exception | None, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And else at once, by the thread that serves it."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            here, asked = threading.get_ident(), list[bool]()

            def may_have(worker: str, name: ObjectName) -> bool:
                asked.append(threading.get_ident() == here)
                if changing and not asked[-1]:
                    raise changing
                return True

            both.server.may_have = may_have
            ref = both.theirs.put(os.urandom(1_000_000))
            await both.client.get(ref)
            assert both.ours.verify(ref.name)
            assert asked == ([False, True] if changing else [False]) or not both.bulk
            assert not [record for record in caplog.records if record.levelno >= logging.ERROR], "it is no defect"

    asyncio.run(work())


def test_for_a_result_that_is_given_the_managers_loop_is_not_asked(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps nothing of a worker's, beyond what the end of the call says."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:

            def nobody(hello: Hello) -> None:
                """Keeps what a worker gives."""

            both.server.keeper_for = nobody
            asked: list[object] = []

            def on_loop(server: BulkServer, work: Callable[[], object]) -> object:
                asked.append(work)
                return work()

            monkeypatch.setattr(BulkServer, "_on_loop", on_loop)
            result = both.ours.put_result(os.urandom(1_000_000))
            await both.client.put(result.name, both.ours.path(result.name))
            assert both.theirs.open(result.name) == both.ours.open(result.name)
            assert not asked

    asyncio.run(work())


def test_a_large_object_that_does_not_fit_here_fails_with_the_stores_own_words(authority: Authority, tmp_path: Path) -> None:
    """And what comes after it arrives."""

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            both.ours.limit = 800_000
            with pytest.raises(OSError, match="does not fit"):
                await both.client.get(both.theirs.put(os.urandom(1_000_000)))
            ref = both.theirs.put(os.urandom(700_000))
            await both.client.get(ref)
            assert both.ours.verify(ref.name)

    asyncio.run(work())


def test_far_off_only_what_takes_longer_than_a_round_trip_goes_past_the_loops(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a connection that waits for each answer before it asks again would carry two objects in each round trip."""
    far = [0.1]

    def round_trip_of(sock: socket.socket) -> float:
        return far[-1]

    for module in (bulk, datastream):
        monkeypatch.setattr(module, "round_trip_of", round_trip_of)

    async def work() -> None:
        async with ends(authority, tmp_path) as both:
            past = list[ObjectName]()

            class Noting(BulkServer):
                def answer(self, sock: ssl.SSLSocket, hello: Hello, request: GetObject | PutObject) -> None:
                    past.append(request.name)
                    super().answer(sock, hello, request)

            both.files.objects = Noting(both.server, asyncio.get_running_loop())
            refs = [both.theirs.put(os.urandom(600_000)) for _ in range(8)]
            await asyncio.gather(*(both.client.get(ref) for ref in refs))
            assert all(both.ours.verify(ref.name) for ref in refs)
            # Two have shown how far it is, and those that waited behind them have gone the other way.
            assert len(past) == (2 if both.bulk else 0)
            ours = [both.ours.put(os.urandom(size)) for size in (600_000, 12_000_000)]
            for ref in ours:
                await both.client.put(ref.name, both.ours.path(ref.name))
                assert both.theirs.verify(ref.name)
            assert past[2:] == ([ours[1].name] if both.bulk else [])
            far.append(0.0)  # only what was on the way had made it so far
            await both.client.put((again := both.ours.put(os.urandom(600_001))).name, both.ours.path(again.name))
            assert past[3:] == ([again.name] if both.bulk else [])

    asyncio.run(work())
