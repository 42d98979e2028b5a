"""Tests of the final answer that is found in what models write."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.answers.extraction import MAX_CHARACTERS, extract
from moe2.coordinator.answers.form import OPEN, AnswerForm, AnswerKind, form_of
from moe2.coordinator.answers.normal_form import number_key

PLACES = ("New York", "New York City", "York", "none of these")
FOUR = AnswerForm(AnswerKind.CHOICE, PLACES, is_lettered=True)
GIVEN = AnswerForm(AnswerKind.CHOICE, PLACES)
SIGNS = AnswerForm(AnswerKind.CHOICE, ("+", "-"))
NUMBER = AnswerForm(AnswerKind.NUMBER)
TEXT = AnswerForm(AnswerKind.TEXT)


def said(text: str, form: AnswerForm) -> str | None:
    """The key of the answer that a text gives."""
    found = extract(text, form)
    return None if found is None else found.key


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(C)", "C"),
        ("Let us think. The Empire State Building is old. The answer is (C).", "C"),
        ("First I thought the answer is (A). On reflection, the answer is (B).", "B"),
        ("**Answer:** B", "B"),
        ("Answer:\n\n(D)", "D"),
        ("The correct answer to this question is therefore **(A) New York**.", "A"),
        ("The answer is New York City.", "B"),
        ("The answer is New York.", "A"),
        ("Answer: york", "C"),
        ("new york city", "B"),
        (r"Hence $\boxed{\text{B}}$.", "B"),
        (r"Hence $\boxed{\text{(B) New York City}}$", "B"),
        ("<answer>C</answer>", "C"),
        ("The answer is c", "C"),
        ("Only New York City has five boroughs.", "B"),
        ("The answer is (A) or (B).", None),
        ("The answer is A, B", None),
        ("The answer is not (A).", None),
        ("New York or York", None),
        ("The answer is (F).", None),
        ("B is right because the others are no cities", "B"),
        ("B. The others are no cities.", "B"),
        ("I hope that this answer helps.\n\n(D)", "D"),
        ("The answer is (B). I hope this answer helps you!", "B"),
        ("", None),
    ],
)
def test_a_choice_is_read_with_reasoning_before_it(text: str, letter: str | None) -> None:
    """The last declared choice counts, by letter or by text; the longest text where choices are each other's prefix."""
    assert said(text, FOUR) == letter


@pytest.mark.parametrize(
    ("text", "choice"), [("New York City", "New York City"), ("new york", "New York"), ("B", None)]
)
def test_choices_without_letters_are_named_by_their_text(text: str, choice: str | None) -> None:
    """An option that the client gave has no letter that a model could know."""
    assert said(text, GIVEN) == choice


@pytest.mark.parametrize(
    ("text", "key"),
    [("10%", "10%"), ("The answer is 10%.", "10%"), ("10", "10"), ("The answer is 10 percent", None), ("10 %", None)],
)
def test_options_with_the_same_words_are_told_apart_or_not_at_all(text: str, key: str | None) -> None:
    """An option that is named exactly counts; what could be two of them is no answer."""
    found = extract(text, AnswerForm(AnswerKind.CHOICE, ("10", "10%", "100")))
    assert (found.key if found else None) == key


