"""Rules of `windlass.worker.transfers`, with a real store; the way to the manager is `Wire`, which fails as told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass.bulk import NotNow, ObjectGone
from windlass.errors import ConnectionRefused
from windlass.messages import BAD_CALL, DIED, RETURNED, CallEnd, CallId, ObjectName, ObjectRef
from windlass.object_store import ObjectStore
from windlass.objects import write_results
from windlass.worker import transfers
from windlass.worker.transfers import REFUSALS, TransferFailed, Transfers

pytestmark = pytest.mark.asyncio


class Wire:
    """A manager's store at the other end; each transfer first raises the next of `troubles`."""

    def __init__(self, here: ObjectStore, there: ObjectStore) -> None:
        self.here, self.there = here, there
        self.troubles: list[Exception] = []
        self.tries = 0
        self.open = asyncio.Event()
        self.open.set()

    async def get(self, ref: ObjectRef, /) -> None:
        await self._move()
        if not self.there.has(ref.name):
            raise ObjectGone(f"object {ref.name}: the manager does not have it")
        self.here.adopt(ref.name, self.there.path(ref.name))

    async def put(self, name: ObjectName, path: str, /) -> None:
        await self._move()
        self.there.adopt(name, path)

    async def _move(self) -> None:
        self.tries += 1
        await self.open.wait()
        if self.troubles:
            raise self.troubles.pop(0)


class Desk:
    """A worker's transfers and what they told."""

    def __init__(self, folder: Path) -> None:
        self.store = ObjectStore(folder / "worker", 1 << 20)
        self.manager = ObjectStore(folder / "manager", 1 << 20)
        self.wire = Wire(self.store, self.manager)
        self.arrived: list[ObjectName] = []
        self.failed: list[tuple[ObjectName, int, str]] = []
        self.told: list[CallEnd] = []
        self.changed = asyncio.Event()
        self.rooms = 0
        self.begin_session()

    def begin_session(self) -> None:
        self.transfers = Transfers(self.store, self.wire, arrived=self._arrived, failed=self._failed, room_made=self._room_made)

    def _arrived(self, name: ObjectName) -> None:
        self.arrived.append(name)
        self.changed.set()

    def _failed(self, name: ObjectName, outcome: int, text: str) -> None:
        self.failed.append((name, outcome, text))
        self.changed.set()

    def _room_made(self) -> None:
        self.rooms += 1
        self.changed.set()

    def tell(self, end: CallEnd) -> None:
        self.told.append(end)
        self.changed.set()

    async def news(self) -> None:
        async with asyncio.timeout(10):
            await self.changed.wait()
        self.changed.clear()

    async def have(self, refs: list[ObjectRef]) -> None:
        """Hold these, and have them."""
        self.transfers.hold(refs)
        await self.transfers.obtain(refs)

    def result(self, data: bytes) -> CallEnd:
        """The end of a call whose slot wrote a large result."""
        return CallEnd(CallId(1), 1, RETURNED, b"", tuple(write_results(self.store.folder, [data])))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(transfers, "FIRST_PAUSE", 0.001)
    it = Desk(tmp_path)
    yield it
    it.store.close()
    it.manager.close()


async def test_one_fetch_serves_all_who_wait(desk: Desk) -> None:
    """And the object stays until the last of them releases it."""
    ref = desk.manager.put(b"a" * 1000)
    desk.wire.open.clear()
    assert desk.transfers.hold([ref]) == [ref.name]
    assert desk.transfers.hold([ref]) == [ref.name]
    desk.wire.open.set()
    await desk.news()
    assert desk.arrived == [ref.name]
    assert desk.wire.tries == 1
    assert desk.transfers.hold([ref]) == []
    for _ in range(2):
        desk.transfers.release([ref])
    desk.store.discard(ref.name)
    assert desk.store.has(ref.name), "one still holds it"
    desk.transfers.release([ref])
    assert not desk.store.has(ref.name)


async def test_what_the_store_has_is_not_fetched(desk: Desk) -> None:
    """Such as what an earlier call needed."""
    ref = desk.store.put(b"a" * 1000)
    assert desk.transfers.hold([ref]) == []
    await desk.have([ref])
    assert desk.wire.tries == 0


async def test_what_somebody_has_deleted_is_fetched_again(desk: Desk) -> None:
    """With the whole folder, as cleaners of /dev/shm do; while it is held, when a call has told that it lacked it."""
    ref = desk.manager.put(b"a" * 1000)
    for tries in (1, 2):
        await desk.have([ref])
        assert desk.wire.tries == tries
        desk.transfers.release([ref])
        shutil.rmtree(desk.store.folder)
    desk.store.check()
    await desk.have([ref])
    shutil.rmtree(desk.store.folder)
    await desk.have([ref])
    assert desk.wire.tries == 4
    shutil.rmtree(desk.store.folder)
    assert desk.transfers.hold([ref]) == [], "calls that hold what others hold cost no look at the disk"
    desk.transfers.look_again()
    desk.changed.clear()
    assert desk.transfers.hold([ref]) == [ref.name]
    await desk.news()
    for _ in range(4):
        desk.transfers.release([ref])
    desk.store.discard(ref.name)
    assert not desk.store.has(ref.name), "nobody holds it"
    desk.store.check()


