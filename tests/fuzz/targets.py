"""What the fuzzers throw at the project: for each place where foreign bytes come in, what they may do to it."""

import asyncio
import contextlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import yaml
from hypothesis import strategies as st

from api.anthropic import routes as anthropic
from api.anthropic import translate as from_anthropic
from api.body import convert, decode, present
from api.connection import Bodies, Limits, connection_class
from api.limits import client_address
from api.native import flow_view
from api.native.wire import ChainBody, CompareBody, ParallelBody, PromptBody, ResumeBody, parse
from api.openai import routes as openai
from api.openai import translate as from_openai
from api.openai.wire import ResponsesBody
from api.paths import canonical
from api.refusals import Refusals
from shared import event, redis_url, trace
from shared.config_keys import all_keys
from shared.config_sources import load
from shared.errors import ClinvkError
from shared.log import mask
from shared.run import RunSpec
from tests.fuzz import garbled, stores
from tests.words import CLI_WORDS
from worker.backends import BACKENDS
from worker.backends.base import Exit

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=10), below, max_size=4),
    max_leaves=6,
)


def shaped(*words: str) -> st.SearchStrategy[Any]:
    """JSON of the words that a reader looks for, and of others, at any depth."""
    word = st.sampled_from(words)
    return st.recursive(
        word | ANY,
        lambda below: st.lists(below, max_size=3) | st.dictionaries(word, below, max_size=6),
        max_leaves=8,
    )


def bodies(*words: str) -> st.SearchStrategy[bytes]:
    made = st.dictionaries(st.sampled_from(words), shaped(*words), max_size=8)
    return made.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60)


CHAT_WORDS = (
    "model",
    "messages",
    "role",
    "content",
    "user",
    "assistant",
    "system",
    "developer",
    "tool",
    "type",
    "text",
    "image_url",
    "url",
    "file",
    "file_data",
    "input_text",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "tool_call_id",
    "response_format",
    "json_schema",
    "schema",
    "strict",
    "stream",
    "stream_options",
    "include_usage",
    "reasoning_effort",
    "tools",
    "tool_choice",
    "data:image/png;base64,AAAA",
    "n",
    "max_tokens",
    "metadata",
)
RESPONSES_WORDS = (
    *CHAT_WORDS,
    *["input", "instructions", "item_reference", "id", "message", "output_text", "refusal", "reasoning", "format"],
)
MESSAGES_WORDS = (
    *CHAT_WORDS,
    *[
        "source",
        "base64",
        "media_type",
        "data",
        "document",
        "image",
        "thinking",
        "budget_tokens",
        "enabled",
        "tool_use",
        "tool_result",
        "input",
    ],
)
NATIVE_WORDS = (
    "backend",
    "prompt",
    "model",
    "workdir",
    "ephemeral",
    "approval_mode",
    "sandbox_mode",
    "output_format",
    "max_tokens",
    "extra",
    "metadata",
    "labels",
    "timeout_secs",
    "retry",
    "priority",
    "tasks",
    "steps",
    "name",
    "backends",
    "max_parallel",
    "fail_fast",
    "{{previous}}",
    "{{steps.a}}",
    "echo",
    "claude",
    "claude/opus",
    "auto",
    "none",
    "read-only",
    "/",
    "/tmp",
)


def parsed(backend: str) -> Callable[[Any], None]:
    def check(items: Any) -> None:
        parser = BACKENDS[backend].parser(RunSpec(id="r", tenant="t", backend=backend, prompt="p"))
        for item, noise in items:
            parser.feed(json.dumps(item).encode() + b"\n" + noise)
        _, outcome = parser.finish(Exit(code=0, stderr=""))
        assert isinstance(outcome.output, str)
        msgspec.json.encode(outcome)

    return check


def chat(raw: bytes) -> None:
    body = openai._chat_body(present(decode(raw)))
    talk = from_openai.chat_talk(body)
    assert talk.prompt
    from_openai.chat_schema(body.response_format)
    from_openai.effort(body)


def responses(raw: bytes) -> None:
    body = convert(present(decode(raw)), ResponsesBody)
    from_openai.responses_talk(body, [])
    from_openai.responses_schema(body.text.format)


def messages(raw: bytes) -> None:
    body = anthropic._body(present(decode(raw)))
    talk = from_anthropic.to_talk(body)
    from_anthropic.schema(body)
    from_anthropic.thinking_tokens(body)
    assert from_anthropic.estimate(talk) >= 0