def test_choices_of_punctuation_are_told_apart() -> None:
    """Options without any letter or digit are compared as they stand."""
    assert (said("+", SIGNS), said(" -\n", SIGNS), said("?", SIGNS)) == ("+", "-", None)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 boxes of 12, so 3 * 12 = 36 eggs.", "36"),
        ("The answer is 1,234.50 dollars, which is more than 7.", "1234.5"),
        ("#### 42", "42"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        (r"\boxed{1{,}000}", "1000"),
        (r"We get $x = \boxed{-5}$ and then check 3.", "-5"),
        ("The answer is 2 + 2 = 4", "4"),
        ("The final answer: **50%**", "50"),
        ("answer: seven apples", "7"),
        ("one thousand", "1000"),
        ("The answer is twenty five thousand.", "25000"),
        ("It weighs 5.972 × 10^24 kg", "5972000000000000000000000"),
        (r"\boxed{2.5 \times 10^{-3}}", "0.0025"),
        ("The answer is 10^3", "1000"),
        ("so 5^2 * 10^3 is x, that is 7", "7"),
        ("It is 2*10**3 metres", "2000"),
        ("10^99999", None),
        ("Answer: 12 km. There are 1000 m in a km.", "12"),
        ("1/3", "1/3"),
        ("no idea", None),
        ("", None),
    ],
)
def test_a_number_is_read_without_its_units(text: str, number: str | None) -> None:
    """A declared number counts, else the last one, in one notation."""
    assert said(text, NUMBER) == number


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Paris", "paris"),
        ("paris.", "paris"),
        ("The capital is old. The answer is **Paris**, the capital of France.", "paris"),
        ("Yes, it is, because the moon is smaller than the earth and everything else that was said.", "yes"),
        ("red, green, blue", "red green blue"),
        ("42 km", "42"),
        ("$42.00", "42"),
        ("Seven", "7"),
        ("The answer is (B)", "b"),
        ("The answer is (C) because nothing else fits.", "c"),
        ("**Answer:** (-12)", "-12"),
        ("The answer is (x) 5 and (y) 6.", "x 5 and y 6"),
        ("The answer is f(x) = 3", "f x 3"),
        ("The answer is **(Paris)**, the capital.", "paris"),
        ("The answer is ()", None),
        ("The answer is", None),
        ("Answer:", None),
        ("It was a dark night.\nRain fell.\nNobody spoke.", None),
        ("word " * 40, None),
        ("...", None),
        ("", None),
    ],
)
def test_an_open_answer_is_a_short_text_or_a_number(text: str, key: str | None) -> None:
    """What is declared counts, or the whole where it is short; prose has no final answer."""
    assert said(text, OPEN) == key


@pytest.mark.parametrize(
    ("question", "text", "key"),
    [
        ("What is the capital of Egypt?", "The capital of Egypt is Cairo.", "cairo"),
        ("What is the capital of Egypt?", "Cairo is the capital of Egypt.", "cairo"),
        ("What is the capital of Egypt?", "Cairo", "cairo"),
        ("What is the capital of Egypt?", "The capital of Egypt is not Cairo.", "not cairo"),
        ("Which is larger, a dog or a cat?", "The dog is larger", "dog is larger"),
        ("Did he buy a car or a house, and in which colour?", "red car", "red car"),
        ("What is it?", "It is", "it is"),
        ("Who wrote Faust?", "Goethe wrote Faust", "goethe wrote faust"),
    ],
)
def test_the_question_around_an_answer_is_left_out(question: str, text: str, key: str) -> None:
    """A sentence that repeats the question says what the bare answer says; what else stands there stays."""
    found = extract(text, form_of(question, kind=AnswerKind.TEXT))
    assert found is not None
    assert found.key == key


@pytest.mark.parametrize(
    ("text", "field", "key"),
    [
        ('{"why": "it is", "answer": "Paris"}', None, "paris"),
        ('```json\n{"label": 3.0}\n```', "label", "3"),
        ('Here it is: {"label": true} as you asked.', "label", "true"),
        ('{"b": 1, "a": 2}', None, '{"a":2,"b":1}'),
        ('{"other": 1}', "label", None),
        ('{"label": null}', "label", None),
        ('"positive"', None, "positive"),
        ('{"label": ', "label", None),
        ("[" * 5000, None, None),
    ],
)
def test_a_json_document_answers_with_its_field(text: str, field: str | None, key: str | None) -> None:
    """The field of the schema counts, or one with a telling name, or the whole document in one order."""
    assert said(text, AnswerForm(AnswerKind.JSON, field=field)) == key


@pytest.mark.parametrize(
    ("text", "form", "key"),
    [
        ("It's a phrase that has been debated by mathematicians and", OPEN, None),
        ("A fox is", TEXT, None),
        ("First, 3 boxes with 4 apples make 12, and", NUMBER, None),
        ("The answer is 12. To check this, take 3 boxes and", NUMBER, "12"),
        ("The answer is Paris. It lies on the", OPEN, "paris"),
        ("Yes, because the moon is", OPEN, "yes"),
        ("(B) because the", FOUR, "B"),
    ],
)
def test_a_text_that_was_cut_off_answers_only_where_it_says_so(text: str, form: AnswerForm, key: str | None) -> None:
    """The last words of a text that did not come to its end are reasoning, however few they are."""
    found = extract(text, form, is_complete=False)
    assert (None if found is None else found.key) == key


LISTED = "Which city?\n(A) New York\n(B) New York City\n(C) York"


