"""How much a body may hold: refused by name, before anything is made of it."""

import json
import random

import msgspec
import pytest

from api import body as bodies
from api import bounds
from api.anthropic.routes import _body
from api.body import decode, present
from api.compat import to_spec as compat_spec
from api.conversation import Talk
from api.models import Route
from api.native import flow_view
from api.native.translate import to_spec
from api.native.wire import CompareBody, ParallelBody, PromptBody, known, parse
from api.openai.routes import _chat_body
from shared.errors import InvalidRequest
from shared.run import Attachment, Turn

MOST = bounds.MOST_VALUES


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[' + b",".join([b'{"role":"user","content":"x"}'] * 300_000) + b"]}",
        b'{"metadata":{"a":[' + b",".join([b"{}"] * MOST) + b"]}}",
        b"{" + b",".join(b'"k%d":1' % number for number in range(MOST + 1)) + b"}",
        b'{"prompt":"\\",","a":[' + b" , ".join([b'"[{"'] * MOST) + b"]}",
        b"[" + b"[]," * MOST + b"[]]",
    ],
    ids=["messages", "metadata", "fields", "strings", "empty"],
)
def test_more_values_than_any_honest_body_has_are_refused_before_anything_is_made_of_them(body, monkeypatch):
    made = []
    monkeypatch.setattr(bodies, "_deeper_than", lambda *_: made.append(True))

    with pytest.raises(InvalidRequest, match="more than 200,000 values"):
        decode(body)

    assert not made


@pytest.mark.parametrize("text", ["," * 2_000_000, '",[{' * 500_000, '\\"' * 300_000 + "," * MOST, "é[\n" * MOST])
def test_a_long_text_full_of_commas_is_one_value(text):
    assert decode(msgspec.json.encode({"backend": "echo", "prompt": text}))["prompt"] == text


def test_as_many_values_as_may_be_are_taken_and_one_more_is_not():
    decode(b'{"a":[' + b",".join([b"1"] * (MOST - 1)) + b"]}")

    with pytest.raises(InvalidRequest):
        decode(b'{"a":[' + b",".join([b"1"] * MOST) + b"]}")


@pytest.mark.parametrize("body", [b'{"a":"' + b'\\",' * MOST, b'""' * 10 + b"," * (MOST + 1), b"{}" * (MOST + 1)])
def test_what_is_no_json_is_told_as_that_however_many_commas_it_has(body):
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        decode(body)


def test_the_scan_counts_as_a_parser_would():
    rng = random.Random(7)
    words = ["a", ",", '"', "\\", "[", "{", "}", "]", "\n", "é", " ", ":"]

    def value(depth):
        kind = rng.randrange(8 if depth else 4)
        if kind == 0:
            return rng.choice([1, None, True, -1.5e9])
        if kind < 4:
            return "".join(rng.choices(words, k=rng.randrange(6)))
        if kind < 6:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        return {value(0) if rng.random() < 0.5 else "k": value(depth - 1) for _ in range(rng.randrange(4))}

    def counted(one):
        below = list(one.values()) if isinstance(one, dict) else one if isinstance(one, list) else []
        return len(below) + sum(map(counted, below))

    for _ in range(500):
        raw = json.dumps(value(5), indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5).encode()

        assert sum(1 for _ in bounds._values(raw)) == counted(json.loads(raw)), raw


def test_64_levels_are_taken_and_65_are_not():
    def nested(levels):
        return b'{"a":' * (levels - 1) + b"[]" + b"}" * (levels - 1)

    decode(nested(64))

    with pytest.raises(InvalidRequest, match="deeper than 64 levels"):
        decode(nested(65))


@pytest.mark.parametrize("make", [_body, _chat_body])
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "x"}] * 10_001,
        [{"role": "user", "content": [{"type": "text", "text": "x"}] * 100}] * 100,
        [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "x"}] * 10_000}]}],
        [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "x"}}] * 10_000}],
    ],
    ids=["messages", "parts", "nested", "calls"],
)
def test_more_messages_and_parts_than_may_be_are_refused_by_name(make, messages):
    with pytest.raises(InvalidRequest, match="at most 10,000 in all are allowed") as refused:
        make({"model": "echo", "messages": messages})

    assert refused.value.field == "messages"


def test_the_bound_of_parts_counts_no_message_twice_and_looks_at_no_argument():
    bounds.of_parts([{"content": [{"type": "tool_use", "input": {"content": [1] * 20_000}}] * 9}] * 1_000, "messages")
    bounds.of_parts("x" * 20_000, "input")
    bounds.of_parts(None, "input")


def test_too_much_metadata_is_refused_by_name():
    def spec(text):
        body = msgspec.convert({"backend": "echo", "prompt": "p", "metadata": {"a": text}}, PromptBody)
        return to_spec(body, model=None, run_id="run_1", session_id="ses_1", tenant="t", request_id="r")

    spec("x" * (bounds.METADATA_BYTES - len('{"a":""}')))

    with pytest.raises(InvalidRequest, match="at most 65,536 bytes as JSON, not 65,537") as refused:
        spec("x" * (bounds.METADATA_BYTES - len('{"a":""}') + 1))
    assert refused.value.field == "metadata"


def test_too_much_metadata_of_a_compatible_surface_is_refused_by_name():
    talk, to = Talk(None, (), "p", ()), Route("echo", None)

    with pytest.raises(InvalidRequest) as refused:
        compat_spec(None, talk, to, dialect="openai", model="echo", reply={}, metadata={"a": "x" * 70_000})

    assert refused.value.field == "metadata"


def test_a_field_whose_name_is_a_book_is_refused_and_a_mistyped_one_still_finds_its_like():
    with pytest.raises(InvalidRequest, match="known are"):
        parse(msgspec.json.encode({"prompt": "p", "promp" * 100_000: 1}), PromptBody)
    with pytest.raises(InvalidRequest, match="did you mean 'tasks'"):
        known({"taks": []}, ParallelBody)


def test_of_very_many_ignored_fields_the_first_are_told():
    data = present({f"k{number:06}": 1 for number in range(5_000)} | {"model": "echo"})

    told = bodies.ignored(data, ["model"])

    assert told[0] == "k000000"
    assert len(told) == 200


def test_a_prompt_that_would_be_repeated_for_too_many_backends_is_refused_by_name():
    make = flow_view.Maker("flow_1", "t", "r", {})
    body = CompareBody(prompt="x" * (bounds.MOST_REPEATED // 10), system_prompt="be brief", backends=["echo"] * 9)

    assert len(flow_view.compare(body, make, most=10).lanes) == 9

    body.backends = ["echo"] * 10
    with pytest.raises(InvalidRequest, match="at most 33,554,432 are allowed") as refused:
        flow_view.compare(body, make, most=10)
    assert refused.value.field == "backends"


@pytest.mark.parametrize(
    "turn",
    [
        Turn(role="user", text="x" * 101),
        Turn(role="user", text="", attachments=(Attachment(media_type="a/b", data="x" * 101, field="f"),)),
    ],
)
def test_a_history_of_more_than_one_request_could_bring_is_refused_by_name(turn):
    bounds.of_history([Turn(role="user", text="x" * 50)], "y" * 50, 100, "previous_response_id")

    with pytest.raises(InvalidRequest) as refused:
        bounds.of_history([turn], "", 100, "previous_response_id")
    assert refused.value.field == "previous_response_id"

    with pytest.raises(InvalidRequest, match="10,001 turns"):
        bounds.of_history([Turn(role="user", text="")] * 10_001, "", 100, "previous_response_id")
