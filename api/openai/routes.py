"""The OpenAI routes."""

from functools import partial
from typing import Any

from litestar import Response, Router, get, post

from api import body as bodies
from api import bounds, compat
from api.body import convert, decode, present
from api.context import context_of
from api.exchange import Answer, Req, json, request_id_of, submitted
from api.models import ModelNotFound
from api.openai import response_routes, translate
from api.openai.chat import Chunks, completion
from api.openai.wire import CHAT_HEEDED, ChatBody

_CREATED = 1704067200  # the ancestor's, the same for ever


@post("/chat/completions", status_code=200, operation_id="create-chat-completion")
async def create_chat_completion(request: Req) -> Response[Any]:
    answer = await _taken(request)
    return await answer()


async def _taken(request: Req) -> Answer:
    ctx = context_of(request)
    raw = await bodies.read(request)
    data = present(decode(raw))
    body = _chat_body(data)
    ignored = bodies.ignored(data, CHAT_HEEDED)
    if (point := compat.resume_point(request)) is not None and body.stream:
        exchange = await compat.gone_on(request, *point, "openai")
    else:
        talk = translate.chat_talk(body)
        to = compat.routed(ctx, body.model)
        spec = compat.to_spec(
            request,
            talk,
            to,
            dialect="openai",
            model=body.model,
            reply={},
            schema=translate.chat_schema(body.response_format),
            effort=translate.effort(body),
            dry_run=body.dry_run,
            metadata=body.metadata,
        )
        with compat.named("response_format", "messages"):
            exchange = await submitted(request, spec, endpoint="chat/completions", body=raw)
    if body.stream:
        chunks = Chunks(
            exchange.spec,
            include_usage=body.stream_options.include_usage,
            request_id=request_id_of(request),
            ids=point is not None or "idempotency-key" in request.headers,
            after=0 if point is None else point[1],
        )
        told = compat.headers(exchange.spec, exchange.able, ignored)
        return partial(exchange.streamed, chunks, headers=told, tells=compat.tells)
    return partial(compat.whole, exchange, completion, ignored)


def _chat_body(data: dict[str, Any]) -> ChatBody:
    messages = data.get("messages")
    bounds.of_parts(messages, "messages")
    if isinstance(messages, list):
        data["messages"] = [present(message) if isinstance(message, dict) else message for message in messages]
    if isinstance(options := data.get("stream_options"), dict):
        data["stream_options"] = present(options)
    return convert(data, ChatBody)


@get("/models")
async def list_models(request: Req) -> Response[bytes]:
    found = await compat.model_names(request)
    return json({"object": "list", "data": [_model(name) for name in found]})


@get("/models/{name:path}")
async def get_model(request: Req, name: str) -> Response[bytes]:
    name = name.lstrip("/")
    if name not in await compat.model_names(request):
        raise ModelNotFound(f"there is no model {name!r}; GET /openai/v1/models lists those that there are")
    return json(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "clinvoker"}


router = Router(
    path="/openai/v1",
    route_handlers=[create_chat_completion, list_models, get_model, *response_routes.handlers],
)
