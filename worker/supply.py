"""What calls need on a node beside their code: the object store, the cache of files, and the ways to both.

Theory of operation
-------------------
`set_up` makes store and cache, which last as long as the worker; `new_session` makes what knows of holds and of things under way, which
last as long as the manager knows this worker.  Objects go over data connections that the worker may open at once.  Files need the worker's
own certificate, since peers must know each other: the first file that is wanted hurries the enrolment (`needed`), and what is to be said
about files waits until then, so that the manager knows how peers reach this worker before it chooses a source for it; but for those that
were here before.

Where the disk takes no object, not even a folder, a link or a lock for a file, or where another user has made one of the folders anew
(`windlass.ownership`), the worker drains: what needs objects or files goes back, what runs goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from windlass import folders
from windlass.errors import FULL, Damaged, StoreFull, UsageError, WindlassError
from windlass.messages import (
    DIED,
    NO_FILE,
    CallEnd,
    CertificateIssued,
    DropFiles,
    EndDetail,
    FetchFile,
    FileHere,
    FileLost,
    FileName,
    FilePushed,
    FileRef,
    FilesGone,
    FileSource,
    Hello,
    Message,
    ObjectName,
    ObjectRef,
    PushFile,
    Serving,
    Welcome,
)
from windlass.object_store import ObjectStore
from windlass.ownership import NotOurs, require_ours
from windlass.store_folders import default_store_folder, default_store_limit, owner_of, remove_dead_folders
from windlass.worker.burden import Burden
from windlass.worker.file_locks import keep_from_cleaners
from windlass.worker.ground import CACHE
from windlass.worker.guardian import Guardian, remove_tree
from windlass.worker.memory import Cgroup, files_in_memory, read_text
from windlass.worker.shortcut import PLACES, Shortcut
from windlass.worker.slotlink import kept_folder
from windlass.worker.transfers import Transfers

if TYPE_CHECKING:
    from windlass.dataplane import DataClient
    from windlass.identity import ConnectionFile
    from windlass.worker.arrivals import Arrival, Arrived
    from windlass.worker.backlog import Backlog
    from windlass.worker.cache import Cache
    from windlass.worker.fetching import Fetcher
    from windlass.worker.files import FileKey, Files
    from windlass.worker.peers import PeerDoor

log = logging.getLogger("windlass.files")

#: Folders of so many bytes or files are read by who takes them in: a reader takes half a minute without an answer for a failure.
LARGE_TREE_BYTES: Final = 256 << 20
LARGE_TREE_FILES: Final = 5000


def _cgroups_of(store: str) -> tuple[str, str]:
    """What /proc says of the cgroups of the process whose store this is, if that is here, and this one's mounts."""
    owner = owner_of(store)
    return (read_text(f"/proc/{owner}/cgroup"), read_text("/proc/self/mountinfo")) if owner else ("", "")


