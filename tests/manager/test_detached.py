"""A manager in the background: its log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import logging, os, sys
from windlass.manager.detached import _BackgroundLog
log = logging.getLogger("windlass")
log.addHandler(_BackgroundLog(sys.argv[1], maxBytes=100, backupCount=1))
for number in range(10):
    log.warning("line %d %s", number, "x" * 60)
print("said at the end", flush=True)
os.write(2, b"a fatal error")
"""


def test_what_a_process_says_at_its_end_is_in_the_log_that_is_read(tmp_path: Path) -> None:
    """Whose file has been another one since it grew too long."""
    path = tmp_path / "manager.log"
    with open(path, "ab") as file:
        subprocess.run([sys.executable, "-c", PROGRAM, str(path)], stdout=file, stderr=file, check=True, timeout=60)
    assert path.read_text().endswith("said at the end\na fatal error")
    assert path.with_suffix(".log.1").exists()
