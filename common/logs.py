"""Logging: structlog, for people on a terminal, JSON lines elsewhere. Configured once, by `__main__`.

In systemd's journal a line begins with its priority, sd-daemon(3), so that `journalctl -p warning` finds it.

One event name per fact, snake_case, past tense where something happened; values as keys. What belongs to a request
carries `request_id`, bound with `structlog.contextvars`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog

_level = logging.INFO
# syslog(3)'s numbers.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def configure_logging(level: str, *, stream: TextIO = sys.stderr, environment: Mapping[str, str] = os.environ) -> None:
    """Set up structlog for this process. Output goes to `stream`: JSON unless it is a terminal."""
    set_log_level(level)
    to_journal = _is_journal(stream, environment)
    structlog.configure(
        processors=[_completed, *_renderers(stream, to_journal=to_journal)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard module; what they warn about belongs in the same stream.
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_LibraryFormatter("%(levelname)s %(name)s %(message)s", to_journal=to_journal))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def set_log_level(level: str) -> None:
    """Sets the level that is logged from now on, also by loggers that are in use already."""
    global _level
    _level = logging.getLevelNamesMapping()[level.upper()]


def _is_journal(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """True where `stream` is the one that systemd connected to the journal: it names device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _completed(
    logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Returns a line with what its context has bound, its level and its time; drops one below the level that is logged.

    structlog's own filter cannot be changed once a logger is in use.
    """
    if structlog.processors.NAME_TO_LEVEL.get(method, logging.CRITICAL) < _level:
        raise structlog.DropEvent
    event = structlog.contextvars.merge_contextvars(logger, method, event)
    event["level"] = method
    event["timestamp"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return event


def _renderers(stream: TextIO, *, to_journal: bool) -> list[structlog.typing.Processor]:
    if stream.isatty():
        return [structlog.dev.ConsoleRenderer()]
    # Without locals: they hold prompts and tokens.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    renderers: list[structlog.typing.Processor] = [structlog.processors.ExceptionRenderer(tracebacks)]
    return [*renderers, _journal_line if to_journal else _json_line]


_ENCODER = msgspec.json.Encoder()
_STANDARD = structlog.processors.JSONRenderer()


def _json_line(logger: object, method: str, event: MutableMapping[str, Any]) -> str | bytes:
    """A line as JSON, all in ASCII, as the standard library writes it, which takes much longer for a plain one."""
    try:
        return msgspec.json.format(_ENCODER.encode(event), indent=0).decode("ascii")
    except (TypeError, ValueError, OverflowError):
        return _STANDARD(logger, method, event)


def _journal_line(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    return f"<{_PRIORITIES[event['level']]}>{_json_line(logger, method, event)!s}"


class _LibraryFormatter(logging.Formatter):
    """Lines of the standard module; in the journal each with its priority, those of a traceback too."""

    def __init__(self, form: str, *, to_journal: bool) -> None:
        super().__init__(form)
        self._to_journal = to_journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._to_journal:
            return text
        prefix = f"<{_PRIORITIES.get(record.levelname.lower(), _PRIORITIES['warning'])}>"
        return "\n".join(prefix + line for line in text.splitlines())
