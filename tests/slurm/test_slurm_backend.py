"""The Slurm backend on real Slurm: what it asks for is what the job has, and what it says is so."""

from __future__ import annotations

import errno
import getpass
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.cli import main
from windlass.errors import OverLimit, Rejected, Unreachable, UsageError
from windlass.factory import slurm_words
from windlass.factory.backend import JobId, Listed, PilotRequest, Tag
from windlass.factory.commands import Ran, run_command
from windlass.factory.slurm import SlurmBackend
from windlass.messages import Resources
from windlass.testing import SlurmCluster

Start = Callable[..., SlurmBackend]
Make = Callable[..., PilotRequest]


def job_of(cluster: SlurmCluster, job: str) -> dict[str, str]:
    """What Slurm knows of a job, by name."""
    words = cluster.run("scontrol", "-o", "show", "job", job).stdout.split()
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def test_what_is_asked_is_what_the_job_has(
    start_backend: Start, make_request: Make, slurm: SlurmCluster, listing: Any, tmp_path: Path
) -> None:
    """Options, resources and further lines reach Slurm, however they are written."""
    backend = start_backend(
        partition="high",
        account="physics",
        constraint="fast|slow&fast",
        gpu_type="a100",
        requeue=False,
        extra_directives="#SBATCH --comment='two words'\n--nice=5",
    )
    request = make_request(resources=Resources(2.0, 300 << 20, 1), walltime=61.0, avoid=("n2", "n3"))
    [job] = backend.submit(request, 1)
    listing(backend).until(job, Listed.RUNNING)
    has = job_of(slurm, job)
    assert has["JobName"] == "windlass:f:m:f-1"
    assert has["Partition"] == "high"
    assert has["Features"] == "fast|slow&fast"
    assert (has["CPUs/Task"], has["MinMemoryNode"], has["TimeLimit"], has["Requeue"]) == ("2", "300M", "00:02:00", "0")
    assert has["TresPerNode"].replace("gres/", "gres:") == "gres:gpu:a100:1"  # as later versions of Slurm write it
    assert has["ExcNodeList"] == "n[2-3]"
    assert has["Comment"] == "two"  # of two words
    assert has["NtasksPerN:B:S:C"].startswith("1")
    assert (Path(has["StdOut"]).parent.parent, Path(has["StdOut"]).name) == (tmp_path / "pilots" / "f", f"{job}.log")
    backend.cancel([job])


def test_a_reservation_and_whole_nodes_can_be_asked_for(
    start_backend: Start, make_request: Make, slurm: SlurmCluster, listing: Any
) -> None:
    whose = f"Users={getpass.getuser()}"
    slurm.run("scontrol", "create", "reservation", "ReservationName=ours", "StartTime=now", "Duration=10", whose, "Nodes=n4")
    try:
        backend = start_backend(reservation="ours", exclusive=True)
        [job] = backend.submit(make_request(), 1)
        assert listing(backend).until(job, Listed.RUNNING).node == "n4"
        assert job_of(slurm, job)["NumCPUs"] == "4"
        backend.cancel([job])
        listing(backend).until(job, Listed.ENDED)
    finally:
        slurm.run("scontrol", "delete", "ReservationName=ours")


