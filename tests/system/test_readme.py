"""What the README shows, in both languages, is what happens: its commands as they stand, but for the port."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pages import blocks
from tests.system.sdks.clients import SDKS, there
from tests.system.service import BASE_ENV
from tests.system.test_family import Laptop

ROOT = Path(__file__).parents[2]
READMES = {name: (ROOT / name).read_text() for name in ("README.md", "README.zh.md")}
README = "\n".join(READMES.values())
BLOCKS = [block for name in READMES for block in blocks(name)]
CURLS = [i for i, block in enumerate(BLOCKS) if block.kind in ("sh", "bash", "console") and "curl" in block.text]
SCRIPTS = [i for i, block in enumerate(BLOCKS) if block.kind == "python"]
CLAIMED = {BLOCKS[i].claim for i in (*CURLS, *SCRIPTS)}
SHOWN = "127.0.0.1:8080"


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    laptop = Laptop()
    try:
        yield laptop.start()
    finally:
        laptop.close()


def here(block: int, base: str) -> str:
    """The text of a block, made for the family of this test."""
    text = BLOCKS[block].text
    assert SHOWN in text or "localhost:8080" in text
    return text.replace(SHOWN, base.removeprefix("http://")).replace("localhost:8080", base.removeprefix("http://"))


def interpreter(text: str) -> str:
    """A Python that has the SDK which the script needs."""
    for package, environment in (("openai", "openai3"), ("anthropic", "anthropic2")):
        if re.search(rf"^from {package} import", text, re.MULTILINE):
            return str(there(SDKS / "python" / environment / "bin" / "python", package))
    return sys.executable


def said(value: Any) -> Iterator[str]:
    """Every text in an answer."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from said(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from said(item)


def documents(answer: str) -> list[Any]:
    """A JSON answer, NDJSON or the data of server-sent events."""
    try:
        return [json.loads(answer)]
    except json.JSONDecodeError:
        lines = [line.removeprefix("data:").strip() for line in answer.splitlines()]
        return [json.loads(line) for line in lines if line.startswith("{")]


def asked(command: str) -> str:
    """The prompt of a request, in whichever dialect."""
    body = json.loads(re.search(r"(?:-d|--data|--json)\s+'(.*?)'", command, re.DOTALL).group(1))
    found = body.get("prompt") or body.get("input") or body["messages"][-1]["content"]
    assert isinstance(found, str)
    return found


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("block", CURLS)
def test_a_curl_command_of_the_readme_is_answered(base, block):
    command = here(block, base)

    ran = subprocess.run(["sh", "-euc", command], capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 0, ran.stderr
    if "-d " not in command:
        assert ran.stdout
        return
    found = documents(ran.stdout)
    assert found, ran.stdout
    assert not any(one.get("error") or one.get("type") == "error" for one in found), ran.stdout
    text = " ".join(said(found))
    assert [word for word in asked(command).split() if word not in text] == []
    if "/api/v1/prompt" in command and "stream-json" in command:
        assert found[-1]["type"] == "done"
        assert "".join(e["content"]["text"] for e in found if e["type"] == "message") == asked(command)
    elif "/api/v1/prompt" in command:
        assert found[0]["output"] == asked(command)


@pytest.mark.processes
@pytest.mark.parametrize("block", SCRIPTS)
def test_a_python_script_of_the_readme_says_what_it_was_asked_to(base, block):
    text = here(block, base)
    ran = subprocess.run(
        [interpreter(text), "-c", text], env=BASE_ENV, capture_output=True, text=True, timeout=60, check=False
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()
    assert ran.stdout.strip() in text  # echo says its prompt


def test_the_readme_shows_at_least_a_command_and_a_script():
    assert CURLS
    assert SCRIPTS


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))))
def test_a_target_that_the_readme_names_is_in_the_makefile(name):
    assert re.search(rf"^{name}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", READMES)
def test_the_two_commands_are_named_and_the_port_is_the_one_served(name):
    assert re.findall(r"^make (serve|test)\b", READMES[name], re.MULTILINE) == ["serve", "test"]
    assert f"http://{SHOWN}" in READMES[name]


def test_both_languages_show_the_same_commands():
    def commands(name: str) -> list[tuple[str, str]]:
        """All but comments and what is said to a model."""
        return [
            (block.kind, re.sub(r"\s+# .*", "", block.text).replace("你好", "hello"))
            for block in blocks(name)
            if block.kind != "text"
        ]

    assert commands("README.md") == commands("README.zh.md")
    english, chinese = READMES.values()
    assert re.findall(r"^#+ ", english, re.MULTILINE) == re.findall(r"^#+ ", chinese, re.MULTILINE)


def test_both_languages_lead_to_the_same_pages_and_name_the_same_commands():
    def links(text: str) -> list[str]:
        return sorted(place for place in re.findall(r"\]\(([^)]+)\)", text) if not place.startswith("README"))

    def named(text: str) -> set[str]:
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        return set(re.findall(r"`([^`]+)`", prose))

    english, chinese = READMES.values()
    assert links(english) == links(chinese)
    assert named(english) == named(chinese)
