"""Facts of a task: what it tells of itself, as TaskVine's users ask for it, before and after its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

from windlass.errors import UnknownName
from windlass.manager.call import DEFAULT_OPTIONS, MEGABYTE, merge_options
from windlass.manager.future import CallFuture
from windlass.manager.timings import Timings
from windlass.messages import Resources
from windlass.taskvine.outcomes import NOT_RUN, SUCCESS, Outcome

#: The output of a task whose result has stayed on its worker.
KEPT: Final = object()


class TaskFacts:
    """A part of `windlass.taskvine.Task`."""

    command: str
    _id: int
    _tag: str | None
    _category: str
    _disk: float
    _future: CallFuture[Any] | None
    _outcome: Outcome | None
    _needs: Resources | None
    _options: dict[str, Any]

    @property
    def _ended(self) -> Outcome | None:
        """What became of it; None before its end."""
        return self._outcome

    @property
    def id(self) -> int:
        """Its number, from its submission on."""
        return self._id

    @property
    def tag(self) -> str | None:
        """As set."""
        return self._tag

    @property
    def category(self) -> str:
        """As set."""
        return self._category

    @property
    def state(self) -> str:
        """``initial``, ``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
        if self._future is not None:
            return self._future.state
        return "initial" if not self._id else "done" if self._ended is not None else "waiting"

    @property
    def future(self) -> CallFuture[Any] | None:
        """The call that it has become; None before."""
        return self._future

    @property
    def result(self) -> str:
        """``success`` if it was run, whatever its exit code; else the reason in TaskVine's words; ``unknown`` before its end."""
        ended = self._ended
        return ended.result if ended is not None else "unknown"

    @property
    def exit_code(self) -> int:
        """Of the command; of one that was killed by a signal the number below zero. Of a function: 0, or 1 if it raised. -1: not run."""
        ended = self._ended
        return ended.exit_code if ended is not None else NOT_RUN

    @property
    def output(self) -> Any:
        """What the command wrote; what the function returned, or its exception."""
        ended = self._ended
        if ended is None:
            return None
        if ended.output is KEPT and self._future is not None:
            return self._future.result()
        return ended.output

    @property
    def std_output(self) -> str:
        """What it wrote to its standard output and error."""
        ended = self._ended
        return ended.std_output if ended is not None else ""

    @property
    def error(self) -> BaseException | None:
        """Why it was not run to its end, or what its function raised."""
        ended = self._ended
        return ended.error if ended is not None else None

    def completed(self) -> bool:
        """It was run, whatever its exit code."""
        return self.result == SUCCESS

    def successful(self) -> bool:
        """It was run, with exit code 0, and has made its outputs."""
        return self.completed() and self.exit_code == 0

    @property
    def hostname(self) -> str:
        """Where it ran, as far as is known."""
        ended = self._ended
        if ended is not None and ended.details is not None:
            return ended.details.host
        attempts = self._future.attempts if self._future is not None else ()
        return attempts[-1].host if attempts else ""

    @property
    def resources_requested(self) -> SimpleNamespace:
        """Cores, memory and disk (MB), gpus; 0: not said."""
        needs = self._needs if self._needs is not None else merge_options(DEFAULT_OPTIONS, None, self._options)[0].needs
        return SimpleNamespace(cores=needs.cores, memory=needs.memory // MEGABYTE, disk=self._disk, gpus=needs.gpus)

    @property
    def resources_allocated(self) -> SimpleNamespace:
        """As requested; a slot's share of what was not said."""
        return self.resources_requested

    @property
    def resources_measured(self) -> SimpleNamespace | None:
        """``wall_time`` and ``cpu_time`` in seconds, ``memory`` in MB, ``cores`` (on the average), of a command; of others what is known of
        these, and -1 for what is not, as for ``disk`` and ``gpus``; None before its end."""
        ended = self._ended
        if ended is None:
            return None
        details = ended.details
        if details is None:
            peak = getattr(ended.error, "peak", 0)
            running = self._future.timings.running if self._future is not None else 0.0
            return _resources(wall_time=running or -1, memory=peak / MEGABYTE if peak else -1)
        cores = details.cpu_seconds / details.seconds if details.seconds else 0.0
        return _resources(
            wall_time=details.seconds, cpu_time=details.cpu_seconds, memory=details.peak_memory / MEGABYTE, cores=round(cores, 3)
        )

    @property
    def limits_exceeded(self) -> SimpleNamespace | None:
        """``memory`` in MB: the share that it ran out of, with -1 for the other resources; None if it did not."""
        share = getattr(self.error, "share", 0)
        return _resources(memory=share / MEGABYTE) if share else None

    def get_metric(self, name: str) -> int:
        """Microseconds: of the epoch for ``time_when_...``, else a duration. Raises `UnknownName`."""
        timings = self._future.timings if self._future is not None else Timings()
        known = {
            "time_when_submitted": timings.submitted,
            "time_when_commit_start": timings.sent,
            "time_when_commit_end": timings.started,
            "time_when_retrieval": timings.returned,
            "time_when_done": timings.returned,
            "time_workers_execute_last": timings.running,
        }
        if name not in known:
            raise UnknownName("metric of a task", name, known)
        return int(known[name] * 1e6)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._id or 'not submitted'} {self._what()} {self.state}>"

    def _what(self) -> str:
        return repr(self.command if len(self.command) <= 60 else f"{self.command[:57]}...")


def _resources(**known: float) -> SimpleNamespace:
    """As TaskVine tells them: -1 for what is not known."""
    return SimpleNamespace(**{**dict.fromkeys(("cores", "memory", "disk", "gpus", "wall_time", "cpu_time"), -1), **known})
