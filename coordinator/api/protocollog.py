"""What aiohttp has to say about requests that are no HTTP: that there was one, without its bytes.

aiohttp logs the faulty line with a traceback. It may hold a key, and whoever sends nonsense could fill the log with it.
"""

from __future__ import annotations

import logging
from time import monotonic

import structlog
from aiohttp.http_exceptions import HttpProcessingError

from moe2.coordinator.access.bucket import TokenBucket

LOGGED_PER_MINUTE = 60

log = structlog.get_logger()


class _Discreet(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._bucket = TokenBucket(LOGGED_PER_MINUTE, monotonic())

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        if self._bucket.take(monotonic()) == 0:
            log.info("request_malformed", fault=type(error).__name__)
        return False


def protocol_logger() -> logging.Logger:
    """For the server's protocol of a listener: faults of ours are logged as ever."""
    # A logger of its own: the filter counts for this process's listeners only.
    logger = logging.getLogger("moe2.http")
    if not logger.filters:
        logger.addFilter(_Discreet())
    return logger
