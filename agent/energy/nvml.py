"""NVIDIA boards through NVML. The only user of the module `pynvml` (distribution nvidia-ml-py, BSD).

Figures, by preference: the energy counter (mJ since the driver was loaded; Volta and newer; updated about
every 100 ms), the instant power of field 186 (near-full coverage on an RTX 4090, arXiv 2312.02741), and the
plain power reading, which on Ampere and newer is an average over the last second. Reading needs no privilege.
The module must be imported late: hosts without NVIDIA hardware need not have it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from time import monotonic
from types import ModuleType
from typing import Any, NoReturn

from moe2.agent.energy.meter import CounterUnwrapper
from moe2.agent.energy.sensor import (
    Limits,
    Reading,
    SensorAbsentError,
    SensorBrokenError,
    SensorDeniedError,
    SensorFacts,
)
from moe2.common.energy import Scope

_LIMITS = Limits(min_power_w=1.0, max_power_w=1500.0, stuck_after_s=20.0)
"""No board exceeds 1.5 kW, none in use draws less than 1 W. Idle power readings may repeat for seconds."""
_POWER_INSTANT_FIELD = (186, 0)
"""NVML_FI_DEV_POWER_INSTANT of the whole board (scope 0)."""
_UNKNOWN_ERROR = 999

_THROTTLE_BITS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
"""Bits of nvmlDeviceGetCurrentClocksThrottleReasons that mean heat or supply, not a chosen limit."""


class Method(Enum):
    """How a board tells its consumption; the value is the source written into energy records."""

    COUNTER = "nvml.total_energy"
    INSTANT = "nvml.power_instant"
    AVERAGE = "nvml.power_average"


class NvmlSensor:
    """One board, by its NVML index."""

    def __init__(self, index: int = 0, clock: Callable[[], float] = monotonic) -> None:
        self.name = f"nvml:{index}"
        self._index = index
        self._clock = clock
        self._library: ModuleType | None = None
        self._handle: Any = None
        self._method: Method | None = None
        self._unwrapper = CounterUnwrapper(range_j=None, max_power_w=_LIMITS.max_power_w)

    @property
    def facts(self) -> SensorFacts:
        if self._method is None:
            raise RuntimeError("probe the sensor first")
        return SensorFacts(
            name=self.name,
            device=f"gpu{self._index}",
            scope=Scope.GPU_BOARD,
            source=self._method.value,
            has_counter=self._method is Method.COUNTER,
            limits=_LIMITS,
        )

    def probe(self) -> str:
        library = self._opened()
        with _faults(library, "the board"):
            name = library.nvmlDeviceGetName(self._handle)
        self._method = self._best_method(library)
        return f"{name}, {self._method.value}"

    def read(self) -> Reading:
        if self._method is None:
            raise RuntimeError("probe the sensor first")
        library = self._opened()
        try:
            with _faults(library, "the board"):
                return self._read(library)
        except (SensorBrokenError, SensorAbsentError):
            # A lost board or a reloaded driver leaves the handle dead: the next read begins anew.
            self.close()
            raise

    def throttling(self) -> str | None:
        """Why the board is running slower than it should, in words; None if it is not, or does not say."""
        try:
            library = self._opened()
            with _faults(library, "the board"):
                bits = int(library.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
        except (SensorAbsentError, SensorDeniedError, SensorBrokenError):
            # Whoever reads power reports it.
            return None
        return ", ".join(word for bit, word in _THROTTLE_BITS.items() if bits & bit) or None

    def close(self) -> None:
        library, self._library, self._handle = self._library, None, None
        if library is not None:
            try:
                library.nvmlShutdown()
            except library.NVMLError:
                return  # The driver is gone already.

    def _opened(self) -> ModuleType:
        if self._library is not None:
            return self._library
        library = _library()
        with _faults(library, "NVML"):
            library.nvmlInit()
        try:
            with _faults(library, "the board"):
                if self._index >= int(library.nvmlDeviceGetCount()):
                    raise SensorAbsentError(f"NVML lists no board of index {self._index}.")
                self._handle = library.nvmlDeviceGetHandleByIndex(self._index)
        except Exception:
            library.nvmlShutdown()
            raise
        self._library = library
        return library

    def _best_method(self, library: ModuleType) -> Method:
        with _faults(library, "the board"):
            if self._energy_j(library) is not None:
                return Method.COUNTER
            if self._instant_w(library) is not None:
                return Method.INSTANT
            if self._average_w(library) is not None:
                return Method.AVERAGE
        raise SensorAbsentError(
            "NVML answers but this GPU reports neither energy nor power"
            " (as on Jetson, whose module is measured by its INA3221)."
        )

    def _read(self, library: ModuleType) -> Reading:
        before_s = self._clock()
        energy_j = self._energy_j(library) if self._method is Method.COUNTER else None
        at_s = (before_s + self._clock()) / 2
        power_of = self._average_w if self._method is Method.AVERAGE else self._instant_w
        power_w = power_of(library)
        if energy_j is None and power_w is None:
            raise SensorBrokenError("the board reports neither energy nor power any more.")
        if energy_j is None:
            return Reading(at_s=at_s, power_w=power_w)
        counted_j = self._unwrapper.advance(at_s, energy_j)
        return Reading(at_s=at_s, energy_j=counted_j, power_w=power_w, epoch=self._unwrapper.epoch)

    def _energy_j(self, library: ModuleType) -> float | None:
        millijoules = _supported(library, lambda: library.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        return None if millijoules is None else millijoules * 1e-3

    def _average_w(self, library: ModuleType) -> float | None:
        milliwatts = _supported(library, lambda: library.nvmlDeviceGetPowerUsage(self._handle))
        return None if milliwatts is None else milliwatts * 1e-3

    def _instant_w(self, library: ModuleType) -> float | None:
        # The call succeeds even where the single field does not exist: each entry has a status of its own.
        entries = _supported(library, lambda: library.nvmlDeviceGetFieldValues(self._handle, [_POWER_INSTANT_FIELD]))
        if entries is None or entries[0].nvmlReturn != library.NVML_SUCCESS:
            return None
        return float(entries[0].value.uiVal) * 1e-3


def board_names() -> tuple[str, ...]:
    """The names of all boards that NVML lists; empty where there is no NVML."""
    try:
        library = _library()
        with _faults(library, "NVML"):
            library.nvmlInit()
    except (SensorAbsentError, SensorDeniedError, SensorBrokenError):
        return ()
    try:
        return tuple(
            str(library.nvmlDeviceGetName(library.nvmlDeviceGetHandleByIndex(index)))
            for index in range(int(library.nvmlDeviceGetCount()))
        )
    except library.NVMLError:
        return ()
    finally:
        library.nvmlShutdown()


def _library() -> ModuleType:
    try:
        import pynvml
    except ImportError:
        raise SensorAbsentError(
            "the Python module for NVML is not installed.",
            remedy=f"On a host with an NVIDIA board: sudo {sys.executable} -m pip install nvidia-ml-py",
        ) from None
    return pynvml  # type: ignore[no-any-return]


def _supported(library: ModuleType, call: Callable[[], Any]) -> Any:
    """The call's answer; None where this board or driver does not have it. An unknown error is tried once
    more."""
    for last_try in (False, True):
        try:
            return call()
        except (library.NVMLError_NotSupported, library.NVMLError_FunctionNotFound):
            return None
        except library.NVMLError as error:
            if last_try or error.value != _UNKNOWN_ERROR:
                raise
    return None


@contextmanager
def _faults(library: ModuleType, what: str) -> Iterator[None]:
    """Turn NVML's errors into the contract's."""
    try:
        yield
    except library.NVMLError as error:
        _raise_fault(library, error, what)


def _raise_fault(library: ModuleType, error: Any, what: str) -> NoReturn:
    code = error.value
    if code in (library.NVML_ERROR_LIBRARY_NOT_FOUND, library.NVML_ERROR_DRIVER_NOT_LOADED):
        raise SensorAbsentError("no NVIDIA driver is loaded on this host.") from error
    if code in (library.NVML_ERROR_NOT_SUPPORTED, library.NVML_ERROR_FUNCTION_NOT_FOUND):
        raise SensorAbsentError(f"{what} does not support this query.", remedy="A newer NVIDIA driver may.") from error
    if code == library.NVML_ERROR_NO_PERMISSION:
        raise SensorDeniedError(
            f"NVML may not be read by this user ({error}).",
            remedy="Give the agent's user access to /dev/nvidiactl and /dev/nvidia*.",
        ) from error
    if code == library.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        raise SensorBrokenError(
            "the NVIDIA driver was upgraded under the running kernel.", remedy="Reboot the host."
        ) from error
    if code == library.NVML_ERROR_GPU_IS_LOST:
        raise SensorBrokenError(
            "the GPU is lost (it no longer answers on the bus).",
            remedy="Look for Xid messages in the kernel log; reset the board or reboot the host.",
        ) from error
    raise SensorBrokenError(f"{what} answers with an error: {error}.") from error
