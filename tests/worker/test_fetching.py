"""Files over real TLS sockets: from the manager's port, from a peer, through a network that cuts, stops and damages."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import blake3
import msgspec
import pytest
from tests.shared.ports import silent

from windlass.dataplane import DataClient, DataServer
from windlass.errors import CacheFull, Damaged
from windlass.fileserver import FileServer, PlainFile, ServedFile, ServedTree
from windlass.filewire import ALPN, hang_up, hear_bytes, say
from windlass.identity import WORKER, Authority, Identity, context_for, read_connection_file
from windlass.links import Link
from windlass.listener import Listener
from windlass.messages import PROTOCOL, FileName, FileRef, FileSource, Hello, Refused, Welcome
from windlass.object_store import ObjectStore
from windlass.session import decode_answer
from windlass.trees import scan
from windlass.worker.arrivals import Arrival, Arrived, CannotKeep
from windlass.worker.cache import Cache
from windlass.worker.fetching import Fetcher, SourceFailed, SourceGone
from windlass.worker.peers import PeerDoor, find_in

LIMIT = 30.0
HELLO = Hello("worker", PROTOCOL, "0", (3, 11), "w2", purpose="data")
MB = 1 << 20


def name_of(content: bytes) -> FileName:
    return FileName("b3-" + blake3.blake3(content).hexdigest(16))


def ref_of(content: bytes) -> FileRef:
    return FileRef(name_of(content), len(content), "data.bin")


class Shell:
    """A manager that welcomes whom its listener lets in."""

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        return Welcome(hello.session, 0, "m1", "0")

    def attach(self, session: str, link: Link) -> None:
        raise AssertionError("there are data connections only")


class Files:
    """What one side serves, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[FileName, Callable[[], ServedFile]] = {}
        self.found = 0

    def add(self, content: bytes, name: FileName | None = None) -> FileRef:
        ref = ref_of(content)
        path = self.folder / ref.name
        path.write_bytes(content)
        about = path.stat()
        self.open[name or ref.name] = lambda: PlainFile(path, about.st_size, about.st_mtime_ns)
        return msgspec.structs.replace(ref, name=name or ref.name)

    def stop_at(self, name: FileName, at: int) -> Gate:
        """Have its reading stand still there."""
        gate, opened = Gate(), self.open[name]
        self.open[name] = lambda: Stopping(opened(), at, gate)
        return gate

    def find(self, name: FileName) -> ServedFile | None:
        self.found += 1
        return self.open[name]() if name in self.open else None


class Cluster:
    """A manager and worker ``w1`` that serve, and ``w2`` that fetches."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder, self.authority = folder, authority
        self.connection = msgspec.structs.replace(read_connection_file(authority.pilot_file), path="")
        for name in ("manager", "w1", "w2"):
            (folder / name).mkdir()
        self.at_manager, self.at_w1 = Files(folder / "manager"), Files(folder / "w1")
        self.count = 0

    async def open(self, silence: float) -> None:
        self.server = FileServer(self.at_manager.find, lambda identity, request: "")
        self.listener = Listener(self.authority, Shell(), files=self.server)
        self.manager_addresses = await self.listener.listen(["127.0.0.1"])
        self.connection = msgspec.structs.replace(self.connection, addresses=tuple(self.manager_addresses))
        self.door = PeerDoor(self.connection, "w1", *self.authority.credential(WORKER, "w1"), self.at_w1.find)
        self.addresses = self.door.open("127.0.0.1")
        self.fetcher = self.make_fetcher("w2", silence)

    def make_fetcher(self, worker: str, silence: float = 20.0) -> Fetcher:
        return Fetcher(self.connection, worker, *self.authority.credential(WORKER, worker), silence=silence)

    def from_manager(self) -> FileSource:
        return FileSource("m1")

    def from_w1(self, ref: FileRef, *addresses: str) -> FileSource:
        return FileSource("w1", addresses or self.addresses, self.authority.permit(ref.name, "w1", "w2"))

    def arrival(self, ref: FileRef, **options: Any) -> Arrival:
        self.count += 1
        return Arrival(ref, self.folder / "w2" / f"here-{self.count}", **options)

    async def close(self) -> None:
        await self.fetcher.close()
        self.door.close()
        self.server.close()
        await self.listener.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create("m1", tmp_path_factory.mktemp("state") / "m1")


@asynccontextmanager
async def cluster(authority: Authority, folder: Path, silence: float = 20.0) -> AsyncGenerator[Cluster]:
    both = Cluster(folder, authority)
    await both.open(silence)
    try:
        async with asyncio.timeout(LIMIT):
            yield both
    finally:
        await both.close()
    left = [thread.name for thread in threading.enumerate() if thread.name in ("windlass-file", "windlass-peers")]
    assert left == []


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


# ---------------------------------------------------------------- what comes when nothing is wrong


@pytest.mark.parametrize("side", ["manager", "w1"])
def test_files_of_all_sizes_come_whole(authority: Authority, tmp_path: Path, side: str) -> None:
    """From the manager's own port, and from a peer: empty ones, and those around the size of a chunk."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            served = both.at_manager if side == "manager" else both.at_w1
            for size in (0, 1, 262143, 262144, 262145, 5_000_000):
                content = os.urandom(size)
                ref = served.add(content)
                arrival = both.arrival(ref)
                source = both.from_manager() if side == "manager" else both.from_w1(ref)
                assert await both.fetcher.fetch(arrival, source) == Arrived(size, ref.name[3:], False)
                assert content_of(arrival) == content

    run(work)


