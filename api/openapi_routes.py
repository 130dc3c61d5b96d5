"""The routes, as the OpenAPI document tells of them: a row for each."""

from typing import Any, Literal

import msgspec

from api.openapi_schemas import COUNT
from shared.config import BACKEND_NAMES
from shared.flow import FlowStatus
from shared.run import Status

EVENTS = "Unified events, one object each: type, backend, session_id, timestamp, sequence, content. The last is done or error."
_CARRIED_OUT = (404, 409, 413, 502, 504)  # what else may become of a request that starts a run

_Kind = Literal["", "ndjson", "sse", "both"]


class Operation(msgspec.Struct, frozen=True):
    """A route. `answer` and `accepted` name the schemas of 200 and 202; `also`: statuses beside those of every route."""

    method: str
    path: str
    id: str
    summary: str
    answer: str
    also: tuple[int, ...] = ()
    body: str = ""
    streams: _Kind = ""
    accepted: str = ""
    parameters: tuple[dict[str, Any], ...] = ()
    description: str = ""
    is_open: bool = False


def _query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _header(name: str, text: str, **schema: Any) -> dict[str, Any]:
    told = {"type": "string"} | schema
    return {"name": name, "in": "header", "required": False, "description": text, "schema": told}


def _page(most: int, default: int) -> tuple[dict[str, Any], ...]:
    limit = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    offset = {"type": "integer", "minimum": 0, "maximum": 1_000_000, "default": 0}
    return _query("limit", "At most so many.", limit), _query("offset", "How many to skip.", offset)


def _one_of(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


_AFTER = (_query("after", "The sequence behind which to begin; or Last-Event-ID.", COUNT | {"maximum": 2**53}),)
_FOLLOW = (
    *_AFTER,
    _header("Last-Event-ID", "As `after`: the id of the last event that was seen.", pattern="^[0-9]{1,15}$"),
)
_KEY = (_header("Idempotency-Key", "The same request with the same key, for 24 h, is the same run."),)
_SESSIONS = (
    _query("backend", "Those of one backend.", _one_of(*BACKEND_NAMES)),
    _query("status", "Those in one state.", _one_of("active", "completed", "error", "cancelled")),
)
_IN_STATE = "Those in one state, among the newest ten thousand."
_RUN_STATUS = (_query("status", _IN_STATE, _one_of(*Status)),)
_FLOW_STATUS = (_query("status", _IN_STATE, _one_of(*FlowStatus)),)
_TENANT = (_query("tenant", "Another tenant's, or `*` for all tenants' (admin).", {"type": "string", "minLength": 1}),)
_DAY = {"type": "string", "format": "date"}
_USAGE = (
    _query("from", "The first day, UTC; 30 days before the last by default.", _DAY),
    _query("to", "The last day; today by default.", _DAY),
    _query("by", "What makes a row: of day, tenant, key, backend, model; all by default.", {"type": "string"}),
    *(_query(name, f"Of one {name} alone.", {"type": "string"}) for name in ("key", "backend", "model")),
)
_AUDIT = (
    _query("limit", "At most so many.", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}),
    _query("before", "Those older than this entry.", {"type": "string", "pattern": "^[0-9]{1,19}(-[0-9]{1,19})?$"}),
    *(
        _query(name, f"Of one {name} alone.", {"type": "string"})
        for name in ("action", "tenant", "owner", "target", "key")
    ),
)
_ERASE = (_query("erase", "Leave nothing of it: docs/api-keys.md.", {"type": "boolean", "default": False}),)
_DETACHED = (
    *_KEY,
    _header("Prefer", "Not to wait for its end; anything else is ignored (RFC 7240).", enum=["respond-async"]),
)
_RESUMED = (
    *_KEY,
    _header(
        "Last-Event-ID",
        "With `stream`: go on behind this event of an earlier stream, of the same request.",
        pattern="^run_[0-9a-z-]{1,60}:[0-9]{1,15}$",
    ),
)
_ASYNC = "JSON when all has ended; with Prefer: respond-async 202 and a Location; SSE with Accept: text/event-stream."
_PROMPT = (
    "JSON by default; NDJSON with output_format stream-json; SSE with Accept: text/event-stream; 202 with Prefer: "
    "respond-async. A run whose CLI ran and failed is 200 with exit_code and error."
)
_V1 = "/api/v1"
_OPENAI, _ANTHROPIC = "/openai/v1", "/anthropic/v1"

