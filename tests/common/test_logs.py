"""Logging."""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from moe2.common.energy import Quality
from moe2.common.logs import configure_logging, set_log_level

LEVELS = ("debug", "info", "warning", "error")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is process-wide; leave it as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def configured(level: str, stream: io.StringIO) -> None:
    """As in a process where nobody else has set up logging; pytest has."""
    logging.getLogger().handlers.clear()
    configure_logging(level, stream=stream)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_are_json_where_nobody_looks() -> None:
    """One object a line: event, level, time, values."""
    stream = io.StringIO()
    configured("info", stream)
    structlog.get_logger().info("agent_joined", agent_id="a", n=1)
    [line] = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "agent_joined", "level": "info", "agent_id": "a", "n": 1}


@pytest.mark.parametrize(
    "value", ["plain", "ü\u2028\x85", "a\ud800", 2**70, {1: 2}, object, Quality.SIMULATED, [], {"a": [None, 1.5]}]
)
def test_a_line_is_written_as_the_standard_library_writes_it(value: object) -> None:
    """In one line of ASCII, whatever its values are."""
    stream = io.StringIO()
    configured("info", stream)
    structlog.get_logger().info("agent_joined", value=value)
    shown = json.dumps(value, default=repr)
    assert stream.getvalue().startswith(f'{{"value": {shown}, "event": "agent_joined", "level": "info", ')


def test_lines_are_for_people_on_a_terminal() -> None:
    """Not JSON there."""
    stream = Terminal()
    configured("info", stream)
    structlog.get_logger().info("agent_joined", agent_id="a")
    assert "agent_joined" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        lines(stream)


def test_the_request_id_is_in_every_line_of_its_request() -> None:
    """Bound once, by context."""
    stream = io.StringIO()
    configured("info", stream)
    with structlog.contextvars.bound_contextvars(request_id="req-1"):
        structlog.get_logger().info("request_began")
        structlog.get_logger().info("request_ended")
    structlog.get_logger().info("idle")
    assert [line.get("request_id") for line in lines(stream)] == ["req-1", "req-1", None]


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_is_the_least_that_is_shown(level: str) -> None:
    """Everything from it on, nothing below."""
    stream = io.StringIO()
    configured(level, stream)
    for name in LEVELS:
        getattr(structlog.get_logger(), name)("event")
    assert [line["level"] for line in lines(stream)] == list(LEVELS[LEVELS.index(level) :])


def test_warnings_of_libraries_go_to_the_same_stream() -> None:
    """They log through the standard module; what is below a warning is noise."""
    stream = io.StringIO()
    configured("info", stream)
    logging.getLogger("aiohttp").info("chatter")
    logging.getLogger("aiohttp").warning("trouble")
    assert "trouble" in stream.getvalue()
    assert "chatter" not in stream.getvalue()


def test_an_exception_is_logged_without_the_values_of_variables() -> None:
    """A traceback says where; prompts and tokens, which locals hold, stay out of logs."""
    stream = io.StringIO()
    configured("info", stream)
    prompt = "a private prompt"
    try:
        raise ValueError(len(prompt))
    except ValueError:
        structlog.get_logger().exception("request_broke")
    [line] = lines(stream)
    assert line["exception"][0]["exc_type"] == "ValueError"
    assert "a private" + " prompt" not in stream.getvalue()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[TextIO]:
    """A stream with a device and an inode, as systemd connects to the journal."""
    with (tmp_path / "journal").open("w+") as stream:
        yield stream


def told_by_systemd(stream: TextIO) -> dict[str, str]:
    found = os.fstat(stream.fileno())
    return {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}


@pytest.mark.parametrize(("level", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3)])
def test_lines_for_the_journal_begin_with_their_priority(journal: TextIO, level: str, priority: int) -> None:
    """The number is syslog's; the rest of the line is the JSON object."""
    configure_logging("debug", stream=journal, environment=told_by_systemd(journal))
    getattr(structlog.get_logger(), level)("agent_joined", n=1)
    journal.seek(0)
    line = journal.read()
    assert line.startswith(f"<{priority}>{{")
    assert json.loads(line[3:])["n"] == 1


def test_a_library_traceback_has_its_priority_on_every_line(journal: TextIO) -> None:
    """The journal takes each line for an entry of its own."""
    logging.getLogger().handlers.clear()
    configure_logging("info", stream=journal, environment=told_by_systemd(journal))
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("asyncio").exception("task failed")
    journal.seek(0)
    found = journal.read().splitlines()
    assert len(found) > 2
    assert all(line.startswith("<3>") for line in found)


def test_another_stream_than_the_journal_s_has_no_priorities(journal: TextIO) -> None:
    """stderr may be redirected to a file while the variable is inherited."""
    configure_logging("info", stream=journal, environment={"JOURNAL_STREAM": "1:1"})
    structlog.get_logger().info("agent_joined")
    journal.seek(0)
    assert journal.read().startswith("{")


def test_another_level_holds_for_loggers_in_use() -> None:
    """A daemon that runs is asked to say more, and less again."""
    stream = io.StringIO()
    configured("info", stream)
    log = structlog.get_logger()
    log.debug("before")
    set_log_level("debug")
    log.debug("meanwhile")
    set_log_level("warning")
    log.info("after")
    assert [line["event"] for line in lines(stream)] == ["meanwhile"]
