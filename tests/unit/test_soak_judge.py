"""What the soak takes for a leak in Redis: every kind of name of the table is judged, and Redis' own memory."""

import re

import pytest

from bench.soak_watch import ALWAYS, HANDFUL, KINDS, OF_RUNS, left_over, redis_grown
from shared import names


def test_every_kind_of_the_table_is_known_to_the_judge():
    rows = [line for line in (names.__doc__ or "").splitlines() if line.startswith("| clinvk:")]

    assert {re.match(r"\| clinvk:(\w+)", row)[1] for row in rows} <= KINDS
    assert ALWAYS | set(OF_RUNS) <= KINDS
    assert left_over({"made_up": 1}, 0) == ["1 made_up, which shared/names.py does not know"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_leak_of_any_kind_is_told(kind):
    begun = 500

    assert left_over({kind: 0 if kind in OF_RUNS else HANDFUL}, begun) == []
    assert left_over({kind: 2 * begun + HANDFUL + 1}, begun) != []


def test_redis_may_keep_a_little_for_each_request_and_no_more():
    assert redis_grown(2_000, 2_000 + (16 << 10) + 2 * 500, 500) == []
    assert redis_grown(2_000, 2_000 + (16 << 10) + 2 * 500 + 1, 500) != []
