"""The agent's credential: a secret it makes for itself, kept in its state directory, bound to its id by enrolment."""

from __future__ import annotations

import secrets
from pathlib import Path
from urllib.parse import quote

import msgspec

from moe2.agent.link.identity import Identity, is_copied
from moe2.common.errors import ConfigError, Moe2Error, file_remedy
from moe2.common.link.enrolment import AGENT_ID_HEADER, AGENT_NAME_HEADER, CREDENTIAL_HEADER
from moe2.common.secretfile import read_secret
from moe2.common.statefile import replace_file

FILE_NAME = "credential"
SECRET_BYTES = 32


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """The proof of who an agent is, kept in its state directory.

    secret: what coordinators compare. enrolled: a coordinator has taken it in.

    agent_id: whose it is; None in files of earlier releases.
    """

    secret: str
    enrolled: bool = False
    agent_id: str | None = None


class AgentCredentials:
    """What the agent shows at each connection: its credential, and until it is enrolled, the token.

    A credential that was made for another identity is not shown; a new one takes its place.
    Raises `ConfigError` if it is not enrolled and there is no token, `Moe2Error` if the state directory is unusable.
    """

    def __init__(self, *, identity: Identity, agent_name: str, state_dir: Path, token_file: Path | None) -> None:
        self._identity = identity
        self._agent_name = agent_name
        self._path = state_dir / FILE_NAME
        self.token_file = token_file
        self._credential = _load(self._path, identity)
        self.is_copy_to_enrol = identity.copied_from is not None and not self._credential.enrolled
        """This host is a copy of another one, and has not been enrolled as an agent of its own before this start."""
        self._show_token = not self._credential.enrolled
        if self._show_token:
            self._token()

    def headers(self) -> dict[str, str]:
        """Returns the upgrade request's headers. Raises `ConfigError` if the token is needed and cannot be read."""
        secret = self._credential.secret
        who = {AGENT_ID_HEADER: self._identity.agent_id, AGENT_NAME_HEADER: quote(self._agent_name)}
        if self._show_token:
            return {"Authorization": f"Bearer {self._token()}", CREDENTIAL_HEADER: secret, **who}
        return {"Authorization": f"Bearer {secret}", **who}

    def enrolled(self) -> None:
        """The coordinator knows our credential: the token is not needed any more. Raises `Moe2Error`."""
        self._show_token = False
        if not self._credential.enrolled:
            self._credential = msgspec.structs.replace(self._credential, enrolled=True)
            _store(self._path, self._credential)

    def unknown(self) -> bool:
        """The coordinator does not know our credential (any more): show the token next time, if there is one.

        False if there is none, or it has been shown just now.
        """
        if self._show_token:
            return False
        try:
            self._token()
        except ConfigError:
            return False
        self._show_token = True
        return True

    def _token(self) -> str:
        try:
            return _token_in(self.token_file)
        except ConfigError as error:
            if not self.is_copy_to_enrol:
                raise
            raise ConfigError(
                [
                    *error.faults,
                    f"This host's state was copied from another machine ({self._identity.copied_from}), so that it is "
                    "a new agent and has to enrol: put a token from `moe2-coordinator agents enrol-token create NAME` "
                    "into its token_file.",
                ]
            ) from error


def check_enrolment(state_dir: Path, token_file: Path | None) -> None:
    """Looks whether a start would find what it shows to the coordinator, and changes nothing.

    Raises `ConfigError` if there is no token where one is needed, `Moe2Error` if the state directory is unusable.
    """
    stored = _read(state_dir / FILE_NAME)
    if stored is None or not stored.enrolled or is_copied(state_dir):
        _token_in(token_file)


def _token_in(token_file: Path | None) -> str:
    if token_file is None:
        raise ConfigError(["coordinator.token_file: required until this agent is enrolled, but not set."])
    return read_secret(token_file)


def _load(path: Path, identity: Identity) -> Credential:
    """The stored credential; made and stored on the first call, and anew for a copy of another agent's state."""
    stored = _read(path)
    if stored is None or not _is_of(stored, identity):
        fresh = Credential(secret=secrets.token_urlsafe(SECRET_BYTES), agent_id=identity.agent_id)
    elif stored.agent_id is None:
        fresh = msgspec.structs.replace(stored, agent_id=identity.agent_id)
    else:
        return stored
    _store(path, fresh)
    return fresh


def _is_of(stored: Credential, identity: Identity) -> bool:
    """A credential without an id is from an earlier release, and a copy's is the original's."""
    return stored.agent_id == identity.agent_id or (stored.agent_id is None and identity.copied_from is None)


def _read(path: Path) -> Credential | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Credential)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from error
    except msgspec.MsgspecError as error:
        raise Moe2Error(
            f"{path} does not hold a credential.",
            remedy="Remove the file, let the coordinator forget this agent, and enrol it with a token.",
        ) from error


def _store(path: Path, credential: Credential) -> None:
    try:
        replace_file(path, msgspec.json.encode(credential))
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> Moe2Error:
    return Moe2Error(
        f"The credential {path} cannot be used: {error.strerror or error}.",
        remedy=file_remedy(
            error, "Make it readable and its directory writable for the agent's user, or set agent.state_dir."
        ),
    )
