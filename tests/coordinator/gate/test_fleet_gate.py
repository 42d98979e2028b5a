"""The gate over a fleet: matching, priors, and falling back instead of failing."""

from __future__ import annotations

import numpy as np
import pytest

from moe2.coordinator.gate.fleet_gate import FleetGate, GateMismatchError, plain_name
from moe2.coordinator.gate.gate import Gate, GatePrediction
from moe2.coordinator.gate.prior import ExpertFacts, facts_from_name, prior_for
from tests.fakes.gates import MadeGate


def renamed(gate: Gate, *names: str) -> Gate:
    return Gate(gate.parameters, gate.feature_config, names, gate.tau)


def test_experts_come_in_the_fleets_order(made: MadeGate) -> None:
    """The fleet's order need not be the checkpoint's."""
    gate = FleetGate(made.gate, [ExpertFacts("expert-2"), ExpertFacts("expert-0")])
    mine, theirs = gate.predict("python loop").probabilities, made.gate.predict("python loop").probabilities
    assert mine == pytest.approx(theirs[[2, 0]])
    assert gate.notices == ()


@pytest.mark.parametrize(
    "name",
    [
        "llama-3.1-8b-instruct-q4_k_m",
        "Llama-3.1-8B-Instruct.Q4_K_M.gguf",
        "meta/Llama-3.1-8B-Instruct",
        "llama_3.1_8b_instruct-IQ4_XS",
    ],
)
def test_quantized_files_are_mapped_to_their_model(made: MadeGate, name: str) -> None:
    """A GGUF file of a trained model uses what was learnt of it, and says so."""
    gate = FleetGate(renamed(made.gate, "Llama-3.1-8B-Instruct", "b", "c"), [ExpertFacts(name)])
    assert [notice.code for notice in gate.notices] == ["gate_expert_mapped"]
    assert gate.predict("x").trained.all()


def test_an_ambiguous_name_is_not_mapped(made: MadeGate) -> None:
    """Two trained experts with the same plain name: neither is guessed."""
    gate = FleetGate(renamed(made.gate, "A-1", "a1", "c"), [ExpertFacts("a_1"), ExpertFacts("c")])
    assert gate.predict("x").trained.tolist() == [False, True]


def test_a_checkpoint_of_another_fleet_is_refused(made: MadeGate) -> None:
    """Nothing in common: the error names both sides."""
    with pytest.raises(GateMismatchError, match=r"expert-0.*the fleet has phi-3"):
        FleetGate(made.gate, [ExpertFacts("phi-3")])


def test_new_experts_start_from_a_prior_and_say_so(made: MadeGate) -> None:
    """An expert without data has a probability, is marked, and a notice gives the reason."""
    gate = FleetGate(made.gate, [ExpertFacts("expert-0"), ExpertFacts("newcomer-7B", parameters=7e9)])
    prediction = gate.predict("who is king")
    assert prediction.trained.tolist() == [True, False]
    assert 0 < prediction.probabilities[1] < 1
    assert [notice.code for notice in gate.notices] == ["gate_expert_prior"]
    assert "newcomer-7B has no training data" in gate.notices[0].message
    assert "tune --model newcomer-7B" in gate.notices[0].remedy


def test_without_a_checkpoint_everyone_has_a_prior() -> None:
    """No gate is a state, not an error: the larger model is preferred."""
    gate = FleetGate(None, [facts_from_name("qwen2.5-1.5b"), facts_from_name("qwen2.5-7b")])
    prediction = gate.predict("anything")
    assert prediction.probabilities[1] > prediction.probabilities[0]
    assert prediction.warning is None
    assert gate.notices == ()


class _Broken(Gate):
    def __init__(self, gate: Gate, answer: GatePrediction | None) -> None:
        super().__init__(gate.parameters, gate.feature_config, gate.experts, gate.tau)
        self._answer = answer

    def predict(self, prompt: str, kind: int | None = None) -> GatePrediction:
        if self._answer is None:
            raise IndexError("out of range")
        return self._answer


