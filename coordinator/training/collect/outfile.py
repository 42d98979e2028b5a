"""The outcomes file that a collection writes: one line per question, appended whole, repaired after a crash.

A line is a row of `train-gate --outcomes` (`id`, `prompt`, labels, `score__MODEL`, `chars__MODEL`) with one key more:
`experts` maps each expert's key to what its answer scored and took. Where several experts serve one model, the model's
score is their mean.
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
    """An outcomes file that cannot be continued."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One expert's answer to one question.

    score: 0..1. chars, tokens: of the answer. seconds: from the request's arrival to its end, as the coordinator saw
    it. joules: None where nobody measured them; energy_quality says how they were obtained.
    """

    model: str
    score: float
    chars: int
    tokens: int | None
    seconds: float | None
    joules: float | None
    energy_quality: str | None


class Outfile:
    """What was collected so far, by question; and the file that holds it.

    repaired: a cut-off last line was dropped when it was opened.
    """

    def __init__(self, path: Path) -> None:
        # A link's target is written to, not the link replaced.
        self.path = path.resolve()
        self.repaired = False
        self._rows: dict[str, dict[str, Any]] = {}
        self._amended = False
        if path.exists():
            self._read()

    def answers(self, question: Question) -> dict[str, Answered]:
        """What is known of a question, by expert. Raises OutfileError where its id stands for another prompt."""
        row = self._rows.get(question.id)
        if row is None:
            return {}
        if row.get("prompt") != question.asked:
            raise OutfileError(
                f"{self.path} holds question {question.id!r} with another prompt.",
                remedy="Choose another --out for another question set.",
            )
        return msgspec.convert(row.get("experts", {}), dict[str, Answered])

    def put(self, question: Question, answers: Mapping[str, Answered]) -> None:
        """Keep a question's answers: a new one is appended at once, an amended one written by `flush`.

        Raises OSError if a new one cannot be kept; it may be put again.
        """
        row = _row(question, answers)
        if question.id in self._rows:
            self._amended = True
        else:
            append_line(self.path, msgspec.json.encode(row), mode=_MODE)
        self._rows[question.id] = row

    def flush(self) -> None:
        """Write amended questions: the file is replaced as a whole, or not at all. Raises OSError."""
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
        own = [answer for answer in answers.values() if answer.model == model]
        row[f"score__{model}"] = sum(answer.score for answer in own) / len(own)
        row[f"chars__{model}"] = sum(answer.chars for answer in own) / len(own)
    row["experts"] = {key: msgspec.to_builtins(answers[key]) for key in sorted(answers)}
    return row
