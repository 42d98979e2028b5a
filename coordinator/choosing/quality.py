"""The gate's scores of the fleet's experts for one prompt, and what sets of experts are worth on average. PURE.

The gate knows models; the fleet has experts, several of which may serve one model. `Scorer` maps one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from operator import is_not

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from moe2.common.health import HealthWarning, Severity
from moe2.coordinator.choosing.forecast import Roster
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.gate.feedback import Tally
from moe2.coordinator.gate.fleet_gate import FleetGate, FleetPrediction, GateMismatchError
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.gate.prior import ExpertFacts, facts_from_name
from moe2.coordinator.gate.votes import VoteReplay
from moe2.coordinator.planning.value_table import ValueTable
from moe2.coordinator.planning.values import BestOf, Coverage, FloatArray, Listed, SetValue

MAX_LISTED_EXPERTS = 16
"""Fleets up to this size have the value of all their sets listed: half a megabyte, made in milliseconds."""
NO_TALLIES: Mapping[str, Tally] = {}
MAX_NAMED_MODELS = 5
"""Models that a notice names."""
MAX_VIEWS = 64
"""Rosters that are remembered for one set of models."""


class SetWorth:
    """The worth of sets of experts, averaged over the kinds of prompts; the same for all requests to one fleet.

    scores_by_kind: (K, N) mean score of each expert on each kind of prompt. value: `BestOf` where one expert answers,
    so that a set is worth the score of its best; `Coverage` where all work together, so that a set is worth the chance
    that at least one answers well.
    """

    def __init__(self, scores_by_kind: FloatArray, value: type[BestOf] | type[Coverage] = BestOf) -> None:
        self.value: SetValue = value(scores_by_kind)
        self._scores_by_kind = scores_by_kind

    @cached_property
    def together(self) -> SetWorth:
        """The worth of the same sets as panels whose members all work."""
        return SetWorth(self._scores_by_kind, Coverage)

    @cached_property
    def table(self) -> ValueTable | None:
        """The values of all sets; None in a fleet of more than `MAX_LISTED_EXPERTS`."""
        return ValueTable.build(self.value) if self.value.experts <= MAX_LISTED_EXPERTS else None


class VotedWorth(SetWorth):
    """The worth of sets of voters by what their votes reach."""

    def __init__(self, value: Listed) -> None:
        super().__init__(np.zeros((1, value.experts)))
        self.value = value


@dataclass(frozen=True, eq=False)
class RosterVotes:
    """What is known of the votes of a roster's N experts."""

    replay: VoteReplay
    """Recorded votes of the fleet's models."""
    columns: npt.NDArray[np.intp]
    """(N,) the place of each expert's model among those of the replay."""

    def by_model(self, figures: FloatArray) -> FloatArray:
        """(M,) figures by model, from those (N,) of experts that serve them; 0 for models that none serves."""
        found = np.zeros(self.replay.experts)
        found[self.columns] = figures
        return found


class PromptScores(msgspec.Struct, frozen=True, eq=False):
    """The gate's view of the experts for one prompt, in the roster's order."""

    scores: FloatArray
    """(N,) probability that each expert answers the prompt well."""
    logits: FloatArray
    """(N,) the gate's logits; a softmax over a subset of them gives its members' weights."""
    trained: npt.NDArray[np.bool_]
    """(N,) False where a prior stands in for training data."""
    kind: str | None
    """The kind of prompt that the gate takes this one for; None without a trained gate."""
    kind_shares: FloatArray
    """(K,) the probability of each kind of prompt; even shares where the gate cannot tell."""
    by_scoring: PromptScores | None = None
    """The same where experts score given options instead of writing; None where the gate knows no more of that."""
    answer_tokens: FloatArray | None = None
    """(N,) expected length of each expert's answer in tokens, NaN where unknown; None where no length is known."""


