"""Codex' app-server: recorded sessions of 0.169.0, and what is said to it for a run."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.event import Content, Init, Message, Progress, Thinking, TokenUsage, ToolResult, ToolUse
from shared.run import Attachment, Outcome, RunSpec, Turn, Usage
from worker.backends.base import Exit, Place, Settings
from worker.backends.codex_app import AppParser, Standing, distrusting, kind, talk, unfit

_ROOT = Path(__file__).parents[2] / "transcripts" / "codex-app"
_ALL = sorted(path.name for path in _ROOT.iterdir())
TOK5 = "tok0 tok1 tok2 tok3 tok4 "

# case -> code of the failure, its cause, the output (None: not compared)
EXPECTED: dict[str, tuple[str | None, str | None, str | None]] = {
    "drop-stream": ("backend_error", "stream_cut", "tok0 tok1 tok2 "),
    "err401": ("backend_login", "login", ""),
    "err404": ("model_not_found", "unknown_model", ""),
    "err429": ("backend_limited", "rate_limited", ""),
    "err500": ("backend_unavailable", "overloaded", ""),
    "interrupted": ("backend_error", "failed", None),
    "json": (None, None, TOK5 + "tok5 tok6 tok7 "),
    "killed": ("backend_error", "crashed", None),
    "output-schema": (None, None, '{"a":"b"}'),
    "reasoning": (None, None, "tok0 tok1 tok2 "),
    "reasoning-parts": (None, None, "tok0 tok1 tok2 "),
    "session-first": (None, None, TOK5),
    "session-resume": (None, None, None),
    "tool": (None, None, TOK5),
    "tool-fail": (None, None, TOK5),
}


def spec(**fields: Any) -> RunSpec:
    return RunSpec(**({"id": "run_1", "tenant": "t", "backend": "codex", "prompt": "now?"} | fields))


def play(case: str, how: str = "whole", **fields: Any) -> tuple[list[Content], Outcome]:
    out = (_ROOT / case / "stdout").read_bytes()
    code = json.loads((_ROOT / case / "meta.json").read_text())["exit_code"]
    parser = AppParser(spec(schema={"type": "object"} if case == "output-schema" else None, **fields))
    pieces = {"whole": [out], "lines": out.splitlines(keepends=True), "bytes": [bytes([b]) for b in out]}[how]
    events = [event for piece in pieces for event in parser.feed(piece)]
    last, outcome = parser.finish(Exit(code=code))
    return events + last, outcome


def shown(events: list[Content]) -> str:
    said = ""
    for event in events:
        if isinstance(event, Progress) and event.restart_at is not None:
            said = said[: event.restart_at]
        if isinstance(event, Message):
            said += event.text
    return said


def test_every_transcript_is_expected():
    assert sorted(EXPECTED) == _ALL


@pytest.mark.parametrize("case", _ALL)
def test_a_transcript_comes_to_its_outcome_whatever_the_pieces_it_comes_in(case):
    events, outcome = play(case)

    failure = outcome.failure
    code, cause, output = EXPECTED[case]
    assert (failure and failure.code, failure and failure.cause) == (code, cause)
    assert outcome.output == output or output is None
    assert shown(events) == outcome.output
    assert isinstance(events[0], Init)
    assert (events[0].backend_session_id or "").startswith("01a1")
    assert (outcome.usage is not None) == (code is None)
    assert (events, outcome) == play(case, "lines") == play(case, "bytes")


def test_text_comes_in_the_pieces_it_was_said_in():
    events, outcome = play("json")

    assert [e.text for e in events if isinstance(e, Message)] == [f"tok{i} " for i in range(8)]
    assert outcome.usage == Usage(100, 8, 7, 0)
    assert outcome.turns == 1


def test_thinking_and_tools_are_events_of_their_own():
    thinking, _ = play("reasoning")
    failing, _ = play("tool-fail")

    assert [e for e in thinking if isinstance(e, Thinking)] == [Thinking("thought0 thought1 thought2 ")]
    (used,) = [e for e in failing if isinstance(e, ToolUse)]
    (result,) = [e for e in failing if isinstance(e, ToolResult)]
    assert (used.name, used.id) == ("command_execution", result.id)
    assert (result.output, result.is_error) == ("oops\n", True)


def test_thoughts_come_in_the_pieces_they_were_said_in_with_a_line_between_their_parts():
    events, _ = play("reasoning-parts")

    found = [event for event in events if isinstance(event, Thinking)]
    part = ["thought0 ", "thought1 ", "thought2 "]
    assert [thought.text for thought in found] == [*part, "\n", *part]
    assert all(thought.is_partial for thought in found)


@pytest.mark.parametrize("case", ["err404", "err429", "drop-stream"])
def test_what_ends_a_turn_is_shown_as_it_comes(case):
    events, outcome = play(case)

    assert outcome.failure is not None
    assert isinstance(events[-1], Progress)
    assert outcome.failure.message.endswith(events[-1].message)


def test_a_further_turn_counts_its_own_usage():
    first = play("session-first")[1].usage
    second = play("session-resume", prior_usage=first)[1].usage

    assert second == Usage(100, 1, 7, 0)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_turn_that_comes_to_no_answer_has_cost_its_tokens_all_the_same(status):
    events, outcome = ended_turn(status)

    assert outcome.failure is not None
    assert outcome.usage == Usage(60, 5, 0, 0)
    assert [event for event in events if isinstance(event, TokenUsage)] == [TokenUsage(60, 5, 0, 0)]


def test_what_was_counted_before_the_process_died_is_the_runs():
    _, outcome = ended_turn(None)

    assert outcome.failure is not None
    assert outcome.failure.cause == "crashed"
    assert outcome.usage == Usage(60, 5, 0, 0)


def test_a_turn_that_was_never_counted_has_no_usage():
    parser = AppParser(spec(prior_usage=Usage(40, 2, 7, 0)))
    events = parser.feed(line("turn/completed", turn={"status": "failed", "error": {"message": "no"}}))
    _, outcome = parser.finish(Exit(code=1))

    assert (events, outcome.usage) == ([], None)


def ended_turn(status: str | None) -> tuple[list[Content], Outcome]:
    """The second turn of a thread; None: its process died."""
    parser = AppParser(spec(prior_usage=Usage(40, 2, 7, 0)))
    total = {"inputTokens": 100, "outputTokens": 7, "cachedInputTokens": 7, "reasoningOutputTokens": 0}
    said = line("thread/tokenUsage/updated", tokenUsage={"total": total, "last": {"inputTokens": 60}})
    if status is not None:
        said += line("turn/completed", turn={"status": status, "error": None})
    events = parser.feed(said)
    last, outcome = parser.finish(Exit(code=-9 if status is None else 1))
    return events + last, outcome


# -- what a retry says again


def line(method: str, **params: Any) -> bytes:
    return json.dumps({"method": method, "params": params}).encode() + b"\n"


def delta(text: str, kind: str = "agentMessage/delta") -> bytes:
    return line(f"item/{kind}", delta=text)


def message(text: str) -> bytes:
    return line("item/completed", item={"type": "agentMessage", "text": text})


RETRY = line("error", willRetry=True, error={"message": "Reconnecting... 1/5", "codexErrorInfo": None})
DONE = line("turn/completed", turn={"status": "completed"})


def read(*lines: bytes, exit: int = 0, **fields: Any) -> tuple[list[Content], Outcome]:
    parser = AppParser(spec(**fields))
    events = [event for one in lines for event in parser.feed(one)]
    last, outcome = parser.finish(Exit(code=exit))
    return events + last, outcome


def test_what_a_retry_sends_again_is_shown_once():
    events, outcome = read(
        delta("one "), delta("two "), RETRY, delta("one two "), delta("three"), message("one two three"), DONE
    )

    assert [e.text for e in events if isinstance(e, Message)] == ["one ", "two ", "three"]
    assert not [e for e in events if isinstance(e, Progress) and e.restart_at is not None]
    assert outcome.output == "one two three"


def test_a_retry_that_says_something_else_begins_again_where_it_differs():
    events, outcome = read(message("first"), delta("one "), RETRY, delta("other"), message("other"), DONE)

    assert shown(events) == outcome.output == "first\n\nother"


def test_thoughts_that_a_retry_sends_again_are_shown_once():
    think = "reasoning/summaryTextDelta"
    item = line("item/completed", item={"type": "reasoning", "summary": ["a b c"]})

    events, _ = read(delta("a ", think), RETRY, delta("a b ", think), delta("c", think), item, DONE)

    assert [e.text for e in events if isinstance(e, Thinking)] == ["a ", "b ", "c"]


def test_a_message_that_is_more_than_its_pieces_is_whole():
    _, outcome = read(delta("one "), message("one two"), message("three"), DONE)

    assert outcome.output == "one two\n\nthree"


@pytest.mark.parametrize(
    ("info", "cause"),
    [
        ("unauthorized", "login"),
        ("usageLimitExceeded", "rate_limited"),
        ("rateLimitExceeded", "rate_limited"),
        ("serverOverloaded", "overloaded"),
        ("modelNotFound", "unknown_model"),
        ("badRequest", "bad_request"),
        ({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}, "rate_limited"),
        ({"httpConnectionFailed": {"httpStatusCode": 503}}, "overloaded"),
        ({"httpConnectionFailed": {"httpStatusCode": None}}, "failed"),
        ({"somethingNew": 5}, "failed"),
        (None, "failed"),
    ],
)
def test_a_typed_error_is_a_cause(info, cause):
    turn = {"status": "failed", "error": {"message": "it went wrong", "codexErrorInfo": info}}

    _, outcome = read(line("turn/completed", turn=turn), exit=1)

    assert outcome.failure is not None
    assert outcome.failure.cause == cause


def test_what_it_would_try_for_ever_is_hopeless():
    parser = AppParser(spec())
    error = {"message": "Reconnecting... waiting for network", "additionalDetails": "Connection failed: x"}
    for _ in range(3):
        assert parser.hopeless is None
        parser.feed(line("error", willRetry=True, error=error))

    assert parser.hopeless is not None
    assert parser.hopeless.cause == "refused_connection"


@pytest.mark.parametrize("junk", [b"{}", b"[]", b'{"method":5}', b'{"method":"turn/completed","params":7}', b"\xff"])
def test_nothing_that_it_may_print_breaks_the_parser(junk):
    _, outcome = read(junk + b"\n", exit=255)

    assert outcome.failure is not None


# -- what is said for a run

PLACE = Place(cwd="/w", scratch="/s", home="/h", own_home="/o", add_dirs=("/more",))
SETTINGS = Settings(command=("/bin/codex",), env={"KEY": "k"})
IMAGE = Attachment(media_type="image/png", data=base64.b64encode(b"png").decode(), field="f")


def test_earlier_turns_are_items_with_their_roles_and_only_new_images_are_files():
    history = (Turn(role="user", text="one", attachments=(IMAGE,)), Turn(role="assistant", text=""))

    said = talk(spec(history=history, attachments=(IMAGE,)), SETTINGS, PLACE, {})

    assert [(item["role"], [part["type"] for part in item["content"]]) for item in said.items] == [
        ("user", ["input_image", "input_text"]),
        ("assistant", ["output_text"]),
    ]
    assert said.turn["input"] == [{"type": "localImage", "path": "/s/image-2.png"}, {"type": "text", "text": "now?"}]


def test_a_thread_is_kept_for_a_session_alone():
    one_off, first = talk(spec(), SETTINGS, PLACE, {}), talk(spec(session_id="ses_1"), SETTINGS, PLACE, {})
    further = talk(spec(session_id="ses_1", resume="thread"), SETTINGS, PLACE, {})

    assert (one_off.thread["ephemeral"], one_off.kept) == (True, False)
    assert (first.thread["ephemeral"], first.kept) == (False, True)
    assert (further.resume, further.kept) == ("thread", True)
    assert "ephemeral" not in further.thread


def test_a_run_has_its_own_modes_directories_and_variables():
    asked = spec(sandbox_mode="full", model="m", effort="minimal", schema={"type": "object"}, system_prompt="S")

    said = talk(asked, SETTINGS, PLACE, {"CLINVK_RUN": "run_1", "TMPDIR": "/s/tmp"})

    config = said.thread["config"]
    assert config["sandbox_mode"] == "danger-full-access"
    assert config["shell_environment_policy.inherit"] == "core"
    assert config["shell_environment_policy.set.CLINVK_RUN"] == "run_1"
    assert config["sandbox_workspace_write.writable_roots"] == ["/s/tmp", "/more"]
    assert config["model_reasoning_effort"] == "low"
    assert config["model_instructions_file"] == "/s/instructions.md"
    assert (said.thread["model"], said.thread["cwd"], said.turn["outputSchema"]) == ("m", "/w", {"type": "object"})


def test_half_a_pair_of_surrogates_does_not_break_a_line():
    said = talk(spec(prompt="a \ud800 b", history=(Turn(role="user", text="\udfff"),)), SETTINGS, PLACE, {})

    assert msgspec.json.encode(said)


def test_a_kind_holds_nothing_of_a_run_and_hides_what_it_holds():
    base = {"PATH": "/bin", "TMPDIR": "/runs/1/tmp", "TRACEPARENT": "00-1", "TRACESTATE": "x"}

    one, other = kind(SETTINGS, base), kind(SETTINGS, base | {"TMPDIR": "/runs/2/tmp", "TRACEPARENT": "00-2"})

    assert one == other
    assert hash(one) == hash(other)
    assert one.launch(PLACE, {"X": "1"}).env == {"PATH": "/bin", "KEY": "k", "TMPDIR": "/s/tmp", "X": "1"}
    assert "KEY" not in repr(one)
    assert "analytics.enabled=false" in one.argv


def test_flags_of_the_caller_or_the_operator_go_another_way():
    assert unfit(spec(extra=("--x",)), SETTINGS) == "extra"
    assert unfit(spec(), msgspec.structs.replace(SETTINGS, extra_flags=("--y",))) == "extra"
    assert unfit(spec(), SETTINGS) is None


def test_a_long_answer_in_many_pieces_takes_linear_time():
    delta = {"method": "item/agentMessage/delta", "params": {"itemId": "m", "delta": "x" * 4000}}
    parser = AppParser(spec())
    begun = time.process_time()

    for _ in range(12):  # 5 MB; a string that grows by each piece costs seconds
        parser.feed(b"".join([msgspec.json.encode(delta) + b"\n"] * 100))

    assert time.process_time() - begun < 0.6


@pytest.mark.parametrize(
    ("asked", "operators", "decided", "expected"),
    [
        ({"sandbox_mode": "workspace"}, None, (), "untrusted"),
        ({"sandbox_mode": "full", "approval_mode": "none"}, "read-only", (), "untrusted"),
        ({"approval_mode": "auto"}, None, ("/elsewhere", "/w/below", "/wide"), "untrusted"),
        ({}, "workspace-write", (), "untrusted"),
        ({}, "danger-full-access", (), "untrusted"),
        ({}, None, (), "unsaid"),  # it cannot write: codex decides nothing, and explicit distrust would let it write
        ({"sandbox_mode": "read-only"}, "workspace-write", (), "unsaid"),
        ({"sandbox_mode": "workspace"}, None, ("/w",), "unsaid"),  # decided by the operator
        ({"sandbox_mode": "workspace"}, None, ("/",), "cold"),
        ({}, None, ("/",), "unsaid"),
    ],
)
def test_no_run_makes_codex_trust_the_directory_that_it_works_in(asked, operators, decided, expected):
    said = talk(spec(**asked), SETTINGS, PLACE, {})
    origins = {f"projects.{path}.trust_level": {} for path in decided} | {"sandbox_mode": {}, "projects": {}}
    standing = Standing.of({"config": {"sandbox_mode": operators}, "origins": origins})

    found = distrusting(said, standing)

    if expected == "cold":
        assert found is None
    elif expected == "unsaid":
        assert found == said
    else:
        assert found is not None
        assert found.thread["config"] == {**said.thread["config"], "projects": {"/w": {"trust_level": "untrusted"}}}
        assert "projects" not in said.thread["config"]


@pytest.mark.parametrize(
    ("config", "sandbox"),
    [
        ({"sandbox_mode": "read-only", "default_permissions": ":workspace"}, "read-only"),
        ({"sandbox_mode": None, "default_permissions": ":workspace"}, "workspace"),
        ({"default_permissions": "a-profile"}, "a-profile"),
        ({"default_permissions": ":read-only"}, "read-only"),
        ({"default_permissions": None}, None),
    ],
)
def test_what_a_profile_of_permissions_lets_a_run_write_is_no_trust_either(config, sandbox):
    standing = Standing.of({"config": config, "origins": {}})

    assert standing.sandbox == sandbox
    said = talk(spec(), SETTINGS, PLACE, {})
    found = distrusting(said, standing)
    assert found is not None
    assert ("projects" in found.thread["config"]) == (sandbox not in (None, "read-only"))


@pytest.mark.parametrize("answer", [None, [], {}, {"config": 1, "origins": []}, {"config": {"sandbox_mode": 5}}])
def test_a_configuration_that_says_nothing_is_one(answer):
    assert Standing.of(answer) == Standing(None, frozenset())
