"""What a request still holds while its run waits: nothing of its body, since many may wait for long, each with a large one."""

import asyncio
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import App, create_app
from api.keys import Keyring
from shared.config_sources import load
from shared.store.runs import Runs
from tests.system.service import Service, serving, submit

pytestmark = [
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:.*deprecated inferred style"),  # of path parameters, by Litestar
]

LARGE = 100_000
TOOLS = 200


def text(surface: str) -> str:
    return f"LARGE-{surface} " + "x" * LARGE


def tools(surface: str) -> list[dict[str, str]]:
    return [{"type": "function", "name": f"TOOL-{surface}-{number}"} for number in range(TOOLS)]


def messages(surface: str) -> dict[str, Any]:
    said = [{"role": "user", "content": text(surface)}]
    if surface.startswith("chat"):
        said.insert(0, {"role": "system", "content": text(surface)})
    system = {} if surface.startswith("chat") else {"system": text(surface)}
    return {"model": "claude", "max_tokens": 5, "messages": said, "tools": tools(surface)} | system


def response(surface: str) -> dict[str, Any]:
    said = [{"role": role, "content": text(surface)} for role in ("developer", "user")]
    return {"model": "claude", "input": said, "tools": tools(surface)}


def prompt(surface: str) -> dict[str, Any]:
    return {"backend": "claude", "prompt": text(surface)}


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
    "compare": ("/api/v1/compare", lambda surface: {"backends": ["claude"], "prompt": text(surface)}, {}),
}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """One whose only worker is busy."""
    command = json.dumps([sys.executable, "-I", "-S", str(Path(__file__).parent / "sdks" / "fake_claude.py")])
    with serving(CLINVK_WORKER__CONCURRENCY="1", CLINVK_BACKENDS__CLAUDE__COMMAND=command) as service:
        submit(service.apis[0][1], "stay", "--hang")
        yield service


async def asked(app: App, surface: str, over: asyncio.Event) -> None:
    path, body, stream = SURFACES[surface]
    await sent(app, "POST", path, [json.dumps(body(surface) | stream).encode()], over)


async def sent(app: App, method: str, path: str, parts: list[bytes], over: asyncio.Event) -> None:
    """One request in this process; whoever sends it keeps nothing of it either."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
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


def application(service: Service) -> App:
    environ = {"CLINVK_REDIS_URL": service.env()["CLINVK_REDIS_URL"], "CLINVK_BACKENDS__ECHO__ENABLED": "true"}
    return create_app(load(None, environ).config, Keyring([]), Path("/nonexistent"))


async def nothing_held(runs: Runs) -> None:
    for _ in range(10):  # until its answer is waited for
        await runs.tenants()  # the connection to Redis keeps its last reply
        gc.collect()
        if not (still := held()):
            break
    assert not still


@pytest.mark.parametrize("surface", SURFACES)
def test_a_request_that_waits_holds_nothing_of_its_body(service, surface):
    app = application(service)

    async def main() -> None:
        over = asyncio.Event()
        async with asyncio.timeout(30), app._litestar.lifespan():
            runs = app._litestar.state.context.runs
            before = (await runs.list_all(["default"], limit=1, offset=0, status=None))[1]
            asking = asyncio.create_task(asked(app, surface, over))
            while (await runs.list_all(["default"], limit=1, offset=0, status=None))[1] == before:
                assert not asking.done(), asking
            try:
                await nothing_held(runs)
                assert not asking.done()
            finally:
                over.set()
                await asking

    asyncio.run(main())


def test_who_follows_a_response_again_holds_nothing_of_what_it_was_asked(service):
    base = service.apis[0][1] + "/openai/v1/responses"
    made = httpx.post(base, json=response("response") | {"background": True, "tools": []}, timeout=30).json()
    app = application(service)

    async def main() -> None:
        over = asyncio.Event()
        async with asyncio.timeout(30), app._litestar.lifespan():
            path = f"/openai/v1/responses/{made['id']}?stream=true"
            asking = asyncio.create_task(sent(app, "GET", path, [b""], over))
            while not [task for task in asyncio.all_tasks() if task.get_name().startswith("stream-")]:
                assert not asking.done(), asking
                await asyncio.sleep(0)
            try:
                await nothing_held(app._litestar.state.context.runs)
                assert not asking.done()
            finally:
                over.set()
                await asking

    asyncio.run(main())
