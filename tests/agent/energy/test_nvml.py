"""NVML against a fake driver library, compiled here and loaded in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import sysfs
from tests.fakes.nvidialibrary import compile_nvml

_REPOSITORY = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build the fake driver library"),
]


class Board:
    """A sensor over the fake driver in a child process, and the state file that steers the driver."""

    def __init__(self, library: Path, state: Path, *options: str) -> None:
        self._state = state
        self._state_values: dict[str, int] = {}
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML_STATE": str(state),
            "PYTHONPATH": os.pathsep.join([str(_REPOSITORY / "dev"), str(_REPOSITORY)]),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.nvml_session", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=_REPOSITORY,
            text=True,
        )

    def set(self, **values: int) -> None:
        """Change what the driver answers from now on."""
        self._state_values |= values
        self._state.write_text("".join(f"{key} {value}\n" for key, value in self._state_values.items()))

    def ask(self, operation: str, at_s: float = 0.0) -> dict[str, Any]:
        """The raw answer to one operation."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([operation, at_s]) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def do(self, operation: str, at_s: float = 0.0) -> Any:
        """The answer to an operation that has to succeed."""
        return self.ask(operation, at_s)["ok"]


BoardFactory = Callable[..., Board]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with the fake library as a new and as an old driver."""
    folders = {}
    for variant, flags in (("new", []), ("old", ["-DOLD_DRIVER"])):
        folder = tmp_path_factory.mktemp(variant)
        compile_nvml(folder, *flags)
        folders[variant] = folder
    return folders


@pytest.fixture
def board(libraries: dict[str, Path], tmp_path: Path) -> Iterator[BoardFactory]:
    """Starts boards with a given state."""
    started: list[Board] = []

    def start(driver: str = "new", *options: str, **values: int) -> Board:
        one = Board(libraries[driver], tmp_path / "state", *options)
        started.append(one)
        if values:
            one.set(**values)
        return one

    yield start
    for one in started:
        one.process.communicate()


def test_counter_is_preferred_and_power_comes_along(board: BoardFactory) -> None:
    """A new board gives its energy counter in J from the first reading on, and instant power in W."""
    one = board(energy_mj=5_000_000, field_mw=52_000)
    assert one.do("probe") == ["Fake RTX 4090, nvml.total_energy", "nvml.total_energy"]
    one.do("read", 1.0)
    one.set(energy_mj=5_012_500)
    assert one.do("read", 1.1) == {"at_s": 1.1, "energy_j": 12.5, "power_w": 52.0, "epoch": 0}


def test_counter_that_falls_begins_a_new_epoch(board: BoardFactory) -> None:
    """A driver reload resets the counter; no difference is taken across it."""
    one = board(energy_mj=5_000_000, field_mw=52_000)
    one.do("probe")
    one.do("read", 1.0)
    one.set(energy_mj=10)
    assert one.do("read", 1.1)["epoch"] == 1


def test_field_status_is_checked_per_entry(board: BoardFactory) -> None:
    """The call succeeds while its one entry says NotSupported: power stays unknown instead of 0 W."""
    one = board(energy_mj=1000, field_status=3, field_mw=0)
    one.do("probe")
    assert one.do("read")["power_w"] is None


def test_instant_power_is_used_without_a_counter(board: BoardFactory) -> None:
    """Boards without the energy counter are integrated from field 186."""
    one = board(energy_status=3, field_mw=300_500)
    assert one.do("probe")[1] == "nvml.power_instant"
    assert one.do("read", 2.0) == {"at_s": 2.0, "energy_j": None, "power_w": 300.5, "epoch": 0}


def test_old_driver_falls_back_to_average_power(board: BoardFactory) -> None:
    """Functions that an old library lacks lead to the next method, and the source says which."""
    one = board("old", power_mw=250_000)
    assert one.do("probe")[1] == "nvml.power_average"
    assert one.do("read")["power_w"] == 250.0


def test_jetson_that_supports_nothing_is_absent(board: BoardFactory) -> None:
    """NVML initialises on Jetson but supports no figure: absent, never 0."""
    one = board(energy_status=3, field_status=3, power_status=3)
    answer = one.ask("probe")
    assert answer["error"] == "SensorAbsentError"
    assert "neither energy nor power" in answer["message"]


def test_no_driver_is_absent(board: BoardFactory) -> None:
    """Without a loaded driver there is no sensor, and that is no fault."""
    assert board().ask("probe")["error"] == "SensorAbsentError"


def test_no_board_is_absent(board: BoardFactory) -> None:
    """A driver without boards has no sensor."""
    assert board(count=0).ask("probe")["error"] == "SensorAbsentError"


def test_upgraded_driver_asks_for_a_reboot(board: BoardFactory) -> None:
    """A library that does not match the kernel module is broken, and the remedy is a reboot."""
    answer = board(init=18).ask("probe")
    assert answer["error"] == "SensorBrokenError"
    assert answer["remedy"] == "Reboot the host."


def test_no_permission_is_denied_with_a_remedy(board: BoardFactory) -> None:
    """A refusal is told apart from absence."""
    answer = board(init=4).ask("probe")
    assert answer["error"] == "SensorDeniedError"
    assert "/dev/nvidia" in answer["remedy"]


def test_lost_gpu_is_broken_until_it_returns(board: BoardFactory) -> None:
    """A lost board gives no reading; once it answers again, reading resumes with a fresh handle."""
    one = board(energy_mj=1000, field_mw=52_000)
    one.do("probe")
    one.set(energy_status=15)
    answer = one.ask("read")
    assert answer["error"] == "SensorBrokenError"
    assert "lost" in answer["message"]
    one.set(energy_status=0)
    assert one.do("read")["power_w"] == 52.0


@pytest.mark.parametrize("code", [10, 19])
def test_a_busy_board_is_one_missed_sample(board: BoardFactory, code: int) -> None:
    """A timeout or a card in use passes: the counter goes on in the same epoch, for the handle is kept."""
    one = board(energy_mj=1000, field_mw=52_000)
    one.do("probe")
    one.do("read", 1.0)
    one.set(energy_status=code)
    assert one.ask("read", 1.1)["error"] == "SensorMissedError"
    one.set(energy_status=0, energy_mj=9000, init=9)
    assert one.do("read", 1.2) == {"at_s": 1.2, "energy_j": 8.0, "power_w": 52.0, "epoch": 0}


def test_a_board_that_must_be_reset_says_so(board: BoardFactory) -> None:
    """Waiting does not help, a reset does."""
    one = board(energy_mj=1000, field_mw=52_000)
    one.do("probe")
    one.set(energy_status=16)
    answer = one.ask("read")
    assert answer["error"] == "SensorBrokenError"
    assert "--gpu-reset" in answer["remedy"]


def test_throttling_is_told_in_words(board: BoardFactory) -> None:
    """Heat is named; a chosen power cap is not called throttling."""
    one = board(energy_mj=1000, field_mw=52_000, throttle=0x4)
    one.do("probe")
    assert one.do("throttling") is None
    one.set(throttle=0x4 | 0x40)
    assert one.do("throttling") == "hardware thermal slowdown"


def test_lost_gpu_does_not_throttle(board: BoardFactory) -> None:
    """Asking a driver that went away why it throttles is answered with nothing, not with an error."""
    one = board(energy_mj=1000, field_mw=52_000)
    one.do("probe")
    one.set(energy_status=15)
    one.ask("read")
    one.set(init=9)
    assert one.do("throttling") is None


def test_board_names_are_listed(board: BoardFactory) -> None:
    """The host's accelerator is what NVML calls it."""
    assert board(energy_mj=1000).do("names") == ["Fake RTX 4090"]


