"""The layer that keeps web pages away where no key is needed."""

import asyncio
import json
from typing import Any

import pytest

from api.layers import Browsers


def status(host: str, headers: dict[str, str], allowed: tuple[str, ...] = ()) -> int:
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "path": "/openai/v1/models",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "state": {"request_id": "req_1"},
    }
    asyncio.run(Browsers(app, host, allowed)(scope, None, send))
    if sent[0]["status"] == 403:
        assert json.loads(sent[1]["body"])["error"]["code"] == "permission_denied"
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "localhost:8080"}, 200),
        ({"host": "127.0.0.1:8080"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "box.localhost"}, 200),
        ({}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "localhost:8080", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:8080", "origin": "null"}, 403),
        ({"host": "localhost:8080", "origin": "http://localhost:3000"}, 403),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, 200),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "localhost:8080", "origin": "http://app.example"}, 200),
        ({"host": "["}, 403),
        ({"host": "localhost:8080", "origin": "http://["}, 403),
    ],
)
def test_a_keyless_laptop_is_not_for_web_pages(headers, expected):
    assert status("127.0.0.1", headers, ("http://app.example",)) == expected


def test_a_service_on_the_network_may_be_asked_for_by_any_name():
    assert status("0.0.0.0", {"host": "gateway.internal"}) == 200  # nothing is bound
    assert status("0.0.0.0", {"host": "gateway.internal", "origin": "http://evil.example"}) == 403  # as above
