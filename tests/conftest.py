"""What all tests share: managers keep their state in a folder of the test run, and tests can prove that nothing stays behind.

Theory of operation: a process that a test starts, or that one of those starts, inherits the test's mark in its environment, whatever
becomes of its parents; `nothing_left_running` looks for the mark in every process of this user.  Processes that were forked from the
test run without an exec have no mark, but are its children.
"""

from __future__ import annotations

import copyreg
import fcntl
import gc
import hashlib
import importlib.metadata
import importlib.util
import lzma
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

from windlass.testing import SlurmCluster, missing_programs

# The clock of a busy machine says nothing about the program.
settings.register_profile(
    "windlass", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
)
settings.load_profile("windlass")

MARK = "WINDLASS_TEST_MARK"
#: Seconds that processes have to end in after a test. What ends orderly takes a fraction of one.
END_TIMEOUT = 30.0

#: Files, and folders of files, that take long: they are begun first, or the last of them would be waited for alone.  Those that
#: mostly wait, for daemons and for time to pass, are begun in turns with those that compute, so that processors are always busy.
WAITING = ("slurm", "htcondor", "testing", "test_fault_matrix.py", "test_worker_process.py", "test_cli_terminal.py")
COMPUTING = ("test_evaluation.py", "test_benchmarks.py", "test_foreign_tests.py", "system")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    files = list(dict.fromkeys(item.path for item in items))
    place: dict[Path, tuple[int, int]] = {}
    for kind, words in enumerate((WAITING, COMPUTING)):
        them = [file for word in words for file in files if word in (file.name, file.parent.name)]
        place |= {file: (turn, kind) for turn, file in enumerate(them)}
    last = len(files), 0
    items.sort(key=lambda item: place.get(item.path, last))


