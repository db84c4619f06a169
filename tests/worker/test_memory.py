"""Rules of `windlass.worker.memory`: limits as kernels tell them, and which slot is ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, cast
from unittest import mock

import pytest

from windlass.messages import DIED, OUT_OF_MEMORY, CallEnd, CallId, EndDetail, InstanceId
from windlass.worker import memory
from windlass.worker.memory import (
    UNLIMITED,
    Cgroup,
    Usage,
    choose,
    out_of_memory_text,
    parse_cgroups,
    parse_limit,
    parse_table,
    share_of,
    smallest,
)
from windlass.worker.watch import MemoryWatch

GIB = 1 << 30

V1_MOUNTS = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V2_MOUNTS = "25 20 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID_MOUNTS = V1_MOUNTS + "31 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
CONTAINER_MOUNTS = "30 25 0:26 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"


def usage(pid: int, used: float, share: float, *, busy: bool = True) -> Usage:
    return Usage(InstanceId(1), pid, CallId(pid) if busy else None, 1, int(used * GIB), int(share * GIB))


def test_every_level_of_a_slurm_cgroup_counts() -> None:
    """The limit may stand at the step, the job or the user; version 1."""
    groups = parse_cgroups("5:devices:/\n4:memory:/slurm/uid_0/job_7/step_0\n", V1_MOUNTS)
    assert [group.limit_file for group in groups] == [
        "/sys/fs/cgroup/memory/slurm/uid_0/job_7/step_0/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/slurm/uid_0/job_7/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/slurm/uid_0/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ]


def test_version_2_has_its_own_names() -> None:
    """One hierarchy for all controllers."""
    groups = parse_cgroups("0::/system.slice/condor.service\n", V2_MOUNTS)
    assert groups[0].limit_file == "/sys/fs/cgroup/system.slice/condor.service/memory.max"
    assert groups[0].usage_file.endswith("/condor.service/memory.current")
    assert groups[0].kills_file.endswith("/condor.service/memory.events")
    assert len(groups) == 3


def test_a_hybrid_host_has_both() -> None:
    """The memory controller is bound to one of them; the other has no files, which read as no limit."""
    groups = parse_cgroups("4:memory:/job\n0::/\n", HYBRID_MOUNTS)
    assert [group.limit_file for group in groups] == [
        "/sys/fs/cgroup/memory/job/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/unified/memory.max",
    ]


def test_in_a_container_paths_count_from_the_mount() -> None:
    """The membership names the host's path, the mount shows a part of it."""
    groups = parse_cgroups("4:memory:/docker/abc/job\n", CONTAINER_MOUNTS)
    assert groups[0].limit_file == "/sys/fs/cgroup/memory/job/memory.limit_in_bytes"


@pytest.mark.parametrize("text", ["", "garbage", "4:memory", "::::", "0:"])
def test_what_cannot_be_read_is_no_cgroup(text: str) -> None:
    """Nothing here may keep a worker from starting."""
    assert parse_cgroups(text, text) == []
    assert parse_cgroups(text, "30 25 0:26 / - x") == []


@pytest.mark.parametrize(("text", "limit"), [("max\n", 0), ("9223372036854771712\n", 0), ("1073741824\n", GIB), ("", 0), ("-1", 0)])
def test_no_limit_reads_as_zero(text: str, limit: int) -> None:
    """In the words of both versions."""
    assert parse_limit(text) == limit


def test_tables_of_proc_and_cgroups_are_in_bytes() -> None:
    """With a unit and without."""
    assert parse_table("MemTotal:       1024 kB\nHugePages_Total:       3\n") == {"MemTotal": 1 << 20, "HugePages_Total": 3}
    assert parse_table("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")["oom_kill"] == 2
    assert parse_table("00400000-7ffd4 ---p 00000000 00:00 0  [rollup]\nPss:  12 kB\n")["Pss"] == 12 << 10