@pytest.mark.parametrize(
    ("prompt", "form"),
    [
        (LISTED, AnswerForm(AnswerKind.CHOICE, ("New York", "New York City", "York"), is_lettered=True)),
        ("Which?\nA. red\nB. blue", AnswerForm(AnswerKind.CHOICE, ("red", "blue"), is_lettered=True)),
        ("Which? (A) red (B) blue", AnswerForm(AnswerKind.CHOICE, ("red", "blue"), is_lettered=True)),
        ("How many legs has a spider?", NUMBER),
        ("What is 17 * 23?", NUMBER),
        ("What is 7 plus 5?", NUMBER),
        ("What is 2 and 2? Just the number.", NUMBER),
        ("Twice the sixth prime. Answer with a single integer.", NUMBER),
        ("My number is 7. Who am I?", OPEN),
        ("Who wrote Faust?", OPEN),
        ("A. Smith wrote it. Who is that?", OPEN),
    ],
)
def test_the_form_is_recognised(prompt: str, form: AnswerForm) -> None:
    """Listed options make a choice, a question for an amount makes a number, and anything else is open."""
    assert form_of(prompt) == form


def test_a_named_kind_is_not_recognised_otherwise() -> None:
    """What the client says stands against what the prompt looks like."""
    assert form_of("How many?", kind=AnswerKind.TEXT) == TEXT
    assert form_of(LISTED, kind=AnswerKind.NUMBER) == NUMBER
    assert form_of("Pick one.", kind=AnswerKind.CHOICE, choices=("x", "y")).choices == ("x", "y")


@pytest.mark.parametrize(
    ("schema", "field"),
    [
        ({"properties": {"reasoning": {"type": "string"}, "Final-Answer": {}}}, "Final-Answer"),
        ({"properties": {"mood": {"enum": ["a", "b"]}, "why": {"type": "string"}}}, "mood"),
        ({"properties": {"city": {"type": "string"}}}, "city"),
        ({"properties": {"a": {}, "b": {}}}, None),
        ({"enum": ["a", "b"]}, None),
        ({}, None),
    ],
)
def test_a_schema_says_which_field_answers(schema: dict[str, object], field: str | None) -> None:
    """One with a telling name, the only enum, or the only one."""
    form = form_of("x", schema=msgspec.json.encode(schema).decode())
    assert form == AnswerForm(AnswerKind.JSON, field=field)


FORMS = st.sampled_from([FOUR, GIVEN, SIGNS, NUMBER, TEXT, OPEN, AnswerForm(AnswerKind.JSON)])
MARKS = st.sampled_from(
    ["answer is ", "\\boxed{", "(A)", "####", "<answer>", "{", "}", "\n", "1", "not ", "or ", "New York"]
)


@given(st.lists(st.one_of(st.text(max_size=20), MARKS), max_size=30).map("".join), FORMS)
def test_no_text_breaks_it(text: str, form: AnswerForm) -> None:
    """Any text has one answer or none, and a choice is always one of the options."""
    found = extract(text, form)
    if found is not None and form.kind is AnswerKind.CHOICE:
        assert found.key in (*form.letters, *form.choices)


@given(st.text(max_size=300), st.integers(0, 3))
def test_a_declared_choice_is_found_after_any_reasoning(reasoning: str, place: int) -> None:
    """Whatever stands before it, the final declaration counts, and options that begin alike are not mixed up."""
    assert said(f"{reasoning}\nThe answer is ({'ABCD'[place]}).", FOUR) == "ABCD"[place]
    assert said(f"{reasoning}\nThe answer is {PLACES[place]}.", FOUR) == "ABCD"[place]


@given(st.fractions(), st.text(alphabet="abc def.\n", max_size=100))
def test_every_number_survives_its_normal_form(number: object, reasoning: str) -> None:
    """A declared number has the key of its value, however it is written."""
    assert said(f"{reasoning}\nThe answer is {number}.", NUMBER) == number_key(number)  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_endless_text_takes_bounded_time() -> None:
    """Of a text without end only the last part is read, whatever it is made of."""
    for part in ("answer ", "(", "{", "\\boxed{", "1,", "answer is not ", "New York ", "A) ", "```", "option "):
        for form in (FOUR, NUMBER, OPEN, AnswerForm(AnswerKind.JSON)):
            extract(part * (10 * MAX_CHARACTERS // len(part)), form)
