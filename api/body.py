"""From a request's bytes to a typed body, with errors that name the field."""

import itertools
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from litestar import Request

from api import bounds
from shared.errors import InvalidRequest

_MAX_DEPTH = 64
_LOOKED_AT_BYTES = 1 << 20  # of a body that is no JSON, for why it is not: the loop stands still meanwhile
_MOST_TOLD = 200
_SANE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}").fullmatch

# What is escaped itself is no escape: before it stands an even number of backslashes.
_LONE = re.compile(
    rb"(?<!\\)(?:\\\\)*"
    rb"(?P<half>\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)

T = TypeVar("T")


async def read(request: Request[Any, Any, Any]) -> bytes:
    """The whole of it, for once: the request does not keep it, as it would what `request.body()` returns."""
    return b"".join([part async for part in request.stream()])


def decode(body: bytes) -> dict[str, Any]:
    """Raises: InvalidRequest for what is no JSON object, too deep a one, or one of too many values."""
    try:
        bounds.of_values(body)
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {_halved(body) or error}") from error
    if not isinstance(data, dict):
        raise InvalidRequest("the body must be a JSON object")
    if _deeper_than(data, _MAX_DEPTH):
        raise InvalidRequest(f"the body is nested deeper than {_MAX_DEPTH} levels")
    return data


def _halved(body: bytes) -> str | None:
    """The parser's own words for half of a surrogate pair are of an input that has been truncated."""
    found = _LONE.search(body, 0, _LOOKED_AT_BYTES)
    if found is None:
        return None
    half = found["half"].decode()
    return (
        f"{half} at byte {found.start('half')} is half of a surrogate pair, which is no character; both halves stand "
        "together, as in \\ud83d\\ude00"
    )


def present(data: dict[str, Any]) -> dict[str, Any]:
    """Without what is null, which means absent."""
    return {name: value for name, value in data.items() if value is not None}


def convert(data: dict[str, Any], kind: type[T], where: str = "") -> T:
    """Raises: InvalidRequest that says what, where and what would be right."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").removeprefix(".") or None
        if "missing required field" in what:
            missing = what.rpartition("field `")[2].rstrip("`")
            field = missing if field is None else f"{field}.{missing}"
        if where:
            field = where + (f".{field}" if field and not field.startswith("[") else field or "")
        raise InvalidRequest(f"{field}: {what}" if field else what, field=field, issue=what) from error


def ignored(data: Iterable[str], heeded: Iterable[str]) -> list[str]:
    """The fields of a request that have no effect here, for `X-Clinvk-Ignored`; of very many the first ones."""
    known = set(heeded)
    found = (name for name in data if name not in known and _SANE_NAME(name))
    return sorted(itertools.islice(found, _MOST_TOLD))


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            below
            for item in layer
            for below in (item.values() if type(item) is dict else item)
            if type(below) is dict or type(below) is list
        ]
        if not layer:
            return False
    return True
