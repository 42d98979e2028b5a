"""`python -m examples.demo.requantize SOURCE TARGET`: quantize a GGUF file again, with llama.cpp's own quantizer.

A process of its own: llama.cpp logs to stderr as it likes, and aborts the process on some files.
"""

from __future__ import annotations

import ctypes
import os
import sys

import llama_cpp

# IQ4_NL throughout, also for the token embeddings, which the quantizer would otherwise keep larger. Of the types that
# SmolLM2-135M's row length of 576 allows (k-quants need a multiple of 256), it gives a clearly smaller file that
# decodes clearly faster than Q4_1 and still answers in sentences.
FILE_TYPE = llama_cpp.LLAMA_FTYPE_MOSTLY_IQ4_NL
TENSOR_TYPE = llama_cpp.GGML_TYPE_IQ4_NL


def main() -> int:
    source, target = sys.argv[1:]
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPE
    parameters.token_embedding_type = TENSOR_TYPE
    parameters.output_tensor_type = TENSOR_TYPE
    # The source is quantized already. Fine for a demo that wants two experts of unlike quality.
    parameters.allow_requantize = True
    parameters.nthread = os.cpu_count() or 1
    return int(llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(main())
