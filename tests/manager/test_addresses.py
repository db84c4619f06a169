"""A manager listens where pilots can reach it, and nowhere else."""

from __future__ import annotations

import errno
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

import windlass
from windlass.errors import UsageError
from windlass.identity import read_connection_file
from windlass.manager.addresses import choose_address, name_address, own_interfaces
from windlass.messages import HOST, PoolName, PoolOffer, PoolReport, Resources

INTERFACES = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.1.2.3", "fe80::1%eth0"], "ib0": ["192.168.7.1"], "down": []}


def choose(wanted: str) -> str:
    return choose_address(wanted, lambda: INTERFACES, lambda: "10.9.9.9")


@pytest.mark.parametrize(
    ("wanted", "address"),
    [("ib0", "192.168.7.1"), ("eth0", "10.1.2.3"), ("192.168.0.0/16", "192.168.7.1"), ("10.1.2.3", "10.1.2.3"), (HOST, "10.9.9.9")],
)
def test_an_interface_a_network_or_the_host_is_one_address(wanted: str, address: str) -> None:
    assert choose(wanted) == address


@pytest.mark.parametrize("wanted", ["ib1", "172.16.0.0/12", "down"])
def test_what_this_machine_has_not_is_named_with_what_it_has(wanted: str) -> None:
    text = rf"cannot listen on '{wanted}': this machine has lo \(127.0.0.1\), eth0 \(10.1.2.3\), ib0 \(192.168.7.1\); give one of these"
    with pytest.raises(UsageError, match=text):
        choose(wanted)


def test_the_host_s_own_address_is_never_loopback() -> None:
    """Some distributions give the host name a loopback address, which no node can reach."""
    address = name_address()
    if address:  # a machine without a network has none
        assert not ipaddress.ip_address(address).is_loopback
        assert any(address in addresses for addresses in own_interfaces().values())


def test_a_name_that_does_not_resolve_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert name_address() == "" or not ipaddress.ip_address(name_address()).is_loopback


def route(monkeypatch: pytest.MonkeyPatch, resolved: Sequence[str], ways: Mapping[socket.AddressFamily, str]) -> None:
    """This machine's name means ``resolved``, and packets leave by ``ways``."""

    def resolve(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET6 if ":" in one else socket.AF_INET, 0, 0, "", (one, 0)) for one in resolved]

    class Datagram(socket.socket):
        def connect(self, address: Any) -> None:
            if self.family not in ways:
                raise OSError(errno.ENETUNREACH, "Network is unreachable")

        def getsockname(self) -> Any:
            return (ways[socket.AddressFamily(self.family)], 9)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Datagram)


@pytest.mark.parametrize(
    ("resolved", "ways", "address"),
    [
        (["127.0.1.1"], {socket.AF_INET6: "2001:678::7"}, "2001:678::7"),
        (["127.0.1.1"], {socket.AF_INET: "10.1.2.3", socket.AF_INET6: "2001:678::7"}, "10.1.2.3"),
        (["fe80::1%eth0", "2001:678::7"], {}, "2001:678::7"),
        (["fe80::1%eth0"], {socket.AF_INET6: "fe80::1"}, ""),
        ([], {}, ""),
    ],
)
def test_a_machine_with_ipv6_alone_has_an_address_for_others(
    monkeypatch: pytest.MonkeyPatch, resolved: list[str], ways: dict[socket.AddressFamily, str], address: str
) -> None:
    """Its name may be loopback, as Debian sets it; and one of the link alone is of no use on other machines."""
    route(monkeypatch, resolved, ways)
    assert name_address() == address


def test_an_interface_is_known_by_an_address_that_others_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [SimpleNamespace(family=socket.AF_INET6, address=one) for one in ("fe80::1%ib0", "2001:678::7")]
    monkeypatch.setattr("psutil.net_if_addrs", lambda: {"ib0": addresses})
    assert choose_address("ib0") == "2001:678::7"


def report(listen: str) -> PoolReport:
    return PoolReport((PoolOffer(PoolName("p"), Resources(1.0), backend="slurm", listen=listen),), (), (), (), ())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def addresses_of(manager: windlass.Manager) -> list[str]:
    return [host for host, _ in read_connection_file(manager.pilot_file).addresses]


def test_a_manager_listens_for_other_machines_when_a_pool_on_them_attaches() -> None:
    """Until then on loopback only; then also there, on the same port, and pilots and clients find it in their files: before loopback,
    where on other nodes somebody else may listen."""
    with windlass.Manager() as manager:
        assert addresses_of(manager) == ["127.0.0.1"]
        port = manager.open_port("factory", "f", lambda message: None)
        port.send(report(""), report("127.0.0.0/8"), report("no-such-interface"))
        assert manager.status()["manager"]["addresses"] == [f"127.0.0.1:{manager.port}"]
        address = name_address()
        if address:
            port.send(report(HOST))
            until(lambda: addresses_of(manager) == [address, "127.0.0.1"])
            with socket.create_connection((address, manager.port), timeout=5):
                pass
            assert f"{address}:{manager.port}" in manager.status()["manager"]["addresses"]
            port.send(report(HOST), report(address))
            manager.status()
            assert addresses_of(manager) == [address, "127.0.0.1"]


def test_a_manager_that_was_told_its_address_stays_there() -> None:
    """`host=` is the user's word; only an interface that is named as well is listened on, too."""
    with windlass.Manager(host="127.0.0.1") as manager:
        port = manager.open_port("factory", "f", lambda message: None)
        port.send(report(HOST))
        assert manager.status()["manager"]["addresses"] == [f"127.0.0.1:{manager.port}"]
        assert addresses_of(manager) == ["127.0.0.1"]
        if address := name_address():
            port.send(report(address))
            until(lambda: addresses_of(manager) == [address, "127.0.0.1"])
