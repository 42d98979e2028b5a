"""Outcomes: tables of how well each expert answered each prompt, read from Parquet or JSON lines and checked.

One row is one prompt. `read_outcomes` reads a file into an `Outcomes` table; below it are the checks of its columns and
`read_columns`, the reader of both formats, which question sets use as well.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

SPLITS = ("train", "val", "test")
MIN_ROWS = {"train": 20, "val": 10}
"""The fewest rows of a split from which a gate is trained."""
LABEL_COLUMNS = ("source", "benchmark", "domain")


class OutcomesError(Moe2Error):
    """An outcomes file cannot be used; the message names the file, the line (or row) and the column."""


@dataclass(frozen=True)
class Outcomes:
    """A table of outcomes; every sequence but `experts` has one entry per row."""

    experts: tuple[str, ...]
    """Names of the experts, in the order of the columns of `scores`."""
    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    splits: tuple[str, ...]
    """"train", "val" or "test"."""
    sources: tuple[str, ...]
    """Name of the source of each row; empty where unknown."""
    tasks: tuple[str, ...]
    """Benchmark and domain of each row; empty where unknown."""
    scores: FloatArray
    """(rows, experts) 0..1; NaN marks an expert that was not run, never a measured value."""
    chars: FloatArray
    """(rows, experts) characters of the answers; NaN where unknown."""
    answers: tuple[tuple[str | None, ...], ...] | None = None
    """By row and expert the final answer; None where it gave none, or where it is unknown. None without any column of
    answers."""
    by_scoring: FloatArray | None = None
    """(rows, experts) 0..1 the scores of choosing an option by its likelihood, as a vote does; NaN where not asked so.
    None without any column of them."""
    digest: str = field(default="")
    """SHA-256 of the file that the rows came from."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the file that an expert was, by its name, where all of its rows that tell one tell the same."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """The row numbers of one split, ascending."""
        return np.flatnonzero(np.array([value == split for value in self.splits], dtype=bool))

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Outcomes:
        """A table of the given rows alone, in the given order."""
        chosen = [int(row) for row in rows]
        return Outcomes(
            experts=self.experts,
            ids=tuple(self.ids[row] for row in chosen),
            prompts=tuple(self.prompts[row] for row in chosen),
            splits=tuple(self.splits[row] for row in chosen),
            sources=tuple(self.sources[row] for row in chosen),
            tasks=tuple(self.tasks[row] for row in chosen),
            scores=self.scores[chosen],
            chars=self.chars[chosen],
            answers=None if self.answers is None else tuple(self.answers[row] for row in chosen),
            by_scoring=None if self.by_scoring is None else self.by_scoring[chosen],
            digest=self.digest,
            files=self.files,
        )

    def with_experts(self, experts: Sequence[str]) -> Outcomes:
        """A table of the given experts alone, in the given order. Raises OutcomesError for an unknown one."""
        unknown = [name for name in experts if name not in self.experts]
        if unknown:
            raise OutcomesError(
                f"The outcomes hold no scores of {', '.join(unknown)}.",
                remedy=f"They hold: {', '.join(self.experts) or 'no expert at all'}.",
            )
        if len(set(experts)) != len(experts):
            raise OutcomesError("An expert is named twice.", remedy="Name each expert once.")
        columns = [self.experts.index(name) for name in experts]
        return Outcomes(
            experts=tuple(experts),
            ids=self.ids,
            prompts=self.prompts,
            splits=self.splits,
            sources=self.sources,
            tasks=self.tasks,
            scores=self.scores[:, columns],
            chars=self.chars[:, columns],
            answers=_columns_of(self.answers, columns),
            by_scoring=None if self.by_scoring is None else self.by_scoring[:, columns],
            digest=self.digest,
            files={name: self.files[name] for name in experts if name in self.files},
        )

    def from_source(self, source: str) -> Outcomes:
        """Returns a table of one source's rows and of the experts that were run on them.

        Raises OutcomesError for an unknown source.
        """
        rows = [row for row, value in enumerate(self.sources) if value == source]
        if not rows:
            known = ", ".join(sorted(set(self.sources) - {""})) or "none"
            raise OutcomesError(f"The outcomes have no rows of source {source!r}.", remedy=f"Sources: {known}.")
        table = self.take(rows)
        run = [name for n, name in enumerate(self.experts) if not np.isnan(table.scores[:, n]).all()]
        return table.with_experts(run)


def read_outcomes(path: Path) -> Outcomes:
    """Read an outcomes file: Parquet (.parquet) or JSON lines (.jsonl, .ndjson).

    Raises OutcomesError, which names line and column, for anything that cannot be used.
    """
    columns, unit = read_columns(path, "outcomes")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return outcomes_from_columns(columns, place=str(path), unit=unit, digest=digest)


