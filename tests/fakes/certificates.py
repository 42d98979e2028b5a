"""Certificates made for a test: a CA, and pairs that it signs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme


class Authority:
    """A CA whose files lie in `root`."""

    def __init__(self, root: Path, name: str = "ca") -> None:
        self._root = root
        self._ca = trustme.CA()
        self.ca_file = root / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def issue(
        self, name: str = "server", *, host: str = "127.0.0.1", valid_days: float = 30.0, since_days: float = 100.0
    ) -> dict[str, Path]:
        """Write a pair for `host`, as keys of a TLS section. valid_days: negative for one that has expired; since_days:
        negative for one that is not valid yet, as all are to a clock that says 1970."""
        now = datetime.now(UTC)
        made = self._ca.issue_cert(
            host, not_before=now - timedelta(days=since_days), not_after=now + timedelta(days=valid_days)
        )
        pair = {"certificate": self._root / f"{name}.pem", "key": self._root / f"{name}.key"}
        for path, pem in zip(pair.values(), (made.cert_chain_pems[0], made.private_key_pem), strict=True):
            # As tools that renew certificates do: another file in its place.
            draft = path.with_suffix(".draft")
            pem.write_to_path(str(draft))
            draft.replace(path)
        return pair
