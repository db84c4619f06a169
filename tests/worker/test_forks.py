"""Forks of a slot: what a call of mode ``fork`` finds in its process, and what user code's own forks are."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import os, signal, sys
from windlass.worker import forks

def child_does(work, fork=forks.fork):
    # The exit status of a child of a fork of ours that does this; one that hangs is killed by its alarm.
    pid = fork()
    if pid == 0:
        signal.alarm(20)
        status = 1
        try:
            status = 0 if work() is not False else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

HOLDS = {
    "what the interpreter offers is as it was": """
import logging, threading
assert "windlass" not in (os.register_at_fork.__module__ or "")
""",
    "a child logs, starts threads, and forks by itself": """
import logging, threading

def work():
    logging.getLogger().warning("heard")
    seen = []
    thread = threading.Thread(target=lambda: (logging.warning("heard again"), seen.append(threading.current_thread().name)))
    thread.start()
    thread.join()
    assert child_does(lambda: threading.active_count() == 1, os.fork) == 0
    return seen == [thread.name] and threading.main_thread() is threading.current_thread()

logging.basicConfig()
assert [child_does(work) for _ in range(3)] == [0, 0, 0]
""",
    "a lock that another thread holds is free in the child": """
import logging, threading

handler = logging.StreamHandler()
logging.getLogger().addHandler(handler)
held, enough = threading.Event(), threading.Event()

def hold():
    handler.acquire()
    held.set()
    enough.wait()
    handler.release()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
status = child_does(lambda: (logging.warning("heard"), threading.active_count())[1] == 1)
enough.set()
thread.join()
assert status == 0
assert child_does(lambda: logging.warning("heard")) == 0
""",
    "hooks of others run, and random numbers differ": """
import random

seen = []
os.register_at_fork(after_in_child=lambda: seen.append("child"), after_in_parent=lambda: seen.append("parent"))
reading, writing = os.pipe()

def work():
    os.write(writing, f"{random.random()} ".encode())
    return seen[-1] == "child"

assert [child_does(work) for _ in range(3)] == [0, 0, 0]
assert seen == ["parent"] * 3
assert len(set(os.read(reading, 1000).split())) == 3
""",
    "the generator that torch makes when it is imported is seeded anew": """
import random, types

generator = random.Random(5)
assert child_does(lambda: forks.reseed()) == 0
sys.modules["torch"] = types.SimpleNamespace(default_generator=generator)
state = generator.getstate()
assert child_does(lambda: (forks.reseed(), generator.getstate() != state)[1]) == 0
sys.modules["torch"] = types.SimpleNamespace()
assert child_does(lambda: forks.reseed()) == 0
""",
    "a fork of user code is no slot and can be terminated": """
from windlass.worker.slot_api import STATE

forks.survive_signals()
forks.watch_forks()
assert child_does(lambda: not STATE.forked and signal.getsignal(signal.SIGTERM) is forks._ignored) == 0
assert child_does(lambda: STATE.forked and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, os.fork) == 0
assert child_does(lambda: child_does(lambda: STATE.forked, os.fork) == 0 and not STATE.forked) == 0
assert child_does(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0
assert child_does(lambda: os.kill(os.getpid(), signal.SIGTERM), os.fork) == -signal.SIGTERM
""",
}


@pytest.mark.parametrize("rule", HOLDS)
def test_in_a_process_that_forks_as_a_slot_does(rule: str) -> None:
    """Each in an interpreter of its own, which has imported forks first, as a zygote does."""
    ran = subprocess.run([sys.executable, "-c", BEGIN + HOLDS[rule]], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
