"""How much memory a worker may use, how much its slots use, and which one to end when it runs short.

Theory of operation
-------------------
The *limit* is the least of what was asked for the pilot (``--memory``), the limits of the cgroups that the worker is in (v1 and
v2, each level up to the root), and the node's memory. RLIMIT_AS is not among them: each process has that for itself, and a call
that comes to it raises MemoryError. A slot's *share* is what its library asks per slot, else the limit divided by the slots.

What the batch system has *granted* bounds which calls come here, and ends none: one that holds jobs to it by a cgroup has set
the limit with that, others put a job on hold or only count on it, and what they grant to who has asked for nothing may be less
than Python needs.

What a slot uses is the proportional set size (PSS) of it and of all processes below it: pages that slots share with their
zygote count once in sum, and those of mapped files do not count, as the kernel drops them at need. PSS costs milliseconds per
large process (``smaps_rollup`` walks its page tables), so it is read only when the resident sizes (``statm``, microseconds),
whose sum is never below the sum of PSS, come to `LOOK_SHARE` of the limit or more. At `NEAR_SHARE` one slot is ended: the one
that is furthest over its share, the one most at fault, so that neighbours and the pilot survive. One at a time: the next look
comes when its memory is free.

The kernel may be quicker. Slots have a higher ``oom_score_adj`` than the worker, so it ends a slot; its cgroup's count of such
kills (`oom_kills`) tells a death by SIGKILL that was for memory from others.

Reading is separate from deciding: `parse_*` and `choose` are pure. All figures are bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from windlass.messages import CallId, InstanceId

#: Below this share of the limit nothing but resident sizes is read; from `NEAR_SHARE` on a slot is ended.
LOOK_SHARE: Final = 0.7
NEAR_SHARE: Final = 0.95
#: What the kernel holds for processes itself, at most: a part of what they hold.
KERNELS_PART: Final = 16
#: Room in swap for less than this share of what a cgroup is slowed down at is none.
LITTLE_SWAP: Final = 1 / 16
#: What files in memory have of the limit is told from this share on.
FILES_SHARE: Final = 0.1
#: Seconds between looks, far from and near the limit.
FAR_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 0.25
#: Larger figures mean "no limit" (cgroup v1 says so with the largest multiple of a page).
UNLIMITED: Final = 1 << 60

PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """What one slot uses. `call` is None while it is idle."""

    instance: InstanceId
    pid: int
    call: CallId | None
    attempt: int
    used: int
    share: int


class Cgroup(NamedTuple):
    """A memory cgroup that the worker is in: files for its limit and its use, and the one that counts kills; and of version 2 the one for
    what it is slowed down at, where it is of this job and nobody else's."""

    limit_file: str
    usage_file: str
    stat_file: str
    kills_file: str
    high_file: str = ""


# ---------------------------------------------------------------- limits


def parse_cgroups(membership: str, mounts: str) -> list[Cgroup]:
    """The memory cgroups of a process, innermost first, from its ``/proc/self/cgroup`` and ``/proc/self/mountinfo``."""
    points: dict[str, tuple[str, str]] = {}
    for line in mounts.splitlines():
        fields = line.split(" ")
        if " - " not in line or len(fields) < 7:
            continue
        after = fields[fields.index("-") + 1 :]
        if after[0] == "cgroup2":
            points.setdefault("v2", (fields[4], fields[3]))
        elif after[0] == "cgroup" and "memory" in after[-1].split(","):
            points.setdefault("v1", (fields[4], fields[3]))
    found: list[Cgroup] = []
    for line in membership.splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        version = "v2" if number == "0" and not controllers else "v1" if "memory" in controllers.split(",") else ""
        if version not in points:
            continue
        point, root = points[version]
        # Inside a container the mount shows a part of the hierarchy: paths are counted from its root.
        path = path[len(root) :] if root != "/" and path.startswith(root) else path
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([point, *parts[:depth]])
            if version == "v2":
                # The innermost, or Slurm's of this job, whose tasks are below it. Others are a user's of all that he has here.
                own = depth == len(parts) or any(part.startswith("job_") for part in parts[:depth])
                files = ("memory.max", "memory.current", "memory.stat", "memory.events", "memory.high" if own else "")
            else:
                files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "memory.oom_control", "")
            found.append(Cgroup(*(name and f"{folder}/{name}" for name in files)))
    return found


def parse_limit(text: str) -> int:
    """A cgroup's limit; 0 where there is none ("max", or v1's huge number)."""
    word = text.strip()
    value = int(word) if word.isdigit() else 0
    return value if value < UNLIMITED else 0


