"""Guesses from the text itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.speculation.ngrams import (
    MAX_INDEXED_TOKENS,
    REPLACED,
    SUBSTITUTED,
    SharedNgrams,
    TokenHistory,
    ground_of_copy,
)


def test_the_longest_agreement_is_followed() -> None:
    """The pair (2, 3) was followed by 9 last, but with the 1 before it by 4."""
    history = TokenHistory([0, 1, 2, 3, 4, 7, 5, 2, 3, 9, 6, 1, 2, 3])
    place, length = history.longest()
    assert (history.copy(place, length, 1)[0], length) == ([4], 3)


def test_of_equal_agreements_the_latest_is_followed() -> None:
    """A text that has changed is guessed as it was last."""
    history = TokenHistory([5, 2, 3, 4, 6, 2, 3, 9, 7, 2, 3])
    place, length = history.longest()
    assert history.copy(place, length, 1)[0] == [9]


def test_what_repeats_goes_on() -> None:
    """A copy that reaches the end goes on with what it copied."""
    history = TokenHistory([1, 2, 3, 1, 2, 3, 1, 2])
    place, length = history.longest()
    assert history.copy(place, length, 7)[0] == [3, 1, 2, 3, 1, 2, 3]


def test_a_text_without_repetition_suggests_nothing() -> None:
    """The same holds for texts that are too short to repeat."""
    for tokens in ([], [1], [1, 1], [1, 2, 3, 4]):
        assert TokenHistory(tokens).longest() == (0, 0)


def test_after_a_replaced_token_the_copy_goes_on_behind_it() -> None:
    """A file is repeated with a name changed: the tokens behind the name are suggested."""
    history = TokenHistory([10, 11, 12, 13, 14, 15, 16, 17, 10, 11, 12, 13])
    place, length = history.longest()
    assert history.copy(place, length, 2)[0] == [14, 15]
    history.append(99)
    behind = history.substituted()
    assert behind is not None
    assert history.tokens[behind] == 15
    assert history.resume(2) == ([15, 16], [SUBSTITUTED, ground_of_copy(2)])
    history.append(50)
    assert history.substituted() is None


@pytest.mark.parametrize(("old", "new"), [((60,), (70,)), ((60,), (70, 71)), ((60, 61), (70,)), ((60,), (70, 71, 72))])
def test_what_was_replaced_once_is_guessed_replaced(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """A name that the answer changes is guessed changed from then on, whatever tokens either takes, and the copy goes
    on behind it."""
    lines = [[at, at + 1, at + 2, at + 3, at + 4, *old, 90, 91] for at in (10, 20, 30)]
    changed = [[at, at + 1, at + 2, at + 3, at + 4, *new, 90, 91] for at in (10, 20, 30)]
    history = TokenHistory([token for line in lines for token in line] + changed[0][:3])
    history.copy(*history.longest(), 4)
    for token in changed[0][3:] + changed[1][:3]:
        history.append(token)
    if history.copied_length > history.longest()[1]:
        tokens, grounds = history.go_on(10)
    else:
        tokens, grounds = history.copy(*history.longest(), 10)
    assert tokens[: len(new) + 4] == changed[1][3:]
    assert grounds[2 : 2 + len(new)] == [REPLACED] * len(new)
    assert REPLACED not in grounds[:2]


def test_a_replacement_that_ends_is_forgotten() -> None:
    """Once the old text is written again, it is guessed again."""
    line = [10, 11, 12, 13, 14, 60, 90, 91]
    history = TokenHistory(line + line[:4])
    for token in (14, 70, 90, 91, *line):
        if (longest := history.longest())[1] > history.copied_length and history.substituted() is None:
            history.copy(*longest, 2)
        history.append(token)
    tokens, _ = history.copy(0, 8, 8)
    assert tokens == line


def test_a_chance_agreement_is_no_replacement() -> None:
    """Two equal tokens are too few to take the next one for a replaced one."""
    history = TokenHistory([1, 2, 3, 4, 5, 1, 2])
    history.copy(*history.longest(), 2)
    history.append(9)
    assert history.substituted() is None


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 3), max_size=60), st.integers(1, 40))
def test_agreements_are_real(prompt: list[int], answer: list[int], most: int) -> None:
    """Whatever the tokens, what stands before the copied place is what the sequence ends with."""
    history = TokenHistory(prompt)
    for token in answer:
        history.append(token)
    place, length = history.longest()
    tokens = prompt + answer
    assert tokens[place - length : place] == tokens[len(tokens) - length :]
    if length:
        assert [len(each) for each in history.copy(place, length, most)] == [most, most]


def test_what_is_known_to_come_is_gone_on_from_where_it_came_before() -> None:
    """The latest place counts, and what stands before both tells how sure it is; nothing changes by asking."""
    history = TokenHistory([1, 2, 3, 4, 5, 6, 9, 3, 4, 7, 8, 1, 2])
    assert history.behind([3, 4], 2) == ([7, 8], [ground_of_copy(2), ground_of_copy(3)])
    assert history.behind([3], 2)[0] == [4, 5]
    assert history.behind([3], 1)[1] == [ground_of_copy(3)]
    assert history.behind([3, 3], 2) == ([], [])
    assert history.behind([3, 4], 0) == ([], [])
    assert history.copied_length == 0
    assert TokenHistory([1]).behind([1], 5) == ([], [])


def test_of_a_huge_prompt_the_end_is_looked_through() -> None:
    """What was forgotten suggests nothing; memory is bounded."""
    history = TokenHistory([1, 2, 3, *range(10, MAX_INDEXED_TOKENS + 10), 1, 2])
    assert len(history.tokens) == MAX_INDEXED_TOKENS
    assert history.longest() == (0, 0)


def test_other_answers_suggest_what_followed_in_them() -> None:
    """One token after the other, as far as they are known."""
    shared = SharedNgrams()
    answer = [1, 2, 3, 4, 5, 6, 7]
    for end in range(1, len(answer) + 1):
        shared.learn(answer[:end])
    assert shared.following([9, 1, 2, 3, 4], 10) == [5, 6, 7]
    assert shared.following([9, 1, 2, 3, 4], 2) == [5, 6]
    assert shared.following([2, 3], 2) == []
    shared.forget()
    assert shared.following([9, 1, 2, 3, 4], 2) == []


def test_the_shared_table_forgets_the_oldest() -> None:
    """It never holds more than its bound."""
    shared = SharedNgrams(most=3)
    for end in range(5, 12):
        shared.learn(list(range(end)))
    assert len(shared) == 3
    assert shared.following([0, 1, 2, 3], 1) == []
    assert shared.following([6, 7, 8, 9], 1) == [10]
