"""What the optional sentence encoder gains over hashed n-grams, and what it costs per prompt.

For each of several seeds two gates are trained on the same rows, without and with the encoder's embedding among their
features, and asked about the same held-out rows. Gains are of the score of the likeliest expert (points, hundredths of
a score) and of the log loss (nats), each the mean over the seeds, with standard errors paired by prompt. The encoder is
then timed on the held-out prompts, one at a time, on one core, without its memo. Needs moe2[gate,encoder].

The last line is one JSON object: `gain_points`, `standard_error_points`, `log_loss_gain`, `log_loss_standard_error`,
`encoder_p50_ms`, `encoder_p99_ms`, `ngrams_p50_ms` and more.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace

for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
from rich.progress import track  # noqa: E402

from moe2.coordinator.evaluation.study import split_for_report, without_reported  # noqa: E402
from moe2.coordinator.gating.calibration import row_log_losses  # noqa: E402
from moe2.coordinator.gating.commands import add_pool_arguments, chosen_features, chosen_pool  # noqa: E402
from moe2.coordinator.gating.encoder import installed_encoder  # noqa: E402
from moe2.coordinator.gating.features import FeatureExtractor  # noqa: E402
from moe2.coordinator.gating.outcomes import Outcomes, read_outcomes  # noqa: E402
from moe2.coordinator.gating.training import train_gate  # noqa: E402
from moe2.coordinator.gating.training_config import TrainingConfig  # noqa: E402

FEATURES = ("ngrams", "encoder")
FloatArray = npt.NDArray[np.float64]


def scores_and_losses(probabilities: FloatArray, report: Outcomes) -> tuple[FloatArray, FloatArray]:
    """(rows,) score of the likeliest expert that was run, and (rows,) log loss over all that were."""
    masked = np.where(np.isnan(report.scores), -1.0, probabilities)
    scores = report.scores[np.arange(len(report)), masked.argmax(axis=1)]
    return np.nan_to_num(scores), row_log_losses(probabilities, report.scores)


def standard_error(differences: FloatArray) -> float:
    """Of the mean of paired differences."""
    return float(differences.std(ddof=1) / np.sqrt(differences.size))


def timed_ms(action: Callable[[str], object], prompts: list[str], clock: Callable[[], float]) -> list[float]:
    """Milliseconds of `action` on each prompt."""
    for prompt in prompts[:10]:
        action(prompt)
    taken = []
    for prompt in prompts:
        started = clock()
        action(prompt)
        taken.append((clock() - started) * 1e3)
    return taken


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pool_arguments(parser)
    parser.add_argument("--seeds", type=int, default=4, help="gates of each kind, each from one seed")
    parser.add_argument("--no-other-sources", action="store_true", help="do not learn from other sources' prompts")
    parser.add_argument("--processor-time", action="store_true", help="time by processor time: for a busy machine")
    args = parser.parse_args()
    pool, others = chosen_pool(read_outcomes(args.outcomes), args.source, args.experts)
    parts = split_for_report(pool)
    auxiliary = None if args.no_other_sources else without_reported(others, parts.report)
    found: dict[str, list[tuple[FloatArray, FloatArray]]] = {name: [] for name in FEATURES}
    for seed in track(range(args.seeds), description="training"):
        for name in FEATURES:
            config = replace(TrainingConfig(), seeds=(seed,))
            gate = train_gate(parts.learn, auxiliary=auxiliary, config=config, features=chosen_features(name)).gate
            predicted = np.stack([gate.predict(prompt).probabilities for prompt in parts.report.prompts])
            found[name].append(scores_and_losses(predicted, parts.report))
    scores, losses = (
        {name: np.mean([pair[part] for pair in pairs], axis=0) for name, pairs in found.items()} for part in (0, 1)
    )
    gain, easier = scores["encoder"] - scores["ngrams"], losses["ngrams"] - losses["encoder"]
    by_seed = [
        100 * float((own[0] - other[0]).mean()) for own, other in zip(found["encoder"], found["ngrams"], strict=True)
    ]

    clock = time.process_time if args.processor_time else time.perf_counter
    prompts = list(parts.report.prompts)[:300]
    encoder = installed_encoder()
    encoded = timed_ms(encoder.embed_anew, prompts, clock)
    hashed = timed_ms(FeatureExtractor(chosen_features("ngrams")).extract, prompts, clock)
    print(f"gain by seed, points: {', '.join(f'{points:+.2f}' for points in by_seed)}")
    figures = {
        "gain_points": 100 * float(gain.mean()),
        "standard_error_points": 100 * standard_error(gain),
        "log_loss_gain": float(easier.mean()),
        "log_loss_standard_error": standard_error(easier),
        "ngrams_score": float(scores["ngrams"].mean()),
        "encoder_score": float(scores["encoder"].mean()),
        "encoder_p50_ms": float(np.percentile(encoded, 50)),
        "encoder_p99_ms": float(np.percentile(encoded, 99)),
        "ngrams_p50_ms": float(np.percentile(hashed, 50)),
        "seeds": args.seeds,
        "rows": len(parts.report),
    }
    rounded = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({**rounded, "reported_on": parts.reported_on}))


if __name__ == "__main__":
    main()
