"""The settings of the listener for files, the section `[push]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from moe2.common.config import Port, Settings


class PushSection(Settings):
    """[push]: where agents fetch the models that the coordinator sends them; with the TLS of `[agents.tls]`"""

    host: str = "127.0.0.1"
    """Address to listen on. Addresses other than loopback need `[agents.tls]`, as for `[agents]`."""
    port: Port | None = None
    """Port to listen on; 0 takes any that is free. Without one nothing is sent."""
    folder: Path | None = None
    """Folder of the models that keys with the scope `operate` may send over the API; none if not set."""
    max_bytes_per_s: Annotated[int, Field(ge=1024)] | None = None
    """Bytes per second that all hosts together may take; no limit if not set."""
    max_hosts: Annotated[int, Field(ge=1, le=1000)] = 4
    """Hosts that are sent to at once; further ones wait."""
