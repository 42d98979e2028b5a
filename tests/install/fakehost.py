"""A host for install.sh to work on: a folder as its root, and programs that only write down how they were called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).parents[2]

# What of the system install.sh uses as it is.
_TOOLS = tuple(
    """base64 bash basename cat chmod cmp cp cut dirname env find flock grep gzip head install ln mkdir mktemp mv
    readlink realpath rm rmdir sed sh sha256sum sleep sort stat tail tar touch tr xargs""".split()  # noqa: SIM905 - a list of 30 lines
)

# A virtual environment's Python: pip makes the files that are looked for afterwards, llama.cpp is asked about GPUs.
_VENV_PYTHON = """
echo "pip: $*" >> "$CALLS"
here=$(dirname "$0")
case "$*" in
  *"pip wheel"*)
    case "$CMAKE_ARGS" in *GGML_CUDA=on*) if [ -e "$FAULTS/cuda" ]; then echo "nvcc: no kernel image"; exit 1; fi;; esac
    echo "CMAKE_ARGS: $CMAKE_ARGS" >> "$CALLS"
    while [ "$1" != --wheel-dir ]; do shift; done
    touch "$2/llama_cpp_python-0.3.36-py3-none-any.whl";;
  *"pip install"*)
    if [ -e "$FAULTS/pip" ]; then echo "No matching distribution"; exit 1; fi
    if [ -p "$STATE/alive" ]; then exec 3>"$STATE/alive"; echo begun >&3; exec sleep 600; fi
    case "$*" in *postgresql*) mkdir -p "$here/../lib/python3.11/site-packages/psycopg";; esac
    for role in agent coordinator; do
      { printf '#!/bin/sh\\nif [ -e "%s/%s-$1" ]; then echo "refused"; exit 78; fi\\n' "$FAULTS" $role
        printf 'if [ "$1" = database ]; then echo "moe2-%s: $*" >> "$CALLS"; fi\\n' $role
        printf 'cat "%s/%s-$1" 2>/dev/null && grep -q severity=degraded "%s/%s-$1" && exit 1\\nexit 0\\n' \
          "$STATE" $role "$STATE" $role; } > "$here/moe2-$role"
      chmod 755 "$here/moe2-$role"
    done;;
  *llama_cpp*) if grep -qs GGML_CUDA "$CALLS"; then echo True; else echo False; fi;;
esac
"""

_SYSTEMCTL = """
echo "systemctl: $*" >> "$CALLS"
for unit; do :; done
case $1 in
  --version) echo "systemd 252 (252.1)";;
  is-active) [ -e "$STATE/$unit" ];;
  is-enabled) [ -e "$STATE/enabled-$unit" ];;
  enable) touch "$STATE/enabled-$unit";;
  disable) rm -f "$STATE/enabled-$unit" "$STATE/$unit";;
  restart)
    if [ -e "$FAULTS/start-$(readlink "$MOE2_INSTALL_ROOT/opt/moe2/current")" ]; then exit 1; fi
    touch "$STATE/$unit";;
  show) echo 0;;
