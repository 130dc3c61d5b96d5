"""The routes of flows: parallel, chain, compare."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
from litestar import Response, delete, get, post

from api.context import context_of
from api.exchange import NOBODY, Exchange, Req, json, request_id_of, tenant_of
from api.native import flow_view
from api.native.render import FlowNdjson, FlowSse
from api.native.requests import number, position
from api.native.wire import ChainBody, CompareBody, ParallelBody, parse
from shared.dispatch import CANCELLED
from shared.errors import InvalidRequest, NotFound
from shared.flow import Flow, FlowRecord, FlowStatus
from shared.ids import new_id
from shared.run import RunSpec


@post("/parallel", status_code=200)
async def create_parallel(request: Req) -> Response[Any]:
    config = context_of(request).config.parallel

    def made(raw: bytes, make: flow_view.Maker) -> Flow:
        body = parse(raw, ParallelBody)
        return flow_view.parallel(
            body, make, window=config.max_workers, most=config.max_window, fail_fast=config.fail_fast
        )

    return await _carried_out(request, made)


@post("/chain", status_code=200)
async def create_chain(request: Req) -> Response[Any]:
    return await _carried_out(request, lambda raw, make: flow_view.chain(parse(raw, ChainBody), make))


@post("/compare", status_code=200)
async def create_compare(request: Req) -> Response[Any]:
    most = context_of(request).config.parallel.max_window
    return await _carried_out(request, lambda raw, make: flow_view.compare(parse(raw, CompareBody), make, most=most))


async def _carried_out(request: Req, made: Callable[[bytes, flow_view.Maker], Flow]) -> Response[Any]:
    ctx = context_of(request)
    raw = await request.body()
    print_ = hashlib.sha256(raw).hexdigest()
    make = flow_view.Maker(_flow_id(request), tenant_of(request), request_id_of(request), ctx.config.model_aliases)
    flow = made(raw, make)
    flow = _marked(flow, print_)
    sticky = flow.kind == "chain" and flow.lanes[0].workspace is not None
    detached = "respond-async" in request.headers.get("prefer", "")
    if "idempotency-key" in request.headers and (record := await ctx.flows.get(flow.id)) is not None:
        if record.flow.tenant != flow.tenant or record.flow.reply["fingerprint"] != print_:
            raise InvalidRequest(
                "this Idempotency-Key came with another body before; a new request needs a new key",
                field="Idempotency-Key",
            )
        follower = None if detached else await ctx.relay.follow(flow.id, 0)
    else:
        follower = None if detached else ctx.relay.expect(flow.id)
        try:
            await ctx.dispatch.submit_flow(flow, follower=None if detached else ctx.relay.api, sticky=sticky)
            record = await _found(request, flow.id)
        except BaseException:
            if follower is not None:
                await follower.close()
            raise
    if follower is None:
        headers = {"location": f"/api/v1/flows/{flow.id}", "preference-applied": "respond-async"}
        return json(flow_view.shown(record), headers, status=202)
    exchange = Exchange(request, _stand_in(record), follower)
    if "text/event-stream" in request.headers.get("accept", ""):
        return await exchange.streamed(FlowSse(exchange.spec), headers={}, fails=None)
    if not await exchange.wait():
        return NOBODY
    return json(flow_view.shown(await _found(request, flow.id)))


def _flow_id(request: Req) -> str:
    """With a key the same request is the same flow."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return new_id("flow")
    if not 1 <= len(key) <= 255:
        raise InvalidRequest("Idempotency-Key must have 1 to 255 characters", field="Idempotency-Key")
    named = f"{tenant_of(request)}\0{request.url.path}\0{key}"
    return "flow_" + hashlib.sha256(named.encode()).hexdigest()[:24]


def _marked(flow: Flow, fingerprint: str) -> Flow:
    return msgspec.structs.replace(flow, reply={**flow.reply, "fingerprint": fingerprint})


def _stand_in(record: FlowRecord) -> RunSpec:
    """A flow is followed as a run is."""
    return RunSpec(id=record.flow.id, tenant=record.flow.tenant, backend="flow", prompt="")


async def _found(request: Req, flow_id: str) -> FlowRecord:
    """Raises: NotFound, for another tenant's too."""
    record = await context_of(request).flows.get(flow_id)
    if record is None or record.flow.tenant != tenant_of(request):
        raise NotFound("flow", flow_id)
    return record


@get("/flows")
async def list_flows(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    limit, offset = number(request, "limit", 20, 1, 100), number(request, "offset", 0, 0, 1_000_000)
    ids, total = await ctx.flows.list(tenant_of(request), limit=limit, offset=offset)
    records = {id: await ctx.flows.get(id) for id in ids}
    gone = [id for id, record in records.items() if record is None]
    await ctx.flows.drop(tenant_of(request), gone)
    total -= len(gone)
    found = [record for record in records.values() if record is not None]
    shown = [
        {
            "flow_id": record.flow.id,
            "kind": record.flow.kind,
            "status": record.status.value,
            "lanes": len(record.flow.lanes),
            "ended": record.ends,
            "created_at": record.created_at,
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
    record = await _found(request, flow_id)
    exchange = Exchange(request, _stand_in(record), await ctx.relay.follow(flow_id, after))
    accept = request.headers.get("accept", "")
    kind = FlowNdjson if "ndjson" in accept or "json" in accept else FlowSse
    return await exchange.streamed(kind(exchange.spec), headers={}, hold=False, fails=None)


@delete("/flows/{flow_id:str}", status_code=200)
async def cancel_flow(request: Req, flow_id: str) -> Response[bytes]:
    """202 where runs of it still end, 200 where all have."""
    record = await _found(request, flow_id)
    await context_of(request).dispatch.cancel_flow(record.flow.id, CANCELLED)
    record = await _found(request, flow_id)
    return json(flow_view.shown(record), status=202 if record.status is FlowStatus.RUNNING else 200)


handlers = [create_parallel, create_chain, create_compare, list_flows, get_flow, follow_flow, cancel_flow]
