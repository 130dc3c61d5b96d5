"""The ASGI layers around the routes: request id, log, key. None of them buffers."""

import ipaddress
import logging
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api import errors
from api.keys import Key, Keyring
from shared import log, trace
from shared.errors import AuthenticationFailed, ClinvkError, PermissionDenied
from shared.ids import new_id
from shared.spans import Span, Spans

_log = logging.getLogger("clinvk.access")

_SANE_ID = re.compile(rb"^[A-Za-z0-9._:-]{1,128}$")
_PROBES = ("/health", "/api/v1/health", "/livez", "/readyz")
_OPEN = (*_PROBES, "/docs", "/openapi.json")
_SELDOM = (*_PROBES, "/metrics")  # asked every second; only what goes wrong is worth a line


def is_open(path: str) -> bool:
    """Whether a path is there for all, without key or limit."""
    return (path.rstrip("/") or "/") in _OPEN or path.startswith("/docs/")


class RequestIds:
    """Gives each request an id, kept from the caller where sane, and a place in its caller's trace or one of its own; logs
    it when it has been served."""

    def __init__(self, app: ASGIApp, spans: Spans | None = None) -> None:
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _SANE_ID.match(given) else new_id("req")
        state: dict[str, Any] = scope.setdefault("state", {})
        request_id = state.setdefault("request_id", request_id)  # the connection's, where it has answered already
        given_trace = trace.parse(
            headers.get(b"traceparent", b"").decode("latin-1"), headers.get(b"tracestate", b"").decode("latin-1")
        )
        span: Span | None = None
        if self._spans is not None and scope["path"] not in _SELDOM:
            span = self._spans.begin(str(scope.get("method")), given_trace, "server")
            place = span.place
        else:
            place = given_trace.below() if given_trace is not None else trace.new()
        trace.current.set(place)
        log.begin(request_id=request_id, trace_id=place.trace_id)
        begun = time.monotonic()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = answered(scope, message["status"])
                told = [*message.get("headers", [])]
                told += [(b"x-request-id", request_id.encode()), (b"request-id", request_id.encode())]
                told.append((b"traceparent", place.parent.encode()))
                if run_id := state.get("run_id"):
                    told.append((b"x-run-id", str(run_id).encode()))
                message["headers"] = told
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            took = (time.monotonic() - begun) * 1000
            if run_id := state.get("run_id"):
                log.note(run_id=str(run_id))
            if span is not None:
                _close(span, scope, status)
            level = logging.DEBUG if status < 400 and scope["path"] in _SELDOM else logging.INFO
            _log.log(level, "%s %s %d %.1f ms", scope.get("method"), scope["path"], status, took)


def answered(scope: Scope, status: int) -> int:
    """The status that the caller has: the connection's own where that has answered, since what comes later is not sent."""
    return int(scope["state"].get("refused", status))


class Recover:
    """Whatever a layer or a route did not expect is an answer in the caller's dialect, and logged, here at the latest.

    Where the answer had begun it can only be broken off: the server below does that, and says so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            if begun or str(scope["type"]) != "http":
                raise
            if not isinstance(error, ClinvkError):
                _log.exception("request failed in a layer")
            await refuse(scope, send, error)


def _close(span: Span, scope: Scope, status: int) -> None:
    method, route = str(scope.get("method")), scope.get("path_template")
    if route:
        span.rename(f"{method} {route}")
    state: Mapping[str, Any] = scope["state"]
    span.set(
        http__request__method=method,
        http__route=route or None,
        http__response__status_code=status,
        url__path=scope["path"],
        clinvk__request_id=state["request_id"],
        clinvk__run_id=state.get("run_id"),
        clinvk__tenant=state.get("tenant") or None,
    )
    span.end(str(status) if status >= 500 or status == 0 else None)


class Browsers:
    """Where no key is needed, no web page may use what its reader's machine offers.

    A page's request names its origin, which must be one that is allowed; and on loopback the name that was asked for
    must be this machine's, or a page could have its own name lead here.
    """

    def __init__(self, app: ASGIApp, keys: Keyring, host: str, allowed: Sequence[str]) -> None:
        self._app = app
        self._keys = keys
        self._local = is_local(host)
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = str(scope["type"]) == "http" and not self._keys.required
        reason = self._reason_against(dict(scope["headers"])) if asked else None
        if reason is None:
            await self._app(scope, receive, send)
            return
        await refuse(scope, send, PermissionDenied(reason))

    def _reason_against(self, headers: Mapping[bytes, bytes]) -> str | None:
        try:
            host = urlsplit("//" + headers.get(b"host", b"localhost").decode("latin-1"))
            origin = headers.get(b"origin", b"").decode("latin-1")
            page = urlsplit(origin).netloc
        except ValueError:
            return "its Host or Origin is no name of a host"
        if self._local and not is_local(host.hostname or ""):
            return (
                f"asked for as {host.hostname!r}: without API keys this service answers to localhost alone; set "
                "CLINVK_API_KEYS, or listen on another address (server.host)"
            )
        if not origin or {"*", origin} & self._allowed or page == host.netloc:
            return None
        return f"a page of {origin!r} may not use this service; server.cors_allowed_origins names those that may"


def is_local(name: str) -> bool:
    """Whether a host's name is this machine's own, which no other machine can reach."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def refuse(scope: Scope, send: Send, error: Exception, *headers: tuple[bytes, bytes]) -> None:
    """Answers in the words of the path's dialect."""
    request_id = scope["state"]["request_id"]
    answer = errors.of_exception(error, dialect=errors.dialect_of(scope["path"]), request_id=request_id)
    given = [(k.encode(), v.encode()) for k, v in answer.headers.items()]
    given.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": [*given, *headers]})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})


async def no_key(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001  # ASGI
    """The answer to whoever brings no key that is known."""
    refused = AuthenticationFailed(
        "this service needs a key: `Authorization: Bearer KEY` or `X-Api-Key: KEY`, and the one given, if any, is not known"
    )
    await refuse(scope, send, refused, (b"www-authenticate", b"Bearer"))


class Auth:
    """With any key configured, every request needs one; without, all are the tenant `default`. Who has none is left to
    `strangers`.

    `state` gets the tenant, the key (None without keys), whether it may see the fleet (`admin`), and whether all tenants'
    runs (`all_tenants`), which needs an admin's key."""

    def __init__(self, app: ASGIApp, keys: Keyring, strangers: ASGIApp = no_key) -> None:
        self._app = app
        self._keys = keys
        self._strangers = strangers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) != "http":
            await self._app(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        key = self._key(scope)
        tenant = "default" if not self._keys.required else None if key is None else key.tenant
        state["key"] = key
        state["all_tenants"] = key is not None and key.admin
        state["admin"] = not self._keys.required or state["all_tenants"]
        if tenant is None and not is_open(scope["path"]):
            await self._strangers(scope, receive, send)
            return
        state["tenant"] = tenant or ""
        if tenant:
            log.note(tenant=tenant)
        await self._app(scope, receive, send)

    def _key(self, scope: Scope) -> Key | None:
        headers = dict(scope["headers"])
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = [headers.get(b"x-api-key", b""), bearer.strip() if scheme.lower() == b"bearer" else b""]
        found = [self._keys.find(value) for value in given if value]
        return next((key for key in reversed(found) if key is not None), None)