def test_zeros_with_success_are_no_figures(board: BoardFactory) -> None:
    """A Jetson's NVML can answer 0 mJ and 0 mW without an error: absent, and never 0 W."""
    answer = board(energy_mj=0, field_mw=0, power_mw=0).ask("probe")
    assert answer["error"] == "SensorAbsentError"
    assert "neither energy nor power" in answer["message"]


def test_a_counter_at_zero_beside_live_power_is_not_used(board: BoardFactory) -> None:
    """The counter counts nothing, the power is real: it is integrated."""
    assert board(energy_mj=0, field_mw=61_000).do("probe")[1] == "nvml.power_instant"


def test_a_jetsons_gpu_is_part_of_its_module(board: BoardFactory) -> None:
    """NVML beside VDD_IN is the same device once more; a card in a slot of the same host is not."""
    one = board("new", "--on-jetson", energy_mj=1000, field_mw=9_000, orin=1)
    one.do("probe")
    assert one.do("device")[0] == "module"
    one.set(orin=0)
    one.do("probe")
    assert one.do("device") == ["gpu0", "GPU-fake-0"]


def test_who_computes_and_who_draws_is_listed_by_board(board: BoardFactory) -> None:
    """Both kinds of processes are on the card."""
    one = board(energy_mj=1000, computing=4711, drawing=815)
    assert one.do("processes") == {"gpu0": [815, 4711]}


