"""LangChain, LiteLLM, llm and the Vercel AI SDK as judges of both surfaces."""

import pytest

from tests.system.sdks.clients import AI, LANGCHAIN, LITELLM, LLM
from tests.system.sdks.suite import Suite
from tests.system.sdks.world import speaking

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def world():
    with speaking() as made:
        yield made


class TestLangChain(Suite):
    clients = LANGCHAIN


class TestLiteLLM(Suite):
    clients = LITELLM


class TestLlm(Suite):
    clients = LLM


class TestAi(Suite):
    clients = AI
