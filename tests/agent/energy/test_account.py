"""Several devices, one answer per request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe2.agent.energy.account import Activity, HostAccount
from moe2.agent.energy.attribution import DeviceAccount, TokenWeight
from moe2.agent.energy.meter import EnergyTrack
from moe2.common.energy import Attribution, Quality, Scope
from moe2.common.standby import Cause, IdlePower, StandingEnergy
from tests.fakes import sensors


def _host(*names: str) -> tuple[HostAccount, list[EnergyTrack]]:
    tracks = [EnergyTrack() for _ in names]
    devices = [
        DeviceAccount(sensors.facts(name, name), track, start_s=0.0) for name, track in zip(names, tracks, strict=True)
    ]
    return HostAccount(devices, why_unmeasured="rapl is denied: join the group"), tracks


def _steady(track: EnergyTrack, power_w: float, end_s: float) -> None:
    for tick in range(round(end_s * 10) + 1):
        track.add_power(tick * 0.1, power_w)


def test_devices_are_added_up() -> None:
    """A GPU and a processor: the request's energy is that of both."""
    account, (gpu, cpu) = _host("gpu0", "cpu")
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 3.0)
    _steady(gpu, 100.0, 3.0)
    _steady(cpu, 20.0, 3.0)
    energy = account.settle(3.0)["a"]
    assert energy.joules == pytest.approx(360.0)
    assert energy.coverage == pytest.approx(1.0)
    assert energy.source is None


def test_each_device_splits_by_tokens_and_weights() -> None:
    """Prompt tokens, decoded tokens and a model's weight reach every device of the host."""
    account, tracks = _host("gpu0", "cpu")
    heavy = TokenWeight(decode=3.0, prefill=3.0)
    account.request_started("reader", 20, 0.0, heavy)
    account.request_started("writer", 0, 0.0)
    account.tokens_decoded("writer", 20, 1.0)
    account.tokens_decoded("reader", 0, 3.0)
    for job in ("reader", "writer"):
        account.request_ended(job, 3.0)
    for track in tracks:
        _steady(track, 10.0, 3.0)
    settled = account.settle(3.0)
    # The writer is alone in decoding: its 20 tokens fall into the second slice, with two thirds of the prompt.
    assert settled["reader"].joules == pytest.approx(2 * (10.0 + 20.0 * 40 / 60))
    assert settled["writer"].joules == pytest.approx(2 * (20.0 * 20 / 60))


def test_sum_over_devices_is_a_whole_record() -> None:
    """Coverage and samples of the worst device, the widest gap, idle power of all, the loosest rule."""
    account, (gpu, cpu) = _host("gpu0", "cpu")
    account.set_condition("default", frozenset({"model"}))
    for end_s in range(1, 16):
        for tick in range(10 * end_s - 9, 10 * end_s + 1):
            gpu.add_power(tick * 0.1, 50.0)
        for tick in range(5 * end_s - 4, 5 * end_s + 1):
            cpu.add_power(tick * 0.2, 10.0)
        account.settle(float(end_s))
    for job in ("a", "b"):
        account.request_started(job, 0, 15.0)
        account.first_token(job, 15.0)
    for job in ("a", "b"):
        account.request_ended(job, 20.0)
    for tick in range(151, 201):
        gpu.add_power(tick * 0.1, 50.0)
    for tick in range(76, 101):
        cpu.add_power(tick * 0.2, 10.0)
    energy = account.settle(20.0)["a"]
    assert energy.joules == pytest.approx(150.0)
    assert energy.marginal_joules == pytest.approx(0.0, abs=1e-9)
    assert energy.n_samples == 26
    assert energy.max_gap_s == pytest.approx(0.2)
    assert energy.idle_w == pytest.approx(60.0)
    assert energy.attribution is Attribution.SLOT_SHARE
    assert account.overhead().joules == pytest.approx(60.0 * 15.0, rel=0.02)


def test_host_whose_sensors_all_fell_silent_names_each() -> None:
    """Every device's reason stands in the record, once."""
    account, _ = _host("gpu0", "cpu")
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 3.0)
    energy = account.settle(9.0)["a"]
    assert energy.quality is Quality.UNMEASURED
    assert energy.reason == (
        "gpu0 gave no usable reading during the request's 3.00 s; "
        "cpu gave no usable reading during the request's 3.00 s"
    )


