"""One message of every op, with every field set, and the smallest of those that have optional fields."""

from __future__ import annotations

import msgspec

from moe2.common.energy import Attribution, Energy, Quality, Scope
from moe2.common.generation import Sampling, ToolRules
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import (
    ASLEEP,
    CancelJob,
    Candidate,
    CommandAnswer,
    CommandOutcome,
    ContinuationScore,
    EmbedJob,
    Fault,
    FollowJob,
    Goodbye,
    Hello,
    JobDone,
    JobFailed,
    JobPieces,
    JobScored,
    JobStarted,
    JobUsage,
    LoadModel,
    NextTokens,
    Ping,
    Pong,
    Refused,
    Report,
    ScoreJob,
    Submit,
    Suspend,
    TakeToken,
    TokenAlternative,
    TokenPiece,
    Tokens,
    UnloadModel,
    Vectors,
    WakeNeighbour,
    Welcome,
    WireMessage,
)
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt, Tool, ToolCall
from moe2.common.link.reports import ExpertReport, ExpertState, HostFacts, Performance, SensorReport
from moe2.common.link.supply import (
    DeleteFile,
    Fetching,
    FetchModel,
    FilePart,
    LendFile,
    ModelFile,
    ModelStore,
    Pulling,
    PullModel,
    ServeModel,
    Ticket,
    TicketWanted,
    WithdrawModel,
)
from moe2.common.standby import IdlePower, Standby, StandingEnergy, TransitionCost, WakeAddress

HELLO = Hello(
    protocol_min=1,
    protocol_max=1,
    agent_id="agent-00000000000000000000000000000001",
    agent_name="jetson-01",
    agent_version="0.1.0",
)
WELCOME = Welcome(
    protocol=1,
    coordinator_id="coordinator-1",
    coordinator_version="0.1.0",
    heartbeat_s=5.0,
    report_s=4.0,
    max_frame_bytes=65_536,
)
ENERGY = Energy(
    joules=2.5,
    marginal_joules=1.5,
    quality=Quality.MEASURED_INTEGRATED,
    scope=Scope.MODULE_INPUT,
    source="ina3221",
    coverage=0.99,
    n_samples=12,
    max_gap_s=0.1,
    idle_w=4.5,
    attribution=Attribution.TOKEN_SHARE,
    reason="shared",
)
USAGE = JobUsage(
    prompt_tokens=7, cached_tokens=3, decoded_tokens=5, queue_s=0.25, prefill_s=0.5, decode_s=1.5, energy=ENERGY
)
HOST = HostFacts(
    hostname="host",
    system="Linux 5.15",
    architecture="aarch64",
    cpu_model="Cortex-A78AE",
    cpu_count=12,
    memory_bytes=64_000_000_000,
    accelerator="Orin",
    board="Jetson AGX Orin",
    power_mode="MAXN",
)
EXPERT = ExpertReport(
    model="smollm2",
    state=ExpertState.READY,
    context_tokens=4096,
    slots=4,
    active=1,
    queued=2,
    max_queue=32,
    file_bytes=98_000_000,
    architecture="llama",
    quantization="Q4_1",
    parameters=135_000_000,
    licence="apache-2.0",
    vocabulary_sha256="0" * 64,
    has_chat_template=True,
    supports_tools=True,
    load_progress=1.0,
    restarts=1,
    last_error="killed by SIGKILL",
    on_demand=True,
    load_s=2.5,
    file_sha256="f" * 64,
    performance=Performance(
        prefill_tokens_per_s=900.0,
        decode_tokens_per_s=60.0,
        ttft_s=0.1,
        j_per_decoded_token=0.2,
        idle_w=4.5,
        n_requests=9,
    ),
)

