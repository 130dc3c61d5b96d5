"""The bodies of the OpenAI API, as far as they mean something here; all else is let by."""

from typing import Any, Literal

import msgspec


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class ChatMessage(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] = []
    function_call: dict[str, Any] | None = None
    tool_call_id: str = ""
    name: str = ""


class ChatBody(msgspec.Struct):
    """`POST /chat/completions`."""

    model: str
    messages: list[ChatMessage]
    stream: bool = False
    stream_options: StreamOptions = msgspec.field(default_factory=StreamOptions)
    dry_run: bool = False  # ours: show the command line instead of running it
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    tool_choice: Any = None
    function_call: Any = None
    metadata: dict[str, Any] = {}


CHAT_HEEDED = (
    "model",
    "messages",
    "stream",
    "stream_options",
    "dry_run",
    "response_format",
    "reasoning_effort",
    "metadata",
)


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class TextOptions(msgspec.Struct):
    format: dict[str, Any] | None = None


class ResponsesBody(msgspec.Struct):
    """`POST /responses`."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool = False
    background: bool = False
    store: bool = True
    previous_response_id: str | None = None
    metadata: dict[str, Any] = {}
    reasoning: Reasoning = msgspec.field(default_factory=Reasoning)
    text: TextOptions = msgspec.field(default_factory=TextOptions)
    tool_choice: Any = None
    tools: list[dict[str, Any]] = []
    conversation: Any = None
    max_output_tokens: int | None = None


RESPONSES_HEEDED = (
    "model",
    "input",
    "instructions",
    "stream",
    "background",
    "store",
    "previous_response_id",
    "metadata",
    "reasoning",
    "text",
)


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class ChatUsage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
