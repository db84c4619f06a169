"""The manager's core, driven by plain calls: events in, messages out, no process and no clock."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from windlass.manager.calls import LIBRARY_FAILED, LOST, NOT_POSSIBLE, TOO_LONG
from windlass.manager.core import Core
from windlass.manager.dispatch import LINGER_SECONDS
from windlass.manager.libraries import AHEAD_UNKNOWN
from windlass.manager.starts import CRASHES_MOST
from windlass.manager.workers import STILL_TICKS, STILL_TICKS_WITH_DATA
from windlass.messages import (
    CANCELLED,
    DIED,
    MAX_FRAME_BYTES,
    NO_FILE,
    OUT_OF_MEMORY,
    RAISED,
    RETURNED,
    SLOTS_MOST,
    TIMED_OUT,
    AddFunctions,
    BlockHost,
    CallDone,
    CallEnd,
    CallId,
    CallOptions,
    CallRun,
    CallsEnded,
    CallSpec,
    CallsReturned,
    CancelCalls,
    Drain,
    EndDetail,
    FileLost,
    FileName,
    FileOrigin,
    FileRef,
    FunctionDef,
    FunctionId,
    HeldCall,
    HoistedImport,
    InstanceId,
    Leave,
    LibraryFailed,
    LibraryId,
    LibraryReady,
    LibrarySpec,
    LibraryStopped,
    Message,
    ObjectName,
    ObjectRef,
    PilotEnded,
    PilotId,
    PilotLine,
    PoolName,
    PoolOffer,
    PoolReport,
    RecallCalls,
    Resources,
    RunCalls,
    Sandbox,
    SetSlots,
    StartLibrary,
    StopLibrary,
    WantFiles,
    WorkerDraining,
    WorkerId,
    WorkerInfo,
    WorkerReport,
)
from windlass.session import encode_one

F = FunctionId(b"f" * 16)
PLAIN = CallOptions()


class Bench:
    """A core with a manual clock and readable ways to say what happens to it."""

    def __init__(self) -> None:
        self.core = Core()
        self.now = 1000.0
        self.next_call = 1
        self.sent: dict[str, list[Message]] = {}
        self.done: dict[int, CallDone] = {}

    def library(self, name: str = "lib", **fields: object) -> LibraryId:
        spec = LibrarySpec(LibraryId(name + "@1"), name, (3, 11), functions=(FunctionDef(F, "f", b"blob"),), **fields)  # type: ignore[arg-type]
        self.core.install(spec, self.now)
        return spec.id

    def worker(self, name: str = "w1", cores: float = 2, memory: int = 0, gpus: int = 0, seconds_left: float = 0.0) -> str:
        ids = tuple(f"gpu{index}" for index in range(gpus))
        info = WorkerInfo("host", 1, Resources(cores, memory, gpus), ids, PoolName("pool"), PilotId("pilot-" + name), seconds_left)
        self.core.worker_joined(WorkerId(name), info, self.now)
        self.step()
        return name

    def offer(self, cores: float = 2, walltime: float = 0.0, memory: int = 0, **fields: object) -> None:
        offer = PoolOffer(PoolName("pool"), Resources(cores, memory, 0), walltime, **fields)  # type: ignore[arg-type]
        self.core.pools_reported("factory", PoolReport((offer,)), self.now)
        self.step()

    def submit(self, library: LibraryId, count: int = 1, options: CallOptions = PLAIN) -> list[CallId]:
        ids = [CallId(self.next_call + index) for index in range(count)]
        self.next_call += count
        self.core.submit([CallSpec(call, library, F, b"args", (), options) for call in ids], self.now)
        self.step()
        return ids

    def say(self, worker: str, *messages: Message) -> None:
        self.core.worker_said(WorkerId(worker), messages, self.now)
        self.step()

    def step(self, seconds: float = 0.0) -> None:
        self.now += seconds
        if seconds:
            self.core.tick(self.now)
        self.core.pump(self.now)
        self.core.check()
        for worker, messages in self.core.take_outbox().items():
            self.sent.setdefault(worker, []).extend(messages)
        for done in self.core.take_done():
            assert done.end.call not in self.done, "a call ended twice"
            self.done[done.end.call] = done

    def heard(self, worker: str = "w1") -> list[Message]:
        return self.sent.pop(worker, [])

    def runs(self, worker: str = "w1") -> list[CallRun]:
        """The calls that the worker was sent since the last time; anything else it was sent must have been taken before."""
        messages = self.heard(worker)
        assert all(isinstance(message, RunCalls | AddFunctions) for message in messages), messages
        return [run for message in messages if isinstance(message, RunCalls) for run in message.calls]

    def all_runs(self, worker: str = "w1") -> list[CallRun]:
        """The calls that the worker was sent since the last time, whatever else it was sent."""
        return [run for message in self.heard(worker) if isinstance(message, RunCalls) for run in message.calls]

    def serve(self, worker: str = "w1") -> int:
        """Answer the worker's `StartLibrary`; its instance's number."""
        started = [message for message in self.sent.get(worker, []) if isinstance(message, StartLibrary)]
        self.sent[worker] = [message for message in self.sent[worker] if not isinstance(message, StartLibrary)]
        for message in started:
            self.say(worker, LibraryReady(message.instance, 77, (HoistedImport("numpy", 0.5),)))
        return int(started[-1].instance)

    def end(self, run: CallRun, outcome: int = RETURNED, worker: str = "w1", seconds: float = 1.0, detail: EndDetail | None = None) -> None:
        self.say(
            worker,
            CallsEnded([CallEnd(run.call, run.attempt, outcome, b"r", started_at=self.now, ended_at=self.now + seconds, detail=detail)]),
        )

    def outcome(self, call: int) -> int:
        return self.done[call].end.outcome

    def text(self, call: int) -> str:
        detail = self.done[call].end.detail
        return detail.text if detail else ""


@pytest.fixture
def bench() -> Iterator[Bench]:
    one = Bench()
    yield one
    one.core.check()


def test_a_call_starts_its_library_runs_and_ends_once(bench: Bench) -> None:
    """Libraries start on demand; the first call goes out when the instance is ready."""
    library = bench.library()
    bench.worker()
    assert bench.heard() == [], "a worker without calls gets no library"
    [call] = bench.submit(library)
    [start] = bench.heard()
    assert isinstance(start, StartLibrary)
    assert start.slots == 2, "a slot per core"
    bench.say("w1", LibraryReady(start.instance, 77))
    [run] = bench.runs()
    assert (run.call, run.attempt) == (call, 1)
    bench.end(run)
    assert bench.outcome(call) == RETURNED
    bench.end(run)
    assert not bench.core.calls


def test_what_slots_find_later_is_noted_and_starts_nothing(bench: Bench) -> None:
    """A library serves, and says then that it does not run as asked: the status has it, and its start is counted once."""
    library = bench.library()
    bench.worker()
    bench.submit(library)
    [start] = bench.heard()
    assert isinstance(start, StartLibrary)
    bench.say("w1", LibraryReady(start.instance, 77))
    state = bench.core.libraries[library]
    starts = state.starts
    for instance in (start.instance, InstanceId(99)):
        bench.say("w1", LibraryReady(instance, 77, notes=(f"a new slot for each call of {instance}",)))
    (ready,) = [one.ready for one in state.instances.values()]
    assert ready is not None
    assert ready.notes == (f"a new slot for each call of {start.instance}",)
    assert state.starts == starts
    assert len(bench.runs()) == 1


def test_calls_wait_for_a_worker_and_go_to_it_when_it_comes(bench: Bench) -> None:
    library = bench.library()
    bench.submit(library, 3)
    assert bench.core.demand(bench.now).shapes[0].waiting == 3
    bench.worker()
    bench.serve()
    assert len(bench.runs()) == 3


def test_short_calls_queue_at_the_worker_and_long_ones_do_not(bench: Bench) -> None:
    """The short queue is worth 50 ms of measured durations: thousands of no-op calls, none of calls of seconds."""
    library = bench.library()
    bench.worker()
    bench.submit(library, 5000)
    bench.serve()
    first = runs = bench.runs()
    assert len(first) == 2 * 5, "little while nothing is known"
    rounds = 0
    while len(runs) < 1000:
        bench.say("w1", CallsEnded([CallEnd(run.call, 1, RETURNED, started_at=0.0, ended_at=0.00001) for run in runs]))
        runs, rounds = bench.runs(), rounds + 1
    assert rounds < 8, "each about twice the one before"


def test_calls_of_minutes_do_not_queue_at_the_worker(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    bench.submit(library, 50)
    bench.serve()
    runs = bench.runs()
    for run in runs:
        bench.end(run, seconds=60.0)
    assert len(bench.runs()) == 2


@pytest.mark.parametrize(
    ("options", "same"),
    [
        (CallOptions(timeout=9.0), True),
        (CallOptions(timeout=9.0, priority=3.0, expected_time=5.0), True),
        (CallOptions(timeout=60.0), False),
        (CallOptions(timeout=9.0, retries=2), False),
        (CallOptions(timeout=9.0, needs=Resources(2.0)), False),
    ],
)
def test_what_runs_is_told_from_what_waits_or_runs_on_other_terms(bench: Bench, options: CallOptions, same: bool) -> None:
    """When it is sent, and whereto, is no matter any more once it has been."""
    library = bench.library(slots=1)
    bench.worker()
    [runs, *_, waits] = bench.submit(library, 100, CallOptions(timeout=9.0))
    bench.serve()
    assert bench.core.runs_as(runs, options) is same
    assert not bench.core.runs_as(waits, options)
    assert bench.core.withdraw([runs, waits])[0].call == waits
    bench.core.cancel([runs], bench.now)
    assert not bench.core.runs_as(runs, options)


def test_priority_comes_first_and_equals_in_order(bench: Bench) -> None:
    library = bench.library(slots=1)
    low = bench.submit(library, 2, CallOptions(priority=-1))
    normal = bench.submit(library, 2)
    high = bench.submit(library, 1, CallOptions(priority=5))
    bench.worker()
    bench.serve()
    assert [run.call for run in bench.runs()] == [*high, *normal, *low]


def test_late_answers_of_older_attempts_are_dropped(bench: Bench) -> None:
    library = bench.library()
    [call] = bench.submit(library)
    bench.worker()
    bench.serve()
    [run] = bench.runs()
    bench.say("w1", CallsReturned((HeldCall(call, 1),), "recalled"))
    [again] = bench.runs()
    assert again.attempt == 2
    bench.end(run)
    assert call not in bench.done
    bench.end(again)
    assert bench.outcome(call) == RETURNED


def test_a_lost_worker_costs_no_retry_and_the_calls_run_elsewhere(bench: Bench) -> None:
    library = bench.library()
    calls = bench.submit(library, 4)
    bench.worker()
    bench.serve()
    bench.runs()
    bench.core.worker_cut(WorkerId("w1"), bench.now)
    bench.worker("w2")
    bench.step(59)
    assert bench.heard("w2") == [], "the session may come back"
    bench.step(2)
    bench.serve("w2")
    runs = bench.runs("w2")
    assert sorted(run.call for run in runs) == calls
    for run in runs:
        bench.end(run, worker="w2")
    assert [len(bench.done[call].attempts) for call in calls] == [1, 1, 0, 0], "only the two that ran have a story"


def test_a_session_that_comes_back_keeps_its_calls(bench: Bench) -> None:
    library = bench.library()
    [call] = bench.submit(library)
    bench.worker()
    bench.serve()
    [run] = bench.runs()
    bench.core.worker_cut(WorkerId("w1"), bench.now)
    bench.step(20)
    bench.core.worker_back(WorkerId("w1"), bench.now)
    bench.step()
    assert bench.runs() == []
    bench.end(run)
    assert bench.outcome(call) == RETURNED


def test_a_call_that_keeps_losing_its_worker_ends_with_the_story(bench: Bench) -> None:
    library = bench.library()
    [call] = bench.submit(library, options=CallOptions(max_losses=2))
    for number in range(3):
        name = f"w{number}"
        bench.worker(name)
        bench.serve(name)
        assert len(bench.runs(name)) == 1
        bench.core.worker_lost(WorkerId(name), "its pilot ended", bench.now)
        bench.step()
    assert bench.outcome(call) == LOST
    assert [one.worker for one in bench.done[call].attempts] == ["w0", "w1", "w2"]


def test_calls_on_their_way_to_a_worker_that_leaves_idle_are_no_losses(bench: Bench) -> None:
    """It says that it held none: they cross its goodbye, and what it says of them comes behind that."""
    library = bench.library()
    [call] = bench.submit(library, options=CallOptions(max_losses=0))
    bench.worker("w1")
    bench.serve("w1")
    assert len(bench.runs("w1")) == 1
    bench.core.worker_lost(WorkerId("w1"), "idle for 60 s", bench.now, idle=True)
    bench.step()
    bench.worker("w2")
    bench.serve("w2")
    [run] = bench.runs("w2")
    bench.end(run, worker="w2")
    assert bench.outcome(call) == RETURNED
    assert len(bench.done[call].attempts) == 0


def test_deaths_use_retries_and_exceptions_only_when_named(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    options = CallOptions(retries=1, retry_on=("builtins.OSError",))
    [died, raised, other] = bench.submit(library, 3, options)
    bench.serve()
    by_call = {run.call: run for run in bench.runs()}
    bench.end(by_call[died], DIED)
    bench.end(by_call[raised], RAISED, detail=EndDetail(types=("builtins.FileNotFoundError", "builtins.OSError")))
    bench.end(by_call[other], RAISED, detail=EndDetail(types=("builtins.ValueError",)))
    assert bench.outcome(other) == RAISED
    for run in bench.runs():
        assert run.attempt == 2
        bench.end(run, DIED)
    assert bench.outcome(died) == DIED
    assert bench.outcome(raised) == DIED
    assert [one.outcome for one in bench.done[died].attempts] == ["slot died", "slot died"]


def test_a_timeout_is_not_retried_unless_asked(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    [plain] = bench.submit(library, options=CallOptions(timeout=1, retries=3))
    [asked] = bench.submit(library, options=CallOptions(timeout=1, retries=1, retry_on=("windlass.errors.CallTimeout",)))
    bench.serve()
    by_call = {run.call: run for run in bench.runs()}
    bench.end(by_call[plain], TIMED_OUT)
    bench.end(by_call[asked], TIMED_OUT)
    assert bench.outcome(plain) == TIMED_OUT
    assert asked not in bench.done
    assert [run.call for run in bench.runs()] == [asked]


def test_memory_auto_doubles_the_share_until_it_fits_nowhere(bench: Bench) -> None:
    library = bench.library()
    bench.worker(cores=4, memory=8 << 30)
    [call] = bench.submit(library, options=CallOptions(grow_memory=True))
    bench.serve()
    weights: list[int] = []
    for _ in range(3):
        runs = bench.runs()
        if not runs:
            break
        weights.append(runs[0].weight)
        bench.end(runs[0], OUT_OF_MEMORY, detail=EndDetail(share=runs[0].weight * (2 << 30)))
    assert weights == [1, 2, 4]
    assert bench.outcome(call) == OUT_OF_MEMORY


def test_memory_auto_takes_the_whole_pilot_where_twice_its_share_is_more(bench: Bench) -> None:
    """A call that was ended beside a neighbour may fit when it is alone; once it had everything there is nothing left to try."""
    library = bench.library()
    bench.worker(cores=2, memory=8 << 30)
    [call] = bench.submit(library, options=CallOptions(grow_memory=True))
    bench.serve()
    [run] = bench.runs()
    bench.end(run, OUT_OF_MEMORY, detail=EndDetail(share=4 << 30, peak_memory=5 << 30))
    [run] = bench.runs()
    assert run.weight == 2
    bench.end(run, OUT_OF_MEMORY, detail=EndDetail(share=8 << 30, peak_memory=8 << 30))
    assert bench.outcome(call) == OUT_OF_MEMORY


def test_memory_auto_asks_for_what_workers_have_where_the_pool_states_none(bench: Bench) -> None:
    """A pool whose pilots' memory is not known would do for any call: the call would wait for what no pilot has."""
    bench.offer(cores=4)
    test_memory_auto_doubles_the_share_until_it_fits_nowhere(bench)


