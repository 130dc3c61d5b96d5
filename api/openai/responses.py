"""Responses: a run as OpenAI's `response` object, and its events as that API's stream.

The wire is the API reference's "Responses" and "Streaming events". Sequence numbers follow from the run's events alone,
so that any replica gives the same ones and `starting_after` can be honoured; a heartbeat repeats the last number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from api.compat_stream import CompatRenderer
from api.stream import one_line
from shared.event import Content, Done, Message, Thinking
from shared.run import Failure, Run, RunSpec, Status, Usage

_encode = msgspec.json.Encoder().encode

# Codex knows these words, besides `context_length_exceeded` and its kind.
_CODES = {"backend_limited": "rate_limit_exceeded", "rate_limit_exceeded": "rate_limit_exceeded"}

_STATUS = {
    Status.WAITING: "queued",
    Status.QUEUED: "queued",
    Status.RUNNING: "in_progress",
    Status.SUCCEEDED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


def id_of(run_id: str) -> str:
    return "resp_" + run_id.removeprefix("run_")


def run_of(response_id: str) -> str:
    return "run_" + response_id.removeprefix("resp_")


def usage_of(usage: Usage | None) -> dict[str, Any]:
    used = usage or Usage()
    return {
        "input_tokens": used.input_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens},
        "output_tokens": used.output_tokens,
        "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        "total_tokens": used.input_tokens + used.output_tokens,
    }


def of_run(run: Run, thoughts: str = "") -> dict[str, Any]:
    """The response object of a run in any state."""
    made = _object(run.spec, "cancelled" if run.cancelling is not None else _STATUS[run.status])
    if run.outcome is None:
        return made
    failure = run.outcome.failure
    if failure is not None:
        if run.status is Status.FAILED:
            made["error"] = _error(failure)
        return made
    suffix = run.id.removeprefix("run_")
    if thoughts:
        made["output"].append(_reasoning(f"rs_{suffix}", thoughts))
    made["output"].append(_message(f"msg_{suffix}", run.outcome.output, "completed"))
    made["usage"] = usage_of(run.outcome.usage)
    made["completed_at"] = int(run.ended_at or run.created_at)
    return made


def _object(spec: RunSpec, status: str) -> dict[str, Any]:
    """`reply` holds what the request said: model, created, instructions, previous_response_id, ..."""
    asked: Mapping[str, Any] = spec.reply
    return {
        "id": id_of(spec.id),
        "object": "response",
        "created_at": asked["created"],
        "status": status,
        "background": asked.get("background", False),
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "metadata": spec.metadata,
        "model": asked["model"],
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": asked.get("previous_response_id"),
        "reasoning": {"effort": asked.get("effort"), "summary": asked.get("summary")},
        "service_tier": "default",
        "store": asked.get("store", True),
        "temperature": 1.0,
        "text": {"format": asked.get("format") or {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": asked.get("tools", []),
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def _message(id: str, text: str, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": content}


def _reasoning(id: str, text: str) -> dict[str, Any]:
    return {"id": id, "type": "reasoning", "summary": [{"type": "summary_text", "text": text}], "status": "completed"}


def _error(failure: Failure) -> dict[str, Any]:
    message = failure.message
    if failure.retry_after_s is not None:  # Codex reads the delay from the words
        message += f" Please try again in {failure.retry_after_s:g}s."
    return {"code": _CODES.get(failure.code, "server_error"), "message": message}


class ResponseEvents(CompatRenderer):
    """`after`: events up to this sequence number of the response's own are known to the client already (-1: none)."""

    def __init__(self, spec: RunSpec, *, queued: bool, after: int = -1) -> None:
        super().__init__()
        # For as long as the stream lasts: what it repeats, which as text takes little memory, and no more.
        reply = {name: value for name, value in spec.reply.items() if name != "developer"}
        reply |= {name: msgspec.Raw(_encode(reply[name])) for name in ("tools", "format") if reply.get(name)}
        self._spec = msgspec.structs.replace(spec, reply=reply)
        self._queued = queued
        self._after = after
        self._next = 0
        self._items = 0
        self._suffix = spec.id.removeprefix("run_")
        self._open = ""  # the kind of the item that is being written
        self._text: list[str] = []
        self._output: list[dict[str, Any]] = []
        self._said = False  # a message item has been given

    def opening(self) -> bytes:
        status = "queued" if self._queued else "in_progress"
        said = self._tell("response.created", response=_object(self._spec, status))
        kind = "response.queued" if self._queued else "response.in_progress"
        return said + self._tell(kind, response=_object(self._spec, status))

    def heartbeat(self) -> bytes:
        """Codex counts events that it can parse, so that a comment would not do."""
        body = {"type": "response.in_progress", "sequence_number": max(self._next - 1, 0)}
        return _sse("response.in_progress", {**body, "response": _object(self._spec, "in_progress")})

    def events(self, lines: Sequence[bytes], first: int) -> bytes:  # noqa: ARG002  # numbers of its own
        return b"".join(self.event(line) for line in lines)

    def content(self, content: Content) -> bytes:
        match content:
            case Message(text=text) if text:
                return self._switch("message") + self._delta("response.output_text.delta", text)
            case Thinking(text=text) if text:
                return self._switch("reasoning") + self._delta("response.reasoning_summary_text.delta", text)
            case Done(token_usage=usage):
                said = b"" if self._said or self._open == "message" else self._switch("message")
                said += self._close()
                made = _object(self._spec, "completed")
                made["output"], made["usage"] = self._output, usage_of(usage)
                return said + self._tell("response.completed", response=made)
            case _:
                return b""

    def failed(self, failure: Failure) -> bytes:
        made = _object(self._spec, "cancelled" if failure.code == "cancelled" else "failed")
        made["output"] = self._output
        made["error"] = _error(failure)
        return self._tell("response.failed", response=made)

    # -- items: a reasoning item or a message at a time

    @property
    def _item_id(self) -> str:
        prefix = "msg" if self._open == "message" else "rs"
        # The first message has the id that the whole answer gives it.
        return f"{prefix}_{self._suffix}" + (f"_{self._items - 1}" if self._items > 2 else "")

    def _switch(self, kind: str) -> bytes:
        if self._open == kind:
            return b""
        said = self._close()
        self._open, self._text = kind, []
        self._items += 1
        at = self._items - 1
        if kind == "message":
            self._said = True
            item = _message(self._item_id, "", "in_progress") | {"content": []}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            said += self._tell("response.output_item.added", output_index=at, item=item)
            return said + self._tell(
                "response.content_part.added", item_id=self._item_id, output_index=at, content_index=0, part=part
            )
        item = {"id": self._item_id, "type": "reasoning", "summary": [], "status": "in_progress"}
        part = {"type": "summary_text", "text": ""}
        said += self._tell("response.output_item.added", output_index=at, item=item)
        return said + self._tell(
            "response.reasoning_summary_part.added", item_id=self._item_id, output_index=at, summary_index=0, part=part
        )

    def _delta(self, kind: str, text: str) -> bytes:
        self._text.append(text)
        at = {"item_id": self._item_id, "output_index": self._items - 1}
        if self._open == "message":
            return self._tell(kind, **at, content_index=0, delta=text, logprobs=[])
        return self._tell(kind, **at, summary_index=0, delta=text)

    def _close(self) -> bytes:
        if not self._open:
            return b""
        text = "".join(self._text)
        at: dict[str, Any] = {"item_id": self._item_id, "output_index": self._items - 1}
        if self._open == "message":
            item = _message(self._item_id, text, "completed")
            said = self._tell("response.output_text.done", **at, content_index=0, text=text, logprobs=[])
            said += self._tell("response.content_part.done", **at, content_index=0, part=item["content"][0])
        else:
            item = _reasoning(self._item_id, text)
            said = self._tell("response.reasoning_summary_text.done", **at, summary_index=0, text=text)
            part = {"type": "summary_text", "text": text}
            said += self._tell("response.reasoning_summary_part.done", **at, summary_index=0, part=part)
        self._output.append(item)
        said += self._tell("response.output_item.done", output_index=self._items - 1, item=item)
        self._open = ""
        return said

    def _tell(self, kind: str, **fields: Any) -> bytes:
        number = self._next
        self._next += 1
        # Whoever asks for what lies beyond the end is told the end: an empty stream would be no answer.
        if number <= self._after and kind not in ("response.completed", "response.failed"):
            return b""
        return _sse(kind, {"type": kind, "sequence_number": number, **fields})


def _sse(kind: str, data: Mapping[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + one_line(_encode(data)) + b"\n\n"
