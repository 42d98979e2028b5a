"""A request in moe2's words. PURE."""

from __future__ import annotations

from dataclasses import dataclass, field

from moe2.common.generation import Generation
from moe2.common.link.messages import ChatPrompt, TextPrompt
from moe2.coordinator.choosing.request import ROUTE_ONLY, Ballot, Demand, Mode, Wish
from moe2.coordinator.keys.keys import ANYBODY, Principal


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
    generation: Generation
    demand: Demand
    arrived_s: float
    deadline_s: float
    wish: Wish = field(default_factory=Wish)
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


def uses_tools(prompt: ChatPrompt | TextPrompt) -> bool:
    """True where only a model whose chat template has tools can read the prompt."""
    if isinstance(prompt, TextPrompt):
        return False
    return bool(prompt.tools) or any(message.tool_calls or message.role == "tool" for message in prompt.messages)
