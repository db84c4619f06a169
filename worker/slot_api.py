"""What a function may ask while it runs in a slot: its context and its call.

Importable anywhere at no cost. Outside of a slot there is no call, and asking for a variable of the library says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from windlass.messages import CallId, CallRun, InstanceId

if TYPE_CHECKING:
    from contextvars import ContextVar


class CurrentCall(msgspec.Struct, frozen=True):
    """The call that this process runs. ``started_at`` is in seconds since the epoch."""

    call: CallId
    #: Counted from 1, those left out that never began.
    attempt: int
    instance: InstanceId
    library: str
    #: Number of the slot in its instance, from 0; no other call runs in the same slot at the same time, unless the library has
    #: ``concurrency``.
    slot: int
    started_at: float
    #: Seconds that the call may run; 0: no limit.
    timeout: float


class PilotRow(Protocol):
    """What is known of the pilot's end, as of now."""

    @property
    def ends_at(self) -> float: ...
    @property
    def warned(self) -> bool: ...
    def since(self, row: int, /) -> float: ...
    def watch(self, row: int, /) -> None: ...


class Watch(Protocol):
    """Registrations of a call; `windlass.pilot_end.Watch` is one."""

    def end(self) -> None: ...


class CallState(Protocol):
    """What is known of a running call."""

    row: int
    run: CallRun | None
    started_at: float
    watch: Watch | None


class SlotState:
    """What the slot's main loop leaves here for `current_call`, `load_variable_from_library` and `windlass.pilot_end`."""

    def __init__(self) -> None:
        self.library = ""
        self.slot = -1
        #: Where the running call is noted in the instance's shared memory.
        self.row = -1
        #: In a slot that runs many calls at once: which of them a task belongs to (a `CallState`).
        self.tasks: ContextVar[CallState | None] | None = None
        #: The worker's cache of files.
        self.cache_folder = ""
        self.context: Any = None
        self.has_context = False
        self.run: CallRun | None = None
        self.started_at = 0.0
        #: What `windlass.pilot_end` reads: the instance's shared memory (`windlass.worker.slotlink.Rows`), and the descriptor that becomes
        #: readable when the worker warns.
        self.rows: PilotRow | None = None
        self.warnings = -1
        #: What the running call has registered for the end of its pilot; whoever answers the call ends it.
        self.watch: Watch | None = None
        #: This process was forked by a call's function: it must not answer in the slot's place.
        self.forked = False


#: The one state of this process; written by `windlass.worker.slot` only.
STATE = SlotState()


def here() -> CallState:
    """The call that this is asked in; outside of one its ``run`` is None."""
    tasks = STATE.tasks
    return STATE if tasks is None else tasks.get() or STATE


def current_call() -> CurrentCall | None:
    """The call that is running, or None outside of one. Among many that run in one slot, the one whose task asks."""
    state = here()
    run = state.run
    if run is None:
        return None
    return CurrentCall(run.call, run.turn or run.attempt, run.instance, STATE.library, STATE.slot, state.started_at, run.timeout)


def load_variable_from_library(name: str) -> Any:
    """The value that the library's context function returned under `name`.

    A context that is no dict is called ``context``. Raises `windlass.errors.UnknownName` (a `KeyError`) when there is no such variable,
    and `windlass.errors.UsageError` outside of a library or in one without a context.
    """
    from windlass.errors import UnknownName, UsageError

    state = STATE
    if state.slot < 0:
        raise UsageError(
            f"variable {name!r} was asked for outside of a library: load_variable_from_library works in functions that a library runs, "
            "and in what they call"
        )
    if not state.has_context:
        raise UsageError(
            f"library {state.library!r} has no context, so it has no variable {name!r}; give it one with "
            "context=(function, args, kwargs) when you install it"
        )
    context: Any = state.context
    variables: Any = context if isinstance(context, dict) else {"context": context}  # pyright: ignore[reportUnknownVariableType]
    if name not in variables:
        raise UnknownName("variable", name, [str(key) for key in variables], f"(in the context of library {state.library!r})")
    return variables[name]