def pytest_collection_finish() -> None:
    """Thousands of tests are there until the end: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A test run in the background of a shell has Ctrl-C ignored, and all programs that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def state_of_managers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of all managers of this test run, in place of the user's own."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WINDLASS_STATE_DIR", str(folder))
        yield folder


def require_slurm() -> None:
    """Skip where Slurm is not installed; fail where it has to be, which is in CI."""
    missing = missing_programs()
    if missing:
        text = f"real Slurm is not tested: no {', '.join(missing)} here; apt-get install slurmctld slurmd slurm-client munge"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A real Slurm of four nodes for the whole test run. Its tests leave it as it was: up, and without jobs."""
    require_slurm()
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def mounted() -> Iterator[Path]:
    """A small file system in memory."""
    if os.getuid():
        pytest.skip("only root can mount a small file system to fill")
    folder = Path(tempfile.mkdtemp(prefix="windlass-full-"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("root may not mount here")
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.fixture
def as_python_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask, where a test has imported it, changes how exceptions are pickled in the whole process, and loses the text of some."""
    for kind in [kind for kind in copyreg.dispatch_table if issubclass(kind, BaseException)]:
        monkeypatch.delitem(copyreg.dispatch_table, kind)


#: What the packed environment of tests has, beside what Windlass needs itself.
PACKED = {"windlass", "numpy"}


@pytest.fixture(scope="session")
def of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run of tests share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def _environments_are_packed_quickly(of_the_run: Path) -> Iterator[None]:
    """An archive of a third of the size is worth 15 s of a user's time, once, and not of every test's. Nor are equal boots packed again."""
    compress = lzma.compress

    def compress_once(data: bytes, *options: Any, **more: Any) -> bytes:
        kept = of_the_run / f"boot-{hashlib.sha256(data + repr((options, more)).encode()).hexdigest()}"
        if not kept.exists():
            fresh = kept.with_suffix(f".{os.getpid()}")
            fresh.write_bytes(compress(data, *options, **more))
            fresh.rename(kept)
        return kept.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lzma, "compress", compress_once)
        patch.setattr("windlass.environment_boot.LEVEL", 0)
        patch.setattr("windlass.environment_boot.WINDOW", 1 << 18)
        patch.setattr("windlass.environment_archive.LEVEL", 0)
        yield


@pytest.fixture(scope="session")
def packed_environment(of_the_run: Path) -> Path:
    """An archive of the environment in which the tests run, without most of its packages; one for all processes of a run of tests."""
    from windlass import environment
    from windlass.environment_contents import normalized
    from windlass.factory.shipping import NEEDED

    archive = of_the_run / "environment.tar.gz"
    with (of_the_run / "environment.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            kept = PACKED | {normalized(name) for name in NEEDED}
            names = {normalized(one.metadata["Name"]) for one in importlib.metadata.distributions()}
            environment.pack(archive, exclude=names - kept)
    return archive


@pytest.fixture(scope="session")
def shell_without_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shell in which this machine has no Python, and nothing of the environment in which the tests run."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "empty").mkdir()
    hidden = [sys.prefix, sys.base_prefix, str(Path(__file__).parent.parent)]
    hidden = [one for one in hidden if one not in ("/usr", "/usr/local")] + [str(one) for one in Path("/usr/lib").glob("python3*")]
    # all that PATH finds: of a machine with several, the tests run on one
    programs = {str(one.resolve()) for folder in {*os.get_exec_path(), "/usr/bin"} for one in Path(folder).glob("python3*")}
    lines = [f"mount --bind {shlex.quote(str(folder / 'empty'))} {shlex.quote(one)}" for one in hidden]
    lines += [f"[ ! -e {shlex.quote(one)} ] || mount --bind /dev/null {shlex.quote(one)}" for one in sorted(programs)]
    inner = "\n".join(["set -e", *lines, "cd /", "if python3 -c pass 2>/dev/null; then exit 9; fi", 'exec /bin/sh "$@"'])
    shell = folder / "shell"
    shell.write_text(f'#!/bin/sh\nexec unshare -rm /bin/sh -c {shlex.quote(inner)} sh "$@"\n')
    shell.chmod(0o755)
    tried = subprocess.run([shell, "-c", "true"], check=False, capture_output=True, text=True)
    assert tried.returncode != 9, f"a Python is left in PATH ({os.environ['PATH']}), and would be found by what must do without"
    if tried.returncode:
        pytest.skip(f"this machine gives no mount namespace: {tried.stderr.strip()}")
    return shell


#: Tests Apptainer itself, where it is installed.
APPTAINER_SWITCH = "WINDLASS_TEST_APPTAINER"
#: What an image must have beside a pack: the C library, which is a node's own there.
C_LIBRARY = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2", "libnss_dns.so.2")


@pytest.fixture(scope="session")
def apptainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program ``apptainer``, which pilots have on PATH after a line of setup=.

    It is a stand-in where ``WINDLASS_TEST_APPTAINER`` does not say that there is a real one.
    """
    if os.environ.get(APPTAINER_SWITCH):
        real = shutil.which("apptainer")
        assert real is not None, f"{APPTAINER_SWITCH} is set, and there is no apptainer here"
        return Path(real).parent
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("the stand-in for Apptainer needs root, and a mount namespace")
    folder = tmp_path_factory.mktemp("apptainer") / "bin"
    folder.mkdir()
    program = folder / "apptainer"
    standin = Path(__file__).with_name("apptainer_standin.py")
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I {shlex.quote(str(standin))} "$@"\n')
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory, packed_environment: Path) -> Path:
    """An image as a sandbox folder: a shell, a C library, and a Python with Windlass at ``/opt/python``; nothing else."""
    root = tmp_path_factory.mktemp("images") / "image"
    for folder in ("bin", "opt/python", "usr/local/bin", "proc", "sys", "dev", "tmp", ".singularity.d/env"):
        (root / folder).mkdir(parents=True)
    subprocess.run(["tar", "-xzf", packed_environment, "-C", root / "opt/python"], check=True)
    (root / "usr/local/bin/python3").symlink_to("/opt/python/bin/python3")
    (root / ".singularity.d/env/90-environment.sh").write_text("export OF_THE_IMAGE=yes OMP_NUM_THREADS=64\n")
    # So does one that Apptainer has built.
    libs = "/.singularity.d/libs"
    (root / ".singularity.d/env/99-base.sh").write_text(f"export LD_LIBRARY_PATH=${{LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}}{libs}\n")
    needed = subprocess.run(["ldd", "/bin/sh", sys.executable], check=True, capture_output=True, text=True).stdout.split()
    libraries = {Path(word) for word in needed if word.startswith("/") and not word.endswith(":")}
    [libc] = [one for one in libraries if one.name == "libc.so.6"]
    libraries |= {one for name in C_LIBRARY if (one := libc.with_name(name)).exists()}
    for source in (*sorted(libraries), Path("/bin/sh")):
        place = root / source.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)
    return root


@pytest.fixture(scope="session")
def image_file(image: Path) -> Path:
    """The image as a file, which Apptainer has built."""
    if not os.environ.get(APPTAINER_SWITCH):
        pytest.skip(f"the stand-in for Apptainer knows no image files: {APPTAINER_SWITCH}=1 says that there is a real one")
    file = image.with_suffix(".sif")
    # Not compressed: that would take a minute.
    subprocess.run(["apptainer", "build", "--mksquashfs-args", "-noI -noD -noF -noX", file, image], check=True, capture_output=True)
    return file