def test_a_library_with_memory_runs_in_a_pool_that_states_none(bench: Bench) -> None:
    """So much as its pilots have may be enough; what they have decides as soon as there is one."""
    library = bench.library(per_slot=Resources(0.0, 3 << 30))
    bench.offer(cores=4)
    [call] = bench.submit(library)
    assert call not in bench.done
    bench.worker(cores=4, memory=8 << 30)
    [start] = [message for message in bench.sent["w1"] if isinstance(message, StartLibrary)]
    assert start.slots == 2, "as many as have 3 GB each"
    bench.serve()
    [run] = bench.runs()
    bench.end(run)
    assert bench.outcome(call) == RETURNED


def test_what_pilots_have_turned_out_to_have_ends_what_can_never_run(bench: Bench) -> None:
    """Calls that ask for more memory themselves, and such of a library whose slots have more; those that come later are refused."""
    library, large = bench.library(), bench.library("large", per_slot=Resources(0.0, 64 * 10**9))
    bench.offer(cores=2)
    [asks] = bench.submit(library, options=CallOptions(needs=Resources(0.0, 64 * 10**9)))
    [plain] = bench.submit(large)
    bench.worker(cores=2, memory=16 * 10**9)
    assert not bench.done, "the factory has not said what it makes of that"
    bench.offer(cores=2, memory=16 * 10**9, found=True)
    assert [bench.outcome(call) for call in (asks, plain)] == [NOT_POSSIBLE] * 2
    text = "pool 'pool' gives 2 cores, 16 GB of memory per pilot, which is the memory that its pilots have turned out to have"
    advice = "if more is given to who asks for it, give the pool memory="
    assert bench.text(asks) == f"no pool can ever run this call of library 'lib': it needs 64 GB of memory; {text}; {advice}"
    bench.core.worker_lost(WorkerId("w1"), "idle", bench.now)
    late = [*bench.submit(large), *bench.submit(library, options=CallOptions(needs=Resources(0.0, 64 * 10**9)))]
    assert [bench.outcome(call) for call in late] == [NOT_POSSIBLE] * 2
    bench.offer(cores=2, memory=128 * 10**9, found=True)
    assert not set(bench.submit(large)) & bench.done.keys(), "a larger node was seen since"


