"""What a caller is told of a run and what the model is sent for it, without what differs between any two runs."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx

from tests.fakes.mockllm import MockLLM, Request
from tests.system import clis
from tests.system.service import Service, ended, follow, until, whole
from tests.system.specs import put_in_line

_PIECES = ("message", "thinking")  # in how many they come is chance
_OF_ITSELF = ("duration", "duration_ms", "run_id", "session_id", "id", "timestamp")


class Side(NamedTuple):
    service: Service
    mock: MockLLM


class Told(NamedTuple):
    run_id: str
    way: str  # `warm`, or why not
    events: list[tuple[str, Any]]  # in their order: type and content
    outcome: dict[str, Any]
    asked: list[Request]


def told(side: Side, backend: str, text: str, *, then: Callable[[str, int], None] | None = None, **fields: Any) -> Told:
    """Of a run with these fields of its spec. `then(run id, requests so far)`: done while it goes on."""
    service, mock = side
    base = service.apis[0][1]
    before = len(mock.requests)
    if "session_id" not in fields:
        fields.setdefault("ephemeral", True)
    run_id = put_in_line(service, backend, text, **fields)
    if then is not None:
        then(run_id, before)
    result = ended(base, run_id, 90)["result"]
    events = follow(base, run_id).rest(60)
    whole(events)
    outcome = {name: value for name, value in result.items() if name not in _OF_ITSELF}
    said = json.loads(plain(json.dumps([joined(events), outcome]), side))
    return Told(
        run_id, clis.ways(service)[run_id], [(kind, at) for kind, at in said[0]], said[1], mock.requests[before:]
    )


def joined(events: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Types and contents, pieces of one text as one, tools by their number."""
    found: list[tuple[str, Any]] = []
    tools: dict[str, str] = {}
    for event in events:
        kind, content = event["type"], {name: v for name, v in event["content"].items() if name not in _OF_ITSELF}
        if "id" in event["content"] and kind.startswith("tool_"):
            content["id"] = tools.setdefault(event["content"]["id"], f"tool {len(tools)}")
        if kind in _PIECES and found and found[-1][0] == kind:
            found[-1][1]["text"] += content["text"]
        else:
            found.append((kind, content))
    return found


def plain(text: str, side: Side) -> str:
    """Without ids, directories, ports and times."""
    folder = str(side.service.folder)
    text = text.replace(side.mock.url, "MOCK").replace(folder, "FOLDER")
    text = text.replace(re.sub(r"[^A-Za-z0-9]", "-", folder), "FOLDER")
    text = re.sub(r"\b(runs|sessions)([/-])(warm|run|ses)[_-][0-9a-v]{24}", "PLACE", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UUID", text)
    text = re.sub(r'device_id\\":\\"[0-9a-f]{64}', "DEVICE", text)
    text = re.sub(r'"retry_after_s": [\d.]+', '"retry_after_s": 1', text)
    return re.sub(r"\b[\d.]+ (m?s)\b", r"N \1", text)


def cancel(side: Side) -> Callable[[str, int], None]:
    """As soon as the model was asked."""

    def now(run_id: str, before: int) -> None:
        until(lambda: len(side.mock.requests) > before, 60)
        httpx.delete(f"{side.service.apis[0][1]}/api/v1/runs/{run_id}", timeout=30)

    return now
