"""The manager's thread: one event loop with the core, the listener, and the ports of the program and of factories in it.

Theory of operation
-------------------
`Server.start` starts the thread and returns when it listens.  The loop has three sources of events: the inbox (what the program's threads
and in-process factories say), links (what workers, remote factories and clients say), and a timer.  Each event goes into the core, then
`_act` carries out what came of it: `Core.pump`, messages to links, ends to the client, demand to the factories.

The loop never unpickles, never calls user code and never waits.  Time is one clock: seconds since the epoch as they were at the start,
plus what the monotonic clock has counted since, so that it never jumps.

Who is connected has a part of its own: workers (`windlass.manager.sessions`), factories (`windlass.manager.factories`), and programs
that attach from other processes (`windlass.manager.attachments`).  `stay` makes the manager one that outlives them all:
it ends when one of them says so, or when for some time there were no calls, no programs and no factories.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from windlass import loops, unstarted
from windlass.addresses import is_loopback
from windlass.blocking import in_thread
from windlass.bulk import BulkServer
from windlass.dataplane import DataServer
from windlass.errors import Closed, UsageError
from windlass.identity import Authority, Identity
from windlass.importing import refuse_too_late
from windlass.links import Link
from windlass.listener import Listener
from windlass.manager.advice import Advice
from windlass.manager.attachments import Attachments
from windlass.manager.client import Client
from windlass.manager.core import Core
from windlass.manager.factories import ANSWERS_WITHIN, Factories
from windlass.manager.filedesk import FileDesk
from windlass.manager.inbox import Inbox, Tidy, joined
from windlass.manager.sessions import WorkerSessions
from windlass.manager.status import status, within
from windlass.manager.told import was_told_of_object
from windlass.manager.viewing import Viewing
from windlass.manager.workers import TICK_SECONDS, absurd
from windlass.messages import (
    HOST,
    BlockHost,
    BringFiles,
    CallSpec,
    CancelSubmitted,
    DeclareFile,
    DeclareMade,
    DefineFunctions,
    EndOrphans,
    GetStatus,
    GetView,
    Goodbye,
    Hello,
    InstallLibrary,
    ListCalls,
    Message,
    ObjectName,
    PoolReport,
    Refused,
    ReleaseFiles,
    ReleasePilots,
    RemoveLibrary,
    ResumePool,
    Status,
    Welcome,
)
from windlass.object_store import ObjectStore

log = logging.getLogger("windlass.manager")

#: The timer's turn while nothing waits or runs: a manager at rest must cost nothing.
REST_SECONDS: Final = 1.0
#: Seconds that workers get to take note of the end before the sockets close.
FAREWELL_SECONDS: Final = 2.0
#: Seconds until the files that say where it listens are tried again, when they could not be written.
WRITE_AGAIN_SECONDS: Final = 5.0
_DEFECT: Final = "the manager's thread ended by a defect of Windlass: "


class LocalPort:
    """A factory's or another part's way to the manager of its own process."""

    def __init__(self, server: Server, role: str, name: str, on_message: Callable[[Message], None]) -> None:
        self.role, self.name, self.on_message = role, name, on_message
        self._server = server

    def send(self, *messages: Message) -> None:
        """Hand messages over; from any thread."""
        for message in messages:
            self._server.inbox.put((self, message))

    def close(self, timeout: float = 0.0) -> None:
        """Say goodbye; nothing is waited for."""
        if self._server.own_factories.get(self.name) is self:
            del self._server.own_factories[self.name]
        self._server.inbox.put((self, Goodbye("closed")))


class Server:
    """Runs a core on a thread of its own."""

    def __init__(
        self,
        authority: Authority,
        store: ObjectStore,
        core: Core,
        *,
        hosts: Sequence[str],
        port: int | tuple[int, int],
        welcome: Welcome,
        elsewhere: bool = False,
    ) -> None:
        self.authority, self.store, self.core, self.name = authority, store, core, ""
        self.inbox: Inbox[Any] = Inbox(self._rouse)
        self.client: Client | None = None
        #: Declared files, and results that stay on workers.
        self.files = FileDesk(core, store, authority)
        self._data = DataServer(store, self._keeper_for, lambda worker, name: was_told_of_object(core, worker, name))
        self.addresses: list[tuple[str, int]] = []
        self._welcome = welcome
        self._hosts, self._port = hosts, port
        #: Whether it may listen on more than ``hosts`` when a pool on other machines attaches, and for which it does so.
        self._elsewhere = elsewhere
        self._listens_for: set[str] = set()
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._epoch = time.time() - time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: Listener | None = None
        self.workers = WorkerSessions(core, authority, self.files, lambda: self.client, self.now, lambda: self._guarded(self._act))
        self.factories = Factories(core, self.now)
        #: Ports of factories of this process that were opened and not closed, by name.
        self.own_factories: dict[str, LocalPort] = {}
        #: What it shows of itself to who looks on for longer.
        self.viewing = Viewing(core, self._found)
        self.attachments = Attachments(core, store, self._end, self._status, self.factories.resume, self.files, self.viewing.answer)
        #: Seconds without calls, programs and factories after which it ends; 0: never. Only what `stay` made detached has them.
        self._idle_timeout = 0.0
        self._busy_at = self._epoch + time.monotonic()
        self._advice = Advice()
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        #: Something went wrong on the loop: nobody knows the core's state any more, so the thread ends.
        self._defect = False
        self._reason = "the manager was closed"
        self._thread = threading.Thread(target=self._run, name="windlass-manager", daemon=True)

    def now(self) -> float:
        """Seconds since the epoch, by a clock that never jumps."""
        return self._epoch + time.monotonic()

    # ------------------------------------------------------------ from the program's threads

    def start(self) -> None:
        """Return when it listens. Raises what kept it from that (`UsageError` for a port in use)."""
        try:
            self._thread.start()
            self._ready.wait()
            if self._failure is not None:
                self._thread.join()
                raise self._failure
        except RuntimeError as error:
            refuse_too_late("manager", error)
            raise

    def stop(self, reason: str) -> None:
        """End every call, send the workers away, and return when the thread has ended."""
        self._reason = reason
        loop = self._loop
        if loop is not None and self._thread.is_alive():
            try:
                loop.call_soon_threadsafe(self._set_stop)
            except RuntimeError:
                pass  # the loop has just ended by itself
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def stay(self, idle_timeout: float) -> None:
        """Serve programs that attach; return when the thread has ended: one of them said so, or nothing was here for so many seconds."""
        self.detach(idle_timeout)
        self._thread.join()

    def detach(self, idle_timeout: float) -> None:
        """From now on it serves programs that attach, and says so to each."""
        self.call(lambda: self._be_detached(idle_timeout))

    def _be_detached(self, idle_timeout: float) -> None:
        self.attachments.detached, self._idle_timeout, self._busy_at = True, idle_timeout, self.now()

    def _end(self, reason: str) -> None:
        self._reason = reason
        self._set_stop()

    def end(self, reason: str) -> None:
        """Begin to end; from any thread, also from a handler of signals."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(self._end, reason)

    @property
    def reason(self) -> str:
        """Why it ended, or will."""
        return self._reason

    @property
    def alive(self) -> bool:
        """The thread runs."""
        return self._thread.is_alive()

    def leave_to_program(self) -> None:
        """This process is a forked copy of the program."""
        if self._listener is not None:
            self._listener.leave_to_program()

    def open_port(self, role: str, name: str, on_message: Callable[[Message], None]) -> LocalPort:
        """A port for a part of this process; ``on_message`` is called on the manager's thread and must be quick.

        Raises `UsageError` for a second factory of a name, which would take the pilots of the first for its own.
        """
        port = LocalPort(self, role, name, on_message)
        if role == "factory" and self.own_factories.setdefault(name, port) is not port:
            raise UsageError(
                f"this program has a factory {name!r} already, or one that has not ended yet: close() that one, and wait() until it has "
                "ended, go on using it, or take another name"
            )
        loop, here = self._loop, self.factories.here.get(name)
        try:
            if role == "factory" and loop is not None and here is not None and here.link is not None:
                with suppress(CancelledError, TimeoutError):  # the manager is closing, which is told next
                    asyncio.run_coroutine_threadsafe(self.factories.make_room(name), loop).result(3 * ANSWERS_WITHIN)
            self.call(lambda: self._port_opened(port))
        except BaseException:
            port.close()
            raise
        return port

    def call(self, work: Callable[[], object]) -> None:
        """Have something done on the manager's thread soon."""
        if self._loop is None:
            raise Closed("the manager is not running")
        self._loop.call_soon_threadsafe(work)

    def _rouse(self) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            raise Closed("the manager is closed")
        loop.call_soon_threadsafe(self._drain)

    def _set_stop(self) -> None:
        if self._stop is not None:
            self._stop.set()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            loops.run(self._main())
        except BaseException as error:
            if not self._ready.is_set():
                self._failure = error
            else:
                log.exception("a defect of Windlass: the manager's thread ended")
                self._reason = _DEFECT + repr(error)
        finally:
            if self.client is not None:
                # Also for calls that came in too late for the core, or that it lost by a defect.
                self.client.close(self._reason)
            self.viewing.write_end()
            self._ready.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._listener = Listener(self.authority, self, serve_data=self._data, files=self.files.server)
        self.files.server.objects = BulkServer(self._data, self._loop)
        try:
            self.addresses = await self._listener.listen(self._hosts, self._port)
            self.authority.set_addresses(self.addresses)
            self._ready.set()
            self._tick(self._loop.time())
            await self._stop.wait()
            if self.client is not None:
                self.client.closed = self.client.closed or self._reason
            self._drain()
            self._guarded(self._close_core)
            if self._defect:
                self.workers.leave(self._reason)
            self.factories.leave(self._reason)
            self.attachments.leave(self._reason)
            links = [*self.workers.links.values(), *self.attachments.all_links()]
            await asyncio.gather(*(link.acknowledged(FAREWELL_SECONDS) for link in links if link.connected))
        finally:
            await self._listener.close()
            self.files.server.close(0.5)  # nothing else is left to do here, and at the interpreter's end no thread can be begun for it

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do a part of the loop's work. A defect in it ends the thread and every future, for what it has lost would never end."""
        if self._defect:
            return
        try:
            work()
        except Exception as error:
            log.exception("a defect of Windlass on the manager's loop")
            self._defect = True
            self._reason = _DEFECT + repr(error)
            if self.client is not None:
                self.client.close(self._reason)
            self._set_stop()

    def _close_core(self) -> None:
        self.viewing.keep_end(self.now(), self._reason)
        self.core.close(self._reason, self.now())
        self._act()

    def _tick(self, due: float) -> None:
        assert self._loop is not None
        self._guarded(partial(self._look_at_time, self._loop.time() - due))
        due = self._loop.time() + (TICK_SECONDS if self.core.calls or self.workers.links else REST_SECONDS)
        self._loop.call_at(due, self._tick, due)

    def _look_at_time(self, late: float) -> None:
        now = self.now()
        self.attachments.give_up_dead(now)
        self.core.tick(now, late)
        self._act()
        self.workers.close_given_up()
        self.store.sweep()
        self.attachments.tell_means(now)
        self.viewing.look(now)
        if self.core.calls or self.factories or self.attachments.programs.working:
            self._busy_at = now
        elif self._idle_timeout and now - self._busy_at >= self._idle_timeout:
            self._end(f"no calls, programs or factories for {self._idle_timeout:g} s")
        advice = self._advice.look(
            len(self.core.calls), len(self.workers.links), len(self.factories), self.addresses[0][1], now, unstarted.of(self.name)
        )
        if not advice and self.client is not None and self.client.memory is not None:
            advice = self.client.memory.advice(self.core.has_waiting, now)
        if advice:
            log.warning("%s", advice)

    # ------------------------------------------------------------ events

    def _drain(self) -> None:
        self._guarded(self._take_inbox)

    def _take_inbox(self) -> None:
        now = self.now()
        specs: list[CallSpec] = []
        for item in joined(self.inbox.drain()):
            if type(item) is CallSpec:
                if not item.key or self.client is None or not self.client.is_seen_to(item):
                    specs.append(item)
                continue
            if specs:
                # Keep the order: a call may follow the definition of its function.
                self.core.submit(specs, now)
                specs = []
            source, message = item
            if isinstance(source, LocalPort):
                self._said(source.role, source.name, message, source.on_message)
            else:
                self._said("client", source, message, None)
        if specs:
            self.core.submit(specs, now)
        self._act()

    def _said(self, role: str, name: str, message: Message, answer: Callable[[Message], object] | None) -> None:
        """A client or factory has said something."""
        now, core = self.now(), self.core
        match message:
            case Tidy():
                if self.client is not None:
                    self.client.tidy()
            case CancelSubmitted(calls):
                core.cancel(calls, now)
            case EndOrphans(keys):
                self.workers.end_orphans(keys)
            case BlockHost() if role == "client":
                core.block_host(message, now)
            case InstallLibrary(spec):
                core.install(spec, now)
            case RemoveLibrary(library):
                core.remove(library, now)
            case DefineFunctions(functions):
                core.define(functions)
            case DeclareFile(ref, origin) if role == "client":
                self.files.declare(ref, origin)
            case DeclareMade(ref, spec) if role == "client":
                core.declare_made(ref, spec)
            case ReleaseFiles(names, prune) if role == "client":
                core.release_files(names, prune)
            case BringFiles(names) if role == "client":
                self.files.bring(0, names)
            case PoolReport() if role == "factory":
                core.pools_reported(name, message, now)
                self._listen_for(message)
            case ReleasePilots(pilots, pool, reason) if role == "factory":
                core.release(pilots, pool, reason, now)
            case ResumePool(pool) if role == "client":
                self.factories.resume(pool)
            case GetStatus(wanted):
                if answer is not None:
                    answer(self._status(now, wanted))
            case ListCalls():
                if answer is not None:
                    answer(self.attachments.calls(message, now))
            case GetView() if answer is not None:
                for piece in self.viewing.answer(message, now):
                    answer(piece)
            case Goodbye():
                if role == "factory":
                    self.factories.left(name, answer)
            case _:
                log.warning("%s %s said %s, which its role may not", role, name, type(message).__name__)

    def _status(self, now: float, wanted: str) -> Status:
        return Status(within(self._found(now, wanted=wanted), wanted=wanted))

    def _found(self, now: float, brief: bool = False, wanted: str = "") -> dict[str, Any]:
        seen, detached = self.attachments.seen(), self.attachments.detached
        moved = (self.files.server.bytes_out, self._data.bytes_out, self._data.bytes_in + self._data.bytes_adopted)
        more: dict[str, Any] = {"detached": detached, "moved": moved, "brief": brief, "name": self.name, "wanted": wanted}
        found = status(self.core, self._welcome.manager, self.addresses, now, seen, **more)
        if self.client is not None:
            self.client.count_in(found)
        return found

    def _listen_for(self, report: PoolReport) -> None:
        """Listen where pilots of these pools can reach it."""
        for wanted in {offer.listen for offer in report.offers} - self._listens_for - {""}:
            self._listens_for.add(wanted)
            if self._elsewhere or wanted != HOST:
                task = asyncio.get_running_loop().create_task(self._listen_on(wanted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _listen_on(self, wanted: str) -> None:
        from windlass.manager.addresses import choose_address

        assert self._listener is not None
        try:
            # In a thread: names may take long to resolve.
            host = await in_thread(partial(choose_address, wanted))
            if not host:
                log.warning("this machine has no address but loopback: only pilots on it can reach the manager")
            if not host or any(host == known for known, _ in self.addresses):
                return
            try:
                fresh = await self._listener.listen([host], self.addresses[0][1])
            except UsageError:
                fresh = await self._listener.listen([host], self._port)  # another program has the port there
        except (OSError, UsageError) as error:
            log.error("pilots of other machines cannot reach the manager: %s", error)
            return
        self.addresses = [*self.addresses, *fresh]
        log.info("listening at %s port %d too", *fresh[0])
        await self._write_addresses()

    async def _write_addresses(self) -> None:
        """Tell pilots that are to come where this listens; again and again where that cannot be written, as on a full disk."""
        path, told = self.authority.pilot_file, False
        async with self._writing:
            while True:
                # Loopback last: on other nodes somebody else may have the port there, and say nothing.
                addresses = sorted(self.addresses, key=lambda address: is_loopback(address[0]))
                try:
                    # In a thread: the folder may be on a network file system that hangs.
                    await in_thread(partial(self.authority.set_addresses, addresses))
                    return
                except (OSError, UsageError) as error:
                    if not told:
                        what = f"its address cannot be written into {path} ({error}); see to that, and it is done"
                        log.error("pilots of other machines cannot reach the manager: %s", what)
                    told = True
                await asyncio.sleep(WRITE_AGAIN_SECONDS)

    def _act(self) -> None:
        """Carry out what the core has decided. What has ended is told first, as a program may be waiting for just that."""
        core = self.core
        self._tell_ends()
        core.pump(self.now())
        self._tell_ends()
        client = self.client
        links = self.workers.links
        for worker, messages in core.take_outbox().items():
            link = links.get(worker)
            if link is not None:
                link.send_now(*self.files.signed(worker, messages))
        self.files.act(
            self.attachments.tell,
            client.kept.brought if client is not None else None,
            client.forgotten if client is not None else None,
        )
        while core.late_objects:
            self.store.discard(core.late_objects.pop().name)
        if core.demand_changed and self.factories.here:
            self.factories.tell_demand()

    def _tell_ends(self) -> None:
        """Before anything is sent, which acknowledges what was received: ends must be in a journal by then."""
        done = self.core.take_done()
        if done:
            done = self.attachments.take_theirs(done, self.now())
            if self.client is not None:
                self.client.deliver(done)

    def _port_opened(self, port: LocalPort) -> None:
        if port.role == "factory":
            self.factories.come(port.name, port.on_message)

    # ------------------------------------------------------------ the listener's handler

    def hello(self, hello: Hello, identity: Identity) -> Welcome | Refused:
        """Take up a session that is known, begin a new one for all others."""
        assert self._listener is not None
        if hello.worker is not None and (text := absurd(hello.worker)):
            return Refused(text)
        known = hello.session and hello.session in self._listener.links
        if hello.role == "factory" and hello.purpose == "control" and not known and (refused := self.factories.refusal(hello.peer)):
            return refused
        welcome = msgspec.structs.replace(self._welcome, session=hello.session if known else secrets.token_hex(12))
        if hello.role == "client":
            # When its session is over there is nothing to come back for.
            return msgspec.structs.replace(welcome, manager_timeout=self.core.settings.reconnect_grace)
        return welcome

    def attach(self, session: str, link: Link) -> None:
        """A peer has begun a session."""
        hello = link.hello
        assert hello is not None
        if link.role == "worker":
            self.workers.begin(link, hello.worker)
        else:
            self._attach_other(link)

    def _attach_other(self, link: Link) -> None:
        role, name, tell = link.role, link.peer, link.send
        program = self.attachments.join(link) if role == "client" else None

        def said(batch: list[Message]) -> None:
            for message in batch:
                if program is not None:
                    self.attachments.said(program, message, self.now())
                else:
                    self._said(role, name, message, tell)
            if any(isinstance(message, Goodbye) for message in batch):
                link.close()
            self._guarded(self._act)

        given_up: asyncio.TimerHandle | None = None

        def cut(reason: str) -> None:
            nonlocal given_up
            assert self._loop is not None
            grace = self.core.settings.reconnect_grace
            given_up = self._loop.call_later(grace, link.fail, f"not heard of for {grace:g} s")
            if program is not None:
                self.attachments.cut(program, self.now() + grace)

        def resumed(_: Hello | None) -> None:
            if given_up is not None:
                given_up.cancel()
            if program is not None:
                self.attachments.resumed(program)
            if role == "factory":  # it does nothing by what it was told before the cut, of which this side may not know
                tell(self.core.demand(self.now()))

        def left(reason: str) -> None:
            log.info("%s %s is gone: %s", role, name, reason)
            if program is not None:
                self.attachments.left(program, reason, self.now())
                self._guarded(self._act)
            else:
                self.factories.left(name, tell)

        link.on_messages, link.on_cut, link.on_resumed, link.on_lost = said, cut, resumed, left
        if role == "factory":
            self.factories.come(name, tell, link)

    def _keeper_for(self, hello: Hello) -> Callable[[ObjectName, int], str] | None:
        """How what comes over this data connection is kept for the program that puts it; None for workers, whose are results."""
        return self.attachments.keeper(hello.session) if hello.role == "client" else None
