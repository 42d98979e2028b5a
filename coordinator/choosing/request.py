"""What is asked of a choice: budgets, mode and choices of the request, and the experts that are left. PURE.

What was found is in `result`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from moe2.common.config import Settings
from moe2.coordinator.choosing.prefix_affinity import Affinity
from moe2.coordinator.planning.problem import Quantile

DEFAULT_CATEGORY = "default"
MAX_CATEGORY_CHARACTERS = 200

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Mode(StrEnum):
    """How experts work together."""

    AUTO = "auto"
    """A vote where the request gives choices, by several where the gate says that this is worth it; else `ROUTE`."""
    ROUTE = "route"
    """One expert answers."""
    VOTE = "vote"
    """Members say how likely each of the given choices is; the mixture of their views decides."""
    RANK = "rank"
    """Members write candidates and score all of them; the mixture of their views decides."""
    MIX = "mix"
    """Members with one vocabulary write together: each token is drawn from the mixture of their distributions."""

    @property
    def is_panel(self) -> bool:
        """True where all members of the panel work for each request."""
        return self in (Mode.VOTE, Mode.RANK, Mode.MIX)


class Budgets(Settings):
    """Limits of one request, or the defaults of a key or a category. None is no limit of its own."""

    energy_budget_j: Amount | None = None
    """Joules of the whole request."""
    latency_budget_s: Amount | None = None
    """Until the last token."""
    ttft_budget_s: Amount | None = None
    """Until the first token."""
    tpot_budget_s: Amount | None = None
    """Per output token after the first."""
    quantile: Quantile | None = None
    """Which prediction the limits hold for; p95 if nobody says."""
    mode: Mode | None = None
    """How experts work together."""
    max_experts: Annotated[int, Field(ge=1, le=64)] | None = None
    """Candidates kept for the request. With it, `energy_budget_j` holds even if every one of them has to be tried.

    Where a panel answers: its members, at most."""

    def over(self, fallback: Budgets) -> Budgets:
        """These limits, and those of `fallback` where this sets none."""
        own = {name: value for name, value in self if value is not None}
        return fallback.model_copy(update=own)

    def after(self, seconds: float, joules: float) -> Budgets:
        """What is left once a failed attempt has taken so much; never below 0."""
        if seconds == joules == 0.0:
            return self

        def left(limit: float | None, used: float) -> float | None:
            return None if limit is None else max(0.0, limit - used)

        return self.model_copy(
            update={
                "energy_budget_j": left(self.energy_budget_j, joules),
                "latency_budget_s": left(self.latency_budget_s, seconds),
                "ttft_budget_s": left(self.ttft_budget_s, seconds),
            }
        )

    @property
    def bounds_time(self) -> bool:
        return (self.latency_budget_s, self.ttft_budget_s, self.tpot_budget_s) != (None, None, None)


NO_BUDGETS = Budgets()


class Wish(Budgets):
    """What a request says of itself: the `moe2` object of its body. category None: found by the gate.

    choices: the answers that are possible. length_normalised: choices are compared per byte.
    strict: its latency budget holds even for an answer that has begun: it ends in an error rather than late.
    resume: where an expert fails in mid-answer, another one goes on from there.
    """

    category: Annotated[str, Field(max_length=MAX_CATEGORY_CHARACTERS)] | None = None
    choices: tuple[str, ...] | None = None
    length_normalised: bool | None = None
    strict: bool = False
    resume: bool = False


def budgets_for(wish: Wish, category: str, categories: Mapping[str, Budgets], key: Budgets = NO_BUDGETS) -> Budgets:
    """The limits in force: the request's, else its key's, else its category's, else the default category's."""
    default = categories.get(DEFAULT_CATEGORY, NO_BUDGETS)
    fallback = categories[category].over(default) if category in categories else default
    if key is not NO_BUDGETS:
        fallback = key.over(fallback)
    own = {name: value for name, value in wish if value is not None and name in Budgets.model_fields}
    return fallback.model_copy(update=own)


ROUTE_ONLY = frozenset({Mode.ROUTE})


@dataclass(frozen=True)
class SelectionRequest:
    """What is asked for.

    model: a model's name, an expert's key, or one of `selection.ANY_MODEL`. text: the prompt as the gate reads it.
    excluded: keys of experts that must not be chosen, because they have failed this request already.
    barred: keys of experts that nobody is to be sent to now, with the reasons. reserved: those that are kept for others
    now and will be free soon, with the reasons. affinity: who holds the beginning of this conversation in its cache.
    restarts_seen: restarts by key of experts whose engine died under this request: out until they have others.
    least_context_tokens: a context that was found too small; only larger ones are worth a try.
    budgets: defaults of the key that asks. elapsed_s, spent_j: what former attempts have used up of the budgets.
    modes: those that can serve the request. choice_tokens: of all the choices that it gives; None if it gives none.
    """

    model: str
    demand: Demand
    text: str = ""
    wish: Wish = field(default_factory=Wish)
    budgets: Budgets = NO_BUDGETS
    excluded: frozenset[str] = frozenset()
    barred: Mapping[str, str] = field(default_factory=dict)
    reserved: Mapping[str, str] = field(default_factory=dict)
    restarts_seen: Mapping[str, int] = field(default_factory=dict)
    affinity: Affinity | None = None
    least_context_tokens: int = 0
    needs_chat_template: bool = False
    needs_tools: bool = False
    elapsed_s: float = 0.0
    spent_j: float = 0.0
    modes: frozenset[Mode] = ROUTE_ONLY
    choice_tokens: int | None = None


@dataclass(frozen=True)
class Ballot:
    """choices: the possible answers, as the client will read them. length_normalised: compared per byte."""

    choices: tuple[str, ...]
    length_normalised: bool = False

    @property
    def tokens(self) -> int:
        """Estimated tokens of all choices together, which an expert reads to score them."""
        return sum(int(len(choice.encode()) / BYTES_PER_TOKEN) + 1 for choice in self.choices)


BYTES_PER_TOKEN = 4.0
"""Rough length of a token in UTF-8 bytes of English text. Only the expert's own tokenizer knows; it checks again."""
CHAT_OVERHEAD_TOKENS = 8
"""Tokens that a chat template adds to each message, roughly."""
ASSUMED_ANSWER_TOKENS = 256
"""Length of an answer when the request sets no limit: most answers end by themselves long before the context does."""


@dataclass(frozen=True)
class Demand:
    """What a request asks of an expert.

    prompt_tokens: estimated. max_tokens: None where the client set none.
    """

    prompt_tokens: int
    max_tokens: int | None

    @property
    def answer_tokens(self) -> int:
        """The longest answer that is planned for."""
        return ASSUMED_ANSWER_TOKENS if self.max_tokens is None else self.max_tokens


def estimate_prompt_tokens(texts: list[str]) -> int:
    """Tokens of a prompt given as its messages' texts."""
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return int(n_bytes / BYTES_PER_TOKEN) + CHAT_OVERHEAD_TOKENS * len(texts)
