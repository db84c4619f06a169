"""The script's part of ``container=``: what apptainer is started with, what is checked before and inside; and what cannot be is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from windlass.cli import main
from windlass.cli_factory import pool_option
from windlass.errors import UsageError
from windlass.factory.backend import PilotRequest
from windlass.factory.config import read_configuration
from windlass.factory.container import CHECK, Container, container_of, image_of
from windlass.factory.factory import make_pools
from windlass.factory.htcondor import HTCondorBackend
from windlass.factory.launch import needs_script, pilot_script, request_of
from windlass.factory.pool import PoolConfig

MakePool = Callable[..., PoolConfig]
MakeRequest = Callable[..., PilotRequest]
#: Tells how it was started, a word a line, and ends.
RUNTIME = '#!/bin/sh\necho "${0##*/}"\nprintf "%s\\n" "$@"\n'


class Node:
    """Runs pilots' scripts where there are only the programs given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        for name in ("sh", "uname", "sed"):
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.image = folder / "image.sif"
        self.image.touch()

    def has(self, runtime: str) -> None:
        (self.bin / runtime).write_text(RUNTIME)
        (self.bin / runtime).chmod(0o755)

    def run(self, request: PilotRequest, *, cwd: Path | None = None, **env: str) -> tuple[int, list[str], str]:
        script = self.folder / "script.sh"
        script.write_text(pilot_script(request, pilot="17"))
        environ = {"PATH": str(self.bin), "HOME": "/root", **env}
        ran = subprocess.run(["/bin/sh", script], env=environ, cwd=cwd or "/tmp", capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout.splitlines(), ran.stderr


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def ask(make_request: MakeRequest, node: Node) -> Callable[..., PilotRequest]:
    """A request with the node's image, and changes of it."""

    def make(**changes: Any) -> PilotRequest:
        request = replace(make_request("true"), command=("python3", "-P", "-m", "windlass.worker"))
        return replace(request, container=replace(Container(str(node.image), True), **changes))

    return make


Ask = Callable[..., PilotRequest]


def binds(words: list[str]) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == "--bind"]


def test_apptainer_gets_the_image_and_the_workers_words(node: Node, ask: Ask) -> None:
    node.has("apptainer")
    node.has("singularity")
    status, words, _ = node.run(ask(options=("--bind", "/data:/mnt/data:ro")))
    assert (status, words[:5]) == (0, ["apptainer", "exec", "--bind", "/data:/mnt/data:ro", str(node.image)])
    assert words[5:7] == ["/bin/sh", "-c"]
    assert words[-6:] == ["python3", "-P", "-m", "windlass.worker", "--pilot", "17"]


def test_where_only_singularity_is_there_it_is_taken(node: Node, ask: Ask) -> None:
    node.has("singularity")
    assert node.run(ask())[1][:2] == ["singularity", "exec"]


def test_folders_that_the_worker_needs_are_bound_once_by_their_own_paths(node: Node, ask: Ask, tmp_path: Path) -> None:
    """State folder, scratch, working directory; not those that Apptainer binds by itself, nor the system's, nor what is not there."""
    node.has("apptainer")
    state, scratch, work = tmp_path / "state, of: me", tmp_path / "job 7", tmp_path / "work"
    for folder in (state, scratch, work):
        folder.mkdir()
    request = ask(binds=(str(state), "/not/there", str(scratch)))
    _, words, _ = node.run(request, cwd=work, SLURM_TMPDIR=str(scratch), TMPDIR="/tmp")
    assert binds(words) == [str(scratch), str(work)]
    assert words[words.index("--mount") + 1] == f'type=bind,"src={state}","dst={state}"', "--bind drops the blank"
    assert binds(node.run(request, cwd=Path("/usr/share"))[1])[2:] == []
    assert binds(node.run(ask(), HOME=str(work), cwd=work)[1]) == []


def test_gpus_bring_the_drivers(node: Node, ask: Ask) -> None:
    node.has("apptainer")
    assert "--nv" in node.run(ask(gpus=True))[1] or Path("/dev/kfd").exists()
    assert not {"--nv", "--rocm"} & set(node.run(ask())[1])


def test_variables_of_this_machines_python_stay_outside(node: Node, ask: Ask) -> None:
    """As with an environment: the image is whole. What env= names holds."""
    node.has("apptainer")
    (node.bin / "apptainer").write_text('#!/bin/sh\necho "${PYTHONPATH:-none} $PYTHONNOUSERSITE $A $WINDLASS_CONTAINER"\n')
    _, words, _ = node.run(replace(ask(), env=(("A", "x"),)), PYTHONPATH="/wrong")
    assert words == [f"none 1 x {node.image}"]


