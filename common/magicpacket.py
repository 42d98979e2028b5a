"""Magic packets, which wake a suspended host over its network. The only user of wakeonlan."""

from __future__ import annotations

import socket

from wakeonlan import create_magic_packet

PORT = 9
"""The discard port: no program listens there, and network cards look at the packet's content alone."""
REPEATS = 3
"""A broadcast has no receipt, and a packet that is lost would cost a whole wake."""


def send_magic_packet(mac: str, broadcast: str, *, source: str | None = None, port: int | None = None) -> None:
    """Sends the packet that wakes the host with this hardware address.

    mac: such as "3c:6d:66:01:02:03". broadcast: the address of the host's network, or of the host. source: the address
    of the interface to send from; the routing table decides where it is None. Raises OSError, and ValueError for a
    `mac` that is none. port: the discard port if not given.
    """
    packet = create_magic_packet(mac)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if source is not None:
            sender.bind((source, 0))
        for _ in range(REPEATS):
            sender.sendto(packet, (broadcast, PORT if port is None else port))
