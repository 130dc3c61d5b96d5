"""The bodies of the Anthropic API, as far as they mean something here; all else is let by."""

from typing import Any, Literal

import msgspec


class InMessage(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]] = ""


class ThinkingOptions(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: dict[str, Any] | None = None


class MessagesBody(msgspec.Struct):
    """`POST /v1/messages`, and `/count_tokens`. `max_tokens` is required by the vendor and not enforced here."""

    model: str
    messages: list[InMessage]
    system: str | list[dict[str, Any]] | None = None
    stream: bool = False
    thinking: ThinkingOptions | None = None
    output_config: OutputConfig = msgspec.field(default_factory=OutputConfig)
    output_format: dict[str, Any] | None = None
    tool_choice: dict[str, Any] | None = None
    metadata: dict[str, Any] = {}


HEEDED = ("model", "messages", "system", "stream", "thinking", "output_config", "output_format", "metadata")
