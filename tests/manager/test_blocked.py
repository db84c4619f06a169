"""Hosts that a program wants no more of: the books, and what the core does with them."""

from __future__ import annotations

import pytest

from windlass.addresses import is_named
from windlass.manager.blocked import BlockedHosts


@pytest.mark.parametrize(
    ("host", "name", "meant"),
    [
        ("node7", "node7", True),
        ("node7.cluster.org", "node7", True),
        ("node7", "node7.cluster.org", True),
        ("node7.a.org", "node7.b.org", False),
        ("node71", "node7", False),
        ("Node7.Cluster.org", "node7", True),
    ],
)
def test_a_name_without_a_domain_stands_for_the_host_in_any(host: str, name: str, meant: bool) -> None:
    assert is_named(host, name) is meant


def test_a_host_is_blocked_until_its_time_is_over_or_it_is_unblocked() -> None:
    """Without a time, for ever."""
    blocked = BlockedHosts()
    blocked.block("a", 10.0, 100.0)
    blocked.block("b", 0.0, 100.0)
    assert not blocked.expire(109.0)
    assert blocked.names == ("a", "b")
    assert blocked.has("a.cluster")
    assert blocked.expire(110.0)
    assert not blocked.has("a")
    assert blocked.has("b")
    assert not blocked.unblock("a")
    assert blocked.unblock("b")
    blocked.block("c", 0.0, 110.0)
    assert blocked.unblock("")
    assert not blocked.unblock("")
