"""What the slow level says of itself: its part of the coordinator's status, and its warnings. PURE."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from moe2.common.health import HealthWarning, Severity
from moe2.common.status import AgentRow, ChangeRow, ProvisioningStatus
from moe2.coordinator.provisioning.decision import Decision
from moe2.coordinator.provisioning.hysteresis import Transition
from moe2.coordinator.provisioning.shadow import Shadow
from moe2.coordinator.provisioning.steering import Away
from moe2.coordinator.provisioning.traffic import HOUR_S


def status_of(
    mode: str,
    decision: Decision | None,
    shadow: Shadow,
    changes: Sequence[Transition],
    *,
    solve_s: float | None,
    pinned: Collection[str],
    kept_asleep: Collection[str],
    names: Mapping[str, str],
    returning: Sequence[Away] = (),
) -> ProvisioningStatus:
    """What the slow level thinks and does.

    shadow: what mode observe would have done and saved. changes: what is done, or would be. pinned, kept_asleep: keys
    of hosts. names: of hosts by their keys. returning: what mode act has put out of the way, which is over.
    """
    shadows = mode == "observe"
    known = decision if decision is not None and decision.is_measured else None
    return ProvisioningStatus(
        mode=mode,
        status=decision.status.value if decision else None,
        awake=decision.members if decision else (),
        standing_w=known.standing_w if known else None,
        least_w=known.least_w if known else None,
        loss=known.loss if known else None,
        late=known.late if known else None,
        requests_per_hour=HOUR_S * decision.rate_per_s if decision else None,
        # At times when fewer ask than any limit allows for, only watts count.
        price_per_j=decision.price_per_j if decision and math.isfinite(decision.price_per_j) else None,
        solve_s=solve_s,
        stays=dict(decision.stays) if decision else {},
        correction=decision.correction if decision else None,
        changes=tuple(
            ChangeRow(
                change=one.change.value,
                host=names.get(one.host, one.host),
                expert=one.expert,
                reason=one.reason,
                saves_w=one.saves_w,
                costs_j=one.costs_j,
            )
            for one in changes
        ),
        pinned=tuple(names.get(key, key) for key in sorted(pinned)),
        kept_asleep=tuple(names.get(key, key) for key in kept_asleep),
        saved_j=shadow.saved_j if shadows and decision else None,
        waited_j=shadow.waited_j if shadows and decision else None,
        returns=shadow.n_returns if shadows else 0,
        would_sleep=tuple(sorted(shadow.names)) if shadows else (),
        returning=tuple(_named(one, names) for one in returning),
    )


def _named(away: Away, names: Mapping[str, str]) -> str:
    """A host by its name; an expert as its model on its host."""
    host = names.get(away.host, away.host)
    return host if away.expert is None else f"{away.expert.partition('/')[2]} on {host}"


def unknown_pins(pinned: Sequence[str], rows: Sequence[AgentRow]) -> str | None:
    """Which names that the settings pin no known agent has, as a sentence with its remedy; None where there is none."""
    known = sorted({row.agent_name for row in rows})
    unknown = [name for name in dict.fromkeys(pinned) if name not in known]
    if not unknown:
        return None
    return (
        f"pinned: no agent is called {', '.join(unknown)}. Correct the name, or start that agent; known are "
        f"{', '.join(known) or 'none'}."
    )


def warnings_of(
    decision: Decision | None, failure: str | None, unknown: str | None = None
) -> tuple[HealthWarning, ...]:
    """The warnings about the latest decision. failure: why there is none, where that is a defect. unknown: what
    `unknown_pins` says."""
    found = []
    if unknown is not None:
        found.append(
            HealthWarning(
                code="provisioning_unknown_host",
                severity=Severity.NOTICE,
                message="[provisioning] pins a host that is not there, so that nothing keeps it awake.",
                remedy=unknown,
            )
        )
    if decision is not None and decision.correction is not None:
        found.append(
            HealthWarning(
                code="provisioning_infeasible",
                severity=Severity.DEGRADED,
                message="The limits on who is awake contradict each other, so that all hosts stay as they are.",
                remedy=decision.correction,
            )
        )
    if failure is not None:
        found.append(
            HealthWarning(
                code="provisioning_failed",
                severity=Severity.DEGRADED,
                message=f"Who should be awake could not be decided: {failure}. All hosts stay as they are.",
                remedy="See the coordinator's log, and report it as a defect of moe2.",
            )
        )
    return tuple(found)
