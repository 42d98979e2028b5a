"""The settings of the database that coordinators share."""

from __future__ import annotations

import socket
from typing import Annotated

from pydantic import Field, field_validator

from moe2.common.config import Settings


class DatabaseSection(Settings):
    """[database]: the PostgreSQL database that several coordinators of one fleet share; needs moe2[postgresql]."""

    url: Annotated[str | None, Field(repr=False)] = None
    """Address of the database, such as postgresql://moe2@db.example/moe2, as libpq reads it. Without one the
    coordinator is alone and keeps everything in `coordinator.state_dir`. A password belongs into a file that
    `?passfile=` names."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] | None = None
    """Name of this coordinator, no other's; the host's name if not set."""
    cell: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "main"
    """Name of the fleet, where several fleets with coordinators of their own share keys, limits and books."""
    coordinators: Annotated[int, Field(ge=1, le=16)] = 2
    """Number of coordinators that serve the fleet; each may use that part of `selection.fleet_watts_cap_w`."""

    @field_validator("url")
    @classmethod
    def _is_postgresql(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql://")
        return url

    @property
    def own_name(self) -> str:
        """The name of this coordinator."""
        return self.name or socket.gethostname()
