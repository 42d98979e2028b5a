"""Calls in the forms of models in the field, read and held to rules: both by the same examples."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.engine.calls.forms import BARE, BY_NAME, FORMS, HERMES, Caller, CallForm, Style, form_of
from moe2.agent.engine.calls.translator import CallTranslator
from moe2.agent.engine.structure.constraint import Constraint, constraint_of
from moe2.agent.engine.structure.matcher import Compiler, Vocabulary
from moe2.common.generation import ToolRules
from moe2.common.link.messages import Submit, TokenPiece
from moe2.common.link.prompts import ChatMessage, ChatPrompt, Tool, ToolCall
from moe2.coordinator.http.faces.toolcalls import CallReader
from tests.agent.engine.structure.following import allows

WEATHER = Tool(
    name="weather",
    parameters=json.dumps(
        {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1},
                "unit": {"enum": ["C", "F"]},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "places": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["city", "days"],
        }
    ),
)
TIME = Tool(name="time", parameters='{"type": "object", "properties": {}}')
TOOLS = (WEATHER, TIME)
END = 256
ARGUMENTS = {"city": "Köln", "days": 2}
GOOD = '{"city": "Köln", "days": 2}'
BAD = '{"city": "Köln", "days": 0}'
ONE: dict[str, str] = {
    "minimax": '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Köln</parameter>\n'
    '<parameter name="days">2</parameter>\n</invoke>\n</minimax:tool_call>',
    "seed": "<seed:tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</seed:tool_call>",
    "qwen-coder": "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n"
    "</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
    f"{GOOD}<|tool_call_end|><|tool_calls_section_end|>",
    "deepseek-v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    f"{GOOD}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek-v3.1": f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{GOOD}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "mistral-args": f"[TOOL_CALLS]weather[ARGS]{GOOD}",
    "mistral": f'[TOOL_CALLS][{{"name": "weather", "arguments": {GOOD}}}]',
    "command": f'<|START_ACTION|>[{{"tool_name": "weather", "parameters": {GOOD}}}]<|END_ACTION|>',
    "lfm": '<|tool_call_start|>[weather(city="Köln", days=2)]<|tool_call_end|>',
    "granite": f'<|tool_call|>[{{"name": "weather", "arguments": {GOOD}}}]',
    "nemotron": f'<TOOLCALL>[{{"name": "weather", "arguments": {GOOD}}}]</TOOLCALL>',
    "hunyuan": f'<tool_calls>[{{"name": "weather", "arguments": {GOOD}}}]</tool_calls>',
    "functionary-v3.2": f"weather\n{GOOD}",
    "hermes": f'<tool_call>\n{{"name": "weather", "arguments": {GOOD}}}\n</tool_call>',
    "functionary-v3.1": f"<function=weather>{GOOD}</function>",
    "llama": f'{{"name": "weather", "parameters": {GOOD}}}',
    "pythonic": '[weather(city="Köln", days=2)]',
    "bare": f'{{"name": "weather", "arguments": {GOOD}}}',
}
"""One call in each form, as a strict answer writes it."""
LOOSE: list[tuple[str, str]] = [
    (
        "qwen-coder",
        "<tool_call><function=weather><parameter=city>Köln</parameter><parameter=days>2</parameter></function>",
    ),
    (
        "glm",
        "<tool_call>weather<arg_key>city</arg_key><arg_value>Köln</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call>",
    ),
    (
        "kimi",
        "<|tool_calls_section_begin|> <|tool_call_begin|> functions.weather:7 <|tool_call_argument_begin|> "
        f"{GOOD} <|tool_call_end|>",
    ),
    ("deepseek-v3.1", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{GOOD}"),
    ("deepseek-v3", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{GOOD}\n```"),
    ("mistral-args", f"[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{GOOD}"),
    ("mistral", f'[TOOL_CALLS] [{{"name": "weather", "arguments": {GOOD}, "id": "abcdefghi"}}]'),
    (
        "command",
        f'<|START_ACTION|>[\n {{"tool_call_id": "0", "tool_name": "weather", "parameters": {GOOD}}}\n]<|END_ACTION|>',
    ),
    ("lfm", "<|tool_call_start|>[weather(city='Köln', days=2)]<|tool_call_end|>"),
    ("granite", f'<|tool_call|>[{{"name": "weather", "arguments": {GOOD}}}]<|/tool_call|>'),
    ("llama", f'<|python_tag|>{{"name": "weather", "parameters": {GOOD}}}'),
    ("llama", '<|python_tag|>weather.call(city="Köln", days=2)'),
    ("llama", '{"type": "function", "name": "weather", "parameters": {"city": "Köln", "days": 2}}'),
    ("pythonic", " [weather(days=2, city='Köln')] "),
    ("functionary-v3.2", f">>>weather\n{GOOD}"),
]


def is_translated(form: CallForm) -> bool:
    return not Caller(form, {}).is_read_as_it_stands


def read(form: CallForm, *texts: str) -> tuple[str, list[tuple[str, Any]]]:
    """What a client gets of an answer: its text, and its calls with their arguments."""
    translator = CallTranslator(form, TOOLS)
    reader = CallReader({"weather", "time"}, ids="x")
    pieces = [
        piece
        for text in texts
        for piece in (translator.feed(TokenPiece(text)) if is_translated(form) else [TokenPiece(text)])
    ]
    if is_translated(form):
        pieces += translator.finish()
    found = [*reader.feed(pieces), *reader.finish()]
    text = "".join(piece.text for part in found if isinstance(part, tuple) for piece in part)
    return text, [(part.name, json.loads(part.arguments)) for part in found if isinstance(part, ToolCall)]


def controlled(form: CallForm) -> tuple[Compiler, Caller]:
    """A vocabulary of bytes in which the form's marks are control tokens, as they are in its models' vocabularies."""
    places = {mark: END + 1 + nth for nth, mark in enumerate(form.controls)}
    texts = (*(bytes([byte]) for byte in range(256)), b"", *(b"" for _ in form.controls))
    return Compiler(Vocabulary(texts=texts, ends=(END,))), Caller(form, places)


def tokens_of(text: str, caller: Caller) -> list[int]:
    found: list[int] = []
    while text:
        mark = next((mark for mark in caller.controls if text.startswith(mark)), None)
        found += [caller.controls[mark]] if mark else list(text[0].encode())
        text = text[len(mark or text[0]) :]
    return found


def constraint(caller: Caller, *tools: Tool, forced: bool = False, parallel: bool = True, **form: Any) -> Constraint:
    rules = None if forced else ToolRules(strict=tuple(tool.name for tool in tools), parallel=parallel)
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="?"),), tools=tools)
    names = tuple(tool.name for tool in tools) if forced else ()
    asked: Any = {"job_id": "j", "request_id": "r", "model": "m", "prompt": prompt, **form}
    found = constraint_of(Submit(tool_rules=rules, forced_tools=names, **asked), caller)
    assert found is not None
    return found


def accepts(compiler: Compiler, asked: Constraint, tokens: list[int]) -> bool:
    """Can the whole of this be an answer?"""
    matcher = compiler.compile(asked)
    for token in tokens:
        if not allows(matcher.mask(), token):
            return False
        matcher.accept(token)
    mask = matcher.mask()
    return mask is None or allows(mask, END)


@pytest.mark.parametrize(("name", "answer"), [*ONE.items(), *LOOSE])
def test_a_call_is_read_in_each_form(name: str, answer: str) -> None:
    """Name and arguments arrive with their types, and nothing of the marks is text."""
    assert read(BY_NAME[name], answer) == ("", [("weather", ARGUMENTS)])


@pytest.mark.parametrize("name", ONE)
def test_every_form_has_an_example(name: str) -> None:
    """So that no form is added without a test of its reader and its grammar."""
    assert set(ONE) == {form.name for form in (*FORMS, BARE)}
    assert BY_NAME[name].name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE)
@given(data=st.data())
def test_how_an_answer_is_cut_changes_nothing(name: str, data: st.DataObject) -> None:
    """Text and calls do not depend on where tokens end; nor do there come more pieces than tokens, but for one."""
    form = BY_NAME[name]
    text = "all\nLet me see. \n" if name == "functionary-v3.2" else "Let me see. \n"
    answer = ONE[name]
    if form.begins and name != "llama":
        answer = text + (">>>" if name == "functionary-v3.2" else "") + answer
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12))), len(answer)]
    tokens = [answer[start:end] for start, end in itertools.pairwise(edges)]
    assert read(form, *tokens) == read(form, answer)
    translator = CallTranslator(form, TOOLS)
    pieces = [piece for token in tokens for piece in translator.feed(TokenPiece(token))] + translator.finish()
    assert len(pieces) <= len(tokens) + 1


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "Just text.",
        " \n",
        "a <b> [c] {d}",
        "<tool",
        "[TOOL",
        "<｜tool",
        "1. [x](y)\n2. `f(a=1)`",
        "<function",
        "é" * 50,
    ],
)
def test_text_is_text(name: str, text: str) -> None:
    """What begins like a mark and is none comes back whole."""
    said = read(BY_NAME[name], text)
    assert said == (text, [])


@pytest.mark.parametrize("name", [name for name in ONE if is_translated(BY_NAME[name])])
def test_a_call_of_an_unknown_tool_stays_text(name: str) -> None:
    """Nothing that a model writes is lost."""
    answer = ONE[name].replace("weather", "feather")
    text, calls = read(BY_NAME[name], answer)
    assert calls == []
    assert text.strip() == answer.strip()


@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize(
    "junk",
    ["", "[" * 50_000, "{" * 50_000, "(" * 50_000, '{"a": ', "feather", "\x00", "<parameter=", "weather(1", "9" * 5000],
)
def test_broken_calls_raise_nothing(name: str, junk: str) -> None:
    """Half a call, nested ones and noise are text, whatever is wrong with them."""
    form = BY_NAME[name]
    _, calls = read(form, f"{form.opening}{form.head}{junk}{form.tail}{form.closing}")
    assert calls == []


def test_a_text_without_quotes_keeps_its_type() -> None:
    """`5` is a text where the schema says so; what may be null or a list is read as JSON."""
    written = (
        "<tool_call>\n<function=weather>\n<parameter=city>\n5\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "<parameter=note>\nnull\n</parameter>\n<parameter=places>\n[1, 2.5]\n</parameter>\n"
        '<parameter=other>\n{"a": 1}\n'
        "</parameter>\n</function>\n</tool_call>"
    )
    _, [(_, arguments)] = read(BY_NAME["qwen-coder"], written)
    assert arguments == {"city": "5", "days": 3, "note": None, "places": [1, 2.5], "other": {"a": 1}}


def test_a_text_of_several_lines_is_kept_as_it_is() -> None:
    """Code, with its indentation, quotes and tags of its own."""
    code = 'def f():\n    return "<b>"  # {x}\n'
    written = ONE["qwen-coder"].replace("Köln", code)
    _, [(_, arguments)] = read(BY_NAME["qwen-coder"], written)
    assert arguments["city"] == code


def test_several_calls_come_in_their_order() -> None:
    """Two calls, each form as it writes them."""
    time = {
        "qwen-coder": "<tool_call>\n<function=time>\n</function>\n</tool_call>",
        "glm": "<tool_call>time\n</tool_call>",
        "mistral-args": "[TOOL_CALLS]time[ARGS]{}",
        "functionary-v3.1": "<function=time>{}</function>",
        "functionary-v3.2": ">>>time\n{}",
    }
    for name, second in time.items():
        assert read(BY_NAME[name], f"{ONE[name]}\n{second}") == ("", [("weather", ARGUMENTS), ("time", {})]), name
    both = ONE["deepseek-v3.1"].replace(
        "<｜tool▁calls▁end｜>", "\n<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    )
    assert [name for name, _ in read(BY_NAME["deepseek-v3.1"], both)[1]] == ["weather", "time"]
    assert read(BY_NAME["llama"], f'<|python_tag|>{ONE["llama"]}; {{"name": "time", "parameters": {{}}}}')[1][1] == (
        "time",
        {},
    )


@pytest.mark.parametrize("name", ONE)
def test_a_strict_call_follows_its_schema_in_each_form(name: str) -> None:
    """A grammar allows the call and refuses one whose figure is out of range, beside text and forced."""
    compiler, caller = controlled(BY_NAME[name])
    good, bad = tokens_of(ONE[name], caller), tokens_of(ONE[name].replace("2", "0"), caller)
    for asked in (
        constraint(caller, WEATHER, TIME),
        constraint(caller, WEATHER, TIME, parallel=False),
        constraint(caller, WEATHER, forced=True),
        constraint(caller, WEATHER, TIME, json_schema='{"type": "integer"}'),
    ):
        assert accepts(compiler, asked, good)
        assert not accepts(compiler, asked, bad)


@pytest.mark.parametrize("name", ONE)
def test_text_is_free_beside_strict_tools_and_not_where_a_call_is_forced(name: str) -> None:
    """In each form, whether its marks are control tokens or not."""
    compiler, caller = controlled(BY_NAME[name])
    text = tokens_of(
        "all\nIt is <b>1</b> [o'clock]." if name == "functionary-v3.2" else "It is <b>1</b> [o'clock].", caller
    )
    assert accepts(compiler, constraint(caller, WEATHER), text)
    assert not accepts(compiler, constraint(caller, WEATHER, forced=True), text)
    form: dict[str, Any] = {"json_schema": '{"type": "integer"}'}
    number = tokens_of("all\n12" if name == "functionary-v3.2" else "12", caller)
    assert accepts(compiler, constraint(caller, WEATHER, **form), number)
    assert not accepts(compiler, constraint(caller, WEATHER, **form), text)


@pytest.mark.parametrize("name", [name for name in ONE if BY_NAME[name].controls])
def test_marks_that_are_no_control_tokens_are_followed_as_text(name: str) -> None:
    """A vocabulary may spell them out."""
    compiler, _ = controlled(BY_NAME[name])
    caller = Caller(BY_NAME[name], {})
    asked = constraint(caller, WEATHER)
    assert accepts(compiler, asked, list(ONE[name].encode()))
    assert not accepts(compiler, asked, list(ONE[name].replace("2", "0").encode()))


@pytest.mark.parametrize("name", ["qwen-coder", "glm", "minimax", "lfm", "pythonic"])
def test_a_schema_that_single_arguments_cannot_say_is_one_object(name: str) -> None:
    """Where keywords concern the arguments together, the call has them as JSON, and is read so."""
    either = Tool(
        name="weather",
        parameters='{"anyOf": [{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}]}',
    )
    form = BY_NAME[name]
    compiler, caller = controlled(form)
    before, between, _ = ("(", ")", "") if form.parameter == ("", "", "") else (form.neck, form.tail, "")
    opening = f"{form.opening}{'[' if before == '(' else ''}{form.head}"
    answer = f'{opening}weather{before}{{"city": "Köln"}}{between}{"]" if before == "(" else ""}{form.closing}'
    asked = constraint(caller, either, forced=True)
    assert accepts(compiler, asked, tokens_of(answer, caller))
    assert not accepts(compiler, asked, tokens_of(answer.replace("city", "town"), caller))
    assert read(form, answer) == ("", [("weather", {"city": "Köln"})])


SOURCES = {
    "{{ '<tool_call>' }}{{ '<function=' + f.name + '>' }}{{ '<parameter=' }}": "qwen-coder",
    "{{ '<tool_call>' + f.name }}<arg_key>": "glm",
    "{{ '<tool_call>' }}{{ f | tojson }}": "hermes",
    "[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]": "mistral",
    "[TOOL_CALLS]{{ name }}[ARGS]": "mistral-args",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ name }}\n```json": "deepseek-v3",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>": "deepseek-v3.1",
    'Respond with {"name": function name, "parameters": {}} <|python_tag|>': "llama",
    "{{ '<|im_start|>' }}": "bare",
}


@pytest.mark.parametrize(("source", "name"), SOURCES.items())
def test_a_template_tells_the_form(source: str, name: str) -> None:
    """By the marks that it writes."""
    assert form_of(source).name == name
    assert form_of("<tool_call>") is HERMES


CODE = 'def f(x):\n    return "<b>" + \'é\\n\' + """{x}"""  # </p> [1, {2: 3}]\n'
"""A text with what the forms write around arguments."""
PLACES = {"city": CODE, "days": 3, "note": None, "places": [1, -2.5], "unit": "C"}


def several(name: str) -> str:
    """An answer with text, a call with a long text, and a second call, as a form writes them."""
    form, made = BY_NAME[name], json.dumps(PLACES, ensure_ascii=False)
    match form.style:
        case Style.OBJECTS:
            calls = [
                f'{{"{form.name_key}": "{tool}", "{form.arguments_key}": {arguments}, "id": "call<1>"}}'
                for tool, arguments in (("weather", made), ("time", "{}"))
            ]
            body = f"[{', '.join(calls)}]" if form.is_list else "; ".join(calls)
        case Style.NAMED | Style.RECIPIENTS:
            body = f"{form.head}weather{form.neck}{made}{form.tail}\n{form.head}time{form.neck}{{}}{form.tail}"
        case Style.PARAMETERS:
            before, between, behind = form.parameter
            # A line's end around a value belongs to the form, whether or not its marks have one.
            code = CODE if between == ">\n" else f"\n{CODE}\n"
            values = [code, "3", "null", "[1, -2.5]", "C"]
            written = "".join(
                f"{before}{key}{between}{value}{behind}" for key, value in zip(PLACES, values, strict=True)
            )
            more = form.closing + form.opening if form.each else ""
            body = f"{form.head}weather{form.neck}{written}{form.tail}{more}{form.head}time{form.neck}{form.tail}"
        case _:
            words = ", ".join(f"{key}={value!r}" for key, value in PLACES.items())
            body = f"[weather({words}), time()]"
    if form.each and form.style is Style.OBJECTS:
        body = f"{form.closing}{form.opening}".join(calls)
    text = "all\nOn it. " if form.style is Style.RECIPIENTS else "On it. " if form.begins else ""
    return f"{text}{form.opening}{body}{form.closing}"


TRANSLATED = [name for name in ONE if is_translated(BY_NAME[name])]


def translated(form: CallForm, *tokens: str) -> list[list[TokenPiece]]:
    """What comes of each token, and of the answer's end."""
    translator = CallTranslator(form, TOOLS)
    return [*(translator.feed(TokenPiece(token)) for token in tokens), translator.finish()]


