"""The native bodies, in and out."""

import difflib
import functools
from typing import Any, Literal, TypeVar, cast

import msgspec

from api.body import convert, decode, present
from shared.errors import InvalidRequest
from shared.event import TokenUsage
from shared.run import ApprovalMode, Priority, Run, SandboxMode, SystemPromptMode

OutputFormat = Literal["default", "text", "json", "stream-json"]


class PromptBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One prompt for one backend. Fields left out, or null, are the host's own defaults."""

    backend: str
    prompt: str
    model: str | None = None
    workdir: str | None = None
    add_dirs: list[str] = []
    ephemeral: bool = False
    approval_mode: ApprovalMode | None = None
    sandbox_mode: SandboxMode | None = None
    output_format: OutputFormat = "default"
    max_tokens: int | None = None
    max_turns: int | None = None
    system_prompt: str | None = None
    system_prompt_mode: SystemPromptMode = "replace"
    verbose: bool = False
    dry_run: bool = False
    extra: list[str] = []
    metadata: dict[str, Any] = {}
    timeout_secs: float | None = None
    labels: dict[str, str] = {}
    retry: int = 0
    priority: Priority = "interactive"


class StepBody(PromptBody, kw_only=True, omit_defaults=True):
    """A step of a chain; its prompt may name `{{previous}}` and `{{steps.NAME}}`."""

    name: str = ""


class ParallelBody(msgspec.Struct, kw_only=True):
    """`tasks` are prompt bodies. `max_parallel`: how many run at once, over the whole fleet."""

    tasks: list[dict[str, Any]]
    max_parallel: int | None = None
    fail_fast: bool | None = None
    dry_run: bool = False


class ChainBody(msgspec.Struct, kw_only=True):
    """`steps` are prompt bodies with a `name`."""

    steps: list[dict[str, Any]]
    stop_on_failure: bool = False
    pass_working_dir: bool = False
    dry_run: bool = False
    pass_session_id: bool = False
    persist_sessions: bool = False


class CompareBody(msgspec.Struct, kw_only=True):
    """`backends`: names, `backend/model`, or objects with `backend` and `model`; one may stand there twice."""

    prompt: str
    backends: list[str | dict[str, str]]
    model: str | None = None
    workdir: str | None = None
    sequential: bool = False
    dry_run: bool = False
    system_prompt: str | None = None
    approval_mode: ApprovalMode | None = None
    sandbox_mode: SandboxMode | None = None
    timeout_secs: float | None = None


class ResumeBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A further turn; what it leaves out is as in the session's first turn."""

    prompt: str
    model: str | None = None
    approval_mode: ApprovalMode | None = None
    sandbox_mode: SandboxMode | None = None
    output_format: OutputFormat = "default"
    max_tokens: int | None = None
    max_turns: int | None = None
    system_prompt: str | None = None
    verbose: bool = False
    dry_run: bool = False
    extra: list[str] | None = None
    metadata: dict[str, Any] = {}
    timeout_secs: float | None = None
    retry: int = 0
    priority: Priority = "interactive"


class LaneResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a lane of a flow came to; `exit_code` is -1 where no exit was seen."""

    index: int
    status: str
    backend: str
    exit_code: int = msgspec.field(default_factory=lambda: -1)
    duration_ms: int = msgspec.field(default_factory=int)
    output: str = msgspec.field(default_factory=str)
    error: str = msgspec.field(default_factory=str)
    session_id: str = msgspec.field(default_factory=str)
    run_id: str | None = None
    step: int | None = None
    name: str | None = None
    model: str | None = None
    error_code: str | None = None
    error_cause: str | None = None
    token_usage: TokenUsage | None = None


class SessionView(msgspec.Struct, kw_only=True):
    """A session, in the ancestor's words. Times are RFC 3339."""

    id: str
    backend: str
    created_at: str
    last_used: str
    working_dir: str
    model: str
    initial_prompt: str
    status: str
    turn_count: int
    token_usage: TokenUsage
    tags: list[str]
    title: str
    metadata: dict[str, Any]
    host: str | None


class PromptAnswer(msgspec.Struct, kw_only=True):
    """What a run came to. `error` is empty where it succeeded."""

    run_id: str
    session_id: str
    backend: str
    exit_code: int
    duration_ms: int
    output: str
    error: str
    error_code: str | None = None
    error_cause: str | None = None
    token_usage: TokenUsage | None = None


class RunView(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A run as its caller sees it. Times are seconds since the epoch."""

    id: str
    status: str
    backend: str
    created_at: float
    tenant: str | None = None  # for admins
    model: str | None = None
    session_id: str | None = None
    queued_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    host: str | None = None
    attempt: int = 0
    sequence: int = 0
    position: int | None = None  # of a waiting run, among all that wait; 1 is the one that came first
    cancelling: bool = False
    metadata: dict[str, Any] = {}
    result: PromptAnswer | None = None


class RunList(msgspec.Struct, kw_only=True):
    runs: list[RunView]
    total: int
    limit: int
    offset: int


class Problem(msgspec.Struct, kw_only=True):
    """Every error's body (RFC 9457), with the same in `error` for clients that look there."""

    type: str
    title: str
    status: int
    detail: str
    error: dict[str, Any]
    request_id: str


T = TypeVar("T")

_LONGEST_NAME = 64  # of a field; looking for what is like a longer one would take long and find nothing


@functools.cache
def _names(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.name for field in msgspec.structs.fields(kind))


def parse(body: bytes, kind: type[T]) -> T:
    """A native body: null means absent, an unknown field is refused by name.

    Raises: InvalidRequest that says what, where and what would be right.
    """
    return known(decode(body), kind)


def known(data: dict[str, Any], kind: type[T], where: str = "") -> T:
    """As `parse`, for a part of a body that stands at `where`."""
    names = _names(cast("type[msgspec.Struct]", kind))
    data = present(data)
    for name in data:
        if name not in names:
            near = difflib.get_close_matches(name[:_LONGEST_NAME], names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"
            field = f"{where}.{name}" if where else name
            raise InvalidRequest(f"unknown field {field!r}{hint}", field=field, issue="unknown field")
    return convert(data, kind, where)


def answer(run: Run) -> PromptAnswer:
    """The answer of an ended run."""
    outcome = run.outcome
    assert outcome is not None
    failure, usage = outcome.failure, outcome.usage
    return PromptAnswer(
        run_id=run.id,
        session_id=run.spec.session_id or "",
        backend=run.spec.backend,
        exit_code=outcome.exit_code if outcome.exit_code is not None else -1,
        duration_ms=outcome.duration_ms,
        output=outcome.output,
        error="" if failure is None else failure.message,
        error_code=None if failure is None else failure.code,
        error_cause=None if failure is None else failure.cause,
        token_usage=None
        if usage is None
        else TokenUsage(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens),
    )


def view(run: Run) -> RunView:
    return RunView(
        id=run.id,
        status=run.status.value,
        backend=run.spec.backend,
        created_at=run.created_at,
        model=run.spec.model,
        session_id=run.spec.session_id,
        queued_at=run.queued_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        host=run.host,
        attempt=run.attempt,
        sequence=run.sequence,
        cancelling=run.cancelling is not None,
        metadata=run.spec.metadata,
        result=answer(run) if run.outcome is not None else None,
    )
