"""A network that can be broken: hosts in network namespaces with a switch between them.

`windlass.testing.Proxy` plays a network where there are no hosts.

Theory of operation
-------------------
`Hosts` makes a network namespace per host, each with one cable (a veth pair) to a switch, which is a bridge in a namespace of its own.
So the hosts have addresses of their own, their own loopback, and no way to each other but the switch.  A cable is broken on the
*switch's* side: its port leaves the bridge, and the frames of both directions end there; nobody is told, no connection is reset, the
host's interface stays up (`unplugged`).  `slow` lets a port send so many bits per second.  `reset` ends a host's connections at both ends
by a RST. All of this needs root; where namespaces are seen (/run/netns) is private to the mount namespace that the matrix runs in.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Generator
from types import TracebackType
from typing import Final, Self

#: Interfaces and addresses are seen in the namespaces only.
NETWORK: Final = "10.77.0"
SWITCH: Final = "wlswitch"


def run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


class Hosts:
    """So many hosts, on one switch; a context manager."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.names = [f"wlhost{number}" for number in range(count)]

    def __enter__(self) -> Self:
        try:
            run("ip", "netns", "add", SWITCH)
            run("ip", "-n", SWITCH, "link", "add", "name", "switch", "type", "bridge")
            run("ip", "-n", SWITCH, "link", "set", "dev", "switch", "up")
            for number, name in enumerate(self.names):
                run("ip", "netns", "add", name)
                run("ip", "link", "add", "cable", "netns", name, "type", "veth", "peer", "name", self._port(number), "netns", SWITCH)
                run("ip", "-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "cable")
                for device in ("lo", "cable"):
                    run("ip", "-n", name, "link", "set", "dev", device, "up")
                run("ip", "-n", SWITCH, "link", "set", "dev", self._port(number), "up")
                self._plug(number)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        for name in (*self.names, SWITCH):
            with contextlib.suppress(OSError):
                run("ip", "netns", "del", name)

    @staticmethod
    def address(number: int) -> str:
        return f"{NETWORK}.{number + 1}"

    @staticmethod
    def _port(number: int) -> str:
        return f"port{number}"

    def words(self, number: int) -> list[str]:
        """What to put before a command that is to run on this host."""
        return ["nsenter", f"--net=/run/netns/{self.names[number]}"]

    def _plug(self, number: int) -> None:
        run("ip", "-n", SWITCH, "link", "set", "dev", self._port(number), "master", "switch")

    @contextlib.contextmanager
    def unplugged(self, *numbers: int) -> Generator[None]:
        """Nothing comes through these cables, and nobody is told."""
        for number in numbers:
            run("ip", "-n", SWITCH, "link", "set", "dev", self._port(number), "nomaster")
        try:
            yield
        finally:
            for number in numbers:
                self._plug(number)

    @contextlib.contextmanager
    def down(self, *numbers: int) -> Generator[None]:
        """The interfaces of these hosts are down: whoever connects from there is told at once."""
        for number in numbers:
            run("ip", "-n", self.names[number], "link", "set", "dev", "cable", "down")
        try:
            yield
        finally:
            for number in numbers:
                run("ip", "-n", self.names[number], "link", "set", "dev", "cable", "up")

    @contextlib.contextmanager
    def slow(self, number: int, kilobits: int) -> Generator[None]:
        """A cable with so many thousand bits per second in each direction, and what does not fit waits up to a second or is dropped."""
        ends = ((SWITCH, self._port(number)), (self.names[number], "cable"))
        for space, device in ends:
            shape = ("tbf", "rate", f"{kilobits}kbit", "burst", "4k", "latency", "1s")
            run("tc", "-n", space, "qdisc", "add", "dev", device, "root", *shape)
        try:
            yield
        finally:
            for space, device in ends:
                run("tc", "-n", space, "qdisc", "del", "dev", device, "root")

    def reset(self, number: int) -> None:
        """End all TCP connections of a host: both ends get a RST."""
        subprocess.run([*self.words(number), "ss", "-K", "dst", f"{NETWORK}.0/24"], capture_output=True, check=False)


def may_make_hosts() -> str:
    """Why there can be no hosts here; "": there can."""
    if os.getuid() != 0:
        return "network namespaces need root"
    try:
        with Hosts(1) as hosts, hosts.unplugged(0):
            pass
        return ""
    except OSError as error:
        return f"this machine makes no network namespaces: {error}"
