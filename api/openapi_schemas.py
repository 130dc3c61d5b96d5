"""What the answers look like, for the OpenAPI document: the bodies that are types, and those that are made by hand."""

from typing import Any

import msgspec

from api import bounds
from api.anthropic.wire import MessagesBody
from api.native import wire
from api.openai.wire import ChatBody, ResponsesBody
from shared.config import BACKEND_NAMES

_TYPES = (
    wire.ParallelBody,
    wire.ChainBody,
    wire.CompareBody,
    wire.ResumeBody,
    ChatBody,
    ResponsesBody,
    MessagesBody,
    wire.PromptBody,
    wire.StepBody,
    wire.PromptAnswer,
    wire.LaneResult,
    wire.SessionView,
    wire.RunView,
    wire.RunList,
    wire.Problem,
)

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES_NO: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}
EVENT_TYPES = ("init", "message", "thinking", "tool_use", "tool_result", "progress", "token_usage", "error", "done")


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _object(_about: str, _optional: Schema | None = None, **required: Schema) -> Schema:
    properties = required | (_optional or {})
    return {"type": "object", "description": _about, "required": sorted(required), "properties": properties}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_PAGE = {"total": COUNT, "limit": COUNT, "offset": COUNT}
_MODEL = _object("A backend, in the dialect's own shape.", id=TEXT)
_STATUSES = ("waiting", "queued", "running", "succeeded", "failed", "cancelled")

_MADE: dict[str, Schema] = {
    "Event": _object(
        "A unified event. The last of a run is `done` or `error`.",
        type=_one_of(*EVENT_TYPES),
        backend=TEXT,
        session_id=TEXT,
        timestamp=TEXT,
        sequence=COUNT,
        content=ANYTHING,
    ),
    "ServerSentEvent": _object("One event of the stream.", {"id": TEXT, "event": TEXT, "retry": COUNT}, data=TEXT),
    "Flow": _object(
        "A flow. `parallel` has total_tasks, completed, failed, cancelled; `chain` total_steps, completed_steps, "
        "failed_step; `compare` prompt, backends.",
        {
            **dict.fromkeys(("total_tasks", "completed", "failed", "cancelled"), COUNT),
            **dict.fromkeys(("total_steps", "completed_steps", "failed_step"), COUNT),
            "prompt": TEXT,
            "backends": _list({}),
        },
        flow_id=TEXT,
        kind=_one_of("parallel", "chain", "compare"),
        status=_one_of("running", "succeeded", "failed", "cancelled"),
        results=_list(ref("LaneResult")),
        total_duration_ms=COUNT,
    ),
    "FlowList": _object(
        "A page.",
        flows=_list(
            _object(
                "A flow in short.", flow_id=TEXT, kind=TEXT, status=TEXT, lanes=COUNT, ended=COUNT, created_at=NUMBER
            )
        ),
        **_PAGE,
    ),
    "SessionList": _object("A page.", sessions=_list(ref("SessionView")), **_PAGE),
    "Erased": _object("Nothing is left of it.", id=TEXT, erased=YES_NO),
    "RunEnded": {"anyOf": [ref("RunView"), ref("Erased")]},
    "FlowEnded": {"anyOf": [ref("Flow"), ref("Erased")]},
    "Deleted": _object("It is gone.", id=TEXT, deleted=YES_NO),
    "BackendList": _object(
        "By name.",
        backends=_list(_object("A backend of the live fleet.", name=TEXT, available=YES_NO, hosts=_list(ANYTHING))),
    ),
    "WorkerList": _object(
        "The live fleet.",
        workers=_list(
            _object(
                "An instance.",
                id=TEXT,
                host=TEXT,
                slots=COUNT,
                running=COUNT,
                draining=YES_NO,
                backends=_list(ANYTHING),
            )
        ),
        drained=_list(TEXT),
    ),
    "Used": _object(
        "What runs have used together; with those of day, tenant, key, backend, model that were asked for.",
        dict.fromkeys(("day", "tenant", "key", "backend", "model"), TEXT),
        runs=_object("How they ended.", total=COUNT, succeeded=COUNT, failed=COUNT, cancelled=COUNT),
        token_usage=_object(
            "As the CLIs reported.",
            **dict.fromkeys(("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"), COUNT),
        ),
        cost_usd=_or_null(NUMBER),
        duration_ms=COUNT,
    ),
    "Usage": _object(
        "`from` and `to` are days, UTC.",
        by=_list(_one_of("day", "tenant", "key", "backend", "model")),
        usage=_list(ref("Used")),
        total=ref("Used"),
        **{"from": TEXT, "to": TEXT},
    ),
    "AuditLog": _object(
        "A page, the newest first.",
        entries=_list(
            _object(
                "`tenant`, `key` and `address` did `action` to `target`, which is `owner`'s.",
                **dict.fromkeys(("id", "at", "action", "target", "owner", "tenant", "key"), TEXT),
                **dict.fromkeys(("address", "request_id", "result"), TEXT),
            )
        ),
        next=_or_null(TEXT),
    ),
    "Draining": _object(
        "What the host was told; `pending`: instances of it that have not taken note yet.",
        {"pending": _list(TEXT)},
        host=TEXT,
        draining=YES_NO,
    ),
    "Health": _object(
        "`ok`: runs can be taken; `degraded`: not all is well; `unhealthy`: they cannot.",
        status=_one_of("ok", "degraded", "unhealthy"),
        version=TEXT,
        uptime=TEXT,
        backends=_list(_object("A backend.", name=TEXT, available=YES_NO)),
    ),
    "Probe": _object("For load balancers.", status=_one_of("alive", "ready", "degraded", "unready")),
    "ModelList": _object("What some live worker can run.", data=_list(_MODEL)),
    "Model": _MODEL,
    "ChatCompletion": _object(
        "OpenAI's `chat.completion`.",
        id=TEXT,
        object=TEXT,
        created=COUNT,
        model=TEXT,
        choices=_list(ANYTHING),
        usage={},
    ),
    "Response": _object(
        "OpenAI's `response`.",
        id=TEXT,
        object=_one_of("response"),
        created_at=COUNT,
        status=_one_of("queued", "in_progress", "completed", "failed", "cancelled", "incomplete"),
        model=TEXT,
        output=_list(ANYTHING),
        error=_or_null(ANYTHING),
        usage=_or_null(ANYTHING),
    ),
    "Message": _object(
        "Anthropic's `message`.",
        id=TEXT,
        type=_one_of("message"),
        role=_one_of("assistant"),
        model=TEXT,
        content=_list(ANYTHING),
        stop_reason=_or_null(TEXT),
        usage=ANYTHING,
    ),
    "TokenCount": _object("An estimate.", input_tokens=COUNT),
}


