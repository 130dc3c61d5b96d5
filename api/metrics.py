"""`/metrics` for Prometheus: what the store has counted of all runs and requests, and what every process tells of itself.

All of it through any API replica, and the same from each: one address is scraped, whichever replica it leads to.
"""

import time
from collections.abc import Iterable
from typing import Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from api.context import Context, context_of
from api.families import Store, of_processes, of_store
from shared.errors import PermissionDenied, StoreUnavailable
from shared.routing import KNOWN_BACKENDS


class Found:
    """A collector of what has been fetched already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families


async def look(ctx: Context) -> Store:
    """Raises: StoreUnavailable."""
    await ctx.seen.flush()
    begun = time.monotonic()
    await ctx.runs.ping()
    round_trip_s = time.monotonic() - begun
    memory = await ctx.runs.memory()
    lines, swept_s = await ctx.runs.lines(KNOWN_BACKENDS)
    own = ctx.relay.api
    return Store(
        totals=await ctx.runs.totals(),
        counts=await ctx.runs.counts(),
        lines=lines,
        oldest_s=await ctx.runs.oldest_s(ctx.now()),
        swept_s=swept_s,
        fleet=await ctx.dispatch.fleet(fresh=True),
        apis=[vitals for api, vitals in (await ctx.hosts.apis()).items() if api != own],
        drained=frozenset(await ctx.hosts.all_drained()),
        round_trip_s=round_trip_s,
        memory_bytes=memory[0],
        memory_max_bytes=memory[1],
    )


@get("/metrics")
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """With Redis away it still answers: with what this process knows, and `clinvk_store_up 0`.

    Raises: NotFoundException where it is not enabled; PermissionDenied.
    """
    ctx = context_of(request)
    if not ctx.config.server.metrics_enabled:
        raise NotFoundException
    if not request.scope["state"].get("admin"):
        raise PermissionDenied("only a key with `role: admin` may read the metrics")
    processes = [ctx.seen.vitals(ctx.relay.open)]
    families: list[Metric] = []
    try:
        store = await look(ctx)
    except StoreUnavailable:
        up = 0
    else:
        up = 1
        families += of_store(store)
        processes += [*store.apis, *(one.vitals for one in store.fleet if one.vitals is not None)]
    families.append(GaugeMetricFamily("clinvk_store_up", "Whether Redis answers the replica that was asked", up))
    registry = CollectorRegistry()
    registry.register(Found([*families, *of_processes(processes)]))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
