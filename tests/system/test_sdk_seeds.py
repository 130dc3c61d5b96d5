"""Every example of the user's own documents runs as printed, or stands in docs/clients/seeds.md with what to write."""

import json
import sys
from pathlib import Path

import httpx
import pytest

from tests.system.sdks.clients import HERE
from tests.system.sdks.examples import run_example
from tests.system.sdks.suite import text_of
from tests.system.sdks.world import speaking

pytestmark = pytest.mark.processes

SEEDS = HERE / "seeds"
OPENAI = tuple(f"python/openai{major}" for major in (1, 2, 3))
ANTHROPIC = ("python/anthropic0", "python/anthropic2")

# What each is joined from, and where it runs.
EXAMPLES = {
    "000-answer.py": OPENAI,
    "000-stream.py": OPENAI,
    "000-answer.mjs": ("node",),
    "001-openai.py": OPENAI,
    "001-anthropic.py": ANTHROPIC,
    "001-openai.mjs": ("node",),
    "002-answer.py": OPENAI,
    "002-answer.mjs": ("node",),
    "002-answer.py 002-stream.py": OPENAI,
    "002-answer.py 002-headers.py 002-stream.py": OPENAI,
    "002-answer.py 002-timeout.py 002-stream.py": OPENAI[:2],
    "004-answer.py": OPENAI,
}
BODIES = {
    "000-chat.json": ("/openai/v1/chat/completions", text_of(8)),
    "003-chat.json": ("/openai/v1/chat/completions", "codex heard: Hello!"),
    "003-messages.json": ("/anthropic/v1/messages", text_of(8)),
    "004-chat.json": ("/v1/chat/completions", "codex heard: 你好,请介绍一下你自己"),
}


def printed(name: str) -> str:
    return (SEEDS / f"{name}.txt").read_text()


@pytest.fixture(scope="module")
def world():
    codex = json.dumps([sys.executable, "-I", "-S", str(HERE / "fake_codex.py")])
    with speaking(CLINVK_BACKENDS__CODEX__COMMAND=codex) as made:
        yield made


@pytest.mark.parametrize(
    ("names", "runtime"), [(names, runtime) for names, where in EXAMPLES.items() for runtime in where]
)
def test_an_example_runs_as_printed(world, tmp_path, names, runtime):
    code = "".join(printed(name) for name in names.split())

    status, said = run_example(code, names.rpartition(".")[2], runtime, world.base, tmp_path)

    assert status == 0, said
    assert text_of(8).strip() in said


@pytest.mark.parametrize("name", ["000-answer.sh", "001-prompt.sh"])
def test_a_curl_call_answers_as_printed(world, tmp_path, name):
    status, said = run_example("exec 2>/dev/null\n" + printed(name), "sh", "node", world.base, tmp_path)

    assert status == 0, said
    found = json.loads(said)
    assert text_of(8) in (found.get("output"), (found.get("choices") or [{}])[0].get("message", {}).get("content"))


def test_the_models_are_listed_by_the_printed_curl_call(world, tmp_path):
    status, said = run_example("exec 2>/dev/null\n" + printed("002-models.sh"), "sh", "node", world.base, tmp_path)

    assert status == 0, said
    found = json.loads(said)
    shown = {"object": "model", "created": 1704067200, "owned_by": "clinvoker"}
    assert found["object"] == "list"
    assert found["data"][:2] == [{"id": "claude", **shown}, {"id": "codex", **shown}]


@pytest.mark.parametrize("name", BODIES)
def test_a_printed_body_is_answered(world, name):
    path, said = BODIES[name]
    answer = httpx.post(world.base + path, content=printed(name), headers={"content-type": "application/json"})

    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["model"] == json.loads(printed(name))["model"]
    assert (found["content"][0]["text"] if "content" in found else found["choices"][0]["message"]["content"]) == said


def test_a_dry_run_starts_nothing(world):
    body = json.loads(printed("000-chat.json")) | {"dry_run": True}

    found = httpx.post(world.base + "/openai/v1/chat/completions", json=body).json()

    assert found["object"] == "chat.completion"
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["choices"][0]["message"]["content"] != text_of(8)


# The few that cannot run as printed; docs/clients/seeds.md says what to write instead, and the test of that page runs it.


def test_the_go_example_does_not_compile_with_todays_library(world, tmp_path):
    status, said = run_example(printed("002-answer.go"), "go", "go", world.base, tmp_path)

    assert status != 0
    assert "unknown field APIKey" in said


@pytest.mark.parametrize(("name", "why"), [("002-model.py", "ellipsis"), ("002-errors.py", "TypeError")])
def test_an_example_with_dots_in_it_is_no_program(world, tmp_path, name, why):
    code = printed("002-answer.py") + printed(name)

    status, said = run_example(code, "py", "python/openai2", world.base, tmp_path)

    assert status != 0
    assert why in said


def test_httpx_is_no_part_of_the_newest_openai(world, tmp_path):
    code = printed("002-answer.py") + printed("002-timeout.py")

    status, said = run_example(code, "py", "python/openai3", world.base, tmp_path)

    assert status != 0
    assert "No module named 'httpx'" in said


@pytest.mark.parametrize("path", ["completions", "embeddings", "images/generations", "audio/speech"])
def test_what_the_documents_call_not_implemented_says_so(world, path):
    answer = httpx.post(f"{world.base}/openai/v1/{path}", json={"model": "claude", "input": "x"})

    assert answer.status_code == 404
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["message"]


def test_every_printed_example_is_run_here(world):
    named = {name for names in EXAMPLES for name in names.split()} | set(BODIES)
    named |= {"000-answer.sh", "001-prompt.sh", "002-models.sh", "002-answer.go", "002-model.py", "002-errors.py"}

    assert {Path(path).stem for path in SEEDS.iterdir()} == named
