"""A fake systemd-logind on a real, private D-Bus: what the agent's `busctl` says to it, it hears.

It suspends nothing. It answers CanSuspend and Suspend as a test says, and remembers who asked for what.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from jeepney import HeaderFields, MatchRule, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.asyncio import DBusConnection, open_dbus_connection

CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""
ACCESS_DENIED = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"


class FakeLogind:
    """can: what CanSuspend answers. refusal: the error that Suspend ends in; None if it agrees."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.can = "yes"
        self.refusal: str | None = None
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    async def serve(self, connection: DBusConnection) -> None:
        """Answers calls until it is cancelled."""
        while True:
            call = await connection.receive()
            if call.header.message_type is not MessageType.method_call:
                continue
            member = call.header.fields[HeaderFields.member]
            self.calls.append((member, tuple(call.body)))
            if member == "CanSuspend":
                answer = new_method_return(call, "s", (self.can,))
            elif self.refusal is not None:
                answer = new_error(call, ACCESS_DENIED, "s", (self.refusal,))
            else:
                answer = new_method_return(call)
            await connection.send(answer)


@asynccontextmanager
async def fake_logind(folder: Path) -> AsyncIterator[FakeLogind]:
    """A bus of its own with a fake logind on it, ended with the context."""
    socket, configuration = folder / "bus", folder / "bus.conf"
    configuration.write_text(CONFIGURATION.format(socket=socket))
    bus = await asyncio.create_subprocess_exec(
        "dbus-daemon", "--nofork", "--print-address=1", f"--config-file={configuration}", stdout=asyncio.subprocess.PIPE
    )
    assert bus.stdout is not None
    try:
        # The address is printed when the bus listens.
        await bus.stdout.readline()
        address = f"unix:path={socket}"
        connection = await open_dbus_connection(address)
        for message in (
            message_bus.RequestName("org.freedesktop.login1"),
            message_bus.AddMatch(MatchRule(type="method_call")),
        ):
            await connection.send(message)
        logind = FakeLogind(address)
        serving = asyncio.create_task(logind.serve(connection))
        try:
            yield logind
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            await connection.close()
    finally:
        bus.terminate()
        await bus.wait()
