"""What an answer costs on a kind of host, from published measurements, and budgets to compare routers under. PURE.

Published figures (mark "published"): AGX Orin 64 GB, llama.cpp, Llama 3.1 8B, three power rails at 10 Hz, from
jbecirovski/jetson-llm-maxperf (commit c19500d, MIT); RTX 4090 decoding speed of LLaMA 3 8B Q4_K_M from
XiongjieDai/GPU-Benchmarks-on-LLM-Inference. What nobody published is marked "assumed": the joules per token of the
RTX 4090, the scaling with model size, four characters per token, and answers' lengths where an outcomes file has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.coordinator.gate.prior import facts_from_name
from moe2.coordinator.training.outcomes import Outcomes
from moe2.coordinator.training.profile import CHARACTERS_PER_TOKEN

FloatArray = npt.NDArray[np.float64]

REFERENCE_PARAMETERS: Final = 8e9
"""Parameters of the model that the profiles hold for; a token's cost is assumed to grow linearly with them."""
_QUANTILES: Final = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
_CROSSED: Final = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class HostProfile:
    """What tokens cost on one kind of host, for a model of `REFERENCE_PARAMETERS`."""

    name: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_j_per_token: float
    decode_j_per_token: float
    marks: Mapping[str, str]
    """Whether each kind of figure is "published" or "assumed"."""


_ALL_PUBLISHED: Final = {"prefill_speed": "published", "decode_speed": "published", "energy": "published"}

PROFILES: Final = {
    profile.name: profile
    for profile in (
        HostProfile("agx-orin-maxn", 711.0, 22.0, 44.4 / 711.0, 2.17, _ALL_PUBLISHED),
        HostProfile("agx-orin-30w", 180.0, 6.6, 14.4 / 180.0, 2.71, _ALL_PUBLISHED),
        HostProfile("agx-orin-maxn-iq4xs", 803.0, 26.8, 46.6 / 803.0, 1.80, _ALL_PUBLISHED),
        HostProfile("agx-orin-maxn-draft", 710.0, 46.8, 44.8 / 710.0, 0.90, _ALL_PUBLISHED),
        HostProfile(
            "rtx-4090",
            8414.0,
            127.7,
            300.0 / 8414.0,
            2.2,
            {"prefill_speed": "published (Qwen3-VL-8B)", "decode_speed": "published", "energy": "assumed"},
        ),
    )
}


class ProfileError(Moe2Error):
    """The costs of a fleet cannot be computed."""


@dataclass(frozen=True)
class Costs:
    """The joules and seconds (rows, experts) of each answer, as predicted before it and with its real length.

    Actual figures equal the predicted ones where the outcomes file holds no length of the answer.
    """

    predicted_energy_j: FloatArray
    predicted_delay_s: FloatArray
    actual_energy_j: FloatArray
    actual_delay_s: FloatArray
    lengths_known: float
    """Share of answers whose real length is known, 0..1."""


def default_hosts(experts: Sequence[str]) -> dict[str, str]:
    """The host profile of each expert: the profiles in turn, in the experts' order."""
    names = list(PROFILES)
    return {expert: names[n % len(names)] for n, expert in enumerate(experts)}


def fleet_costs(
    table: Outcomes,
    train: Outcomes,
    hosts: Mapping[str, str],
    answer_tokens: float,
    expected_tokens: FloatArray | None = None,
) -> Costs:
    """The costs of each answer of `table` on its expert's host.

    Predictions use the prompt's length and the expert's mean answer length on the train rows, or `answer_tokens` where
    that is unknown. expected_tokens: (rows, experts) lengths that were predicted for each prompt, which count before
    those; NaN where unknown. Raises ProfileError for an expert without a host, or an unknown host.
    """
    if answer_tokens <= 0:
        raise ProfileError(f"Answers of {answer_tokens} tokens make no sense.", remedy="Give a positive number.")
    prompt_tokens = np.array([len(prompt) for prompt in table.prompts]) / CHARACTERS_PER_TOKEN
    shape = table.scores.shape
    energy, delay, actual_energy, actual_delay = (np.empty(shape) for _ in range(4))
    known = ~np.isnan(table.chars)
    for n, expert in enumerate(table.experts):
        if hosts.get(expert) not in PROFILES:
            raise ProfileError(
                f"Expert {expert} has no known host ({hosts.get(expert)}).", remedy=f"Hosts: {', '.join(PROFILES)}."
            )
        host = PROFILES[hosts[expert]]
        size = (facts_from_name(expert).parameters or REFERENCE_PARAMETERS) / REFERENCE_PARAMETERS
        lengths = train.chars[:, n]
        mean = answer_tokens if np.isnan(lengths).all() else float(np.nanmean(lengths)) / CHARACTERS_PER_TOKEN
        expected = np.full(len(table), mean)
        if expected_tokens is not None:
            expected = np.where(np.isnan(expected_tokens[:, n]), mean, expected_tokens[:, n])
        actual = np.where(known[:, n], np.nan_to_num(table.chars[:, n]) / CHARACTERS_PER_TOKEN, expected)
        for tokens, joules, seconds in ((expected, energy, delay), (actual, actual_energy, actual_delay)):
            joules[:, n] = size * (prompt_tokens * host.prefill_j_per_token + tokens * host.decode_j_per_token)
            seconds[:, n] = size * (prompt_tokens / host.prefill_tokens_per_s + tokens / host.decode_tokens_per_s)
    return Costs(energy, delay, actual_energy, actual_delay, float(known.mean()))


@dataclass(frozen=True)
class Budget:
    """Limits on one request's predicted joules and seconds; None is no limit."""

    axis: str
    """The sweep that it belongs to: "none", "energy", "delay" or "both"."""
    max_energy_j: float | None
    max_delay_s: float | None


def budget_grid(costs: Costs) -> tuple[Budget, ...]:
    """The budgets of an evaluation: no limit, a sweep over energy, a sweep over delay, and both limits crossed.

    The limits are quantiles of the predicted costs of single answers, so that tight ones leave few experts and loose
    ones nearly all.
    """
    energies = _levels(costs.predicted_energy_j, _QUANTILES)
    delays = _levels(costs.predicted_delay_s, _QUANTILES)
    crossed = [
        Budget("both", energy, delay)
        for energy in _levels(costs.predicted_energy_j, _CROSSED)
        for delay in _levels(costs.predicted_delay_s, _CROSSED)
    ]
    return (
        Budget("none", None, None),
        *(Budget("energy", energy, None) for energy in energies),
        *(Budget("delay", None, delay) for delay in delays),
        *crossed,
    )


def feasible_under(budget: Budget, costs: Costs, runnable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(rows, N) True where a single expert fits the budget by its predicted costs and is `runnable` (rows, N)."""
    fits = runnable.copy()
    if budget.max_energy_j is not None:
        fits &= costs.predicted_energy_j <= budget.max_energy_j
    if budget.max_delay_s is not None:
        fits &= costs.predicted_delay_s <= budget.max_delay_s
    return fits


def _levels(values: npt.NDArray[np.float64], quantiles: tuple[float, ...]) -> list[float]:
    return [float(f"{level:.3g}") for level in np.quantile(values, quantiles)]
