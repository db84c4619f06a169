"""Limits of accounts and QOS, and partitions that are not for everyone, as Slurm 26.05 tells of them in its queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from windlass.factory import slurm_words as words
from windlass.factory.backend import Listed

#: Each pilot's ticket says what it is about.
RECORDED: Final = Path(__file__).parent / "data" / "slurm" / "squeue-limits-26.05.json"


def test_who_meets_a_limit_is_told_what_to_do_and_who_may_not_go_there_does_not_wait() -> None:
    """Recorded with accounts and their limits, and partitions that are for others."""
    assert json.loads(RECORDED.read_text())["command"] == " ".join(words.query_words(""))
    rows = words.read_rows(json.loads(RECORDED.read_text())["stdout"], "windlass")
    found = {row.state.ticket: row.state for row in rows}
    assert {ticket for ticket, state in found.items() if state.listed is Listed.HELD} == {
        *("account", "group", "qos"),
        *("per-job", "gpu-min", "nodes"),
    }
    assert found["account"].reason.startswith("PartitionConfig: the partition has no such nodes, or is not for this account")
    assert found["group"].reason == "uid 1001 not in group permitted to use this partition (grpp). groups allowed: root"
    told = {ticket: found[ticket].reason.partition(": ") for ticket, state in found.items() if state.listed is Listed.QUEUED}
    for ticket, limit in (("assoc-minutes", "AssocGrpCPUMinutesLimit"), ("qos-minutes", "QOSGrpCPUMinutesLimit")):
        assert told[ticket][0] == limit
        assert "used up" in told[ticket][2]
        assert "a shorter one" in told[ticket][2]
    for ticket, limit in (("user-cpus", "QOSMaxCpuPerUserLimit"), ("qos-cpus", "QOSGrpCpuLimit"), ("assoc-cpus", "AssocGrpCpuLimit")):
        assert told[ticket][0] == limit
        assert "never if it asks for more" in told[ticket][2]
    assert {told[ticket] for ticket in ("jobs", "licence", "cloud")} == {
        (reason, "", "") for reason in ("QOSMaxJobsPerUserLimit", "Licenses", "")
    }


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("AssocGrpBillingMinutes", "used up"),
        ("QOSGrpGRESMinutes", "used up"),
        ("AssocGrpCPURunMinutesLimit", "at a time"),
        ("QOSGrpWallLimit", "used up"),
        ("QOSMaxGRESPerUser", "at a time"),
        ("MaxCpuPerAccount", "at a time"),
        ("QOSGrpJobsLimit", ""),
        ("AssocMaxJobsLimit", ""),
        ("QOSGrpSubmitJobsLimit", ""),
        ("MaxJobsPerAccount", ""),
        ("MaxPoweredUpNodes", ""),
        ("Priority", ""),
    ],
)
def test_a_limit_says_what_ends_it(reason: str, word: str) -> None:
    """Names of Slurm's own (slurm_state_reason_string)."""
    told = words.listed_as("PENDING", reason, 0)[2]
    assert told.startswith(reason)
    assert word in told
    assert bool(word) == (told != reason)
