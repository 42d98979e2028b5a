"""The settings of the agents' listener, the section `[agents]`, and of any listener's TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from moe2.common.config import LIVE, Port, Seconds, Settings
from moe2.common.hosts import is_loopback
from moe2.common.link.wire import DEFAULT_MAX_FRAME_BYTES


class TlsSection(Settings):
    """[api.tls], [agents.tls]: serve with TLS."""

    certificate: Annotated[Path, LIVE]
    """PEM file with the listener's certificate, followed by the certificates between it and its CA."""
    key: Annotated[Path, LIVE]
    """PEM file with the certificate's private key, not encrypted."""
    client_ca: Annotated[Path | None, LIVE] = None
    """PEM file with the CAs of accepted client certificates; with it, clients without one of these are refused."""


class AgentsSection(Settings):
    """[agents]: where agents connect."""

    host: str = "127.0.0.1"
    """Address to listen on. Addresses other than loopback need `[agents.tls]`."""
    port: Port = 8081
    """Port to listen on; 0 takes any that is free."""
    token_file: Annotated[Path | None, LIVE] = None
    """File with a token that any number of agents may enrol with, beside those of `agents enrol-token create`."""
    allow_plaintext: bool = False
    """Listen without TLS on addresses other than loopback: whoever sees the network can read and change the traffic."""
    # The pace of an agent's connection is settled when it connects: a change holds for those that connect afterwards.
    heartbeat_s: Annotated[Seconds, LIVE] = 5.0
    """How often both sides check that the other is there; after three intervals without a word an agent is taken for
    gone, after four the coordinator."""
    report_s: Annotated[Seconds, LIVE] = 5.0
    """How often an agent reports even if nothing changed."""
    stale_s: Annotated[Seconds, LIVE] = 15.0
    """An agent whose last report is older than this gets no new requests."""
    evict_s: Annotated[Seconds, LIVE] = 600.0
    """An agent that has been disconnected for this long is forgotten."""
    handshake_s: Annotated[Seconds, LIVE] = 10.0
    """A connection that has not said hello within this time is closed."""
    max_connections_per_address: Annotated[int, Field(ge=1), LIVE] = 1024
    """Connections that one address may have open (of IPv6, one /64 network); a further one is answered with 429 and
    closed."""
    max_frame_bytes: Annotated[int, Field(ge=65_536, le=DEFAULT_MAX_FRAME_BYTES)] = DEFAULT_MAX_FRAME_BYTES
    """Size of the largest frame on a connection; agents take no larger frames than the default."""
    tls: TlsSection | None = None
    """Certificate and key of the listener; with them agents use wss://."""

    @model_validator(mode="after")
    def _is_private_or_encrypted(self) -> AgentsSection:
        if self.tls is None and not self.allow_plaintext and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached over the network, where prompts, answers and tokens must not pass "
                "in the clear: set certificate and key in [agents.tls], or allow_plaintext = true on a trusted network"
            )
        return self

    @model_validator(mode="after")
    def _stale_is_later_than_a_report(self) -> AgentsSection:
        if self.stale_s <= self.report_s:
            raise ValueError(f"stale_s ({self.stale_s}) must be greater than report_s ({self.report_s})")
        return self
