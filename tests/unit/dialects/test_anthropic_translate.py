"""Anthropic's bodies made into what is asked of a worker."""

import pytest

from api.anthropic import translate
from api.anthropic.routes import _body
from shared.errors import InvalidRequest, UnsupportedParameter


def talk(*messages, **more):
    return translate.to_talk(_body({"model": "claude", "max_tokens": 5, "messages": list(messages), **more}))


def user(content):
    return {"role": "user", "content": content}


def test_system_and_content_may_be_text_or_blocks():
    found = talk(
        user([{"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}}]),
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "1"}],
        },
        user("two"),
        system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}],
    )

    assert found.system == "be\n\nbrief"
    assert [(turn.role, turn.text) for turn in found.history] == [("user", "one"), ("assistant", "1")]
    assert found.prompt == "two"


def test_tool_blocks_are_told_in_words_and_their_images_come_along():
    found = talk(
        user("go"),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}}]},
        user(
            [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [
                        {"type": "text", "text": "seen"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                    ],
                }
            ]
        ),
    )

    assert found.history[1].text == '[called the tool look (t1) with {"a":1}]'
    assert found.prompt == "[result of the tool call t1]\nseen"
    assert found.attachments[0].field == "messages[2].content[0].content[1]"


@pytest.mark.parametrize(
    ("block", "field"),
    [
        ({"type": "hologram"}, "messages[0].content[0]"),
        ({"type": "image", "source": {"type": "url", "url": "https://x/y"}}, "messages[0].content[0]"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "messages[0].content[0]"),
        ({"type": "text", "text": 4}, "messages[0].content[0].text"),
        ({"type": "tool_result", "content": 5}, "messages[0].content[0].content"),
        ({"type": "tool_result", "content": ["x"]}, "messages[0].content[0].content"),
        ({"type": "search_result", "content": "abc"}, "messages[0].content[0].content"),
        ({"type": "document", "source": {"type": "content", "content": 5}}, "messages[0].content[0].source.content"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(block, field):
    with pytest.raises(InvalidRequest) as error:
        talk(user([block]))

    assert error.value.field == field


def test_an_image_in_a_system_turn_is_refused_not_dropped():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}

    with pytest.raises(UnsupportedParameter) as error:
        talk({"role": "system", "content": [image]}, user("x"))

    assert error.value.field == "messages[0].content[0]"


def test_a_forced_tool_is_refused():
    with pytest.raises(UnsupportedParameter):
        talk(user("x"), tool_choice={"type": "any"})

    assert talk(user("x"), tool_choice={"type": "auto"}).prompt == "x"


def test_thinking_is_mapped():
    def tokens(thinking):
        return translate.thinking_tokens(_body({"model": "m", "messages": [], "thinking": thinking}))

    assert tokens({"type": "enabled", "budget_tokens": 2048}) == 2048
    assert tokens({"type": "disabled"}) == 0
    assert tokens({"type": "adaptive"}) is None


def test_an_estimate_grows_with_the_text_and_is_never_nothing():
    assert translate.estimate(talk(user("x"))) >= 1
    assert translate.estimate(talk(user("word " * 1000))) > 1000
    assert translate.estimate(talk(user("字" * 1000))) > 400
