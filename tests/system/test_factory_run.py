"""`windlass factory run`, as the shells and terminals that it is started from end it. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import windlass

if TYPE_CHECKING:
    from conftest import Gate, Until

Started = subprocess.Popen[bytes]


def passes(gate: Any, name: str) -> str:
    gate.pass_through(name)
    return name


@contextmanager
def factory_run(manager: windlass.Manager, stderr: int, before: Callable[[], object] | None = None) -> Iterator[Started]:
    """It serves the manager with a local pilot."""
    manager.install_library("lib", passes)
    words = [sys.executable, "-m", "windlass", "factory", "run", "local", "--port", str(manager.port), "--cores", "1"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=stderr, preexec_fn=before) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def is_draining(manager: windlass.Manager) -> bool:
    return any(worker["draining"] for worker in manager.status()["workers"])


def test_it_ends_in_order_where_nobody_reads_what_it_says(manager: windlass.Manager, gate: Gate, until: Until) -> None:
    """As when its terminal is closed, or `tee` was interrupted beside it: what runs has the pool's grace, and the exit status is 0."""
    read, write = os.pipe()
    with factory_run(manager, write) as running:
        os.close(write)
        future = manager.submit(windlass.FunctionCall("lib", "passes", gate, "call"))
        until("it runs", gate.arrived)
        os.close(read)
        running.send_signal(signal.SIGTERM)
        until("its pilot is told to end", lambda: is_draining(manager))
        gate.open()
        assert future.result(30) == "call"
        assert running.wait(30) == 0
