"""The clients that `make sdks` has installed: how each is started, and what its callers would see."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.system.sdks.programs import Programs

HERE = Path(__file__).parent
SDKS = Path(os.environ.get("CLINVK_TEST_SDKS", str(HERE.parents[2] / ".sdks")))
ENV = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "NO_COLOR": "1", "HOME": "/nonexistent"}


class Client(NamedTuple):
    """`kinds`: the exception for each trouble. `lacks`: scenarios that the client has no way to take part in.

    `alone`: those after which its program is no more good for another.
    """

    name: str
    runtime: str  # python/<environment>, node or go
    program: str = ""
    options: dict[str, str] = {}
    finish: str | None = "stop"
    input_tokens: int = 167  # of which 7 were cached
    kinds: dict[str, str] = {}
    repeats: bool = False  # asks again whatever `x-should-retry` says
    lacks: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """A test that needs it is skipped, or fails where CLINVK_REQUIRE is set."""
        if self.runtime == "go":
            return [str(there(SDKS / "go" / "client", self.name))]
        if self.runtime == "node":
            return [there_is("node"), str(node_program(HERE / self.program, self.name))]
        return [str(there(SDKS / self.runtime / "bin" / "python", self.name)), str(HERE / self.program)]

    def see(self, scenario: str, base: str, limit_s: float = 60.0, **options: object) -> dict[str, Any]:
        """What the client saw of one scenario."""
        words = [scenario, base, *(f"{name}={value}" for name, value in {**self.options, **options}.items())]
        if self.runtime == "go" or scenario in self.alone:
            return told([*self.command(), *words], limit_s)
        return programs.see(self.command(), ENV, words, limit_s)


programs = Programs()


def told(command: list[str], limit_s: float) -> dict[str, Any]:
    done = subprocess.run(command, env=ENV, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit_s, check=False)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    found: dict[str, Any] = json.loads(done.stdout.decode().strip().split("\n")[-1])
    return found


def lacking(what: str) -> None:
    if os.environ.get("CLINVK_REQUIRE"):
        pytest.fail(what)
    pytest.skip(what)


def there(path: Path, name: str) -> Path:
    if not path.exists():
        lacking(f"{name} is not installed; `make sdks` installs it")
    return path


def there_is(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        lacking(f"{tool} is not on the PATH")
    return str(found)


def node_program(program: Path, name: str) -> Path:
    """A copy beside the installed modules, where alone Node finds them."""
    there(SDKS / "node" / "node_modules", name)
    for source in {program, HERE / "seen.mjs"}:
        target = SDKS / "node" / source.name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copyfile(source, target)
    return SDKS / "node" / program.name


_STAINLESS = {
    "refused": "BadRequestError",
    "login": "InternalServerError",
    "limited": "RateLimitError",
    "unavailable": "InternalServerError",
    "late": "APIError",
    "timeout": "APITimeoutError",
}
_NODE = _STAINLESS | {"timeout": "APIConnectionTimeoutError"}
_GO = dict.fromkeys(_STAINLESS, "APIError") | {"timeout": "DeadlineExceeded"}
_NO_RETRIES = ("retries", "retry")

CHAT = [
    *(
        Client(f"openai-python-{major}", f"python/openai{major}", "openai_python.py", kinds=_STAINLESS)
        for major in (1, 2, 3)
    ),
    Client("openai-node", "node", "openai_node.mjs", kinds=_NODE),
    Client("go-openai", "go", kinds=_GO, lacks=_NO_RETRIES),
]

MESSAGES = [
    *(
        Client(
            f"anthropic-python-{major}",
            f"python/anthropic{major}",
            "anthropic_python.py",
            finish="end_turn",
            input_tokens=160,
            kinds=_STAINLESS,
        )
        for major in (0, 2)
    ),
    Client("anthropic-node", "node", "anthropic_node.mjs", finish="end_turn", input_tokens=160, kinds=_NODE),
]

_LITELLM = _STAINLESS | {"login": "BadGatewayError", "unavailable": "ServiceUnavailableError", "timeout": "Timeout"}
_AI = dict.fromkeys(_STAINLESS, "APICallError") | {
    "late": "Object",
    "timeout": "TimeoutError",
}  # an error part is a bare object

LANGCHAIN = [
    Client("langchain-openai", "python/langchain", "langchain_python.py", {"dialect": "openai"}, kinds=_STAINLESS),
    Client(
        "langchain-responses",
        "python/langchain",
        "langchain_python.py",
        {"dialect": "responses"},
        finish="completed",
        kinds=_STAINLESS | {"late": "ValueError"},
    ),
    Client(
        "langchain-anthropic",
        "python/langchain",
        "langchain_python.py",
        {"dialect": "anthropic"},
        finish="end_turn",
        kinds=_STAINLESS,
    ),
]
LITELLM = [
    Client(
        "litellm-openai",
        "python/litellm",
        "litellm_python.py",
        {"dialect": "openai"},
        alone=("hangup",),
        kinds=_LITELLM,
    ),
    Client(
        "litellm-anthropic",
        "python/litellm",
        "litellm_python.py",
        {"dialect": "anthropic"},
        alone=("hangup",),
        kinds=_LITELLM | {"unavailable": "InternalServerError"},
        lacks=_NO_RETRIES,
    ),
]
LLM = [
    Client(
        "llm",
        "python/llm",
        "llm_python.py",
        finish=None,
        kinds=_STAINLESS,
        lacks=("refused", "retries", "retry", "timeout", "unavailable"),  # it asks again after the 5 s, twice
        alone=("hangup",),
    )
]
AI = [
    Client(f"ai-{provider}", "node", "ai_node.mjs", {"provider": provider}, kinds=_AI, repeats=True, lacks=("retry",))
    for provider in ("openai", "chat", "compatible", "anthropic")
]
OTHERS = [*LANGCHAIN, *LITELLM, *LLM, *AI]
