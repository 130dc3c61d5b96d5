"""The Anthropic routes."""

from functools import partial
from typing import Any

from litestar import Response, Router, get, post

from api import body as bodies
from api import bounds, compat
from api.anthropic import translate
from api.anthropic.messages import MessageEvents, message
from api.anthropic.wire import HEEDED, MessagesBody
from api.body import convert, decode, present
from api.context import context_of
from api.exchange import Answer, Req, json, request_id_of, submitted
from api.models import ModelNotFound

_CREATED = "2024-01-01T00:00:00Z"


@post("/messages", status_code=200)
async def create_message(request: Req) -> Response[Any]:
    answer = await _taken(request)
    return await answer()


async def _taken(request: Req) -> Answer:
    ctx = context_of(request)
    raw = await bodies.read(request)
    data = present(decode(raw))
    body = _body(data)
    ignored = bodies.ignored(data, HEEDED)
    if (point := compat.resume_point(request)) is not None and body.stream:
        exchange = await compat.gone_on(request, *point, "anthropic")
    else:
        talk = translate.to_talk(body)
        thinking = body.thinking is not None and body.thinking.type != "disabled"
        spec = compat.to_spec(
            request,
            talk,
            compat.routed(ctx, body.model),
            dialect="anthropic",
            model=body.model,
            reply={"thinking": thinking, "input_tokens": translate.estimate(talk)},
            schema=translate.schema(body),
            effort=translate.effort(body),
            thinking_tokens=translate.thinking_tokens(body),
            metadata=body.metadata,
        )
        with compat.named("output_format", "system"):
            exchange = await submitted(request, spec, endpoint="messages", body=raw)
    if body.stream:
        events = MessageEvents(exchange.spec, request_id=request_id_of(request), after=0 if point is None else point[1])
        told = compat.headers(exchange.spec, exchange.able, ignored)
        return partial(exchange.streamed, events, headers=told, tells=compat.tells)
    return partial(compat.whole, exchange, message, ignored)


@post("/messages/count_tokens", status_code=200)
async def count_tokens(request: Req) -> Response[Any]:
    """An estimate, as `estimated` says: no CLI counts without a model call."""
    talk = translate.to_talk(_body(present(decode(await bodies.read(request)))))
    return json({"input_tokens": translate.estimate(talk), "estimated": True}, {"x-clinvk-estimate": "true"})


def _body(data: dict[str, Any]) -> MessagesBody:
    for name in ("messages", "system"):
        bounds.of_parts(data.get(name), name)
    for name in ("output_config", "thinking"):
        if isinstance(data.get(name), dict):
            data[name] = present(data[name])
    if isinstance(messages := data.get("messages"), list):
        data["messages"] = [present(one) if isinstance(one, dict) else one for one in messages]
    return convert(data, MessagesBody)


@get("/models")
async def list_models(request: Req) -> Response[bytes]:
    found = await compat.model_names(request)
    return json(
        {
            "data": [_model(name) for name in found],
            "has_more": False,
            "first_id": found[0] if found else None,
            "last_id": found[-1] if found else None,
        }
    )


@get("/models/{name:path}")
async def get_model(request: Req, name: str) -> Response[bytes]:
    name = name.lstrip("/")
    if name not in await compat.model_names(request):
        raise ModelNotFound(f"there is no model {name!r}; GET /anthropic/v1/models lists those that there are")
    return json(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": _CREATED}


router = Router(path="/anthropic/v1", route_handlers=[create_message, count_tokens, list_models, get_model])
