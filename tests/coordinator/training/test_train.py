"""Training: that it learns, repeats exactly, keeps out of the test rows and refuses what it cannot use."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moe2.coordinator.gate.checkpoint import load_checkpoint, save_checkpoint
from moe2.coordinator.gate.features import FeatureExtractor
from moe2.coordinator.gate.gate import Gate, GateParameters
from moe2.coordinator.training.config import TrainingError
from moe2.coordinator.training.network import GateNetwork, PreparedRows, entropy_regularised_loss, expert_log_odds
from moe2.coordinator.training.train import TrainedGate, folded, train_gate
from tests.coordinator.conftest import SMALL_FEATURES, SMALL_TRAINING
from tests.coordinator.training.outcome_tables import synthetic_outcomes
from tests.oracles.objective import entropy_regularised_loss as pure_loss
from tests.oracles.objective import restricted_softmax

# It trains gates.
pytestmark = pytest.mark.slow


def top1(gate: Gate, split: str, **table: object) -> float:
    outcomes = synthetic_outcomes(**table)  # type: ignore[arg-type]
    rows = outcomes.rows_of(split)
    return float(np.mean([outcomes.scores[row, gate.predict(outcomes.prompts[row]).logits.argmax()] for row in rows]))


def test_the_gate_finds_the_right_expert(trained: TrainedGate) -> None:
    """On held-out rows the chosen expert scores near its 0.9, where the best single expert scores near 0.5."""
    assert top1(trained.gate, "test") > 0.8


def test_the_gate_learns_without_kinds() -> None:
    """Outcomes that name no kinds are learnt through the residual alone."""
    outcomes = synthetic_outcomes(labelled=False)
    gate = train_gate(outcomes, config=replace(SMALL_TRAINING, epochs=30), features=SMALL_FEATURES).gate
    assert top1(gate, "test") > 0.75


def test_few_rows_are_not_behind_the_best_single_expert_in_expectation() -> None:
    """Gates of 205 train rows, of experts that do not differ by kind, choose no worse than the best single one."""
    chances = np.array([0.30, 0.42, 0.36, 0.25])
    gains = []
    for seed in range(3):
        table = synthetic_outcomes(342, experts=4, seed=seed)
        random = np.random.default_rng(seed)
        scores = (random.random((342, 4)) < chances).astype(float)
        # Five kinds more than the words tell apart, so that each has few rows.
        tasks = tuple(f"{task}-{row % 4}" for row, task in enumerate(table.tasks))
        outcomes = replace(table, scores=scores, tasks=tasks)
        assert len(outcomes.rows_of("train")) == 206
        gate = train_gate(outcomes, config=SMALL_TRAINING, features=SMALL_FEATURES).gate
        single = chances[scores[outcomes.rows_of("train")].mean(axis=0).argmax()]
        test = [outcomes.prompts[row] for row in outcomes.rows_of("test")]
        chosen = [chances[gate.predict(prompt).probabilities.argmax()] for prompt in test]
        gains.append(np.mean(chosen) - single)
    assert np.mean(gains) > -0.01


def test_a_gate_learns_who_scores_options_well(tmp_path: Path) -> None:
    """Outcomes of both kinds give a gate that knows each expert by writing and by scoring, also from its file."""
    outcomes = synthetic_outcomes(150)
    by_scoring = np.full(outcomes.scores.shape, np.nan)
    by_scoring[:, 1] = 0.95
    config = replace(SMALL_TRAINING, epochs=1)
    trained = train_gate(replace(outcomes, by_scoring=by_scoring), config=config, features=SMALL_FEATURES)
    path, gate = tmp_path / "gate.safetensors", trained.gate
    save_checkpoint(path, gate.parameters, trained.manifest, gate.votes, gate.by_scoring, gate.answer_tokens)
    found = load_checkpoint(path)[0].predict("who is king?")
    assert found.answer_tokens == pytest.approx([10.0] * len(gate.experts))
    assert found.by_scoring is not None
    assert found.by_scoring[1] == pytest.approx(0.95, abs=0.01)
    assert found.probabilities[1] < 0.9


def test_training_twice_gives_the_same_gate(trained: TrainedGate) -> None:
    """Same data, configuration and seeds: every parameter is the same, bit for bit."""
    again = train_gate(synthetic_outcomes(), config=SMALL_TRAINING, features=SMALL_FEATURES, source="synthetic")
    for entry in fields(GateParameters):
        one, other = getattr(trained.gate.parameters, entry.name), getattr(again.gate.parameters, entry.name)
        assert np.array_equal(one, other), entry.name
    assert again.manifest == trained.manifest


def test_the_manifest_says_what_was_trained(trained: TrainedGate) -> None:
    """Experts, features, data hash, rows and metrics are all in the manifest."""
    manifest = trained.manifest
    assert manifest.experts == ("expert-0", "expert-1", "expert-2")
    assert manifest.kinds == ("code", "maths", "trivia")
    assert manifest.data_sha256 == "0" * 64
    assert manifest.rows == {"train": 180, "val": 60, "auxiliary": 0}
    assert manifest.features["bucket_bits"] == 10
    assert {"val_calibration_error_before", "val_calibration_error_after", "val_score_top1"} <= set(manifest.metrics)


def test_a_trained_gate_survives_the_file(trained: TrainedGate, tmp_path: Path) -> None:
    """The gate read back predicts exactly the same, and its manifest is the same."""
    path = tmp_path / "gate.safetensors"
    save_checkpoint(path, trained.gate.parameters, trained.manifest)
    gate, manifest = load_checkpoint(path)
    assert manifest == trained.manifest
    for prompt in ("python function", "who is king?", ""):
        assert np.array_equal(gate.predict(prompt).probabilities, trained.gate.predict(prompt).probabilities)


def test_other_seeds_give_another_gate(trained: TrainedGate) -> None:
    """The seed matters, so the test above is not empty."""
    other = train_gate(synthetic_outcomes(), config=replace(SMALL_TRAINING, seeds=(7, 8)), features=SMALL_FEATURES)
    assert not np.array_equal(other.gate.parameters.hidden_weight, trained.gate.parameters.hidden_weight)


def test_training_leaves_the_global_random_state_alone() -> None:
    """Training does not disturb what else draws random numbers."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_gate(synthetic_outcomes(100), config=replace(SMALL_TRAINING, epochs=1), features=SMALL_FEATURES)
    assert torch.equal(torch.rand(3), expected)


