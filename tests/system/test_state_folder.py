"""Where managers keep their keys: refused where others could read them, on a real file system without modes."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.shared.modeless import mounted

from windlass import Factory, FunctionCall, Manager, UsageError, attach
from windlass.cli import main
from windlass.identity import file_system_of, make_private, read_connection_file
from windlass.managers import known_managers


@pytest.fixture
def modeless(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system where chmod has no effect."""
    with mounted(tmp_path / "modeless") as folder:
        yield folder


def test_empty_folders_that_nameless_managers_left_are_removed(tmp_path: Path) -> None:
    """A shared file system keeps what is open, and the folder with it; one that was just made may be another host's."""
    managers = tmp_path / "managers"
    left, fresh, full = (managers / f"m{4_194_304 + number}-00000000" for number in range(3))
    for folder in (left, fresh, full):
        folder.mkdir(parents=True)
    (full / "client.json").touch()
    for folder in (left, full):
        os.utime(folder, (0, 0))
    with Manager(state_dir=tmp_path) as manager:
        own = manager.connection_file.parent
        assert own.parent == managers
    assert sorted(managers.iterdir()) == [fresh, full]
    assert not own.exists()


def test_what_a_shared_file_system_keeps_while_it_is_open_goes_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree = shutil.rmtree

    def keeps_the_folder(folder: Any, *, ignore_errors: bool) -> None:
        rmtree(folder, ignore_errors=ignore_errors)
        if Path(folder).parent.name == "managers":
            Path(folder).mkdir()

    monkeypatch.setattr(shutil, "rmtree", keeps_the_folder)
    with Manager(state_dir=tmp_path) as manager:
        own = manager.connection_file.parent
    monkeypatch.undo()
    assert not own.exists()


def double(number: int) -> int:
    return 2 * number


def test_a_file_system_without_modes_is_refused_with_the_reason_and_both_remedies(modeless: Path) -> None:
    """Keys there are for everybody to read. No file is left that holds one."""
    assert file_system_of(modeless) == "fuse"
    with pytest.raises(UsageError) as caught:
        Manager(name="open", state_dir=modeless / "state")
    assert str(caught.value) == (
        f"{modeless}/state/managers/open is to hold private keys, and its file system (fuse) cannot keep them from other users: "
        "chmod has no effect there (mode 0777 stays). Choose a folder elsewhere with --state-dir, state_dir= or WINDLASS_STATE_DIR; or, if "
        "you know that nobody else can read this one (by an access list, or a share of your own), say so with --trust-state-dir, "
        "trust_state_dir=True or WINDLASS_TRUST_STATE_DIR=1"
    )
    assert not list(modeless.rglob("*.json"))


def test_who_says_that_it_is_private_is_believed(modeless: Path, nothing_left_running: None) -> None:
    """The manager serves; programs must say so as well, and pilots need not: theirs is the file that the manager sent them to."""
    state = modeless / "state"
    with Manager(name="trusted", state_dir=state, trust_state_dir=True) as manager, Factory(manager, "local", cores=1):
        assert stat.S_IMODE(manager.pilot_file.stat().st_mode) == 0o777
        with pytest.raises(UsageError, match=r"client\.json holds a private key and others can read it \(mode 0777\).*--trust-state-dir"):
            attach("trusted", state_dir=state)
        with attach("trusted", state_dir=state, trust_state_dir=True) as attached:
            assert attached.submit_function(double, (21,)).result(30) == 42
        assert [known.name for known in known_managers(state)] == []
        assert [known.name for known in known_managers(state, trust=True)] == ["trusted"]


def test_the_command_line_and_the_environment_say_it_too(
    modeless: Path, nothing_left_running: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--trust-state-dir`` reaches the manager that is started; the variable holds for all."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(modeless))
    assert main(["manager", "start", "shared"]) == 2
    assert "cannot keep them from other users" in capsys.readouterr().err
    assert main(["manager", "start", "shared", "--trust-state-dir"]) == 0
    monkeypatch.setenv("WINDLASS_TRUST_STATE_DIR", "1")
    with attach("shared") as attached:
        assert attached.status()["manager"]["detached"]
    assert main(["manager", "stop", "shared"]) == 0


def test_a_marked_client_file_is_not_believed_by_itself(tmp_path: Path) -> None:
    """Whoever could plant a file could mark it: the mark counts for pilots' files only, which nobody attaches by."""
    with Manager(name="marked", state_dir=tmp_path, trust_state_dir=True) as manager:
        for path in (manager.connection_file, manager.pilot_file):
            path.chmod(0o644)
        assert read_connection_file(manager.pilot_file).trusted
        with pytest.raises(UsageError, match="others can read it"):
            read_connection_file(manager.connection_file)


def test_a_folder_that_is_only_too_open_is_closed(tmp_path: Path) -> None:
    """Where modes work there is nothing to ask."""
    folder = tmp_path / "open"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    make_private(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_killed_managers_of_this_host_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """Folders of other hosts stay, whose locks may not be seen here, and those that a user has named."""
    host = os.uname().nodename
    left = {"m999999999-0123abcd": host, "m999999998-0123abcd": "elsewhere", "m2": host, "m2024-sweep": host, "m999999997-0123abcde": host}
    for name, of in left.items():
        folder = tmp_path / "managers" / name
        folder.mkdir(parents=True)
        (folder / "lock").write_text(of)
    with Manager(state_dir=tmp_path) as manager:
        assert {one.name for one in (tmp_path / "managers").iterdir()} == left.keys() - {"m999999999-0123abcd"} | {manager.name}


def test_a_file_system_without_locks_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not as a manager that is running."""

    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(UsageError, match=r"No locks available.* \(this file system has no locks\)"):
        Manager(state_dir=tmp_path)


def test_an_old_identity_is_replaced_when_its_manager_begins_anew(tmp_path: Path) -> None:
    """Long before its certificates end, and calls run."""
    with Manager(name="kept", state_dir=tmp_path) as manager:
        first = read_connection_file(manager.pilot_file).manager
    with Manager(name="kept", state_dir=tmp_path) as manager:
        assert read_connection_file(manager.pilot_file).manager == first
    path = tmp_path / "managers" / "kept" / "authority.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "made": stored["made"] - 200 * 86400}))
    with Manager(name="kept", state_dir=tmp_path) as manager, Factory(manager, "local", cores=1):
        assert read_connection_file(manager.pilot_file).manager != first
        manager.install_library("lib", double)
        assert manager.submit(FunctionCall("lib", "double", 4)).result(30) == 8
