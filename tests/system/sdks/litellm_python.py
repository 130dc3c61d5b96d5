"""litellm as a client, of both dialects."""

import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the internet at import

import litellm
import seen as report

litellm.suppress_debug_info = True

TURNS = [
    {"role": "system", "content": "You are a TEAPOT."},
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Hello Ada."},
    {"role": "user", "content": "And I live in Kraków."},
    {"role": "assistant", "content": "A fine town."},
]


def asked(base: str, options: dict[str, str]) -> dict[str, Any]:
    name = options.get("model", "claude")
    more: dict[str, Any] = {"messages": [{"role": "user", "content": options["prompt"]}], "api_key": "not-needed"}
    if "timeout" in options:
        more["timeout"] = float(options["timeout"])
    if "retries" in options:
        more["max_retries"] = int(options["retries"])
    if options["dialect"] == "anthropic":
        return more | {"model": f"anthropic/{name}", "api_base": base + "/anthropic"}
    return more | {"model": f"openai/{name}", "api_base": base + "/openai/v1"}


def usage_of(usage: Any) -> dict[str, Any] | None:
    if usage is None:
        return None
    cached = usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens
    return {"input": usage.prompt_tokens, "output": usage.completion_tokens, "cached": cached}


def _answered(found: Any, seen: dict[str, Any]) -> None:
    choice = found.choices[0]
    seen.update(text=choice.message.content, finish=choice.finish_reason, usage=usage_of(found.usage))


def answer(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    _answered(litellm.completion(**asked(base, options)), seen)


def history(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    last = [{"role": "user", "content": options["prompt"]}]
    _answered(litellm.completion(**asked(base, options) | {"messages": TURNS + last}), seen)


def stream(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    pieces = report.Pieces(seen)
    more = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in litellm.completion(**asked(base, options), **more):
        for choice in chunk.choices:
            if choice.delta.content:
                pieces.add(choice.delta.content)
            seen["finish"] = choice.finish_reason or seen.get("finish")
        if getattr(chunk, "usage", None) is not None:
            seen["usage"] = usage_of(chunk.usage)


def hangup(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    following = litellm.completion(**asked(base, options), stream=True)
    for chunk in following:
        if chunk.choices[0].delta.content:
            seen["text"] = chunk.choices[0].delta.content
            break
    os.closerange(3, 256)  # it has no way to close a stream: the program ends


def refused(base: str, options: dict[str, str], seen: dict[str, Any]) -> None:
    function = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
    more = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    litellm.completion(**asked(base, options), **more)


report.run({name: made for name, made in globals().items() if callable(made) and not name.startswith("_")})