esac
"""


@dataclass(frozen=True)
class FakeHost:
    """root: what the host's / is. bin: its PATH."""

    root: Path
    bin: Path
    calls_file: Path
    faults: Path
    state: Path
    checkout: Path

    @classmethod
    def make(cls, folder: Path) -> FakeHost:
        root, programs, calls, faults, state, checkout = (
            folder / name for name in ("root", "bin", "calls", "faults", "state", "checkout")
        )
        host = cls(root=root, bin=programs, calls_file=calls, faults=faults, state=state, checkout=checkout)
        for made in (
            host.root / "run/systemd/system",
            host.root / "usr/local/bin",
            host.bin,
            host.faults / "start-releases",
            host.state,
        ):
            made.mkdir(parents=True)
        for tool in _TOOLS:
            found = shutil.which(tool)
            assert found is not None, f"the tests need {tool}"
            (host.bin / tool).symlink_to(found)
        for name in ("install.sh", "pyproject.toml", "constraints.txt"):
            host.checkout.mkdir(exist_ok=True)
            shutil.copy(CHECKOUT / name, host.checkout / name)
        for name in ("install", "systemd", "examples"):
            shutil.copytree(CHECKOUT / name, host.checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("agent", "common", "coordinator"):
            (host.checkout / name).mkdir()
        (host.checkout / "common/__init__.py").write_text('__version__ = "0.1.0"\n')
        host.uname("x86_64")
        host.program("nproc", "echo 6")
        for name in ("cc", "c++"):
            host.program(name, "")
        for name in ("systemd-tmpfiles", "journalctl", "userdel", "groupdel"):
            host.program(name, f'echo "{name}: $*" >> "$CALLS"')
        host.program("systemd-sysusers", 'echo "systemd-sysusers: $*" >> "$CALLS"; touch "$STATE/users"')
        host.program(
            "getent", 'case "$*" in "group video") ;; "passwd moe2-"*) [ -e "$STATE/users" ];; *) exit 2;; esac'
        )
        host.program("ldconfig", "echo libgomp.so.1")
        host.program("systemctl", _SYSTEMCTL)
        host.program("venv-python", _VENV_PYTHON)
        # A real Python but for environments.
        host.program(
            "python3",
            f"""case "$*" in
  "-m venv "*) for folder; do :; done; mkdir -p "$folder/bin"; cp "{host.bin}/venv-python" "$folder/bin/python";;
  *base_prefix*) ;;
  *) exec {sys.executable} "$@";;
esac""",
        )
        return host

    def program(self, name: str, body: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def uname(self, machine: str) -> None:
        self.program("uname", f'[ "$1" = -m ] && echo {machine} || echo edge-01')

    def file(self, path: str, content: str | bytes) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        return target

    def fault(self, name: str) -> None:
        """cuda: compiling with CUDA fails. pip: installing fails. agent-check-config: the configuration is refused.
        start-releases/NAME: the units of that release do not start."""
        (self.faults / name).touch()

    def says(self, command: str, text: str) -> None:
        """What a command of an installed daemon prints, such as agent-status; it exits with 1 if that is degraded."""
        (self.state / command).write_text(text)

    def jetson(self, *, tegra: str = "tegra234", release: str = "36", revision: str = "4.0") -> None:
        """An AGX Orin with JetPack 6, or another."""
        self.uname("aarch64")
        self.file("etc/nv_tegra_release", f"# R{release} (release), REVISION: {revision}, GCID: 1, BOARD: generic\n")
        self.file("proc/device-tree/model", b"NVIDIA Jetson AGX Orin Developer Kit\0")
        self.file("proc/device-tree/compatible", f"nvidia,p3737-0000+p3701-0005\0nvidia,{tegra}\0".encode())

    def cuda(self, version: str = "12.6") -> None:
        """The CUDA toolkit where it is installed without being in PATH."""
        nvcc = self.file(
            "usr/local/cuda/bin/nvcc", f'#!/bin/sh\necho "Cuda compilation tools, release {version}, V1"\n'
        )
        nvcc.chmod(0o755)

    def nvidia(self, *cards: tuple[str, str | None]) -> None:
        """Cards as (name, compute capability); an old driver does not know the latter."""
        names = "\\n".join(name for name, _ in cards)
        capabilities = "\\n".join(str(capability) for _, capability in cards)
        query = "exit 2" if any(capability is None for _, capability in cards) else f'printf "{capabilities}\\n"'
        self.program(
            "nvidia-smi",
            f"""case "$*" in
  *=name*) printf "{names}\\n";;
  *driver_version*) echo 560.35.03;;
  *compute_cap*) {query};;
  *) echo "| NVIDIA-SMI 560.35.03    Driver Version: 560.35.03    CUDA Version: 12.6     |";;
esac""",
        )

    def model(self, name: str = "tiny.Q4_K_M.gguf") -> Path:
        return self.file(f"srv/{name}", b"GGUF and more")

    def token(self, text: str = "from-the-coordinator") -> Path:
        return self.file("srv/token", text + "\n")

    def install(
        self, *arguments: str | Path, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(arguments), **self._options(environment), capture_output=True, text=True, check=False
        )

    @contextmanager
    def installing(self, *arguments: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
        """An installation that is busy with pip, which never ends; and a file that ends when all of pip has ended."""
        alive = self.state / "alive"
        os.mkfifo(alive)
        with subprocess.Popen(
            self._command(arguments),
            **self._options(None),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_heed_signals,
        ) as process:
            try:
                with alive.open(encoding="ascii") as file:
                    assert file.readline() == "begun\n"
                    alive.unlink()
                    yield process, file
            finally:
                process.terminate()

    def _command(self, arguments: Sequence[str | Path]) -> list[str | Path]:
        return [self.bin / "bash", self.checkout / "install.sh", *arguments]

    def _options(self, environment: dict[str, str] | None) -> dict[str, Any]:
        variables = {
            "PATH": str(self.bin),
            "MOE2_INSTALL_ROOT": str(self.root),
            "CALLS": str(self.calls_file),
            "FAULTS": str(self.faults),
            "STATE": str(self.state),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            **(environment or {}),
        }
        return {"env": variables, "cwd": self.root, "stdin": subprocess.DEVNULL}

    def install_agent(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.install(
            "agent",
            *("--coordinator", "ws://10.0.0.1:8081", "--token-file", self.token(), "--model", self.model()),
            *arguments,
        )

    def calls(self) -> list[str]:
        """How programs were called since the last time; questions to systemctl left out."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        questions = ("--version", "is-active", "is-enabled", "show")
        return [line for line in lines if not line.startswith(tuple(f"systemctl: {word}" for word in questions))]

    def release(self) -> str:
        """The release in use."""
        return (self.root / "opt/moe2/current").readlink().name

    def files(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if not path.is_dir()}


def _heed_signals() -> None:
    """What nohup, or a shell's background job, has its children ignore, a shell cannot trap."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def changed(host: FakeHost, version: str = "0.2.0") -> None:
    """The checkout moves on."""
    (host.checkout / "common/__init__.py").write_text(f'__version__ = "{version}"\n')
