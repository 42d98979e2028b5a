"""What the middlewares find out about a request for its handler."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from moe2.coordinator.access.principal import Principal

PRINCIPAL = web.RequestKey("principal", Principal)
"""Whom the request is charged to."""
STILL_WELCOME: web.RequestKey[Callable[[], bool]] = web.RequestKey("still_welcome")
"""Whether its key would still be accepted. Not set where no key is asked for."""
BODY = web.RequestKey("body", bytes)
"""Of a POST request: its body, whole and unpacked."""