def test_a_lost_board_does_not_hide_who_is_on_the_others(board: BoardFactory) -> None:
    """A stranger on the board that works is seen still."""
    one = board(energy_mj=1000, computing=4711, count=3, lost_board=0)
    assert one.do("processes") == {"gpu1": [4711], "gpu2": [4711]}


def test_without_a_driver_no_board_has_processes(board: BoardFactory) -> None:
    """Nothing to ask is nothing known, not an error."""
    assert board().do("processes") == {}


# --- Divided boards, and boards that may sleep ------------------------------------------------------------------------


def test_a_board_that_mig_divides_tells_the_processes_of_its_instances(board: BoardFactory) -> None:
    """The board itself tells them to root alone; its joules are those of all instances, which the probe says."""
    one = board(live_mw=100_000, mig=1, instances=2, computing_in_0=41, computing_in_1=42)
    assert one.do("processes") == {"gpu0": [41, 42]}
    assert one.do("instances") == {"gpu0": 2}
    assert "MIG has divided it into 2" in one.do("probe")[0]


@pytest.mark.parametrize(("driver", "values"), [("new", {"mig": 0}), ("new", {}), ("old", {})])
def test_a_board_that_is_whole_has_no_instances(board: BoardFactory, driver: str, values: dict[str, int]) -> None:
    """MIG is off, the board has none, or the driver does not know it."""
    one = board(driver, power_mw=100_000, **values)
    assert one.do("instances") == {"gpu0": None}
    assert "MIG" not in one.do("probe")[0]


@pytest.mark.parametrize(
    ("control", "told", "may_sleep"),
    [
        ("auto", None, True),
        ("auto", "Runtime D3 status:          Enabled (fine-grained)\nVideo Memory:               Off", True),
        ("auto", "Runtime D3 status:          Not supported", False),
        ("auto", "Runtime D3 status:          Disabled by default", False),
        ("on", "Runtime D3 status:          Enabled (fine-grained)", False),
        (None, None, False),
    ],
)
def test_a_board_may_sleep_where_kernel_and_driver_let_it(
    board: BoardFactory, tmp_path: Path, control: str | None, told: str | None, may_sleep: bool
) -> None:
    """As on a laptop; a card in a desktop is never at rest."""
    if control is not None:
        sysfs.write(tmp_path, "sys/bus/pci/devices/0000:01:00.0/power/control", control)
    if told is not None:
        sysfs.write(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/power", told)
    one = board("new", f"--root={tmp_path}", power_mw=100_000)
    one.do("probe")
    assert one.do("may_sleep") is may_sleep
