"""The tutorial for HTCondor, as a newcomer follows it: commands and programs of docs/tutorial-htcondor.md, unchanged, on the stand-in."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: What every Python begins with here: the backend speaks to the stand-in, which no option can say.
STANDIN = """
import os
from windlass.factory import htcondor
changed = htcondor.HTCondorBackend.__init__
changed.__defaults__ = (tuple(os.environ["STANDIN_HELPER"].split("\\n")),)
"""


def test_the_tutorial_for_htcondor_holds(schedd: Any, page: Any, tmp_path: Path) -> None:
    """Dry run, doctor, a program, a named pool; what the page shows as output is printed. Only the schedd is another, and how often it
    is asked."""
    folder = tmp_path / "project"
    (folder / "start").mkdir(parents=True)
    (folder / "start" / "sitecustomize.py").write_text(STANDIN)
    (folder / "windlass.toml").write_text(f"[backends.htcondor]\ncollector = {str(schedd.place)!r}\nquery_interval = 0.5\n\n")
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "start"),
        "STANDIN_HELPER": "\n".join(schedd.helper),
        "WINDLASS_STATE_DIR": str(tmp_path / "state"),
    }
    dry, doctor, areas, shown = page(ROOT / "docs/tutorial-htcondor.md").follow("htcondor", folder, env)
    assert "request_cpus" in dry
    assert "queue" in doctor
    assert areas.count("HTCondor") == 3
    assert "windlass.toml [pools.campus]" in shown