def outcomes_from_columns(
    columns: dict[str, Sequence[object]], *, place: str, unit: str = "row", digest: str = ""
) -> Outcomes:
    """Check columns of raw values and put them together as a table.

    columns: by name one value per row, None where empty; all of one length. place, unit: what errors call the file and
    a row, such as "line". Raises OutcomesError.
    """
    if "prompt" not in columns:
        raise OutcomesError(f"{place} has no column 'prompt'.", remedy=f"Its columns: {', '.join(columns) or 'none'}.")
    size = len(columns["prompt"])
    if size == 0:
        raise OutcomesError(f"{place} has no rows.", remedy="Collect outcomes first.")
    check = _Checker(place, unit)
    scored = {name[7:]: name for name in columns if name.startswith("score__")}
    lost = {name[6:]: name for name in columns if name.startswith("loss__")}
    both = sorted(set(scored) & set(lost))
    if both:
        raise OutcomesError(f"{place} has both a score and a loss of {both[0]}.", remedy="Keep one of the two columns.")
    experts = tuple(sorted((*scored, *lost)))
    if not experts:
        raise OutcomesError(f"{place} has no column 'score__NAME' or 'loss__NAME'.", remedy="Add one per expert.")
    if not all(name.strip() for name in experts):
        raise OutcomesError(f"{place} has scores of an expert without a name.", remedy="Name it: 'score__NAME'.")
    scores = np.full((size, len(experts)), np.nan)
    chars = np.full((size, len(experts)), np.nan)
    for n, name in enumerate(experts):
        if name in scored:
            scores[:, n] = check.numbers(columns[scored[name]], scored[name], 0.0, 1.0)
        else:
            scores[:, n] = np.exp(-check.numbers(columns[lost[name]], lost[name], 0.0, np.inf))
        if f"chars__{name}" in columns:
            chars[:, n] = check.numbers(columns[f"chars__{name}"], f"chars__{name}", 0.0, np.inf)
    ids = check.texts(columns["id"], "id") if "id" in columns else tuple(str(row) for row in range(1, size + 1))
    check.unique(ids)
    labels = {name: check.labels(columns.get(name, (None,) * size), name) for name in LABEL_COLUMNS}
    tasks = tuple(
        "/".join(part for part in (benchmark, domain) if part)
        for benchmark, domain in zip(labels["benchmark"], labels["domain"], strict=True)
    )
    splits = check.splits(columns["split"], ids) if "split" in columns else tuple(split_of(name) for name in ids)
    prompts = check.texts(columns["prompt"], "prompt")
    answers = _answers(check, columns, experts)
    by_scoring = _by_scoring(check, columns, experts)
    files = _files(check, columns, experts)
    return Outcomes(
        experts, ids, prompts, splits, labels["source"], tasks, scores, chars, answers, by_scoring, digest, files
    )


def _files(check: _Checker, columns: dict[str, Sequence[object]], experts: Sequence[str]) -> dict[str, str]:
    """The checksums of the experts' files by name; one whose rows are of several files has none."""
    found = {}
    for name in experts:
        column = f"file__{name}"
        told = {text.lower() for text in check.optional_texts(columns.get(column, ()), column) if text is not None}
        if len(told) == 1:
            found[name] = told.pop()
    return found


def _by_scoring(check: _Checker, columns: dict[str, Sequence[object]], experts: Sequence[str]) -> FloatArray | None:
    """(rows, experts) the scores by scoring options; None where no expert has a column of them."""
    named = [f"scoring__{name}" for name in experts]
    if not any(name in columns for name in named):
        return None
    nothing = np.full(len(columns["prompt"]), np.nan)
    found = [check.numbers(columns[name], name, 0.0, 1.0) if name in columns else nothing for name in named]
    return np.stack(found, axis=1)


def _answers(
    check: _Checker, columns: dict[str, Sequence[object]], experts: Sequence[str]
) -> tuple[tuple[str | None, ...], ...] | None:
    """The final answers by row and expert; None where no expert has a column of them."""
    size = len(columns["prompt"])
    nothing: tuple[str | None, ...] = (None,) * size
    named = [f"answer__{name}" for name in experts]
    if not any(name in columns for name in named):
        return None
    by_expert = [check.optional_texts(columns[name], name) if name in columns else nothing for name in named]
    return tuple(zip(*by_expert, strict=True))


def _columns_of(
    answers: tuple[tuple[str | None, ...], ...] | None, columns: Sequence[int]
) -> tuple[tuple[str | None, ...], ...] | None:
    return None if answers is None else tuple(tuple(row[n] for n in columns) for row in answers)


def split_of(row_id: str) -> str:
    """The split of a row that names none, from a hash of its id: 80 % train, 10 % val, 10 % test."""
    share = zlib.crc32(row_id.encode("utf-8", "replace")) % 10
    return "val" if share == 8 else "test" if share == 9 else "train"


