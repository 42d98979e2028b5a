"""A full installation without a network on the Ubuntus that JetPack 5, 6 and 7 are made of, each really booted.

They are of x86-64 and have no GPU: what is tested is the system around it, from systemd 245 and Python 3.8 on.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from os import environ
from pathlib import Path

import pytest

from tests.install.machine import CHECKOUT_INSIDE, MODEL_INSIDE, WHEELS_OPTION, Machine, need_tools
from tests.install.test_booted import ASK
from tests.install.ubuntu import need_x86, ubuntu_tree, ubuntu_wheels
from tests.models import smollm2_path

pytestmark = [pytest.mark.slow, pytest.mark.systemd, pytest.mark.timeout(7200)]

INSTALL = f"{CHECKOUT_INSIDE}/install.sh"


@dataclass(frozen=True)
class JetPack:
    """A release of JetPack. ubuntu: what it is made of, by its codename. python: that system's own."""

    number: int
    ubuntu: str
    release: str
    revision: str
    python: str


JETPACKS = (
    JetPack(5, "focal", "35", "5.0", "3.8"),
    JetPack(6, "jammy", "36", "4.0", "3.10"),
    JetPack(7, "noble", "38", "2.0", "3.12"),
)


@dataclass(frozen=True)
class Board:
    jetpack: JetPack
    machine: Machine


@pytest.fixture(scope="module", params=JETPACKS, ids=lambda jetpack: f"jetpack{jetpack.number}")
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    """Booted, with its nv_tegra_release, this checkout, the wheels and a model in /srv. Nothing is installed."""
    need_tools()
    need_x86()
    jetpack: JetPack = request.param
    model = smollm2_path()
    folder = Path(tempfile.mkdtemp(prefix="moe2-jetpack-"))
    try:
        kept = Path(environ["MOE2_TEST_TREE"]) / "ubuntu" if "MOE2_TEST_TREE" in environ else folder / "kept"
        kept.mkdir(parents=True, exist_ok=True)
        packed = ubuntu_wheels(kept)
        with Machine(ubuntu_tree(kept, jetpack.ubuntu), folder) as machine:
            machine.add_checkout(CHECKOUT_INSIDE)
            shutil.copytree(packed, machine.root / "srv/wheels")
            (machine.root / "srv/models").mkdir()
            shutil.copy(model, machine.root / MODEL_INSIDE.lstrip("/"))
            text = f"# R{jetpack.release} (release), REVISION: {jetpack.revision}, GCID: 1, BOARD: generic\n"
            (machine.root / "etc/nv_tegra_release").write_text(text)
            yield Board(jetpack, machine)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_dry_run_says_at_once_what_cannot_be(board: Board) -> None:
    """Without a network and without wheels an old Python is the end, on JetPack 7 its own one is taken."""
    planned = board.machine.command(INSTALL, "coordinator", "--dry-run")
    named = f"L4T {board.jetpack.release}.{board.jetpack.revision} (JetPack {board.jetpack.number})"
    assert named in planned.stdout
    if board.jetpack.number == 7:
        assert planned.returncode == 0, planned.stderr
        assert "python3.12-venv" in planned.stdout
    else:
        assert planned.returncode == 1
        assert f"this host has {board.jetpack.python}." in planned.stderr
        assert "Nothing was changed" in planned.stderr
        refused = board.machine.command(INSTALL, "coordinator")
        assert refused.returncode == 1
        assert not (board.machine.root / "opt/moe2").exists()


def test_a_full_installation_answers(board: Board) -> None:
    """Coordinator and agent from the wheels, with the Python beside them; a prompt gets an answer and a receipt."""
    machine = board.machine
    machine.output(INSTALL, "coordinator", *WHEELS_OPTION)
    machine.output(
        *(INSTALL, "agent", "--coordinator", "ws://127.0.0.1:8081", "--model", MODEL_INSIDE, "--name", "edge"),
        *("--profile", "agx-orin-maxn"),
        *WHEELS_OPTION,
    )
    machine.wait_for('moe2-coordinator status --json | grep -q \'"state":"ready"\'')
    told = json.loads(machine.output("/opt/moe2/current/bin/python", "-c", ASK))
    assert told["choices"][0]["message"]["content"]
    assert told["moe2"]["energy"]["joules"] > 0
    assert machine.output("systemctl", "is-system-running") == "running"


def test_it_runs_with_the_python_that_was_brought(board: Board) -> None:
    """Under /opt/moe2/python, as the service; the system's own is as it was."""
    machine = board.machine
    pid = machine.output("systemctl", "show", "--property", "MainPID", "--value", "moe2-agent")
    assert machine.output("readlink", f"/proc/{pid}/exe").startswith("/opt/moe2/python/cpython-3.")
    version = machine.output("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    assert version == board.jetpack.python


def test_this_systemd_knows_every_line_of_the_units(board: Board) -> None:
    """From 245 on; what came later is left out there."""
    complaints = board.machine.shell("journalctl -b --no-pager | grep -E 'Unknown (key|lvalue)' || true")
    assert complaints == ""


def test_the_doctor_asks_as_the_service(board: Board) -> None:
    """With the units' rights as far as this systemd has them; a Jetson without its GPU's nodes is told so."""
    told = board.machine.command("moe2-agent", "doctor", "--json")
    assert told.stderr == ""
    found = json.loads(told.stdout)
    assert (found["as_service"], found["user"]) == (True, "moe2-agent")
    assert found["gpu_usable"] is False


def test_an_upgrade_and_a_second_run_need_nothing_new(board: Board) -> None:
    """The Python is found where it is; nothing is changed."""
    again = board.machine.output(INSTALL, "agent", *WHEELS_OPTION)
    assert "nothing; everything was as it should be" in again


def test_purging_leaves_nothing(board: Board) -> None:
    """No file of moe2, the Python included."""
    board.machine.output(INSTALL, "uninstall", "--purge")
    left = board.machine.shell("find /opt /etc /var/lib /usr/local -name '*moe2*'")
    assert re.findall(r"\S+", left) == []
