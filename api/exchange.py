"""One request's run: put in line or joined, followed, and answered whole or as a stream."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from litestar import Request, Response

from api import stream
from api.context import Context, context_of
from api.errors import RunFailed
from api.keys import Key
from api.relay import Follower
from shared import log
from shared.errors import BackendUnavailable, InvalidRequest, LogExpired, NotFound, StoreUnavailable
from shared.host import Capabilities
from shared.run import Failure, Run, RunSpec
from shared.store.runs import Added, Same

Req = Request[Any, Any, Any]

NOBODY = Response(b"", status_code=499)  # the client is gone

Answer = Callable[[], Awaitable[Response[Any]]]
"""What is still to be done for a request that has been taken in. It holds nothing of the body nor of what was made of
it: many may wait for long, each with a large one."""

# A caller whose own patience is known is answered a little before it ends.
_MARGIN = 0.1
_MARGIN_S = 2.0


class Exchange:
    """`spec` is the run's own, without what only its worker needs: another than the one submitted where an earlier
    request's run was joined.

    It must be used up by `whole` or `streamed`, which let the run go, or by `leave`.
    """

    def __init__(
        self,
        request: Req,
        spec: RunSpec,
        follower: Follower,
        *,
        joined: bool = False,
        able: Capabilities | None = None,
    ) -> None:
        self.request = request
        self.able = able  # of what will carry it out, where that is known
        self.spec = msgspec.structs.replace(
            spec, prompt="", system_prompt=None, history=(), attachments=(), schema=None
        )
        self.follower = follower
        self.joined = joined
        self._ctx = context_of(request)
        request.scope["state"]["run_id"] = spec.id
        log.note(run_id=spec.id)

    async def leave(self) -> None:
        await self._ctx.release(self.follower)

    async def whole(self, see: Callable[[Sequence[bytes]], None] | None = None) -> Run | None:
        """Waits for the run's end and returns it; `see` gets its events on the way. None: the client is gone.

        Raises: RunFailed where there is no answer within `server.request_timeout_secs`.
        """
        if not await self.wait(see):
            return None
        return await found(self._ctx, self.spec.id, None)

    async def wait(self, see: Callable[[Sequence[bytes]], None] | None = None) -> bool:
        """As `whole`, for the end alone. False: the client is gone."""
        follower, limit_s = self.follower, self._ctx.config.server.request_timeout_secs
        self._forget_reply()

        async def ended() -> None:
            while not follower.ended:
                if self._ctx.closing.is_set():
                    raise BackendUnavailable("this replica is shutting down; ask again", retry_after_s=1)
                try:
                    lines = await follower.next(60.0)
                    if see is not None:
                        see(lines)
                except LogExpired:  # it asked for the whole, which the record has
                    await follower.skip()

        try:
            work: asyncio.Task[object] = asyncio.create_task(ended(), name=f"whole-{self.spec.id}")
            try:
                async with asyncio.timeout(limit_s):
                    if not await stream.unless_gone(self.request.receive, work):
                        return False
            except TimeoutError:
                message = f"no answer within {limit_s:g} s (server.request_timeout_secs)"
                raise RunFailed(Failure("timeout", message, "timed_out"), self.spec.id) from None
            work.result()
        finally:
            await self.leave()
        return True

    async def streamed(
        self,
        renderer: stream.Renderer,
        *,
        headers: Mapping[str, str],
        tells: Callable[[bytes], bool] | None = None,
        fails: Callable[[Run], bool] | None = lambda run: True,  # noqa: ARG005  # every failed run
        hold: bool = True,
    ) -> Response[Any]:
        """Holds the status until an event that `tells` (any, by default) or for a moment, so that an early failure
        has a real status.

        Raises: RunFailed where the run ended before anything was told, and `fails` says so (None: never).
        """
        self._forget_reply()
        first: list[bytes] = []
        handed_over = False
        try:
            if hold:
                work = asyncio.create_task(self._hold(first, tells), name=f"hold-{self.spec.id}")
                if not await stream.unless_gone(self.request.receive, work):
                    return NOBODY
                work.result()
            if (
                fails is not None
                and self.follower.ended
                and not any(tells is None or tells(line) for line in first[:-1])
            ):
                run = await found(self._ctx, self.spec.id, None)
                if run.outcome is not None and run.outcome.failure is not None and fails(run):
                    raise RunFailed(run.outcome.failure, run.id)
            handed_over = True
            return stream.Streaming(
                stream.EventStream(
                    self.follower,
                    first,
                    renderer=renderer,
                    heartbeat_s=self._ctx.config.server.heartbeat_secs,
                    headers={**stream.HEADERS, "content-type": renderer.media_type, **headers},
                    release=self._ctx.release,
                    closing=self._ctx.closing,
                    seen=self._ctx.seen,
                )
            )
        finally:
            if not handed_over:
                await self.leave()

    def _forget_reply(self) -> None:
        """Whoever renders the answer has it, or reads it in the run's record."""
        self.spec = msgspec.structs.replace(self.spec, reply={})

    async def _hold(self, first: list[bytes], tells: Callable[[bytes], bool] | None) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._ctx.config.server.stream_hold_secs
        while not self.follower.ended and (left := until - loop.time()) > 0:
            lines = await self.follower.next(left)
            first.extend(lines)
            if any(tells is None or tells(line) for line in lines):
                return