def test_a_tree_comes_with_its_links_modes_and_empty_folders(authority: Authority, tmp_path: Path) -> None:
    """From a peer as from the manager; a name that does not tell whether it is a tree (a result's) does as well."""
    root = make_tree(tmp_path / "tree")
    manifest = scan(root)
    random = FileName("r-" + "0" * 32)

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            for served in (both.at_manager, both.at_w1):
                served.open[manifest.name] = served.open[random] = lambda: ServedTree(manifest, root)
            for name, digest in ((manifest.name, ""), (random, manifest.name[3:])):
                ref = FileRef(name, manifest.size, "tree")
                for source in (both.from_manager(), both.from_w1(ref)):
                    arrival = both.arrival(ref, digest=digest)
                    assert await both.fetcher.fetch(arrival, source) == Arrived(manifest.size, manifest.name[3:], True, manifest.encode())
                    assert same_tree(root, arrival.path)

    run(work)


def test_many_files_at_once_from_several_sources(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            contents = [os.urandom(300_000) for _ in range(24)]
            here = [both.at_manager.add(content) for content in contents[:12]]
            there = [both.at_w1.add(content) for content in contents[12:]]
            arrivals = [both.arrival(ref) for ref in here + there]
            sources = [both.from_manager() for _ in here] + [both.from_w1(ref) for ref in there]
            await asyncio.gather(*(both.fetcher.fetch(arrival, source) for arrival, source in zip(arrivals, sources, strict=True)))
            assert [content_of(arrival) for arrival in arrivals] == contents
            assert both.fetcher.bytes_in == {"manager": 12 * 300_000, "worker": 12 * 300_000, "other": 0}
            await until(lambda: both.server.bytes_out == both.door.server.bytes_out == 12 * 300_000)

    run(work)


def test_a_stream_that_stands_still_holds_up_no_other(authority: Authority, tmp_path: Path) -> None:
    """A file whose disk hangs at its source, and a reader that takes nothing, cost a thread each and nobody's turn."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            slow, quick = both.at_w1.add(os.urandom(2 * MB)), both.at_w1.add(os.urandom(2 * MB))
            gate = both.at_w1.stop_at(slow.name, MB)
            waiting = asyncio.create_task(both.fetcher.fetch(both.arrival(slow), both.from_w1(slow)))
            await until(gate.reached.is_set)
            await both.fetcher.fetch(both.arrival(quick), both.from_w1(quick))
            assert not waiting.done()
            gate.go_on.set()
            assert (await waiting).size == 2 * MB

    run(work)


def test_connections_are_used_again_and_may_end_meanwhile(authority: Authority, tmp_path: Path) -> None:
    """Files that are fetched one after the other share a connection; one that its other side has ended is made anew, unseen."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            refs = [both.at_w1.add(os.urandom(100)) for _ in range(5)]
            for ref in refs[:4]:
                await both.fetcher.fetch(both.arrival(ref), both.from_w1(ref))
            assert both.door.server.accepted == 1
            both.door.server.cut_all()
            await both.fetcher.fetch(both.arrival(refs[4]), both.from_w1(refs[4]))
            assert both.door.server.accepted == 2

    run(work)


def test_objects_and_files_come_by_the_same_port(authority: Authority, tmp_path: Path) -> None:
    """The manager's listener tells them apart by what a client says first; and a client that names files may not speak of other things."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            store = ObjectStore(tmp_path / "store", MB)
            both.listener.serve_data = DataServer(store)
            client = DataClient(both.connection, lambda: HELLO, ObjectStore(tmp_path / "objects", MB))
            client.use_certificate(*authority.credential(WORKER, "w2"))
            await client.get(store.put(b"an object"))
            file = both.at_manager.add(b"a file")
            await both.fetcher.fetch(both.arrival(file), both.from_manager())
            await client.close()
            context = context_for(both.connection, *authority.credential(WORKER, "w2"))
            context.set_alpn_protocols([ALPN])

            def control() -> Refused | Welcome:
                raw = socket.create_connection(both.manager_addresses[0], 5)
                with context.wrap_socket(raw, server_hostname="m1") as sock:
                    say(sock, msgspec.structs.replace(HELLO, purpose="control"))
                    return decode_answer(hear_bytes(sock, 1 << 16) or b"")

            assert await asyncio.to_thread(control) == Refused("a connection for files was opened, and then used for 'control'")

    run(work)


# ---------------------------------------------------------------- a bad network


def test_a_transfer_goes_on_at_the_byte_where_it_was_cut(authority: Authority, tmp_path: Path) -> None:
    """Four cuts at odd places: the file comes whole, and no byte of it is written twice."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both, wire(both.addresses[0]) as network:
            ref = both.at_w1.add(os.urandom(6 * MB))
            network.cut_after(600_001, 1_000_000, 300_017, 2_000_003)
            arrival = both.arrival(ref)
            await both.fetcher.fetch(arrival, both.from_w1(ref, network.address))
            assert name_of(content_of(arrival)) == ref.name
            assert network.connections == 5
            assert both.fetcher.bytes_in["worker"] == 6 * MB

    run(work)


def test_a_tree_goes_on_at_the_byte_where_it_was_cut(authority: Authority, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    manifest = scan(root)

    async def work() -> None:
        async with cluster(authority, tmp_path) as both, wire(both.addresses[0]) as network:
            both.at_w1.open[manifest.name] = lambda: ServedTree(manifest, root)
            network.cut_after(60_000, 100_000, 250_000)
            ref = FileRef(manifest.name, manifest.size, "tree")
            arrival = both.arrival(ref)
            await both.fetcher.fetch(arrival, both.from_w1(ref, network.address))
            assert same_tree(root, arrival.path)
            assert network.connections == 4

    run(work)


def test_bytes_that_change_on_the_wire_are_a_cut(authority: Authority, tmp_path: Path) -> None:
    """TLS notices; what came before the damaged record is good, and the rest is asked for again."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both, wire(both.addresses[0]) as network:
            ref = both.at_w1.add(os.urandom(3 * MB))
            network.damage_after(1_500_000)
            arrival = both.arrival(ref)
            await both.fetcher.fetch(arrival, both.from_w1(ref, network.address))
            assert name_of(content_of(arrival)) == ref.name
            assert network.connections == 2

    run(work)


def test_a_source_that_is_cut_off_again_and_again_has_failed_and_another_goes_on(authority: Authority, tmp_path: Path) -> None:
    """Attempts that bring nothing are not made for ever; what came is kept, and another source is asked for the rest only."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both, wire(both.addresses[0]) as network:
            content = os.urandom(4 * MB)
            ref = both.at_w1.add(content)
            both.at_manager.add(content)
            network.cut_after(2 * MB, *[100] * 50)
            arrival = both.arrival(ref)
            with pytest.raises(SourceFailed, match=r"worker w1: .*; [12],\d\d\d,\d\d\d of 4,194,304 bytes are here\n"):
                await both.fetcher.fetch(arrival, both.from_w1(ref, network.address))
            here = arrival.offset
            assert MB < here < 2 * MB
            assert (await both.fetcher.fetch(arrival, both.from_manager())).size == 4 * MB
            assert content_of(arrival) == content
            await until(lambda: both.server.bytes_out == 4 * MB - here)

    run(work)


def test_where_nobody_listens_is_said(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            ref = both.at_w1.add(b"content")
            with silent() as port:
                text = rf"worker w1: 127.0.0.1 port {port}: Connection refused; 'nothing' is no address: it should be"
                with pytest.raises(SourceFailed, match=text):
                    await both.fetcher.fetch(both.arrival(ref), both.from_w1(ref, f"127.0.0.1:{port}", "nothing"))
                await both.fetcher.fetch(both.arrival(ref), both.from_w1(ref, f"127.0.0.1:{port}", *both.addresses))
            with pytest.raises(SourceFailed, match="worker w9: no address of it is known"):
                await both.fetcher.fetch(both.arrival(ref), FileSource("w9"))

    run(work)


# ---------------------------------------------------------------- sources that change, stop, die


def test_a_file_that_is_changed_or_removed_is_not_served(authority: Authority, tmp_path: Path) -> None:
    """The reader hears what happened to which path, and what to do."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            ref = both.at_manager.add(b"as declared")
            path = tmp_path / "manager" / ref.name
            for content, text in (
                (b"longer than declared", "it has 20 bytes and had 11; declare it anew"),
                (b"as DECLARED", r"it was written at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d; declare it anew"),
            ):
                path.write_bytes(content)
                with pytest.raises(SourceGone, match=rf"{path} has changed since it was declared: {text}"):
                    await both.fetcher.fetch(both.arrival(ref), both.from_manager())
            path.unlink()
            with pytest.raises(SourceGone, match=rf"{path} is gone; it was there when it was declared.* \(so says m1 of {ref.name}\)"):
                await both.fetcher.fetch(both.arrival(ref), both.from_manager())
            os.mkfifo(path)
            with pytest.raises(SourceGone, match=rf"{path} is not a regular file any more"):
                await both.fetcher.fetch(both.arrival(ref), both.from_manager())
            unknown = ref_of(b"never there")
            with pytest.raises(SourceGone, match=rf"file {unknown.name} is not here, or not any more.* \(so says m1 of"):
                await both.fetcher.fetch(both.arrival(unknown), both.from_manager())

    run(work)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESTALE])
def test_a_source_that_cannot_open_the_file_just_now_has_it_still(authority: Authority, tmp_path: Path, number: int) -> None:
    """It is short of descriptors, or its file server is away for a moment: it is asked again."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            ref = both.at_manager.add(b"as declared")
            opened = both.at_manager.open[ref.name]

            def fails() -> ServedFile:
                both.at_manager.open[ref.name] = opened
                raise OSError(number, os.strerror(number))

            both.at_manager.open[ref.name] = fails
            arrival = both.arrival(ref)
            with pytest.raises(SourceFailed, match=os.strerror(number)):
                await both.fetcher.fetch(arrival, both.from_manager())
            assert (await both.fetcher.fetch(arrival, both.from_manager())).size == ref.size

    run(work)


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_file_that_changes_while_it_is_sent_is_noticed(authority: Authority, tmp_path: Path, how: str) -> None:
    """The stream is cut, the reader asks for the rest, and hears why there is none."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            ref = both.at_manager.add(os.urandom(3 * MB))
            path = tmp_path / "manager" / ref.name
            gate = both.at_manager.stop_at(ref.name, MB)
            task = asyncio.create_task(both.fetcher.fetch(both.arrival(ref), both.from_manager()))
            await until(gate.reached.is_set)
            if how == "truncated":
                os.truncate(path, MB)
            else:
                path.write_bytes(os.urandom(3 * MB))
            gate.go_on.set()
            with pytest.raises(SourceGone, match=rf"{path} has changed since it was declared"):
                await task

    run(work)


def test_content_that_is_not_what_its_name_says_is_not_kept(authority: Authority, tmp_path: Path) -> None:
    """Whoever serves it: damaged on a disk, another file, or one of another size."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            ref = ref_of(os.urandom(MB))
            both.at_w1.add(os.urandom(MB), ref.name)
            arrival = both.arrival(ref)
            with pytest.raises(Damaged, match=rf"file {ref.name} was damaged on its way: 1048576 bytes came and their name is b3-"):
                await both.fetcher.fetch(arrival, both.from_w1(ref))
            assert arrival.offset == 0
            both.at_w1.add(os.urandom(10), ref.name)
            with pytest.raises(Damaged, match=rf"{ref.name} has 1,048,576 bytes, and 10 were to come"):
                await both.fetcher.fetch(arrival, both.from_w1(ref))
            both.at_w1.open[ref.name] = lambda: ServedTree(scan(tmp_path / "w1"), tmp_path / "w1")
            with pytest.raises(Damaged, match=rf"{ref.name} is a file, and a tree was sent"):
                await both.fetcher.fetch(arrival, both.from_w1(ref))
            assert os.listdir(tmp_path / "w2") == []

    run(work)


def test_what_has_no_content_name_must_have_the_digest_that_was_reported(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            name = FileName("x3-" + "0" * 32)
            content = os.urandom(1000)
            both.at_w1.add(content, name)
            ref = FileRef(name, -1, "page.html")
            first = await both.fetcher.fetch(both.arrival(ref), both.from_w1(ref))
            assert first == Arrived(1000, name_of(content)[3:], False)
            assert await both.fetcher.fetch(both.arrival(ref, digest=first.digest), both.from_w1(ref)) == first
            with pytest.raises(Damaged, match=rf"{name} was damaged on its way, or has changed"):
                await both.fetcher.fetch(both.arrival(ref, digest="f" * 32), both.from_w1(ref))

    run(work)


def test_a_source_that_is_stopped_is_given_up_after_a_silence(authority: Authority, tmp_path: Path) -> None:
    """A process that SIGSTOP holds keeps its connections: only silence tells. Another source goes on where it was."""

    async def work() -> None:
        async with cluster(authority, tmp_path, silence=2.0) as both:
            content = os.urandom(3 * MB)
            with serving_process(both, content, stop_at=MB) as (process, address):
                ref = both.at_manager.add(content)
                arrival = both.arrival(ref)
                task = asyncio.create_task(both.fetcher.fetch(arrival, both.from_w1(ref, address)))
                await until(lambda: arrival.offset == MB)
                process.send_signal(signal.SIGSTOP)
                with pytest.raises(SourceFailed, match=r"worker w1: nothing came for 2 s; 1,048,576 of 3,145,728 bytes are here\n"):
                    await task
                await both.fetcher.fetch(arrival, both.from_manager())
                assert content_of(arrival) == content

    run(work)


def test_a_peer_that_is_killed_in_mid_transfer_is_replaced(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            content = os.urandom(3 * MB)
            with serving_process(both, content, stop_at=MB) as (process, address):
                ref = both.at_manager.add(content)
                arrival = both.arrival(ref)
                task = asyncio.create_task(both.fetcher.fetch(arrival, both.from_w1(ref, address)))
                await until(lambda: arrival.offset == MB)
                process.kill()
                process.wait()
                told = r"worker w1: .*refused.* 1,048,576 of 3,145,728 bytes are here\n"
                with silent(int(address.rpartition(":")[2])), pytest.raises(SourceFailed, match=told):
                    await task
                await both.fetcher.fetch(arrival, both.from_manager())
                assert content_of(arrival) == content
                await until(lambda: both.server.bytes_out == 2 * MB)

    run(work)


# ---------------------------------------------------------------- what becomes of what is here


def test_a_transfer_that_is_given_up_can_go_on_with_another_source(authority: Authority, tmp_path: Path) -> None:
    """A cancelled fetch writes nothing more, though its thread may wake much later."""

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            content = os.urandom(3 * MB)
            ref = both.at_w1.add(content)
            both.at_manager.add(content)
            gate = both.at_w1.stop_at(ref.name, MB)
            arrival = both.arrival(ref)
            task = asyncio.create_task(both.fetcher.fetch(arrival, both.from_w1(ref)))
            await until(lambda: arrival.offset == MB)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await both.fetcher.fetch(arrival, both.from_manager())
            gate.go_on.set()
            assert content_of(arrival) == content
            await until(lambda: both.door.server.sending == 0)

    run(work)


def test_what_is_abandoned_leaves_nothing(authority: Authority, tmp_path: Path) -> None:
    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            ref = both.at_w1.add(os.urandom(3 * MB))
            gate = both.at_w1.stop_at(ref.name, MB)
            arrival = both.arrival(ref)
            task = asyncio.create_task(both.fetcher.fetch(arrival, both.from_w1(ref)))
            await until(lambda: arrival.offset == MB)
            arrival.abandon()
            gate.go_on.set()
            with pytest.raises(SourceFailed, match=rf"the transfer of {ref.name} was given up"):
                await task
            assert os.listdir(tmp_path / "w2") == []

    run(work)


def test_a_cache_that_has_no_room_is_no_fault_of_the_source(authority: Authority, tmp_path: Path) -> None:
    """The size is known before a byte is written; whoever keeps the books may refuse it then, and is asked once."""

    def refuse(size: int) -> None:
        asked.append(size)
        raise CacheFull("no room")

    asked: list[int] = []

    async def work() -> None:
        async with cluster(authority, tmp_path) as both:
            ref = both.at_w1.add(os.urandom(1000), FileName("x3-" + "0" * 32))
            with pytest.raises(CacheFull, match="no room"):
                await both.fetcher.fetch(both.arrival(msgspec.structs.replace(ref, size=-1), reserve=refuse), both.from_w1(ref))
            assert asked == [1000]
            (tmp_path / "file").touch()
            nowhere = Arrival(ref, tmp_path / "file" / "x")
            with pytest.raises(CannotKeep, match=rf"file {ref.name} \(data.bin\) cannot be written in {tmp_path}/file: Not a directory"):
                await both.fetcher.fetch(nowhere, both.from_w1(ref))
            await both.fetcher.fetch(both.arrival(ref), both.from_w1(ref))

    run(work)


# ---------------------------------------------------------------- between caches


def test_files_go_from_cache_to_cache(authority: Authority, tmp_path: Path) -> None:
    """As a worker does it: room is kept, the file fetched into it, entered under its name, and served to the next one from there."""
    root = make_tree(tmp_path / "tree")
    manifest = scan(root)
    random = FileName("r-" + "0" * 32)

    async def work() -> None:
        caches = [Cache(tmp_path / f"cache-{number}", 400 * MB) for number in range(3)]
        async with cluster(authority, tmp_path) as both:
            both.at_manager.open[manifest.name] = both.at_manager.open[random] = lambda: ServedTree(manifest, root)
            content = os.urandom(3 * MB)
            refs = [both.at_manager.add(content), FileRef(manifest.name, manifest.size, "tree"), FileRef(random, -1, "result")]
            doors: list[PeerDoor] = []
            for number, cache in enumerate(caches):
                me, before = f"w{number + 10}", f"w{number + 9}"
                fetcher = both.make_fetcher(me)
                for ref in refs:
                    permit = authority.permit(ref.name, before, me)
                    source = FileSource(before, doors[-1].addresses, permit) if doors else both.from_manager()
                    path = await fetch_into_cache(fetcher, ref, source, cache)
                    assert path.name == ref.base
                    assert path.read_bytes() == content if path.is_file() else same_tree(path, root)
                await fetcher.close()
                doors.append(PeerDoor(both.connection, me, *authority.credential(WORKER, me), find_in(cache)))
                doors[-1].open("127.0.0.1")
            for door in doors:
                door.close()
            assert both.server.served == 3
            for cache in caches:
                cache.check()
                for ref in refs:
                    cache.discard(ref.name)  # which it could not while it has pins
                assert cache.names() == []
                cache.close()

    run(work)


async def fetch_into_cache(fetcher: Fetcher, ref: FileRef, source: FileSource, cache: Cache) -> Path:
    filling = await asyncio.to_thread(cache.fill, ref.name, ref.size)
    assert filling is not None
    arrival = Arrival(ref, filling.path, reserve=filling.grow)
    try:
        arrived = await fetcher.fetch(arrival, source)
        return await asyncio.to_thread(partial(filling.commit, ref.base, arrived.size, content=arrived.content, manifest=arrived.manifest))
    finally:
        await asyncio.to_thread(arrival.abandon)
        await asyncio.to_thread(filling.abort)


# ---------------------------------------------------------------- tools


class Gate:
    """Where the reading of a file stands still until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()


class Stopping:
    """A served file whose `read` stops at an offset."""

    tree = False

    def __init__(self, file: ServedFile, at: int, gate: Gate) -> None:
        self._file, self._at, self._gate = file, at, gate
        self.size = file.size

    def read(self, offset: int, count: int, /) -> bytes:
        if offset >= self._at:
            self._gate.reached.set()
            self._gate.go_on.wait(LIMIT)
        return self._file.read(offset, min(count, self._at - offset) if offset < self._at else count)

    def close(self) -> None:
        self._file.close()


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.002)


def content_of(arrival: Arrival) -> bytes:
    return Path(arrival.path).read_bytes()


def make_tree(root: Path) -> Path:
    """A tree with all that a tree may have."""
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "deep" / "er" / "data.bin").write_bytes(os.urandom(700_000))
    for number in range(50):
        (root / "deep" / f"a name\nof {number} ü").write_bytes(os.urandom(number * 100))
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "deep" / "link").symlink_to("../run.sh")
    (root / "deep" / "closed").mkdir(mode=0o555)
    return root


def same_tree(one: str | Path, other: str | Path) -> bool:
    return scan(one).name == scan(other).name


SERVE = """
import sys, threading
from windlass.fileserver import PlainFile
from windlass.identity import read_connection_file
from windlass.worker.peers import PeerDoor, find_in
import os
folder, stop_at = sys.argv[1], int(sys.argv[2])
class Stopping(PlainFile):
    def read(self, offset, count):
        if offset >= stop_at:
            threading.Event().wait()
        return super().read(offset, min(count, stop_at - offset))
def find(name):
    return Stopping(f"{folder}/{name}", os.stat(f"{folder}/{name}").st_size)
credential = [open(f"{folder}/{part}", "rb").read() for part in ("certificate", "key")]
door = PeerDoor(read_connection_file(f"{folder}/pilot.json"), "w1", *credential, find)
print(*door.open("127.0.0.1"), flush=True)
sys.stdin.read()
"""


@contextmanager
def serving_process(both: Cluster, content: bytes, stop_at: int) -> Generator[tuple[subprocess.Popen[str], str]]:
    """Worker ``w1`` as a process of its own, that serves this content up to a byte, and its address."""
    folder = both.folder / "process"
    folder.mkdir(mode=0o700)
    (folder / name_of(content)).write_bytes(content)
    for name, data in zip(("certificate", "key"), both.authority.credential(WORKER, "w1"), strict=True):
        (folder / name).write_bytes(data)
    (folder / "pilot.json").touch(mode=0o600)
    (folder / "pilot.json").write_bytes(both.authority.pilot_file.read_bytes())
    words = [sys.executable, "-c", SERVE, str(folder), str(stop_at)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


class Wire:
    """Carries bytes to one address; each connection in turn may have a fault."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._to = (host, int(port))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.connections = 0
        #: Of each connection to come: bytes towards the reader after which it is cut, or (negative) a bit is changed.
        self._faults: list[int] = []
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut_after(self, *counts: int) -> None:
        self._faults += counts

    def damage_after(self, *counts: int) -> None:
        self._faults += [-count for count in counts]

    def close(self) -> None:
        hang_up(self._listening)
        self._threads[0].join()
        for one in list(self._open):
            hang_up(one)
        for thread in self._threads:
            thread.join()
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(self._to)
            self.connections += 1
            fault = self._faults.pop(0) if self._faults else 0
            self._open |= {near, far}
            for one, other, its in ((near, far, 0), (far, near, fault)):
                self._threads.append(threading.Thread(target=self._carry, args=(one, other, its)))
                self._threads[-1].start()

    def _carry(self, one: socket.socket, other: socket.socket, fault: int) -> None:
        moved = 0
        try:
            while data := one.recv(1 << 16):
                if fault and moved + len(data) > abs(fault):
                    at = abs(fault) - moved
                    if fault > 0:
                        other.sendall(data[:at])
                        break
                    data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                    fault = 0
                other.sendall(data)
                moved += len(data)
        except OSError:
            pass
        for each in (one, other):
            hang_up(each)  # not with a reset: its other side would lose what it has not read yet, more or less
            each.close()
        self._open -= {one, other}


@asynccontextmanager
async def wire(address: str) -> AsyncGenerator[Wire]:
    network = Wire(address)
    try:
        yield network
    finally:
        await asyncio.to_thread(network.close)
