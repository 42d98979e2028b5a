"""Control tokens that somebody spells out in a message."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.prompt.quotation import Quotation, Segment

_CONTROL = ("<|im_start|>", "<|im_end|>", "<s>", "<s><s>")
_QUOTATION = Quotation(_CONTROL)
_WRITTEN = st.lists(st.sampled_from([*_CONTROL, "<|im_", "end|>", "<", ">", "a ", "\ufdd0", "0", "\ufdd1"])).map(
    "".join
)


@given(_WRITTEN)
def test_every_character_is_kept_and_no_spelling_stays_unquoted(written: str) -> None:
    """Whatever is written, the segments say the same, and none that is not quoted spells a control token."""
    segments = _QUOTATION.segments(_QUOTATION.quote(written))
    assert "".join(segment.text for segment in segments) == written
    assert not [text for text, quoted in segments if not quoted and any(control in text for control in _CONTROL)]


def test_a_text_without_control_tokens_stays_one_piece() -> None:
    """So its tokens are what they always were."""
    written = "Is <b>5 < 6</b>, or im_end|> the end?"
    assert _QUOTATION.segments(_QUOTATION.quote(written)) == (Segment(written),)


def test_strings_in_lists_and_maps_are_quoted_too() -> None:
    """Tool calls, their arguments and names of parameters; what is no string stays what it is."""
    quoted = _QUOTATION.quote({"<s>": ["a<s>", 1, None, True]})
    assert "<s>" not in str(quoted)
    assert next(iter(quoted.values()))[1:] == [1, None, True]


def test_the_longer_of_two_spellings_is_one() -> None:
    """A control token whose text begins with another's is quoted whole."""
    assert _QUOTATION.segments(_QUOTATION.quote("<s><s>")) == (Segment("<s><s>", quoted=True),)
