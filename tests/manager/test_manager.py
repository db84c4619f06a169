"""`Manager` as a program holds it, in programs of their own."""

from __future__ import annotations

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
