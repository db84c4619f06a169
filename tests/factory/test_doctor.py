"""The doctor: what findings mean, leg by leg, and one real pilot on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from windlass.cli import main
from windlass.errors import UnknownName, UsageError
from windlass.examine import MARK, examine
from windlass.factory.backend import asked_by_hand
from windlass.factory.doctor import (
    FAILED,
    OK,
    WARNING,
    Findings,
    Leg,
    as_text,
    check_up,
    has_windlass_at_first,
    healthy,
    legs_of,
    read_output,
)
from windlass.factory.pool import PoolConfig

MakePool = Callable[..., PoolConfig]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_STATE_DIR", str(tmp_path / "state"))


def examined(**changes: Any) -> dict[str, Any]:
    """What a healthy pilot finds, with changes."""
    import sys

    return {
        "node": "n1",
        "python": "/opt/python",
        "python_version": f"{sys.version_info[0]}.{sys.version_info[1]}.9",
        "windlass": "0.1.0",
        "time": 0.0,
        "connection": {"path": "/shared/pilot.json", "manager": "m", "error": ""},
        "addresses": [{"host": "10.0.0.1", "port": 9, "error": "", "seconds": 0.01}],
        "cores": 8,
        "memory": 16 << 30,
        "scratch": {"path": "/tmp", "kind": "ext4", "free": 10**11, "warning": "", "error": ""},
        **changes,
    }


def found(**changes: Any) -> Findings:
    given: dict[str, Any] = {
        "job": "7",
        "node": "n1",
        "ran_after": 3.0,
        "served_after": 5.0,
        "call_took": 0.5,
        "examined": examined(),
        **changes,
    }
    return Findings(**given)


def leg(legs: list[Leg], name: str) -> Leg:
    [one] = [leg for leg in legs if leg.name == name]
    return one


def test_a_healthy_pilot_has_healthy_legs_in_the_order_of_its_way() -> None:
    legs = legs_of(found(skew=(0.5, 0.01)))
    assert [one.name for one in legs] == [
        "submit",
        "queue",
        "python",
        "state folder",
        "address",
        "scratch",
        "size",
        "clock",
        "worker",
        "call",
    ]
    assert healthy(legs)
    assert as_text(legs).splitlines()[-1] == "every leg holds"


@pytest.mark.parametrize(
    ("changes", "name", "state", "text", "advice"),
    [
        ({"refused": "Invalid account"}, "submit", FAILED, "Invalid account", "dry-run"),
        (
            {"ran_after": -1.0, "served_after": -1.0, "waits_for": "Priority"},
            "queue",
            FAILED,
            "it still waits, and .* says: Priority",
            "shorter",
        ),
        (
            {"ran_after": -1.0, "served_after": -1.0, "waits_for": "no match found", "backend": "htcondor"},
            "queue",
            FAILED,
            "it still waits, and .* says: no match found",
            "condor_q -better-analyze JOB",
        ),
        ({"examined": examined(python_version="3.6.8")}, "python", FAILED, r"Python 3\.6\.8", "give python= or setup="),
        (
            {"examined": examined(connection={"path": "/x", "manager": "", "error": "no such file"}, addresses=[]), "served_after": -1.0},
            "state folder",
            FAILED,
            "no such file",
            "WINDLASS_STATE_DIR",
        ),
        (
            {
                "examined": examined(addresses=[{"host": "h", "port": 9, "error": "no answer within 5 s", "seconds": 5.0}]),
                "served_after": -1.0,
            },
            "address",
            FAILED,
            "h port 9: no answer within 5 s",
            "interface= or network=",
        ),
        (
            {"examined": examined(imports="imports come from a network filesystem (nfs at /home): a start reads 99 files there")},
            "imports",
            WARNING,
            r"nfs at /home",
            "environment= gives pilots such an archive",
        ),
        (
            {"examined": examined(scratch={"path": "/home", "kind": "nfs", "free": 1, "warning": "slow", "error": ""})},
            "scratch",
            WARNING,
            "network filesystem",
            "local disk",
        ),
        (
            {"examined": examined(cores=1), "asked_cores": 8.0},
            "size",
            WARNING,
            "1 core, .*; asked for 8 cores",
            "ask for what the site gives",
        ),
        ({"skew": (-400.0, 0.1)}, "clock", WARNING, "6min 40s behind", "administrators"),
        ({"served_after": -1.0}, "worker", FAILED, "has not connected", "addresses above"),
        ({"served_after": -1.0, "died": "no module", "examined": {}}, "worker", FAILED, "no module", "setup= and python="),
        (
            {
                "ran_after": -1.0,
                "served_after": -1.0,
                "died": "a pilot ended before it served: held: PartitionTimeLimit: its walltime is too long",
                "examined": {},
            },
            "queue",
            FAILED,
            "PartitionTimeLimit",
            "ask for what the site gives: walltime=",
        ),
        ({"call_error": "it died"}, "call", FAILED, "it died", ""),
    ],
)
def test_what_is_wrong_is_told_at_its_leg_with_what_to_do(changes: dict[str, Any], name: str, state: str, text: str, advice: str) -> None:
    import re

    legs = legs_of(found(**changes))
    one = leg(legs, name)
    assert one.state == state
    assert re.search(text, one.text)
    assert advice in one.advice
    assert healthy(legs) == (state != FAILED)


def test_a_batch_system_that_does_not_answer_has_no_other_leg() -> None:
    """Nothing was submitted, so nobody is sent to look at that."""
    [only] = legs_of(Findings(silence="squeue: Unable to contact slurm controller", by_hand="squeue --me"))
    assert (only.name, only.state) == ("submit", FAILED)
    assert only.text == "the batch system does not answer: squeue: Unable to contact slurm controller"
    assert "does  squeue --me  answer in this shell?" in only.advice


@pytest.mark.parametrize(
    ("backend", "options", "word"),
    [
        ("slurm", {"partition": "short"}, "squeue --me"),
        ("slurm", {"clusters": "a,b"}, "squeue --me -M a,b"),
        ("htcondor", {"schedd": "", "collector": ""}, "condor_q"),
        ("htcondor", {"schedd": "ap two", "collector": "cm:9618"}, "condor_q -pool cm:9618 -name 'ap two'"),
        ("local", {}, ""),
    ],
)
def test_what_is_to_be_typed_asks_the_batch_system_that_the_pool_names(backend: str, options: dict[str, object], word: str) -> None:
    """Another one may well answer."""
    assert asked_by_hand(backend, options) == word


def test_the_doctor_waits_not_long_for_a_batch_system_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands have a minute each, and the queue ten: who asks the doctor gets its answer sooner, and hears meanwhile what was said."""
    monkeypatch.setattr("windlass.factory.doctor.ANSWER_PATIENCE", 0.5)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("squeue", "sbatch", "scancel", "scontrol", "sinfo"):
        (commands / name).write_text(f'#!/bin/sh\necho "{name}: error: Unable to contact slurm controller (connect failure)" >&2; exit 1\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    said: list[str] = []
    legs = check_up("slurm", {}, said.append)
    assert [one.name for one in legs] == ["here", "submit"]
    assert "squeue: Unable to contact slurm controller (connect failure)" in legs[-1].text
    assert "squeue: Unable to contact" in said[-1]


def test_an_address_that_does_not_answer_is_no_harm_when_another_one_does() -> None:
    """Loopback is among them, and no other machine reaches it."""
    tried = [{"host": h, "port": 9, "error": e, "seconds": 0.1} for h, e in (("127.0.0.1", "Connection refused"), ("10.0.0.1", ""))]
    legs = legs_of(found(examined=examined(addresses=tried)))
    assert [(one.state, one.text) for one in legs if one.name == "address"] == [
        (OK, "127.0.0.1 port 9: Connection refused (another one answers)"),
        (OK, "10.0.0.1 port 9: the manager answers, in 100ms"),
    ]


def test_the_output_of_a_pilot_is_found_among_other_lines() -> None:
    line = f"{MARK}{json.dumps(examined())}"
    assert read_output(f"module loaded\n{line}\nworker: hello\n") == examined()
    assert read_output(f"{line[:80]}\n") == {}
    assert read_output(f"{MARK}[1]") == {}


def test_examining_never_fails(tmp_path: Path) -> None:
    """There may be nothing on a node."""
    there = examine(str(tmp_path / "pilot.json"))
    assert "pilot.json" in there["connection"]["error"]
    assert there["addresses"] == []
    assert there["scratch"]["error"] == ""


def test_a_local_pilot_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    """As somebody would run it: every leg, and nothing stays behind."""
    assert main(["doctor", "local", "--cores", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["healthy"] is True
    names = [one["name"] for one in answer["legs"]]
    assert names == ["here", "submit", "queue", "python", "state folder", "address", "scratch", "size", "clock", "worker", "call"]


def test_a_pilot_that_cannot_start_is_ill_and_tells_why(capsys: pytest.CaptureFixture[str]) -> None:
    """One is enough, whatever the pool says of how many there are to be, and to die."""
    own = ["--max-pilots", "4", "--min-pilots", "2", "--max-start-failures", "2"]
    assert main(["doctor", "local", "--python", "/nowhere/python", *own]) == 1
    shown = capsys.readouterr().out
    assert "FAILED  worker" in shown
    assert "/nowhere/python: not found" in shown
    assert shown.splitlines()[-1] == "look at the first leg that FAILED"


@pytest.mark.parametrize(("words", "ports"), [([], 0), (["--port", "50000"], 50000), (["--port", "50000-50100"], (50000, 50100))])
def test_its_manager_listens_where_that_of_the_program_will(words: list[str], ports: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a firewall lets only some ports through, no other one would ever be reached."""
    seen: list[object] = []

    def make(port: object) -> None:
        seen.append(port)
        raise UsageError("enough is known")

    monkeypatch.setattr("windlass.manager.manager.Manager", make)
    assert main(["doctor", "local", *words]) == 2
    assert seen == [ports]


@pytest.mark.parametrize(("text", "why"), [("50100-50000", "write 50000-50100"), ("0-10", "'0' is no port"), ("x", "'x' is no port")])
def test_what_are_no_ports_is_told(text: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "local", "--port", text])
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "there"),
    [({}, True), ({"environment": "e.tar.gz"}, False), ({"container": "i.sif"}, False), ({"options": {"files": "transfer"}}, False)],
)
def test_what_is_not_there_yet_is_not_asked_to_examine_the_node(make_pool: MakePool, changes: dict[str, Any], there: bool) -> None:
    """``No module named 'windlass'`` would be among the last words of a pilot that ended for another reason."""
    assert has_windlass_at_first(make_pool(**changes)) is there


def test_an_unknown_pool_is_refused() -> None:
    with pytest.raises(UnknownName, match="there is no pool or batch backend 'lcal'; did you mean 'local'"):
        check_up("lcal", {}, lambda text: None)
