"""The routes of responses: the queue in the SDK's own words."""

import contextlib
from functools import partial
from typing import Any

import msgspec
from litestar import Response, delete, get, post

from api import audit, bounds, compat
from api import body as bodies
from api.body import convert, decode, present
from api.context import Context, context_of
from api.conversation import Conversation
from api.erasure import erase_run, settled
from api.exchange import Answer, Req, at_once, detached, found, json, reach_of, resumed, submitted, tenant_of
from api.openai import translate
from api.openai.responses import ResponseEvents, id_of, of_run, run_of
from api.openai.wire import RESPONSES_HEEDED, ResponsesBody
from api.thoughts import Thoughts
from shared.errors import InvalidRequest, LogExpired, NotFound
from shared.run import Run, Status, Turn


@post("/responses", status_code=200)
async def create_response(request: Req) -> Response[Any]:
    answer = await _taken(request)
    return await answer()


async def _taken(request: Req) -> Answer:
    ctx = context_of(request)
    raw = await bodies.read(request)
    data = present(decode(raw))
    for name in ("reasoning", "text"):
        if isinstance(data.get(name), dict):
            data[name] = present(data[name])
    bounds.of_parts(data.get("input"), "input")
    body = convert(data, ResponsesBody)
    ignored = bodies.ignored(data, RESPONSES_HEEDED)
    if body.background and not body.store:
        raise InvalidRequest("background needs store: otherwise nobody could ask for its answer", field="store")
    before, kept = await _before(ctx, body.previous_response_id, tenant_of(request))
    body.input = await _resolved(ctx, body.input, tenant_of(request))
    talk, said = translate.responses_talk(body, before, kept)
    spec = compat.to_spec(
        request,
        talk,
        compat.routed(ctx, body.model),
        dialect="openai",
        model=body.model,
        reply=_reply(body) | ({"developer": said} if said else {}),
        schema=translate.responses_schema(body.text.format),
        effort=translate.effort(body),
        metadata=body.metadata,
    )
    if body.background:  # its caller does not wait for it
        spec = msgspec.structs.replace(spec, start_within_s=None)
    with compat.named("text.format", "instructions"):
        if body.background:
            run, able = await detached(request, spec, endpoint="responses", body=raw)
            if not body.stream:
                return at_once(json(of_run(run), compat.headers(run.spec, able, ignored)))
            exchange = await resumed(request, run.id, spec.tenant, able=able)
        else:
            exchange = await submitted(request, spec, endpoint="responses", body=raw)
    if body.stream:
        told = compat.headers(exchange.spec, exchange.able, ignored)
        events = ResponseEvents(exchange.spec, queued=body.background)
        return partial(exchange.streamed, events, headers=told, tells=compat.tells, hold=not body.background)
    return partial(compat.whole, exchange, of_run, ignored)


def _reply(body: ResponsesBody) -> dict[str, Any]:
    said = {
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "background": body.background or None,
        "effort": body.reasoning.effort,
        "summary": body.reasoning.summary,
        "format": body.text.format,
        "tools": body.tools or None,
        "max_output_tokens": body.max_output_tokens,
    }
    return {"response": True, "store": body.store, **{name: value for name, value in said.items() if value is not None}}


async def _before(ctx: Context, response_id: str | None, tenant: str) -> tuple[tuple[Turn, ...], str]:
    """The turns up to the end of an earlier response, and the system texts that stood among its items.

    Raises: NotFound, InvalidRequest."""
    if response_id is None:
        return (), ""
    try:
        run = await _stored(ctx, response_id, tenant)
    except NotFound as error:
        error.details["field"] = "previous_response_id"
        raise
    if run.status is not Status.SUCCEEDED or run.outcome is None:
        raise InvalidRequest(
            f"previous_response_id: {response_id} is {run.status}; only one that has completed can be gone on with",
            field="previous_response_id",
        )
    talk = Conversation(run.spec.history)
    talk.say("user", run.spec.prompt, run.spec.attachments)
    talk.say("assistant", run.outcome.output or "(no text)")
    turns, kept = talk.turns, str(run.spec.reply.get("developer", ""))
    bounds.of_history(turns, kept, ctx.config.server.max_request_body_bytes, "previous_response_id")
    return turns, kept


