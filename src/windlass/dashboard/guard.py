"""Who may see the page: the token of the link, the cookie that it becomes, and what a browser may do with the page.

Theory of operation
-------------------
The link holds a token of 256 bits.  Who opens it gets the page and a cookie; the page then takes the token out of the address bar.  All
else is answered to that cookie only.  Whatever has neither is told how to get in, and nothing about the manager.

*Other sites.* The cookie is HttpOnly and SameSite=Strict, and no answer allows another origin to read it.  A name in ``Host`` has to be
loopback's (or the one that was asked for), so that a site which lets its own name lead here (DNS rebinding) is
refused.  *Other users of the machine.* Cookies know no ports: a page that somebody else serves at another port of this host would be sent
the cookie, too.  So it is bound to a path that nobody else knows.  *Scripts.* The policy allows nothing but the page's own script, style
and stream.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Iterable, Mapping
from typing import Final

#: Sent with everything.
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
COOKIE: Final = "windlass"


class Guard:
    """The secrets of one page, and who gets in. ``names``: hosts that a link may name beside loopback's."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.token = secrets.token_urlsafe(32)
        #: Where the page is: nobody else knows it, so nobody else is sent the cookie.
        self.path = f"/{secrets.token_hex(8)}/"
        self._session = secrets.token_urlsafe(32)
        self._names = _LOOPBACK_NAMES | {name.lower().strip("[]") for name in names if name}

    def knows_host(self, header: str) -> bool:
        """Whether the ``Host`` of a request is one that this page may be asked for by: a name of ours, or any address, which no other
        site's name can lead here as. The port is a tunnel's choice."""
        host = host_of(header)
        try:
            return host in self._names or bool(ipaddress.ip_address(host))
        except ValueError:
            return False

    def knows_token(self, given: str) -> bool:
        """In constant time."""
        return hmac.compare_digest(given.encode(), self.token.encode())

    def knows_cookie(self, given: str) -> bool:
        """In constant time."""
        return hmac.compare_digest(given.encode(), self._session.encode())

    def cookie(self) -> str:
        """The ``Set-Cookie`` of who has shown the token; it ends with the browser."""
        return f"{COOKIE}={self._session}; HttpOnly; SameSite=Strict; Path={self.path}"

    def link(self, host: str, port: int) -> str:
        """The address to open."""
        try:
            shown = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
        except ValueError:
            shown = host
        return f"http://{shown}:{port}{self.path}?token={self.token}"


def host_of(header: str) -> str:
    """``[::1]:80`` → ``::1``; "" for what is no host."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") <= 1 else ""
