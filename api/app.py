"""All wiring of the API process."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException, InternalServerException
from litestar.types import ASGIApp

from api import deprecation, errors, health, metrics, openapi
from api.anthropic import routes as anthropic
from api.context import Context
from api.cors import Cors
from api.deprecation import Deprecated, Deprecations
from api.encoding import Encodings
from api.exchange import NOBODY
from api.keys import Keyring
from api.layers import Auth, Browsers, Recover, RequestIds, no_key
from api.limits import GUESSES_AT_ONCE, GUESSES_PER_S, RateLimit
from api.native import routes as native
from api.openai import routes as openai
from api.paths import Paths
from api.refusals import Refusals
from api.relay import Relay
from api.rotation import Rotation
from api.seen import Measured, Seen
from api.steady import SteadyRates
from shared.config import Config, Server
from shared.dispatch import Dispatch
from shared.errors import ClinvkError
from shared.ids import new_id
from shared.outage import Outage
from shared.redis import Redis
from shared.redis_url import parse
from shared.spans import Spans
from shared.store import Limits, create_scripts
from shared.store.audit import Audit
from shared.store.events import Events
from shared.store.flows import Flows
from shared.store.followers import Followers
from shared.store.hosts import Hosts
from shared.store.rates import Rates
from shared.store.runs import Depth, Runs
from shared.store.sessions import Sessions
from shared.store.usage import Usage
from shared.sweep import Sweeper
from shared.tally import Tally
from shared.vitals import Watch

_log = logging.getLogger(__name__)


def limits_of(config: Config) -> Limits:
    return Limits(
        lease_s=config.worker.lease_secs,
        retention_s=config.runs.retention_secs,
        max_events=config.runs.max_events,
        max_flow_events=config.runs.max_flow_events,
        session_s=config.session.retention_days * 86400,
        usage_s=config.usage.retention_days * 86400,
    )


def depth_of(config: Config, *, several: bool) -> Depth:
    """Where there may be several tenants, no one of them may fill the queue alone."""
    most, share = config.queue.max_depth, config.queue.max_depth_per_tenant
    if share is None and several:
        share = max(most // 4, 1)
    return Depth(most, share)


class App:
    """The ASGI application and what its process must tell it."""

    def __init__(self, asgi: ASGIApp, litestar: Litestar, refusals: Refusals) -> None:
        self.asgi = asgi
        self.refusals = refusals
        self._litestar = litestar

    @property
    def context(self) -> Context:
        context = self._litestar.state.context
        assert isinstance(context, Context)
        return context

    def close_streams(self) -> None:
        """Ends the open streams, so that the process can; their followers come back through another replica."""
        self.context.closing.set()
        self.context.relay.wake_all()


def create_app(
    config: Config,
    keys: Keyring,
    home: Path,
    rotation: Rotation | None = None,
    spans: Spans | None = None,
    deprecated: Mapping[tuple[str, str], Deprecated] = deprecation.TABLE,
) -> App:
    """`config.redis.url` must be set; `home` is CLINVK_HOME; `rotation` keeps the keys up to date."""
    assert config.redis.url
    seen = Seen(Watch("api", home))

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        url = config.redis.url or ""
        redis = Redis(url, outage=Outage(parse(url).shown))
        scripts = create_scripts(redis, limits_of(config))
        runs, hosts, events = Runs(scripts), Hosts(scripts), Events(scripts)
        api = new_id("api")
        relay = Relay(redis, events, Followers(scripts, api), api, count=seen.count)
        flows, sessions = Flows(scripts, runs), Sessions(scripts)
        dispatch = Dispatch(
            runs, hosts, flows, depth=depth_of(config, several=keys.required), wait=config.queue.wait_for_worker
        )
        sweeper = Sweeper(
            scripts,
            runs,
            dispatch,
            sessions,
            max_wait_s=config.queue.max_wait_secs,
            hangup_grace_s=config.server.hangup_grace_secs,
            session_s=config.session.retention_days * 86400,
            count=seen.count,
        )
        async with relay:
            kept_s = config.audit.retention_days * 86400
            records = Audit(scripts, most=config.audit.max_entries, retention_s=kept_s)
            context = app.state.context = Context(
                config,
                runs,
                hosts,
                flows,
                sessions,
                SteadyRates(Rates(scripts)),
                Usage(scripts),
                records,
                relay,
                dispatch,
                seen,
            )
            tasks = [
                asyncio.create_task(sweeper.run(), name="sweep"),
                asyncio.create_task(seen.run(Tally(redis), hosts, api), name="seen"),
            ]
            if rotation is not None:
                tasks.append(asyncio.create_task(rotation.run(), name="key-rotation"))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await context.close()
        await redis.aclose()

    litestar = Litestar(
        route_handlers=[
            native.router,
            openai.router,
            anthropic.router,
            *health.handlers,
            metrics.metrics,
            openapi.openapi_json,
            openapi.docs,
            openapi.docs_asset,
        ],
        lifespan=[lifespan],
        exception_handlers={Exception: _on_error},
        openapi_config=None,
        request_max_body_size=config.server.max_request_body_bytes,
        logging_config=None,
    )
    # From the inside to the outside; docs/adr/0004 says why in this order.
    served = _guarded(Encodings(litestar), config.server, keys, lambda: litestar.state.context.rates)
    served = Browsers(served, keys, config.server.host, config.server.cors_allowed_origins)
    served = Deprecations(served, deprecated, [route.path for route in litestar.routes])
    if origins := config.server.cors_allowed_origins:
        max_age_s = config.server.cors_max_age
        served = Cors(served, origins, credentials=config.server.cors_allow_credentials, max_age_s=max_age_s)
    served = Recover(served)
    if config.server.metrics_enabled:
        served = Measured(served, seen)
    return App(Paths(RequestIds(served, spans)), litestar, Refusals(seen.refused))


def _guarded(served: ASGIApp, server: Server, keys: Keyring, rates: Callable[[], Rates]) -> ASGIApp:
    """Who has a key is limited by it, who guesses at keys by address, always."""
    limited = functools.partial(RateLimit, rates=rates, proxies=server.trusted_proxies)
    per_s, burst, everybody = server.rate_limit_rps, server.rate_limit_burst, server.rate_limit_enabled
    known = limited(served, per_s=per_s, burst=burst, everybody=everybody)
    guesses_per_s, guesses = GUESSES_PER_S, GUESSES_AT_ONCE
    if everybody:
        guesses_per_s, guesses = min(per_s, guesses_per_s), min(burst, guesses)
    return Auth(known, keys, limited(no_key, per_s=guesses_per_s, burst=guesses))


def _on_error(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    dialect, allow = errors.dialect_of(request.url.path), None
    request_id = str(request.scope["state"].get("request_id", ""))
    if type(error) is InternalServerException:  # Litestar's word for a client that is gone before its body has come
        return NOBODY
    if isinstance(error, HTTPException):
        detail = error.detail
        allow = (error.headers or {}).get("allow")
        if error.status_code == 404:
            detail = f"{request.method} {request.url.path} is not offered here; /docs lists what is"
        elif error.status_code == 405 and allow:
            detail = f"{request.url.path} has no {request.method}, but {allow}"
        elif error.status_code == 413:
            most = request.app.state.context.config.server.max_request_body_bytes
            detail = f"the body is larger than the {most} bytes (server.max_request_body_bytes) that one may have here"
        answer = errors.of_status(error.status_code, detail, dialect=dialect, request_id=request_id)
    else:
        if not isinstance(error, ClinvkError | errors.RunFailed):
            _log.exception("request failed", exc_info=error)
        answer = errors.of_exception(error, dialect=dialect, request_id=request_id)
    headers = answer.headers
    if allow:
        headers = {**headers, "allow": allow}
    return Response(answer.body, status_code=answer.status, headers=headers, media_type="application/problem+json")
