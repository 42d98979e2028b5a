"""Decoding with guesses against decoding without, and against llama.cpp's own server, in one run.

    python -m benchmarks.speculation --model FILE.gguf [--draft FILE.gguf] [--llama-server BINARY] [--threads N]
        [--rounds N] [--tokens N] [--tasks NAME ...] [--levels N ...]

Tasks: edit (a file again, with a word replaced), summary (with quotes), json (by schema), story and hostile (all has
been there before, and never goes on as it did; drawn at a high temperature), at 1, 4 and 8 requests.
What is compared takes turns within a round, the other way round in every second one, so that a host's slow minutes hit
all of it. Each engine is a new one each time: it knows no answer from before, and none begins with a prompt in its
cache that the other one has to read. llama-server, which stays, is asked with prompts of each level's own for the same
reason.
Rates are tokens per second from the first token to the last; figures are medians over rounds of ratios made within a
round. Several requests are compared with llama-server from the asking on: it reads all prompts before any answer
begins, this engine lets the first ones begin while it reads the others. `*_cpu_ratio_*` compare computing time instead,
which other work on the host changes less.

With `--draft` a third engine guesses by that model, too: its figures are named `TASK_draft_*`.

`mismatches` counts greedy answers that differ although the model was sure: where two texts part, the tokens' raw
log-probabilities differ by more than `_NEAR_TIE`. Smaller differences are what llama.cpp's batch sizes change; they are
in `near_ties`.

Joules per token are simulated: a step counts 1 and a guess 1/35 of it, the ratio of a prompt's token to a decoded one
that was measured on an AGX Orin (`agent/energy/attribution.py`).

The last line is one JSON object with the figures that are compared between runs, null for what was not measured; the
line before it has those of all tasks and levels.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any

from msgspec.structs import replace

from benchmarks.engine_rivals import EngineChild
from benchmarks.overhead import cpu_time_s
from moe2.agent.energy.attribution import DEFAULT_PREFILL_WEIGHT
from moe2.agent.engine.protocol import DraftSpec, Finished, JobFailed, ModelSpec
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit, TokenPiece, Tokens
from moe2.common.link.prompts import TextPrompt

_CONTEXT_TOKENS, _SLOTS = 8192, 8
_LEVELS = (1, 4, 8)
_PATIENCE_S = 600.0
_GREEDY = Sampling(temperature=0.0)
_NEAR_TIE = 0.35
"""Natural logarithms: two tokens that differ by less may change places with the size of llama.cpp's batches. Log-
probabilities of a 135M model in f16 moved by up to 0.17 each."""
_COMPARED = (
    *("edit_ratio_c1", "json_ratio_c1", "story_ratio_c1", "edit_ratio_c8", "story_ratio_c8"),
    *("edit_vs_llama_server", "joules_per_token_ratio_edit", "mismatches"),
)
SERVER_OPTIONS = "--spec-type ngram-simple,ngram-mod --spec-ngram-simple-size-n 4 --spec-ngram-simple-size-m 16"

_THINGS = (
    *("red lamp", "blue chair", "green table", "white clock"),
    *("black mirror", "brown shelf", "grey carpet", "old piano"),
)
_FILE = "".join(
    f"{at}. The {thing} stands in room {at * 3} of the house and costs {at * 7} coins.\n"
    for at, thing in enumerate(_THINGS, 1)
)
_LETTER = (
    "Dear members of the garden club, the spring fair will be held on the twelfth of May in the old orchard behind "
    "the church. Every member may bring up to ten plants for sale. Tables will be ready from eight in the morning. "
    "The mayor will open the fair at ten. We still need four people to sell coffee and cake, and two people with a "
    "car to bring the tables back to the school in the evening. Please write to Anna before the first of May."
)
_SCHEMA = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 4,
            "maxItems": 4,
            "items": {
                "type": "object",
                "properties": {
                    "first_name": {"type": "string", "maxLength": 12},
                    "last_name": {"type": "string", "maxLength": 12},
                    "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 2020},
                    "is_married": {"type": "boolean"},
                },
                "required": ["first_name", "last_name", "year_of_birth", "is_married"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}
_SUBJECTS = ("sea", "desert", "forest", "moon", "river", "city", "mountain", "winter")


@dataclass(frozen=True)
class Task:
    """A prompt for each of several requests. schema: what the answer follows. temperature: of the draw, with a seed."""

    name: str
    prompt: str
    schema: dict[str, Any] | None = None
    temperature: float = 0.0

    def prompts(self, count: int, salt: str) -> list[str]:
        """Different prompts, so that nobody finds another's answer."""
        return [f"{salt}-{at}\n" + self.prompt.replace("SUBJECT", _SUBJECTS[at % 8]) for at in range(count)]


