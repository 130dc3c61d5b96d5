"""The table of models."""

import pytest

from api.models import ModelNotFound, Route, listed, of_backend, route


@pytest.mark.parametrize(
    ("name", "backend", "model"),
    [
        ("claude", "claude", None),
        ("codex", "codex", None),
        ("gemini", "gemini", None),
        ("echo", "echo", None),
        ("claude-opus-5-5", "claude", "claude-opus-5-5"),
        ("claude/opus", "claude", "opus"),
        ("claude-fast", "claude", "haiku"),
        ("codex-best", "codex", "gpt-6.1-sol"),
        ("gemini-balanced", "gemini", "gemini-2.5-pro"),
        ("claude-sonnet-4", "claude", "sonnet"),
        ("claude-3-sonnet-20240229", "claude", "sonnet"),
        ("claude-3-5-haiku-latest", "claude", "haiku"),
        ("gpt-4o-mini", "codex", None),
        ("gpt-3.5-turbo", "codex", None),
        ("gpt-6-sol", "codex", "gpt-6-sol"),
        ("gemini-2.5-flash", "gemini", "gemini-2.5-flash"),
        ("openai/gpt-6-sol", "codex", "openai/gpt-6-sol"),
        ("o3", "claude", None),
        ("qwen3", "claude", None),
    ],
)
def test_a_name_finds_its_backend_and_what_the_cli_is_given(name, backend, model):
    assert route(name, default="claude", aliases={}) == Route(backend, model)


def test_an_operators_alias_comes_first_and_may_be_a_pattern():
    aliases = {"gpt-4*": "claude/opus", "house": "gemini", "old-*": "gpt-6-sol"}

    assert route("gpt-4o", default="claude", aliases=aliases) == Route("claude", "opus")
    assert route("house", default="claude", aliases=aliases) == Route("gemini", None)
    assert route("old-one", default="claude", aliases=aliases) == Route("codex", "gpt-6-sol")


def test_a_strict_gateway_refuses_what_only_the_default_would_take():
    with pytest.raises(ModelNotFound, match="qwen3"):
        route("qwen3", default="claude", aliases={}, strict=True)

    assert route("claude", default="claude", aliases={}, strict=True).backend == "claude"


def test_a_tier_may_be_named_where_the_backend_is():
    assert of_backend("claude", "fast") == "haiku"
    assert of_backend("claude", "claude") is None
    assert of_backend("codex", "gpt-6-sol") == "gpt-6-sol"
    assert of_backend("claude", "house", {"house": "claude/opus"}) == "opus"


def test_the_list_holds_what_can_run_and_its_aliases():
    names = listed(["claude", "echo"], {"house": "claude/opus", "other": "gemini", "gpt-*": "claude"})

    assert names == ["claude", "echo", "claude-fast", "claude-balanced", "claude-best", "house"]
