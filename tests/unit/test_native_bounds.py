"""Requests that no caller means: refused before a worker has to look at them."""

import msgspec
import pytest

from api import errors
from api.native.translate import to_spec
from api.native.wire import PromptBody
from shared.errors import InvalidRequest


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"workdir": "/" + "a/" * 2048}, "workdir"),
        ({"workdir": "/" + "漢" * 1400}, "workdir"),
        ({"add_dirs": ["/srv"] * 65}, "add_dirs"),
        ({"add_dirs": ["/srv", "/" + "a" * 4096]}, "add_dirs[1]"),
        ({"extra": ["--x"] * 257}, "extra"),
        ({"extra": ["--" + "f" * 4096]}, "extra[0]"),
        ({"backend": "B" * 201}, "backend"),
        ({"model": "m" * 201}, "model"),
        ({"model": "m\r\nx"}, "model"),
    ],
)
def test_what_is_longer_than_any_request_that_is_meant_is_refused_by_name(wrong, field):
    body = msgspec.convert({"backend": "echo", "prompt": "p", **wrong}, PromptBody)

    with pytest.raises(InvalidRequest) as refused:
        to_spec(body, model=body.model, run_id="run_1", session_id="ses_1", tenant="t", request_id="r")

    assert refused.value.field == field
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("dialect", ["native", "openai", "anthropic"])
def test_an_error_gives_no_more_of_a_callers_words_back_than_a_person_reads(dialect):
    error = InvalidRequest("unknown field " + "x" * 3_000_000, field="x" * 3_000_000)

    assert len(errors.of_exception(error, dialect=dialect, request_id="r").body) < 40_000
