"""The routes of flows: parallel, chain, compare."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from litestar import Response, delete, get, post

from api import audit
from api.body import read
from api.context import Context, context_of
from api.erasure import erase_flow
from api.exchange import (
    NOBODY,
    Answer,
    Exchange,
    Req,
    at_once,
    granted,
    idempotency_key,
    json,
    reach_of,
    request_id_of,
    tenant_of,
)
from api.native import flow_view
from api.native.render import FlowNdjson, FlowSse
from api.native.requests import choice, number, position, whose, yes
from api.native.wire import ChainBody, CompareBody, ParallelBody, parse
from api.relay import Follower
from shared.dispatch import CANCELLED
from shared.errors import InvalidRequest, NotFound
from shared.flow import Flow, FlowRecord, FlowStatus
from shared.ids import new_id
from shared.store.runs import ANOTHER_BODY

_TRIES = 20  # how often a caller may lose his flow by going away


@post("/parallel", status_code=200)
async def create_parallel(request: Req) -> Response[Any]:
    config = context_of(request).config.parallel

    def made(raw: bytes, make: flow_view.Maker) -> Flow:
        body = parse(raw, ParallelBody)
        return flow_view.parallel(
            body, make, window=config.max_workers, most=config.max_window, fail_fast=config.fail_fast
        )

    return await _answered(request, made)


@post("/chain", status_code=200)
async def create_chain(request: Req) -> Response[Any]:
    return await _answered(request, lambda raw, make: flow_view.chain(parse(raw, ChainBody), make))


@post("/compare", status_code=200)
async def create_compare(request: Req) -> Response[Any]:
    most = context_of(request).config.parallel.max_window
    return await _answered(request, lambda raw, make: flow_view.compare(parse(raw, CompareBody), make, most=most))


async def _answered(request: Req, made: Callable[[bytes, flow_view.Maker], Flow]) -> Response[Any]:
    answer = await _taken(request, made)
    return await answer()


async def _taken(request: Req, made: Callable[[bytes, flow_view.Maker], Flow]) -> Answer:
    ctx = context_of(request)
    raw = await read(request)
    print_ = hashlib.sha256(raw).hexdigest()
    key = idempotency_key(request)
    flow_id, record = new_id("flow"), None
    if key is not None:
        flow_id, record = await _of_key(request, key)
    make = flow_view.Maker(
        flow_id,
        tenant_of(request),
        request_id_of(request),
        ctx.config.model_aliases,
        lambda spec: granted(request, spec),
    )
    flow = made(raw, make)
    flow = msgspec.structs.replace(flow, reply={**flow.reply, "fingerprint": print_})
    detached = "respond-async" in request.headers.get("prefer", "")
    if record is not None:
        if record.flow.tenant != flow.tenant or record.flow.reply["fingerprint"] != print_:
            raise InvalidRequest(ANOTHER_BODY, field="Idempotency-Key")
        if detached:
            await ctx.flows.detach(flow.id)
        follower = None if detached else await ctx.relay.follow(flow.id, 0)
    else:
        follower = await _begun(ctx, flow, detached=detached)
    if follower is None:
        headers = {"location": f"/api/v1/flows/{flow.id}", "preference-applied": "respond-async"}
        # A flow of the same key may have results already, which must not look as if they were empty.
        shown = flow_view.shown(await _found(request, flow.id, outcomes=record is not None))
        return at_once(json(shown, headers, status=202))
    exchange = Exchange(request, flow.stand_in, follower)
    if "text/event-stream" in request.headers.get("accept", ""):
        return partial(exchange.streamed, FlowSse(exchange.spec), headers={}, fails=None)
    return partial(_whole, exchange)


async def _whole(exchange: Exchange) -> Response[Any]:
    if not await exchange.wait():
        return NOBODY
    return json(flow_view.shown(await _found(exchange.request, exchange.spec.id)))


async def _begun(ctx: Context, flow: Flow, *, detached: bool) -> Follower | None:
    """Puts it in line; its follower already listens."""
    sticky = flow.kind == "chain" and flow.lanes[0].workspace is not None
    follower = None if detached else ctx.relay.expect(flow.id)
    try:
        await ctx.dispatch.submit_flow(flow, follower=None if detached else ctx.relay.api, sticky=sticky)
    except BaseException:
        if follower is not None:
            await follower.close()
        raise
    return follower


async def _of_key(request: Req, key: str) -> tuple[str, FlowRecord | None]:
    """With a key the same request is the same flow, unless that was ended because its caller had gone."""
    named = f"{tenant_of(request)}\0{request.url.path}\0{key}"
    for _ in range(_TRIES):
        flow_id = "flow_" + hashlib.sha256(named.encode()).hexdigest()[:24]
        record = await context_of(request).flows.head(flow_id)
        if record is None or not record.left_alone:
            break
        named += "\0again"
    return flow_id, record


async def _found(request: Req, flow_id: str, *, outcomes: bool = True) -> FlowRecord:
    """Raises: NotFound, for another tenant's too."""
    record = await context_of(request).flows.get(flow_id, outcomes=outcomes)
    if record is None or reach_of(request) not in (None, record.flow.tenant):
        raise NotFound("flow", flow_id)
    return record


