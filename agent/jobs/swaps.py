"""Exchanging models while requests come: add, replace and withdraw, without losing a job. PURE.

Where memory has room for both, the new model is loaded beside the old one, takes its place and its waiting jobs, and
the old one ends once its running jobs have. Where it has not, the jobs wait while the old one is drained, its engine
ends and the new one is loaded; if that fails, the old one is brought back for them. What is served is kept
(`KeepServed`) only when the new model is ready, so that an agent that is killed before comes back with what it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moe2.agent.jobs.effects import AddEngine, AnswerCommand, Effect, KeepServed, RemoveEngine, ReportChange
from moe2.agent.jobs.events import ModelOffered, ModelWithdrawn
from moe2.agent.jobs.expert import Expert, Job
from moe2.agent.settings import ModelSection
from moe2.common.errors import CommandErrorCode
from moe2.common.link.messages import CommandAnswer, CommandOutcome
from moe2.common.link.reports import ExpertState


@dataclass
class _Swap:
    """An exchange that is under way. incoming: None while its model's place is not free yet. former: what it replaces.

    sha256: of the file that comes. is_ending: the former engine has been told to end, and its memory is waited for.
    """

    command_id: str
    section: ModelSection
    sha256: str | None
    former: Expert | None
    incoming: Expert | None = None
    is_ending: bool = False


class SwapDesk:
    """The exchanges of models on one host, in which a new engine takes the place of an old one.

    experts: those that are served, by name; jobs: all, by id. make: builds an expert of a section with an engine's
    name.
    """

    def __init__(
        self, experts: dict[str, Expert], jobs: dict[str, Job], make: Callable[[ModelSection, str], Expert]
    ) -> None:
        self._experts = experts
        self._jobs = jobs
        self._make = make
        self._swaps: dict[str, _Swap] = {}
        self._leaving: dict[str, tuple[Expert, str | None]] = {}
        """By engine, with the command that is answered when the engine is gone."""
        self._ending: set[str] = set()
        """Engines that have been told to end, and have not ended yet."""
        self._n_engines = 0

    @property
    def is_empty(self) -> bool:
        """True if nothing is exchanged and no engine is on its way out."""
        return not self._swaps and not self._leaving

    @property
    def names(self) -> tuple[str, ...]:
        """The models that are being added, changed or removed."""
        leaving = {expert.section.name for expert, command_id in self._leaving.values() if command_id}
        return tuple(sorted(leaving.union(self._swaps)))

    def aside(self) -> Iterator[Expert]:
        """The experts that have an engine and are not served: those that come, and those that leave."""
        for swap in self._swaps.values():
            if swap.incoming is not None and self._experts.get(swap.section.name) is not swap.incoming:
                yield swap.incoming
        for expert, _ in self._leaving.values():
            yield expert

    def offered(self, event: ModelOffered, *, is_draining: bool) -> list[Effect]:
        """A model is to be served."""
        name = event.section.name
        if refusal := self._refusal(name, is_draining):
            return [_refused(event.command_id, *refusal)]
        former = self._experts.get(name)
        swap = self._swaps[name] = _Swap(event.command_id, event.section, event.sha256, former)
        if former is None or event.beside:
            return [*self._load(swap), ReportChange()]
        former.held = True
        return [ReportChange()]

    def withdrawn(self, event: ModelWithdrawn, *, is_draining: bool) -> list[Effect]:
        """A model is to be served no longer. Jobs that it has already taken are answered first."""
        if refusal := self._refusal(event.name, is_draining):
            return [_refused(event.command_id, *refusal)]
        expert = self._experts.pop(event.name, None)
        if expert is None:
            text = f"This agent does not serve {event.name!r}; it serves {', '.join(sorted(self._experts)) or 'none'}."
            return [_refused(event.command_id, CommandErrorCode.UNKNOWN_MODEL, text)]
        self._leaving[expert.engine] = (expert, event.command_id)
        return [KeepServed(event.name, None), ReportChange()]

    def loaded(self, expert: Expert) -> list[Effect]:
        """An engine has loaded its model. The core fills its slots afterwards."""
        swap = self._swap_of(expert)
        if swap is None:
            return []
        name = swap.section.name
        del self._swaps[name]
        expert.awaited = False
        former = self._experts.get(name)
        self._experts[name] = expert
        if former is not None and former is not expert:
            self._move_queue(former, expert)
            self._leaving[former.engine] = (former, None)
        return [
            KeepServed(name, swap.section),
            AnswerCommand(CommandAnswer(command_id=swap.command_id, outcome=CommandOutcome.DONE)),
            ReportChange(),
        ]

    def failed(self, expert: Expert, reason: str) -> list[Effect] | None:
        """An engine has ended by itself. None where it is no exchange's: then it is started again, as always."""
        swap = self._swap_of(expert)
        if swap is None:
            return None
        answer = CommandAnswer(
            command_id=swap.command_id,
            outcome=CommandOutcome.FAILED,
            code=CommandErrorCode.LOAD_FAILED,
            message=reason,
        )
        effects: list[Effect] = [RemoveEngine(expert.engine), AnswerCommand(answer), ReportChange()]
        if self._experts.get(swap.section.name) is not expert or swap.former is None:
            # It was loaded aside: what is served goes on as it was.
            del self._swaps[swap.section.name]
            self._leaving[expert.engine] = (expert, None)
            self._ending.add(expert.engine)
            return effects
        # The former one is brought back once this engine's memory is free; the jobs go on waiting.
        self._swaps[swap.section.name] = _Swap("", swap.former.section, swap.former.file_sha256, expert, is_ending=True)
        expert.state, expert.load_progress = ExpertState.LOADING, 0.0
        return effects

    def gone(self, engine: str) -> list[Effect]:
        """A removed engine has ended."""
        self._ending.discard(engine)
        left = self._leaving.pop(engine, None)
        if left is not None:
            done = [] if left[1] is None else [_done(left[1])]
            return [*done, ReportChange()]
        for swap in self._swaps.values():
            if swap.former is not None and swap.former.engine == engine and swap.is_ending:
                return [*self._load(swap), ReportChange()]
        return []

    def advance(self) -> list[Effect]:
        """Ends the engines whose jobs have ended."""
        effects: list[Effect] = []
        for expert, _ in self._leaving.values():
            if not (expert.active or expert.queue or expert.engine in self._ending):
                self._ending.add(expert.engine)
                effects.append(RemoveEngine(expert.engine))
        for swap in self._swaps.values():
            former = swap.former
            if former is not None and former.held and not former.active and not swap.is_ending:
                swap.is_ending = True
                effects.append(RemoveEngine(former.engine))
        return effects

    def _load(self, swap: _Swap) -> list[Effect]:
        """Starts the engine of a model that comes; in the former one's place where that has ended."""
        self._n_engines += 1
        incoming = self._make(swap.section, f"{swap.section.name}@{self._n_engines}")
        incoming.state, incoming.load_progress = ExpertState.LOADING, 0.0
        # Known from the first answer on, so that no request is counted for a model that nobody knows.
        incoming.file_sha256 = swap.sha256
        former = swap.former
        if former is not None and swap.is_ending:
            incoming.awaited = True
            self._experts[swap.section.name] = incoming
            self._move_queue(former, incoming)
        if swap.command_id:
            swap.incoming = incoming
        else:
            # What was brought back is an expert like any other: it is started again until it runs.
            del self._swaps[swap.section.name]
        return [AddEngine(incoming.engine, swap.section)]

    def _move_queue(self, former: Expert, incoming: Expert) -> None:
        for job_id in former.queue:
            self._jobs[job_id].expert = incoming
            incoming.queue.append(job_id)
        former.queue.clear()

    def _swap_of(self, expert: Expert) -> _Swap | None:
        swap = self._swaps.get(expert.section.name)
        return swap if swap is not None and swap.incoming is expert else None

    def _refusal(self, name: str, is_draining: bool) -> tuple[CommandErrorCode, str] | None:
        if is_draining:
            return CommandErrorCode.DRAINING, "The agent is shutting down."
        if name in self.names:
            return CommandErrorCode.BUSY, f"{name} is being exchanged already."
        return None


def _done(command_id: str) -> AnswerCommand:
    return AnswerCommand(CommandAnswer(command_id=command_id, outcome=CommandOutcome.DONE))


def _refused(command_id: str, code: CommandErrorCode, text: str) -> AnswerCommand:
    return AnswerCommand(CommandAnswer(command_id=command_id, outcome=CommandOutcome.REFUSED, code=code, message=text))
