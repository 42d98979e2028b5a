"""The agent's identity: a random id, made once, kept in the state directory."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path

from moe2.common.errors import Moe2Error

_ID = re.compile(r"agent-[0-9a-f]{32}")


def load_identity(state_dir: Path) -> str:
    """The agent's id; made on the first call. Raises `Moe2Error` if the directory or file cannot be used."""
    path = state_dir / "agent-id"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return _checked(path.read_text(encoding="ascii").strip(), path)
        agent_id = f"agent-{uuid.uuid4().hex}"
        # Written aside and linked: two daemons that start at once agree on one id, and a crash leaves no half of one.
        draft = state_dir / f".agent-id.{os.getpid()}"
        draft.write_text(agent_id + "\n", encoding="ascii")
        try:
            os.link(draft, path)
        except FileExistsError:
            return _checked(path.read_text(encoding="ascii").strip(), path)
        finally:
            draft.unlink()
    except (OSError, UnicodeError) as error:
        raise Moe2Error(
            f"The state directory {state_dir} cannot be used: {error}.",
            remedy="Make it writable for the agent's user, or set agent.state_dir.",
        ) from error
    return agent_id


def _checked(agent_id: str, path: Path) -> str:
    if not _ID.fullmatch(agent_id):
        raise Moe2Error(f"{path} does not hold an agent id.", remedy="Remove the file; a new identity is made.")
    return agent_id
