"""Following a JSON object in a text that comes in pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.jsonspan import JsonSpan

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def fed(text: str, *cuts: int) -> tuple[str, str, bool]:
    """The object's text, what is behind it, and whether it has ended."""
    span, kept, behind = JsonSpan(), "", ""
    bounds = [0, *sorted(cuts), len(text)]
    for start, end in itertools.pairwise(bounds):
        piece = text[start:end]
        said, count = ("", 0) if span.is_over else span.feed(piece)
        kept, behind = kept + said, behind + piece[count:]
    return kept, behind, span.is_over


@given(st.dictionaries(st.text(), VALUES, max_size=4), st.text(), st.data())
def test_an_object_ends_where_it_ends_however_it_is_cut(
    value: dict[str, Any], behind: str, data: st.DataObject
) -> None:
    """Pieces of any size give the same object, and what is behind it is not touched."""
    text = json.dumps(value) + behind
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=5))
    kept, left, is_over = fed(text, *cuts)
    assert (json.loads(kept), left, is_over) == (value, behind, True)


@pytest.mark.parametrize("raw", ["\n", "\t", "\x01", "\\\n"])
def test_control_characters_within_a_string_become_escapes(raw: str) -> None:
    """What small models write there is no JSON, and what the client reads is."""
    kept, _, is_over = fed('{"a": "x' + raw + 'y"}')
    assert is_over
    assert json.loads(kept)["a"] == f"x{raw[-1]}y"


@pytest.mark.parametrize("cut_off", ['{"a": ', '{"a": "b', '{"a": "b\\', '{"a": {"b": 1}'])
def test_an_object_that_is_cut_off_has_not_ended(cut_off: str) -> None:
    """What there is of it is kept."""
    assert fed(cut_off) == (cut_off, "", False)


def test_a_mark_outside_of_strings_ends_it() -> None:
    """A model that closes its call too early loses the mark, not the text."""
    assert fed('{"a": "<b>"</tool_call>') == ('{"a": "<b>"', "</tool_call>", True)
