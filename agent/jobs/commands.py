"""The coordinator's commands about who is awake: load, unload, suspend. PURE.

Nothing that runs is ever cut off: a model is unloaded, and the host suspended, once their jobs have ended, and a job
that comes first calls it off. Each command is answered once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe2.agent.jobs.effects import AnswerCommand, Effect, ReportChange, StartEngine, StopEngine, SuspendHost
from moe2.agent.jobs.expert import Expert
from moe2.agent.jobs.residency import wake
from moe2.common.errors import CommandErrorCode
from moe2.common.link.messages import CommandAnswer, CommandOutcome, LoadModel, Suspend, UnloadModel
from moe2.common.link.reports import ExpertState

Order = LoadModel | UnloadModel | Suspend
_NO_UNLOADING = "agent.allow_unload is not set on this host."
_NO_SUSPENDING = "agent.allow_suspend is not set on this host."


@dataclass
class _Pending:
    """A command that waits for something.

    until_s: when its patience with running jobs ends. restarts: of its model's engine when it came; one more means that
    loading has failed. is_begun: its engine is being stopped.
    """

    order: Order
    until_s: float | None = None
    restarts: int = 0
    is_begun: bool = False


class CommandDesk:
    """The commands that are not answered yet, for the experts of one core.

    allow_unload, allow_suspend: what the agent's configuration allows.
    """

    def __init__(self, experts: Mapping[str, Expert], *, allow_unload: bool, allow_suspend: bool) -> None:
        self._experts = experts
        self._allow_unload = allow_unload
        self._allow_suspend = allow_suspend
        self._pending: list[_Pending] = []
        self.suspend_fault: str | None = None
        """Why the host cannot be suspended, as far as is known."""
        self.is_leaving = False
        """The host is being suspended: no job is begun any more."""

    @property
    def is_empty(self) -> bool:
        """True if no command waits."""
        return not self._pending

    @property
    def next_deadline_s(self) -> float | None:
        """When the next command's patience ends."""
        return min((one.until_s for one in self._pending if one.until_s is not None), default=None)

    def take(self, order: Order, now_s: float, *, is_draining: bool) -> list[Effect]:
        """A command has come. What can be done at once `advance` does."""
        if any(one.order.command_id == order.command_id for one in self._pending):
            return []
        if refusal := self._refusal(order, is_draining):
            return [_answer(order, CommandOutcome.REFUSED, *refusal)]
        effects = self._supersede(order)
        match order:
            case LoadModel(model=model):
                expert = self._experts[model]
                self._pending.append(_Pending(order, restarts=expert.restarts))
                if wake(expert, now_s):
                    effects += [StartEngine(expert.engine), ReportChange()]
            case UnloadModel(drain_s=drain_s) | Suspend(drain_s=drain_s):
                self._pending.append(_Pending(order, until_s=None if drain_s is None else now_s + drain_s))
        return effects

    def job_came(self, model: str) -> list[Effect]:
        """A job has come for this model: what would have taken it from memory is called off."""
        text = "A request has come meanwhile."
        effects: list[Effect] = []
        for one in tuple(self._pending):
            of_model = isinstance(one.order, UnloadModel) and one.order.model == model and not one.is_begun
            if of_model or isinstance(one.order, Suspend):
                effects.append(self._end(one, CommandOutcome.REFUSED, CommandErrorCode.BUSY, text))
        return effects

    def link_lost(self) -> list[Effect]:
        """Whoever wanted a model or the host asleep is gone, and could not wake it: nothing more is put to sleep."""
        text = "The coordinator was lost before it was done."
        return [
            self._end(one, CommandOutcome.REFUSED, CommandErrorCode.SUPERSEDED, text)
            for one in tuple(self._pending)
            if not (one.is_begun or isinstance(one.order, LoadModel))
        ]

    def engine_stopped(self, model: str) -> list[Effect]:
        """The model's process has ended, as it was told to, and its memory is given back."""
        if model in self._experts:
            self._experts[model].stopping = False
        return [
            self._end(one, CommandOutcome.DONE)
            for one in tuple(self._pending)
            if one.is_begun and isinstance(one.order, UnloadModel) and one.order.model == model
        ]

    def model_exchanged(self, model: str) -> list[Effect]:
        """Another model takes this one's place, or none does: commands about it have no object any more."""
        text = "The model is being exchanged."
        return [
            self._end(one, CommandOutcome.REFUSED, CommandErrorCode.SUPERSEDED, text)
            for one in tuple(self._pending)
            if isinstance(one.order, LoadModel | UnloadModel) and one.order.model == model
        ]

    def suspend_ended(self, command_id: str | None, fault: str | None) -> list[Effect]:
        """The host is awake: it was woken, or (with `fault`) has not slept at all."""
        self.is_leaving = False
        effects: list[Effect] = [ReportChange()]
        if fault is not None and command_id is not None:
            code = CommandErrorCode.SUSPEND_FAILED
            answer = CommandAnswer(command_id=command_id, outcome=CommandOutcome.FAILED, code=code, message=fault)
            effects.append(AnswerCommand(answer))
        return effects

    def advance(self, now_s: float, *, is_idle: bool) -> list[Effect]:
        """Does what has become possible, and gives up what has waited too long. is_idle: no job is there at all."""
        effects: list[Effect] = []
        for one in tuple(self._pending):
            match one.order:
                case LoadModel(model=model):
                    effects += self._advance_load(one, self._experts[model])
                case UnloadModel(model=model):
                    effects += self._advance_unload(one, self._experts[model], now_s)
                case Suspend():
                    effects += self._advance_suspend(one, now_s, is_idle)
        return effects

    def _advance_load(self, one: _Pending, expert: Expert) -> list[Effect]:
        if expert.state is ExpertState.READY:
            return [self._end(one, CommandOutcome.DONE)]
        if expert.restarts > one.restarts:
            text = expert.last_error or "its engine ended"
            return [self._end(one, CommandOutcome.FAILED, CommandErrorCode.LOAD_FAILED, text)]
        return []

    def _advance_unload(self, one: _Pending, expert: Expert, now_s: float) -> list[Effect]:
        if one.is_begun:
            return []
        if expert.active or expert.queue:
            return self._patience_over(one, now_s)
        if expert.state is ExpertState.COLD:
            one.is_begun = expert.stopping
            return [] if expert.stopping else [self._end(one, CommandOutcome.DONE)]
        expert.state, expert.idle_since_s, expert.woken_at_s = ExpertState.COLD, None, None
        expert.load_progress = None
        expert.stopping = one.is_begun = True
        return [StopEngine(expert.engine), ReportChange()]

    def _advance_suspend(self, one: _Pending, now_s: float, is_idle: bool) -> list[Effect]:
        changing = any(expert.stopping or expert.state is ExpertState.LOADING for expert in self._experts.values())
        if not is_idle or changing or len(self._pending) > 1:
            return self._patience_over(one, now_s)
        self.is_leaving = True
        return [self._end(one, CommandOutcome.DONE), SuspendHost(one.order.command_id)]

    def _patience_over(self, one: _Pending, now_s: float) -> list[Effect]:
        if one.until_s is None or now_s < one.until_s:
            return []
        text = "Requests still ran when the time for their end was up."
        return [self._end(one, CommandOutcome.REFUSED, CommandErrorCode.BUSY, text)]

    def _refusal(self, order: Order, is_draining: bool) -> tuple[CommandErrorCode, str] | None:
        if isinstance(order, LoadModel | UnloadModel) and order.model not in self._experts:
            names = ", ".join(sorted(self._experts))
            return CommandErrorCode.UNKNOWN_MODEL, f"This agent does not serve {order.model!r}; it serves {names}."
        if isinstance(order, UnloadModel) and not self._allow_unload:
            return CommandErrorCode.NOT_ALLOWED, _NO_UNLOADING
        if isinstance(order, Suspend) and not self._allow_suspend:
            return CommandErrorCode.NOT_ALLOWED, _NO_SUSPENDING
        if isinstance(order, Suspend) and self.suspend_fault is not None:
            return CommandErrorCode.NOT_POSSIBLE, self.suspend_fault
        if is_draining or self.is_leaving:
            return CommandErrorCode.DRAINING, "The agent is shutting down, or its host is going to sleep."
        return None

    def _supersede(self, order: Order) -> list[Effect]:
        """The last command holds: whatever waits and wants something else is answered."""
        effects: list[Effect] = []
        for one in tuple(self._pending):
            if not one.is_begun and _contradicts(order, one.order):
                text = "A later command asks for something else."
                effects.append(self._end(one, CommandOutcome.REFUSED, CommandErrorCode.SUPERSEDED, text))
        return effects

    def _end(
        self, one: _Pending, outcome: CommandOutcome, code: CommandErrorCode | None = None, text: str | None = None
    ) -> AnswerCommand:
        self._pending.remove(one)
        return _answer(one.order, outcome, code, text)


def _answer(
    order: Order, outcome: CommandOutcome, code: CommandErrorCode | None = None, text: str | None = None
) -> AnswerCommand:
    return AnswerCommand(CommandAnswer(command_id=order.command_id, outcome=outcome, code=code, message=text))


def _contradicts(later: Order, earlier: Order) -> bool:
    match later, earlier:
        case LoadModel(model=model), UnloadModel(model=other):
            return model == other
        case UnloadModel(model=model), LoadModel(model=other) | UnloadModel(model=other):
            return model == other
        case LoadModel(), Suspend():
            return True
        case Suspend(), LoadModel() | Suspend():
            return True
    return False