_CHANGED = _FILE.replace("coins", "euros")
_TASKS = (
    Task(
        "edit",
        f"The file things.txt:\n{_FILE}\nThe file things.txt, with coins replaced by euros and all else as it was:\n"
        f"{_CHANGED[: _CHANGED.index('3. ')]}",
    ),
    Task(
        "summary",
        f"A letter:\n\n{_LETTER}\n\nWhat is most important in the letter, in its own words:\n\n"
        '1. "Dear members of the garden club, the spring fair will be held on',
    ),
    Task("json", "Four people who live by the SUBJECT, as JSON:\n", _SCHEMA),
    Task("story", "A story about the SUBJECT.\n\nOnce upon a time"),
    Task("hostile", " ".join(Random(1).choices(("red", "blue", "green", "white"), k=240)), temperature=1.5),
)


@dataclass
class Answer:
    """What came of one request."""

    pieces: list[TokenPiece] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    asked_at_s: float = field(default_factory=time.perf_counter)
    decoded: int = 0
    drafted: int = 0
    accepted: int = 0
    model_drafted: int = 0
    model_accepted: int = 0

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class Engine(EngineChild):
    """moe2's engine, which takes requests with schemas and tells what came of guesses."""

    def answer(
        self,
        prompts: list[str],
        *,
        tokens: int,
        schema: dict[str, Any] | None,
        sampling: Sampling = _GREEDY,
        **fields: Any,
    ) -> list[Answer]:
        """All prompts at once; returns when all are answered."""
        answers: dict[str, Answer] = {}
        for prompt in prompts:
            job_id = self.new_job_id()
            answers[job_id] = Answer()
            self.send(
                Submit(
                    request_id="r",
                    model="m",
                    job_id=job_id,
                    prompt=TextPrompt(text=prompt),
                    sampling=sampling,
                    max_tokens=tokens,
                    json_schema=None if schema is None else json.dumps(schema),
                    **fields,
                )
            )
        n_open = len(answers)
        while n_open:
            events = self.receive(_PATIENCE_S)
            if not events:
                raise RuntimeError("The engine says nothing.")
            for event in events:
                at_s = time.perf_counter()
                if isinstance(event, Tokens):
                    for job in event.jobs:
                        answers[job.job_id].pieces += job.pieces
                        answers[job.job_id].at_s.append(at_s)
                elif isinstance(event, Finished):
                    _note(answers[event.job_id], event)
                    n_open -= 1
                elif isinstance(event, JobFailed):
                    raise RuntimeError(event.message)
        return list(answers.values())

    def cpu_s(self) -> float:
        """Computing time that the engine has taken: steadier than the clock on a host with other work."""
        return cpu_time_s(self.process.pid)


def _note(answer: Answer, end: Finished) -> None:
    answer.decoded = end.decoded_tokens
    answer.drafted, answer.accepted = end.drafted_tokens or 0, end.accepted_tokens or 0
    answer.model_drafted, answer.model_accepted = end.model_drafted_tokens or 0, end.model_accepted_tokens or 0


