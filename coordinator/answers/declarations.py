"""Where a text declares its final answer: in a mark of its own, or behind words that say so. PURE.

Words are known in the languages that models answer in most: English, German, French, Spanish, Portuguese, Italian,
Dutch, Russian, Chinese, Japanese, Korean and Arabic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from moe2.coordinator.answers.normal_form import without_latex

MAX_SEGMENT = 300
MAX_DECLARATIONS = 50
_BOXED = re.compile(r"\\boxed\s*\{")
_TAGGED = re.compile(r"<answer>(.{1,2000}?)</answer>", re.IGNORECASE | re.DOTALL)
_HASHES = re.compile(r"^####[ \t]*(\S.{0,300})$", re.MULTILINE)
_NOT = (
    r"(?:(?:is|are|was|were|do|does|ca|could|wo|would)n['’]t\b|n['’]t\b|(?:not|cannot|neither|never)\b"
    r"|(?:nicht|kein(?:e|er|es)?|pas|não|não é|не)\b|no\s+es\b|non\s+è\b|n['’]est\b)"
)
_BEFORE_A_LETTER = r"(?!\W{0,4}(?-i:[A-HJ-Z])(?!\w))"
"""Between a noun and its verb stands no option's letter: in "option B is right" the option is B, and not "right"."""
_VERBS = r"(?:\b(?:is|are|be|ist|lautet|est|es|é|è|sera|será|является|это)(?!\w)|[:=—–]|[ ]-(?=[ ]))"
_GAP = r"(?:[*_\s:=—]|[–-](?=\s))*"
_EASTERN = (
    r"(?:答案|答え|解答|正解|正确选项|정답|답|الجواب|الإجابة)"
    r"(?:[^\n。.:=]{0,20}?(?:应该是|是|为|為|は|은|는|هو|هي|[:=])|[应應]?[选選])"
)
DECLARING = re.compile(
    rf"(?:\b(?:answer|ans\.?|antwort|lösung|réponse|respuesta|resposta|risposta|antwoord|ответ)(?!\w)"
    rf"(?![^\S\n]+(?:the|this|that|your|these|any)\b)"
    rf"(?:{_BEFORE_A_LETTER}(?:(?!\b{_NOT})[^\n.:=]){{0,60}}?{_VERBS})?"
    rf"|\b(?:correct|final|selected|chosen|final\s+result)\s*[:=]|{_EASTERN}){_GAP}",
    re.IGNORECASE,
)
"""What stands before a final answer."""
NAMING = re.compile(
    rf"(?:\b(?:option|choice|must be|it is|it's|choose|pick|select|go(?:ing)? with)\b"
    rf"(?:{_BEFORE_A_LETTER}[^\n.:=]{{0,30}}?(?:\bis\b|[:=]))?|(?:故|应|應|所以)?(?:选|選)择?){_GAP}",
    re.IGNORECASE,
)
"""What stands before a choice, where no final answer is declared."""
_NEGATED = re.compile(rf"[\s*_]*{_NOT}", re.IGNORECASE)
_BUT = re.compile(r"\b(?:but|rather|sondern|mais|sino|mas|ma|а)\b[\s,]*", re.IGNORECASE)
_SENTENCE_END = re.compile(
    r"(?<![A-Z0-9])[.!?](?=\s|$)|(?<=[0-9])[.!?](?=\s|$)|(?<=\b[A-Z])[.](?=\s+[A-Z][a-z]|\s*$)|[\n。]"
)


def declared(text: str, pattern: re.Pattern[str] = DECLARING) -> Iterator[str]:
    """The texts that are declared to be the answer, the last one first: what follows each declaration."""
    marked = [(found.start(), found[1]) for found in (*_TAGGED.finditer(text), *_HASHES.finditer(text))]
    marked += [(found.start(), _braced(text, found.end())) for found in _BOXED.finditer(text)]
    yield from (without_latex(segment) for _, segment in sorted(marked, reverse=True)[:MAX_DECLARATIONS])
    for found in list(pattern.finditer(text))[: -MAX_DECLARATIONS - 1 : -1]:
        yield text[found.end() : found.end() + MAX_SEGMENT]


def _braced(text: str, start: int) -> str:
    """The text up to the brace that closes the one before `start`."""
    depth = 1
    for place in range(start, min(len(text), start + MAX_SEGMENT)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return ""


def sentence_of(segment: str) -> str:
    """The segment up to the end of its first sentence or line."""
    segment = segment.lstrip()
    end = _SENTENCE_END.search(segment)
    return segment[: end.start()] if end else segment


def affirmed(segment: str) -> str | None:
    """What a declaration's segment says: of "not A but B" what stands behind the "but"; None where it only denies."""
    if not _NEGATED.match(segment):
        return segment
    contrast = _BUT.search(sentence_of(segment))
    return None if contrast is None else segment.lstrip()[contrast.end() :]
