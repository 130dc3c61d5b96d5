"""What a CLI may print, well or ill meant."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.event import Message, Progress
from shared.run import RunSpec
from tests.words import CLI_WORDS
from worker.backends import BACKENDS
from worker.backends.answer import Answer
from worker.backends.base import Exit
from worker.backends.lines import Lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=10), below, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(CLI_WORDS)
SHAPED = st.dictionaries(WORDS, WORDS | JSON | st.dictionaries(WORDS, WORDS | JSON, max_size=4), max_size=6)


def parser_of(backend: str, **fields):
    return BACKENDS[backend].parser(RunSpec(id="r", tenant="t", backend=backend, prompt="p", **fields))


def lines(*items: object) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


@pytest.mark.parametrize("backend", BACKENDS)
@given(items=st.lists(SHAPED | JSON, max_size=8), noise=st.binary(max_size=40), code=st.integers(-15, 255))
def test_no_output_makes_a_parser_raise(backend, items, noise, code):
    parser = parser_of(backend)

    for item in items:
        parser.feed(json.dumps(item).encode() + b"\n" + noise)
    _, outcome = parser.finish(Exit(code=code, stderr=""))

    assert isinstance(outcome.output, str)


@pytest.mark.parametrize("backend", ["claude", "codex"])
@given(items=st.lists(SHAPED | JSON, max_size=8), code=st.integers(0, 1))
def test_to_a_schema_the_messages_joined_are_the_output_and_json(backend, items, code):
    parser = parser_of(backend, schema={"type": "object"})

    events = parser.feed(lines(*items))
    last, outcome = parser.finish(Exit(code=code))

    assert texts([*events, *last]) == outcome.output
    assert not [e for e in [*events, *last] if isinstance(e, Progress) and e.restart_at is not None]
    if outcome.failure is None:
        json.loads(outcome.output)


def test_claudes_value_is_compact_json_of_any_letters():
    parser = parser_of("claude", schema={"type": "object"})
    value = {"a": ["é 漢 🪐", None, 1, 2.5, "\u2028"], "b": {}}
    result = {"type": "result", "subtype": "success", "is_error": False, "result": "", "structured_output": value}

    events = parser.feed(lines(result, result))
    _, outcome = parser.finish(Exit(code=0))

    assert outcome.output == texts(events) == '{"a":["é 漢 🪐",null,1,2.5,"\u2028"],"b":{}}'
    assert outcome.failure is None


@pytest.mark.parametrize(
    "end",
    [
        {"subtype": "success", "is_error": False},
        {"subtype": "success", "is_error": False, "structured_output": None},
        {"subtype": "error_max_structured_output_retries", "is_error": True},
    ],
)
def test_claude_without_a_value_has_failed(end):
    parser = parser_of("claude", schema={"type": "object"})

    parser.feed(lines({"type": "result", "result": "just words", **end}))
    _, outcome = parser.finish(Exit(code=0))

    assert outcome.failure is not None
    assert (outcome.failure.cause, outcome.output) == ("no_structured_output", "")


@pytest.mark.parametrize("said", ["just words", "", '{"a":', "NaN"])
def test_codex_without_json_in_its_last_message_has_failed(said):
    parser = parser_of("codex", schema={"type": "object"})

    parser.feed(
        lines(
            {"type": "item.completed", "item": {"type": "agent_message", "text": '{"a":1}'}},
            {"type": "item.completed", "item": {"type": "agent_message", "text": said}},
            {"type": "turn.completed", "usage": {}},
        )
    )
    _, outcome = parser.finish(Exit(code=0))

    assert outcome.failure is not None
    assert (outcome.failure.cause, outcome.output) == ("no_structured_output", "")


@pytest.mark.parametrize("backend", BACKENDS)
def test_silence_is_never_a_success(backend):
    for code in (0, 1, -9):
        _, outcome = parser_of(backend).finish(Exit(code=code))

        assert outcome.failure is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_deep_nesting_and_broken_bytes_are_passed_over(backend):
    parser = parser_of(backend)

    assert parser.feed(b"[" * 200_000 + b"\n" + b"\xff\xfe\x00\n" + b'{"type":' + b'{"a":' * 50_000 + b"\n") == []


def test_a_line_of_ten_megabytes_costs_no_more_than_its_length():
    line = json.dumps({"type": "x", "text": "y" * 10_000_000}).encode() + b"\n"
    lines = Lines()
    begun = time.process_time()

    found = [item for i in range(0, len(line), 65_536) for item in lines.feed(line[i : i + 65_536])]

    assert len(found) == 1
    assert time.process_time() - begun < 5  # quadratic would take minutes


def texts(events):
    return "".join(e.text for e in events if isinstance(e, Message))


def test_a_retry_that_says_more_shows_only_what_is_new():
    answer = Answer()
    shown = answer.add("one two ")
    answer.restart()

    shown += answer.add("one ") + answer.add("two three")

    assert texts(shown) == answer.text == "one two three"


def test_a_retry_that_differs_says_from_where():
    answer = Answer()
    shown = answer.add("one two ")
    answer.restart()

    shown += answer.add("one three") + answer.close()

    assert [e.restart_at for e in shown if isinstance(e, Progress)] == [5]
    assert answer.text == "one three"


def test_a_retry_that_says_less_takes_the_rest_back():
    answer = Answer()
    answer.add("one two ")
    answer.restart()
    answer.add("one ")

    (told,) = answer.close()

    assert told == Progress("the CLI began its answer again", restart_at=4)
    assert answer.text == "one "


def test_a_second_message_stands_a_blank_line_apart():
    answer = Answer()
    answer.add("one")
    answer.close()

    assert texts(answer.add("two")) == "\n\ntwo"
    assert answer.text == "one\n\ntwo"


@given(st.text(max_size=30), st.text(max_size=30), st.integers(1, 5))
def test_whatever_a_retry_says_the_answer_is_what_it_said_last(first, second, size):
    answer = Answer()
    said = ""

    def show(events):
        nonlocal said
        for event in events:
            if isinstance(event, Progress):
                said = said[: event.restart_at]
            else:
                said += event.text

    show(answer.add(first))
    answer.restart()
    for i in range(0, len(second), size):
        show(answer.add(second[i : i + size]))
    show(answer.close())

    assert said == answer.text == second
