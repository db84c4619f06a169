"""Pythons that were built against an old C library and old headers, as conda's are, lack what newer ones have; so do older kernels.

A ``sitecustomize`` takes it away from every process that a program starts, as there is no such Python to test with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

POOR = """
import os, signal
for module, names in (
    (os, "memfd_create MFD_CLOEXEC pidfd_open P_PIDFD getrandom copy_file_range splice O_TMPFILE"),
    (os, "eventfd eventfd_read eventfd_write EFD_CLOEXEC EFD_NONBLOCK"),
    (signal, "pidfd_send_signal"),
):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
"""

PROGRAM = """
import asyncio, os, signal, sys
import windlass


def has(number):
    print("said", number)
    return number, [name for name in ("memfd_create", "pidfd_open", "eventfd") if hasattr(os, name)]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


async def awaited(manager):
    return await manager.submit(windlass.FunctionCall("lib", "has", 7))


if __name__ == "__main__":
    with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=2):
        manager.install_library("lib", has, die, mode=sys.argv[1])
        calls = [windlass.FunctionCall("lib", "has", number) for number in range(3)]
        assert [manager.submit(call).result() for call in calls] == [(number, []) for number in range(3)]
        assert asyncio.run(awaited(manager)) == (7, [])
        future = manager.submit(calls[0])
        assert future.result() == (0, [])
        assert future.stdout == "said 0\\n"
        try:
            manager.submit(windlass.FunctionCall("lib", "die")).result()
        except windlass.SlotDied:
            print("all is well")
"""


@pytest.mark.parametrize("mode", ["direct", "fork"])
def test_a_python_that_was_built_for_old_systems_runs_calls(tmp_path: Path, mode: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(POOR)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.fspath(tmp_path)}
    ran = subprocess.run(
        [sys.executable, tmp_path / "program.py", mode], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout.splitlines()[-1:] == ["all is well"], ran.stderr
