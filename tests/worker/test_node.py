"""Rules of `windlass.worker.node`: scratch, network filesystems, cores, GPUs, the pilot's end."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.shared import modeless

from windlass.worker import node
from windlass.worker.node import (
    NoScratch,
    filesystem_of,
    gpu_ids,
    gpu_variables,
    is_left,
    make_scratch,
    own_parents,
    quota_cores,
    scratch_candidates,
    scratch_warning,
    seconds_left,
    share_of,
)

MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
40 22 0:50 / /home rw,relatime - nfs4 server:/home rw
41 22 0:51 / /scratch rw,relatime shared:3 master:1 - lustre mds@tcp:/fs rw
42 22 0:52 / /home/local rw - tmpfs tmpfs rw
43 22 0:53 / /with\\040space rw - beegfs beegfs rw
"""


def test_the_batch_systems_own_scratch_comes_first() -> None:
    """Slurm's, HTCondor's, the user's, /tmp; each once."""
    environ = {"TMPDIR": "/t", "SLURM_TMPDIR": "/s", "_CONDOR_SCRATCH_DIR": "/c"}
    assert scratch_candidates("", environ) == ["/s", "/c", "/t", "/tmp"]
    assert scratch_candidates("", {"TMPDIR": "/tmp"}) == ["/tmp"]
    assert scratch_candidates("/mine", environ) == ["/mine"]


