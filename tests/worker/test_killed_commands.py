"""Commands that the kernel ends as the pilot's memory runs out: `windlass.commands` in a slot, and what becomes of that on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from windlass import commands
from windlass.commands import CommandResult, KilledForMemory, failure_of
from windlass.errors import CommandFailed
from windlass.messages import DIED, OUT_OF_MEMORY, RAISED, CallEnd, CallId, EndDetail, InstanceId
from windlass.pickling import unpack_exception
from windlass.worker import memory
from windlass.worker.memory import Cgroup
from windlass.worker.slot import Slot
from windlass.worker.watch import MemoryWatch

RAN_OUT = ": the kernel ended it because the pilot's memory ran out; give it more: memory=..., or memory='auto'"


@pytest.mark.parametrize(
    ("exit_code", "how"),
    [
        (-9, "was killed by signal 9 (SIGKILL)"),
        (137, "ended with exit code 137, as shells say when what they ran was killed by signal 9 (SIGKILL)"),
    ],
)
def test_a_command_that_the_kernel_killed_for_memory_is_out_of_memory(exit_code: int, how: str) -> None:
    """It was told as one killed by a signal, `memory="auto"` did nothing, and `retries=` neither."""
    error = failure_of(CommandResult(exit_code, stderr="Killed\n", peak_memory=77), "the command", 1)
    assert isinstance(error, KilledForMemory)
    outcome, payload, detail = Slot.raised(error)
    assert (outcome, detail.signal, detail.peak_memory) == (OUT_OF_MEMORY, 9, 77)
    assert isinstance(unpack_exception(payload), CommandFailed), "for a worker that knows better"
    assert detail.text == f"the command {how}{RAN_OUT}; the end of what it wrote:\nKilled"


def test_other_ends_are_failures() -> None:
    """Somebody else's SIGKILL; and where the kernel has ended something, but not the command itself, that is only told."""
    killed = failure_of(CommandResult(-9), "the command", 0)
    assert isinstance(killed, CommandFailed)
    assert str(killed) == "the command was killed by signal 9 (SIGKILL)"
    assert Slot.raised(killed)[0] == RAISED
    failed = failure_of(CommandResult(3), "the command", 1)
    assert isinstance(failed, CommandFailed)
    assert str(failed) == (
        "the command ended with exit code 3; while it ran the kernel ended something in this pilot because its memory ran out"
    )
    with pytest.raises(CommandFailed, match=r"^the command ended with exit code 3(\n|$)"):
        CommandResult(3).check()


def test_kills_are_counted_in_the_slots_own_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "events").write_text("oom 9\noom_kill 2\n")
    groups = [Cgroup("", "", "", str(tmp_path / "events"))]
    monkeypatch.setattr(commands, "_groups", None)
    monkeypatch.setattr(memory, "own_cgroups", lambda: groups)
    assert commands.kills_here() == 2
    (tmp_path / "events").write_text("oom 9\noom_kill 3\n")
    groups.clear()  # looked for once
    monkeypatch.setattr(memory, "own_cgroups", lambda: None)
    assert commands.kills_here() == 0
    groups.append(Cgroup("", "", "", str(tmp_path / "events")))
    assert commands.kills_here() == 3


class TwoSlots:
    entries: ClassVar[dict[InstanceId, Any]] = {}

    def slots(self) -> int:
        return 2


def test_a_command_that_somebody_killed_is_no_want_of_memory_where_others_told_of_the_kernels_kills(tmp_path: Path) -> None:
    """One of hours that ended by `timeout -s KILL` was out of memory if any other call of its pilot had been killed for that meanwhile.
    Of two that the kernel has killed, whoever is told first, both are."""
    group = Cgroup("", "", "", str(tmp_path / "events"))
    (tmp_path / "events").write_text("oom_kill 4\n")
    watch = MemoryWatch(cast(Any, TwoSlots()), cast(Any, None), 1000, [group], lambda _: None)

    def command() -> CallEnd:
        error = failure_of(CommandResult(-9), "the command", 1)
        outcome, payload, detail = Slot.raised(error)
        end = CallEnd(CallId(1), 1, outcome, payload, detail=detail)
        watch.complete(end)
        return end

    def died(at: float) -> int:
        return watch.explain(CallEnd(CallId(2), 1, DIED, detail=EndDetail(text="killed", signal=9), ended_at=at)).outcome

    (tmp_path / "events").write_text("oom_kill 5\n")
    assert died(10.0) == OUT_OF_MEMORY
    end = command()
    assert end.outcome == RAISED
    assert str(unpack_exception(end.payload)) == (
        "the command was killed by signal 9 (SIGKILL); while it ran the kernel ended something in this pilot because its memory ran out"
    )
    assert end.detail is not None
    assert end.detail.types[0] == "windlass.errors.CommandFailed"
    assert not end.detail.signal
    (tmp_path / "events").write_text("oom_kill 7\n")
    assert died(20.0) == OUT_OF_MEMORY
    assert died(20.0) == OUT_OF_MEMORY, "in the same slot"
    for now in (100.0, 200.0):  # what it does when its command was killed may take long
        watch.count_kills(now)
    end = command()
    assert (end.outcome, end.payload) == (OUT_OF_MEMORY, b"")
    assert command().outcome == RAISED


def test_the_worker_says_of_how_much_memory_it_is() -> None:
    """By what the call had it gets more the next time; what the watch has ended says so itself."""
    watch = MemoryWatch(cast(Any, TwoSlots()), cast(Any, None), 1000, [], lambda _: None)
    end = CallEnd(CallId(1), 1, OUT_OF_MEMORY, detail=EndDetail(text="why", signal=9, peak_memory=77))
    watch.complete(end)
    assert end.detail == EndDetail(text="why", signal=9, peak_memory=77, share=500, limit=1000)
    watched = EndDetail(text="why", signal=9, peak_memory=77, share=5, limit=10)
    end = CallEnd(CallId(1), 1, OUT_OF_MEMORY, detail=watched)
    watch.complete(end)
    assert end.detail is watched