def test_test_rows_change_nothing(trained: TrainedGate) -> None:
    """Scores of test rows, turned round, leave the gate as it is."""
    outcomes = synthetic_outcomes()
    scores = outcomes.scores.copy()
    scores[outcomes.rows_of("test")] = 1 - scores[outcomes.rows_of("test")]
    again = train_gate(replace(outcomes, scores=scores), config=SMALL_TRAINING, features=SMALL_FEATURES)
    assert np.array_equal(again.gate.parameters.residual_weight, trained.gate.parameters.residual_weight)
    assert again.manifest.metrics == trained.manifest.metrics


def test_rows_with_missing_experts_are_used() -> None:
    """Experts that were run on different rows can be trained together."""
    outcomes = synthetic_outcomes(400)
    scores = outcomes.scores.copy()
    holes = np.random.default_rng(1).random(scores.shape) < 0.3
    scores[holes] = np.nan
    gate = train_gate(replace(outcomes, scores=scores), config=SMALL_TRAINING, features=SMALL_FEATURES).gate
    assert top1(gate, "test", rows=400) > 0.75


def test_other_sources_can_help_and_touch_no_expert(trained: TrainedGate) -> None:
    """Auxiliary rows add kinds for learning only: the profile and the kinds served stay the pool's."""
    other = replace(synthetic_outcomes(200, seed=9), sources=("elsewhere",) * 200)
    gate = train_gate(synthetic_outcomes(), auxiliary=other, config=SMALL_TRAINING, features=SMALL_FEATURES)
    assert gate.manifest.kinds == trained.manifest.kinds
    assert np.array_equal(gate.gate.parameters.profile, trained.gate.parameters.profile)
    assert gate.manifest.rows["auxiliary"] > 0
    assert top1(gate.gate, "test") > 0.8