def test_one_silent_device_makes_the_sum_a_lower_bound() -> None:
    """What the other one measured is kept, and called partial."""
    account, (gpu, _) = _host("gpu0", "cpu")
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 3.0)
    _steady(gpu, 100.0, 3.0)
    energy = account.settle(5.1)["a"]
    assert energy.joules == pytest.approx(300.0)
    assert energy.quality is Quality.PARTIAL
    assert energy.reason == "cpu gave no usable reading during the request's 3.00 s"
    assert energy.idle_w is None


def test_host_without_sensors_says_why() -> None:
    """No sensor: unmeasured at once, with the reason and its remedy, never 0."""
    account, _ = _host()
    account.request_started("a", 1, 0.0)
    assert account.request_ended("a", 1.0)
    energy = account.settle(1.0)["a"]
    assert energy.joules is None
    assert energy.quality is Quality.UNMEASURED
    assert energy.reason == "rapl is denied: join the group"
    assert account.overhead().joules is None


def test_each_request_is_handed_out_once() -> None:
    """Settling again gives nothing again."""
    account, _ = _host()
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 1.0)
    assert list(account.settle(1.0)) == ["a"]
    assert account.settle(2.0) == {}


def test_request_that_never_started_has_no_account() -> None:
    """A job cancelled in the queue: nothing will be handed out, and the caller is told so."""
    account, _ = _host("cpu")
    assert not account.request_ended("a", 1.0)
    account.tokens_decoded("a", 1, 1.0)
    account.first_token("a", 1.0)
    assert account.settle(9.0) == {}


def test_activity_follows_the_requests() -> None:
    """What a simulated sensor draws power by."""
    account, _ = _host()
    account.request_started("a", 1, 0.0)
    account.request_started("b", 1, 0.0)
    account.tokens_decoded("b", 1, 0.5)
    assert account.activity == Activity(prefilling=1, decoding=1)
    account.request_ended("a", 1.0)
    account.request_ended("b", 1.0)
    assert account.activity == Activity()


def test_idle_power_of_the_host_needs_all_devices() -> None:
    """A sum with an unknown part is unknown."""
    account, (gpu, cpu) = _host("gpu0", "cpu")
    account.set_condition("default", frozenset({"model"}))
    _steady(gpu, 50.0, 20.0)
    for second in range(20):
        account.settle(float(second))
    assert account.idle_w() is None
    _steady(cpu, 10.0, 40.0)
    for tick in range(201, 401):
        gpu.add_power(tick * 0.1, 50.0)
    for second in range(20, 41):
        account.settle(float(second))
    assert account.idle_w() == pytest.approx(60.0)


def _device(name: str, scope: Scope, *, start_s: float = 0.0) -> tuple[DeviceAccount, EnergyTrack]:
    track = EnergyTrack()
    return DeviceAccount(replace(sensors.facts(name, name), scope=scope), track, start_s=start_s), track


def test_a_device_that_appears_late_gives_running_requests_a_part() -> None:
    """A card whose driver came after two of four seconds: its half is measured, and called partial."""
    account, _ = _host()
    account.request_started("a", 10, 0.0)
    account.first_token("a", 1.0)
    device, track = _device("gpu0", Scope.GPU_BOARD, start_s=2.0)
    account.add_device(device, 2.0)
    for tick in range(20, 41):
        track.add_power(tick * 0.1, 100.0)
    account.request_ended("a", 4.0)
    energy = account.settle(4.0)["a"]
    assert energy.joules == pytest.approx(200.0)
    assert energy.coverage == pytest.approx(0.5)
    assert energy.quality is Quality.PARTIAL


def test_joules_follow_the_board_that_the_model_is_on() -> None:
    """Two boards, a model on each: a request owes nothing to the other one's."""
    (first, first_track), (second, second_track) = (_device(f"gpu{i}", Scope.GPU_BOARD) for i in range(2))
    account = HostAccount((first, second), why_unmeasured="")
    account.placement = {"small": frozenset({"gpu0"}), "large": frozenset({"gpu1"})}
    account.request_started("a", 1, 0.0, model="small")
    account.request_started("b", 1, 0.0, model="large")
    for job in ("a", "b"):
        account.first_token(job, 0.5)
        account.request_ended(job, 3.0)
    _steady(first_track, 100.0, 3.0)
    _steady(second_track, 300.0, 3.0)
    settled = account.settle(3.0)
    assert {job: settled[job].joules for job in settled} == pytest.approx({"a": 300.0, "b": 900.0})
    assert settled["a"].attribution is Attribution.EXCLUSIVE


