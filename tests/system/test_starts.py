"""How programs are started: with what is closed, replaced or packed there, calls run all the same."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipapp
from pathlib import Path

import pytest

import windlass


@pytest.fixture(autouse=True)
def leaves_nothing_running(nothing_left_running_after_module: None) -> None:
    """Looked at after the last test."""


DETACHED = """
import os
import sys

import windlass


def which(number):
    return os.readlink(f"/proc/self/fd/{number}")


with windlass.Executor("local", cores=1) as pool:
    said = [str(pool.submit(abs, -7).result()), *(which(number) for number in range(3))]
with open(sys.argv[1], "w") as file:
    file.write("\\n".join(said))
"""


#: Of its journal's log and lock one would be standard output.
ATTACHED = (
    DETACHED.replace("windlass.Executor(", "windlass.attach(")
    .replace('"local", cores=1', '"home", journal=sys.argv[2]')
    .replace("pool.submit(abs, -7)", "pool.submit_function(abs, (-7,))")
)


def run_detached(closed: str, text: str, folder: Path) -> list[str]:
    """What the program says that is started without these streams."""
    script, told = folder / "detached.py", folder / "told"
    script.write_text(text)
    command = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, str(script), str(told), str(folder / "kept.journal")]
    with open(os.devnull, "r+") as null:
        assert subprocess.run(command, stdin=null, stdout=null, stderr=null, timeout=60).returncode == 0
    return told.read_text().split("\n")


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&- >&-", ">&- 2>&-", "2>&-"])
def test_a_program_without_standard_streams_goes_on(closed: str, tmp_path: Path) -> None:
    """As a daemon has it. None of its descriptors 0 to 2 is a socket or file of ours, which whatever prints would write into."""
    assert run_detached(closed, DETACHED, tmp_path) == ["7", *["/dev/null"] * 3]


def test_one_that_attaches_keeps_its_journal(tmp_path: Path) -> None:
    """What a C library printed was written into the journal, and the next life found that it is none."""
    with windlass.Manager(name="home") as manager, windlass.Factory(manager, "local", cores=1):
        assert run_detached("<&- >&- 2>&-", ATTACHED, tmp_path) == ["7", *["/dev/null"] * 3]


AT_THE_END = """
import threading

import windlass


def work():
    threading.main_thread().join()
    with windlass.Executor("local") as pool:
        pool.submit(abs, -7).result()


threading.Thread(target=work).start()
"""


def test_a_thread_that_begins_when_the_script_has_ended_is_told_to_be_waited_for() -> None:
    """Python waits for such threads, and lets nothing new begin in them that it is to end; its own words are not for users."""
    said = subprocess.run([sys.executable, "-W", "default", "-c", AT_THE_END], capture_output=True, text=True, timeout=60).stderr
    assert not said or "Closed: the program's main thread has ended, and no manager can begin then: " in said  # some Pythons let it
    assert "never awaited" not in said


def test_a_program_that_is_one_zip_archive_brings_its_modules(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "shapes").mkdir(parents=True)
    (source / "shapes" / "__init__.py").write_text("")
    (source / "shapes" / "base.py").write_text("def double(x):\n    return 2 * x\n")
    (source / "shapes" / "area.py").write_text("from .base import double\n\ndef area(x):\n    return double(x) * x\n")
    main = """
        import windlass
        from shapes import area

        def twice(x):
            return 2 * area.area(x)

        with windlass.Executor("local", cores=1) as pool:
            print(pool.submit(twice, 3).result(), pool.submit(area.area, 3).result())
    """
    (source / "__main__.py").write_text(textwrap.dedent(main))
    zipapp.create_archive(source, tmp_path / "program.pyz")
    said = subprocess.run([sys.executable, "program.pyz"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert said.stdout == "36 18\n", said.stderr
