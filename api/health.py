"""Health: what an operator, a load balancer and the ancestor's clients ask for."""

import time
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Request, Response, route

from api.context import context_of
from shared.errors import StoreUnavailable


@route(["/health", "/api/v1/health"], http_method=["GET", "HEAD"])
async def health(request: Request[Any, Any, Any]) -> Response[bytes]:
    """ok: runs can be taken; degraded: no worker is ready; unhealthy (503): the store is away."""
    ctx = context_of(request)
    up_s = time.time() - ctx.started_at
    body: dict[str, Any] = {
        "status": "ok",
        "version": version("clinvk"),
        "uptime": f"{int(up_s)}s",
        "uptime_ms": int(up_s * 1000),
        "uptime_millis": int(up_s * 1000),
        "backends": [],
        "session_store": {"available": True, "session_count": 0},
        "broker": {"available": True},
        "workers": 0,
        "queue": {},
    }
    status = 200
    try:
        fleet = await ctx.dispatch.fleet()
        body["backends"] = [{"name": b["name"], "available": b["available"]} for b in ctx.backends_of(fleet)]
        body["workers"] = len(fleet)
        body["queue"] = await ctx.runs.counts()
        body["session_store"]["session_count"] = await ctx.sessions.count()
        if not any(b["available"] for b in body["backends"]):
            body["status"] = "degraded"
    except StoreUnavailable:
        status = 503
        body["status"] = "unhealthy"
        body["broker"] = body["session_store"] = {"available": False}
        body["session_store"] = {"available": False, "session_count": 0}
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")
