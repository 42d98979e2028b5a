"""The agent's identity: a random id, made once, kept in the state directory, bound to the machine it was made on.

A state directory that finds itself on another machine (a copied SD card, a cloned virtual machine) gets a new id, so
that the two are two agents. The binding stands in a file of its own beside the id: earlier releases read the id alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from moe2.common.errors import Moe2Error, file_remedy
from moe2.common.health import HealthWarning, Severity
from moe2.common.statefile import create_file, replace_file

ID_FILE_NAME = "agent-id"
BINDING_FILE_NAME = "agent-machine"
_ID = re.compile(r"agent-[0-9a-f]{32}")
MACHINE_ID_FILE = Path("/etc/machine-id")
"""Made at the first start of the system, and by most tools that copy systems; machine-id(5)."""
_APPLICATION_ID = bytes.fromhex("9d3c1f6a5e0b4b7c8f21d4a06b98e357")
"""moe2's own. The machine id itself is confidential, and what is derived from it with this tells nobody what it is."""
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Identity:
    """agent_id: who this agent is. copied_from: whose state this was, if it was copied from another machine."""

    agent_id: str
    copied_from: str | None = None

    @property
    def copied_warning(self) -> HealthWarning | None:
        """The warning that this state directory was another agent's; None if it was not."""
        if self.copied_from is None:
            return None
        return HealthWarning(
            code="identity_copied",
            severity=Severity.NOTICE,
            message=f"This host's state was copied from another machine, where it belongs to {self.copied_from}; "
            f"here the agent is a new one, {self.agent_id}.",
            remedy="Nothing, if the host was cloned. If it is the same host with a new /etc/machine-id: "
            f"`moe2-coordinator agents forget {self.copied_from}`.",
        )


class _Binding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """On which machine an id was made."""

    agent_id: str
    machine: str
    copied_from: str | None = None


def load_identity(state_dir: Path, *, machine_id_file: Path = MACHINE_ID_FILE) -> Identity:
    """Returns who the agent is; the identity is made on the first call, and anew on another machine.

    Where there is no machine id the id in the file holds. Raises `Moe2Error` if the directory or a file cannot be used.
    """
    path, machine = state_dir / ID_FILE_NAME, machine_fingerprint(machine_id_file)
    try:
        if not path.exists():
            # Of two daemons that start at once, the second takes what the first has made.
            with suppress(FileExistsError):
                create_file(path, _new_id_line(), mode=0o644)
        agent_id = _read_id(path)
        if machine is None:
            return Identity(agent_id)
        binding = _read_binding(state_dir / BINDING_FILE_NAME)
        if binding is not None and binding.machine != machine:
            if binding.agent_id == agent_id:
                replace_file(path, _new_id_line(), mode=0o644)
            # Else a start was cut short here after it had made the new id.
            binding = _Binding(agent_id=_read_id(path), machine=machine, copied_from=binding.agent_id)
            _bind(state_dir, binding)
        elif binding is None or binding.agent_id != agent_id:
            binding = _Binding(agent_id=agent_id, machine=machine)
            _bind(state_dir, binding)
        return Identity(binding.agent_id, binding.copied_from)
    except (OSError, UnicodeError) as error:
        raise Moe2Error(
            f"The state directory {state_dir} cannot be used: {error}.",
            remedy=file_remedy(error, "Make it writable for the agent's user, or set agent.state_dir."),
        ) from error


def is_copied(state_dir: Path, *, machine_id_file: Path = MACHINE_ID_FILE) -> bool:
    """Whether the next start would find the state to be another machine's. Changes nothing; raises `Moe2Error`."""
    machine = machine_fingerprint(machine_id_file)
    binding = _read_binding(state_dir / BINDING_FILE_NAME)
    return binding is not None and machine is not None and binding.machine != machine


def _new_id_line() -> bytes:
    return f"agent-{uuid.uuid4().hex}\n".encode("ascii")


def _read_id(path: Path) -> str:
    agent_id = path.read_text(encoding="ascii").strip()
    if not _ID.fullmatch(agent_id):
        raise Moe2Error(f"{path} does not hold an agent id.", remedy="Remove the file; a new identity is made.")
    return agent_id


def _read_binding(path: Path) -> _Binding | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Binding)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise Moe2Error(
            f"{path} does not say on which machine this agent's identity was made.",
            remedy="Remove the file; if this host is a copy of another one, remove agent-id and credential as well.",
        ) from error


def _bind(state_dir: Path, binding: _Binding) -> None:
    replace_file(state_dir / BINDING_FILE_NAME, msgspec.json.encode(binding), mode=0o644)


def machine_fingerprint(path: Path = MACHINE_ID_FILE) -> str | None:
    """32 hex digits that differ from machine to machine; None where the system has no machine id (yet).

    They are those of systemd's `sd_id128_get_machine_app_specific`: HMAC-SHA256 of the application's id, with the
    machine id as the key, cut to 128 bits and marked as a UUID of version 4.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return None
    # "uninitialized" is what an image says before its first start.
    if not _MACHINE_ID.fullmatch(text) or not int(text, 16):
        return None
    digest = bytearray(hmac.new(bytes.fromhex(text), _APPLICATION_ID, hashlib.sha256).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x40
    digest[8] = digest[8] & 0x3F | 0x80
    return digest.hex()