def test_the_pilot_s_environment_is_the_node_s_and_what_was_named(
    start_backend: Start, make_request: Make, listing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that happens to be in the factory's environment, secrets among it, is sent to a job."""
    monkeypatch.setenv("SECRET", "word")
    backend = start_backend()
    show = "import os, sys; print(os.environ.get('SECRET'), os.environ['NAMED'], os.environ['WINDLASS_PILOT'], sys.argv[-1])"
    [job] = backend.submit(make_request(show, env=(("NAMED", "it's $HOME"),)), 1)
    listing(backend).until(job, Listed.ENDED)
    assert backend.tail(job) == f"None it's $HOME {job} {job}"
    jobs = backend.submit(make_request(show, env=(("NAMED", "x"),), ticket="f-2"), 2)
    for job in jobs:
        listing(backend).until(job, Listed.ENDED)
        assert backend.tail(job) == f"None x {job} {job}"


def test_variables_of_slurm_s_commands_change_nothing(
    start_backend: Start, make_request: Make, listing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's own defaults for squeue and sbatch, and those of the job that the factory may run in, are not the factory's."""
    for name, value in {
        "SQUEUE_STATES": "FAILED",
        "SQUEUE_FORMAT": "%j",
        "SQUEUE_PARTITION": "high",
        "SLURM_CLUSTERS": "elsewhere",
        "SBATCH_PARTITION": "down",
        "SBATCH_ARRAY_INX": "0-9",
        "SLURM_MEM_PER_CPU": "1",
        "SLURM_JOB_ID": "1",
        "SCANCEL_STATE": "PENDING",
    }.items():
        monkeypatch.setenv(name, value)
    backend = start_backend()
    [job] = backend.submit(make_request(resources=Resources(1.0, 100 << 20)), 1)
    listing(backend).until(job, Listed.RUNNING)
    backend.cancel([job])
    listing(backend).until(job, Listed.ENDED)


def test_a_pilot_hears_sigterm_when_it_is_cancelled(start_backend: Start, make_request: Make, listing: Any) -> None:
    """No shell stands between: it has its grace to say what it has to."""
    backend = start_backend()
    hears = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(print('heard'))); print('up', flush=True); time.sleep(600)"
    [job] = backend.submit(make_request(hears), 1)
    while "up" not in backend.tail(job):
        listing(backend).until(job, Listed.RUNNING)
    backend.cancel([job])
    listing(backend).until(job, Listed.ENDED)
    assert "heard" in backend.tail(job)


def test_a_submission_may_be_smaller_than_asked_where_arrays_are(
    strict_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, start_backend: Start, make_request: Make
) -> None:
    """`MaxArraySize` is learned from the first refusal; the rest is asked for again."""
    monkeypatch.setenv("SLURM_CONF", str(strict_cluster.conf))
    backend = start_backend()
    jobs = backend.submit(make_request(), 6)
    assert [job.rpartition("_")[2] for job in jobs] == ["0", "1", "2", "3"]
    assert {state.job for state in backend.query()} == set(jobs)
    backend.cancel_all()


def test_how_large_arrays_may_be_is_asked_again_where_nothing_was_told_for_now(
    strict_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch, start_backend: Start, make_request: Make
) -> None:
    """One silence is not to make a submission of each pilot for the factory's life; where there is no scontrol half as many are tried."""
    monkeypatch.setenv("SLURM_CONF", str(strict_cluster.conf))
    backend = start_backend()
    error = OSError(errno.EAGAIN, "Resource temporarily unavailable")

    def without_scontrol(command: Sequence[str], **options: Any) -> Ran:
        if command[0] == "scontrol":
            raise error
        return run_command(command, **options)

    monkeypatch.setattr("windlass.factory.slurm.run_command", without_scontrol)
    for _ in range(2):
        with pytest.raises(Unreachable, match="cannot start scontrol"):
            backend.submit(make_request(), 6)
    error = FileNotFoundError(errno.ENOENT, "No such file or directory")
    with pytest.raises(OverLimit, match="an array of 6 pilots is refused"):
        backend.submit(make_request(), 6)
    assert len(backend.submit(make_request(), 6)) == 3
    backend.cancel_all()


def test_a_factory_finds_what_an_earlier_life_left_and_nothing_else(start_backend: Start, make_request: Make) -> None:
    """By the names of jobs: no file of the factory's says which are its own."""
    first = start_backend("night", "m1")
    jobs = first.submit(make_request(), 2)
    start_backend("day", "m1").submit(make_request(), 1)
    start_backend("night", "m2").submit(make_request(), 1)
    again = start_backend("night", "m1")
    assert {state.job for state in again.query()} == set(jobs)
    assert {state.ticket for state in again.query()} == {"f-1"}
    assert len(again.find()) == 4


def test_a_template_of_the_user_s_takes_the_place_of_ours(start_backend: Start, make_request: Make, listing: Any, tmp_path: Path) -> None:
    """It may extend ours; names that there are not are told."""
    own = tmp_path / "own.sh.j2"
    own.write_text('{% extends "slurm.sh.j2" %}{% block launch %}echo "before it"\n{{ super() }}{% endblock %}')
    backend = start_backend(template=own)
    [job] = backend.submit(make_request("print('itself')"), 1)
    listing(backend).until(job, Listed.ENDED)
    assert backend.tail(job) == "before it\nitself"
    own.write_text("#!/bin/sh\n{{ patrition }}\n")
    with pytest.raises(UsageError, match=r"own.sh.j2: 'patrition' is undefined"):
        backend.submit(make_request(), 1)


def test_a_dry_run_is_what_is_submitted(start_backend: Start, make_request: Make, slurm: SlurmCluster, listing: Any) -> None:
    """What `describe` prints can be pasted into a shell, and is then a pilot like any other."""
    backend = start_backend()
    text = backend.describe(make_request("print('pasted')"), 1)
    ran = slurm.run("sh", input=text)
    job = JobId(ran.stdout.strip())
    listing(backend).until(job, Listed.ENDED)
    assert backend.tail(job) == "pasted"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"partition": "a\n#SBATCH --uid=0"}, "is not what sbatch takes for --partition"),
        ({"partition": True}, "is not what sbatch takes for --partition"),
        ({"extra_directives": ["echo hello"]}, r"write lines as in a batch script, for example \['--mail-type=END'\]"),
        ({"job_name": "two words"}, "is no name for jobs"),
        ({"template": "/no/such/file"}, "there is no such file"),
        ({"query_interval": 0}, "is no time to wait"),
        ({"command_timeout": "soon"}, "is no length of time"),
    ],
)
def test_an_option_that_cannot_be_is_refused_before_anything_is_submitted(options: dict[str, Any], text: str) -> None:
    """A line break in a value would be a line of the batch script."""
    with pytest.raises(UsageError, match=text):
        SlurmBackend(**options)


