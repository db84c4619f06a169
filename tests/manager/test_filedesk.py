"""Files that programs ask the manager for: what they hear, whatever else happens in the same turn of its loop."""

# pyright: reportPrivateUsage=false
# Who is remembered is seen nowhere else.

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass.identity import Authority
from windlass.manager.core import Core
from windlass.manager.filedesk import FileDesk
from windlass.messages import RESULT, FileBrought, FileName, FileOrigin, FileRef, Message, Resources, WorkerId, WorkerInfo
from windlass.object_store import ObjectStore

W = WorkerId("w1")
REF = FileRef(FileName(f"{RESULT}{0:032x}"), 5, "made", "workflow")


class Bench:
    """A desk over a core with one worker that has a result; ``heard`` has what programs are told, by number."""

    def __init__(self, folder: Path) -> None:
        self.core, self.store = Core(), ObjectStore(folder / "store", 1 << 30)
        self.desk = FileDesk(self.core, self.store, Authority.create("m1", folder / "m1"))
        self.heard: list[tuple[int, str, str]] = []
        self.core.worker_joined(W, WorkerInfo("host", 1, Resources(1.0)), 0.0)
        self.desk.declare(REF, FileOrigin())
        self.core.replicas.keep(REF, W)

    def tell(self, program: int, message: Message) -> None:
        if isinstance(message, FileBrought):
            self.heard.append((program, message.name, message.text))

    def act(self) -> list[tuple[int, str, str]]:
        """What programs hear in this turn."""
        self.heard = []
        self.desk.act(self.tell, lambda name, text: self.heard.append((0, name, text)), None)
        return self.heard


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    one = Bench(tmp_path)
    yield one
    one.store.close()


@pytest.mark.parametrize("holder", [False, True])
def test_a_file_that_is_asked_for_and_let_go_in_one_turn_was_released(bench: Bench, *, holder: bool) -> None:
    """It had been brought before, so it is there at once, and gone before anybody could be told."""
    for program in (0, 7):
        bench.desk.bring(program, [REF.name])
    bench.core.replicas.pushed(W, REF.name, "", 0.0)
    assert bench.act() == [(0, REF.name, ""), (7, REF.name, "")]
    if holder:  # somebody fetches it now
        bench.core.replicas.wanted(WorkerId("w2"), [REF.name])
        bench.core.replicas.pump(0.0)
        assert bench.core.replicas.files[REF.name].fetching
    bench.desk.bring(7, [REF.name])
    bench.core.release_files([REF.name], prune=False)
    assert bench.act() == [(7, REF.name, "it was released")]
    assert (REF.name in bench.core.replicas.files) == holder


def test_a_result_that_is_let_go_before_it_has_come_is_waited_for_no_more(bench: Bench) -> None:
    """Who waited is told; else it would wait for ever, or, when it has gone, be remembered."""
    for program in (0, 7):
        bench.desk.bring(program, [REF.name])
    assert bench.act() == []
    bench.core.release_files([REF.name], prune=True)
    assert bench.act() == [(0, REF.name, "it was released"), (7, REF.name, "it was released")]
    assert not bench.desk._bringing


def test_programs_that_have_what_they_asked_for_are_not_remembered(bench: Bench) -> None:
    """There may be thousands in a manager's life, and each result that came was looked for among what each of them had waited for."""
    bench.desk.bring(1, [REF.name])
    bench.core.replicas.pushed(W, REF.name, "", 0.0)
    assert bench.act() == [(1, REF.name, "")]
    for program in range(2, 100):
        bench.desk.bring(program, [REF.name])
        assert bench.act() == [(program, REF.name, "")]
    assert not bench.desk._bringing
