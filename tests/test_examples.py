"""What a newcomer runs: the examples, the README's code, the demo. Each is run as they would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import windlass

ROOT = Path(__file__).resolve().parent.parent
COMMAND = str(Path(sys.executable).with_name("windlass"))
#: Seconds that any of them may take before the test gives up.
PATIENCE = 60


@pytest.fixture
def own_state(nothing_left_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has no other manager; gives the folder to work in."""
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def run(*words: str, folder: Path, quiet: bool = True) -> str:
    """The output of a program that must succeed and, unless it may be loud, write nothing to stderr."""
    ran = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    assert not quiet or ran.stderr == ""
    return ran.stdout


def blocks(path: str) -> list[tuple[str, str]]:
    """Words after the fence and the code, of each Python block of a page."""
    found = re.findall(r"^```python *(.*?)\n(.*?)^```", (ROOT / path).read_text(), re.MULTILINE | re.DOTALL)
    return [(words, code) for words, code in found]


def readme_blocks() -> list[tuple[str, str]]:
    """Those of the README."""
    return blocks("README.md")


def test_the_readme_has_code() -> None:
    """So that the next tests test something."""
    assert [words for words, _ in readme_blocks()] == ["", "slurm", ""]


@pytest.mark.parametrize(("words", "code"), readme_blocks())
def test_code_of_the_readme_runs(words: str, code: str, own_state: Path) -> None:
    """As a script, in an empty folder; the one for Slurm with its backend replaced by ``local``, and nothing else changed."""
    if words == "slurm":
        code, replaced = re.subn(r'Executor\("slurm", [^)]*\)', 'Executor("local")', code)
        assert replaced == 1
        assert code == readme_blocks()[0][1], "the ten lines with Slurm differ from the ten without in more than the backend"
    script = own_state / "script.py"
    script.write_text(code)
    assert run(sys.executable, str(script), folder=own_state).startswith("[")


def test_the_first_code_of_the_readme_is_ten_lines() -> None:
    """As it says; blank lines not counted."""
    (_, code), *_ = readme_blocks()
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_checkpoint_of_the_walltime_page_runs(own_state: Path) -> None:
    """As it stands there: one pilot is enough."""
    [code] = [code for words, code in blocks("docs/walltime.md") if words == "run"]
    (own_state / "script.py").write_text(code)
    assert run(sys.executable, "script.py", folder=own_state).startswith("1.64492")


