"""What browsers are told."""

import asyncio
from typing import Any

import pytest

from api.cors import Cors

PAGE = "https://app.example"


def answered(
    method: str, headers: dict[str, str], origins: tuple[str, ...] = (PAGE,), **more: Any
) -> tuple[int, dict[str, str]]:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {"type": "http", "method": method, "path": "/", "headers": given}
    nothing: Any = None
    asyncio.run(Cors(app, origins, **{"credentials": False, "max_age_s": 600, **more})(scope, nothing, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_a_preflight_is_answered_before_any_key_and_allows_what_sdks_send():
    status, headers = answered(
        "OPTIONS",
        {
            "origin": PAGE,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-stainless-os,x-evil",
        },
    )

    assert status == 204
    assert headers["access-control-allow-origin"] == PAGE
    allowed = headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "x-api-key", "idempotency-key", "last-event-id", "x-stainless-os"} <= set(allowed)
    assert {"traceparent", "tracestate", "user-agent"} <= set(allowed)
    assert "x-evil" not in allowed
    assert headers["access-control-max-age"] == "600"


def test_an_answer_exposes_the_ids_also_when_it_is_an_error():
    status, headers = answered("POST", {"origin": PAGE})

    assert status == 401
    assert headers["access-control-allow-origin"] == PAGE
    exposed = headers["access-control-expose-headers"].split(", ")
    assert {"x-run-id", "traceparent", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"} <= set(
        exposed
    )
    assert headers["vary"] == "origin"


@pytest.mark.parametrize("headers", [{}, {"origin": "https://evil.example"}, {"origin": "null"}])
def test_others_are_told_nothing_but_that_a_cache_must_not_give_their_answer_to_a_page(headers):
    assert answered("POST", headers) == (401, {"vary": "origin"})


def test_a_star_is_not_told_where_credentials_are_allowed():
    assert answered("GET", {"origin": PAGE}, ("*",))[1]["access-control-allow-origin"] == "*"
    assert answered("GET", {"origin": PAGE}, ("*",), credentials=True)[1]["access-control-allow-origin"] == PAGE
