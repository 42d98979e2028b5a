"""Reasoning apart from the answer, by the template's marks."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.prompt.thinking import HARMONY, PAIRS, Marks, Thinker, marks_of
from moe2.common.link.messages import TokenPiece

THINK = Marks("<think>", "</think>", ("<think>", "</think>"), "\n</think>\n\n")


def read(marks: Marks, texts: list[str], begun: str = "") -> tuple[str, str]:
    """(reasoning, answer) of an answer that comes in these pieces."""
    reader = marks.reader(begun)
    found = [piece for text in texts for piece in reader.feed(TokenPiece(text))]
    found += reader.finish()
    thought, said = ("".join(p.text for p in found if p.is_reasoning is channel) for channel in (True, False))
    return thought, said


@pytest.mark.parametrize(
    ("source", "opening", "closing"),
    [
        ("... '<think>\\n' ... '</think>' ...", "<think>", "</think>"),
        ("{%- set think_end_token = '</seed:think>' -%}", "<seed:think>", "</seed:think>"),
        ("[THINK] and [/THINK]", "[THINK]", "[/THINK]"),
        ("<|START_THINKING|><|END_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("text.split('</mm:think>')", "<mm:think>", "</mm:think>"),
        ("<thought> </thought>", "<thought>", "</thought>"),
        ("'<|channel>thought\\n<channel|>'", "<|channel>thought", "<channel|>"),
    ],
)
def test_marks_are_found_in_the_template(source: str, opening: str, closing: str) -> None:
    """The closing mark is enough: many templates only cut reasoning out of earlier answers."""
    marks = marks_of(source, lambda text: False)
    assert marks is not None
    assert (marks.opening, marks.closing) == (opening, closing)


def test_marks_are_found_in_the_vocabulary() -> None:
    """Where the template does not show them, both must be tokens of their own."""
    tokens = {"<think>", "</think>"}
    assert marks_of("plain", tokens.__contains__) == THINK
    assert marks_of("plain", {"<think>"}.__contains__) is None


def test_a_template_without_marks_has_no_reasoning() -> None:
    """Nothing is cut out of the answers of such a model."""
    assert marks_of("{{ messages }}", lambda text: False) is None


WHOLE = "<think>\nFour, I think.\n</think>\n\nIt is 4."


@given(st.lists(st.integers(0, len(WHOLE)), max_size=6))
def test_an_answer_is_split_wherever_its_pieces_begin(cuts: list[int]) -> None:
    """Marks, and the white space around them, belong to neither part."""
    places = [0, *sorted(cuts), len(WHOLE)]
    pieces = [WHOLE[start:end] for start, end in itertools.pairwise(places)]
    assert read(THINK, pieces) == ("Four, I think.", "It is 4.")


@pytest.mark.parametrize(
    ("begun", "texts", "expected"),
    [
        ("<think>\n", ["Hm.", "</think>", "Yes"], ("Hm.", "Yes")),
        ("<think>\n\n</think>\n\n", ["Yes"], ("", "Yes")),
        ("<think>\nHm", [" more</think>Yes"], ("more", "Yes")),
        ("It is", [" <think>"], ("", " <think>")),
        ("", ["  Yes, <think> is a mark"], ("", "  Yes, <think> is a mark")),
        ("", ["<think>no end"], ("no end", "")),
        ("", ["<thi"], ("", "<thi")),
        ("", ["<think></think>"], ("", "")),
        ("", ["<think>a</think>\n<think>b</think>c"], ("ab", "c")),
        ("", ["<think>a < b </thin air</think>c"], ("a < b </thin air", "c")),
        ("", [], ("", "")),
    ],
)
def test_the_answer_goes_on_from_what_the_prompt_has(begun: str, texts: list[str], expected: tuple[str, str]) -> None:
    """A template may open the reasoning, or close it; marks inside the answer are text."""
    assert read(THINK, texts, begun) == expected


def test_pieces_keep_their_log_probabilities() -> None:
    """Only a piece that a mark cuts loses its own."""
    reader = THINK.reader()
    pieces = [TokenPiece(text, -float(n)) for n, text in enumerate(["<think>", "a", "</think>", "b"])]
    found = [piece for each in pieces for piece in reader.feed(each)]
    assert found == [msgspec.structs.replace(pieces[1], is_reasoning=True), pieces[3]]


def test_where_the_answer_begins_is_known_with_the_closing_mark() -> None:
    """A grammar starts there."""
    reader = THINK.reader("<think>\n")
    states = [(reader.is_reasoning, reader.is_answering)]
    for text in ("Hm", "</think>", "\n\n", "4"):
        reader.feed(TokenPiece(text))
        states.append((reader.is_reasoning, reader.is_answering))
    assert states == [(True, False), (True, False), (False, False), (False, False), (False, True)]


CHANNELS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is 4."


def test_a_template_with_channels_has_those_of_gpt_oss() -> None:
    """Its marks are control tokens in a header."""
    assert marks_of("<|start|>assistant<|channel|>analysis<|message|>", lambda text: False) is HARMONY


@given(st.lists(st.integers(0, len(CHANNELS)), max_size=6))
def test_only_the_final_channel_is_the_answer(cuts: list[int]) -> None:
    """Headers belong to neither part."""
    places = [0, *sorted(cuts), len(CHANNELS)]
    pieces = [CHANNELS[start:end] for start, end in itertools.pairwise(places)]
    assert read(HARMONY, pieces) == ("Hm.", "It is 4.")


def test_a_message_to_a_function_becomes_a_call() -> None:
    """In the form that the coordinator reads, whether the call's end came or the answer's."""
    call = '<|channel|>commentary to=functions.rain <|constrain|>json<|message|>{"day": 1}'
    expected = '<tool_call>\n{"name": "rain", "arguments": {"day": 1}\n</tool_call>'.replace("1}\n", "1}}\n")
    assert read(HARMONY, [call]) == read(HARMONY, [call + "<|call|>"]) == ("", expected)


def test_a_message_to_a_function_that_is_cut_off_stays_open() -> None:
    """So that half a text does not look like a whole one."""
    call = '<|channel|>commentary to=functions.rain <|constrain|>json<|message|>{"day": "Mon'
    assert read(HARMONY, list(call)) == ("", '<tool_call>\n{"name": "rain", "arguments": {"day": "Mon')


MARKS = [
    Marks(opening, closing, (opening, closing), f"\n{closing}\n\n")
    for opening, closing in (*PAIRS, ("<mm:think>", "</mm:think>"))
]


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.opening)
def test_marks_are_found_wherever_two_cuts_are(marks: Marks) -> None:
    """In every family's marks, opened by the model or by its template, closed once, twice or never."""
    opening, closing = marks.opening, marks.closing
    cases = [
        ("", f"{opening}\né < x\n{closing}\n\nIt is {closing}.", ("é < x", f"It is {closing}.")),
        ("", f"{opening}a{closing}{opening}b{closing}c", ("ab", "c")),
        ("", f"{opening}a{closing[:-1]}", (f"a{closing[:-1]}", "")),
        ("", f"Yes, {opening}a{closing}", ("", f"Yes, {opening}a{closing}")),
        (f"{opening}\n", f"a\n{closing}\n\nb", ("a", "b")),
        (f"{opening}\n", f"{closing}b", ("", "b")),
        (f"{opening}\n\n{closing}\n\n", f"b{closing}", ("", f"b{closing}")),
    ]
    for begun, text, expected in cases:
        for first, second in itertools.combinations_with_replacement(range(len(text) + 1), 2):
            assert read(marks, [text[:first], text[first:second], text[second:]], begun) == expected, text[:first]


def test_a_thinkers_marks_are_spelled_where_they_are_one_token() -> None:
    """A mark of several tokens is text by itself."""
    thinker = Thinker.of(THINK, lambda text: [7] if text == "</think>" else [ord(letter) for letter in text])
    assert thinker.spelled == {7: b"</think>"}
    assert len(thinker.opening) == len("<think>")
