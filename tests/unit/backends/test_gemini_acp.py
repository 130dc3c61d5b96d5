"""Gemini's resident: recorded sessions of the real one, hostile ones, and which runs it may carry."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InvalidRequest
from shared.event import Content, Init, Message, Progress, Thinking, TokenUsage, ToolResult, ToolUse
from shared.run import Attachment, Outcome, RunSpec, Turn, Usage
from worker.backends import BACKENDS
from worker.backends import gemini_acp as acp
from worker.backends.base import Exit, Place, Settings
from worker.backends.options import resolve

_ROOT = Path(__file__).parents[2] / "transcripts" / "gemini-acp"
_ALL = sorted(path.name for path in _ROOT.iterdir())
TOK5 = "tok0 tok1 tok2 tok3 tok4 "

# case -> code of the failure, its cause, the output
EXPECTED: dict[str, tuple[str | None, str | None, str | None]] = {
    "cancelled": ("backend_error", "interrupted", None),
    "drop": ("backend_error", "stream_cut", "tok0 tok1 tok2 "),
    "eof": ("backend_error", "stream_cut", "tok0 tok1 tok2 "),
    "err400": ("backend_error", "bad_request", ""),
    "err401": ("backend_login", "login", ""),
    "err429": ("backend_limited", "rate_limited", ""),
    "err500": ("backend_error", "vendor_error", ""),
    "err503": ("backend_unavailable", "overloaded", ""),
    "loop": ("backend_error", "loop_detected", None),
    "refused": ("backend_unavailable", "refused_connection", ""),
    "text": (None, None, TOK5 + "tok5 tok6 tok7 "),
    "thinking": (None, None, TOK5[:20]),
    "tool-denied": (None, None, TOK5),
    "tool-edit": (None, None, TOK5),
    "tool-eof": ("backend_error", "stream_cut", "tok0 tok1 tok2 "),
    "tool-failed": (None, None, TOK5),
    "tool-read": (None, None, TOK5),
    "tool-unknown": (None, None, TOK5),
    "unknown-model": ("model_not_found", "unknown_model", ""),
}


def play(case: str, how: str = "whole") -> tuple[list[Content], Outcome]:
    out = (_ROOT / case / "stdout").read_bytes()
    code = json.loads((_ROOT / case / "meta.json").read_text())["exit_code"]
    pieces = {"whole": [out], "lines": out.splitlines(keepends=True), "bytes": [bytes([b]) for b in out]}[how]
    parser = acp.AcpParser("gemini-2.5-pro")
    events = [event for piece in pieces for event in parser.feed(piece)]
    last, outcome = parser.finish(Exit(code=code))
    return events + last, outcome


def test_every_transcript_is_expected():
    assert sorted(EXPECTED) == _ALL


@pytest.mark.parametrize("case", _ALL)
def test_a_transcript_comes_to_its_outcome_whatever_the_pieces_it_comes_in(case):
    code, cause, output = EXPECTED[case]

    events, outcome = play(case)

    failure = outcome.failure
    assert (failure and failure.code, failure and failure.cause) == (code, cause)
    assert output is None or outcome.output == output
    assert "".join(event.text for event in events if isinstance(event, Message)) == outcome.output
    assert play(case, "lines") == play(case, "bytes") == (events, outcome)
    assert isinstance(events[0], Init)
    assert events[0].backend_session_id == outcome.backend_session_id
    assert len(outcome.backend_session_id or "") == 36


def test_usage_counts_what_was_thought_and_cached():
    events, outcome = play("thinking")

    assert outcome.usage == Usage(100, 7, 7, 3)
    assert [event for event in events if isinstance(event, TokenUsage)] == [TokenUsage(100, 7, 7, 3)]
    assert [event.text for event in events if isinstance(event, Thinking)] == [
        "thought0",
        "\n\nthought1",
        "\n\nthought2",
    ]


def test_without_its_record_the_cli_s_own_count_must_do():
    out = (_ROOT / "text" / "stdout").read_bytes().splitlines(keepends=True)
    parser = acp.AcpParser(None)

    parser.feed(b"".join(line for line in out if acp.RECORD.encode() not in line))

    assert parser.finish(Exit(code=0))[1].usage == Usage(100, 8)


def tools(case: str) -> list[Content]:
    return [event for event in play(case)[0] if isinstance(event, ToolUse | ToolResult)]


def test_a_tool_begins_and_ends_once_and_bears_its_name():
    (use, result) = tools("tool-read")

    assert isinstance(use, ToolUse)
    assert isinstance(result, ToolResult)
    assert (use.name, use.input, use.id == result.id, result.is_error) == (
        "list_directory",
        {"title": "."},
        True,
        False,
    )


def test_a_tool_that_fails_before_it_begins_is_shown_too():
    (use, result) = tools("tool-failed")

    assert isinstance(use, ToolUse)
    assert isinstance(result, ToolResult)
    assert (use.name, result.is_error) == ("read_file", True)
    assert "Path not in workspace" in result.output


def test_what_asks_is_denied_and_shown():
    (use, result) = tools("tool-denied")

    assert isinstance(use, ToolUse)
    assert use.name == "write_file"
    assert isinstance(result, ToolResult)
    assert result.is_error
    request = next(
        json.loads(line)
        for line in (_ROOT / "tool-denied" / "stdout").read_text().splitlines()
        if "request_permission" in line
    )
    assert acp.permission(request) == {"outcome": {"outcome": "selected", "optionId": "cancel"}}
    assert acp.permission({}) == {"outcome": {"outcome": "cancelled"}}


def test_an_edit_that_the_mode_permits_says_where():
    use = tools("tool-edit")[0]

    assert isinstance(use, ToolUse)
    assert use.input["paths"][0].endswith("/a.txt")


def test_what_a_retry_says_again_is_not_shown_twice():
    def said(words: str, at: float) -> bytes:
        update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": words}}
        return acp.stamped(json.dumps({"method": "session/update", "params": {"update": update}}).encode() + b"\n", at)

    parser = acp.AcpParser(None)
    ha = [event for at in (1.0, 1.1, 1.2) for event in parser.feed(said("ha ", at))]
    again = [event for at in (3.0, 3.1, 3.2, 3.3) for event in parser.feed(said("ha ", at))]

    assert [event.text for event in ha if isinstance(event, Message)] == ["ha ", "ha ", "ha "]
    assert [event.text for event in again if isinstance(event, Message)] == ["ha "]
    assert parser.finish(Exit(code=0))[1].output == "ha ha ha ha "


# -- hostile lines

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=8), below, max_size=3),
    max_leaves=8,
)
_KEYS = ["sessionUpdate", "content", "text", "toolCallId", "status", "locations", "kind", "title", "path"]
_KEYS += ["sessionId", "usage", "complete", "stopReason", "code", "message", "data", "_meta", "toolCall", "options"]
_METHODS = ["session/update", "session/request_permission", acp.SESSION, acp.RECORD, "x"]
_VALUES = ["agent_message_chunk", "agent_thought_chunk", "tool_call", "tool_call_update", "completed", "end_turn"]
_VALUE = st.sampled_from(_VALUES) | _JSON
_INNER = st.dictionaries(st.sampled_from(_KEYS), _VALUE | st.dictionaries(st.sampled_from(_KEYS), _VALUE, max_size=4))
_LINE = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(_METHODS) | _JSON,
        "params": _INNER | st.fixed_dictionaries({"update": _INNER | _JSON}) | _JSON,
        "result": _INNER | _JSON,
        "error": _INNER | _JSON,
        "at": _JSON,
    },
)


@given(items=st.lists(_LINE | _JSON, max_size=6), noise=st.binary(max_size=20), code=st.integers(-15, 255))
def test_no_line_makes_the_parser_raise(items, noise, code):
    parser = acp.AcpParser("m")

    events = [e for item in items for e in parser.feed(json.dumps(item).encode() + b"\n" + noise)]
    last, outcome = parser.finish(Exit(code=code))

    assert not [e for e in [*events, *last] if isinstance(e, Progress)]
    assert "".join(e.text for e in [*events, *last] if isinstance(e, Message)) == outcome.output


@given(lines=st.lists(st.binary(max_size=30) | _JSON.map(lambda v: json.dumps(v).encode()), max_size=6))
def test_no_file_of_a_session_makes_its_reader_raise(lines):
    assert acp.record(b"\n".join(lines)).usage == Usage()


def test_usage_is_told_of_a_turn_that_came_to_its_own_end_and_of_no_other():
    for case, expected in (("err429", Usage()), ("text", Usage(100, 8, 7, 0)), ("cancelled", None)):
        events, outcome = play(case)

        assert outcome.usage == expected, case
        assert any(isinstance(event, TokenUsage) for event in events) == (expected is not None)


def test_silence_is_never_a_success():
    for code in (0, 1, -9):
        parser = acp.AcpParser(None)
        parser.feed(acp.session_line("s"))

        failure = parser.finish(Exit(code=code))[1].failure

        assert failure is not None
        assert failure.cause == ("no_final_event" if code == 0 else "crashed")


# -- what its file says


def lines(*items: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


def message(id: str, kind: str, content: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "type": kind, "content": content, **more}


COUNT = {"input": 100, "output": 5, "cached": 7, "thoughts": 2}


def test_a_record_counts_what_each_of_the_model_s_words_has_cost():
    old = message("1", "user", "q"), message("2", "gemini", "a", tokens=COUNT)
    data = lines({"sessionId": "s"}, *old, message("3", "user", "q"), message("4", "gemini", "a", tokens=COUNT))

    assert acp.record(data) == acp.Record(Usage(200, 14, 14, 4), complete=True)


def test_a_process_that_was_ended_for_what_it_did_says_so():
    parser = acp.AcpParser(None)
    _, outcome = parser.finish(Exit(code=-9, stderr="it held 900 MB, 100 were its limit", cause="out_of_memory"))

    assert outcome.failure is not None
    assert (outcome.failure.code, outcome.failure.cause) == ("backend_error", "out_of_memory")
    assert "it held 900 MB" in outcome.failure.message


def test_what_a_resident_is_started_with_shows_no_key_and_no_prompt():
    made = acp.fixed(
        acp.Way(system="be a pirate"),
        Settings(command=("/bin/gemini",), env={"GEMINI_API_KEY": "k-secret"}),
        Place(cwd="/w", scratch="/s", home="/h", own_home="/o"),
        {},
    )

    assert "k-secret" not in repr(made)
    assert "pirate" not in repr(made)


def test_a_message_counts_as_it_was_written_last_and_one_taken_back_not_at_all():
    first = message("1", "user", "q")
    data = lines(first, message("2", "gemini", "a"), message("2", "gemini", "a b", tokens=COUNT))

    assert acp.record(data) == acp.Record(Usage(100, 7, 7, 2), complete=True)
    assert not acp.record(data + lines({"$rewindTo": "2"})).complete
    assert not acp.record(data + lines({"$set": {"messages": [first]}})).complete
    assert not acp.record(data + lines(message("3", "gemini", "", toolCalls=[{}]))).complete


# -- which runs


def made(**fields: Any) -> RunSpec:
    return RunSpec(**{"id": "run_1", "tenant": "t", "backend": "gemini", "prompt": "hi", **fields})


def reason(spec: RunSpec, **config: Any) -> str | None:
    configured = Settings(command=("/bin/gemini",), **config)
    return acp.reason_against(
        spec, resolve(spec, configured, BACKENDS["gemini"].capabilities(as_root=False)), configured
    )


def way(**fields: Any) -> acp.Way:
    configured = Settings(command=("/bin/gemini",))
    return acp.way(resolve(made(**fields), configured, BACKENDS["gemini"].capabilities(as_root=False)))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, None),
        ({"approval_mode": "always", "sandbox_mode": "full"}, None),
        ({"approval_mode": "auto", "sandbox_mode": "workspace"}, None),
        ({"approval_mode": "none"}, "shell"),
        ({"approval_mode": "none", "sandbox_mode": "full"}, "shell"),
        ({"approval_mode": "none", "sandbox_mode": "read-only"}, None),
        ({"max_turns": 3}, "options"),
        ({"add_dirs": ("/x",)}, "options"),
        ({"extra": ("--x",)}, "options"),
        ({"resume": "s"}, "resume"),
        ({"prompt": "/help"}, "command"),
        ({"prompt": " \n\ufeff$x"}, "command"),
        ({"prompt": "a /help"}, None),
        ({"prompt": "x" * 5_000_000}, "size"),
    ],
)
def test_a_run_that_a_resident_cannot_carry_has_a_word_for_it(fields, word):
    assert reason(made(**fields)) == word


def test_what_the_operator_adds_to_the_command_line_needs_one_process_a_run():
    assert reason(made(), extra_flags=("--debug",)) == "options"
    assert reason(made(), allowed_tools=("run_shell_command(git)",)) == "options"
    assert reason(made(), max_turns=5) == "options"


def test_no_resident_offers_a_command_line_and_only_those_that_edit_offer_edits():
    reading, editing = way(), way(approval_mode="auto")

    for kind in (reading, editing, way(system_prompt="s")):
        assert {"run_shell_command", "activate_skill", "enter_plan_mode"} <= set(kind.excluded)
    assert {"write_file", "replace", "web_fetch"} <= set(reading.excluded)
    assert not {"write_file", "replace"} & set(editing.excluded)
    assert (reading.mode, editing.mode) == ("default", "autoEdit")
    assert way(approval_mode="auto", sandbox_mode="read-only") == reading
    assert way(system_prompt="s") != reading


PICTURE = Attachment(media_type="image/PNG", data="AAAA", field="f")
NOTE = Attachment(media_type="text/plain", data="L2hlbHA=", name="/help", field="f")


def test_attachments_come_before_the_prompt():
    blocks = acp.prompt(made(attachments=(PICTURE, NOTE), prompt="look \ud800"))

    assert blocks == [
        {"type": "image", "mimeType": "image/png", "data": "AAAA"},
        {"type": "text", "text": "/help:\n\n/help\n\n"},
        {"type": "text", "text": "look ?"},
    ]


def test_a_text_before_the_prompt_is_no_command_either():
    assert reason(made(attachments=(NOTE,))) == "command"
    assert reason(made(attachments=(PICTURE,), prompt="/help")) is None  # it looks for none behind an image


def test_an_attachment_that_is_no_base64_is_refused():
    with pytest.raises(InvalidRequest):
        acp.prompt(made(attachments=(Attachment(media_type="image/png", data="!", field="f"),)))


def test_a_session_with_history_and_a_project_have_names_that_the_cli_takes():
    spec = made(history=(Turn(role="user", text="q"), Turn(role="assistant", text="a")))

    (id, file), other = acp.earlier(spec, "/a"), acp.earlier(msgspec.structs.replace(spec, id="run_2"), "/a")

    assert acp.earlier(made(), "/a") is None
    assert len(id) == 36
    assert other
    assert other[0] != id
    assert json.loads(file)["sessionId"] == id
    assert json.loads(file)["projectHash"]
    assert acp.told_again(file) == 2
    assert acp.project("/a/b").replace("-", "").isalnum()
    assert acp.project("/a/b") != acp.project("/a/c")


PLACE = Place(cwd="/w/cwd", scratch="/w/s", home="/root", own_home="/w/home")


def test_a_resident_starts_with_nothing_of_the_run_that_it_is_started_for():
    configured = Settings(command=("/bin/gemini",), env={"B": "2"})
    run = Place(cwd="/r/cwd", scratch="/r/s", home="/root", own_home="/r/home")
    fixed = acp.fixed(way(), configured, run, {"HOME": "/root", "TMPDIR": "/r/s/tmp", "GEMINI_API_KEY": "k"})

    launch = acp.launch(fixed, PLACE)

    assert hash(fixed) == hash(acp.fixed(way(), configured, PLACE, {"TMPDIR": "/x", "GEMINI_API_KEY": "k"}))
    assert "/r/" not in repr(launch)
    assert launch.argv[:2] == ("/bin/gemini", "--acp")
    assert (launch.env["B"], launch.env["HOME"], launch.env["TMPDIR"]) == ("2", "/w/home", "/w/s/tmp")
    assert set(launch.copies.values()) >= {"/root/.gemini/oauth_creds.json"}
    made = json.loads(launch.files["/w/home/.gemini/settings.json"])
    assert made["security"]["auth"]["selectedType"] == "gemini-api-key"
    assert set(made["tools"]["exclude"]) == set(way().excluded)
    assert "GEMINI_SYSTEM_MD" not in launch.env


def test_a_resident_for_a_system_prompt_is_for_that_one_alone():
    kind = way(system_prompt="YOU ARE")
    launch = acp.launch(acp.fixed(kind, Settings(command=("/g",)), PLACE, {}), PLACE)

    assert launch.unfiled == {"GEMINI_SYSTEM_MD": b"YOU ARE"}
    assert not any(b"YOU ARE" in content for content in launch.files.values())  # on no disk: its run may be erased
    assert kind != way(system_prompt="YOU ARE NOT")
    assert "YOU ARE" not in " ".join([*launch.argv, *launch.env.values()])
