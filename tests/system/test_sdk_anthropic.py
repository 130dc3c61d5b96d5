"""The Anthropic SDKs as judges of the Anthropic surface: messages, token counts, models."""

import json

import pytest

from tests.system.sdks.clients import MESSAGES, Client
from tests.system.sdks.fake_claude import long_text
from tests.system.sdks.seen import PNG
from tests.system.sdks.suite import Suite, text_of
from tests.system.sdks.world import speaking

pytestmark = pytest.mark.processes

PYTHON = [client for client in MESSAGES if client.runtime.startswith("python")]


def names(client: Client) -> str:
    return client.name


@pytest.fixture(scope="module")
def world():
    with speaking() as made:
        yield made


class TestMessages(Suite):
    clients = MESSAGES


@pytest.mark.parametrize("client", MESSAGES, ids=names)
def test_models_are_listed_and_one_is_found(world, client):
    seen = client.see("models", world.base)

    assert seen.get("error") is None
    assert (seen["models"][0]["id"], seen["models"][0]["type"]) == ("claude", "model")
    assert all(model["display_name"] and model["created_at"] for model in seen["models"])
    assert seen["one"]["id"] == "claude"
    assert seen["missing"]["status"] == 404


@pytest.mark.parametrize("client", MESSAGES, ids=names)
def test_an_answer_has_the_shape_of_one(world, client):
    seen = client.see("answer", world.base, prompt="hello", model="claude-sonnet-4")

    assert seen["id"].startswith("msg_")
    assert (seen["object"], seen["role"], seen["model"]) == ("message", "assistant", "claude-sonnet-4")
    assert seen["kinds"] == ["text"]


@pytest.mark.parametrize("client", MESSAGES, ids=names)
def test_a_streams_events_are_in_order_with_usage_in_both_places(world, client):
    seen = client.see("stream", world.base, prompt="[[fake:think k=3 n=5 ms=10]] hello", thinking="yes")

    assert (seen["text"], seen["thinking"]) == (text_of(5), "thought0 thought1 thought2 ")
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    without = [kind for kind in seen["events"] if kind != "ping"]
    assert without == ["message_start", *block, *block, "message_delta", "message_stop"]
    assert (seen["role"], seen["finish"]) == ("assistant", "end_turn")
    assert seen["usage"] == {"input": 160, "output": 8, "cached": 7}
    assert seen["first_usage"] is not None


@pytest.mark.parametrize("client", MESSAGES, ids=names)
def test_the_sdks_own_accumulator_accepts_the_stream(world, client):
    seen = client.see("helper", world.base, prompt="[[fake:long bytes=20000]] hello")

    assert seen.get("error") is None
    assert seen["text"] == long_text(20_000)
    assert seen["same"]


@pytest.mark.parametrize("client", MESSAGES, ids=names)
def test_thoughts_are_blocks_of_their_own_and_may_be_sent_back(world, client):
    seen = client.see("thinking", world.base, prompt="[[fake:think k=2 n=4]] hello")

    assert seen.get("error") is None
    assert seen["kinds"] == ["thinking", "text"]
    assert (seen["thinking"], seen["text"], seen["signed"]) == ("thought0 thought1 ", text_of(4), [True])
    told = json.loads(seen["next"])
    assert [turn["role"] for turn in told["turns"]] == ["user", "assistant"]
    assert told["turns"][1]["text"] == text_of(4)


@pytest.mark.parametrize("client", MESSAGES, ids=names)
@pytest.mark.parametrize("scenario", ["answer", "stream"])
def test_thoughts_that_were_not_asked_for_are_not_shown(world, client, scenario):
    seen = client.see(scenario, world.base, prompt="[[fake:think k=2 n=4]] hello")

    assert (seen["text"], seen["thinking"]) == (text_of(4), "")


@pytest.mark.parametrize("client", MESSAGES, ids=names)
def test_tokens_are_counted(world, client):
    world.runs()

    seen = client.see("count", world.base)

    assert seen.get("error") is None
    assert 0 < seen["short"] < 20
    assert 800 < seen["long"] < 4000
    assert world.runs() == []


@pytest.mark.parametrize("client", PYTHON, ids=names)
def test_what_has_no_effect_is_accepted_and_named(world, client):
    seen = client.see("fields", world.base, prompt="hello")

    assert seen.get("error") is None
    assert seen["text"] == text_of(8)
    assert {"temperature", "top_p", "top_k"} <= set(seen["ignored"].replace(",", " ").split())
    assert seen["request_id"]


@pytest.mark.parametrize("client", PYTHON, ids=names)
def test_an_image_reaches_the_model(world, client):
    seen = client.see("image", world.base, prompt="[[fake:echo]] what is it?")

    assert seen["text"] == f"[image image/png {len(PNG)}][[fake:echo]] what is it?"


@pytest.mark.parametrize("client", PYTHON, ids=names)
def test_the_beta_namespace_works(world, client):
    seen = client.see("beta", world.base, prompt="hello")

    assert seen.get("error") is None
    assert seen["text"] == text_of(8)


@pytest.mark.parametrize("client", MESSAGES, ids=names)
@pytest.mark.parametrize("path", ["/anthropic/v1", "/anthropic/", ""])
def test_a_base_url_that_is_nearly_right_works_too(world, client, path):
    seen = client.see("answer", world.base, prompt="hello", path=path)
    listed = client.see("models", world.base, path=path)

    assert seen.get("error") is None
    assert seen["text"] == text_of(8)
    assert listed["models"][0]["type"] == "model"


@pytest.mark.parametrize("client", MESSAGES, ids=names)
def test_an_error_has_a_type_and_a_request_id(world, client):
    seen = client.see("refused", world.base, prompt="hello")

    error = seen["error"]
    assert (error["status"], error["type"]) == (400, "invalid_request_error")
    assert error["should_retry"] == "false"
    assert error["request_id"]
