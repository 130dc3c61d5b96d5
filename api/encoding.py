"""Refuses bodies in an encoding: they are read as they come, and what was packed would be told as broken JSON."""

from litestar.types import ASGIApp, Receive, Scope, Send

from api.layers import refuse
from shared.errors import UnsupportedEncoding


class Encodings:
    """The layer that does; it says what would be right in words and, as RFC 9110 has it, in `Accept-Encoding`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) == "http" and scope.get("method") == "POST":
            given = b",".join(value for name, value in scope["headers"] if name == b"content-encoding")
            words = [word.strip().lower() for word in given.decode("latin-1").split(",")]
            if any(word not in ("", "identity") for word in words):
                error = UnsupportedEncoding(
                    f"a body with Content-Encoding {', '.join(filter(None, words))[:80]!r} is not read here; send it as it is, "
                    "without Content-Encoding"
                )
                await refuse(scope, send, error, (b"accept-encoding", b"identity"))
                return
        await self._app(scope, receive, send)