def test_a_model_on_several_boards_and_one_of_unknown_place_get_all_of_them() -> None:
    """Where it is not known that a board has no part in a request, its joules are not left out."""
    (first, first_track), (second, second_track) = (_device(f"gpu{i}", Scope.GPU_BOARD) for i in range(2))
    account = HostAccount((first, second), why_unmeasured="")
    account.placement = {"split": frozenset({"gpu0", "gpu1"})}
    for job, model, start_s in (("a", "split", 0.0), ("b", "unknown", 1.0)):
        account.request_started(job, 1, start_s, model=model)
        account.request_ended(job, start_s + 1.0)
    _steady(first_track, 10.0, 2.0)
    _steady(second_track, 10.0, 2.0)
    assert [energy.joules for energy in account.settle(2.0).values()] == pytest.approx([20.0, 20.0])


def test_a_board_that_another_agent_measures_is_missing_in_the_figure() -> None:
    """The model is on two boards, of which one is somebody else's to count: partial, with the board's name."""
    device, track = _device("gpu0", Scope.GPU_BOARD)
    account = HostAccount((device,), why_unmeasured="")
    account.placement = {"split": frozenset({"gpu0", "gpu1"}), "elsewhere": frozenset({"gpu1"})}
    for job, model, start_s in (("a", "split", 0.0), ("b", "elsewhere", 1.0)):
        account.request_started(job, 1, start_s, model=model)
        account.request_ended(job, start_s + 1.0)
    _steady(track, 10.0, 2.0)
    settled = account.settle(2.0)
    assert settled["a"].joules == pytest.approx(10.0)
    assert settled["a"].quality is Quality.PARTIAL
    assert settled["b"].joules is None
    for energy in settled.values():
        assert "gpu1" in (energy.reason or "")


def test_the_processor_takes_part_whatever_board_a_model_is_on() -> None:
    """Placement chooses among boards only."""
    (board, board_track), (cpu, cpu_track) = _device("gpu0", Scope.GPU_BOARD), _device("cpu", Scope.CPU_PACKAGE)
    account = HostAccount((board, cpu), why_unmeasured="")
    account.placement = {"model": frozenset({"gpu0"})}
    account.request_started("a", 1, 0.0, model="model")
    account.request_ended("a", 1.0)
    _steady(board_track, 100.0, 1.0)
    _steady(cpu_track, 20.0, 1.0)
    assert account.settle(1.0)["a"].joules == pytest.approx(120.0)


def _with_wall(*, by_wall: bool) -> HostAccount:
    """A module at 40 W behind a plug that sees 50 W, and one request of two seconds."""
    (module, module_track), (wall, wall_track) = _device("module", Scope.MODULE_INPUT), _device("wall", Scope.WALL)
    account = HostAccount((module, wall), why_unmeasured="", by_wall=by_wall)
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 2.0)
    _steady(module_track, 40.0, 2.0)
    _steady(wall_track, 50.0, 2.0)
    return account


@pytest.mark.parametrize(("by_wall", "joules", "scope"), [(False, 80.0, Scope.MODULE_INPUT), (True, 100.0, Scope.WALL)])
def test_the_wall_is_never_added_to_what_is_behind_it(by_wall: bool, joules: float, scope: Scope) -> None:
    """One of the two counts, as the settings say: in requests, in sums over time, and in what is standing."""
    account = _with_wall(by_wall=by_wall)
    energy = account.settle(2.0)["a"]
    assert energy.joules == pytest.approx(joules)
    assert energy.scope is scope
    whole = account.between(0.0, 2.0)
    assert whole is not None
    assert whole.joules == pytest.approx(joules)
    assert (whole.scope, whole.quality, whole.coverage) == (scope, Quality.MEASURED_INTEGRATED, 1.0)
    assert whole.source == ("wall" if by_wall else "module")
    standing = account.standing("epoch")
    assert standing is not None
    assert standing.requests_j == pytest.approx(joules)


