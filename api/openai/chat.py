"""Chat completions: a run's answer whole, and as chunks.

The wire is OpenAI's `chat.completion` and `chat.completion.chunk` (API reference, "Chat"); every unusual byte has its
reason in CLIENTS' terms: a heartbeat is a chunk with an empty delta, since comments and custom events break clients.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from api import errors
from api.compat_stream import CompatRenderer
from api.openai.wire import ChatUsage, CompletionTokensDetails, PromptTokensDetails
from api.stream import one_line, with_id
from shared.event import Content, Done, Message, Thinking
from shared.run import Failure, Run, RunSpec, Usage

_encode = msgspec.json.Encoder().encode


def id_of(run_id: str) -> str:
    return "chatcmpl-" + run_id.removeprefix("run_")


def usage_of(usage: Usage | None) -> ChatUsage:
    used = usage or Usage()
    return ChatUsage(
        used.input_tokens,
        used.output_tokens,
        used.input_tokens + used.output_tokens,
        PromptTokensDetails(used.cached_tokens),
        CompletionTokensDetails(used.reasoning_tokens),
    )


def completion(run: Run, thoughts: str) -> dict[str, Any]:
    """The whole answer of a run that succeeded."""
    assert run.outcome is not None
    message: dict[str, Any] = {"role": "assistant", "content": run.outcome.output, "refusal": None, "annotations": []}
    if thoughts:
        message["reasoning_content"] = thoughts
    return {
        "id": id_of(run.id),
        "object": "chat.completion",
        "created": run.spec.reply["created"],
        "model": run.spec.reply["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage_of(run.outcome.usage),
        "system_fingerprint": None,
    }


class Chunks(CompatRenderer):
    """`after`: events up to this sequence are known to the client already. With `ids` the chunks have ids,
    `<run>:<sequence>`, for `Last-Event-ID`; not for all, since go-openai takes such a line for part of an error."""

    def __init__(
        self, spec: RunSpec, *, include_usage: bool, request_id: str, ids: bool = False, after: int = 0
    ) -> None:
        super().__init__()
        self._run_id = spec.id
        self._request_id = request_id
        self._ids = ids
        self._after = after
        self._include_usage = include_usage
        head = {
            "id": id_of(spec.id),
            "object": "chat.completion.chunk",
            "created": spec.reply["created"],
            "model": spec.reply["model"],
            "system_fingerprint": None,
        }
        self._head = b"data: " + one_line(_encode(head))[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def opening(self) -> bytes:
        return b"" if self._after else self._chunk({"role": "assistant", "content": ""})

    def heartbeat(self) -> bytes:
        return self._chunk({})

    def events(self, lines: Sequence[bytes], first: int) -> bytes:
        said = b""
        for sequence, line in enumerate(lines, first):
            if sequence > self._after and (told := self.event(line)):
                said += with_id(told, b"%s:%d" % (self._run_id.encode(), sequence)) if self._ids else told
        return said

    def content(self, content: Content) -> bytes:
        match content:
            case Message(text=text):
                return self._chunk({"content": text})
            case Thinking(text=text):
                return self._chunk({"reasoning_content": text})
            case Done(token_usage=usage):
                said = self._chunk({}, finish="stop")
                if self._include_usage:
                    said += self._head + b'],"usage":' + _encode(usage_of(usage)) + b"}\n\n"
                return said + b"data: [DONE]\n\n"
            case _:
                return b""

    def failed(self, failure: Failure) -> bytes:
        answer = errors.of_failure(failure, dialect="openai", request_id=self._request_id, run_id=self._run_id)
        # The line must begin with exactly this for go-openai to see it.
        return b'data: {"error":' + one_line(_encode(msgspec.json.decode(answer.body)["error"])) + b"}\n\n"

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        reason = b"null" if finish is None else b'"' + finish.encode() + b'"'
        return (
            self._head
            + b'{"index":0,"delta":'
            + one_line(_encode(delta))
            + b',"logprobs":null,"finish_reason":'
            + reason
            + b"}"
            + self._tail
        )
