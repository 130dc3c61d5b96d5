"""The native routes: prompts, runs, backends."""

import asyncio
from typing import Any

import msgspec
from litestar import Request, Response, Router, delete, get, post

from api import errors, stream
from api.context import Context, context_of
from api.native.translate import to_spec
from api.native.wire import PromptBody, RunList, answer, parse, view
from api.relay import Follower
from shared.errors import ClinvkError, InvalidRequest, LogExpired, NotFound
from shared.event import Error, encode
from shared.ids import new_id
from shared.run import Failure, Run, RunSpec

Req = Request[Any, Any, Any]

_JSON = "application/json"


@post("/prompt", status_code=200)
async def create_prompt(request: Req) -> Response[Any]:
    ctx = context_of(request)
    body = parse(await request.body(), PromptBody)
    spec = to_spec(
        body,
        run_id=new_id("run"),
        session_id=new_id("ses"),
        tenant=_tenant(request),
        request_id=_request_id(request),
    )
    request.scope["state"]["run_id"] = spec.id
    if "respond-async" in request.headers.get("prefer", ""):
        await ctx.dispatch.submit(spec, follower=None)
        return await _accepted(ctx, spec.id)
    follower = ctx.relay.expect(spec.id)
    try:
        await ctx.dispatch.submit(spec, follower=ctx.relay.api)
    except BaseException:
        await follower.close()
        raise
    if "text/event-stream" in request.headers.get("accept", ""):
        return await _stream(request, follower, spec, sse=True)
    if body.output_format == "stream-json":
        return await _stream(request, follower, spec, sse=False)
    return await _whole(request, follower, spec)


async def _accepted(ctx: Context, run_id: str) -> Response[bytes]:
    run = await _found(ctx, run_id, None)
    return Response(
        msgspec.json.encode(view(run)),
        status_code=202,
        media_type=_JSON,
        headers={"location": f"/api/v1/runs/{run_id}", "preference-applied": "respond-async"},
    )


async def _whole(request: Req, follower: Follower, spec: RunSpec) -> Response[bytes]:
    """Waits for the run's end; a JSON answer has no heartbeat."""
    ctx = context_of(request)

    async def ended() -> None:
        while not follower.ended:
            try:
                await follower.next(60.0)
            except LogExpired:  # it asked for the whole, which the record has
                await follower.skip()

    try:
        work: asyncio.Task[object] = asyncio.create_task(ended(), name=f"whole-{spec.id}")
        try:
            async with asyncio.timeout(ctx.config.server.request_timeout_secs):
                if not await stream.unless_gone(request.receive, work):
                    return Response(b"", status_code=499)  # nobody reads it
        except TimeoutError:
            limit = ctx.config.server.request_timeout_secs
            failure = Failure("timeout", f"no answer within {limit:g} s (server.request_timeout_secs)", "timed_out")
            return _failed(request, failure, spec.id)
        work.result()
    finally:
        await ctx.release(follower)
    return _report(request, await _found(ctx, spec.id, None))


def _report(request: Req, run: Run) -> Response[bytes]:
    """200 where the CLI ran, even if it failed: the run was carried out and this is its report."""
    assert run.outcome is not None
    failure = run.outcome.failure
    if failure is not None and run.outcome.exit_code is None:
        return _failed(request, failure, run.id)
    headers = {}
    if run.outcome.not_enforced:
        headers["x-clinvk-not-enforced"] = ", ".join(run.outcome.not_enforced)
    if run.outcome.model:
        headers["x-clinvk-model"] = run.outcome.model.encode("ascii", "replace").decode()
    return Response(msgspec.json.encode(answer(run)), media_type=_JSON, headers=headers)


def _failed(request: Req, failure: Failure, run_id: str) -> Response[bytes]:
    error = errors.of_failure(failure, dialect="native", request_id=_request_id(request), run_id=run_id)
    return Response(error.body, status_code=error.status, headers=error.headers, media_type="application/problem+json")


async def _stream(request: Req, follower: Follower, spec: RunSpec, *, sse: bool) -> Response[Any]:
    """Holds the status until the first event or for a moment, so that an early failure has a real status."""
    ctx = context_of(request)
    first: list[bytes] = []
    handed_over = False

    async def hold() -> None:
        first.extend(await follower.next(ctx.config.server.stream_hold_secs))

    try:
        if not await stream.unless_gone(request.receive, asyncio.create_task(hold(), name="hold")):
            return Response(b"", status_code=499)  # nobody reads it
        if follower.ended and follower.position <= 1:  # nothing came but the end
            run = await _found(ctx, spec.id, None)
            if run.outcome is not None and run.outcome.failure is not None and run.outcome.exit_code is None:
                return _failed(request, run.outcome.failure, run.id)
        handed_over = True
        return _events(request, follower, first, spec, sse=sse)
    finally:
        if not handed_over:
            await ctx.release(follower)