def test_a_plug_that_is_late_holds_no_request_up_whose_joules_are_the_rails() -> None:
    """Only what counts is waited for."""
    (module, module_track), (wall, _) = _device("module", Scope.MODULE_INPUT), _device("wall", Scope.WALL)
    account = HostAccount((module, wall), why_unmeasured="")
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 1.0)
    _steady(module_track, 40.0, 1.0)
    assert account.settle(1.0)["a"].joules == pytest.approx(40.0)


def _settled(account: HostAccount, upto_s: int) -> None:
    for second in range(upto_s + 1):
        account.settle(float(second))


def test_joules_of_no_request_stand_by_their_cause() -> None:
    """Two seconds of each cause, and of a request: the sums over both devices, whose scopes differ."""
    (gpu, gpu_track), (cpu, cpu_track) = _device("gpu0", Scope.GPU_BOARD), _device("cpu", Scope.CPU_PACKAGE)
    account = HostAccount((gpu, cpu), why_unmeasured="")
    for at_s, cause in ((2.0, Cause.LOADING), (4.0, Cause.WAKING), (6.0, Cause.OTHER), (8.0, Cause.IDLE)):
        account.cause_is(cause, at_s)
    account.request_started("a", 1, 8.0)
    account.request_ended("a", 10.0)
    for track, power_w in ((gpu_track, 0.2), (cpu_track, 0.1)):
        _steady(track, power_w, 10.0)
    _settled(account, 10)
    standing = account.standing("epoch")
    assert standing is not None
    figures = (*standing.by_cause().values(), standing.requests_j)
    assert figures == pytest.approx([0.6] * 5)
    assert standing.measured_s == pytest.approx(10.0)
    assert standing.quality is Quality.MEASURED_INTEGRATED
    assert (standing.epoch, standing.scope) == ("epoch", None)


def test_nothing_stands_before_the_first_reading() -> None:
    """Zero joules of an unmeasured time are not called measured; without a sensor there is nothing at all."""
    account, _ = _host("gpu0", "cpu")
    assert account.standing("e") == StandingEnergy(epoch="e", quality=Quality.UNMEASURED, scope=Scope.MODULE_INPUT)
    assert _host()[0].standing("e") is None


def test_a_time_shorter_than_a_second_is_measured() -> None:
    """What the sensors cover counts from the first moment on."""
    account, (track,) = _host("gpu0")
    _steady(track, 100.0, 0.5)
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 0.5)
    account.settle(0.5)
    standing = account.standing("e")
    assert standing is not None
    assert (standing.quality, standing.scope) == (Quality.MEASURED_INTEGRATED, Scope.MODULE_INPUT)


def test_idle_powers_are_those_that_all_devices_have_measured() -> None:
    """Sums over the devices, by the models in memory, in the present power mode; the older of
    two figures tells their age."""
    account, (gpu, cpu) = _host("gpu0", "cpu")
    for first_s, mode, models in ((0, "low", ("a",)), (20, "high", ()), (40, "high", ("b", "a")), (60, "high", ("c",))):
        account.set_condition(mode, frozenset(models))
        for tick in range(first_s * 10, first_s * 10 + 200):
            gpu.add_power(tick * 0.1, 50.0 + first_s)
            if "c" not in models:
                cpu.add_power(tick * 0.1, 10.0)
            if tick % 10 == 9:
                account.settle(tick * 0.1)
    empty, loaded = account.idle_powers("high", 70.0)
    assert (empty.models, loaded.models) == ((), ("a", "b"))
    assert [one.power_w for one in (empty, loaded)] == pytest.approx([80.0, 100.0])
    assert [one.spread_w for one in (empty, loaded)] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert 10.0 <= loaded.measured_s <= 17.0
    assert empty.age_s == pytest.approx(30.0, abs=1.1)
    assert loaded.age_s == pytest.approx(10.0, abs=1.1)
    assert {(one.quality, one.scope, one.asleep) for one in (empty, loaded)} == {
        (Quality.MEASURED_INTEGRATED, Scope.MODULE_INPUT, False)
    }
    assert [one.models for one in account.idle_powers("low", 70.0)] == [("a",)]
    assert account.idle_powers("low", 0.0)[0].age_s == 0.0
    assert account.idle_powers("none", 70.0) == _host()[0].idle_powers("low", 70.0) == ()
    account.model_changed("a")
    assert [one.models for one in account.idle_powers("high", 70.0)] == [()]
    assert isinstance(empty, IdlePower)