async def _resolved(ctx: Context, items: str | list[dict[str, Any]], tenant: str) -> str | list[dict[str, Any]]:
    """References to items of stored responses replaced by what they stand for. Raises: NotFound, InvalidRequest."""
    if isinstance(items, str):
        return items
    found: list[dict[str, Any]] = []
    said: dict[str, str] = {}  # one may be named many times
    left = most = ctx.config.server.max_request_body_bytes
    for index, item in enumerate(items):
        id = item.get("id")
        if item.get("type") != "item_reference" or not isinstance(id, str):
            found.append(item)
        elif id.startswith("msg_"):
            response_id = "resp_" + id[4:].partition("_")[0]
            if response_id not in said:
                try:
                    run = await _stored(ctx, response_id, tenant)
                except NotFound as error:
                    error.details["field"] = f"input[{index}].id"
                    raise
                said[response_id] = "" if run.outcome is None else run.outcome.output
            text = said[response_id]
            left -= len(text)
            if left < 0:
                raise InvalidRequest(
                    f"input[{index}]: what the references up to this one stand for has more than {most:,} characters "
                    "(server.max_request_body_bytes)",
                    field=f"input[{index}]",
                )
            found.append({"type": "message", "role": "assistant", "content": text})
        elif not id.startswith("rs_"):  # reasoning is made anew
            found.append(item)
    return found


async def _stored(ctx: Context, response_id: str, tenant: str | None) -> Run:
    """Raises: NotFound, also for one that was not to be stored."""
    run = await ctx.runs.get(run_of(response_id)) if response_id.startswith("resp_") else None
    if (
        run is None
        or tenant not in (None, run.spec.tenant)
        or not run.spec.reply.get("response")
        or not run.spec.reply["store"]
    ):
        raise NotFound("response", response_id)
    return run


@get("/responses/{response_id:str}")
async def get_response(request: Req, response_id: str) -> Response[Any]:
    answer = await _again(request, response_id)
    return await answer()


async def _again(request: Req, response_id: str) -> Answer:
    ctx = context_of(request)
    run = await _stored(ctx, response_id, reach_of(request))
    request.scope["state"]["run_id"] = run.id
    if request.query_params.get("stream", "false").lower() not in ("true", "1"):
        return at_once(json(of_run(run, await _thoughts(ctx, run)), compat.headers(run.spec, None, (), run)))
    given = request.query_params.get("starting_after")
    if given is not None and (not given.isdecimal() or len(given) > 15):
        raise InvalidRequest(f"starting_after must be a sequence number, not {given[:40]!r}", field="starting_after")
    exchange = await resumed(request, run.id, run.spec.tenant)
    events = ResponseEvents(
        exchange.spec,
        queued=bool(exchange.spec.reply.get("background")),
        after=-1 if given is None else int(given),
    )
    told = compat.headers(run.spec, None, (), run)
    return partial(exchange.streamed, events, headers=told, hold=False, fails=None)


async def _thoughts(ctx: Context, run: Run) -> str:
    """The reasoning of a run that has ended, as long as its events are kept."""
    thoughts = Thoughts()
    if run.status is not Status.SUCCEEDED:
        return ""
    after = 0
    with contextlib.suppress(LogExpired):
        while lines := await ctx.relay.events.read(run.id, after=after):
            thoughts.see(lines)
            after += len(lines)
    return thoughts.text


@post("/responses/{response_id:str}/cancel", status_code=200)
async def cancel_response(request: Req, response_id: str) -> Response[Any]:
    ctx = context_of(request)
    run = await _ended(request, await _stored(ctx, response_id, reach_of(request)))
    await audit.told(request, "run.cancel", run.id, owner=run.spec.tenant, result=run.status.value)
    return json(of_run(run))


@delete("/responses/{response_id:str}", status_code=200)
async def delete_response(request: Req, response_id: str) -> Response[Any]:
    ctx = context_of(request)
    run = await _stored(ctx, response_id, reach_of(request))
    request.scope["state"]["run_id"] = run.id
    await erase_run(request, run)
    return json({"id": id_of(run.id), "object": "response", "deleted": True})


async def _ended(request: Req, run: Run) -> Run:
    """Cancels a run that has not ended, and waits for its end as long as that may take."""
    ctx = context_of(request)
    request.scope["state"]["run_id"] = run.id
    if run.status.final:
        return run
    await ctx.dispatch.cancel(run)
    await settled(ctx, run.id)
    return await found(ctx, run.id, run.spec.tenant)


handlers = [create_response, get_response, cancel_response, delete_response]
