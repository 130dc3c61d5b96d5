"""What `GET /api/v1/usage` makes of what was written down: rows by any of its dimensions, and nothing made up."""

import itertools
from typing import Any

import pytest

from api.native.operator_routes import DIMENSIONS, summed
from shared.store.usage import Used

DAY = 20_000  # 2024-10-04


def used(day: int, tenant: str = "a", key: str = "k", backend: str = "claude", model: str = "m", **more: int) -> Used:
    return Used(day, tenant, key, backend, model, more)


ALL = [
    used(DAY, succeeded=2, took_ms=30, input_tokens=10, output_tokens=4, cost_microusd=1500),
    used(DAY, backend="echo", model="e", failed=1, took_ms=5),
    used(DAY + 1, succeeded=1, cancelled=3, took_ms=7, input_tokens=1, cached_tokens=1, reasoning_tokens=9),
    used(DAY + 1, tenant="b", key="", failed=4, cost_microusd=250_000),
]


def row(total: tuple[int, int, int], cost: float | None, took_ms: int, **tokens: int) -> dict[str, Any]:
    succeeded, failed, cancelled = total
    kinds = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
    return {
        "runs": {"total": sum(total), "succeeded": succeeded, "failed": failed, "cancelled": cancelled},
        "token_usage": {name: tokens.get(name, 0) for name in kinds},
        "cost_usd": cost,
        "duration_ms": took_ms,
    }


def test_days_are_apart_with_every_kind_of_end_and_with_what_was_reported_alone():
    assert summed(ALL, ("day",)) == [
        {"day": "2024-10-04", **row((2, 1, 0), 0.0015, 35, input_tokens=10, output_tokens=4)},
        {"day": "2024-10-05", **row((1, 4, 3), 0.25, 7, input_tokens=1, cached_tokens=1, reasoning_tokens=9)},
    ]


def test_a_cost_is_null_where_no_cli_has_told_any_and_nought_where_one_has_told_nought():
    assert [one["cost_usd"] for one in summed(ALL, ("backend",))] == [0.2515, None]
    assert summed([used(DAY, succeeded=1, cost_microusd=0)], ())[0]["cost_usd"] == 0


def test_of_nothing_there_are_no_rows():
    assert summed([], DIMENSIONS) == []


@pytest.mark.parametrize("by", [by for n in range(6) for by in itertools.combinations(DIMENSIONS, n)])
def test_however_it_is_cut_no_row_is_doubled_and_the_sum_is_the_same(by):
    rows = summed(ALL, by)

    kinds = [tuple(one[name] for name in by) for one in rows]
    assert kinds == sorted(set(kinds))
    assert sum(one["runs"]["total"] for one in rows) == 11
    assert [sum(one["runs"][how] for one in rows) for how in ("succeeded", "failed", "cancelled")] == [3, 5, 3]
    assert sum(one["token_usage"]["input_tokens"] for one in rows) == 11
    assert round(sum(one["cost_usd"] or 0 for one in rows), 6) == 0.2515
    assert sum(one["duration_ms"] for one in rows) == 42
