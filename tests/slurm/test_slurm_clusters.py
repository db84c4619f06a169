"""Several clusters under one accounting database, as large sites have them: ``clusters=``, accounts, and limits of associations.

The database is real too (MariaDB, slurmdbd); where these are not installed the tests are skipped, and in CI fail.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import windlass
from windlass.errors import OverLimit, Rejected
from windlass.factory.backend import Listed, PilotRequest
from windlass.factory.slurm import SlurmBackend
from windlass.testing import DAEMON_PATH, SlurmCluster, free_ports

Start = Callable[..., SlurmBackend]
Make = Callable[..., PilotRequest]
StartFactory = Callable[..., windlass.Factory]
PROGRAMS = ("slurmdbd", "mariadbd", "mariadb", "mariadb-install-db", "sacctmgr")
PATH = f"{os.environ.get('PATH', '')}:{DAEMON_PATH}"
START_SECONDS = 30.0

DBD = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mysql}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


@contextmanager
def daemon(*command: str, log: Path, env: dict[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """A process that is killed at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**env, "PATH": PATH})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def await_start(what: str, condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        running = process.poll() is None and time.monotonic() < end
        assert running, f"{what}: {log.read_text()[-1000:]}"
        time.sleep(0.05)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def database(folder: Path, port: int) -> Generator[None]:
    """MariaDB, on loopback, with a user for slurmdbd."""
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    data, log, sock = folder / "data", folder / "mariadb.log", folder / "sock"
    made = ["mariadb-install-db", f"--datadir={data}", f"--user={user}", "--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(made, check=True, capture_output=True, env={"PATH": PATH})
    options = [f"--user={user}", f"--port={port}", "--bind-address=127.0.0.1", f"--socket={sock}", f"--pid-file={folder}/pid"]
    small = ["--skip-name-resolve", "--innodb-buffer-pool-size=32M"]
    rights = "create user slurm@'127.0.0.1' identified by 'slurm'; grant all on *.* to slurm@'127.0.0.1'"

    def usable() -> bool:
        words = ["mariadb", "-uroot", "-S", str(sock), "-e", rights]
        return subprocess.run(words, capture_output=True, check=False, env={"PATH": PATH}).returncode == 0

    with daemon("mariadbd", "--no-defaults", f"--datadir={data}", *options, *small, log=log, env={}) as process:
        await_start("the database does not start", usable, process, log)
        yield


@pytest.fixture(scope="module")
def two_clusters(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Clusters ``a`` (given) and ``b``, of one node each; account ``physics`` may have two jobs at a time in all."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if missing:
        text = f"clusters under one database are not tested: no {', '.join(missing)} here; apt-get install slurmdbd mariadb-server-core"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(text)
    folder = tmp_path_factory.mktemp("clusters")
    port, mysql = free_ports(2)
    key = os.urandom(1024)
    for name in ("a", "b", "db"):
        (folder / name).mkdir()
        (folder / name / "munge.key").touch(0o600)
        (folder / name / "munge.key").write_bytes(key)
        (folder / name / "munge.key").chmod(0o400)

    def cluster(name: str) -> SlurmCluster:
        lines = {
            "ClusterName": name,
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": str(port),
            "AccountingStoragePass": f"{folder}/{name}/munge.socket",
            "AccountingStorageEnforce": "associations,limits",
        }
        return SlurmCluster(folder / name, nodes=1, lines=lines)

    a, b = cluster("a"), cluster("b")
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    with ExitStack() as running:
        running.enter_context(database(folder / "db", mysql))
        running.callback(a.close)
        running.callback(b.close)
        a.start_munge()
        b.start_munge()
        conf, log = folder / "a" / "slurmdbd.conf", folder / "slurmdbd.log"
        munge = f"{folder}/a/munge.socket"
        conf.touch(0o600)
        conf.write_text(DBD.format(munge=munge, host=os.uname().nodename, port=port, user=user, folder=folder, mysql=mysql))
        dbd = running.enter_context(daemon("slurmdbd", "-D", log=log, env={"SLURM_CONF": str(a.conf)}))
        await_start("slurmdbd does not start", lambda: listens(port), dbd, log)
        for words in (
            "cluster a,b",
            "account general,physics cluster=a,b",
            f"user {user} account=general,physics defaultaccount=general cluster=a,b",
        ):
            a.run("sacctmgr", "-i", "add", *words.split())
        a.run("sacctmgr", "-i", "modify", "account", "physics", "set", "GrpSubmitJobs=2")
        a.start()
        b.start()
        yield a


@pytest.fixture
def on_a(two_clusters: SlurmCluster, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """Commands speak to cluster ``a``, and know of ``b`` by the database."""
    monkeypatch.setenv("SLURM_CONF", str(two_clusters.conf))
    return two_clusters


def test_pilots_on_another_cluster_are_submitted_seen_and_ended(
    on_a: SlurmCluster, start_backend: Start, make_request: Make, listing: Any
) -> None:
    """Ids of two clusters may be the same, so each carries its cluster's name."""
    backend = start_backend(clusters="b")
    jobs = backend.submit(make_request(), 2)
    assert all(job.endswith("@b") for job in jobs)
    for job in jobs:
        listing(backend).until(job, Listed.RUNNING)
    assert on_a.run("squeue", "-h", "-o", "%i").stdout == "", "nothing on the own cluster"
    backend.cancel(jobs)
    listing(backend).until(jobs[0], Listed.ENDED)


def test_of_several_clusters_slurm_takes_the_one_that_starts_it_first(
    on_a: SlurmCluster, start_backend: Start, make_request: Make, listing: Any
) -> None:
    """And one squeue tells of all of them."""
    backend = start_backend(clusters="a,b")
    [job] = backend.submit(make_request(), 1)
    assert job.partition("@")[2] in ("a", "b")
    listing(backend).until(job, Listed.RUNNING)


def test_calls_run_on_another_cluster(
    on_a: SlurmCluster, manager: windlass.Manager, start_factory: StartFactory, until: Callable[..., None]
) -> None:
    """The pilot itself knows itself by the same word."""

    def cluster() -> str:
        return os.environ["SLURM_CLUSTER_NAME"]

    manager.install_library("lib", cluster)
    factory = start_factory(own={"clusters": "b"}, max_pilots=1)
    assert manager.submit(windlass.FunctionCall("lib", "cluster")).result(timeout=60) == "b"
    until("the factory knows it", lambda: [pilot["phase"] for pilot in factory.pilots()] == ["serving"])


def test_an_account_that_there_is_not_is_a_refusal(on_a: SlurmCluster, start_backend: Start, make_request: Make) -> None:
    """Asking again would not help."""
    with pytest.raises(Rejected, match="Invalid account or account/partition combination specified"):
        start_backend(account="chemistry").submit(make_request(), 1)


def test_a_limit_on_an_accounts_jobs_is_a_limit(on_a: SlurmCluster, start_backend: Start, make_request: Make) -> None:
    """Waiting helps, so it is never a reason to pause."""
    backend = start_backend(account="physics")
    backend.submit(make_request(), 2)
    with pytest.raises(OverLimit, match="Job violates accounting/QOS policy"):
        backend.submit(make_request(), 1)
