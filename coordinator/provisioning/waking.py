"""Wakes a sleeping host: by magic packets from here and from awake neighbours, and by an operator's command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from moe2.common.link.messages import ToAgent, WakeNeighbour
from moe2.common.magicpacket import send_magic_packet
from moe2.common.standby import WakeAddress
from moe2.common.status import AgentRow

log = structlog.get_logger()

COMMAND_S = 30.0
"""An operator's command that takes longer is ended."""

Send = Callable[[str, ToAgent], bool]


async def wake(
    row: AgentRow, rows: Sequence[AgentRow], send: Send, command: Sequence[str] | None, order_id: str
) -> None:
    """Does all that may wake a host; whether it wakes is seen when its agent connects.

    A magic packet does not leave its network, so that whoever is awake on the same network sends it, too.
    """
    addresses = row.standby.wake_addresses if row.standby else ()
    for address in addresses:
        await _from_here(row, address)
        _from_neighbours(row, address, rows, send, order_id)
    if command is not None:
        mac = addresses[0].mac if addresses else ""
        await _by_command([part.replace("{name}", row.agent_name).replace("{mac}", mac) for part in command])


async def _from_here(row: AgentRow, address: WakeAddress) -> None:
    if address.broadcast is None:
        return
    try:
        await asyncio.to_thread(send_magic_packet, address.mac, address.broadcast)
        log.info("magic_packet_sent", agent_id=row.agent_id, mac=address.mac, broadcast=address.broadcast)
    except (OSError, ValueError) as error:
        log.warning("magic_packet_not_sent", agent_id=row.agent_id, mac=address.mac, reason=str(error))


def _from_neighbours(row: AgentRow, address: WakeAddress, rows: Sequence[AgentRow], send: Send, order_id: str) -> None:
    if address.network is None:
        return
    for other in rows:
        networks = {one.network for one in other.standby.wake_addresses} if other.standby else set()
        if other.connected and other.agent_id != row.agent_id and address.network in networks:
            send(
                other.agent_id,
                WakeNeighbour(
                    command_id=f"{order_id}-by-{other.agent_id}"[:256], mac=address.mac, network=address.network
                ),
            )


async def _by_command(command: Sequence[str]) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        log.error("wake_command_failed", command=command[0], reason=error.strerror or str(error))
        return
    try:
        async with asyncio.timeout(COMMAND_S):
            _, said = await process.communicate()
    except TimeoutError:
        log.error("wake_command_failed", command=command[0], reason=f"it took longer than {COMMAND_S:.0f} s")
    else:
        if process.returncode:
            text = said.decode("utf-8", "replace")[-500:].strip()
            log.error("wake_command_failed", command=command[0], status=process.returncode, said=text)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
