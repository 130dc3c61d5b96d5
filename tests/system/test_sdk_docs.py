"""The examples of docs/clients run as they are printed."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pages import blocks
from tests.system import clis
from tests.system.sdks.examples import PRINTED, run_example
from tests.system.sdks.suite import text_of
from tests.system.sdks.world import speaking

pytestmark = pytest.mark.processes

PAGES = Path(__file__).parents[2] / "docs" / "clients"
CODEX = "docs/clients/codex-cli.md"
KINDS = {"python": "py", "js": "mjs", "bash": "sh", "go": "go"}
RUNTIMES = {
    "openai-python": ("python/openai1", "python/openai2", "python/openai3"),
    "openai-node": ("node",),
    "anthropic": ("python/anthropic0", "python/anthropic2"),
    "langchain": ("python/langchain",),
    "litellm": ("python/litellm",),
    "llm": ("python/llm",),
    "go-openai": ("go",),
    "vercel-ai": ("node",),
    "seeds": ("python/openai1", "python/openai3"),
}


class Example(NamedTuple):
    page: str
    kind: str
    runtime: str
    number: int
    code: str


def examples() -> list[Example]:
    found = []
    for page, runtimes in RUNTIMES.items():
        for block in blocks(f"docs/clients/{page}.md"):
            of_python = block.kind == "python"
            found += [
                Example(page, KINDS[block.kind], runtime, block.number, block.text)
                for runtime in (runtimes if of_python else runtimes[:1])
            ]
    return found


CLAIMED = {(f"docs/clients/{example.page}.md", example.number) for example in examples()}
CLAIMED |= {block.claim for block in blocks(CODEX) if block.kind in ("toml", "bash")}


@pytest.fixture(scope="module")
def world():
    with speaking() as made:
        yield made


@pytest.mark.parametrize("example", examples(), ids=lambda e: f"{e.page}-{e.number}-{e.runtime.rpartition('/')[2]}")
def test_an_example_of_a_page_runs_as_printed(world, tmp_path, example):
    status, said = run_example(example.code, example.kind, example.runtime, world.base, tmp_path)

    assert status == 0, said
    assert text_of(8).strip() in said


def test_codex_speaks_to_the_service_as_its_page_says(world, tmp_path):
    (command,) = clis.command("codex")
    found = {block.kind: block.text for block in blocks(CODEX)}
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text(PRINTED.sub(world.base, found["toml"]))
    path = f"{Path(command).parent}:/usr/local/bin:/usr/bin:/bin"

    status, said = run_example(found["bash"], "sh", "node", world.base, tmp_path, PATH=path)

    assert status == 0, said
    assert text_of(8).strip() in said


def test_every_page_is_run():
    assert {path.stem for path in PAGES.glob("*.md")} == {*RUNTIMES, "codex-cli"}
