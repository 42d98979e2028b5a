"""Names of hosts and origins of pages, as headers write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.hosts import Authority, Origin, in_url


@pytest.mark.parametrize(
    ("text", "authority"),
    [
        ("hub.example", Authority("hub.example")),
        ("HUB.example.:8080", Authority("hub.example", 8080)),
        ("192.0.2.7:80", Authority("192.0.2.7", 80)),
        ("[::1]:8080", Authority("::1", 8080)),
        ("[::1]", Authority("::1")),
        ("hub.example:", Authority("hub.example")),
        ("::1", None),
        ("", None),
        ("a b", None),
        ("user@hub.example", None),
        ("hub.example/path", None),
        ("hub.example:99x", None),
        ("[not-an-address]", None),
        ("h\xfcb.example", None),
    ],
)
def test_a_host_header_is_read(text: str, authority: Authority | None) -> None:
    """Case and a final dot do not count; what is no host is None."""
    assert Authority.parse(text) == authority


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://chat.example", Origin("https", "chat.example", 443)),
        ("http://Chat.example:80", Origin("http", "chat.example", 80)),
        ("http://[::1]:3000", Origin("http", "::1", 3000)),
        ("app://editor", Origin("app", "editor", None)),
        ("null", None),
        ("https://chat.example/", None),
        ("chat.example", None),
        ("https://", None),
    ],
)
def test_an_origin_header_is_read(text: str, origin: Origin | None) -> None:
    """A scheme's own port is the same as none; "null" is nobody's."""
    assert Origin.parse(text) == origin


@pytest.mark.parametrize(
    ("origin", "host", "is_same"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("http://hub.example", "hub.example", True),
        ("https://hub.example", "hub.example", True),
        ("https://hub.example", "hub.example:443", True),
        ("http://hub.example:3000", "hub.example:8080", False),
        ("http://hub.example", "hub.example:8080", False),
        ("http://other.example", "hub.example", False),
        ("http://hub.example.evil.example", "hub.example", False),
    ],
)
def test_a_page_is_at_its_own_listener(origin: str, host: str, is_same: bool) -> None:
    """Name and port are the same; the scheme may be a proxy's."""
    page, listener = Origin.parse(origin), Authority.parse(host)
    assert page
    assert listener
    assert page.is_at(listener) is is_same


@given(st.text())
def test_any_text_is_read_or_is_none(text: str) -> None:
    """Whatever a stranger sends raises nothing."""
    for found in (Authority.parse(text), Origin.parse(text)):
        assert found is None or found.host == found.host.lower()


@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("hub.example", "hub.example")]
)
def test_only_ipv6_addresses_have_brackets_in_a_url(host: str, written: str) -> None:
    """A port follows after a colon, of which such addresses have some."""
    assert in_url(host) == written
