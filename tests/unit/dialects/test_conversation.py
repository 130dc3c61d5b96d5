"""Turns gathered: joined once, as if each had been joined to the text before it."""

import random

import pytest

from api.conversation import Conversation
from shared.run import Attachment, Turn

SEED = 4711


def attached(name):
    return Attachment(media_type="image/png", data=name, field=name)


def joined_one_by_one(history, said):
    """The rule in its plainest form: whoever speaks again goes on with his own text."""
    turns = list(history)
    for role, text, attachments in said:
        if not text and not attachments:
            continue
        if turns and turns[-1].role == role:
            last = turns.pop()
            text = "\n\n".join(part for part in (last.text, text) if part)
            attachments = (*last.attachments, *attachments)
        elif not turns and role == "assistant":
            turns.append(Turn(role="user", text="(The assistant began the conversation.)"))
        turns.append(Turn(role=role, text=text, attachments=tuple(attachments)))
    return tuple(turns)


@pytest.mark.parametrize("seed", range(SEED, SEED + 20))
def test_many_turns_come_to_the_same_as_joined_one_by_one(seed):
    rng = random.Random(seed)
    for _ in range(100):
        history = [Turn(role="user", text=rng.choice(["", "u"])), Turn(role="assistant", text="a")]
        history = history[: rng.randrange(3)]
        said = [
            (
                rng.choice(["user", "assistant"]),
                rng.choice(["", "x", " ", "\n", "two\n\nparts"]),
                [attached(str(number)) for number in range(rng.choice([0, 0, 0, 1, 2]))],
            )
            for _ in range(rng.randrange(8))
        ]
        talk = Conversation(history)

        for role, text, attachments in said:
            talk.say(role, text, attachments)

        assert talk.turns == joined_one_by_one(history, said)
        assert talk.turns == talk.turns


def test_what_was_said_before_stays_as_it_was():
    history = (Turn(role="user", text="one", attachments=(attached("a"),)),)
    talk = Conversation(history)

    talk.say("user", "two", [attached("b")])

    assert history[0].text == "one"
    assert talk.finish("messages").prompt == "one\n\ntwo"
    assert [one.field for one in talk.finish("messages").attachments] == ["a", "b"]
