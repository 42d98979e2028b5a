"""Requests that cannot be run are refused with a code, the numbers and a remedy."""

from __future__ import annotations

import pytest

from moe2.agent.engine.prompt.quotation import Quotation
from moe2.agent.engine.prompt.request import RequestError, RequestReader
from moe2.agent.engine.prompt.template import ChatTemplate
from moe2.common.errors import JobErrorCode
from moe2.common.generation import Sampling
from moe2.common.link.messages import ScoreJob, Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt
from tests.agent.engine.simulation import VOCABULARY_SIZE, Letters

_TEXT = TextPrompt(text="abc")


class _Merging(Letters):
    """A vocabulary that merges "ab" into one token, as real ones do, and begins with a BOS token."""

    bos = "<s>"

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        begin = [100] if add_special or text.startswith("<s>") else []
        rest = text.removeprefix("<s>").replace("ab", "z")
        return begin + super().tokenize(rest, add_special=False, parse_special=False)


class _Controlled(Letters):
    """A vocabulary that reads <end> as one token where control tokens are looked for."""

    control_texts = ("<end>",)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return super().tokenize(
            text.replace("<end>", "S") if parse_special else text, add_special=False, parse_special=False
        )


def _tokens(reader: RequestReader, request: Submit, *, limit: int) -> list[int]:
    return reader.opened(request, limit=limit).tokens


_CONTROL_TOKEN = ord("S") - ord("a") + 1


def _reader(template: ChatTemplate | None = None) -> RequestReader:
    return RequestReader(Letters(), template, vocabulary_size=VOCABULARY_SIZE)


def _generate(prompt: ChatPrompt | TextPrompt = _TEXT, **fields: object) -> Submit:
    return Submit(request_id="r", model="m", job_id="job", prompt=prompt, sampling=Sampling(), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (_generate(stop=("x", "")), "stop string is empty"),
        (_generate(TextPrompt(text="")), "prompt is empty"),
        (_generate(TextPrompt(text="ab\0c")), "NUL character (character 2)"),
        (_generate(TextPrompt(text="a\ud800")), "not valid Unicode"),
        (_generate(ChatPrompt(messages=(ChatMessage(role="user", content="a"),))), "no usable chat template"),
    ],
)
def test_what_cannot_be_run_is_an_invalid_request(request_: Submit, words: str) -> None:
    """Each fault has its own sentence and the code for a request's fault."""
    with pytest.raises(RequestError) as caught:
        _tokens(_reader(), request_, limit=100)
    assert caught.value.code == JobErrorCode.INVALID_REQUEST
    assert words in str(caught.value)


def test_an_empty_conversation_is_refused() -> None:
    """No messages is no prompt."""
    reader = _reader(ChatTemplate("{{ messages }}", bos="", eos=""))
    with pytest.raises(RequestError, match="no messages"):
        _tokens(reader, _generate(ChatPrompt(messages=())), limit=100)


def test_a_prompt_as_long_as_the_context_leaves_no_room_to_answer() -> None:
    """The error tells the prompt's tokens and the limit."""
    with pytest.raises(RequestError, match="has 3 tokens, and the context has 3") as caught:
        _tokens(_reader(), _generate(), limit=3)
    assert (caught.value.code, caught.value.prompt_tokens) == (JobErrorCode.CONTEXT_EXCEEDED, 3)


def test_an_enormous_prompt_is_refused_without_tokenizing_it() -> None:
    """Its bytes alone show that it cannot fit."""

    class Untouched(Letters):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            raise AssertionError("tokenized")

    reader = RequestReader(Untouched(), None, vocabulary_size=VOCABULARY_SIZE)
    with pytest.raises(RequestError, match="cannot fit"):
        _tokens(reader, _generate(TextPrompt(text="a" * 10_000)), limit=3)


def test_a_template_that_writes_the_begin_token_gets_no_second_one() -> None:
    """BOS stands once, whether the template or the tokenizer puts it there."""
    reader = RequestReader(_Merging(), ChatTemplate("{{ bos_token }}c", bos="<s>", eos=""), vocabulary_size=200)
    chat = ChatPrompt(messages=(ChatMessage(role="user", content="x"),))
    assert _tokens(reader, _generate(chat), limit=9) == _tokens(reader, _generate(TextPrompt(text="c")), limit=9)


def test_an_answer_that_has_begun_goes_on_behind_the_template() -> None:
    """Its beginning follows the open assistant turn, in tokens as they would have been written there."""
    template = ChatTemplate("{{ messages[0].content }}:", bos="", eos="")
    reader = RequestReader(_Merging(), template, vocabulary_size=VOCABULARY_SIZE)
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="c"),))
    begun = _tokens(reader, _generate(prompt, prefix="ab"), limit=100)
    assert begun == _tokens(reader, _generate(TextPrompt(text="c:ab")), limit=100)
    assert len(begun) == len(_tokens(reader, _generate(prompt), limit=100)) + 1


def test_a_beginning_that_fills_the_context_leaves_no_room() -> None:
    """Nothing could follow it."""
    with pytest.raises(RequestError) as caught:
        _tokens(_reader(), _generate(prefix="defg"), limit=7)
    assert caught.value.code == JobErrorCode.CONTEXT_EXCEEDED
    assert len(_tokens(_reader(), _generate(prefix="defg"), limit=8)) == 7


