"""The native routes: prompts, runs, backends."""

from typing import Any

from litestar import Response, Router, delete, get, post

from api import audit
from api.body import read
from api.context import context_of
from api.erasure import erase_run
from api.exchange import Answer, Req, found, granted, json, may_use, reach_of, request_id_of, resumed, tenant_of
from api.models import of_backend
from api.native import fleet_routes, flow_routes, operator_routes, session_routes
from api.native.answering import taken
from api.native.render import Ndjson, Sse
from api.native.requests import choice, number, position, whose, yes
from api.native.translate import to_spec
from api.native.wire import PromptBody, RunList, RunView, parse, view
from shared.ids import new_id
from shared.run import Run, Status


@post("/prompt", status_code=200)
async def create_prompt(request: Req) -> Response[Any]:
    answer = await _prompted(request)
    return await answer()


async def _prompted(request: Req) -> Answer:
    ctx = context_of(request)
    raw = await read(request)
    body = parse(raw, PromptBody)
    spec = to_spec(
        body,
        model=of_backend(body.backend, body.model, ctx.config.model_aliases),
        run_id=new_id("run"),
        session_id=new_id("ses"),
        tenant=tenant_of(request),
        request_id=request_id_of(request),
    )
    spec = granted(request, spec)
    return await taken(request, spec, endpoint="prompt", body=raw, output_format=body.output_format)


@get("/runs")
async def list_runs(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    limit, offset = number(request, "limit", 100, 1, 1000), number(request, "offset", 0, 0, 1_000_000)
    status = choice(request, "status", tuple(Status))
    tenant = whose(request)
    runs, total = await ctx.runs.list_all(
        [tenant] if tenant is not None else await ctx.runs.tenants(),
        limit=limit,
        offset=offset,
        status=Status(status) if status else None,
    )
    shown = RunList(runs=[_view(request, run) for run in runs], total=total, limit=limit, offset=offset)
    return json(shown)


def _view(request: Req, run: Run) -> RunView:
    """With its tenant, for who sees more than one."""
    shown = view(run)
    if reach_of(request) is None:
        shown.tenant = run.spec.tenant
    return shown


@get("/runs/{run_id:str}")
async def get_run(request: Req, run_id: str) -> Response[bytes]:
    ctx = context_of(request)
    run = await found(ctx, run_id, reach_of(request))
    request.scope["state"]["run_id"] = run.id
    shown = _view(request, run)
    if run.status is Status.WAITING:
        shown.position = await ctx.runs.position(run.id)
    return json(shown)


@get("/runs/{run_id:str}/events")
async def follow_run(request: Req, run_id: str) -> Response[Any]:
    after = position(request)
    exchange = await resumed(request, run_id, reach_of(request), after=after)
    accept = request.headers.get("accept", "")
    kind = Ndjson if "ndjson" in accept or "json" in accept else Sse
    return await exchange.streamed(kind(exchange.spec), headers={}, hold=False, fails=None)


@delete("/runs/{run_id:str}", status_code=200)
async def cancel_run(request: Req, run_id: str) -> Response[bytes]:
    """202 where its worker has been ordered to end it, 200 where it has ended, or with `?erase=true` nothing is left."""
    ctx = context_of(request)
    run = await found(ctx, run_id, reach_of(request))
    request.scope["state"]["run_id"] = run.id
    if yes(request, "erase"):
        await erase_run(request, run)
        return json({"erased": True, "id": run.id})
    how = await ctx.dispatch.cancel(run)
    run = await found(ctx, run_id, reach_of(request))
    await audit.told(request, "run.cancel", run.id, owner=run.spec.tenant, result=how)
    return json(_view(request, run), status=202 if how == "ordered" else 200)


@get("/backends")
async def list_backends(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    offered = ctx.backends_of(await ctx.dispatch.fleet())
    shown = {"backends": [one for one in offered if may_use(request, one["name"])]}
    return json(shown)


router = Router(
    path="/api/v1",
    route_handlers=[
        create_prompt,
        list_runs,
        get_run,
        follow_run,
        cancel_run,
        list_backends,
        *flow_routes.handlers,
        *session_routes.handlers,
        *fleet_routes.handlers,
        *operator_routes.handlers,
    ],
)
