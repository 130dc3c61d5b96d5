"""Which routes are on their way out, since when and until when; told in every answer of theirs and in the OpenAPI document."""

import datetime
import itertools
import re
from collections.abc import Iterable, Mapping
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
    """The layer that tells, around whatever may answer in a route's place: who brings no key, or asks too often, is to
    learn of it too. A route says in the scope that it was it; for a request that came to none, `paths` are looked
    through, which are those of all routes."""

    def __init__(self, app: ASGIApp, table: Mapping[tuple[str, str], Deprecated], paths: Iterable[str] = ()) -> None:
        self._app = app
        self._table = table
        # A fixed path goes before one with a parameter, as it does where requests find their routes.
        self._patterns = [_pattern(path) for path in sorted(paths, key=lambda path: path.count("{"))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                template = scope.get("path_template") or self._template(scope["path"])
                row = self._table.get((str(scope.get("method")), template))
                if row is not None:
                    message["headers"] = [*message.get("headers", []), *headers(row)]
            await send(message)

        await self._app(scope, receive, sending if self._table else send)

    def _template(self, path: str) -> str:
        return next((template for template, pattern in self._patterns if pattern.fullmatch(path)), "")


def _pattern(path: str) -> tuple[str, re.Pattern[str]]:
    """Of `/things/{id:str}`: `/things/{id}`, as the table has it, and what fits it."""
    fixed = map(re.escape, re.split(r"{[^}]*}", path))
    kinds = (".+" if kind == "path" else "[^/]+" for kind in re.findall(r"{[^:}]*:?([^}]*)}", path))
    pattern = "".join(part for pair in itertools.zip_longest(fixed, kinds, fillvalue="") for part in pair)
    return re.sub(r":[^}]*}", "}", path), re.compile(pattern)