class Server:
    """llama.cpp's own server with its n-gram speculations, over HTTP."""

    def __init__(self, binary: str, model: str, *, threads: int, options: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        arguments = ["-m", model, "--port", str(self._port), "-c", str(_CONTEXT_TOKENS), "-np", str(_SLOTS)]
        arguments += ["-t", str(threads), "-tb", str(threads), *options]
        # As the engine has it (`agent/engine/child.py`): threads that spin are slow on a host with other work.
        environment = {"GOMP_SPINCOUNT": "2000", **os.environ}
        self.process = subprocess.Popen(
            [binary, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        give_up_at_s = time.monotonic() + 120
        while True:
            try:
                with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)) as link:
                    link.request("GET", "/health")
                    if link.getresponse().status == 200:
                        return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > give_up_at_s:
                    raise RuntimeError("llama-server does not come up.") from None
            time.sleep(0.2)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def run(self, prompts: list[str], *, tokens: int, schema: dict[str, Any] | None) -> list[Answer]:
        """All prompts at once; returns when all are answered."""
        answers = [Answer() for _ in prompts]
        threads = [
            threading.Thread(target=self._stream, args=(prompt, answer, tokens, schema))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers

    def _stream(self, prompt: str, answer: Answer, tokens: int, schema: dict[str, Any] | None) -> None:
        body: dict[str, Any] = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "stream": True}
        if schema is not None:
            body["json_schema"] = schema
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)) as link:
            link.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            for line in link.getresponse():
                if line.startswith(b"data: {"):
                    word = json.loads(line[6:])
                    answer.at_s.append(time.perf_counter())
                    answer.decoded = word.get("tokens_predicted", answer.decoded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--draft", help="a smaller one with the same vocabulary, which guesses for it")
    parser.add_argument("--llama-server", help="llama.cpp's server, as built from the same source")
    parser.add_argument("--server-options", default=SERVER_OPTIONS, help="its speculations, in one word")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=160, help="tokens per answer")
    parser.add_argument("--tasks", nargs="*", default=[task.name for task in _TASKS])
    parser.add_argument("--levels", type=int, nargs="*", default=list(_LEVELS))
    arguments = parser.parse_args()
    spec = ModelSpec(
        path=arguments.model,
        context_tokens=_CONTEXT_TOKENS,
        slots=_SLOTS,
        threads=arguments.threads,
        speculation=False,
    )
    engines = {"off": spec, "on": replace(spec, speculation=True)}
    if arguments.draft:
        draft = DraftSpec(name="draft", path=arguments.draft)
        engines["draft"] = replace(spec, speculation=True, draft=draft)
    with ExitStack() as stack:
        server = None
        if arguments.llama_server:
            server = stack.enter_context(
                Server(
                    arguments.llama_server,
                    arguments.model,
                    threads=arguments.threads,
                    options=arguments.server_options.split(),
                )
            )
        measurement = Measurement(engines, server, tokens=arguments.tokens)
        for round_number in range(arguments.rounds):
            for task in (task for task in _TASKS if task.name in arguments.tasks):
                for level in arguments.levels:
                    measurement.run(task, level, round_number)
    figures = measurement.figures() | {"joules": "simulated", "threads": arguments.threads}
    print(json.dumps(figures))
    print(json.dumps({name: figures.get(name) for name in _COMPARED}))


