"""One point of `evaluation.py`: fresh nodes on a slow shared file system, pilots, a library, its calls; their operations and seconds.

Theory of operation
-------------------
A `Site` is a folder of the shared file system: in it a Python environment with Windlass and the libraries to import (made of the packages
that this program runs with, so nothing is downloaded), the state folder of managers with the connection file, and
the archive that `windlass.environment.pack` makes of the environment.  Its nodes (`slowfs.SlowNode`) see all of that, and the interpreter
and its standard library, through mounts of their own.  The manager runs beside, where the file system is.

Every run has fresh nodes, so cold kernel caches and empty disks, and a fresh manager.  Its stages are counted apart:

* *start*: from the first line of each pilot's script, which the node has on its disk as a batch system brings it there, until all workers
  are connected and have their environment (a worker goes on loading what it needs after that, so operations are counted until there have
  been none for half a second);
* *first*: from installing the library until every node has answered calls: as many as there are slots, and again so many until all have;
* *rest*: the other calls, submitted at once, until the last result.
"""

from __future__ import annotations

import compileall
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from unittest import mock

import windlass
from common import check
from slowfs import Counts, SlowNode
from windlass import environment

#: What is imported, by distribution, in growing weight; of another one, the module of its name.
MODULES: Final = {"numpy": "numpy", "scipy": "scipy.stats", "pandas": "pandas", "scikit-learn": "sklearn"}
#: What the bytes of the environment's archive are counted under.
ARCHIVE: Final = "archive"
#: Seconds that pilots have to connect in, and that a wave of calls may take.
PATIENCE: Final = 600.0
IMPORT: Final = "import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"

#: ``work(number, module, seconds)`` → the number, and the name of the node.
Work = Callable[[int, str, float], tuple[int, str]]


@dataclass(frozen=True)
class Setting:
    """What one point is of."""

    #: A distribution.
    library: str
    #: Where imports are: in each ``call``, or hoisted per ``library``.
    imports: str
    #: Where the environment is: on the ``shared`` file system, or in the worker's ``cache``.
    environment: str
    #: The function's own time.
    seconds: float


@dataclass(frozen=True)
class Run:
    """What was measured. Seconds of wall clock; counts are of all nodes together."""

    nodes: int
    slots: int
    first_calls: int
    rest_calls: int
    start_s: float
    first_s: float
    rest_s: float
    start: Counts
    first: Counts
    rest: Counts

    def seconds_for(self, calls: int) -> float:
        """From installing the library to the last of so many results: the first ones as measured, the others at the rate measured."""
        return self.first_s + self.rest_s * (calls - self.first_calls) / self.rest_calls

    @property
    def per_call(self) -> float:
        """Operations of a call after the first ones."""
        return self.rest.total / self.rest_calls

    @property
    def per_node(self) -> float:
        """Operations of a node from its pilot's first line until it has answered calls."""
        return (self.start + self.first).total / self.nodes


def present() -> list[str]:
    """The libraries of the grid that are installed, in growing weight."""
    return [name for name in MODULES if installed(name)]


def installed(name: str) -> bool:
    return _distribution(name) is not None


def module_of(library: str) -> str:
    return MODULES.get(library, library)


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def with_requirements(names: Sequence[str]) -> dict[str, metadata.Distribution]:
    """Installed distributions and what they need, by name; extras are left out."""
    found: dict[str, metadata.Distribution] = {}
    names = list(names)
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        one = _distribution(name)
        if name in found or one is None:
            continue
        found[name] = one
        for line in one.requires or []:
            word = re.match(r"[\w.-]+", line)
            if word is not None and "extra ==" not in line:
                names.append(word[0])
    return found


def make_environment(folder: Path, libraries: Sequence[str]) -> Path:
    """A Python environment with Windlass and the libraries, copied from this program's own. Its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, distribution in with_requirements(["windlass", *libraries]).items():
        for file in distribution.files or []:
            place = Path(str(distribution.locate_file(file)))
            # Programs lie elsewhere; what makes an editable install find its sources is not wanted.
            if ".." not in file.parts and place.is_file() and not (name == "windlass" and len(file.parts) == 1):
                target = packages / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(place, target)
    assert windlass.__file__ is not None
    shutil.copytree(Path(windlass.__file__).parent, packages / "windlass", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(packages / "windlass", quiet=1)
    return python


def of_interpreter() -> str:
    """The folder of the interpreter; of the system's own that of its library, for all programs of a node lie in the other."""
    return sysconfig.get_path("stdlib") if sys.base_prefix == "/usr" else sys.base_prefix


