"""What a CLI may print, well or ill meant."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.event import Message, Progress
from shared.run import RunSpec
from worker.backends import BACKENDS
from worker.backends.answer import Answer
from worker.backends.base import Exit
from worker.backends.lines import Lines

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=10), below, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(
    [
        "type",
        "subtype",
        "system",
        "init",
        "assistant",
        "user",
        "result",
        "stream_event",
        "message",
        "content",
        "text",
        "item",
        "usage",
        "event",
        "delta",
        "content_block_delta",
        "text_delta",
        "message_start",
        "message_stop",
        "turn.completed",
        "item.completed",
        "agent_message",
        "error",
        "status",
        "success",
        "stats",
        "session_id",
        "is_error",
        "model",
        "id",
        "role",
        "timestamp",
    ]
)
SHAPED = st.dictionaries(WORDS, WORDS | JSON | st.dictionaries(WORDS, WORDS | JSON, max_size=4), max_size=6)


def parser_of(backend: str):
    return BACKENDS[backend].parser(RunSpec(id="r", tenant="t", backend=backend, prompt="p"))


@pytest.mark.parametrize("backend", BACKENDS)
@given(items=st.lists(SHAPED | JSON, max_size=8), noise=st.binary(max_size=40), code=st.integers(-15, 255))
@settings(max_examples=150, deadline=None)
def test_no_output_makes_a_parser_raise(backend, items, noise, code):
    parser = parser_of(backend)

    for item in items:
        parser.feed(json.dumps(item).encode() + b"\n" + noise)
    _, outcome = parser.finish(Exit(code=code, stderr=""))

    assert isinstance(outcome.output, str)


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
