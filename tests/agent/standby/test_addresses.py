"""Where magic packets wake a host, and sending them."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import pytest

from moe2.agent.standby.addresses import NotANeighbourError, own_interfaces, wake_addresses, wake_neighbour
from moe2.common.magicpacket import REPEATS, send_magic_packet
from moe2.common.standby import WakeAddress

MAC = "3c:6d:66:01:02:03"


def interface(root: Path, name: str, *, mac: str = MAC, kind: str = "1", real: bool = True, wakeup: str = "") -> None:
    folder = root / "sys/class/net" / name
    (folder / "device/power" if real else folder).mkdir(parents=True)
    (folder / "address").write_text(f"{mac}\n")
    (folder / "type").write_text(f"{kind}\n")
    if wakeup:
        (folder / "device/power/wakeup").write_text(f"{wakeup}\n")


def test_only_interfaces_that_could_wake_the_host_are_told(tmp_path: Path) -> None:
    """Cards with a hardware address; no bridge, no VPN, no loopback."""
    interface(tmp_path, "zz-not-here0", wakeup="enabled")
    interface(tmp_path, "zz-not-here1", mac="3C:6D:66:01:02:04", wakeup="disabled")
    interface(tmp_path, "bridge", real=False)
    interface(tmp_path, "tunnel", kind="65534")
    interface(tmp_path, "blank", mac="00:00:00:00:00:00")
    assert wake_addresses(tmp_path) == (
        WakeAddress(interface="zz-not-here0", mac=MAC, armed=True),
        WakeAddress(interface="zz-not-here1", mac="3c:6d:66:01:02:04", armed=False),
    )


def test_whether_an_interface_may_wake_is_unknown_where_the_kernel_does_not_say(tmp_path: Path) -> None:
    """Unknown is neither yes nor no."""
    interface(tmp_path, "zz-not-here0")
    assert wake_addresses(tmp_path)[0].armed is None


def test_a_host_without_network_interfaces_has_no_address(tmp_path: Path) -> None:
    """That is no fault."""
    assert wake_addresses(tmp_path) == ()


def test_this_hosts_own_networks_are_found() -> None:
    """The loopback interface, which every host has, with its network."""
    assert ipaddress.IPv4Interface("127.0.0.1/8") in own_interfaces()


def test_a_magic_packet_arrives_as_it_has_to_be() -> None:
    """Six bytes of ones and the address sixteen times, at a listener on the network's broadcast address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.255.255.255", 0))
        listener.settimeout(10)
        send_magic_packet(MAC, "127.255.255.255", source="127.0.0.1", port=listener.getsockname()[1])
        packets = [listener.recv(200) for _ in range(REPEATS)]
    assert packets == [b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) * 16] * REPEATS


def test_a_neighbour_on_another_network_is_refused() -> None:
    """With the networks that this host is on."""
    own = (ipaddress.IPv4Interface("192.168.1.7/24"),)
    with pytest.raises(NotANeighbourError, match=r"not on 10\.0\.0\.0/8\. Its networks: 192\.168\.1\.0/24"):
        wake_neighbour(MAC, "10.0.0.0/8", own)


@pytest.mark.parametrize(("mac", "network"), [("nonsense", "127.0.0.0/8"), (MAC, "everywhere"), (MAC, "127.0.0.1/8")])
def test_addresses_that_are_none_are_refused(mac: str, network: str) -> None:
    """Nothing is sent."""
    with pytest.raises(ValueError, match=r".+"):
        wake_neighbour(mac, network, (ipaddress.IPv4Interface("127.0.0.1/8"),))
