"""docs/security.md names a test for each line of what Windlass does, and the tests are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HEAD = "| could | what Windlass does | test |"


def test_every_line_of_the_threat_model_names_a_test_that_is_there() -> None:
    tables = (ROOT / "docs/security.md").read_text().split(HEAD)[1:]
    assert len(tables) == 4, "the network, a node, the batch system, a worker"
    lines = [line for table in tables for line in table.split("\n\n")[0].splitlines() if line.strip("|- ")]
    assert len(lines) > 40
    for line in lines:
        cells = line.split("|")[1:-1]
        assert len(cells) == 3, line
        [(path, name)] = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", cells[2])
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"
