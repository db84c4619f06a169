"""The script's part of ``environment=``: unpacked once per node, by sh alone, whatever happens meanwhile; and what is wrong is told."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, Literal, cast

import pytest

import windlass
from windlass.environment_archive import HEAD, LAYOUT, Head
from windlass.environment_boot import BOOT, BootHead
from windlass.errors import UsageError
from windlass.factory.backend import PilotRequest
from windlass.factory.environment import Environment, read_environment, with_boot
from windlass.factory.launch import pilot_script
from windlass.messages import PoolName, Resources

#: Stands for an interpreter: starts, and says what it was started with.
PYTHON: Final = b"""#!/bin/sh
[ "$1" != -I ] || exit 0
echo "$WINDLASS_ENVIRONMENT ${PYTHONPATH:-none} ${PYTHONNOUSERSITE:-none} $*"
[ -z "$HOLD" ] || { echo up >"$HOLD"; exec sleep 600; }
"""
TOOLS: Final = (
    "sh",
    "cat",
    "dd",
    "tee",
    "tar",
    "gzip",
    "sha256sum",
    "find",
    "mkdir",
    "mkfifo",
    "mv",
    "rm",
    "id",
    "df",
    "grep",
    "tr",
    "tail",
    "uname",
)

MakeArchive = Callable[..., Path]
can_mount = (
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0 if shutil.which("unshare") else False
)
needs_mounts = pytest.mark.skipif(not can_mount, reason="this machine gives no mount namespace")


@pytest.fixture
def make_archive(tmp_path: Path) -> MakeArchive:
    """Makes an archive with a stand-in for Python, and ``more`` files."""

    def make(name: str = "env ironment.tar.gz", more: Mapping[str, bytes] | None = None, *, mode: str = "w:gz") -> Path:
        path = tmp_path / "shared" / name
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, cast("Literal['w:gz']", mode)) as tar:
            for member, data in {"bin/python3": PYTHON, **(more or {})}.items():
                info = tarfile.TarInfo(member)
                info.size, info.mode = len(data), 0o755
                tar.addfile(info, io.BytesIO(data))
        return path

    return make


class Node:
    """Runs pilots' scripts on a node with a scratch folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.base = self.scratch / f"windlass-environments-{os.getuid()}"
        self.started: list[subprocess.Popen[str]] = []

    def script(self, environment: Environment, env: tuple[tuple[str, str], ...] = ()) -> Path:
        request = PilotRequest(
            ticket="t", pool=PoolName("p"), command=("python3", "-m", "w"), resources=Resources(1.0), environment=environment, env=env
        )
        path = self.folder / f"script{len(list(self.folder.glob('script*')))}.sh"
        path.write_text(pilot_script(request, pilot="17"))
        return path

    def start(self, script: Path, *, before: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*before, "/bin/sh", str(script)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": "/wrong", **env},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, script: Path, *, before: tuple[str, ...] = (), **env: str) -> tuple[int, str, str]:
        out, err = self.start(script, before=before, **env).communicate(timeout=60)
        return self.started[-1].returncode, out, err

    def unpacked(self) -> list[str]:
        """What is there, but for locks."""
        return sorted(one.name for one in self.base.iterdir() if one.suffix != ".lock")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def counting_path(tmp_path: Path) -> tuple[str, Path]:
    """A PATH whose ``dd`` writes down that the archive is read, and where."""
    tools, reads = tmp_path / "tools", tmp_path / "reads"
    tools.mkdir()
    reads.touch()
    (tools / "dd").write_text(f'#!/bin/sh\necho "${{1#if=}}" >>{str(reads)!r}\nexec {shutil.which("dd")} "$@"\n')
    (tools / "dd").chmod(0o755)
    return f"{tools}:{os.environ['PATH']}", reads


def test_a_pilot_runs_in_the_environment_alone(node: Node, make_archive: MakeArchive) -> None:
    """The worker's Python is the archive's; nothing of the login's environment or of the user's own folder is added."""
    environment = read_environment(make_archive(), str(node.scratch))
    status, out, err = node.run(node.script(environment))
    assert (status, err) == (0, "")
    assert out == f"{node.base}/{environment.name} none 1 -m w --pilot 17\n"
    assert node.base.stat().st_mode & 0o777 == 0o700
    assert node.unpacked() == [environment.name]


@pytest.mark.parametrize(
    "shell", [("dash",), ("bash", "--posix"), ("busybox", "sh"), ("ksh",), ("zsh", "--emulate", "sh")], ids=lambda one: one[0]
)
def test_each_shell_will_do(node: Node, make_archive: MakeArchive, shell: tuple[str, ...]) -> None:
    """That is here: /bin/sh is another one on each system."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    environment = read_environment(make_archive(), str(node.scratch))
    script = node.script(environment)
    for _ in range(2):
        ran = subprocess.run([*shell, script], capture_output=True, text=True, check=False, timeout=60)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == f"{node.base}/{environment.name} none 1 -m w --pilot 17\n"


def test_what_the_pool_sets_holds(node: Node, make_archive: MakeArchive) -> None:
    environment = read_environment(make_archive(), str(node.scratch))
    status, out, _ = node.run(node.script(environment, env=(("PYTHONPATH", "/mine"),)))
    assert (status, out.split()[1]) == (0, "/mine")


def test_pilots_that_start_together_read_the_archive_once(node: Node, make_archive: MakeArchive, counting_path: tuple[str, Path]) -> None:
    """One unpacks, the others wait for it."""
    archive = make_archive(more={f"lib/{number}": os.urandom(5000) for number in range(300)})
    environment = read_environment(archive, str(node.scratch))
    script = node.script(environment)
    pilots = [node.start(script, PATH=counting_path[0]) for _ in range(6)]
    ended = [pilot.communicate(timeout=60) for pilot in pilots]
    assert ended == [(f"{node.base}/{environment.name} none 1 -m w --pilot 17\n", "")] * 6
    assert counting_path[1].read_text() == f"{archive}\n"
    assert node.unpacked() == [environment.name]


def test_a_later_pilot_does_not_read_it_at_all(node: Node, make_archive: MakeArchive) -> None:
    archive = make_archive()
    environment = read_environment(archive, str(node.scratch))
    script = node.script(environment)
    node.run(script)
    archive.unlink()
    assert node.run(script)[0] == 0


def test_without_flock_the_first_to_be_done_gives_the_name(node: Node, make_archive: MakeArchive, tmp_path: Path) -> None:
    """Each unpacks by itself; what is left is one whole environment."""
    tools = tmp_path / "few tools"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    environment = read_environment(make_archive(more={"lib/x": os.urandom(1 << 20)}), str(node.scratch))
    script = node.script(environment)
    pilots = [node.start(script, PATH=str(tools)) for _ in range(4)]
    ended = [pilot.communicate(timeout=60) for pilot in pilots]
    assert ended == [(f"{node.base}/{environment.name} none 1 -m w --pilot 17\n", "")] * 4
    assert node.unpacked() == [environment.name]
    assert sorted(one.name for one in (node.base / environment.name).iterdir()) == [".windlass-ready", "bin", "lib"]


def test_what_a_killed_pilot_left_is_not_used(
    node: Node, make_archive: MakeArchive, counting_path: tuple[str, Path], tmp_path: Path
) -> None:
    """The kernel lets its lock go; the next pilot begins anew and clears up."""
    environment = read_environment(make_archive(), str(node.scratch))
    script = node.script(environment)
    stuck = tmp_path / "stuck"
    os.mkfifo(stuck)
    held = node.script(Environment(str(stuck), environment.name, environment.sha256, 1, 1, "gzip", scratch=str(node.scratch)))
    pilot = node.start(held, PATH=counting_path[0])
    while not counting_path[1].read_text():
        assert pilot.poll() is None
        time.sleep(0.01)
    os.killpg(pilot.pid, signal.SIGKILL)
    pilot.communicate(timeout=20)
    assert [name.rpartition(".")[0] for name in node.unpacked()] == [f"{environment.name}.part"]
    half = node.base / environment.name / "bin"
    half.mkdir(parents=True)
    (half / "python3").write_text("#!/bin/sh\necho half\n")
    assert node.run(script)[:2] == (0, f"{node.base}/{environment.name} none 1 -m w --pilot 17\n")
    assert node.unpacked() == [environment.name]


def test_cleaners_of_old_files_leave_it_alone_while_a_pilot_runs_in_it(node: Node, make_archive: MakeArchive, tmp_path: Path) -> None:
    """They take no folder on which somebody has a lock."""
    up = tmp_path / "up"
    os.mkfifo(up)
    pilot = node.start(node.script(read_environment(make_archive(), str(node.scratch))), HOLD=str(up))
    assert up.read_text() == "up\n"
    base = os.open(node.base, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(base, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        pilot.kill()
        pilot.communicate(timeout=20)
    fcntl.flock(base, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(base)


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _changed(data: bytes) -> bytes:
    return data[:-3000] + bytes([data[-3000] ^ 1]) + data[-2999:]


@pytest.mark.parametrize("damage", [_cut, _changed], ids=["cut off", "one bit"])
def test_a_damaged_archive_is_told(node: Node, make_archive: MakeArchive, damage: Callable[[bytes], bytes]) -> None:
    """Also where tar does not notice; nothing stays behind."""
    archive = make_archive(more={"lib/x": os.urandom(1 << 20)})
    script = node.script(read_environment(archive, str(node.scratch)))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.write_bytes(damage(archive.read_bytes()))
    status, out, err = node.run(script)
    assert (status, out) == (5, "")
    assert err.startswith(
        f"windlass pilot on {os.uname().nodename}: the environment's archive {archive} is damaged, or not the one with which the factory"
        f" began (SHA-256 {digest}): pack it again and start the factory again."
    )
    assert node.unpacked() == []


def test_another_archive_in_its_place_is_not_taken_for_it(node: Node, make_archive: MakeArchive) -> None:
    """A folder that is named by content has that content."""
    script = node.script(read_environment(make_archive(), str(node.scratch)))
    make_archive(more={"lib/other": b"x"})
    status, _, err = node.run(script)
    assert status == 5
    assert "or not the one with which the factory began" in err
    assert node.unpacked() == []


def test_an_archive_that_is_gone_is_told(node: Node, make_archive: MakeArchive) -> None:
    archive = make_archive()
    script = node.script(read_environment(archive, str(node.scratch)))
    archive.unlink()
    status, _, err = node.run(script, LC_ALL="C")
    assert status == 5
    assert f"the environment's archive {archive} cannot be read: dd: " in err
    assert "No such file or directory" in err


def test_a_python_that_does_not_start_is_told(node: Node, make_archive: MakeArchive) -> None:
    """As one that needs a newer C library than the node's."""
    archive = make_archive(more={"bin/python3": b"#!/bin/sh\necho 'version GLIBC_2.99 not found' >&2\nexit 1\n"})
    status, _, err = node.run(node.script(read_environment(archive, str(node.scratch))))
    assert status == 5
    assert err.endswith(f"the Python of the environment {archive} does not start on this node: version GLIBC_2.99 not found\n")
    assert node.unpacked() == []


@pytest.mark.parametrize("wrong", ["link", "open", "file"])
def test_a_folder_that_others_could_write_to_is_not_used(node: Node, make_archive: MakeArchive, tmp_path: Path, wrong: str) -> None:
    """In /tmp anyone may have made it."""
    if wrong == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        node.base.symlink_to(tmp_path / "elsewhere")
    elif wrong == "open":
        node.base.mkdir()
        node.base.chmod(0o770)
    else:
        node.base.write_text("")
    archive = make_archive()
    status, _, err = node.run(node.script(read_environment(archive, str(node.scratch))))
    assert status == 5
    why = "it is not there, or cannot be written" if wrong == "file" else f"{node.base} is not a private folder of this user"
    assert err.endswith(
        f"there is no place for the environment {archive} ({node.scratch}: {why}); scratch= names a folder on a local disk\n"
    )


def test_an_archive_of_conda_pack_is_told_where_it_is(node: Node, make_archive: MakeArchive) -> None:
    """Once, by its own program, in the place where it stays."""
    unpack = b'#!/bin/sh\necho "$0" >>"${0%/*}/../told"\n'
    environment = read_environment(make_archive(more={"bin/conda-unpack": unpack}), str(node.scratch))
    script = node.script(environment)
    assert [node.run(script)[0] for _ in range(2)] == [0, 0]
    assert (node.base / environment.name / "told").read_text() == f"{node.base}/{environment.name}/bin/conda-unpack\n"


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz"), ("w", "tar")])
def test_archives_of_all_kinds_are_unpacked(node: Node, make_archive: MakeArchive, mode: str, kind: str) -> None:
    if shutil.which(kind) is None:
        pytest.skip(f"{kind} is not installed")
    environment = read_environment(make_archive("e.tar", mode=mode), str(node.scratch))
    assert environment.kind == kind
    assert node.run(node.script(environment))[::2] == (0, "")


@pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
def test_an_archive_in_zstd_is_unpacked_where_nodes_have_it(node: Node, make_archive: MakeArchive) -> None:
    plain = make_archive("e.tar", mode="w")
    subprocess.run(["zstd", "-q", plain], check=True)
    environment = read_environment(plain.with_name("e.tar.zst"), str(node.scratch))
    assert environment.kind == "zstd"
    assert node.run(node.script(environment))[::2] == (0, "")


# ---------------------------------------------------------------- disks


def on_disk(node: Node, options: str) -> tuple[str, ...]:
    """Words before a command that give it a scratch folder on a disk of its own."""
    mount = f'mount -t tmpfs -o {options} none {node.scratch} && exec "$@"'
    return ("unshare", "-rm", "/bin/sh", "-c", mount, "sh")


@needs_mounts
def test_a_disk_without_room_is_told_before_the_archive_is_read(
    node: Node, make_archive: MakeArchive, counting_path: tuple[str, Path]
) -> None:
    archive = make_archive(more={"lib/x": os.urandom(4 << 20)})
    script = node.script(read_environment(archive, str(node.scratch)))
    status, _, err = node.run(script, before=on_disk(node, "size=1m"), PATH=counting_path[0])
    assert status == 5
    assert f"there is no place for the environment {archive} ({node.scratch}: " in err
    assert "kB are free, and the environment needs " in err
    assert counting_path[1].read_text() == ""


@needs_mounts
def test_a_disk_that_fills_is_told(node: Node, make_archive: MakeArchive) -> None:
    """An archive that does not say its size may need more than was guessed."""
    archive = make_archive(more={"lib/x": bytes(8 << 20)})
    script = node.script(read_environment(archive, str(node.scratch)))
    status, _, err = node.run(script, before=on_disk(node, "size=2m"))
    assert status == 5
    assert f"({node.scratch}: the environment cannot be unpacked there, with 0 kB left: tar: " in err


@needs_mounts
def test_a_disk_without_programs_is_told(node: Node, make_archive: MakeArchive) -> None:
    status, _, err = node.run(node.script(read_environment(make_archive(), str(node.scratch))), before=on_disk(node, "noexec"))
    assert status == 5
    assert f"({node.scratch}: programs there cannot be started (is it mounted noexec?))" in err


@needs_mounts
def test_unused_environments_make_room(node: Node, make_archive: MakeArchive, tmp_path: Path) -> None:
    """Of two that do not fit together the one that no pilot uses goes; one that a pilot uses stays, and the text says what is needed."""
    scripts = [
        node.script(read_environment(make_archive(f"{number}.tar", more={"lib/x": os.urandom(1 << 20)}, mode="w"), str(node.scratch)))
        for number in range(2)
    ]
    names = [read_environment(tmp_path / "shared" / f"{number}.tar").name for number in range(2)]
    both = tmp_path / "both.sh"
    both.write_text(
        f"sh {scripts[0]} && sh {scripts[1]} && ls {node.base} | grep -v lock\n"
        f"mkfifo {node.scratch}/up\n"
        f"{{ HOLD={node.scratch}/up sh {scripts[1]} & }}\n"
        f"read -r up <{node.scratch}/up\n"
        f"sh {scripts[0]}; echo $?; ls {node.base} | grep -v lock\n"
        "kill $!\n"
    )
    out, err = node.start(both, before=on_disk(node, "size=4m")).communicate(timeout=60)
    lines = [line for line in out.splitlines() if "pilot" not in line]
    assert lines == [names[1], "5", names[1]], (out, err)
    assert "kB are free, and the environment needs" in err


# ---------------------------------------------------------------- what the factory sees


def test_an_environment_that_cannot_be_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no archive")
    with pytest.raises(UsageError, match=r"environment='/absent.tar.gz': No such file or directory; windlass environment pack makes one"):
        read_environment("/absent.tar.gz")
    with pytest.raises(UsageError, match=r"is no archive that tar reads; give one made by windlass environment pack, or by conda-pack"):
        read_environment(text)


def test_an_environment_of_another_python_is_refused(make_archive: MakeArchive) -> None:
    """Before any pilot waits in a queue for it."""
    head = f'{{"layout": {LAYOUT}, "windlass": "0", "python": "3.99.1", "size": 1, "files": 1}}'.encode()
    path = make_archive("other.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(HEAD)
        info.size = len(head)
        tar.addfile(info, io.BytesIO(head))
    with pytest.raises(UsageError, match=r"has Python 3\.99\.1, and this program runs 3\.\d+: functions cannot be sent to it"):
        read_environment(path)


def test_another_windlass_in_it_is_told(make_archive: MakeArchive, caplog: pytest.LogCaptureFixture) -> None:
    """The protocol says whether they understand each other; this is for who forgot to pack again."""
    head = f'{{"layout": {LAYOUT}, "windlass": "0.0.1", "python": "{sys.version_info[0]}.{sys.version_info[1]}.0", "size": 1, "files": 1}}'
    path = make_archive("old.tar.gz")
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(HEAD)
        info.size = len(head)
        tar.addfile(info, io.BytesIO(head.encode()))
    assert read_environment(path).windlass == "0.0.1"
    assert f"has Windlass 0.0.1, and this program {windlass.__version__}: pack it again" in caplog.text


def test_the_name_is_that_of_the_content(make_archive: MakeArchive) -> None:
    """Where the archive lies does not matter."""
    path = make_archive()
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    assert read_environment(path).name == read_environment(copy).name
    assert read_environment(path).name != read_environment(make_archive("other", more={"x": b""})).name


# ---------------------------------------------------------------- the boot in the archive

#: Stands for the interpreter of a boot.
BOOT_PYTHON: Final = PYTHON.replace(b'echo "', b'echo "rest: ${WINDLASS_REST:-none} ')


@pytest.fixture
def with_a_boot(make_archive: MakeArchive, tmp_path: Path) -> Environment:
    """An archive that has one, as a factory reads it whose connection file is in the folder ``state``."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as tar:
        info = tarfile.TarInfo("bin/python3")
        info.size, info.mode = len(BOOT_PYTHON), 0o755
        tar.addfile(info, io.BytesIO(BOOT_PYTHON))
    boot = inner.getvalue()
    told = BootHead(hashlib.sha256(boot).hexdigest(), len(boot), len(BOOT_PYTHON), 1)
    path = tmp_path / "shared" / "env ironment.tar.gz"
    path.parent.mkdir()
    head = Head(LAYOUT, windlass.__version__, ".".join(map(str, sys.version_info[:3])), 1000, 3, told)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {HEAD: json.dumps(asdict(head)).encode(), BOOT: boot, "bin/python3": PYTHON}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / "state").mkdir()
    return with_boot(read_environment(path, str(tmp_path / "scratch")), tmp_path / "state")


def test_a_node_reads_the_boot_alone_and_the_worker_is_told_of_the_rest(
    node: Node, with_a_boot: Environment, counting_path: tuple[str, Path]
) -> None:
    """Names by which the archive is known, its size, and its path."""
    path, reads = counting_path
    assert with_a_boot.boot is not None
    status, out, err = node.run(node.script(with_a_boot), PATH=path)
    assert (status, err) == (0, "")
    rest = f"{with_a_boot.name} {with_a_boot.packed} {Path(with_a_boot.archive).stat().st_size} {with_a_boot.archive}"
    assert out.startswith(f"rest: {rest} {node.base}/{with_a_boot.boot.name} ")
    assert reads.read_text() == f"{with_a_boot.boot.archive}\n"
    assert node.unpacked() == [with_a_boot.boot.name]


def test_a_node_without_xz_reads_the_whole_archive(node: Node, with_a_boot: Environment, tmp_path: Path) -> None:
    """As it does where there is no boot; the worker is told of nothing that is missing."""
    tools = tmp_path / "few"
    tools.mkdir()
    for name in TOOLS:
        (tools / name).symlink_to(cast("str", shutil.which(name)))
    status, out, err = node.run(node.script(with_a_boot), PATH=str(tools))
    assert (status, err) == (0, "")
    assert out.startswith(f"{node.base}/{with_a_boot.name} ")


def test_a_boot_is_written_anew_by_each_factory(with_a_boot: Environment, tmp_path: Path) -> None:
    """A damaged one is not for ever; and a dry run, which has no folder, says where it would be."""
    assert with_a_boot.boot is not None
    place = Path(with_a_boot.boot.archive)
    place.write_bytes(b"damaged")
    assert with_boot(with_a_boot, tmp_path / "state") == with_a_boot
    assert hashlib.sha256(place.read_bytes()).hexdigest() == with_a_boot.boot.sha256
    assert with_boot(with_a_boot, tmp_path / "none").boot is not None
    assert not (tmp_path / "none").exists()


def test_a_damaged_boot_is_told(node: Node, with_a_boot: Environment) -> None:
    """By the pilot, as of the archive."""
    assert with_a_boot.boot is not None
    Path(with_a_boot.boot.archive).write_bytes(b"damaged")
    status, _, err = node.run(node.script(with_a_boot))
    assert status == 5
    assert f"the environment's archive {with_a_boot.boot.archive} is damaged" in err


def test_a_head_that_lies_of_its_boot_is_refused(with_a_boot: Environment, tmp_path: Path) -> None:
    """Its words become names of files."""
    assert with_a_boot.boot_head is not None
    lying = replace(with_a_boot, boot_head=replace(with_a_boot.boot_head, sha256="../../../etc/cron.d/x"))
    with pytest.raises(UsageError, match="is damaged: its boot is not what its head says; pack it again"):
        with_boot(lying, tmp_path / "state")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("scratch", ["", "/scratch"])
def test_shellcheck_finds_nothing(node: Node, make_archive: MakeArchive, scratch: str) -> None:
    subprocess.run(["shellcheck", str(node.script(read_environment(make_archive(), scratch)))], check=True)
