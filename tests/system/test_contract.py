"""The OpenAPI document against the running service: what it says is all that happens, whatever is sent.

Schemathesis makes requests from the document, right ones and wrong ones; what comes back must be documented, in its
documented shape and type, and never a 500. `CLINVK_TEST_CASES` says how many of each kind for each operation.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from api import openapi
from tests.system.service import serving

pytestmark = pytest.mark.processes

CASES = int(os.environ.get("CLINVK_TEST_CASES", "10"))
KEY = "contract-key"
CONFIGS = {
    "default": {},
    "keyed": {
        "CLINVK_API_KEYS": KEY,
        "CLINVK_SERVER__METRICS_ENABLED": "true",
        "CLINVK_SERVER__TRUSTED_PROXIES": "127.0.0.1",
        "CLINVK_SERVER__CORS_ALLOWED_ORIGINS": "https://app.example",
        "CLINVK_STRICT_MODELS": "true",
    },
    "limited": {
        "CLINVK_SERVER__RATE_LIMIT_ENABLED": "true",
        "CLINVK_SERVER__RATE_LIMIT_RPS": "10",
        "CLINVK_SERVER__RATE_LIMIT_BURST": "40",
    },
}
# What HTTP itself sends, or CORS.
ANYWHERE = {"content-type", "content-length", "transfer-encoding", "connection", "date", "server", "vary"}
load_all_checks()
CHECKED = [
    CHECKS.get_one(name)
    for name in (
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
        "allow_header_conformance",
    )
]
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, methods in openapi.document()["paths"].items()
    for method, operation in methods.items()
    if path != "/openapi.json"  # which Schemathesis leaves out
}
# Where nothing can be wrong in a request, Schemathesis makes no wrong ones.
REFUSABLE = [
    label
    for label, one in OPERATIONS.items()
    if "requestBody" in one or any(parameter["in"] == "query" for parameter in one.get("parameters", ()))
]


def documented(label: str, status: int) -> dict[str, dict[str, object]]:
    """The headers of an answer, by their names in lower case."""
    components = openapi.document()["components"]
    answer = OPERATIONS[label]["responses"][str(status)]
    if "$ref" in answer:
        answer = components["responses"][answer["$ref"].rpartition("/")[2]]
    headers = answer["headers"].items()
    return {name.lower(): components["headers"][told["$ref"].rpartition("/")[2]] for name, told in headers}


class World:
    """A service with something of everything to be asked for."""

    def __init__(self, base: str, key: str | None, *, limited: bool) -> None:
        self.base = base
        self.limited = limited
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        schema = schemathesis.openapi.from_url(base + "/openapi.json")
        self.operations = {one.ok().label: one.ok() for one in schema.get_all_operations()}
        with httpx.Client(base_url=base, headers=self.headers, timeout=30) as client:
            run = client.post("/api/v1/prompt", json={"backend": "echo", "prompt": "hello"}).json()
            flow = client.post("/api/v1/chain", json={"steps": [{"backend": "echo", "prompt": "x"}]}).json()
            answer = client.post("/openai/v1/responses", json={"model": "echo", "input": "hello"}).json()
        self.known = {
            "run_id": [run["run_id"]],
            "session_id": [run["session_id"], run["session_id"][:9]],
            "flow_id": [flow["flow_id"]],
            "response_id": [answer["id"]],
            "name": ["echo", "claude"],
        }

    def try_out(self, label: str, mode: GenerationMode) -> None:
        operation = self.operations[label]

        @settings(
            max_examples=max(CASES // 3, 1) if self.limited else CASES,  # most are 429, wherever they go
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(operation.as_strategy(generation_mode=mode), st.data())
        def hold(case, data) -> None:
            for name in list(case.path_parameters or {}):
                if name in self.known and data.draw(st.booleans()):
                    case.path_parameters[name] = data.draw(st.sampled_from(self.known[name]))
            answer = case.call(headers=self.headers, timeout=30)
            case.validate_response(answer, checks=CHECKED)
            self.knows_its_headers(label, answer.status_code, answer.headers)
            assert answer.status_code != 500, case.as_curl_command()
            if answer.status_code >= 400 and OPERATIONS[label].get("security") != []:
                problem = answer.json()
                assert problem["status"] == answer.status_code
                assert problem["request_id"] == answer.headers["x-request-id"][0]

        hold()

    def knows_its_headers(self, label: str, status: int, headers: Iterable[str]) -> None:
        """All that came is documented; and where requests are limited, each answer says how many are left."""
        came = {name.lower() for name in headers}
        assert came <= ANYWHERE | documented(label, status).keys(), (label, status)
        if self.limited and OPERATIONS[label].get("security") != []:
            assert {"ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"} <= came, (label, status)


@pytest.fixture(scope="module", params=CONFIGS)
def world(request):
    config = CONFIGS[request.param]
    with serving(**config) as service:
        yield World(service.apis[0][1], config.get("CLINVK_API_KEYS"), limited=request.param == "limited")


@pytest.mark.parametrize("label", OPERATIONS)
def test_right_requests_get_what_the_document_says(world, label):
    world.try_out(label, GenerationMode.POSITIVE)


@pytest.mark.parametrize("label", REFUSABLE)
def test_wrong_requests_get_what_the_document_says(world, label):
    world.try_out(label, GenerationMode.NEGATIVE)


@pytest.mark.parametrize("label", OPERATIONS)
def test_without_a_key_all_but_the_open_paths_are_401(world, label):
    if not world.headers:
        return
    method, _, path = label.partition(" ")
    address = {"x-forwarded-for": f"10.0.0.{list(OPERATIONS).index(label)}"}  # each of which may guess a few times
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"authorization": "Basic eDp5"}):
        answer = httpx.request(method, world.base + path, headers=headers | address, timeout=30)
        assert (answer.status_code == 401) == (OPERATIONS[label].get("security") != []), (answer.url, answer.text)


def test_more_requests_than_may_come_get_what_the_document_says(world):
    if not world.limited:
        return
    label = "GET /api/v1/runs"
    with httpx.Client(base_url=world.base) as client, ThreadPoolExecutor(10) as many:
        answers = list(many.map(lambda _: client.get("/api/v1/runs"), range(100)))

    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    for answer in answers:
        world.knows_its_headers(label, answer.status_code, answer.headers)
        needed = {name for name, told in documented(label, answer.status_code).items() if told["required"]}
        assert needed <= answer.headers.keys()
    assert "retry-after" in documented(label, 429)


def test_a_body_that_comes_packed_gets_what_the_document_says(world):
    label = "POST /api/v1/prompt"
    headers = {**world.headers, "content-encoding": "gzip"}
    answer = httpx.post(world.base + "/api/v1/prompt", content=b"x", headers=headers, timeout=30)

    assert answer.status_code == 415 or (world.limited and answer.status_code == 429), answer.text
    world.knows_its_headers(label, answer.status_code, answer.headers)


def test_a_run_that_is_asked_for_later_says_where_it_is(world):
    body = {"backend": "echo", "prompt": "x"}
    requests = {
        "POST /api/v1/prompt": body,
        "POST /api/v1/parallel": {"tasks": [body]},
        "POST /api/v1/chain": {"steps": [body]},
        "POST /api/v1/compare": {"prompt": "x", "backends": ["echo"]},
    }
    for label, asked in requests.items():
        headers = {**world.headers, "prefer": "respond-async"}
        path = world.base + label.removeprefix("POST ")
        answer = httpx.post(path, json=asked, headers=headers, timeout=30)

        assert answer.status_code == 202 or (world.limited and answer.status_code == 429), answer.text
        world.knows_its_headers(label, answer.status_code, answer.headers)
        if answer.status_code == 202:
            needed = {name for name, told in documented(label, 202).items() if told["required"]}
            assert {"location", "preference-applied"} <= needed <= answer.headers.keys()
