"""``python -m windlass.worker``: what a pilot runs.

The guardian is forked before anything else is loaded: no thread exists yet, and its memory stays small.

``-m`` puts the working directory first on ``sys.path``. A pilot's is often the user's project on a shared filesystem: each
import would ask it first (100 file-system calls up to hello), and a ``random.py`` there would be taken for the real one. So it
goes.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]
    from windlass.worker.guardian import Guardian

    guardian = Guardian()
    from windlass.worker import lean  # noqa: F401 # pyright: ignore[reportUnusedImport]
    from windlass.worker.main import main

    sys.exit(main(sys.argv[1:], guardian))
