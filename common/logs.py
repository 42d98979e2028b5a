"""Logging: structlog, for people on a terminal, JSON lines elsewhere. Configured once, by `__main__`.

One event name per fact, snake_case, past tense where something happened; values as keys. What belongs to a request
carries `request_id`, bound with `structlog.contextvars`.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

_level = logging.INFO
LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str, *, stream: TextIO = sys.stderr) -> None:
    """Set up structlog for this process. Output goes to `stream`: JSON unless it is a terminal."""
    set_log_level(level)
    structlog.configure(
        processors=[
            _drop_below_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *_renderers(stream),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard module; what they warn about belongs in the same stream.
    logging.basicConfig(level=logging.WARNING, stream=stream, format="%(levelname)s %(name)s %(message)s")


def set_log_level(level: str) -> None:
    """What is logged from now on, by loggers that are in use already, too."""
    global _level
    _level = logging.getLevelNamesMapping()[level.upper()]


def _drop_below_level(
    _logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Before anything else is done with the line. structlog's own filter cannot be changed once a logger is in use."""
    if structlog.processors.NAME_TO_LEVEL.get(method, logging.CRITICAL) < _level:
        raise structlog.DropEvent
    return event


def _renderers(stream: TextIO) -> list[structlog.typing.Processor]:
    if stream.isatty():
        return [structlog.dev.ConsoleRenderer()]
    # Without locals: they hold prompts and tokens.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
