"""The conversion of a JSON body to its struct, with errors that name the parameter and what is accepted. PURE.

What is accepted is read from the struct's own types (`body.requests`), so that no bound is written down a second time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, TypeAlias, TypeVar

import msgspec
import msgspec.inspect as types

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.http.errors import ApiError, invalid, quoted, refused, unsupported

T = TypeVar("T", bound=msgspec.Struct)
_IdleTree: TypeAlias = "dict[str, tuple[Any, ...] | _IdleTree]"
"""Fields that are accepted and change nothing, by name, with the values of which that need not be said; or the fields
that have some inside."""

_NESTED = (dict, list)
"""The types of what JSON has parts in."""
MAX_FIELDS = 32_768
"""The most objects, lists and fields in a body: a hundred thousand tiny ones would hold everybody up for seconds."""
MAX_TEXTS = 65_536
"""The most texts in a body, names of fields among them."""
MAX_FLOATS = 65_536
"""The most numbers with a point or an exponent in a body."""
MAX_DIGITS = 64
"""The most digits in a row of a number: converting thousands of them takes long."""
MAX_LISTED = 8
"""The largest number of fields of an object that an error lists."""

_NUL = re.compile(rb"\\u0000")
"""The only way in which JSON can write NUL. In a long body `re` finds it in half the time that `in` takes."""
_MARKS = (b"{", b"[", b":")
_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = (MAX_DIGITS + 1) * b"0"
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""A text of JSON. One without an end reaches to the body's end, so that nothing is looked through twice."""
_STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+)\]")
_FIELD = re.compile(r"Object (?P<fault>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)


def json_object(body: bytes, *, but_for: str = "") -> dict[str, Any]:
    """Returns the body's fields without those that are null, which OpenAI's clients and servers read as "not set".

    but_for: the field of which null means something, and is kept. Raises `ApiError` (400) for a body that is no JSON
    object.
    """
    _check_count(body)
    _check_digits(body)
    try:
        # A short body has no room for too many numbers.
        decoder = _DECODER if len(body) <= MAX_FLOATS else msgspec.json.Decoder(float_hook=_Floats().read)
        content = decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise refused(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise refused(ErrorCode.INVALID_JSON, "The body must be a JSON object.")
    fields = {name: value for name, value in content.items() if value is not None or name == but_for}
    if _NUL.search(body):
        _refuse_nul(fields, "")
    return fields


def _check_count(body: bytes) -> None:
    """Raises `ApiError` (400) for a body with too many parts, before anything is built of it."""
    if len(body) <= MAX_FIELDS:
        return  # There is no room for more.
    if sum(map(body.count, _MARKS)) <= MAX_FIELDS and body.count(b'"') <= 2 * MAX_TEXTS:
        return
    # What stands within texts is no part. Looking ends where there are too many: it, too, holds everybody up.
    n_fields = n_texts = end = 0
    for text in _TEXT.finditer(body):
        n_fields += sum(body.count(mark, end, text.start()) for mark in _MARKS)
        n_texts += 1
        end = text.end()
        if n_fields > MAX_FIELDS or n_texts > MAX_TEXTS:
            break
    n_fields += sum(body.count(mark, end) for mark in _MARKS) if n_texts <= MAX_TEXTS else 0
    if n_fields > MAX_FIELDS or n_texts > MAX_TEXTS:
        raise invalid(
            f"The body has more than {MAX_FIELDS:,} objects, lists and fields, or more than {MAX_TEXTS:,} texts, all "
            "depths together. Send fewer messages, or join their parts."
        )


def _check_digits(body: bytes) -> None:
    """Raises `ApiError` (400) for a number of too many digits, before it is converted."""
    zeros = body.translate(_TO_ZEROS)
    if _LONG_NUMBER not in zeros:
        return
    end = 0
    for text in _TEXT.finditer(body):
        if zeros.find(_LONG_NUMBER, end, text.start()) >= 0:
            break
        end = text.end()
    else:
        if zeros.find(_LONG_NUMBER, end) < 0:
            return
    raise invalid(f"The body has a number of more than {MAX_DIGITS} digits in a row.")


def _float(text: str) -> float:
    """Returns a number that has a point or an exponent. Raises `ApiError` (400) for one that is too large.

    msgspec itself takes up to 16 µs for one such as 1e300, in which nothing else runs; Python takes 0.5 µs.
    """
    value = float(text)
    if not isfinite(value):
        raise refused(ErrorCode.INVALID_JSON, f"The body is not valid JSON: the number {quoted(text)} is too large.")
    return value


_DECODER = msgspec.json.Decoder(float_hook=_float)


class _Floats:
    """Reads the numbers of a long body that have a point or an exponent, and counts them."""

    def __init__(self) -> None:
        self._n_read = 0

    def read(self, text: str) -> float:
        """Returns the number, see `_float`. Raises `ApiError` (400) for too many, too."""
        self._n_read += 1
        if self._n_read > MAX_FLOATS:
            raise invalid(f"The body has more than {MAX_FLOATS:,} numbers with a point or an exponent.")
        return _float(text)


def _refuse_nul(value: Any, param: str) -> None:
    """Raises `ApiError` for the first text that contains NUL: it ends a C string, so that no tokenizer can take it."""
    if isinstance(value, str) and "\0" in value:
        raise invalid(f"'{param}' contains a NUL character.", param=param)
    if isinstance(value, dict):
        for name, part in value.items():
            _refuse_nul(part, _joined(param, name))
    if isinstance(value, list):
        for index, part in enumerate(value):
            _refuse_nul(part, f"{param}[{index}]")


def convert(fields: Mapping[str, Any], kind: type[T]) -> T:
    """Converts fields to a struct. Raises `ApiError` (400), which names the parameter that does not fit."""
    known = _names(kind)
    for name in fields:
        if name not in known:
            raise unsupported(name, hint=_known(kind.__struct_fields__))
    try:
        read = msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), fields, kind) from None
    neutral = _neutral(kind)
    for name in fields:
        if name not in neutral:
            continue
        values, why = neutral[name]
        value = getattr(read, name)
        # By type as well: to Python, true equals 1.
        if value is not None and not any(type(value) is type(one) and value == one for one in values):
            raise unsupported(name, hint=f"Only {values[0]!r} is accepted. {why}".strip())
    return read