def test_a_node_without_apptainer_is_told_with_what_to_load(node: Node, ask: Ask) -> None:
    status, _, said = node.run(ask())
    assert status == 5
    assert said.endswith(
        f": there is neither apptainer nor singularity here to start the image {node.image}: setup= says how it is loaded,"
        " for example setup=['module load apptainer']\n"
    )


def test_an_image_that_the_node_does_not_see_is_told(node: Node, ask: Ask) -> None:
    node.has("apptainer")
    node.image.unlink()
    status, _, said = node.run(ask())
    assert (status, said.partition(": ")[2]) == (5, f"the image {node.image} is not there, or this node does not see it\n")
    status, words, _ = node.run(ask(image="docker://debian:12", is_path=False))
    assert (status, words[2]) == (0, "docker://debian:12")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("gpus", [False, True])
def test_shellcheck_finds_nothing(ask: Ask, tmp_path: Path, gpus: bool) -> None:
    script = tmp_path / "script.sh"
    request = replace(ask(gpus=gpus, options=("--bind", "/data"), binds=("/state", "/scr")), setup=("module load apptainer",))
    script.write_text(pilot_script(request, pilot="17"))
    # What is between single quotes is for the shell in the image.
    subprocess.run(["shellcheck", "--exclude=SC2016", script], check=True)


# ---------------------------------------------------------------- the check


def check(container: Container, *options: str, **env: str) -> tuple[int, str, str]:
    code = "import sys; print(sys.flags.safe_path, *sys.argv[1:])"
    words = [sys.executable, *options, "-c", container.check, "-P", "-c", code, "--pilot", "17"]
    ran = subprocess.run(words, env={"WINDLASS_CONTAINER": "i.sif", **env}, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout, ran.stderr


def test_the_check_becomes_the_worker() -> None:
    assert check(Container("i.sif", True)) == (0, "True --pilot 17\n", "")


def test_another_python_is_refused() -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert check(replace(Container("i.sif", True), python="3.99")) == (
        5,
        "",
        f"windlass pilot: the image i.sif has Python {here} ({sys.executable}), and the factory runs 3.99: functions cannot be sent to it;"
        " give an image with Python 3.99, or name another Python in it with python=\n",
    )


def test_another_protocol_is_refused_with_both_versions() -> None:
    status, _, said = check(replace(Container("i.sif", True), windlass="9.0", protocol=99, oldest=98))
    assert status == 5
    assert said.endswith(
        ", which speaks protocol 1, and the factory is Windlass 9.0 with protocol 99;"
        " put that one into it, as a wheel of its checkout: windlass explain containers\n"
    ), said


def test_an_image_without_windlass_is_refused() -> None:
    status, _, said = check(replace(Container("i.sif", True), windlass="9.0"), "-S")
    assert status == 5
    text = f"windlass pilot: the image i.sif has no Windlass that its {sys.executable} can load (No module named 'windlass'); put"
    assert said == f"{text} Windlass 9.0 into it, as a wheel of its checkout: windlass explain containers\n"


def test_what_lies_in_the_working_folder_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "windlass.py").write_text("raise SystemExit('wrong')")
    monkeypatch.chdir(tmp_path)
    assert check(Container("i.sif", True))[0] == 0


def test_the_check_can_be_read_by_old_pythons() -> None:
    """Nothing newer than Python 3.0, and no quote that a shell's single quotes would end at."""
    assert "'" not in CHECK
    assert 'f"' not in CHECK


# ---------------------------------------------------------------- options


def test_paths_are_made_absolute_and_names_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert image_of("my.sif") == str(tmp_path / "my.sif")
    for name in ("docker://debian:12", "library://a/b", "oras://x/y", "docker-archive:/x.tar", "oci:/x"):
        assert image_of(name) == name


