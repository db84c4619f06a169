"""What a worker tells a later life of its manager."""

from __future__ import annotations

from windlass.messages import DIED, RETURNED, CallEnd, CallId, CallsEnded, FileName, FileRef, ObjectName, ObjectRef, WorkerDraining
from windlass.worker.orphans import ends_to_tell_again

LARGE = (ObjectRef(ObjectName("a" * 32), 800_000),)


def end(call: int, spans: tuple[ObjectRef, ...] = (), *, kept: bool = False) -> CallEnd:
    return CallEnd(CallId(call), 1, RETURNED, spans=spans, kept=kept, key=b"key%d" % call)


def test_results_that_may_not_have_been_heard_are_told_again_large_ones_too() -> None:
    """A large one may have been put to the later life already, by a data connection that found it before the worker was welcomed."""
    unheard = [CallsEnded([end(1), end(2, LARGE)]), WorkerDraining("a word"), CallsEnded([]), CallsEnded([end(3)])]
    assert [[one.call for one in ends] for ends in ends_to_tell_again(unheard)] == [[1, 2], [3]]


def test_what_a_later_life_cannot_take_is_not_told() -> None:
    """It runs again what did not return, and knows nothing of calls without keys and of files that have stayed on a worker."""
    died = CallEnd(CallId(1), 1, DIED, key=b"key1")
    without_key = CallEnd(CallId(2), 1, RETURNED)
    with_files = CallEnd(CallId(4), 1, RETURNED, outputs=(FileRef(FileName("f" * 32), 1, "out"),), key=b"key4")
    assert ends_to_tell_again([CallsEnded([died, without_key, end(3, LARGE, kept=True), with_files])]) == []