SMALL_EXPERT = ExpertReport(
    model="small-q4",
    state=ExpertState.READY,
    context_tokens=4096,
    slots=4,
    active=2,
    queued=1,
    max_queue=32,
    performance=Performance(decode_tokens_per_s=41.66, ttft_s=0.0214, n_requests=120),
)
"""A busy expert of which no energy is known."""
COST = TransitionCost(
    duration_s=4.5, max_duration_s=5.0, energy_j=180.0, n=3, age_s=60.0, quality=Quality.MEASURED_INTEGRATED
)
STANDBY = Standby(
    allow_unload=True,
    allow_suspend=True,
    suspend_fault="logind says no",
    idle=(
        IdlePower(
            power_w=52.0,
            models=("smollm2",),
            spread_w=0.5,
            measured_s=60.0,
            age_s=2.0,
            quality=Quality.MEASURED_INTEGRATED,
            scope=Scope.GPU_BOARD,
        ),
        IdlePower(power_w=2.5, asleep=True),
    ),
    suspend_cost=COST,
    wake_cost=TransitionCost(duration_s=8.0),
    asleep_s=3600.0,
    wake_addresses=(
        WakeAddress(
            interface="eth0", mac="3c:6d:66:01:02:03", network="192.168.1.0/24", broadcast="192.168.1.255", armed=True
        ),
    ),
    energy=StandingEnergy(
        epoch="0" * 32,
        idle_j=1500.0,
        loading_j=180.0,
        waking_j=90.0,
        other_j=4.5,
        requests_j=45.0,
        measured_s=30.0,
        quality=Quality.MEASURED_INTEGRATED,
        scope=Scope.GPU_BOARD,
    ),
)
SMALLEST_HOST = HostFacts(hostname="h", system="s", architecture="a")

