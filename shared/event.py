"""The events of a run: the content types, and the one JSON form that Redis, NDJSON and SSE share.

`{"type","backend","session_id","timestamp","sequence","content":{...}}`, one line, keys in that order. `sequence` counts
from 1 within a run and is also the entry's place in the run's stream, the SSE id and the value of `?after=`.
"""

import datetime
from typing import Any

import msgspec

from shared.run import Usage


class Init(msgspec.Struct, frozen=True, omit_defaults=True):
    """The CLI is up. `backend_session_id` is the CLI's own id of the session."""

    model: str | None = None
    backend_session_id: str | None = None


class Message(msgspec.Struct, frozen=True):
    """Text of the answer. Each piece is sent once: joining all `text` gives what the CLI said."""

    text: str
    role: str = "assistant"
    is_partial: bool = False  # True: more of the same message may follow


class Thinking(msgspec.Struct, frozen=True):
    text: str
    is_partial: bool = False


class ToolUse(msgspec.Struct, frozen=True):
    """The CLI uses a tool of its own."""

    id: str
    name: str
    input: Any = None


class ToolResult(msgspec.Struct, frozen=True):
    id: str
    output: str = ""
    is_error: bool = False


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a watcher may want to know: a retry of the CLI, a warning, a place in the queue.

    `restart_at`: the CLI began its answer anew and it differs from what was sent; the first `restart_at`
    characters sent so far stand, what followed them is void, and the next message goes on from there.
    """

    message: str
    restart_at: int | None = None


class TokenUsage(msgspec.Struct, frozen=True):
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Error(msgspec.Struct, frozen=True):
    """The last event of a run that did not succeed."""

    code: str
    message: str
    details: dict[str, Any] = {}


class Done(msgspec.Struct, frozen=True):
    """The last event of a run that succeeded. `duration` is in seconds."""

    token_usage: Usage | None = None
    duration: float = 0.0
    turn_count: int | None = None


Content = Init | Message | Thinking | ToolUse | ToolResult | Progress | TokenUsage | Error | Done

_TYPES: dict[type[Any], str] = {
    Init: "init",
    Message: "message",
    Thinking: "thinking",
    ToolUse: "tool_use",
    ToolResult: "tool_result",
    Progress: "progress",
    TokenUsage: "token_usage",
    Error: "error",
    Done: "done",
}
_CLASSES = {name: cls for cls, name in _TYPES.items()}


class Event(msgspec.Struct, frozen=True):
    """A content in its envelope."""

    type: str
    backend: str
    session_id: str
    timestamp: str  # RFC 3339, UTC, milliseconds
    sequence: int
    content: Content

    @property
    def last(self) -> bool:
        return self.type in ("done", "error")


class _Wire(msgspec.Struct):
    type: str
    backend: str
    session_id: str
    timestamp: str
    sequence: int
    content: msgspec.Raw


_encoder = msgspec.json.Encoder()
_wire = msgspec.json.Decoder(_Wire)
_contents = {name: msgspec.json.Decoder(cls) for name, cls in _CLASSES.items()}


def encode(content: Content, *, backend: str, session_id: str, sequence: int, at_s: float) -> bytes:
    """One line of JSON without its newline. A sequence of 0 is filled in by the store's scripts."""
    at = datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return _encoder.encode(Event(_TYPES[type(content)], backend, session_id, at, sequence, content))


def decode(line: bytes) -> Event | None:
    """The event, or None where its type is not known here: a newer worker's, to be passed over.

    Raises: msgspec.DecodeError where the line is no event at all.
    """
    wire = _wire.decode(line)
    decoder = _contents.get(wire.type)
    if decoder is None:
        return None
    return Event(wire.type, wire.backend, wire.session_id, wire.timestamp, wire.sequence, decoder.decode(wire.content))


def is_last(line: bytes) -> bool:
    """Whether an encoded event ends its run; looks at the first key alone."""
    return line.startswith((b'{"type":"done"', b'{"type":"error"'))
