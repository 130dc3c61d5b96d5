"""Which routes are on their way out, since when and until when; told in every answer of theirs and in the OpenAPI document."""

import datetime
from collections.abc import Mapping
from email.utils import format_datetime

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send


class Deprecated(msgspec.Struct, frozen=True, kw_only=True):
    """`sunset`: from when it may be gone. `successor`: what to use instead, as a path or a URL."""

    since: datetime.date
    sunset: datetime.date | None = None
    successor: str | None = None


# (method, path as the OpenAPI document has it). The policy: a route stays for six months after its row has come here.
TABLE: Mapping[tuple[str, str], Deprecated] = {}


def headers(row: Deprecated) -> list[tuple[bytes, bytes]]:
    """RFC 9745 and RFC 8594."""
    found = [(b"deprecation", b"@%d" % int(_midnight(row.since).timestamp()))]
    if row.sunset is not None:
        found.append((b"sunset", format_datetime(_midnight(row.sunset), usegmt=True).encode()))
    if row.successor is not None:
        found.append((b"link", f'<{row.successor}>; rel="successor-version"'.encode()))
    return found


def words(row: Deprecated) -> str:
    """For the document."""
    until = f" It may be gone from {row.sunset} on." if row.sunset else ""
    return f"Deprecated since {row.since}.{until}" + (f" Use {row.successor}." if row.successor else "")


def _midnight(day: datetime.date) -> datetime.datetime:
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC)


class Deprecations:
    """The layer that tells; it stands right around the routes, which say in the scope which of them it was."""

    def __init__(self, app: ASGIApp, table: Mapping[tuple[str, str], Deprecated]) -> None:
        self._app = app
        self._table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                row = self._table.get((str(scope.get("method")), str(scope.get("path_template"))))
                if row is not None:
                    message["headers"] = [*message.get("headers", []), *headers(row)]
            await send(message)

        await self._app(scope, receive, sending if self._table else send)
