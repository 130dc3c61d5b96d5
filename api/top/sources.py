"""Where `clinvk top` looks: at Redis itself, or at the HTTP API of a replica."""

import abc
import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

from api.top.view import HostRow, RunRow, Snapshot, totals
from shared import names
from shared.errors import StoreRefused, StoreUnavailable
from shared.host import Instance
from shared.redis import Redis, texts
from shared.routing import KNOWN_BACKENDS
from shared.run import Run
from shared.store import Limits, create_scripts
from shared.store.hosts import Hosts
from shared.store.runs import Runs

_MOST = 100
_WITHIN_S = 5.0


class Source(abc.ABC):
    @abc.abstractmethod
    async def look(self) -> Snapshot:
        """Never raises for what may be away: that is shown."""

    @abc.abstractmethod
    async def close(self) -> None: ...


class Store(Source):
    """Redis: sees the runs of all tenants. Reads alone."""

    def __init__(self, redis: Redis, place: str) -> None:
        scripts = create_scripts(redis, Limits())
        self._redis = redis
        self._runs, self._hosts = Runs(scripts), Hosts(scripts)
        self._place = place

    async def look(self) -> Snapshot:
        try:
            return await self._look()
        except StoreUnavailable as error:
            return _away(self._place, error.why if isinstance(error, StoreRefused) else error.message)

    async def _look(self) -> Snapshot:
        counts = await self._runs.counts()
        lines, _ = await self._runs.lines(KNOWN_BACKENDS)
        drained = await self._hosts.all_drained()
        fleet = await self._hosts.list()
        found = await self._redis.all(
            [("ZRANGE", name, 0, _MOST - 1) for name in (names.RUNNING, names.QUEUED, names.WAITING, names.GROUPED)]
        )
        ids = [run_id for part in found for run_id in texts(part)][:_MOST]
        runs = [run for run in await self._runs.get_many(ids) if run is not None and not run.status.final]
        now = time.time()
        ready = any(s.readiness.value == "ready" for i in fleet for s in i.backends)
        return Snapshot(
            source=self._place,
            clock=_clock(),
            status="ok" if ready else "degraded",
            reasons=() if ready else ("no worker can run anything now",),
            waiting=counts["waiting"],
            queued=counts["queued"],
            running=counts["running"],
            queues=totals([(queue, line.depth, line.oldest_s) for queue, line in lines.items()]),
            hosts=tuple(_host(one, one.host in drained) for one in fleet),
            runs=tuple(_run(run, now) for run in runs),
        )

    async def close(self) -> None:
        await self._redis.aclose()


class Http(Source):
    """A replica: what its key may see. `key` is sent as it is and shown nowhere."""

    def __init__(self, url: str, key: str | None) -> None:
        where = urlsplit(url)
        if where.scheme not in ("http", "https") or not where.hostname:
            raise ValueError(f"a URL such as http://127.0.0.1:8080 is needed, not {url!r}")
        self._where = where
        self._place = f"{where.scheme}://{where.netloc.rpartition('@')[2]}"
        self._headers = {"accept": "application/json", **({"x-api-key": key} if key else {})}

    async def look(self) -> Snapshot:
        try:
            return self._look()
        except (OSError, http.client.HTTPException) as error:
            return _away(self._place, f"{type(error).__name__}: {error}")
        except (ValueError, KeyError, TypeError, AttributeError):
            return _away(self._place, "what answers there is not this API")

    async def close(self) -> None:
        """Each look has a connection of its own."""

    def _look(self) -> Snapshot:
        kind = http.client.HTTPSConnection if self._where.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._where.hostname or "", self._where.port, timeout=_WITHIN_S)
        try:
            _, health = self._get(connection, "/health")
            seen, workers = self._get(connection, "/api/v1/workers")
            listed, runs = self._get(connection, f"/api/v1/runs?limit={_MOST}")
        finally:
            connection.close()
        if listed in (401, 403, 429):
            return Snapshot(source=self._place, clock=_clock(), status="unknown", failed=self._refusal(listed, runs))
        reasons = [str(reason) for reason in health["reasons"]]
        if seen != 200:
            reasons.append("the workers are for admins: set CLINVK_API_KEY to a key with `role: admin`")
        if listed != 200:
            reasons.append(f"the runs cannot be listed: {runs.get('detail', listed)}")
        now = time.time()
        queue = health.get("queue", {})
        alive = [one for one in runs.get("runs", []) if one["status"] in ("running", "queued", "waiting")]
        order = {"running": 0, "queued": 1, "waiting": 2}
        return Snapshot(
            source=self._place,
            clock=_clock(),
            status=str(health.get("status", "unhealthy")),
            reasons=tuple(reasons),
            waiting=queue.get("waiting", 0),
            queued=queue.get("queued", 0),
            running=queue.get("running", 0),
            hosts=tuple(_told_host(one) for one in workers.get("workers", [])) if seen == 200 else (),
            shows_hosts=seen == 200,
            runs=tuple(_told_run(one, now) for one in sorted(alive, key=lambda one: order[one["status"]])),
        )

    def _refusal(self, status: int, body: dict[str, Any]) -> str:
        if status != 401:
            return f"refused ({status}): {body.get('detail', '')}"
        if "x-api-key" in self._headers:
            return "the key in CLINVK_API_KEY is not known there (401)"
        return "a key is needed (401): set CLINVK_API_KEY"

    def _get(self, connection: http.client.HTTPConnection, path: str) -> tuple[int, dict[str, Any]]:
        connection.request("GET", self._where.path.rstrip("/") + path, headers=self._headers)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        return answer.status, body if isinstance(body, dict) else {}


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _away(place: str, why: str) -> Snapshot:
    return Snapshot(source=place, clock=_clock(), status="unhealthy", failed=why)


def _host(one: Instance, drained: bool) -> HostRow:
    used = one.vitals
    return HostRow(
        host=one.host,
        version=one.version,
        slots=one.slots,
        running=one.running,
        draining=one.draining or drained,
        backends=tuple((state.name, state.readiness.value, state.running) for state in one.backends),
        memory_bytes=used.rss_bytes if used else 0,
        load=used.load1 if used else 0.0,
        lag_s=used.loop_lag_s if used else 0.0,
    )


def _run(run: Run, now: float) -> RunRow:
    return RunRow(
        id=run.id,
        status=run.status.value,
        backend=run.spec.backend,
        tenant=run.spec.tenant,
        host=run.host or "",
        for_s=now - (run.started_at or run.created_at),
        events=run.sequence,
        model=run.spec.model or "",
    )


def _told_host(one: dict[str, Any]) -> HostRow:
    used = one.get("vitals") or {}
    return HostRow(
        host=one["host"],
        version=one["version"],
        slots=one["slots"],
        running=one["running"],
        draining=one["draining"],
        backends=tuple((state["name"], state["state"], state["running"]) for state in one["backends"]),
        memory_bytes=used.get("rss_bytes", 0),
        load=used.get("load1", 0.0),
        lag_s=used.get("loop_lag_s", 0.0),
    )


def _told_run(one: dict[str, Any], now: float) -> RunRow:
    return RunRow(
        id=one["id"],
        status=one["status"],
        backend=one["backend"],
        tenant=one.get("tenant") or "",
        host=one.get("host") or "",
        for_s=now - (one.get("started_at") or one["created_at"]),
        events=one.get("sequence", 0),
        model=one.get("model") or "",
    )
