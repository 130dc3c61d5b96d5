"""OpenAI's bodies made into what is asked of a worker."""

import base64

import pytest

from api.openai import translate
from api.openai.routes import _chat_body
from api.openai.wire import ResponsesBody
from shared.errors import InvalidRequest, UnsupportedParameter
from shared.run import Turn

PIXEL = base64.b64encode(b"\x89PNG....").decode()


def talk(*messages, **more):
    return translate.chat_talk(_chat_body({"model": "claude", "messages": list(messages), **more}))


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def test_roles_keep_apart_and_the_last_user_turn_is_the_prompt():
    found = talk(
        said("system", "be brief"),
        said("user", "one"),
        said("assistant", "1"),
        said("developer", "in French"),
        said("user", [{"type": "text", "text": "two"}]),
    )

    assert found.system == "be brief\n\nin French"
    assert found.history == (Turn(role="user", text="one"), Turn(role="assistant", text="1"))
    assert found.prompt == "two"


def test_an_assistant_that_begins_loses_no_turn():
    found = talk(said("assistant", "hello"), said("user", "hi"))

    assert [turn.role for turn in found.history] == ["user", "assistant"]
    assert found.history[1].text == "hello"


def test_a_clients_own_tools_reach_the_model_as_words_in_their_place():
    found = talk(
        said("user", "weather?"),
        said(
            "assistant",
            None,
            tool_calls=[{"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"a":1}'}}],
        ),
        said("tool", "sunny", tool_call_id="c1"),
    )

    assert found.history[1].text == '[called the tool w (c1) with {"a":1}]'
    assert found.prompt == "[result of the tool call c1]\nsunny"


def test_instructions_alone_are_what_is_asked():
    assert talk(said("system", "say hi")).prompt == "say hi"


def test_an_image_comes_along_and_names_its_place():
    found = talk(
        said(
            "user",
            [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
            ],
        )
    )

    (one,) = found.attachments
    assert (one.media_type, one.data, one.field) == ("image/png", PIXEL, "messages[0].content[1]")


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ([said("assistant", "x")], "messages"),
        ([said("user", "  ")], "messages"),
        ([said("user", [{"type": "input_audio", "input_audio": {}}])], "messages[0].content[0]"),
        ([said("user", [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}])], "messages[0].content[0]"),
        (
            [said("user", [{"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}])],
            "messages[0].content[0]",
        ),
        ([said("user", [{"type": "text"}])], "messages[0].content[0].text"),
        ([said("nobody", "x")], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([said("user", "x"), said("user", 3)], "messages[1].content"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(messages, field):
    with pytest.raises(InvalidRequest) as error:
        talk(*messages)

    assert error.value.field == field


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}])
def test_a_forced_tool_is_refused_and_an_offered_one_is_not(choice):
    with pytest.raises(UnsupportedParameter, match="tool_choice"):
        talk(said("user", "x"), tool_choice=choice)

    assert talk(said("user", "x"), tool_choice="auto", tools=[{"type": "function"}]).prompt == "x"


def test_null_means_absent_everywhere():
    found = talk({"role": "user", "content": "x", "name": None, "tool_calls": None, "refusal": None})

    assert found.prompt == "x"


def test_a_schema_is_taken_from_where_each_api_puts_it():
    schema = {"type": "object", "properties": {"a": {"type": "string", "default": None}}}

    assert translate.chat_schema({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}) == schema
    assert translate.responses_schema({"type": "json_schema", "name": "n", "schema": schema}) == schema
    assert translate.chat_schema({"type": "text"}) is None
    with pytest.raises(InvalidRequest):
        translate.chat_schema({"type": "json_schema"})
    with pytest.raises(InvalidRequest):
        translate.chat_schema({"type": "yaml"})


def test_response_items_are_turns():
    body = ResponsesBody(
        model="m",
        instructions="be brief",
        input=[
            {"role": "user", "content": "one"},
            {"type": "reasoning", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "1"}]},
            {"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
        ],
    )

    found, said = translate.responses_talk(
        body, (Turn(role="user", text="zero"), Turn(role="assistant", text="0")), "kept"
    )

    assert [turn.text for turn in found.history] == ["zero", "0", "one", "1\n\n[called the tool f (c) with {}]"]
    assert found.prompt == "[result of the tool call c]\ndone"
    assert found.system == "be brief\n\nkept"
    assert said == "kept"


def test_an_image_in_a_developer_item_is_refused_not_dropped():
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}"}
    body = ResponsesBody(model="m", input=[{"role": "developer", "content": [image]}, {"role": "user", "content": "x"}])

    with pytest.raises(UnsupportedParameter) as error:
        translate.responses_talk(body, ())

    assert error.value.field == "input[0].content[0]"


def test_system_texts_among_the_items_are_kept_for_the_next_response_and_instructions_are_not():
    items = [{"role": "developer", "content": "in Polish"}, {"role": "user", "content": "x"}]
    body = ResponsesBody(model="m", instructions="be brief", input=items)

    found, said = translate.responses_talk(body, (), "be kind")

    assert found.system == "be brief\n\nbe kind\n\nin Polish"
    assert said == "be kind\n\nin Polish"