def test_a_machine_without_slurm_s_commands_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The factory does not start, rather than pause later."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="this machine has no sbatch and no squeue and no scancel: start the factory where jobs"):
        SlurmBackend().open(Tag("f"), tmp_path, lambda: None)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="who is not root cannot be somebody else")
def test_pilots_in_a_hidden_partition_are_seen_by_who_submitted_them() -> None:
    """Slurm hides jobs there from everybody but root."""
    with SlurmCluster(nodes=1) as cluster:
        cluster.folder.chmod(0o755)
        cluster.run("scontrol", "update", "PartitionName=high", "Hidden=YES")

        def rows(*command: str, script: str | None = None) -> list[str]:
            asked = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command)
            return cluster.run(*asked, input=script).stdout.splitlines()

        [job] = rows("sbatch", "--parsable", "--output=/dev/null", "-p", "high", "--job-name=windlass:f:m:t", script="#!/bin/sh\nsleep 9\n")
        words = slurm_words.query_words("")
        assert [row.state.job for row in slurm_words.read_rows("\n".join(rows(*words)), "windlass")] == [job]
        assert len(rows(*(word for word in words if word != "--all"))) == 1, "the header; or nothing is hidden here"


# ---------------------------------------------------------------- the command line


def test_a_probe_finds_a_wrong_partition_at_once(slurm: SlurmCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """One job is submitted, held, and removed; a refusal is the exit status and the text."""
    assert main(["factory", "dry-run", "slurm", "--probe", "--partition", "high", "--cores", "2"]) == 0
    out = capsys.readouterr().out
    assert "#SBATCH --cpus-per-task=2" in out
    assert "probe: slurm accepted one such pilot as job" in out
    assert slurm.run("squeue", "-h", "-o", "%i").stdout == ""
    assert main(["factory", "dry-run", "slurm", "--probe", "--partition", "nosuch"]) == 1
    assert "Invalid partition name specified" in capsys.readouterr().err


def test_orphans_are_listed_and_removed_and_the_pilots_of_running_managers_are_not(
    start_backend: Start, make_request: Make, manager: windlass.Manager, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a manager that was killed left in the queue would take its place there days later. One that is not known here may run."""
    with windlass.Manager(name="gone") as gone:
        (gone.pilot_file.parent / "pilots" / "old").mkdir(parents=True)
    (manager.pilot_file.parent / "pilots" / "new").mkdir(parents=True)
    later = {"extra_directives": ["--begin=now+1hour"]}
    [orphan] = start_backend("old", "gone", **later).submit(make_request(), 1)
    [other] = start_backend("old", "elsewhere", **later).submit(make_request(), 1)
    [kept] = start_backend("new", manager.name).submit(make_request(), 1)
    assert main(["factory", "clean", "slurm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [orphan, "queued", "old", "gone", "(ended)"]
    assert lines[2].split() == [other, "queued", "old", "elsewhere", "(unknown)"]
    assert lines[3] == "1 orphan: nothing is removed; add --remove to end these; 1 pilot of running managers is left alone"
    assert main(["factory", "clean", "slurm", "--remove", "--json"]) == 0
    rows = {row["job"]: row for row in json.loads(capsys.readouterr().out)["pilots"]}
    assert {job: (row["manager_is"], row["removed"]) for job, row in rows.items()} == {
        orphan: ("ended", True),
        other: ("unknown", False),
        kept: ("running", False),
    }
    assert main(["factory", "clean", "slurm", "--remove", "--manager", "elsewhere"]) == 0
    assert "1 orphan: removed" in capsys.readouterr().out
    assert main(["factory", "clean", "slurm"]) == 0
    assert "no orphans in slurm" in capsys.readouterr().out
    assert main(["factory", "clean", "local"]) == 2
    assert main(["factory", "clean", "slurm", "--cores", "2"]) == 2


def test_a_refused_probe_leaves_nothing(start_backend: Start, make_request: Make) -> None:
    backend = start_backend(constraint="purple")
    with pytest.raises(Rejected, match="Invalid feature specification"):
        backend.probe(make_request())


def test_shellcheck_has_nothing_against_the_script(start_backend: Start, make_request: Make) -> None:
    """The template is a shell script that people read and change."""
    for options, changes in (({}, {}), ({"clusters": "a,b"}, {"nodes": 2, "setup": ("module load x",)})):
        backend = SlurmBackend(**options)  # type: ignore[arg-type]
        text = backend.describe(make_request("print(1)", **changes), 2)
        script = text.partition("\n")[2].rpartition("\nEND OF SCRIPT")[0]
        try:
            # What is between single quotes is for the shell on each of several nodes.
            words = ["shellcheck", "--exclude=SC2016", "-"]
            ran = subprocess.run(words, input=script, capture_output=True, text=True, timeout=30, check=False)
        except FileNotFoundError:
            pytest.skip("shellcheck is not here")
        assert ran.returncode == 0, ran.stdout


def test_an_answer_is_one_by_its_header_whatever_is_said_beside_it(
    start_backend: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue ends with 0 after some errors: as it was recorded, ``squeue -u nosuchuser`` does. Others say nothing of the answer."""
    squeue = shutil.which("squeue")
    backend = start_backend("errors")
    assert backend.query() == []
    with monkeypatch.context() as patch:
        stand_in = tmp_path / "squeue"
        stand_in.write_text("#!/bin/sh\necho 'squeue: error: Invalid user: nosuchuser' >&2\n")
        stand_in.chmod(0o755)
        patch.setitem(backend._env, "PATH", f"{tmp_path}:/usr/bin:/bin")  # pyright: ignore[reportPrivateUsage]
        patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(Unreachable, match="Invalid user"):
            backend.query()
        noise = "squeue: error: Ignoring obsolete FastSchedule=1 option. Please remove from your configuration."
        stand_in.write_text(f"#!/bin/sh\necho '{noise}' >&2\nexec {squeue} \"$@\"\n")
        assert backend.query() == []