class Supply:
    """A worker's store and cache. ``say`` tells the manager; ``trouble`` is told that this node cannot keep files."""

    def __init__(
        self,
        worker: str,
        connection: ConnectionFile,
        hello: Callable[[], Hello],
        welcome: Welcome,
        say: Callable[[Message], None],
        trouble: Callable[[str], None],
    ) -> None:
        self._worker, self._connection, self._hello, self._welcome = worker, connection, hello, welcome
        self._say_now, self._trouble = say, trouble
        self._in_trouble = False
        #: Set when there is a reason to enrol at once.
        self.needed = asyncio.Event()
        self._enrolled = asyncio.Event()
        self._certificate: tuple[bytes, bytes] | None = None
        self._data: DataClient | None = None
        self._fetcher: Fetcher | None = None
        self._door: PeerDoor | None = None
        self._opening: asyncio.Task[None] | None = None
        #: Messages about files that wait until this worker can be reached.
        self._unsaid: list[Message] = []
        self._scratch = ""
        #: The shared folder cannot be used.
        self._alone = False
        #: Ends of calls whose results are being taken into the cache.
        self._keeping = 0
        self._files: Files | None = None
        #: Where the store is in memory to which this worker is held.
        self._burden: Burden | None = None
        self._backlog: Backlog
        self.store: ObjectStore
        #: To the scratch folder.
        self.shortcut: Shortcut
        self.transfers: Transfers

    # ------------------------------------------------------------ the worker's life

    def set_up(self, scratch: str, memory_limit: int, guardian: Guardian, groups: Sequence[Cgroup] = ()) -> None:
        """Make the store, and the cache's folder. ``groups``: the memory cgroups that this worker is in. Raises `OSError`."""
        # A batch system that ends a whole job by SIGKILL ends the guardian too; what that leaves goes with the next worker here.
        self._spawn(_sweep(os.path.dirname(scratch), *PLACES))
        folder = default_store_folder("worker", scratch, guardian.folder)
        limit = default_store_limit(folder)
        if str(folder).startswith("/dev/shm"):
            limit = min(limit, memory_limit // 4)  # these files count as the pilot's memory
            if groups:
                self._burden = Burden(groups, memory_limit, partial(files_in_memory, groups))
                self._burden.use_manager(*_cgroups_of(self._welcome.store))
        self.store = ObjectStore(folder, limit)
        os.mkdir(os.path.join(scratch, CACHE), 0o700)
        keep_from_cleaners(scratch)  # to the end of this process
        self._scratch = scratch
        self.shortcut = Shortcut(scratch, guardian.folder)
        if self.shortcut.trouble:
            log.warning("%s", self.shortcut.trouble)

    def new_session(self, backlog: Backlog) -> Transfers:
        """The manager knows of nothing that is held or under way."""
        self._backlog = backlog
        self.transfers = Transfers(self.store, self, arrived=backlog.arrived, failed=backlog.failed, room_made=backlog.room_made)
        files, self._files = self._files, None
        self._unsaid.clear()
        if files is not None:
            files.cache.forget_results()
            self._files = self._make_files(files.cache)
            self._spawn(files.close())
        if self._enrolled.is_set():  # this session knows nothing of our door
            self._say_now(Serving(self._door.addresses if self._door is not None else ()))
        return self.transfers

    def use_welcome(self, welcome: Welcome) -> None:
        """Which session this is, and whether the manager is on this host."""
        self._welcome = welcome
        if self._burden is not None:
            self._burden.use_manager(*_cgroups_of(welcome.store))
        if self._data is not None:
            self._data.use_welcome(welcome)
        if self._fetcher is not None:
            self._fetcher.session = welcome.session

    @property
    def has_certificate(self) -> bool:
        """`use_certificate` was called."""
        return self._certificate is not None

    def use_certificate(self, message: CertificateIssued, key: bytes) -> None:
        """This worker has a name of its own now."""
        self._certificate = (message.certificate, key)
        if self._data is not None:
            self._data.use_certificate(message.certificate, key)
        if self.needed.is_set():
            self._opening = self._spawn(self._open())

    async def close(self) -> None:
        """Give up all that is under way and remove what is here."""
        if self._opening is not None:
            self._opening.cancel()
        if self._files is not None:
            await self._files.close()
        if self._fetcher is not None:
            await self._fetcher.close()
        if self._door is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._door.close)
        if hasattr(self, "transfers"):
            await self.transfers.close()
        if self._data is not None:
            await self._data.close()
        if self._files is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._files.cache.close)

    def look(self) -> None:
        """Where another user has made one of the folders anew nothing can be kept any more: let others serve."""
        try:
            for folder in (self._scratch, self.shortcut.path, self.store.folder):
                require_ours(folder)
            self.shortcut.keep()
        except NotOurs as error:
            self._cannot_keep(error)

    def remove(self) -> None:
        """Remove the store's folder and the link; the cache is in the scratch folder. Last of all what dead processes have left in memory:
        a program that was killed, with which its local pilots leave, has no guardian to clear it. (Not what is on disks: it may be large,
        and this node is held meanwhile; it goes with the next worker.)"""
        if hasattr(self, "shortcut"):
            self.shortcut.remove()
        if hasattr(self, "store"):
            remove_tree(str(self.store.folder))
            remove_dead_folders("/dev/shm")

    # ------------------------------------------------------------ objects

    async def get(self, ref: ObjectRef, /) -> None:
        """See `windlass.worker.transfers.Data`."""
        try:
            await self._data_client().get(ref)
        except (NotOurs, StoreFull) as error:
            if isinstance(error, NotOurs) or error.errno in FULL:
                self._cannot_keep(error)  # it drains before the fetch is known to have failed: its calls go back
            raise

    async def put(self, name: ObjectName, path: str, /) -> None:
        """See `windlass.worker.transfers.Data`."""
        data, burden = self._data_client(), self._burden
        if burden is not None and data.shares_host and os.path.dirname(path) == os.fspath(self.store.folder):
            await data.put(name, path, as_bytes=burden.is_heavy(os.stat(path).st_size))
        else:
            await data.put(name, path)

    def _data_client(self) -> DataClient:
        if self._data is None:
            from windlass.dataplane import DataClient

            self._data = DataClient(self._connection, self._hello, self.store)
            self._data.use_welcome(self._welcome)
            if self._certificate is not None:
                self._data.use_certificate(*self._certificate)
        return self._data

    # ------------------------------------------------------------ results that stay

    @property
    def pushing(self) -> int:
        """Ends of calls that wait for their objects to be sent, or to be kept."""
        return self.transfers.pushing + self._keeping

    def keep(self, end: CallEnd, tell: Callable[[CallEnd], None]) -> None:
        """Take the parts of a result into the cache, then ``tell`` the end; a failed one where there is no room."""
        self._keeping += 1
        self._spawn(self._keep(end, tell))

    async def _keep(self, end: CallEnd, tell: Callable[[CallEnd], None]) -> None:
        from windlass.blocking import in_thread

        try:
            files, made = self.files, end.made()
            await in_thread(partial(self._take_in, files.cache, made))
        except Exception as error:  # of a defect too the end is told, or the call would never have one
            if not isinstance(error, (OSError, WindlassError)):
                log.exception("a defect of Windlass: a result could not be kept")
            text = f"the result could not be kept on {os.uname().nodename}: {error}"
            end.outcome, end.payload, end.detail = NO_FILE, b"", EndDetail(text=text)
            if isinstance(error, StoreFull):
                end.outcome = DIED  # want of room is the node's trouble: worth a retry elsewhere
            if isinstance(error, OSError) and error.errno in FULL:
                self._cannot_keep(error)  # or who comes next would run in vain
            end.spans, end.kept, end.outputs = (), False, ()
        else:
            for ref in made:
                files.made(ref.name, ref.size)
        finally:
            self._keeping -= 1
        if end.spans and not end.kept:
            self.transfers.push(end, tell)
        else:
            tell(end)

    def _take_in(self, cache: Cache, made: Sequence[FileRef]) -> None:
        """On a thread. What the cache does not take is removed: where it is, no limit counts it."""
        folder = kept_folder(str(cache.folder))
        try:
            for ref in made:
                filling = cache.fill(ref.name, ref.size, on_disk=True)
                if filling is None:  # made again here
                    continue
                with filling:
                    os.rename(os.path.join(folder, ref.name), filling.path)
                    filling.commit(ref.base, ref.size, manifest=_manifest_of(filling.path, ref.size))
        finally:
            for ref in made:
                folders.remove_tree(os.path.join(folder, ref.name))

    async def _push(self, name: FileName) -> None:
        """Put a result that stayed here into the manager's store."""
        cache, text = self.files.cache, ""
        try:
            cache.pin(name)
        except KeyError:
            self._say(FilesGone((name,)))
            self._say_now(FilePushed(name, "it is not in the worker's cache any more"))
            return
        try:
            facts = cache.facts(name)
            path = cache.path(name, os.fsdecode(facts.base))
            if path.is_dir():
                raise UsageError(
                    f"{name} is a folder, which goes from one worker to another only; have the call that makes it pack it into one file"
                    " (tar -cf), and take that"
                )
            if path.stat().st_size != facts.size:
                cache.discard(name)
                self._say(FilesGone((name,)))
                raise Damaged(f"{name} was cut in the cache of {os.uname().nodename}")
            with suppress(OSError):  # where no further name can be had its bytes are sent
                named = cache.path(name, name)  # under that a manager of this host takes the file itself
                path = path if named.is_symlink() else named
            await self.put(ObjectName(name), str(path))
        except (OSError, ValueError, WindlassError, KeyError) as error:
            text = f"{error}"
        finally:
            cache.unpin(name)
        self._say_now(FilePushed(name, text))

    # ------------------------------------------------------------ files

    def hold(self, refs: Sequence[FileRef], /) -> list[FileKey]:
        """See `windlass.worker.files.Files.hold`. Where the disk does not take what that needs, all are missing until the drain."""
        try:
            return self.files.hold(refs)
        except OSError as error:
            self._cannot_keep(error)
            from windlass.worker.files import key_of

            return [key_of(ref.name) for ref in refs]

    def release(self, refs: Sequence[FileRef], /) -> None:
        """A call does not need these any more."""
        if self._files is not None:
            self._files.release(refs)

    def _cannot_keep(self, error: OSError) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            remedy = "" if isinstance(error, (NotOurs, StoreFull)) else "; free space in the worker's scratch"
            text = f"files cannot be kept on {os.uname().nodename}: {error}{remedy}"
            asyncio.get_running_loop().call_soon(self._trouble, text)  # the backlog, which drains then, may be asking

    def heard(self, message: FetchFile | FileLost | DropFiles | PushFile) -> None:
        """The manager has said something about a file."""
        if isinstance(message, PushFile):
            self._spawn(self._push(message.name))
            return
        try:
            self.files.heard(message)
        except OSError as error:
            self._cannot_keep(error)

    @property
    def used(self) -> int:
        """Bytes of the objects and files that are here."""
        return self.store.used + (self._files.cache.used if self._files is not None else 0)

    @property
    def files(self) -> Files:
        """The cache and what is known of it; made when a file is first needed. Raises `OSError`."""
        if self._files is None:
            from windlass.worker.cache import Cache

            self._files = self._make_files(Cache(Path(self._scratch, CACHE), default_store_limit(self._scratch)))
        return self._files

    def _share(self) -> None:
        """Use the folder of files that outlive their worker, which this user's workers on this node share."""
        cache = self.files.cache
        if self._alone or cache.forever is not None:
            return
        from windlass.worker.cache_shared import SharedCache

        shared = Path(os.path.dirname(self._scratch), f"windlass-files-{os.getuid()}")
        try:
            forever = SharedCache(shared, cache.limit)
            (cache.folder / "forever").symlink_to(shared)
        except (OSError, UsageError) as error:
            self._alone = True
            log.warning("files are not shared with other workers of this node: %s", error)
        else:
            cache.forever = forever

    def _make_files(self, cache: Cache) -> Files:
        from windlass.worker.files import Files

        backlog = self._backlog

        def later(key: str) -> None:
            backlog.give_back_for(key, "files")

        return Files(cache, self._fetch, self._say, backlog.arrived, backlog.failed, later, self._share)

    def _say(self, message: Message) -> None:
        """Tell the manager, in order; what it answers with a source, when it knows how peers reach this worker."""
        if self._enrolled.is_set():
            self._say_now(message)
            return
        if isinstance(message, FileHere) and not self._unsaid:
            self._say_now(message)  # before its call has ended, or who prunes the file then would leave what nobody knows of
        else:
            self._unsaid.append(message)
        self.needed.set()
        if self._certificate is not None and self._opening is None:
            self._opening = self._spawn(self._open())

    async def _open(self) -> None:
        """Open the door for peers; without one this worker only reads."""
        from windlass.blocking import in_thread
        from windlass.worker.fetching import Fetcher
        from windlass.worker.peers import PeerDoor, address_towards, find_in

        assert self._certificate is not None
        certificate, key = self._certificate
        self._fetcher = Fetcher(self._connection, self._worker, certificate, key, session=self._welcome.session)
        door = PeerDoor(self._connection, self._worker, certificate, key, find_in(self.files.cache))
        try:
            host = await in_thread(partial(address_towards, self._connection.addresses))
            addresses = door.open(host)
        except (OSError, UsageError) as error:
            log.warning("peers cannot fetch files from this worker: %s", error)
            addresses = ()
        else:
            self._door = door
        self._say_now(Serving(addresses))
        self._enrolled.set()
        unsaid, self._unsaid = self._unsaid, []
        for message in unsaid:
            self._say_now(message)

    async def _fetch(self, arrival: Arrival, source: FileSource, /) -> Arrived:
        await self._enrolled.wait()
        assert self._fetcher is not None
        return await self._fetcher.fetch(arrival, source)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_say_defect)
        return task


def _manifest_of(path: Path, size: int) -> bytes:
    """The manifest, encoded, of a folder whose first reader would have to wait too long for it to be made; of others it is made then."""
    if not path.is_dir() or (size < LARGE_TREE_BYTES and sum(len(files) for _, _, files in os.walk(path)) < LARGE_TREE_FILES):
        return b""
    from windlass.trees import scan

    try:
        return scan(path).encode()
    except WindlassError as error:  # something in the call's program writes there still, say: who asks for it hears that
        log.info("no manifest of %s yet: %s", path, error)
        return b""


def _say_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("a defect of Windlass in the worker's supply of files", exc_info=task.exception())


async def _sweep(*bases: str) -> None:
    """Remove what others have left, however long that takes: on a thread that the process's end does not wait for."""
    from windlass.blocking import in_thread

    for base in dict.fromkeys(bases):
        with suppress(OSError):
            await in_thread(partial(remove_dead_folders, base))