@pytest.fixture
def served_image(apptainer: Path, image: Path, request: pytest.FixtureRequest) -> dict[str, object]:
    """Options of a pool whose image is served by a process of its own: of Apptainer itself a file, without what its setuid part does."""
    setup = [f"PATH={apptainer}:$PATH"]
    if os.environ.get(APPTAINER_SWITCH):
        return {"container": request.getfixturevalue("image_file"), "container_options": "--userns", "setup": setup}
    return {"container": image, "setup": setup}


CONDOR_SWITCH = "WINDLASS_TEST_HTCONDOR"


def pytest_report_header() -> str:
    """Whoever runs the tests sees which HTCondor they are run on."""
    if os.environ.get(CONDOR_SWITCH):
        return f"HTCondor: a stand-in, and the pool of this machine ({CONDOR_SWITCH} is set)"
    return f"HTCondor: a stand-in only. {CONDOR_SWITCH}=1 tests the pool of this machine as well; CONTRIBUTING.md says how"


def require_condor() -> None:
    """Skip without the switch; with it, whatever is missing is a failure."""
    if not os.environ.get(CONDOR_SWITCH):
        pytest.skip(f"real HTCondor is not tested: {CONDOR_SWITCH}=1 says that this machine has a pool (CONTRIBUTING.md)")
    if os.getuid() == 0:
        pytest.fail("root cannot own jobs of HTCondor; run the tests on a real pool as an ordinary user")
    if importlib.util.find_spec("htcondor2") is None:
        pytest.fail(f"{CONDOR_SWITCH} is set, and HTCondor's bindings are not installed; run  pip install htcondor")


@pytest.fixture
def condor_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Says that a test is for the real pool of this machine. A folder that its nodes see: not /tmp, which each job has for itself."""
    require_condor()
    with tempfile.TemporaryDirectory(prefix="windlass-tests-", dir=Path.home(), ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("WINDLASS_STATE_DIR", str(Path(folder) / "state"))
        yield Path(folder)


@pytest.fixture
def nothing_left_running() -> Iterator[None]:
    """Fails a test after which a process that it started still runs. Ask for it before what is to end first."""
    yield from _proving_the_end()


@pytest.fixture(scope="module")
def nothing_left_running_after_module() -> Iterator[None]:
    """The same for a module whose tests share a manager and its pilots."""
    yield from _proving_the_end()


def _proving_the_end() -> Iterator[None]:
    mark = uuid.uuid4().hex
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        yield
    end = time.monotonic() + END_TIMEOUT
    while (left := _marked(mark, before)) and time.monotonic() < end:
        time.sleep(0.02)
    for process in left:
        process.kill()
    assert not left, f"still running {END_TIMEOUT:g} s after the test: {[_words(process) for process in left]}"


def _marked(mark: str, before: set[int]) -> list[psutil.Process]:
    wanted = f"{MARK}={mark}".encode()
    found = {child.pid: child for child in psutil.Process().children(recursive=True) if child.pid not in before}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = psutil.Process(int(folder.name))
            except (OSError, psutil.NoSuchProcess):
                continue  # ended meanwhile, or another user's
    return [process for process in found.values() if _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # its parent's business
    except psutil.NoSuchProcess:
        return False


def _words(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"{process.pid}: just ended"


# ---------------------------------------------------------------- pages


class Page:
    """A page of the documentation, as what stands in its fences.

    ``text`` after a fence is what that prints. A Python block whose first line is ``# NAME.py`` is what the page says to save under that
    name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: Words after the fence, and what is in it, in order.
        self.blocks = re.findall(r"^```([^\n`]*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)

    def follow(self, mark: str, folder: Path, env: dict[str, str]) -> list[str]:
        """Do in ``folder`` what its marked blocks say: save programs, write ``windlass.toml``, run commands; what each has printed.

        A command that fails, or prints something else than the page says, fails the test.
        """
        printed: list[str] = []
        for here, (said, code) in enumerate(self.blocks):
            words = said.split()
            if words[1:] != [mark]:
                continue
            if words[0] == "sh":
                ran = subprocess.run(
                    ["sh", "-e", "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=110
                )
                assert ran.returncode == 0, f"{code}{ran.stdout}{ran.stderr}"
                after = self.blocks[here + 1] if here + 1 < len(self.blocks) else ("", "")
                assert after[0] != "text" or ran.stdout == after[1], code + ran.stderr
                printed.append(ran.stdout)
            elif words[0] == "toml":
                with (folder / "windlass.toml").open("a") as config:
                    config.write(code)
            else:
                name = code.partition("\n")[0].removeprefix("# ")
                assert name.endswith(".py"), code
                (folder / name).write_text(code)
        return printed


@pytest.fixture(scope="session")
def page() -> type[Page]:
    """``page(PATH)``: the fences of a page."""
    return Page
