"""Networks that can be broken: hosts in network namespaces with a switch between them, and a proxy that plays one.

Theory of operation
-------------------
`Hosts` makes a network namespace per host, each with one cable (a veth pair) to a switch, which is a bridge in a namespace of its own.
So the hosts have addresses of their own, their own loopback, and no way to each other but the switch.  A cable is broken on the
*switch's* side: its port leaves the bridge, and the frames of both directions end there; nobody is told, no connection is reset, the
host's interface stays up (`unplugged`).  `slow` lets a port send so many bits per second.  `reset` ends a host's connections at both ends
by a RST. All of this needs root; where namespaces are seen (/run/netns) is private to the mount namespace that the matrix runs in.

`Proxy` carries bytes between those who connect to it and one port of loopback, on a thread of its own, and needs nothing: it resets,
swallows or slows down.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import threading
import time
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

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
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


class Proxy:
    """Carries bytes between those who connect to `port` and another port of loopback, until told otherwise."""

    def __init__(self, to_port: int) -> None:
        self._to = ("127.0.0.1", to_port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._other: dict[socket.socket, socket.socket] = {}
        self._mode = "up"
        #: Connections that were there when it was told to swallow: they stay dead, as after a firewall has forgotten them.
        self._dead: set[socket.socket] = set()
        self._rate = 0.0
        self._wake, self._bell = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for one in (self._listening, self._wake):
            self._selector.register(one, selectors.EVENT_READ)
        self._over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    def reset(self) -> None:
        """Every connection is reset once; new ones come through."""
        with self._lock:
            self._drop_all()

    @contextlib.contextmanager
    def refusing(self) -> Generator[None]:
        """Every connection is reset, and every new one at once."""
        self._set("reset")
        try:
            yield
        finally:
            self._set("up")

    def forget(self) -> None:
        """What stands now carries no byte any more, and neither side is told; new connections come through."""
        with self._lock:
            self._dead |= set(self._other)

    @contextlib.contextmanager
    def swallowing(self) -> Generator[None]:
        """No byte comes through, nobody is told, new connections are taken and hear nothing."""
        self._set("swallow")
        try:
            yield
        finally:
            self._set("reset")  # what was swallowed cannot come any more
            self._set("up")

    @contextlib.contextmanager
    def slow(self, bytes_per_second: float) -> Generator[None]:
        """All connections together carry so much."""
        self._rate = bytes_per_second
        try:
            yield
        finally:
            self._rate = 0.0

    def close(self) -> None:
        self._over = True
        self._bell.send(b"x")
        self._thread.join()
        self._drop_all()
        for one in (self._listening, self._wake, self._bell):
            one.close()
        self._selector.close()

    def _set(self, mode: str) -> None:
        with self._lock:
            self._mode = mode
            if mode == "reset":
                self._drop_all()
        self._bell.send(b"x")

    def _drop_all(self) -> None:
        for one in list(self._other):
            self._drop(one)
        self._dead.clear()

    def _drop(self, one: socket.socket) -> None:
        self._other.pop(one, None)
        self._dead.discard(one)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(one)
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closing is a RST
        one.close()

    def _run(self) -> None:
        while not self._over:
            for key, _ in self._selector.select():
                one = key.fileobj
                assert isinstance(one, socket.socket)
                with self._lock:
                    if one is self._wake:
                        self._wake.recv(100)
                    elif one is self._listening:
                        self._accept()
                    elif one in self._other:
                        self._carry(one)

    def _accept(self) -> None:
        near, _ = self._listening.accept()
        if self._mode == "reset":
            near.close()
            return
        try:
            far = socket.create_connection(self._to)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self._other[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _carry(self, one: socket.socket) -> None:
        other = self._other[one]
        try:
            data = one.recv(1 << 14)
            if self._rate:
                time.sleep(len(data) / self._rate)
            if data and self._mode == "up" and one not in self._dead:
                other.sendall(data)
        except OSError:
            data = b""
        if not data:
            if one in self._dead:
                self._selector.unregister(one)  # its end is not passed on either
                return
            for each in (one, other):
                self._drop(each)


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
