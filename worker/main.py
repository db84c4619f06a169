"""The worker: what a pilot runs on a node.

Theory of operation
-------------------
One event loop. It connects to the manager before it loads anything heavy, hears messages (`_on_messages`), and hands them to
the two parts that keep state: `Backlog` (calls) and `Libraries` (instances). What these have to say goes through the `Outbox`.
`Lifetime` decides when the worker drains and when it ends; `_look` asks it, on signals, on messages and by the clock. `Supply`
has objects and files, `MemoryWatch` ends slots when memory runs short, and the guardian, a process of its own, clears up when
this one is killed.

How it ends::

    finish   nothing is held: results and Goodbye reach the manager, then instances end       exit 0
    end      everything is killed first, then Goodbye: what ran goes back to the queue        exit 0
    refused  the manager will not have it, the text is on stderr                              exit 3
    lost     the manager was not reached for manager_timeout                                  exit 4
    cannot   no connection file, no scratch folder, or else: the text is on stderr            exit 5
    useless  this node could not serve from the start (a full disk): the text is on stderr    exit 75

A manager that welcomes with another session does not know this worker's calls: it has queued them anew, or was started anew
itself. The worker ends what it runs and goes on with nothing; what a manager with a journal had sent runs on as `Orphans`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

from windlass import __version__, loops
from windlass.errors import UsageError
from windlass.identity import ConnectionFile, read_connection_file
from windlass.messages import (
    CANNOT_SERVE,
    PROTOCOL,
    AddFunctions,
    CallEnd,
    CallsReturned,
    CancelCalls,
    CertificateIssued,
    CertificateRequest,
    Drain,
    DropFiles,
    EndOrphans,
    FetchFile,
    FileLost,
    ForgetFunctions,
    Goodbye,
    HeldCall,
    Hello,
    Leave,
    Message,
    PilotId,
    PoolName,
    PushFile,
    RecallCalls,
    Refused,
    Resources,
    RunCalls,
    SetSlots,
    StartLibrary,
    StopLibrary,
    Welcome,
    WorkerDraining,
    WorkerInfo,
    WorkerReport,
)
from windlass.signals import Heard
from windlass.transport import connect
from windlass.worker import environment, image, memory, node
from windlass.worker.backlog import Backlog
from windlass.worker.gpus import Gpus
from windlass.worker.guardian import Guardian, remove_tree
from windlass.worker.lifetime import MARGIN_SECONDS, Decision, Lifetime, Phase, stagger_seconds
from windlass.worker.options import Options, parse, usage
from windlass.worker.outbox import Outbox

if TYPE_CHECKING:
    from windlass.links import Link
    from windlass.worker.libraries import Libraries
    from windlass.worker.orphans import EarlierLives
    from windlass.worker.supply import Supply
    from windlass.worker.watch import MemoryWatch

log = logging.getLogger("windlass.worker")

ORDERLY: Final = 0
REFUSED: Final = 3
MANAGER_LOST: Final = 4
CANNOT_START: Final = 5

#: What batch systems and people send.
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: Seconds between looks at the clock and the parent, at the timeouts of calls, and (at most) between reports.
LOOK_SECONDS: Final = 0.5
SWEEP_SECONDS: Final = 0.05
REPORT_SECONDS: Final = 5.0
#: Making a key loads `cryptography` (50 ms of both cores of a small node): not while the first library starts.
ENROL_AFTER_SECONDS: Final = 0.5
#: What the manager gets to acknowledge the last words, and the processes to end.
FAREWELL_SECONDS: Final = 5.0
#: What a manager that is out of reach can do without, once the worker is gone.
OF_NO_WORTH: Final = (CertificateRequest, Goodbye, WorkerDraining, WorkerReport)


class CannotStart(Exception):
    """The worker cannot start here; the text is for the pilot's stderr. ``status``: what to exit with."""

    def __init__(self, text: str, status: int = CANNOT_START) -> None:
        super().__init__(text)
        self.status = status