def test_a_call_that_had_a_whole_pilot_is_not_given_another_of_the_same_kind(bench: Bench) -> None:
    """Workers end their work a little before the walltime, so no attempt ever runs as long as the pool says."""
    library = bench.library()
    bench.offer(cores=2, walltime=100.0)
    bench.worker("w1", seconds_left=97.0)
    [call] = bench.submit(library)
    bench.serve()
    bench.runs()
    bench.now += 97
    bench.core.worker_lost(WorkerId("w1"), "end of walltime", bench.now)
    bench.step()
    assert bench.outcome(call) == TOO_LONG
    assert "it ran for 97 s" in bench.text(call)
    assert "longest walltime of a pool is 100 s" in bench.text(call)


def test_a_preempted_pilot_does_not_teach_that_a_call_is_too_long(bench: Bench) -> None:
    """It is told to go long before its walltime, and says that it ends in so many seconds: that is no whole life of a pilot."""
    library = bench.library()
    bench.offer(cores=2, walltime=3600.0)
    bench.worker("w1", seconds_left=3590.0)
    [call] = bench.submit(library)
    bench.serve()
    bench.runs()
    bench.now += 5
    bench.say("w1", WorkerDraining("SIGTERM received", 2.0))
    bench.now += 2
    bench.core.worker_lost(WorkerId("w1"), "its pilot was preempted", bench.now)
    bench.step()
    assert call not in bench.done
    bench.worker("w2", seconds_left=3.0)
    bench.serve("w2")
    assert len(bench.runs("w2")) == 1, "nothing is known of how long it takes"


def test_objects_of_a_late_answer_are_handed_out_to_be_dropped(bench: Bench) -> None:
    """Nobody will read them, and results are never evicted."""
    library = bench.library()
    bench.worker("w1")
    bench.submit(library)
    bench.serve()
    [run] = bench.runs()
    late = ObjectRef(ObjectName("r-" + "0" * 32), 100_000)
    bench.say("w1", CallsEnded([CallEnd(run.call, run.attempt - 1, RETURNED, spans=(late,))]))
    assert bench.core.late_objects == [late]


def test_waiting_calls_are_cancelled_at_once_and_running_ones_at_the_worker(bench: Bench) -> None:
    library = bench.library(slots=1)
    bench.worker()
    [running] = bench.submit(library)
    bench.serve()
    [run] = bench.runs()
    waiting = bench.submit(library, 100, CallOptions(priority=-1))
    bench.runs()
    bench.core.cancel(waiting[50:], bench.now)
    bench.step()
    assert all(bench.outcome(call) == CANCELLED for call in waiting[50:])
    bench.core.cancel([running], bench.now)
    bench.step()
    [message] = bench.heard()
    assert message == CancelCalls((HeldCall(running, 1),))
    bench.end(run, CANCELLED)
    assert bench.outcome(running) == CANCELLED


