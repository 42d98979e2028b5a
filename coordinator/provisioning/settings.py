"""The settings of the slow level, the section `[provisioning]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moe2.common.config import LIVE, Seconds, Settings

Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ProvisioningSection(Settings):
    """[provisioning]: which experts are kept awake. By default it only tells what it would do."""

    mode: Annotated[Literal["off", "observe", "act"], LIVE] = "observe"
    """`observe` decides, shows what it would do and have saved, and touches nothing; `act` does it; `off` neither."""
    first_token_s: Annotated[Seconds, LIVE] = 4.0
    """Seconds that people wait for a first token, where their category has no ttft_budget_s."""
    late_share: Annotated[Score, LIVE] = 0.05
    """Share of a week's answers whose first token may come later, for joules of waiting."""
    hourly_late_share: Annotated[Score | None, LIVE] = None
    """The same for every hour and category by itself, where some experts keep that; not set leaves it to the week. It
    does not hold where `min_awake` is 0."""
    quality_loss: Annotated[Score, LIVE] = 0.005
    """Mean score, 0 to 1, that a week's answers may lose against all experts awake, for joules of waiting."""
    average_power_w: Annotated[Positive | None, LIVE] = None
    """Watts that the fleet may draw while nobody asks, sleeping hosts included."""
    joules_per_answer: Annotated[Positive | None, LIVE] = None
    """Joules of waiting that each answer may cost, at the rate at which answers are asked for."""
    min_awake: Annotated[Annotated[int, Field(ge=0, le=10_000)], LIVE] = 1
    """Least number of experts in memory; with 0 the whole fleet may sleep, and a first request waits for a wake."""
    min_hosts: Annotated[dict[str, Annotated[int, Field(ge=0, le=10_000)]], LIVE] = Field(default_factory=dict)
    """Least number of hosts that keep a model in memory, by the model's name."""
    pinned: Annotated[tuple[str, ...], LIVE] = ()
    """Names of agents whose hosts stay awake with all their models, besides those of `fleet pin`."""
    max_changes_per_day: Annotated[Annotated[int, Field(ge=2, le=1000)], LIVE] = 24
    """Changes of state of a host in a day, at most."""
    wake_command: Annotated[tuple[str, ...] | None, LIVE] = None
    """Command that wakes a host by other means than magic packets; {name} and {mac} in its arguments are filled in."""

    @model_validator(mode="after")
    def _a_command_has_a_program(self) -> ProvisioningSection:
        if self.wake_command is not None and not (self.wake_command and self.wake_command[0].startswith("/")):
            raise ValueError("wake_command must begin with the absolute path of a program")
        return self