def test_own_work_is_counted_from_when_the_first_of_it_began() -> None:
    """What a host does for itself has joules while it lasts; requests are none of it."""
    account, (gpu, cpu) = _host("gpu0", "cpu")
    for track, power_w in ((gpu, 100.0), (cpu, 20.0)):
        _steady(track, power_w, 6.0)
    account.request_started("theirs", 1, 0.0)
    assert account.own_work_j(1.0) is None
    account.request_started("late", 1, 4.0, cause=Cause.OTHER)
    account.request_started("early", 1, 2.0, cause=Cause.OTHER)
    assert account.own_work_j(5.0) == pytest.approx(360.0)
    account.request_ended("early", 5.0)
    assert account.own_work_j(6.0) == pytest.approx(240.0)
    account.request_ended("late", 6.0)
    assert account.own_work_j(6.0) is None
    bare, _ = _host()
    bare.request_started("own", 1, 0.0, cause=Cause.OTHER)
    assert bare.own_work_j(1.0) is None


def test_guesses_weigh_on_every_device() -> None:
    """Who guessed wrongly took the model's time for it; a job that has not begun to write guesses nothing."""
    account, tracks = _host("gpu0", "cpu")
    account.tokens_guessed("nobody", 1, 0, 0.0)
    for job in ("guesser", "writer"):
        account.request_started(job, 0, 0.0, TokenWeight(decode=1.0, prefill=1.0))
        account.tokens_guessed(job, 100, 0, 0.0)
        account.first_token(job, 0.0)
    for job in ("guesser", "writer"):
        account.tokens_decoded(job, 10, 1.0)
    account.tokens_guessed("guesser", 40, 5, 1.0)
    for job in ("guesser", "writer"):
        account.request_ended(job, 2.0)
    for track in tracks:
        _steady(track, 10.0, 2.0)
    settled = account.settle(2.0)
    shares = [settled[job].joules for job in ("guesser", "writer")]
    assert None not in shares
    assert sum(share or 0.0 for share in shares) == pytest.approx(40.0)
    assert (shares[0] or 0.0) > (shares[1] or 0.0) + 1.0


def test_a_late_device_is_told_what_it_missed() -> None:
    """Condition, cause, and of the jobs that run those that it concerns, with their weights."""
    account = HostAccount((), why_unmeasured="")
    account.placement = {"here": frozenset({"gpu0"}), "elsewhere": frozenset({"gpu1"})}
    account.set_condition("default", frozenset({"here"}))
    account.cause_is(Cause.LOADING, 0.0)
    device, track = _device("gpu0", Scope.GPU_BOARD)
    account.add_device(device, 0.0)
    _steady(track, 10.0, 2.0)
    _settled(account, 2)
    standing = account.standing("e")
    assert standing is not None
    assert [standing.loading_j, standing.idle_j] == pytest.approx([20.0, 0.0])

    account = HostAccount((), why_unmeasured="")
    account.placement = {"here": frozenset({"gpu0"}), "elsewhere": frozenset({"gpu1"})}
    heavy = TokenWeight(decode=3.0, prefill=3.0)
    for job, model, weight in (("heavy", "here", heavy), ("light", "here", None), ("other", "elsewhere", None)):
        account.request_started(job, 0, 0.0, weight, model=model)
        account.first_token(job, 0.0)
    device, track = _device("gpu0", Scope.GPU_BOARD)
    account.add_device(device, 0.0)
    for job in ("heavy", "light", "other"):
        account.tokens_decoded(job, 10, 1.0)
    for job in ("heavy", "light", "other"):
        account.request_ended(job, 2.0)
    _steady(track, 10.0, 2.0)
    settled = account.settle(2.0)
    assert settled["heavy"].joules == pytest.approx(15.0)
    assert settled["light"].joules == pytest.approx(5.0)
    assert settled["other"].joules is None
