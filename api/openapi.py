"""The OpenAPI document and its page, which needs no internet."""

import functools
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec
import swagger_ui
from litestar import Response, get
from litestar.exceptions import NotFoundException

from api.openapi_schemas import COUNT, ref, schemas
from shared.config import BACKEND_NAMES

_STATIC = Path(swagger_ui.__file__).parent / "static"
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}

_EVENTS = "Unified events, one object each: type, backend, session_id, timestamp, sequence, content. The last is done or error."
_WORDS = {
    400: "The request must change; `details.field` says where.",
    401: "A key is needed.",
    403: "The key, or the page that asks, may not do this.",
    404: "There is no such thing, or it is not the caller's.",
    408: "The request did not come whole in time.",
    409: "It is in a state that forbids this, or the run was cancelled before it ran.",
    410: "The events asked for are no longer kept.",
    413: "The body is too large.",
    429: "Too many requests, a full queue, or the vendor's limit; Retry-After is honest.",
    431: "The head is too large.",
    500: "The service failed.",
    502: "The run failed.",
    503: "No worker, or no store; Retry-After says when to ask again.",
    504: "Not in time.",
}
_ALWAYS = (400, 403, 408, 429, 431, 500, 503)
_CARRIED_OUT = (404, 409, 413, 502, 504)  # what else may become of a request that starts a run

_Kind = Literal["", "ndjson", "sse", "both"]


class _Operation(msgspec.Struct, frozen=True):
    """A route. `answer` and `accepted` name the schemas of 200 and 202; `also`: statuses beside those of every route."""

    method: str
    path: str
    id: str
    summary: str
    answer: str
    also: tuple[int, ...] = ()
    body: str = ""
    streams: _Kind = ""
    accepted: str = ""
    parameters: tuple[dict[str, Any], ...] = ()
    description: str = ""
    is_open: bool = False


def _query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _header(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}


def _page(most: int, default: int) -> tuple[dict[str, Any], ...]:
    limit = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    offset = {"type": "integer", "minimum": 0, "maximum": 1_000_000, "default": 0}
    return _query("limit", "At most so many.", limit), _query("offset", "How many to skip.", offset)


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


_AFTER = (_query("after", "The sequence behind which to begin; or Last-Event-ID.", COUNT | {"maximum": 2**53}),)
_KEY = (_header("Idempotency-Key", "The same request with the same key, for 24 h, is the same run."),)
_SESSIONS = (
    _query("backend", "Those of one backend.", _one_of(*BACKEND_NAMES)),
    _query("status", "Those in one state.", _one_of("active", "completed", "error", "cancelled")),
)
_ASYNC = "JSON when all has ended; with Prefer: respond-async 202 and a Location; SSE with Accept: text/event-stream."
_PROMPT = (
    "JSON by default; NDJSON with output_format stream-json; SSE with Accept: text/event-stream; 202 with Prefer: "
    "respond-async. A run whose CLI ran and failed is 200 with exit_code and error."
)
_V1 = "/api/v1"
_OPENAI, _ANTHROPIC = "/openai/v1", "/anthropic/v1"

