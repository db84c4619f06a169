"""Addresses and names of hosts, as programs and workers are told them: which lead anywhere, which mean the same.

A core: nothing is resolved or dialled here.
"""

from __future__ import annotations


def is_loopback(host: str) -> bool:
    """Whether this leads to the host that it is dialled on, whichever that is."""
    return host.startswith("127.") or host in ("::1", "localhost")


def is_named(host: str, name: str) -> bool:
    """Whether a host is meant by a name: where one of the two has no domain, it stands for the host in any."""
    host, name = host.lower(), name.lower()
    return host == name or ("." not in name and host.partition(".")[0] == name) or ("." not in host and name.partition(".")[0] == host)
