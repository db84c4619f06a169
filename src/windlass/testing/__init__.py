"""For tests of programs that use Windlass: a pool whose faults are scripted, and a real Slurm of one's own (docs/testing.md).

Theory of operation
-------------------
pytest loads `windlass.testing.plugin` in every project of an environment that has Windlass, and with it this module; so it has the public
names and no logic, as `windlass` itself, and a name is loaded when it is first asked for.

Below it: `faults` (what can go wrong, as records), `site` (the batch system behind every pool that a test opens), `watched` (the managers
of those pools), `director` (has the faults happen when they are due), `pool` (`FakePool`, which a test holds), `story` (what happened),
`leftovers`, `limit`, `network`, `slurm`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # checkers take it for True
if TYPE_CHECKING:
    from windlass.testing.faults import (
        BadNode,
        CutConnections,
        EndWalltime,
        Fault,
        KillPilot,
        KillSlot,
        LoseNode,
        LoseStatus,
        Preempt,
        RefuseSubmissions,
        SlowQueue,
        chaos,
    )
    from windlass.testing.network import Proxy
    from windlass.testing.pool import FakePool, fake_pool
    from windlass.testing.slurm import DAEMON_PATH, SlurmCluster, free_ports, missing_programs
    from windlass.testing.story import Story

_HOMES = {
    **dict.fromkeys(
        (
            *("BadNode", "CutConnections", "EndWalltime", "Fault", "KillPilot", "KillSlot", "LoseNode", "LoseStatus", "Preempt"),
            *("RefuseSubmissions", "SlowQueue", "chaos"),
        ),
        "faults",
    ),
    "Proxy": "network",
    **dict.fromkeys(("FakePool", "fake_pool"), "pool"),
    **dict.fromkeys(("DAEMON_PATH", "SlurmCluster", "free_ports", "missing_programs"), "slurm"),
    "Story": "story",
}

__all__ = [
    "DAEMON_PATH",
    "BadNode",
    "CutConnections",
    "EndWalltime",
    "FakePool",
    "Fault",
    "KillPilot",
    "KillSlot",
    "LoseNode",
    "LoseStatus",
    "Preempt",
    "Proxy",
    "RefuseSubmissions",
    "SlowQueue",
    "SlurmCluster",
    "Story",
    "chaos",
    "fake_pool",
    "free_ports",
    "missing_programs",
]


if not TYPE_CHECKING:  # so that checkers know a misspelt name

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'windlass.testing' has no attribute {name!r}")
        import importlib

        value: object = getattr(importlib.import_module(f"windlass.testing.{_HOMES[name]}"), name)
        globals()[name] = value  # asked for once
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
