"""What a worker needs to know of its node: where to put files, how many cores and GPUs are its own, when the batch system ends it.

Theory of operation
-------------------
Everything is read from the environment, /proc and /sys, with few file-system calls: this runs before the worker has said hello.
Functions that decide take what they decide on as arguments; those named ``own_*`` read it from this process.

*Scratch* is the first that can be written of: what was asked, ``$SLURM_TMPDIR``, ``$_CONDOR_SCRATCH_DIR``, ``$TMPDIR``,
``/tmp``; what is mounted noexec gives way to another with room. The folder made in it has an unguessable name and mode 0700. A network
filesystem works but makes everything slow, so it gets a warning that names it.

*Cores*: the CPUs that this process may use, or less where a cgroup gives it a part of them. *GPUs*: what the batch system has
assigned, else what is there; a number asked for takes the first ones.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from windlass.worker.memory import read_text

#: Filesystem types that live on other machines.
NETWORK_FILESYSTEMS: Final = frozenset(
    [
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "ceph",
        "cephfs",
        "afs",
        "smb3",
        "cifs",
        "smbfs",
        "panfs",
        "9p",
        "glusterfs",
        "orangefs",
        "pvfs2",
        "wekafs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.cvmfs",
        "fuse.ceph",
        "fuse.juicefs",
        "fuse.s3fs",
        "fuse.gcsfuse",
        "fuse.beegfs",
    ]
)
#: Of the filesystems that a process serves (``fuse``), those that are on this machine; of the others nobody knows, and most are not.
LOCAL_FUSE: Final = frozenset(["fuse.fuse-overlayfs", "fuse.squashfuse", "fuse.squashfuse_ll", "fuse.lxcfs", "fuse.bindfs", "fuse.portal"])
#: Where the batch systems say which GPUs are a job's own, most particular first.
GPU_VARIABLES: Final = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "_CONDOR_AssignedGPUs")
#: What stands there of a job that has none; the number is HTCondor's, wherever it has looked for GPUs, also where there are none.
NO_GPU: Final = frozenset(["none", "nodevfiles", "-1", "void", "10000"])
#: A folder where programs can be started comes first, unless one where they cannot has so many times its room, and it has less than enough
#: (bytes) for environments and the files of most calls.
ROOMIER: Final = 10
ENOUGH: Final = 20e9

log = logging.getLogger("windlass.worker")


class NoScratch(OSError):
    """No folder for scratch can be written."""


def scratch_candidates(asked: str, environ: Mapping[str, str]) -> list[str]:
    """Folders to try for scratch, in order. One that was asked for is the only one: a person has chosen it."""
    if asked:
        return [asked]
    folders = [environ.get(name, "") for name in ("SLURM_TMPDIR", "_CONDOR_SCRATCH_DIR", "TMPDIR")]
    return [folder for folder in dict.fromkeys([*folders, "/tmp"]) if folder]


def in_turn(candidates: Iterable[str]) -> Iterator[str]:
    """The candidates in the order in which they are to be tried, each looked at only when its turn comes: it may be on a server that hangs.

    Those where no program can be started, as their file system is mounted noexec, come last: libraries' environments are unpacked there,
    and calls bring programs. But not behind one with much less room: files and objects go there as well, and a small /tmp is often memory.
    """
    passed: dict[str, int] = {}
    for folder in candidates:
        try:
            status = os.statvfs(folder)
        except OSError:
            yield folder  # it says by itself what is wrong
            continue
        free = status.f_bavail * status.f_frsize
        if status.f_flag & os.ST_NOEXEC:
            passed[folder] = free
            continue
        roomier = [one for one, room in passed.items() if free < min(room / ROOMIER, ENOUGH)] if os.access(folder, os.W_OK) else []
        for one in roomier:
            words = "no program can be started in %s (mounted noexec), but it has %.1f GB free, where %s has %.1f; scratch= names another"
            log.warning(words, one, passed.pop(one) / 1e9, folder, free / 1e9)
            yield one
        if passed:
            log.info("no program can be started in %s (mounted noexec): %s is tried first", ", ".join(passed), folder)
        yield folder
    yield from passed


def make_scratch(candidates: Iterable[str], announce: Callable[[str], None] | None = None) -> str:
    """Make a private folder in the first candidate where that is possible (`in_turn`), and say where it is. Raises `NoScratch` with each
    reason, and the number of the first, or that of a full disk if there is one.

    `announce` gets each path before it is made, so that whoever removes it after a SIGKILL knows of it however soon that comes.
    """
    from windlass.errors import FULL
    from windlass.ownership import NotOurs, require_ours
    from windlass.store_folders import folder_name

    reasons: list[str] = []
    number: int | None = None
    for folder in in_turn(candidates):
        path = os.path.join(os.path.abspath(folder), folder_name("scratch"))
        if announce is not None:
            announce(path)
        try:
            os.mkdir(path, 0o700)
            require_ours(path)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            number = error.errno if number is None or (error.errno in FULL and number not in FULL) else number
            if isinstance(error, NotOurs):
                with contextlib.suppress(OSError):
                    os.rmdir(path)  # nobody would remove it later
        else:
            return path
    failed = NoScratch(f"no folder for scratch can be made ({'; '.join(reasons)}); name one on a local disk with --scratch DIR")
    failed.errno = number
    raise failed


def filesystem_of(path: str, mounts: str) -> tuple[str, str]:
    """Type and mount point of the filesystem that `path` (absolute, without links) is on, from the text of ``/proc/self/mountinfo``."""
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if "-" not in fields[5:]:
            continue
        point = fields[4].encode().decode("unicode_escape") if "\\" in fields[4] else fields[4]
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts on one point the later covers the earlier
            best, kind = point, fields[fields.index("-", 5) + 1]
    return kind, best


def is_network(kind: str) -> bool:
    """A type of filesystems that live on other machines, as far as is known."""
    return kind in NETWORK_FILESYSTEMS or ((kind == "fuse" or kind.startswith("fuse.")) and kind not in LOCAL_FUSE)


def scratch_warning(path: str, mounts: str) -> str:
    """What to say about a scratch folder on a network filesystem; empty for a local one."""
    kind, point = filesystem_of(os.path.realpath(path), mounts)
    if not is_network(kind):
        return ""
    return (
        f"scratch {path} is on a network filesystem ({kind}, mounted at {point}): starting libraries will be slow; "
        "give a local disk with --scratch DIR"
    )


def own_scratch_warning(path: str) -> str:
    """`scratch_warning` with this process's mounts."""
    return scratch_warning(path, read_text("/proc/self/mountinfo"))