def test_scratch_is_private_and_goes_to_the_first_place_that_takes_it(tmp_path: Path) -> None:
    """Mode 0700, and a name that nobody can guess."""
    announced: list[tuple[str, bool]] = []

    def announce(path: str) -> None:
        announced.append((path, os.path.exists(path)))

    first = make_scratch([str(tmp_path / "missing"), str(tmp_path)], announce)
    second = make_scratch([str(tmp_path)], announce)
    assert first != second
    assert announced[1:] == [(first, False), (second, False)]  # before it is made, or a SIGKILL in between leaves it
    assert Path(first).parent == tmp_path
    assert stat.S_IMODE(os.stat(first).st_mode) == 0o700


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes folders by their names, with free GB; those whose name begins with "hard" are mounted noexec."""
    looked: list[str] = []

    def make(**free: int) -> list[str]:
        for name in free:
            (tmp_path / name).mkdir()

        def statvfs(folder: str) -> SimpleNamespace:
            name = os.path.basename(folder)
            looked.append(name)
            if name not in free:
                raise FileNotFoundError(folder)
            return SimpleNamespace(f_flag=os.ST_NOEXEC if name.startswith("hard") else 0, f_bavail=free[name] * 10**6, f_frsize=1000)

        monkeypatch.setattr("os.statvfs", statvfs)
        return looked

    return make


def test_scratch_is_where_programs_can_be_started_if_there_is_such_a_place(tmp_path: Path, mounts: Callable[..., list[str]]) -> None:
    """Environments are unpacked beside it, and calls bring programs; on hardened nodes /tmp or /dev/shm is mounted noexec."""
    mounts(hard=100, soft=10)
    assert Path(make_scratch([str(tmp_path / "hard"), str(tmp_path / "soft")])).parent == tmp_path / "soft"
    assert Path(make_scratch([str(tmp_path / "hard"), str(tmp_path / "missing")])).parent == tmp_path / "hard"
    assert len(os.listdir(tmp_path / "hard")) == 1


def test_a_scratch_candidate_behind_a_good_one_is_not_looked_at(tmp_path: Path, mounts: Callable[..., list[str]]) -> None:
    """It may be on a server that hangs, and with it the worker would, though the batch system gave it a disk of its own."""
    looked = mounts(good=10, hanging=10)
    make_scratch([str(tmp_path / "good"), str(tmp_path / "hanging")])
    assert looked == ["good"]


@pytest.mark.parametrize(
    ("free", "first"),
    [
        ({"hard": 1000, "small": 2}, "hard"),
        ({"hard": 1000, "enough": 50}, "enough"),
        ({"hard": 15, "small": 2}, "small"),
        ({"hard": 15, "hard2": 500, "small": 2}, "hard2"),
        ({"small": 2, "hard": 1000}, "small"),
    ],
)
def test_a_large_disk_is_not_left_for_a_small_one_where_programs_can_be_started(
    tmp_path: Path, mounts: Callable[..., list[str]], caplog: pytest.LogCaptureFixture, free: dict[str, int], first: str
) -> None:
    """Files and objects go there as well, and a small /tmp is often memory. The choice is told."""
    mounts(**free)
    caplog.set_level(logging.INFO, "windlass.worker")
    assert Path(make_scratch([str(tmp_path / name) for name in free])).parent == tmp_path / first
    assert bool(caplog.text) == (next(iter(free)) != "small")


def test_nothing_is_left_where_what_we_make_is_not_ours(tmp_path: Path) -> None:
    """Some file systems do not tell users apart; each pilot that tries one would leave a folder that nobody removes."""
    with modeless.mounted(tmp_path / "shared", owner=4711) as folder:
        with pytest.raises(
            NoScratch, match=r"it belongs to another user \(number 4711\), .* or this file system does not tell users apart"
        ):
            make_scratch([str(folder)])
        assert os.listdir(folder) == []


def test_no_scratch_at_all_says_why(tmp_path: Path) -> None:
    """Each place with its reason, and what to do."""
    (tmp_path / "file").touch()
    with pytest.raises(
        NoScratch, match=r"missing: No such file or directory; .*file: Not a directory\); name one on a local disk"
    ) as caught:
        make_scratch([str(tmp_path / "missing"), str(tmp_path / "file")])
    assert caught.value.errno == errno.ENOENT, "the first, by which it is known whether the node is in trouble"


@pytest.mark.parametrize(
    ("path", "kind", "point"),
    [
        ("/tmp/x", "ext4", "/"),
        ("/home/anna", "nfs4", "/home"),
        ("/homestead", "ext4", "/"),
        ("/home/local/x", "tmpfs", "/home/local"),
        ("/with space/x", "beegfs", "/with space"),
        ("/scratch", "lustre", "/scratch"),
    ],
)
def test_the_filesystem_of_a_path_is_that_of_its_nearest_mount(path: str, kind: str, point: str) -> None:
    """By whole names, not by letters."""
    assert filesystem_of(path, MOUNTS) == (kind, point)


def test_a_network_filesystem_gets_a_warning_that_names_it() -> None:
    """And a local one none."""
    assert scratch_warning("/tmp", MOUNTS) == ""
    assert scratch_warning("/scratch/me", MOUNTS) == (
        "scratch /scratch/me is on a network filesystem (lustre, mounted at /scratch): starting libraries will be slow; "
        "give a local disk with --scratch DIR"
    )
    assert scratch_warning("/tmp", "garbage\n- -\n") == ""


def reader(files: dict[str, str]) -> Callable[[str], str]:
    return lambda path: files.get(path, "")


def test_a_quota_of_any_level_counts() -> None:
    """Versions 1 and 2; the least of them."""
    v2 = {"/sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "/sys/fs/cgroup/a/cpu.max": "250000 100000\n"}
    assert quota_cores(reader(v2), "0::/a/b\n") == 2.5
    v1 = {"/sys/fs/cgroup/cpu/j/cpu.cfs_quota_us": "400000\n", "/sys/fs/cgroup/cpu/j/cpu.cfs_period_us": "100000\n"}
    assert quota_cores(reader(v1), "4:cpu,cpuacct:/j\n1:memory:/x\n") == 4.0
    assert quota_cores(reader({"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}), "4:cpu:/\n") == 0.0
    assert quota_cores(reader({}), "garbage\n") == 0.0


@pytest.mark.parametrize(("affinity", "quota", "cores"), [(8, 0.0, 8), (8, 2.5, 2), (8, 0.3, 1), (2, 16.0, 2), (8, 3.97, 4)])
def test_cores_are_whole_and_at_least_one(affinity: int, quota: float, cores: int) -> None:
    """The less of mask and quota."""
    assert node.usable_cores(affinity, quota) == cores


def test_own_cores_are_within_the_affinity_mask() -> None:
    """On whatever machine this runs."""
    assert 1 <= node.own_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("asked", "environ", "devices", "ids"),
    [
        (-1, {}, ["nvidia1", "nvidia0", "nvidiactl", "nvidia-uvm", "null"], ("0", "1")),
        (1, {}, ["nvidia0", "nvidia1"], ("0",)),
        (0, {"CUDA_VISIBLE_DEVICES": "0,1"}, [], ()),
        (-1, {"CUDA_VISIBLE_DEVICES": "2,3"}, ["nvidia0"], ("2", "3")),
        (-1, {"CUDA_VISIBLE_DEVICES": ""}, ["nvidia0"], ()),
        (-1, {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ["nvidia0"], ()),
        (-1, {"CUDA_VISIBLE_DEVICES": "GPU-8f3a, GPU-11"}, [], ("GPU-8f3a", "GPU-11")),
        (-1, {"_CONDOR_AssignedGPUs": "CUDA0,CUDA2"}, [], ("0", "2")),
        (-1, {"_CONDOR_AssignedGPUs": "none"}, ["nvidia0"], ()),
        (-1, {"CUDA_VISIBLE_DEVICES": "10000", "_CONDOR_AssignedGPUs": "10000"}, ["nvidia0"], ()),
        (-1, {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a,GPU-b"}, [], ("GPU-b", "GPU-a")),
        (2, {"_CONDOR_AssignedGPUs": "CUDA1,CUDA1"}, [], ("1",)),
        (-1, {"SLURM_JOB_GPUS": "1"}, [], ("1",)),
        (2, {"SLURM_JOB_GPUS": "1"}, [], ("1",)),
        (2, {}, ["nvidia1", "nvidia3", "nvidia5"], ("1", "3")),
        (3, {}, ["nvidia0", "null"], ("0", "1", "2")),
        (2, {}, ["kfd", "dri"], ("0", "1")),
        (-1, {}, ["kfd", "dri"], ()),
    ],
)
def test_gpus_are_those_that_the_batch_system_assigned(
    asked: int, environ: dict[str, str], devices: list[str], ids: tuple[str, ...]
) -> None:
    """Else those that are there; a number takes the first. One that is named twice is one."""
    assert gpu_ids(asked, environ, devices) == ids


@pytest.mark.parametrize(
    ("ids", "amd", "cuda", "rocr", "hip"),
    [
        (("3",), False, "3", "3", None),
        (("3",), True, "0", "3", "0"),
        (("GPU-a", "6"), False, "GPU-a,6", "GPU-a,6", None),
        (("GPU-a", "6"), True, "0,1", "GPU-a,6", "0,1"),
        ((), True, "", "", ""),
    ],
)
def test_a_process_sees_its_gpus_alone(ids: tuple[str, ...], amd: bool, cuda: str, rocr: str, hip: str | None) -> None:
    """AMD's variables are applied one after the other: what the first has left is counted by the second."""
    variables = gpu_variables(ids, amd)
    assert variables.pop("NVIDIA_VISIBLE_DEVICES") == rocr
    assert variables.pop("HIP_VISIBLE_DEVICES", None) == hip
    assert variables == {"CUDA_VISIBLE_DEVICES": cuda, "ROCR_VISIBLE_DEVICES": rocr}


