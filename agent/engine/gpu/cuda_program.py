"""Asks NVIDIA's driver whether CUDA works here, and prints its answer as one line of JSON.

It is a program of its own, run as a child: a driver that hangs or crashes takes this process and no other, and what it
prints is kept apart. Standard library only, so that any Python can run the file. `cuInit` makes no context, so nothing
is allocated on the GPU. Keys: `code` is cuInit's result (null where there is no library), `devices` the names of the
GPUs, `driver` the newest CUDA version that the driver knows, such as "12.6", `detail` why the library cannot be loaded.
"""

import ctypes
import json
import sys

_NAME_BYTES = 256


def answer() -> dict[str, object]:
    """What the driver says. Never raises for what is wrong with the driver."""
    told: dict[str, object] = {"code": None, "devices": [], "driver": None, "detail": None}
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
        told["code"] = cuda.cuInit(0)
    except (OSError, AttributeError) as error:
        told["detail"] = str(error)
        return told
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
        # 12060 is 12.6.
        told["driver"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if told["code"] == 0 and cuda.cuDeviceGetCount(ctypes.byref(number)) == 0:
        told["devices"] = [_name(cuda, place) for place in range(number.value)]
    return told


def _name(cuda: ctypes.CDLL, place: int) -> str:
    device = ctypes.c_int()
    text = ctypes.create_string_buffer(_NAME_BYTES)
    if cuda.cuDeviceGet(ctypes.byref(device), place) or cuda.cuDeviceGetName(text, _NAME_BYTES, device):
        return f"GPU {place}"
    return text.value.decode("utf-8", "replace")


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(answer()) + "\n")
