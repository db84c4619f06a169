"""Where keys are, and where they are not: a real manager, factory, pilot, library and slots are searched while they run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from windlass import Executor, Factory, Manager

MINE = os.getuid()
#: Whoever this is, it is not who runs Windlass.
NOBODY = 65534
FOLDERS = ("/tmp", "/dev/shm", os.environ.get("TMPDIR", "/tmp"))


def what_a_call_sees() -> dict[str, str]:
    """In a slot."""
    with open("/proc/self/cmdline", encoding="utf-8", errors="replace") as words:
        return {"environ": repr(dict(os.environ)), "words": words.read(), "tmp": os.environ["TMPDIR"]}


def size_of(path: Any) -> int:
    return int(path.stat().st_size)


class Run:
    """Something that runs, and all that is known of it."""

    def __init__(self, manager: Manager, seen: dict[str, str]) -> None:
        self.manager, self.seen = manager, seen
        self.state = manager.connection_file.parent
        self.worker: int = manager.status()["workers"][0]["pid"]
        #: What everybody can see: the stores of both, and the worker's scratch folder.
        self.folders = [self._store("manager", os.getpid()), self._store("worker", self.worker)]
        self.folders += [path for path in Path(seen["tmp"]).resolve().parents if re.match(rf"windlass-(\w+-)?{MINE}-", path.name)]
        assert len(self.folders) == 3
        #: Each line of every private key, and what shows that a peer is on the manager's host.
        self.secrets: dict[str, str] = {(self.folders[0] / ".token").read_text(): "the store's token"}
        for name in ("authority.json", "client.json", "pilot.json"):
            for field, value in json.loads((self.state / name).read_text()).items():
                if "PRIVATE KEY" in str(value):
                    self.secrets |= {line: f"{name}: {field}" for line in value.splitlines() if len(line) > 20 and "-----" not in line}
        assert len(self.secrets) >= 9
        self.secrets["a%20word%20of%20mine"] = "a URL's password"

    def _store(self, kind: str, pid: int) -> Path:
        [found] = {path for folder in FOLDERS for path in Path(folder).glob(f"windlass-{kind}-{MINE}-*-{pid}-*")}
        return found

    def secrets_in(self, text: str) -> list[str]:
        """What of the secrets stands there."""
        return [what for secret, what in self.secrets.items() if secret in text]


@pytest.fixture(scope="module")
def running(nothing_left_running_after_module: None) -> Iterator[Run]:
    """A manager, and a pilot that has run a script of setup lines, has enrolled, and has a warm library; all of them say all they can."""
    with (
        Manager() as manager,
        Factory(manager, "local", cores=1, max_pilots=1, setup=["echo the pilot is set up"], log_level="debug"),
        Executor(None, manager=manager) as pool,
    ):
        seen = pool.submit(what_a_call_sees).result(60)
        file = manager.declare_buffer(os.urandom(1 << 20), "data")
        assert pool.submit(size_of, file).result(60) == 1 << 20  # for which it had to enrol
        url = manager.declare_url("http://me:a%20word%20of%20mine@localhost/data")
        assert "of%20mine" not in repr(url)
        yield Run(manager, seen)


def processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""  # it has ended, or is not a file


def test_no_process_has_a_secret_among_its_words_or_in_its_environment(running: Run) -> None:
    """Anybody on the machine reads the words of all processes; the environment goes to every program that a call starts."""
    assert "windlass.worker" in read(Path(f"/proc/{running.worker}/cmdline"))
    for path in processes():
        for what in ("cmdline", "environ"):
            assert running.secrets_in(read(path / what)) == [], f"{path}/{what} of {read(path / 'cmdline')}"
    for what, text in running.seen.items():
        assert running.secrets_in(text) == [], f"a call sees it in its {what}"


def test_only_three_files_hold_keys_and_only_their_owner_can_read_them(running: Run) -> None:
    """Not the scripts of pilots, nor logs, nor what lies in scratch folders and stores."""
    held: dict[str, int] = {}
    looked = 0
    for folder in (running.state, *running.folders):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                looked += 1
                text = read(path)
                if running.secrets_in(text) or "PRIVATE KEY" in text:
                    held[path.name] = stat.S_IMODE(path.stat().st_mode)
    assert held == {"authority.json": 0o600, "client.json": 0o600, "pilot.json": 0o600, ".token": 0o600}
    assert stat.S_IMODE(running.state.stat().st_mode) == 0o700
    assert any(path.suffix == ".sh" for path in running.state.rglob("*")), "the pilot has a script"
    assert any(read(path) for path in running.state.rglob("*.log")), "the pilot has a log"
    assert looked > 5


@pytest.mark.parametrize("words", [["status", "NAME", "--json"], ["pilots", "list", "--manager", "NAME", "--json"]])
def test_what_people_are_shown_has_no_secret(running: Run, words: list[str]) -> None:
    said = shown([running.manager.name if word == "NAME" else word for word in words])
    assert running.manager.name in said
    assert ("http://localhost/data" in said) is (words[0] == "status")
    assert running.secrets_in(said) == []


def shown(words: list[str]) -> str:
    """What the command line says."""
    done = subprocess.run([sys.executable, "-m", "windlass.cli", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("backend", ["slurm", "htcondor"])
def test_batch_scripts_name_the_credential_and_do_not_hold_it(running: Run, backend: str) -> None:
    """Batch systems keep scripts, show them to their admins, and some to everybody. The script is printed as it would be submitted."""
    said = shown(["factory", "dry-run", backend, "--cores", "1", "--walltime", "1h"])
    assert "pilot.json" in said
    assert "client.json" not in said
    assert "authority.json" not in said
    assert running.secrets_in(said) == []


def test_folders_that_everybody_sees_are_private_and_have_names_that_nobody_guesses(running: Run) -> None:
    """64 random bits, and made by `mkdir`, which takes nothing that is there already."""
    for path in running.folders:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert re.search(r"-[0-9a-f]{16}$", path.name), path


def test_sockets_between_worker_and_slots_have_no_name(running: Run) -> None:
    """Socket pairs: nobody can connect to them, whoever he is."""
    names = {line.split()[6]: line.split()[7:] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    links: list[str] = []
    for descriptor in Path(f"/proc/{running.worker}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closed by now
            links.append(os.readlink(descriptor))
    inodes = [found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link)) and found[1] in names]
    assert len(inodes) >= 3
    assert [names[inode] for inode in inodes] == [[]] * len(inodes)


def as_nobody(work: Callable[[], object]) -> str:
    """Do this in a child process as another user: the name of what it raises, or "it worked"."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            work()
            answer = "it worked"
        except BaseException as error:  # noqa: BLE001 - it is what is asked for
            answer = type(error).__name__
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer_of:
        found = answer_of.read()
    os.waitpid(child, 0)
    return found


@pytest.mark.skipif(MINE != 0, reason="only root can become another user")
def test_another_user_of_the_node_comes_to_nothing(running: Run) -> None:
    """Neither into the folders, nor at the credentials, nor into the processes."""
    worker = Path(f"/proc/{running.worker}")
    attempts: dict[str, Callable[[], Any]] = {
        **{f"list {folder}": partial(os.listdir, folder) for folder in running.folders},
        **{f"write in {folder}": partial(os.mkdir, folder / "x") for folder in running.folders},
        "list the state folder": lambda: os.listdir(running.state),
        **{f"read {name}": (running.state / name).read_bytes for name in ("authority.json", "client.json", "pilot.json")},
        "read a worker's memory": (worker / "mem").read_bytes,
        "read a worker's environment": (worker / "environ").read_bytes,
        "take a worker's descriptors": lambda: os.listdir(worker / "fd"),
    }
    assert {what: as_nobody(work) for what, work in attempts.items()} == dict.fromkeys(attempts, "PermissionError")
