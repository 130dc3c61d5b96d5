"""What a request still holds while its run waits: nothing of its body, since many may wait for long, each with a large one."""

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import App, create_app
from api.keys import Keyring
from shared.config_sources import load
from tests.system.service import Service, serving, submit

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:.*deprecated inferred style"),  # of path parameters, by Litestar
]

LARGE = 300_000
TOOLS = 200


def text(surface: str) -> str:
    return f"LARGE-{surface} " + "x" * LARGE


def tools(surface: str) -> list[dict[str, str]]:
    return [{"type": "function", "name": f"TOOL-{surface}-{number}"} for number in range(TOOLS)]


def messages(surface: str) -> dict[str, Any]:
    said = [{"role": "user", "content": text(surface)}]
    return {"model": "echo", "max_tokens": 5, "messages": said, "tools": tools(surface)}


def response(surface: str) -> dict[str, Any]:
    return {"model": "echo", "input": text(surface), "tools": tools(surface)}


def prompt(surface: str) -> dict[str, Any]:
    return {"backend": "echo", "prompt": text(surface)}


# Where it is sent, what the body is, and what makes its answer a stream.
SURFACES: dict[str, tuple[str, Callable[[str], dict[str, Any]], dict[str, Any]]] = {
    "chat": ("/openai/v1/chat/completions", messages, {}),
    "chat stream": ("/openai/v1/chat/completions", messages, {"stream": True}),
    "messages": ("/anthropic/v1/messages", messages, {}),
    "messages stream": ("/anthropic/v1/messages", messages, {"stream": True}),
    "response": ("/openai/v1/responses", response, {}),
    "response stream": ("/openai/v1/responses", response, {"stream": True}),
    "prompt": ("/api/v1/prompt", prompt, {}),
    "prompt stream": ("/api/v1/prompt", prompt, {"output_format": "stream-json"}),
    "parallel": ("/api/v1/parallel", lambda surface: {"tasks": [prompt(surface)]}, {}),
    "compare": ("/api/v1/compare", lambda surface: {"backends": ["echo"], "prompt": text(surface)}, {}),
}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One whose only worker is busy."""
    with serving(CLINVK_WORKER__CONCURRENCY="1") as service:
        submit(service.apis[0][1], "stay", "--hang")
        yield service


async def asked(app: App, surface: str, over: asyncio.Event) -> None:
    """One request in this process; whoever sends it keeps nothing of it either."""
    path, body, stream = SURFACES[surface]
    parts = [json.dumps(body(surface) | stream).encode()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(said: Any) -> None:
        assert said.get("status", 200) in (200, 499), said  # 499: it has gone, at the end

    await app.asgi(scope, receive, send)


def held() -> set[str]:
    """The surfaces of whose bodies something is still there."""
    found, seen = set(), set()
    todo: list[Any] = gc.get_objects()
    while todo:
        one = todo.pop()
        for part in gc.get_referents(one):
            if isinstance(part, (str, bytes, bytearray)):
                if len(part) > LARGE or part[:5] in ("TOOL-", b"TOOL-"):
                    said = part if isinstance(part, str) else part.decode(errors="replace")
                    found |= {
                        surface for surface in SURFACES if f"LARGE-{surface} " in said or f"TOOL-{surface}-" in said
                    }
            elif id(part) not in seen:
                seen.add(id(part))
                if not gc.is_tracked(part):
                    todo.append(part)
    return found


@pytest.mark.parametrize("surface", SURFACES)
def test_a_request_that_waits_holds_nothing_of_its_body(service, surface):
    environ = {"CLINVK_REDIS_URL": service.env()["CLINVK_REDIS_URL"], "CLINVK_BACKENDS__ECHO__ENABLED": "true"}
    app = create_app(load(None, environ).config, Keyring([]), Path("/nonexistent"))

    async def main() -> None:
        over = asyncio.Event()
        async with asyncio.timeout(30), app._litestar.lifespan():
            runs = app._litestar.state.context.runs
            before = (await runs.list_all(["default"], limit=1, offset=0, status=None))[1]
            asking = asyncio.create_task(asked(app, surface, over))
            while (await runs.list_all(["default"], limit=1, offset=0, status=None))[1] == before:
                assert not asking.done(), asking
            try:
                for _ in range(10):  # until its answer is waited for
                    await runs.tenants()  # the connection to Redis keeps its last reply
                    gc.collect()
                    if not (still := held()):
                        break
                assert not still
                assert not asking.done()
            finally:
                over.set()
                await asking

    asyncio.run(main())
