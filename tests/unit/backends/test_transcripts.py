"""Recorded output of the real CLIs, fed whole, by line and by single bytes."""

import json
from pathlib import Path

import pytest

from shared.event import Content, Message, Progress, Thinking, ToolResult, ToolUse
from shared.run import Outcome, RunSpec, Usage
from worker.backends import BACKENDS
from worker.backends.base import Exit

_ROOT = Path(__file__).parents[2] / "transcripts"
_ALL = sorted(f"{path.parent.name}/{path.name}" for path in _ROOT.glob("*/*") if path.parent.name in BACKENDS)

TOK5 = "tok0 tok1 tok2 tok3 tok4 "
TOK8 = TOK5 + "tok5 tok6 tok7 "

# case -> code of the failure, its cause, the output (None: not compared)
EXPECTED: dict[str, tuple[str | None, str | None, str | None]] = {
    "claude/drop-stream": (None, None, TOK5 + "tok5 "),
    "claude/err401-stream": ("backend_login", "login", ""),
    "claude/err429-ra1": ("backend_limited", "rate_limited", ""),
    "claude/err500-retries0": ("backend_error", "vendor_error", ""),
    "claude/json": (None, None, TOK5),
    "claude/json-schema": (None, None, '{"a":"b"}'),
    "claude/json-schema-none": ("backend_error", "no_structured_output", ""),
    "claude/maxturns-none": ("backend_error", "max_turns", ""),
    "claude/session-first": (None, None, TOK5),
    "claude/session-resume": (None, None, None),
    "claude/session-resume-unknown": ("not_found", "unknown_session", ""),
    "claude/sigint": ("backend_error", "interrupted", None),
    "claude/sigterm": ("backend_error", "crashed", None),
    "claude/stream-json": (None, None, TOK5),
    "claude/stream-json-partial": (None, None, TOK8),
    "claude/thinking": (None, None, "tok0 tok1 tok2 tok3 "),
    "claude/tool-denied": (None, None, TOK5),
    "claude/tool-stream": (None, None, TOK5),
    "claude/unknown-flag": ("backend_error", "crashed", ""),
    "claude/unknown-model-stream": ("model_not_found", "unknown_model", ""),
    "codex/drop-stream": ("backend_error", "stream_cut", ""),
    "codex/ephemeral": (None, None, TOK5),
    "codex/err401": ("backend_login", "login", ""),
    "codex/err429": ("backend_limited", "rate_limited", ""),
    "codex/err500": ("backend_unavailable", "overloaded", ""),
    "codex/json": (None, None, TOK8),
    "codex/json-schema": (None, None, '{"a":"b"}'),
    "codex/output-schema": (None, None, '{"a":"b"}'),
    "codex/reasoning": (None, None, "tok0 tok1 tok2 tok3 "),
    "codex/refused": ("backend_error", "crashed", ""),
    "codex/session-first": (None, None, TOK5),
    "codex/session-resume": (None, None, None),
    "codex/session-resume-unknown": ("not_found", "unknown_session", ""),
    "codex/sigterm": ("backend_error", "crashed", ""),
    "codex/tool": (None, None, TOK5),
    "codex/tool-fail": (None, None, TOK5),
    "codex/unknown-flag": ("backend_error", "crashed", ""),
    "codex/unknown-model": ("model_not_found", "unknown_model", ""),
    "gemini/drop-stream": ("backend_error", "stream_cut", "tok0 tok1 tok2 "),
    "gemini/err401-json": ("backend_login", "login", ""),
    "gemini/err401-stream": ("backend_login", "login", ""),
    "gemini/err429": ("backend_limited", "rate_limited", ""),
    "gemini/err500": ("backend_error", "vendor_error", ""),
    "gemini/json": ("backend_error", "no_final_event", ""),  # another output format: nothing of it is believed
    "gemini/session-first": (None, None, TOK5),
    "gemini/session-resume": (None, None, None),
    "gemini/session-resume-unknown": ("not_found", "unknown_session", ""),
    "gemini/sigterm-norelaunch": ("backend_error", "no_final_event", None),  # exit code 0
    "gemini/stream-json": (None, None, TOK8),
    "gemini/stream-json-norelaunch": (None, None, TOK8),
    "gemini/text-untrusted": ("backend_error", "crashed", ""),
    "gemini/thinking": (None, None, "tok0 tok1 tok2 tok3 "),
    "gemini/tool-default": (None, None, TOK5),
    "gemini/tool-yolo": (None, None, TOK5),
    "gemini/unknown-model": ("model_not_found", "unknown_model", ""),
}


