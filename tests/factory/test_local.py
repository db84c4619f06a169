"""Pilots as processes of this machine."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from windlass.errors import OverLimit, Rejected
from windlass.factory import processes
from windlass.factory.backend import Cause, JobId, Listed, NoNodeLeft, PilotRequest, PilotState, Tag
from windlass.factory.local import LocalBackend
from windlass.factory.processes import GrowingLog, tail_of, trim_log

MakeRequest = Callable[..., PilotRequest]
Written = Callable[[Path], str]
Gone = Callable[[int], None]


class Local:
    """A backend in service, and waiting for the ends of its pilots."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.woken = threading.Semaphore(0)
        self.backend = LocalBackend()
        self.backend.open(Tag("f", "m"), folder, self.woken.release)

    def ended(self, number: int = 1) -> list[PilotState]:
        states: list[PilotState] = []
        while len(states) < number:
            assert self.woken.acquire(timeout=20), f"no more than {states} ended"
            states += [state for state in self.backend.query() if state.listed is Listed.ENDED]
        return states

    def submit(self, request: PilotRequest, count: int = 1) -> Sequence[JobId]:
        return self.backend.submit(request, count)


@pytest.fixture(params=["", "no pidfds"], ids=["pidfds", "none"])
def local(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    if request.param:  # an older kernel, or a Python that was built for one
        monkeypatch.setattr(processes, "_pidfd", lambda pid: -1)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    local = Local(tmp_path / "pilots")
    yield local
    local.backend.close()


def test_a_pilot_is_told_its_word_and_leads_a_session_of_its_own(local: Local, make_request: MakeRequest, tmp_path: Path) -> None:
    out = tmp_path / "out"
    body = f"import os, sys; open({str(out)!r}, 'w').write(f'{{sys.argv[1:]}} {{os.getsid(0) == os.getpid()}}\\n')"
    [job] = local.submit(make_request(body))
    [state] = local.ended()
    assert out.read_text() == f"['--pilot', '{job}'] True\n"
    assert (state.job, state.ticket, state.cause, state.exit_status) == (job, "t-1", Cause.EXIT, 0)
    assert local.backend.query() == []


def test_the_end_of_a_pilot_wakes_the_factory_and_its_last_words_are_there(local: Local, make_request: MakeRequest) -> None:
    [job] = local.submit(make_request("import sys; print('no such account', file=sys.stderr); sys.exit(7)"))
    [state] = local.ended()
    assert (state.exit_status, state.reason) == (7, "exit status 7")
    assert local.backend.tail(job) == "no such account"


def test_several_pilots_have_several_ids_and_are_listed_together(local: Local, make_request: MakeRequest) -> None:
    jobs = local.submit(make_request("import time; time.sleep(60)"), 3)
    assert len(set(jobs)) == 3
    states = local.backend.query()
    assert {state.job for state in states} == set(jobs)
    assert {(state.listed, state.ticket) for state in states} == {(Listed.RUNNING, "t-1")}
    local.backend.cancel([jobs[0], JobId("unknown")])
    assert [(state.job, state.cause) for state in local.ended()] == [(jobs[0], Cause.SIGNAL)]
    local.backend.cancel_all()
    assert len(local.ended(2)) == 2


def test_what_does_not_listen_is_killed_after_its_grace(local: Local, make_request: MakeRequest, written: Written, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    body = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(ready)!r}, 'w').write('x\\n'); time.sleep(60)"
    [job] = local.submit(make_request(body, grace=0.05))
    written(ready)
    local.backend.cancel([job])
    [state] = local.ended()
    assert state.reason == f"ended by signal {signal.SIGKILL:d}"


