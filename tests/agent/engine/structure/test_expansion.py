"""The length of what is written out."""

from __future__ import annotations

import pytest

from moe2.agent.engine.structure.constraint import GrammarError
from moe2.agent.engine.structure.expansion import MAX_EXPANDED_CHARACTERS, check_lark, check_regex


@pytest.mark.parametrize(
    "regex", ["(a{447}){447}", r"(\d[^a-z]{3}){1,50000}", "a{200000}", "((((a{1,20}){20})*){20}){25}"]
)
def test_a_regular_expression_within_the_bound_passes(regex: str) -> None:
    """Groups multiply, classes and escapes are one character, * and + count once."""
    check_regex(regex, "pattern")


@pytest.mark.parametrize(
    "regex", ["(a{448}){448}", r"(\d[^a-z]{3}){1,50001}", "a{200001}", "a{1,99999999999999999999}"]
)
def test_a_regular_expression_beyond_the_bound_is_refused(regex: str) -> None:
    """The error names where it stands."""
    with pytest.raises(GrammarError, match=f"The pattern has more than {MAX_EXPANDED_CHARACTERS}"):
        check_regex(regex, "pattern")


def test_names_count_as_what_they_stand_for() -> None:
    """In whatever order they are defined, and without end where they recurse."""
    check_lark("start: A\nA: B{2}\nB: C{2}\nC: /x/ | A")
    with pytest.raises(GrammarError, match="rule A has"):
        check_lark("start: A\nA: B{1000}\nB: C{1000}\nC: /x/")