async def test_a_cut_is_tried_again(desk: Desk) -> None:
    """A manager that cannot be reached is no failure of the call."""
    ref = desk.manager.put(b"a" * 1000)
    desk.wire.troubles = [ConnectionResetError("cut"), TimeoutError(), ConnectionRefused("not yet")]
    await desk.have([ref])
    assert desk.wire.tries == 4
    assert desk.failed == []


async def test_a_refusal_that_stays_is_a_failure_of_this_worker(desk: Desk) -> None:
    """The call may be tried again elsewhere."""
    ref = desk.manager.put(b"a" * 1000)
    desk.wire.troubles = [ConnectionRefused("no data for you") for _ in range(REFUSALS)]
    desk.transfers.hold([ref])
    await desk.news()
    assert desk.failed == [(ref.name, DIED, f"object {ref.name} of 1000 bytes could not be fetched: no data for you")]


async def test_what_the_manager_lacks_fails_those_who_wait_and_can_be_asked_for_again(desk: Desk) -> None:
    """With the text of the manager."""
    ref = ObjectRef(ObjectName("b3-" + "0" * 32), 5)
    with pytest.raises(TransferFailed, match=r"could not be fetched: object b3-0+: the manager does not have it") as caught:
        await desk.have([ref])
    assert caught.value.outcome == BAD_CALL
    assert [outcome for _, outcome, _ in desk.failed] == [BAD_CALL]
    desk.transfers.hold([ref])
    desk.changed.clear()
    await desk.news()
    assert desk.wire.tries == 2


async def test_a_full_disk_is_this_nodes_trouble(desk: Desk) -> None:
    """It says what did not fit, and where."""
    ref = desk.manager.put(b"a" * 1000)
    desk.wire.troubles = [OSError(28, "No space left on device")]
    desk.transfers.hold([ref])
    await desk.news()
    ((_, outcome, text),) = desk.failed
    assert outcome == DIED
    assert text.startswith(f"object {ref.name} of 1000 bytes could not be stored on ")
    assert "No space left on device" in text


async def test_who_asks_before_holds_no_more_than_the_store_takes(desk: Desk) -> None:
    """What is held counts once, and from the hold on; that some was released is told to who was refused."""
    desk.store.limit = 1000
    first, second = desk.manager.put(b"a" * 600), desk.manager.put(b"b" * 600)
    assert desk.transfers.lacks_room([first]) == ""
    for _ in range(2):
        await desk.have([first])
    assert desk.transfers.lacks_room([first]) == ""
    folder = desk.store.folder
    assert desk.transfers.lacks_room([first, second, second]) == (
        f"600 bytes more do not fit into the 1000 bytes of {folder}, of which 600 are in use"
    )
    desk.changed.clear()
    for _ in range(2):
        desk.transfers.release([first])
    await desk.news()
    assert desk.rooms == 1
    assert desk.transfers.lacks_room([second]) == ""
    await desk.have([second])
    desk.transfers.release([second])
    assert desk.rooms == 1, "nobody has been refused since"


