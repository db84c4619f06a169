"""`windlass.worker.burden`: when a result is copied to a manager of this host, as its file would go on to count as the pilot's memory."""

from __future__ import annotations

import os
from pathlib import Path

from windlass.store_folders import folder_name, owner_of
from windlass.worker.burden import Burden
from windlass.worker.memory import Cgroup, parse_cgroups

MOUNTS = "30 25 0:26 / {} rw,relatime shared:9 - cgroup cgroup rw,memory\n"
MIB = 1 << 20


def groups_of_a_job(folder: Path, limit: int) -> list[Cgroup]:
    """Those of a task of Slurm, in version 1: its job has the limit."""
    found = parse_cgroups("4:memory:/slurm/job_7/task_0\n", MOUNTS.format(folder))
    for group in found:
        Path(group.limit_file).parent.mkdir(parents=True, exist_ok=True)
        Path(group.limit_file).write_text(f"{limit if 'job_7' in group.limit_file and 'task' not in group.limit_file else 1 << 62}\n")
    return found


class Looks:
    """What files in memory have, and how often that was looked at."""

    def __init__(self) -> None:
        self.files, self.count = 0, 0

    def __call__(self) -> int:
        self.count += 1
        return self.files


def test_results_are_copied_while_those_of_before_fill_the_job(tmp_path: Path) -> None:
    """By name until they have a quarter of the limit, by name again when they are gone; few looks while it is far."""
    looks = Looks()
    burden = Burden(groups_of_a_job(tmp_path, 400 * MIB), 400 * MIB, looks)
    burden.use_manager("4:memory:/\n", MOUNTS.format(tmp_path))
    assert not any(burden.is_heavy(MIB) for _ in range(24))
    assert looks.count == 0
    looks.files = 102 * MIB
    assert burden.is_heavy(MIB)
    assert burden.is_heavy(1)
    assert looks.count == 2
    looks.files = 99 * MIB
    assert not burden.is_heavy(1)
    assert not burden.is_heavy(1)
    assert looks.count == 3


def test_a_large_result_is_not_what_those_of_before_cost(tmp_path: Path) -> None:
    """Each was copied, and took twice as long, though the program had let go all of those before."""
    looks = Looks()
    burden = Burden(groups_of_a_job(tmp_path, 400 * MIB), 400 * MIB, looks)
    burden.use_manager("4:memory:/\n", MOUNTS.format(tmp_path))
    looks.files = 150 * MIB
    assert not any(burden.is_heavy(150 * MIB) for _ in range(3))
    looks.files = 300 * MIB
    assert burden.is_heavy(150 * MIB), "one of before is still there"
    assert looks.count == 4


def test_where_a_copy_counts_the_same_there_is_none(tmp_path: Path) -> None:
    """A manager in the same job, as with local pools inside of one; and a pilot that nobody holds to its memory."""
    looks = Looks()
    looks.files = 401 * MIB
    burden = Burden(groups_of_a_job(tmp_path, 400 * MIB), 400 * MIB, looks)
    burden.use_manager("4:memory:/slurm/job_7/task_0\n", MOUNTS.format(tmp_path))
    assert not burden.is_heavy(300 * MIB)
    burden.use_manager("4:memory:/slurm/job_7/step_3/task_0\n", MOUNTS.format(tmp_path))
    assert not burden.is_heavy(300 * MIB)
    burden.use_manager("4:memory:/slurm/job_8/task_0\n", MOUNTS.format(tmp_path))
    assert burden.is_heavy(300 * MIB)
    burden.use_manager("", MOUNTS.format(tmp_path))  # nothing is known of it
    assert burden.is_heavy(300 * MIB)
    assert not Burden(groups_of_a_job(tmp_path, 1 << 62), 400 * MIB, looks).is_heavy(300 * MIB)
    assert not Burden([], 400 * MIB, looks).is_heavy(300 * MIB)


def test_a_folder_says_whose_it_is() -> None:
    """Of processes that this one could see."""
    assert owner_of(f"/dev/shm/{folder_name('manager')}") == os.getpid()
    assert owner_of("/dev/shm/windlass-manager-0-otherhost-1-17-5-ab") == 0
    assert owner_of("/var/tmp/objects") == 0
    assert owner_of("") == 0