def play(case: str, how: str = "whole", prior: Usage | None = None) -> tuple[list[Content], Outcome]:
    folder = _ROOT / case
    meta = json.loads((folder / "meta.json").read_text())
    out = (folder / "stdout").read_bytes() if (folder / "stdout").exists() else b""
    err = (folder / "stderr").read_text() if (folder / "stderr").exists() else ""
    backend = case.partition("/")[0]
    spec = RunSpec(id="r", tenant="t", backend=backend, prompt="p", prior_usage=prior, schema=meta.get("schema"))
    parser = BACKENDS[backend].parser(spec)
    pieces = {"whole": [out], "lines": out.splitlines(keepends=True), "bytes": [bytes([b]) for b in out]}[how]
    events = [event for piece in pieces for event in parser.feed(piece)]
    last, outcome = parser.finish(Exit(code=meta["exit_code"], stderr=err))
    return events + last, outcome


def test_every_transcript_is_expected():
    assert sorted(EXPECTED) == _ALL


@pytest.mark.parametrize("case", _ALL)
def test_a_transcript_says_the_same_whatever_the_pieces_it_comes_in(case):
    assert play(case, "whole") == play(case, "lines") == play(case, "bytes")


@pytest.mark.parametrize("case", _ALL)
def test_a_transcript_comes_to_its_outcome(case):
    code, cause, output = EXPECTED[case]

    _, outcome = play(case)

    failure = outcome.failure
    assert (failure and failure.code, failure and failure.cause) == (code, cause)
    if output is not None:
        assert outcome.output == output
    if code is None:
        assert outcome.usage is not None
        assert outcome.usage.input_tokens > 0


@pytest.mark.parametrize("case", _ALL)
def test_the_messages_joined_are_the_output(case):
    events, outcome = play(case)

    said = ""
    for event in events:
        if isinstance(event, Progress) and event.restart_at is not None:
            said = said[: event.restart_at]
        if isinstance(event, Message):
            said += event.text
    assert said == outcome.output


def test_text_that_a_retry_sends_again_is_shown_once():
    events, _ = play("claude/drop-stream")

    assert "".join(e.text for e in events if isinstance(e, Message)) == TOK5 + "tok5 "
    assert sum(isinstance(e, Progress) for e in events) == 10


def test_thinking_and_tools_are_events_of_their_own():
    thoughts = [e.text for e in play("claude/thinking")[0] if isinstance(e, Thinking)]
    tools = [e for e in play("claude/tool-stream")[0] if isinstance(e, ToolUse | ToolResult)]

    assert "".join(thoughts) == "**Plan** thought0 **Plan** thought1 **Plan** thought2 **Plan** thought3 "
    assert [type(e) for e in tools] == [ToolUse, ToolResult]
    assert tools[1].output == "hello-from-tool"


def test_of_a_run_to_a_schema_only_the_value_is_text_and_its_tool_is_hidden():
    claude, codex = play("claude/json-schema")[0], play("codex/json-schema")[0]

    assert [type(e).__name__ for e in claude] == ["Init", "Message", "TokenUsage"]
    assert [e for e in codex if isinstance(e, Message | Progress)] == [Progress("first I look "), Message('{"a":"b"}')]


def test_usage_counts_the_cache_once_and_thoughts_as_output():
    assert play("claude/thinking")[1].usage == Usage(167, 8, 7, 0)
    assert play("codex/reasoning")[1].usage == Usage(128, 8, 7, 4)
    assert play("gemini/thinking")[1].usage == Usage(140, 8, 7, 4)


def test_codex_reports_a_threads_sum_and_a_turn_is_what_is_new():
    first = play("codex/session-first")[1].usage

    assert play("codex/session-resume", prior=first)[1].usage == Usage(265 - 131, 1, 7, 0)


def test_codex_waiting_for_a_network_for_ever_is_given_up():
    parser = BACKENDS["codex"].parser(RunSpec(id="r", tenant="t", backend="codex", prompt="p"))

    parser.feed((_ROOT / "codex/refused/stdout").read_bytes())

    assert parser.hopeless is not None
    assert parser.hopeless.cause == "refused_connection"