@pytest.mark.parametrize("kind", ["raises", "not finite"])
def test_a_failing_gate_falls_back_to_priors(made: MadeGate, kind: str) -> None:
    """A gate that raises or answers NaN gives priors and a warning that names the reason; it never raises."""
    nan = np.full(3, np.nan)
    broken = _Broken(made.gate, None if kind == "raises" else GatePrediction(nan, nan, nan))
    prediction = FleetGate(broken, [ExpertFacts("expert-0"), ExpertFacts("expert-1")]).predict("x")
    assert prediction.warning is not None
    assert prediction.warning.code == "gate_failed"
    assert ("out of range" if kind == "raises" else "not finite") in prediction.warning.message
    assert np.isfinite(prediction.probabilities).all()
    assert not prediction.trained.any()


def test_an_empty_fleet_is_refused() -> None:
    """A gate over nobody has no meaning."""
    with pytest.raises(ValueError, match="no experts"):
        FleetGate(None, [])


@pytest.mark.parametrize(
    ("name", "family", "parameters"),
    [
        ("Llama-3.1-8B-Instruct", "llama", 8e9),
        ("qwen2.5-0.5b-instruct-q8_0.gguf", "qwen", 0.5e9),
        ("codegemma-7b", "gemma", 7e9),
        ("Mixtral-8x7B-Instruct-v0.1", "mistral", 56e9),
        ("smollm2-135m", "smollm", 135e6),
        ("Phi-3-mini-4k-instruct", "phi", 3.8e9),
        ("some-model", None, None),
    ],
)
def test_family_and_size_are_read_from_names(name: str, family: str | None, parameters: float | None) -> None:
    """What a name tells is used, what it does not tell stays unknown."""
    facts = facts_from_name(name)
    assert (facts.family, facts.parameters) == (family, parameters)


def test_a_prior_follows_its_family() -> None:
    """With a relative of the same size, the prior on each prompt is the relative's probability."""
    prior = prior_for(facts_from_name("Qwen2-7B"), ["Llama-3.1-8B", "Qwen2.5-7B"])
    assert prior.probability(np.array([0.9, 0.3])) == pytest.approx(0.3)
    assert "the trained experts of its family (Qwen2.5-7B)" in prior.reason


def test_feedback_moves_a_prior() -> None:
    """Good feedback raises, bad feedback lowers, and much of it outweighs the prior."""
    trained = np.array([0.5])
    plain = prior_for(ExpertFacts("x"), ["y"]).probability(trained)
    good = prior_for(ExpertFacts("x", feedback_sum=10, feedback_count=10), ["y"]).probability(trained)
    bad = prior_for(ExpertFacts("x", feedback_sum=0, feedback_count=2000), ["y"]).probability(trained)
    assert bad < 0.01 < plain < good < 1


@pytest.mark.parametrize(
    "wrong", [{"parameters": 0.0}, {"feedback_sum": 2.0, "feedback_count": 1}, {"feedback_count": -1}]
)
def test_impossible_facts_are_refused(wrong: dict[str, float]) -> None:
    """Negative sizes and more than full marks are refused."""
    with pytest.raises(ValueError, match="x: "):
        ExpertFacts("x", **wrong)  # type: ignore[arg-type]


def test_plain_names_differ_for_different_models() -> None:
    """Sizes and versions are kept apart."""
    assert len({plain_name(n) for n in ("qwen2-7b", "qwen2.5-7b", "qwen2.5-14b", "qwen2.5-7b-instruct")}) == 4


def test_lengths_of_answers_come_in_the_fleets_order(made: MadeGate) -> None:
    """Each expert has its own length; one that was never trained on has none, and without lengths nobody has."""
    lengths = np.tile([10.0, 20.0, 30.0], (len(made.manifest.kinds), 1))
    gate = Gate(made.gate.parameters, made.gate.feature_config, made.gate.experts, 0.1, answer_tokens=lengths)
    facts = [ExpertFacts("expert-2"), ExpertFacts("newcomer-7B"), ExpertFacts("expert-0")]
    found = FleetGate(gate, facts).predict("python loop").answer_tokens
    assert found is not None
    assert found == pytest.approx([30.0, np.nan, 10.0], nan_ok=True)
    assert FleetGate(made.gate, facts).predict("python loop").answer_tokens is None
