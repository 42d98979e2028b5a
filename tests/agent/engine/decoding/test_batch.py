"""Which tokens go into a batch, and where runs are placed."""

from __future__ import annotations

from moe2.agent.engine.decoding.batch import Lanes, Run, job_cells, lanes_for


def _lanes(*, lanes: int = 4, cells: int = 1000, cuts_anywhere: bool = True, kv_unified: bool = True) -> Lanes:
    return Lanes(lanes=lanes, cells=cells, cuts_anywhere=cuts_anywhere, kv_unified=kv_unified)


def _start(lanes: Lanes, tokens: list[int], *, reserve: int | None = None) -> Run:
    placed = lanes.place(tokens, reserve=reserve or len(tokens), logits_from=len(tokens) - 1)
    assert placed is not None
    return placed[0]


def _finish(lanes: Lanes, run: Run) -> None:
    run.filled = len(run.tokens)
    lanes.finish(run, keep_cached=True)


def _plan(lanes: Lanes, *, batch_tokens: int = 100, prefill_tokens: int = 100, outputs: int = 100) -> dict[int, int]:
    """Tokens planned per lane."""
    plan = lanes.plan(batch_tokens=batch_tokens, prefill_tokens=prefill_tokens, outputs=outputs)
    return {chunk.lane: len(chunk.tokens) for _, chunk in plan}


def test_a_decoding_run_is_in_every_batch() -> None:
    """A long prompt's prefill does not push out running streams."""
    lanes = _lanes()
    decoding = _start(lanes, [1])
    prompt = _start(lanes, list(range(2, 300)))
    assert _plan(lanes, batch_tokens=10, prefill_tokens=10) == {decoding.lane: 1, prompt.lane: 9}


def test_the_oldest_prompt_is_not_starved_by_shorter_ones() -> None:
    """A quarter of the prefill budget is the oldest prompt's, however many short ones come."""
    lanes = _lanes()
    oldest = _start(lanes, list(range(200)))
    shorter = _start(lanes, list(range(300, 400)))
    assert _plan(lanes, prefill_tokens=40) == {oldest.lane: 10, shorter.lane: 30}


def test_rows_of_logits_are_bounded() -> None:
    """A run that wants all its logits gets no more tokens into a batch than there are rows."""
    lanes = _lanes()
    placed = lanes.place(list(range(50)), reserve=50, logits_from=10)
    assert placed is not None
    assert _plan(lanes, outputs=8) == {placed[0].lane: 18}


def test_reservations_never_exceed_the_cache() -> None:
    """A run waits while the cells it needs are reserved by others."""
    lanes = _lanes(cells=10)
    _start(lanes, [1, 2], reserve=6)
    assert lanes.place([3, 4], reserve=5, logits_from=1) is None


def test_a_run_grows_only_into_cells_that_nobody_reserved() -> None:
    """Beyond its own reservation a run takes free cells one by one, until there are none."""
    lanes = _lanes(cells=5)
    run = _start(lanes, [1, 2], reserve=2)
    _start(lanes, [3], reserve=2)
    assert lanes.grow(run)
    run.tokens.append(9)
    assert not lanes.grow(run)


def test_a_conversation_continues_on_its_own_lane() -> None:
    """A prompt that extends a cached sequence takes that lane over, and only the new tokens are decoded."""
    lanes = _lanes()
    first = _start(lanes, [1, 2, 3])
    _finish(lanes, first)
    placed = lanes.place([1, 2, 3, 4, 5], reserve=5, logits_from=4)
    assert placed is not None
    assert (placed[1].lane, placed[1].source, placed[1].keep) == (first.lane, first.lane, 3)


def test_a_shared_beginning_is_copied_and_the_cached_conversation_kept() -> None:
    """A prompt that shares only a prefix does not cut the other conversation back."""
    lanes = _lanes()
    first = _start(lanes, [1, 2, 3, 4])
    _finish(lanes, first)
    placed = lanes.place([1, 2, 9, 9], reserve=4, logits_from=3)
    assert placed is not None
    assert (placed[1].source, placed[1].keep, placed[1].lane != first.lane) == (first.lane, 2, True)
    again = lanes.place([1, 2, 3, 4, 5], reserve=5, logits_from=4)
    assert again is not None
    assert (again[1].source, again[1].keep) == (first.lane, 4)


def test_at_least_the_last_prompt_token_is_decoded() -> None:
    """A prompt that is cached as a whole still needs its last logits."""
    lanes = _lanes()
    _finish(lanes, _start(lanes, [1, 2, 3]))
    assert _start(lanes, [1, 2, 3]).filled == 2


def test_a_cache_that_cannot_be_cut_is_only_continued() -> None:
    """For recurrent models a cached state is used whole or not at all."""
    lanes = _lanes(cuts_anywhere=False)
    _finish(lanes, _start(lanes, [1, 2, 3]))
    assert _start(lanes, [1, 2, 9]).filled == 0
    assert _start(lanes, [1, 2, 3, 4]).filled == 3


def test_the_least_recently_used_prefix_goes_first() -> None:
    """A prefix that another run began with counts as used."""
    lanes = _lanes()
    old, new = _start(lanes, [1, 2]), _start(lanes, [3, 4])
    _finish(lanes, old)
    _finish(lanes, new)
    assert lanes.least_recent() == (old.lane, [1, 2])
    _start(lanes, [1, 2, 9])
    lanes.forget(old.lane)
    assert lanes.least_recent() == (new.lane, [3, 4])
    assert lanes.idle_tokens == 2


