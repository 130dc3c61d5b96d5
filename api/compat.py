"""What the compatible surfaces do alike: from a conversation to a run, and the headers of their answers."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from litestar import Response

from api import bounds
from api.context import Context, context_of
from api.conversation import Talk
from api.errors import RunFailed
from api.exchange import (
    NOBODY,
    Exchange,
    Req,
    found,
    granted,
    json,
    may_use,
    patience_of,
    request_id_of,
    resumed,
    tenant_of,
)
from api.models import Route, listed, route
from api.thoughts import Thoughts
from shared.errors import InvalidRequest, NotFound, PermissionDenied
from shared.event import is_last
from shared.host import Capabilities
from shared.ids import new_id
from shared.run import Run, RunSpec

_QUIET = (b'{"type":"init"', b'{"type":"progress"', b'{"type":"token_usage"')


def routed(ctx: Context, name: str) -> Route:
    """Raises: InvalidRequest, ModelNotFound."""
    if not name.strip():
        raise InvalidRequest("model must not be blank", field="model")
    if len(name) > 200 or not name.isprintable():
        raise InvalidRequest("model must be a name of at most 200 printable characters", field="model")
    config = ctx.config
    return route(name, default=config.default_backend, aliases=config.model_aliases, strict=config.strict_models)


def to_spec(
    request: Req,
    talk: Talk,
    to: Route,
    *,
    dialect: str,
    model: str,
    reply: dict[str, Any],
    schema: dict[str, Any] | None = None,
    effort: str | None = None,
    thinking_tokens: int | None = None,
    dry_run: bool = False,
    metadata: dict[str, Any] | None = None,
) -> RunSpec:
    """Runs of the compatible surfaces keep no session: each request brings its whole conversation.

    Raises: InvalidRequest, PermissionDenied."""
    bounds.of_metadata(metadata or {})
    spec = RunSpec(
        id=new_id("run"),
        tenant=tenant_of(request),
        backend=to.backend,
        dialect=dialect,
        model=to.model,
        prompt=talk.prompt,
        system_prompt=talk.system,
        history=talk.history,
        attachments=talk.attachments,
        schema=schema,
        effort=effort,
        thinking_tokens=thinking_tokens,
        ephemeral=True,
        dry_run=dry_run,
        metadata=metadata or {},
        request_id=request_id_of(request),
        start_within_s=patience_of(request),
        reply={"model": model, "created": int(time.time()), **reply},
    )
    try:
        return granted(request, spec)
    except PermissionDenied as error:
        error.details["field"] = "model"  # which has named the backend
        raise


async def model_names(request: Req) -> list[str]:
    """The models that some live worker can run now and the caller may use, by the names of backends, tiers, aliases."""
    ctx = context_of(request)
    fleet = await ctx.dispatch.fleet()
    names = [str(entry["name"]) for entry in ctx.backends_of(fleet) if entry["available"]]
    available = [name for name in names if may_use(request, name)]
    return listed(available, ctx.config.model_aliases)


def headers(spec: RunSpec, able: Capabilities | None, ignored: Sequence[str], run: Run | None = None) -> dict[str, str]:
    """What the body has no place for."""
    lacking = [] if able is None else _lacking(spec, able)
    ran = spec.model or spec.backend
    if run is not None and run.outcome is not None:
        ran = run.outcome.model or ran
        lacking = sorted({*lacking, *run.outcome.not_enforced})
    made = {"x-clinvk-model": _header(ran), "x-clinvk-backend": spec.backend}
    if ignored:
        made["x-clinvk-ignored"] = ", ".join(ignored)[:2000]
    if lacking:
        made["x-clinvk-not-enforced"] = ", ".join(lacking)
    return made


def _header(words: str) -> str:
    """Words of a CLI, as a header may hold them."""
    return "".join(one if one.isascii() and one.isprintable() else "?" for one in words[:200])


def _lacking(spec: RunSpec, able: Capabilities) -> list[str]:
    asked = {"effort": spec.effort, "thinking": spec.thinking_tokens}
    return [name for name, value in asked.items() if value is not None and name not in able.options]


def tells(line: bytes) -> bool:
    """Whether an event has something for a caller of these surfaces; before it a failure can still have a status."""
    return not line.startswith(_QUIET) and not is_last(line)


async def whole(
    exchange: Exchange, shape: Callable[[Run, str], dict[str, Any]], ignored: Sequence[str]
) -> Response[Any]:
    """The whole answer: `shape` is given the run that succeeded and its reasoning. Raises: RunFailed."""
    thoughts = Thoughts()
    run = await exchange.whole(thoughts.see)
    if run is None:
        return NOBODY
    assert run.outcome is not None
    if run.outcome.failure is not None:
        raise RunFailed(run.outcome.failure, run.id)
    return json(shape(run, thoughts.text), headers(run.spec, exchange.able, ignored, run))


async def gone_on(request: Req, run_id: str, sequence: int, dialect: str) -> Exchange:
    """A stream of this dialect that is taken up again. Raises: NotFound."""
    run = await found(context_of(request), run_id, tenant_of(request))
    if run.spec.dialect != dialect or run.spec.reply.get("response"):
        raise NotFound("stream of", run_id)
    if sequence > run.sequence:
        raise InvalidRequest(
            f"the run {run_id} has only {run.sequence} events so far; {sequence} is beyond the last",
            field="Last-Event-ID",
        )
    return await resumed(request, run_id, tenant_of(request))


def resume_point(request: Req) -> tuple[str, int] | None:
    """The run and the sequence of a `Last-Event-ID` as these surfaces give them. Raises: InvalidRequest."""
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    run_id, _, sequence = given.partition(":")
    if not run_id.startswith("run_") or not sequence.isdecimal() or len(sequence) > 15:
        raise InvalidRequest(
            f"Last-Event-ID must be an id of this stream's events, not {given[:60]!r}", field="Last-Event-ID"
        )
    return run_id, int(sequence)


@contextlib.contextmanager
def named(schema: str, system: str) -> Iterator[None]:
    """Names a refused option as its caller wrote it."""
    try:
        yield
    except InvalidRequest as error:
        name = {"schema": schema, "system_prompt": system, "prompt": system, "backend": "model"}.get(error.field or "")
        if name is not None:
            error.details["field"] = name
        raise