def test_the_end_is_the_sooner_of_what_was_asked_and_what_slurm_says() -> None:
    """0 means unlimited; an end that is past is of another job, or of before its time was extended."""
    assert seconds_left(0.0, {}, 1000.0) == 0.0
    assert seconds_left(60.0, {}, 1000.0) == 60.0
    assert seconds_left(60.0, {"SLURM_JOB_END_TIME": "1030"}, 1000.0) == 30.0
    assert seconds_left(0.0, {"SLURM_JOB_END_TIME": "900"}, 1000.0) == 0.0
    assert seconds_left(60.0, {"SLURM_JOB_END_TIME": "900"}, 1000.0) == 60.0
    assert seconds_left(0.0, {"SLURM_JOB_END_TIME": "Unknown"}, 1000.0) == 0.0


def test_a_worker_is_left_when_another_has_the_place_of_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when it cannot be seen for a moment, as a node has no descriptor or memory left, or was never to be seen."""
    inside, text = {"WINDLASS_CONTAINER": "i.sif"}, ["7 (a (b) c) S 5 7 7"]

    def read(_path: str) -> str:
        return text[0]

    monkeypatch.setattr(node, "read_text", read)
    parents = own_parents(inside)
    assert own_parents({}) == (os.getppid(),)
    assert parents == (os.getppid(), 5)
    assert not is_left(parents, own_parents(inside))
    text[0] = ""
    assert own_parents(inside) == (os.getppid(), 0)
    assert not is_left(parents, own_parents(inside))
    assert not is_left(own_parents(inside), parents)
    assert is_left((7,), (1,))
    assert is_left((7, 5), (1, 0))
    assert is_left((7, 5), (7, 1))
    assert not is_left((0,), (0,))


def test_the_share_drawn_for_a_pilot_is_its_own_and_that_of_all_its_nodes() -> None:
    """Evenly spread over an array's tasks; without a pilot, each draw is new."""
    shares = [share_of(f"4711_{task}") for task in range(1000)]
    assert shares == [share_of(f"4711_{task}") for task in range(1000)]
    for tenth in range(10):
        assert 60 <= sum(tenth / 10 <= share < (tenth + 1) / 10 for share in shares) <= 140
    assert share_of("") != share_of("")
