"""From what a CLI says of its failure to a cause that a caller can act on."""

import re

from shared.run import Failure

_STATUS = re.compile(r"(?:status:? ?|code[\"']?: ?|API Error: )(\d{3})\b", re.IGNORECASE)

_WORDS: tuple[tuple[str, int], ...] = (
    ("not logged in", 401),
    ("please run /login", 401),
    ("invalid api key", 401),
    ("invalid x-api-key", 401),
    ("missing environment variable", 401),
    ("invalid auth method", 401),
    ("authentication", 401),
    ("unauthenticated", 401),
    ("unauthorized", 401),
    ("rate limit", 429),
    ("too many requests", 429),
    ("quota", 429),
    ("usage limit", 429),
    ("resource_exhausted", 429),
    ("does not exist or you do not have access", 404),
    ("issue with the selected model", 404),
    ("is not found for api version", 404),
    ("unrecognized_model", 404),
    ("overloaded", 529),
    ("high demand", 529),
)

_REFUSED = (
    "connection refused",
    "econnrefused",
    "connection failed",
    "connection error",
    "fetch failed",
    "unable to connect",
)
_CUT = ("stream disconnected", "terminated", "socket hang up", "econnreset", "connection closed", "stream ended")


def classify(cli: str, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> Failure:
    """`message`: the CLI's own words; `status`: the vendor's HTTP status where the CLI tells it."""
    low = message.lower()
    if status is None and (found := _STATUS.search(message)):
        status = int(found.group(1))
    if status is None:
        status = next((code for word, code in _WORDS if word in low), None)
    said = f"{cli}: {message.strip()[:2000] or 'it gave no reason'}"
    if status in (401, 403):
        advice = f" — log {cli} in on that host, or set its API key there"
        return Failure("backend_login", said + advice, "login")
    if status == 429:
        return Failure("backend_limited", said, "rate_limited", retry_after_s)
    if status == 404:
        return Failure("model_not_found", said, "unknown_model")
    if status in (503, 529):
        return Failure("backend_unavailable", said, "overloaded", retry_after_s)
    if any(word in low for word in _REFUSED):
        return Failure("backend_unavailable", said, "refused_connection")
    if any(word in low for word in _CUT):
        return Failure("backend_error", said, "stream_cut")
    if status == 400:
        return Failure("backend_error", said, "bad_request")
    if status is not None and status >= 500:
        return Failure("backend_error", said, "vendor_error")
    return Failure("backend_error", said, "failed")


def ended(cli: str, code: int, stderr: str) -> Failure:
    """For a CLI that ended without a final event."""
    tail = stderr.strip()[-2000:]
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        return Failure("backend_error", f"{cli} was ended by signal {number}. {tail}".strip(), "crashed")
    if "input exceeds the maximum length" in tail.lower():
        return Failure("invalid_request", f"{cli}: {tail}", "prompt_too_large")
    if code == 0:
        return Failure("backend_error", f"{cli} ended without its final event. {tail}".strip(), "no_final_event")
    low = tail.lower()
    if "no conversation found" in low or "no rollout found" in low or "no previous sessions" in low:
        return Failure("not_found", f"{cli}: {tail}", "unknown_session")
    failure = classify(cli, tail or f"exit code {code}")
    if failure.cause == "failed":
        return Failure("backend_error", f"{cli} ended with exit code {code}: {tail or 'it gave no reason'}", "crashed")
    return failure
