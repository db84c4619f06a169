"""Whether this process's imports come from a network filesystem, and how much of it they read.

Theory of operation
-------------------
Looked at after the fact, in what is loaded: modules name their files, and ``/proc/self/maps`` the libraries that came with them.  Each of
these files was looked for and opened, so their number is a lower bound of what the filesystem was asked; a packed environment is one
file (docs/environments.md).  Links are followed for the folders of ``sys.path`` only, as asking for each file would cost what is measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from windlass.worker.memory import read_text
from windlass.worker.node import filesystem_of, is_network

#: How the text begins.
MARK: Final = "imports come from a network filesystem"
#: Fewer files than this are not worth a word.
FEW: Final = 20


class ImportCost(NamedTuple):
    """Files of network filesystems that this process has loaded."""

    #: Types and mount points, that with the most files first.
    places: tuple[tuple[str, str], ...]
    files: int


def cost_of(files: Iterable[str], roots: Iterable[str], real: Mapping[str, str], mounts: str) -> ImportCost | None:
    """What was loaded from network filesystems; None: nothing.

    ``roots``: folders below which the files were found; ``real``: the same without links. ``mounts``: ``/proc/self/mountinfo``.
    """
    longest = sorted(roots, key=len, reverse=True)
    places: dict[str, tuple[str, str]] = {}
    counts: dict[tuple[str, str], int] = {}
    for file in files:
        folder = os.path.dirname(file)
        if folder not in places:
            root = next((one for one in longest if folder == one or folder.startswith(one.rstrip("/") + "/")), "")
            places[folder] = filesystem_of(real.get(root, root) + folder[len(root) :] if root else folder, mounts)
        counts[places[folder]] = counts.get(places[folder], 0) + 1
    on_network = {place: count for place, count in counts.items() if is_network(place[0])}
    if not on_network:
        return None
    return ImportCost(tuple(sorted(on_network, key=lambda place: (-on_network[place], place))), sum(on_network.values()))


def own_cost() -> ImportCost | None:
    """`cost_of` for what this process has loaded by now."""
    roots = [path for path in dict.fromkeys([*sys.path, sys.prefix, sys.base_prefix]) if path.startswith("/")]
    real = {root: os.path.realpath(root) for root in roots}
    mounts = read_text("/proc/self/mountinfo")
    # Most processes have nothing there, and need not count.
    if not any(is_network(filesystem_of(path, mounts)[0]) for path in real.values()):
        return None
    files: set[str] = set()
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        for path in (getattr(spec, "cached", None), getattr(spec, "origin", None)):
            if isinstance(path, str) and path.startswith("/"):
                files.add(path)
                break
    for line in read_text("/proc/self/maps").splitlines():
        path = line[line.find("/") :] if "/" in line else ""
        if ".so" in path:
            files.add(path)
    return cost_of(files, roots, real, mounts)


def note(cost: ImportCost | None) -> str:
    """What to tell of it; "": nothing."""
    if cost is None or cost.files < FEW:
        return ""
    where = ", ".join(f"{kind} at {point}" for kind, point in cost.places)
    return f"{MARK} ({where}): a start reads {cost.files:,} files there; windlass environment pack makes them one, read once per node"
