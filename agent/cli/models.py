"""`moe2-agent models`: what the running agent serves, from which files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe2.agent.cli.status import VIEW
from moe2.common.generation import NEUTRAL_SAMPLING, Sampling
from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.link.supply import ModelFile
from moe2.common.placement import DeviceShare, GpuFault, placement_text
from moe2.common.status import AgentStatus
from moe2.common.terminal import figures, parts
from moe2.common.terminal.figures import UNKNOWN, fact_line, known, printable
from moe2.common.terminal.output import say, say_json, tell
from moe2.common.terminal.screen import NoAnswer, ask, table_console

_SHORT_HASH = 12
WIDE_COLUMNS = 180
"""A narrower terminal has no room for the table; models are told in a few lines each."""


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model of `moe2-agent models --json`. None is unknown: most facts are read when the model is loaded.

    vocabulary_sha256: equal for two models exactly when token ids mean the same in both. sha256: of the file.
    sampling: what it draws with where a request says nothing. origin, last_used_unix_s: of a file in the folder of
    models: where it came from, and when it was last loaded. state: None for a file that is not served. placement: which
    device holds what; empty while it is not in memory. gpu_fault: why the GPU does not hold what it should.
    """

    name: str
    state: ExpertState | None
    load_progress: float | None
    load_s: float | None
    file: str | None
    file_bytes: int | None
    architecture: str | None
    quantization: str | None
    parameters: int | None
    licence: str | None
    supports_tools: bool | None
    supports_thinking: bool | None
    sampling: Sampling | None
    vocabulary_sha256: str | None
    sha256: str | None
    origin: str | None
    last_used_unix_s: float | None
    last_error: str | None
    placement: tuple[DeviceShare, ...] = ()
    gpu_fault: GpuFault | None = None


def show_models(socket: Path, *, as_json: bool, console: Console | None = None) -> int:
    """Print the models; returns the exit code: 0 shown, 1 not understood, 2 not running."""
    answer = ask(VIEW, socket)
    if isinstance(answer, NoAnswer):
        tell(answer.message)
        return answer.code
    rows = model_rows(answer.status)
    console = console or table_console()
    if as_json:
        say_json(rows, file=console.file)
    elif console.is_terminal and console.width < WIDE_COLUMNS:
        for row in rows:
            console.print(*_block(row), sep="\n", soft_wrap=True)
    elif console.is_terminal:
        console.print(_table(rows, answer.status.experts))
    else:
        for row in rows:
            say(line(row), file=console.file)
    return 0


def model_rows(status: AgentStatus) -> tuple[ModelRow, ...]:
    """The models that are served, then the files that are not."""
    files = status.models.files if status.models else ()
    of_model = {name: file for file in files for name in file.served_as}
    served = tuple(
        ModelRow(
            name=expert.model,
            state=expert.state,
            load_progress=expert.load_progress,
            load_s=expert.load_s,
            file=status.model_files.get(expert.model),
            file_bytes=expert.file_bytes,
            architecture=expert.architecture,
            quantization=expert.quantization,
            parameters=expert.parameters,
            licence=expert.licence,
            supports_tools=expert.supports_tools,
            supports_thinking=expert.supports_thinking,
            sampling=expert.sampling,
            vocabulary_sha256=expert.vocabulary_sha256,
            sha256=expert.file_sha256,
            origin=of_model[expert.model].origin if expert.model in of_model else None,
            last_used_unix_s=of_model[expert.model].last_used_unix_s if expert.model in of_model else None,
            last_error=expert.last_error,
            placement=expert.placement,
            gpu_fault=expert.gpu_fault,
        )
        for expert in status.experts
    )
    return (*served, *(_spare(file) for file in files if not file.served_as))


def _spare(file: ModelFile) -> ModelRow:
    """A file that is served under no name."""
    return ModelRow(
        name=file.name,
        state=None,
        load_progress=None,
        load_s=None,
        file=file.name,
        file_bytes=file.size_bytes,
        architecture=file.architecture,
        quantization=None,
        parameters=None,
        licence=file.licence,
        supports_tools=None,
        supports_thinking=None,
        sampling=None,
        vocabulary_sha256=None,
        sha256=file.sha256,
        origin=file.origin,
        last_used_unix_s=file.last_used_unix_s,
        last_error=None,
    )


