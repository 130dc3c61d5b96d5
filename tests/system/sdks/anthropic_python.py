"""The anthropic package, any major."""

from typing import Any

import anthropic
import seen as report

SYSTEM = "You are a TEAPOT."
TURNS = [
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": [{"type": "text", "text": "Hello Ada."}]},
    {"role": "user", "content": "And I live in Kraków."},
    {"role": "assistant", "content": "A fine town."},
]


def client_of(base: str, options: dict[str, str]) -> anthropic.Anthropic:
    more: dict[str, Any] = {}
    if "timeout" in options:
        more["timeout"] = float(options["timeout"])
    if "retries" in options:
        more["max_retries"] = int(options["retries"])
    return anthropic.Anthropic(base_url=base + options.get("path", "/anthropic"), api_key="not-needed", **more)


def usage_of(usage: Any) -> dict[str, Any]:
    return {"input": usage.input_tokens, "output": usage.output_tokens, "cached": usage.cache_read_input_tokens}


def asked(options: dict[str, str]) -> dict[str, Any]:
    wish = {"thinking": {"type": "enabled", "budget_tokens": 1024}} if "thinking" in options else {}
    return {
        "model": options.get("model", "claude"),
        "max_tokens": 2048,
        "messages": [{"role": "user", "content": options["prompt"]}],
        **wish,
    }


def models(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    client = client_of(base, options)
    seen["models"] = [model.model_dump(mode="json") for model in client.models.list()]
    seen["one"] = client.models.retrieve("claude").model_dump(mode="json")
    try:
        client.models.retrieve("no-such")
    except anthropic.NotFoundError as error:
        seen["missing"] = report.error_of(error)


def answer(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    _answered(client_of(base, options).messages.create(**asked(options)), seen)


def _answered(found: Any, seen: dict[str, Any]) -> None:
    seen.update(
        text="".join(block.text for block in found.content if block.type == "text"),
        thinking="".join(block.thinking for block in found.content if block.type == "thinking"),
        kinds=[block.type for block in found.content],
        role=found.role,
        finish=found.stop_reason,
        usage=usage_of(found.usage),
        id=found.id,
        model=found.model,
        object=found.type,
    )


def history(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    last = {"role": "user", "content": [{"type": "text", "text": options["prompt"]}]}
    more = {"messages": [*TURNS, last], "system": [{"type": "text", "text": SYSTEM}]}
    _answered(client_of(base, options).messages.create(**asked(options) | more), seen)


def stream(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """The raw events, as the wire has them."""
    pieces = report.Pieces(seen)
    seen["events"] = []
    for event in client_of(base, options).messages.create(**asked(options), stream=True):
        if event.type not in seen["events"][-1:]:
            seen["events"].append(event.type)
        match event.type:
            case "message_start":
                seen["first_usage"] = usage_of(event.message.usage)
                seen["id"], seen["role"] = event.message.id, event.message.role
            case "content_block_delta" if event.delta.type == "text_delta":
                pieces.add(event.delta.text)
            case "content_block_delta" if event.delta.type == "thinking_delta":
                pieces.add(event.delta.thinking, field="thinking")
            case "message_delta":
                seen["finish"] = event.delta.stop_reason
                seen["usage"] = usage_of(event.usage)
            case _:
                pass


def helper(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """The SDK's own accumulator, which is stricter than its iterator."""
    pieces = report.Pieces(seen)
    with client_of(base, options).messages.stream(**asked(options)) as events:
        for text in events.text_stream:
            pieces.add(text)
        heard = seen["text"]
        _answered(events.get_final_message(), seen)
    seen["same"] = heard == seen["text"]


def hangup(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    with client_of(base, options).messages.stream(**asked(options)) as events:
        for text in events.text_stream:
            seen["text"] = text
            break


def refused(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    tool = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
    client_of(base, options).messages.create(**asked(options), tools=[tool], tool_choice={"type": "any"})


def fields(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """Everything that is accepted and has no effect, at once."""
    tool = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
    cached = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    found = client_of(base, options).messages.with_raw_response.create(
        **asked(options),
        system=[cached],
        stop_sequences=["END"],
        metadata={"user_id": "ada"},
        tools=[tool],
        tool_choice={"type": "auto"},
        extra_headers={"anthropic-beta": "context-1m-2025-08-07"},
        extra_body={"temperature": 0.7, "top_p": 0.5, "top_k": 3, "never_heard_of": {"a": 1}, "service_tier": None},
    )
    seen["request_id"] = found.headers.get("request-id")
    seen["ignored"] = found.headers.get("x-clinvk-ignored")
    _answered(found.parse(), seen)


def thinking(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """Thoughts are blocks of their own, and may be sent back."""
    client = client_of(base, options)
    wish = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "model": "claude", "max_tokens": 2048}
    question = {"role": "user", "content": options["prompt"]}
    found = client.messages.create(**wish, messages=[question])
    _answered(found, seen)
    seen["signed"] = [bool(block.signature) for block in found.content if block.type == "thinking"]
    turns = [question, {"role": "assistant", "content": found.content}, {"role": "user", "content": "[[fake:seen]]"}]
    seen["next"] = client.messages.create(**wish, messages=turns).content[-1].text


def image(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": report.PNG}}
    messages = [{"role": "user", "content": [picture, {"type": "text", "text": options["prompt"]}]}]
    _answered(client_of(base, options).messages.create(model="claude", max_tokens=1024, messages=messages), seen)


def count(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    client = client_of(base, options)
    short = [{"role": "user", "content": "Hello"}]
    seen["short"] = client.messages.count_tokens(model="claude", messages=short).input_tokens
    long = [{"role": "user", "content": "Hello " * 1000}]
    seen["long"] = client.messages.count_tokens(model="claude", messages=long, system=SYSTEM).input_tokens


def beta(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    """Older SDKs add `?beta=true`."""
    client = client_of(base, options)
    more = {"betas": ["context-1m-2025-08-07"]} if anthropic.__version__.startswith("0.") else {}
    _answered(client.beta.messages.create(**asked(options), **more), seen)


report.run({name: made for name, made in globals().items() if callable(made) and not name.startswith("_")})
