"""The agent's identity: a random id, made once, kept in the state directory."""

from __future__ import annotations

import re
import uuid
from contextlib import suppress
from pathlib import Path

from moe2.common.errors import Moe2Error
from moe2.common.statefile import create_file

_ID = re.compile(r"agent-[0-9a-f]{32}")


def load_identity(state_dir: Path) -> str:
    """The agent's id; made on the first call. Raises `Moe2Error` if the directory or file cannot be used."""
    path = state_dir / "agent-id"
    try:
        if not path.exists():
            # Of two daemons that start at once, the second takes what the first has made.
            with suppress(FileExistsError):
                create_file(path, f"agent-{uuid.uuid4().hex}\n".encode("ascii"), mode=0o644)
        return _checked(path.read_text(encoding="ascii").strip(), path)
    except (OSError, UnicodeError) as error:
        raise Moe2Error(
            f"The state directory {state_dir} cannot be used: {error}.",
            remedy="Make it writable for the agent's user, or set agent.state_dir.",
        ) from error


def _checked(agent_id: str, path: Path) -> str:
    if not _ID.fullmatch(agent_id):
        raise Moe2Error(f"{path} does not hold an agent id.", remedy="Remove the file; a new identity is made.")
    return agent_id
