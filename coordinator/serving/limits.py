"""A request's budgets as moments: by when what must have happened. PURE. Decision 0012."""

from __future__ import annotations

from dataclasses import dataclass

from moe2.coordinator.choosing.request import Budgets


@dataclass(frozen=True)
class Limits:
    """first_token_by_s, end_by_s: monotonic. energy_j: of all attempts together. None: no limit of its own."""

    first_token_by_s: float | None = None
    end_by_s: float | None = None
    energy_j: float | None = None
    per_token_s: float | None = None

    @classmethod
    def of(cls, left: Budgets, since_s: float) -> Limits:
        """left: what is left of the budgets at `since_s`, when nothing has been spent yet."""

        def by(seconds: float | None) -> float | None:
            return None if seconds is None else since_s + seconds

        return cls(
            first_token_by_s=by(left.ttft_budget_s),
            end_by_s=by(left.latency_budget_s),
            energy_j=left.energy_budget_j,
            per_token_s=left.tpot_budget_s,
        )

    def expires_s(self, *, begun: bool, strict: bool) -> float | None:
        """When the request is over unless something happens. begun: its first token has come."""
        if begun:
            return self.end_by_s if strict else None
        return min((at_s for at_s in (self.first_token_by_s, self.end_by_s) if at_s is not None), default=None)

    def exceeded(
        self, *, first_token_s: float | None, end_s: float, joules: float | None, tokens: int | None
    ) -> tuple[str, ...]:
        """Names of the budgets that a request did not keep, as far as that is known."""
        found = []
        if joules is not None and self.energy_j is not None and joules > self.energy_j:
            found.append("energy_budget_j")
        if self.end_by_s is not None and end_s > self.end_by_s:
            found.append("latency_budget_s")
        came_s = end_s if first_token_s is None else first_token_s
        if self.first_token_by_s is not None and came_s > self.first_token_by_s:
            found.append("ttft_budget_s")
        if first_token_s is not None and tokens is not None and tokens > 1 and self.per_token_s is not None:
            per_token_s = (end_s - first_token_s) / (tokens - 1)
            found += ["tpot_budget_s"] if per_token_s > self.per_token_s else []
        return tuple(found)