def test_a_limit_of_each_process_is_none_of_them_all() -> None:
    """An ``ulimit -v`` of a login node, which Slurm hands on, is not what all slots of a pilot may have together."""
    code = "from windlass.worker import memory; print(memory.read_limit(0, []))"
    limited = ["sh", "-c", 'ulimit -S -v 1000000 && exec "$@"', "sh", sys.executable, "-c", code]
    told = subprocess.run(limited, capture_output=True, text=True, check=True).stdout
    assert int(told) == memory.parse_table(memory.read_text("/proc/meminfo"))["MemTotal"] > 1000000 << 10


def test_the_least_limit_counts() -> None:
    """0 means none."""
    assert smallest([0, 3, 2, 0]) == 2
    assert smallest([0]) == 0
    assert 0 < memory.read_limit(0, []) <= memory.parse_table(memory.read_text("/proc/meminfo"))["MemTotal"]
    assert memory.read_limit(1 << 20, memory.own_cgroups()) == 1 << 20


@pytest.mark.parametrize(
    ("environ", "mib"),
    [
        ({"SLURMD_NODENAME": "n1", "SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_ON_NODE": "4"}, 4000),
        ({"SLURMD_NODENAME": "n1", "SLURM_MEM_PER_NODE": "8000", "SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_ON_NODE": "4"}, 8000),
        ({"SLURMD_NODENAME": "n1", "SLURM_MEM_PER_NODE": "0", "SLURM_CPUS_ON_NODE": "4"}, 0),  # all that the node has
        ({"SLURM_MEM_PER_NODE": "8000"}, 0),
        ({"SLURMD_NODENAME": "n1", "SLURM_MEM_PER_NODE": "much"}, 0),
        ({}, 0),
    ],
)
def test_what_slurm_has_granted_is_what_it_says_on_the_node(environ: dict[str, str], mib: int) -> None:
    """Not all sites have a cgroup for it. In a shell of salloc on a login node the same variables say nothing of that."""
    assert memory.granted(environ) == mib << 20


def test_what_htcondor_has_granted_is_in_the_ad_of_the_slot(tmp_path: Path) -> None:
    """On glideins, and wherever it does not run as root, there is no cgroup, and a job that takes more is held."""
    ad = tmp_path / ".machine.ad"
    ad.write_text('Machine = "n1"\nTotalSlotMemory = 256000\nMemory = 2048\nMemoryUsage = undefined\n')
    environ = {"_CONDOR_MACHINE_AD": str(ad)}
    assert memory.granted(environ) == 2 * GIB
    assert (memory.offered(GIB, 0, environ), memory.offered(8 * GIB, 0, environ), memory.offered(GIB, 0, {})) == (GIB, 2 * GIB, GIB)
    assert memory.offered(8 * GIB, 8 * GIB, environ) == 8 * GIB, "as was said"
    ad.write_text("Memory = undefined\n")
    assert memory.granted(environ) == memory.granted({"_CONDOR_MACHINE_AD": str(tmp_path / "gone")}) == 0


def test_far_below_the_limit_nobody_is_ended() -> None:
    """However much over its share a slot is: memory that nobody needs may be used."""
    assert choose([usage(1, 5, 1)], 5 * GIB, 10 * GIB) is None


