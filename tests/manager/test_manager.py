"""`Manager` as a program holds it, in programs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


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
