"""The implicit library: what other threads do while one looks whether source was edited."""

# pyright: reportPrivateUsage=false
# When it looks again is seen nowhere else.

from __future__ import annotations

import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from windlass import Manager, snapshots


def test_others_submit_while_one_waits_for_source_that_is_being_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever functions they call: the one that waits has no lock meanwhile. As soon as it knows the new text all have that."""
    monkeypatch.syspath_prepend(tmp_path)  # pyright: ignore[reportUnknownMemberType]
    path = tmp_path / "saved_helper.py"
    path.write_text("def paint():\n    return 1\n")
    paint = importlib.import_module("saved_helper").paint
    rests, whole = threading.Event(), threading.Event()

    def rest() -> None:
        rests.set()
        assert whole.wait(60)

    with Manager() as manager, ThreadPoolExecutor(2) as threads:

        def submit() -> None:
            manager.submit_function(len, ([],))

        try:
            manager.submit_function(paint)
            (before,) = manager._implicit_code.values()
            path.write_text("def paint():\n    return 22\n")
            monkeypatch.setattr(snapshots, "_let_rest", rest)
            monkeypatch.setattr(snapshots, "BEARABLE", float("inf"))  # however slow this machine is
            snapshots._snapshots["saved_helper"].looked_at = manager._look_at = 0.0
            one = threads.submit(submit)
            assert rests.wait(60)
            manager._look_at = 0.0
            threads.submit(submit).result(20)
            threads.submit(manager.submit_function, paint).result(20)
            assert list(manager._implicit_code.values()) == [before]
        finally:
            whole.set()
        one.result(60)
        (after,) = manager._implicit_code.values()
        assert after != before
        assert snapshots.text_of(after) == snapshots._snapshots["saved_helper"].text
        submit()
        assert list(manager._implicit_code.values()) == [after]
