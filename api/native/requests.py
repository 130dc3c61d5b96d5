"""What the native routes read of a request besides its body."""

from api.exchange import Req
from shared.errors import InvalidRequest


def position(request: Req) -> int:
    """The sequence behind which to begin. Raises: InvalidRequest."""
    header = request.headers.get("last-event-id")
    if header is None:
        return number(request, "after", 0, 0, 2**53)
    if not header.isascii() or not header.isdigit() or len(header) > 15:
        raise InvalidRequest(f"Last-Event-ID must be a sequence number, not {header[:40]!r}", field="Last-Event-ID")
    return int(header)


def number(request: Req, name: str, default: int, low: int, high: int) -> int:
    """A whole number of the query. Raises: InvalidRequest."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 16 or not low <= int(value) <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, not {value[:40]!r}", field=name)
    return int(value)
