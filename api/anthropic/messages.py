"""Messages: a run's answer whole, and as Anthropic's events.

The wire is the API reference's "Messages" and "Streaming": message_start, blocks, message_delta, message_stop; a failure
is one `error` event and nothing behind it. Usage stands in message_start (an estimate of the input) and, complete, in
message_delta, from which some clients alone read it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from api import errors
from api.compat_stream import CompatRenderer
from api.stream import one_line, with_id
from shared.event import Content, Done, Message, Thinking
from shared.run import Failure, Run, RunSpec, Usage

_encode = msgspec.json.Encoder().encode

# Clients send a thinking block back with its signature, which nobody here checks.
SIGNATURE = "clinvk"


def id_of(run_id: str) -> str:
    return "msg_" + run_id.removeprefix("run_")


def usage_of(usage: Usage | None) -> dict[str, Any]:
    """Anthropic's input leaves out what was cached."""
    used = usage or Usage()
    return {
        "input_tokens": max(used.input_tokens - used.cached_tokens, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.cached_tokens,
        "output_tokens": used.output_tokens,
    }


def message(run: Run, thoughts: str) -> dict[str, Any]:
    """The whole answer of a run that succeeded."""
    assert run.outcome is not None
    content: list[dict[str, Any]] = []
    if thoughts and run.spec.reply.get("thinking"):
        content.append({"type": "thinking", "thinking": thoughts, "signature": SIGNATURE})
    if run.outcome.output:
        content.append({"type": "text", "text": run.outcome.output})
    made = _begun(run.spec)
    return made | {"content": content, "stop_reason": "end_turn", "usage": _service(usage_of(run.outcome.usage))}


def _begun(spec: RunSpec) -> dict[str, Any]:
    guess = Usage(input_tokens=int(spec.reply.get("input_tokens", 0)))
    return {
        "id": id_of(spec.id),
        "type": "message",
        "role": "assistant",
        "model": spec.reply["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _service(usage_of(guess)),
    }


def _service(usage: dict[str, Any]) -> dict[str, Any]:
    return {**usage, "service_tier": "standard"}


class MessageEvents(CompatRenderer):
    """`after`: events up to this sequence of the run are known to the client already. The ids are
    `<run>:<sequence>`, for `Last-Event-ID`."""

    def __init__(self, spec: RunSpec, *, request_id: str, after: int = 0) -> None:
        super().__init__()
        self._spec = spec
        self._request_id = request_id
        self._after = after
        self._show_thinking = bool(spec.reply.get("thinking"))
        self._open = ""  # the type of the block that is being written
        self._index = -1

    def opening(self) -> bytes:
        if self._after:
            return b""
        return _sse("message_start", {"message": _begun(self._spec)}) + self.heartbeat()

    def heartbeat(self) -> bytes:
        return _sse("ping", {})

    def events(self, lines: Sequence[bytes], first: int) -> bytes:
        said = b""
        for sequence, line in enumerate(lines, first):
            told = self.event(line)
            if told and sequence > self._after:
                said += with_id(told, b"%s:%d" % (self._spec.id.encode(), sequence))
        return said

    def content(self, content: Content) -> bytes:
        match content:
            case Message(text=text) if text:
                return self._switch("text") + self._delta({"type": "text_delta", "text": text})
            case Thinking(text=text) if text and self._show_thinking:
                return self._switch("thinking") + self._delta({"type": "thinking_delta", "thinking": text})
            case Done(token_usage=usage):
                ended = {"stop_reason": "end_turn", "stop_sequence": None}
                said = self._close() + _sse("message_delta", {"delta": ended, "usage": usage_of(usage)})
                return said + _sse("message_stop", {})
            case _:
                return b""

    def failed(self, failure: Failure) -> bytes:
        answer = errors.of_failure(failure, dialect="anthropic", request_id=self._request_id, run_id=self._spec.id)
        body = msgspec.json.decode(answer.body)
        return _sse("error", {"error": body["error"], "request_id": self._request_id})

    def _switch(self, kind: str) -> bytes:
        if self._open == kind:
            return b""
        said = self._close()
        self._open = kind
        self._index += 1
        block = (
            {"type": "text", "text": ""} if kind == "text" else {"type": "thinking", "thinking": "", "signature": ""}
        )
        return said + _sse("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return _sse("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if not self._open:
            return b""
        said = b""
        if self._open == "thinking":
            said = self._delta({"type": "signature_delta", "signature": SIGNATURE})
        self._open = ""
        return said + _sse("content_block_stop", {"index": self._index})


def _sse(kind: str, data: Mapping[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + one_line(_encode({"type": kind, **data})) + b"\n\n"
