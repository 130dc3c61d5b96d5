"""Which headers each answer of each route has, for the OpenAPI document."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from api.deprecation import Deprecated
from api.openapi_routes import Operation

_ID: dict[str, Any] = {"type": "string", "pattern": "^[!-~]{1,200}$"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_WORDS: dict[str, Any] = {"type": "string", "minLength": 1}


def _only(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


_MEANING: Mapping[str, tuple[str, dict[str, Any]]] = {
    "X-Request-ID": ("The caller's, if it sent a sane one, else one of ours; it stands in the log.", _ID),
    "Request-ID": ("The same, by the name that some SDKs look for.", _ID),
    "Traceparent": (
        "W3C trace context: the trace of this request, and its span there.",
        {"type": "string", "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"},
    ),
    "X-Run-ID": ("The run, or the flow, that this is about.", {"type": "string", "pattern": "^(run|flow)_[0-9a-z-]+$"}),
    "Retry-After": ("In how many seconds it is worth asking again.", {"type": "integer", "minimum": 1}),
    "X-Should-Retry": ("Whether an SDK's own retry can help.", _only("true", "false")),
    "WWW-Authenticate": ("How to say who asks.", _only("Bearer")),
    "Accept-Encoding": ("How a body may come: as it is.", _only("identity")),
    "RateLimit-Limit": ("Where requests are limited: how many may come at once.", _COUNT),
    "RateLimit-Remaining": ("How many are left now.", _COUNT),
    "RateLimit-Reset": ("In how many seconds all of them are.", _COUNT),
    "X-RateLimit-Limit": ("As RateLimit-Limit.", _COUNT),
    "X-RateLimit-Remaining": ("As RateLimit-Remaining.", _COUNT),
    "X-RateLimit-Reset": ("As RateLimit-Reset.", _COUNT),
    "Location": (
        "Where the run or the flow can be asked for.",
        {"type": "string", "pattern": "^/api/v1/(runs|flows)/"},
    ),
    "Preference-Applied": ("It was asked for by Prefer.", _only("respond-async")),
    "X-Clinvk-Model": ("The model that ran; before a run says so, the one that was asked of the CLI.", _WORDS),
    "X-Clinvk-Backend": ("The backend that the model's name came to.", _WORDS),
    "X-Clinvk-Ignored": ("Fields of the request that mean nothing here.", _WORDS),
    "X-Clinvk-Not-Enforced": ("Options that this backend could not hold.", _WORDS),
    "X-Clinvk-Estimate": ("The count is an estimate.", _only("true")),
    "Cache-Control": ("What is true now may not be in a second.", _only("no-cache", "no-store")),
    "X-Accel-Buffering": ("A proxy must not hold a stream back.", _only("no")),
    "Deprecation": ("Since when the route is on its way out (RFC 9745).", {"type": "string", "pattern": "^@[0-9]+$"}),
    "Sunset": ("From when on it may be gone (RFC 8594).", _WORDS),
    "Link": ("What to use instead.", _WORDS),
}
_RATE = tuple(f"{name}?" for name in _MEANING if "RateLimit-" in name)

# A name with `?` may be missing. Of 200:
_NATIVE = ("X-Run-ID", "X-Clinvk-Model?", "X-Clinvk-Not-Enforced?")
_COMPATIBLE = ("X-Run-ID", "X-Clinvk-Model", "X-Clinvk-Backend", "X-Clinvk-Not-Enforced?")
_ASKED = (*_COMPATIBLE, "X-Clinvk-Ignored?")
_RUN = ("X-Run-ID",)
OF_200: Mapping[str, tuple[str, ...]] = {
    "create-prompt": _NATIVE,
    "resume-session": _NATIVE,
    **dict.fromkeys(("get-run", "cancel-run", "follow-run", "follow-flow"), _RUN),
    **dict.fromkeys(("create-parallel", "create-chain", "create-compare"), _RUN),
    **dict.fromkeys(("create-chat-completion", "create-response", "create-message"), _ASKED),
    "get-response": _COMPATIBLE,
    **dict.fromkeys(("cancel-response", "delete-response"), _RUN),
    "count-tokens": ("X-Clinvk-Estimate",),
    **dict.fromkeys(("health", "health-v1", "live", "ready"), ("Cache-Control",)),
}
_LATER = ("Location", "Preference-Applied")
OF_202: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("create-prompt", "resume-session"), (*_RUN, *_LATER)),
    **dict.fromkeys(("create-parallel", "create-chain", "create-compare"), _LATER),
    "cancel-run": _RUN,
}
_NO_ROUTE_SEEN = (408, 431)  # the connection itself answers so

Kind = Literal["open", "run", "other"]


def kind_of(operation: Operation) -> Kind:
    """What decides over the headers of its refusals: a route is open, or about one run, or neither."""
    if operation.is_open:
        return "open"
    return "run" if "X-Run-ID" in OF_200.get(operation.id, ()) else "other"


def _always(kind: Kind, row: Deprecated | None, maybe: str = "") -> list[str]:
    found = ["X-Request-ID", "Request-ID", "Traceparent" + maybe]
    if kind != "open":
        found += _RATE
    if row is not None:
        found += ["Deprecation" + maybe]
        found += ["Sunset" + maybe] if row.sunset is not None else []
        found += ["Link" + maybe] if row.successor is not None else []
    return found


def of_success(operation: Operation, status: Literal[200, 202], row: Deprecated | None = None) -> dict[str, Any]:
    """`row`: where the route is deprecated."""
    found = _always(kind_of(operation), row)
    found += (OF_200 if status == 200 else OF_202).get(operation.id, ())
    if operation.streams and status == 200:
        found += [name + ("?" if operation.answer else "") for name in ("Cache-Control", "X-Accel-Buffering")]
    return _refs(found)


def of_health() -> dict[str, Any]:
    """Of a 503 that is no refusal but what was asked for."""
    return _refs([*_always("open", None), "Cache-Control"])


def of_refusal(status: int, kind: Kind, row: Deprecated | None = None) -> dict[str, Any]:
    found = [*_always(kind, row, "?" if status in _NO_ROUTE_SEEN else ""), "X-Should-Retry"]
    found += ["Retry-After"] if status in (408, 429, 503) else ["Retry-After?"] if status == 502 else []
    found += ["WWW-Authenticate"] if status == 401 else ["Accept-Encoding"] if status == 415 else []
    found += ["X-Run-ID?"] if kind == "run" and status not in (401, 415, *_NO_ROUTE_SEEN) else []
    return _refs(found)


def _refs(names: Iterable[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        bare = name.removesuffix("?")
        found[bare] = {"$ref": f"#/components/headers/{bare}" + ("-if-any" if name != bare else "")}
    return found


def components() -> dict[str, Any]:
    """All of `components.headers`: each as one that is always there, and as one that may be."""
    found = {}
    for name, (words, schema) in _MEANING.items():
        found[name] = {"description": words, "required": True, "schema": schema}
        found[f"{name}-if-any"] = {"description": words, "required": False, "schema": schema}
    return found
