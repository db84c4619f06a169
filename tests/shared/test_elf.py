"""Search paths of programs and libraries, changed in place: the loader itself says whether that worked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from windlass.elf import Elf, NotElf

#: The interpreter of these tests, and a program of the system's that has no search path.
PROGRAMS = [os.path.realpath(sys.executable), os.path.realpath(shutil.which("tar") or "/bin/tar")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_finds_its_libraries_beside_itself(program: str, tmp_path: Path) -> None:
    """With another's search path in the place of its own, or with one where there was none."""
    elf = Elf(Path(program).read_bytes())
    assert elf.set_search("$ORIGIN/../lib")
    for name in ("bin", "lib"):
        (tmp_path / name).mkdir()
    moved = tmp_path / "bin" / "program"
    moved.write_bytes(elf.data)
    moved.chmod(0o755)
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    found = {line.split()[0]: line.split()[2] for line in listed.splitlines() if "=> /" in line}
    name = next(one for one in elf.needed if one != "libc.so.6" and one in found)
    shutil.copy(found[name], tmp_path / "lib" / name)
    listed = subprocess.run(["ldd", moved], capture_output=True, text=True, check=True).stdout
    assert f"{name} => {tmp_path}/bin/../lib/{name}" in listed
    again = Elf(moved.read_bytes())
    assert (again.search, again.hides, again.needed) == (("$ORIGIN/../lib",), False, elf.needed)
    assert subprocess.run([moved, "--version"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_works_without_what_is_for_debuggers(program: str, tmp_path: Path) -> None:
    """And its search path can still be read and changed."""
    data = Path(program).read_bytes()
    elf = Elf(data)
    assert elf.set_search("$ORIGIN/../lib")
    bare = elf.bare()
    assert len(bare) < len(data)
    (tmp_path / "program").write_bytes(bare)
    (tmp_path / "program").chmod(0o755)
    env = {**os.environ, "LD_LIBRARY_PATH": os.path.join(sys.base_prefix, "lib")}
    assert subprocess.run([tmp_path / "program", "--version"], capture_output=True, check=False, env=env).returncode == 0
    assert Elf(bare).search == ("$ORIGIN/../lib",)


def test_what_does_not_fit_changes_nothing() -> None:
    data = Path(PROGRAMS[1]).read_bytes()
    elf = Elf(data)
    assert not elf.set_search("$ORIGIN/" + "x" * 300)
    assert bytes(elf.data) == data


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100), b"\x7fELF\x02\x01" + bytes(10)])
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    with pytest.raises(NotElf):
        Elf(data)


def test_a_file_that_is_cut_off_is_refused_or_read_as_far_as_it_goes() -> None:
    """Never another error: what is packed may be anything."""
    data = Path(PROGRAMS[0]).read_bytes()
    for length in range(0, min(len(data), 20_000), 97):
        try:
            Elf(data[:length])
        except NotElf:
            continue