async def _own(request: Req, flow_id: str) -> Flow:
    """What was asked for, without its runs. Raises: as `_found`."""
    record = await context_of(request).flows.head(flow_id)
    if record is None or reach_of(request) not in (None, record.flow.tenant):
        raise NotFound("flow", flow_id)
    return record.flow


@get("/flows")
async def list_flows(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    limit, offset = number(request, "limit", 20, 1, 100), number(request, "offset", 0, 0, 1_000_000)
    status = choice(request, "status", tuple(FlowStatus))
    tenant = whose(request)
    found, total = await ctx.flows.list_all(
        [tenant] if tenant is not None else await ctx.runs.tenants(),
        limit=limit,
        offset=offset,
        status=FlowStatus(status) if status else None,
    )
    shown = [
        {
            "flow_id": record.flow.id,
            "kind": record.flow.kind,
            "status": record.status.value,
            "lanes": len(record.flow.lanes),
            "ended": record.ends,
            "created_at": record.created_at,
            **({"tenant": record.flow.tenant} if reach_of(request) is None else {}),
        }
        for record in found
    ]
    return json({"flows": shown, "total": total, "limit": limit, "offset": offset})


@get("/flows/{flow_id:str}")
async def get_flow(request: Req, flow_id: str) -> Response[bytes]:
    return json(flow_view.shown(await _found(request, flow_id)))


@get("/flows/{flow_id:str}/events")
async def follow_flow(request: Req, flow_id: str) -> Response[Any]:
    ctx = context_of(request)
    after = position(request)
    flow = await _own(request, flow_id)
    exchange = Exchange(request, flow.stand_in, await ctx.relay.follow(flow_id, after))
    accept = request.headers.get("accept", "")
    kind = FlowNdjson if "ndjson" in accept or "json" in accept else FlowSse
    return await exchange.streamed(kind(exchange.spec), headers={}, hold=False, fails=None)


@delete("/flows/{flow_id:str}", status_code=200)
async def cancel_flow(request: Req, flow_id: str) -> Response[bytes]:
    """202 where runs of it still end, 200 where all have, or with `?erase=true` nothing is left of any."""
    flow = await _own(request, flow_id)
    if yes(request, "erase"):
        await erase_flow(request, flow)
        return json({"erased": True, "id": flow.id})
    await context_of(request).dispatch.cancel_flow(flow.id, CANCELLED)
    record = await _found(request, flow_id)
    await audit.told(request, "flow.cancel", flow.id, owner=flow.tenant, result=record.status.value)
    return json(flow_view.shown(record), status=202 if record.status is FlowStatus.RUNNING else 200)


handlers = [create_parallel, create_chain, create_compare, list_flows, get_flow, follow_flow, cancel_flow]