_OPERATIONS = (
    _Operation(
        "post",
        _V1 + "/prompt",
        "create-prompt",
        "Have one prompt carried out by one backend",
        "PromptAnswer",
        _CARRIED_OUT,
        "PromptBody",
        "both",
        "RunView",
        _KEY,
        _PROMPT,
    ),
    _Operation(
        "get", _V1 + "/runs", "list-runs", "The caller's runs, the newest first", "RunList", parameters=_page(1000, 100)
    ),
    _Operation("get", _V1 + "/runs/{run_id}", "get-run", "One run", "RunView", (404,)),
    _Operation(
        "delete",
        _V1 + "/runs/{run_id}",
        "cancel-run",
        "Cancel a run",
        "RunView",
        (404,),
        accepted="RunView",
        description="202: its worker has been ordered to end it.",
    ),
    _Operation(
        "get",
        _V1 + "/runs/{run_id}/events",
        "follow-run",
        "Follow a run from any position, as SSE or NDJSON",
        "",
        (404, 410),
        streams="both",
        parameters=_AFTER,
        description=_EVENTS,
    ),
    _Operation("get", _V1 + "/backends", "list-backends", "The backends of the live fleet", "BackendList"),
    _Operation(
        "post",
        _V1 + "/parallel",
        "create-parallel",
        "Run tasks side by side",
        "Flow",
        _CARRIED_OUT,
        "ParallelBody",
        "sse",
        "Flow",
        _KEY,
        _ASYNC,
    ),
    _Operation(
        "post",
        _V1 + "/chain",
        "create-chain",
        "Run steps one after another",
        "Flow",
        _CARRIED_OUT,
        "ChainBody",
        "sse",
        "Flow",
        _KEY,
        _ASYNC,
    ),
    _Operation(
        "post",
        _V1 + "/compare",
        "create-compare",
        "One prompt, several backends",
        "Flow",
        _CARRIED_OUT,
        "CompareBody",
        "sse",
        "Flow",
        _KEY,
        _ASYNC,
    ),
    _Operation(
        "get",
        _V1 + "/flows",
        "list-flows",
        "The caller's flows, the newest first",
        "FlowList",
        parameters=_page(100, 20),
    ),
    _Operation("get", _V1 + "/flows/{flow_id}", "get-flow", "One flow, as its answer shows it", "Flow", (404,)),
    _Operation(
        "delete",
        _V1 + "/flows/{flow_id}",
        "cancel-flow",
        "Cancel all of it",
        "Flow",
        (404,),
        accepted="Flow",
        description="202: runs of it still end.",
    ),
    _Operation(
        "get",
        _V1 + "/flows/{flow_id}/events",
        "follow-flow",
        "All its runs' events, each with its lane",
        "",
        (404, 410),
        streams="both",
        parameters=_AFTER,
        description="{lane, run_id, event} for each event of a run.",
    ),
    _Operation(
        "get",
        _V1 + "/sessions",
        "list-sessions",
        "Sessions, the last used first",
        "SessionList",
        parameters=(*_SESSIONS, *_page(10_000, 100)),
    ),
    _Operation("get", _V1 + "/sessions/{session_id}", "get-session", "One session", "SessionView", (404,)),
    _Operation(
        "delete", _V1 + "/sessions/{session_id}", "delete-session", "Delete it, also on its host", "Deleted", (404, 409)
    ),
    _Operation(
        "post",
        _V1 + "/sessions/{session_id}/resume",
        "resume-session",
        "A further turn",
        "PromptAnswer",
        _CARRIED_OUT,
        "ResumeBody",
        "both",
        "RunView",
        _KEY,
        _PROMPT,
    ),
    _Operation("get", _V1 + "/workers", "list-workers", "The live fleet (admin)", "WorkerList"),
    _Operation(
        "post", _V1 + "/workers/{host}/drain", "drain-host", "Take a host out of service (admin)", "Draining", (404,)
    ),
    _Operation("post", _V1 + "/workers/{host}/undrain", "undrain-host", "Put it back (admin)", "Draining", (404,)),
    _Operation(
        "post",
        _OPENAI + "/chat/completions",
        "create-chat-completion",
        "Create chat completion",
        "ChatCompletion",
        (*_CARRIED_OUT, 410),
        "ChatBody",
        "sse",
        parameters=_KEY,
    ),
    _Operation("get", _OPENAI + "/models", "list-models", "Models that some live worker can run", "ModelList"),
    _Operation("get", _OPENAI + "/models/{name}", "get-model", "One model", "Model", (404,)),
    _Operation(
        "post",
        _OPENAI + "/responses",
        "create-response",
        "Create a response",
        "Response",
        (*_CARRIED_OUT, 410),
        "ResponsesBody",
        "sse",
        parameters=_KEY,
    ),
    _Operation(
        "get",
        _OPENAI + "/responses/{response_id}",
        "get-response",
        "Read or follow a response",
        "Response",
        (404, 410),
        streams="sse",
        parameters=(
            _query("stream", "Follow it.", {"type": "boolean"}),
            _query("starting_after", "The sequence_number behind which to begin.", COUNT),
        ),
    ),
    _Operation(
        "delete", _OPENAI + "/responses/{response_id}", "delete-response", "Delete a response", "Deleted", (404, 409)
    ),
    _Operation(
        "post", _OPENAI + "/responses/{response_id}/cancel", "cancel-response", "Cancel it", "Response", (404, 409)
    ),
    _Operation(
        "post",
        _ANTHROPIC + "/messages",
        "create-message",
        "Create a message",
        "Message",
        (*_CARRIED_OUT, 410),
        "MessagesBody",
        "sse",
        parameters=_KEY,
    ),
    _Operation(
        "post",
        _ANTHROPIC + "/messages/count_tokens",
        "count-tokens",
        "Estimate tokens",
        "TokenCount",
        (404, 413),
        "MessagesBody",
    ),
    _Operation(
        "get", _ANTHROPIC + "/models", "list-anthropic-models", "Models that some live worker can run", "ModelList"
    ),
    _Operation("get", _ANTHROPIC + "/models/{name}", "get-anthropic-model", "One model", "Model", (404,)),
    _Operation("get", "/health", "health", "Whether runs can be taken", "Health", is_open=True),
    _Operation("get", _V1 + "/health", "health-v1", "Whether runs can be taken", "Health", is_open=True),
    _Operation(
        "get", "/livez", "live", "Whether this process turns; restart it where this fails", "Probe", is_open=True
    ),
    _Operation("get", "/readyz", "ready", "Whether requests should come here", "Probe", is_open=True),
)


