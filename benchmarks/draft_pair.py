"""A larger model that says what a smaller one says: to see what a draft model that is right brings at most.

    python -m benchmarks.draft_pair SMALL.gguf LARGE.gguf [--layers N]

LARGE is SMALL with N further layers that add nothing: their last projections are zero, so that what comes in goes out.
It takes the time and memory of a model of so many layers. It is synthetic: no real draft model is right so often.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter

_ENDS_OF_LAYER = ("attn_output.weight", "ffn_down.weight")
"""What these give is added to what comes in."""


def deepen(small: Path, large: Path, *, layers: int) -> Path:
    """Write a copy of a llama model with so many further layers that change nothing. Returns the copy's path."""
    reader = GGUFReader(small)
    writer = GGUFWriter(large, "llama")
    own = int(reader.fields["llama.block_count"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value: Any = own + layers if key == "llama.block_count" else field.contents()
        writer.add_key_value(key, value, field.types[0], field.types[-1] if _is_array(field.types) else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    first = [tensor for tensor in reader.tensors if tensor.name.startswith("blk.0.")]
    for layer in range(own, own + layers):
        for tensor in first:
            name = tensor.name.removeprefix("blk.0.")
            # In all of ggml's formats a block of zero bytes is a block of zeros.
            data = np.zeros_like(tensor.data) if name in _ENDS_OF_LAYER else tensor.data
            writer.add_tensor(f"blk.{layer}.{name}", data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return large


def _is_array(types: list[GGUFValueType]) -> bool:
    return types[0] is GGUFValueType.ARRAY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path, help="a GGUF file of a llama model")
    parser.add_argument("large", type=Path, help="the file to write")
    parser.add_argument("--layers", type=int, default=90)
    arguments = parser.parse_args()
    deepen(arguments.small, arguments.large, layers=arguments.layers)


if __name__ == "__main__":
    main()
