"""Telling systemd about readiness and liveness, sd_notify(3). Does nothing where systemd did not ask."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends state lines to the socket that systemd named in `NOTIFY_SOCKET`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET")
        # An abstract socket's name starts with a NUL byte, written as @ in the variable.
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        watchdog_us = environment.get("WATCHDOG_USEC")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(watchdog_us) / 1e6 if watchdog_us and watchdog_us.isdecimal() and is_ours else None
        """systemd restarts us if it hears nothing for this long; None without a watchdog."""

    def notify(self, *assignments: str) -> None:
        """Send assignments such as "READY=1". A failure is no reason to stop serving, so there is no error."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            return

    async def feed_watchdog(self) -> None:
        """Tell systemd that the event loop turns, twice per watchdog period, until cancelled; at once without one."""
        if self.watchdog_s is None:
            return
        while True:
            self.notify("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 2)