OPERATIONS = (
    Operation(
        "post",
        _V1 + "/prompt",
        "create-prompt",
        "Have one prompt carried out by one backend",
        "PromptAnswer",
        _CARRIED_OUT,
        "PromptBody",
        "both",
        "RunView",
        _DETACHED,
        _PROMPT,
    ),
    Operation(
        "get",
        _V1 + "/runs",
        "list-runs",
        "The caller's runs, the newest first",
        "RunList",
        parameters=(*_RUN_STATUS, *_page(1000, 100), *_TENANT),
    ),
    Operation("get", _V1 + "/runs/{run_id}", "get-run", "One run", "RunView", (404,)),
    Operation(
        "delete",
        _V1 + "/runs/{run_id}",
        "cancel-run",
        "Cancel a run, or erase it",
        "RunEnded",
        (404, 409),
        accepted="RunView",
        parameters=_ERASE,
        description="202: its worker has been ordered to end it. With erase=true it is ended, and then its prompt, answer "
        "and events are removed everywhere, with the session that it was a turn of. 409: it still ends, or it is part "
        "of a flow, which is erased as a whole.",
    ),
    Operation(
        "get",
        _V1 + "/runs/{run_id}/events",
        "follow-run",
        "Follow a run from any position, as SSE or NDJSON",
        "",
        (404, 410),
        streams="both",
        parameters=_FOLLOW,
        description=EVENTS,
    ),
    Operation("get", _V1 + "/backends", "list-backends", "The backends of the live fleet", "BackendList"),
    Operation(
        "post",
        _V1 + "/parallel",
        "create-parallel",
        "Run tasks side by side",
        "Flow",
        _CARRIED_OUT,
        "ParallelBody",
        "sse",
        "Flow",
        _DETACHED,
        _ASYNC,
    ),
    Operation(
        "post",
        _V1 + "/chain",
        "create-chain",
        "Run steps one after another",
        "Flow",
        _CARRIED_OUT,
        "ChainBody",
        "sse",
        "Flow",
        _DETACHED,
        _ASYNC,
    ),
    Operation(
        "post",
        _V1 + "/compare",
        "create-compare",
        "One prompt, several backends",
        "Flow",
        _CARRIED_OUT,
        "CompareBody",
        "sse",
        "Flow",
        _DETACHED,
        _ASYNC,
    ),
    Operation(
        "get",
        _V1 + "/flows",
        "list-flows",
        "The caller's flows, the newest first",
        "FlowList",
        parameters=(*_FLOW_STATUS, *_page(100, 20), *_TENANT),
    ),
    Operation("get", _V1 + "/flows/{flow_id}", "get-flow", "One flow, as its answer shows it", "Flow", (404,)),
    Operation(
        "delete",
        _V1 + "/flows/{flow_id}",
        "cancel-flow",
        "Cancel all of it, or erase it",
        "FlowEnded",
        (404, 409),
        accepted="Flow",
        parameters=_ERASE,
        description="202: runs of it still end. With erase=true all of it is ended, and then it is removed everywhere with "
        "all its runs. 409: it still ends.",
    ),
    Operation(
        "get",
        _V1 + "/flows/{flow_id}/events",
        "follow-flow",
        "All its runs' events, each with its lane",
        "",
        (404, 410),
        streams="both",
        parameters=_FOLLOW,
        description="{lane, run_id, event} for each event of a run.",
    ),
    Operation(
        "get",
        _V1 + "/sessions",
        "list-sessions",
        "Sessions, the last used first",
        "SessionList",
        parameters=(*_SESSIONS, *_page(10_000, 100), *_TENANT),
    ),
    Operation("get", _V1 + "/sessions/{session_id}", "get-session", "One session", "SessionView", (404,)),
    Operation(
        "delete", _V1 + "/sessions/{session_id}", "delete-session", "Delete it, also on its host", "Deleted", (404, 409)
    ),
    Operation(
        "post",
        _V1 + "/sessions/{session_id}/resume",
        "resume-session",
        "A further turn",
        "PromptAnswer",
        _CARRIED_OUT,
        "ResumeBody",
        "both",
        "RunView",
        _DETACHED,
        _PROMPT,
    ),
    Operation(
        "get",
        _V1 + "/usage",
        "read-usage",
        "Runs, tokens and cost by day, tenant, key, backend and model",
        "Usage",
        parameters=(*_USAGE, *_TENANT),
        description="Of the caller's tenant; of all for admins. Failed and cancelled runs count too. `cost_usd` is null "
        "where no CLI has reported any.",
    ),
    Operation(
        "get",
        _V1 + "/audit",
        "read-audit",
        "Who cancelled, erased, deleted, resumed, drained what (admin)",
        "AuditLog",
        parameters=_AUDIT,
        description="The newest first; `next` is the `before` of the page that follows, null at the end.",
    ),
    Operation("get", _V1 + "/workers", "list-workers", "The live fleet (admin)", "WorkerList"),
    Operation(
        "post", _V1 + "/workers/{host}/drain", "drain-host", "Take a host out of service (admin)", "Draining", (404,)
    ),
    Operation("post", _V1 + "/workers/{host}/undrain", "undrain-host", "Put it back (admin)", "Draining", (404,)),
    Operation(
        "post",
        _OPENAI + "/chat/completions",
        "create-chat-completion",
        "Create chat completion",
        "ChatCompletion",
        (*_CARRIED_OUT, 410),
        "ChatBody",
        "sse",
        parameters=_RESUMED,
    ),
    Operation("get", _OPENAI + "/models", "list-models", "Models that some live worker can run", "ModelList"),
    Operation("get", _OPENAI + "/models/{name}", "get-model", "One model", "Model", (404,)),
    Operation(
        "post",
        _OPENAI + "/responses",
        "create-response",
        "Create a response",
        "Response",
        (*_CARRIED_OUT, 410),
        "ResponsesBody",
        "sse",
        parameters=_KEY,
    ),
    Operation(
        "get",
        _OPENAI + "/responses/{response_id}",
        "get-response",
        "Read or follow a response",
        "Response",
        (404, 410),
        streams="sse",
        parameters=(
            _query("stream", "Follow it.", {"type": "boolean"}),
            _query("starting_after", "The sequence_number behind which to begin.", COUNT),
        ),
    ),
    Operation(
        "delete", _OPENAI + "/responses/{response_id}", "delete-response", "Delete a response", "Deleted", (404, 409)
    ),
    Operation(
        "post", _OPENAI + "/responses/{response_id}/cancel", "cancel-response", "Cancel it", "Response", (404, 409)
    ),
    Operation(
        "post",
        _ANTHROPIC + "/messages",
        "create-message",
        "Create a message",
        "Message",
        (*_CARRIED_OUT, 410),
        "MessagesBody",
        "sse",
        parameters=_RESUMED,
    ),
    Operation(
        "post",
        _ANTHROPIC + "/messages/count_tokens",
        "count-tokens",
        "Estimate tokens",
        "TokenCount",
        (404, 413),
        "MessagesBody",
    ),
    Operation(
        "get", _ANTHROPIC + "/models", "list-anthropic-models", "Models that some live worker can run", "ModelList"
    ),
    Operation("get", _ANTHROPIC + "/models/{name}", "get-anthropic-model", "One model", "Model", (404,)),
    Operation("get", "/health", "health", "Whether runs can be taken", "Health", is_open=True),
    Operation("get", _V1 + "/health", "health-v1", "Whether runs can be taken", "Health", is_open=True),
    Operation(
        "get", "/livez", "live", "Whether this process turns; restart it where this fails", "Probe", is_open=True
    ),
    Operation("get", "/readyz", "ready", "Whether requests should come here", "Probe", is_open=True),
)
