"""Addresses that programs and workers are told: which of them lead anywhere.

A core: nothing is resolved or dialled here.
"""

from __future__ import annotations


def is_loopback(host: str) -> bool:
    """Whether this leads to the host that it is dialled on, whichever that is."""
    return host.startswith("127.") or host in ("::1", "localhost")
