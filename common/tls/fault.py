"""What can be wrong with TLS between two hosts. PURE."""

from __future__ import annotations

from enum import StrEnum


class TlsFault(StrEnum):
    """What is wrong between two hosts that want to speak TLS."""

    FILE_UNUSABLE = "tls_file_unusable"
    CERTIFICATE_UNTRUSTED = "certificate_untrusted"
    CERTIFICATE_EXPIRED = "certificate_expired"
    CERTIFICATE_NOT_YET_VALID = "certificate_not_yet_valid"
    CERTIFICATE_NAME = "certificate_name"
    CERTIFICATE_REFUSED = "certificate_refused"
    CLIENT_CERTIFICATE_REFUSED = "client_certificate_refused"
    NO_TLS = "no_tls"