SAMPLES: dict[str, WireMessage] = {
    "hello": msgspec.structs.replace(HELLO, instance_id="0" * 31 + "2", hostname="jetson"),
    "hello.smallest": HELLO,
    "welcome": WELCOME,
    "refused": Refused(code="protocol_version", message="No common version.", remedy="Upgrade the agent."),
    "refused.smallest": Refused(code="no", message="No."),
    "ping": Ping(seq=1),
    "pong": Pong(seq=300),
    "fault": Fault(code="unknown_op", message="Unknown op 'x'.", in_reply_to="x"),
    "fault.smallest": Fault(code="no", message="No."),
    "goodbye": Goodbye(reason="shutting down"),
    "goodbye.asleep": Goodbye(reason=ASLEEP),
    "report": Report(
        seq=3,
        host=HOST,
        experts=(EXPERT,),
        sensors=(SensorReport(name="ina3221", state="denied", detail="EACCES", remedy="chmod it", power_w=9.5),),
        warnings=(HealthWarning(code="queue_full", severity=Severity.NOTICE, message="Full.", remedy="Add one."),),
        draining=True,
    ),
    "report.sampling": Report(
        seq=4,
        host=SMALLEST_HOST,
        experts=(
            ExpertReport(
                model="m",
                state=ExpertState.READY,
                context_tokens=64,
                slots=1,
                sampling=Sampling(temperature=0.5, top_k=20),
                supports_thinking=True,
            ),
        ),
    ),
    "report.standby": Report(
        seq=4,
        host=SMALLEST_HOST,
        experts=(msgspec.structs.replace(SMALL_EXPERT, load_cost=COST, unload_cost=TransitionCost(duration_s=0.5)),),
        standby=STANDBY,
    ),
    "report.models": Report(
        seq=4,
        host=SMALLEST_HOST,
        experts=(),
        models=ModelStore(
            takes_orders=True,
            free_bytes=10_000_000,
            max_bytes=20_000_000,
            memory_free_bytes=5_000_000,
            files=(
                ModelFile(
                    name="small.gguf",
                    size_bytes=1_000_000,
                    sha256="ab" * 32,
                    origin="hf:org/repo/small.gguf@main",
                    added_unix_s=1_790_000_000.0,
                    licence="apache-2.0",
                    architecture="llama",
                    last_used_unix_s=1_790_000_001.0,
                    served_as=("smollm2",),
                ),
            ),
            fetching=(Fetching(file="b.gguf", sha256="cd" * 32, done_bytes=5, size_bytes=10, source="jetson-02"),),
            swapping=("smollm2",),
        ),
    ),
    "report.pulls": Report(
        seq=4,
        host=SMALLEST_HOST,
        experts=(),
        models=ModelStore(
            takes_orders=True,
            pulling=(
                Pulling(command_id="c-9", file="b.gguf", source="hf:org/repo/b.gguf", done_bytes=5, size_bytes=10),
                Pulling(command_id="c-10", file="c.gguf", source="https://models.example/c.gguf?…"),
            ),
            pull_from=("hf:", "https://models.example/"),
            deletes=True,
        ),
    ),
    "report.vectors": Report(
        seq=4,
        host=SMALLEST_HOST,
        experts=(
            ExpertReport(
                model="m",
                state=ExpertState.READY,
                context_tokens=64,
                slots=1,
                vector_size=384,
                vector_sizes=(128, 256),
            ),
        ),
    ),
    "report.smallest": Report(
        seq=0,
        host=SMALLEST_HOST,
        experts=(ExpertReport(model="m", state=ExpertState.LOADING, context_tokens=64, slots=1),),
    ),
    "submit": Submit(
        job_id="req-1.0",
        request_id="req-1",
        model="smollm2",
        prompt=ChatPrompt(
            messages=(ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hé", name="n"))
        ),
        sampling=Sampling(
            temperature=0.5,
            top_p=0.9,
            top_k=40,
            min_p=0.05,
            seed=42,
            frequency_penalty=0.25,
            presence_penalty=-0.25,
            logit_bias={50: -1.5},
        ),
        max_tokens=16,
        stop=("\n", "END"),
        logprobs=2,
        deadline_s=60.0,
    ),
    "submit.tools": Submit(
        job_id="req-1.0",
        request_id="req-1",
        model="smollm2",
        prompt=ChatPrompt(
            messages=(
                ChatMessage(role="user", content="Wet?"),
                ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="c", name="f", arguments="{}"),)),
                ChatMessage(role="tool", content="No.", tool_call_id="c"),
            ),
            tools=(Tool(name="f", description="d", parameters='{"type":"object"}'),),
        ),
        json_schema="{}",
        grammar='root ::= "a"',
        forced_tools=("f",),
    ),
    "submit.later": Submit(
        job_id="j",
        request_id="r",
        model="m",
        prompt=TextPrompt(text="Once"),
        sampling=Sampling(repeat_penalty=1.25),
    ),
    "submit.protocol4": Submit(
        job_id="j",
        request_id="r",
        model="m",
        prompt=ChatPrompt(
            messages=(
                ChatMessage(role="user", content="Wet?\nNow?", parts=("Wet?", "Now?")),
                ChatMessage(role="assistant", content="Dry.", reasoning_content="No rain."),
            ),
            template_kwargs='{"enable_thinking":false}',
        ),
        max_tokens=0,
        tool_rules=ToolRules(strict=("f",), parallel=False),
        echo=True,
        thinking_budget_tokens=0,
        cache_prompt=False,
    ),
    "submit.ids": Submit(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="", tokens=(1, 70_000))),
    "submit.smallest": Submit(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="Once")),
    "score": ScoreJob(
        job_id="req-1.0",
        request_id="req-1",
        model="smollm2",
        prompt=TextPrompt(text="Wet?"),
        continuations=("yes", "né"),
        deadline_s=60.0,
    ),
    "follow": FollowJob(
        job_id="req-1.0",
        request_id="req-1",
        model="smollm2",
        prompt=TextPrompt(text="Once"),
        top_p=0.75,
        most=64,
        max_tokens=16,
        deadline_s=60.0,
    ),
    "follow.smallest": FollowJob(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="Once")),
    "embed": EmbedJob(
        job_id="req-1.0",
        request_id="req-1",
        model="minilm",
        texts=(TextPrompt(text="Once"), TextPrompt(text="", tokens=(101, 102))),
        deadline_s=60.0,
    ),
    "take_token": TakeToken(job_id="req-1.0", step=3, token=70_000),
    "take_token.smallest": TakeToken(job_id="j", step=0),
    "cancel": CancelJob(job_id="req-1.0"),
    "load_model": LoadModel(command_id="c-1", model="smollm2"),
    "unload_model": UnloadModel(command_id="c-2", model="smollm2", drain_s=30.0),
    "unload_model.smallest": UnloadModel(command_id="c", model="m"),
    "suspend": Suspend(command_id="c-3", drain_s=30.0),
    "suspend.smallest": Suspend(command_id="c"),
    "serve_model": ServeModel(
        command_id="c-5",
        name="smollm2",
        file="small.gguf",
        sha256="ab" * 32,
        context_tokens=2048,
        slots=2,
        cache_type="q8_0",
        gpu_layers=-1,
    ),
    "serve_model.smallest": ServeModel(command_id="c", name="m"),
    "fetch_model": FetchModel(
        command_id="c-7",
        parts=(FilePart(name="small.gguf", size_bytes=1_000_000, sha256="ab" * 32),),
        sha256="ab" * 32,
        origin="coordinator:/srv/models/small.gguf",
        architecture="llama",
        licence="apache-2.0",
    ),
    "ticket_wanted": TicketWanted(command_id="c-7", part=0),
    "ticket": Ticket(command_id="c-7", part=0, secret="s3cret", port=8082, tls=True),
    "ticket.neighbour": Ticket(
        command_id="c-7",
        part=1,
        secret="s3cret",
        port=8083,
        address="192.168.1.5",
        source="orin-1",
        fingerprint="cd" * 32,
    ),
    "ticket_wanted.alone": TicketWanted(command_id="c-7", part=0, alone=True),
    "lend_file": LendFile(command_id="c-8", sha256="ab" * 32, part=1, size_bytes=1_000_000, secret="s3cret"),
    "pull_model": PullModel(command_id="c-9", source="hf:org/repo/b.gguf@main"),
    "delete_file": DeleteFile(command_id="c-11", name="small.gguf", sha256="ab" * 32),
    "delete_file.smallest": DeleteFile(command_id="c", name="m.gguf"),
    "withdraw_model": WithdrawModel(command_id="c-6", name="smollm2"),
    "wake_neighbour": WakeNeighbour(command_id="c-4", mac="3c:6d:66:01:02:03", network="192.168.1.0/24"),
    "command_answer": CommandAnswer(
        command_id="c-1", outcome=CommandOutcome.REFUSED, code="not_allowed", message="allow_unload is not set."
    ),
    "command_answer.smallest": CommandAnswer(command_id="c", outcome=CommandOutcome.DONE),
    "job_started": JobStarted(job_id="req-1.0", prompt_tokens=7, queue_s=0.25),
    "tokens": Tokens(
        jobs=(
            JobPieces("req-1.0", (TokenPiece("Hi", -0.5, (TokenAlternative("Hey", -1.5),)), TokenPiece("!"))),
            JobPieces("req-2.0", ()),
        )
    ),
    "tokens.control": Tokens(jobs=(JobPieces("req-1.0", (TokenPiece("", -0.5, name="<|im_start|>"),)),)),
    "tokens.reasoning": Tokens(
        jobs=(
            JobPieces(
                "req-1.0",
                (
                    TokenPiece("Hm", is_reasoning=True),
                    TokenPiece(
                        "",
                        -0.5,
                        (TokenAlternative("\ufffd", -1.5, "c3"), TokenAlternative("<end>", -2.5, None)),
                        hex="c3",
                    ),
                ),
            ),
        )
    ),
    "next_tokens": NextTokens(
        job_id="req-1.0", step=3, candidates=(Candidate(9, -0.25, b"\xc3", False), Candidate(2, -2.5, b"", True))
    ),
    "vectors": Vectors(job_id="req-1.0", vectors=(b"\0\0\x80\x3f\0\0\0\0", b"\x9a\x99\x19\x3f\xcd\xcc\x4c\x3f")),
    "job_scored": JobScored(
        job_id="req-1.0", scores=(ContinuationScore(-1.5, 1, 3), ContinuationScore(-4.5, 2, 3)), usage=USAGE
    ),
    "job_done": JobDone(job_id="req-1.0", reason="stop", usage=USAGE),
    "job_done.smallest": JobDone(job_id="j", reason="cancelled", usage=JobUsage()),
    "job_done.reasoning": JobDone(job_id="j", reason="length", usage=JobUsage(decoded_tokens=5, reasoning_tokens=3)),
    "job_done.guesses": JobDone(
        job_id="j", reason="length", usage=JobUsage(decoded_tokens=5, drafted_tokens=4, accepted_tokens=3)
    ),
    "job_failed": JobFailed(job_id="req-1.0", code="engine_crashed", message="It died.", usage=USAGE),
    "job_failed.in_batch": JobFailed(job_id="j", code="engine_crashed", message="It died.", in_batch=True),
    "job_failed.queued": JobFailed(job_id="j", code="engine_crashed", message="It died.", in_batch=False),
    "job_failed.smallest": JobFailed(job_id="j", code="queue_full", message="Full."),
}
