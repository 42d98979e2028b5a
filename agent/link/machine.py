"""Which machine this is: an id of its own for moe2, derived from the system's machine id."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

MACHINE_ID_FILE = Path("/etc/machine-id")
"""Made at the first start of the system, and by most tools that copy systems; machine-id(5)."""
_APPLICATION_ID = bytes.fromhex("9d3c1f6a5e0b4b7c8f21d4a06b98e357")
"""moe2's own. The machine id itself is confidential, and what is derived from it with this tells nobody what it is."""
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")


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
