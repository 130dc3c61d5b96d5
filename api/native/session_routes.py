"""The routes of sessions."""

import datetime
from typing import Any

import msgspec
from litestar import Response, delete, get, post

from api import audit
from api.body import read
from api.context import context_of
from api.exchange import Answer, Req, granted, json, reach_of, request_id_of, tenant_of
from api.models import of_backend
from api.native.answering import taken
from api.native.requests import choice, number, whose
from api.native.translate import to_spec
from api.native.wire import PromptBody, ResumeBody, SessionView, parse
from shared.errors import Conflict, InvalidRequest, NotFound, PermissionDenied
from shared.event import TokenUsage
from shared.ids import new_id
from shared.routing import KNOWN_BACKENDS
from shared.session import Session
from shared.store.runs import Added, Same

_PREFIX = len("ses_") + 4  # the least that names a session: less would delete the only one by mistake
_PAGE = 500  # sessions in one answer: Redis does nothing else for some milliseconds
_STATUSES = ("active", "completed", "error", "cancelled")


@get("/sessions")
async def list_sessions(request: Req) -> Response[bytes]:
    ctx = context_of(request)
    limit = min(number(request, "limit", 100, 1, 10_000), _PAGE)
    offset = number(request, "offset", 0, 0, 10_000_000)
    backend = choice(request, "backend", KNOWN_BACKENDS)
    status = choice(request, "status", _STATUSES)
    tenant = whose(request)
    if tenant is not None:
        found, total = await ctx.sessions.list(tenant, backend=backend, status=status, limit=limit, offset=offset)
    else:
        tenants = await ctx.runs.tenants()
        found, total = await ctx.sessions.list_all(tenants, backend=backend, status=status, limit=limit, offset=offset)
    shown = [_shown(request, one) for one in found]
    return json({"sessions": shown, "total": total, "limit": limit, "offset": offset})


def _shown(request: Req, session: Session) -> SessionView | dict[str, Any]:
    """With its tenant, for who sees more than one."""
    if reach_of(request) is not None:
        return _view(session)
    return {**msgspec.structs.asdict(_view(session)), "tenant": session.tenant}


@get("/sessions/{session_id:str}")
async def get_session(request: Req, session_id: str) -> Response[bytes]:
    return json(_shown(request, await _found(request, session_id)))


@delete("/sessions/{session_id:str}", status_code=200)
async def delete_session(request: Req, session_id: str) -> Response[bytes]:
    session = await _found(request, session_id)
    how = await context_of(request).sessions.forget(session.id)
    if how == "active":
        raise Conflict(f"a turn of the session {session.id} is under way; cancel its run first")
    await audit.told(request, "session.delete", session.id, owner=session.tenant, result="deleted")
    return json({"deleted": True, "id": session.id})


@post("/sessions/{session_id:str}/resume", status_code=200)
async def resume_session(request: Req, session_id: str) -> Response[Any]:
    answer = await _resumed(request, session_id)
    return await answer()


async def _resumed(request: Req, session_id: str) -> Answer:
    ctx = context_of(request)
    raw = await read(request)
    body = parse(raw, ResumeBody)
    session = await _found(request, session_id)
    if session.tenant != tenant_of(request):
        raise PermissionDenied("a session is gone on with by a key of its own tenant alone")
    spec = to_spec(
        _prompt(session, body),
        model=of_backend(session.backend, body.model, ctx.config.model_aliases) or session.options.get("model"),
        run_id=new_id("run"),
        session_id=session.id,
        tenant=tenant_of(request),
        request_id=request_id_of(request),
    )
    if spec.dry_run:  # it is no turn, but shows the command line of one
        spec = msgspec.structs.replace(spec, resume=session.cli_id, prior_usage=session.usage)
    spec = granted(request, spec)
    refuse = ctx.config.session.refuse_busy

    async def put(follower: str | None, same: Same | None) -> Added:
        added = await ctx.dispatch.resume(spec, session.host, follower=follower, same=same, must_be_free=refuse)
        await audit.told(request, "session.resume", session.id, owner=session.tenant, result=added.run_id)
        return added

    return await taken(
        request,
        spec,
        endpoint=f"sessions/{session.id}/resume",
        body=raw,
        output_format=body.output_format,
        put=put,
    )


def _prompt(session: Session, body: ResumeBody) -> PromptBody:
    """What the turn leaves out is as it was in the first one."""
    kept = dict(session.options)
    said = msgspec.to_builtins(body)
    names = {"workdir", "add_dirs", "system_prompt", "system_prompt_mode", "approval_mode", "sandbox_mode"}
    names |= {"max_turns", "max_tokens", "extra", "labels"}
    first = {name: value for name, value in kept.items() if name in names}
    return msgspec.convert({"backend": session.backend, **first, **said}, PromptBody)


async def _found(request: Req, given: str) -> Session:
    """By id or by what begins only one, with some characters of its own. Raises: NotFound, InvalidRequest."""
    ctx, tenant = context_of(request), tenant_of(request)
    session = await ctx.sessions.get(reach_of(request), given)
    if session is not None:
        return session
    if len(given) < _PREFIX and (given.startswith("ses_") or "ses_".startswith(given)):
        raise InvalidRequest(
            f"{given!r} is too short for a session: give four characters after 'ses_', or more", field="id"
        )
    ids = await ctx.sessions.starting_with(tenant, given)
    if len(ids) > 1:
        raise InvalidRequest(f"{given!r} begins more than one session's id: {ids[0]}, {ids[1]}", field="id")
    session = await ctx.sessions.get(tenant, ids[0]) if ids else None
    if session is None:
        raise NotFound("session", given)
    return session


def _view(session: Session) -> SessionView:
    used = session.usage
    return SessionView(
        id=session.id,
        backend=session.backend,
        created_at=_time(session.created_at),
        last_used=_time(session.last_used),
        working_dir=session.working_dir or "",
        model=session.model or "",
        initial_prompt=session.initial_prompt,
        status=session.status,
        turn_count=session.turn_count,
        token_usage=TokenUsage(used.input_tokens, used.output_tokens, used.cached_tokens, used.reasoning_tokens),
        tags=list(session.tags),
        title=session.title,
        metadata=session.metadata,
        host=session.host,
    )


def _time(at_s: float) -> str:
    at = datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat(timespec="milliseconds")
    return at.replace("+00:00", "Z")


handlers = [list_sessions, get_session, delete_session, resume_session]
