"""The report of an evaluation of votes as plain values, ready for JSON; scores are means of 0..1."""

from __future__ import annotations

import msgspec


class PolicyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy reached on the held-out rows, within one target."""

    pool: str
    target_j: float | None
    policy: str
    score: float
    """Mean score, 0..1."""
    score_se: float
    mean_j: float
    asked_mean: float
    """Experts asked per question."""
    gain_points: float
    """Score less that of the best single expert within the target, in points of a hundred, paired by row."""
    gain_se: float
    members: tuple[str, ...] = ()
    """The fixed expert or voters, in the order in which they are asked; empty where they depend on the question."""


class EarlyStop(msgspec.Struct, frozen=True, kw_only=True):
    """What asking in turn saves and costs against asking the same voters all."""

    pool: str
    members: tuple[str, ...]
    lost_points: float
    lost_se: float
    joules_ratio: float


class BehindBest(msgspec.Struct, frozen=True, kw_only=True):
    """How far `auto` is behind the best policy within one target; negative where it is ahead of all others."""

    pool: str
    target_j: float | None
    policy: str
    """`auto`, or `auto_label_known` where the client names the prompt's category."""
    best_policy: str
    behind_points: float
    behind_se: float


class VoteReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole evaluation of votes."""

    pools: dict[str, tuple[str, ...]]
    rows: dict[str, int]
    reported_on: str
    host_marks: str
    consensus: tuple[PolicyFigures, ...]
    early_stop: tuple[EarlyStop, ...]
    behind_best: tuple[BehindBest, ...]
