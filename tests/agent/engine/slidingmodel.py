"""Writes a tiny model with sliding attention: random weights in Gemma 2's shape, with another model's vocabulary."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

_ARCHITECTURE = "gemma2"
_WIDTH, _HEADS, _LAYERS, _HIDDEN = 64, 2, 4, 128


def write_sliding_model(vocabulary: Path, target: Path, *, window: int, context_tokens: int) -> Path:
    """Writes the model. vocabulary: a GGUF file whose tokenizer it gets. window: tokens that a sliding layer sees."""
    reader = gguf.GGUFReader(vocabulary)
    writer = gguf.GGUFWriter(target, _ARCHITECTURE)
    writer.add_context_length(context_tokens)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_HIDDEN)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_key_length(_WIDTH // _HEADS)
    writer.add_value_length(_WIDTH // _HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(window)
    for name, field in reader.fields.items():
        if name.startswith("tokenizer.ggml."):
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), kind, inner)
    random = np.random.default_rng(0)
    n_tokens = len(reader.fields["tokenizer.ggml.tokens"].data)

    def add(name: str, *shape: int) -> None:
        scale = 1 / np.sqrt(shape[-1]) if len(shape) > 1 else 0.1
        writer.add_tensor(name, random.normal(scale=scale, size=shape).astype(np.float32))

    add("token_embd.weight", n_tokens, _WIDTH)
    add("output_norm.weight", _WIDTH)
    for layer in range(_LAYERS):
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            add(f"blk.{layer}.{norm}.weight", _WIDTH)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", _WIDTH, _WIDTH)
        add(f"blk.{layer}.ffn_gate.weight", _HIDDEN, _WIDTH)
        add(f"blk.{layer}.ffn_up.weight", _HIDDEN, _WIDTH)
        add(f"blk.{layer}.ffn_down.weight", _WIDTH, _HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