def test_progress_ends_at_the_total() -> None:
    """The progress bar is told each step, ascending, up to the announced total."""
    seen: list[tuple[int, int]] = []
    train_gate(
        synthetic_outcomes(100),
        config=replace(SMALL_TRAINING, epochs=2),
        features=SMALL_FEATURES,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


def drawn_network(rows: PreparedRows, *, width: int, hidden: int) -> GateNetwork:
    """An untrained network for three kinds and three experts, whose residual is not zero."""
    network = GateNetwork(
        buckets=SMALL_FEATURES.buckets,
        shape_size=rows.shapes.shape[1],
        kinds=3,
        experts=3,
        width=width,
        hidden=hidden,
        dropout=0,
    ).eval()
    torch.nn.init.normal_(network.residual_head.weight)
    return network


def test_torch_and_numpy_forward_agree() -> None:
    """One network evaluated by torch gives the same heads and probabilities as its folded form in numpy."""
    outcomes = synthetic_outcomes(60)
    rows = PreparedRows(outcomes, None, SMALL_FEATURES, SMALL_TRAINING)
    torch.manual_seed(0)
    network = drawn_network(rows, width=8, hidden=16)
    with torch.no_grad():
        network.embedding.weight.copy_(network.embedding.weight.half().float())
        kinds, residual = network(rows.batch(np.arange(60), 1.0, torch.Generator()))
        expected = torch.sigmoid(expert_log_odds(kinds, residual, torch.from_numpy(rows.profile))).numpy()
    gate = Gate(folded([network], rows), SMALL_FEATURES, outcomes.experts, 0.1)
    extractor = FeatureExtractor(SMALL_FEATURES)
    heads = [gate.heads(extractor.extract(prompt)) for prompt in outcomes.prompts]
    assert np.stack([head[0] for head in heads]) == pytest.approx(kinds.numpy(), abs=1e-4)
    assert np.stack([head[1] for head in heads]) == pytest.approx(residual.numpy(), abs=1e-4)
    served = np.stack([gate.predict(prompt).probabilities for prompt in outcomes.prompts])
    assert served == pytest.approx(expected, abs=1e-4)


def test_folding_averages_the_networks() -> None:
    """Two networks folded into one give the mean of their heads."""
    outcomes = synthetic_outcomes(40)
    rows = PreparedRows(outcomes, None, SMALL_FEATURES, SMALL_TRAINING)
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = drawn_network(rows, width=4, hidden=8)
        networks.append(network)
    features = FeatureExtractor(SMALL_FEATURES).extract(outcomes.prompts[0])
    single = [Gate(folded([net], rows), SMALL_FEATURES, outcomes.experts, 0.1).heads(features) for net in networks]
    both = Gate(folded(networks, rows), SMALL_FEATURES, outcomes.experts, 0.1).heads(features)
    assert both[0] == pytest.approx((single[0][0] + single[1][0]) / 2, abs=1e-4)
    assert both[1] == pytest.approx((single[0][1] + single[1][1]) / 2, abs=1e-4)


def test_the_torch_objective_equals_the_pure_one() -> None:
    """The objective that is trained is the one whose property is proven, on every set of known experts."""
    random = np.random.default_rng(0)
    logits, losses = random.normal(size=(50, 4)), random.random((50, 4))
    known = random.random((50, 4)) < 0.6
    known[:, 0] = True
    expected = pure_loss(restricted_softmax(logits, known), losses, 0.2)
    got = entropy_regularised_loss(torch.tensor(logits), torch.tensor(losses), torch.tensor(known), 0.2)
    assert got.numpy() == pytest.approx(expected, abs=1e-9)


def test_a_row_without_any_expert_has_no_loss_and_a_finite_gradient() -> None:
    """Nobody was run on the row: it counts 0 and spoils no gradient."""
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = entropy_regularised_loss(logits, torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), 0.1).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [("one expert", "two experts"), ("few rows", "at least 20"), ("no scores", "no score in the train rows")],
)
def test_unusable_outcomes_are_refused(change: str, told: str) -> None:
    """Too few experts or rows, or an expert without scores, is a clear error."""
    outcomes = synthetic_outcomes(120)
    if change == "one expert":
        outcomes = outcomes.with_experts(["expert-0"])
    elif change == "few rows":
        outcomes = outcomes.take(range(10))
    else:
        scores = outcomes.scores.copy()
        scores[:, 1] = np.nan
        outcomes = replace(outcomes, scores=scores)
    with pytest.raises(TrainingError, match=told):
        train_gate(outcomes, config=SMALL_TRAINING, features=SMALL_FEATURES)