def test_the_checkpoint_of_the_walltime_page_goes_on_in_the_next_pilot(own_state: Path) -> None:
    """With a walltime of seconds and more steps than fit into it, since each takes its time; nothing else is changed."""
    [code] = [code for words, code in blocks("docs/walltime.md") if words == "run"]
    for old, new in (
        ("import json\n", "import json, time\n"),
        ("        while state[0] < steps:\n", "        while state[0] < steps:\n            time.sleep(0.01)\n"),
        ('walltime="1h", grace="10s"', 'walltime="4s", grace="1s"'),
        (
            "print(pool.submit(basel, 100_000, checkpoint).result())",
            "call = pool.with_options(max_losses=100).submit(basel, 450, checkpoint)",
        ),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    code += "    print(call.result(), len(call.attempts))\n"
    (own_state / "script.py").write_text(code)
    value, attempts = run(sys.executable, "script.py", folder=own_state, quiet=False).split()
    assert value.startswith("1.64271")
    assert int(attempts) >= 1
    assert (own_state / "basel.json").exists()


def test_the_journals_page_runs_as_it_stands_there(own_state: Path) -> None:
    """The first program twice, the second time from its journal; the second prints what two calls gave for three."""
    journal, memoized = (code for _, code in blocks("docs/journal.md") if code.startswith("import windlass\n"))
    (own_state / "script.py").write_text(journal)
    for _ in range(2):
        assert run(sys.executable, "script.py", folder=own_state).strip() == str(sum(number * number for number in range(100)))
    assert (own_state / "run.journal" / "log").stat().st_size > 1000
    (own_state / "script.py").write_text(memoized)
    assert run(sys.executable, "script.py", folder=own_state).count("the weather of monday") == 2


@pytest.mark.parametrize(("page", "seen"), [("docs/commands.md", "3\n"), ("docs/from-taskvine.md", "s success 0 2\n")])
def test_the_pages_of_commands_and_of_taskvine_run_as_they_stand_there(page: str, seen: str, own_state: Path) -> None:
    code = next(code for words, code in blocks(page) if words == "run")
    (own_state / "script.py").write_text(code)
    assert seen in run(sys.executable, "script.py", folder=own_state)
    assert any(own_state.glob("count-s.txt" if "taskvine" in page else "words.gz"))


def test_the_async_page_begins_with_ten_lines_that_run(own_state: Path) -> None:
    """As it stands there."""
    code = blocks("docs/async.md")[0][1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (own_state / "script.py").write_text(code)
    assert run(sys.executable, "script.py", folder=own_state).strip() == str(sum(number * number for number in range(1000)))


def test_the_monitoring_page_begins_with_ten_lines_that_run(own_state: Path) -> None:
    """As it stands there, but for the port, which may be taken here."""
    code = blocks("docs/monitoring.md")[0][1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (own_state / "script.py").write_text(code.replace("9464", str(free_port())))
    shown = run(sys.executable, "script.py", folder=own_state)
    assert shown.startswith("328350\n")
    assert 'windlass_calls_ended_total{outcome="returned"} 100.0' in shown


def test_the_first_function_of_the_walltime_page_can_be_tested_anywhere() -> None:
    """Outside of Windlass nothing ends."""
    [code] = [code for words, code in blocks("docs/walltime.md") if not words]
    names: dict[str, Any] = {"windlass": windlass}
    exec(code, names)
    assert names["simulate"](3) == 3


def test_quickstart_runs(own_state: Path) -> None:
    """The README's example as a file."""
    assert "200 results" in run(sys.executable, str(ROOT / "examples/quickstart.py"), folder=own_state)


def test_digits_finds_the_best_model_and_tells_what_hoisting_saved(own_state: Path) -> None:
    """A table, the best model first, then seconds."""
    shown = run(sys.executable, str(ROOT / "examples/digits.py"), "--quick", "--folds", "3", folder=own_state)
    lines = shown.splitlines()
    assert lines[0].split()[:2] == ["model", "right"]
    right = [float(found) for found in re.findall(r"^\S.*? +(\d+\.\d+)% ", shown, re.MULTILINE)]
    assert len(right) == 4
    assert right == sorted(right, reverse=True)
    assert re.search(r"12 calls in .* Imports and context took \d", lines[-1])


def test_the_posters_program_runs_with_a_factory_beside_it(own_state: Path) -> None:
    """Two terminals, in whatever order: here the factory is started first and waits. It ends by itself when the program has ended."""
    port = str(free_port())
    words = [COMMAND, "factory", "run", "local", "--port", port, "--cores", "1"]
    with subprocess.Popen(words, cwd=own_state, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as factory:
        try:
            shown = run(sys.executable, str(ROOT / "examples/poster.py"), "--port", port, folder=own_state)
            said, _ = factory.communicate(timeout=PATIENCE)
        finally:
            factory.kill()
    assert factory.returncode == 0, said
    assert shown.startswith("[[")
    assert "..." in shown  # a 100 x 100 matrix, as numpy prints it


def test_the_posters_program_differs_from_the_poster_in_its_first_import_only() -> None:
    """Every line of the program as published is there, in its order."""
    published = """
        import numpy as np
        def mul_matrix(matrix):
            import numpy
            return numpy.dot(matrix, matrix)
        q = vine.Manager(port=args.port)
        libtask = q.create_library('lib', mul_matrix, imports=[np])
        q.install_library(libtask)
        task = vine.FunctionCall('lib', 'mul_matrix', np.random.rand(100, 100))
        q.submit(task)
        while not q.empty():
            done = q.wait(5)
            if done: print(done.output)
    """
    lines = iter([line.strip() for line in (ROOT / "examples/poster.py").read_text().splitlines()])
    assert "import windlass as vine" in lines
    for line in published.split("\n")[1:-1]:
        wanted = line.strip()
        assert wanted in lines, wanted


def test_the_demo_shows_the_main_job(own_state: Path) -> None:
    """Steps with numbers, a picture, a pilot killed on the way, an exception from a call, what hoisting saved.

    Nothing unexplained beside it, and no line wider than 100 columns.
    """
    shown = run(COMMAND, "demo", folder=own_state)
    assert max(map(len, shown.splitlines())) <= 100
    assert [line.split(".")[0] for line in shown.splitlines() if re.match(r"\d\. ", line)] == ["1", "2", "3", "4", "5", "6", "7"]
    for words in ("@@@@@@", "was killed", "its log then: worker ", "ValueError: there is no row -1", "once per call it would have taken"):
        assert words in " ".join(shown.split())


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
