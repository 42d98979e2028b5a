"""install.sh: which devices the agent's unit lets through, derived from what the kernel and /dev have."""

from __future__ import annotations

import pytest

from tests.install.fakehost import CHECKOUT, FakeHost

DROPIN = "etc/systemd/system/moe2-agent.service.d/20-devices.conf"
GROUPS = "etc/systemd/system/moe2-agent.service.d/10-groups.conf"
CLASSES = """Character devices:
  1 mem
  4 /dev/vc/0
 10 misc
{}
Block devices:
259 blkext
511 17000000.ga10b
"""

pytestmark = pytest.mark.slow


def devices(host: FakeHost, *nodes: tuple[str, int, str], classes: str = "") -> None:
    """Nodes as (path below /dev, major number, group), and classes as the kernel lists them."""
    host.file("proc/devices", CLASSES.format(classes))
    cases = []
    for path, major, group in nodes:
        host.file(f"dev/{path}", "")
        cases.append(f"  */dev/{path}) echo '{major:x} {group}';;")
    host.program("stat", "for path; do :; done\ncase $path in\n" + "\n".join(cases) + "\n  *) exit 1;;\nesac")


def rules(host: FakeHost) -> list[str]:
    """What the installed drop-in lets through."""
    installed = host.install_agent()
    assert installed.returncode == 0, installed.stderr
    lines = (host.root / DROPIN).read_text().splitlines()
    return [line.removeprefix("DeviceAllow=") for line in lines if line.startswith("DeviceAllow=")]


def test_an_orin_whose_driver_registers_under_its_own_name(host: FakeHost) -> None:
    """nvgpu's classes by name, nvmap by path, as it has no class of its own."""
    devices(
        host,
        ("nvgpu/igpu0/ctrl", 507, "video"),
        ("nvmap", 10, "video"),
        ("dri/renderD128", 226, "render"),
        ("nvhost-ctrl-gpu", 506, "video"),
        classes="226 drm\n506 nvhost\n507 17000000.gpu\n508 17000000.ga10b\n",
    )
    assert rules(host) == [
        "/dev/nvmap rw",
        "char-17000000.ga10b rw",
        "char-17000000.gpu rw",
        "char-drm rw",
        "char-nvhost rw",
    ]


def test_a_card_with_all_its_classes(host: FakeHost) -> None:
    """Also those of which no node has been made yet."""
    devices(
        host,
        ("nvidiactl", 195, "root"),
        ("nvidia0", 195, "root"),
        ("nvidia-caps/nvidia-cap1", 236, "root"),
        classes="195 nvidia\n195 nvidiactl\n234 nvidia-uvm\n236 nvidia-caps\n",
    )
    assert rules(host) == [f"char-{name} rw" for name in ("nvidia", "nvidia-caps", "nvidia-uvm", "nvidiactl")]


def test_windows_has_one_node(host: FakeHost) -> None:
    """By its path."""
    devices(host, ("dxg", 10, "root"))
    assert rules(host) == ["/dev/dxg rw"]


def test_a_node_of_a_class_that_the_kernel_does_not_list(host: FakeHost) -> None:
    """By its path."""
    devices(host, ("nvidia0", 195, "root"))
    assert rules(host) == ["/dev/nvidia0 rw"]


def test_a_disk_is_no_gpu(host: FakeHost) -> None:
    """nvme begins with the same letters, and whoever may open it reads the disk."""
    devices(host, ("nvme0", 240, "root"), classes="240 nvme\n241 nvme-generic\n242 nvram\n")
    assert rules(host) == []
    unit = (CHECKOUT / "systemd/moe2-agent.service").read_text()
    assert "char-nv*" not in "".join(line for line in unit.splitlines() if line.startswith("DeviceAllow"))


def test_names_that_would_break_the_unit_are_left_out(host: FakeHost) -> None:
    """A class with a slash or a space, and a node whose name has one."""
    devices(
        host,
        ("nvidia0", 300, "root"),
        ("nvidia0 DeviceAllow=b", 301, "root"),
        classes="300 nvidia/one\n301 nvidia two\n",
    )
    assert rules(host) == []


def test_a_host_without_a_gpu_gets_no_device(host: FakeHost) -> None:
    """And one whose /proc has no such file as well."""
    devices(host)
    assert rules(host) == []
    (host.root / "proc/devices").unlink()
    (host.root / DROPIN).unlink()
    assert rules(host) == []


def test_the_groups_that_own_nodes_are_given_to_the_agent(host: FakeHost) -> None:
    """Beside those that do by custom; never root's own."""
    devices(host, ("nvidia0", 195, "vglusers"), ("nvidiactl", 195, "root"), classes="195 nvidia\n")
    host.install_agent()
    line = (host.root / GROUPS).read_text().splitlines()[-1]
    assert line == "SupplementaryGroups=vglusers video"


def test_a_second_run_changes_nothing(host: FakeHost) -> None:
    """The same devices are the same drop-in; another device is a new one, and the agent is started again."""
    devices(host, ("dxg", 10, "root"))
    host.install_agent()
    host.calls()
    assert "nothing; everything was as it should be" in host.install("agent").stdout
    devices(host, ("dxg", 10, "root"), ("nvidia0", 195, "root"), classes="195 nvidia\n")
    host.install("agent")
    assert "systemctl: restart moe2-agent.service" in host.calls()
