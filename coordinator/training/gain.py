"""What a gate gains over the best single expert, with its error, on rows that it has not learned from. PURE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Gain:
    """The paired difference of two ways to choose one expert per prompt, in mean score 0..1."""

    rows: int
    """Number of prompts that both were compared on."""
    score: float
    """Mean score of the experts that the gate chooses."""
    other: float
    """Mean score of the experts that it is compared with."""
    standard_error: float | None
    """Standard error of `gain`; None for fewer than two rows."""

    @property
    def gain(self) -> float:
        """How much the gate's choice scores more."""
        return self.score - self.other

    @property
    def is_clearly_behind(self) -> bool:
        """True where the gate's choice scores less by more than one standard error."""
        return self.standard_error is not None and self.gain < -self.standard_error

    def told(self, other: str) -> str:
        """The gain as a sentence. other: what the gate is compared with, such as "the best single expert"."""
        error = "" if self.standard_error is None else f" ± {100 * self.standard_error:.1f}"
        return (
            f"On {self.rows} prompts that it has not learned from, the gate's choice scores {self.score:.3f} and "
            f"{other} {self.other:.3f}: {100 * self.gain:+.1f}{error} points."
        )


def gain_of(chosen: FloatArray, other: FloatArray) -> Gain:
    """The gain of one choice over another, from their scores (rows,) on the same prompts; NaN where one was not run.

    Raises ValueError where no row has both scores.
    """
    both = ~np.isnan(chosen) & ~np.isnan(other)
    if not both.any():
        raise ValueError("no prompt has the scores of both")
    mine, theirs = chosen[both], other[both]
    error = float((mine - theirs).std(ddof=1) / np.sqrt(mine.size)) if mine.size > 1 else None
    return Gain(int(mine.size), float(mine.mean()), float(theirs.mean()), error)


def chosen_scores(probabilities: FloatArray, scores: FloatArray) -> FloatArray:
    """(rows,) the score of the likeliest expert among those that were run on each row; NaN where none was.

    probabilities, scores: (rows, N); a NaN score was not run.
    """
    run = ~np.isnan(scores)
    place = np.where(run, probabilities, -1.0).argmax(axis=1)
    return np.asarray(np.where(run.any(axis=1), scores[np.arange(len(scores)), place], np.nan), dtype=np.float64)


def best_single(scores: FloatArray, comparable: FloatArray | None = None) -> int:
    """The expert with the best mean over its known scores (rows, N); the first of equal ones.

    comparable: (rows', N) scores of the prompts that it is to be compared on; None where that is all the same. Whoever
    was asked none of them, such as a newcomer with a few answers, cannot be compared and is passed over.
    """
    known = ~np.isnan(scores).all(axis=0)
    if comparable is not None:
        known &= ~np.isnan(comparable).all(axis=0)
    places = np.flatnonzero(known)
    return int(places[np.nanmean(scores[:, places], axis=0).argmax()])
