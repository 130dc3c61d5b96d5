"""LangChain, LiteLLM, llm and the Vercel AI SDK as judges of both surfaces."""

import pytest

from tests.system.sdks.clients import AI, LANGCHAIN, OTHERS
from tests.system.sdks.suite import Suite
from tests.system.sdks.world import speaking

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def world():
    with speaking() as made:
        yield made


class TestOthers(Suite):
    clients = OTHERS


@pytest.mark.parametrize("client", [*LANGCHAIN, *AI], ids=lambda client: client.name)
def test_an_answer_of_a_schema_is_parsed_by_the_client(world, client):
    seen = client.see("schema", world.base, prompt="hello")

    assert seen.get("error") is None
    assert seen["text"] == "Kraków"