def without_unknown(fields: Mapping[str, Any], kind: type[msgspec.Struct]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the fields without those, at any depth, that no struct has, and the names of what was left out.

    Such a name is `messages[].id`, whichever messages have it.
    """
    out: dict[str, None] = {}
    found: dict[str, Any] = _pruned(fields, _form(kind), "", out)
    return found, tuple(out)


def _pruned(value: Any, info: types.Type, param: str, out: dict[str, None]) -> Any:
    """Returns a value without the fields that its type does not know; adds the names of these to `out`."""
    if isinstance(value, list):
        items = [each.item_type for each in _alternatives(info) if isinstance(each, types.ListType)]
        return [_pruned(each, items[0], f"{param}[]", out) for each in value] if items else value
    structs = [each for each in _structs(info) if each.forbid_unknown_fields]
    if not isinstance(value, dict) or not structs:
        return value
    if len(structs) > 1:
        structs = [each for each in structs if each.tag == value.get(each.tag_field)]
    if not structs:
        return value  # It is none of the forms that there are, which `convert` says.
    known = {field.encode_name: field.type for field in structs[0].fields}
    kept = {}
    for name, part in value.items():
        where = _joined(param, name)
        if name in known:
            kept[name] = _pruned(part, known[name], where, out)
        elif name == structs[0].tag_field:
            kept[name] = part
        else:
            out[where] = None
    return kept


def idle_parameters(fields: dict[str, Any], kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Returns the names of the parameters, at any depth, that are set, are accepted and change nothing."""
    out: dict[str, None] = {}
    _find_idle(fields, _idle_tree(kind), "", out)
    return tuple(out)


def _find_idle(value: dict[str, Any] | list[Any], tree: _IdleTree, param: str, out: dict[str, None]) -> None:
    """Adds the names of a value's fields that change nothing to `out`. value: an object, or a list."""
    if isinstance(value, list):
        where = f"{param}[]"
        for each in value:
            if type(each) in _NESTED:
                _find_idle(each, tree, where, out)
        return
    for name in value:
        if name not in tree or value[name] is None:
            continue
        found, part = tree[name], value[name]
        if not isinstance(found, dict):
            if part not in found:
                out[_joined(param, name)] = None
        elif type(part) in _NESTED:
            _find_idle(part, found, _joined(param, name), out)


@functools.cache
def _form(kind: type[msgspec.Struct]) -> types.Type:
    """Returns what there is to know of a struct's type. Finding it out takes as long as a hundred bodies."""
    return types.type_info(kind)


@functools.cache
def _idle_tree(kind: type[msgspec.Struct]) -> _IdleTree:
    return _idle_in(_form(kind))


def _idle_in(info: types.Type) -> _IdleTree:
    """Returns the fields of a type's values that change nothing; lists are passed through, forms are merged."""
    found: _IdleTree = {}
    for each in _alternatives(info):
        if isinstance(each, types.ListType):
            found |= _idle_in(each.item_type)
        for field in each.fields if isinstance(each, types.StructType) else ():
            silent = _extra(field.type).get("idle")
            if silent is not None:
                found[field.encode_name] = silent
            elif inner := _idle_in(field.type):
                former = found.get(field.encode_name)
                found[field.encode_name] = {**former, **inner} if isinstance(former, dict) else inner
    return found


@functools.cache
def _names(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Returns the names of a struct's fields as a body has them."""
    (info,) = _structs(_form(kind))
    return frozenset(field.encode_name for field in info.fields)


@functools.cache
def _neutral(kind: type[msgspec.Struct]) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Returns the parameters that are accepted only with values that change nothing, these values, and why."""
    (info,) = _structs(_form(kind))
    extras = ((field.name, _extra(field.type)) for field in info.fields)
    return {name: (extra["only"], extra.get("why", "")) for name, extra in extras if extra.get("only")}


def _refusal(text: str, fields: Mapping[str, Any], kind: type[msgspec.Struct]) -> ApiError:
    """Returns the error for what msgspec says of these fields: "PROBLEM - at `$.PATH`"."""
    before, at, path = text.rpartition(" - at ")
    problem = before if at else text
    field = _FIELD.fullmatch(problem)
    param, info, value = "", _form(kind), fields
    for step in _STEP.finditer(path):
        param, info, value = _step(param, info, value, step)
        extra = _extra(info)
        if "refusal" in extra and field is None:
            return unsupported(param, hint=extra["refusal"])
        if "must" in extra:
            return _wrong(param, info)
    if field is None:
        return _wrong(param, info)
    name = field["name"]
    if field["fault"] == "contains unknown":
        return unsupported(_joined(param, name), hint=_where_known(info, name))
    return _absent(_joined(param, name), _field(info, value, name))


def _step(param: str, info: types.Type, value: Any, step: re.Match[str]) -> tuple[str, types.Type, Any]:
    """Takes one step down a path; returns the parameter's name, its type and its value."""
    if (name := step["name"]) is not None:
        inner = value.get(name) if isinstance(value, Mapping) else None
        return _joined(param, name), _field(info, value, name), inner
    index = int(step["index"])
    items = [each.item_type for each in _alternatives(info) if isinstance(each, types.ListType)]
    inner = value[index] if isinstance(value, list) and index < len(value) else None
    return f"{param}[{index}]", items[0] if items else types.AnyType(), inner


def _field(info: types.Type, value: Any, name: str) -> types.Type:
    """Returns the type of a field. Where an object has several forms, its value tells which one it is."""
    structs = _structs(info)
    tags = {struct.tag: struct for struct in structs if struct.tag_field == name}
    if tags:
        return types.LiteralType(values=tuple(tags))
    for struct in structs:
        is_it = len(structs) == 1 or (isinstance(value, Mapping) and value.get(struct.tag_field) == struct.tag)
        found = [field.type for field in struct.fields if field.name == name]
        if is_it and found:
            return found[0]
    return types.AnyType()


def _where_known(info: types.Type, name: str) -> str:
    """Returns a remedy for an unknown field: the other form of the object that has it, or the known fields."""
    structs = _structs(info)
    if len(structs) == 1:
        return _known([field.name for field in structs[0].fields])
    tags = [struct.tag for struct in structs if any(field.name == name for field in struct.fields)]
    return f"It needs {structs[0].tag_field!r}: {' or '.join(map(repr, tags))}." if tags else ""


def _known(names: Sequence[str]) -> str:
    """Returns the fields of an object as text, where they are few enough to read."""
    return f"Known: {', '.join(names)}." if len(names) <= MAX_LISTED else ""


def _wrong(param: str, info: types.Type) -> ApiError:
    extra = _extra(info)
    values = _values(info)
    if "must" not in extra and len(values) == 1:
        return unsupported(param, hint=f"Only {values[0]!r} is accepted.")
    hint = f" {extra['hint']}" if "hint" in extra else ""
    return invalid(f"'{param}' must {extra.get('must') or f'be {_noun(info)}'}.{hint}", param=param)


def _absent(param: str, info: types.Type) -> ApiError:
    extra = _extra(info)
    wanted = f"it must {extra['must']}" if "must" in extra else _noun(info)
    hint = f" {extra['hint']}" if "hint" in extra else ""
    return invalid(f"'{param}' is required: {wanted}.{hint}", param=param)


def _noun(info: types.Type) -> str:
    """Describes in words what a type accepts."""
    if noun := _extra(info).get("noun"):
        return str(noun)
    if values := _values(info):
        return repr(values[0]) if len(values) == 1 else f"one of {', '.join(map(str, values))}"
    nouns = [_plain_noun(each) for each in _alternatives(info) if not isinstance(each, types.NoneType)]
    return " or ".join(dict.fromkeys(nouns))


def _plain_noun(info: types.Type) -> str:
    match info:
        case types.BoolType():
            return "a boolean"
        case types.IntType(ge=least, le=most):
            return "an integer" if least is None or most is None else f"an integer from {least} to {most}"
        case types.FloatType(ge=least, le=most):
            return "a number" if least is None or most is None else f"a number from {least:g} to {most:g}"
        case types.StrType(min_length=least):
            return f"a {'non-empty ' if least else ''}string"
        case types.ListType(min_length=least, max_length=most):
            return f"a {'non-empty ' if least else ''}list{'' if most is None else f' of at most {most}'}"
        case _:
            return "an object"


def _values(info: types.Type) -> tuple[Any, ...]:
    """Returns the values of a type that is nothing but an enumeration."""
    kinds = [each for each in _alternatives(info) if not isinstance(each, types.NoneType)]
    literals = [each for each in kinds if isinstance(each, types.LiteralType)]
    return literals[0].values if len(literals) == len(kinds) == 1 else ()


def _alternatives(info: types.Type) -> list[types.Type]:
    """Returns the types of which a value has one."""
    if isinstance(info, types.Metadata):
        return _alternatives(info.type)
    if isinstance(info, types.UnionType):
        return [each for member in info.types for each in _alternatives(member)]
    return [info]


def _structs(info: types.Type) -> list[types.StructType]:
    return [each for each in _alternatives(info) if isinstance(each, types.StructType)]


def _extra(info: types.Type) -> dict[str, Any]:
    """Returns the `Meta.extra` of a type; of "X or null" that of X."""
    if isinstance(info, types.Metadata):
        return {**_extra(info.type), **(info.extra or {})}
    if isinstance(info, types.UnionType):
        others = [each for each in info.types if not isinstance(each, types.NoneType)]
        return _extra(others[0]) if len(others) == 1 else {}
    return {}


def _joined(param: str, name: str) -> str:
    return f"{param}.{name}" if param else name
