"""Strict tools of a model whose calls have a channel of their own, as gpt-oss's have."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from moe2.agent.engine.batch import Chunk, Lanes
from moe2.agent.engine.callform import HARMONY as FORM
from moe2.agent.engine.callform import Caller
from moe2.agent.engine.distribution import Logits
from moe2.agent.engine.drawing import Drawing, Reasoning
from moe2.agent.engine.matched import MatchedDraw
from moe2.agent.engine.structure.constraint import Constraint, constraint_of
from moe2.agent.engine.structure.matcher import Compiler, Matcher, Vocabulary
from moe2.agent.engine.thinking import HARMONY, Thinker
from moe2.agent.engine.writing import Means
from moe2.common.generation import ToolRules
from moe2.common.link.messages import ChatMessage, ChatPrompt, Submit, Tool

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>")
PLACES = {mark: 256 + nth for nth, mark in enumerate(MARKS)}
ENDS = (PLACES["<|call|>"], PLACES["<|return|>"])
N_TOKENS = 256 + len(MARKS)
COMPILER = Compiler(Vocabulary(texts=(*(bytes([byte]) for byte in range(256)), *(b"" for _ in MARKS)), ends=ENDS))
CALLER = Caller(FORM, {mark: PLACES[mark] for mark in FORM.controls})
TOOLS = tuple(
    Tool(name=name, parameters=json.dumps({"type": "object", "properties": {key: {"type": kind}}, "required": [key]}))
    for name, key, kind in (("rain", "day", "integer"), ("time.now", "zone", "string"), ("free", "x", "integer"))
)
HEADER = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"
THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"


class Alphabet:
    """Bytes and gpt-oss's marks."""

    bos = ""
    control_texts = MARKS

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return tokens_of(text)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def special_text(self, token: int) -> str:
        return MARKS[token - 256] if token >= 256 else ""

    def is_end(self, token: int) -> bool:
        return token in ENDS


def tokens_of(text: str) -> list[int]:
    found: list[int] = []
    while text:
        mark = next((mark for mark in MARKS if text.startswith(mark)), None)
        found += [PLACES[mark]] if mark else list(text[0].encode())
        text = text[len(mark or text[0]) :]
    return found


class Wishes:
    """A model that wants to write a text: its next token if that is allowed, else the likeliest of the others."""

    def __init__(self, text: str) -> None:
        self.wanted = deque(tokens_of(text))
        self.refused: list[int] = []

    def logits(self, place: int) -> Logits:
        # Closing quotes, brackets and ends are what it writes where it cannot have its way.
        logits = np.zeros(N_TOKENS, np.float32)
        logits[ENDS[0]] = 3
        logits[ord("}")] = 2
        logits[ord("1")] = 1
        if self.wanted:
            logits[self.wanted.popleft()] = 9
        return logits

    def sample_among(self, logits: Logits, allowed: npt.NDArray[np.intp]) -> int:
        wanted = int(logits.argmax())
        if wanted not in allowed:
            self.refused.append(wanted)
        return int(allowed[logits[allowed].argmax()])

    def take(self, token: int) -> None: ...

    def close(self) -> None: ...


