"""Descriptors: which are in use, and by what."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def run_without_streams(text: str) -> None:
    """A program whose descriptors 0 to 2 are closed; its exit status says whether all went well."""
    program = f"import os\nfrom windlass import descriptors\nos.closerange(0, 3)\n{textwrap.dedent(text)}"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


@pytest.mark.parametrize("quicker", [1, 2, 3])
def test_no_standard_descriptor_is_closed_again_though_threads_come_at_once(quicker: int) -> None:
    """One that another thread had seen in use was, and a socket of that thread's got its number."""
    run_without_streams(f"""
        closed, close, open_ = [], os.close, os.open

        def opened(*arguments):
            os.open = open_
            for number in range({quicker}):  # by another thread
                assert open_(os.devnull, os.O_RDWR) == number
            return open_(*arguments)

        os.open, os.close = opened, lambda number: (closed.append(number), close(number))
        descriptors.occupy_standard()
        assert closed == [3], closed
        assert {{os.readlink(f"/proc/self/fd/{{number}}") for number in range(3)}} == {{os.devnull}}
    """)


@pytest.mark.parametrize("error", ["FileNotFoundError", "OSError"])
def test_where_there_is_no_dev_null_the_program_goes_on(error: str) -> None:
    """As in a chroot: Manager() ended with an OSError."""
    run_without_streams(f"""
        def opened(*arguments):
            raise {error}("none to be had")

        os.open = opened
        descriptors.occupy_standard()
    """)


def test_the_file_server_of_standard_output_is_not_asked() -> None:
    """One that hangs held Manager() up."""
    run_without_streams("""
        descriptors.occupy_standard()
        del os.fstat
        descriptors.occupy_standard()
    """)
