"""The command `moe2-coordinator status --calibration`: the accuracy of predictions, as a table or as plain lines."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from moe2.common.energy import Quality
from moe2.common.terminal import figures
from moe2.common.terminal import parts as terminal_parts
from moe2.common.terminal.figures import UNMEASURED, fact_line, known, printable
from moe2.common.terminal.screen import StatusView, show
from moe2.coordinator.http.paths import CALIBRATION_PATH
from moe2.coordinator.observing.accuracy import Agreement, Calibration, CalibrationReport, Comparison
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH, DEFAULT_SOCKET_PATH

_QUANTITIES = (("first token", "ttft_s"), ("whole answer", "total_s"), ("joules", "energy_j"))
_RIGHT = ("Requests", "Median error", "p50 holds", "p95 holds", "Error as planned")


def show_calibration(socket: Path, *, as_json: bool, watch: bool) -> int:
    """Prints the calibration and returns the exit code: 0, or 2 if the coordinator does not run."""
    return show(VIEW, socket, as_json=as_json, watch=watch)


# --- Drawn ------------------------------------------------------------------------------------------------------------


def picture(report: CalibrationReport, _now_unix_s: float) -> RenderableType:
    """Draws the calibration for a terminal: three rows for each expert, and three for several experts together."""
    if not report.overall.n_requests:
        return Text("No request has been answered yet.", style="dim")
    table = terminal_parts.figures_table("Expert", "Predicted", *_RIGHT, "Left out", right=_RIGHT)
    for calibration in _shown(report):
        for place, (word, name) in enumerate(_QUANTITIES):
            comparison: Comparison = getattr(calibration, name)
            agreement = comparison.decoded
            table.add_row(
                _expert_cell(calibration) if place == 0 else Text(""),
                Text(word + (_simulated(calibration) if name == "energy_j" else "")),
                Text(str(agreement.n)),
                Text(_percent(agreement.median_abs_error_pct, unknown=_unknown(comparison))),
                Text(_percent(agreement.p50_coverage_pct)),
                Text(_percent(agreement.p95_coverage_pct)),
                Text(_percent(comparison.planned.median_abs_error_pct), style="dim"),
                Text(_left_out(comparison), style="dim"),
            )
    about = (
        f"The last {report.overall.n_requests} answers, at most {report.window}. They are compared with what was"
        " predicted for the tokens that they had; as planned: with what was predicted for the longest answer that was"
        " planned for. If the predictions are right, p50 holds in 50 % and p95 in 95 % of the answers."
    )
    parts: list[RenderableType] = [table, Text(about, style="dim")]
    if report.warnings:
        parts.append(terminal_parts.warnings_panel(report.warnings))
    return Group(*parts)


def _shown(report: CalibrationReport) -> tuple[Calibration, ...]:
    return report.experts if len(report.experts) == 1 else (*report.experts, report.overall)


def _expert_cell(calibration: Calibration) -> Text:
    if calibration.expert is None:
        return Text("all", style="bold")
    _, _, model = calibration.expert.partition("/")
    cell = Text(printable(model), style="bold")
    cell.append(f"\n{printable(calibration.agent or '')}", style="not bold dim")
    return cell


def _unknown(comparison: Comparison) -> str:
    return UNMEASURED if comparison.n_unmeasured else figures.UNKNOWN


def _simulated(calibration: Calibration) -> str:
    return " (simulated)" if calibration.energy_quality is Quality.SIMULATED else ""


def _left_out(comparison: Comparison) -> str:
    counts = ((comparison.n_unmeasured, UNMEASURED), (comparison.n_unpredicted, "not predicted"))
    return ", ".join(f"{count} {why}" for count, why in counts if count)


def _percent(value: float | None, *, unknown: str = figures.UNKNOWN) -> str:
    return known(value, lambda pct: f"{figures.number(pct)} %", otherwise=unknown)


# --- Plain ------------------------------------------------------------------------------------------------------------


def lines(report: CalibrationReport, _now_unix_s: float) -> list[str]:
    """Writes the calibration for a pipe: one line for each expert and quantity, and for all experts together."""
    return [
        *(_line(calibration, name) for calibration in (*report.experts, report.overall) for _, name in _QUANTITIES),
        *(terminal_parts.warning_line(warning) for warning in report.warnings),
    ]


def _line(calibration: Calibration, name: str) -> str:
    comparison: Comparison = getattr(calibration, name)
    facts: dict[str, object] = {"quantity": name, "n": comparison.decoded.n}
    for word, agreement in (("", comparison.decoded), ("planned_", comparison.planned)):
        facts |= _agreement_facts(word, agreement)
    if name == "energy_j":
        facts["quality"] = calibration.energy_quality or UNMEASURED
    return fact_line(
        "calibration",
        expert=calibration.expert or "all",
        agent=calibration.agent,
        **facts,
        unmeasured=comparison.n_unmeasured,
        unpredicted=comparison.n_unpredicted,
    )


def _agreement_facts(word: str, agreement: Agreement) -> dict[str, object]:
    return {
        f"{word}median_abs_error_pct": known(agreement.median_abs_error_pct, figures.number),
        f"{word}p50_coverage_pct": known(agreement.p50_coverage_pct, figures.number),
        f"{word}p95_coverage_pct": known(agreement.p95_coverage_pct, figures.number),
    }


VIEW = StatusView(
    program="moe2-coordinator",
    kind=CalibrationReport,
    picture=picture,
    lines=lines,
    default_socket=DEFAULT_SOCKET_PATH,
    default_config=DEFAULT_CONFIG_PATH,
    route=CALIBRATION_PATH,
)
