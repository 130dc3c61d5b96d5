"""The OpenAI SDKs as judges of the OpenAI surface: chat completions, models, the Responses API."""

import json

import pytest

from tests.system.sdks.clients import CHAT, Client
from tests.system.sdks.fake_claude import long_text
from tests.system.sdks.seen import PNG
from tests.system.sdks.suite import Suite, kinds_of, status_of, text_of
from tests.system.sdks.world import speaking

pytestmark = pytest.mark.processes

SDKS = [client for client in CHAT if client.runtime != "go"]
PYTHON = [client for client in CHAT if client.runtime.startswith("python")]


def names(client: Client) -> str:
    return client.name


@pytest.fixture(scope="module")
def world():
    with speaking() as made:
        yield made


class TestChat(Suite):
    clients = CHAT


@pytest.mark.parametrize("client", CHAT, ids=names)
def test_models_are_listed_and_one_is_found(world, client):
    seen = client.see("models", world.base)

    assert seen.get("error") is None
    assert {"id": "claude", "object": "model", "owned_by": "clinvoker"}.items() <= seen["models"][0].items()
    assert "codex" not in [model["id"] for model in seen["models"]], "no worker can run it"
    assert seen["one"]["id"] == "claude"
    assert seen["one"]["created"] == seen["models"][0]["created"]
    assert seen["missing"]["status"] == 404


@pytest.mark.parametrize("client", SDKS, ids=names)
def test_an_answer_has_the_shape_of_one(world, client):
    first = client.see("answer", world.base, prompt="hello", model="claude-sonnet-4")
    second = client.see("answer", world.base, prompt="hello", model="claude-sonnet-4")

    assert first["id"].startswith("chatcmpl-")
    assert first["id"] != second["id"]
    assert (first["object"], first["role"], first["model"]) == ("chat.completion", "assistant", "claude-sonnet-4")
    assert first["tool_calls"] is None
    usage = first["usage"]
    assert usage["total"] == usage["input"] + usage["output"]


@pytest.mark.parametrize("client", SDKS, ids=names)
def test_a_stream_has_one_id_one_role_and_one_finish(world, client):
    seen = client.see("stream", world.base, prompt="[[fake:think k=3 n=5]] hello")

    assert seen["text"] == text_of(5)
    assert (seen["ids"], seen["roles"], seen["finishes"]) == (1, ["assistant"], ["stop"])
    assert seen["usage"]["reasoning"] == 3


@pytest.mark.parametrize("client", SDKS, ids=names)
def test_a_stream_without_a_wish_for_usage_has_a_choice_in_every_chunk(world, client):
    seen = client.see("plain", world.base, prompt="[[fake:say n=5 ms=10]] hello")

    assert seen.get("error") is None
    assert (seen["text"], seen["usage"]) == (text_of(5), None)


@pytest.mark.parametrize("client", SDKS, ids=names)
@pytest.mark.parametrize("scenario", ["helper", "respond_helper"])
def test_the_sdks_own_accumulator_accepts_the_stream(world, client, scenario):
    seen = client.see(scenario, world.base, prompt="[[fake:long bytes=20000]] hello")

    assert seen.get("error") is None
    assert seen["text"] == long_text(20_000)
    assert seen["same"]


@pytest.mark.parametrize("client", PYTHON, ids=names)
def test_what_has_no_effect_is_accepted_and_named(world, client):
    seen = client.see("fields", world.base, prompt="hello")

    assert seen.get("error") is None
    assert seen["text"] == text_of(8)
    assert {"temperature", "top_p", "seed", "logit_bias"} <= set(seen["ignored"].replace(",", " ").split())
    assert seen["request_id"]


@pytest.mark.parametrize("client", PYTHON, ids=names)
def test_an_answer_of_a_schema_is_parsed_by_the_sdk(world, client):
    seen = client.see("schema", world.base, prompt="hello")

    assert seen.get("error") is None
    assert (seen["chat"], seen["response"]) == ("Kraków", "Kraków")


@pytest.mark.parametrize("client", PYTHON[-1:], ids=names)
def test_an_image_reaches_the_model_and_a_sound_is_refused_by_its_place(world, client):
    seen = client.see("image", world.base, prompt="[[fake:echo]] what is it?")
    refused = client.see("sound", world.base)

    assert seen["text"] == f"[image image/png {len(PNG)}][[fake:echo]] what is it?"
    assert refused["error"]["status"] == 400
    assert "messages[0].content[0]" in refused["error"]["message"]


@pytest.mark.parametrize("client", PYTHON[-1:], ids=names)
@pytest.mark.parametrize("path", ["/v1", "/openai/v1/", "/openai/v1/v1", "/openai"])
def test_a_base_url_that_is_nearly_right_works_too(world, client, path):
    seen = client.see("answer", world.base, prompt="hello", path=path)

    assert seen.get("error") is None
    assert seen["text"] == text_of(8)


