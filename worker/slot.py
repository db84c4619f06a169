"""A slot: the process that runs one call at a time.

Theory of operation
-------------------
`serve` is the loop: claim a packet from the call queue, note in the row which call it is, run it, send the answer, note that it is
finished. The order is the promise: a call is either in the queue, or noted in a row, or answered, but for the microsecond between claim
and note (the worker's audit of the queue finds such a call when the slot dies just there). A slot never claims before its last answer
is sent.

For a call that does nothing the loop costs a few microseconds: one receive, one send, one decode, one encode, two pickles and six looks
at a clock or a file's length. Nothing else may be added to the path of every call: no signal, no file, no process, no look at /proc.

*Async functions* run to their end on the slot's event loop; where the library has ``concurrency``, many at once, and the loop of the slot
is another one (`windlass.worker.slot_tasks`).

*Functions*, and what they take of the context: `windlass.worker.slot_functions`.

*Mode fork*: each call runs in a child, which answers by itself; the slot waits for it, ends what the child left behind, and answers for
a child that died. Where a fork would not be safe, as the context has started threads, a child could wait for ever for a lock, or for work
that no thread does. There the slot runs one call itself and leaves: the next call's process is the slot that comes after it.

A process that a function forks is no slot: when it leaves the function it ends (`forks.end_forked`), and its parent answers.

Everything a function may do is caught and answered, `SystemExit` and `KeyboardInterrupt` too. What cannot be caught ends the process, and
the worker reads the row.
"""

from __future__ import annotations

from windlass.worker import lean  # noqa: F401 # pyright: ignore[reportUnusedImport] # isort: skip - before msgspec

import faulthandler
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic  # bound here, both: a function may replace what the module has
from time import time as now
from typing import Any, Final, NoReturn

import msgspec

from windlass import pickling
from windlass.messages import (
    BAD_CALL,
    DIED,
    NO_FILE,
    OUT_OF_MEMORY,
    RAISED,
    RETURNED,
    CallEnd,
    CallId,
    CallRun,
    EndDetail,
    FileRef,
    FunctionId,
    ObjectName,
    ObjectRef,
)
from windlass.objects import open_in, write_results
from windlass.worker import capture, forks, hoist
from windlass.worker.callqueue import read_spilled
from windlass.worker.guardian import TRACKER_SECONDS
from windlass.worker.slot_api import STATE
from windlass.worker.slot_functions import SlotFunctions
from windlass.worker.slotlink import (
    ATTEMPT,
    BEGUN,
    CALL,
    CANCEL,
    CHILD,
    FINISHED,
    LEAVE,
    LEFT,
    LEFT_ASKED,
    LEFT_FULL,
    LEFT_TORN,
    LEFT_UNABLE,
    LENGTH,
    MAX_PACKET,
    NOTE,
    ROW_WORDS,
    SENDING,
    SINCE,
    SPILLED,
    Noted,
    Prepared,
    Rows,
    Setup,
    SlotNote,
    Unable,
    bounded,
    read_setup,
)
from windlass.worker.slotproc import death, kill_group, kill_tree, outlast

#: What calls load besides when they have large arguments, large results, or results with objects of the script's classes.
LATER: Final = ("windlass.descriptors", "windlass.spares", "windlass.byvalue")
#: The interpreter adapts a function when it has run eight times.
REHEARSALS: Final = 16
_PR_SET_PDEATHSIG: Final = 1
#: Between a slot and an async function.
_OURS: Final = ("windlass.worker.own_loop", "windlass.traces", "asyncio.base_events", "asyncio.runners", "asyncio.futures", "asyncio.tasks")

_prctl: Any = None


class Link:
    """A slot's connections: descriptors of results, call queue, standard output and error, and its row."""

    def __init__(self, results: int, queue: int, rows: Rows, row: int, out: int, err: int, places: int = 1) -> None:
        self.results = socket.socket(fileno=results)
        self.queue = socket.socket(fileno=queue)
        self.rows, self.row, self.out, self.err = rows, row, out, err
        #: The first of its rows, and its first word.
        self.first = row * places
        self.base = self.first * ROW_WORDS

    def note(self, note: SlotNote) -> None:
        """Tell the worker something that is no answer to a call."""
        packet = msgspec.msgpack.encode(note)
        self.results.sendall(LENGTH.pack(len(packet) | NOTE) + packet)


