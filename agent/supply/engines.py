"""The engines of one agent, by name: those of its start, and those that are added and removed while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from moe2.agent.engine.process import EngineProcess
from moe2.agent.jobs.effects import AddEngine, KillEngine, RemoveEngine, SendToEngine, StartEngine, StopEngine
from moe2.agent.settings import ModelSection

EngineEffect = SendToEngine | StartEngine | StopEngine | KillEngine | AddEngine | RemoveEngine


class EngineSet:
    """All engine processes. make: builds one of a name and a section. on_gone: told when a removed one has ended."""

    def __init__(self, make: Callable[[str, ModelSection], EngineProcess], on_gone: Callable[[str], None]) -> None:
        self._make = make
        self._on_gone = on_gone
        self._engines: dict[str, EngineProcess] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    def perform(self, effect: EngineEffect) -> None:
        """Has an engine do what the core wants of it."""
        match effect:
            case SendToEngine(model=model, command=command):
                self._engines[model].send(command)
            case StartEngine(model=model):
                self._engines[model].start()
            case StopEngine(model=model):
                self._engines[model].stop()
            case KillEngine(model=model, reason=reason):
                self._engines[model].kill(reason)
            case AddEngine(engine=engine, section=section):
                self.add(engine, section)
            case RemoveEngine(engine=engine):
                self._tasks[engine].cancel()

    def add(self, name: str, section: ModelSection) -> None:
        """Adds a further engine; it runs at once where the others do."""
        self._engines[name] = self._make(name, section)
        if self._group is not None:
            self._run(name, self._group)

    def start(self, group: asyncio.TaskGroup) -> None:
        """Runs all engines, those that are added later, too, until `stop`."""
        self._group = group
        for name in self._engines:
            self._run(name, group)

    def stop(self) -> None:
        """Ends all engines."""
        self._group = None
        for task in self._tasks.values():
            task.cancel()

    def pids(self) -> dict[str, int | None]:
        """The process of each engine, None where it is being started."""
        return {name: engine.pid for name, engine in self._engines.items()}

    def _run(self, name: str, group: asyncio.TaskGroup) -> None:
        work = self._engines[name].run()
        try:
            task = self._tasks[name] = group.create_task(work)
        except RuntimeError:
            # The group ends, and with it the agent: nothing is started any more.
            work.close()
            return
        task.add_done_callback(lambda _: self._ended(name))

    def _ended(self, name: str) -> None:
        del self._engines[name], self._tasks[name]
        if self._group is not None:
            self._on_gone(name)