def test_near_the_limit_the_one_furthest_over_its_share_is_ended() -> None:
    """Not the largest: that one may have asked for it."""
    asked_for_much, over = usage(1, 6, 6), usage(2, 3, 1)
    assert choose([asked_for_much, over], 95 * GIB // 10, 10 * GIB) is over


def test_where_nobody_is_over_the_largest_is_ended() -> None:
    """The zygotes take the rest."""
    small, large = usage(1, 1, 3), usage(2, 2.5, 5)
    assert choose([small, large], 10 * GIB, 10 * GIB) is large


def test_an_idle_slot_is_never_ended() -> None:
    """There is no call to charge."""
    assert choose([usage(1, 9, 1, busy=False)], 10 * GIB, 10 * GIB) is None
    busy = usage(2, 1, 1)
    assert choose([usage(1, 9, 1, busy=False), busy], 10 * GIB, 10 * GIB) is busy


def test_a_full_cgroup_counts_also_when_our_own_processes_do_not_fill_it() -> None:
    """Files in memory are the cgroup's too."""
    slot = usage(1, 2, 1)
    assert choose([slot], 2 * GIB, 10 * GIB, fullness=0.96) is slot
    assert choose([slot], 2 * GIB, 10 * GIB, fullness=0.94) is None


def test_a_share_is_what_was_asked_or_an_equal_part() -> None:
    """Times the slots that the call occupies, and never more than all."""
    assert share_of(8 * GIB, 0, 4) == 2 * GIB
    assert share_of(8 * GIB, 3 * GIB, 4) == 3 * GIB
    assert share_of(8 * GIB, 0, 4, weight=2) == 4 * GIB
    assert share_of(8 * GIB, 3 * GIB, 4, weight=9) == 8 * GIB
    assert share_of(8 * GIB, 0, 0) == 8 * GIB


def test_the_text_says_how_much_and_what_to_do() -> None:
    """Peak, limit, share, and the two remedies."""
    assert out_of_memory_text(usage(1, 3, 0.5), 4 * GIB) == (
        "the call used 3.00 GiB of memory when the pilot's limit of 4.00 GiB was reached, and was the furthest over its share of 512 MiB; "
        "give the calls more memory (memory=...) or the pilots fewer slots"
    )


def test_the_text_names_what_files_in_memory_have() -> None:
    """They count as the pilot's memory and are no process's, so that a call which has nothing may be the one that is ended."""
    text = out_of_memory_text(usage(1, 1, 2), 4 * GIB, files=3 * GIB)
    assert "limit of 4.00 GiB was reached, of which files in memory (/dev/shm) have 3.00 GiB, no more than its share" in text
    assert out_of_memory_text(usage(1, 3, 0.5), 4 * GIB, files=GIB // 10) == out_of_memory_text(usage(1, 3, 0.5), 4 * GIB)


@pytest.mark.parametrize(
    ("shared", "who"), [(False, "the call"), (True, "the slot in which it ran, with others at the same time,")], ids=["alone", "shared"]
)
def test_the_text_does_not_blame_a_call_that_is_within_its_share(shared: bool, who: str) -> None:
    """Where slots that are idle have most of the memory it is still the one that ends."""
    assert out_of_memory_text(usage(1, 1, 2), 4 * GIB, shared=shared) == (
        f"{who} used 1.00 GiB of memory when the pilot's limit of 4.00 GiB was reached, no more than its share of 2.00 GiB, but the most "
        "of those that ran: imports, a shared context and idle slots have the rest; give the pilots more memory or fewer slots, or the "
        "library max_calls=..., which lets go what slots have kept"
    )


def test_a_real_process_is_measured() -> None:
    """PSS is below the resident size, since libraries are shared; a process that is gone has none."""
    script = "x = bytearray(50 << 20); x[::4096] = b'x' * len(x[::4096]); print('there', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert 50 << 20 <= memory.proportional(process.pid) <= memory.resident(process.pid)
        sizes = memory.measure({process.pid: [process.pid, os.getpid()]}, memory.resident)
        assert sizes[process.pid] > memory.resident(process.pid)
    finally:
        process.communicate(b"\n")
    assert memory.resident(process.pid) == 0
    assert memory.proportional(process.pid) == 0


def test_files_that_a_call_has_mapped_are_not_its_memory() -> None:
    """One that read a file by `numpy.memmap` which was larger than its pilot's memory ended for that."""
    told = "Rss: 930000 kB\nPss: 925000 kB\nPss_Dirty: 5 kB\nPss_Anon: 20000 kB\nPss_File: 900000 kB\nPss_Shmem: 5000 kB\n"
    assert memory.without_files(parse_table(told)) == 25_000 << 10
    assert memory.without_files(parse_table("Rss: 930000 kB\nPss: 925000 kB\n")) == 925_000 << 10
    assert memory.without_files({}) == 0


def test_a_mapped_file_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(50 << 20))
    mapped = "f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sum(m[::4096])"
    words = [sys.executable, "-S", "-c", f"import mmap, sys; {mapped}; print('there', flush=True); input()", str(tmp_path / "file")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        if "Pss_Anon:" not in memory.read_text("/proc/self/smaps_rollup"):
            pytest.skip("this kernel does not tell")
        assert memory.resident(process.pid) >= 50 << 20
        assert 0 < memory.proportional(process.pid) < 40 << 20
    finally:
        process.communicate(b"\n")


class NoLibraries:
    """A worker's libraries as `MemoryWatch` asks for them: none, with two slots in all."""

    entries: ClassVar[dict[InstanceId, Any]] = {}

    def slots(self) -> int:
        return 2


def cgroup(folder: Path, *, limit: int, used: int, droppable: int, kills: int) -> Cgroup:
    """A cgroup's files, as version 2 has them."""
    texts = {
        "max": f"{limit}\n",
        "current": f"{used}\n",
        "stat": f"anon 5\ninactive_file {droppable}\n",
        "events": f"oom 9\noom_kill {kills}\n",
    }
    for name, text in texts.items():
        (folder / f"memory.{name}").write_text(text)
    return Cgroup(*(str(folder / f"memory.{name}") for name in texts))


def test_file_pages_that_can_be_dropped_do_not_fill_a_cgroup(tmp_path: Path) -> None:
    """A call that reads a large file is not short of memory; nor is one that writes one, which ended for that with 8 MiB of its own."""
    group = cgroup(tmp_path, limit=1000, used=990, droppable=500, kills=0)
    assert memory.cgroup_excess([group]) == pytest.approx(0.49)
    assert memory.read_limit(0, [group]) == 1000
    (tmp_path / "memory.stat").write_text("inactive_file 20\nactive_file 700\nfile_dirty 30\nfile_writeback 10\nslab_reclaimable 10\n")
    assert memory.cgroup_excess([group]) == pytest.approx(0.26), "what was read twice, and what must be written first"


@pytest.fixture
def swap(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes of the machine's swap are free: none to begin with."""
    free = {"kB": 0}
    read = memory.read_text

    def read_or_know(path: str) -> str:
        return f"MemTotal: 1000000 kB\nSwapFree: {free['kB']} kB\n" if path == "/proc/meminfo" else read(path)

    monkeypatch.setattr(memory, "read_text", read_or_know)
    return free


def test_what_a_cgroup_is_slowed_down_at_is_its_limit(tmp_path: Path, swap: dict[str, int]) -> None:
    """Slurm sets that to what a job is granted, and the limit to what the site allows beyond (AllowedRAMSpace): calls stood nearly still
    between the two, and nobody was told."""
    assert swap == {"kB": 0}
    group = cgroup(tmp_path, limit=1100, used=990, droppable=0, kills=0)._replace(high_file=str(tmp_path / "memory.high"))
    assert memory.limit_of(group) == 1100
    for high, limit in (("1000", 1000), ("max", 1100), ("2000", 1100)):
        (tmp_path / "memory.high").write_text(f"{high}\n")
        assert memory.limit_of(group) == limit
        assert memory.read_limit(0, [group]) == limit
        assert memory.cgroup_excess([group]) == pytest.approx(990 / limit)


def test_what_can_be_swapped_is_no_want_of_memory(tmp_path: Path, swap: dict[str, int]) -> None:
    """The kernel begins to swap there, use stays near it, and all goes on; calls were ended one after another."""
    group = cgroup(tmp_path, limit=64 << 20, used=990, droppable=0, kills=0)._replace(high_file=str(tmp_path / "memory.high"))
    (tmp_path / "memory.high").write_text(f"{32 << 20}\n")
    for free, most, current, limit in (
        (4096, "max", 0, 64 << 20),
        (4096, "0", 0, 32 << 20),
        (4096, str(8 << 20), 0, 64 << 20),
        (4096, str(8 << 20), 7 << 20, 32 << 20),  # it has used it up
        (1024, str(8 << 20), 0, 32 << 20),  # others have used it up
        (0, "max", 0, 32 << 20),
    ):
        swap["kB"] = free
        (tmp_path / "memory.swap.max").write_text(f"{most}\n")
        (tmp_path / "memory.swap.current").write_text(f"{current}\n")
        assert memory.limit_of(group) == limit, (free, most, current)


def test_what_a_user_is_slowed_down_at_with_all_his_programs_is_no_limit_of_a_worker() -> None:
    """A call of 20 MiB was ended on a login node, and the next ones, as the user's other programs came near his slice's MemoryHigh=."""

    def slowed(membership: str) -> list[str]:
        groups = parse_cgroups(f"0::{membership}\n", V2_MOUNTS)
        return [group.high_file.removeprefix("/sys/fs/cgroup") for group in groups if group.high_file]

    assert slowed("/user.slice/user-7.slice/session-3.scope") == ["/user.slice/user-7.slice/session-3.scope/memory.high"]
    job = "/system.slice/slurmstepd.scope/job_7"
    assert slowed(f"{job}/step_0/user/task_0") == [
        f"{folder}/memory.high" for folder in (f"{job}/step_0/user/task_0", f"{job}/step_0/user", f"{job}/step_0", job)
    ]
    assert slowed("/") == ["/memory.high"], "a container's own"
    assert parse_cgroups("4:memory:/job_7\n", V1_MOUNTS)[0].high_file == ""


def test_version_1_does_not_say_what_can_be_dropped_of_the_kernels_own() -> None:
    """A call that looked at very many files ended as out of memory, with 7 MiB of its own. The groups below are in the sums."""
    stat = "cache 1\nrss 1\nactive_file 1\ntotal_cache 900\ntotal_rss 50\ntotal_shmem 180\ntotal_active_file 700\ntotal_inactive_file 20\n"
    assert memory.kept(5000, parse_table(stat)) == 50 + 180 + 14
    assert memory.kept(955, parse_table(stat)) == 50 + 180 + 5
    assert memory.kept(940, parse_table(stat)) == 50 + 180, "the two are not read at once"
    assert memory.kept(5000, parse_table("anon 50\nactive_file 700\nslab_reclaimable 4000\n")) == 300
    assert memory.kept(5000, {}) == 5000, "nothing is told"


def test_files_in_memory_are_counted_in_the_cgroup_that_limits_them(tmp_path: Path) -> None:
    """Version 1 has a sum over the groups below; a group without a limit holds nobody to it."""
    group = cgroup(tmp_path, limit=1000, used=990, droppable=0, kills=0)
    assert memory.files_in_memory([group]) == 0
    (tmp_path / "memory.stat").write_text("shmem 300\n")
    assert memory.files_in_memory([group]) == 300
    (tmp_path / "memory.stat").write_text("shmem 0\ntotal_shmem 400\n")
    assert memory.files_in_memory([group]) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.files_in_memory([group]) == 0


def test_files_in_memory_of_other_jobs_are_none_of_this_ones(tmp_path: Path) -> None:
    """Each result was copied, and texts told of 2 GiB of files in memory in a job that had none: they were in the group of all jobs."""
    groups: list[Cgroup] = []
    for name, limit, shmem in (("step", UNLIMITED, 0), ("job", 4 * GIB, 5), ("all", 256 * GIB, 2 * GIB)):
        (tmp_path / name).mkdir()
        groups.append(cgroup(tmp_path / name, limit=limit, used=0, droppable=0, kills=0))
        (tmp_path / name / "memory.stat").write_text(f"shmem {shmem}\n")
    assert memory.files_in_memory(groups) == 5
    assert memory.files_in_memory([]) == 0


def test_a_kill_is_counted_where_the_process_was_also_without_a_limit_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm limits job and step and has a group for each task; version 1 counts in that one alone."""
    inner = tmp_path / "slurm" / "job_7" / "step_0" / "task_0"
    inner.mkdir(parents=True)
    for folder, limit in ((inner, UNLIMITED), (inner.parent, GIB), (inner.parents[1], 2 * GIB), (inner.parents[2], UNLIMITED)):
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {int(folder == inner)}\n")
    texts = {
        "/proc/self/cgroup": "4:memory:/slurm/job_7/step_0/task_0\n",
        "/proc/self/mountinfo": V1_MOUNTS.replace("/sys/fs/cgroup/memory", str(tmp_path)),
    }
    read = memory.read_text

    def read_or_know(path: str) -> str:
        return texts.get(path) or read(path)

    monkeypatch.setattr(memory, "read_text", read_or_know)
    groups = memory.own_cgroups()
    assert [Path(group.limit_file).parent.name for group in groups] == ["task_0", "step_0", "job_7"]
    assert memory.read_limit(0, groups) == GIB
    assert memory.oom_kills(groups) == 1
    (inner.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (inner.parents[1] / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory.own_cgroups() == []


def test_a_death_by_the_kernels_own_choice_is_told_as_one_for_memory(tmp_path: Path) -> None:
    """Its count tells it from any other SIGKILL; each kill explains one death."""
    group = cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=3)
    watch = MemoryWatch(cast(Any, NoLibraries()), cast(Any, None), GIB, [group], lambda _: None)

    def died(number: int) -> CallEnd:
        return CallEnd(CallId(number), 1, DIED, detail=EndDetail(text="the slot was killed", signal=9, peak_memory=77))

    assert watch.explain(died(1)).outcome == DIED
    cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=4)
    end = watch.explain(died(2))
    assert end.outcome == OUT_OF_MEMORY
    assert end.detail is not None
    assert (end.detail.peak_memory, end.detail.share, end.detail.limit) == (77, GIB // 2, GIB)
    assert end.detail.text == "the kernel ended the call because the pilot's memory ran out; the slot was killed"
    assert watch.explain(died(3)).outcome == DIED
    cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=5)
    (tmp_path / "memory.stat").write_text(f"shmem {GIB // 2}\n")
    end = watch.explain(died(4))
    assert end.detail is not None
    assert end.detail.text == (
        "the kernel ended the call because the pilot's memory ran out, of which files in memory (/dev/shm) have 512 MiB; "
        "the slot was killed"
    )


def test_a_kill_that_is_told_or_nobodys_explains_no_later_death(tmp_path: Path) -> None:
    """Hours after a command, or what a call had started, was killed for memory, a slot that somebody ended was told as one, and its call
    failed for good. Of what comes within seconds the order does not matter."""
    group = cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=0)
    watch = MemoryWatch(cast(Any, NoLibraries()), cast(Any, None), GIB, [group], lambda _: None)

    def died() -> int:
        return watch.explain(CallEnd(CallId(1), 1, DIED, detail=EndDetail(text="the slot was killed", signal=9))).outcome

    def told() -> None:
        watch.complete(CallEnd(CallId(2), 1, OUT_OF_MEMORY, detail=EndDetail(text="a command was killed", signal=9, peak_memory=5)))

    cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=1)
    told()
    assert died() == DIED
    cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=3)  # a command and a slot
    told()
    assert died() == OUT_OF_MEMORY
    cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=4)  # a child of a call
    watch.count_kills(100.0)
    watch.count_kills(105.0)
    cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=5)
    watch.count_kills(109.0)
    watch.count_kills(168.0)
    assert died() == OUT_OF_MEMORY, "it may be of one of these"
    cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=6)
    watch.count_kills(200.0)
    watch.count_kills(260.0)
    assert died() == DIED
    told()
    assert died() == DIED
    watch.complete(CallEnd(CallId(2), 1, OUT_OF_MEMORY, detail=EndDetail(text="by the watch", signal=9, limit=GIB)))
    cgroup(tmp_path, limit=GIB, used=100, droppable=0, kills=7)
    assert died() == OUT_OF_MEMORY


def test_reading_what_is_not_there_gives_nothing() -> None:
    """Files of /proc and /sys come and go."""
    assert memory.read_text("/proc/self/nothing") == ""
    assert memory.read_text("/proc") == ""
    assert memory.cgroup_excess([]) == 0.0
    assert memory.oom_kills([]) == 0


@pytest.mark.asyncio
async def test_that_half_of_the_memory_is_in_use_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports come each five seconds; in that time a call may fill what zygotes without slots, which the manager would end, have of it."""
    watch = MemoryWatch(mock.Mock(entries={}), cast(Any, None), 1000, [], lambda _: None)
    told: list[int] = []
    watch.fills = lambda: told.append(watch.used)
    monkeypatch.setattr(memory, "resident", mock.Mock(side_effect=[400, 500, 600, 499, 501]))
    for _ in range(5):
        await watch.look()
    assert told == [500, 501]