@pytest.mark.parametrize("client", SDKS, ids=names)
def test_an_error_has_a_code_and_a_type(world, client):
    seen = client.see("refused", world.base, prompt="hello")

    error = seen["error"]
    assert (error["status"], error["type"]) == (400, "invalid_request_error")
    assert (error["code"], error["param"]) == ("unsupported_parameter", "tool_choice")
    assert error["should_retry"] == "false"
    assert error["request_id"]


@pytest.mark.parametrize("client", SDKS, ids=names)
class TestResponses:
    def test_an_answer_comes_whole_with_its_usage(self, world, client):
        seen = client.see("respond", world.base, prompt="[[fake:think k=3 n=8]] hello")

        assert seen.get("error") is None
        assert (seen["text"], seen["status"], seen["object"]) == (text_of(8), "completed", "response")
        assert seen["id"].startswith("resp_")
        assert seen["usage"] == {"input": 167, "output": 11, "total": 178, "cached": 7, "reasoning": 3}
        assert seen["kinds"][-1] == "message"

    def test_a_stream_comes_event_by_event(self, world, client):
        seen = client.see("respond_stream", world.base, prompt="[[fake:say n=40 ms=40]] hello")

        assert seen.get("error") is None
        assert seen["text"] == seen["final"] == text_of(40)
        assert seen["chunks"] >= 20
        assert seen["last_s"] - seen["first_s"] > 40 * 0.04 / 2  # how long its CLI starts is the machine's
        assert (seen["first_number"], seen["numbered"], seen["status"]) == (0, True, "completed")
        assert seen["usage"]["output"] == 40
        assert seen["events"][0] == "response.created"
        without = [kind for kind in seen["events"] if kind not in ("response.queued", "response.in_progress")]
        assert without == [
            "response.created",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]

    def test_a_failure_in_the_middle_is_a_failed_response(self, world, client):
        seen = client.see("respond_stream", world.base, prompt="[[fake:late n=3]] hello")

        assert seen["text"] == text_of(3)
        assert "500" in (seen.get("failure") or seen["error"])["message"]
        assert seen.get("status") in ("failed", None)
        assert "response.completed" not in seen["events"]

    def test_a_missing_login_is_told_once(self, world, client):
        seen = client.see("respond", world.base, prompt="[[fake:fail status=401]] hello")

        assert client.kinds["login"] in kinds_of(seen)
        assert status_of(seen) == 502
        assert len(seen["requests"]) == 1

    def test_a_response_is_kept_and_read_again(self, world, client):
        seen = client.see("respond_retrieve", world.base, prompt="[[fake:say n=5]] hello")

        assert seen.get("error") is None
        assert (seen["text"], seen["status"], seen["same"]) == (text_of(5), "completed", True)
        assert seen["metadata"] == {"team": "x"}

    def test_one_in_the_background_is_polled_until_it_is_complete(self, world, client):
        seen = client.see("respond_background", world.base, prompt="[[fake:say n=20 ms=20]] hello")

        assert seen.get("error") is None
        assert seen["first_status"] in ("queued", "in_progress")
        assert (seen["text"], seen["status"]) == (text_of(20), "completed")
        assert seen["polls"] > 0

    def test_a_lost_stream_is_taken_up_where_it_was(self, world, client):
        world.runs()

        seen = client.see("respond_resume", world.base, prompt="[[fake:say n=30 ms=40]] hello")

        assert seen.get("error") is None
        assert seen["before"] != seen["text"] == text_of(30)
        assert seen["events"][-1] == "response.completed"
        assert len(world.runs()) == 1

    def test_one_in_the_background_can_be_cancelled(self, world, client):
        world.runs()

        seen = client.see("respond_cancel", world.base, prompt="[[fake:hang]] hello")

        assert seen.get("error") is None
        assert (seen["status"], seen["again"]) == ("cancelled", "cancelled")
        (run_id,) = world.runs()
        world.ended_as("cancelled", run_id)

    def test_a_deleted_one_is_not_found(self, world, client):
        seen = client.see("respond_delete", world.base, prompt="hello")

        assert "NotFoundError" in kinds_of(seen)
        assert [request["method"] for request in seen["requests"]] == ["POST", "DELETE", "GET"]
        assert [request["status"] for request in seen["requests"]][:2] == [200, 200]

    def test_one_goes_on_from_another(self, world, client):
        seen = client.see("respond_previous", world.base, prompt="[[fake:seen]] Who am I?")

        assert seen.get("error") is None
        told = json.loads(seen["text"])
        assert seen["previous"] == seen["expected_previous"]
        assert [turn["role"] for turn in told["turns"]] == ["user", "assistant"]
        assert told["turns"][1]["text"] == text_of(2)
        assert told["prompt"] == "[[fake:seen]] Who am I?"
        assert told["system"] == "", "instructions are not carried over"

    def test_a_history_reaches_the_model_with_its_roles(self, world, client):
        seen = client.see("respond_history", world.base, prompt="[[fake:seen]] Who am I?")

        assert seen.get("error") is None
        told = json.loads(seen["text"])
        assert told["system"] == "You are a TEAPOT."
        assert [turn["role"] for turn in told["turns"]] == ["user", "assistant", "user", "assistant"]
