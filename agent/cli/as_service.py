"""Runs a command of this program as the agent's systemd unit would: its user, groups, device rules and sandbox.

Root may open what the agent may not, so what root finds says little about the agent.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

UNIT = "moe2-agent.service"
_WITHIN_S = 180.0
_RIGHTS = re.compile(
    r"User|Group|SupplementaryGroups|UMask|Device(Policy|Allow)|NoNewPrivileges|(Capability|Ambient)\w+|Protect\w+"
    r"|Private\w+|Restrict[A-Z]\w*|SystemCall\w+|LockPersonality|ProcSubset|KeyringMode|MemoryDenyWriteExecute|RemoveIPC"
    r"|LimitMEMLOCK|Environment|EnvironmentFile|(BindReadOnly|Bind|ReadOnly|ReadWrite|Inaccessible|NoExec|Exec)Paths"
    r"|TemporaryFileSystem|RootDirectory"
)
"""Settings of a unit that decide what its processes may do."""
_NO_RIGHTS = re.compile(r"Restart\w*|PrivateTmp")
"""Restart is no restriction, and a transient unit has a folder for temporary files of its own in any case."""


class NoServiceError(Exception):
    """The unit cannot be imitated; the message says why."""


def run_as_service(arguments: Sequence[str], *, variables: Mapping[str, str]) -> bytes:
    """Returns what `moe2-agent ARGUMENTS` prints when it runs with the rights of the installed unit.

    variables: added to its environment. The program is the unit's own. Raises `NoServiceError` where there is no such
    unit, or no systemd, or it failed.
    """
    if os.geteuid() != 0:
        raise NoServiceError("only root can start it")
    if not shutil.which("systemd-run"):
        raise NoServiceError("there is no systemd-run")
    text = _output("systemctl", "cat", UNIT)
    shown = _output("systemctl", "show", UNIT)
    program = program_of(text)
    if program is None:
        raise NoServiceError(f"{UNIT} is not installed")
    known = frozenset(line.split("=", 1)[0] for line in shown.splitlines())
    return _run(
        "systemd-run",
        *("--pipe", "--wait", "--quiet", "--collect", "--service-type=exec"),
        *(f"--setenv={name}={value}" for name, value in variables.items()),
        *properties_of(text, known),
        program,
        *arguments,
    )


def program_of(unit: str) -> str | None:
    """Returns the program that a unit's text starts; None where it has none. PURE."""
    programs = [line.split("=", 1)[1].split() for line in unit.splitlines() if line.startswith("ExecStart=")]
    words = next((words for words in reversed(programs) if words), None)
    return words[0].lstrip("-@:+!") if words else None


def properties_of(unit: str, known: frozenset[str]) -> list[str]:
    """Returns systemd-run's options that give a transient unit the rights of a unit with this text. PURE.

    unit: as `systemctl cat` prints it: the unit and its drop-ins, one after the other, so that an empty assignment in
    a later one resets those before it. known: the settings that this systemd has; others it would refuse.
    """
    options: list[str] = []
    section = ""
    for line in unit.replace("\\\n", " ").splitlines():
        if line.startswith("["):
            section = line.strip()
        key, separator, value = line.partition("=")
        key = key.strip()
        if section != "[Service]" or not separator or key not in known:
            continue
        if _RIGHTS.fullmatch(key) and not _NO_RIGHTS.fullmatch(key):
            options += ["--property", f"{key}={value.strip()}"]
    return options


def _output(*command: str) -> str:
    return _run(*command).decode("utf-8", "replace")


def _run(*command: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603 - systemd's own programs, no shell
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoServiceError(f"{command[0]}: {error}") from error
    # A command of ours that found something to mend ends with 1 and has printed all the same.
    if done.returncode not in (0, 1) or not done.stdout:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NoServiceError(words[-1] if words else f"{command[0]} ended with status {done.returncode}")
    return done.stdout