def test_a_gap_stands_behind_the_texts_around_it() -> None:
    """What is before and after it follows its mark, then comes what fills it; both texts are data, and may be empty."""
    vocabulary = _Controlled()
    vocabulary.infill_marks = (90, 91, 92)
    reader = RequestReader(vocabulary, None, vocabulary_size=99)
    assert _tokens(reader, _generate(TextPrompt(text="ab", suffix="c")), limit=9) == [90, 1, 2, 91, 3, 92]
    assert _tokens(reader, _generate(TextPrompt(text="", suffix="c"), prefix="d"), limit=9) == [90, 91, 3, 92, 4]
    assert _CONTROL_TOKEN not in _tokens(reader, _generate(TextPrompt(text="<end>", suffix="<end>")), limit=99)
    ids = TextPrompt(text="", tokens=(5, 6), suffix="c")
    assert _tokens(reader, _generate(ids), limit=9) == [90, 5, 6, 91, 3, 92]


def test_a_gap_that_nobody_can_fill_is_refused() -> None:
    """A vocabulary without the marks is named, and so are texts that fill the context themselves."""
    with pytest.raises(RequestError, match="no marks") as caught:
        _tokens(_reader(), _generate(TextPrompt(text="a", suffix="b")), limit=9)
    assert caught.value.code == JobErrorCode.INVALID_REQUEST
    vocabulary = Letters()
    vocabulary.infill_marks = (90, 91, 92)
    reader = RequestReader(vocabulary, None, vocabulary_size=99)
    for suffix in ("bcd", "b" * 10_000):
        with pytest.raises(RequestError) as caught:
            _tokens(reader, _generate(TextPrompt(text="a", suffix=suffix)), limit=7)
        assert caught.value.code == JobErrorCode.CONTEXT_EXCEEDED


def test_an_answer_to_given_tokens_goes_on_behind_them() -> None:
    """Whoever takes over for an expert that fell silent goes on from what the client has."""
    ids = TextPrompt(text="", tokens=(5, 6))
    assert _tokens(_reader(), _generate(ids, prefix="ab"), limit=9) == [5, 6, 1, 2]


def _controlled(template: str = "{{ messages[0].content }}<end>") -> RequestReader:
    vocabulary = _Controlled()
    quotation = Quotation(vocabulary.control_texts)
    return RequestReader(vocabulary, ChatTemplate(template, bos="", eos="", quotation=quotation), vocabulary_size=99)


def test_a_message_has_no_control_tokens_but_its_template_has() -> None:
    """What a user spells out is so many plain characters."""
    chat = ChatPrompt(messages=(ChatMessage(role="user", content="a<end>b"),))
    tokens = _tokens(_controlled(), _generate(chat), limit=99)
    assert tokens.count(_CONTROL_TOKEN) == 1
    assert tokens[-1] == _CONTROL_TOKEN
    assert len(tokens) == len("a<end>b") + 1


def test_a_message_that_begins_with_a_control_token_is_quoted_from_its_first_character() -> None:
    """Also where nothing stands before it."""
    chat = ChatPrompt(messages=(ChatMessage(role="user", content="<end>"),))
    assert len(_tokens(_controlled("{{ messages[0].content }}"), _generate(chat), limit=99)) == len("<end>")


def test_plain_text_may_use_control_tokens() -> None:
    """Who asks for a plain completion writes the template's part, too."""
    assert _tokens(_controlled(), _generate(TextPrompt(text="a<end>")), limit=99) == [1, _CONTROL_TOKEN]


def test_a_continuation_has_no_control_tokens() -> None:
    """What one model wrote does not steer the one that judges it."""
    score = ScoreJob(request_id="r", model="m", job_id="job", prompt=TextPrompt(text="a"), continuations=("b<end>c",))
    assert _CONTROL_TOKEN not in _controlled().score(score, limit=99)[1][0]


def test_a_continuation_is_tokenized_in_its_context() -> None:
    """Where the prompt's tokens stay the same, the joint text decides."""
    reader = RequestReader(_Merging(), None, vocabulary_size=200)
    score = ScoreJob(request_id="r", model="m", job_id="job", prompt=TextPrompt(text="c"), continuations=("abd",))
    assert reader.score(score, limit=99)[1] == [[26, 4]]


def test_a_continuation_that_would_merge_with_the_prompt_stands_alone() -> None:
    """Where a token would straddle the border, the continuation's own tokens are scored."""
    reader = RequestReader(_Merging(), None, vocabulary_size=200)
    score = ScoreJob(request_id="r", model="m", job_id="job", prompt=TextPrompt(text="ca"), continuations=("bd",))
    assert reader.score(score, limit=99) == ([100, 3, 1], [[2, 4]])


@pytest.mark.parametrize("continuations", [(), ("",)])
def test_nothing_to_score_is_refused(continuations: tuple[str, ...]) -> None:
    """An empty list and an empty continuation are both the request's fault."""
    with pytest.raises(RequestError, match="Send at least one"):
        _reader().score(
            ScoreJob(request_id="r", model="m", job_id="job", prompt=_TEXT, continuations=continuations), limit=99
        )


def test_only_the_models_own_tokens_are_known() -> None:
    """Token ids reach llama.cpp only if the model has them."""
    reader = _reader()
    assert [reader.knows_token(token) for token in (-1, 0, VOCABULARY_SIZE - 1, VOCABULARY_SIZE)] == [
        False,
        True,
        True,
        False,
    ]
