"""From Anthropic's bodies to what is asked of a worker; pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from api.anthropic.wire import MessagesBody
from api.conversation import (
    Conversation,
    Talk,
    attachment,
    effort_of,
    field,
    from_url,
    schema_of,
    tool_call,
    tool_result,
    unknown_part,
)
from shared.errors import InvalidRequest, UnsupportedParameter
from shared.run import Attachment

_BLOCKS = (
    "text",
    "image",
    "document",
    "thinking",
    "redacted_thinking",
    "tool_use",
    "tool_result",
    "search_result",
    "server_tool_use",
)
_IMAGE_TOKENS = 1600


def to_talk(body: MessagesBody) -> Talk:
    """Raises: InvalidRequest, UnsupportedParameter."""
    choice = (body.tool_choice or {}).get("type", "auto")
    if choice not in ("auto", "none"):
        raise UnsupportedParameter(
            "tool_choice: the CLIs use tools of their own and cannot be made to call yours; send auto or none, or leave "
            "it out",
            field="tool_choice",
        )
    talk = Conversation()
    talk.instruct(_system(body.system))
    if not body.messages:
        raise InvalidRequest("messages must hold at least one message", field="messages")
    for index, message in enumerate(body.messages):
        where = f"messages[{index}].content"
        if isinstance(message.content, str):
            text, attachments = message.content, list[Attachment]()
        else:
            text, attachments = _blocks(message.content, where)
        if message.role == "system":
            if attachments:
                raise UnsupportedParameter(f"{attachments[0].field}: a system text is text", field=attachments[0].field)
            talk.instruct(text)
        else:
            talk.say(message.role, text, attachments)
    return talk.finish("messages")


def _system(system: str | Sequence[Mapping[str, Any]] | None) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    return "\n\n".join(field(block, "text", f"system[{index}]") for index, block in enumerate(system))


def _blocks(blocks: object, where: str) -> tuple[str, list[Attachment]]:
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise InvalidRequest(f"{where} must be text or a list of blocks", field=where)
    texts: list[str] = []
    attachments: list[Attachment] = []
    for index, block in enumerate(blocks):
        at = f"{where}[{index}]"
        text, more = _block(block, at)
        if text:
            texts.append(text)
        attachments += more
    return "\n".join(texts), attachments


def _block(block: Mapping[str, Any], at: str) -> tuple[str, list[Attachment]]:
    kind = block.get("type")
    match kind:
        case "text":
            return field(block, "text", at), []
        case "image" | "document":
            return _source(block, at)
        case "thinking" | "redacted_thinking":
            return "", []  # a model's own notes of earlier turns; it makes them anew
        case "tool_use" | "server_tool_use" | "mcp_tool_use":
            return tool_call(field(block, "name", at), block.get("input", {}), str(block.get("id") or "")), []
        case "tool_result" | "mcp_tool_result":
            inner = block.get("content")
            if inner is None or isinstance(inner, str):
                text, more = inner or "", list[Attachment]()
            else:
                text, more = _blocks(inner, f"{at}.content")
            failed = "(it failed) " if block.get("is_error") is True else ""
            return tool_result(failed + text, str(block.get("tool_use_id") or "")), more
        case "search_result":
            text, more = _blocks(block.get("content") or [], f"{at}.content")
            return f"[search result: {block.get('title', '')} {block.get('source', '')}]\n{text}", more
        case str() if kind.endswith("_tool_result"):  # of a vendor's server tool: what it said, as data
            return tool_result(
                msgspec.json.encode(block.get("content")).decode(), str(block.get("tool_use_id") or "")
            ), []
        case _:
            raise unknown_part(at, kind, _BLOCKS)


def _source(block: Mapping[str, Any], at: str) -> tuple[str, list[Attachment]]:
    source = block.get("source")
    source = source if isinstance(source, Mapping) else {}
    title = block.get("title")
    name = title if isinstance(title, str) else None
    match source.get("type"):
        case "base64":
            data, media_type = field(source, "data", f"{at}.source"), field(source, "media_type", f"{at}.source")
            return "", [attachment(at, media_type=media_type, data=data, name=name)]
        case "text":
            return f"[document {name or ''}]\n" + field(source, "data", f"{at}.source"), []
        case "content":
            inner = source.get("content")
            return (inner, []) if isinstance(inner, str) else _blocks(inner or [], f"{at}.source.content")
        case "url":
            return "", [from_url(at, field(source, "url", f"{at}.source"), name)]
        case kind:
            raise UnsupportedParameter(
                f"{at}: a source of type {kind!r} cannot be carried; send it as base64", field=at
            )


def schema(body: MessagesBody) -> dict[str, Any] | None:
    """Raises: InvalidRequest."""
    for format, where in ((body.output_config.format, "output_config.format"), (body.output_format, "output_format")):
        if format is not None:
            if format.get("type") != "json_schema":
                raise InvalidRequest(f"{where}.type must be json_schema", field=f"{where}.type")
            return schema_of(format.get("schema"), f"{where}.schema")
    return None


def effort(body: MessagesBody) -> str | None:
    return effort_of(body.output_config.effort, "output_config.effort")


def thinking_tokens(body: MessagesBody) -> int | None:
    match None if body.thinking is None else body.thinking.type:
        case "enabled":
            return None if body.thinking is None else body.thinking.budget_tokens
        case "disabled":
            return 0
        case _:
            return None


def estimate(talk: Talk) -> int:
    """About how many tokens a conversation has: four ASCII letters a token, two others, and a fixed sum an image."""
    texts = [talk.system or "", talk.prompt, *(turn.text for turn in talk.history)]
    count = 0.0
    for text in texts:
        plain = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
        count += plain / 4 + (len(text) - plain) / 2 + 3
    pictures = len(talk.attachments) + sum(len(turn.attachments) for turn in talk.history)
    return max(round(count), 1) + pictures * _IMAGE_TOKENS
