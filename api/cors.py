"""CORS: which web pages may use the service, as browsers ask and are told (Fetch standard)."""

import functools
from collections.abc import Mapping, Sequence

from litestar.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = b"GET, POST, DELETE, OPTIONS"
# What the SDKs send from a browser; `*` would not cover Authorization.
_HEADERS = (
    "authorization, content-type, accept, x-api-key, x-request-id, idempotency-key, last-event-id, prefer, "
    "anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access, openai-organization, "
    "openai-project, openai-beta, traceparent, tracestate, user-agent"
)
_STAINLESS = "x-stainless-"
_EXPOSED = (
    b"x-request-id, request-id, x-run-id, traceparent, location, preference-applied, retry-after, x-should-retry, "
    b"www-authenticate, x-clinvk-model, x-clinvk-backend, x-clinvk-ignored, x-clinvk-not-enforced, x-clinvk-estimate, "
    b"ratelimit-limit, ratelimit-remaining, ratelimit-reset, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, "
    b"deprecation, sunset, link"
)


_VARY = (b"vary", b"origin")


async def _varied(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        message["headers"] = [*message.get("headers", []), _VARY]
    await send(message)


class Cors:
    """`origins` may hold `*`. Preflights are answered here, before any key is asked for.

    What is answered to no page, or to one that may not use the service, says that it depends on that: a cache must not
    give it to another page."""

    def __init__(self, app: ASGIApp, origins: Sequence[str], *, credentials: bool, max_age_s: int) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._credentials = credentials
        self._max_age_s = max_age_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]) if str(scope["type"]) == "http" else {}
        origin = given.get(b"origin", b"")
        if not origin or not ({"*", origin.decode("latin-1")} & self._origins):
            await self._app(scope, receive, functools.partial(_varied, send))
            return
        if scope.get("method") == "OPTIONS" and b"access-control-request-method" in given:
            headers = [*self._allowed(origin), *self._preflight(given)]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exposed = (b"access-control-expose-headers", _EXPOSED)
                message["headers"] = [*message.get("headers", []), *self._allowed(origin), exposed]
            await send(message)

        await self._app(scope, receive, sending)

    def _allowed(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        # With credentials a browser does not take `*`; an answer for one origin must not be kept for another.
        everyone = "*" in self._origins and not self._credentials
        found = [(b"access-control-allow-origin", b"*" if everyone else origin), _VARY]
        if self._credentials:
            found.append((b"access-control-allow-credentials", b"true"))
        return found

    def _preflight(self, given: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        asked = given.get(b"access-control-request-headers", b"").decode("latin-1").lower().split(",")
        extra = [name.strip() for name in asked if name.strip().startswith(_STAINLESS)]
        return [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", ", ".join([_HEADERS, *extra]).encode("latin-1")),
            (b"access-control-max-age", str(self._max_age_s).encode()),
        ]
