"""The outcomes file that a collection writes: one line per question, appended whole, repaired after a crash.

A line is a row of `train-gate --outcomes` (`id`, `prompt`, labels, `score__MODEL`, `chars__MODEL`, the final answer as
`answer__MODEL`, where the options of a choice were scored as well `scoring__MODEL`, and the file's SHA-256 as
`file__MODEL`) with one key more: `experts` maps each expert's key to what its answer scored and took. Where several
experts serve one model, the model's scores are their means.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from moe2.common.errors import Moe2Error
from moe2.common.statefile import append_line, replace_file
from moe2.coordinator.training.collect.questions import Question

_MODE = 0o644


class OutfileError(Moe2Error):
    """The outcomes file cannot be continued."""


class ScoredChoices(msgspec.Struct, frozen=True, kw_only=True):
    """What one expert made of a question's options when it scored them instead of writing an answer."""

    score: float
    """1 where the right option was the likeliest, else 0."""
    seconds: float | None = None
    """Seconds of the request, as the coordinator saw it."""
    joules: float | None = None
    """Joules of the request; None where nobody measured them."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One expert's answer to one question."""

    model: str
    """The name that the model's scores are kept under, as of `LiveExpert.column`."""
    score: float
    """From 0 for wrong to 1 for right."""
    chars: int
    """Characters of the answer."""
    tokens: int | None
    """Tokens of the answer."""
    seconds: float | None
    """Seconds from the request's arrival to its end, as the coordinator saw it."""
    joules: float | None
    """Joules of the request; None where nobody measured them."""
    energy_quality: str | None
    """How the joules were obtained."""
    answer: str | None = None
    """The final answer in its normal form, as `said` finds it; None where it says nothing, or nobody looked for it."""
    by_scoring: ScoredChoices | None = None
    """The same question answered by scoring its options; None where it has none, or they could not be scored."""
    file_sha256: str | None = None
    """What the model's file was; None where nobody knew it yet."""

    @property
    def joules_of_requests(self) -> list[float | None]:
        """Joules of each request that was made for the answer: to write it, and to score options where there are."""
        return [self.joules, *([self.by_scoring.joules] if self.by_scoring else [])]


class Outfile:
    """The answers that were collected so far, by question, and the file that holds them.

    Raises OutfileError where the file is no outcomes file of `collect`.
    """

    def __init__(self, path: Path) -> None:
        # Of a symbolic link the target is written to; the link is not replaced.
        self.path = path.resolve()
        self.repaired = False
        """True where a cut-off last line was dropped when the file was opened."""
        self._rows: dict[str, dict[str, Any]] = {}
        self._amended = False
        if path.exists():
            self._read()

    def answers(self, question: Question) -> dict[str, Answered]:
        """The answers to a question by expert key. Raises OutfileError where its id stands for another prompt."""
        row = self._rows.get(question.id)
        if row is None:
            return {}
        if row.get("prompt") != question.asked:
            raise OutfileError(
                f"{self.path} holds question {question.id!r} with another prompt.",
                remedy="Choose another --out for another question set.",
            )
        return msgspec.convert(row.get("experts", {}), dict[str, Answered])

    def answer(self, question: Question, expert_key: str, file_sha256: str | None) -> Answered | None:
        """An expert's answer to a question; None where it has given none, or it was another file that gave it.

        Raises OutfileError as `answers` does.
        """
        found = self.answers(question).get(expert_key)
        if found is None or None in (found.file_sha256, file_sha256) or found.file_sha256 == file_sha256:
            return found
        return None

    def put(self, question: Question, answers: Mapping[str, Answered]) -> None:
        """Keep a question's answers: a new question is appended at once, a changed one is written by `flush`.

        Raises OSError where a new question cannot be written; it may be put again.
        """
        row = _row(question, answers)
        if question.id in self._rows:
            self._amended = True
        else:
            append_line(self.path, msgspec.json.encode(row), mode=_MODE)
        self._rows[question.id] = row

    def flush(self) -> None:
        """Write changed questions; the file is replaced as a whole or not at all. Raises OSError."""
        if self._amended:
            self._rewrite()
            self._amended = False

    def _read(self) -> None:
        content = self.path.read_bytes()
        lines = content.split(b"\n")
        # Whole lines end with a newline, so that the last part is empty unless a write was cut off.
        tail = lines.pop()
        for number, line in enumerate(lines, start=1):
            try:
                row = msgspec.json.decode(line, type=dict[str, Any])
                identity = str(row["id"])
                msgspec.convert(row.get("experts", {}), dict[str, Answered])
            except (msgspec.DecodeError, msgspec.ValidationError, KeyError, UnicodeDecodeError) as error:
                raise OutfileError(
                    f"{self.path}, line {number}: not a line that `collect` wrote ({error}).",
                    remedy="Mend or remove the line, or choose another --out.",
                ) from error
            self._rows[identity] = row
        if tail:
            self.repaired = True
            self._rewrite()

    def _rewrite(self) -> None:
        replace_file(self.path, msgspec.json.Encoder().encode_lines(self._rows.values()), mode=_MODE)


def _row(question: Question, answers: Mapping[str, Answered]) -> dict[str, Any]:
    row: dict[str, Any] = {"id": question.id, "prompt": question.asked, **dict(question.labels)}
    for model in sorted({answer.model for answer in answers.values()}):
        own = [answers[key] for key in sorted(answers) if answers[key].model == model]
        row[f"score__{model}"] = sum(answer.score for answer in own) / len(own)
        row[f"chars__{model}"] = sum(answer.chars for answer in own) / len(own)
        # Of several experts of one model the first stands for it: answers have no mean.
        if own[0].answer is not None:
            row[f"answer__{model}"] = own[0].answer
        files = {answer.file_sha256 for answer in own}
        if len(files) == 1 and (file := files.pop()) is not None:
            row[f"file__{model}"] = file
        by_scoring = [answer.by_scoring.score for answer in own if answer.by_scoring is not None]
        if by_scoring:
            row[f"scoring__{model}"] = sum(by_scoring) / len(by_scoring)
    row["experts"] = {key: msgspec.to_builtins(answers[key]) for key in sorted(answers)}
    return row
