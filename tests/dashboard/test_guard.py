"""Who may see the page: the token, the cookie, names of hosts."""

from __future__ import annotations

import pytest

from windlass.dashboard.guard import HEADERS, Guard, host_of


def test_every_page_has_secrets_of_its_own() -> None:
    """256 bits each, and a path of 64 bits that the cookie is bound to."""
    guards = [Guard() for _ in range(20)]
    assert len({guard.token for guard in guards} | {guard.cookie() for guard in guards} | {guard.path for guard in guards}) == 60
    assert all(len(guard.token) == 43 and len(guard.path) == 18 for guard in guards)


def test_the_token_and_the_cookie_open_and_nothing_else_does() -> None:
    guard = Guard()
    cookie = guard.cookie().partition(";")[0].partition("=")[2]
    assert guard.knows_token(guard.token)
    assert guard.knows_cookie(cookie)
    for wrong in ("", "x", guard.token[:-1], guard.token + "x", cookie, "ü" * 43):
        assert not guard.knows_token(wrong)
    for wrong in ("", guard.token, cookie[:-1], "ü"):
        assert not guard.knows_cookie(wrong)


def test_scripts_and_other_sites_never_see_the_cookie() -> None:
    guard = Guard()
    words = {word.strip() for word in guard.cookie().split(";")}
    assert {"HttpOnly", "SameSite=Strict", f"Path={guard.path}"} < words


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:43217", "127.0.0.1:1", "[::1]:80", "[::1]", "LOCALHOST:9", "10.1.2.3:80", "login1:80"]
)
def test_names_of_this_machine_and_addresses_are_known(host: str) -> None:
    """A tunnel may have another port; an address cannot be somebody else's name."""
    assert Guard(["login1"]).knows_host(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.nip.io", "login2", "a:b:c", "[evil]:1"]
)
def test_names_that_another_site_can_let_lead_here_are_refused(host: str) -> None:
    """DNS rebinding: the site's own name is in ``Host`` then."""
    assert not Guard(["login1"]).knows_host(host)


def test_a_link_names_host_port_path_and_token() -> None:
    guard = Guard()
    assert guard.link("127.0.0.1", 80) == f"http://127.0.0.1:80{guard.path}?token={guard.token}"
    assert guard.link("::1", 80).startswith("http://[::1]:80/")
    assert guard.link("login1", 80).startswith("http://login1:80/")
    assert host_of("[::1]:8") == "::1"


def test_the_policy_allows_no_other_host_and_no_inline_script() -> None:
    """Nothing but what the page has itself."""
    policy = dict(part.strip().split(" ", 1) for part in HEADERS["content-security-policy"].split(";"))
    assert policy.pop("img-src") == "data:"
    assert set(policy.values()) == {"'none'", "'self'"}
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
