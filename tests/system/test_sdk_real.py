"""One pass of each surface through the real CLIs, against the project's own mock of their vendors' APIs."""

import json

import pytest

from tests.system import clis
from tests.system.clis import both
from tests.system.sdks.clients import CHAT, MESSAGES, programs
from tests.system.sdks.suite import text_of
from tests.system.sdks.world import World

pytestmark = [pytest.mark.clis, pytest.mark.processes]

OPENAI = next(client for client in CHAT if client.name == "openai-python-3")
ANTHROPIC = next(client for client in MESSAGES if client.name == "anthropic-python-2")
SURFACES = {
    "chat": (OPENAI, "answer", "stream"),
    "responses": (OPENAI, "respond", "respond_stream"),
    "messages": (ANTHROPIC, "answer", "stream"),
}


@pytest.fixture(scope="module")
def world(way):
    limits = {"CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS": "60"}
    with clis.serving_clis(way, clis.CLIS if way == "cold" else clis.WARM, **limits) as (service, mock):
        made = World(service)
        made.mock = mock
        try:
            yield made
        finally:
            programs.close()


@both()
@pytest.mark.parametrize("surface", SURFACES)
def test_an_answer_and_a_stream_come_whole(world, surface, backend):
    client, whole, stream = SURFACES[surface]

    answered = client.see(whole, world.base, prompt="[[mock:text n=8]] hello", model=backend)
    streamed = client.see(stream, world.base, prompt="[[mock:text n=8 ms=40]] hello", model=backend)

    assert answered.get("error") is None
    assert streamed.get("error") is None
    assert answered["text"] == streamed["text"] == text_of(8)
    assert answered["usage"]["output"] == streamed["usage"]["output"] == 8
    assert answered["usage"]["cached"] == streamed["usage"]["cached"] == 7


@both(but=[("cold", "codex")])  # which prints whole messages
@pytest.mark.parametrize("surface", SURFACES)
def test_the_first_token_comes_in_under_half_of_the_time(world, way, surface, backend):
    client, _, stream = SURFACES[surface]

    seen = client.see(stream, world.base, prompt="[[mock:text n=100 ms=40]] hello", model=backend)

    assert seen["text"] == text_of(100)
    assert seen["last_s"] - seen["first_s"] > 100 * 0.04 / 2  # of the model's time
    if way == "warm":  # how long a CLI starts is the machine's
        assert seen["first_s"] < seen["last_s"] / 2


@both()
@pytest.mark.parametrize("client", [OPENAI, ANTHROPIC], ids=lambda client: client.name)
def test_a_history_reaches_the_model_with_its_roles(world, client, backend):
    seen = client.see("history", world.base, prompt="[[mock:seen]] Who am I?", model=backend)

    assert seen.get("error") is None
    told = json.loads(seen["text"])
    assert "You are a TEAPOT." in told["system"]
    assert any("My name is Ada." in said for role, said in world.mock.requests[-1].turns if role == "user")
    assert told["users"][-1].endswith("[[mock:seen]] Who am I?")


@both()
@pytest.mark.parametrize("client", [OPENAI, ANTHROPIC], ids=lambda client: client.name)
def test_a_missing_login_is_told_once(world, client, backend):
    world.runs()

    seen = client.see("answer", world.base, prompt="[[mock:status code=401]] hello", model=backend)

    assert seen["error"]["status"] == 502
    assert "host0" in seen["error"]["message"]
    assert len(world.runs()) == 1
