"""From OpenAI's bodies to what is asked of a worker; pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.conversation import (
    Conversation,
    Talk,
    effort_of,
    field,
    from_url,
    schema_of,
    tool_call,
    tool_result,
    unknown_part,
)
from api.openai.wire import ChatBody, ChatMessage, ResponsesBody
from shared.errors import InvalidRequest, UnsupportedParameter
from shared.run import Attachment, Turn

_CHAT_PARTS = ("text", "image_url", "file", "refusal")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_INPUT_PARTS = ("input_text", "output_text", "input_image", "input_file", "refusal")


def chat_talk(body: ChatBody) -> Talk:
    """Raises: InvalidRequest, UnsupportedParameter."""
    forced(body.tool_choice, "tool_choice")
    forced(body.function_call, "function_call")
    talk = Conversation()
    if not body.messages:
        raise InvalidRequest("messages must hold at least one message", field="messages")
    for index, message in enumerate(body.messages):
        _add(talk, message, f"messages[{index}]")
    return talk.finish("messages")


def _add(talk: Conversation, message: ChatMessage, where: str) -> None:
    text, attachments = _content(message.content, f"{where}.content")
    match message.role:
        case "system" | "developer":
            if attachments:
                raise UnsupportedParameter(
                    f"{attachments[0].field}: a system message is text", field=attachments[0].field
                )
            talk.instruct(text)
        case "user":
            talk.say("user", f"{message.name}: {text}" if message.name else text, attachments)
        case "assistant":
            said = [text or message.refusal or ""]
            calls = [*message.tool_calls]
            if message.function_call is not None:
                calls.append({"function": message.function_call})
            for number, call in enumerate(calls):
                said.append(_call(call, f"{where}.tool_calls[{number}]"))
            talk.say("assistant", "\n".join(part for part in said if part), attachments)
        case "tool" | "function":
            talk.say("user", tool_result(text, message.tool_call_id or message.name), attachments)


def _call(call: Mapping[str, Any], where: str) -> str:
    for kind, given in (("function", "arguments"), ("custom", "input")):
        if isinstance(inner := call.get(kind), Mapping):
            return tool_call(field(inner, "name", f"{where}.{kind}"), inner.get(given, ""), str(call.get("id") or ""))
    raise InvalidRequest(f"{where} must hold a function", field=where)


def _content(content: str | Sequence[Mapping[str, Any]] | None, where: str) -> tuple[str, list[Attachment]]:
    if content is None or isinstance(content, str):
        return content or "", []
    texts: list[str] = []
    attachments: list[Attachment] = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        match part.get("type"):
            case "text" | "refusal" as kind:
                texts.append(field(part, kind, at))
            case "image_url":
                image = part.get("image_url")
                url = (
                    image
                    if isinstance(image, str)
                    else field(image if isinstance(image, Mapping) else {}, "url", f"{at}.image_url")
                )
                attachments.append(from_url(at, url))
            case "file":
                attachments.append(_file(part.get("file"), at))
            case kind:
                raise unknown_part(at, kind, _CHAT_PARTS)
    return "\n".join(texts), attachments


def _file(given: object, at: str) -> Attachment:
    file = given if isinstance(given, Mapping) else {}
    data, name = file.get("file_data"), file.get("filename")
    if not isinstance(data, str):
        raise UnsupportedParameter(f"{at}: a file must bring its `file_data`; nothing is stored here", field=at)
    url = data if data.startswith("data:") else f"data:application/pdf;base64,{data}"
    return from_url(at, url, name if isinstance(name, str) else None)


def forced(choice: object, name: str) -> None:
    """Client-side tools may be offered, which changes nothing; they cannot be demanded. Raises: UnsupportedParameter."""
    if choice in (None, "auto", "none") or (
        isinstance(choice, Mapping) and choice.get("type") == "allowed_tools" and choice.get("mode") != "required"
    ):
        return
    raise UnsupportedParameter(
        f"{name}: the CLIs use tools of their own and cannot be made to call yours; send 'auto' or 'none', or leave it out",
        field=name,
    )


def chat_schema(format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The schema that `response_format` asks for. Raises: InvalidRequest."""
    return (
        None
        if format is None
        else _schema(format, format.get("json_schema"), "response_format", "response_format.json_schema")
    )


