"""Every base URL that clients are given."""

import pytest

from api.paths import canonical

ANTHROPIC = [(b"anthropic-version", b"2023-06-01")]


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/openai/v1/chat/completions", [], "/openai/v1/chat/completions"),
        ("/openai/v1/chat/completions/", [], "/openai/v1/chat/completions"),
        ("/openai/chat/completions", [], "/openai/v1/chat/completions"),
        ("/openai/v1/v1/responses", [], "/openai/v1/responses"),
        ("/v1/chat/completions", [], "/openai/v1/chat/completions"),
        ("/v1/responses/resp_1/cancel", [], "/openai/v1/responses/resp_1/cancel"),
        ("/v1/embeddings", ANTHROPIC, "/openai/v1/embeddings"),
        ("/v1/messages", [], "/anthropic/v1/messages"),
        ("/v1/messages/count_tokens", [], "/anthropic/v1/messages/count_tokens"),
        ("/v1/models", [], "/openai/v1/models"),
        ("/v1/models", ANTHROPIC, "/anthropic/v1/models"),
        ("/v1/models/a/b", ANTHROPIC, "/anthropic/v1/models/a/b"),
        ("/anthropic/v1/v1/messages", [], "/anthropic/v1/messages"),
        ("/anthropic/messages", [], "/anthropic/v1/messages"),
        ("/anthropic/v1/messages/", [], "/anthropic/v1/messages"),
        ("/api/v1/prompt", [], "/api/v1/prompt"),
        ("/health", [], "/health"),
        ("/", [], "/"),
        ("/v10/x", [], "/v10/x"),
        ("/openaix", [], "/openaix"),
    ],
)
def test_a_path_finds_its_route(path, headers, expected):
    assert canonical(path, headers) == expected
