"""A real Slurm of one's own, for tests: several virtual nodes on this machine, in a folder, within seconds, also without root.

Theory of operation
-------------------
`SlurmCluster` starts the daemons of the distribution's packages (``apt-get install slurmctld slurmd slurm-client munge``) in the
foreground, as children of this process: munged with a key and socket of its own, slurmctld, and one slurmd per virtual node, each with
its own port and spool folder.  Nothing outside ``folder`` (made up unless given) is written, no service of the machine is used or
disturbed, and several clusters can stand side by side.  Accounting (slurmdbd) is not there, as at many sites.

The times are as short as Slurm allows: finished jobs are forgotten after about 5 s, SIGTERM is followed by SIGKILL after 2 s, requests time
out after 2 s, a requeued job may start again after 2 s.  ``lines`` adds to or overrides the configuration.

Faults are methods: `kill_controller` and `start_controller`, ``with cluster.hung_controller()``, ``with cluster.munge_down()``,
`kill_node`, `start_node`.  `close` ends everything that was started, jobs included.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Final

from windlass.errors import UsageError

PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun", "sinfo")
#: What has them, by the program that installs it.
PACKAGES: Final = {"apt-get": "slurmctld slurmd slurm-client munge", "dnf": "slurm slurm-slurmctld slurm-slurmd munge"}
#: Daemons live where a user's PATH may not look.
DAEMON_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_SECONDS: Final = 30.0
#: A socket's path has at most 107 letters, and Slurm's are ``spool.NODE/NODE_JOB.STEP`` below the folder.
FOLDER_MOST: Final = 80

CONF: Final = """\
SlurmctldHost={host}({address})
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
{listening}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldDebug=info
SlurmdDebug=info
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
PreemptType=preempt/partition_prio
DefMemPerCPU={share}
GresTypes=gpu
InactiveLimit=0
ReturnToService=2
TreeWidth=50
"""

#: The first release whose slurmd wants control groups, unless told otherwise, and can be told.
WITHOUT_CGROUPS: Final = (23, 11)

#: What ``lines`` may override.
DEFAULTS: Final[Mapping[str, str]] = {
    "ClusterName": "windlass",
    "AccountingStorageType": "accounting_storage/none",
    "SchedulerParameters": "bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,defer_batch",
    "MinJobAge": "5",
    "KillWait": "2",
    "MessageTimeout": "2",
    "SlurmdTimeout": "5",
    "SlurmctldTimeout": "5",
    "PreemptMode": "REQUEUE",
    "MaxArraySize": "1001",
    "MaxJobCount": "5000",
}


def missing_programs() -> list[str]:
    """Programs of Slurm that this machine lacks; empty: a cluster can be started."""
    path = f"{os.environ.get('PATH', '')}:{DAEMON_PATH}"
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


def how_to_install() -> str:
    """The command by which this machine gets Slurm's programs."""
    found = next((manager for manager in PACKAGES if shutil.which(manager)), "apt-get")
    return f"{found} install {PACKAGES[found]}"


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody listens on now, and that the system gives to nobody by itself: daemons listen there seconds
    later, and again when they are started anew."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 0  # nobody says which those are
    own = range(10_000, min(first, 32_768))
    with contextlib.ExitStack() as sockets:
        ports: list[int] = []
        while len(ports) < count:
            one = sockets.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # somebody listens there
                one.bind(("127.0.0.1", random.SystemRandom().choice(own) if len(own) > 1000 else 0))
                ports.append(one.getsockname()[1])
        return ports


