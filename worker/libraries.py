"""The library instances of a worker and the functions that their calls name.

Theory of operation
-------------------
`StartLibrary` makes the instance known to the backlog at once, so that calls may follow right behind it; then the objects that
the library names (code snapshots, large functions) are fetched, its functions are written where slots look for them, and only
then its zygote is started. A function is a file in `functions_folder`, named by its id, written whole or not at all; several
libraries may name the same one.

What an instance reports comes through `_Events`, one for each instance, so that each report is known to be of that instance
also after it was stopped; then it is dropped, for the backlog has already given its calls back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from windlass.blocking import in_thread
from windlass.errors import ConnectionRefused, UsageError, WindlassError
from windlass.messages import (
    CANCELLED,
    DIED,
    OUT_OF_MEMORY,
    TIMED_OUT,
    AddFunctions,
    CallEnd,
    CallRun,
    FileRef,
    ForgetFunctions,
    FunctionDef,
    FunctionId,
    HeldCall,
    InstanceId,
    LibraryFailed,
    LibraryReady,
    LibraryStopped,
    Message,
    ObjectRef,
    PoolEnvironment,
    Resources,
    SetSlots,
    StartLibrary,
    StopLibrary,
)
from windlass.ownership import require_ours
from windlass.worker import importcost
from windlass.worker.arrivals import CannotKeep
from windlass.worker.backlog import Backlog
from windlass.worker.environment import complete
from windlass.worker.guardian import remove_tree
from windlass.worker.lifetime import PER_BATCH
from windlass.worker.slotlink import room_name
from windlass.worker.transfers import TransferFailed, Transfers

if TYPE_CHECKING:
    from windlass.worker.files import Files
    from windlass.worker.gpus import Gpus
    from windlass.worker.instance import LibraryInstance

log = logging.getLogger("windlass.worker")

#: Seconds that slots get to end before they are killed when an instance is stopped; a stopped instance runs no calls.
STOP_GRACE: Final = 1.0


class Entry:
    """One instance and what it holds."""

    def __init__(self, message: StartLibrary, library: LibraryInstance, environment: FileRef | None) -> None:
        self.spec = message.spec
        #: What it runs in; None: what the worker runs in.
        self.environment = environment
        self.library = library
        self.slots = message.slots
        self.gpu_ids = message.gpu_ids
        self.started = False
        self.ready = False
        self.refs: tuple[ObjectRef, ...] = (*message.spec.code, *(ref for each in message.spec.functions for ref in _refs(each)))
        #: What keeps its environment on this node, once it does: another session has another one.
        self.kept_by: Files | None = None
        self.task: asyncio.Task[None] | None = None


class Libraries:
    """All instances of a worker."""

    def __init__(
        self,
        backlog: Backlog,
        transfers: Transfers,
        say: Callable[[Message], None],
        ran: Callable[[Iterable[float]], None],
        trouble: Callable[[str], None],
        scratch: Path,
        store_folder: Path,
        functions_folder: Path,
        environment: PoolEnvironment | None,
        gpus: Gpus,
        *,
        files: Callable[[], Files],
        shortcut: str = "",
    ) -> None:
        self._files, self._gpus = files, gpus
        #: What libraries run in that have no environment of their own; None: what the worker runs in.
        self._environment = environment
        self._backlog = backlog
        self._transfers = transfers
        self._say = say
        self._ran = ran
        #: Told when this node cannot have what must be written or fetched: other workers do better.
        self._trouble = trouble
        self._scratch, self._shortcut = scratch, shortcut
        self._store_folder = store_folder
        self._functions_folder = functions_folder
        self.entries: dict[InstanceId, Entry] = {}
        self._functions: dict[FunctionId, tuple[ObjectRef, ...]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: Instances that are being stopped.
        self._stopping: set[LibraryInstance] = set()
        self._end = (float("inf"), False)
        self._cost_told = False
        if environment is not None:
            self._spawn(self._have_environment())

    # ------------------------------------------------------------ what the manager says

    def start(self, message: StartLibrary) -> None:
        """Start an instance."""
        from windlass.worker.instance import LibraryInstance

        if message.instance in self.entries:
            return
        library = LibraryInstance(
            message.spec,
            message.instance,
            scratch=self._scratch,
            store_folder=self._store_folder,
            functions_folder=self._functions_folder,
            events=_Events(self, message.instance),
            gpus=self._gpus,
            shortcut=self._shortcut,
        )
        library.tell_end(*self._end)
        pools = self._environment.unpacked if self._environment is not None else None
        entry = self.entries[message.instance] = Entry(message, library, message.spec.environment or pools)
        if entry.refs:
            self._transfers.hold(entry.refs)
        self._backlog.add(message.instance, library, message.slots)
        if entry.refs or entry.environment is not None:
            entry.task = self._spawn(self._start_when_there(message.instance, entry))
        else:
            self._start_now(message.instance, entry)

    def set_slots(self, message: SetSlots) -> None:
        """Give an instance another number of slots."""
        entry = self.entries.get(message.instance)
        if entry is None:
            return
        entry.slots, entry.gpu_ids = message.slots, message.gpu_ids
        if entry.started:
            entry.library.set_slots(message.slots, message.gpu_ids)
        self._backlog.set_slots(message.instance, message.slots)

    def stop(self, message: StopLibrary) -> None:
        """End an instance, and say when it has ended."""
        entry = self._take_out(message.instance)
        if entry is None:
            self._say(LibraryStopped(message.instance))
        else:
            self._spawn(self._stop(message.instance, entry))

    def add_functions(self, message: AddFunctions) -> None:
        """Calls will name these."""
        for function in message.functions:
            if function.id in self._functions:
                continue
            refs = self._functions[function.id] = _refs(function)
            if refs:
                self._transfers.hold(refs)
                self._backlog.expect(function.id)
                self._spawn(self._add_when_there(function, refs))
                continue
            try:
                self._write(function)
            except OSError as error:
                self._backlog.expect(function.id)  # its calls wait, and go back with the drain
                self._trouble(_cannot_write(function, error))

    def forget_functions(self, message: ForgetFunctions) -> None:
        """Calls will name these no more."""
        for function in message.functions:
            refs = self._functions.pop(function, None)
            if refs is None:
                continue
            self._backlog.forget(function)
            self._transfers.release(refs)
            with contextlib.suppress(OSError):
                os.unlink(self._functions_folder / function.hex())

    # ------------------------------------------------------------ for the worker

    def tell_end(self, ends_at: float, warned: bool) -> None:
        """Let all calls know, now and later, when the pilot will end them, and whether that is near."""
        self._end = (ends_at, warned)
        for entry in self.entries.values():
            entry.library.tell_end(ends_at, warned)

    def slots(self) -> int:
        """Slots of all instances."""
        return sum(entry.slots for entry in self.entries.values())

    @property
    def starting(self) -> bool:
        """Whether an instance is on its way."""
        return any(not entry.ready for entry in self.entries.values())

    def oldest(self, now: float) -> float:
        """Seconds that the longest running call has run; `now` by the monotonic clock."""
        starts = [slot.since for entry in self.entries.values() for slot in entry.library.running()]
        return max(0.0, now - min(starts)) if starts else 0.0

    def watching(self) -> tuple[HeldCall, ...]:
        """Running calls that have registered for the pilot's end."""
        running = (call for entry in self.entries.values() for call in entry.library.running())
        return tuple(HeldCall(call.call, call.attempt) for call in running if call.watches)

    def running(self) -> int:
        """Calls that run now."""
        return sum(len(entry.library.running()) for entry in self.entries.values())

    def trim_captures(self) -> None:
        """Give back memory that calls have filled with output; to be called every few seconds."""
        for entry in self.entries.values():
            entry.library.trim_captures()

    def go_on_alone(self) -> None:
        """Nobody is to be told of these instances any more."""
        self._say = _unheard

    def let_idle_go(self) -> None:
        """Nothing more is fed: idle slots leave now, with their GPUs, busy ones after their calls; what has not started does not start."""
        for instance, entry in list(self.entries.items()):
            if entry.started:
                entry.library.set_slots(0)  # not ``entry.slots``, by which `occupied_by` counts
            elif entry.task is not None:
                self._take_out(instance)

    def occupied_by(self, calls: Iterable[CallRun]) -> Resources:
        """Cores that these calls occupy, and GPUs: a call of several slots has those of the one that it runs in."""
        numbers, weights = Counter[InstanceId](), Counter[InstanceId]()
        for call in calls:
            numbers[call.instance] += 1
            weights[call.instance] += call.weight
        cores, gpus = 0.0, 0
        for instance, number in numbers.items():
            entry = self.entries.get(instance)
            if entry is not None:  # where a slot runs many at once, there are more calls than slots
                slots = weights[instance] if entry.spec.concurrency == 1 else min(weights[instance], entry.slots)
                cores += slots * (entry.spec.per_slot.cores or 1.0)
                gpus += min(number, slots) * entry.spec.per_slot.gpus
        return Resources(cores, 0, gpus)

    def close(self, grace: float) -> Coroutine[object, None, None]:
        """End all instances with all that they run; await what this gives. From this call on nothing they report is heard.

        Their calls are not given back one by one: they go back with the goodbye, or are known to be lost.
        """
        instances = [*self._stopping, *(entry.library for entry in self.entries.values())]
        self.entries.clear()
        return self._close(instances, grace)

    async def _close(self, instances: list[LibraryInstance], grace: float) -> None:
        await asyncio.gather(*(instance.stop(grace) for instance in instances), return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ what instances report

    def on_ready(self, instance: InstanceId, message: LibraryReady) -> None:
        entry = self.entries.get(instance)
        if entry is not None:
            entry.ready = True
            self._say(message)
            self._tell_cost(entry.library.spec.name, message)
            self._backlog.serves(instance)

    def on_noted(self, instance: InstanceId, message: LibraryReady) -> None:
        """It does not run as asked, which its slots have found."""
        entry = self.entries.get(instance)
        if entry is not None:
            self._say(message)
            log.warning("library %s: %s", entry.library.spec.name, message.notes[-1])

    def _tell_cost(self, name: str, ready: LibraryReady) -> None:
        """Say once that imports are slow, and how slow."""
        note = next((note for note in ready.notes if note.startswith(importcost.MARK)), "")
        if note and not self._cost_told:
            self._cost_told = True
            seconds = sum(spent.seconds for spent in ready.imports)
            log.warning("library %s: %s; this start's imports took %.3g s", name, note, seconds)

    def on_failed(self, instance: InstanceId, message: LibraryFailed) -> None:
        """It serves no more; by this node's fault ("node"): the manager hears of the drain first, lest it tries here again."""
        if message.kind == "node" and instance in self.entries:
            message = msgspec.structs.replace(message, kind="crash")
            self._trouble(message.text)
        entry = self._take_out(instance, tell=message)
        if entry is not None:
            self._spawn(self._stop(instance, entry, say=False))

    def on_ended(self, instance: InstanceId, ends: list[CallEnd]) -> None:
        if instance in self.entries:
            # A few of a large batch do: this is for telling calls of minutes from calls of milliseconds.
            sample = ends if len(ends) <= PER_BATCH else ends[:: len(ends) // PER_BATCH]
            for end in ends:
                if end.outcome in (DIED, TIMED_OUT, OUT_OF_MEMORY, CANCELLED):
                    self._clear_room(self.entries[instance], end)
            self._ran([end.ended_at - end.started_at for end in sample if end.started_at])
            self._backlog.ended(instance, ends)

    def _clear_room(self, entry: Entry, end: CallEnd) -> None:
        """A call that was killed has left its own directory, if it had one."""
        room = entry.library.folder / "work" / room_name(end.call, end.attempt)
        if room.is_dir() or room.is_symlink():
            self._spawn(_clear(str(room)))

    def on_lost(self, instance: InstanceId, calls: Sequence[HeldCall], reason: str) -> None:
        if instance in self.entries:
            self._backlog.lost(instance, calls, reason)

    def on_room(self, instance: InstanceId) -> None:
        self._backlog.room(instance)

    def on_trouble(self, text: str) -> None:
        self._trouble(text)

    # ------------------------------------------------------------ inside

    def _take_out(self, instance: InstanceId, tell: Message | None = None) -> Entry | None:
        """The instance serves no more; its calls go back after the manager was told why."""
        entry = self.entries.pop(instance, None)
        if entry is None:
            return None
        if tell is not None:
            self._say(tell)
        if entry.task is not None:
            entry.task.cancel()
        if entry.refs:
            self._transfers.release(entry.refs)
        if entry.kept_by is not None and entry.environment is not None:
            # Its processes may still run in it: they end at once, and what they have open stays theirs.
            entry.kept_by.release([entry.environment])
            entry.kept_by = None
        self._backlog.gone(instance)
        return entry

    def _start_now(self, instance: InstanceId, entry: Entry) -> None:
        try:
            for function in entry.spec.functions:
                self._write(function)
            entry.started = True
            entry.library.start(entry.slots, entry.gpu_ids)
        except OSError as error:
            self.on_failed(
                instance, LibraryFailed(instance, "node", f"library {entry.spec.name} cannot start on {os.uname().nodename}: {error}")
            )

    async def _start_when_there(self, instance: InstanceId, entry: Entry) -> None:
        try:
            await self._transfers.obtain(entry.refs)
        except TransferFailed as error:
            entry.task = None
            # A full disk is this node's trouble, and other workers may try; what is nowhere is nowhere.
            anywhere = isinstance(error.__cause__, ConnectionRefused) or not self._transfers.could_hold(entry.refs)
            kind = "function" if error.outcome != DIED else "crash" if anywhere else "node"
            self.on_failed(instance, LibraryFailed(instance, kind, f"library {entry.spec.name}: {error}"))
            return
        if entry.environment is not None and not await self._enter_environment(instance, entry, entry.environment):
            return
        entry.task = None
        self._start_now(instance, entry)

    async def _enter_environment(self, instance: InstanceId, entry: Entry, ref: FileRef) -> bool:
        """Have the library's environment on this node; False when it cannot be had, which is told."""
        own = entry.spec.environment is not None
        try:
            files = self._files()
            folder = await files.obtain(ref, patient=True)
            entry.kept_by = files
            python = os.path.join(folder, "bin", "python3")
            if not os.access(python, os.X_OK):
                raise _no_python(ref, folder, python)
        except (OSError, WindlassError) as error:
            entry.task = None
            here = isinstance(error, OSError)  # this node's disk
            if own or self._environment is None:
                kind, text = "node" if here else "function", f"the environment of library {entry.spec.name}: {error}"
            else:  # other pools may have another one, and other nodes more room
                kind = "node" if here else "crash" if isinstance(error, CannotKeep) else "python"
                text = _cannot_enter(self._environment, error)
            self.on_failed(instance, LibraryFailed(instance, kind, text))
            return False
        entry.library.python = python
        return True

    async def _have_environment(self) -> None:
        """Fetch what libraries will run in, before the first of them asks, and keep it."""
        assert self._environment is not None
        try:
            complete(await self._files().obtain(self._environment.unpacked, patient=True))
        except (OSError, WindlassError) as error:
            log.error("%s", _cannot_enter(self._environment, error))

    async def _stop(self, instance: InstanceId, entry: Entry, *, say: bool = True) -> None:
        self._stopping.add(entry.library)
        try:
            await entry.library.stop(STOP_GRACE)
        except asyncio.CancelledError:
            say = False  # nobody is to hear of it any more
            raise
        finally:
            self._stopping.discard(entry.library)
            if say:
                self._say(LibraryStopped(instance))

    async def _add_when_there(self, function: FunctionDef, refs: tuple[ObjectRef, ...]) -> None:
        try:
            there = await self._obtain(function, refs)
        except TransferFailed as error:
            text = f"function {function.name}: {error}"
            if error.outcome == DIED and self._transfers.could_hold(refs):
                self._trouble(text)  # its calls wait, and go back with the drain; to end each would make this the quickest worker of all
            else:
                self._functions[function.id] = ()
                self._transfers.release(refs)
                self._backlog.failed(function.id, error.outcome, text)
            return
        if not there:
            return
        try:
            self._write(function)
        except OSError as error:
            self._trouble(_cannot_write(function, error))
        else:
            self._backlog.arrived(function.id)

    async def _obtain(self, function: FunctionDef, refs: tuple[ObjectRef, ...]) -> bool:
        """Wait for what the function needs; again where the manager refuses it, as one that was started anew takes this worker back.

        False: it was forgotten meanwhile, and with that let go; it may have been added again.
        """
        while self._functions.get(function.id) is refs:
            try:
                await self._transfers.obtain(refs)
            except TransferFailed as error:
                if self._functions.get(function.id) is not refs:
                    break
                if not isinstance(error.__cause__, ConnectionRefused):
                    raise
                self._backlog.failed(function.id, error.outcome, f"function {function.name}: {error}")
                self._backlog.expect(function.id)
            else:
                return self._functions.get(function.id) is refs
        return False

    def _write(self, function: FunctionDef) -> None:
        """Put a function where slots look for it."""
        require_ours(self._scratch)
        path = os.fspath(self._functions_folder / function.id.hex())
        if os.path.exists(path):
            return
        temporary = f"{path}.{os.urandom(4).hex()}"
        try:
            with open(temporary, "wb") as file:
                file.write(msgspec.msgpack.encode(function))
            os.rename(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _spawn(self, work: Coroutine[object, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a defect of Windlass", "exception": task.exception(), "task": task}
            )


class _Events:
    """What one instance reports."""

    def __init__(self, libraries: Libraries, instance: InstanceId) -> None:
        self._libraries = libraries
        self._instance = instance

    def ready(self, message: LibraryReady) -> None:
        self._libraries.on_ready(self._instance, message)

    def noted(self, message: LibraryReady) -> None:
        self._libraries.on_noted(self._instance, message)

    def failed(self, message: LibraryFailed) -> None:
        self._libraries.on_failed(self._instance, message)

    def ended(self, ends: list[CallEnd]) -> None:
        self._libraries.on_ended(self._instance, ends)

    def lost(self, calls: list[HeldCall], reason: str = "instance") -> None:
        self._libraries.on_lost(self._instance, calls, reason)

    def room(self) -> None:
        self._libraries.on_room(self._instance)

    def trouble(self, text: str) -> None:
        self._libraries.on_trouble(text)


def _refs(function: FunctionDef) -> tuple[ObjectRef, ...]:
    """The objects that a function needs."""
    return (*((function.object,) if function.object is not None else ()), *function.code)


def _cannot_enter(environment: PoolEnvironment, error: Exception) -> str:
    text = f"the environment's archive {environment.path} cannot be had on {os.uname().nodename}: {error}"
    if isinstance(error, OSError):
        return text  # by this node's disk
    return f"{text}; if it is not what it was when the factory began, pack it again and start the factory again"


def _no_python(ref: FileRef, folder: str, python: str) -> OSError | UsageError:
    """Why an environment's Python cannot be started: by this node, or as there is none."""
    # access(2) says no to all programs where their file system is mounted so, whatever their modes.
    if os.path.exists(python) and os.stat(python).st_mode & 0o111:
        where = os.path.dirname(folder)
        return OSError(f"programs in {where} cannot be started (is it mounted noexec?); scratch= names a folder where they can")
    return UsageError(f"{ref.base} has no bin/python3: make it by  windlass environment pack,  or by conda-pack")


def _cannot_write(function: FunctionDef, error: OSError) -> str:
    return f"function {function.name} could not be stored on {os.uname().nodename}: {error}; free space in the worker's scratch"


def _unheard(message: Message) -> None:
    """What nobody is to be told."""


async def _clear(room: str) -> None:
    """Remove the directory of a call, however long that takes: on a thread that the process's end does not wait for."""
    with contextlib.suppress(OSError):
        await in_thread(partial(remove_tree, room))
