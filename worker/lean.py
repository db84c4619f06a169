"""Imports msgspec without typing_extensions, in processes of a pilot: what they are imports this first.

msgspec asks for typing_extensions before it asks for typing. That has all it needs from Python 3.11 on, and the other one, with `inspect`
and `ast` behind it, is a sixth of what a zygote takes to start. A module that a library imports gets it as ever.
"""

from __future__ import annotations

import sys

_NAME = "typing_extensions"

if _NAME not in sys.modules:
    vars(sys)["modules"][_NAME] = None  # an import of it fails
    try:
        import msgspec  # noqa: F401 # pyright: ignore[reportUnusedImport]
    finally:
        del sys.modules[_NAME]