def limit_of(group: Cgroup) -> int:
    """What the cgroup may have; 0: no limit. At its ``memory.high`` nobody is ended, but made to wait, so that calls would stand nearly
    still between that and the limit; Slurm sets it to what a job is granted, and the limit to what the site allows beyond. What can go to
    swap goes there at that point, and all goes on."""
    limit = parse_limit(read_text(group.limit_file))
    high = parse_limit(read_text(group.high_file)) if group.high_file else 0
    return smallest([limit, high]) if high and _swap_left(os.path.dirname(group.high_file)) < high * LITTLE_SWAP else limit


def _swap_left(folder: str) -> int:
    """Bytes that the cgroup of version 2 there may still put into swap."""
    free = parse_table(read_text("/proc/meminfo")).get("SwapFree", 0)
    most = read_text(f"{folder}/memory.swap.max").strip()
    return min(free, int(most) - parse_limit(read_text(f"{folder}/memory.swap.current"))) if most.isdigit() else free


def parse_table(text: str) -> dict[str, int]:
    """Lines ``name value`` (memory.stat, memory.events, memory.oom_control) and ``name: value kB`` (meminfo, smaps_rollup)."""
    table: dict[str, int] = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[1].isdigit():
            table[fields[0].rstrip(":")] = int(fields[1]) * (1024 if fields[-1] == "kB" else 1)
    return table


def read_text(path: str) -> str:
    """A small file of /proc or /sys as text; empty where it cannot be read (gone, not allowed, not there)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)  # open() would ask for the file's size as well
    except OSError:
        return ""
    try:
        pieces: list[bytes] = []
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def own_cgroups() -> list[Cgroup]:
    """The memory cgroups that this process is in, innermost first, up to the last one that has a limit.

    The innermost belongs to them also without one, as Slurm's of a task: in version 1 the kernel counts a kill there and nowhere else.
    """
    groups = parse_cgroups(read_text("/proc/self/cgroup"), read_text("/proc/self/mountinfo"))
    limited = [number for number, group in enumerate(groups) if limit_of(group)]
    return groups[: limited[-1] + 1] if limited else []


def smallest(limits: Iterable[int]) -> int:
    """The least of some limits, in which 0 means none."""
    return min((limit for limit in limits if limit > 0), default=0)


def read_limit(asked: int, groups: Sequence[Cgroup]) -> int:
    """The worker's limit: the least of `asked` (0: not), the cgroups' and the node's memory."""
    physical = parse_table(read_text("/proc/meminfo")).get("MemTotal", 0)
    return smallest([asked, physical, *map(limit_of, groups)])


def granted(environ: Mapping[str, str]) -> int:
    """What the batch system has given this job of its node's memory; 0: it does not say."""
    found: list[int] = []
    for line in read_text(environ.get("_CONDOR_MACHINE_AD", "")).splitlines():
        name, _, value = (part.strip() for part in line.partition("="))
        if name.lower() == "memory" and value.isdigit():
            found.append(int(value))
    if "SLURMD_NODENAME" in environ:  # what stands in a shell's environment beside an allocation is of that one's nodes
        node, cpu, cpus = (
            int(word) if (word := environ.get(name, "")).isdigit() else 0
            for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE")
        )
        found.append(node or cpu * cpus)
    return smallest(found) << 20


def offered(limit: int, asked: int, environ: Mapping[str, str]) -> int:
    """The memory by which calls are placed on a worker with this limit; who has `asked` for some (0: not) knows what there is."""
    return limit if asked else smallest([limit, granted(environ)])


def cgroup_excess(groups: Sequence[Cgroup]) -> float:
    """How full the fullest of these cgroups is (1.0: at its limit), not counting file pages that the kernel can drop."""
    fullest = 0.0
    for group in groups:
        limit = limit_of(group)
        if limit:
            used = kept(parse_limit(read_text(group.usage_file)), parse_table(read_text(group.stat_file)))
            fullest = max(fullest, used / limit)
    return fullest