def quota_cores(read: Callable[[str], str], membership: str) -> float:
    """Cores that the CPU quotas of the process's cgroups give (v1 and v2); 0.0: no quota.

    `read` gives a file's text, or "" if there is none.
    """
    quotas: list[float] = []
    for line in membership.splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts), -1, -1):
            tail = "/".join(["", *parts[:depth]])
            if number == "0" and not controllers:
                quota, period = (*read(f"/sys/fs/cgroup{tail}/cpu.max").split(), "", "")[:2]
            elif "cpu" in controllers.split(","):
                quota, period = (read(f"/sys/fs/cgroup/cpu{tail}/cpu.cfs_{word}_us").strip() for word in ("quota", "period"))
            else:
                break
            if quota.isdigit() and period.isdigit() and int(period):
                quotas.append(int(quota) / int(period))
    return min(quotas, default=0.0)


def usable_cores(affinity: int, quota: float) -> int:
    """Whole cores to use, at least 1: those of the affinity mask, or less by a quota (rounded down, but 0.96 of a core is a core)."""
    return max(1, min(affinity, int(quota + 0.05)) if quota else affinity)


def own_cores() -> int:
    """The cores that this process may use."""
    return usable_cores(len(os.sched_getaffinity(0)), quota_cores(read_text, read_text("/proc/self/cgroup")))


def gpu_ids(asked: int, environ: Mapping[str, str], devices: Sequence[str]) -> tuple[str, ...]:
    """Ids of the GPUs to use: `asked` (-1: all) of those that the batch system assigned, else of `devices` (names in /dev).

    An assignment that is empty or says `NO_GPU` means no GPU, whatever devices are there. Without an assignment `asked` is
    believed, as for cores: not every make of GPU shows itself in /dev as the devices that are looked for here.
    """
    if asked == 0:
        return ()
    ids: list[str] = []
    for name in GPU_VARIABLES:
        if name in environ:
            words = [word.strip() for word in environ[name].split(",")]
            # HTCondor writes "CUDA0" or "GPU-5a1c..." for what CUDA calls "0" and "GPU-5a1c...".
            words = [word[4:] if word.startswith("CUDA") and word[4:].isdigit() else word for word in words]
            ids = [word for word in words if word and word.lower() not in NO_GPU]
            ids = list(dict.fromkeys(ids))  # HTCondor may be told to name each several times, for several jobs; one job may get it twice
            break
    else:
        numbers = [name[len("nvidia") :] for name in devices if name.startswith("nvidia") and name[len("nvidia") :].isdigit()]
        ids = sorted(numbers, key=int) if len(numbers) >= asked else [str(number) for number in range(asked)]
    return tuple(ids if asked < 0 else ids[:asked])


