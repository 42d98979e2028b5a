"""NVIDIA boards through NVML. The only user of the module `pynvml` (distribution nvidia-ml-py, BSD).

Figures, by preference: the energy counter (mJ since the driver was loaded; Volta and newer; updated about
every 100 ms), the instant power of field 186 (near-full coverage on an RTX 4090, arXiv 2312.02741), and the
plain power reading, which on Ampere and newer is an average over the last second. Reading needs no privilege.
A figure of 0 is no figure: a Jetson's NVML can answer zeros with success.
The module must be imported late: hosts without NVIDIA hardware need not have it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from moe2.agent.energy.meter import CounterUnwrapper
from moe2.agent.energy.sensor import (
    Limits,
    Reading,
    SensorAbsentError,
    SensorBrokenError,
    SensorDeniedError,
    SensorFacts,
    SensorMissedError,
)
from moe2.agent.energy.sysfs import text_or_none
from moe2.common.energy import Scope

_LIMITS = Limits(min_power_w=1.0, max_power_w=1500.0, stuck_after_s=20.0)
"""No board exceeds 1.5 kW, none in use draws less than 1 W. Idle power readings may repeat for seconds."""
_POWER_INSTANT_FIELD = (186, 0)
"""NVML_FI_DEV_POWER_INSTANT of the whole board (scope 0)."""
T = TypeVar("T")

_UNKNOWN_ERROR = 999
_INTEGRATED = re.compile(r"\b(Orin|Thor|Xavier|Tegra)\b|nvgpu", re.IGNORECASE)
"""What NVML calls the GPU inside a Jetson's chip."""

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


@dataclass(frozen=True, slots=True)
class BoardUse:
    """Who is on a board. mig_instances: into how many MIG has divided it; None where it is whole."""

    processes: frozenset[int] = frozenset()
    mig_instances: int | None = None

    @property
    def is_shared_by_mig(self) -> bool:
        """Whether others may compute on the board unseen: its joules are told for all instances together."""
        return self.mig_instances not in (None, 1)


class NvmlSensor:
    """One board, by its NVML index.

    root: of the file system that tells whether the kernel may put the board to sleep. on_jetson: a GPU that is part of
    the chip then belongs to the device "module", which the board's own monitor measures better.
    """

    def __init__(
        self,
        index: int = 0,
        clock: Callable[[], float] = monotonic,
        *,
        root: Path = Path("/"),
        on_jetson: bool = False,
    ) -> None:
        self.name = f"nvml:{index}"
        self.uuid: str | None = None
        """The board's own name for itself, the same in every process; None before `probe`, or where it has none."""
        self._index = index
        self._root = root
        self._may_sleep = False
        self._on_jetson = on_jetson
        self._is_integrated = False
        self._clock = clock
        self._library: ModuleType | None = None
        self._handle: Any = None
        self._method: Method | None = None
        self._power_source = Method.AVERAGE
        self._unwrapper = CounterUnwrapper(range_j=None, max_power_w=_LIMITS.max_power_w)

    @property
    def facts(self) -> SensorFacts:
        if self._method is None:
            raise RuntimeError("probe the sensor first")
        return SensorFacts(
            name=self.name,
            device="module" if self._is_integrated else f"gpu{self._index}",
            scope=Scope.GPU_BOARD,
            source=self._method.value,
            has_counter=self._method is Method.COUNTER,
            limits=_LIMITS,
            power_source=self._power_source.value,
            hardware=self.uuid,
            may_sleep=self._may_sleep,
        )

    def probe(self) -> str:
        library = self._opened()
        with _faults(library, "the board"):
            name = library.nvmlDeviceGetName(self._handle)
            self.uuid = _supported(library, lambda: str(library.nvmlDeviceGetUUID(self._handle)))
            pci = _supported(library, lambda: library.nvmlDeviceGetPciInfo(self._handle))
            instances = _supported(library, lambda: _mig_instances(library, self._handle))
        self._may_sleep = pci is not None and _may_sleep(self._root, pci.busId)
        self._is_integrated = self._on_jetson and _INTEGRATED.search(str(name)) is not None
        self._method = self._best_method(library)
        divided = "" if instances is None else f"; MIG has divided it into {len(instances)}, whose joules it sums up"
        return f"{name}, {self._method.value}{divided}"

    def read(self) -> Reading:
        if self._method is None:
            raise RuntimeError("probe the sensor first")
        library = self._opened()
        try:
            with _faults(library, "the board"):
                return self._read(library)
        except SensorMissedError:
            raise
        except (SensorBrokenError, SensorAbsentError):
            # A lost board or a reloaded driver leaves the handle dead: the next read begins anew.
            self.close()
            raise

    def throttling(self) -> str | None:
        """Return why the board is slower than it should be, in words; None if it is not, or does not say."""
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
            has_instant = bool(self._instant_w(library))
            self._power_source = Method.INSTANT if has_instant else Method.AVERAGE
            if self._energy_j(library):
                return Method.COUNTER
            if has_instant or self._average_w(library):
                return self._power_source
        raise SensorAbsentError(
            "NVML answers but this GPU reports neither energy nor power"
            " (as on Jetson, whose module is measured by its INA3221)."
        )

    def _read(self, library: ModuleType) -> Reading:
        before_s = self._clock()
        energy_j = self._energy_j(library) if self._method is Method.COUNTER else None
        at_s = (before_s + self._clock()) / 2
        power_of = self._instant_w if self._power_source is Method.INSTANT else self._average_w
        power_w = power_of(library) or None
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
    """Return the names of all boards that NVML lists; none where there is no NVML."""
    return tuple(_of_each_board(lambda library, board: str(library.nvmlDeviceGetName(board))).values())


