"""The frame of both daemons: stopping, reloading, and the signals that ask for it."""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from moe2.common.config import Settings
from moe2.common.reload import Reload
from moe2.common.sdnotify import Notifier

S = TypeVar("S", bound=Settings)


class Daemon(ABC, Generic[S]):
    """A daemon that stops at SIGTERM or SIGINT and reads its settings again at SIGHUP.

    load: reads the configuration; None if there is none to read again.
    """

    def __init__(self, settings: S, *, environment: Mapping[str, str], load: Callable[[], S] | None) -> None:
        self._notifier = Notifier(environment)
        self._reload = Reload(settings, load=load, apply=self._apply, notifier=self._notifier)
        self._stop = asyncio.Event()

    @abstractmethod
    def _apply(self, former: S, settings: S) -> None:
        """Applies other settings. Raises `Moe2Error`, before anything is changed, if they cannot be used."""

    def stop(self) -> None:
        """Asks the running daemon to finish its work and to end."""
        self._stop.set()

    def reload(self) -> None:
        """Reads the configuration again and applies the settings that a running daemon can take."""
        self._reload.reload()

    @property
    def _settings(self) -> S:
        """The settings that the daemon runs with."""
        return self._reload.running

    def _handle_signals(self) -> None:
        """Lets signals stop and reload the daemon, on the running event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