class Scorer:
    """Scores experts with the gate, which it keeps fitted to the fleet's models.

    gate: None where no checkpoint is configured; priors then stand in. kinds: names of the prompt kinds of the gate's
    task head. tallies: users' scores by the checksum of a model's file, or its name; they move the priors. gate_sha256:
    digest of the gate's file, in hexadecimal; None where there is no gate.
    """

    def __init__(
        self,
        gate: Gate | None,
        kinds: Sequence[str] = (),
        tallies: Mapping[str, Tally] = NO_TALLIES,
        gate_sha256: str | None = None,
    ) -> None:
        self.gate_sha256 = gate_sha256
        self._gate = gate
        self._tallies = tallies
        self._experts: Sequence[Expert] = ()
        self._tallied: Mapping[str, Tally] = {}
        """The tallies as they were at the latest fit."""
        self._kinds = tuple(kinds)
        self._facts: tuple[ExpertFacts, ...] = ()
        self._identities: tuple[str, ...] = ()
        """What each of the fitted models is (`Expert.identity`)."""
        self._fitted = FleetGate(None, (ExpertFacts("nobody"),))
        self._views: dict[tuple[str, ...], _View] = {}
        self._latest_view: tuple[tuple[str, ...], _View] | None = None
        self._replay: VoteReplay | None = None
        self._mismatch: HealthWarning | None = None
        self._failure: HealthWarning | None = None

    def apart(self) -> Scorer:
        """A scorer with the same gate and scores that is fitted by itself, for who looks at other experts."""
        return Scorer(self._gate, self._kinds, self._tallies, self.gate_sha256)

    def warnings(self, experts: Sequence[Expert] = ()) -> tuple[HealthWarning, ...]:
        """What an operator should know about the gate and the models that it scores.

        experts: those that are there now. Where they are of several models and there is no gate, a notice says how to
        get one.
        """
        notices = self._fitted.notices if self._facts else ()
        untuned = (
            None if self._gate else _untuned(sorted({expert.identity: expert.model for expert in experts}.values()))
        )
        return tuple(warning for warning in (self._mismatch, self._failure, untuned, *notices) if warning)

    def fit(self, experts: Sequence[Expert]) -> None:
        """Fit the gate to the fleet's models; to be called after each change of the fleet, before any scoring."""
        is_fitted = self._is_fitted_to(experts)
        self._experts = experts
        if is_fitted:
            return
        self._tallied = dict(self._tallies)
        of_file: dict[str, list[Expert]] = {}
        for expert in experts:
            of_file.setdefault(expert.identity, []).append(expert)
        known = sorted(of_file.items(), key=lambda item: (min(one.model for one in item[1]), item[0]))
        facts = tuple(self._facts_of(same) for _, same in known)
        identities = tuple(identity for identity, _ in known)
        if facts and (facts, identities) != (self._facts, self._identities):
            self._refit(facts, identities)

    def _is_fitted_to(self, experts: Sequence[Expert]) -> bool:
        """Whether these are experts of the same models as the latest, and nobody has scored one since.

        What a report tells of speed, energy or load, as most do, changes nothing here.
        """
        former = self._experts
        if len(experts) != len(former) or self._tallied != self._tallies:
            return False
        newer = compress(zip(former, experts, strict=True), map(is_not, former, experts))
        return all(_model_of(old) == _model_of(new) for old, new in newer)

    def tallies_changed(self) -> None:
        """Fit the gate again, because users' scores have changed."""
        self.fit(self._experts)

    def score(self, prompt: str, roster: Roster, category: str | None = None) -> PromptScores:
        """Score the roster's experts for one prompt. It never raises: where the gate fails, priors stand in.

        category: the one that the request names. Where it is one of the gate's kinds, the gate need not find the kind.
        """
        view = self._view(roster)
        known = self._kinds.index(category) if category in self._kinds else None
        predicted = self._fitted.predict(prompt, known)
        self._failure = predicted.warning
        return view.by_priors if predicted is self._fitted.by_priors else self._scores(predicted, view.columns)

    def _scores(self, predicted: FleetPrediction, columns: npt.NDArray[np.intp]) -> PromptScores:
        """A prediction for the models of the fleet, as one for the experts that serve them."""
        kind, shares = None, predicted.kinds
        if shares is None:
            count = self._fitted.n_kinds
            shares = np.full(count, 1 / count)
        if predicted.kinds is not None and predicted.kinds.size == len(self._kinds):
            kind = self._kinds[int(predicted.kinds.argmax())]
        written = PromptScores(
            predicted.probabilities[columns], predicted.logits[columns], predicted.trained[columns], kind, shares
        )
        if predicted.answer_tokens is not None:
            written = replace(written, answer_tokens=predicted.answer_tokens[columns])
        if predicted.by_scoring is None:
            return written
        scored = predicted.by_scoring[columns]
        return replace(written, by_scoring=replace(written, scores=scored, logits=scored / self._fitted.tau))

    def votes(self, roster: Roster) -> RosterVotes:
        """What is known of these experts' votes; the replay stays the same object until the gate knows more of them."""
        if self._replay is None:
            self._replay = VoteReplay(self._fitted.votes, self._fitted.by_kind())
        return RosterVotes(self._replay, self._view(roster).columns)

    def set_worth(self, roster: Roster) -> SetWorth:
        """The worth of sets of these experts; the same object until what the gate knows of them changes.

        It rests on the mean probability per kind of prompt that the gate was trained on, or on priors without a gate.
        """
        return self._view(roster).worth

    def _facts_of(self, same: Sequence[Expert]) -> ExpertFacts:
        """What is known of a model: its names, its size as read from the file if known, and users' scores.

        same: all experts that serve it, under whatever names; what is known under any of them holds for all.
        """
        names = sorted({expert.model for expert in same})
        sha256 = same[0].report.file_sha256
        told = [facts_from_name(name) for name in names]
        family = next((one.family for one in told if one.family), None)
        parameters = next((one.parameters for one in told if one.parameters), None)
        size = next((expert.report.parameters for expert in same if expert.report.parameters), None)
        tallies = [self._tallies.get(name, Tally()) for name in names]
        if sha256 is not None:
            tallies.append(self._tallies.get(sha256, Tally()))
        return ExpertFacts(
            names[0],
            family,
            float(size) if size else parameters,
            feedback_sum=sum(tally.total for tally in tallies),
            feedback_count=sum(tally.count for tally in tallies),
            also_called=tuple(names[1:]),
            file_sha256=sha256,
        )

    def _refit(self, facts: tuple[ExpertFacts, ...], identities: tuple[str, ...]) -> None:
        self._facts, self._identities = facts, identities
        self._views.clear()
        self._latest_view = None
        self._replay = None
        try:
            self._fitted, self._mismatch = FleetGate(self._gate, facts), None
        except GateMismatchError as error:
            self._fitted = FleetGate(None, facts)
            self._mismatch = HealthWarning(
                code="gate_mismatch",
                severity=Severity.DEGRADED,
                message=f"The gate is not used: {error.message}",
                remedy=error.remedy or "Train the gate for this fleet.",
            )

    def _view(self, roster: Roster) -> _View:
        if self._latest_view is not None and self._latest_view[0] is roster.identities:
            return self._latest_view[1]
        # The hash of thousands of names is made anew each time.
        view = self._views.get(roster.identities)
        if view is None:
            places = {identity: place for place, identity in enumerate(self._identities)}
            columns = np.array([places[identity] for identity in roster.identities])
            worth = SetWorth(self._fitted.by_kind()[:, columns])
            view = _View(columns, worth, self._scores(self._fitted.by_priors, columns))
            if len(self._views) == MAX_VIEWS:
                self._views.clear()
            self._views[roster.identities] = view
        self._latest_view = (roster.identities, view)
        return view


def _model_of(expert: Expert) -> tuple[str, str | None, int | None]:
    """All that the gate goes by in an expert."""
    return expert.model, expert.report.file_sha256, expert.report.parameters


def _untuned(models: Sequence[str]) -> HealthWarning | None:
    """The notice that moe2 chooses among models that it knows nothing of but their size; None for one model.

    models: a name for each of them.
    """
    if len(models) < 2:
        return None
    shown = ", ".join(models[:MAX_NAMED_MODELS]) + (" and others" if len(models) > MAX_NAMED_MODELS else "")
    return HealthWarning(
        code="gate_expert_prior",
        severity=Severity.NOTICE,
        message=f"moe2 does not know yet which of your models is good at what ({shown}); it takes the larger one.",
        remedy="Run `moe2-coordinator tune`: it asks each of them about 300 short questions, and says first what that "
        "takes.",
    )


@dataclass(frozen=True, eq=False)
class _View:
    """What the fitted gate knows of one roster."""

    columns: npt.NDArray[np.intp]
    """(N,) places of the experts' models in the fitted gate."""
    worth: SetWorth
    by_priors: PromptScores
    """What is said of any prompt where there is no gate."""