def begin_process(name: str) -> None:
    """What zygotes and spawned slots do first: a name for ps, tracebacks of crashes, an end with their parent."""
    global _prctl
    forks.survive_signals()
    with suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)
    faulthandler.enable()
    try:
        import ctypes

        libc = ctypes.PyDLL(None)
        _prctl = libc.prctl
        stdout = ctypes.c_void_p.in_dll(libc, "stdout")
        flush = libc.fflush
        flush.argtypes = (ctypes.c_void_p,)
        capture.flush_c = lambda: flush(stdout)
    except (ImportError, OSError, AttributeError, ValueError):
        pass  # without it C output comes late, and the guardian alone ends orphans
    die_with_parent()


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that made it ends."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def run(link: Link, setup: Setup, library: hoist.Library) -> int:
    """A slot's life, in a process that is settled and has loaded the library; returns its exit status."""
    words, base = link.rows.words, link.base
    if setup.spec.context and not library.has_context:
        try:
            hoist.compute_context(library, link.note)
        except hoist.CannotStart as error:
            words[base + LEFT] = LEFT_UNABLE
            link.note(Unable(error.kind, bounded(str(error))))
            return 1
    STATE.context, STATE.has_context = library.context, library.has_context
    # What imports and context wrote belongs to no call.
    wrote = capture.take_both(link.out, link.err)
    hazards = tuple(hoist.fork_hazards(library)) if setup.spec.mode == "fork" else ()
    link.note(Prepared(library.imports, library.context_seconds, library.notes, wrote=wrote, hazards=hazards))
    if setup.spec.concurrency > 1:
        from windlass.worker.slot_tasks import TaskSlot

        TaskSlot(link, setup, library).serve()
    else:
        Slot(link, setup, library, forks=setup.spec.mode == "fork" and not hazards).serve()
    return 0


