"""The client that asks experts questions over the coordinator's own API, and scores what they answer.

A model with a chat template is asked in a chat, a base model without one by a text completion in a plain frame. A
question with options is asked twice: once to write the answer, and once to score the options, as `vote` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import msgspec

from moe2.common.errors import Moe2Error
from moe2.common.link.reports import ExpertState
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.answers.form import LETTERS
from moe2.coordinator.training.collect.outfile import Answered, ScoredChoices
from moe2.coordinator.training.collect.questions import INSTRUCTIONS, Metric, Question, said, score

MAX_PAUSE_S = 30.0
DEFAULT_PAUSE_S = 1.0
"""Pause before a busy expert is asked again, where it does not say how long."""
AWAY_CODES = frozenset(
    {
        *(
            "model_not_found",
            "model_away",
            "model_loading",
            "no_live_expert",
            "agent_lost",
            "draining",
            "not_ready",
            "unknown_expert",
        ),
        *("exhausted", "engine_crashed", "stopping"),
    }
)
"""Error codes of the coordinator that an expert gives while its agent is away, restarts, or is about to leave."""


class AskError(Moe2Error):
    """An expert did not answer a question, and would not the next time."""


class BusyError(AskError):
    """An expert is busy. pause_s: seconds after which it may be asked again."""

    def __init__(self, message: str, pause_s: float) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class AwayError(AskError):
    """An expert is away; it may come back."""


class UnreachableError(Moe2Error):
    """The coordinator does not answer."""


@dataclass(frozen=True)
class LiveExpert:
    """An expert that can be asked: it is ready, or loads when asked."""

    key: str
    model: str
    has_chat_template: bool = True
    """False for a base model, which can only continue a text."""
    file_sha256: str | None = None
    """What its model's file is; None before its agent knows it."""
    kept_as: str | None = None
    """The name that its model's scores are kept under, where that is not the model's name."""

    @property
    def column(self) -> str:
        """The name that its model's scores are kept under: one for each file, however many names it goes by."""
        return self.kept_as or self.model

    @property
    def identity(self) -> str:
        """What the model is: its file's checksum, or its name until that is known."""
        return self.file_sha256 or self.model


def with_columns(experts: Sequence[LiveExpert]) -> tuple[LiveExpert, ...]:
    """The experts with the names that their scores are kept under: one for each file, whatever its names.

    A file has the first of its names; where that is also another file's name, with the beginning of its checksum.
    """
    names: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for expert in experts:
        names.setdefault(expert.identity, set()).add(expert.model)
        files.setdefault(expert.model, set()).add(expert.identity)
    found = []
    for expert in experts:
        name = min(names[expert.identity])
        if len(files[name]) > 1 and expert.file_sha256 is not None:
            name = f"{name}@{expert.file_sha256[:12]}"
        found.append(replace(expert, kept_as=name))
    return tuple(found)


class Asker:
    """A client of one coordinator.

    session: its base URL is the coordinator's. max_tokens: limit on the length of an answer.
    """

    def __init__(self, session: aiohttp.ClientSession, *, max_tokens: int) -> None:
        self._session = session
        self._max_tokens = max_tokens

    async def live_experts(self) -> tuple[LiveExpert, ...]:
        """All experts that can be asked, in the order of their agents' ids. Raises UnreachableError."""
        status, content, _ = await self._send("GET", "/v1/moe2/fleet")
        if status != 200:
            raise UnreachableError(f"The coordinator's fleet cannot be read: {_error_of(content, status)[0]}")
        try:
            fleet = msgspec.json.decode(content, type=CoordinatorStatus)
        except msgspec.DecodeError as error:
            raise UnreachableError(f"What answers there is not a moe2 coordinator ({error}).") from error
        found = [
            LiveExpert(
                f"{agent.agent_id}/{expert.model}",
                expert.model,
                expert.has_chat_template is not False,
                expert.file_sha256,
            )
            for agent in sorted(fleet.agents, key=lambda agent: agent.agent_id)
            if agent.connected and not agent.draining
            for expert in agent.experts
            # A cold expert loads for its first question.
            if expert.state in (ExpertState.READY, ExpertState.COLD)
        ]
        return with_columns(found)

    async def ask(self, question: Question, expert: LiveExpert) -> Answered:
        """Ask an expert a question. Raises AskError (a BusyError or AwayError where it may pass), UnreachableError."""
        text, receipt, tokens = await self._asked(expert, _writing(question, expert, self._max_tokens))
        return Answered(
            model=expert.column,
            file_sha256=expert.file_sha256,
            score=score(question.metric, text, question.gold, question.choices, asked=question.asked),
            chars=len(text),
            tokens=tokens,
            seconds=receipt["seconds"]["total"],
            joules=receipt["energy"]["joules"],
            energy_quality=receipt["energy"]["quality"],
            answer=said(question.metric, text, question.choices, asked=question.asked),
            by_scoring=await self._scored(question, expert) if question.metric is Metric.CHOICE else None,
        )

    async def _scored(self, question: Question, expert: LiveExpert) -> ScoredChoices | None:
        """What the expert makes of the options by scoring them; None where it cannot.

        Raises BusyError, AwayError and UnreachableError.
        """
        try:
            text, receipt, _ = await self._asked(expert, _scoring(question, expert))
        except (BusyError, AwayError):
            raise
        except AskError:
            return None
        right = _options(question)[LETTERS.index(question.gold)]
        return ScoredChoices(
            score=float(text.strip() == right.strip()),
            seconds=receipt["seconds"]["total"],
            joules=receipt["energy"]["joules"],
        )

    async def _asked(self, expert: LiveExpert, body: dict[str, Any]) -> tuple[str, dict[str, Any], int | None]:
        """The text, the receipt and the tokens of a completion. Raises as `ask` does."""
        route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        status, content, retry_after = await self._send("POST", route, msgspec.json.encode(body))
        if status == 200:
            return _completion(content)
        message, code = _error_of(content, status)
        if code in AWAY_CODES or status == 502:
            raise AwayError(message)
        if status in (429, 503):
            raise BusyError(message, pause_of(retry_after))
        raise AskError(message)

    async def _send(self, method: str, route: str, body: bytes | None = None) -> tuple[int, bytes, str | None]:
        try:
            async with self._session.request(method, route, data=body) as response:
                return response.status, await response.read(), response.headers.get("Retry-After")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnreachableError(
                f"The coordinator does not answer: {error or type(error).__name__}.",
                remedy="Start it, or name its API with --url.",
            ) from error


