"""Health: what an operator, a load balancer and the ancestor's clients ask for. All of it may be asked every second."""

import time
from importlib.metadata import version
from typing import Any

import msgspec
from litestar import Request, Response, route

from api.context import context_of

_Req = Request[Any, Any, Any]


@route(["/health", "/api/v1/health"], http_method=["GET", "HEAD"])
async def health(request: _Req) -> Response[bytes]:
    """ok: runs can be taken; degraded: they can, but something is amiss; unhealthy (503): they cannot."""
    ctx = context_of(request)
    pulse = await ctx.heart.feel()
    up_s = time.time() - ctx.started_at
    away = bool(pulse.unready)
    backends = [{"name": b["name"], "available": b["available"]} for b in ctx.backends_of(pulse.fleet)]
    body: dict[str, Any] = {
        "status": "unhealthy" if away else "degraded" if pulse.degraded else "ok",
        "reasons": [*pulse.unready, *pulse.degraded],
        "version": version("clinvk"),
        "uptime": f"{int(up_s)}s",
        "uptime_ms": int(up_s * 1000),
        "uptime_millis": int(up_s * 1000),
        "backends": backends,
        "session_store": {"available": not away, "session_count": pulse.sessions},
        "broker": {"available": not away},
        "workers": len(pulse.fleet),
        "queue": pulse.counts,
    }
    return _json(body, 503 if away else 200)


@route("/livez", http_method=["GET", "HEAD"])
async def live(request: _Req) -> Response[bytes]:  # noqa: ARG001  # Litestar's
    """This process turns. Restart it where this fails, and for nothing else: no other process is asked."""
    return _json({"status": "alive"}, 200)


@route("/readyz", http_method=["GET", "HEAD"])
async def ready(request: _Req) -> Response[bytes]:
    """Whether requests should come here: 200 for ready and degraded (another replica would do no better), else 503."""
    pulse = await context_of(request).heart.feel()
    status = "unready" if pulse.unready else "degraded" if pulse.degraded else "ready"
    return _json({"status": status, "reasons": [*pulse.unready, *pulse.degraded]}, 503 if pulse.unready else 200)


def _json(body: dict[str, Any], status: int) -> Response[bytes]:
    return Response(
        msgspec.json.encode(body),
        status_code=status,
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )


handlers = [health, live, ready]
