"""The image of ``container=``: what a pilot's script must know of it, and the check that is made inside it.

Theory of operation
-------------------
The script that starts a pilot runs on the node itself; ``setup`` lines see the node as it is.  Its last step is not the worker but
``apptainer exec`` (``singularity``, where only that is there) with the image, and in that a line of shell that looks for the Python and
has it run `CHECK`, which turns into the worker.  Each step is an ``exec``.  Apptainer itself stays, as the worker's parent: it passes on
the signals of the batch system, the kernel ends the worker when it is killed, and the worker watches who started it as well
(`windlass.worker.node.own_parents`).

Apptainer gives the image the user's home, ``/tmp``, devices and the environment, but neither PATH nor LD_LIBRARY_PATH; bound beside these
are the manager's folder (whole, as its connection file is written anew), folders that scratch may lie in, and the working directory.

Whether an image has the Python and the Windlass that it must have shows only inside it, so `CHECK` stands here and not in a module: it
has to run in whatever Python is there.  HTCondor starts images itself (``container_image``), and its script already runs inside."""

from __future__ import annotations

import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from windlass import __version__
from windlass.errors import UsageError
from windlass.factory.pool import PoolConfig
from windlass.messages import OLDEST_PROTOCOL, PROTOCOL

log = logging.getLogger("windlass.factory")

#: Images that Apptainer fetches or makes itself: ``docker://debian:12``, ``oci-archive:image.tar``.
ELSEWHERE: Final = re.compile(r"[a-z][a-z0-9+.-]*://|(docker|oci)(-archive|-daemon)?:")

#: Becomes the worker, whose words follow it. Kept to what every Python 3 can read, and free of single quotes for the script's sake.
CHECK: Final = """\
import os, sys
if sys.path[0] == "": del sys.path[0]
def refuse(text):
    sys.stderr.write("windlass pilot: the image %s %s\\n" % (os.environ.get("WINDLASS_CONTAINER", ""), text))
    sys.exit(5)
here = "%d.%d" % sys.version_info[:2]
if here != "PYTHON":
    refuse("has Python %s (%s), and the factory runs PYTHON: functions cannot be sent to it; "
           "give an image with Python PYTHON, or name another Python in it with python=" % (here, sys.executable))
try:
    import windlass
    from windlass.messages import PROTOCOL as protocol
except ImportError as error:
    refuse("has no Windlass that its %s can load (%s); "
           "put Windlass WINDLASS into it, as a wheel of its checkout: windlass explain containers" % (sys.executable, error))
if not OLDEST <= protocol <= PROTOCOL:
    refuse("has Windlass %s, which speaks protocol %s, and the factory is Windlass WINDLASS with protocol PROTOCOL; "
           "put that one into it, as a wheel of its checkout: windlass explain containers" % (windlass.__version__, protocol))
os.execv(sys.executable, [sys.executable] + sys.argv[1:])
"""


@dataclass(frozen=True, slots=True)
class Container:
    """An image, as a pilot's script needs it."""

    #: An absolute path, or what Apptainer takes in place of one.
    image: str
    #: It is a file or a folder that the node must see.
    is_path: bool
    #: Words for ``apptainer exec``, before the image.
    options: tuple[str, ...] = ()
    #: Folders that the worker needs by the paths that they have outside, if they are there.
    binds: tuple[str, ...] = ()
    #: The worker gets GPUs, whose drivers are the node's.
    gpus: bool = False
    #: What the image must have: its Python, its Windlass by name and, which decides, by protocol.
    python: str = f"{sys.version_info[0]}.{sys.version_info[1]}"
    windlass: str = __version__
    protocol: int = PROTOCOL
    oldest: int = OLDEST_PROTOCOL

    @property
    def check(self) -> str:
        """`CHECK` against what the image must have."""
        words = {"PYTHON": self.python, "WINDLASS": self.windlass, "PROTOCOL": str(self.protocol), "OLDEST": str(self.oldest)}
        # "import PROTOCOL as protocol" keeps its word.
        return re.sub(r"(?<!import )\b(PYTHON|WINDLASS|PROTOCOL|OLDEST)\b", lambda found: words[found[0]], CHECK)


def image_of(given: str) -> str:
    """The image of ``container=``: what is a path is made absolute, as batch systems start jobs in folders of their own."""
    return given if ELSEWHERE.match(given) else str(Path(given).expanduser().absolute())


def container_of(pool: PoolConfig, pilot_file: Path) -> Container | None:
    """The pool's image; None: it has none. Raises `UsageError` for one that cannot be."""
    if not pool.container:
        return None
    image, is_path = image_of(pool.container), not ELSEWHERE.match(pool.container)
    if is_path and not os.path.exists(image):
        if not pool.remote:
            raise UsageError(
                f"container={pool.container!r} is not there; give the path of an image (.sif) or of a sandbox folder, or docker://NAME"
            )
        log.warning("container=%r is not on this machine; pilots need it on their nodes, as %s", pool.container, image)
    binds = (str(pilot_file.parent), pool.scratch)
    return Container(image, is_path, pool.container_options, tuple(filter(None, binds)), pool.resources.gpus > 0)
