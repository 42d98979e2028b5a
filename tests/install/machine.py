"""A Debian system in a container, booted by its own systemd, with a loopback of its own and no other network.

The tree is made by debootstrap, which takes minutes; where MOE2_TEST_TREE names a folder, tree and wheels stay there.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.install.fakehost import CHECKOUT
from tests.models import smollm2_path

CHECKOUT_INSIDE = "/srv/moe2"
MODEL_INSIDE = "/srv/models/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEELS_OPTION = ("--wheels", "/srv/wheels")
_PACKAGES = "systemd,systemd-sysv,dbus,libpam-systemd,polkitd,python3-venv,libgomp1"
_TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "git")
_BOOT_S = 120.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def need_tools() -> None:
    """Skip, with the reason, where no system can be booted."""
    if os.geteuid() != 0:
        pytest.skip("booting a system in a container needs root")
    if missing := [tool for tool in _TOOLS if not shutil.which(tool)]:
        pytest.skip(f"missing: {', '.join(missing)}. On Debian: apt-get install debootstrap systemd-container git")


def base_tree(folder: Path) -> Path:
    """A minimal Debian of this machine's release, so that its Python takes the same wheels."""
    tree = folder / "tree"
    complete = folder / "tree-complete"
    if not complete.exists():
        shutil.rmtree(tree, ignore_errors=True)
        release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
        if release.get("ID") != "debian":
            pytest.skip("this machine is no Debian, whose release the tree would have")
        run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", release["VERSION_CODENAME"], str(tree))
        complete.touch()
    minor = run("chroot", str(tree), "python3", "-c", "import sys; print(sys.version_info[1])")
    if int(minor) != sys.version_info[1]:
        pytest.skip(f"the tree has Python 3.{minor.strip()}, the tests run with 3.{sys.version_info[1]}")
    return tree


def wheels(folder: Path) -> Path:
    """All that installing needs without a network; llama.cpp from pip's cache, where ./install.sh test left it."""
    wanted = b"".join((CHECKOUT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    target = folder / f"wheels-{sha256(wanted).hexdigest()[:12]}"
    if not (target / "complete").exists():
        shutil.rmtree(target, ignore_errors=True)
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
        constraints = ("--constraint", str(CHECKOUT / "constraints.txt"))
        run(*pip, *constraints, "--wheel-dir", str(target), f"{CHECKOUT}[agent,coordinator]", "hatchling")
        for own in target.glob("moe2-*"):
            own.unlink()
        (target / "complete").touch()
    return target


def run(*command: str) -> str:
    """Raises `RuntimeError` with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


@contextmanager
def prepared_machine() -> Iterator[Machine]:
    """A booted machine with this checkout, the wheels and a model in /srv. Nothing is installed."""
    need_tools()
    model = smollm2_path()
    # Not pytest's own folder, which keeps the trees of former runs.
    folder = Path(tempfile.mkdtemp(prefix="moe2-booted-"))
    try:
        kept = Path(os.environ["MOE2_TEST_TREE"]) if "MOE2_TEST_TREE" in os.environ else folder
        kept.mkdir(parents=True, exist_ok=True)
        base, packed = base_tree(kept), wheels(kept)
        with Machine(base, folder) as machine:
            machine.add_checkout(CHECKOUT_INSIDE)
            shutil.copytree(packed, machine.root / "srv/wheels")
            (machine.root / "srv/models").mkdir()
            shutil.copy(model, machine.root / MODEL_INSIDE.lstrip("/"))
            yield machine
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Machine:
    """A copy of the tree, booted for the length of the `with` block."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.root = folder / "machine"
        self._folder = folder
        self._base = base
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        run("cp", "--archive", "--reflink=auto", str(self._base), str(self.root))
        with self._ready_socket() as (ready, address), (self._folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", "--console=pipe"),
                    # For the device rules of units, which the kernel holds by a program of its own (BPF, cgroup 2).
                    "--system-call-filter=bpf",
                    # Its own network, and nothing that a systemd on this machine would have to know about.
                    *("--private-network", "--register=no", "--keep-unit", "--notify-ready=yes"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "NOTIFY_SOCKET": address, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
            try:
                while b"READY=1" not in ready.recv(4096).split(b"\n"):
                    pass
            except TimeoutError:
                self._stop()
                raise RuntimeError(f"It did not boot: {(self._folder / 'console').read_text()[-4000:]}") from None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self._leader = int(children[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @contextmanager
    def _ready_socket(self) -> Iterator[tuple[socket.socket, str]]:
        address = str(self._folder / "ready")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(address)
            ready.settimeout(_BOOT_S)
            yield ready, address

    def _stop(self) -> None:
        if self._process is None:
            return
        # It asks the system inside to shut down.
        self._process.terminate()
        try:
            self._process.wait(60.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def command(
        self, *command: str, user: str | None = None, group: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root or as another user."""
        who = ("runuser", "-u", user, *(("-g", group) if group else ()), "--") if user else ()
        return subprocess.run(
            [
                *(
                    "nsenter",
                    f"--target={self._leader}",
                    "--mount",
                    "--uts",
                    "--ipc",
                    "--net",
                    "--pid",
                    "--cgroup",
                    "--",
                ),
                *("env", "-i", f"PATH={_PATH}", "HOME=/root", "LANG=C.UTF-8", *who, *command),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def output(self, *command: str) -> str:
        """What a command inside says. Raises `AssertionError` if it fails."""
        done = self.command(*command)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def shell(self, script: str) -> str:
        return self.output("bash", "-euc", script)

    def wait_for(self, condition: str, *, within_s: int = 600) -> None:
        """Until a shell condition inside holds. Raises `AssertionError` with the journal if it never does."""
        done = self.command("timeout", str(within_s), "bash", "-c", f"until {condition}; do sleep 0.2; done")
        assert done.returncode == 0, f"never: {condition}\n{self.output('journalctl', '-n', '60', '--no-pager')}"

    def add_checkout(self, place: str) -> Path:
        """What git knows of this checkout, at `place` inside."""
        target = self.root / place.lstrip("/")
        listed = run("git", "-C", str(CHECKOUT), "ls-files", "--cached", "--others", "--exclude-standard")
        for name in listed.splitlines():
            source = CHECKOUT / name
            if source.is_file() and not name.startswith("tests/"):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target / name)
        return target