class _Checker:
    """Turns raw columns into typed ones; every error names the file, the row and the column."""

    def __init__(self, place: str, unit: str) -> None:
        self._place = place
        self._unit = unit

    def fault(self, row: int, column: str, what: str) -> OutcomesError:
        return OutcomesError(f"{self._place}, {self._unit} {row + 1}, column '{column}': {what}.")

    def numbers(self, values: Sequence[object], column: str, low: float, high: float) -> FloatArray:
        result = np.full(len(values), np.nan)
        for row, value in enumerate(values):
            if value is None:
                continue
            if isinstance(value, bool):
                value = float(value)
            if not isinstance(value, int | float):
                raise self.fault(row, column, f"{value!r} is not a number (leave it empty where it is unknown)")
            if value != value or value in (float("inf"), float("-inf")):
                raise self.fault(row, column, f"{value} is not a finite number (leave it empty where it is unknown)")
            if not low <= value <= high:
                limits = f"within {low:g}..{high:g}" if high != np.inf else f"at least {low:g}"
                raise self.fault(row, column, f"{value} is not {limits}")
            result[row] = value
        return result

    def texts(self, values: Sequence[object], column: str) -> tuple[str, ...]:
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise self.fault(row, column, "it is empty" if value is None else f"{value!r} is not text")
            if not value.strip():
                raise self.fault(row, column, "it is empty")
        return tuple(str(value) for value in values)

    def labels(self, values: Sequence[object], column: str) -> tuple[str, ...]:
        for row, value in enumerate(values):
            if value is not None and not isinstance(value, str):
                raise self.fault(row, column, f"{value!r} is not text")
        return tuple("" if value is None else str(value) for value in values)

    def optional_texts(self, values: Sequence[object], column: str) -> tuple[str | None, ...]:
        for row, value in enumerate(values):
            if value is not None and not isinstance(value, str):
                raise self.fault(row, column, f"{value!r} is not text (leave it empty where there was no answer)")
        return tuple(str(value) if value else None for value in values)

    def splits(self, values: Sequence[object], ids: Sequence[str]) -> tuple[str, ...]:
        result = []
        for row, value in enumerate(values):
            if value is not None and value not in SPLITS:
                raise self.fault(row, "split", f"{value!r} is none of {', '.join(SPLITS)}")
            result.append(split_of(ids[row]) if value is None else str(value))
        return tuple(result)

    def unique(self, ids: Sequence[str]) -> None:
        first: dict[str, int] = {}
        for row, name in enumerate(ids):
            if name in first:
                raise self.fault(row, "id", f"{name!r} was already used in {self._unit} {first[name] + 1}")
            first[name] = row


def read_columns(path: Path, content: str) -> tuple[dict[str, Sequence[object]], str]:
    """Read a table: its columns by name, with None where empty, and what its rows are called, such as "line".

    path: Parquet (.parquet) or JSON lines (.jsonl, .ndjson). content: what errors call it, such as "outcomes". Raises
    OutcomesError, which names the line where it can.
    """
    if not path.is_file():
        raise OutcomesError(f"There is no {content} file {path}.", remedy="Give a .parquet or .jsonl file.")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    raise OutcomesError(f"{path} is neither .parquet nor .jsonl.", remedy="Convert it to one of the two.")


def _read_jsonl(path: Path) -> tuple[dict[str, Sequence[object]], str]:
    """Read a JSON lines file: its columns, and "line" as what its rows are called.

    Raises OutcomesError, which names the line, for anything but objects. Blank lines are refused, because they hide
    files that were cut off.
    """
    rows: list[dict[str, object]] = []
    decoder = msgspec.json.Decoder()
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            value = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            remedy = "JSON has no NaN: leave a score out where it is unknown." if b"NaN" in line else None
            raise OutcomesError(f"{path}, line {number}: not JSON ({error}).", remedy=remedy) from error
        if not isinstance(value, dict):
            raise OutcomesError(f"{path}, line {number}: a row must be an object, not {type(value).__name__}.")
        rows.append(_flattened(value, path, number))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}, "line"


def _flattened(row: dict[str, object], path: Path, number: int) -> dict[str, object]:
    """The row with nested figures as columns: {"scores": {"a": 1}} becomes {"score__a": 1}; so do the others."""
    flat = dict(row)
    for key, prefix in (("scores", "score__"), ("losses", "loss__"), ("chars", "chars__"), ("answers", "answer__")):
        nested = flat.pop(key, None)
        if nested is None:
            continue
        if not isinstance(nested, dict):
            raise OutcomesError(f"{path}, line {number}, column '{key}': it must map expert names to values.")
        for name, value in nested.items():
            if prefix + name in flat:
                raise OutcomesError(f"{path}, line {number}, column '{key}': {name} is given twice.")
            flat[prefix + name] = value
    return flat


def _read_parquet(path: Path) -> tuple[dict[str, Sequence[object]], str]:
    """Read a Parquet file: its columns, and "row" as what its rows are called. Raises OutcomesError."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise OutcomesError(
            "Reading Parquet needs pyarrow.", remedy="Install moe2[gate], or convert the file to JSON lines."
        ) from error
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise OutcomesError(f"{path} is not a readable Parquet file: {error}.") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}, "row"
