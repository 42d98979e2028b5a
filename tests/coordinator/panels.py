"""A panel's request on the bench: a `LifeBench` whose experts all work, and what they say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from msgspec.structs import replace

from moe2.common.link.messages import (
    Candidate,
    ContinuationScore,
    EmbedJob,
    FollowJob,
    JobScored,
    JobUsage,
    NextTokens,
    ScoreJob,
    Submit,
    TakeToken,
)
from moe2.coordinator.choosing.request import Ballot, Mode, SelectionRequest, Wish
from moe2.coordinator.choosing.result import Member, NoExpert, Selection, still_down
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.serving import events
from moe2.coordinator.serving.effects import Deliver, Effect, SubmitJob, Tell
from moe2.coordinator.serving.mode import Collaboration
from tests.coordinator.experts import expert, selector
from tests.coordinator.lives import USAGE, LifeBench

ALL_MODES = frozenset(mode for mode in Mode if mode is not Mode.AUTO)
THREE = tuple(expert(f"agent-{n}", vocabulary_sha256="v") for n in (1, 2, 3))
"""Equal weights: one model."""
VOTERS = tuple(expert(f"agent-{n}", f"m-{n}") for n in (1, 2, 3))
"""A model each, as a consensus asks every model once."""


class PanelBench(LifeBench):
    """Attempts are numbered as they are submitted: at first one per expert."""

    def __init__(
        self,
        mode: Mode,
        *experts: Expert,
        weights: tuple[float, ...] = (),
        trained: bool = True,
        judges: tuple[float, ...] | None = None,
        **fields: Any,
    ) -> None:
        """trained: whether outcomes tell the weights. judges: how often each expert scores the right option highest."""
        asked = {"wish": Wish(mode=mode), "modes": ALL_MODES, "stop": (), "logprobs": None, **fields}
        super().__init__(*(experts or (VOTERS if mode is Mode.CONSENSUS else THREE)), **asked)
        self._weights = weights
        self._trained = trained
        self._judges = judges

    def _choose(self, asked: SelectionRequest) -> Selection | NoExpert:
        self.chosen_for.append(asked)
        excluded = asked.excluded | still_down(asked.restarts_seen, self.experts)
        left = [found for found in self.experts if found.key not in excluded]
        decided = selector().select(replace(asked, model="moe2", excluded=frozenset()), left, {}, 0)
        if isinstance(decided, Selection) and decided.vote:
            return self._asked_in_turn(decided)
        if isinstance(decided, Selection) and self._weights:
            weighted = zip(decided.members, self._weights, strict=False)
            decided = replace(decided, members=tuple(replace(member, weight=weight) for member, weight in weighted))
            # Weights that a test gives are what a trained gate says.
            decided.outlook.prompt_scores.trained[:] = self._trained
            if self._judges is not None:
                scores = decided.outlook.prompt_scores
                scored = replace(scores, by_scoring=replace(scores, scores=np.array(self._judges)))
                decided = replace(decided, outlook=replace(decided.outlook, prompt_scores=scored))
        return decided

    def _asked_in_turn(self, decided: Selection) -> Selection:
        """The choice of voters with the bench's weights, in the order of their keys; those without a weight are out."""
        assert decided.vote is not None
        if not self._weights:
            return decided
        everybody = {other.expert.key: other for other in decided.considered}
        keys = [found.key for found in self.experts if found.key in everybody][: len(self._weights)]
        weights = self._weights[: len(keys)]
        members = tuple(
            Member(everybody[key].expert, everybody[key].prediction, everybody[key].score, weight)
            for key, weight in zip(keys, weights, strict=True)
        )
        vote = replace(decided.vote, weights=weights, asked=(1.0,) * len(keys))
        return replace(decided, members=members, vote=vote)

    def scored(self, attempt: int, *probabilities: float, usage: JobUsage = USAGE) -> list[Effect]:
        """The expert's likelihoods of what it was asked to score."""
        scores = tuple(ContinuationScore(math.log(mass), 1, 1) for mass in probabilities)
        return self.do(events.AttemptScored(JobScored(job_id=f"req-1.{attempt}", scores=scores, usage=usage)))

    def thinks(self, attempt: int, step: int, **probabilities: float) -> list[Effect]:
        """The expert's next tokens, by name: `a` is token 0, `end` ends the answer."""
        ranked = sorted(probabilities.items(), key=lambda item: -item[1])
        candidates = tuple(
            Candidate(99, math.log(mass), b"", True)
            if name == "end"
            else Candidate(ord(name) - 97, math.log(mass), name.encode(), False)
            for name, mass in ranked
        )
        return self.do(
            events.NextTokensArrived(NextTokens(job_id=f"req-1.{attempt}", step=step, candidates=candidates))
        )

    @property
    def together(self) -> Collaboration:
        assert self.life.run is not None
        found = self.life.run.collaboration
        assert found is not None
        return found

    @property
    def text(self) -> str:
        """What the client has read."""
        return "".join(piece.text for effect in self.effects if isinstance(effect, Deliver) for piece in effect.pieces)


def ballot(*choices: str, **fields: Any) -> Ballot:
    return Ballot(choices, **fields)


def jobs(effects: list[Effect]) -> list[Submit | ScoreJob | FollowJob]:
    made = [effect.job for effect in effects if isinstance(effect, SubmitJob)]
    return [job for job in made if not isinstance(job, EmbedJob)]


def told(effects: list[Effect]) -> list[tuple[str, TakeToken]]:
    return [(effect.agent_id, effect.take) for effect in effects if isinstance(effect, Tell)]
