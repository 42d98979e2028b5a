"""What a request may cost: its own wish, else its key's, else its category's. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from moe2.common.config import Settings
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