class Measurement:
    """Takes one task at one level at a time, and keeps what came of it."""

    def __init__(self, engines: dict[str, ModelSpec], server: Server | None, *, tokens: int) -> None:
        """engines: what each loads, by name; `off` is the one that does not guess. tokens: per answer."""
        self._engines = engines
        self._server = server
        self._tokens = tokens
        self._ratios: dict[str, list[float]] = defaultdict(list)
        self._mismatches = self._near_ties = 0

    def run(self, task: Task, level: int, round_number: int) -> None:
        """Answer the task's prompts by all in turn."""
        prompts = task.prompts(level, f"{round_number}-{level}")
        where = f"round {round_number + 1}, {task.name} at {level}"
        answers: dict[str, list[Answer]] = {}
        cpu_s: dict[str, float] = {}
        names = list(self._engines)
        for name in names if round_number % 2 == 0 else reversed(names):
            with Engine(self._engines[name]) as engine:
                assert isinstance(engine, Engine)
                answers[name], cpu_s[name] = self._timed(engine, prompts, task)
        plain, rates = answers["off"], {name: _together(answers[name]) for name in names}
        for name in names[1:]:
            prefix = task.name if name == "on" else f"{task.name}_{name}"
            self._keep(f"{prefix}_ratio_c{level}", rates[name] / rates["off"])
            self._keep(f"{prefix}_cpu_ratio_c{level}", cpu_s["off"] / cpu_s[name])
            self._keep(f"{prefix}_joules_c{level}", _effort(answers[name]))
            if not task.temperature:
                self._compare(prompts, plain, answers[name])
            of_cpu = f"{cpu_s['off'] / cpu_s[name]:.2f} times the tokens per CPU second"
            print(f"{where}, {name}: {of_cpu}; {_told(answers[name])}")
        if self._server is not None:
            theirs = self._server.run(prompts, tokens=self._tokens, schema=task.schema)
            rates["llama-server"] = _together(theirs)
            rate = _together if level == 1 else _from_the_asking
            self._keep(f"{task.name}_vs_llama_server_c{level}", rate(answers["on"]) / rate(theirs))
        print(f"{where}: {', '.join(f'{name} {rate:.1f}' for name, rate in rates.items())} tokens/s", flush=True)

    def figures(self) -> dict[str, Any]:
        """All figures, by name: medians over rounds."""
        figures: dict[str, Any] = {name: round(statistics.median(values), 3) for name, values in self._ratios.items()}
        return {
            **figures,
            "edit_vs_llama_server": figures.get("edit_vs_llama_server_c1"),
            "joules_per_token_ratio_edit": figures.get("edit_joules_c1"),
            "mismatches": self._mismatches,
            "near_ties": self._near_ties,
        }

    def _keep(self, name: str, value: float) -> None:
        self._ratios[name].append(value)

    def _timed(self, engine: Engine, prompts: list[str], task: Task) -> tuple[list[Answer], float]:
        """(answers, computing time of a token)."""
        began_s = engine.cpu_s()
        sampling = Sampling(temperature=task.temperature, seed=1)
        answers = engine.answer(prompts, tokens=self._tokens, schema=task.schema, sampling=sampling)
        return answers, (engine.cpu_s() - began_s) / sum(answer.decoded for answer in answers)

    def _compare(self, prompts: list[str], plain: list[Answer], guessed: list[Answer]) -> None:
        differing = [each for each in zip(prompts, plain, guessed, strict=True) if each[1].text != each[2].text]
        if not differing:
            return
        with Engine(self._engines["off"]) as engine:
            assert isinstance(engine, Engine)
            for prompt, one, other in differing:
                is_near = _gap(engine, prompt, one, other) <= _NEAR_TIE
                self._near_ties += is_near
                self._mismatches += not is_near


def _together(answers: list[Answer]) -> float:
    """Tokens per second of all answers together, from the first token of any to the last."""
    began_s, ended_s = min(answer.at_s[0] for answer in answers), max(answer.at_s[-1] for answer in answers)
    return sum(answer.decoded - 1 for answer in answers) / max(ended_s - began_s, 1e-9)


def _from_the_asking(answers: list[Answer]) -> float:
    """The same with the time in which prompts are read before any token comes."""
    took_s = max(answer.at_s[-1] for answer in answers) - min(answer.asked_at_s for answer in answers)
    return sum(answer.decoded for answer in answers) / took_s


def _told(answers: list[Answer]) -> str:
    """What came of guesses, in words."""
    decoded, drafted, accepted = (
        sum(getattr(answer, name) for answer in answers) for name in ("decoded", "drafted", "accepted")
    )
    by_model = sum(answer.model_drafted for answer in answers), sum(answer.model_accepted for answer in answers)
    told = f"{decoded} tokens, {decoded / (decoded - accepted):.2f} a step, {accepted} of {drafted} guesses right"
    return f"{told}, of those by the draft model {by_model[1]} of {by_model[0]}" if by_model[0] else told


def _effort(answers: list[Answer]) -> float:
    """Simulated joules of a token beside one that has a step of its own."""
    decoded = sum(answer.decoded for answer in answers)
    steps = sum(answer.decoded - answer.accepted for answer in answers)
    return (steps + DEFAULT_PREFILL_WEIGHT * sum(answer.drafted for answer in answers)) / decoded


def _gap(engine: Engine, prompt: str, one: Answer, other: Answer) -> float:
    """By how much the model prefers one of the two tokens where two answers part that are not the same."""
    own, others = [piece.text for piece in one.pieces], [piece.text for piece in other.pieces]
    at = next((at for at, (a, b) in enumerate(zip(own, others, strict=False)) if a != b), min(len(own), len(others)))
    (asked,) = engine.answer([prompt + "".join(own[:at])], tokens=1, schema=None, logprobs=20)
    if not asked.pieces:
        return float("inf")
    likely = {each.text: each.logprob for each in asked.pieces[0].alternatives}
    found = [likely.get(pieces[at]) for pieces in (own, others) if at < len(pieces)]
    return abs(found[0] - found[1]) if len(found) == 2 and None not in found else float("inf")  # type: ignore[operator]


if __name__ == "__main__":
    main()
