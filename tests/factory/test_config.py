"""Configuration files: which are read, what holds over what, and what is refused with the file's name."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from windlass.errors import UnknownName, UsageError
from windlass.factory import config
from windlass.factory.config import Configuration, read_configuration
from windlass.factory.factory import make_backend
from windlass.factory.service import check, dry_run, named, pools_meant, show

Write = Callable[..., Path]

SHORT = """
[pools.short]
backend = "slurm"
partition = "short"
walltime = "2h"
cores = 8
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder, a home and a site of the test's own, without configuration."""
    for name in ("here", "home", "site"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv(config.VARIABLE, raising=False)
    monkeypatch.setattr(config, "SITE", tmp_path / "site" / "windlass.toml")
    return tmp_path


@pytest.fixture
def write(elsewhere: Path) -> Write:
    """``write(text, where)``: a file of the site, the user (``home``), or the current folder."""

    def write(text: str, where: str = "here", name: str = "windlass.toml") -> Path:
        path = elsewhere / where / (Path(".config/windlass") if where == "home" else "") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_without_files_a_word_is_a_backend() -> None:
    assert read_configuration() == Configuration()
    spec = read_configuration().spec("slurm", {"cores": 4, "memory": None})
    assert (spec.name, spec.backend, dict(spec.options), dict(spec.origins)) == ("", "slurm", {"cores": 4}, {"cores": "given here"})


def test_the_more_special_holds_over_the_more_general_and_each_option_tells_where_it_is_from(write: Write) -> None:
    """Site, user, folder; defaults, backend, pool, and what is given."""
    site = write('[defaults]\nlog_level = "info"\nscratch = "/site"\n[backends.slurm]\naccount = "all"\nqos = "low"', "site")
    user = write('[backends.slurm]\naccount = "mine"\n[pools.short]\ncores = 2\ngrace = "5s"', "home")
    here = write(SHORT)
    configuration = read_configuration()
    assert configuration.files == (str(site), str(user), "windlass.toml")
    assert configuration.pools == ("short",)
    assert here.is_file()
    spec = configuration.spec("short", {"qos": "high"})
    assert (spec.name, spec.backend) == ("short", "slurm")
    assert dict(spec.options) == {
        "log_level": "info",
        "scratch": "/site",
        "account": "mine",
        "qos": "high",
        "cores": 8,
        "grace": "5s",
        "partition": "short",
        "walltime": "2h",
    }
    assert dict(spec.origins) == {
        "log_level": f"{site} [defaults]",
        "scratch": f"{site} [defaults]",
        "account": f"{user} [backends.slurm]",
        "qos": "given here",
        "cores": "windlass.toml [pools.short]",
        "grace": f"{user} [pools.short]",
        "partition": "windlass.toml [pools.short]",
        "walltime": "windlass.toml [pools.short]",
    }


def test_a_later_file_may_give_a_pool_another_backend(write: Write) -> None:
    """What every pool has is kept, what only the earlier backend has is left out, and `config show` names the file that holds."""
    write('[pools.short]\nbackend = "slurm"\npartition = "short"\ncores = 8\nquery_interval = "50s"', "site")
    user = write('[pools.short]\nbackend = "htcondor"\nrequirements = "HasAVX2"', "home")
    spec = read_configuration().spec("short", {})
    assert spec.backend == "htcondor"
    assert dict(spec.options) == {"cores": 8, "query_interval": "50s", "requirements": "HasAVX2"}
    shown = json.loads(show(["short"], {}, as_json=True))
    assert [row["origin"] for row in shown["pools"]["short"] if row["option"] == "backend"] == [f"{user} [pools.short]"]
    user.write_text('[pools.short]\nbackend = "htcndor"')
    with pytest.raises(UnknownName, match=rf"there is no batch backend 'htcndor' in {user} \[pools\.short\]; did you mean 'htcondor'"):
        read_configuration()
    user.write_text('[pools.short]\nbackend = "htcondor"\npartition = "x"')
    with pytest.raises(UnknownName, match="there is no option of a htcondor pool 'partition' in"):
        read_configuration()


def test_environments_are_put_together(write: Write) -> None:
    write('[defaults]\nenv = {A = "1", B = "1"}\n[pools.short]\nbackend = "local"\nenv = {B = "2"}')
    spec = read_configuration().spec("short", {"env": {"C": "3"}})
    assert spec.options["env"] == {"A": "1", "B": "2", "C": "3"}


def test_a_file_that_is_named_takes_the_place_of_the_one_in_the_folder(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(SHORT)
    other = write('[pools.long]\nbackend = "local"', name="other.toml")
    assert read_configuration(other).pools == ("long",)
    monkeypatch.setenv(config.VARIABLE, str(other))
    assert read_configuration().pools == ("long",)
    monkeypatch.setenv(config.VARIABLE, "/nowhere.toml")
    with pytest.raises(UsageError, match=r"there is no configuration '/nowhere\.toml', which is named by WINDLASS_CONFIG"):
        read_configuration()


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("[pool.short]", "there is no table 'pool' in windlass.toml; did you mean 'pools'?"),
        ("[pools.short]\ncores = 2", r"windlass\.toml \[pools\.short\] does not say which backend; write for example backend = 'slurm'"),
        ('[pools.short]\nbackend = "slrum"', r"there is no batch backend 'slrum' in windlass\.toml \[pools\.short\]; did you mean 'slurm'"),
        ("[backends.slrum]", r"there is no batch backend 'slrum' in windlass\.toml; did you mean 'slurm'"),
        (SHORT + "partion = 'x'", r"no option of a slurm pool 'partion' in windlass\.toml \[pools\.short\]; did you mean 'partition'"),
        ("[defaults]\npartition = 'x'", r"there is no option of every pool 'partition' in windlass\.toml \[defaults\]"),
        (
            "[pools.local]\nbackend = 'local'",
            r"local is a backend, and so no name for a pool; .* \[backends\.local\]",
        ),
        ("[pools.'a b']\nbackend = 'local'", "'a b' is no name for a pool"),
        ("[factory]\npool = ['short']", r"there is no key 'pool' in windlass\.toml \[factory\]; did you mean 'pools'"),
        ("[factory]\npools = 'short'", r"pools = 'short' is no list of names; write for example pools = \['short', 'gpu'\]"),
        ("pools = 3", r"pools = 3 is no table; write \[pools\]"),
        ("[pools\n", r"configuration windlass\.toml: "),
    ],
)
def test_what_cannot_be_is_refused_with_the_file_and_the_near_names(text: str, refusal: str, write: Write) -> None:
    write(text)
    with pytest.raises(UsageError, match=refusal):
        read_configuration()


