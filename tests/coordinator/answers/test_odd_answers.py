"""Tests of final answers as models of many makes and languages write them."""

from __future__ import annotations

import pytest

from moe2.coordinator.answers.extraction import extract
from moe2.coordinator.answers.form import OPEN, AnswerForm, AnswerKind

COLOURS = AnswerForm(AnswerKind.CHOICE, ("red", "green", "blue", "none of the above"), is_lettered=True)
YES_NO = AnswerForm(AnswerKind.CHOICE, ("yes", "no"))
LANGUAGES = AnswerForm(AnswerKind.CHOICE, ("C", "C++", "C#"))
NUMBER = AnswerForm(AnswerKind.NUMBER)
JSON = AnswerForm(AnswerKind.JSON)


def said(text: str, form: AnswerForm, *, is_complete: bool = True) -> str | None:
    """The key of the answer that a text gives."""
    found = extract(text, form, is_complete=is_complete)
    return None if found is None else found.key


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Die Antwort ist B.", "B"),
        ("Die richtige Antwort lautet: (B)", "B"),
        ("Antwort B ist richtig.", "B"),
        ("La réponse est (C).", "C"),
        ("Réponse : C", "C"),
        ("La réponse n'est pas B.", None),
        ("La respuesta correcta es la B", "B"),
        ("La respuesta no es B.", None),
        ("La respuesta es la opción C.", "C"),
        ("A resposta é C.", "C"),
        ("La risposta corretta è la B.", "B"),
        ("Risposta: B", "B"),
        ("Ответ: B", "B"),
        ("Правильный ответ — C.", "C"),
        ("정답: C", "C"),
        ("정답은 B입니다", "B"),
        ("答案是B。", "B"),
        ("答案：B", "B"),
        ("正确答案是（C）。", "C"),
        ("故选：C", "C"),
        ("答えは B です。", "B"),
        ("الجواب: B", "B"),
        ("Ｂ", "B"),
        ("（Ｃ）", "C"),
        (r"\boxed{\textbf{(C)}}", "C"),
        (r"\boxed{\text{B. green}}", "B"),
        ("**B)** green", "B"),
        ("# Final Answer: C", "C"),
        ("Answer: none of the above", "D"),
        ("The answer: **D. None of the above**", "D"),
        ("Answer - B", "B"),
        ("Ans: B", "B"),
        ("Ans. C", "C"),
        ("Correct: C", "C"),
        ("Final: B", "B"),
        ("My answer: `B`", "B"),
        ("Option B is correct.", "B"),
        ("I choose B because A is wrong", "B"),
        ("The answer B is right, A is not.", "B"),
        ("Therefore, B.", "B"),
        ("Thus: (C)", "C"),
        ("✅ B", "B"),
        ("A: not it. B: right. C: wrong. So B", "B"),
        ("A: not it. B: right. C: wrong.", None),
        ("The answer is not A but B.", "B"),
        ("The answer cannot be A.", None),
        ("The answer isn't B", None),
        ("It is red or green.", None),
        ("The answer is green, or so I think", "B"),
        ("The answer is A, as the sky is blue", "A"),
        ('{"answer": "B"}', "B"),
    ],
)
def test_a_lettered_choice_is_read_in_many_forms(text: str, letter: str | None) -> None:
    """Languages, marks and emphasis do not matter; what only denies an option names none."""
    assert said(text, COLOURS) == letter


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("**Yes.**", "yes"),
        ("No, it is not.", "no"),
        ("No.\n\nYes would be wrong.", "no"),
        ("yes or no", None),
        ("The answer is no, because yes would be wrong", "no"),
        (r"\boxed{\text{no}}", "no"),
    ],
)
def test_yes_and_no_are_read_where_a_text_begins_with_them(text: str, choice: str | None) -> None:
    """What explains an answer may name the other option."""
    assert said(text, YES_NO) == choice