def own_gpu_ids(asked: int) -> tuple[str, ...]:
    """The GPUs that this process may use; `asked` -1: all."""
    if asked == 0:
        return ()
    environ = dict(os.environ)
    if "ROCR_VISIBLE_DEVICES" in environ and has_amd_gpus():
        environ.pop("CUDA_VISIBLE_DEVICES", None)  # which counts among those there
    known = any(name in environ for name in GPU_VARIABLES)
    return gpu_ids(asked, environ, () if known else os.listdir("/dev"))


def gpu_variables(ids: Sequence[str], amd: bool) -> dict[str, str]:
    """What shows these GPUs to a process, and no others; ``amd``: they are AMD's.

    There one layer hides all but those in its variable, and the layer above, which reads CUDA's variable as well as its own, counts what is
    left from 0.
    """
    given, counted = ",".join(ids), ",".join(map(str, range(len(ids))))
    variables = {"CUDA_VISIBLE_DEVICES": given, "ROCR_VISIBLE_DEVICES": given, "NVIDIA_VISIBLE_DEVICES": given}
    if amd:
        variables["CUDA_VISIBLE_DEVICES"] = variables["HIP_VISIBLE_DEVICES"] = counted
    return variables


def has_amd_gpus() -> bool:
    """The GPUs of this machine are AMD's. One with cards of NVIDIA may have the driver of its processor's own graphics as well."""
    return os.path.exists("/dev/kfd") and not os.path.exists("/dev/nvidiactl")


def own_gpu_variables(ids: Sequence[str]) -> dict[str, str]:
    """`gpu_variables` on this machine."""
    return gpu_variables(ids, has_amd_gpus())


def own_parents(environ: Mapping[str, str]) -> tuple[int, ...]:
    """Who started this worker: its parent and, where that is what has started an image for it, the parent of that.

    What starts an image waits for the worker, and stays when the program or batch system that started the pilot is killed. 0: it cannot be
    seen, never (it is outside of this one's namespace of processes) or not now (no descriptor or memory is to be had for a moment).
    """
    parent = os.getppid()
    if not environ.get("WINDLASS_CONTAINER"):
        return (parent,)
    fields = read_text(f"/proc/{parent}/stat").rpartition(") ")[2].split()
    return (parent, int(fields[1]) if fields else 0)


def is_left(parents: Sequence[int], now: Sequence[int]) -> bool:
    """Whether one of those who started this worker (`own_parents`, at its start and now) is seen to have ended: another has its place."""
    return any(before and after and before != after for before, after in zip(parents, now, strict=True))


def share_of(pilot: str) -> float:
    """A number from 0 to 1 drawn by chance, the same for all workers of a pilot: its nodes are given back together."""
    word, whole = 0xCBF29CE484222325, (1 << 64) - 1
    for byte in pilot.encode() or os.urandom(8):
        word = (word ^ byte) * 0x100000001B3 & whole  # FNV-1a: a module for hashing would have to be loaded
    # Pilots of one array differ in their last digits; this carries the difference to the upper bits.
    return ((word ^ word >> 32) * 0x9E3779B97F4A7C15 & whole) / (whole + 1)


def seconds_left(asked: float, environ: Mapping[str, str], now: float) -> float:
    """Seconds until the pilot's end, 0.0 if unlimited: what was asked, or sooner by the batch system's own word.

    `now`: seconds since the epoch. An end that is past when a worker starts is not its end: the job's time was extended since, or the word
    is of a job that this process is not of, and a worker that believed it would leave at once, and so would the next.
    """
    limits = [asked] if asked > 0 else []
    end = environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit() and int(end) > now:
        limits.append(max(1.0, int(end) - now))
    return min(limits, default=0.0)
