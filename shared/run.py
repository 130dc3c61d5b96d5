"""A run: what was asked (`RunSpec`), where it stands (`Status`), what it came to (`Outcome`)."""

import enum
from typing import Any, Literal

import msgspec

ApprovalMode = Literal["default", "auto", "none", "always"]
SandboxMode = Literal["read-only", "workspace", "full"]
Priority = Literal["interactive", "batch"]
SystemPromptMode = Literal["replace", "append"]


class Status(enum.StrEnum):
    """waiting -> queued -> running -> succeeded | failed | cancelled, never backwards but for a caller's `retry`."""

    WAITING = "waiting"  # in line until every window it stands in has room
    QUEUED = "queued"  # its hint lies in a Celery queue; any worker of that queue may claim it
    RUNNING = "running"  # one worker holds its lease
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


class Attachment(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a turn brings besides text: an image, a document."""

    media_type: str  # such as image/png, application/pdf
    data: str  # base64
    name: str | None = None
    field: str  # where it stood in the request, to name it in a refusal: messages[0].content[1]


class Turn(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An earlier turn of the conversation that a prompt goes on with. They alternate and begin with the user's."""

    role: Literal["user", "assistant"]
    text: str
    attachments: tuple[Attachment, ...] = ()


PATH_BYTES = 4096  # of a directory's path, its end counted: Linux has no longer one
MOST_DIRS = 64  # in `add_dirs`


class RunSpec(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a caller asked for, and nothing of any host's defaults. None means: not asked for.

    Written by the API, read by workers that may be older or newer: unknown fields are passed over, and a
    field is only ever added with a default.
    """

    id: str
    tenant: str
    backend: str
    prompt: str
    dialect: str = "native"
    model: str | None = None
    system_prompt: str | None = None
    system_prompt_mode: SystemPromptMode = "replace"
    workdir: str | None = None  # as the caller wrote it; the worker resolves and judges it
    add_dirs: tuple[str, ...] = ()
    ephemeral: bool = False
    session_id: str | None = None  # our session; None for an ephemeral run
    resume: str | None = None  # the CLI's own id of the session that this run goes on with
    prior_usage: "Usage | None" = None  # of the turns before, where the CLI reports a session's sum
    approval_mode: ApprovalMode | None = None
    sandbox_mode: SandboxMode | None = None
    max_turns: int | None = None
    max_tokens: int | None = None
    extra: tuple[str, ...] = ()
    verbose: bool = False
    dry_run: bool = False
    timeout_s: float | None = None
    retry: int = 0
    priority: Priority = "interactive"
    labels: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    request_id: str | None = None
    output_format: str | None = None
    history: tuple[Turn, ...] = ()
    attachments: tuple[Attachment, ...] = ()  # of the prompt
    schema: dict[str, Any] | None = None  # JSON Schema: the whole answer is one JSON value of that kind
    effort: str | None = None  # of reasoning: minimal, low, medium, high, max; the nearest that the CLI has
    thinking_tokens: int | None = None  # a bound for reasoning; 0: none of it
    flow_id: str | None = None
    lane: int = 0  # its place in the flow
    workspace: str | None = None  # a kept directory of this name is the cwd, which runs of a flow may share
    start_within_s: float | None = None  # its caller's patience: not started within it, it is refused
    reply: dict[str, Any] = {}  # what the dialect's answer repeats of the request; of no meaning to workers
    key: str | None = None  # the id of the API key that asked for it
    key_window: int | None = None  # how many runs that key may have at once
    workdir_prefixes: tuple[str, ...] = ()  # where that key may work; none: wherever the worker allows
    traceparent: str | None = None  # W3C trace context: the trace that its request belongs to, and its span there
    tracestate: str | None = None

    @property
    def about(self) -> dict[str, str]:
        """What the log's lines about it carry."""
        trace_id = (self.traceparent or "")[3:35]
        told = {"request_id": self.request_id, "run_id": self.id, "tenant": self.tenant, "trace_id": trace_id}
        return {name: value for name, value in told.items() if value}


class Usage(msgspec.Struct, frozen=True, omit_defaults=False):
    """Tokens of this run alone. `input_tokens` holds the cached ones too; `output_tokens` the reasoning ones."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a run did not succeed.

    `code` is a word of the public error table (api/errors.py); `cause` is finer, for people and metrics:
    login, rate_limited, overloaded, unknown_model, max_turns, timed_out, idle, cancelled, hung_up, crashed,
    no_final_event, refused_connection, worker_lost, worker_shutdown, output_too_large, ...
    """

    code: str
    message: str
    cause: str = ""
    retry_after_s: float | None = None


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a run came to. `exit_code` is None where no exit of the CLI was seen."""

    exit_code: int | None = None
    output: str = ""
    usage: Usage | None = None
    failure: Failure | None = None
    backend_session_id: str | None = None
    model: str | None = None  # what ran, where the CLI says so
    turns: int | None = None
    duration_ms: int = 0
    cost_usd: float | None = None
    not_enforced: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        if self.failure is None:
            return Status.SUCCEEDED
        return Status.CANCELLED if self.failure.code == "cancelled" else Status.FAILED


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the store holds it. Times are seconds since the epoch, by Redis' clock."""

    spec: RunSpec
    status: Status
    queue: str
    created_at: float
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    host: str | None = None
    instance: str | None = None
    attempt: int = 0  # how often it was started
    sequence: int = 0  # of its last event
    detached: bool = False  # asked for asynchronously: nobody needs to follow it
    cancelling: Failure | None = None  # a cancel was ordered and has not been carried out yet
    outcome: Outcome | None = None

    @property
    def id(self) -> str:
        return self.spec.id
