"""install.sh demo and test: what they ask of the system, what they skip, and how they report failures."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
# What is asked for is installed anew if one of these changes.
NAMED_FILES = ("pyproject.toml", "constraints.txt", "install/checkout.sh")
EXTRAS = re.compile(r"^  ensure_environment (\S+)$", re.MULTILINE)
TOOLS = ("bash", "cat", "cut", "dirname", "env", "sed", "sha256sum", "sleep", "tail", "tr")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what install.sh looks at."""
    shutil.copytree(CHECKOUT / "install", tmp_path / "install")
    for name in ("install.sh", *NAMED_FILES):
        shutil.copy(CHECKOUT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder to use as PATH: the tools that install.sh itself needs, and no compiler."""
    folder = tmp_path / "path"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def install(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", checkout / "install.sh", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def installed(checkout: Path) -> None:
    """Make it look as if everything had been installed already; commands then record how they were called."""
    for tool in ("python", "ruff", "mypy", "lint-imports", "shellcheck"):
        script(checkout / ".venv/bin" / tool, f'echo "{tool} $*" >> "{checkout}/calls"')
    content = b"".join((checkout / name).read_bytes() for name in NAMED_FILES)
    for extras in EXTRAS.findall((checkout / "install/checkout.sh").read_text()):
        stamp = checkout / f".venv/.installed-{extras.replace(',', '-')}"
        stamp.write_text(hashlib.sha256(content).hexdigest() + "\n")


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines()


def test_help_names_the_commands(checkout: Path) -> None:
    """Without a command, and with help, it says what it can do."""
    for arguments in ((), ("help",), ("--help",)):
        shown = install(checkout, *arguments)
        assert shown.returncode == 0
        assert "demo [--once]" in shown.stdout


def test_an_unknown_command_is_refused(checkout: Path) -> None:
    """A misspelt command installs nothing."""
    refused = install(checkout, "dmeo")
    assert refused.returncode == 1
    assert "there is no command dmeo" in refused.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_too_old_is_refused(checkout: Path) -> None:
    """The Python that the user names is used or refused, never quietly replaced."""
    refused = install(checkout, "demo", PYTHON="false")
    assert refused.returncode == 1
    assert "PYTHON=false is not a released Python of 3.11 or newer" in refused.stderr


def test_a_missing_compiler_is_named_with_its_package(checkout: Path, path: Path) -> None:
    """Root gets it installed, others the command; a failing apt-get is shown with its last words."""
    script(path / "apt-get", 'echo "apt-get $*"; [ "$1" = update ]')
    failed = install(checkout, "demo", PATH=str(path), PYTHON=sys.executable)
    assert failed.returncode == 1
    assert "Missing: a C and C++ compiler." in failed.stdout
    if os.geteuid() == 0:
        assert "✓ Refreshing apt's package lists" in failed.stdout
        assert "apt-get install -y --no-install-recommends build-essential" in failed.stderr
    else:
        assert "sudo apt-get install build-essential" in failed.stderr


def test_a_second_start_installs_nothing(checkout: Path) -> None:
    """With nothing changed, the demo starts at once, with the arguments given."""
    installed(checkout)
    assert install(checkout, "demo", "--once").returncode == 0
    assert calls(checkout) == ["python -m examples.demo --once"]


def test_a_changed_requirement_is_installed(checkout: Path, path: Path) -> None:
    """After pyproject.toml changed, the old environment is not taken for good."""
    installed(checkout)
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert install(checkout, "demo", PATH=str(path), PYTHON=sys.executable).returncode == 1
    assert not (checkout / "calls").exists()


def test_every_check_runs_and_any_failure_counts(checkout: Path) -> None:
    """A failing type check does not hide the tests, and the tests' success does not hide it."""
    installed(checkout)
    with (checkout / ".venv/bin/mypy").open("a") as file:
        file.write("exit 1\n")
    failed = install(checkout, "test", "-k", "one or other")
    assert failed.returncode == 1
    assert "failed: mypy" in failed.stderr
    assert [call.split()[0] for call in calls(checkout)] == [
        "ruff",
        "ruff",
        "mypy",
        "lint-imports",
        "shellcheck",
        "python",
    ]
    assert calls(checkout)[-1] == "python -m pytest --reruns 1 -raR -k one or other"


def test_all_checks_passing_is_success(checkout: Path) -> None:
    """Exit code 0 only when nothing failed."""
    installed(checkout)
    assert install(checkout, "test").returncode == 0


def test_all_tests_are_run_only_when_asked_for(checkout: Path, path: Path) -> None:
    """--all gets what the tests need that boot a system, and lifts the filter that leaves them out."""
    installed(checkout)
    script(path / "dpkg-query", "exit 0")
    script(path / "apt-get", "exit 1")
    environment = os.pathsep.join((str(path), os.environ["PATH"]))
    assert install(checkout, "test", "--all", "-k", "one", PATH=environment).returncode == 0
    assert calls(checkout)[-1] == "python -m pytest --reruns 1 -raR -m  -k one"
