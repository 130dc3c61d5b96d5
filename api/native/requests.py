"""What the native routes read of a request besides its body."""

from collections.abc import Sequence

from api.exchange import Req, reach_of, tenant_of
from shared.errors import InvalidRequest, PermissionDenied


def position(request: Req) -> int:
    """The sequence behind which to begin. Raises: InvalidRequest."""
    header = request.headers.get("last-event-id")
    if header is None:
        return number(request, "after", 0, 0, 2**53)
    if not header.isascii() or not header.isdigit() or len(header) > 15:
        raise InvalidRequest(f"Last-Event-ID must be a sequence number, not {header[:40]!r}", field="Last-Event-ID")
    return int(header)


def whose(request: Req, *, default_all: bool = False) -> str | None:
    """The tenant that a list is asked of: `?tenant=NAME`, or `*` for all (None), which are an admin's.

    Raises: PermissionDenied."""
    given = request.query_params.get("tenant")
    if given is None:
        return reach_of(request) if default_all else tenant_of(request)
    if given != tenant_of(request) and reach_of(request) is not None:
        raise PermissionDenied("only a key with `role: admin` may ask for other tenants", details={"field": "tenant"})
    return None if given == "*" else given


def number(request: Req, name: str, default: int, low: int, high: int) -> int:
    """A whole number of the query. Raises: InvalidRequest."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 16 or not low <= int(value) <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value[:40]!r}", field=name)
    return int(value)


def yes(request: Req, name: str) -> bool:
    """A switch of the query. Raises: InvalidRequest."""
    given = request.query_params.get(name, "false")
    if given not in ("true", "false"):
        raise InvalidRequest(f"{name} must be true or false, not {given[:40]!r}", field=name)
    return given == "true"


def choice(request: Req, name: str, known: Sequence[str]) -> str | None:
    """One word of some. Raises: InvalidRequest that names them."""
    value = request.query_params.get(name)
    if value and value not in known:
        raise InvalidRequest(f"{name} must be one of {', '.join(known)}, not {value[:40]!r}", field=name)
    return value or None
