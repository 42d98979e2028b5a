"""Ends a test's process when the test hangs: one thread looks after all tests.

pytest-timeout starts and joins a thread for each test, and every change between threads waits for a busy machine's
processor: of eight hundred tests in two workers beside other work, 44 s instead of 12 s by the clock.
"""

from __future__ import annotations

from threading import Thread
from time import monotonic, sleep
from typing import Any

import pytest
import pytest_timeout

LOOK_EVERY_S = 1.0


class Watchdog:
    """A plugin that takes the place of pytest-timeout's threads, and has it say and do the same."""

    def __init__(self) -> None:
        self._watched: tuple[float, pytest.Item, Any] | None = None
        """When the test is overdue, the test, and pytest-timeout's settings of it."""
        self._thread: Thread | None = None

    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool | None:
        """Watches a test from now on. One that asks for a signal instead is left to pytest-timeout."""
        if settings.method != "thread":
            return None
        self._watched = monotonic() + settings.timeout, item, settings
        if self._thread is None:
            self._thread = Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return True

    def pytest_timeout_cancel_timer(self) -> bool | None:
        """Watches no more."""
        if self._watched is None:
            return None
        self._watched = None
        return True

    def _watch(self) -> None:
        while True:
            sleep(LOOK_EVERY_S)
            watched = self._watched
            if watched is not None and monotonic() > watched[0]:
                # Shows what every thread does and ends the process; returns where a debugger is at work.
                pytest_timeout.timeout_timer(*watched[1:])
                self._watched = None
