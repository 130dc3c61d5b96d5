"""The native routes: prompts, runs, backends."""

from typing import Any

from litestar import Response, Router, delete, get, post

from api.context import context_of
from api.errors import RunFailed
from api.exchange import (
    NOBODY,
    Req,
    detached,
    found,
    json,
    request_id_of,
    resumed,
    submitted,
    tenant_of,
)
from api.models import of_backend
from api.native.render import Ndjson, Sse
from api.native.translate import to_spec
from api.native.wire import PromptBody, RunList, answer, parse, view
from shared.errors import InvalidRequest
from shared.ids import new_id
from shared.run import Run


@post("/prompt", status_code=200)
async def create_prompt(request: Req) -> Response[Any]:
    ctx = context_of(request)
    raw = await request.body()
    body = parse(raw, PromptBody)
    spec = to_spec(
        body,
        model=of_backend(body.backend, body.model, ctx.config.model_aliases),
        run_id=new_id("run"),
        session_id=new_id("ses"),
        tenant=tenant_of(request),
        request_id=request_id_of(request),
    )
    if "respond-async" in request.headers.get("prefer", ""):
        queued = await detached(request, spec, endpoint="prompt", body=raw)
        headers = {"location": f"/api/v1/runs/{queued.id}", "preference-applied": "respond-async"}
        return json(view(queued), headers, status=202)
    exchange = await submitted(request, spec, endpoint="prompt", body=raw)
    if "text/event-stream" in request.headers.get("accept", ""):
        return await exchange.streamed(Sse(exchange.spec), headers={}, fails=_without_exit)
    if body.output_format == "stream-json":
        return await exchange.streamed(Ndjson(exchange.spec), headers={}, fails=_without_exit)
    run = await exchange.whole()
    return NOBODY if run is None else _report(run)


def _without_exit(run: Run) -> bool:
    return run.outcome is not None and run.outcome.exit_code is None


def _report(run: Run) -> Response[bytes]:
    """200 where the CLI ran, even if it failed: the run was carried out and this is its report."""
    assert run.outcome is not None
    failure = run.outcome.failure
    if failure is not None and run.outcome.exit_code is None:
        raise RunFailed(failure, run.id)
    headers = {}
    if run.outcome.not_enforced:
        headers["x-clinvk-not-enforced"] = ", ".join(run.outcome.not_enforced)
    if run.outcome.model:
        headers["x-clinvk-model"] = run.outcome.model.encode("ascii", "replace").decode()
    return json(answer(run), headers)


@get("/runs")
async def list_runs(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    limit, offset = _number(request, "limit", 100, 1, 1000), _number(request, "offset", 0, 0, 1_000_000)
    runs, total = await ctx.runs.list(tenant_of(request), limit=limit, offset=offset)
    shown = RunList(runs=[view(run) for run in runs], total=total, limit=limit, offset=offset)
    return json(shown)


@get("/runs/{run_id:str}")
async def get_run(request: Req, run_id: str) -> Response[bytes]:
    run = await found(context_of(request), run_id, tenant_of(request))
    request.scope["state"]["run_id"] = run.id
    return json(view(run))


@get("/runs/{run_id:str}/events")
async def follow_run(request: Req, run_id: str) -> Response[Any]:
    after = _position(request)
    exchange = await resumed(request, run_id, tenant_of(request), after=after)
    accept = request.headers.get("accept", "")
    kind = Ndjson if "ndjson" in accept or "json" in accept else Sse
    return await exchange.streamed(kind(exchange.spec), headers={}, hold=False, fails=lambda _: False)


@delete("/runs/{run_id:str}", status_code=200)
async def cancel_run(request: Req, run_id: str) -> Response[bytes]:
    """202 where its worker has been ordered to end it, 200 where it has ended."""
    ctx = context_of(request)
    run = await found(ctx, run_id, tenant_of(request))
    request.scope["state"]["run_id"] = run.id
    how = await ctx.dispatch.cancel(run)
    run = await found(ctx, run_id, tenant_of(request))
    return json(view(run), status=202 if how == "ordered" else 200)


@get("/backends")
async def list_backends(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    shown = {"backends": ctx.backends_of(await ctx.dispatch.fleet())}
    return json(shown)


def _position(request: Req) -> int:
    header = request.headers.get("last-event-id")
    if header is None:
        return _number(request, "after", 0, 0, 2**53)
    if not header.isascii() or not header.isdigit() or len(header) > 15:
        raise InvalidRequest(f"Last-Event-ID must be a sequence number, not {header[:40]!r}", field="Last-Event-ID")
    return int(header)


def _number(request: Req, name: str, default: int, low: int, high: int) -> int:
    value = request.query_params.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 16 or not low <= int(value) <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value[:40]!r}", field=name)
    return int(value)


router = Router(
    path="/api/v1", route_handlers=[create_prompt, list_runs, get_run, follow_run, cancel_run, list_backends]
)
