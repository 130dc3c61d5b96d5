"""From an exception or a failure to an HTTP answer: one table, one body that serves every reader.

RFC 9457 members and an `error` object in the words of the dialect that was asked; the dialect is told by the path.
"""

import http
import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from shared.errors import ClinvkError, TryLater
from shared.run import Failure

Dialect = Literal["native", "openai", "anthropic"]

_LONGEST_RETRY_S = 120
_TYPE_URI = "https://api.clinvk.dev/errors/"


class Row(msgspec.Struct, frozen=True):
    """What a code is in each dialect. `retry`: whether an SDK's own retry can help."""

    status: int
    openai: str
    anthropic: str
    retry: bool = False


_INVALID = Row(400, "invalid_request_error", "invalid_request_error")
_MISSING = Row(404, "invalid_request_error", "not_found_error")
_CLI = Row(502, "server_error", "api_error")
_AWAY = Row(503, "server_error", "overloaded_error", retry=True)
_LIMIT = Row(429, "rate_limit_error", "rate_limit_error", retry=True)

TABLE: Mapping[str, Row] = {
    "invalid_request": _INVALID,
    "backend_not_found": _INVALID,
    "unsupported_parameter": _INVALID,
    "not_enforceable": _INVALID,
    "authentication_error": Row(401, "authentication_error", "authentication_error"),
    "permission_denied": Row(403, "permission_denied", "permission_error"),
    "not_found": _MISSING,
    "model_not_found": _MISSING,
    "method_not_allowed": Row(405, "invalid_request_error", "invalid_request_error"),
    "request_timeout": Row(408, "invalid_request_error", "timeout_error", retry=True),
    "headers_too_large": Row(431, "invalid_request_error", "invalid_request_error"),
    "conflict": Row(409, "invalid_request_error", "invalid_request_error"),
    "cancelled": Row(409, "invalid_request_error", "invalid_request_error"),
    "log_expired": Row(410, "invalid_request_error", "not_found_error"),
    "unsupported_encoding": Row(415, "invalid_request_error", "invalid_request_error"),
    "request_too_large": Row(413, "invalid_request_error", "request_too_large"),
    "rate_limit_exceeded": _LIMIT,
    "queue_full": _LIMIT,
    "backend_limited": _LIMIT,
    "internal_error": Row(500, "server_error", "api_error"),
    "backend_error": _CLI,
    "backend_login": _CLI,
    "worker_lost": _CLI,
    "worker_shutdown": Row(502, "server_error", "api_error", retry=True),
    "output_too_large": _CLI,
    "backend_unavailable": _AWAY,
    "session_host_unavailable": _AWAY,
    "store_unavailable": _AWAY,
    "overloaded": _AWAY,
    "timeout": Row(504, "server_error", "timeout_error"),
}


_MOST_CHARS = 8_000


class RunFailed(Exception):
    """A run's failure that is to be the request's answer."""

    def __init__(self, failure: Failure, run_id: str) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.run_id = run_id


class HttpError(msgspec.Struct, frozen=True):
    """An error answer, ready to be sent."""

    status: int
    headers: dict[str, str]
    body: bytes


def dialect_of(path: str) -> Dialect:
    if path.startswith("/openai/"):
        return "openai"
    return "anthropic" if path.startswith("/anthropic/") else "native"


def render(
    code: str,
    message: str,
    *,
    dialect: Dialect,
    request_id: str,
    details: Mapping[str, Any] | None = None,
    retry_after_s: float | None = None,
    status: int | None = None,
) -> HttpError:
    """The answer for a code; one that is not in the table is an internal error."""
    row = TABLE.get(code, TABLE["internal_error"])
    message = _cut(message)
    details = {name: _cut(value) if isinstance(value, str) else value for name, value in (details or {}).items()}
    at = status or row.status
    body: dict[str, Any] = {"title": code.replace("_", " ").capitalize(), "status": at, "detail": message}
    if dialect == "anthropic":
        body |= {"type": "error", "error": {"type": row.anthropic, "message": message}}
    elif dialect == "openai":
        error = {"message": message, "type": row.openai, "param": details.get("field"), "code": code}
        body |= {"type": _TYPE_URI + code.replace("_", "-"), "error": error}
    else:
        error = {"code": code, "message": message, "details": details}
        body |= {"type": _TYPE_URI + code.replace("_", "-"), "error": error}
    body["request_id"] = request_id
    if retry_after_s is None and row.retry:
        retry_after_s = 5
    # Beyond this SDKs give up or, worse, come back sooner.
    again = row.retry and (retry_after_s or 0) <= _LONGEST_RETRY_S
    headers = {"content-type": "application/problem+json", "x-should-retry": "true" if again else "false"}
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    return HttpError(at, headers, msgspec.json.encode(body))


def _cut(words: str) -> str:
    """No more of a caller's own words than a person reads."""
    return words if len(words) <= _MOST_CHARS else words[:_MOST_CHARS] + f"... ({len(words)} characters)"


def of_exception(error: Exception, *, dialect: Dialect, request_id: str) -> HttpError:
    if isinstance(error, RunFailed):
        return of_failure(error.failure, dialect=dialect, request_id=request_id, run_id=error.run_id)
    if isinstance(error, ClinvkError):
        return render(
            error.code,
            error.message,
            dialect=dialect,
            request_id=request_id,
            details=error.details,
            retry_after_s=error.retry_after_s if isinstance(error, TryLater) else None,
        )
    message = "the service failed; its log has the reason under this request id"
    return render("internal_error", message, dialect=dialect, request_id=request_id)


def of_failure(failure: Failure, *, dialect: Dialect, request_id: str, run_id: str) -> HttpError:
    return render(
        failure.code,
        failure.message,
        dialect=dialect,
        request_id=request_id,
        details={"run_id": run_id, "cause": failure.cause},
        retry_after_s=failure.retry_after_s,
    )


def of_status(status: int, message: str, *, dialect: Dialect, request_id: str) -> HttpError:
    """For the framework's own refusals."""
    codes = {404: "not_found", 405: "method_not_allowed", 401: "authentication_error", 413: "request_too_large"}
    codes |= {408: "request_timeout", 431: "headers_too_large", 503: "overloaded"}
    code = codes.get(status, "invalid_request" if 400 <= status < 500 else "internal_error")
    if code == "internal_error":
        message = http.HTTPStatus(status).phrase
    return render(code, message, dialect=dialect, request_id=request_id, status=status)