def kept(usage: int, stat: Mapping[str, int]) -> int:
    """Bytes of a cgroup's ``usage`` that the kernel cannot take back before it ends a process, by its ``memory.stat``. What it can are
    pages of files, and caches of its own.

    A file that is read twice is "active", and files fill a cgroup up to its limit: these are no sign of want. Nor are pages that must be
    written first: who writes a large file fills a cgroup with them quicker than the disk takes them, and is made to wait. Nor is what is
    kept of names of files for who looks at very many. Files in memory (tmpfs) are not among either kind. Where the kernel ends somebody all
    the same, that is told as well as if this had.

    The usage of version 1 has all that the kernel itself holds in it, and does not say what can be dropped of that: some for page tables
    and stacks, which grow with processes' memory, and no more is counted as kept.
    """

    def of(*names: str) -> int:
        return sum(stat.get(name, 0) for name in names)

    if "total_rss" in stat:  # the sums over the groups below
        held = of("total_rss") + max(0, of("total_cache") - of("total_inactive_file", "total_active_file"))
        return held + min(max(0, usage - of("total_rss", "total_cache")), held // KERNELS_PART)
    return usage - of("inactive_file", "active_file", "slab_reclaimable")


def files_in_memory(groups: Iterable[Cgroup]) -> int:
    """Bytes of files in memory (/dev/shm, a tmpfs) that count in the cgroup with the least limit, mapped or not: in one above it that has
    a limit, too, there are also those of other jobs.

    Those of large arguments and results are among them, and what calls have left; also when they have gone into another's folder since.
    """
    least = min((group for group in groups if limit_of(group)), key=limit_of, default=None)
    table = parse_table(read_text(least.stat_file)) if least is not None else {}
    return table.get("total_shmem", table.get("shmem", 0))


def oom_kills(groups: Sequence[Cgroup]) -> int:
    """How often the kernel has ended a process of the innermost of these cgroups for memory."""
    return sum(parse_table(read_text(group.kills_file)).get("oom_kill", 0) for group in groups[:1])


# ---------------------------------------------------------------- use


def resident(pid: int) -> int:
    """Resident size of a process; 0 when it is gone."""
    fields = read_text(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE if len(fields) > 1 else 0


def proportional(pid: int) -> int:
    """Proportional set size of a process, without files; its resident size where the kernel does not tell; 0 when it is gone."""
    return without_files(parse_table(read_text(f"/proc/{pid}/smaps_rollup"))) or resident(pid)


def without_files(rollup: Mapping[str, int]) -> int:
    """What of a process's proportional set size the kernel cannot take back, by its ``smaps_rollup``: not the pages of files that it has
    mapped, be they large (`numpy.memmap`, databases). Linux before 5.4 does not tell of which kind they are."""
    anonymous = rollup.get("Pss_Anon")
    return rollup.get("Pss", 0) if anonymous is None else anonymous + rollup.get("Pss_Shmem", 0)


def measure(trees: Mapping[int, Sequence[int]], size: Callable[[int], int]) -> dict[int, int]:
    """The size of each tree of processes, by its root."""
    return {root: sum(map(size, tree)) for root, tree in trees.items()}


# ---------------------------------------------------------------- decisions


def share_of(limit: int, per_slot: int, slots: int, weight: int = 1) -> int:
    """A slot's share: what its library asks per slot, else an equal part of the limit; times the slots that the call occupies."""
    return min(limit, (per_slot or limit // max(1, slots)) * max(1, weight))


def choose(usages: Sequence[Usage], used: int, limit: int, *, fullness: float = 0.0) -> Usage | None:
    """The slot to end now, or None: memory is not short, or no slot runs a call.

    `used` is the use of all of the worker's processes, `fullness` that of the fullest cgroup (1.0: at its limit). Furthest over
    its share goes first; where nobody is over (the zygotes are large), the largest.
    """
    if not limit or (used < NEAR_SHARE * limit and fullness < NEAR_SHARE):
        return None
    busy = [usage for usage in usages if usage.call is not None]
    if not busy:
        return None
    worst = max(busy, key=lambda usage: (usage.used - usage.share, usage.used))
    return worst if worst.used > worst.share else max(busy, key=lambda usage: usage.used)


def _show(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.0f} MiB"


def of_files(files: int, limit: int) -> str:
    """What to say of the files in memory among what has filled the limit; "": they are few."""
    return f", of which files in memory (/dev/shm) have {_show(files)}" if files >= FILES_SHARE * limit else ""


def out_of_memory_text(usage: Usage, limit: int, *, shared: bool = False, files: int = 0) -> str:
    """What the user reads when a call was ended; ``shared``: its slot ran many at once, which all ended. ``files``: `files_in_memory`."""
    reached = f"when the pilot's limit of {_show(limit)} was reached{of_files(files, limit)}"
    if usage.used <= usage.share:
        who = "the slot in which it ran, with others at the same time," if shared else "the call"
        return (
            f"{who} used {_show(usage.used)} of memory {reached}, no more than its share of "
            f"{_show(usage.share)}, but the most of those that ran: imports, a shared context and idle slots have the rest; give the "
            "pilots more memory or fewer slots, or the library max_calls=..., which lets go what slots have kept"
        )
    if shared:
        return (
            f"the slot in which it ran, with others at the same time, used {_show(usage.used)} of memory "
            f"{reached}, and was the furthest over its share of {_show(usage.share)}: all calls in it have ended; "
            "give the library more memory (memory=...) or a lower concurrency="
        )
    return (
        f"the call used {_show(usage.used)} of memory {reached}, and was the furthest over "
        f"its share of {_show(usage.share)}; give the calls more memory (memory=...) or the pilots fewer slots"
    )