@pytest.mark.parametrize("how", ["", ", process_group=0"])
def test_what_a_pilot_left_in_its_group_or_session_is_ended_too(
    local: Local, make_request: MakeRequest, written: Written, gone: Gone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What serves an image has a group of its own."""
    monkeypatch.setattr("windlass.factory.processes.STRAGGLE", 0.05)
    out = tmp_path / "child"
    body = f"import subprocess; p = subprocess.Popen(['sleep', '60']{how}); open({str(out)!r}, 'w').write(f'{{p.pid}}\\n')"
    local.submit(make_request(body))
    local.ended()
    gone(int(written(out)))


def test_ends_are_noticed_though_the_program_is_out_of_descriptors_for_a_while(
    local: Local, make_request: MakeRequest, written: Written, gone: Gone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first has left cannot be looked for then; the thread that looks goes on, and ends it when it can."""
    monkeypatch.setattr("windlass.factory.processes.STRAGGLE", 0.05)
    out = tmp_path / "child"
    body = f"import subprocess; p = subprocess.Popen(['sleep', '60']); open({str(out)!r}, 'w').write(f'{{p.pid}}\\n')"
    list_folder, refused = os.listdir, threading.Semaphore(0)

    def none_left(path: str) -> list[str]:
        if path != "/proc":
            return list_folder(path)
        refused.release()
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("os.listdir", none_left)
        local.submit(make_request(body))
        local.ended()
        for _ in range(4):  # beyond the time that it has
            assert refused.acquire(timeout=20)
    local.submit(make_request(""))
    local.ended()
    gone(int(written(out)))


def test_a_walltime_ends_a_pilot(local: Local, make_request: MakeRequest) -> None:
    local.submit(make_request("import time; time.sleep(60)", walltime=0.05))
    [state] = local.ended()
    assert (state.cause, state.reason) == (Cause.WALLTIME, "its walltime is over")


def test_a_folder_for_logs_that_is_gone_is_not_said_of_the_program(local: Local, make_request: MakeRequest) -> None:
    """As when a state folder is removed under a program that runs: its Python is there."""
    shutil.rmtree(local.folder)
    with pytest.raises(Rejected, match=r"cannot start .*python.*: No such file or directory \(.*\.log\)"):
        local.submit(make_request(""))


def test_a_program_that_is_not_there_is_refused(local: Local, make_request: MakeRequest) -> None:
    with pytest.raises(Rejected, match=r"cannot start /no/such/python: No such file or directory"):
        local.submit(make_request("", command=("/no/such/python",)))
    assert local.backend.query() == []


def test_no_pilot_is_started_on_a_machine_that_programs_have_blocked(local: Local, make_request: MakeRequest) -> None:
    """It would leave as soon as it has come, and the next one as well. Bad nodes are another matter: there is but this one."""
    host = os.uname().nodename
    with pytest.raises(NoNodeLeft, match=f"programs have blocked {host}, and local pilots run nowhere else"):
        local.submit(make_request("", avoid=(host, "n1"), blocked=(host,)))
    local.submit(make_request("", avoid=(host, "n1"), blocked=("n1",)))
    local.ended()


@pytest.mark.parametrize("local", [""], indirect=True)
def test_a_process_that_cannot_be_watched_does_not_stay(
    local: Local, make_request: MakeRequest, gone: Gone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has started, and then there is no descriptor to watch it by: the submission has failed, so nothing of it may run."""
    pids: list[int] = []

    def none_left(pid: int) -> int:
        pids.append(pid)
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("os.pidfd_open", none_left)
        with pytest.raises(OverLimit, match="too many open files"):
            local.submit(make_request("import time; time.sleep(60)"))
    gone(pids[0])
    assert local.backend.query() == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_there_are_no_pidfds_it_is_looked_after_all_the_same(
    tmp_path: Path, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none_here(pid: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.pidfd_open", none_here)
    local = Local(tmp_path / "pilots")
    local.submit(make_request("import sys; sys.exit(3)"))
    [state] = local.ended()
    assert state.exit_status == 3
    local.backend.close()


def test_setup_lines_run_first_in_the_shell_of_the_worker(local: Local, make_request: MakeRequest, tmp_path: Path) -> None:
    """The script, which has the values of ``env=``, is for this user alone."""
    out = tmp_path / "out"
    body = f"import os; open({str(out)!r}, 'w').write(os.environ['A'] + os.environ['B'] + os.environ['C'])"
    local.submit(make_request(body, setup=("A=1", "export A", "B='2 3'; export B # a comment"), env=(("C", "it's"),)))
    [state] = local.ended()
    assert state.exit_status == 0
    assert out.read_text() == "12 3it's"
    (script,) = local.folder.rglob("*.sh")
    assert script.stat().st_mode & 0o777 == 0o700
    assert "it'" in script.read_text()


def test_a_setup_line_that_fails_ends_the_pilot_and_is_named(local: Local, make_request: MakeRequest) -> None:
    [job] = local.submit(make_request("print('not reached')", setup=("true", "(exit 9)", "true")))
    [state] = local.ended()
    assert state.exit_status == 5
    assert local.backend.tail(job) == "windlass pilot: this line of setup= failed with status 9: (exit 9)"


def test_signals_reach_the_worker_through_its_setup(local: Local, make_request: MakeRequest, written: Written, tmp_path: Path) -> None:
    out = tmp_path / "pid"
    [job] = local.submit(
        make_request(f"import os, time; open({str(out)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)", setup=("true",))
    )
    written(out)
    local.backend.cancel([job])
    assert local.ended()[0].cause is Cause.SIGNAL


def test_closing_leaves_no_process(local: Local, make_request: MakeRequest, written: Written, gone: Gone, tmp_path: Path) -> None:
    out = tmp_path / "pid"
    local.submit(make_request(f"import os, time; open({str(out)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"))
    pid = int(written(out))
    local.backend.close()
    gone(pid)
    local.backend.close()


def test_closing_does_not_wait_for_ever_for_what_cannot_be_killed(
    local: Local, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a process that waits for a file server which is away: the kernel ends it when that is back."""
    monkeypatch.setattr(processes, "GIVE_UP", 0.2)
    local.submit(make_request("import time; time.sleep(60)"))
    [process] = local.backend._table._processes.values()  # pyright: ignore[reportPrivateUsage]
    with pytest.MonkeyPatch.context() as unkillable:
        unkillable.setattr(process.popen, "poll", lambda: None)
        local.backend.cancel_all()
        local.backend.close()
    assert f"processes {process.popen.pid} were killed and have not ended" in caplog.text
    assert process.popen.wait(20) == -15


def test_a_description_is_the_command_itself(make_request: MakeRequest) -> None:
    backend = LocalBackend()
    assert backend.describe(make_request("pass"), 2) == f"# 2 x\n{sys.executable} -S -E -c pass --pilot JOB"
    assert "A=1" in backend.describe(make_request("pass", setup=("A=1",)), 1)


def test_of_what_apptainer_says_the_reason_is_told(tmp_path: Path) -> None:
    """Not what it can do without, nor the pages that follow an option which it does not know (as 1.4.5 says them), nor colours."""
    log = tmp_path / "log"
    log.write_text("INFO:    no gocryptfs\nWARNING: group file missing\n\x1b[91mERROR  : no capability\x1b[0m\nFATAL:   no such file\n")
    assert tail_of(log) == "ERROR  : no capability\nFATAL:   no such file"
    log.write_text(
        'Error for command "exec": unknown flag: --x\n\nOptions for exec command:\n\n' + "  -o, --option string   what it is for\n" * 300
    )
    assert tail_of(log) == 'Error for command "exec": unknown flag: --x'
    log.write_text("INFO: all is well\n")
    assert tail_of(log) == "INFO: all is well"


def test_a_log_that_is_cut_while_it_grows_is_read_once(tmp_path: Path) -> None:
    """Whether all was read before, or a part, or less than was cut; and one that somebody has emptied from its beginning."""
    path = tmp_path / "log"
    path.write_text("".join(f"{number}\n" for number in range(1000, 1100)))
    with path.open() as file, path.open("a") as pilot:

        def writes(begin: int, end: int) -> str:
            text = "".join(f"{number}\n" for number in range(begin, end))
            pilot.write(text)
            pilot.flush()
            return text

        file.read()
        log = GrowingLog(file)
        assert log.more() == ""
        trim_log(path, limit=100, kept=100)
        text = writes(1100, 1110)
        assert log.more() == text
        text = writes(1110, 1150)
        trim_log(path, limit=100, kept=250)
        text += writes(1150, 1300)
        assert log.more() == text, "also where it is longer than before"
        assert log.more() == ""
        writes(1300, 1400)
        trim_log(path, limit=100, kept=250)
        assert log.more() == "[windlass: 1286 bytes were cut here]\n" + "".join(f"{number}\n" for number in range(1350, 1400))
        os.truncate(path, 0)
        assert log.more() == ""
        text = writes(1400, 1401)
        assert log.more() == text


def test_a_long_log_is_cut_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 5000 + b"the end\n")
    trim_log(log, limit=1000, kept=8)
    assert log.read_bytes() == b"[windlass: 5000 bytes were cut here]\nthe end\n"
    trim_log(log, limit=1000, kept=8)
    assert len(log.read_bytes()) < 100
    trim_log(tmp_path / "none")
    assert tail_of(tmp_path / "none") == ""
