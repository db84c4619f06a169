"""A worker of another Windlass: who is too old or too new is refused, and everybody who asks is told both versions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import windlass
from windlass import FunctionCall, Manager
from windlass.messages import PROTOCOL


def double(number: int) -> int:
    return 2 * number


def test_a_pilot_of_another_version_ends_with_both_named_and_its_factory_tells_it(
    manager: Manager, start_factory: Callable[..., windlass.Factory], until: Callable[[str, Callable[[], object]], None], tmp_path: Path
) -> None:
    """A real worker process that says another protocol and version: in its log, in the status, and for the pool's failure."""
    (tmp_path / "sitecustomize.py").write_text(
        "import windlass, windlass.messages\nwindlass.__version__, windlass.messages.PROTOCOL = '9.8.7', 99\n"
    )
    start_factory(cores=1, env={"PYTHONPATH": str(tmp_path)})
    manager.install_library("lib", double)
    future = manager.submit(FunctionCall("lib", "double", 4))
    until("a pilot has ended", lambda: [one for one in manager.status()["pilots"] if one["phase"] == "ended"])
    status = manager.status()
    [ended] = [one for one in status["pilots"] if one["phase"] == "ended"]
    ours = rf"this manager is Windlass {re.escape(windlass.__version__)} and speaks protocol {PROTOCOL}"
    theirs = r"worker \S+ is Windlass 9\.8\.7 and speaks protocol 99: update the older one"
    assert ended["exit_status"] == 3
    for text in (Path(ended["log"]).read_text(), ended["words"], status["pools"][0]["failure"]):
        assert re.search(f"refused by manager .*: {ours}; {theirs}", text)
    assert status["workers"] == []
    future.cancel()