@pytest.mark.parametrize(
    ("text", "choice"), [("The answer is C++.", "C++"), ("c#", "C#"), ("It is C.", "C"), ("Use C++ here", "C++")]
)
def test_a_plus_or_a_hash_behind_a_word_tells_options_apart(text: str, choice: str) -> None:
    """C, C++ and C# are three languages."""
    assert said(text, LANGUAGES) == choice


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.234,5", "1234.5"),
        ("1.234.567", "1234567"),
        ("1.234,50 €", "1234.5"),
        ("Die Antwort ist 3,5", "3.5"),
        ("0,125", "0.125"),
        ("1,234", "1234"),
        ("1.234", "1.234"),
        ("1,2,3", "3"),
        ("12,34,567", "1234567"),
        ("1 234 567", "1234567"),
        ("1'234", "1234"),
        ("1_000", "1000"),
        ("２４", "24"),
        ("-0.0", "0"),
        (r"\boxed{-0}", "0"),
        ("½", "0.5"),
        ("2½", "2.5"),
        ("1 1/2", "1.5"),
        (r"\frac12", "0.5"),
        (r"\boxed{2\frac{1}{2}}", "2.5"),
        (r"\boxed{-\frac{7}{2}}", "-3.5"),
        ("Answer: 1/0", None),
        ("1.5×10³", "1500"),
        ("10³", "1000"),
        ("1024 = 2^10", "1024"),
        ("12 m²", "12"),
        ("–3", "-3"),
        ("minus 3", "-3"),
        ("negative five", "-5"),
        ("5 minus 3", "3"),
        ("pages 10–12", "12"),
        ("twenty-one", "21"),
        ("Answer: forty-two", "42"),
        ("one hundred and five", "105"),
        ("two million three hundred thousand", "2300000"),
        ("two three", None),
        ("2 million", "2000000"),
        ("dozens", None),
        ("one of them is seven", None),
        ("The answer is 3 or 4.", None),
        ("The answer is between 3 and 5", None),
        ("Answer: 10:30", None),
        ("The total is 36 (12 * 3).", "36"),
        ("f(2)", "2"),
        ("**36** eggs in 3 boxes", "36"),
        ("La réponse est 42, car 6*7.", "42"),
        ("答案是42。", "42"),
        ("Ответ: 42", "42"),
        ("The answer is not 5 but 6.", "6"),
        ("#### $5.00", "5"),
        (r"\boxed{90^\circ}", "90"),
        ("Answer: $12.50", "12.5"),
        ("1,234,567.89", "1234567.89"),
    ],
)
def test_a_number_is_read_in_many_notations(text: str, number: str | None) -> None:
    """Separators, fractions, powers, signs and words do not matter; two numbers, or a time, are no number."""
    assert said(text, NUMBER) == number


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Die Antwort ist Paris.", "paris"),
        ("Réponse : Paris", "paris"),
        ("答案是巴黎。", "巴黎"),
        ("答えは東京です。", "東京"),
        ("Ответ: Париж", "париж"),
        ("Ja, natürlich.", "ja"),
        ("C++", "c++"),
        ("1.234,5", "1234.5"),
        ("$1,000.00", "1000"),
        ("I don't know.", None),
        ("I'm not sure", None),
        ("Sorry, I do not know that.", None),
        ("I'm sorry, but I can't assist with that.", None),
        ("I cannot help with that.", None),
        ("As an AI, I have no opinion.", None),
        ("I can see Paris.", "i can see paris"),
        ("STRASSE", "strasse"),
        ("Paris.\n\nParis is the capital of France.", "paris"),
        ("Sure.\n\nIt is the capital.", None),
        ("10:30", "10 30"),
    ],
)
def test_an_open_answer_is_read_in_many_forms(text: str, key: str | None) -> None:
    """A declaration in a known language counts, an explanation behind a few words does not; not to know is none."""
    assert said(text, OPEN) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('I tried {"answer":"y"} but then {"answer":"x"}', "x"),
        ('```json\n{"answer":"y"}\n```\nno wait\n```json\n{"answer":"x"}\n```', "x"),
        ('<think>{"answer":"y"}</think>{"answer":"x"}', "x"),
        ('{"a":1} {"answer":"x"} {broken', "x"),
        ('Sure!\n```\n{"answer": "x"}\n```\nHope it helps {smile}', "x"),
        ("It is [1, 2] as {you} see", "[1,2]"),
        ('{"answer": -0.0}', "0"),
        ('{"answer": "C++"}', "c++"),
        ("{" * 3000, None),
        ('{"a":' * 3000, None),
    ],
)
def test_the_last_json_document_of_a_text_counts(text: str, key: str | None) -> None:
    """Models revise themselves in JSON as well, and write other braces around it."""
    assert said(text, JSON) == key


def test_the_end_of_a_text_that_was_cut_off_concludes_nothing() -> None:
    """The letter behind a last "so" may be the beginning of a word, or of another thought."""
    assert said("There are two, so A", COLOURS) == "A"
    assert said("There are two, so A", COLOURS, is_complete=False) is None
