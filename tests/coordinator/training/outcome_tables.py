"""Small outcome tables for tests: two or three kinds of prompts, each answered best by another expert."""

from __future__ import annotations

import numpy as np

from moe2.coordinator.training.outcomes import Outcomes

KINDS = ("maths", "code", "trivia")
_WORDS = {
    "maths": "sum integral triangle prime fraction equation solve",
    "code": "python function return list string class loop",
    "trivia": "who capital river actor album king country",
}


def synthetic_outcomes(rows: int = 300, experts: int = 3, seed: int = 0, *, labelled: bool = True) -> Outcomes:
    """Rows whose kind decides which expert is right: expert n is right with 0.9 on kind n, else with 0.3."""
    random = np.random.default_rng(seed)
    kinds = [KINDS[k] for k in random.integers(0, len(KINDS), rows)]
    prompts = [" ".join(random.choice(_WORDS[kind].split(), 8)) + f" {row}" for row, kind in enumerate(kinds)]
    chance = np.array([[0.9 if KINDS.index(kind) == n else 0.3 for n in range(experts)] for kind in kinds])
    splits = ["train" if row % 5 < 3 else "val" if row % 5 == 3 else "test" for row in range(rows)]
    return Outcomes(
        experts=tuple(f"expert-{n}" for n in range(experts)),
        ids=tuple(f"row-{row}" for row in range(rows)),
        prompts=tuple(prompts),
        splits=tuple(splits),
        sources=("synthetic",) * rows,
        tasks=tuple(kinds) if labelled else ("",) * rows,
        scores=(random.random((rows, experts)) < chance).astype(float),
        chars=np.full((rows, experts), 40.0),
        digest="0" * 64,
    )
