"""Guesses from the text itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.speculation.ngrams import MAX_INDEXED_TOKENS, SharedNgrams, TokenHistory


def test_the_longest_agreement_is_followed() -> None:
    """The pair (2, 3) was followed by 9 last, but with the 1 before it by 4."""
    history = TokenHistory([0, 1, 2, 3, 4, 7, 5, 2, 3, 9, 6, 1, 2, 3])
    place, length = history.longest()
    assert (history.copy(place, length, 1), length) == ([4], 3)


def test_of_equal_agreements_the_latest_is_followed() -> None:
    """A text that has changed is guessed as it was last."""
    history = TokenHistory([5, 2, 3, 4, 6, 2, 3, 9, 7, 2, 3])
    place, length = history.longest()
    assert history.copy(place, length, 1) == [9]


def test_what_repeats_goes_on() -> None:
    """A copy that reaches the end goes on with what it copied."""
    history = TokenHistory([1, 2, 3, 1, 2, 3, 1, 2])
    place, length = history.longest()
    assert history.copy(place, length, 7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_text_without_repetition_suggests_nothing() -> None:
    """The same holds for texts that are too short to repeat."""
    for tokens in ([], [1], [1, 1], [1, 2, 3, 4]):
        assert TokenHistory(tokens).longest() == (0, 0)


def test_after_a_replaced_token_the_copy_goes_on_behind_it() -> None:
    """A file is repeated with a name changed: the tokens behind the name are suggested."""
    history = TokenHistory([10, 11, 12, 13, 14, 15, 16, 17, 10, 11, 12, 13])
    place, length = history.longest()
    assert history.copy(place, length, 2) == [14, 15]
    history.append(99)
    behind = history.substituted()
    assert behind is not None
    assert history.copy(behind, 0, 2) == [15, 16]
    history.append(50)
    assert history.substituted() is None


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
        assert len(history.copy(place, length, most)) == most


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