async def test_an_object_waits_while_others_fill_the_store(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """They will let go what they hold: calls of an earlier session, for one. One that the store could never take does not wait."""
    desk.store.limit = 1000
    held = desk.store.put(b"h" * 600, pin=True)
    ref, large = desk.manager.put(b"a" * 600), desk.manager.put(b"l" * 1001)
    desk.transfers.hold([ref])
    while desk.wire.tries < 2:
        await asyncio.sleep(0)
    assert desk.failed == []
    desk.store.unpin(held.name)
    await desk.news()
    assert desk.arrived == [ref.name]
    desk.transfers.hold([large])
    desk.changed.clear()
    await desk.news()
    monkeypatch.setattr(transfers, "NO_ROOM_SECONDS", -1.0)
    other = desk.manager.put(b"o" * 600)
    desk.transfers.hold([other])
    await desk.news()
    assert [(name, outcome) for name, outcome, _ in desk.failed] == [(large.name, DIED), (other.name, DIED)]
    assert all("bytes are in use" in text for _, _, text in desk.failed)


async def test_an_argument_waits_while_the_manager_cannot_read_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trouble is not the call's; when it lasts the call may be tried again."""
    ref = desk.manager.put(b"a" * 1000)
    desk.wire.troubles = [NotNow("Too many open files"), NotNow("Too many open files")]
    desk.transfers.hold([ref])
    await desk.news()
    assert desk.wire.tries == 3
    assert desk.arrived == [ref.name]
    monkeypatch.setattr(transfers, "NO_ROOM_SECONDS", -1.0)
    late = desk.manager.put(b"b" * 1000)
    desk.wire.troubles = [NotNow("Too many open files")]
    desk.transfers.hold([late])
    await desk.news()
    assert desk.failed == [(late.name, DIED, f"object {late.name} of 1000 bytes could not be fetched: Too many open files")]


async def test_a_result_waits_while_the_manager_has_no_room(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was computed is not thrown away because a disk is full for a while; for ever it does not wait, as every call must end."""
    end = desk.result(b"r" * 1000)
    desk.wire.troubles = [NotNow("No space left on device"), NotNow("No space left on device")]
    desk.transfers.push(end, desk.tell)
    await desk.news()
    assert desk.wire.tries == 3
    assert desk.told == [end]
    assert end.outcome == RETURNED
    monkeypatch.setattr(transfers, "NO_ROOM_SECONDS", -1.0)
    late = desk.result(b"s" * 1000)
    desk.wire.troubles = [NotNow("No space left on device")]
    desk.transfers.push(late, desk.tell)
    await desk.news()
    assert late.outcome == BAD_CALL
    assert late.detail is not None
    assert late.detail.text == "the result of 1000 bytes could not be handed to the manager: No space left on device"


async def test_a_result_is_told_when_its_objects_are_there(desk: Desk) -> None:
    """Not before; then the worker's copy goes."""
    end = desk.result(b"r" * 1000)
    name = end.spans[0].name
    desk.wire.open.clear()
    desk.transfers.push(end, desk.tell)
    await asyncio.sleep(0)
    assert desk.told == []
    assert desk.transfers.pushing == 1
    desk.wire.open.set()
    await desk.news()
    assert desk.told == [end]
    assert desk.manager.has(name)
    assert not desk.store.has(name)
    assert desk.transfers.pushing == 0


async def test_a_result_that_cannot_be_sent_ends_the_call_with_the_reason(desk: Desk) -> None:
    """The user learns why there is no result."""
    end = desk.result(b"r" * 1000)
    desk.wire.troubles = [ConnectionResetError("cut"), ObjectGone("the manager's store is full")]
    desk.transfers.push(end, desk.tell)
    await desk.news()
    assert (end.outcome, end.spans) == (BAD_CALL, ())
    assert end.detail is not None
    assert end.detail.text == "the result of 1000 bytes could not be handed to the manager: the manager's store is full"


async def test_closing_gives_up_what_is_on_its_way(desk: Desk) -> None:
    """Nothing is told any more."""
    desk.wire.open.clear()
    desk.transfers.hold([desk.manager.put(b"a" * 1000)])
    desk.transfers.push(desk.result(b"r" * 1000), desk.tell)
    await asyncio.sleep(0)
    await desk.transfers.close()
    assert (desk.arrived, desk.failed, desk.told) == ([], [], [])


async def test_what_was_held_is_let_go_at_the_end_of_a_session(desk: Desk) -> None:
    """The next one begins with an empty store, by its count. Who releases late has nothing to release."""
    desk.store.limit = 1000
    held, coming = desk.manager.put(b"h" * 600), desk.manager.put(b"c" * 300)
    await desk.have([held])
    desk.wire.open.clear()
    desk.transfers.hold([coming])
    old = desk.transfers
    await old.close()
    desk.wire.open.set()
    desk.begin_session()
    large = desk.manager.put(b"l" * 900)
    assert desk.transfers.lacks_room([large]) == ""
    await desk.have([large])
    desk.transfers.release([large])
    await desk.have([held])
    old.release([held, coming])
    desk.store.discard(held.name)
    assert desk.store.has(held.name), "the new one holds it"


async def test_an_object_that_fails_while_an_earlier_one_is_on_its_way_says_why(desk: Desk) -> None:
    """And not that the store is full."""
    first, second = desk.manager.put(b"a" * 1000), desk.manager.put(b"b" * 1000)
    desk.wire.open.clear()
    desk.transfers.hold([first])
    while not desk.wire.tries:
        await asyncio.sleep(0)
    slow, desk.wire.open = desk.wire.open, asyncio.Event()
    desk.wire.open.set()
    desk.wire.troubles = [ObjectGone("the manager does not have it")]
    desk.transfers.hold([second])
    waiting = asyncio.create_task(desk.transfers.obtain([first, second]))
    await desk.news()
    assert [name for name, *_ in desk.failed] == [second.name]
    slow.set()
    with pytest.raises(TransferFailed, match="could not be fetched: the manager does not have it") as raised:
        await waiting
    assert raised.value.outcome == BAD_CALL
