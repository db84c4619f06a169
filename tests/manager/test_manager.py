"""`Manager` as a program holds it, in programs of their own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import windlass


def run_program(folder: Path, text: str) -> str:
    """Run a program; what it wrote. It must end well."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["sys.exit(in_the_copy(manager))", "manager.close(); os._exit(in_the_copy(manager))"])
def test_the_end_of_a_forked_copy_of_the_program_takes_nothing_from_it(tmp_path: Path, how: str) -> None:
    """A copy that `os.fork` made has the manager's object and its handlers for the end, but manager and files are the program's. What it
    submits would never be run, so it is refused."""
    written = run_program(
        tmp_path,
        f"""
        import os, sys
        import windlass

        def double(x):
            return 2 * x

        def in_the_copy(manager):
            try:
                manager.submit(windlass.FunctionCall("lib", "double", 1))
            except windlass.Closed as error:
                return 0 if "fork of the program" in str(error) else 4
            return 3

        if __name__ == "__main__":
            with windlass.Manager() as manager, windlass.Factory(manager, "local", cores=1):
                manager.install_library("lib", double)
                large = bytes(300_000)
                assert manager.submit(windlass.FunctionCall("lib", "double", large)).result(30) == 2 * large
                child = os.fork()
                if not child:
                    {how}
                assert os.waitpid(child, 0)[1] == 0
                assert manager.submit(windlass.FunctionCall("lib", "double", large + b"x")).result(30) == 2 * (large + b"x")
                print(manager.connection_file.exists())
        """,
    )
    assert written.split() == ["True"]


def test_a_forked_copy_of_a_killed_program_keeps_nothing_taken_that_its_next_life_needs(tmp_path: Path) -> None:
    """Workers of a process pool outlive a program that is killed. Its name, journal and ports are free all the same."""
    text = """
    import os, signal, sys
    import windlass

    manager = windlass.Manager(journal=sys.argv[1], metrics=0)
    program, metrics = os.getpid(), manager.metrics_url.removesuffix("/metrics").rpartition(":")[2]
    if os.fork():
        signal.pause()
    manager.close()
    print(os.getpid(), manager.port, metrics, flush=True)
    os.kill(program, signal.SIGKILL)
    signal.pause()
    """
    journal = tmp_path / "run.journal"
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(text), journal], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        child, port, metrics = map(int, program.stdout.readline().split())
        try:
            assert program.wait(20) == -signal.SIGKILL
            with windlass.Manager(port, journal=journal, metrics=metrics):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_name_in_use_is_told_as_this_programs_or_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook whose cell is run again is that other program itself; who ended it would lose the session."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path))
    folder = tmp_path / "managers" / "lab"
    program = """
    import windlass

    try:
        windlass.Manager(name="lab")
    except windlass.UsageError as error:
        print(error)
    """
    with windlass.Manager(name="lab"):
        with pytest.raises(windlass.UsageError) as caught:
            windlass.Manager(name="lab")
        assert str(caught.value) == f"manager 'lab' is running already, in this program (state in {folder}): close() it, or go on using it"
        written = run_program(tmp_path, program)
        assert written == f"manager 'lab' is running already (state in {folder}); choose another name, or end that one\n"
        (folder / "lock").write_text("login2")  # as that host's manager has it there
        written = run_program(tmp_path, program)
        assert written == f"manager 'lab' is running already on login2 (state in {folder}); choose another name, or end that one\n"
    with windlass.Manager(name="lab"):
        pass  # it is free again


def test_managers_of_journals_of_one_path_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    """Jobs on two nodes, each with a disk of its own and one home; nobody has chosen a name. Journals that took it from their path before
    it stood in them do, and are told so with their path."""
    journal, elsewhere = tmp_path / "run.journal", tmp_path / "on another node"
    with windlass.Manager(journal=journal) as first:
        journal.rename(elsewhere)
        with windlass.Manager(journal=journal) as second:
            assert first.name != second.name
            assert second.name.startswith("journal-")
    with windlass.Manager(journal=elsewhere) as again:
        assert again.name == first.name
    for folder in (journal, elsewhere):
        (folder / "name").unlink()
    with windlass.Manager(journal=journal) as old:
        journal.rename(tmp_path / "old")
        elsewhere.rename(journal)
        with pytest.raises(windlass.UsageError) as caught:
            windlass.Manager(journal=journal)
        assert str(caught.value) == (
            f"manager {old.name!r}, as journal {journal} calls it, is running already, in this program (state in {old.pilot_file.parent});"
            " choose a name for this one, as in name='night', or end that one"
        )
        with windlass.Manager(journal=journal, name="night"):
            pass  # and nothing holds the journal


@pytest.mark.parametrize("where", ["reads a result", "waits for its thread", "waits for the journal"])
def test_ctrl_c_while_a_manager_closes_ends_one_step_of_it_alone(tmp_path: Path, where: str) -> None:
    """In a notebook the name, the journal and the memory would else be taken until the kernel is started again."""
    written = run_program(
        tmp_path,
        f"""
        import os
        import windlass

        class Result:
            def __init__(self):
                self.data = bytearray(300_000)

            def __setstate__(self, state):
                self.__dict__ = state
                if where == "reads a result" and os.getpid() == pid:
                    raise KeyboardInterrupt

        def interrupted(*words):
            raise KeyboardInterrupt

        if __name__ == "__main__":
            where, pid = {where!r}, os.getpid()
            options = dict(name="lab", journal={str(tmp_path / "run.journal")!r}, state_dir={str(tmp_path / "state")!r})
            manager = windlass.Manager(**options)
            with windlass.Factory(manager, "local", cores=1):
                manager.install_library("lib", Result)
                future = manager.submit(windlass.FunctionCall("lib", "Result"))
                future.wait()
            store = manager._store.path(manager._store.put(b"x").name).parent
            thread = manager._server._thread if where == "waits for its thread" else manager._client.memory.journal._thread
            join = thread.join
            if where != "reads a result":
                thread.join = interrupted
            try:
                manager.close()
            except KeyboardInterrupt:
                print("interrupted")
            join()
            print(store.exists())
            with windlass.Manager(**options):
                print("again")
            try:
                print(type(future.result()).__name__)
            except windlass.Closed as error:
                print(error)
        """,
    )
    gone = "the result is gone, as it had not been read: the manager was closed"
    assert written.splitlines() == ["interrupted", "False", "again", gone if where == "reads a result" else "Result"]


def test_times_of_managers_are_seconds_or_texts() -> None:
    """As all times of options: who has pilots wait for a program for two hours writes that."""
    with (
        windlass.Manager(manager_timeout="2h", reconnect_grace="90s", heartbeat="1s", silence="10s") as manager,
        windlass.attach(manager.connection_file, timeout="1min") as attached,
    ):
        assert attached.status()["manager"]["name"] == manager.name


def test_who_keeps_a_journal_is_told_once_that_commands_are_not_in_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each life runs them again: who has a campaign of them would find out when it was killed."""
    caplog.set_level(logging.WARNING, "windlass.manager")
    with windlass.Manager(journal=tmp_path / "journal") as manager:
        manager.submit_function(abs, (-1,))
        assert caplog.text == ""
        for _ in range(2):
            manager.submit(windlass.Command("true"))
    assert caplog.text.count("is not remembered") == 1
    assert f"journal {tmp_path / 'journal'}: Command('true') is not remembered" in caplog.text
    caplog.clear()
    with windlass.Manager() as manager:
        manager.submit(windlass.Command("true"))
        assert caplog.text == ""