def _events(request: Req, follower: Follower, first: list[bytes], spec: RunSpec, *, sse: bool) -> Response[Any]:
    ctx = context_of(request)
    render = stream.sse if sse else stream.ndjson

    def on_error(error: Exception) -> bytes:
        code = error.code if isinstance(error, ClinvkError) else "internal_error"
        content = Error(code, str(error))
        session_id = spec.session_id or ""
        line = encode(
            content, backend=spec.backend, session_id=session_id, sequence=follower.position + 1, at_s=ctx.now()
        )
        return render([line], follower.position + 1)

    events = stream.EventStream(
        follower,
        first,
        render=render,
        heartbeat=b": keep-alive\n\n" if sse else b"\n",
        heartbeat_s=ctx.config.server.heartbeat_secs,
        headers={
            **stream.HEADERS,
            "content-type": "text/event-stream; charset=utf-8" if sse else "application/x-ndjson",
        },
        on_error=on_error,
        release=ctx.release,
        closing=ctx.closing,
    )
    return stream.Streaming(events)


async def _found(ctx: Context, run_id: str, tenant: str | None) -> Run:
    run = await ctx.runs.get(run_id)
    if run is None or (tenant is not None and run.spec.tenant != tenant):
        raise NotFound("run", run_id)
    return run


@get("/runs")
async def list_runs(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    limit, offset = _number(request, "limit", 100, 1, 1000), _number(request, "offset", 0, 0, 1_000_000)
    runs, total = await ctx.runs.list(_tenant(request), limit=limit, offset=offset)
    found = RunList(runs=[view(run) for run in runs], total=total, limit=limit, offset=offset)
    return Response(msgspec.json.encode(found), media_type=_JSON)


@get("/runs/{run_id:str}")
async def get_run(request: Req, run_id: str) -> Response[bytes]:
    run = await _found(context_of(request), run_id, _tenant(request))
    request.scope["state"]["run_id"] = run.id
    return Response(msgspec.json.encode(view(run)), media_type=_JSON)


@get("/runs/{run_id:str}/events")
async def follow_run(request: Req, run_id: str) -> Response[Any]:
    ctx = context_of(request)
    after = _position(request)
    run = await _found(ctx, run_id, _tenant(request))
    request.scope["state"]["run_id"] = run.id
    accept = request.headers.get("accept", "")
    follower = await ctx.relay.follow(run_id, after)
    return _events(request, follower, [], run.spec, sse="ndjson" not in accept and "json" not in accept)


@delete("/runs/{run_id:str}", status_code=200)
async def cancel_run(request: Req, run_id: str) -> Response[bytes]:
    """202 where its worker has been ordered to end it, 200 where it has ended."""
    ctx = context_of(request)
    run = await _found(ctx, run_id, _tenant(request))
    request.scope["state"]["run_id"] = run.id
    how = await ctx.dispatch.cancel(run)
    run = await _found(ctx, run_id, _tenant(request))
    return Response(msgspec.json.encode(view(run)), status_code=202 if how == "ordered" else 200, media_type=_JSON)


@get("/backends")
async def list_backends(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    found = {"backends": ctx.backends_of(await ctx.dispatch.fleet())}
    return Response(msgspec.json.encode(found), media_type=_JSON)


def _tenant(request: Req) -> str:
    return str(request.scope["state"]["tenant"])


def _request_id(request: Req) -> str:
    return str(request.scope["state"]["request_id"])


def _position(request: Req) -> int:
    header = request.headers.get("last-event-id")
    if header is None:
        return _number(request, "after", 0, 0, 2**53)
    if not header.isascii() or not header.isdigit() or len(header) > 15:
        raise InvalidRequest(f"Last-Event-ID must be a sequence number, not {header[:40]!r}", field="Last-Event-ID")
    return int(header)


def _number(request: Req, name: str, default: int, low: int, high: int) -> int:
    value = request.query_params.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 16 or not low <= int(value) <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value[:40]!r}", field=name)
    return int(value)


router = Router(
    path="/api/v1", route_handlers=[create_prompt, list_runs, get_run, follow_run, cancel_run, list_backends]
)
