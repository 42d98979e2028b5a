"""TLS of both ends: contexts from PEM files, new certificates without a restart, and failures in words."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from moe2.common.errors import Moe2Error
from moe2.common.statefile import Stamp, stamp_of
from moe2.common.tls.certificate import Validity, validity
from moe2.common.tls.fault import TlsFault


class TlsError(Moe2Error):
    """TLS that cannot be: what is wrong, and what to do."""

    def __init__(self, fault: TlsFault, message: str, *, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.fault = fault


# --- Listening --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerFiles:
    """What a listener's TLS is made of.

    client_ca: PEM file; with it, clients must show a certificate of one of its CAs.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> tuple[Stamp | None, ...]:
        """A stamp that changes when one of the files, or what it links to, is replaced or written."""
        return tuple(_stamp(path) for path in (self.certificate, self.key, self.client_ca) if path is not None)


@dataclass(frozen=True)
class LoadedFiles:
    """Files as they were read, in a context that can be used at once."""

    files: ServerFiles
    stamp: tuple[Stamp | None, ...]
    validity: Validity
    context: ssl.SSLContext


def load_server_files(files: ServerFiles) -> LoadedFiles:
    """Changes nothing. Raises `TlsError` for files that cannot be used."""
    stamp = files.stamp()
    found = _validity(files.certificate)
    context = _server_context()
    _load_chain(context, files.certificate, files.key)
    if files.client_ca is not None:
        _trust(context, files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return LoadedFiles(files, stamp, found, context)


class NewestContext(ssl.SSLContext):
    """Stands in for the newest context, in which each new connection begins.

    So that a CA can also be taken back, which a live context does not allow. Nor is a session of a former context
    resumed in the newest one: who was let in before is looked at again.
    """

    newest: ssl.SSLContext

    def wrap_bio(self, *args: Any, **details: Any) -> ssl.SSLObject:
        """What event loops, asyncio's and uvloop, call for a connection."""
        return self.newest.wrap_bio(*args, **details)


class ServerTls:
    """A listener's TLS. `context` stays the same object: what is used holds for new connections.

    Raises `TlsError` for files that cannot be used.
    """

    def __init__(self, files: ServerFiles) -> None:
        self.context = NewestContext(ssl.PROTOCOL_TLS_SERVER)
        self.use(load_server_files(files))

    def use(self, loaded: LoadedFiles) -> None:
        """Uses the loaded files for connections from now on."""
        self.context.newest = loaded.context
        self.files, self.validity, self._stamp = loaded.files, loaded.validity, loaded.stamp

    def load_changed(self) -> bool:
        """Load the files if one was replaced; True if it was.

        Raises `TlsError`, once for each replacement, and the former files stay in use.
        """
        stamp = self.files.stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.use(load_server_files(self.files))
        return True


def _server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _stamp(path: Path) -> Stamp | None:
    """A file that cannot be looked at is as good as none: that is said when it is read."""
    try:
        return stamp_of(path, follow_links=True)
    except OSError:
        return None


# --- Connecting -------------------------------------------------------------------------------------------------------


def client_context(*, ca_file: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Verifies the server's certificate and name against `ca_file`, or the system's CAs. Raises `TlsError`."""
    try:
        context = ssl.create_default_context(cadata=None if ca_file is None else _read(ca_file))
    except ssl.SSLError as error:
        raise _unknown_ca(ca_file, error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None and key is not None:
        _load_chain(context, certificate, key)
    return context


_BY_VERIFY_CODE = {
    9: TlsFault.CERTIFICATE_NOT_YET_VALID,
    10: TlsFault.CERTIFICATE_EXPIRED,
    2: TlsFault.CERTIFICATE_UNTRUSTED,
    18: TlsFault.CERTIFICATE_UNTRUSTED,
    19: TlsFault.CERTIFICATE_UNTRUSTED,
    20: TlsFault.CERTIFICATE_UNTRUSTED,
    21: TlsFault.CERTIFICATE_UNTRUSTED,
    62: TlsFault.CERTIFICATE_NAME,
    64: TlsFault.CERTIFICATE_NAME,
}
"""X509_V_ERR_* of openssl/x509_vfy.h."""

_CONNECTING = {
    TlsFault.CERTIFICATE_NOT_YET_VALID: (
        "The coordinator's certificate is not valid yet.",
        "Set this host's clock, or the one that the certificate was made on.",
    ),
    TlsFault.CERTIFICATE_EXPIRED: (
        "The coordinator's certificate has expired.",
        "Renew it on the coordinator, which takes the new file at once; or set this host's clock.",
    ),
    TlsFault.CERTIFICATE_UNTRUSTED: (
        "The coordinator's certificate is not signed by a CA that this agent trusts.",
        "Set coordinator.ca_file to the CA's certificate; a chain must hold the CAs in between.",
    ),
    TlsFault.CERTIFICATE_NAME: (
        "The coordinator's certificate is for another name than the one in coordinator.url.",
        "Write the certificate's name into coordinator.url, or make a certificate for that name.",
    ),
    TlsFault.CLIENT_CERTIFICATE_REFUSED: (
        "The coordinator closed the connection before it said a word, as it does with agents that show no client "
        "certificate, or one that it does not accept.",
        "Set coordinator.certificate and coordinator.key to a pair that agents.tls.client_ca there has signed, and "
        "that is valid by the coordinator's clock; `moe2-coordinator status` warns where that clock is wrong.",
    ),
    TlsFault.NO_TLS: (
        "The coordinator's listener speaks no TLS.",
        "Write ws:// in coordinator.url, or better set a certificate in the coordinator's [agents.tls].",
    ),
}


def connection_fault(error: BaseException) -> TlsError | None:
    """Returns what is wrong with TLS, if that is why the first request of a connection failed.

    That a client certificate was refused has to be inferred: asyncio's server hangs up without sending TLS's alert.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            fault = _BY_VERIFY_CODE.get(cause.verify_code)
            if fault is None:
                return TlsError(
                    TlsFault.CERTIFICATE_REFUSED,
                    f"The coordinator's certificate cannot be used: {cause.verify_message}.",
                    remedy="Make a new one for it.",
                )
            return _connecting(fault, cause.verify_message)
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or ""
            if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"):
                return _connecting(TlsFault.NO_TLS)
            if "ALERT" in reason:
                return _connecting(TlsFault.CLIENT_CERTIFICATE_REFUSED, reason.lower().replace("_", " "))
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError):
        return _connecting(TlsFault.CLIENT_CERTIFICATE_REFUSED)
    return None


def _connecting(fault: TlsFault, detail: str | None = None) -> TlsError:
    message, remedy = _CONNECTING[fault]
    if detail:
        message = f"{message.removesuffix('.')} ({detail.removesuffix('.')})."
    return TlsError(fault, message, remedy=remedy)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from. aiohttp's own claim to be ssl's, but lack what those tell."""
    seen: BaseException | None = error
    while seen is not None:
        if not isinstance(seen, aiohttp.ClientError):
            yield seen
        seen = seen.__cause__ or seen.__context__


# --- Files ------------------------------------------------------------------------------------------------------------


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    _read(certificate)
    private = _read(key)
    if "PRIVATE KEY-----" not in private:
        raise _unusable(f"{key} holds no private key in PEM form.", "Set key to the certificate's private key.")
    if "ENCRYPTED" in private:
        raise _unusable(
            f"The private key {key} is encrypted, and nobody is there to type its password.",
            "Store it without one (`openssl pkey`), readable for the daemon's user only.",
        )
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _unusable(
                f"The private key {key} does not belong to the certificate {certificate}.",
                "Set certificate and key to a pair that was made together, the listener's certificate first.",
            ) from error
        raise _unusable(
            f"{certificate} and {key} cannot be used: {error.reason or error}.", "Make both anew."
        ) from error


def _trust(context: ssl.SSLContext, ca_file: Path) -> None:
    try:
        context.load_verify_locations(cadata=_read(ca_file))
    except ssl.SSLError as error:
        raise _unknown_ca(ca_file, error) from error


def _unknown_ca(ca_file: Path | None, error: ssl.SSLError) -> TlsError:
    return _unusable(f"{ca_file} holds no CA certificate: {error.reason or error}.", "Set it to a PEM file of one.")


def _read(path: Path) -> str:
    """A PEM file with at least one certificate or key."""
    try:
        content = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise _unusable(
            f"{path} cannot be read: {error.strerror or error}.",
            "Correct the path, or make it readable for the daemon's user.",
        ) from error
    if "-----BEGIN " not in content:
        raise _unusable(f"{path} is not in PEM form.", "Convert it: `openssl x509 -inform der`.")
    return content


def _validity(certificate: Path) -> Validity:
    try:
        return validity(_read(certificate))
    except ValueError as error:
        raise _unusable(f"{certificate} cannot be used: {error}.", "Set certificate to a PEM file.") from error


def _unusable(message: str, remedy: str) -> TlsError:
    return TlsError(TlsFault.FILE_UNUSABLE, message, remedy=remedy)
