"""Where a manager listens for pilots of other machines: one address of its own, never all.

Theory of operation: a pool says an interface (``ib0``), a network (``10.1.0.0/16``) or an address, or nothing (`HOST`).  For nothing it
is the address that this machine's name resolves to, as that is what nodes of a cluster know it by.  A name that resolves to loopback
says nothing of the kind (some distributions set it so); then it is the address that packets to elsewhere leave by.  An IPv6 address of
the link alone is none for others: its scope is the name of an interface here.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from windlass.errors import UsageError
from windlass.messages import HOST

#: Addresses for documentation, by which the kernel tells the way out; nothing is sent.
OUTSIDE: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


def own_interfaces() -> dict[str, list[str]]:
    """Addresses of this machine by interface: IPv4 first, those of the link alone last."""
    import psutil  # not before a batch pool attaches

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: sorted((one.address for family in families for one in addresses if one.family == family), key=_is_of_link)
        for name, addresses in psutil.net_if_addrs().items()
    }


def _is_of_link(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return ip.version == 6 and ip.is_link_local


def _is_for_others(address: str) -> bool:
    return not (ipaddress.ip_address(address.partition("%")[0]).is_loopback or _is_of_link(address))


def name_address() -> str:
    """The address that this machine's name resolves to, or, where that is loopback, packets to elsewhere leave by; "": there is none."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)
    except OSError:
        found = []
    for _, _, _, _, where in sorted(found, key=lambda one: one[0] != socket.AF_INET):
        if _is_for_others(str(where[0])):
            return str(where[0])
    for family, outside in OUTSIDE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as one:
            one.connect((outside, 9))
            if _is_for_others(address := str(one.getsockname()[0])):
                return address
    return ""


def choose_address(
    wanted: str,
    interfaces: Callable[[], Mapping[str, Sequence[str]]] = own_interfaces,
    of_name: Callable[[], str] = name_address,
) -> str:
    """The address to listen on for a pool that says ``wanted``; "": this machine has none but loopback.

    Raises:
        UsageError: there is no such interface, or no address in that network; the text names those that there are.
    """
    if wanted == HOST:
        return of_name()
    known = interfaces()
    if known.get(wanted):
        return known[wanted][0]
    own = [address for addresses in known.values() for address in addresses]
    try:
        network = ipaddress.ip_network(wanted, strict=False)
    except ValueError:
        network = None
    if network is not None:
        for address in own:
            if ipaddress.ip_address(address.partition("%")[0]) in network:
                return address
    there = ", ".join(f"{name} ({addresses[0]})" for name, addresses in known.items() if addresses)
    raise UsageError(
        f"cannot listen on {wanted!r}: this machine has {there}; give one of these interfaces, or a network that holds an address"
    )
