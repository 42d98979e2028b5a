"""When a certificate is valid, read from its PEM text. PURE.

Only as much of X.509 (RFC 5280, section 4.1) as lies before `validity`: Python's ssl module tells this of a peer's
certificate, but not of one's own.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0
_END = "-----END CERTIFICATE-----"


@dataclass(frozen=True)
class Validity:
    """The wall time within which a certificate is valid, both ends included."""

    not_before_unix_s: float
    not_after_unix_s: float


def validity(pem: str) -> Validity:
    """Returns the validity of the first certificate in a PEM file.

    Raises ValueError where there is none that can be understood.
    """
    start = pem.find("-----BEGIN CERTIFICATE-----")
    end = pem.find(_END, start)
    if start < 0 or end < 0:
        raise ValueError("no certificate")
    certificate = _Der(ssl.PEM_cert_to_DER_cert(pem[start : end + len(_END)]))
    try:
        to_be_signed = certificate.inner(_SEQUENCE).inner(_SEQUENCE)
        if to_be_signed.tag == _VERSION:
            to_be_signed.skip()
        for _ in ("serial number", "signature algorithm", "issuer"):
            to_be_signed.skip()
        times = to_be_signed.inner(_SEQUENCE)
        return Validity(times.time_unix_s(), times.time_unix_s())
    except IndexError as error:
        raise ValueError("the certificate is cut off") from error


class _Der:
    """Reads one value after the other (X.690, distinguished encoding)."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    @property
    def tag(self) -> int:
        return self._content[self._at]

    def inner(self, tag: int) -> _Der:
        return _Der(self._take(tag))

    def skip(self) -> None:
        self._take(self.tag)

    def time_unix_s(self) -> float:
        tag = self.tag
        text = self._take(tag).decode("ascii")
        # strptime's %y has the same pivot year as RFC 5280 but for 1950 to 1968, when nobody made certificates.
        form = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERALIZED_TIME: "%Y%m%d%H%M%SZ"}.get(tag)
        if form is None:
            raise ValueError(f"no time, but a value of kind {tag:#x}")
        return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()

    def _take(self, tag: int) -> bytes:
        if self.tag != tag:
            raise ValueError(f"expected a value of kind {tag:#x}, found {self.tag:#x}")
        length, start = self._content[self._at + 1], self._at + 2
        if length & 0x80:
            n_bytes = length & 0x7F
            length = int.from_bytes(self._content[start : start + n_bytes])
            start += n_bytes
        if start + length > len(self._content):
            raise ValueError("the certificate is cut off")
        self._at = start + length
        return self._content[start : start + length]
