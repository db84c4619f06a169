"""Whether a person works with this program at a prompt or in a notebook: what is shown and waited for depends on it."""

from __future__ import annotations

import sys
from typing import Any, cast


def in_notebook() -> bool:
    """A notebook runs this program: what is displayed is HTML, and it is killed 2.5 s after it was told to end."""
    ipython = sys.modules.get("IPython")
    shell = cast("Any", ipython).get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell is not None and hasattr(shell, "kernel")


def ends_by_ctrl_c() -> bool:
    """This program has ended by Ctrl-C. At a prompt that is what was shown last, perhaps hours ago: it has not ended by that."""
    return not hasattr(sys, "ps1") and issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
