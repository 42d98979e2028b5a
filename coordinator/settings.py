"""The coordinator's settings: one frozen type, read from one TOML file (`examples/coordinator.toml` shows it all)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from moe2.common.config import LIVE, Settings
from moe2.common.hosts import Authority, Origin, is_loopback
from moe2.common.wire import DEFAULT_MAX_FRAME_BYTES
from moe2.coordinator.budgets import Budgets

ENVIRONMENT_PREFIX = "MOE2_COORDINATOR"
DEFAULT_CONFIG_PATH = Path("/etc/moe2/coordinator.toml")
DEFAULT_SOCKET_PATH = Path("/run/moe2-coordinator/coordinator.sock")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65_535)]


def _host_name(text: str) -> str:
    name = Authority.parse(text)
    if name is None or name.port is not None or ":" in text:
        raise ValueError(f"{text!r} is no host name: write it without scheme, port or path, such as hub.example")
    return name.host


def _site_origin(text: str) -> str:
    if Origin.parse(text) is None:
        raise ValueError(
            f"{text!r} is no site's origin: write scheme and name without a path, such as https://chat.example"
        )
    return text.lower()


HostName = Annotated[str, AfterValidator(_host_name)]
SiteOrigin = Annotated[str, AfterValidator(_site_origin)]


class CoordinatorSection(Settings):
    """[coordinator]"""

    state_dir: Path = Path("/var/lib/moe2-coordinator")
    """Keeps what has to outlive a restart: who may connect, feedback, accounts."""
    socket: Path = DEFAULT_SOCKET_PATH
    """Where `moe2-coordinator status` asks; who may is up to the group of the file."""
    drain_s: Annotated[Seconds, LIVE] = 30.0
    """On SIGTERM, running requests get this long to finish."""


class TlsSection(Settings):
    """[api.tls], [agents.tls]: serve with TLS."""

    certificate: Annotated[Path, LIVE]
    """PEM file with the listener's certificate, followed by those between it and its CA."""
    key: Annotated[Path, LIVE]
    """PEM file with the certificate's private key, not encrypted."""
    client_ca: Annotated[Path | None, LIVE] = None
    """PEM file with the CAs whose client certificates are accepted; with it, nobody without one connects."""


class ApiSection(Settings):
    """[api]: where apps connect."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8080
    """0 takes any that is free."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """A larger request, packed or unpacked, is answered with 413. At most half of `agents.max_frame_bytes`."""
    request_timeout_s: Annotated[Seconds, LIVE] = 600.0
    """A request that has not ended by then is cancelled and answered with an error."""
    max_active_requests: Annotated[int, Field(ge=1), LIVE] = 1024
    """Requests in progress, queued ones included; one more is answered with 429."""
    tls: TlsSection | None = None
    """Apps use https:// then."""
    keys: Literal["required", "off"] = "off"
    """Whether apps need an API key (`moe2-coordinator keys create`)."""
    allow_public_without_keys: bool = False
    """Listen on more than loopback although `keys` is "off": for a proxy or a firewall that lets only the right in."""
    hosts: Annotated[tuple[HostName, ...], LIVE] = ()
    """Names by which apps reach the API, such as `hub.example`; other names are refused, as a page that a stranger's
    name server leads here has one. IP addresses, `localhost` and this machine's own names need not be listed. If none
    are, a listener that asks for keys and can be reached from other machines answers to every name."""
    origins: Annotated[tuple[SiteOrigin, ...], LIVE] = ()
    """Sites whose pages may use the API from a browser (CORS), such as `https://chat.example`; others are refused. The
    coordinator's own page need not be listed, except behind a proxy that sends another `Host` on."""
    header_timeout_s: Seconds = 75.0
    """A connection on which no whole request header has come for so long is closed: slow ones, and idle ones."""
    body_timeout_s: Seconds = 30.0
    """A request's body must have come whole by then."""
    send_timeout_s: Seconds = 60.0
    """A client that takes nothing of its answer for so long is cut off."""

    @model_validator(mode="after")
    def _not_open_to_everybody(self) -> ApiSection:
        if self.keys == "off" and not self.allow_public_without_keys and not is_loopback(self.host):
            raise ValueError(
                f"host = {self.host!r} can be reached from other machines, but no API keys are asked for; set "
                'keys = "required" and make one with `moe2-coordinator keys create NAME`, or, where something else '
                "keeps strangers out, allow_public_without_keys = true"
            )
        return self