def test_what_running_jobs_hold_is_not_idle() -> None:
    """With every cached token in use there is nothing to forget."""
    lanes = _lanes()
    _start(lanes, [1, 2])
    assert lanes.least_recent() is None


def test_a_run_that_reads_anew_begins_with_nothing() -> None:
    """Although a lane holds all of its prompt."""
    lanes = _lanes()
    _finish(lanes, _start(lanes, [1, 2, 3, 4]))
    placed = lanes.place([1, 2, 3, 4], reserve=4, logits_from=3, reads_anew=True)
    assert placed is not None
    assert (placed[0].filled, placed[1].keep) == (0, 0)


def test_batches_of_a_steady_run_are_small() -> None:
    """Larger ones take other kernels, which add up in another order; they do so again when it has ended."""
    lanes = _lanes()
    steady = _start(lanes, list(range(200)))
    steady.is_steady = True
    # Neither the host's speed nor a guess changes where its prompt is cut.
    [(_, chunk)] = lanes.plan(batch_tokens=128, prefill_tokens=2, outputs=8)
    assert (len(chunk.tokens), chunk.is_steady) == (32, True)
    _finish(lanes, steady)
    _start(lanes, [*range(300, 500)])
    [(_, chunk)] = lanes.plan(batch_tokens=128, prefill_tokens=128, outputs=8)
    assert (len(chunk.tokens), chunk.is_steady) == (128, False)


def test_a_steady_run_shares_no_batch_and_stops_nobody() -> None:
    """What it adds up depends on its place in a batch: it has every second one to itself, and others have the rest."""
    lanes = _lanes()
    other = _start(lanes, [1])
    steady = _start(lanes, list(range(2, 80)))
    steady.is_steady = True
    seen = []
    for _ in range(5):
        chunks = lanes.plan(batch_tokens=100, prefill_tokens=100, outputs=8)
        lanes.commit(chunks)
        seen.append([(chunk.is_steady, len(chunk.tokens)) for _, chunk in chunks])
        other.tokens = [*other.tokens[: other.filled], 1]
    assert seen == [[(True, 32)], [(False, 1)], [(True, 32)], [(False, 1)], [(True, 14)]]


def test_logits_are_not_wanted_before_tokens_that_come_in_any_case() -> None:
    """But from the last of them on, as far as there is room for them; in the next batch from the first on again."""
    lanes = _lanes()
    run = _start(lanes, [1], reserve=20)
    run.guesses, run.certain = [2, 3, 4], 2
    ((_, cut),) = lanes.plan(batch_tokens=2, prefill_tokens=100, outputs=100)
    assert (list(cut.tokens), cut.logits_from, cut.guessed) == ([1, 2], 1, 1)
    ((_, chunk),) = plan = lanes.plan(batch_tokens=100, prefill_tokens=100, outputs=100)
    assert (list(chunk.tokens), chunk.logits_from, chunk.guessed) == ([1, 2, 3, 4], 2, 3)
    lanes.commit(plan)
    run.tokens += [2, 3, 4, 5]
    run.filled, run.guesses = 4, [6]
    ((_, chunk),) = lanes.plan(batch_tokens=100, prefill_tokens=100, outputs=100)
    assert (list(chunk.tokens), chunk.logits_from) == ([5, 6], 0)


def test_lanes_of_a_divided_cache_lie_beside_each_other() -> None:
    """llama.cpp takes them in one go only then: a gap that an answer left is filled first, and batches are in order."""
    lanes = _lanes(lanes=6, kv_unified=False)
    first, second, third = (_start(lanes, [token] * 9) for token in (1, 2, 3))
    assert [first.lane, second.lane, third.lane] == [0, 1, 2]
    _finish(lanes, second)
    assert _start(lanes, [4] * 9).lane == 1
    _finish(lanes, first)
    assert list(_plan(lanes)) == [1, 2]
    assert _start(lanes, [5] * 9).lane in (0, 3)


def test_a_conversation_in_a_divided_cache_is_copied_to_a_lane_beside_the_others() -> None:
    """Where it lies, each step would take twice as long."""
    lanes = _lanes(lanes=6, kv_unified=False)
    runs = [_start(lanes, [token] * 9) for token in range(1, 6)]
    for run in runs[1:]:
        _finish(lanes, run)
    placed = lanes.place([*[5] * 9, 7], reserve=10, logits_from=9)
    assert placed is not None
    assert (placed[1].lane, placed[1].source, placed[1].keep) == (1, 4, 9)
    assert placed[1].displaced == [2] * 9


def test_few_tokens_are_not_worth_copying_a_long_lane() -> None:
    """A divided cache copies all that a lane holds."""
    lanes = _lanes(kv_unified=False)
    _start(lanes, [1, *range(2, 200)])
    placed = lanes.place([1, 900, 901], reserve=3, logits_from=2)
    assert placed is not None
    assert placed[1].keep == 0


def test_a_slots_part_of_a_divided_cache_is_rounded_up_as_llama_cpp_does() -> None:
    """In steps of 256; a shared one is any slot's."""
    assert [job_cells(tokens, 3, kv_unified=False) for tokens in (64, 768, 769, 8192)] == [256, 256, 512, 2816]
    assert job_cells(8192, 3, kv_unified=True) == 8192
    assert lanes_for(3, kv_unified=False) == 4
