"""Bodies that are small enough and would still stop the service: refused, and what they build up over requests too."""

import httpx
import pytest

from tests.system.service import serving

MOST = 2_000  # bytes of a body here


@pytest.fixture(scope="module")
def base():
    with serving(CLINVK_SERVER__MAX_REQUEST_BODY_BYTES=str(MOST)) as service:
        yield service.apis[0][1] + "/openai/v1"


def respond(base, input, **more):
    return httpx.post(base + "/responses", json={"model": "echo", "input": input, **more}, timeout=30)


def test_a_chain_of_responses_ends_where_its_conversation_is_more_than_a_request_could_bring(base):
    first = respond(base, "x" * 700).json()
    second = respond(base, "y" * 700, previous_response_id=first["id"]).json()

    third = respond(base, "z", previous_response_id=second["id"])

    assert second["status"] == "completed"
    assert third.status_code == 400
    assert third.json()["error"]["param"] == "previous_response_id"
    assert "server.max_request_body_bytes" in third.json()["error"]["message"]


def test_references_do_not_stand_for_more_than_a_request_could_bring(base):
    said = respond(base, "x" * 700).json()["output"][0]["id"]
    named, user = {"type": "item_reference", "id": said}, {"role": "user", "content": "go on"}

    two = respond(base, [named, named, user])
    three = respond(base, [named, named, named, user])

    assert two.status_code == 200, two.text
    assert three.status_code == 400
    assert three.json()["error"]["param"] == "input[2]"


def test_ten_thousand_and_one_messages_are_refused_on_every_surface():
    messages = [{"role": "user", "content": "x"}] * 10_001
    with serving(workers=0) as service:
        api = service.apis[0][1]
        for path, field in (
            ("/anthropic/v1/messages", "messages"),
            ("/anthropic/v1/messages/count_tokens", "messages"),
            ("/openai/v1/chat/completions", "messages"),
            ("/openai/v1/responses", "input"),
        ):
            answer = httpx.post(api + path, json={"model": "echo", "max_tokens": 5, field: messages}, timeout=30)

            assert answer.status_code == 400, path
            assert answer.json()["detail"].startswith(f"{field} has 10,001 messages and content parts or more"), path
