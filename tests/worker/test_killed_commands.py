"""Commands that the kernel ends as the pilot's memory runs out: `windlass.commands` in a slot, and what becomes of that on its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from windlass import commands
from windlass.commands import CommandResult, KilledForMemory, failure_of
from windlass.errors import CommandFailed
from windlass.messages import OUT_OF_MEMORY, RAISED, CallEnd, CallId, EndDetail, InstanceId
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
    assert (outcome, payload, detail.signal, detail.peak_memory) == (OUT_OF_MEMORY, b"", 9, 77)
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


def test_the_worker_says_of_how_much_memory_it_is() -> None:
    """By what the call had it gets more the next time; what the watch has ended says so itself."""

    class TwoSlots:
        entries: ClassVar[dict[InstanceId, Any]] = {}

        def slots(self) -> int:
            return 2

    watch = MemoryWatch(cast(Any, TwoSlots()), cast(Any, None), 1000, [], lambda _: None)
    end = CallEnd(CallId(1), 1, OUT_OF_MEMORY, detail=EndDetail(text="why", signal=9, peak_memory=77))
    watch.complete(end)
    assert end.detail == EndDetail(text="why", signal=9, peak_memory=77, share=500, limit=1000)
    watched = EndDetail(text="why", signal=9, peak_memory=77, share=5, limit=10)
    end = CallEnd(CallId(1), 1, OUT_OF_MEMORY, detail=watched)
    watch.complete(end)
    assert end.detail is watched