class Worker:
    """One worker from its start to its end: `run` gives its exit status."""

    def __init__(self, options: Options, guardian: Guardian) -> None:
        self._options = options
        self._guardian = guardian
        self._parents = node.own_parents(os.environ)
        self._environment = environment.take(os.environ)
        host = os.uname().nodename
        self.id = options.worker_id or f"{host.split('.')[0][:30] or 'node'}-{os.getpid()}-{os.urandom(4).hex()}"
        self._host = host
        self._groups = memory.own_cgroups()
        self._limit = memory.read_limit(options.memory, self._groups)
        self._cores = options.cores or node.own_cores()
        self._gpu_ids = node.own_gpu_ids(options.gpus)
        self._gpus = Gpus()
        # All of them: the manager names some, which calls of an earlier life of it may have.
        self._gpus.learn(self._gpu_ids)
        walltime = node.seconds_left(options.walltime, os.environ, time.time())
        stagger = stagger_seconds(walltime, options.stagger, node.share_of(options.pilot))
        self._life = Lifetime(time.monotonic(), walltime=walltime, grace=options.grace, idle_timeout=options.idle_timeout, stagger=stagger)
        #: What running calls know of their end.
        self._told = (float("inf"), False)
        self._outbox = Outbox(self._life, self._look, self._tell_late, self._without_image)
        self._backlog = self._outbox.backlog = Backlog(self._outbox)
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._private_key = b""
        self._status, self._signals = ORDERLY, 0
        self._heard: Heard | None = None
        self._leaving = self._said_goodbye = False
        self.scratch = ""
        self._connection: ConnectionFile
        self._link: Link
        self._over: asyncio.Event
        self._welcome: Welcome | None = None
        self._libraries: Libraries | None = None
        self._supply: Supply | None = None
        self._watch: MemoryWatch | None = None
        self._watching: asyncio.Task[Any] | None = None
        self._enrolling: asyncio.Task[Any] | None = None
        #: What runs on from earlier lives of the manager.
        self._earlier: EarlierLives | None = None

    async def run(self) -> int:
        """Serve until the end. Raises `CannotStart`."""
        self._over = asyncio.Event()
        try:
            self._connection = read_connection_file(self._options.connection)
            self.scratch = node.make_scratch(node.scratch_candidates(self._options.scratch, os.environ), self._guardian.folder)
        except FileNotFoundError as error:
            raise CannotStart(f"there is no {error.filename}: give the pilot.json in the manager's state folder") from error
        except (OSError, UsageError) as error:
            from windlass.errors import FULL

            # Other reasons hold on every node as often as not: a folder that is wrong, or can only be read.
            raise CannotStart(str(error), CANNOT_SERVE if getattr(error, "errno", None) in FULL else CANNOT_START) from error
        try:
            self._link = self._outbox.link = connect(
                self._connection,
                self._hello,
                self._on_messages,
                on_welcome=self._on_welcome,
                on_lost=self._on_lost,
                on_refused=self._on_refused,
            )
            self._heard = Heard(SIGNALS, self._on_signal)
            self._look()
            await self._over.wait()
            return self._status
        finally:
            await self._clean_up()

    # ------------------------------------------------------------ the connection

    def _hello(self) -> Hello:
        life, busy = self._life, self._busy()
        info = WorkerInfo(
            self._host,
            os.getpid(),
            Resources(float(self._cores), memory.offered(self._limit, self._options.memory, os.environ), len(self._gpu_ids)),
            self._gpu_ids,
            PoolName(self._options.pool),
            PilotId(self._options.pilot),
            life.seconds_left(time.monotonic()),
            life.phase is Phase.SERVING,
            self.scratch,
            self._environment,
            busy.cores,
            busy.gpus,
        )
        return Hello("worker", PROTOCOL, __version__, sys.version_info[:2], self.id, worker=info)

    def _on_welcome(self, welcome: Welcome, fresh: bool) -> None:
        self._welcome = welcome
        if self._supply is not None:
            self._supply.use_welcome(welcome)
        try:
            if self._supply is None or self._libraries is None:
                self._set_up(welcome)
            elif fresh:
                log.warning("manager %s has begun a new session with this worker", welcome.manager)
                self._begin_anew(self._supply, self._libraries, welcome.adopts)
                self._sweep_later()
        except Exception as error:
            from windlass.worker.hoist import is_the_nodes

            # Whatever it was: without these parts a worker would stay connected and do nothing of what it is told. What ran for an earlier
            # session must not be told of in this one.
            if not isinstance(error, OSError):
                log.exception("a defect of Windlass: this worker cannot be set up")
            self._link.send(Goodbye(f"cannot serve: {error}"))
            self._link.close()
            useless = is_the_nodes(error) and self._life.is_new(time.monotonic())
            self._leave(Decision.END, CANNOT_SERVE if useless else CANNOT_START)
            tell(f"windlass worker: {error}")

    def _set_up(self, welcome: Welcome) -> None:
        """All that is needed from the first library on; not before hello. Raises `OSError`."""
        from windlass.worker.supply import Supply

        says = self._outbox.say, self._on_trouble
        self._supply = self._outbox.supply = supply = Supply(self.id, self._connection, self._hello, welcome, *says)
        supply.set_up(self.scratch, self._limit, self._guardian, self._groups)
        self._make_parts(supply)
        warning = node.own_scratch_warning(self.scratch)
        if warning:
            log.warning("%s", warning)
        self._spawn(self._report())
        self._enrolling = self._spawn(self._enrol())

    def _make_parts(self, supply: Supply) -> None:
        """What knows of calls, instances and objects: for one session."""
        from pathlib import Path

        from windlass.worker.libraries import Libraries
        from windlass.worker.watch import MemoryWatch

        functions = (scratch := Path(self.scratch)) / f"functions-{os.urandom(4).hex()}"
        functions.mkdir(mode=0o700)
        backlog = self._backlog
        folders = scratch, supply.store.folder, functions
        says = supply.new_session(backlog), self._outbox.say, self._life.ran, self._on_trouble
        shared = self._environment, self._gpus
        self._libraries = Libraries(backlog, *says, *folders, *shared, files=lambda: supply.files, shortcut=supply.shortcut.path)
        self._watch = self._outbox.watch = MemoryWatch(self._libraries, backlog, self._limit, self._groups, self._guardian.sessions)
        self._told, self._watch.fills = (self._life.deadline, self._life.warned), self._tell_report
        self._libraries.tell_end(*self._told)
        if self._watching is not None:
            self._watching.cancel()
        self._watching = self._spawn(self._watch.run())

    def _begin_anew(self, supply: Supply, libraries: Libraries, adopts: bool) -> None:
        """The manager knows none of our calls: end what runs and forget it, unless it is a later life of who sent it. New calls may follow
        right behind. Raises `OSError`."""
        draining, transfers = self._backlog.draining, supply.transfers
        unheard = self._outbox.begin_anew()
        backlog, watching = self._backlog, self._watching
        self._backlog = self._outbox.backlog = Backlog(self._outbox)
        self._backlog.draining = draining
        if adopts:
            self._watching = None  # it goes on watching them
        self._make_parts(supply)
        if self._enrolling is not None and self._enrolling.done() and not supply.has_certificate:
            self._enrolling = self._spawn(self._enrol())  # what was asked for, or its answer, went with the session
        if self._life.phase is Phase.DRAINING:
            self._say_draining()  # since its Hello, perhaps
        if adopts:
            if self._earlier is None:
                from windlass.worker.orphans import EarlierLives

                self._earlier = EarlierLives(self._outbox.say, self._spawn, self._tell_report)
            self._earlier.add(backlog, libraries, transfers, watching, unheard)
        else:
            self._spawn(libraries.close(0.0))
            self._spawn(transfers.close())

    def _busy(self) -> Resources:
        """Cores and GPUs of what runs and would run on, should this manager be started anew; and of what does already."""
        cores, gpus = self._earlier_busy()
        if self._welcome is not None and self._welcome.adopts and self._libraries is not None:
            more = self._libraries.occupied_by(self._backlog.running())
            cores, gpus = cores + more.cores, gpus + more.gpus
        return Resources(min(cores, float(self._cores)), 0, min(gpus, len(self._gpu_ids)))

    def _earlier_busy(self) -> tuple[float, int]:
        """Cores and GPUs of calls of earlier lives of the manager."""
        occupied = self._earlier.occupied if self._earlier is not None else Resources()
        return occupied.cores, occupied.gpus

    def _tell_late(self, of: Backlog, end: CallEnd) -> None:
        """A call of an earlier session has ended."""
        if self._earlier is not None:
            self._earlier.tell(of, end)

    def _on_lost(self, reason: str) -> None:
        self._leave(Decision.END, MANAGER_LOST)
        tell(f"windlass worker {self.id}: {reason}")

    def _on_refused(self, answer: Refused) -> None:
        self._leave(Decision.END, REFUSED)
        tell(f"windlass worker {self.id}: refused by manager {self._connection.manager}: {answer.text}")

    async def _enrol(self) -> None:
        """Ask for a certificate of this worker's own; reconnects show that."""
        assert self._supply is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._supply.needed.wait(), ENROL_AFTER_SECONDS)
        from windlass.identity import new_key_and_request

        self._private_key, request = await asyncio.get_running_loop().run_in_executor(None, new_key_and_request, self.id)
        if not self._leaving:
            self._outbox.say(CertificateRequest(request))

    # ------------------------------------------------------------ messages

    def _on_messages(self, batch: list[Message]) -> None:
        for message in batch:
            if type(message) is RunCalls:
                self._backlog.run(message.calls)
            else:
                self._on_message(message)
        self._sweep_later()

    def _on_message(self, message: Message) -> None:
        libraries, backlog = self._libraries, self._backlog
        if libraries is None:
            return
        match message:
            case StartLibrary():
                libraries.start(message)
            case SetSlots():
                libraries.set_slots(message)
            case StopLibrary():
                libraries.stop(message)
            case AddFunctions():
                libraries.add_functions(message)
            case ForgetFunctions():
                libraries.forget_functions(message)
            case RecallCalls():
                backlog.recall(message.instance, message.count)
            case CancelCalls():
                backlog.cancel(message.calls)
            case EndOrphans() if self._earlier is not None:
                self._earlier.end(message.keys)
            case Drain():
                self._act(self._life.drain(message.reason))
            case Leave():
                self._act(self._life.leave(message.reason))
            case CertificateIssued():
                self._link.use_certificate(message.certificate, self._private_key)
                if self._supply is not None:
                    self._supply.use_certificate(message, self._private_key)
            case FetchFile() | FileLost() | DropFiles() | PushFile():
                if self._supply is not None:
                    self._supply.heard(message)
            case _:
                log.error("a message that is no worker's: %s", type(message).__name__)

    # ------------------------------------------------------------ time, signals, the end

    def _look(self) -> None:
        """Ask what the clock says, and do it."""
        if self._leaving:
            return
        if self._look_timer is not None:
            self._look_timer.cancel()
        now = time.monotonic()
        if node.is_left(self._parents, node.own_parents(os.environ)):
            self._act(self._life.leave("the pilot's parent process has ended"))
        self._without_image()
        held, oldest, starting = self._backlog.held + self._outbox.untold, 0.0, False
        held += self._earlier.held if self._earlier is not None else 0
        if self._libraries is not None and self._supply is not None:
            held += self._supply.pushing
            self._supply.store.sweep()
            starting = self._libraries.starting
            oldest = self._libraries.oldest(now) if held and self._life.asks_oldest else 0.0
        self._life.expects(self._backlog.longest)
        if self._backlog.longest > (left := self._life.deadline - now + MARGIN_SECONDS):
            self._backlog.give_back_late(left)
        self._backlog.give_back_cramped(now)
        decision = self._life.look(now, held=held, oldest=oldest, starting=starting, put_off=self._backlog.put_off)
        self._tell_end()
        self._act(decision)
        if not self._leaving:
            self._look_timer = asyncio.get_running_loop().call_later(self._life.next_look(now, LOOK_SECONDS), self._look)

    def _sweep(self) -> None:
        """Timeouts of calls, while any is held that has one."""
        self._sweep_timer = None
        self._backlog.sweep(time.monotonic())
        if self._earlier is not None:
            self._earlier.sweep(time.monotonic())
        if not self._leaving:
            self._sweep_later()

    def _sweep_later(self) -> None:
        sweeping = self._backlog.sweeping or (self._earlier is not None and self._earlier.sweeping)
        if sweeping and self._sweep_timer is None:
            self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _on_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        log.warning("%s received", name)
        if self._said_goodbye and self._signals and number != signal.SIGUSR1:
            self._link.close()  # the last words have waited long enough
        self._signals += number != signal.SIGUSR1
        decision = self._life.signal(name, time.monotonic(), warning=number == signal.SIGUSR1)
        self._tell_end()
        self._act(decision)

    def _without_image(self) -> bool:
        """Whether the image is gone; then what fails is not the calls' fault, and this leaves, so that they run elsewhere."""
        if image.gone(os.environ):
            self._act(self._life.leave("the process that serves the image has ended"))
            return True
        return False

    def _tell_end(self) -> None:
        """Let running calls know when they will be ended, if that has changed."""
        end = (self._life.deadline, self._life.warned)
        if end != self._told and self._libraries is not None:
            self._told = end
            self._libraries.tell_end(*end)
            if self._earlier is not None:
                self._earlier.tell_end(*end)

    def _on_trouble(self, text: str) -> None:
        """This node cannot serve: let others do it, rather than fail one call after the other."""
        log.error("%s", text)
        self._act(self._life.trouble(text, time.monotonic()))

    def _act(self, decision: Decision) -> None:
        if decision is Decision.DRAIN:
            log.warning("draining: %s", self._life.reason)
            self._say_draining()
            self._backlog.drain()
            asyncio.get_running_loop().call_soon(self._look)
        elif decision in (Decision.FINISH, Decision.END):
            log.warning("leaving: %s", self._life.reason)
            self._leave(decision, CANNOT_SERVE if self._life.useless else ORDERLY)

    def _say_draining(self) -> None:
        self._outbox.say(WorkerDraining(self._life.reason, self._life.seconds_left(time.monotonic()), self._life.in_trouble))

    def _leave(self, decision: Decision, status: int) -> None:
        if self._leaving:
            return
        self._leaving = True
        self._status = status
        self._backlog.draining = True
        self._tasks.add(asyncio.get_running_loop().create_task(self._go(decision)))

    async def _go(self, decision: Decision) -> None:
        """Say the last words and end the processes: in this order when nothing runs, in the other when something is cut off."""
        try:
            warned: tuple[HeldCall, ...] = ()
            if decision is Decision.END:
                self._outbox.flush()
                if self._life.warned and self._libraries is not None:
                    warned = self._libraries.watching()
                await self._end_processes()
            if not self._link.closed:
                if warned:
                    self._outbox.say(CallsReturned(warned, "warned"))
                self._outbox.say(Goodbye(self._life.reason, idle=decision is Decision.FINISH))
                self._said_goodbye = True
                if decision is Decision.FINISH:
                    # Results are worth waiting for a cut connection, but not past the end. Otherwise closing sends what there is.
                    await self._link.acknowledged(self._farewell_seconds())
            self._link.close()
            await self._link.gone(1.0)
            if decision is not Decision.END:
                await self._end_processes()
        finally:
            self._over.set()

    def _farewell_seconds(self) -> float:
        """How long a manager that is out of reach is waited for."""
        if not self._link.session_id:
            return 0.0  # it never knew this worker
        # Of a link that is only silent nobody knows: calls may be on their way here, to be given back.
        if not self._link.connected and all(isinstance(message, OF_NO_WORTH) for message in self._link.unheard("worker")):
            return FAREWELL_SECONDS
        return max(FAREWELL_SECONDS, min(60.0, self._life.deadline - time.monotonic()))

    async def _end_processes(self) -> None:
        if self._libraries is not None:
            closing = [self._libraries.close(0.0)] + ([self._earlier.close()] if self._earlier is not None else [])
            try:
                await asyncio.wait_for(asyncio.gather(*closing), FAREWELL_SECONDS)
            except TimeoutError:
                log.error("instances have not ended within %g s: they are killed", FAREWELL_SECONDS)

    async def _clean_up(self) -> None:
        """Leave nothing: no process, no folder."""
        await self._end_processes()
        if self._supply is not None:
            await self._supply.close()
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current and not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._heard is not None:
            self._heard.ignore()  # a signal that comes from now on must not change the exit status
        self._guardian.sweep()
        remove_tree(self.scratch)
        if self._supply is not None:
            self._supply.remove()

    # ------------------------------------------------------------ small things

    async def _report(self) -> None:
        while True:
            # As often as the connection would say something anyway.
            await asyncio.sleep(min(REPORT_SECONDS, self._welcome.heartbeat if self._welcome is not None else REPORT_SECONDS))
            libraries = self._libraries
            if libraries is None or self._leaving:
                continue
            libraries.trim_captures()
            if self._earlier is not None:
                self._earlier.trim_captures()
            if self._supply is not None:
                self._supply.look()
            self._tell_report()

    def _tell_report(self) -> None:
        running = self._libraries.running() if self._libraries is not None else 0
        self._outbox.say(
            WorkerReport(
                self._watch.used if self._watch is not None else 0,
                self._limit,
                self._life.seconds_left(time.monotonic()),
                running,
                max(0, self._backlog.held - running),
                self._supply.used if self._supply is not None else 0,
                *self._earlier_busy(),
            )
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a defect of Windlass in the worker", exc_info=task.exception())


def tell(text: str) -> None:
    """Say it in the pilot's log, if its disk takes that: no more than that depends on it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None, guardian: Guardian | None = None) -> int:
    """Run a worker; returns its exit status. Fork the guardian before threads exist, if it is not given."""
    words = sys.argv[1:] if argv is None else list(argv)
    if "--help" in words or "-h" in words:
        if guardian is not None:
            guardian.release()
        print(usage())
        return ORDERLY
    guardian = guardian or Guardian()
    try:
        options = parse(words)
        worker = Worker(options, guardian)
        form = f"%(asctime)s %(levelname)s worker {worker.id}: %(message)s"
        logging.basicConfig(stream=sys.stderr, level=options.log_level.upper(), format=form)
        return loops.run(worker.run())
    except (CannotStart, UsageError) as error:
        tell(f"windlass worker cannot start: {error}")
        return error.status if isinstance(error, CannotStart) else CANNOT_START
    finally:
        guardian.release()
