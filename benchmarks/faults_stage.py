"""The stage of one cell of the fault matrix: folders, disks, hosts, processes, and what is left of them afterwards.

Theory of operation
-------------------
A `Stage` has a folder of its own, with the scratch of pilots, temporary files, the state folder, and the program's books in it, and one
mark in the environment of all that it starts.  With root the whole matrix runs in a mount namespace of its own (`own_namespace`):
/dev/shm and /run/netns are private, and small disks are seen by nobody else and end with it.

It starts the user's program and, as the cell wants, a manager and a factory beside it, and starts those again that are to be started
again.  `left` says at the end what is there that should not be: processes with the mark, and files in every place where Windlass
writes.  What is meant to stay is named in `_KEPT`, each with its reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from faults_network import Hosts
from faults_program import LINE, Program
from recording import MARK, live_jobs, marked_processes, wait_until, words_of
from windlass.testing import Proxy, SlurmCluster

PROGRAM: Final = Path(__file__).with_name("faults_program.py")
#: Set in the mount namespace of the matrix.
INSIDE: Final = "WINDLASS_FAULTS_INSIDE"
#: Seconds that a process gets to say that it serves, and everything to end.
SERVE_SECONDS: Final = 20.0
END_SECONDS: Final = 20.0
#: In the folder of a manager that has a name, by design: its identity, by which its pilots find it again, its lock and its log.
_KEPT: Final = frozenset(
    {"lock", "authority.json", "client.json", "pilot.json", "port", "manager.log", "ca.pem", "key.pem", "identity.json"}
)


def own_namespace() -> None:
    """As root: become the same program in a mount namespace of its own, with an own /dev/shm and /run/netns."""
    if os.getuid() != 0 or os.environ.get(INSIDE):
        return
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        return
    inside = 'mount -t tmpfs -o size=3g,mode=1777 faults /dev/shm && mkdir -p /run/netns && mount -t tmpfs faults /run/netns && exec "$@"'
    words = ["unshare", "-m", "--propagation", "private", "/bin/sh", "-c", inside, "sh", sys.executable, *sys.argv]
    os.environ[INSIDE] = "1"
    os.execvp(words[0], words)


@dataclass(slots=True)
class Stage:
    """A context manager is `staged`."""

    folder: Path
    program: Program
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    #: Before the words of the program, and of the manager and the factory beside it.
    before: Sequence[str] = ()
    env: dict[str, str] = field(default_factory=dict[str, str])
    hosts: Hosts | None = None
    proxy: Proxy | None = None
    cluster: SlurmCluster | None = None
    #: Where pilots and programs write, beside /dev/shm and the state folder.
    places: list[Path] = field(default_factory=list[Path])
    #: When something was hit.
    strikes: list[float] = field(default_factory=list[float])
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict[str, subprocess.Popen[str]])
    shm_before: set[str] = field(default_factory=set[str])

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def tmp(self) -> Path:
        return self.folder / "tmp"

    def environment(self) -> dict[str, str]:
        own = {MARK: self.mark, "WINDLASS_STATE_DIR": str(self.state), "TMPDIR": str(self.tmp), **self.env}
        return {**os.environ, **own}

    def python_on(self, number: int) -> str:
        """An interpreter on that host: what a pool's ``python=`` names."""
        assert self.hosts is not None
        shm = self.folder / f"shm-{number}"
        shm.mkdir(exist_ok=True)
        return self.python_with_shm(shm, *self.hosts.words(number))

    def python_with_shm(self, shm: Path, *before: str) -> str:
        """An interpreter that has this folder as /dev/shm, after these words."""
        script = self.folder / f"python-{shm.name}"
        inside = f'mount --bind {shm} /dev/shm && exec {sys.executable} "$@"'
        script.write_text(f"#!/bin/sh\nexec {' '.join(before)} unshare -m /bin/sh -c '{inside}' sh \"$@\"\n")
        script.chmod(0o755)
        return str(script)

    # ------------------------------------------------------------ processes

    def start(self, name: str, *words: str, awaited: str = "") -> subprocess.Popen[str]:
        """Start a process; with ``awaited``, return when it has said that on its stdout."""
        log = (self.folder / f"{name}.log").open("a")
        with log:
            process = subprocess.Popen(
                [*self.before, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment(),
                cwd=self.folder,
                start_new_session=True,
            )
        self.running[name] = process
        if awaited and not self.said(name, awaited, SERVE_SECONDS):
            raise RuntimeError(f"{name} has not said {awaited!r}: {self.tail(name)}")
        return process

    def said(self, name: str, what: str, within: float) -> bool:
        """Wait until a process has said a line."""
        process = self.running[name]
        assert process.stdout is not None
        end = time.monotonic() + within
        while time.monotonic() < end:
            readable, _, _ = select.select([process.stdout], [], [], max(0.0, min(0.2, end - time.monotonic())))
            if readable:
                line = process.stdout.readline()
                if line.strip() == what:
                    return True
                if not line:
                    return False
        return False

    def tail(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def start_program(self) -> subprocess.Popen[str]:
        return self.start("program", sys.executable, str(PROGRAM), "run", json.dumps(asdict(self.program)))

    def start_manager(self) -> subprocess.Popen[str]:
        """A manager that runs on its own."""
        words = json.dumps(asdict(replace(self.program, kind="own")))
        return self.start("manager", sys.executable, str(PROGRAM), "serve", words, awaited="serves")

    def start_factory(self, **options: Any) -> subprocess.Popen[str]:
        """``windlass factory run`` beside the program."""
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return self.start("factory", sys.executable, "-P", "-m", "windlass.cli", "factory", "run", self.program.name, "local", *words)

    def end(self, name: str) -> None:
        """SIGTERM to a process of ours, and wait."""
        process = self.running.pop(name, None)
        if process is None:
            return
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        """End whatever still runs."""
        for name in list(self.running):
            process = self.running.pop(name)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for pid in marked_processes(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        wait_until(lambda: not marked_processes(self.mark), 10, 0.02)
        if self.proxy is not None:
            self.proxy.close()

    # ------------------------------------------------------------ looking

    def strike(self) -> None:
        """Now something is hit: looking for victims takes longer than calls do."""
        self.strikes.append(time.monotonic())

    def begun(self) -> int:
        """Attempts that have begun."""
        try:
            return self.program.ledger.stat().st_size // LINE
        except OSError:
            return 0

    def left(self) -> tuple[list[str], list[str]]:
        """Processes and files that should not be there; waits for those that are about to go."""
        wait_until(lambda: not marked_processes(self.mark), END_SECONDS, 0.05)
        if self.cluster is not None:
            wait_until(lambda: not self._jobs(), END_SECONDS)
        processes = self._jobs() + [f"{pid}: {' '.join(words_of(pid))[:150]}" for pid in marked_processes(self.mark)]
        return processes, sorted(self._files())

    def _jobs(self) -> list[str]:
        if self.cluster is None:
            return []
        return [f"job {job.id} {job.state}" for job in live_jobs(self.cluster) if job.state != "COMPLETING"]

    def _files(self) -> Iterator[str]:
        for folder in (*self.places, *self.folder.glob("shm-*")):
            yield from (f"{folder.name}/{path.name}" for path in folder.iterdir())
        for name in shm_names():
            if name not in self.shm_before and (os.environ.get(INSIDE) or _is_of_nobody(name)):
                yield f"/dev/shm/{name}"
        for path in self.state.rglob("*"):
            parts = path.relative_to(self.state).parts
            if path.is_dir() or (len(parts) >= 2 and parts[:2] == ("managers", self.program.name) and self._is_kept(parts[2:])):
                continue
            yield f"state/{'/'.join(parts)}"

    @staticmethod
    def _is_kept(parts: Sequence[str]) -> bool:
        return parts[-1] in _KEPT


def shm_names() -> set[str]:
    with contextlib.suppress(OSError):
        return {name for name in os.listdir("/dev/shm") if name.startswith("windlass-")}
    return set()


def _is_of_nobody(name: str) -> bool:
    fields = name.split("-")
    return len(fields) > 5 and not os.path.exists(f"/proc/{fields[5]}")


@contextlib.contextmanager
def staged(folder: Path, program: Mapping[str, Any]) -> Generator[Stage]:
    """A stage; whatever happens on it, nothing of it runs on."""
    stage = Stage(folder, Program(folder=str(folder), **program))
    stage.shm_before |= shm_names()
    for path in (stage.scratch, stage.state, stage.tmp):
        path.mkdir(mode=0o700, parents=True)
    stage.places += [stage.scratch, stage.tmp]
    try:
        yield stage
    finally:
        stage.close()
