"""From bytes to a body: what is no JSON is told in words that name the fault."""

import pytest

from api.body import decode
from shared.errors import InvalidRequest


@pytest.mark.parametrize(
    ("body", "half", "at"),
    [
        (rb'{"a":"\ud800"}', r"\ud800", 6),
        (rb'{"a":"x\uDFFFx"}', r"\uDFFF", 7),
        (rb'{"a":"\ud83d\ude00","b":"\ud83d"}', r"\ud83d", 25),
        (rb'{"a":"\ud83d\ud83d\ude00"}', r"\ud83d", 6),
        (rb'{"a":"\\\ud800"}', r"\ud800", 8),
    ],
)
def test_half_of_a_surrogate_pair_is_named_with_its_place(body, half, at):
    with pytest.raises(InvalidRequest) as caught:
        decode(body)

    assert f"{half} at byte {at} is half of a surrogate pair" in caught.value.message


def test_whole_pairs_and_escaped_backslashes_are_no_halves():
    assert decode(rb'{"a":"\ud83d\ude00","b":"\\ud800"}') == {"a": "\U0001f600", "b": r"\ud800"}


@pytest.mark.parametrize("body", [b'{"a":"x', rb'{"a":"\ud83d\ude00",}', rb'{"a":"\u12"}', b""])
def test_other_faults_keep_the_parsers_words(body):
    with pytest.raises(InvalidRequest, match="not valid JSON") as caught:
        decode(body)

    assert "surrogate" not in caught.value.message