def schemas() -> dict[str, Schema]:
    """All of `components.schemas`."""
    _, found = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    found |= _MADE
    backend = {"type": "string", "enum": list(BACKEND_NAMES)}
    for name in ("PromptBody", "StepBody"):
        found[name]["properties"]["backend"] = backend
    for name in ("PromptBody", "StepBody", "ResumeBody", "CompareBody"):
        found[name]["properties"]["prompt"] = TEXT | {"minLength": 1}
    for name in ("PromptBody", "StepBody", "ResumeBody", "CompareBody", "ParallelBody", "ChainBody"):
        found[name]["additionalProperties"] = False  # a mistyped field must not run in the wrong place
    found["ParallelBody"]["properties"]["tasks"] = _list(ref("PromptBody")) | {"minItems": 1, "maxItems": 1000}
    found["ChainBody"]["properties"]["steps"] = _list(ref("StepBody")) | {"minItems": 1, "maxItems": 1000}
    parts = f"At most {bounds.MOST_PARTS:,} entries and content parts in all."
    for name, field in (("ChatBody", "messages"), ("MessagesBody", "messages"), ("ResponsesBody", "input")):
        found[name]["properties"][field] |= {"description": parts}
    for name in ("ChatBody", "MessagesBody"):
        found[name]["properties"]["messages"] |= {"maxItems": bounds.MOST_PARTS}
    for name in ("PromptBody", "StepBody", "ResumeBody", "ChatBody", "MessagesBody", "ResponsesBody"):
        found[name]["properties"]["metadata"] |= {"description": f"At most {bounds.METADATA_BYTES:,} bytes as JSON."}
    return found
