"""One pass of each surface through the real CLIs, against the project's own mock of their vendors' APIs."""

import json

import pytest

from tests.fakes.mockllm import MockLLM
from tests.system import clis
from tests.system.sdks.clients import CHAT, MESSAGES, programs
from tests.system.sdks.suite import text_of
from tests.system.sdks.world import World
from tests.system.service import serving

pytestmark = [pytest.mark.clis, pytest.mark.processes]

CLIS = ("claude", "codex", "gemini")
OPENAI = next(client for client in CHAT if client.name == "openai-python-3")
ANTHROPIC = next(client for client in MESSAGES if client.name == "anthropic-python-2")
SURFACES = {
    "chat": (OPENAI, "answer", "stream"),
    "responses": (OPENAI, "respond", "respond_stream"),
    "messages": (ANTHROPIC, "answer", "stream"),
}


@pytest.fixture(scope="module")
def world():
    commands = {backend: clis.command(backend) for backend in CLIS}
    with MockLLM() as mock, serving(workers=0, CLINVK_UNIFIED_FLAGS__COMMAND_TIMEOUT_SECS="60") as service:
        for backend, command in commands.items():
            env = clis.environment(backend, mock.url) | {"IS_SANDBOX": "1"}
            service.config[f"CLINVK_BACKENDS__{backend.upper()}__COMMAND"] = json.dumps(command)
            service.config[f"CLINVK_BACKENDS__{backend.upper()}__ENV"] = json.dumps(env)
        clis.codex_home(service.folder / "host0", mock.url)
        service.worker()
        made = World(service)
        made.mock = mock
        try:
            yield made
        finally:
            programs.close()


@pytest.mark.parametrize("backend", CLIS)
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


@pytest.mark.parametrize("backend", ["claude", "gemini"])
@pytest.mark.parametrize("surface", SURFACES)
def test_the_first_token_comes_in_under_half_of_the_time(world, surface, backend):
    client, _, stream = SURFACES[surface]

    seen = client.see(stream, world.base, prompt="[[mock:text n=60 ms=40]] hello", model=backend)

    assert seen["text"] == text_of(60)
    assert seen["first_s"] < seen["last_s"] / 2 + 0.5


@pytest.mark.parametrize("backend", CLIS)
@pytest.mark.parametrize("client", [OPENAI, ANTHROPIC], ids=lambda client: client.name)
def test_a_history_reaches_the_model_with_its_roles(world, client, backend):
    seen = client.see("history", world.base, prompt="[[mock:seen]] Who am I?", model=backend)

    assert seen.get("error") is None
    told = json.loads(seen["text"])
    assert "You are a TEAPOT." in told["system"]
    assert any("My name is Ada." in said for role, said in world.mock.requests[-1].turns if role == "user")
    assert told["users"][-1].endswith("[[mock:seen]] Who am I?")


@pytest.mark.parametrize("backend", CLIS)
@pytest.mark.parametrize("client", [OPENAI, ANTHROPIC], ids=lambda client: client.name)
def test_a_missing_login_is_told_once(world, client, backend):
    world.runs()

    seen = client.see("answer", world.base, prompt="[[mock:status code=401]] hello", model=backend)

    assert seen["error"]["status"] == 502
    assert "host0" in seen["error"]["message"]
    assert len(world.runs()) == 1
