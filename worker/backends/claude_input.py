"""What Claude Code 2.1.329 is given to read: the lines of its stdin, and a session file for turns that it never took part in."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

from shared.run import Attachment, RunSpec
from worker.backends.turns import NOTHING, content, document, is_text

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")


def session_id(spec: RunSpec) -> str:
    """Of the session that a run with history seems to go on with; the CLI wants a UUID."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, spec.id))


def stdin(spec: RunSpec, system_prompt: str | None) -> bytes:
    """`client_composed` makes `@file` and `/command` plain text (CLI 2.1.329; nothing else does for both)."""
    request: dict[str, Any] = {"subtype": "initialize", "hooks": None}
    if system_prompt is not None and spec.system_prompt_mode == "append":
        request["appendSystemPrompt"] = system_prompt
    elif system_prompt is not None:
        request["systemPrompt"] = [system_prompt]
    if spec.schema is not None:
        request["jsonSchema"] = spec.schema
    message = {
        "type": "user",
        "message": {"role": "user", "content": _blocks(spec.prompt, spec.attachments)},
        "parent_tool_use_id": None,
        "session_id": "",
        "client_composed": True,
    }
    lines = ({"type": "control_request", "request_id": "init", "request": request}, message)
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _blocks(words: str, attachments: Sequence[Attachment]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for found in attachments:
        kind = "image" if found.media_type.lower() in IMAGES else "document"
        if is_text(found):
            source = {"type": "text", "media_type": "text/plain", "data": document(found)}
        else:
            content(found)  # refuses what is no base64
            source = {"type": "base64", "media_type": found.media_type.lower(), "data": found.data}
        named = {"title": found.name} if kind == "document" and found.name else {}
        blocks.append({"type": kind, "source": source, **named})
    if words.strip() or not blocks:
        blocks.append({"type": "text", "text": words if words.strip() else NOTHING})
    return blocks


def session_file(spec: RunSpec, cwd: str, model: str | None) -> bytes:
    """The history as a session file of the CLI. It takes a path outside its own directory (2.1.329)."""
    id = session_id(spec)
    lines: list[dict[str, Any]] = []
    for index, turn in enumerate(spec.history):
        message: dict[str, Any] = {"role": turn.role, "content": _blocks(turn.text, turn.attachments)}
        if turn.role == "assistant":
            message |= {"id": f"msg_{index}", "type": "message", "model": model or "claude"}
            message |= {"stop_reason": "end_turn", "stop_sequence": None}
            message["usage"] = {"input_tokens": 0, "output_tokens": 0}  # so it never finds the context full
        line = {"parentUuid": lines[-1]["uuid"] if lines else None, "isSidechain": False, "userType": "external"}
        line |= {"cwd": cwd, "sessionId": id, "version": "2.1.329", "type": turn.role, "message": message}
        line |= {"uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{id}/{index}"))}
        lines.append(line | {"timestamp": "2026-01-01T00:00:00.000Z"})
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
