"""The hosts and origins that a listener accepts."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from moe2.coordinator.http.access.browsers import Browsers, Sites, accepted_sites
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.settings import ApiSection


def sites(**options: Any) -> Sites:
    """Returns the sites of a listener on loopback without keys, unless options say otherwise."""
    given: dict[str, Any] = {
        "hosts": (),
        "origins": (),
        "listens_at": "127.0.0.1",
        "own_names": ("orin", "orin.local"),
        "is_loopback": True,
        "needs_keys": False,
    }
    return accepted_sites(**(given | options))


PUBLIC = {"listens_at": "0.0.0.0", "is_loopback": False}


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost", "LOCALHOST.:80", "[::1]:8080", "192.0.2.7", "orin.local", None]
)
@pytest.mark.parametrize("options", [{}, {"needs_keys": True}, PUBLIC, {**PUBLIC, "hosts": ("hub.example",)}])
def test_addresses_and_own_names_are_always_right(host: str | None, options: dict[str, Any]) -> None:
    """Addresses and the machine's own names are accepted, as no stranger's name server can rebind them."""
    sites(**options).check_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "", "127.0.0.1@x", "::1"]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"needs_keys": True}, PUBLIC, {**PUBLIC, "needs_keys": True, "hosts": ("hub.example",)}],
    ids=["loopback", "loopback with keys", "public without keys", "public with hosts"],
)
def test_a_foreign_name_is_refused(host: str, options: dict[str, Any]) -> None:
    """A foreign host name is refused with the setting that would allow it, in a short message."""
    with pytest.raises(ApiError, match=r".*") as refusal:
        sites(**options).check_host(host)
    assert (refusal.value.status, refusal.value.code) == (403, "unknown_host")
    assert "api.hosts" in refusal.value.message


def test_a_configured_name_is_right_with_any_port() -> None:
    """A configured host name is accepted with any port, as proxies and forwarded ports have another one."""
    sites(hosts=("hub.example",)).check_host("Hub.Example:443")


def test_a_name_that_is_configured_no_more_is_refused_from_the_next_request_on() -> None:
    """That it was right before is forgotten with the settings that allowed it."""
    request = make_mocked_request("GET", "/v1/models", {"Host": "hub.example"})
    browsers = Browsers(ApiSection(hosts=("hub.example",)))
    for _ in range(2):
        assert browsers.check(request) is None
    browsers.use(ApiSection())
    with pytest.raises(ApiError, match=r"hub\.example"):
        browsers.check(request)


def test_behind_keys_on_a_public_address_every_name_is_right_until_some_are_configured() -> None:
    """A public listener with keys accepts every name until some are configured."""
    sites(**PUBLIC, needs_keys=True).check_host("any.example")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:3000", "file://"])
def test_a_foreign_page_is_refused(origin: str) -> None:
    """A page from elsewhere is refused, with keys or without, also from the same address at another port."""
    with pytest.raises(ApiError, match=r".*") as refusal:
        sites(origins=("https://chat.example",), needs_keys=True).check_origin(origin, "127.0.0.1:8080")
    assert (refusal.value.status, refusal.value.code) == (403, "cross_site")
    assert "api.origins" in refusal.value.message


def test_the_listeners_own_page_needs_no_setting() -> None:
    """The listener's own page needs no setting and gets no CORS headers."""
    assert sites().check_origin("http://127.0.0.1:8080", "127.0.0.1:8080") is False


def test_a_configured_site_is_allowed() -> None:
    """A configured site is allowed, however its origin is spelt."""
    allowed = sites(origins=("https://chat.example",))
    assert allowed.check_origin("https://chat.example", "127.0.0.1:8080") is True
    assert allowed.check_origin("https://CHAT.example:443", "127.0.0.1:8080") is True


def test_errors_show_a_strangers_text_in_short() -> None:
    """Errors repeat a stranger's text shortened and without control characters."""
    with pytest.raises(ApiError) as refusal:
        sites().check_host("\x1b" + "x" * 100_000)
    assert len(refusal.value.message) < 300
    assert refusal.value.message.isprintable()
