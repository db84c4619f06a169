"""``python -m windlass``: the command, where its script is not on the path."""

from __future__ import annotations

from windlass.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
