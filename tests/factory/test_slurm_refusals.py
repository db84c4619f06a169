"""What the Slurm backend does about refusals of sbatch that another command has to explain; Slurm's commands are the test's."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from windlass.errors import OverLimit, Rejected, Unreachable
from windlass.factory import slurm, slurm_words
from windlass.factory.backend import NotNow, NotSent, PilotRequest, Tag
from windlass.factory.commands import Ran
from windlass.factory.slurm import SlurmBackend
from windlass.messages import PoolName, Resources

REQUEST = PilotRequest(ticket="f-1", pool=PoolName("p"), command=("worker",), resources=Resources(1.0), walltime=600.0)
NO_PARTITION = Ran(1, "", "sbatch: error: Batch job submission failed: Required partition not available (inactive or drain)\n")
SILENCE = Ran(1, "", "slurm_load_partitions: Unable to contact slurm controller (connect failure)\n")
HEADER = "JOBID|STATE|REASON|NODELIST|EXIT_CODE|RESTART_|PARTITION|PRIORITY|NAME|\n"

Answer = Callable[[Sequence[str], str], Ran]


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SlurmBackend]:
    """Makes a backend whose commands are answered by a function of the command and its input."""

    def make(answer: Answer, *, partition: str = "", extra_directives: str = "") -> SlurmBackend:
        def run(command: Sequence[str], *, text: str = "", **_: object) -> Ran:
            return answer(command, text)

        monkeypatch.setattr(slurm, "run_command", run)
        monkeypatch.setattr(SlurmBackend, "require_commands", staticmethod(lambda: None))
        backend = SlurmBackend(partition=partition, extra_directives=extra_directives)
        backend.open(Tag("f", "m"), tmp_path, lambda: None)
        return backend

    return make


@pytest.mark.parametrize(
    ("partition", "told", "kind"),
    [
        ("long", Ran(0, "short*|up\nlong|drain\n", ""), NotNow),
        ("long,gpu", Ran(0, "short*|up\nlong|inact\ngpu|drain\n", ""), NotNow),
        ("", Ran(0, "short*|inact\nlong|up\n", ""), NotNow),
        ("long", SILENCE, NotNow),
        ("short,long", Ran(0, "short*|up\nlong|drain\n", ""), Rejected),
        # A plugin of the site chose the one that is drained.
        ("", Ran(0, "short*|up\nlong|drain\n", ""), NotNow),
        ("", Ran(0, "short*|up\nlong|up\n", ""), Rejected),
        ("long", Ran(0, "short*|up\n", ""), NotNow),
        ("long", Ran(1, "", "sinfo: error: you may not see this"), NotNow),
        ("", Ran(0, "", ""), NotNow),
    ],
)
def test_that_no_partition_takes_a_job_is_waited_for_unless_it_is_known_to_be_open(
    answering: Callable[..., SlurmBackend], partition: str, told: Ran, kind: type[Exception]
) -> None:
    """Slurm says the same of a job that no partition of several would ever take, and so do plugins of sites: that would be waited for in
    vain."""

    def answer(command: Sequence[str], text: str) -> Ran:
        return told if command[0] == "sinfo" else NO_PARTITION

    backend = answering(answer, partition=partition)
    with pytest.raises(Rejected, match="Required partition not available") as refused:
        backend.submit(REQUEST, 1)
    assert type(refused.value) is kind


def test_a_partition_that_the_pool_s_own_lines_name_is_the_one_that_is_looked_at(answering: Callable[..., SlurmBackend]) -> None:
    state = "drain"

    def answer(command: Sequence[str], text: str) -> Ran:
        return Ran(0, f"short*|up\nlong|{state}\nold|inact\n", "") if command[0] == "sinfo" else NO_PARTITION

    backend = answering(answer, extra_directives="-p long")
    with pytest.raises(NotNow):
        backend.submit(REQUEST, 1)
    state = "up"
    with pytest.raises(Rejected) as refused:
        backend.submit(REQUEST, 1)
    assert type(refused.value) is Rejected


@pytest.mark.parametrize(
    ("lines", "partition"),
    [
        ("#SBATCH --partition=short\n#SBATCH --account=a", "short"),
        ("#SBATCH --partition='a,b'", "a,b"),
        ("#SBATCH --mem=1G -p gpu --time=5", "gpu"),
        ("#SBATCH -pgpu", "gpu"),
        ("#SBATCH --partition short", "short"),
        ("#SBATCH --part=short", "short"),
        ("#SBATCH --partition=short\n#SBATCH -p long", "long"),
        ("#SBATCH --parsable\necho -p long", ""),
        ("# a\n\n#SBATCH -p short\ncat <<END >next.sh\n#SBATCH -p long\nEND", "short"),
        ("  # a\n#SBATCH -p short", "short"),
    ],
)
def test_the_partition_is_what_the_lines_of_the_script_say(lines: str, partition: str) -> None:
    assert slurm_words.partition_of(f"#!/bin/sh\n{lines}\n") == partition


def test_partitions_are_asked_for_in_the_clusters_that_pilots_go_to() -> None:
    assert "--clusters=a,b" in slurm_words.partitions_words("a,b")
    assert not slurm_words.are_open("CLUSTER: a\nlong|drain\n\nCLUSTER: b\nlong|inact\n", "long")
    assert slurm_words.are_open("CLUSTER: a\nlong|drain\n\nCLUSTER: b\nlong|up\n", "long")


LOADER = "sbatch: error while loading shared libraries: libslurmfull.so: cannot open shared object file: No such file or directory\n"


@pytest.mark.parametrize(
    ("became", "told"),
    [
        (Ran(-9, "", ""), "sbatch was killed by signal 9"),
        (Ran(-7, "", "sbatch: lua: something\n"), "sbatch was killed by signal 7: lua: something"),
        (Ran(127, "", LOADER), "sbatch could not be started: error while loading shared libraries"),
        (Ran(126, "", ""), "sbatch could not be started: sbatch ended with exit status 126 and said nothing"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), "cannot start sbatch: No such file or directory"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "cannot start sbatch: "),
    ],
)
def test_what_befalls_sbatch_itself_is_no_refusal(answering: Callable[..., SlurmBackend], became: Ran | OSError, told: str) -> None:
    """A pool would be paused for it, and its calls end: when a login node kills what takes memory, or gets another version of Slurm."""

    def answer(command: Sequence[str], text: str) -> Ran:
        if isinstance(became, OSError):
            raise became
        return became

    with pytest.raises(Unreachable, match=told):
        answering(answer).submit(REQUEST, 1)


def test_what_is_asked_about_a_refusal_leaves_nothing_unsure(answering: Callable[..., SlurmBackend]) -> None:
    """It is known that no job was made."""

    def answer(command: Sequence[str], text: str) -> Ran:
        refused = "sbatch: error: Batch job submission failed: Invalid node name specified\n"
        return Ran(1, "", refused) if command[0] == "sbatch" else Ran(None, "", "")

    with pytest.raises(NotSent, match="sinfo gave no answer in time"):
        answering(answer).submit(replace(REQUEST, avoid=("laptop",)), 1)


@pytest.mark.parametrize("status", [-9, None, 1])
def test_a_job_that_sbatch_has_named_is_there_whatever_becomes_of_sbatch_then(
    answering: Callable[..., SlurmBackend], status: int | None
) -> None:
    """Also where it is a wrapper of the site's that fails at what comes after the submission."""

    def answer(command: Sequence[str], text: str) -> Ran:
        return Ran(status, "17\n", "job_log: cannot write\n") if command[0] == "sbatch" else Ran(0, "", "")

    backend = answering(answer)
    assert backend.submit(REQUEST, 2) == ["17_0", "17_1"]
    assert backend.probe(REQUEST) == "17"