def responses_schema(format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """As `chat_schema`, of `text.format`."""
    return None if format is None else _schema(format, format, "text.format", "text.format")


def _schema(format: Mapping[str, Any], holder: object, name: str, where: str) -> dict[str, Any] | None:
    match format.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            if not isinstance(holder, Mapping):
                raise InvalidRequest(f"{where} is missing", field=where)
            return schema_of(holder.get("schema"), f"{where}.schema")
        case kind:
            raise InvalidRequest(
                f"{name}.type must be text, json_object or json_schema, not {kind!r}", field=f"{name}.type"
            )


def responses_talk(body: ResponsesBody, before: Sequence[Turn], kept: str = "") -> tuple[Talk, str]:
    """`before` are the turns of the response that this one goes on with, `kept` the system texts among their items;
    the second of the result are these and this one's own. Instructions are not kept, as OpenAI has it.

    Raises: InvalidRequest, UnsupportedParameter."""
    forced(body.tool_choice, "tool_choice")
    if body.conversation is not None:
        raise UnsupportedParameter(
            "conversation: nothing is stored here but responses; use previous_response_id", field="conversation"
        )
    talk = Conversation(before)
    if body.instructions is not None:
        talk.instruct(body.instructions)
    items = Conversation()
    items.instruct(kept)
    talk.instruct(kept)
    if isinstance(body.input, str):
        talk.say("user", body.input)
    else:
        for index, item in enumerate(body.input):
            _add_item(talk, items, item, f"input[{index}]")
    return talk.finish("input"), items.system


def _add_item(talk: Conversation, items: Conversation, item: Mapping[str, Any], where: str) -> None:
    match item.get("type", "message"):
        case "message":
            role = field(item, "role", where)
            text, attachments = _item_content(item.get("content"), f"{where}.content")
            if role in ("system", "developer"):
                if attachments:
                    at = attachments[0].field
                    raise UnsupportedParameter(f"{at}: a {role} text is text", field=at)
                talk.instruct(text)
                items.instruct(text)
            elif role == "user":
                talk.say("user", text, attachments)
            elif role == "assistant":
                talk.say("assistant", text, attachments)
            else:
                raise InvalidRequest(
                    f"{where}.role must be system, developer, user or assistant, not {role!r}", field=f"{where}.role"
                )
        case "function_call" | "custom_tool_call":
            arguments = item.get("arguments", item.get("input", ""))
            talk.say("assistant", tool_call(field(item, "name", where), arguments, str(item.get("call_id") or "")))
        case "function_call_output" | "custom_tool_call_output":
            output = item.get("output")
            text, attachments = _item_content(output, f"{where}.output")
            talk.say("user", tool_result(text, str(item.get("call_id") or "")), attachments)
        case "reasoning":
            pass  # a model's own notes; it makes them anew
        case kind:
            raise unknown_part(where, kind, _ITEMS)


def _item_content(content: object, where: str) -> tuple[str, list[Attachment]]:
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be text or a list of parts", field=where)
    texts: list[str] = []
    attachments: list[Attachment] = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        match kind:
            case "input_text" | "output_text" | "text" | "summary_text":
                texts.append(field(part, "text", at))
            case "refusal":
                texts.append(field(part, "refusal", at))
            case "input_image":
                attachments.append(from_url(at, field(part, "image_url", at)))
            case "input_file":
                attachments.append(_file(part, at))
            case _:
                raise unknown_part(at, kind, _INPUT_PARTS)
    return "\n".join(texts), attachments


def effort(body: ChatBody | ResponsesBody) -> str | None:
    if isinstance(body, ChatBody):
        return effort_of(body.reasoning_effort, "reasoning_effort")
    return effort_of(body.reasoning.effort, "reasoning.effort")
