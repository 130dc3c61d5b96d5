"""The bytes of one stream of each surface, with the reason for every unusual one (`tests/golden/README.md`).

After a change that is meant: `CLINVK_GOLDEN=write`, then look at the difference.
"""

import os
from pathlib import Path

import pytest

from api.anthropic.messages import MessageEvents
from api.native.render import Ndjson, Sse
from api.openai.chat import Chunks
from api.openai.responses import ResponseEvents
from api.stream import Renderer
from shared.errors import StoreUnavailable
from shared.event import (
    Content,
    Done,
    Error,
    Init,
    Message,
    Progress,
    Thinking,
    TokenUsage,
    ToolResult,
    ToolUse,
    encode,
)
from shared.run import RunSpec, Usage

GOLDEN = Path(__file__).parents[2] / "golden"
SPEC = RunSpec(
    id="run_0001",
    tenant="t",
    backend="claude",
    prompt="p",
    reply={"model": "claude-fast", "created": 1_700_000_000, "thinking": True, "input_tokens": 9, "store": True},
)

ANSWER: list[Content] = [
    Init(model="haiku"),
    Thinking("Let me ", is_partial=True),
    Thinking("see.", is_partial=True),
    Message("Hel", is_partial=True),
    ToolUse("t1", "Bash", {"command": "ls"}),
    ToolResult("t1", "file"),
    Message("lo ✓\n\u2028", is_partial=True),
    TokenUsage(12, 5, 7, 2),
    Done(Usage(12, 5, 7, 2), 1.5, 1),
]
FAILURE: list[Content] = [
    Init(model="haiku"),
    Message("Hel", is_partial=True),
    Error("backend_limited", "the vendor limits", {"cause": "rate_limited", "retry_after_s": 30}),
]


def lines(contents: list[Content]) -> list[bytes]:
    return [
        encode(content, backend="claude", session_id="", sequence=number, at_s=1_700_000_000.0)
        for number, content in enumerate(contents, 1)
    ]


def renderers() -> dict[str, Renderer]:
    return {
        "native.ndjson": Ndjson(SPEC),
        "native.sse": Sse(SPEC),
        "chat.sse": Chunks(SPEC, include_usage=True, request_id="req_1"),
        "chat-ids.sse": Chunks(SPEC, include_usage=False, request_id="req_1", ids=True),
        "responses.sse": ResponseEvents(SPEC, queued=False),
        "messages.sse": MessageEvents(SPEC, request_id="req_1"),
    }


@pytest.mark.parametrize("kind", ["answer", "failure"])
@pytest.mark.parametrize("name", sorted(renderers()))
def test_a_stream_is_what_it_was(name, kind):
    renderer = renderers()[name]
    events = lines(ANSWER if kind == "answer" else FAILURE)

    written = (
        renderer.opening() + renderer.events(events[:2], 1) + renderer.heartbeat() + renderer.events(events[2:], 3)
    )

    path = GOLDEN / f"{kind}.{name}"
    if os.environ.get("CLINVK_GOLDEN") == "write":
        path.write_bytes(written)
    assert written == path.read_bytes()


@pytest.mark.parametrize("name", sorted(renderers()))
def test_a_stream_is_the_same_however_its_events_come(name):
    whole, single = renderers()[name], renderers()[name]
    events = lines(ANSWER)

    parts = b"".join(single.events([line], number) for number, line in enumerate(events, 1))

    assert whole.events(events, 1) == parts


@pytest.mark.parametrize("known", range(len(ANSWER) + 1))
@pytest.mark.parametrize("kind", [Chunks, MessageEvents])
def test_a_resumed_stream_goes_on_where_it_broke(kind, known):
    more = {"include_usage": True} if kind is Chunks else {}
    whole = kind(SPEC, request_id="r", **more)
    head = whole.events(lines(ANSWER)[:known], 1)
    rest = whole.events(lines(ANSWER)[known:], known + 1)

    again = kind(SPEC, request_id="r", after=known, **more)

    assert head + again.events(lines(ANSWER), 1) == head + rest


def test_a_response_is_resumed_by_its_own_numbers():
    whole = ResponseEvents(SPEC, queued=False)
    events = (whole.opening() + whole.events(lines(ANSWER), 1)).split(b"\n\n")

    for known in range(len(events) - 2):
        again = ResponseEvents(SPEC, queued=False, after=known)
        assert (again.opening() + again.events(lines(ANSWER), 1)).split(b"\n\n") == events[known + 1 :]
    beyond = ResponseEvents(SPEC, queued=False, after=999)
    assert (beyond.opening() + beyond.events(lines(ANSWER), 1)).split(b"\n\n") == events[-2:]


@pytest.mark.parametrize("name", ["chat.sse", "responses.sse", "messages.sse"])
def test_an_answer_begun_anew_is_a_failure_and_nothing_follows(name):
    renderer = renderers()[name]
    events = lines([Message("Hel", is_partial=True), Progress("again", restart_at=0), Message("Bye"), Done()])

    written = renderer.events(events, 1)

    assert b"error" in written
    assert b"Bye" not in written
    assert b"stop" not in written.replace(b"content_block_stop", b"")
    assert b"completed" not in written


@pytest.mark.parametrize("name", sorted(renderers()))
def test_no_text_ends_a_line_early(name):
    written = renderers()[name].events(lines([Message("a\u2028b\u2029c\x85d\x0be\rf")]), 1).decode()

    assert written.splitlines() == written.split("\n")[:-1]


@pytest.mark.parametrize("name", sorted(renderers()))
def test_a_broken_relay_is_told_as_an_error(name):
    assert b"the store is away" in renderers()[name].broken(StoreUnavailable("the store is away", retry_after_s=1), 3)
