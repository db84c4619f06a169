"""The environment of a pilot of which only the boot is on its node yet (docs/environments.md).

Theory of operation
-------------------
The batch script says in `REST` which archive the boot belongs to, and where the node sees it.  `take` takes that from the environment
variables, as it is for this process alone.  The manager hears of it with the worker's hello, and declares the archive unless it knows it;
then it is a file like all others, read from its origin by one worker, and unpacked on each node once (level ``forever``).

`windlass.worker.libraries` runs every library in it that has no environment of its own.  `complete` lets this process find modules in it
that the boot lacks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Final

from windlass.messages import FileName, FileRef, PoolEnvironment

if TYPE_CHECKING:
    from types import ModuleType

#: Names of the unpacked and the packed environment, the archive's bytes, and its path.
REST: Final = "WINDLASS_REST"
#: Where programs of the environment are told it is.
HOME: Final = "WINDLASS_ENVIRONMENT"


def take(environ: MutableMapping[str, str]) -> PoolEnvironment | None:
    """What the batch script says, which no process below this one shall read."""
    said = environ.pop(REST, "")
    if not said:
        return None
    name, packed, size, path = said.split(" ", 3)
    base = os.path.basename(path)
    unpacked = FileRef(FileName(name), -1, base.partition(".")[0] or base, "forever")
    return PoolEnvironment(unpacked, FileRef(FileName(packed), int(size), base, "forever"), path)


def enter(environ: MutableMapping[str, str], python: str) -> None:
    """Let processes that get these variables be in the environment of this interpreter, and no more in the one that they are in."""
    home = os.path.dirname(os.path.dirname(python))
    before = environ.get(HOME)
    path = [folder for folder in environ.get("PATH", os.defpath).split(":") if not before or folder != f"{before}/bin"]
    environ[HOME], environ["PATH"] = home, ":".join([f"{home}/bin", *path])


class _Rest:
    """Finds modules where the whole environment has them."""

    def __init__(self, home: str) -> None:
        self._home = home

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        folders = [one for one in (sys.path if path is None else path) if one.startswith(f"{sys.prefix}/")]
        return PathFinder.find_spec(name, [self._home + one[len(sys.prefix) :] for one in folders], target)


def complete(home: str) -> None:
    """The whole environment is there: modules that this interpreter's own lacks are found in it."""
    sys.meta_path[:] = [*(one for one in sys.meta_path if not isinstance(one, _Rest)), _Rest(home)]
