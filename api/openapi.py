"""The OpenAPI document and its page, which needs no internet."""

import functools
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import swagger_ui
from litestar import Response, get
from litestar.exceptions import NotFoundException

from api.deprecation import TABLE, Deprecated, words
from api.openapi_headers import Kind, components, kind_of, of_health, of_refusal, of_success
from api.openapi_routes import EVENTS, OPERATIONS, Operation
from api.openapi_schemas import ref, schemas

_STATIC = Path(swagger_ui.__file__).parent / "static"
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}

_WORDS = {
    400: "The request must change; `details.field` says where.",
    401: "A key is needed.",
    403: "The key, or the page that asks, may not do this.",
    404: "There is no such thing, or it is not the caller's.",
    408: "The request did not come whole in time.",
    409: "It is in a state that forbids this, or the run was cancelled before it ran.",
    410: "The events asked for are no longer kept.",
    413: "The body is too large.",
    415: "The body has a Content-Encoding; send it as it is.",
    429: "Too many requests, a full queue, or the vendor's limit; Retry-After is honest.",
    431: "The head is too large.",
    500: "The service failed.",
    502: "The run failed.",
    503: "No worker, no store, or no room for one more large body; Retry-After says when to ask again.",
    504: "Not in time.",
}
_ALWAYS = (400, 403, 408, 429, 431, 500, 503)


def _answers(operation: Operation, row: Deprecated | None) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answer:
        content["application/json"] = {"schema": ref(operation.answer)}
    if operation.streams in ("ndjson", "both"):
        content["application/x-ndjson"] = {"schema": {"description": "One object a line: " + EVENTS}}
    if operation.streams in ("sse", "both"):
        content["text/event-stream"] = {"schema": ref("ServerSentEvent")}
    words = operation.description or operation.summary
    answers: dict[str, Any] = {
        "200": {"description": words, "headers": of_success(operation, 200, row), "content": content}
    }
    if operation.accepted:
        accepted = {"application/json": {"schema": ref(operation.accepted)}}
        told = of_success(operation, 202, row)
        answers["202"] = {"description": "Accepted, or ending.", "headers": told, "content": accepted}
    kind = kind_of(operation)
    for status in _refusals(operation):
        shared = {"$ref": f"#/components/responses/{status}-{kind}"}
        answers[str(status)] = shared if row is None else _refusal(status, kind, row)
    if operation.answer in ("Health", "Probe"):
        health = {"application/json": {"schema": ref(operation.answer)}}
        answers["503"] = {"description": "unhealthy, or unready", "headers": of_health(), "content": health}
    return answers


def _refusals(operation: Operation) -> list[int]:
    encoded = (415,) if operation.method == "post" else ()
    return sorted({*_ALWAYS, *operation.also, *encoded, *(() if operation.is_open else (401,))})


def _refusal(status: int, kind: Kind, row: Deprecated | None = None) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": ref("Problem")}}
    return {"description": _WORDS[status], "headers": of_refusal(status, kind, row), "content": problem}


def _shared() -> dict[str, Any]:
    """All of `components.responses`: most routes refuse alike."""
    kinds = sorted({(status, kind_of(one)) for one in OPERATIONS for status in _refusals(one)})
    return {f"{status}-{kind}": _refusal(status, kind) for status, kind in kinds}


def _described(operation: Operation, table: Mapping[tuple[str, str], Deprecated] = TABLE) -> dict[str, Any]:
    path = operation.path
    row = table.get((operation.method.upper(), path))
    told: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [
            "OpenAI" if path.startswith("/openai") else "Anthropic" if path.startswith("/anthropic") else "native"
        ],
        "responses": _answers(operation, row),
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
    if row is not None:
        told["deprecated"] = True
        told["description"] = " ".join(filter(None, (told.get("description", ""), words(row))))
    return told


@functools.cache
def document() -> dict[str, Any]:
    """The whole document as plain data."""
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    told = _described(
        Operation("get", "/metrics", "metrics", "Prometheus metrics, where server.metrics_enabled (admin)", "", (404,))
    )
    told["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    paths["/metrics"] = {"get": told}
    for path, id, kind in (("/openapi.json", "openapi", "application/json"), ("/docs", "docs", "text/html")):
        told = _described(
            Operation("get", path, id, "This document" if id == "openapi" else "It as a page", "", is_open=True)
        )
        told["responses"]["200"]["content"] = {kind: {"schema": {} if id == "openapi" else {"type": "string"}}}
        paths[path] = {"get": told}
    return {
        "openapi": "3.1.0",
        "info": {"title": "clinvk", "version": version("clinvk"), "description": "Agent CLIs as HTTP APIs."},
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "headers": components(),
            "responses": _shared(),
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
