"""The OpenAPI document and its page, which needs no internet."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import swagger_ui
from litestar import Response, get
from litestar.exceptions import NotFoundException

from api.anthropic.wire import MessagesBody
from api.native import wire
from api.openai.wire import ChatBody, ResponsesBody

_STATIC = Path(swagger_ui.__file__).parent / "static"
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}

_BODIES = (
    wire.ParallelBody,
    wire.ChainBody,
    wire.CompareBody,
    wire.ResumeBody,
    ChatBody,
    ResponsesBody,
    MessagesBody,
    wire.PromptBody,
    wire.PromptAnswer,
    wire.RunView,
    wire.RunList,
    wire.Problem,
)
_EVENTS = "Unified events, one object each: type, backend, session_id, timestamp, sequence, content. The last is done or error."


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str, text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _ref(name)}}}


def _problems(*statuses: int) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _ref("Problem")}}
    words = {
        400: "The request must change.",
        401: "A key is needed.",
        403: "The key may not do this.",
        404: "There is no such run.",
        410: "The events asked for are no longer kept.",
        413: "The body is too large.",
        429: "The queue is full, or the vendor limits.",
        500: "The service failed.",
        502: "The run failed without an exit of the CLI.",
        503: "No worker, or no store.",
        504: "Not in time.",
        409: "The run was cancelled before it ran.",
    }
    return {str(status): {"description": words[status], "content": content} for status in statuses}


_STREAMS = {
    "application/x-ndjson": {"schema": {"type": "string", "description": _EVENTS}},
    "text/event-stream": {"schema": {"type": "string", "description": _EVENTS + " The id is the sequence."}},
}
_RUN_ID = {"name": "run_id", "in": "path", "required": True, "schema": {"type": "string"}}


def _query(name: str, text: str, low: int, default: int) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": low, "default": default}
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


_ASYNC = " JSON when all has ended; with Prefer: respond-async 202 and a Location; SSE with Accept: text/event-stream."


def _flows_and_sessions() -> dict[str, Any]:
    made: dict[str, Any] = {}
    flow_id = {"name": "flow_id", "in": "path", "required": True, "schema": {"type": "string"}}
    session_id = {
        "name": "session_id",
        "in": "path",
        "required": True,
        "description": "The id, or what begins no other.",
        "schema": {"type": "string"},
    }
    host = {"name": "host", "in": "path", "required": True, "schema": {"type": "string"}}
    page = [_query("limit", "At most so many.", 1, 100), _query("offset", "How many to skip.", 0, 0)]
    text = {"in": "query", "required": False, "schema": {"type": "string"}}
    chosen = [{"name": "backend", **text}, {"name": "status", **text}]
    for method, path, name, summary, body, parameters in (
        ("post", "/parallel", "create-parallel", "Run tasks side by side." + _ASYNC, "ParallelBody", []),
        ("post", "/chain", "create-chain", "Run steps one after another." + _ASYNC, "ChainBody", []),
        ("post", "/compare", "create-compare", "One prompt, several backends." + _ASYNC, "CompareBody", []),
        ("get", "/flows", "list-flows", "The caller's flows, the newest first", "", page),
        ("get", "/flows/{flow_id}", "get-flow", "One flow, as its answer shows it", "", [flow_id]),
        ("delete", "/flows/{flow_id}", "cancel-flow", "Cancel all of it; 202 while runs end", "", [flow_id]),
        ("get", "/flows/{flow_id}/events", "follow-flow", "All its runs' events, each with its lane", "", [flow_id]),
        ("get", "/sessions", "list-sessions", "Sessions, the last used first", "", [*chosen, *page]),
        ("get", "/sessions/{session_id}", "get-session", "One session", "", [session_id]),
        ("delete", "/sessions/{session_id}", "delete-session", "Delete it, also on its host", "", [session_id]),
        ("get", "/workers", "list-workers", "The live fleet (admin)", "", []),
        ("post", "/workers/{host}/drain", "drain-host", "Take a host out of service (admin)", "", [host]),
        ("post", "/workers/{host}/undrain", "undrain-host", "Put it back (admin)", "", [host]),
        ("post", "/sessions/{session_id}/resume", "resume-session", "A further turn", "ResumeBody", [session_id]),
    ):
        content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if body or name == "follow-flow":
            content |= _STREAMS
        operation: dict[str, Any] = {
            "operationId": name,
            "summary": summary,
            "responses": {
                "200": {"description": "Done, or the stream.", "content": content},
                "202": {"description": "Accepted, or ending.", "content": {"application/json": {"schema": {}}}},
                **_problems(400, 401, 403, 404, 409, 410, 413, 429, 500, 502, 503, 504),
            },
        }
        if parameters:
            operation["parameters"] = parameters
        if body:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(body)}}}
        made.setdefault("/api/v1" + path, {})[method] = operation
    return made


def _compatible() -> dict[str, Any]:
    """The routes of the other dialects; their own references say more of their bodies."""
    made: dict[str, Any] = {}
    id_ = {"in": "path", "required": True, "schema": {"type": "string"}}
    response_id, model = {"name": "response_id", **id_}, {"name": "name", **id_}
    for method, path, name, summary, body, parameters in (
        ("post", "/openai/v1/chat/completions", "create-chat-completion", "Create chat completion", "ChatBody", ()),
        ("get", "/openai/v1/models", "list-models", "Models that some live worker can run", "", ()),
        ("get", "/openai/v1/models/{name}", "get-model", "One model", "", (model,)),
        ("post", "/openai/v1/responses", "create-response", "Create a response", "ResponsesBody", ()),
        ("get", "/openai/v1/responses/{response_id}", "get-response", "Read or follow a response", "", (response_id,)),
        ("delete", "/openai/v1/responses/{response_id}", "delete-response", "Delete a response", "", (response_id,)),
        ("post", "/openai/v1/responses/{response_id}/cancel", "cancel-response", "Cancel it", "", (response_id,)),
        ("post", "/anthropic/v1/messages", "create-message", "Create a message", "MessagesBody", ()),
        ("post", "/anthropic/v1/messages/count_tokens", "count-tokens", "Estimate tokens", "MessagesBody", ()),
        ("get", "/anthropic/v1/models", "list-anthropic-models", "Models that some live worker can run", "", ()),
        ("get", "/anthropic/v1/models/{name}", "get-anthropic-model", "One model", "", (model,)),
    ):
        content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if body and not path.endswith("tokens"):
            content["text/event-stream"] = {"schema": {"type": "string", "description": "With stream: true."}}
        operation: dict[str, Any] = {
            "operationId": name,
            "summary": summary,
            "tags": ["OpenAI" if path.startswith("/openai") else "Anthropic"],
            "responses": {
                "200": {"description": "In the dialect's own shape.", "content": content},
                **_problems(400, 401, 404, 409, 413, 429, 500, 502, 503, 504),
            },
        }
        if parameters:
            operation["parameters"] = list(parameters)
        if body:
            content = {"application/json": {"schema": _ref(body)}}
            operation["requestBody"] = {"required": True, "content": content}
        made.setdefault(path, {})[method] = operation
    return made


def document() -> dict[str, Any]:
    """The whole document as plain data."""
    _, components = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    answered = _json("PromptAnswer", "The run was carried out; `error` is empty where it succeeded.")
    answered["content"] |= _STREAMS
    paths: dict[str, Any] = {
        "/api/v1/prompt": {
            "post": {
                "operationId": "create-prompt",
                "summary": "Have one prompt carried out by one backend",
                "description": "JSON by default; NDJSON with output_format stream-json; SSE with Accept: "
                "text/event-stream; 202 with Prefer: respond-async.",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("PromptBody")}}},
                "responses": {
                    "200": answered,
                    "202": _json("RunView", "Accepted; Location names the run."),
                    **_problems(400, 401, 404, 409, 413, 429, 500, 502, 503, 504),
                },
            }
        },
        "/api/v1/runs": {
            "get": {
                "operationId": "list-runs",
                "summary": "The caller's runs, the newest first",
                "parameters": [_query("limit", "At most 1000.", 1, 100), _query("offset", "How many to skip.", 0, 0)],
                "responses": {"200": _json("RunList", "A page."), **_problems(400, 401, 500, 503)},
            }
        },
        "/api/v1/runs/{run_id}": {
            "get": {
                "operationId": "get-run",
                "summary": "One run",
                "parameters": [_RUN_ID],
                "responses": {"200": _json("RunView", "The run."), **_problems(401, 404, 500, 503)},
            },
            "delete": {
                "operationId": "cancel-run",
                "summary": "Cancel a run",
                "parameters": [_RUN_ID],
                "responses": {
                    "200": _json("RunView", "It has ended."),
                    "202": _json("RunView", "Its worker has been ordered to end it."),
                    **_problems(401, 404, 500, 503),
                },
            },
        },
        "/api/v1/runs/{run_id}/events": {
            "get": {
                "operationId": "follow-run",
                "summary": "Follow a run from any position, as SSE or NDJSON",
                "parameters": [_RUN_ID, _query("after", "The sequence behind which to begin.", 0, 0)],
                "responses": {
                    "200": {"description": _EVENTS, "content": _STREAMS},
                    **_problems(400, 401, 404, 410, 500, 503),
                },
            }
        },
        "/api/v1/backends": {
            "get": {
                "operationId": "list-backends",
                "summary": "The backends of the live fleet",
                "responses": {
                    "200": {"description": "By name.", "content": {"application/json": {"schema": {"type": "object"}}}},
                    **_problems(401, 500, 503),
                },
            }
        },
    }
    paths |= _compatible()
    paths |= _flows_and_sessions()
    for path in ("/health", "/api/v1/health"):
        content = {"application/json": {"schema": {"type": "object"}}}
        paths[path] = {
            "get": {
                "operationId": "health" if path == "/health" else "health-v1",
                "summary": "Whether runs can be taken",
                "security": [],
                "responses": {
                    "200": {"description": "ok or degraded", "content": content},
                    "503": {"description": "unhealthy", "content": content},
                },
            }
        }
    for path, name, summary, words in (
        ("/livez", "live", "Whether this process turns; restart it where this fails", {"200": "alive"}),
        ("/readyz", "ready", "Whether requests should come here", {"200": "ready or degraded", "503": "unready"}),
    ):
        content = {"application/json": {"schema": {"type": "object"}}}
        paths[path] = {
            "get": {
                "operationId": name,
                "summary": summary,
                "security": [],
                "responses": {code: {"description": said, "content": content} for code, said in words.items()},
            }
        }
    paths["/metrics"] = {
        "get": {
            "operationId": "metrics",
            "summary": "Prometheus metrics, where server.metrics_enabled (admin)",
            "responses": {
                "200": {"description": "Text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                **_problems(401, 403, 404, 500, 503),
            },
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "clinvk", "version": version("clinvk"), "description": "Agent CLIs as HTTP APIs."},
        "paths": paths,
        "components": {
            "schemas": components,
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