def joined(found: list[list[TokenPiece]]) -> str:
    return "".join(piece.text for pieces in found for piece in pieces)


@pytest.mark.parametrize("name", TRANSLATED)
def test_calls_are_the_same_wherever_an_answer_is_cut_in_two(name: str) -> None:
    """Every place is tried, in an answer with text, quotes, brackets and marks in its arguments."""
    form, answer = BY_NAME[name], several(name)
    whole = joined(translated(form, answer))
    text, calls = read(form, answer)
    assert (text, calls) == ("On it." if form.begins else "", [("weather", PLACES), ("time", {})])
    for at in range(len(answer)):
        found = translated(form, answer[:at], answer[at:])
        assert joined(found) == whole, answer[:at]
        assert sum(map(len, found)) <= 3


@pytest.mark.parametrize("name", TRANSLATED)
def test_calls_are_the_same_character_by_character(name: str) -> None:
    """However many tokens write it, and no more pieces come than there are tokens."""
    form, answer = BY_NAME[name], several(name)
    found = translated(form, *answer)
    assert joined(found) == joined(translated(form, answer))
    assert sum(map(len, found)) <= len(answer)
    assert read(form, *answer) == read(form, answer)


@pytest.mark.parametrize("name", TRANSLATED)
def test_arguments_come_while_they_are_written(name: str) -> None:
    """Half of a call's arguments are there when half of them are written; in Python's form, those that are whole."""
    form, answer = BY_NAME[name], several(name)
    written = answer[: answer.index("null" if form.style is not Style.PYTHON else "None")]
    said = "".join(piece.text for pieces in translated(form, *written)[:-1] for piece in pieces)
    _, _, arguments = said.partition('"arguments": ')
    assert json.loads(arguments.rstrip().removesuffix('"note":').rstrip(", ") + "}") == {"city": CODE, "days": 3}


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_call_that_is_cut_off_stays_open(name: str) -> None:
    """Half a text is no argument: what a client gets is no whole JSON, wherever the answer ends within it."""
    form, answer = BY_NAME[name], several(name)
    inside = answer.index("return")
    reader = CallReader({"weather", "time"}, ids="x")
    pieces = [piece for pieces in translated(form, *answer[:inside]) for piece in pieces]
    found = [*reader.feed(pieces), *reader.finish()]
    calls = [part for part in found if isinstance(part, ToolCall)]
    assert [call.name for call in calls] == (["weather"] if calls else [])
    for call in calls:
        with pytest.raises(json.JSONDecodeError):
            json.loads(call.arguments)


@pytest.mark.parametrize("name", TRANSLATED)
@given(data=st.data())
def test_cuts_change_nothing_in_noise(name: str, data: st.DataObject) -> None:
    """Parts of calls in any order, cut anywhere, with and without log-probabilities, are read alike."""
    form, answer = BY_NAME[name], several(name)
    places = st.integers(0, len(answer))
    spans = data.draw(st.lists(st.tuples(places, places), max_size=5))
    noise = "".join(answer[min(span) : max(span)] for span in spans)
    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(noise)), max_size=8))), len(noise)]
    tokens = [noise[start:end] for start, end in itertools.pairwise(edges)]
    found = translated(form, *tokens)
    assert joined(found) == joined(translated(form, noise))
    assert sum(map(len, found)) <= len(tokens) + 1
    translator = CallTranslator(form, TOOLS)
    scored = [translator.feed(TokenPiece(token, -0.5)) for token in tokens] + [translator.finish()]
    assert joined(scored) == joined(found)
    assert sum(map(len, scored)) <= len(tokens) + 1
