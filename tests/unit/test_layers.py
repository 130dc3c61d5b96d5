"""The layers around the routes: web pages kept away, faults answered, packed bodies refused."""

import asyncio
import json
from typing import Any

import pytest

from api.encoding import Encodings
from api.keys import Keyring
from api.layers import Browsers, Recover, RequestIds


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
    asyncio.run(Browsers(app, Keyring([]), host, allowed)(scope, None, send))
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


def asked(app: Any, path: str, headers: list[tuple[bytes, bytes]] = [], method: str = "POST") -> list[dict[str, Any]]:  # noqa: B006  # only read
    """What is sent, through the layer that gives an id."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [(b"x-request-id", b"mine"), *headers]}
    asyncio.run(RequestIds(app)(scope, None, send))  # type: ignore[arg-type]  # nothing is received
    return sent


PATHS = {
    "/api/v1/prompt": lambda body: body["error"]["code"],
    "/openai/v1/chat/completions": lambda body: body["error"]["code"],
    "/anthropic/v1/messages": lambda body: body["type"] == "error" and body["error"]["type"],
}


@pytest.mark.parametrize("path", PATHS)
def test_a_fault_of_a_layer_is_an_answer_in_the_dialect_with_an_id_and_a_line_of_the_log(path, caplog):
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("a secret of the inside")

    start, end = asked(Recover(broken), path)

    headers, body = dict(start["headers"]), json.loads(end["body"])
    assert start["status"] == body["status"] == 500
    assert PATHS[path](body) in ("internal_error", "api_error")
    assert headers[b"x-request-id"] == b"mine"
    assert body["request_id"] == "mine"
    assert headers[b"content-length"] == str(len(end["body"])).encode()
    assert "secret" not in end["body"].decode()
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


def test_an_answer_that_has_begun_is_never_followed_by_another():
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError

    with pytest.raises(KeyError):
        asked(Recover(broken), "/api/v1/prompt")


async def fine(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize("given", [b"gzip", b"GZIP", b"br", b"identity, gzip", b"zstd,identity", b"nonsense"])
@pytest.mark.parametrize("path", PATHS)
def test_a_packed_body_is_415_and_told_what_would_be_right(path, given):
    start, end = asked(Encodings(fine), path, [(b"content-encoding", given)])

    body = json.loads(end["body"])
    assert start["status"] == body["status"] == 415
    assert PATHS[path](body) in ("unsupported_encoding", "invalid_request_error")
    assert "without Content-Encoding" in body["detail"]
    assert dict(start["headers"])[b"accept-encoding"] == b"identity"


@pytest.mark.parametrize(("method", "given"), [("POST", b"identity"), ("POST", b""), ("GET", b"gzip")])
def test_a_body_as_it_is_and_a_request_without_one_go_through(method, given):
    (start,) = asked(Encodings(fine), "/api/v1/runs", [(b"content-encoding", given)], method)

    assert start["status"] == 200
