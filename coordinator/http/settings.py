"""The settings of the API listener, the section `[api]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from moe2.common.config import LIVE, Port, Seconds, Settings
from moe2.common.hosts import Authority, Origin, is_loopback
from moe2.coordinator.fleet.settings import TlsSection


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
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
SiteOrigin = Annotated[str, AfterValidator(_site_origin)]


class ApiSection(Settings):
    """[api]: where apps connect."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 8080
    """Port to listen on; 0 takes any that is free."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """A larger request, packed or unpacked, is answered with 413. At most half of `agents.max_frame_bytes`."""
    unknown_parameters: Annotated[Literal["refuse", "ignore"], LIVE] = "refuse"
    """What becomes of parameters that moe2 does not know: an error that names them, or, for clients that cannot be
    changed, nothing but their names in the answer's header `x-moe2-ignored`."""
    aliases: Annotated[dict[ModelName, ModelName], LIVE] = Field(default_factory=dict)
    """Other names of models, such as `"gpt-4o-mini" = "moe2"` for clients that have a name built in."""
    stream_comment_s: Annotated[Seconds, LIVE] = 10.0
    """A stream that has nothing to say for so long sends a comment, so that nobody on the way takes it for dead."""
    request_timeout_s: Annotated[Seconds, LIVE] = 600.0
    """A request that has not ended within this time is cancelled and answered with an error."""
    max_active_requests: Annotated[int, Field(ge=1), LIVE] = 1024
    """Requests in progress, queued ones included; one more is answered with 429."""
    max_connections_per_address: Annotated[int, Field(ge=1), LIVE] = 1024
    """Connections that one address may have open (of IPv6, one /64 network); a further one is answered with 429 and
    closed. A proxy in front is one address."""
    tls: TlsSection | None = None
    """Certificate and key of the listener; with them apps use https://."""
    keys: Literal["required", "off"] = "off"
    """Whether apps need an API key (`moe2-coordinator keys create`)."""
    allow_public_without_keys: bool = False
    """Listen on more than loopback although `keys` is "off": for use behind a proxy that decides who gets in."""
    hosts: Annotated[tuple[HostName, ...], LIVE] = ()
    """Names by which apps reach the API, such as `hub.example`; requests to other names are refused.

    A stranger's name server could lead a web page's requests here under another name. IP addresses, `localhost` and
    this machine's own names need not be listed. If none are listed, a listener that asks for keys and can be reached
    from other machines answers to every name.
    """
    origins: Annotated[tuple[SiteOrigin, ...], LIVE] = ()
    """Sites whose pages may use the API from a browser (CORS), such as `https://chat.example`; others are refused. The
    coordinator's own page need not be listed, except behind a proxy that sends another `Host` on."""
    header_timeout_s: Seconds = 75.0
    """A connection that has sent no whole request header for so long is closed, whether it is slow or idle."""
    body_timeout_s: Seconds = 30.0
    """A request's body must have come whole within this time."""
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
