"""A model that wants to write a given text, drawn as the engine draws."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.agent.engine.calls.forms import Caller
from moe2.agent.engine.calls.translator import CallTranslator
from moe2.agent.engine.decoding.batch import Chunk, Lanes
from moe2.agent.engine.decoding.distribution import Logits
from moe2.agent.engine.decoding.drawing import Calling, Draw, Drawing, Reasoning
from moe2.agent.engine.decoding.matched import MatchedDraw
from moe2.agent.engine.decoding.writing import Means
from moe2.agent.engine.prompt.thinking import Marks, Thinker
from moe2.agent.engine.structure.constraint import constraint_of
from moe2.agent.engine.structure.matcher import Compiler, Matcher, Vocabulary
from moe2.common.link.messages import Submit, TokenPiece
from moe2.common.link.prompts import ChatPrompt

N_BYTES = 256


class Alphabet:
    """A vocabulary of bytes, with marks as control tokens behind them. ends: those of the marks that end an answer."""

    bos = ""
    infill_marks: tuple[int, int, int] | None = None

    def __init__(self, marks: Sequence[str], ends: Sequence[str]) -> None:
        self.control_texts = tuple(marks)
        self.places = {mark: N_BYTES + nth for nth, mark in enumerate(marks)}
        self.ends = tuple(self.places[mark] for mark in ends)

    def tokens_of(self, text: str) -> list[int]:
        """A text's tokens, marks among them."""
        found: list[int] = []
        while text:
            mark = next((mark for mark in self.control_texts if text.startswith(mark)), None)
            found += [self.places[mark]] if mark else list(text[0].encode())
            text = text[len(mark or text[0]) :]
        return found

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self.tokens_of(text)

    def piece(self, token: int) -> bytes:
        return bytes([token]) if token < N_BYTES else b""

    def special_text(self, token: int) -> str:
        return self.control_texts[token - N_BYTES] if token >= N_BYTES else ""

    def is_end(self, token: int) -> bool:
        return token in self.ends

    def compiler(self) -> Compiler:
        """What compiles forms for this vocabulary."""
        texts = (*(bytes([byte]) for byte in range(N_BYTES)), *(b"" for _ in self.control_texts))
        return Compiler(Vocabulary(texts=texts, ends=self.ends))


class Wishes:
    """The model: wants its next token, else an end, a bracket or a figure."""

    def __init__(self, alphabet: Alphabet, text: str) -> None:
        self._alphabet = alphabet
        self._wanted = deque(alphabet.tokens_of(text))
        self.refused: list[int] = []

    def logits(self, place: int) -> Logits:
        logits = np.zeros(N_BYTES + len(self._alphabet.control_texts), np.float32)
        logits[self._alphabet.ends[0]] = 3
        logits[ord("}")] = 2
        logits[ord("1")] = 1
        if self._wanted:
            logits[self._wanted[0]] = 9
        return logits

    def sample(self, place: int) -> int:
        """What it wants most."""
        token = int(self.logits(place).argmax())
        self._go_on()
        return token

    def sample_among(self, logits: Logits, allowed: npt.NDArray[np.intp]) -> int:
        wanted = int(logits.argmax())
        if wanted not in allowed:
            self.refused.append(wanted)
        self._go_on()
        return int(allowed[logits[allowed].argmax()])

    def take(self, token: int) -> None:
        # Nobody asks what the model says where there is no choice.
        self._go_on()

    def _go_on(self) -> None:
        if self._wanted:
            self._wanted.popleft()

    def close(self) -> None: ...


class _Free:
    is_ready = True

    def __init__(self, model: Wishes) -> None:
        self._model = model

    def sample(self, place: int) -> int:
        return self._model.sample(place)

    def sample_kept(self, logits: Logits) -> int:
        raise AssertionError("a free draw is always ready")

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

    def wait(self, seconds: float) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Written:
    """What came of a wish. refused: tokens that the model wanted and could not have."""

    answer: str
    thought: str
    refused: list[int]
    reasoning_tokens: int
    pieces: list[TokenPiece]
    decoded_tokens: int


def written(
    alphabet: Alphabet, request: Submit, text: str, *, caller: Caller, marks: Marks | None = None, begun: str = ""
) -> Written:
    """Draws an answer of a model that wants to write `text`. begun: what its template has written of the answer."""
    model = Wishes(alphabet, text)
    constraint = constraint_of(request, caller)
    draw: Draw = _Free(model)
    bound = None
    if constraint is not None:
        draw = bound = MatchedDraw(
            model,
            model,
            Slow(alphabet.compiler().compile(constraint)),
            constraint.calls.selectors if constraint.calls else {},
            freely=model.sample,
            spelling=alphabet,
        )
    reasoning = None
    if marks is not None:
        thinker = Thinker.of(marks, alphabet.tokens_of)
        reasoning = Reasoning(thinker, begun, bound, request.thinking_budget_tokens)
    calling = None
    if isinstance(request.prompt, ChatPrompt) and request.prompt.tools and not caller.is_read_as_it_stands:
        calling = Calling(CallTranslator(caller.form, request.prompt.tools), caller.spelled())
    lanes = Lanes(lanes=4, cells=4096, cuts_anywhere=True)
    means = Means(alphabet, model.logits, lanes, 4096)
    job = Drawing(request, [1], means, cells=4096, queued_at_s=0.0, draw=draw, reasoning=reasoning, calling=calling)
    placed = lanes.place([1], reserve=4096, logits_from=0)
    assert placed is not None
    run, pieces = placed[0], list[TokenPiece]()
    while job.reason is None:
        chunk = Chunk(run.lane, run.filled, run.tokens[run.filled :], 0)
        run.filled = len(run.tokens)
        job.take(run, chunk, 0)
        while len(run.tokens) == run.filled and job.reason is None:
            job.resume()
        pieces += job.pieces()
    pieces += job.pieces()
    said = {kind: "".join(piece.text for piece in pieces if piece.is_reasoning is kind) for kind in (False, True)}
    return Written(said[False], said[True], model.refused, job.reasoning_tokens, pieces, job.decoded_tokens)