def use_by_board() -> dict[str, BoardUse]:
    """Return who computes or draws on each board, by its device's name, such as "gpu0"."""

    def use(library: ModuleType, board: Any) -> BoardUse:
        instances = _supported(library, lambda: _mig_instances(library, board))
        if instances is None:
            return BoardUse(_processes(library, board))
        processes: set[int] = set()
        for one in (board, *instances):
            # Only root may ask a divided board for the processes of all its instances.
            with suppress(library.NVMLError):
                processes |= _processes(library, one)
        return BoardUse(frozenset(processes), len(instances))

    return _of_each_board(use)


def _processes(library: ModuleType, board: Any) -> frozenset[int]:
    computing = _supported(library, lambda: library.nvmlDeviceGetComputeRunningProcesses(board)) or ()
    drawing = _supported(library, lambda: library.nvmlDeviceGetGraphicsRunningProcesses(board)) or ()
    return frozenset(int(process.pid) for process in (*computing, *drawing))


def _mig_instances(library: ModuleType, board: Any) -> list[Any] | None:
    """Return the handles of a board's MIG instances; None where MIG is off."""
    current, _ = library.nvmlDeviceGetMigMode(board)
    if current != library.NVML_DEVICE_MIG_ENABLE:
        return None
    found = []
    for index in range(int(library.nvmlDeviceGetMaxMigDeviceCount(board))):
        # There may be fewer than there could be.
        with suppress(library.NVMLError_NotFound, library.NVMLError_InvalidArgument):
            found.append(library.nvmlDeviceGetMigDeviceHandleByIndex(board, index))
    return found


def _may_sleep(root: Path, bus_id: str | bytes) -> bool:
    """Return whether the kernel may put the board at this PCI address to sleep, as laptops do. Asks no driver."""
    # NVML writes the domain with eight digits, the kernel with four.
    address = (bus_id.decode() if isinstance(bus_id, bytes) else bus_id).lower()[-12:]
    if text_or_none(root / f"sys/bus/pci/devices/{address}/power/control") != "auto":
        return False
    told = text_or_none(root / f"proc/driver/nvidia/gpus/{address}/power") or ""
    status = re.search(r"^Runtime D3 status:\s*(\w.*)$", told, re.MULTILINE)
    return status is None or status[1].startswith("Enabled")


def _of_each_board(ask: Callable[[ModuleType, Any], T]) -> dict[str, T]:
    """Return the answer of each board, by its device's name; none of those that fail, nor where there is no NVML."""
    try:
        library = _library()
        with _faults(library, "NVML"):
            library.nvmlInit()
    except (SensorAbsentError, SensorDeniedError, SensorBrokenError):
        return {}
    answers: dict[str, T] = {}
    with suppress(library.NVMLError):
        for index in range(int(library.nvmlDeviceGetCount())):
            # One board that is lost, or does not tell, hides no other.
            with suppress(library.NVMLError):
                answers[f"gpu{index}"] = ask(library, library.nvmlDeviceGetHandleByIndex(index))
    with suppress(library.NVMLError):
        library.nvmlShutdown()
    return answers


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
    """Return the call's answer; None where this board or driver lacks it. An unknown error is tried once more."""
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
    if code in (library.NVML_ERROR_TIMEOUT, library.NVML_ERROR_IN_USE):
        raise SensorMissedError(
            f"{what} is busy just now: {error}.",
            remedy="If this goes on, look for Xid messages in the kernel log: the driver may hang.",
        ) from error
    if code == library.NVML_ERROR_RESET_REQUIRED:
        raise SensorBrokenError(
            f"the GPU must be reset before it can be used again ({error}).",
            remedy="End the programs on it, then `sudo nvidia-smi --gpu-reset`, or reboot the host.",
        ) from error
    raise SensorBrokenError(f"{what} answers with an error: {error}.") from error
