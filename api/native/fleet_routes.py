"""The routes of the fleet, for those who run it."""

import asyncio
import time
from typing import Any

import msgspec
from litestar import Response, get, post

from api import audit
from api.context import Context, context_of
from api.exchange import Req, json
from shared.errors import NotFound, PermissionDenied
from shared.host import Instance

_HEARD_WITHIN_S = 5.0
_LOOK_EVERY_S = 0.05


@get("/workers")
async def list_workers(request: Req) -> Response[bytes]:
    _admin_only(request)
    ctx = context_of(request)
    fleet = await ctx.dispatch.fleet(fresh=True)
    drained = await ctx.hosts.all_drained()
    return json({"workers": [_view(one, one.host in drained) for one in fleet], "drained": sorted(drained)})


@post("/workers/{host:str}/drain", status_code=200)
async def drain_host(request: Req, host: str) -> Response[bytes]:
    """Its running runs go on to their end; new ones go elsewhere."""
    return await _drain(request, host, on=True)


@post("/workers/{host:str}/undrain", status_code=200)
async def undrain_host(request: Req, host: str) -> Response[bytes]:
    return await _drain(request, host, on=False)


async def _drain(request: Req, host: str, *, on: bool) -> Response[bytes]:
    _admin_only(request)
    ctx = context_of(request)
    known = {one.host for one in await ctx.dispatch.fleet(fresh=True)} | await ctx.hosts.all_drained()
    if host not in known:
        raise NotFound("worker host", host)
    await ctx.hosts.drain(host, on=on)
    await audit.told(request, "host.drain" if on else "host.undrain", host, owner="", result="done")
    deaf = await _deaf(ctx, host, on=on)
    return json({"host": host, "draining": on} | ({"pending": deaf} if deaf else {}))


async def _deaf(ctx: Context, host: str, *, on: bool) -> list[str]:
    """Waits until the host's instances say that they take nothing new, or take runs again, so that whoever drained it
    may trust the runs it has to be its last, and the next request is served; those that have not said so in time."""
    limit = time.monotonic() + _HEARD_WITHIN_S
    while True:
        fleet = await ctx.dispatch.fleet(fresh=True)
        deaf = [one.id for one in fleet if one.host == host and one.draining != on]
        if not deaf or time.monotonic() >= limit:
            return deaf
        await asyncio.sleep(_LOOK_EVERY_S)


def _admin_only(request: Req) -> None:
    """Raises: PermissionDenied."""
    if not request.scope["state"].get("admin"):
        raise PermissionDenied("only a key with `role: admin` may see or change the fleet")


def _view(instance: Instance, drained: bool) -> dict[str, Any]:
    return {
        "id": instance.id,
        "host": instance.host,
        "version": instance.version,
        "started_at": instance.started_at,
        "slots": instance.slots,
        "running": instance.running,
        "draining": instance.draining or drained,
        "labels": instance.labels,
        "vitals": instance.vitals,
        "backends": [
            {
                "name": state.name,
                "state": state.readiness.value,
                "version": state.version,
                "reason": state.reason,
                "until": state.until,
                "slots": state.slots,
                "running": state.running,
                "warm": None if state.warm is None else msgspec.structs.asdict(state.warm),
            }
            for state in instance.backends
        ],
    }


handlers = [list_workers, drain_host, undrain_host]