class SlurmCluster:
    """A running cluster; a context manager.

    Partitions: ``batch`` (default, preemptible), ``high`` (preempts it), ``short`` (5 min), ``down``. The first node has the feature
    ``fast``, the others ``slow``; each has two GPUs on paper.
    """

    def __init__(
        self, folder: Path | None = None, *, nodes: int = 4, cpus: int = 4, memory: int = 4000, lines: Mapping[str, str] | None = None
    ) -> None:
        #: Removed at the end where it was not given.
        self._own_folder = folder is None
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="windlass-slurm-"))
        if len(os.fsencode(folder.absolute())) > FOLDER_MOST:
            raise UsageError(
                f"SlurmCluster({str(folder)!r}): Slurm makes sockets in its folder, whose paths would be too long;"
                f" give one of at most {FOLDER_MOST} letters, or none, for one of its own"
            )
        self.folder = folder
        self.nodes = tuple(f"n{number + 1}" for number in range(nodes))
        #: What clients need in ``SLURM_CONF``.
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "log", *(f"spool.{node}" for node in self.nodes)):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._write_conf(cpus, memory, lines or {})

    def _write_conf(self, cpus: int, memory: int, lines: Mapping[str, str]) -> None:
        host = os.uname().nodename.partition(".")[0]
        try:
            address = socket.gethostbyname(host)
        except OSError:
            address = ""
        # Daemons can be kept to one address only where the host's name resolves to that of the nodes.
        listening = "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if address == "127.0.0.1" else ""
        controller, *ports = free_ports(1 + len(self.nodes))
        user = pwd.getpwuid(os.getuid()).pw_name
        share = max(1, memory // cpus)  # of a core: workers have what their jobs are granted
        ours = {"host": host, "address": "127.0.0.1", "listening": listening, "folder": self.folder}
        given = CONF.format(**ours, user=user, port=controller, share=share)
        # Of a name that stands there twice Slurm takes the last, and each of its commands says so.
        text = [line for line in given.splitlines(keepends=True) if line.partition("=")[0] not in lines]
        text += [f"{name}={value}\n" for name, value in {**DEFAULTS, **lines}.items()]
        for node, port in zip(self.nodes, ports, strict=True):
            where = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            has = f"CPUs={cpus} RealMemory={memory} Gres=gpu:a100:2 Feature={'fast' if node == self.nodes[0] else 'slow'}"
            text.append(f"NodeName={node} {where} {has} State=UNKNOWN\n")
        # Any two devices will do as GPUs for those that only count them.
        (self.folder / "gres.conf").write_text("".join(f"Name=gpu Type=a100 File=/dev/{name}\n" for name in ("null", "zero")))
        batch = "MaxTime=1-00:00:00 DefaultTime=00:10:00"
        text.append(f"PartitionName=batch Nodes=ALL Default=YES {batch} PriorityTier=1 PreemptMode=REQUEUE\n")
        text.append(f"PartitionName=high Nodes=ALL {batch} PriorityTier=10 PreemptMode=OFF\n")
        text.append(f"PartitionName=short Nodes={self.nodes[0]} MaxTime=00:05:00 DefaultTime=00:01:00 PriorityTier=1\n")
        text.append(f"PartitionName=down Nodes={self.nodes[0]} State=DOWN\n")
        self.conf.write_text("".join(text))

    # ---------------------------------------------------------------- life

    def __enter__(self) -> SlurmCluster:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start what does not run, and return when every node takes work. Raises `UsageError` where Slurm's programs are not installed."""
        missing = missing_programs()
        if missing:
            raise UsageError(f"no {', '.join(missing)} on this machine, so there can be no Slurm of one's own here: {how_to_install()}")
        key = self.folder / "munge.key"  # one that is there already is of clusters that trust each other
        if not key.exists():
            key.touch(0o600)
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
        cgroups = self.folder / "cgroup.conf"
        if not cgroups.exists() and self._release() >= WITHOUT_CGROUPS:
            cgroups.write_text("CgroupPlugin=disabled\n")  # nothing here asks for them, and a slurmd ends where it cannot have them
        self.start_munge()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        self.wait_for_nodes()

    def _release(self) -> tuple[int, ...]:
        """Slurm's on this machine, as (23, 11)."""
        found = re.search(r"(\d+)\.(\d+)", self.run("slurmctld", "-V", check=False).stdout)
        return (int(found[1]), int(found[2])) if found else ()

    def wait_for_nodes(self, nodes: Sequence[str] = (), timeout: float = START_SECONDS) -> None:
        """Return when these nodes (none given: all) take work."""
        wanted = set(nodes or self.nodes)
        end = time.monotonic() + timeout
        while True:
            ran = self.run("sinfo", "-h", "-N", "-p", "batch", "-o", "%N %t", check=False)
            states = dict(line.split() for line in ran.stdout.splitlines())
            if all(states.get(node) in ("idle", "mix", "alloc", "comp", "plnd") for node in wanted):
                return
            for name, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    raise RuntimeError(f"{name} has ended: {self.log(name)}")
            if time.monotonic() > end:
                raise TimeoutError(f"the nodes are not up after {timeout:g} s: {states} {ran.stderr}")
            time.sleep(0.05)

    def close(self) -> None:
        """End all daemons, and every process of their jobs. Idempotent."""
        for daemon in self._daemons.values():
            with contextlib.suppress(ProcessLookupError):
                daemon.send_signal(signal.SIGCONT)
        # Jobs first: what a slurmd leaves behind when it ends runs on.
        self._kill_marked()
        for name in ("slurmctld", *self.nodes, "munged"):
            self._kill(name)
        self._kill_marked()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _kill_marked(self) -> None:
        """End what the daemons have started: the processes that look after jobs, and jobs."""
        end = time.monotonic() + 10
        while (
            left := [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_ours(entry)]
        ) and time.monotonic() < end:
            for entry in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)
            time.sleep(0.02)

    def _is_ours(self, entry: Path) -> bool:
        try:
            if (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
                return False
            if "slurmstepd" in os.readlink(entry / "exe"):  # it overwrites its environment
                return os.readlink(entry / "cwd") == str(self.folder)
            words = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            return False  # it has ended meanwhile, or is another user's
        return f"SLURM_CONF={self.conf}".encode() in words and any(word.startswith(b"SLURM_JOB_ID=") for word in words)

    # ---------------------------------------------------------------- daemons

    def _start(self, name: str, *command: str) -> None:
        running = self._daemons.get(name)
        if running is not None and running.poll() is None:
            return
        env = {"PATH": DAEMON_PATH, "LANG": "C.UTF-8"}
        program = shutil.which(command[0], path=DAEMON_PATH) or command[0]
        # A test run that is killed takes its cluster with it, where that can be said.
        with_parent = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
        log = (self.folder / "log" / f"{name}.log").open("ab")
        with log:
            words = (*with_parent, program, *command[1:])
            self._daemons[name] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=self.folder, start_new_session=True
            )

    def _kill(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is not None:
            daemon.kill()
            daemon.wait()

    def log(self, name: str) -> str:
        """The last lines of a daemon's log: ``munged``, ``slurmctld``, or a node's name."""
        return "\n".join((self.folder / "log" / f"{name}.log").read_text(errors="replace").splitlines()[-20:])

    def start_munge(self) -> None:
        """Start munged, and return when it takes requests."""
        socket_ = self.folder / "munge.socket"
        words = [f"--socket={socket_}", f"--key-file={self.folder}/munge.key", f"--pid-file={self.folder}/munge.pid"]
        # Group-writable parents, /tmp among them, are no danger here.
        self._start("munged", "munged", "--foreground", "--force", *words, f"--seed-file={self.folder}/munge.seed", "--num-threads=2")
        end = time.monotonic() + START_SECONDS
        while not socket_.exists():
            if self._daemons["munged"].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"munged does not start: {self.log('munged')}")
            time.sleep(0.01)

    def start_controller(self) -> None:
        """Start slurmctld, and return when it answers."""
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        end = time.monotonic() + START_SECONDS
        while self.run("scontrol", "ping", check=False).returncode != 0:
            if self._daemons["slurmctld"].poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"slurmctld does not start: {self.log('slurmctld')}")
            time.sleep(0.05)

    def kill_controller(self) -> None:
        """SIGKILL to slurmctld. Jobs run on."""
        self._kill("slurmctld")

    @contextlib.contextmanager
    def hung_controller(self) -> Generator[None]:
        """slurmctld is stopped (SIGSTOP): it takes requests and answers none."""
        self._daemons["slurmctld"].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._daemons["slurmctld"].send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def munge_down(self) -> Generator[None]:
        """munged is not there."""
        self._kill("munged")
        (self.folder / "munge.socket").unlink(missing_ok=True)
        try:
            yield
        finally:
            self.start_munge()

    def start_node(self, node: str) -> None:
        """Start a node's slurmd."""
        self._start(node, "slurmd", "-D", "-f", str(self.conf), "-N", node)

    def kill_node(self, node: str) -> None:
        """SIGKILL to a node's slurmd. What runs there runs on, as on a node that has lost its network."""
        self._kill(node)

    # ---------------------------------------------------------------- commands

    def run(self, *command: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command of Slurm's against this cluster."""
        env = {"PATH": f"{os.environ.get('PATH', '')}:{DAEMON_PATH}", "SLURM_CONF": str(self.conf), "LC_ALL": "C", "HOME": "/"}
        return subprocess.run(command, capture_output=True, text=True, env=env, check=check, input=input, timeout=30)