def line(row: ModelRow) -> str:
    """A model as one line of words, for a pipe."""
    facts = msgspec.structs.asdict(row) | {
        "state": row.state.value if row.state else "not served",
        "sampling": sampling_text(row.sampling),
        "placement": placement_text(row.placement) or None,
        "gpu_fault": row.gpu_fault and row.gpu_fault.cause.value,
    }
    return fact_line("model", **facts)


def sampling_text(sampling: Sampling | None) -> str | None:
    """What a model draws with by default, in few words; None where it is not known."""
    if sampling is None:
        return None
    if sampling.temperature == 0:
        return "greedy"
    shown = {"temperature": "temperature", "top_k": "top-k", "top_p": "top-p", "min_p": "min-p"}
    parts = [
        f"{name} {value:g}"
        for field, name in shown.items()
        if (value := getattr(sampling, field)) is not None and value != getattr(NEUTRAL_SAMPLING, field)
    ]
    if sampling.repeat_penalty not in (None, 1.0):
        parts.append(f"repeat penalty {sampling.repeat_penalty:g}")
    return ", ".join(parts) or "the model's own distribution"


def _held(share: DeviceShare) -> str:
    """What a device holds, such as "CUDA0 33 layers, 4.7 GB": weights, keys and values, and room for computing."""
    parts = [size for size in (share.weights_bytes, share.cache_bytes, share.work_bytes) if size is not None]
    held = known(sum(parts) if parts else None, figures.size, otherwise="")
    layers = f" {share.layers} layers" if share.layers else ""
    return ", ".join(part for part in (printable(share.device) + layers, held) if part)


def _block(row: ModelRow) -> list[Text]:
    """A model in a few lines, for a terminal that has no room for the table. What is unknown is left out."""
    size = known(row.file_bytes, figures.size)
    state = row.state.value if row.state else "not served"
    facts = (
        ("", row.quantization),
        ("", None if row.parameters is None else f"{row.parameters / 1e6:.0f} M parameters"),
        ("on ", "; ".join(map(_held, row.placement)) or None),
        ("licence ", row.licence),
        ("draws with ", sampling_text(row.sampling)),
    )
    origins = (
        ("sha256 ", (row.sha256 or "")[:_SHORT_HASH] or None),
        ("vocabulary ", (row.vocabulary_sha256 or "")[:_SHORT_HASH] or None),
        ("last use ", None if row.last_used_unix_s is None else figures.moment(row.last_used_unix_s)),
    )
    lines = [Text.assemble((printable(row.name), "bold"), f"  {state}, {size}")]
    groups = (facts, origins, (("file ", row.file),), (("from ", row.origin),), (("error: ", row.last_error),))
    told = (", ".join(label + printable(value) for label, value in group if value) for group in groups)
    return [*lines, *(Text(f"  {line}") for line in told if line)]


def _table(rows: Sequence[ModelRow], experts: Sequence[ExpertReport]) -> Table:
    right = ("Size", "Parameters")
    table = parts.figures_table(
        *(
            "Model",
            "State",
            "Size",
            "Quantization",
            "Parameters",
            "On",
            "Licence",
            "Draws with",
            "Vocabulary",
            "SHA-256",
            "From",
            "Last use",
            "File",
        ),
        right=right,
    )
    by_name = {expert.model: expert for expert in experts}
    for row in rows:
        expert = by_name.get(row.name) if row.state else None
        table.add_row(
            Text(printable(row.name), style="bold"),
            "not served" if expert is None else parts.state_cell(expert),
            known(row.file_bytes, figures.size),
            printable(row.quantization or UNKNOWN),
            known(row.parameters, lambda count: f"{count / 1e6:.0f} M"),
            "\n".join(map(_held, row.placement)) or UNKNOWN,
            printable(row.licence or UNKNOWN),
            sampling_text(row.sampling) or UNKNOWN,
            (row.vocabulary_sha256 or UNKNOWN)[:_SHORT_HASH],
            (row.sha256 or UNKNOWN)[:_SHORT_HASH],
            printable(row.origin or UNKNOWN),
            known(row.last_used_unix_s, figures.moment),
            printable(row.file or UNKNOWN),
        )
    return table
