"""Where magic packets wake this host, and sending them to its neighbours."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from pathlib import Path

from moe2.common.errors import CommandErrorCode, Moe2Error
from moe2.common.link.messages import CommandAnswer, CommandOutcome, WakeNeighbour
from moe2.common.magicpacket import send_magic_packet
from moe2.common.standby import MAX_WAKE_ADDRESSES, WakeAddress

_ETHERNET = "1"
"""ARPHRD_ETHER, which Wi-Fi interfaces have as well."""
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B
_NO_MAC = "00:00:00:00:00:00"


class NotANeighbourError(Moe2Error):
    """This host has no interface on the network that a packet is to be sent to."""


def wake_addresses(root: Path = Path("/")) -> tuple[WakeAddress, ...]:
    """Returns the addresses of this host's physical network interfaces, by name.

    root: where /sys is. Interfaces without a device (bridges, VPNs, containers' pairs) wake nobody and are left out.
    """
    found = []
    for folder in sorted((root / "sys/class/net").glob("*")):
        mac = _word(folder / "address").lower()
        if _word(folder / "type") != _ETHERNET or not (folder / "device").exists() or mac in ("", _NO_MAC):
            continue
        network = _network_of(folder.name)
        armed = _word(folder / "device/power/wakeup")
        found.append(
            WakeAddress(
                interface=folder.name,
                mac=mac,
                network=str(network) if network else None,
                broadcast=str(network.broadcast_address) if network else None,
                armed={"enabled": True, "disabled": False}.get(armed),
            )
        )
    return tuple(found[:MAX_WAKE_ADDRESSES])


def wake_neighbour(mac: str, network: str, own: tuple[ipaddress.IPv4Interface, ...]) -> None:
    """Sends a magic packet to the broadcast address of a network that this host is on.

    own: this host's interfaces. Raises NotANeighbourError where none is on that network, OSError if it cannot be sent,
    ValueError for addresses that are none.
    """
    wanted = ipaddress.IPv4Network(network)
    for interface in own:
        if interface.network == wanted:
            send_magic_packet(mac, str(wanted.broadcast_address), source=str(interface.ip))
            return
    known = ", ".join(sorted({str(interface.network) for interface in own})) or "none"
    raise NotANeighbourError(f"This host is not on {wanted}. Its networks: {known}.")


def answer_to_wake(command: WakeNeighbour) -> CommandAnswer:
    """Obeys a command to wake a neighbour, and returns the answer."""
    try:
        wake_neighbour(command.mac, command.network, own_interfaces())
    except (NotANeighbourError, ValueError) as error:
        code, outcome, text = CommandErrorCode.NOT_POSSIBLE, CommandOutcome.REFUSED, str(error)
    except OSError as error:
        code, outcome, text = CommandErrorCode.INTERNAL, CommandOutcome.FAILED, f"The packet was not sent: {error}."
    else:
        return CommandAnswer(command_id=command.command_id, outcome=CommandOutcome.DONE)
    return CommandAnswer(command_id=command.command_id, outcome=outcome, code=code, message=text)


def own_interfaces(root: Path = Path("/")) -> tuple[ipaddress.IPv4Interface, ...]:
    """Returns the IPv4 address of each network interface, with its network."""
    names = sorted(folder.name for folder in (root / "sys/class/net").glob("*"))
    return tuple(interface for name in names if (interface := _interface_of(name)))


def _network_of(name: str) -> ipaddress.IPv4Network | None:
    interface = _interface_of(name)
    return interface.network if interface else None


def _interface_of(name: str) -> ipaddress.IPv4Interface | None:
    """Returns the interface's first IPv4 address (netdevice(7)); None where it has none."""
    with suppress(OSError, ValueError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        request = struct.pack("256s", name.encode()[:15])
        address, mask = (
            socket.inet_ntoa(fcntl.ioctl(asked.fileno(), what, request)[20:24])
            for what in (_SIOCGIFADDR, _SIOCGIFNETMASK)
        )
        return ipaddress.IPv4Interface(f"{address}/{mask}")
    return None


def _word(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""