class AgentsSection(Settings):
    """[agents]: where agents connect."""

    host: str = "127.0.0.1"
    """Address to listen on. Other addresses than loopback need `[agents.tls]`."""
    port: Port = 8081
    """0 takes any that is free."""
    token_file: Annotated[Path | None, LIVE] = None
    """File with a token that any number of agents may enrol with, beside those of `agents enrol-token create`."""
    allow_plaintext: bool = False
    """Listen without TLS on other addresses than loopback: who sees the network reads and changes what passes."""
    # The pace of an agent's connection is settled when it connects: a change holds for those that connect afterwards.
    heartbeat_s: Annotated[Seconds, LIVE] = 5.0
    """How often both sides make sure that the other is there; after three without a word it is taken for gone."""
    report_s: Annotated[Seconds, LIVE] = 5.0
    """How often an agent reports even if nothing changed."""
    stale_s: Annotated[Seconds, LIVE] = 15.0
    """An agent whose last report is older gets no new requests."""
    evict_s: Annotated[Seconds, LIVE] = 600.0
    """A disconnected agent is forgotten after this."""
    handshake_s: Annotated[Seconds, LIVE] = 10.0
    """A connection that has not said hello by then is closed."""
    max_frame_bytes: Annotated[int, Field(ge=65_536, le=DEFAULT_MAX_FRAME_BYTES)] = DEFAULT_MAX_FRAME_BYTES
    """Agents take no larger frames than the default."""
    tls: TlsSection | None = None
    """Agents use wss:// then."""

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


class SelectionSection(Settings):
    """[selection]"""

    gate: Annotated[Path | None, LIVE] = None
    """Checkpoint of a trained gate (`moe2-coordinator train-gate`); without one, scores are priors by model size."""
    keep_prompts: Annotated[bool, LIVE] = False
    """Feedback is kept with its prompt, so that a gate can learn from it. Otherwise only with the prompt's hash."""
    fleet_watts_cap_w: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, LIVE] = None
    """What all hosts together may draw: no request is begun that is predicted to exceed it."""
    categories: Annotated[dict[str, Budgets], LIVE] = Field(default_factory=dict)
    """Default budgets by category; `default` holds where no other applies."""


class DispatchSection(Settings):
    """[dispatch]: how far the coordinator goes for a request."""

    queue_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Longest wait for an expert with room, within the request's own budgets; 0: such a request is refused at once."""
    max_queued: Annotated[int, Field(ge=0)] = 256
    """Requests that may wait; apps share the places."""
    hedging: bool = True
    """Where an expert is late with its first token, a second one may try; who is first answers."""
    hedge_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the requests that may be given to a second expert in this way."""
    breakers: bool = True
    """An expert that keeps failing gets no requests for a while."""
    affinity: bool = True
    """Of equally good experts, a conversation prefers the one that has its beginning in its cache."""

    @property
    def has_queue(self) -> bool:
        return self.queue_s > 0 and self.max_queued > 0


class LedgerSection(Settings):
    """[ledger]: what requests have cost, kept in SQLite."""

    path: Path | None = None
    """`ledger.sqlite` in `coordinator.state_dir` if not set. On a local disk: SQLite's WAL does not work on NFS."""
    retention_days: Annotated[int, Field(ge=1, le=36_500)] = 90
    """Requests of earlier days are forgotten."""


class TracesSection(Settings):
    """[traces]"""

    endpoint: str | None = None
    """OTLP/HTTP address that each request's spans are sent to, such as http://127.0.0.1:4318/v1/traces; needs
    moe2[traces]."""


class LogSection(Settings):
    """[log]"""

    level: Annotated[Literal["debug", "info", "warning", "error"], LIVE] = "info"
    """The least grave events that are logged."""


class CoordinatorSettings(Settings):
    coordinator: CoordinatorSection = CoordinatorSection()
    api: ApiSection = ApiSection()
    agents: AgentsSection = AgentsSection()
    selection: SelectionSection = SelectionSection()
    dispatch: DispatchSection = DispatchSection()
    ledger: LedgerSection = LedgerSection()
    traces: TracesSection = TracesSection()
    log: LogSection = LogSection()

    @property
    def ledger_path(self) -> Path:
        """Where the ledger is."""
        return self.ledger.path or self.coordinator.state_dir / "ledger.sqlite"

    @model_validator(mode="after")
    def _requests_fit_a_frame(self) -> CoordinatorSettings:
        # The densest JSON, a logit_bias, grows to 1.7 times its size as a job for an agent.
        if 2 * self.api.max_body_bytes > self.agents.max_frame_bytes:
            raise ValueError(
                f"agents.max_frame_bytes ({self.agents.max_frame_bytes}) must be at least twice "
                f"api.max_body_bytes ({self.api.max_body_bytes}), so that every request fits a frame to an agent"
            )
        return self
