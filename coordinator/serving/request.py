"""What a client asked for, in moe2's words. PURE."""

from __future__ import annotations

from functools import cached_property

import msgspec

from moe2.common.generation import Generation
from moe2.common.link.messages import EmbedJob, Submit
from moe2.common.link.prompts import ChatPrompt, TextPrompt
from moe2.coordinator.answers.form import AnswerForm, form_of
from moe2.coordinator.choosing.request import NO_WISH, ROUTE_ONLY, Ballot, Demand, Mode, Wish
from moe2.coordinator.keys.keys import ANYBODY, Principal


class Request(msgspec.Struct, frozen=True, dict=True):
    """What a client asked for."""

    request_id: str
    model: str
    prompt: ChatPrompt | TextPrompt
    generation: Generation
    demand: Demand
    arrived_s: float
    """When the request's last byte had been read, in monotonic seconds."""
    deadline_s: float
    wish: Wish = NO_WISH
    modes: frozenset[Mode] = ROUTE_ONLY
    """The modes that can serve the request."""
    prefix: str = ""
    """How the answer begins: the client has this already, and the expert goes on from there."""
    texts: tuple[TextPrompt, ...] = ()
    """The texts that vectors are asked for, of which `prompt` is the first; none where an answer is to be written."""
    vector_size: int | None = None
    """The length of the vectors; None for that which the model makes."""
    ballot: Ballot | None = None
    """The choices that the answer is one of."""
    principal: Principal = ANYBODY
    client_request_id: str | None = None
    """The client's own id of the request; None where it sent none."""
    traceparent: str | None = None
    """The header by which the client's trace goes on here."""
    is_streamed: bool = True
    """Whether the client sees the answer grow; else it sees nothing until the end."""

    @cached_property
    def answer_form(self) -> AnswerForm:
        """The form of the final answer, which a consensus counts."""
        return form_of(
            self.text,
            kind=self.wish.answer,
            choices=self.ballot.choices if self.ballot else (),
            schema=self.generation.json_schema,
        )

    @property
    def text(self) -> str:
        """The prompt as the gate reads it."""
        return gate_text(self.prompt)


def gate_text(prompt: ChatPrompt | TextPrompt) -> str:
    """Returns a prompt as the gate reads it: the last message of a conversation, or the text."""
    return prompt.messages[-1].content if isinstance(prompt, ChatPrompt) else prompt.text


def writing_of(
    request: Request, job_id: str, model: str, deadline_s: float, generation: Generation, *, prefix: str = ""
) -> Submit:
    """The job that has a model write the answer, or what is to follow its beginning `prefix`."""
    return Submit(
        job_id=job_id,
        request_id=request.request_id,
        model=model,
        prompt=request.prompt,
        prefix=request.prefix + prefix,
        deadline_s=deadline_s,
        **msgspec.structs.asdict(generation),
    )


def embedding_of(request: Request, job_id: str, model: str, deadline_s: float) -> EmbedJob:
    """The job that has a model embed the request's texts."""
    return EmbedJob(
        job_id=job_id, request_id=request.request_id, model=model, texts=request.texts, deadline_s=deadline_s
    )


def uses_tools(prompt: ChatPrompt | TextPrompt) -> bool:
    """True where only a model whose chat template has tools can read the prompt."""
    if isinstance(prompt, TextPrompt):
        return False
    return bool(prompt.tools) or any(message.tool_calls or message.role == "tool" for message in prompt.messages)


def has_gap(prompt: ChatPrompt | TextPrompt) -> bool:
    """True where what is to be written stands between two texts."""
    return isinstance(prompt, TextPrompt) and bool(prompt.suffix)
