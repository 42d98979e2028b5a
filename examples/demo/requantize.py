"""`python -m examples.demo.requantize SOURCE TARGET`: quantize a GGUF file again, with llama.cpp's own quantizer.

A process of its own: llama.cpp logs to stderr as it likes, and aborts the process on some files.
"""

from __future__ import annotations

import ctypes
import os
import sys

import llama_cpp

# Q4_0, with the token embeddings, which are also the output layer here, in Q5_0: of what SmolLM2-135M's row length of
# 576 allows (k-quants need a multiple of 256), this gives a clearly smaller file that decodes clearly faster than Q4_1,
# answers worse but still in sentences, and is made in a second.
FILE_TYPE = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
EMBEDDING_TYPE = llama_cpp.GGML_TYPE_Q5_0


def main() -> int:
    source, target = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPE
    parameters.token_embedding_type = EMBEDDING_TYPE
    parameters.output_tensor_type = EMBEDDING_TYPE
    # The source is quantized already. Fine for a demo that wants two experts of unlike quality.
    parameters.allow_requantize = True
    parameters.nthread = os.cpu_count() or 1
    return int(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main())
