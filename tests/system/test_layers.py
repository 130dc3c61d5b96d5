"""The layers around the routes as the application puts them together, in one process on a real store."""

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import App, create_app
from api.deprecation import Deprecated
from api.keys import Key, Keyring
from shared.config import ApiKey
from shared.config_sources import load
from tests.servers import RedisServer

pytestmark = [
    pytest.mark.redis,
    # How Litestar would rather be told of path parameters.
    pytest.mark.filterwarnings("ignore:.*deprecated inferred style"),
]

PAGE = "https://app.example"
ROW = Deprecated(since=datetime.date(2026, 1, 2), sunset=datetime.date(2026, 7, 3), successor="/api/v2/backends")
TABLE = {("GET", "/api/v1/backends"): ROW, ("GET", "/openai/v1/models/{name}"): ROW}
KEY = {"x-api-key": "k"}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    server = RedisServer("no")
    yield server
    server.close()


def held(
    redis: RedisServer, what: Callable[[App, httpx.AsyncClient], Awaitable[None]], *, keyed: bool = True, **config: str
) -> None:
    """Does `what` with an application that lives, and a client of it."""
    client = redis.client()
    client.flushall()
    client.close()
    environ = {
        "HOME": "/nonexistent",
        "CLINVK_REDIS_URL": redis.url,
        "CLINVK_SERVER__CORS_ALLOWED_ORIGINS": PAGE,
        **config,
    }
    keys = Keyring([Key.of(ApiKey(key="k"))] if keyed else [])
    app = create_app(load(None, environ).config, keys, Path("/nonexistent"), deprecated=TABLE)

    async def main() -> None:
        transport = httpx.ASGITransport(app.asgi, client=("192.0.2.1", 1))
        async with (
            asyncio.timeout(30),
            app._litestar.lifespan(),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as asking,
        ):
            await what(app, asking)

    asyncio.run(main())


LIMITED = {
    "CLINVK_SERVER__RATE_LIMIT_ENABLED": "true",
    "CLINVK_SERVER__RATE_LIMIT_RPS": "0.01",
    "CLINVK_SERVER__RATE_LIMIT_BURST": "2",
}


@pytest.mark.parametrize("path", ["/api/v1/backends", "/openai/v1/models/a/b", "/v1/models/gpt/"])
def test_every_answer_of_a_route_on_its_way_out_says_so_also_who_is_refused(redis, path):
    async def what(_: App, asking: httpx.AsyncClient) -> None:
        answers = [await asking.get(path, headers=headers) for headers in (KEY, KEY, KEY, {}, {}, {})]

        statuses = [one.status_code for one in answers]
        assert statuses[2:] == [429, 401, 401, 429]
        assert set(statuses[:2]) <= {200, 404}
        for answer in answers:
            assert answer.headers["deprecation"] == "@1767312000"
            assert answer.headers["sunset"] == "Fri, 03 Jul 2026 00:00:00 GMT"
            assert "successor-version" in answer.headers["link"]

    held(redis, what, **LIMITED)


def test_other_routes_and_other_methods_of_it_say_nothing_of_the_kind(redis):
    async def what(_: App, asking: httpx.AsyncClient) -> None:
        for method, asked in (("GET", "/api/v1/runs"), ("POST", "/api/v1/backends"), ("GET", "/openai/v1/models")):
            for headers in (KEY, {}):
                assert "deprecation" not in (await asking.request(method, asked, headers=headers)).headers

    held(redis, what)


def test_a_preflight_needs_no_key_and_a_page_may_read_why_it_was_refused(redis):
    asks = {"origin": PAGE, "access-control-request-method": "POST"}
    asks["access-control-request-headers"] = "authorization, traceparent, tracestate, user-agent"

    async def what(_: App, asking: httpx.AsyncClient) -> None:
        for _attempt in range(5):
            preflight = await asking.options("/api/v1/prompt", headers=asks)
            assert preflight.status_code == 204
            allowed = preflight.headers["access-control-allow-headers"].split(", ")
            assert set(asks["access-control-request-headers"].split(", ")) <= set(allowed)
        for status in (401, 401, 429):
            refused = await asking.post("/api/v1/prompt", headers={"origin": PAGE}, json={})
            assert refused.status_code == status
            assert refused.headers["access-control-allow-origin"] == PAGE
            exposed = refused.headers["access-control-expose-headers"].split(", ")
            shown = {name for name in refused.headers if not name.startswith(("access-control-", "content-", "vary"))}
            assert shown <= set(exposed)
            assert {"x-ratelimit-remaining", "traceparent"} <= shown
        other = await asking.post("/api/v1/prompt", headers={"origin": "https://evil.example"}, json={})
        assert "access-control-allow-origin" not in other.headers

    held(redis, what, **LIMITED)


@pytest.mark.parametrize(("headers", "status"), [({}, 401), (KEY, 429)])
def test_the_body_of_a_request_that_is_refused_is_not_read(redis, headers, status):
    async def what(app: App, asking: httpx.AsyncClient) -> None:
        for _ in range(2 if headers else 0):
            await asking.get("/api/v1/backends", headers=headers)
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            raise AssertionError("the body was asked for")

        async def send(message: Any) -> None:
            sent.append(message)

        given = [(b"content-length", b"99999999"), *((k.encode(), v.encode()) for k, v in headers.items())]
        scope = {"type": "http", "method": "POST", "path": "/api/v1/prompt", "raw_path": b"/api/v1/prompt"}
        scope |= {"query_string": b"", "headers": given, "client": ("192.0.2.1", 1), "server": ("localhost", 80)}
        await app.asgi(scope, receive, send)  # type: ignore[arg-type]  # as a server makes it
        assert sent[0]["status"] == status

    held(redis, what, **LIMITED)


@pytest.mark.parametrize(("keyed", "taken"), [(True, 2), (False, 8)])
def test_a_quarter_of_the_line_is_a_tenants_only_where_there_may_be_others(redis, keyed, taken):
    async def what(_: App, asking: httpx.AsyncClient) -> None:
        headers = {**KEY, "prefer": "respond-async"}
        body = {"backend": "claude", "prompt": "x"}
        answers = [await asking.post("/api/v1/prompt", headers=headers, json=body) for _ in range(taken + 1)]

        assert [one.status_code for one in answers] == [202] * taken + [429]

    held(redis, what, keyed=keyed, CLINVK_QUEUE__MAX_DEPTH="8", CLINVK_QUEUE__WAIT_FOR_WORKER="true")
