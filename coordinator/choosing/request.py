"""What is asked of a choice of experts: the request's budgets, mode, length and choices, and who may answer. PURE.

What the choice found is in `result`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated

import msgspec
from pydantic import Field, model_validator

from moe2.common.config import Settings
from moe2.common.generation import MAX_TOKENS
from moe2.coordinator.answers.form import AnswerKind
from moe2.coordinator.choosing.prefix_affinity import Affinity
from moe2.coordinator.planning.problem import Quantile

DEFAULT_CATEGORY = "default"
MAX_CATEGORY_CHARACTERS = 200
BYTES_PER_TOKEN = 4.0
"""Rough UTF-8 bytes per token of English text; the expert's own tokenizer checks the real length again."""
CHAT_OVERHEAD_TOKENS = 8
"""Rough number of tokens that a chat template adds to each message."""
ASSUMED_ANSWER_TOKENS = 256
"""Planned length of an answer without a limit: most answers end by themselves long before the context does."""

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Mode(StrEnum):
    """How experts work together."""

    AUTO = "auto"
    """Whichever of `ROUTE`, `VOTE` and `CONSENSUS` has the largest value less the price of its joules."""
    ROUTE = "route"
    """One expert answers."""
    VOTE = "vote"
    """Members score each of the given choices; the mixture of their distributions decides."""
    RANK = "rank"
    """Members each write an answer and score all of them; the mixture of their distributions decides."""
    CONSENSUS = "consensus"
    """Members write answers, one after the other until the outcome is settled; their final answers are voted on."""
    MIX = "mix"
    """Members with one vocabulary write together: each token is drawn from the mixture of their distributions."""

    @property
    def is_panel(self) -> bool:
        """True where all members of the panel work for each request."""
        return self in _PANELS


_PANELS = frozenset({Mode.VOTE, Mode.RANK, Mode.CONSENSUS, Mode.MIX})


class Explain(StrEnum):
    """Which experts a decision shows."""

    NEAREST = "nearest"
    """Those that were chosen, and the few that came nearest to it; of a small fleet all."""
    ALL = "all"


class Budgets(Settings):
    """Limits of one request, or the defaults of a key or a category. None sets no limit."""

    energy_budget_j: Amount | None = None
    """Most joules of the whole request."""
    latency_budget_s: Amount | None = None
    """Most seconds until the last token."""
    ttft_budget_s: Amount | None = None
    """Most seconds until the first token."""
    tpot_budget_s: Amount | None = None
    """Most seconds per output token after the first."""
    quantile: Quantile | None = None
    """The prediction that the limits hold for; p95 where it is not set."""
    mode: Mode | None = None
    """How experts work together."""
    max_experts: Annotated[int, Field(ge=1, le=64)] | None = None
    """Most candidates of the request, the best for its prompt; `energy_budget_j` then holds even if every one of them
    has to be tried.

    Where a panel answers, the most members that it may have."""

    def over(self, fallback: Budgets) -> Budgets:
        """These limits, and those of `fallback` where this sets none."""
        own = {name: value for name in _LIMITS if (value := getattr(self, name)) is not None}
        return fallback.model_copy(update=own) if own else fallback

    def after(self, seconds: float, joules: float) -> Budgets:
        """The budgets that are left once a failed attempt has used up so many seconds and joules; never below 0."""
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
    def soonest_end_s(self) -> float | None:
        """Most seconds until the end of an answer that comes at once; None for no limit."""
        return min((limit for limit in (self.latency_budget_s, self.ttft_budget_s) if limit is not None), default=None)

    @property
    def bounds_time(self) -> bool:
        """True where any limit on seconds is set."""
        return (self.latency_budget_s, self.ttft_budget_s, self.tpot_budget_s) != (None, None, None)


_LIMITS = tuple(Budgets.model_fields)
NO_BUDGETS = Budgets()


class CategoryBudgets(Budgets):
    """[selection.categories.NAME]: the default budgets of a category's requests, and what they may take on average."""

    average_energy_j: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Joules that an answer of this category may take on average, beside the limits of each request."""

    @model_validator(mode="after")
    def _average_is_below_the_limit(self) -> CategoryBudgets:
        most_j, average_j = self.energy_budget_j, self.average_energy_j
        if most_j is not None and average_j is not None and average_j >= most_j:
            raise ValueError(
                f"average_energy_j ({average_j:g}) must be below energy_budget_j ({most_j:g}), which no answer may "
                "exceed: at or above it, the average has no effect; lower it or leave it out"
            )
        return self

    @property
    def limits(self) -> Budgets:
        """The limits of each request, without the average."""
        return Budgets(**{name: getattr(self, name) for name in _LIMITS})


class Wish(Budgets):
    """What a request asks for in the `moe2` object of its body."""

    category: Annotated[str, Field(max_length=MAX_CATEGORY_CHARACTERS)] | None = None
    """The category of the prompt; None lets the gate find it."""
    choices: tuple[str, ...] | None = None
    """The possible answers."""
    length_normalised: bool | None = None
    """True to compare the choices' likelihoods per byte."""
    answer: AnswerKind | None = None
    """What the final answer is, for `CONSENSUS`; None has it recognised."""
    confidence: Annotated[float, Field(gt=0, le=1)] | None = None
    """Probability of being right at which `CONSENSUS` asks nobody else; None leaves that to the price of joules."""
    strict: bool = False
    """True to end an answer that has begun in an error, rather than beyond its latency budget."""
    thinking_budget_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    """Most tokens that a reasoning model thinks before it answers; 0 for none."""
    resume: bool = False
    """True to let another expert go on from where one failed in mid-answer."""
    explain: Explain = Explain.NEAREST
    """Which experts the receipt's decision shows of a fleet of many."""


