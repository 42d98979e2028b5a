"""How an agent shows who it is: the upgrade request's headers, and the reasons to be turned away. PURE.

First contact: the enrolment token as bearer, and beside it a secret that the agent has made for itself; if the token is
good, the coordinator binds that secret to the agent's id. From then on the secret is the bearer. The coordinator never
sends a secret, so a lost answer loses nothing: the agent says the same again.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum

AGENT_ID_HEADER = "Moe2-Agent-Id"
AGENT_NAME_HEADER = "Moe2-Agent-Name"
"""Percent-encoded: a name may have any characters."""
CREDENTIAL_HEADER = "Moe2-Agent-Credential"
"""The secret that the agent wants to be known by; only sent with a token."""
REFUSAL_HEADER = "Moe2-Refusal"
"""On a refused upgrade: the `Refusal`."""


class Refusal(StrEnum):
    """Why an agent is turned away."""

    TOKEN_REFUSED = "token_refused"  # noqa: S105 - a name
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    TOKEN_UNDECIDED = "token_undecided"  # noqa: S105
    TOKEN_USED_UP = "token_used_up"  # noqa: S105
    TOKEN_REVOKED = "token_revoked"  # noqa: S105
    CREDENTIAL_UNKNOWN = "credential_unknown"
    CREDENTIAL_REVOKED = "credential_revoked"
    CREDENTIAL_NEEDED = "credential_needed"
    IDENTITY_TAKEN = "identity_taken"
    IDENTITY_MISMATCH = "identity_mismatch"
    AGENT_ID_SHARED = "agent_id_shared"


_NEW_TOKEN = "Put a token from `moe2-coordinator agents enrol-token create NAME` into the agent's token_file."  # noqa: S105
_FORGET = "On the coordinator `moe2-coordinator agents forget AGENT` lets it enrol anew, with a token."
WHY: dict[Refusal, tuple[str, str]] = {
    Refusal.TOKEN_REFUSED: ("The enrolment token is wrong or missing.", _NEW_TOKEN),
    Refusal.TOKEN_EXPIRED: ("The enrolment token has expired.", _NEW_TOKEN),
    Refusal.TOKEN_UNDECIDED: (
        "The enrolment token expires, and the coordinator's clock is wrong: it cannot tell whether it has.",
        "Set the clock of the coordinator's host; `moe2-coordinator status` tells what it says.",
    ),
    Refusal.TOKEN_USED_UP: ("The enrolment token has been used as often as it may be.", _NEW_TOKEN),
    Refusal.TOKEN_REVOKED: ("The enrolment token has been revoked.", _NEW_TOKEN),
    Refusal.CREDENTIAL_UNKNOWN: ("The coordinator does not know this agent's credential.", _NEW_TOKEN),
    Refusal.CREDENTIAL_REVOKED: ("This agent has been revoked.", _FORGET),
    Refusal.CREDENTIAL_NEEDED: (
        "An agent of this id is enrolled, and a token alone does not prove to be it.",
        f"Upgrade moe2 on the agent, or if it has lost its state: {_FORGET}",
    ),
    Refusal.IDENTITY_TAKEN: (
        "An agent of this id is enrolled with another credential.",
        "If this host was copied from another one: remove agent-id and credential from the agent's state_dir. "
        f"If it has lost its credential: {_FORGET}",
    ),
    Refusal.IDENTITY_MISMATCH: ("The agent says it is another one than its credential belongs to.", _FORGET),
    Refusal.AGENT_ID_SHARED: (
        "Another host is connected with this agent's id.",
        "If one of the two was copied from the other: give it another /etc/machine-id "
        "(`sudo rm /etc/machine-id && sudo systemd-machine-id-setup`), and restart moe2-agent there.",
    ),
}
"""For each refusal, what is wrong and what to do about it."""


def digest(secret: str) -> str:
    """What is kept of a secret: SHA-256 in hex. No slow hash is needed, as moe2 makes secrets of 256 random bits.

    The one exception is a `token_file` that an operator has filled by hand; that is kept as it is, not as a hash.
    """
    # A header may hold any bytes; surrogates stand for those that are no text.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def is_same(one: str, other: str) -> bool:
    """Compares digests in constant time."""
    return hmac.compare_digest(one, other)
