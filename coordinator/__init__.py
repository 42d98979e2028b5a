"""The coordinator: one OpenAI-compatible service over the fleet, with two-level expert selection."""

import os

# Its matrices are small: more threads than one add nothing, and on a busy host they wait for each other, so that a plan
# takes half as long again. numpy reads this once, when it is imported; who has set another number keeps it.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
