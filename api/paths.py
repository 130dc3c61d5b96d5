"""The aliases of the compatible surfaces: whatever base URL a client was given, its requests find their route.

CLIENTS' base URLs differ by SDK: `/openai/v1`, `/v1`, `/anthropic`, `/anthropic/v1`; some double the `/v1`, some end in a slash.
"""

from collections.abc import Iterable

from litestar.types import ASGIApp, Receive, Scope, Send

_SURFACES = ("/openai", "/anthropic")
_ANTHROPIC = ("messages", "complete")
_OPENAI = ("chat", "responses", "completions", "embeddings", "images", "audio", "files", "batches", "moderations")


def canonical(path: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> str:
    """The path as the routes know it."""
    if len(path) > 1:
        path = path.rstrip("/") or "/"
    surface = next((name for name in _SURFACES if path == name or path.startswith(name + "/")), None)
    rest = path if surface is None else path[len(surface) :]
    if surface is None and rest != "/v1" and not rest.startswith("/v1/"):
        return path
    parts = rest.strip("/").split("/")
    while parts[:1] == ["v1"]:
        parts = parts[1:]
    if surface is None:
        surface = _surface(parts[0] if parts else "", headers)
    return "/".join((surface, "v1", *parts)) if parts and parts != [""] else f"{surface}/v1"


def _surface(first: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
    if first in _ANTHROPIC:
        return "/anthropic"
    if first in _OPENAI:
        return "/openai"
    return "/anthropic" if any(name == b"anthropic-version" for name, _ in headers) else "/openai"


class Paths:
    """The layer that rewrites them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if str(scope["type"]) == "http":
            path = canonical(scope["path"], scope["headers"])
            if path != scope["path"]:
                scope["path"] = path
                scope["raw_path"] = path.encode()
        await self._app(scope, receive, send)