def test_an_image_that_is_not_there_is_refused_here_and_doubted_elsewhere(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    """Nodes may have it on their own disks."""
    with pytest.raises(UsageError, match=r"container='/no\.sif' is not there; give the path of an image \(\.sif\) or of a sandbox folder"):
        container_of(make_pool(container="/no.sif", remote=False), Path("/m/pilot.json"))
    found = container_of(make_pool(container="/no.sif", remote=True, scratch="/s"), Path("/m/pilot.json"))
    assert found is not None
    assert found.binds == ("/m", "/s")
    assert "container='/no.sif' is not on this machine; pilots need it on their nodes, as /no.sif" in caplog.text


def made(word: str, **options: object) -> tuple[Any, PoolConfig]:
    return make_pools(word, options, "f", read_configuration(None, {}))[1][0]


def test_the_worker_runs_the_images_python(tmp_path: Path) -> None:
    for options, python in (({}, "python3"), ({"python": "/opt/py/bin/python"}, "/opt/py/bin/python")):
        _, pool = made("slurm", container=tmp_path, **options)
        request = request_of(pool, Path("/m/pilot.json"))
        assert request.command[:4] == (python, "-P", "-m", "windlass.worker")
        assert needs_script(request)
        assert f"python:     {python} of the image {tmp_path}" in pool.text()


def test_slurm_signals_no_image_that_all_processes_of_its_steps_would_get(tmp_path: Path) -> None:
    """Of several nodes; what serves an image would end by it, and workers drain before their walltime by their own clock."""
    for options, there in (({"container": tmp_path}, True), ({"container": tmp_path, "nodes": 2}, False), ({"nodes": 2}, True)):
        backend, pool = made("slurm", walltime=3600, **options)
        assert ("#SBATCH --signal=" in backend.describe(request_of(pool, Path("/m/pilot.json")), 1)) is there


def test_htcondor_starts_the_image_itself(tmp_path: Path) -> None:
    """Its script runs inside already: it checks, and starts no other program."""
    image = tmp_path / "i.sif"
    image.touch()
    backend, pool = made("htcondor", container=image)
    text = backend.describe(request_of(pool, Path("/m/pilot.json")), 1)
    assert "universe = container\n" in text
    assert f"container_image = {image}\n" in text
    assert "apptainer" not in text
    assert 'exec "$windlass_python" -c "$windlass_check" "$@"' in text
    assert "unset PYTHONHOME PYTHONPATH" not in text, "the image itself may have set them"


@pytest.mark.parametrize(
    ("word", "options", "text"),
    [
        ("slurm", {"container": "a.sif", "environment": "e.tar"}, "container='a.sif' and environment='e.tar' both bring the Python that"),
        ("htcondor", {"container": "a.sif", "container_image": "b.sif"}, "container='a.sif' and container_image='b.sif' both say in which"),
        ("htcondor", {"container": "a.sif", "container_options": "--nv"}, "are for apptainer exec, and HTCondor starts images by itself"),
        ("local", {"container_options": "--nv"}, "container_options='--nv' without an image; give container= as well"),
        ("local", {"container": "a.sif", "container_options": 5}, r"container_options=5 is not a list of words; write for example"),
        ("local", {"container": "a.sif", "container_options": "'"}, 'container_options="\'": No closing quotation'),
        ("local", {"container": "instance://x"}, "container='instance://x' is a running instance, which no other node has"),
    ],
)
def test_what_cannot_be_is_refused(word: str, options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError) as refused:
        made(word, **options)
    assert text in str(refused.value)


def test_a_condor_backend_that_is_made_already_has_its_own_word() -> None:
    with pytest.raises(UsageError, match=r"container='a.sif' of a backend that is made already; give container_image= where it is made"):
        make_pools(HTCondorBackend(), {"container": "a.sif"}, "f", read_configuration(None, {}))


def test_a_template_that_starts_no_container_is_refused(ask: Ask, tmp_path: Path) -> None:
    """The worker would run on the node itself, and nobody would notice."""
    own = tmp_path / "own.j2"
    own.write_text('{% extends "pilot.sh.j2" %}{% block launch %}exec numactl {{ command | words }}{% endblock %}')
    with pytest.raises(UsageError, match=r"template .*own\.j2 starts no container, and the pool has container='.*image\.sif': extend one"):
        pilot_script(ask(), template=str(own), pilot="17")
    own.write_text('{% extends "pilot.sh.j2" %}{% block launch %}ulimit -c 0\n{{ super() }}{% endblock %}')
    assert "ulimit -c 0\nWINDLASS_CONTAINER=" in pilot_script(ask(), template=str(own), pilot="17")


def test_configuration_and_command_line_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "windlass.toml"
    file.write_text('[pools.boxed]\nbackend = "slurm"\ncontainer = "/img.sif"\ncontainer_options = ["--bind", "/my data"]\n')
    assert main(["factory", "config", "show", "boxed", "--config", str(file)]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert "/img.sif" in rows["container"]
    assert "--bind '/my data'" in rows["container_options"]
    words = ["factory", "dry-run", "boxed", "--config", str(file), "--container", "docker://debian:12", "--container-options=--bind /x"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "python:     python3 of the image docker://debian:12, which each node fetches unless it has it" in shown
    assert 'exec "$windlass_runtime" exec "$@" --bind /x "$WINDLASS_CONTAINER" /bin/sh -c' in shown


def test_words_of_several_options_are_put_together() -> None:
    assert pool_option("container_options", ["--bind /a", "--cleanenv"]) == "--bind /a --cleanenv"
