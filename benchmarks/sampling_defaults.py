"""What an answer gains by the sampling that a model draws with by default, for clients that set none.

`python -m benchmarks.sampling_defaults [--model GGUF] [--seeds N]` asks a real model every question of
`benchmarks/questions.tsv`, once for each seed: at the model's own distribution (temperature 1, nothing cut), which is
what an unset parameter meant before, and with what the engine draws with when a request says nothing. An answer is
right that names the right choice and none of the others. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from moe2.agent.engine.protocol import Loaded
from moe2.common.generation import NEUTRAL_SAMPLING, Sampling
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt
from tests.agent.engine.child import Child
from tests.models import smollm2_path

_QUESTIONS = Path(__file__).parent / "questions.tsv"
_ANSWER_TOKENS = 24
_SLOTS = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    questions = [line.split("\t") for line in _QUESTIONS.read_text(encoding="utf-8").splitlines() if line]
    with Child() as child:
        loaded = child.load(str(arguments.model or smollm2_path()), slots=_SLOTS, context_tokens=4096)
        if not isinstance(loaded, Loaded):
            raise SystemExit(loaded.message)
        ways = {"plain": NEUTRAL_SAMPLING, "default": Sampling(), "greedy": Sampling(temperature=0)}
        right = {
            name: sum(_right(child, questions, sampling, seed) for seed in range(arguments.seeds))
            for name, sampling in ways.items()
        }
    result = {
        "questions": len(questions) * arguments.seeds,
        **{f"{name}_right": count for name, count in right.items()},
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


def _right(child: Child, questions: list[list[str]], sampling: Sampling, seed: int) -> int:
    """The number of questions that are answered rightly."""
    for number, (question, *_) in enumerate(questions):
        fields = {name: getattr(sampling, name) for name in Sampling.__struct_fields__}
        child.send(
            Submit(
                job_id=str(number),
                request_id="r",
                model="m",
                prompt=ChatPrompt(messages=(ChatMessage(role="user", content=question),)),
                sampling=Sampling(**{**fields, "seed": 1000 * seed + number}),
                max_tokens=_ANSWER_TOKENS,
            )
        )
    texts, _ = child.collect(len(questions))
    return sum(_is_right(texts.get(str(number), ""), *choices) for number, (_, *choices) in enumerate(questions))


def _is_right(text: str, right: str, *wrong: str) -> bool:
    said = text.lower()
    return right.lower() in said and not any(choice.lower() in said for choice in wrong)


if __name__ == "__main__":
    sys.exit(main())