def pause_of(retry_after: str | None) -> float:
    """Seconds to pause for a Retry-After header (RFC 9110, section 10.2.3), between 0 and `MAX_PAUSE_S`.

    A date asks for the longest pause, because the two clocks may differ; what cannot be understood for the default one.
    """
    if retry_after is None:
        return DEFAULT_PAUSE_S
    try:
        seconds = float(retry_after)
    except ValueError:
        return MAX_PAUSE_S if _is_date(retry_after) else DEFAULT_PAUSE_S
    return min(MAX_PAUSE_S, seconds) if math.isfinite(seconds) and seconds >= 0 else DEFAULT_PAUSE_S


def _is_date(text: str) -> bool:
    try:
        parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return False
    return True


def _writing(question: Question, expert: LiveExpert, max_tokens: int) -> dict[str, Any]:
    """The body of a request to write the answer."""
    return {**_prompt(question, expert), "temperature": 0, "seed": 0, "max_tokens": max_tokens}


def _scoring(question: Question, expert: LiveExpert) -> dict[str, Any]:
    """The body of a request to score the options."""
    options = _options(question)
    # A completion goes on where the prompt ends, so its choices begin with a space.
    choices = options if expert.has_chat_template else [f" {option}" for option in options]
    prompt = {name: value for name, value in _prompt(question, expert).items() if name != "stop"}
    return {**prompt, "moe2": {"mode": "vote", "choices": choices}}


def _prompt(question: Question, expert: LiveExpert) -> dict[str, Any]:
    if expert.has_chat_template:
        messages = [
            {"role": "system", "content": INSTRUCTIONS[question.metric]},
            {"role": "user", "content": question.asked},
        ]
        return {"model": expert.key, "messages": messages}
    # A base model answers in the line that it continues, and goes on to invent questions below it.
    return {"model": expert.key, "prompt": f"Question: {question.asked}\nAnswer:", "stop": ["\n"]}


def _options(question: Question) -> list[str]:
    """The texts to score for a question's options: the options themselves, or their letters where two are the same."""
    texts = [choice.strip() for choice in question.choices]
    return texts if len(set(texts)) == len(texts) else list(LETTERS[: len(texts)])


def _completion(content: bytes) -> tuple[str, dict[str, Any], int | None]:
    """The text, the receipt and the tokens in a completion's body. Raises AskError where it is none of moe2."""
    try:
        body: dict[str, Any] = msgspec.json.decode(content)
        choice = body["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        receipt = body["moe2"]
        # Looked up here, so that a receipt without them is told as such.
        _ = receipt["seconds"]["total"], receipt["energy"]["joules"], receipt["energy"]["quality"]
        return str(text or ""), receipt, body["usage"]["completion_tokens"]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
        raise AskError(f"The answer is not understood ({type(error).__name__}: {error}).") from error


def _error_of(content: bytes, status: int) -> tuple[str, str | None]:
    """The message in an OpenAI-shaped error's body with its HTTP status, and its code; the status alone for others."""
    try:
        error = msgspec.json.decode(content)["error"]
        code = error.get("code")
        return f"{error['message']} (HTTP {status})", code if isinstance(code, str) else None
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        return f"HTTP {status}", None