def test_an_unknown_word_is_refused_with_pools_and_backends(write: Write) -> None:
    write(SHORT)
    with pytest.raises(UnknownName, match="there is no pool or batch backend 'shrt'; did you mean 'short'"):
        read_configuration().spec("shrt", {})


@pytest.mark.parametrize("text", ["", "[pools.mine]\nbackend = 'local'\n", "[backends.local]\ncores = 1\n"])
def test_a_frozen_program_without_a_backend_is_told_so(text: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that pack follow import statements, and backends are imported by name."""
    write(text)
    monkeypatch.setattr(sys, "frozen", True, raising=False)

    def lacks(name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", lacks)
    with pytest.raises(UnknownName, match=r"there is no (pool or )?batch backend 'local'.*; .*this is a frozen program, .* zipapp"):
        read_configuration().spec("local", {})


def test_a_pool_of_the_configuration_is_a_pool_like_any_other(write: Write) -> None:
    write(SHORT)
    backend, pool = make_backend("short", {"cores": 4})
    assert (backend.name, pool.name, pool.resources.cores, pool.walltime) == ("slurm", "short", 4.0, 7200.0)
    text = dry_run(["short"], {})
    assert "#SBATCH --partition=short" in text
    assert "#SBATCH --time=120" in text


def test_the_command_line_runs_the_pools_that_the_configuration_names(write: Write) -> None:
    write(SHORT + '[pools.here]\nbackend = "local"\n[factory]\npools = ["short", "here"]')
    assert pools_meant([], {}) == ["short", "here"]
    assert pools_meant(["here"], {}) == ["here"]
    check(["short", "here"], {})
    write(SHORT + '[factory]\npools = ["short"]\nname = "night"')
    assert named([], {"cores": 2}) == {"name": "night", "cores": 2}
    assert named([], {"name": "day"}) == {"name": "day"}
    assert named(["short"], {}) == {}, "another factory, which the configuration does not name"
    write(SHORT + '[factory]\npools = ["short"]\nname = 3')
    with pytest.raises(UsageError, match="3 is no name for a factory"):
        check(["short"], named([], {}))
    write("")
    with pytest.raises(UsageError, match="say which pool or backend: local, fake, slurm, htcondor; or name pools"):
        pools_meant([], {})


def test_what_holds_is_shown_with_where_it_is_from(write: Write) -> None:
    """In the units that people write; and as one object."""
    write(SHORT)
    text = show(["short"], {"memory": "8GB"})
    rows = {line.split()[0]: line.split(maxsplit=1)[1].strip() for line in text.splitlines() if line.startswith("  ")}
    assert text.startswith("configuration: windlass.toml\n\npool short:\n")
    assert rows["walltime"].split("  ") == ["2h", *rows["walltime"].split("  ")[1:]]
    assert rows["walltime"].endswith("windlass.toml [pools.short]")
    assert rows["backend"].endswith("windlass.toml [pools.short]")
    assert rows["memory"].split()[0] == "8GB"
    assert rows["memory"].endswith("command line")
    assert rows["idle_timeout"].split()[0] == "2min"
    assert rows["idle_timeout"].endswith("default of slurm")
    assert rows["patience"].endswith("default")
    whole = json.loads(show(["short"], {}, as_json=True))
    assert whole["files"] == ["windlass.toml"]
    assert {"option": "cores", "value": "8", "origin": "windlass.toml [pools.short]"} in whole["pools"]["short"]


def test_the_configuration_of_the_docs_is_one(write: Write) -> None:
    """As it stands on the page; and what follows from another option says so."""
    page = (Path(__file__).resolve().parent.parent.parent / "docs" / "pools.md").read_text()
    write(page.partition("```toml\n")[2].partition("```")[0])
    assert pools_meant([], {}) == ["short", "gpu"]
    check(["short", "gpu"], {})
    [row] = [line for line in show(["short"], {}).splitlines() if line.split()[:1] == ["max_pilots"]]
    assert row.split() == ["max_pilots", "25", "from", "max_cores"]