class Site:
    """A shared folder, and nodes that see it slowly. ``delay``: seconds of a metadata operation; ``quick``: the archive is packed in a
    quarter of the time, 2.5 times as large, its boot 12 %: for tests."""

    def __init__(self, folder: Path, work: Work, *, delay: float, libraries: Sequence[str], quick: bool = False) -> None:
        self.folder, self.delay, self._work = folder, delay, work
        self._shared = folder / "shared"
        self.python = make_environment(self._shared / "environment", libraries)
        self._numbers = 0
        with ExitStack() as stack:
            if quick:
                for module in ("environment_archive", "environment_boot"):
                    stack.enter_context(mock.patch(f"windlass.{module}.LEVEL", 0))
                stack.enter_context(mock.patch("windlass.environment_boot.WINDOW", 1 << 18))
            self.archive = environment.pack(self._shared, source=self.python)

    def nodes(self, stack: ExitStack, count: int) -> list[SlowNode]:
        """Fresh ones, until the stack is closed."""
        made: list[SlowNode] = []
        for number in range(1, count + 1):
            self._numbers += 1
            local = self.folder / f"disk{self._numbers}"
            local.mkdir()
            stack.callback(shutil.rmtree, local, ignore_errors=True)
            folders: list[Path | str] = [self._shared, of_interpreter()]
            made.append(stack.enter_context(SlowNode(folders, local, name=f"node{number}", delay=self.delay)))
        return made

    def import_seconds(self, library: str, place: str) -> float:
        """What the import alone takes an interpreter of a fresh node: the part of the ideal that is paid once."""
        with ExitStack() as stack:
            (node,) = self.nodes(stack, 1)
            python, lines = str(self.python), ["set -e"]
            if place == "cache":
                python = "/tmp/environment/bin/python3"
                lines.append(f"mkdir /tmp/environment; tar -xzf {self.archive.path} -C /tmp/environment")
            lines.append(f"{python} -c '{IMPORT.format(module=module_of(library))}'")
            ran = subprocess.run(node.words(["/bin/sh", "-c", "\n".join(lines)]), stdout=subprocess.PIPE, text=True, check=True)
            return float(ran.stdout)

    def run(self, setting: Setting, *, calls: int, nodes: int = 2, slots: int = 2) -> Run:
        """Pilots on so many fresh nodes, with so many slots each; ``calls`` after the first ones."""
        with ExitStack() as stack:
            them = self.nodes(stack, nodes)
            state = self._shared / f"state{self._numbers}"
            stack.callback(shutil.rmtree, state, ignore_errors=True)
            manager = stack.enter_context(windlass.Manager(state_dir=state))
            pools = [self._pool(node, setting.environment, slots) for node in them]
            began = time.perf_counter()
            stack.enter_context(windlass.Factory(manager, pools))
            wait_until(lambda: len(manager.status()["workers"]) == nodes, "pilots to connect")
            if setting.environment == "cache":  # the archive, and what was unpacked of it
                wait_until(lambda: all(one["files"] == 2 for one in manager.status()["workers"]), "environments to be there")
            started, counts = time.perf_counter(), when_still(them)
            installed = time.perf_counter()
            options: dict[str, Any] = (
                {"imports": [module_of(setting.library)]} if setting.imports == "library" else {"imports": [], "mode": "fork"}
            )
            manager.install_library("lib", self._work, **options)
            idle, first_calls = {node.name for node in them}, 0
            while idle:  # a node that is ready sooner takes calls that wait for another
                idle -= self._wave(manager, setting, range(first_calls, first_calls + slots * nodes))
                first_calls += slots * nodes
            first, first_counts = time.perf_counter(), total(them)
            self._wave(manager, setting, range(first_calls, first_calls + calls))
            ended, rest_counts = time.perf_counter(), total(them)
        seconds = started - began, first - installed, ended - first
        stages = counts, first_counts - counts, rest_counts - first_counts
        archive = {str(self.archive.path): ARCHIVE}
        return Run(nodes, slots * nodes, first_calls, calls, *seconds, *(stage.summed(archive) for stage in stages))

    def _pool(self, node: SlowNode, place: str, slots: int) -> windlass.Pool:
        shell = node.write_shell(self.folder / f"{node.name}-sh")
        # A setup line makes the pilot one of a script in either case.
        options: dict[str, Any] = {"environment": str(self.archive.path)} if place == "cache" else {"python": str(self.python)}
        return windlass.Pool(
            "local",
            pool=node.name,
            cores=slots,
            min_pilots=1,
            max_pilots=1,
            shell=str(shell),
            setup=[":"],
            env={"TMPDIR": "/tmp"},
            hello_timeout=PATIENCE,
            **options,
        )

    def _wave(self, manager: windlass.Manager, setting: Setting, numbers: range) -> set[str]:
        """Submit calls with these numbers and check their results. The nodes that had some."""
        module = module_of(setting.library)
        futures = [manager.submit(windlass.FunctionCall("lib", self._work.__name__, number, module, setting.seconds)) for number in numbers]
        results: list[tuple[int, str]] = [future.result(PATIENCE) for future in futures]
        check([number for number, _ in results] == list(numbers))
        return {node for _, node in results}


def total(nodes: Sequence[SlowNode]) -> Counts:
    """What they have asked, together."""
    return sum((node.counts() for node in nodes), Counts())


def when_still(nodes: Sequence[SlowNode], seconds: float = 0.5) -> Counts:
    """What they have asked, when nothing more was asked for so many seconds."""
    counts, since = total(nodes), time.monotonic()
    end = since + PATIENCE
    while time.monotonic() < min(since + seconds, end):
        time.sleep(seconds / 10)
        if (now := total(nodes)).total != counts.total:
            counts, since = now, time.monotonic()
    return counts


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited {PATIENCE:g} s for {what}")
        time.sleep(0.02)
