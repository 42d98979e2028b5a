"""What the values of a type are made of in the end, as msgspec sees it. PURE."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec.inspect as kinds


def leaves(info: kinds.Type) -> Iterator[kinds.Type]:
    """Yields the types without parts that a value of the type can hold, within structs, tuples and unions."""
    match info:
        case kinds.StructType():
            for field in info.fields:
                yield from leaves(field.type)
        case kinds.VarTupleType():
            yield from leaves(info.item_type)
        case kinds.TupleType():
            for item in info.item_types:
                yield from leaves(item)
        case kinds.UnionType():
            for one in info.types:
                yield from leaves(one)
        case _:
            yield info