class Arrays:
    """Answers of a site that takes arrays up to a size."""

    def __init__(self, most: int, config: str) -> None:
        self.most, self.config = most, config
        self.ran: list[str] = []

    def __call__(self, command: Sequence[str], text: str) -> Ran:
        self.ran.append(command[0])
        if command[0] == "scontrol":
            return Ran(0, self.config, "")
        array = re.search(r"--array=0-(\d+)", text)
        if array and int(array[1]) >= self.most:
            return Ran(1, "", "sbatch: error: Batch job submission failed: Invalid job array specification\n")
        return Ran(0, "17\n", "")


def test_an_array_that_is_larger_than_the_configuration_allows_is_made_smaller_at_once(answering: Callable[..., SlurmBackend]) -> None:
    site = Arrays(10, "MaxArraySize            = 1001\nSchedulerParameters     = defer,max_array_tasks=10\n")
    backend = answering(site)
    assert [len(backend.submit(REQUEST, 32)) for _ in range(2)] == [10, 10]
    assert site.ran == ["sbatch", "scontrol", "sbatch", "sbatch"]


@pytest.mark.parametrize("config", ["MaxArraySize            = 1001\n", ""])
def test_an_array_that_is_refused_and_nothing_says_why_is_a_limit(
    answering: Callable[..., SlurmBackend], monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    """A rule of the site's: half as many are tried by the next command, and as many an hour later, as the rule may have ended."""
    now = 0.0
    monkeypatch.setattr(slurm, "time", SimpleNamespace(monotonic=lambda: now))
    site = Arrays(10, config)
    backend = answering(site)
    for count in (32, 16):
        with pytest.raises(OverLimit, match=f"an array of {count} pilots is refused: .*Invalid job array specification"):
            backend.submit(REQUEST, 32)
    assert site.ran == ["sbatch", "scontrol", "sbatch"]
    assert len(backend.submit(REQUEST, 32)) == 8
    now = 3600.0
    with pytest.raises(OverLimit, match="an array of 32 pilots is refused"):
        backend.submit(REQUEST, 32)
    assert len(backend.submit(REQUEST, 32)) == 8, "it is known what does"
    now = 7200.0
    site.most = 1000
    assert len(backend.submit(REQUEST, 32)) == 32


def test_what_squeue_complains_of_is_logged_once_although_it_says_when(
    answering: Callable[..., SlurmBackend], caplog: pytest.LogCaptureFixture
) -> None:
    complaints = iter([f"[2026-11-27T10:0{minute}:01] error: obsolete\n" for minute in range(3)])

    def answer(command: Sequence[str], text: str) -> Ran:
        return Ran(0, HEADER, next(complaints))

    backend = answering(answer)
    with caplog.at_level(logging.INFO, "windlass.factory"):
        assert [backend.query() for _ in range(3)] == [[], [], []]
    assert caplog.text.count("squeue answers, and says beside it: ") == 1


def test_what_an_old_answer_cannot_have_is_ended_all_the_same(answering: Callable[..., SlurmBackend]) -> None:
    """Sites have wrappers of squeue that answer from what it said minutes ago."""
    ran: list[tuple[str, ...]] = []

    def answer(command: Sequence[str], text: str) -> Ran:
        ran.append(tuple(command))
        return Ran(0, {"sbatch": "17\n", "squeue": HEADER}.get(command[0], ""), "")

    backend = answering(answer)
    backend.submit(REQUEST, 1)
    assert backend.query() == []
    backend.cancel_all()
    assert ran[-1] == ("scancel", "17")


def test_what_was_cancelled_or_is_long_past_is_not_ended_once_more(
    answering: Callable[..., SlurmBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Slurm forgets at once what has ended, each pilot that dies soon is one that no answer has had: for weeks."""
    numbers = iter(range(17, 20))
    ran: list[tuple[str, ...]] = []
    now = 0.0
    monkeypatch.setattr(slurm, "time", SimpleNamespace(monotonic=lambda: now))

    def answer(command: Sequence[str], text: str) -> Ran:
        ran.append(tuple(command))
        return Ran(0, f"{next(numbers)}\n" if command[0] == "sbatch" else {"squeue": HEADER}.get(command[0], ""), "")

    backend = answering(answer)
    backend.submit(REQUEST, 1)
    now = slurm.THOUGHT_OF
    [cancelled] = backend.submit(REQUEST, 1)
    backend.submit(REQUEST, 1)
    backend.cancel([cancelled])
    backend.cancel_all()
    assert ran[-1] == ("scancel", "19")


def test_an_answer_of_squeue_that_may_lack_something_is_none(answering: Callable[..., SlurmBackend]) -> None:
    """Pilots that are not in it would count as gone."""

    def answer(command: Sequence[str], text: str) -> Ran:
        return Ran(0, "rows", "", cut=True)

    with pytest.raises(Unreachable, match="squeue gave no whole answer: it has no end"):
        answering(answer).query()


def test_the_folder_of_a_run_stays_where_a_submission_may_have_happened(answering: Callable[..., SlurmBackend], tmp_path: Path) -> None:
    """Slurm fails a job that finds no folder for its output. Who has asked for nothing, as one whose name is taken, leaves none."""

    def answer(command: Sequence[str], text: str) -> Ran:
        return SILENCE

    answering(answer).close()
    assert not list(tmp_path.iterdir())
    backend = answering(answer)
    with pytest.raises(Unreachable):
        backend.submit(REQUEST, 1)
    backend.close()
    assert len(list(tmp_path.iterdir())) == 1