NO_WISH = Wish()


def budgets_for(wish: Wish, category: str, categories: Mapping[str, Budgets], key: Budgets = NO_BUDGETS) -> Budgets:
    """The limits in force: the request's, else its key's, else its category's, else the default category's."""
    default = categories.get(DEFAULT_CATEGORY, NO_BUDGETS)
    fallback = categories[category].over(default) if category in categories else default
    if key is not NO_BUDGETS:
        fallback = key.over(fallback)
    return fallback if wish is NO_WISH else wish.over(fallback)


class Demand(msgspec.Struct, frozen=True):
    """The length of a request's prompt and answer."""

    prompt_tokens: int
    """Estimated tokens of the prompt."""
    max_tokens: int | None
    """Most tokens of the answer; None where the client set no limit."""
    longest_text_tokens: int | None = None
    """Estimated tokens of the longest of several prompts; None where there is one."""

    @property
    def context_tokens(self) -> int:
        """Tokens of the prompt that a context must have room for at once."""
        return self.prompt_tokens if self.longest_text_tokens is None else self.longest_text_tokens

    @property
    def answer_tokens(self) -> int:
        """Tokens of the longest answer that is planned for."""
        return ASSUMED_ANSWER_TOKENS if self.max_tokens is None else self.max_tokens

    def within(self, context_tokens: int) -> Demand:
        """The demand on experts with this context at most: a limit beyond what it leaves is none."""
        if self.max_tokens is None or self.context_tokens + self.max_tokens <= context_tokens:
            return self
        if self.longest_text_tokens is not None:
            # Of several texts nothing is written; their number is no reason to plan for an answer.
            return self
        return msgspec.structs.replace(self, max_tokens=None)


class ScopePrice(msgspec.Struct, frozen=True):
    """The price that one average budget puts on a joule."""

    scope: str
    """Whose average it is, in words, such as "fleet" or "category coding"."""
    average_energy_j: float
    """Joules that an answer may take on average."""
    price_per_j: float
    """Score, 0..1, that one joule has to bring so that the average is kept."""


class Ballot(msgspec.Struct, frozen=True):
    """The choices that a panel votes on."""

    choices: tuple[str, ...]
    """The possible answers, as the client will read them."""
    length_normalised: bool = False
    """True where their likelihoods are compared per byte."""

    @property
    def tokens(self) -> int:
        """Estimated tokens of all choices together, which an expert reads to score them."""
        return sum(int(len(choice.encode()) / BYTES_PER_TOKEN) + 1 for choice in self.choices)


ROUTE_ONLY = frozenset({Mode.ROUTE})


def no_final_answer() -> bool:
    """Says of any request that the form of its answer is not known."""
    return False


class SelectionRequest(msgspec.Struct, frozen=True):
    """Everything that the choice of experts for one request depends on, besides the fleet."""

    model: str
    """A model's name, an expert's key, or one of `selector.ANY_MODEL`."""
    demand: Demand
    text: str = ""
    """The prompt as the gate reads it."""
    wish: Wish = NO_WISH
    budgets: Budgets = NO_BUDGETS
    """Default budgets of the API key that asks."""
    excluded: frozenset[str] = frozenset()
    """Keys of experts that have failed this request already, and must not be chosen again."""
    barred: Mapping[str, str] = {}
    """Reasons by key of experts that get no requests at present, such as after many failures."""
    reserved: Mapping[str, str] = {}
    """Reasons by key of experts that are kept for other requests and will be free soon."""
    restarts_seen: Mapping[str, int] = {}
    """Restarts by key of experts whose engine died under this request; they are out until it has restarted again."""
    affinity: Affinity | None = None
    """The expert that holds the beginning of this conversation in its cache."""
    least_context_tokens: int = 0
    """Largest context that was found too small; only larger ones are tried."""
    needs_chat_template: bool = False
    needs_tools: bool = False
    needs_infill: bool = False
    """Whether a gap between two texts is to be filled."""
    needs_vectors: bool = False
    """Whether vectors of texts are asked for, and no answer."""
    vector_size: int | None = None
    """The length that the vectors must have; None where any will do."""
    elapsed_s: float = 0.0
    """Seconds of the budgets that earlier attempts have used up."""
    spent_j: float = 0.0
    """Joules of the budgets that earlier attempts have used up."""
    price_per_j: float = 0.0
    """Score, 0..1, that one joule has to bring, whatever the category is; 0 where joules count only by the limits and
    between equals."""
    scope_prices: tuple[ScopePrice, ...] = ()
    """Average budgets that hold for the request in any category; their prices add up."""
    category_prices: Mapping[str, ScopePrice] = {}
    """Average budgets by category; that of the request's category, else the default's, adds its price."""
    modes: frozenset[Mode] = ROUTE_ONLY
    """The modes that can serve the request."""
    choice_tokens: int | None = None
    """Estimated tokens of all given choices together; None where there are none."""
    asks_final_answer: Callable[[], bool] = no_final_answer
    """Says whether the form of the answer is known, so that answers can be counted as votes; it reads the prompt."""

    def prices_in(self, category: str) -> tuple[ScopePrice, ...]:
        """The prices of all average budgets that hold for the request in a category."""
        own = self.category_prices.get(category, self.category_prices.get(DEFAULT_CATEGORY))
        return self.scope_prices if own is None else (*self.scope_prices, own)


def estimate_prompt_tokens(texts: list[str]) -> int:
    """The estimated tokens of a prompt that is given as its messages' texts."""
    n_bytes = 0
    for text in texts:
        n_bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return int(n_bytes / BYTES_PER_TOKEN) + CHAT_OVERHEAD_TOKENS * len(texts)
