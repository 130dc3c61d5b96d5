"""The commands of docs/api.md, docs/quickstart.md and docs/flows.md are run as they stand, but for the port; each route has one."""

import json
import re
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.pages import blocks
from tests.system.service import BASE_ENV
from tests.system.test_family import Laptop
from tests.system.test_readme import documents, interpreter

pytestmark = pytest.mark.processes

SHOWN = "http://127.0.0.1:8080"
PAGES = {
    name: [(block.kind, block.text) for block in blocks(f"docs/{name}.md")] for name in ("api", "quickstart", "flows")
}
PRELUDE = PAGES["api"][0][1]
COMMANDS = [
    (page, number)
    for page, blocks in PAGES.items()
    for number, (kind, text) in enumerate(blocks)
    if kind in ("sh", "python") and text != PRELUDE
]
PRINTED = ("json", "ndjson")  # the answer to the block before it
CLAIMED = {(f"docs/{page}.md", number) for page, number in COMMANDS} | {("docs/api.md", 0)}
CLAIMED |= {
    (f"docs/{page}.md", number + 1)
    for page, number in COMMANDS
    if number + 1 < len(PAGES[page]) and PAGES[page][number + 1][0] in PRINTED
}


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    laptop = Laptop(CLINVK_SERVER__METRICS_ENABLED="true")
    try:
        yield laptop.start()
    finally:
        laptop.close()


@pytest.mark.parametrize(("page", "number"), COMMANDS)
def test_an_example_is_answered_as_it_is_printed(base, page, number):
    kind, text = PAGES[page][number]
    text = text.replace(SHOWN, base)
    words = [interpreter(text), "-c", text]
    if kind == "sh":
        words = ["bash", "-euc", PRELUDE.replace(SHOWN, base) + text]

    ran = subprocess.run(words, env=BASE_ENV, capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip(), ran.stderr
    if kind == "python" or "/metrics" in text or "/docs" in text:
        return
    assert "/chain" not in text or "{{" not in ran.stdout, "a placeholder that is none goes through as it is"
    found = [one for line in ran.stdout.replace("}{", "}\n{").splitlines() for one in documents(line)]
    following, printed = PAGES[page][number + 1] if number + 1 < len(PAGES[page]) else ("", "")
    if following in PRINTED:
        assert [sorted(one) for one in documents(printed)] == [sorted(one) for one in found]
        assert [one.get("type") for one in documents(printed)] == [one.get("type") for one in found]
    refused = following == "json" and '"status": 4' in printed
    assert any("request_id" in one for one in found) is refused, ran.stdout


def test_every_route_has_an_example(base):
    text = "".join(text for kind, text in PAGES["api"] if kind == "sh")
    asked = set()
    for line in text.replace("\\\n", " ").splitlines():
        for method, path in re.findall(r'\bpost "?(/[^\s"?]+)|curl -sS (?:-X (?:DELETE) )?"\$API(/[^\s"?]+)', line):
            verb = "post" if method else "delete" if "-X DELETE" in line else "get"
            asked.add((verb, re.sub(r"\$\w+", "*", method or path)))

    routes = httpx.get(base + "/openapi.json").json()["paths"]
    missing = [
        (method, path)
        for path, methods in routes.items()
        for method in set(methods) & {"get", "post", "delete"}
        if not any(verb == method and matches(path, one) for verb, one in asked)
    ]

    assert missing == []


def matches(route: str, path: str) -> bool:
    parts, given = route.split("/"), path.split("/")
    return len(parts) == len(given) and all(a == b or a.startswith("{") for a, b in zip(parts, given, strict=True))


def test_what_is_printed_is_json():
    for page in PAGES.values():
        for kind, text in page:
            if kind == "json":
                json.loads(text)
