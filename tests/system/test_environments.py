"""Environments that travel: a pack of the environment in which the tests run, on a machine that has neither Python nor that environment."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

import windlass
from windlass.errors import WindlassError

StartFactory = Callable[..., windlass.Factory]


def where(number: int) -> tuple[int, str, str, str]:
    """A call that imports numpy: its result, its Python, its numpy, and what the call's programs find."""
    import shutil

    import numpy

    square = int(numpy.dot([number], [number]))
    return square, sys.executable, str(numpy.__file__), str(shutil.which("python3"))


def test_a_pilot_without_python_runs_calls_from_a_pack(
    manager: windlass.Manager, start_factory: StartFactory, packed_environment: Path, shell_without_python: Path, tmp_path: Path
) -> None:
    """Worker, library and call have the interpreter and the packages of the pack, on the node's own disk."""
    start_factory(environment=packed_environment, shell=str(shell_without_python), scratch=str(tmp_path))
    manager.install_library("lib", where)
    square, python, numpy, found = manager.submit(windlass.FunctionCall("lib", "where", 7)).result(timeout=100)
    [unpacked] = tmp_path.glob("windlass-files-*/u3-*/environment")
    assert [one.name[:7] for one in tmp_path.glob("windlass-environments-*/*[!k]")] == ["u3-boot"]
    assert (square, python, found) == (49, f"{unpacked}/bin/python3", f"{unpacked}/bin/python3")
    assert Path(numpy).is_relative_to(unpacked)


def test_two_pilots_share_what_one_unpacks(
    manager: windlass.Manager, start_factory: StartFactory, packed_environment: Path, tmp_path: Path
) -> None:
    """Both start at once, and both serve."""
    start_factory(environment=packed_environment, scratch=str(tmp_path), min_pilots=2, max_pilots=2, cores=1)
    manager.install_library("lib", where)
    futures = [manager.submit(windlass.FunctionCall("lib", "where", number)) for number in range(4)]
    assert len({future.result(timeout=100)[1] for future in futures}) == 1
    [base] = tmp_path.glob("windlass-environments-*")
    assert len(list(base.iterdir())) == 2, "the boot and its lock"
    assert len(list(tmp_path.glob("windlass-files-*/u3-*"))) == 1
    files = {one["name"][:2]: one for one in manager.status()["files"]}
    assert (files["b3"]["source"], files["b3"]["origin_reads"]) == (str(packed_environment), 1)


@pytest.mark.parametrize("what", ["cut", "other", "gone"])
def test_an_archive_that_is_not_what_it_was_is_told_to_who_waits_for_calls(
    manager: windlass.Manager, packed_environment: Path, tmp_path: Path, what: str
) -> None:
    """Cut off, with other bytes, or deleted after the factory began: calls end with the archive's name and what to do."""
    copy = tmp_path / "copy.tar.gz"
    copy.write_bytes(packed_environment.read_bytes())
    factory = windlass.Factory(manager, "local", environment=copy, scratch=str(tmp_path), cores=1)
    if what == "gone":
        copy.unlink()
    else:
        with copy.open("r+b") as file:
            file.truncate(copy.stat().st_size - 1000)
            if what == "other":
                file.seek(0, os.SEEK_END)
                file.write(bytes(1000))
    with factory:
        manager.install_library("lib", where)
        words = (
            r"the environment's archive .*copy\.tar\.gz cannot be had on .*; if it is not what it was when the factory began, pack it again"
        )
        with pytest.raises(WindlassError, match=words):
            manager.submit(windlass.FunctionCall("lib", "where", 1)).result(timeout=100)


def test_a_damaged_boot_is_told_to_who_waits_for_calls(manager: windlass.Manager, packed_environment: Path, tmp_path: Path) -> None:
    """Pool and calls end with the pilot's own words."""
    factory = windlass.Factory(manager, "local", environment=packed_environment, scratch=str(tmp_path), cores=1, max_start_failures=1)
    [boot] = manager.pilot_file.parent.glob("windlass-boot-*.tar.xz")
    with boot.open("r+b") as file:
        file.truncate(boot.stat().st_size - 1000)
    with factory:
        manager.install_library("lib", where)
        with pytest.raises(WindlassError, match=r"the environment's archive .*tar\.xz is damaged, or not the one with which"):
            manager.submit(windlass.FunctionCall("lib", "where", 1)).result(timeout=100)
        assert f"{boot} is damaged" in str(factory.status()["paused"])


def test_the_systems_python_is_packed_as_well(shell_without_python: Path, tmp_path: Path) -> None:
    """Debian's looks for packages in other folders, and has no search path of its own to write over."""
    python = Path("/usr/bin/python3")
    code = "import sys, sysconfig; print(sys.version_info >= (3, 11), sysconfig.get_config_var('EXT_SUFFIX'))"
    known = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout if python.exists() else ""
    if not known.startswith("True") or sysconfig.get_config_var("EXT_SUFFIX") not in known:
        pytest.skip("this system has no Python of the same version of its own")
    packed = windlass.environment.pack(tmp_path, source="/usr")
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["tar", "-xzf", packed, "-C", place], check=True)
    code = "import sys, ssl, ctypes, windlass.worker.main, blake3, cryptography.x509; print(sys.prefix, windlass.__file__)"
    script = f'{place}/bin/python3 -P -c "{code}"'
    ran = subprocess.run([shell_without_python, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    prefix, windlass_file = ran.stdout.split()
    assert prefix == str(place)
    assert windlass_file.startswith(f"{place}/")


def test_scripts_of_a_pack_find_the_python_beside_them(packed_environment: Path, tmp_path: Path) -> None:
    """Wherever it lies, with blanks in its path."""
    place = tmp_path / "some where"
    place.mkdir()
    subprocess.run(["tar", "-xzf", packed_environment, "-C", place], check=True)
    ran = subprocess.run([place / "bin/windlass", "version"], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.startswith(f"Windlass {windlass.__version__}, protocol ")
    code = "import sys, ssl, sqlite3, ctypes; print(sys.prefix, [one for one in sys.path if not one.startswith(sys.prefix)])"
    ran = subprocess.run([place / "bin/python", "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60, cwd="/")
    assert ran.stdout == f"{place} []\n"