def test_a_cancelled_call_that_is_lost_is_not_run_again(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    [call] = bench.submit(library)
    bench.serve()
    bench.runs()
    bench.core.cancel([call], bench.now)
    bench.core.worker_lost(WorkerId("w1"), "gone", bench.now)
    bench.step()
    assert bench.outcome(call) == CANCELLED


def test_an_import_that_fails_ends_all_calls_at_once_with_the_reason(bench: Bench) -> None:
    library = bench.library()
    calls = bench.submit(library, 3)
    bench.worker()
    [start] = bench.heard()
    assert isinstance(start, StartLibrary)
    bench.say("w1", LibraryFailed(start.instance, "import", "ModuleNotFoundError: No module named 'nope'"))
    assert [bench.outcome(call) for call in calls] == [LIBRARY_FAILED] * 3
    assert "No module named 'nope'" in bench.text(calls[0])
    [late] = bench.submit(library)
    assert bench.outcome(late) == LIBRARY_FAILED
    assert bench.heard() == [], "it is not started again"


def test_a_library_that_crashes_at_start_is_tried_a_few_times(bench: Bench) -> None:
    library = bench.library()
    [call] = bench.submit(library)
    bench.worker()
    for _ in range(CRASHES_MOST):
        assert call not in bench.done
        [start] = bench.heard()
        assert isinstance(start, StartLibrary)
        bench.say("w1", LibraryFailed(start.instance, "crash", "killed by signal 11"))
    assert bench.outcome(call) == LIBRARY_FAILED
    assert "signal 11" in bench.text(call)


def test_a_library_whose_slots_die_before_their_first_answer_cannot_start(bench: Bench) -> None:
    """The zygote is ready each time, and then its slots crash, say in the context function. That it was ready does not make it a library
    that can start: only an answer does."""
    library = bench.library()
    [call] = bench.submit(library)
    bench.worker()
    for _ in range(CRASHES_MOST):
        assert call not in bench.done
        instance = InstanceId(bench.serve())
        bench.heard()
        bench.say("w1", LibraryFailed(instance, "crash", "3 slots in a row ended before they had run a call", at_start=True))
    assert bench.outcome(call) == LIBRARY_FAILED
    assert "3 slots in a row" in bench.text(call)


def test_installing_a_failed_library_again_tries_again(bench: Bench) -> None:
    """Its user has mended the node or the environment; the library itself is the same."""
    library = bench.library()
    bench.worker()
    [call] = bench.submit(library)
    [start] = bench.heard()
    assert isinstance(start, StartLibrary)
    bench.say("w1", LibraryFailed(start.instance, "import", "there is no module named rare"))
    assert bench.outcome(call) == LIBRARY_FAILED
    [call] = bench.submit(library)
    assert bench.outcome(call) == LIBRARY_FAILED, "at once"
    assert bench.library() == library
    [call] = bench.submit(library)
    bench.serve()
    [run] = bench.runs()
    bench.end(run)
    assert bench.outcome(call) == RETURNED


def test_a_library_that_has_answered_may_lose_its_zygote_again_and_again(bench: Bench) -> None:
    """What ran is charged with it, what waited is not."""
    library = bench.library()
    bench.worker()
    for _ in range(3 * CRASHES_MOST):
        [call] = bench.submit(library)
        instance = InstanceId(bench.serve())
        [run] = bench.runs()
        bench.end(run, DIED)
        assert bench.outcome(call) == DIED
        bench.say("w1", LibraryFailed(instance, "crash", "the zygote was killed by signal 9", at_start=False))
    [call] = bench.submit(library)
    bench.serve()
    assert [run.call for run in bench.runs()] == [call]


@pytest.mark.parametrize("kind", ["crash", "import", "context", "function", "timeout"])
def test_a_library_that_serves_elsewhere_is_not_failed_by_one_bad_node(bench: Bench, kind: str) -> None:
    """It is not started there any more; calls go where it serves. A file system may not be mounted on a node, or its GPU be broken."""
    library = bench.library()
    bench.worker("good")
    first = bench.submit(library, 1)
    bench.serve("good")
    [run] = bench.runs("good")
    bench.end(run, worker="good", seconds=100.0)
    bench.worker("bad")
    calls = bench.submit(library, 6)
    for _ in range(CRASHES_MOST):
        start = next(message for message in bench.heard("bad") if isinstance(message, StartLibrary))
        bench.say("bad", LibraryFailed(start.instance, kind, "no space left on device"))
    assert not any(isinstance(message, StartLibrary) for message in bench.heard("bad"))
    ended = {*first}
    while runs := bench.runs("good"):
        for run in runs:
            bench.end(run, worker="good", seconds=100.0)
            ended.add(run.call)
    assert ended == {*first, *calls}
    assert not any(bench.outcome(call) != RETURNED for call in ended)


def test_a_library_whose_only_good_node_is_lost_is_tried_again_on_the_bad_ones(bench: Bench) -> None:
    """Nobody shows any more that it works: so its calls run there, or end with the reason, and do not wait for what never comes."""
    library = bench.library()
    bench.worker("good")
    bench.submit(library)
    bench.serve("good")
    bench.end(bench.runs("good")[0], worker="good")
    bench.worker("bad")
    bench.submit(library, 6)
    for _ in range(CRASHES_MOST):
        start = next(message for message in bench.heard("bad") if isinstance(message, StartLibrary))
        bench.say("bad", LibraryFailed(start.instance, "import", "stale file handle"))
    assert bench.heard("bad") == []
    bench.core.worker_lost(WorkerId("good"), "gone", bench.now)
    [call] = bench.submit(library)
    bench.step()
    for _ in range(CRASHES_MOST):
        assert call not in bench.done
        [start] = [message for message in bench.heard("bad") if isinstance(message, StartLibrary)]
        bench.say("bad", LibraryFailed(start.instance, "import", "stale file handle"))
    assert bench.outcome(call) == LIBRARY_FAILED


def test_a_library_that_is_ready_elsewhere_is_not_failed_by_an_import_before_its_first_call_has_ended(bench: Bench) -> None:
    """Calls may take hours. A context that slots compute for themselves is another matter: that zygotes are ready says nothing of it."""
    imports = bench.library()
    [call] = bench.submit(imports)
    bench.worker("good", cores=1)
    bench.serve("good")
    bench.runs("good")
    bench.worker("bad", cores=1)
    *_, waits = bench.submit(imports, 8)
    for _ in range(CRASHES_MOST):
        [start] = bench.heard("bad")
        assert isinstance(start, StartLibrary)
        bench.say("bad", LibraryFailed(start.instance, "import", "stale file handle"))
    assert bench.heard("bad") == []
    assert not bench.done
    bench.worker("third", cores=1)
    [start] = bench.heard("third")
    assert isinstance(start, StartLibrary)
    bench.say("third", LibraryFailed(start.instance, "context", "no such file"))
    assert bench.outcome(waits) == LIBRARY_FAILED
    assert call not in bench.done


def test_a_library_that_has_worked_and_starts_nowhere_any_more_fails(bench: Bench) -> None:
    """Say the file system of its packages is gone: nothing is waited for that will not come."""
    library = bench.library()
    bench.submit(library)
    bench.worker()
    bench.serve()
    [run] = bench.runs()
    bench.end(run)
    bench.core.worker_lost(WorkerId("w1"), "gone", bench.now)
    [call] = bench.submit(library)
    bench.worker("w2")
    for _ in range(CRASHES_MOST):
        assert call not in bench.done
        [start] = bench.heard("w2")
        assert isinstance(start, StartLibrary)
        bench.say("w2", LibraryFailed(start.instance, "import", "no module named numpy"))
    assert bench.outcome(call) == LIBRARY_FAILED
    assert "3 times in a row" in bench.text(call)


def test_what_comes_back_to_a_failed_library_ends(bench: Bench) -> None:
    """Its calls that run may end well, but nobody starts it again for one that is worth a retry."""
    library = bench.library(context=b"c")
    bench.worker("w1", cores=1)
    [call] = bench.submit(library, options=CallOptions(retries=1))
    number = InstanceId(bench.serve())
    [run] = bench.runs()
    others = bench.submit(library, 8)
    bench.worker("w2", cores=1)
    [start] = bench.heard("w2")
    assert isinstance(start, StartLibrary)
    bench.say("w2", LibraryFailed(start.instance, "context", "no such file"))
    assert bench.outcome(others[-1]) == LIBRARY_FAILED
    assert call not in bench.done
    bench.heard("w1")
    bench.say(
        "w1",
        CallsEnded([CallEnd(run.call, run.attempt, DIED)]),
        LibraryFailed(number, "crash", "the zygote was killed by signal 9", at_start=False),
    )
    assert {bench.outcome(one) for one in (call, *others)} == {LIBRARY_FAILED}
    assert bench.heard("w1") == bench.heard("w2") == []


def test_a_library_that_never_started_in_time_is_not_waited_for_again(bench: Bench) -> None:
    """``start_timeout`` is minutes by default: three of them in a row would be a hang."""
    library = bench.library()
    [call] = bench.submit(library)
    bench.worker()
    [start] = bench.heard()
    assert isinstance(start, StartLibrary)
    bench.say("w1", LibraryFailed(start.instance, "timeout", "it did not start within 300 s"))
    assert bench.outcome(call) == LIBRARY_FAILED


def test_another_python_refuses_the_instance_and_another_worker_serves(bench: Bench) -> None:
    library = bench.library()
    bench.worker("old")
    bench.worker("new")
    bench.core.workers[WorkerId("old")].info = bench.core.workers[WorkerId("old")].info
    [call] = bench.submit(library)
    [name] = [worker for worker, messages in bench.sent.items() if messages]
    other = {"old": "new", "new": "old"}[name]
    [start] = bench.heard(name)
    assert isinstance(start, StartLibrary)
    bench.say(name, LibraryFailed(start.instance, "python", "program has 3.11, worker has 3.12"))
    assert call not in bench.done
    bench.serve(other)
    [run] = bench.runs(other)
    bench.end(run, worker=other)
    assert bench.outcome(call) == RETURNED


def test_two_libraries_share_a_worker_and_an_idle_one_makes_room(bench: Bench) -> None:
    first, second = bench.library("a"), bench.library("b")
    bench.worker()
    [one] = bench.submit(first)
    bench.serve()
    [run] = bench.runs()
    bench.end(run)
    [two] = bench.submit(second)
    shrink, start = bench.heard()
    assert isinstance(shrink, SetSlots)
    assert isinstance(start, StartLibrary)
    assert (shrink.slots, start.slots) == (1, 1)
    bench.say("w1", LibraryReady(start.instance, 78))
    [run] = bench.runs()
    bench.end(run)
    assert {bench.outcome(one), bench.outcome(two)} == {RETURNED}


def test_people_are_told_of_attempts_that_may_have_begun_only(bench: Bench) -> None:
    """Numbers of attempts grow with each time a call is sent; what came back unstarted was no try of it."""
    library = bench.library()
    bench.worker()
    well, badly = bench.submit(library, 2)
    bench.serve()
    for sent in (1, 2):
        runs = bench.all_runs()
        assert [(run.attempt, run.turn) for run in runs] == [(sent, 1)] * 2
        bench.say("w1", CallsReturned(tuple(HeldCall(run.call, run.attempt) for run in runs), "recalled"))
    runs = bench.all_runs()
    assert [(run.attempt, run.turn) for run in runs] == [(3, 1)] * 2
    bench.end(next(run for run in runs if run.call == well))
    bench.end(next(run for run in runs if run.call == badly), TIMED_OUT)
    assert (bench.done[well].end.attempt, bench.done[well].attempts, bench.done[well].turns) == (3, (), 1)
    assert ([one.attempt for one in bench.done[badly].attempts], bench.done[badly].turns) == ([1], 1)


def test_attempts_that_were_lost_or_died_count_for_people(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    [call] = bench.submit(library, options=CallOptions(retries=1))
    bench.serve()
    [run] = bench.runs()
    bench.say("w1", CallsReturned((HeldCall(run.call, run.attempt),), "recalled"))
    [run] = bench.all_runs()
    bench.end(run, DIED)
    [run] = bench.all_runs()
    assert (run.attempt, run.turn) == (3, 2)
    bench.end(run)
    assert ([one.attempt for one in bench.done[call].attempts], bench.done[call].turns) == ([1], 2)


def test_a_busy_library_gives_a_slot_to_one_that_has_none(bench: Bench) -> None:
    """Without it the second library would wait until the first has no calls at all."""
    first, second = bench.library("a"), bench.library("b")
    bench.worker()
    bench.submit(first, 100)
    bench.serve()
    runs = bench.runs()
    bench.submit(second, 5)
    [recall] = bench.heard()
    assert isinstance(recall, RecallCalls)
    bench.say("w1", CallsReturned(tuple(HeldCall(run.call, run.attempt) for run in runs[2:]), "recalled"))
    bench.end(runs[0])
    messages = bench.heard()
    assert [type(message) for message in messages] == [SetSlots, StartLibrary], messages
    assert [message.slots for message in messages if isinstance(message, SetSlots | StartLibrary)] == [1, 1]


def test_a_wide_call_occupies_several_slots(bench: Bench) -> None:
    library = bench.library()
    bench.worker(cores=4)
    wide = bench.submit(library, 2, CallOptions(needs=Resources(3)))
    narrow = bench.submit(library, 10)
    bench.serve()
    runs = bench.runs()
    assert [(run.call, run.weight) for run in runs if run.weight > 1] == [(wide[0], 3)]
    assert {run.call for run in runs if run.weight == 1} <= set(narrow)
    for run in runs:
        bench.end(run)
    assert wide[1] in {run.call for run in bench.runs()}


def test_gpus_are_lent_by_id(bench: Bench) -> None:
    library = bench.library(per_slot=Resources(1, 0, 2))
    bench.worker(cores=8, gpus=4)
    bench.submit(library, 10)
    [start] = bench.heard()
    assert isinstance(start, StartLibrary)
    assert (start.slots, start.gpu_ids) == (2, ("gpu0", "gpu1", "gpu2", "gpu3"))


def test_gpus_of_calls_of_an_earlier_life_are_not_lent(bench: Bench) -> None:
    """A slot without its GPU would not run the call that was sent to it. The worker says how many, as it joins and then in its reports."""
    library = bench.library(per_slot=Resources(1, 0, 1))
    info = WorkerInfo("host", 1, Resources(8, 0, 2), ("gpu0", "gpu1"), PoolName("pool"), PilotId("pilot"), busy=1.0, busy_gpus=2)
    bench.core.worker_joined(WorkerId("w1"), info, bench.now)
    bench.submit(library, 10)
    assert bench.heard() == []
    bench.say("w1", WorkerReport(0, 0, 0.0, 0, 0, busy=1.0, busy_gpus=1))
    [start] = bench.heard()
    assert isinstance(start, StartLibrary)
    assert start.slots == 1
    bench.say("w1", LibraryReady(start.instance, 77), WorkerReport(0, 0, 0.0, 0, 0))
    assert [message.slots for message in bench.heard() if isinstance(message, SetSlots)] == [2]


def test_a_call_asks_for_no_more_gpus_than_its_slot_has(bench: Bench) -> None:
    """It would see those alone, and the others would lie idle."""
    library = bench.library(per_slot=Resources(gpus=1))
    bench.core.pools_reported("factory", PoolReport((PoolOffer(PoolName("pool"), Resources(8, 0, 4)),)), bench.now)
    [call] = bench.submit(library, 1, CallOptions(needs=Resources(0, 0, 2)))
    assert bench.outcome(call) == NOT_POSSIBLE
    assert bench.text(call).endswith("asks for 2 GPUs, and a slot of library 'lib' has 1 GPU: create the library with gpus=2")


def test_what_no_pool_can_run_ends_with_the_reason(bench: Bench) -> None:
    library = bench.library()
    [early] = bench.submit(library, options=CallOptions(needs=Resources(64)))
    assert early not in bench.done, "nothing is known of pools yet"
    bench.offer(cores=2)
    assert bench.outcome(early) == NOT_POSSIBLE
    [late] = bench.submit(library, options=CallOptions(needs=Resources(32)))
    assert bench.text(late).endswith("it needs 32 cores; pool 'pool' gives 2 cores per pilot")


def test_calls_end_when_the_last_worker_is_lost_of_a_pool_that_can_have_none_any_more(bench: Bench) -> None:
    """Its connection may stand when the factory says so; such a call that is submitted later is refused."""
    library = bench.library()
    bench.worker("w1", cores=2)
    calls = bench.submit(library, 2)
    bench.serve()
    bench.offer(cores=2, paused="Invalid account", spent=True)
    assert not bench.done
    bench.core.worker_lost(WorkerId("w1"), "its pilot ended", bench.now)
    bench.step(0.1)
    assert [bench.outcome(call) for call in calls] == [NOT_POSSIBLE] * 2
    assert "paused and has no pilots: Invalid account" in bench.text(calls[0])


def test_an_instance_is_granted_no_more_slots_than_a_worker_starts(bench: Bench) -> None:
    """What is more would be taken for slots in which calls run. A call that needs more of them is refused."""
    library = bench.library(per_slot=Resources(0.01))
    bench.worker("w1", cores=16)
    bench.submit(library)
    [start] = bench.heard("w1")
    assert isinstance(start, StartLibrary)
    assert start.slots == SLOTS_MOST
    bench.offer(cores=16)
    [wide] = bench.submit(library, options=CallOptions(needs=Resources(12.0)))
    assert "which are more than the 1024 slots that a library has on a worker: create it with larger ones" in bench.text(wide)


def test_queued_calls_are_recalled_for_an_idle_worker(bench: Bench) -> None:
    library = bench.library()
    bench.worker("w1")
    calls = bench.submit(library, 8)
    bench.serve("w1")
    runs = bench.runs("w1")
    assert len(runs) == 8
    bench.end(runs[0], seconds=5.0)
    bench.worker("w2")
    assert bench.heard("w2") == [], "no call waits, so it is given no library"
    bench.step(0.05)
    assert len(calls) == 8


def test_calls_behind_a_long_one_get_idle_slots_of_another_library(bench: Bench) -> None:
    """A call that was sent ahead to a slot that stays busy does not wait for it while another library's slot lies idle.

    Slots move at the first tick in which no call of the library has ended, so that short calls move none.
    """
    other, library = bench.library("other"), bench.library("lib", slots=2)
    bench.worker()
    bench.submit(other, 1)
    bench.submit(library, 1)
    bench.serve()
    [busy] = [run for run in bench.all_runs() if run.instance == 1]
    bench.say("w1", LibraryReady(InstanceId(2), 77))
    bench.heard()
    assert [one.slots for one in bench.core.workers[WorkerId("w1")].instances.values()] == [1, 1]
    bench.submit(library, 1)
    assert len(bench.runs()) == 1, "sent ahead: no slot of the library is free"
    bench.end(busy)
    bench.step(0.05)
    assert [(one.instance, one.slots) for one in bench.heard() if isinstance(one, SetSlots)] == [(1, 0), (2, 2)]


def test_calls_behind_a_long_one_go_to_a_worker_that_came_later(bench: Bench) -> None:
    """What was sent ahead to one worker comes back for another one that is idle, although no call waits at the manager."""
    library = bench.library()
    bench.worker("w1", cores=1)
    bench.submit(library, 3)
    bench.serve("w1")
    assert len(bench.runs("w1")) == 3
    bench.worker("w2", cores=1)
    bench.step(0.05)
    bench.serve("w2")
    bench.step(0.05)
    assert [(type(one), getattr(one, "count", 0)) for one in bench.heard("w1")] == [(RecallCalls, 1)]


def test_a_worker_that_comes_while_all_others_are_busy_with_short_calls_serves_at_the_next_tick(bench: Bench) -> None:
    """Short calls that stand behind others are no reason to move slots of other libraries, but one to use what has come since."""
    library = bench.library()
    bench.worker("w1", cores=1)
    bench.submit(library, 4)
    bench.serve("w1")
    runs = bench.runs("w1")
    bench.step(0.05)
    bench.worker("w2", cores=1)
    bench.end(runs[0])
    bench.step(0.05)
    assert [type(one) for one in bench.heard("w2")] == [StartLibrary]


def test_what_waits_behind_calls_that_turn_out_long_comes_back(bench: Bench) -> None:
    """Three ticks without an end: what was sent ahead waits at the manager again, in its old order, and goes to whoever falls free first.
    Nothing is sent ahead there before a call has ended."""
    library = bench.library()
    bench.worker("w1", cores=1)
    bench.worker("w2", cores=1)
    calls = bench.submit(library, 8)
    bench.serve("w1")
    bench.serve("w2")
    held = {name: [run.call for run in bench.all_runs(name)] for name in ("w1", "w2")}
    assert sorted(held["w1"] + held["w2"]) == calls
    for _ in range(STILL_TICKS):
        bench.step(0.05)
        assert not bench.heard("w1")
    bench.step(0.05)
    for name in ("w2", "w1"):
        assert [(type(one), getattr(one, "count", 0)) for one in bench.heard(name)] == [(RecallCalls, len(held[name]) - 1)]
        bench.say(name, CallsReturned(tuple(HeldCall(call, 1) for call in reversed(held[name][1:])), "recalled"))
    assert not bench.heard("w1")
    assert not bench.heard("w2")
    bench.say("w2", CallsEnded([CallEnd(held["w2"][0], 1, RETURNED, started_at=0.0, ended_at=30.0)]))
    waiting = sorted(set(calls) - {held["w1"][0], held["w2"][0]})
    assert [run.call for run in bench.runs("w2")] == waiting[:1], "the one that has waited longest; none behind it"
    bench.step(0.05)
    assert not bench.heard("w1")


def test_calls_with_data_are_left_longer_where_it_may_be_on_its_way(bench: Bench) -> None:
    """What lacks its objects does not end, and fetching them for other calls elsewhere would only take longer."""
    library = bench.library()
    bench.worker("w1", cores=1)
    ref = ObjectRef(ObjectName("o" * 32), 1 << 20)
    bench.core.submit([CallSpec(CallId(call), library, F, b"args", (ref,), PLAIN) for call in range(1, 6)], bench.now)
    bench.step()
    bench.serve("w1")
    assert len(bench.runs("w1")) == 5
    for _ in range(STILL_TICKS_WITH_DATA):
        bench.step(0.05)
        assert not bench.heard("w1")
    bench.step(0.05)
    assert [(type(one), getattr(one, "count", 0)) for one in bench.heard("w1")] == [(RecallCalls, 4)]


def test_a_queue_grows_with_what_its_instance_has_ended(bench: Bench) -> None:
    """The calls that end first are the short ones: a worker does not get a thousand ahead because one call took a microsecond."""
    library = bench.library()
    bench.worker("w1", cores=1)
    bench.submit(library, 1000)
    bench.serve("w1")
    runs, most = bench.runs("w1"), 0
    assert len(runs) == 1 + AHEAD_UNKNOWN
    for ended in range(1, 100):
        bench.end(runs.pop(0), seconds=1e-6)
        runs += bench.runs("w1")
        assert len(runs) <= 1 + AHEAD_UNKNOWN + ended
        most = max(most, len(runs))
    assert most > 80, "and it does grow"


def test_a_queue_that_has_turned_out_long_is_shortened(bench: Bench) -> None:
    """Calls were sent ahead while nothing was known of durations. Now it is, and they would wait for seconds: they come back at the next
    tick, although calls do end there."""
    library = bench.library()
    bench.worker("w1", cores=2)
    bench.submit(library, 20)
    bench.serve("w1")
    runs = bench.runs("w1")
    assert len(runs) == 2 * (1 + AHEAD_UNKNOWN)
    bench.end(runs[0], seconds=1.0)
    assert not bench.heard("w1")
    bench.step(0.05)
    [recall] = bench.heard("w1")
    assert isinstance(recall, RecallCalls)
    assert recall.count == len(runs) - 1 - 2


def fill(bench: Bench, seconds: float, away: float) -> int:
    """How many calls of so many seconds the worker has at last."""
    library = bench.library()
    bench.worker("w1", cores=2)
    bench.core.worker_is_away(WorkerId("w1"), away)
    bench.submit(library, 1000)
    bench.serve("w1")
    runs = bench.runs("w1")
    for _ in range(100):
        bench.end(runs.pop(0), seconds=seconds)
        runs += bench.runs("w1")
    return len(runs)


@pytest.mark.parametrize(("away", "most"), [(0.0, 2 * 6), (0.0005, 2 * 6), (0.1, 2 * 16), (60.0, 2 * 56)])
def test_a_worker_far_off_has_more_ahead_so_that_its_slots_do_not_run_dry(bench: Bench, away: float, most: int) -> None:
    """As many more as it runs while word of an end comes here and the next call goes there; but a round trip of minutes is none. And it is
    filled up before what is on its way runs out: a third may be gone of what waits there, as at any worker, not of that."""
    assert fill(bench, 0.01, away) in (most, most - 1, most - 2, most - 3)


@pytest.mark.parametrize(("given", "returned", "most"), [(0, 0, 2 * 11), (1, 0, 2 * 16), (0, 1, 2 * 16), (1, 1, 2 * 21)])
def test_calls_with_objects_have_more_ahead_far_off(bench: Bench, given: int, returned: int, most: int) -> None:
    """Each of them takes a round trip more to fetch what it is given, and one to give what it returns, before its end is told."""
    library, ref = bench.library(), ObjectRef(ObjectName("o" * 32), 1 << 20)
    bench.worker("w1", cores=2)
    bench.core.worker_is_away(WorkerId("w1"), 0.05)
    bench.core.submit([CallSpec(CallId(call), library, F, b"args", (ref,) * given, PLAIN) for call in range(1, 1000)], bench.now)
    bench.step()
    bench.serve("w1")
    runs = bench.runs("w1")
    for _ in range(200):
        run = runs.pop(0)
        bench.say("w1", CallsEnded([CallEnd(run.call, run.attempt, RETURNED, b"", (ref,) * returned, started_at=1.0, ended_at=1.01)]))
        runs += bench.runs("w1")
    assert most - 6 < len(runs) <= most


@pytest.mark.parametrize(("size", "most"), [(100, 2 * 321), (60_000, 2 * 18), (1 << 20, 2 * 6)])
def test_a_manager_that_is_held_up_does_not_send_ever_more_bytes_ahead(bench: Bench, size: int, most: int) -> None:
    """They would be minutes on their way, and everything behind them."""
    library = bench.library()
    bench.worker("w1", cores=2)
    for _ in range(3):
        bench.core.tick(bench.now, 1.0)
    bench.core.submit([CallSpec(CallId(call), library, F, b"x" * size, (), PLAIN) for call in range(1, 2000)], bench.now)
    bench.step()
    bench.serve("w1")
    runs = bench.runs("w1")
    for _ in range(700):
        bench.end(runs.pop(0), seconds=0.01)
        runs += bench.runs("w1")
    assert most * 2 / 3 - 2 <= len(runs) <= most


def test_calls_that_may_be_on_their_way_are_not_taken_back(bench: Bench) -> None:
    """Ticks in which nothing can have been heard say nothing of how long calls take."""
    fill(bench, 0.01, 0.2)
    for _ in range(STILL_TICKS + 4 * 4):
        bench.step(0.05)
        assert not bench.heard("w1")
    bench.step(0.05)
    assert [type(one) for one in bench.heard("w1")] == [RecallCalls]


def test_a_pilot_that_drains_gets_nothing_more(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    bench.submit(library, 1)
    bench.serve()
    [run] = bench.runs()
    bench.say("w1", WorkerDraining("walltime", 30.0))
    bench.submit(library, 2)
    assert bench.heard() == []
    bench.end(run)
    assert bench.heard() == []


def test_a_call_lost_at_walltime_is_placed_where_more_time_is_left(bench: Bench) -> None:
    library = bench.library()
    bench.offer(cores=2, walltime=100.0)
    bench.worker("w1", seconds_left=100.0)
    [call] = bench.submit(library)
    bench.serve()
    bench.runs()
    bench.now += 90
    bench.core.worker_lost(WorkerId("w1"), "walltime", bench.now)
    bench.step()
    assert call not in bench.done, "90 s of 100 s: a fresh pilot may be enough"
    bench.worker("w2", seconds_left=50.0)
    assert bench.heard("w2") == []
    bench.worker("w3", seconds_left=100.0)
    bench.serve("w3")
    assert len(bench.runs("w3")) == 1
    bench.now += 101
    bench.core.worker_lost(WorkerId("w3"), "walltime", bench.now)
    bench.step()
    assert bench.outcome(call) == TOO_LONG
    assert "longest walltime of a pool is 100 s" in bench.text(call)


@pytest.mark.parametrize(
    ("offered", "node"), [("renamed", "host"), ("renamed", ""), ("renamed", "n1"), ("renamed", None), ("pool", "host")]
)
def test_the_end_of_a_pilot_is_that_of_its_worker_though_its_pool_had_another_name(bench: Bench, offered: str, node: str | None) -> None:
    """As its factory has taken it over from an earlier life. Where the pool has a factory, that one speaks of its pilots; and one of the
    same id on another node, or that was not told of, is another batch system's."""
    bench.worker()
    report = PoolReport((PoolOffer(PoolName(offered), Resources(2.0), 0.0),))
    bench.core.pools_reported("factory", report, bench.now)
    bench.core.worker_cut(WorkerId("w1"), bench.now)
    pilot, other = PilotId("pilot-w1"), PoolName("other")
    lines = (PilotLine(other, pilot, "1", "ended", 0.0, 0.0, node),) if node is not None else ()
    ended = PoolReport((PoolOffer(other, Resources(2.0), 0.0),), (PilotEnded(pilot, "walltime"),), pilots=lines)
    bench.core.pools_reported("other" if offered == "pool" else "factory", ended, bench.now)
    assert bool(bench.core.workers) == (offered == "pool" or node in ("n1", None))


@pytest.mark.parametrize("told", [False, True])
def test_what_a_call_ran_is_reckoned_to_when_its_worker_was_cut(bench: Bench, *, told: bool) -> None:
    """Its pilot was killed then; that its session is given up, or the batch system says so, is a minute later."""
    library = bench.library()
    bench.offer(walltime=300.0)
    bench.worker(seconds_left=290.0)
    bench.step(50)
    [call] = bench.submit(library)
    bench.serve()
    bench.runs()
    bench.now += 240
    bench.core.worker_cut(WorkerId("w1"), bench.now)
    bench.now += 60
    if told:
        bench.core.pilots_ended([PoolName("pool")], [(PilotId("pilot-w1"), "walltime")], bench.now)
    bench.step(1)
    assert not bench.core.workers
    assert call not in bench.done, "a fresh pilot has more than 240 s"
    bench.worker("w2", seconds_left=190.0)
    assert bench.heard("w2") == [], "too little"
    bench.worker("w3", seconds_left=290.0)
    bench.serve("w3")
    [run] = bench.runs("w3")
    bench.end(run, worker="w3")
    assert [attempt.seconds for attempt in bench.done[call].attempts] == [240.0]


def test_a_cut_long_before_its_pilot_was_to_end_teaches_nothing(bench: Bench) -> None:
    """That the session is given up near that end says nothing of how long the call takes."""
    library = bench.library()
    bench.offer(walltime=300.0)
    bench.worker(seconds_left=290.0)
    [call] = bench.submit(library)
    bench.serve()
    bench.runs()
    bench.now += 230
    bench.core.worker_cut(WorkerId("w1"), bench.now)
    bench.step(60)
    assert not bench.core.workers
    bench.worker("w2", seconds_left=20.0)
    bench.serve("w2")
    assert [run.call for run in bench.runs("w2")] == [call]


def test_a_call_goes_where_its_expected_time_is_left(bench: Bench) -> None:
    """Not to a worker with half of it, idle or not; and the worker hears how much must be left when it starts."""
    library = bench.library()
    bench.worker("w1", seconds_left=1800.0)
    bench.submit(library, 1, CallOptions(expected_time=3600.0))
    assert bench.heard("w1") == []
    bench.worker("w2", seconds_left=7200.0)
    bench.serve("w2")
    [run] = bench.runs("w2")
    assert run.least_seconds == 3600.0
    bench.submit(library, 1)
    assert bench.heard("w1") == []
    assert [run.least_seconds for run in bench.runs("w2")] == [0.0], "one that says nothing goes where its library is"


def test_a_call_that_is_expected_to_take_nearly_a_walltime_goes_to_a_fresh_pilot(bench: Bench) -> None:
    """No pilot has its whole walltime left when it joins. It does not matter whether the pool or the call came first."""
    library = bench.library()
    bench.submit(library, 1, CallOptions(expected_time=3595.0))
    bench.offer(walltime=3600.0)
    bench.submit(library, 1, CallOptions(expected_time=3594.0))
    bench.worker("w1", seconds_left=3200.0)
    assert bench.heard("w1") == []
    bench.worker("w2", seconds_left=3580.0)
    bench.serve("w2")
    assert [run.least_seconds for run in bench.runs("w2")] == [3240.0, 3240.0]


def test_an_idle_worker_makes_room_when_too_little_time_is_left_for_what_waits(bench: Bench) -> None:
    """Or a pool at its most pilots would have none for the call; but not at once, and not while it can be of use."""
    library = bench.library()
    bench.worker("w1", seconds_left=7200.0)
    bench.worker("w2", cores=1, seconds_left=7200.0)
    bench.step(5400.0)
    bench.submit(library, 1)
    bench.serve("w1")
    [short] = bench.runs("w1")
    bench.submit(library, 1, CallOptions(expected_time=3600.0))
    bench.step(10.0)
    assert [type(message) for message in bench.heard("w1")] == [], "it runs a call"
    assert bench.heard("w2") == [Drain("idle, and too little time is left for the calls that wait")]
    bench.end(short)
    bench.step(1.0)
    assert bench.heard("w1") == [], "it may be wanted in a moment"
    bench.step(5.0)
    assert bench.heard("w1") == [Drain("idle, and too little time is left for the calls that wait")]
    assert all(pilot.draining for pilot in bench.core.demand(bench.now).pilots)


def test_a_library_that_starts_slowly_leaves_a_fresh_pilot_fresh(bench: Bench) -> None:
    """Or each pilot would be let go when the library is ready, as too little time is left, and the next one come for nothing.

    A call that is cut off although it had all of such a pilot is too long. Calls that come later are placed alike.
    """
    library = bench.library()
    bench.offer(walltime=1800.0)
    expects = CallOptions(expected_time=1700.0)
    [call] = bench.submit(library, 1, expects)
    bench.worker("w1", cores=1, seconds_left=1785.0)
    bench.now += 200
    bench.serve("w1")
    bench.step(10.0)
    [run] = bench.runs("w1")
    assert 1300 < run.least_seconds < 1420
    bench.submit(library, 1, expects)
    assert len(bench.core.libraries[library].queues) == 1
    bench.step(1575.0)
    bench.core.worker_lost(WorkerId("w1"), "end of walltime", bench.now)
    bench.step()
    assert bench.outcome(call) == TOO_LONG


def test_starts_are_allowed_for_in_calls_that_were_lowered_before(bench: Bench) -> None:
    """By pools, and by a start that was quicker; what losses have taught stays."""
    library = bench.library()
    bench.submit(library, 1, CallOptions(expected_time=1700.0))
    bench.offer(walltime=1800.0)
    bench.worker("w1", cores=1, seconds_left=1785.0)
    bench.now += 20
    bench.serve("w1")
    [first] = bench.runs("w1")
    bench.worker("w2", cores=1, seconds_left=1785.0)
    bench.submit(library, 1, CallOptions(expected_time=1700.0))
    bench.now += 100
    bench.serve("w2")
    [second] = bench.runs("w2")
    assert [first.least_seconds, second.least_seconds] == pytest.approx([1598.0, 1554.0])


def test_a_slow_first_start_is_allowed_for_until_later_ones_are_quick(bench: Bench) -> None:
    """Else long calls would go to pilots with half of their life left, and be cut off, for good."""
    library = bench.library()
    bench.offer(walltime=1800.0)
    bench.submit(library, 1, CallOptions(expected_time=1500.0))
    state = bench.core.libraries[library]
    [queue] = state.queues
    bench.worker("w0", cores=1, seconds_left=1785.0)
    bench.now += 600
    bench.serve("w0")
    assert queue.least_seconds == pytest.approx(0.9 * 1800 - 660)
    bench.submit(library, 500)
    for number in range(30):
        bench.worker(f"q{number}", cores=1)
        bench.now += 5
        bench.serve(f"q{number}")
    assert queue.least_seconds == 1500.0


def test_what_a_loss_has_taught_stays_when_pools_change_and_is_no_more_than_a_fresh_pilot_has(bench: Bench) -> None:
    """One that was cut off late has its try; and what is known to need longer than the pilots of any pool live ends."""
    library = bench.library()
    bench.offer(walltime=1400.0)
    bench.worker("w1", cores=2, seconds_left=1385.0)
    bench.submit(library, 2, CallOptions(expected_time=100.0))
    bench.now += 20
    bench.serve("w1")
    bench.end(bench.runs("w1")[0], seconds=82.0)
    bench.now += 82
    [cut_off] = bench.submit(library)
    bench.step(1263.0)
    bench.core.worker_lost(WorkerId("w1"), "signal 15", bench.now)  # 20 s before its planned end
    bench.step()
    assert cut_off not in bench.done
    queue = next(queue for queue in bench.core.libraries[library].queues if queue.taught)
    assert queue.least_seconds == pytest.approx(0.9 * 1400 - 22), "and not 1262, which 1263 s have taught"
    bench.offer(walltime=1300.0)
    assert queue.least_seconds == pytest.approx(1238.0)
    assert cut_off not in bench.done
    bench.offer(walltime=1200.0)
    assert bench.outcome(cut_off) == TOO_LONG, "no pilot of these pools lives so long"
    assert "it ran for 1.26e+03 s" in bench.text(cut_off)


def test_a_worker_that_never_had_time_enough_is_left_alone(bench: Bench) -> None:
    """A fresh pilot in its place would have no more, and be let go in turn."""
    library = bench.library()
    bench.submit(library, 1, CallOptions(expected_time=3600.0))
    bench.worker("w1", seconds_left=1800.0)
    bench.step(60.0)
    assert bench.heard("w1") == []


def test_calls_that_a_worker_finds_too_late_to_start_cost_nothing(bench: Bench) -> None:
    """They wait for a worker with more time."""
    library = bench.library()
    bench.worker("w1", seconds_left=3601.0)
    [call] = bench.submit(library, 1, CallOptions(expected_time=3600.0))
    bench.serve("w1")
    bench.runs("w1")
    bench.now += 30
    bench.say("w1", CallsReturned((HeldCall(call, 1),), "late"))
    assert bench.heard("w1") == []
    bench.worker("w2", seconds_left=7200.0)
    bench.serve("w2")
    [run] = bench.runs("w2")
    assert (run.call, run.attempt) == (call, 2)
    bench.end(run, worker="w2")
    assert bench.outcome(call) == RETURNED
    assert bench.done[call].attempts == ()


def test_calls_for_which_a_worker_has_no_room_go_to_others_that_are_idle(bench: Bench) -> None:
    """Also where that worker has always been idle in part: it would be the first to get them, again and again."""
    library = bench.library()
    for name in ("w1", "w2"):
        bench.worker(name, cores=3)
    bench.submit(library, 6)
    for name in ("w1", "w2"):
        bench.serve(name)
    for name in ("w1", "w2"):
        for run in bench.all_runs(name):
            bench.end(run, worker=name, seconds=60.0)
    bench.sent.clear()
    calls = bench.submit(library, 2)
    [name] = [name for name in ("w1", "w2") if bench.sent.get(name)]
    other = {"w1": "w2", "w2": "w1"}[name]
    assert [run.call for run in bench.runs(name)] == calls
    bench.say(name, CallsReturned((HeldCall(calls[1], 1),), "room"))
    assert [run.call for run in bench.runs(other)] == calls[1:]
    assert bench.heard(name) == []


def test_a_call_that_was_warned_of_its_pilots_end_may_go_on_in_the_next_one(bench: Bench) -> None:
    """It has had a whole walltime, and is not too long for it: it has saved what it had. But not for ever."""
    library = bench.library()
    bench.offer(walltime=100.0)
    [call] = bench.submit(library, 1, CallOptions(max_losses=1))
    for name in ("w1", "w2"):
        bench.worker(name, seconds_left=97.0)
        bench.serve(name)
        [run] = bench.runs(name)
        bench.now += 97
        bench.say(name, WorkerDraining("near the end of walltime", 1.0))
        bench.say(name, CallsReturned((HeldCall(call, run.attempt),), "warned"))
        bench.core.worker_lost(WorkerId(name), "end of walltime", bench.now)
        bench.step()
    assert bench.outcome(call) == LOST
    story = bench.done[call].attempts
    assert [attempt.outcome for attempt in story] == ["lost with its worker (its pilot's end, of which it was warned)"] * 2


def test_the_batch_systems_word_ends_a_cut_session_at_once(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    bench.submit(library)
    bench.serve()
    bench.runs()
    bench.core.worker_cut(WorkerId("w1"), bench.now)
    offer = PoolOffer(PoolName("pool"), Resources(2))
    bench.core.pools_reported("factory", PoolReport((offer,), (PilotEnded(PilotId("pilot-w1"), "preempted"),)), bench.now)
    bench.step()
    assert not bench.core.workers


def test_a_pilot_that_ended_is_lost_as_soon_as_its_connection_is(bench: Bench) -> None:
    """When a node dies the batch system may say so while the connection still looks alive. It says so once: there is no grace to wait for
    when the connection is cut."""
    library = bench.library()
    bench.offer()
    bench.worker("w1")
    bench.submit(library)
    bench.serve()
    [first] = bench.runs()
    offer = PoolOffer(PoolName("pool"), Resources(2.0))
    bench.core.pools_reported("factory", PoolReport((offer,), (PilotEnded(PilotId("pilot-w1"), "node failure"),)), bench.now)
    bench.step()
    assert WorkerId("w1") in bench.core.workers, "an answer may be on its way"
    bench.worker("w2")
    bench.core.worker_cut(WorkerId("w1"), bench.now)
    bench.step()
    assert WorkerId("w1") not in bench.core.workers
    bench.serve("w2")
    [again] = bench.runs("w2")
    assert (again.call, again.attempt) == (first.call, 2)
    bench.end(again, worker="w2")
    assert "node failure" in bench.done[first.call].attempts[0].outcome


def test_released_pilots_drain(bench: Bench) -> None:
    bench.worker()
    bench.core.release([PilotId("pilot-w1")], PoolName("pool"), "not needed", bench.now)
    bench.step()
    assert bench.heard() == [Drain("not needed")]


def test_a_removed_library_ends_its_instances_after_its_calls(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    [call] = bench.submit(library)
    bench.serve()
    [run] = bench.runs()
    bench.core.remove(library, bench.now)
    bench.step()
    assert bench.heard() == []
    bench.end(run)
    [stop] = bench.heard()
    assert isinstance(stop, StopLibrary)
    bench.say("w1", LibraryStopped(stop.instance))
    bench.step(LINGER_SECONDS)
    assert library not in bench.core.libraries
    assert bench.outcome(call) == RETURNED


def test_a_call_that_crosses_with_the_removal_of_its_library_runs(bench: Bench) -> None:
    """One thread of the program replaces a library while another has just chosen the old version for a call. The old version is forgotten
    only when no such call can be on its way any more."""
    library = bench.library()
    bench.worker()
    bench.core.remove(library, bench.now)
    bench.step()
    [call] = bench.submit(library)
    bench.serve()
    [run] = bench.runs()
    bench.end(run)
    assert bench.outcome(call) == RETURNED
    instance = next(message.instance for message in bench.heard() if isinstance(message, StopLibrary))
    bench.say("w1", LibraryStopped(instance))
    bench.step(LINGER_SECONDS - 1)
    assert library in bench.core.libraries
    bench.step(2)
    assert not bench.core.libraries


def test_functions_are_sent_once_per_worker_before_their_first_call(bench: Bench) -> None:
    library = bench.library()
    bench.worker()
    other = FunctionId(b"g" * 16)
    bench.core.define([FunctionDef(other, "g", b"blob")])
    for number in (1, 2):
        bench.core.submit([CallSpec(CallId(number), library, other, b"")], bench.now)
        bench.step()
    bench.serve()
    messages = bench.heard()
    assert [type(message) for message in messages] == [AddFunctions, RunCalls]


def test_closing_ends_every_call_and_sends_the_workers_away(bench: Bench) -> None:
    library = bench.library(slots=1)
    bench.worker()
    calls = bench.submit(library, 20)
    bench.serve()
    bench.runs()
    bench.core.close("the manager was closed", bench.now)
    for message in bench.core.take_outbox()[WorkerId("w1")]:
        assert message == Leave("the manager was closed")
    assert {done.end.call for done in bench.core.take_done()} == set(calls)


def test_every_library_gets_its_turn_when_there_are_more_of_them_than_slots(bench: Bench) -> None:
    """Six libraries that all have calls without end, two slots: none waits longer than all others have had the slots once."""
    libraries = [bench.library(f"lib{number}") for number in range(6)]
    bench.worker()
    numbers = {call: number for number, library in enumerate(libraries) for call in bench.submit(library, 500)}
    held: dict[int, list[CallRun]] = {}
    ended: dict[int, list[float]] = {number: [bench.now] for number in range(6)}
    finish = bench.now + 20
    while bench.now < finish:
        bench.step(0.05)
        for message in bench.heard():
            if isinstance(message, StartLibrary):
                bench.say("w1", LibraryReady(message.instance, 77))
            elif isinstance(message, StopLibrary):
                bench.say("w1", LibraryStopped(message.instance))
            elif isinstance(message, RunCalls):
                for run in message.calls:
                    held.setdefault(run.instance, []).append(run)
            elif isinstance(message, RecallCalls):
                runs = held.get(message.instance, [])
                back = [runs.pop() for _ in range(min(message.count, len(runs) - 1))]
                bench.say("w1", CallsReturned(tuple(HeldCall(run.call, run.attempt) for run in back), "recalled"))
        for runs in list(held.values()):
            if runs:
                run = runs.pop(0)
                ended[numbers[run.call]].append(bench.now)
                bench.end(run, seconds=0.05)
    for number, times in ended.items():
        gap = max(after - before for before, after in itertools.pairwise([*times, finish]))
        assert gap < 8, f"library {number} of 6 had nothing run for {gap:.1f} s"


def test_an_instance_that_stops_unasked_gives_its_calls_back() -> None:
    """A worker that says so has them no more; without an instance they would wait for ever."""
    bench = Bench()
    library = bench.library()
    bench.worker()
    [call] = bench.submit(library)
    instance = bench.serve()
    [run] = bench.runs()
    bench.say("w1", LibraryStopped(InstanceId(instance)))
    again = bench.serve()
    assert again != instance
    [second] = bench.all_runs()
    assert (second.call, second.attempt, second.instance) == (run.call, 2, again)
    bench.end(second)
    assert bench.outcome(call) == RETURNED


def test_an_instance_that_fails_while_it_stops_takes_no_calls_of_the_next_one() -> None:
    """They are of the same library, and run."""
    bench = Bench()
    library = bench.library(slots=1)
    worker = bench.core.workers[WorkerId(bench.worker())]
    bench.submit(library)
    old = InstanceId(bench.serve())
    bench.end(bench.runs()[0])
    bench.core._stop(worker.instances[old], worker)  # pyright: ignore[reportPrivateUsage] - as to make room
    bench.step()
    assert bench.heard() == [StopLibrary(old)]
    [call] = bench.submit(library)
    assert bench.serve() != old
    [run] = bench.runs()
    bench.say("w1", LibraryFailed(old, "crash", "killed by signal 9", at_start=False))
    assert bench.all_runs() == []
    bench.end(run)
    assert bench.outcome(call) == RETURNED


def test_calls_with_many_files_and_long_paths_are_sent_in_messages_that_fit(bench: Bench) -> None:
    """Each of them may nearly fill one, and small ones may be before it."""
    library = bench.library()
    bench.worker(cores=30)
    large = Sandbox(inputs=tuple((f"{number:0120}", FileName("b3-" + "0" * 32), "f") for number in range(5000)))
    rooms = [large if number % 10 == 5 else None for number in range(30)]
    bench.core.submit([CallSpec(CallId(n), library, F, b"x" * 20_000, sandbox=room) for n, room in enumerate(rooms)], bench.now)
    bench.step()
    bench.serve()
    messages = [message for message in bench.heard() if isinstance(message, RunCalls)]
    assert [run.call for message in messages for run in message.calls] == list(range(30))
    assert MAX_FRAME_BYTES * 0.7 < max(len(encode_one(message)) for message in messages) < MAX_FRAME_BYTES


# ---------------------------------------------------------------- blocked hosts


def test_workers_of_a_blocked_host_leave_and_so_do_those_that_join(bench: Bench) -> None:
    """What runs there ends there; factories are told what to avoid; when the time is over, or it is unblocked, the host is used again."""
    library = bench.library()
    bench.worker()
    (call, waits) = bench.submit(library, 2)
    bench.serve()
    bench.all_runs()
    bench.core.block_host(BlockHost("host", 60.0), bench.now)
    bench.step()
    assert bench.heard() == [Drain("host host is blocked")]
    assert bench.core.demand(bench.now).avoid == ("host",)
    bench.worker("w2")
    assert bench.heard("w2") == [Drain("host host is blocked")]
    bench.end(CallRun(call, 1, InstanceId(1), F, b""))
    assert bench.outcome(call) == RETURNED
    bench.core.worker_lost(WorkerId("w1"), "it left", bench.now)
    bench.step(61.0)
    assert bench.core.demand(bench.now).avoid == ()
    bench.worker("w3")
    bench.serve("w3")
    assert [run.call for run in bench.runs("w3")] == [waits]
    bench.core.block_host(BlockHost("other.example.org"), bench.now)
    bench.core.block_host(BlockHost("", blocked=False), bench.now)
    assert bench.core.demand(bench.now).avoid == ()


# ---------------------------------------------------------------- outputs that may be missing


def test_a_lenient_call_that_leaves_nothing_ends_those_that_wait_for_what_it_was_to_make(bench: Bench) -> None:
    """Else they would wait for ever."""
    library = bench.library()
    bench.worker()
    name = FileName("r3-made")
    bench.core.declare_file(FileRef(name, -1, "made", "workflow"), FileOrigin())
    sandbox = Sandbox(outputs=(("made", name),), lenient=True)
    bench.core.submit([CallSpec(CallId(1), library, F, b"", sandbox=sandbox)], bench.now)
    bench.core.submit([CallSpec(CallId(2), library, F, b"", inputs=(FileRef(name, -1, "made", "workflow"),))], bench.now)
    bench.step()
    bench.serve()
    run = bench.all_runs()[0]
    bench.end(run)
    assert bench.outcome(1) == RETURNED
    for each in bench.all_runs():
        bench.say("w1", WantFiles((name,)))
        assert any(isinstance(message, FileLost) for message in bench.heard()), each
        bench.end(each, NO_FILE, detail=EndDetail(text="lost"))
    assert bench.outcome(2) != RETURNED
