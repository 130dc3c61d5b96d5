"""Finds the real CLIs that `make clis` has installed, and points them at the mock."""

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
MODULES = Path(os.environ.get("CLINVK_TEST_CLIS", str(_ROOT / ".clis"))) / "node_modules"

_NATIVE = {
    "claude": "@anthropic-ai/claude-code-linux-x64/claude",
    "codex": "@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex",
    "gemini": "@google/gemini-cli/bundle/gemini.js",
}


def command(backend: str) -> list[str]:
    """The CLI's own binary; a test that needs it is skipped, or fails where CLINVK_REQUIRE is set."""
    path = MODULES / _NATIVE[backend]
    if not path.exists():
        message = f"{backend} is not installed; `make clis` installs it from npm"
        if os.environ.get("CLINVK_REQUIRE"):
            pytest.fail(message)
        pytest.skip(message)
    return ["/usr/bin/env", "node", str(path)] if backend == "gemini" else [str(path)]


def environment(backend: str, url: str) -> dict[str, str]:
    """Fake keys and loopback base URLs."""
    match backend:
        case "claude":
            return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "sk-fake"}
        case "codex":
            return {"MOCK_KEY": "fake"}
        case _:
            return {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "fake"}


def codex_home(folder: Path, url: str) -> Path:
    home = folder / ".codex"
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        'model = "gpt-6-sol"\nmodel_provider = "mock"\n'
        f'[model_providers.mock]\nname = "mock"\nbase_url = "{url}/v1"\nenv_key = "MOCK_KEY"\nwire_api = "responses"\n'
    )
    return home
