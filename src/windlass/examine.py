"""What a pilot finds on its node: run there by ``windlass doctor``, before the worker as a program, and once more in a slot as a call.

Theory of operation
-------------------
As a program it writes one line, `MARK` and a JSON object, into the pilot's output, where whoever can read that finds it even when the pilot
never reaches its manager.  It imports no more than a worker does, tries every address of the connection file as a worker would (TCP,
TLS, the manager's name), and never fails: what cannot be found out is told as a text.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from windlass import __version__
from windlass.errors import WindlassError
from windlass.identity import ConnectionFile, read_connection_file

MARK: Final = "windlass examine: "
#: Seconds for each address.
PATIENCE: Final = 5.0


def examine(connection: str) -> dict[str, Any]:
    """What there is on this node; ``connection`` is the path of the pilot's connection file. Seconds, bytes."""
    found: dict[str, Any] = {
        "node": os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
        "python": sys.executable,
        "python_version": ".".join(map(str, sys.version_info[:3])),
        "windlass": __version__,
        "container": os.environ.get("WINDLASS_CONTAINER", ""),
        "time": time.time(),
        "connection": _connection(connection),
        "addresses": [],
        **_node(),
    }
    if not found["connection"]["error"]:
        known = read_connection_file(connection)
        found["addresses"] = [_reach(known, host, port) for host, port in known.addresses]
    return found


def _connection(path: str) -> dict[str, str]:
    try:
        return {"path": path, "manager": read_connection_file(path).manager, "error": ""}
    except (OSError, WindlassError) as error:
        return {"path": path, "manager": "", "error": str(error)}


def _reach(connection: ConnectionFile, host: str, port: int) -> dict[str, Any]:
    started = time.monotonic()
    error = ""
    try:
        with (
            socket.create_connection((host, port), timeout=PATIENCE) as plain,
            connection.client_context().wrap_socket(plain, server_hostname=connection.manager),
        ):
            pass
    except OSError as problem:  # ssl's errors are among these
        error = f"no answer within {PATIENCE:g} s" if isinstance(problem, TimeoutError) else problem.strerror or str(problem)
    return {"host": host, "port": port, "error": error, "seconds": time.monotonic() - started}


def _node() -> dict[str, Any]:
    from windlass.worker import importcost, memory, node

    found: dict[str, Any] = {
        "cores": node.own_cores(),
        "memory": memory.offered(memory.read_limit(0, memory.own_cgroups()), 0, os.environ),
        "imports": importcost.note(importcost.own_cost()),
    }
    try:
        scratch = node.make_scratch(node.scratch_candidates("", os.environ))
    except OSError as error:
        return {**found, "scratch": {"path": "", "kind": "", "free": 0, "warning": "", "error": str(error)}}
    try:
        kind, _ = node.filesystem_of(os.path.realpath(scratch), memory.read_text("/proc/self/mountinfo"))
        free, warning = shutil.disk_usage(scratch).free, node.own_scratch_warning(scratch)
    finally:
        os.rmdir(scratch)
    return {**found, "scratch": {"path": os.path.dirname(scratch), "kind": kind, "free": free, "warning": warning, "error": ""}}


def main(words: Sequence[str]) -> int:
    """``python -m windlass.examine CONNECTION``: write the line."""
    try:
        text = json.dumps(examine(words[0]))
    except Exception as error:  # noqa: BLE001  a pilot must start whatever goes wrong here
        text = json.dumps({"error": repr(error)})
    print(f"{MARK}{text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