def _answers(operation: _Operation) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer:
        content["application/json"] = {"schema": ref(operation.answer)}
    if operation.streams in ("ndjson", "both"):
        content["application/x-ndjson"] = {"schema": {"description": "One object a line: " + _EVENTS}}
    if operation.streams in ("sse", "both"):
        content["text/event-stream"] = {"schema": ref("ServerSentEvent")}
    answers: dict[str, Any] = {"200": {"description": operation.description or operation.summary, "content": content}}
    if operation.accepted:
        accepted = {"application/json": {"schema": ref(operation.accepted)}}
        answers["202"] = {"description": "Accepted, or ending.", "content": accepted}
    problem = {"application/problem+json": {"schema": ref("Problem")}}
    for status in sorted({*_ALWAYS, *operation.also, *(() if operation.is_open else (401,))}):
        answers[str(status)] = {"description": _WORDS[status], "content": problem}
    if operation.answer in ("Health", "Probe"):
        told = {"application/json": {"schema": ref(operation.answer)}}
        answers["503"] = {"description": "unhealthy, or unready", "content": told}
    return answers


def _described(operation: _Operation) -> dict[str, Any]:
    path = operation.path
    told: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [
            "OpenAI" if path.startswith("/openai") else "Anthropic" if path.startswith("/anthropic") else "native"
        ],
        "responses": _answers(operation),
    }
    if operation.description:
        told["description"] = operation.description
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    fixed = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names
    ]
    if fixed or operation.parameters:
        told["parameters"] = [*fixed, *operation.parameters]
    if operation.body:
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref(operation.body)}}}
    if operation.is_open:
        told["security"] = []
    return told


@functools.cache
def document() -> dict[str, Any]:
    """The whole document as plain data."""
    paths: dict[str, Any] = {}
    for operation in _OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    told = _described(
        _Operation("get", "/metrics", "metrics", "Prometheus metrics, where server.metrics_enabled (admin)", "", (404,))
    )
    told["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"] = {"get": told}
    for path, id, kind in (("/openapi.json", "openapi", "application/json"), ("/docs", "docs", "text/html")):
        told = _described(
            _Operation("get", path, id, "This document" if id == "openapi" else "It as a page", "", is_open=True)
        )
        told["responses"]["200"]["content"] = {kind: {"schema": {} if id == "openapi" else {"type": "string"}}}
        paths[path] = {"get": told}
    return {
        "openapi": "3.1.0",
        "info": {"title": "clinvk", "version": version("clinvk"), "description": "Agent CLIs as HTTP APIs."},
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}, {}],
    }


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>clinvk API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css"></head><body><div id="ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({url: "/openapi.json", dom_id: "#ui", validatorUrl: null});</script></body></html>"""


@get("/openapi.json", sync_to_thread=False)
def openapi_json() -> Response[bytes]:
    return Response(msgspec.json.encode(document()), media_type="application/json")


@get("/docs", sync_to_thread=False)
def docs() -> Response[str]:
    return Response(_PAGE, media_type="text/html; charset=utf-8")


@get("/docs/{name:str}", sync_to_thread=False)
def docs_asset(name: str) -> Response[bytes]:
    if name not in _ASSETS:
        raise NotFoundException
    return Response((_STATIC / name).read_bytes(), media_type=_ASSETS[name])
