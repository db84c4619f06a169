"""Which workers can fetch files from which others, as far as the manager knows.

Theory of operation
-------------------
A worker *serves* when it has said by which addresses its peers reach it.  One that names loopback enrolled when the manager listened
nowhere else.  Such are on the manager's host, whatever it is called where they are: they serve each other, and others that name that host.

What cannot be known is tried.  Where no worker reaches another one, each would find that out for each peer and file, a dial's timeout at
a time.  So after `IN_VAIN` failures in a row a worker is not sent to peers for `PAUSE` seconds; and nobody is after so many in a row of
whomever, if at least half as many have failed since the last success as have ever had one: one worker behind a wall is its own affair.
After the pause the next failure is enough, until a peer has given something.

A core: `now` is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from windlass.addresses import is_loopback
from windlass.messages import WorkerId

#: After so many fetches from peers in a row that failed, files are read from their origins, for so many seconds.
IN_VAIN: Final = 6
PAUSE: Final = 60.0
#: In place of a worker: all.
_ALL: Final = WorkerId("")


class Reach:
    """Of all workers of a manager."""

    def __init__(self) -> None:
        self.addresses: dict[WorkerId, tuple[str, ...]] = {}
        self._hosts: dict[WorkerId, str] = {}
        #: Those that serve by loopback.
        self._near: set[WorkerId] = set()
        #: Those that have got something from a peer, and those that have failed to since one of them last did.
        self._well: set[WorkerId] = set()
        self._failing: set[WorkerId] = set()
        #: Failures in a row, and until when no peer is tried, of a worker or of all.
        self._in_vain: dict[WorkerId, int] = {}
        self._alone: dict[WorkerId, float] = {}

    def serving(self, worker: WorkerId, addresses: tuple[str, ...], host: str) -> None:
        """A worker on this host is reached so."""
        self.addresses[worker], self._hosts[worker] = addresses, host
        if all(is_loopback(address.rpartition(":")[0].strip("[]")) for address in addresses):
            self._near.add(worker)
        else:
            self._near.discard(worker)

    def gone(self, worker: WorkerId) -> None:
        """A worker is lost."""
        for known in (self.addresses, self._hosts, self._in_vain, self._alone):
            known.pop(worker, None)
        for them in (self._near, self._well, self._failing):
            them.discard(worker)

    def host(self, worker: WorkerId) -> str:
        """Where it is; as long as that is not known, on one of its own."""
        return self._hosts.get(worker) or worker

    def elsewhere(self, than: Iterable[WorkerId]) -> Iterator[WorkerId]:
        """Workers on other hosts than these."""
        hosts = {self.host(one) for one in than}
        return (one for one in self.addresses if self.host(one) not in hosts)

    def alone(self, worker: WorkerId) -> bool:
        """No peer is tried by it now."""
        return _ALL in self._alone or worker in self._alone

    def may_serve(self, one: WorkerId, to: WorkerId) -> bool:
        """Whether ``one`` is tried by ``to``."""
        if one == to or not self.addresses.get(one) or self.alone(to):
            return False
        return one not in self._near or to in self._near or self._hosts.get(one) == self._hosts.get(to)

    def well(self, worker: WorkerId) -> None:
        """It has got something from a peer."""
        self._well.add(worker)
        self._failing.clear()
        for who in (worker, _ALL):
            self._in_vain.pop(who, None)
            self._alone.pop(who, None)

    def failed(self, worker: WorkerId, now: float) -> bool:
        """It could not get something from a peer; True: from now on less is tried than was, so who waits for a peer is to be looked at."""
        self._failing.add(worker)
        less = False
        for who in (worker, _ALL):
            self._in_vain[who] = self._in_vain.get(who, 0) + 1
            enough = who == worker or 2 * len(self._failing) >= len(self._well)
            if self._in_vain[who] >= IN_VAIN and enough and who not in self._alone:
                self._alone[who] = now + PAUSE
                less = True
        return less

    def pump(self, now: float) -> None:
        """Time has passed."""
        if not self._alone:
            return
        over: Iterable[WorkerId] = [who for who, until in self._alone.items() if now >= until]
        for who in over:
            del self._alone[who]
            self._in_vain[who] = IN_VAIN - 1
