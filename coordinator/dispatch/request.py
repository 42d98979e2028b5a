"""A request in moe2's words. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field

from moe2.common.messages import ChatPrompt, Sampling, TextPrompt
from moe2.coordinator.access.principal import ANYBODY, Principal
from moe2.coordinator.ballot import Ballot
from moe2.coordinator.budgets import Mode, Wish
from moe2.coordinator.choice import ROUTE_ONLY
from moe2.coordinator.predict import Demand
from moe2.coordinator.structure import FREE, Structure


@dataclass(frozen=True)
class Request:
    """What a client asked for.

    arrived_s: when its last byte had been read. modes: those that can serve it. ballot: the choices that the answer is
    one of. traceparent: the header by which the client's trace goes on here. is_streamed: its client sees the answer
    grow; where not, the client has seen nothing until the end.
    """

    request_id: str
    model: str
    prompt: ChatPrompt | TextPrompt
    sampling: Sampling
    demand: Demand
    arrived_s: float
    deadline_s: float
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    wish: Wish = field(default_factory=Wish)
    structure: Structure = FREE
    modes: frozenset[Mode] = ROUTE_ONLY
    ballot: Ballot | None = None
    principal: Principal = ANYBODY
    traceparent: str | None = None
    is_streamed: bool = True

    @property
    def text(self) -> str:
        """The prompt as the gate reads it: the last message of a conversation, or the text."""
        if isinstance(self.prompt, ChatPrompt):
            return self.prompt.messages[-1].content
        return self.prompt.text
