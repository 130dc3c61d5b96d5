"""Native bodies and the error table."""

import json
import re

import pytest
from litestar import Litestar

from api import errors, health, openapi
from api.anthropic import routes as anthropic
from api.metrics import metrics
from api.native import routes as native
from api.native.wire import PromptBody, parse
from api.openai import routes as openai
from shared.errors import InvalidRequest, NotFound, QueueFull


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"backend":"echo"}', "prompt"),
        (b'{"backend":"echo","prompt":1}', "prompt"),
        (b'{"backend":"echo","prompt":"x","work_dir":"/"}', "work_dir"),
        (b'{"backend":"echo","prompt":"x","approval_mode":"yes"}', "approval_mode"),
        (b'{"backend":"echo","prompt":"x","extra":[1]}', "extra[0]"),
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b'{"a":' * 100_000, None),
        (b'{"metadata":' + b'{"a":' * 100 + b"1" + b"}" * 101, None),
    ],
)
def test_a_bad_body_is_refused_naming_its_field(body, field):
    with pytest.raises(InvalidRequest) as error:
        parse(body, PromptBody)

    assert error.value.field == field


def test_an_unknown_field_is_told_the_nearest_known():
    with pytest.raises(InvalidRequest, match="workdir"):
        parse(b'{"backend":"echo","prompt":"x","work_dir":"/"}', PromptBody)


def test_null_means_absent():
    assert parse(b'{"backend":"echo","prompt":"x","model":null,"extra":null}', PromptBody).extra == []


def test_an_error_serves_every_reader():
    for dialect in ("native", "openai", "anthropic"):
        answer = errors.of_exception(NotFound("run", "r"), dialect=dialect, request_id="q")
        body = json.loads(answer.body)

        assert (answer.status, body["status"], body["request_id"]) == (404, 404, "q")
        assert body["detail"] == body["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"
    assert body["type"] == "error"


def test_what_may_work_later_says_when():
    answer = errors.of_exception(QueueFull("full", retry_after_s=7), dialect="openai", request_id="q")

    assert (answer.status, answer.headers["retry-after"], answer.headers["x-should-retry"]) == (429, "7", "true")


def test_an_unforeseen_error_tells_nothing_of_its_inside():
    answer = errors.of_exception(ValueError("secret"), dialect="native", request_id="q")

    assert answer.status == 500
    assert b"secret" not in answer.body


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Litestar, about its own next major
def test_the_document_describes_every_route():
    described = {(path, method) for path, found in openapi.document()["paths"].items() for method in found}
    handlers = [
        native.router,
        openai.router,
        anthropic.router,
        *health.handlers,
        metrics,
        openapi.openapi_json,
        openapi.docs,
    ]
    app = Litestar(handlers, openapi_config=None)
    served = {
        (re.sub(r":(str|path)\b", "", route.path), method.lower())
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method not in ("OPTIONS", "HEAD")
    }

    assert served == described