Put = Callable[[str | None, Same | None], Awaitable[Added]]
"""Puts a run in line, its follower (an API process) and what makes its request the same as another given."""


def _put(request: Req, spec: RunSpec) -> Put:
    ctx = context_of(request)
    tags = ctx.config.session.default_tags
    return lambda follower, same: ctx.dispatch.submit(spec, follower=follower, same=same, tags=tags)


async def submitted(request: Req, spec: RunSpec, *, endpoint: str, body: bytes, put: Put | None = None) -> Exchange:
    """Puts the run in line, or joins the one that an earlier try of the same request has started.

    Raises: what admission raises.
    """
    ctx = context_of(request)
    same = same_of(request, spec.tenant, endpoint, body)
    follower = ctx.relay.expect(spec.id)
    try:
        added = await (put or _put(request, spec))(ctx.relay.api, same)
    except BaseException as error:
        await follower.close()
        if isinstance(error, StoreUnavailable):
            ctx.undo(spec, detached=False)
        raise
    if added.run_id == spec.id:
        return Exchange(request, spec, follower, able=added.able)
    await follower.close()
    return await resumed(request, added.run_id, spec.tenant, able=added.able)


def at_once(response: Response[Any]) -> Answer:
    async def answer() -> Response[Any]:
        return response

    return answer


async def detached(
    request: Req, spec: RunSpec, *, endpoint: str, body: bytes, put: Put | None = None
) -> tuple[Run, Capabilities | None]:
    """Puts a run in line that nobody needs to follow. Returns it, and what will carry it out is able to, where that is
    known. Raises: what admission raises."""
    ctx = context_of(request)
    same = same_of(request, spec.tenant, endpoint, body)
    try:
        added = await (put or _put(request, spec))(None, same)
    except StoreUnavailable:
        ctx.undo(spec, detached=True)
        raise
    request.scope["state"]["run_id"] = added.run_id
    log.note(run_id=added.run_id)
    return await found(ctx, added.run_id, spec.tenant), added.able


async def resumed(
    request: Req, run_id: str, tenant: str | None, *, after: int = 0, able: Capabilities | None = None
) -> Exchange:
    """Follows a run that is there already. Raises: NotFound for one of another tenant, too."""
    ctx = context_of(request)
    run = await found(ctx, run_id, tenant)
    follower = await ctx.relay.follow(run_id, after)
    return Exchange(request, run.spec, follower, joined=True, able=able)


async def found(ctx: Context, run_id: str, tenant: str | None) -> Run:
    """Raises: NotFound."""
    run = await ctx.runs.get(run_id)
    if run is None or (tenant is not None and run.spec.tenant != tenant):
        raise NotFound("run", run_id)
    return run


def same_of(request: Req, tenant: str, endpoint: str, body: bytes) -> Same | None:
    """What would make another request the same as this one. SDKs send no key, but count their tries.

    Raises: InvalidRequest for a key that is none.
    """
    fingerprint = hashlib.sha256(body).hexdigest()
    key = idempotency_key(request)
    if key is not None:
        named = hashlib.sha256(f"{tenant}\0{endpoint}\0key\0{key}".encode()).hexdigest()
        return Same(name=named, kind="key", fingerprint=fingerprint)
    tries = request.headers.get("x-stainless-retry-count", "")
    if not tries.isdecimal() or len(tries) > 3:
        return None
    named = hashlib.sha256(f"{tenant}\0{endpoint}\0body\0{fingerprint}".encode()).hexdigest()
    return Same(name=named, kind="body", fingerprint=fingerprint, retry=int(tries))


def idempotency_key(request: Req) -> str | None:
    """Raises: InvalidRequest for a key that is none."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 255:
        raise InvalidRequest("Idempotency-Key must have 1 to 255 characters", field="Idempotency-Key")
    return key


def patience_of(request: Req) -> float | None:
    """How long the caller's SDK will wait for an answer, less what a refusal takes; None where it does not say."""
    given = request.headers.get("x-stainless-read-timeout") or request.headers.get("x-stainless-timeout") or ""
    try:
        limit_s = float(given)
    except ValueError:
        return None
    if not 0 < limit_s < 1e6:  # nan fails too
        return None
    return max(limit_s - min(_MARGIN_S, limit_s * _MARGIN), 0.05)


def tenant_of(request: Req) -> str:
    return str(request.scope["state"]["tenant"])


def reach_of(request: Req) -> str | None:
    """The tenant whose runs, flows and sessions the caller may see and end; None: an admin, who may all."""
    return None if request.scope["state"].get("all_tenants") else tenant_of(request)


def key_of(request: Req) -> Key | None:
    """None where the service needs none."""
    found = request.scope["state"].get("key")
    return found if isinstance(found, Key) else None


def granted(request: Req, spec: RunSpec) -> RunSpec:
    """The run with the limits of its caller's key; every spec passes here on its way. Raises: PermissionDenied."""
    key = key_of(request)
    return spec if key is None else key.granted(spec)


def may_use(request: Req, backend: str) -> bool:
    key = key_of(request)
    return key is None or key.may_use(backend)


def request_id_of(request: Req) -> str:
    return str(request.scope["state"]["request_id"])


def json(value: object, headers: Mapping[str, str] | None = None, status: int = 200) -> Response[bytes]:
    return Response(
        msgspec.json.encode(value), status_code=status, media_type="application/json", headers=dict(headers or {})
    )
