"""Who counts as one client of a listener, and what its log keeps to itself."""

from __future__ import annotations

import logging

import pytest
from aiohttp import ClientConnectionResetError

from moe2.common.listening import OpenConnections, client_of, protocol_logger


@pytest.mark.parametrize(
    ("error", "is_logged"),
    [(ClientConnectionResetError("Cannot write to closing transport"), False), (ValueError("a defect"), True)],
)
def test_whoever_has_left_is_no_fault(error: Exception, is_logged: bool) -> None:
    """A peer that is gone before its answer begins leaves no trace of an error; a defect of ours does."""
    logger = protocol_logger()
    record = logger.makeRecord("moe2.http", logging.ERROR, __file__, 1, "Error", (), (type(error), error, None))
    assert bool(logger.filter(record)) is is_logged


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1, 0, 0), "192.0.2.7"),
        (("2001:db8:0:1:2:3:4:5", 1, 0, 0), "2001:db8:0:1::/64"),
        (("2001:db8:0:1:ffff::1", 1, 0, 0), "2001:db8:0:1::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_addresses_of_one_ipv6_network_are_one_client(peer: object, client: str) -> None:
    """Who has one address of a /64 network usually has all of them."""
    assert client_of(peer) == client


def test_a_client_that_closes_its_connections_is_forgotten() -> None:
    """What is kept is bounded by the connections that are open; a refused one does not count."""
    connections = OpenConnections(1)
    assert [connections.take("a"), connections.take("a"), connections.take("b")] == [True, False, True]
    connections.give_back("a")
    assert connections.take("a")
    connections.give_back("a")
    connections.give_back("b")
    assert connections._open == {}
