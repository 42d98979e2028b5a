"""Users' scores as outcomes: each is a row with one prompt, scored for the one expert that answered it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe2.coordinator.gate.feedback import Feedback
from moe2.coordinator.gate.feedback_file import FeedbackFile
from moe2.coordinator.training.outcomes import Outcomes, OutcomesError

KIND = "feedback"


def with_feedback(pool: Outcomes, path: Path) -> tuple[Outcomes, int]:
    """The pool with users' scores of its experts added as train rows, and the number of rows added.

    path: a feedback file; only its scores with a prompt can be used. Where the pool's rows name kinds of prompts, the
    added rows have the kind `KIND`. Raises OutcomesError where nothing in the file can be used.
    """
    try:
        found = FeedbackFile(path).read() if path.is_file() else None
    except OSError as error:
        raise OutcomesError(f"The feedback file {path} cannot be read: {error.strerror}.") from error
    if found is None:
        raise OutcomesError(f"There is no feedback file {path}.", remedy="It is feedback.jsonl in the state directory.")
    placed = [(entry, _column_of(entry, pool)) for entry in found if entry.prompt and entry.prompt.strip()]
    usable = [(entry, column) for entry, column in placed if column is not None]
    if not usable:
        raise OutcomesError(
            f"None of the {len(found)} scores in {path} has its prompt and is of an expert in the outcomes.",
            remedy="Set [selection] keep_prompts = true, and gather feedback.",
        )
    scores = np.full((len(usable), len(pool.experts)), np.nan)
    for row, (entry, column) in enumerate(usable):
        scores[row, column] = entry.score
    count, labelled = len(usable), any(pool.tasks)
    source = pool.sources[0] if len(pool) else ""
    unknown = np.full(scores.shape, np.nan)
    joined = Outcomes(
        experts=pool.experts,
        ids=(*pool.ids, *(f"feedback/{entry.request_id}" for entry, _ in usable)),
        prompts=(*pool.prompts, *(str(entry.prompt) for entry, _ in usable)),
        splits=(*pool.splits, *("train",) * count),
        sources=(*pool.sources, *(source,) * count),
        tasks=(*pool.tasks, *(KIND if labelled else "",) * count),
        scores=np.concatenate([pool.scores, scores]),
        chars=np.concatenate([pool.chars, unknown]),
        by_scoring=None if pool.by_scoring is None else np.concatenate([pool.by_scoring, unknown]),
        answers=None if pool.answers is None else (*pool.answers, *((None,) * len(pool.experts),) * count),
        digest=pool.digest,
        files=pool.files,
    )
    return joined, count


def _column_of(entry: Feedback, pool: Outcomes) -> int | None:
    """The place of the expert that a score is of: by its file's checksum, else by its name; None where there is none.

    A name that was another file's does not count.
    """
    if entry.file_sha256 is not None:
        same = [name for name in pool.experts if pool.files.get(name) == entry.file_sha256]
        if same:
            return pool.experts.index(same[0])
        if entry.model in pool.files:
            return None
    return pool.experts.index(entry.model) if entry.model in pool.experts else None
