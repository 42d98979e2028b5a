"""Where the clients are installed: environments of their own in `build/clients/`, one for each set of versions."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.clients.catalog import NODE, PYTHON

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("MOE2_CLIENTS_CACHE", ROOT / "build" / "clients"))
"""Kept between runs; MOE2_CLIENTS_CACHE names another place."""
DRIVERS = Path(__file__).parent / "drivers"
MOST_S = 180
"""Seconds that installing one environment may take."""


Installer = Callable[[Path, Sequence[str]], None]
"""Makes a folder with packages."""


class UnavailableError(Exception):
    """A client cannot be installed here; the message says why."""


def prepared(environment: str) -> list[str]:
    """Returns the command that runs a driver in an environment, which is made if it is not there. Blocks.

    Raises `UnavailableError` where the registry cannot be reached, or there is no Node.js.
    """
    if environment == "node":
        _node()
        return ["node"]
    folder = _installed(environment, PYTHON[environment], _install_python)
    return [str(folder / "bin" / "python")]


def driver_of(environment: str, driver: str) -> Path:
    """Returns the path that a driver runs at. Node.js looks for packages beside the file alone."""
    if environment != "node":
        return DRIVERS / driver
    folder = _node()
    for name in ("harness.mjs", driver):
        shutil.copyfile(DRIVERS / name, folder / name)
    return folder / driver


def _node() -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise UnavailableError("Node.js and npm are not installed.")
    return _installed("node", NODE, _install_node)


def _installed(name: str, packages: Sequence[str], install: Installer) -> Path:
    """Returns the folder with these packages; other versions have another one."""
    digest = hashlib.sha256(" ".join((sys.version, *packages)).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    with _locked(folder):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            install(folder, packages)
            (folder / "complete").touch()
    return folder


def _install_python(folder: Path, packages: Sequence[str]) -> None:
    _run(sys.executable, "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    _run(python, "-m", "pip", "install", "--quiet", "uv")
    # uv resolves in seconds what pip takes minutes for.
    _run(str(folder / "bin" / "uv"), "pip", "install", "--quiet", "--python", python, *packages)


def _install_node(folder: Path, packages: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text("{}")
    _run("npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), *packages)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=MOST_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} did not end within {MOST_S} s.") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()
        raise UnavailableError(f"{Path(command[0]).name} failed: {said[-1] if said else error.returncode}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds off others that would make the same folder."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