class Slow:
    """A matcher whose answer is there at every other look, as that of a process of its own."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._looks = 0

    @property
    def is_ready(self) -> bool:
        self._looks += 1
        return self._looks % 2 == 0

    def mask(self) -> bytes | None:
        return self._matcher.mask()

    def accept(self, *tokens: int) -> None:
        for token in tokens:
            self._matcher.accept(token)

    def forced(self) -> bytes:
        return self._matcher.forced()

    def look_ahead(self, tokens: Sequence[int]) -> None: ...

    def close(self) -> None: ...


def asked(**form: str) -> Submit:
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="?"),), tools=TOOLS)
    rules = ToolRules(strict=("rain", "time.now"))
    return Submit(job_id="j", request_id="r", model="m", prompt=prompt, tool_rules=rules, **form)  # type: ignore[arg-type]


def written(text: str, **form: str) -> tuple[str, list[int]]:
    """What a model writes that wants to write a text, and the tokens that it was refused."""
    request = asked(**form)
    constraint = constraint_of(request, CALLER)
    assert isinstance(constraint, Constraint)
    assert constraint.calls is not None
    model = Wishes(text)
    draw = MatchedDraw(
        model,
        model,
        Slow(COMPILER.compile(constraint)),
        constraint.calls.selectors,
        freely=lambda place: int(model.logits(place).argmax()),
        spelling=Alphabet(),
    )
    lanes = Lanes(lanes=4, cells=4096, cuts_anywhere=True)
    means = Means(Alphabet(), model.logits, lanes, 4096)
    reasoning = Reasoning(Thinker.of(HARMONY, tokens_of), bound=draw)
    job = Drawing(request, [1], means, cells=4096, queued_at_s=0.0, draw=draw, reasoning=reasoning)
    placed = lanes.place([1], reserve=4096, logits_from=0)
    assert placed is not None
    run, said = placed[0], ""
    while job.reason is None:
        chunk = Chunk(run.lane, run.filled, run.tokens[run.filled :], 0)
        run.filled = len(run.tokens)
        job.take(run, chunk, 0)
        while len(run.tokens) == run.filled and job.reason is None:
            job.resume()
        said += "".join(piece.text for piece in job.pieces() if not piece.is_reasoning)
    said += "".join(piece.text for piece in job.pieces() if not piece.is_reasoning)
    return said, model.refused


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize("thought", ["", THOUGHT])
@pytest.mark.parametrize(("name", "arguments"), [("rain", '{"day": 1}'), ("time.now", '{"zone": "UTC"}')])
def test_a_strict_call_that_follows_its_schema_is_written_as_the_model_wants(
    name: str, arguments: str, thought: str
) -> None:
    """Nothing stands in its way, with reasoning before it and without; the call ends the answer."""
    said, refused = written(thought + HEADER.format(name) + arguments + "<|call|>")
    assert said == call(name, arguments)
    assert refused == []


def test_a_strict_call_cannot_leave_its_schema() -> None:
    """Where the model wants a text for a number, it has to write a number."""
    said, refused = written(THOUGHT + HEADER.format("rain") + '{"day": "x"}<|call|>')
    assert json.loads(said.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))["name"] == "rain"
    assert isinstance(json.loads(said[11:-13])["arguments"]["day"], int)
    assert refused[0] == ord('"')


def test_a_call_of_a_tool_that_is_not_strict_is_free() -> None:
    """As is one of a tool that nobody has offered: what reads the answer judges it."""
    for name in ("free", "nobody"):
        said, refused = written(HEADER.format(name) + '{"x": "y"}<|call|>')
        assert said == call(name, '{"x": "y"}')
        assert refused == []


def test_an_answer_beside_strict_tools_is_free_and_cannot_select_a_tool() -> None:
    """What is no call is text; the tokens that stand for a tool are none that the model may write there."""
    final = "<|channel|>final<|message|>"
    assert written(THOUGHT + final + 'It "rains".<|return|>') == ('It "rains".', [])
    said, refused = written(final + "<|channel|>a<|return|>")
    assert refused[0] == PLACES["<|channel|>"]
    assert "<|" not in said


def test_an_answer_with_a_form_beside_strict_tools_keeps_to_it() -> None:
    """`response_format` holds in the answer, and a tool's schema in a call."""
    form = {"json_schema": '{"type": "integer"}'}
    assert written("<|channel|>final<|message|>17<|return|>", **form) == ("17", [])
    assert written("<|channel|>final<|message|>x17<|return|>", **form)[1][0] == ord("x")
    assert written(HEADER.format("rain") + '{"day": 2}<|call|>', **form) == (call("rain", '{"day": 2}'), [])


class Counting:
    """A sampler that takes the first token that is allowed, and remembers how many there were."""

    def __init__(self) -> None:
        self.choices: list[int] = []
        self.taken: list[int] = []

    def logits(self, place: int) -> Logits:
        return np.zeros(N_TOKENS, np.float32)

    def sample_among(self, logits: Logits, allowed: npt.NDArray[np.intp]) -> int:
        self.choices.append(len(allowed))
        return int(allowed[0])

    def take(self, token: int) -> None:
        self.taken.append(token)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("grammar", "text", "choices"),
    [
        ('root ::= ("a" | "b") "cdef" [x-z]', "acdefx", [2, 1, 3]),
        ('root ::= "abc"', "abc", [1]),
        ("root ::= [ab] [cd]", "ac", [2, 2]),
        ('root ::= "ä" [xy] "öü"', "äxöü", None),
    ],
)
def test_a_text_without_a_choice_is_not_drawn(grammar: str, text: str, choices: list[int] | None) -> None:
    """But for its last token, which may be the beginning of a longer one; penalties know of it nevertheless."""
    sampler = Counting()
    matcher = Slow(COMPILER.compile(Constraint(syntax="gbnf", source=grammar)))
    draw = MatchedDraw(sampler, sampler, matcher, {}, freely=lambda place: 0, spelling=Alphabet())
    written = []
    while len(written) < len(text.encode()):
        while not draw.is_ready:
            pass
        token = draw.sample(0)
        assert token is not None
        written.append(token)
    assert bytes(written) == text.encode()
    assert choices is None or sampler.choices == choices
    assert len(sampler.choices) + len(sampler.taken) == len(written)
