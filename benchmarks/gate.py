"""The gate's time per prompt: features and forward pass, one prompt at a time, on one core.

Without a checkpoint, a gate of the default size with random parameters is timed: the arithmetic is the same.
The last line is one JSON object: `p50_ms`, `p99_ms` per prompt, and the same for features alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from moe2.coordinator.gate.checkpoint import load_checkpoint
from moe2.coordinator.gate.features import SHAPE_SIZE, FeatureConfig
from moe2.coordinator.gate.gate import Gate, GateParameters
from moe2.coordinator.training.outcomes import read_outcomes


def random_gate(experts: int, kinds: int = 16, networks: int = 4, width: int = 16, hidden: int = 48) -> Gate:
    """A gate of the default training configuration's size with random parameters."""
    random = np.random.default_rng(0)
    config = FeatureConfig()

    def draw(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape).astype(np.float32)

    parameters = GateParameters(
        idf=np.abs(draw(config.buckets)),
        embedding=draw(config.buckets, networks * width),
        shape_mean=draw(SHAPE_SIZE),
        shape_scale=np.abs(draw(SHAPE_SIZE)),
        hidden_weight=draw(networks * hidden, networks * width + SHAPE_SIZE),
        hidden_bias=draw(networks * hidden),
        task_weight=draw(kinds, networks * hidden),
        task_bias=draw(kinds),
        residual_weight=draw(experts, networks * hidden),
        residual_bias=draw(experts),
        profile=np.full((kinds, experts), 0.5, dtype=np.float32),
        calibration_slope=np.ones(experts, dtype=np.float32),
        calibration_offset=np.zeros(experts, dtype=np.float32),
    )
    return Gate(parameters, config, [f"expert-{n}" for n in range(experts)], 0.1)


def random_prompts(count: int) -> list[str]:
    """Prompts of made-up words; lengths are log-normal around 300 bytes, as in the development data."""
    random = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
    words = ["".join(random.choice(letters, size)) for size in random.integers(1, 12, 2000)]
    lengths = np.clip(random.lognormal(np.log(300), 0.9, count), 20, 20000).astype(int)
    return [" ".join(random.choice(words, max(1, length // 7))) for length in lengths]


def timed_ms(action: object, prompts: list[str]) -> list[float]:
    """Milliseconds of `action(prompt)` for each prompt, after a warm-up."""
    if not callable(action):
        raise TypeError("action must be callable")
    for prompt in prompts[:100]:
        action(prompt)
    taken = []
    for prompt in prompts:
        start = time.perf_counter()
        action(prompt)
        taken.append((time.perf_counter() - start) * 1e3)
    return taken


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="time this gate instead of a random one")
    parser.add_argument("--outcomes", type=Path, help="time on the prompts of this file instead of made-up ones")
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=2000)
    args = parser.parse_args()
    gate = load_checkpoint(args.checkpoint)[0] if args.checkpoint else random_gate(args.experts)
    prompts = list(read_outcomes(args.outcomes).prompts) if args.outcomes else random_prompts(args.prompts)
    order = np.random.default_rng(2).permutation(len(prompts))[: args.prompts]
    prompts = [prompts[n] for n in order]
    whole = timed_ms(gate.predict, prompts)
    features = timed_ms(gate.extractor.extract, prompts)
    median = int(np.median([len(prompt) for prompt in prompts]))
    print(f"{len(prompts)} prompts, median {median} characters, {len(gate.experts)} experts")
    print(
        json.dumps(
            {
                "p50_ms": round(float(np.percentile(whole, 50)), 4),
                "p99_ms": round(float(np.percentile(whole, 99)), 4),
                "features_p50_ms": round(float(np.percentile(features, 50)), 4),
                "features_p99_ms": round(float(np.percentile(features, 99)), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
