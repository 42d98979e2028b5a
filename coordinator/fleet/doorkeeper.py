"""The doorkeeper: decides by the register which agents may connect, and which may stay connected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import time
from urllib.parse import unquote

import structlog

from moe2.common.errors import Moe2Error
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.enrolment import AGENT_ID_HEADER, AGENT_NAME_HEADER, CREDENTIAL_HEADER, Refusal, digest
from moe2.common.secretfile import read_secret
from moe2.coordinator.fleet.bounds import MAX_NAME_CHARACTERS
from moe2.coordinator.fleet.checks import AGENT_ID
from moe2.coordinator.fleet.register import (
    AgentRefusedError,
    Presented,
    ProvenIdentity,
    Register,
    admit,
    admit_all,
    refusal_of,
)
from moe2.coordinator.fleet.register_file import RegisterStore

log = structlog.get_logger()

MIN_CREDENTIAL_CHARACTERS = 32
"""The fewest characters of an agent's secret. Agents make theirs of 43; a much shorter one could be guessed."""


class Doorkeeper:
    """The decisions on who may connect, by the register and the configured token as they are now.

    token_file: holds a token that may always enrol, and alone admits agents that know of no credentials; None for none.
    Raises `ConfigError` if it cannot be read.
    """

    def __init__(self, file: RegisterStore, token_file: Path | None, *, clock: Callable[[], float] = time) -> None:
        self._file = file
        self._clock = clock
        self._register = file.current()
        self._trouble: str | None = None
        self._waiting: list[tuple[Presented, asyncio.Future[ProvenIdentity]]] = []
        """Agents that are to be enrolled, with what becomes of each."""
        self._enrolling: asyncio.Task[None] | None = None
        self._static_token: str | None = None
        self.read_token(token_file)

    def read_token(self, token_file: Path | None) -> None:
        """Reads the configured token. Raises `ConfigError`, and keeps the former token, if it cannot be read."""
        self._static_token = None if token_file is None else digest(read_secret(token_file))

    async def admit(self, headers: Mapping[str, str]) -> ProvenIdentity:
        """Lets in the agent that sent these headers, enrolling it if it is new.

        Raises `AgentRefusedError`, and `Moe2Error` where nobody can say now whether it may.
        """
        if not self._file.is_believed:
            raise Moe2Error("The database that keeps the register has not been reached for too long.")
        presented = _presented(headers)
        identity, after = self._admit(self.current(), presented)
        if after is self._register:
            return identity
        enrolled: asyncio.Future[ProvenIdentity] = asyncio.get_running_loop().create_future()
        self._waiting.append((presented, enrolled))
        if self._enrolling is None:
            self._enrolling = asyncio.create_task(self._enrol())
        identity = await enrolled
        log.info("agent_enrolled", agent_id=presented.agent_id, agent_name=presented.agent_name)
        return identity

    def refusal_of(self, identity: ProvenIdentity, agent_id: str) -> Refusal | None:
        """Returns why a connection may not be, or stay, that of `agent_id`; None if it may."""
        return refusal_of(self.current(), identity, agent_id)

    def enrolled_ids(self) -> tuple[str, ...]:
        """Returns the ids of the agents that may connect."""
        return tuple(agent.agent_id for agent in self.current().agents if agent.revoked_unix_s is None)

    def warnings(self) -> list[HealthWarning]:
        """Warns if there is neither an enrolled agent nor a token, so that no agent could ever connect."""
        register, now_unix_s = self.current(), self._clock()
        if self._static_token or register.agents or any(not token.refusal(now_unix_s) for token in register.tokens):
            return []
        return [
            HealthWarning(
                code="no_enrolment_token",
                severity=Severity.DEGRADED,
                message="No agent is enrolled, and there is no token to enrol one with.",
                remedy="Make one: `moe2-coordinator agents enrol-token create NAME`.",
            )
        ]

    def current(self) -> Register:
        """Returns the register as it is on disk, or the last good one while it cannot be read."""
        try:
            self._register = self._file.current()
        except Moe2Error as error:
            if self._trouble != str(error):
                log.error("register_unusable", reason=str(error))
            self._trouble = str(error)
        else:
            self._trouble = None
        return self._register

    async def _enrol(self) -> None:
        """Enrols who waits: the file is written once for all that have come while it was last written."""
        try:
            while self._waiting:
                together, self._waiting = self._waiting, []
                several = tuple(presented for presented, _ in together)
                try:
                    # Decided again on what the file holds once it is locked: a token's last use is given away once.
                    outcomes = await asyncio.to_thread(self._file.change, partial(self._admit_all, several))
                except Exception as error:
                    outcomes = (error,) * len(several)
                for (_, enrolled), outcome in zip(together, outcomes, strict=True):
                    if enrolled.done():
                        continue  # The agent has gone meanwhile; it is enrolled when it comes back.
                    if isinstance(outcome, Exception):
                        enrolled.set_exception(outcome)
                    else:
                        enrolled.set_result(outcome)
        finally:
            self._enrolling = None

    def _admit_all(
        self, several: tuple[Presented, ...], register: Register
    ) -> tuple[tuple[ProvenIdentity | Exception, ...], Register]:
        return admit_all(register, several, static_token=self._static_token, now_unix_s=self._clock())

    def _admit(self, register: Register, presented: Presented) -> tuple[ProvenIdentity, Register]:
        return admit(register, presented, static_token=self._static_token, now_unix_s=self._clock())


def _presented(headers: Mapping[str, str]) -> Presented:
    agent_id = headers.get(AGENT_ID_HEADER)
    offered = headers.get(CREDENTIAL_HEADER)
    if agent_id is not None and not AGENT_ID.fullmatch(agent_id):
        raise AgentRefusedError(Refusal.CREDENTIAL_UNKNOWN)
    if offered is not None and len(offered) < MIN_CREDENTIAL_CHARACTERS:
        raise AgentRefusedError(Refusal.CREDENTIAL_UNKNOWN)
    return Presented(
        bearer=headers.get("Authorization", "").removeprefix("Bearer "),
        agent_id=agent_id,
        agent_name=unquote(headers.get(AGENT_NAME_HEADER, ""))[:MAX_NAME_CHARACTERS],
        offered=offered,
    )
