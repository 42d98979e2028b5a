"""What the log of a listener's protocol keeps to itself."""

from __future__ import annotations

import logging

import pytest
from aiohttp import ClientConnectionResetError

from moe2.coordinator.http.transport import protocol_logger


@pytest.mark.parametrize(
    ("error", "is_logged"),
    [(ClientConnectionResetError("Cannot write to closing transport"), False), (ValueError("a defect"), True)],
)
def test_whoever_has_left_is_no_fault(error: Exception, is_logged: bool) -> None:
    """A peer that is gone before its answer begins leaves no trace of an error; a defect of ours does."""
    logger = protocol_logger()
    record = logger.makeRecord("moe2.http", logging.ERROR, __file__, 1, "Error", (), (type(error), error, None))
    assert bool(logger.filter(record)) is is_logged