class Slot:
    """Runs calls; `serve` until there is a reason to leave."""

    def __init__(self, link: Link, setup: Setup, library: hoist.Library, *, forks: bool = False) -> None:
        self.link, self.setup, self.library, self.forks = link, setup, library, forks
        self.store, self.pid = setup.store_folder, os.getpid()
        self.functions = SlotFunctions(setup, library)
        self.encoder = msgspec.msgpack.Encoder()
        self.frame = bytearray(64 << 10)
        #: Modules that there are before a call, in mode ``fork``.
        self.known = 0
        #: What a call with large arguments or results leaves, until its end is told: to give back 100 MB takes the kernel 10 ms.
        self.spent: tuple[object, ...] | None = None
        self.words = link.rows.words
        self.base = link.base
        #: The streams that calls are to find, as imports and context have left them.
        self.stdout, self.stderr = sys.stdout, sys.stderr

    def serve(self) -> None:
        """The loop. Returns when the worker is gone, wants this slot to leave, or it has run its share of calls."""
        words, doubles, base = self.words, self.link.rows.doubles, self.base
        call_word, attempt_word, since_word, begun_word = base + CALL, base + ATTEMPT, base + SINCE, base + BEGUN
        finished_word, leave_word = base + FINISHED, base + LEAVE
        buffer = bytearray(MAX_PACKET)
        view = memoryview(buffer)
        receive = self.link.queue.recv_into
        decode = msgspec.msgpack.Decoder(CallRun).decode
        answer, send = self.answer, self.send
        forked = self.forks
        most = self.setup.spec.max_calls
        if forked:
            self.rehearse()
            self.known = len(sys.modules)
        elif self.setup.spec.mode == "fork":
            most, words[base + CHILD] = 1, self.pid
        count = 0
        while not words[leave_word]:
            try:
                size = receive(buffer)
            except BlockingIOError:  # a function has set the queue, which all slots share, to not block
                self.link.queue.setblocking(True)
                continue
            if not size:
                return
            run = decode(read_spilled(view[:size]) if buffer[0] == SPILLED else view[:size])
            started_at, since = now(), monotonic()
            words[call_word] = run.call
            words[attempt_word] = run.attempt
            doubles[since_word] = since
            count += 1
            words[begun_word] = count
            if forked:
                self.answer_in_child(run, started_at, since, count)
            else:
                send(answer(run, started_at, since))
            words[finished_word] = count
            if count == most:
                words[base + LEFT] = LEFT_FULL
                return
        words[base + LEFT] = LEFT_ASKED

    def answer(self, run: CallRun, started_at: float, since: float) -> CallEnd:
        """Run a call. Whatever happens in it becomes the answer."""
        call, attempt = run.call, run.attempt
        state = STATE
        state.run, state.started_at = run, started_at
        payload = b""
        spans: tuple[ObjectRef, ...] = ()
        detail: EndDetail | None = None
        ready_at = started_at
        put = self.keeper(run) if run.keep else self.put
        room: Any = None
        outputs: tuple[FileRef, ...] = ()
        try:
            loaded = self.functions.turn_to(run.function)
            args, kwargs = pickling.unpack_call(run.payload, run.spans, self.open_object)
            if run.sandbox is not None:
                room = self.make_room(run)
        except BaseException as error:  # noqa: BLE001 - everything is answered
            ready_at = started_at + (monotonic() - since)
            outcome, payload, detail = self.not_begun(run, error)
        else:
            function, wants = loaded
            if wants:
                for name, position, value in wants:
                    if name not in kwargs and len(args) <= position:
                        kwargs[name] = value
            if run.trace:
                from windlass.traces import entered

                function = entered(function, run.trace)
            ready_at = started_at + (monotonic() - since)
            try:
                value = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - SystemExit too: one call must not end the slot
                if state.forked:
                    forks.end_forked(error)
                users_part_only(error)
                self.functions.explain(error)
                outcome, payload, detail = self.raised(error)
            else:
                if state.forked:
                    forks.end_forked(None)
                if state.watch is not None:
                    end_watch()  # before the result is pickled, which a callback might change
                outcome = RETURNED
                try:
                    if room is not None:
                        outputs, value = room.collect(value)
                    payload, spans = pickling.pack_result(value, put)
                    if spans or run.spans:
                        self.spent = args, kwargs, value
                except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
                    # The node's trouble is worth a retry elsewhere.
                    outcome = DIED if type(error).__name__ in ("StoreFull", "NotOurs") else BAD_CALL
                    detail = self.bad_result(run, value, error)
        if state.watch is not None:
            end_watch()
        state.run = None
        stdout, stderr = self.written()
        if room is not None:
            room.leave()
        kept = bool(spans and run.keep)
        ended_at = started_at + (monotonic() - since)
        return CallEnd(call, attempt, outcome, payload, spans, stdout, stderr, started_at, ready_at, ended_at, detail, kept, outputs)

    def send(self, end: CallEnd) -> None:
        """Send an answer whole."""
        frame = self.frame
        self.encoder.encode_into(end, frame, 4)
        LENGTH.pack_into(frame, 0, len(frame) - 4)
        try:
            sent = self.link.results.send(frame)
        except BlockingIOError:
            sent = 0
        if sent < len(frame):
            self.link.results.setblocking(True)  # a function may have set it otherwise
            self.link.results.sendall(memoryview(frame)[sent:])
            self.frame = bytearray(64 << 10)
        if self.spent is not None:
            os.sched_yield()  # who has been woken by it may wait for this processor, and it takes the kernel milliseconds to take much back
            self.spent = None

    # ------------------------------------------------ objects

    def make_room(self, run: CallRun) -> Any:
        """A directory of the call's own."""
        from windlass.worker.room import entered

        return entered(run, self.setup.work_folder, self.setup.cache_folder)

    def keeper(self, run: CallRun) -> pickling.PutAll:
        """What leaves the parts of this call's result on the worker."""
        from windlass.worker.keeping import Keeper

        return Keeper(self.setup.cache_folder, run.keep, self.pid).put

    def open_object(self, name: ObjectName) -> memoryview:
        """An argument's object, from the worker's store; or a result that stayed on a worker, from the cache."""
        try:
            return open_in(self.store, name)
        except KeyError:
            from windlass.worker.keeping import open_kept

            return open_kept(self.setup.cache_folder, name)

    def put(self, parts: Sequence[Any]) -> list[ObjectRef]:
        """Leave the parts of a result in the worker's store."""
        return write_results(self.store, parts, owner=self.pid)

    # ------------------------------------------------ what goes wrong

    @staticmethod
    def raised(error: BaseException) -> tuple[int, bytes, EndDetail]:
        """The function has raised."""
        if type(error).__name__ == "KilledForMemory":
            from windlass.commands import KilledForMemory

            if isinstance(error, KilledForMemory):
                payload, detail = pickling.pack_exception(error.otherwise)
                text = bounded(str(error))
                return OUT_OF_MEMORY, payload, EndDetail(detail.types, text, signal.SIGKILL, peak_memory=error.peak_memory)
        return RAISED, *pickling.pack_exception(error)

    def not_begun(self, run: CallRun, error: BaseException) -> tuple[int, bytes, EndDetail]:
        """The function or its arguments could not be had."""
        for missing in (error, error.__cause__):
            if type(missing).__name__ == "ReplicaMissing":
                return NO_FILE, b"", EndDetail(text=str(missing))
        name = self.functions.name(run.function)
        if not self.functions.has(run.function):
            if isinstance(error, ImportError):  # what the function's own import statement would have raised
                return RAISED, *pickling.pack_exception(error)
            what = f"function {name!r} of library {self.setup.spec.name!r}"
        else:
            what = f"the arguments of {name!r}"
        from windlass.worker.unloadable import detail_of

        outcome = DIED if hoist.is_the_nodes(error) or hoist.is_the_nodes(error.__cause__) else BAD_CALL  # a retry elsewhere may do better
        return outcome, b"", detail_of(what, error)

    def bad_result(self, run: CallRun, value: object, error: BaseException) -> EndDetail:
        """Why a result cannot travel, and what to do."""
        name = self.functions.name(run.function)
        if type(error).__name__ in ("UsageError", "BadTree"):
            return EndDetail(text=bounded(f"{name!r}: {error}"))
        if isinstance(error, OSError):
            return EndDetail(text=bounded(f"the result of {name!r} could not be left in the worker's object store: {error}"))
        kind = type(value).__name__
        advice = {
            "generator": f"return list(...) of it, or make {name!r} return a list",
            "coroutine": f"{name!r} is no async function, but gives what one gives: let it be async def, and await there",
            "async_generator": f"{name!r} is an async generator: collect its items in a function with asyncio.run(...) and return a list",
        }.get(kind, "return something that pickle can handle, or write it to a file and return the path")
        text = f"{name!r} returned a {pickling.type_name(value)}, which cannot be pickled and sent back; {advice} ({error})"
        return EndDetail(text=bounded(text), unpicklable=True)

    def written(self) -> tuple[bytes, bytes]:
        """What the call has written, and make room for the next one."""
        link = self.link
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            if capture.flush_c is not None:
                capture.flush_c()
        except (AttributeError, ValueError, OSError):
            self.mend_output()
        else:
            if sys.stdout is not self.stdout or sys.stderr is not self.stderr:
                self.mend_output()
        out = capture.take(link.out) if os.lseek(link.out, 0, os.SEEK_END) else b""
        err = capture.take(link.err) if os.lseek(link.err, 0, os.SEEK_END) else b""
        return out, err

    def mend_output(self) -> None:
        """The call has closed, replaced or lost its standard streams: give the next one new ones."""
        os.dup2(self.link.out, 1)
        os.dup2(self.link.err, 2)
        for stream in (self.stdout, self.stderr):
            with suppress(AttributeError, ValueError, OSError):
                stream.flush()  # what was written before
        self.stdout = sys.stdout = sys.__stdout__ = open(1, "w", closefd=False, errors="backslashreplace")  # type: ignore[misc]  # noqa: SIM115
        self.stderr = sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # type: ignore[misc]  # noqa: SIM115

    # ------------------------------------------------ mode "fork"

    def rehearse(self) -> None:
        """Answer calls that do nothing and that raise, a few times, to nobody: what the interpreter loads and adapts then, children share.

        What each of them had to write into its own copy of a page would cost it a page fault, and what it had to import some milliseconds.
        """
        key = FunctionId(b"rehearsal")
        for function, args in ((dict, ()), (int, ("",))):
            self.functions.add(key, function)
            run = CallRun(CallId(0), 0, self.setup.instance, key, pickling.pack_scalars(args, {}))
            for _ in range(REHEARSALS):
                self.encoder.encode_into(self.answer(run, now(), monotonic()), self.frame, 4)
            self.functions.forget(key)
        for name in LATER if "cloudpickle" in sys.modules else LATER[:-1]:
            with suppress(Exception):  # as where cloudpickle is of another version, and these calls need no more of it than others do
                __import__(name)
        gc.collect()
        gc.freeze()

    def answer_in_child(self, run: CallRun, started_at: float, since: float, count: int) -> None:
        """Run a call in a child of its own; answer for it if it dies."""
        words, base = self.words, self.base
        try:
            pid = forks.fork()
        except OSError as error:
            at = started_at + (monotonic() - since)
            text = f"no process could be forked for the call: {error}; the limit on processes of the node or the pilot is reached"
            self.send(CallEnd(run.call, run.attempt, DIED, started_at=started_at, ready_at=at, ended_at=at, detail=EndDetail(text=text)))
            return
        if pid == 0:
            self.be_child(run, started_at, since, count)
        words[base + CHILD] = pid
        if words[base + CANCEL] == count:  # in this order: the worker writes the one, and then reads the other
            kill_tree(pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        words[base + CHILD] = 0  # before it is reaped, for then the number may be another's
        _, status, usage = os.wait4(pid, 0)
        answered = words[base + FINISHED] == count
        trackers = kill_group(pid)  # of what it left behind
        stdout, stderr = (b"", b"") if answered else (capture.take(self.link.out), capture.take(self.link.err))
        if trackers:
            outlast(trackers, TRACKER_SECONDS)
            capture.take(self.link.err)  # what these say is not the next call's
        if answered:
            return
        if words[base + SENDING] == count:
            words[base + LEFT] = LEFT_TORN
            os._exit(1)
        from windlass.worker.keeping import remove_torn

        remove_torn(self.setup, self.pid)
        seconds = monotonic() - since
        detail = death(pid, status, usage.ru_maxrss * 1024, seconds)
        self.send(CallEnd(run.call, run.attempt, DIED, b"", (), stdout, stderr, started_at, started_at, started_at + seconds, detail))

    def be_child(self, run: CallRun, started_at: float, since: float, count: int) -> NoReturn:
        """In the child."""
        status = 1
        try:
            os.setpgid(0, 0)
            die_with_parent()
            forks.reseed()
            end = self.answer(run, started_at, since)
            imports = self.told_of_imports(run) if count <= forks.LOOKS else None
            self.words[self.base + SENDING] = count
            if imports is not None:
                self.link.results.setblocking(True)  # a function may have set it otherwise
                self.link.note(imports)
            self.send(end)
            self.words[self.base + FINISHED] = count
            status = 0
        finally:
            os._exit(status)

    def told_of_imports(self, run: CallRun) -> Noted | None:
        """In the child: what to say of what it imported, as each one will that comes after it."""
        with suppress(Exception):  # the function may have put anything into `sys.modules`, and its answer is not to be lost for that
            name = self.functions.name(run.function)
            if told := forks.imported_anew(self.known, name):
                return Noted(name, bounded(told))
        return None


# ---------------------------------------------------------------- a new process


def settle(link: Link, setup: Setup, gpu_ids: tuple[str, ...]) -> None:
    """Make the process a slot: its session, streams, GPUs, random numbers."""
    with suppress(OSError):
        os.setsid()  # a spawned one leads its session already
    die_with_parent()
    forks.survive_signals()
    forks.watch_forks()
    with suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(f"windlass-slot{link.row}")
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("300")  # when memory runs out, the slot goes before the worker
    os.dup2(link.out, 1)
    os.dup2(link.err, 2)
    os.chdir(setup.work_folder)
    if setup.spec.per_slot.gpus:
        from windlass.worker.node import own_gpu_variables

        os.environ.update(own_gpu_variables(gpu_ids))
    forks.reseed()
    gc.enable()
    STATE.library, STATE.slot, STATE.row, STATE.cache_folder = setup.spec.name, link.row, link.first, setup.cache_folder
    STATE.rows, STATE.warnings = link.rows, link.results.fileno()


def users_part_only(error: BaseException) -> None:
    """Take off a traceback's first entries, which are ours, or of the event loop: they tell the user nothing."""
    traceback = error.__traceback__
    traceback = traceback and traceback.tb_next
    while traceback is not None and traceback.tb_next is not None and traceback.tb_frame.f_globals.get("__name__") in _OURS:
        traceback = traceback.tb_next
    BaseException.with_traceback(error, traceback)  # an attribute may not be set where its class is frozen


def end_watch() -> None:
    """The call is over: what it registered for the end of its pilot is not called any more."""
    watch, STATE.watch = STATE.watch, None
    if watch is not None:
        watch.end()


def main(arguments: list[str]) -> int:
    """A spawned slot (``RESULTS QUEUE ROWS SETUP ROW GPU,GPU``): load the library, then be a slot."""
    results, queue, rows, setup_file, row = (int(word) for word in arguments[:5])
    gpu_ids = tuple(word for word in arguments[5].split(",") if word)
    for descriptor in (results, queue, rows, setup_file):
        os.set_inheritable(descriptor, False)
    begin_process(f"windlass-slot{row}")
    del sys.argv[1:]  # modules that look there must not find our descriptors
    setup = read_setup(setup_file)
    link = Link(results, queue, Rows(rows, setup.rows), row, os.dup(1), os.dup(2), setup.spec.concurrency)
    settle(link, setup, gpu_ids)  # before the imports: they may look for GPUs
    try:
        library = hoist.load(setup, link.note, with_context=False)
    except hoist.CannotStart as error:
        link.rows.words[link.base + LEFT] = LEFT_UNABLE
        link.note(Unable(error.kind, bounded(str(error))))
        return 1
    return run(link, setup, library)


if __name__ == "__main__":
    # The module is `__main__` here; functions that ask for their call must meet the one that is imported by its name.
    from windlass.worker import slot as imported

    exit_status = 1
    try:
        exit_status = imported.main(sys.argv[1:])
    except BaseException:  # noqa: BLE001 - told on stderr, which the worker reads
        hoist.tell_traceback()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_status)
