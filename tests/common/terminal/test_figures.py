"""Figures as people read them."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.terminal import figures


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1234.4, "1234"), (41.66, "41.7"), (1.2, "1.20"), (0.02144, "0.0214"), (3.1e-6, "3.1e-06")],
)
def test_number_has_three_significant_digits(value: float, shown: str) -> None:
    """A figure is as long as its meaning."""
    assert figures.number(value) == shown


@pytest.mark.parametrize(("value_s", "shown"), [(0.00084, "840 µs"), (0.0214, "21.4 ms"), (3.2, "3.20 s")])
def test_latency_picks_its_unit(value_s: float, shown: str) -> None:
    """A latency is shown in the unit that keeps it readable."""
    assert figures.latency(value_s) == shown


@pytest.mark.parametrize(
    ("value_s", "shown"),
    [(-0.5, "0 s"), (59.9, "59 s"), (185, "3 min 5 s"), (25_920, "7 h 12 min"), (356_400, "4 d 3 h")],
)
def test_duration_uses_its_two_largest_units(value_s: float, shown: str) -> None:
    """A duration is never longer than two units; a clock that went back gives 0."""
    assert figures.duration(value_s) == shown


@pytest.mark.parametrize(("value_bytes", "shown"), [(999, "999 B"), (98_900_000, "98.9 MB"), (2.5e15, "2500 TB")])
def test_size_is_decimal(value_bytes: float, shown: str) -> None:
    """Sizes are powers of 1000."""
    assert figures.size(value_bytes) == shown


def test_unknown_is_not_zero() -> None:
    """None never becomes a figure."""
    assert figures.known(None, figures.number) == "–"
    assert figures.known(None, figures.number, otherwise=figures.UNMEASURED) == "unmeasured"
    assert figures.known(0.0, figures.number) == "0"


def test_moment_is_utc() -> None:
    """Moments do not depend on the time zone of the reader."""
    assert figures.moment(1000.0) == "1970-01-01T00:16:40Z"


def test_printable_disarms_escape_sequences() -> None:
    """Foreign text cannot clear the screen or forge a line."""
    assert figures.printable("a\x1b[2Jb\nwarning") == "a\ufffd[2Jb warning"


@given(st.text())
def test_a_fact_is_one_line_that_a_shell_can_split(text: str) -> None:
    """Whatever the value, the line stays one line and splits into word and pair."""
    line = figures.fact_line("word", key=text)
    assert line.isprintable()
    assert shlex.split(line) == ["word", f"key={figures.printable(text)}"]


def test_a_fact_without_value_is_unknown() -> None:
    """None is shown as unknown in plain lines as well."""
    assert figures.fact_line("model", name="a b", rtt_s=None) == 'model name="a b" rtt_s=–'


@given(st.text(max_size=300), st.integers(3, 100))
def test_what_is_shortened_keeps_its_beginning_and_its_end(text: str, max_characters: int) -> None:
    """And says how much is missing."""
    shown = figures.shortened(text, max_characters)
    if len(text) <= max_characters:
        assert shown == text
    else:
        assert f"({len(text) - max_characters} characters left out)" in shown
        assert shown[:2] == text[:2]
        assert shown[-1] == text[-1]
        assert len(shown) < max_characters + 40
