"""Opens a TCP listener of an application that is set up, and says what to do where its address cannot be had."""

from __future__ import annotations

import ssl

from aiohttp import web

from moe2.common.errors import Moe2Error


async def open_listener(
    runner: web.AppRunner, host: str, port: int, *, section: str, context: ssl.SSLContext | None = None
) -> int:
    """Listens until the runner is cleaned up, and returns the port. Raises `Moe2Error` if it cannot.

    section: of the configuration, whose keys `host` and `port` are. context: None for plain connections.
    """
    try:
        await web.TCPSite(runner, host, port, reuse_address=True, ssl_context=context).start()
    except OSError as error:
        raise Moe2Error(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            remedy=f"Stop what uses it, or set {section}.host and {section}.port.",
        ) from error
    bound: int = runner.addresses[0][1]
    return bound