def native(raw: bytes) -> None:
    for kind in (PromptBody, ResumeBody, ParallelBody, ChainBody, CompareBody):
        try:
            body = parse(raw, kind)
        except ClinvkError:
            continue
        make = flow_view.Maker("flow_x", "t", "q", {})
        match body:
            case ParallelBody():
                flow_view.parallel(body, make, window=3, most=50, fail_fast=False)
            case ChainBody():
                flow_view.chain(body, make)
            case CompareBody():
                flow_view.compare(body, make, most=50)
            case _:
                pass


def config(values: Mapping[str, Any]) -> None:
    """By file; the names of the environment are made of the same keys."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8", errors="surrogateescape")
        load(file, {"HOME": folder})


def environment(values: Mapping[str, str]) -> None:
    load(None, {"HOME": "/nonexistent", **values})


def paths(given: tuple[str, str]) -> None:
    path, header = given
    found = canonical(path, [(b"anthropic-version", b"x")] if header else [])
    assert canonical(found) == found or not found.startswith("/")


def headers(given: tuple[str, str, str]) -> None:
    parent, state, forwarded = given
    trace.parse(parent, state)
    client_address(("10.0.0.1", 1), {b"x-forwarded-for": forwarded.encode("latin-1", "replace")}, [])
    mask(parent + state + forwarded)


def url(text: str) -> None:
    for scheme in redis_url.SCHEMES:
        with contextlib.suppress(ValueError):
            assert isinstance(redis_url.parse(scheme + text).broker, str)


def events(raw: bytes) -> None:
    """What lies in Redis, perhaps put there by a newer worker."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        event.decode(raw)


class _Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.said = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.said += bytes(data)

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


async def _app(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def connection(pieces: list[bytes]) -> None:
    """Any bytes in any pieces: answered in whole answers or refused, and never an exception in the protocol."""
    import uvicorn
    from uvicorn.server import ServerState

    async def main() -> None:
        settings = uvicorn.Config(_app, lifespan="off", log_config=None)
        settings.load()
        made = connection_class(Limits(read_s=9, write_s=9, idle_s=9), Refusals(lambda _: None), Bodies(1 << 20))(
            settings, ServerState(), {}, asyncio.get_running_loop()
        )
        wire = _Wire()
        made.connection_made(wire)
        for piece in pieces:
            if wire.closed:
                break
            made.data_received(piece)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        made.connection_lost(None)
        for task in list(made.tasks):
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        assert not wire.said or wire.said.startswith(b"HTTP/1.1 ")

    with mock.patch("api.refusals._log"):
        asyncio.run(main())


_KEYS = [key.dotted if hasattr(key, "dotted") else str(key) for key in all_keys()]
_SECTIONS = sorted({key.partition(".")[0] for key in _KEYS})
_FIELDS = sorted({part for key in _KEYS for part in key.split(".")[1:]})
_HTTP = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /v1/x HTTP/1.1\r\n", b"Host: a\r\n", b"\r\n", b"Content-Length: 3\r\n", b"abc",
        b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
        b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"X: " + b"a" * 9000 + b"\r\n", b"\0", b"\xff", b" ",
    ]
)  # fmt: skip
_TEXT = st.text(max_size=60)

TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    **{
        f"output of {name}": (st.lists(st.tuples(shaped(*CLI_WORDS), st.binary(max_size=20)), max_size=8), parsed(name))
        for name in BACKENDS
    },
    "chat bodies": (bodies(*CHAT_WORDS), chat),
    "responses bodies": (bodies(*RESPONSES_WORDS), responses),
    "messages bodies": (bodies(*MESSAGES_WORDS), messages),
    "native bodies": (bodies(*NATIVE_WORDS), native),
    "config files": (
        st.dictionaries(
            st.sampled_from(_SECTIONS), st.dictionaries(st.sampled_from(_FIELDS), ANY, max_size=4) | ANY, max_size=4
        ),
        config,
    ),
    "config variables": (
        st.dictionaries(
            st.sampled_from(["CLINVK_" + key.replace(".", "__").upper() for key in _KEYS if "*" not in key]),
            st.text(st.characters(exclude_characters="\0"), max_size=30),
            max_size=4,
        ),
        environment,
    ),
    "paths": (st.tuples(st.text("/v1opeanthric%.\0é", max_size=40).map("/".__add__), _TEXT), paths),
    "headers": (st.tuples(_TEXT, _TEXT, _TEXT), headers),
    "Redis URLs": (_TEXT, url),
    "events in Redis": (bodies(*CLI_WORDS), events),
    "histories of the store": (stores.HISTORIES, stores.history),
    "a garbled store": (garbled.DAMAGES, garbled.garbled),
    "HTTP connections": (st.lists(_HTTP | st.binary(max_size=30), max_size=12), connection),
}
REFUSALS = (ClinvkError,)
