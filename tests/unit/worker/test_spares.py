"""Which spares are kept, and when one may be started."""

import asyncio
from collections import Counter

from worker.warm.calm import Calm
from worker.warm.reserve import Reserve

IDLE_S = 600.0


def asked(*keys: str, step_s: float = 1.0) -> tuple[Reserve, float]:
    reserve = Reserve()
    for number, key in enumerate(keys):
        reserve.ask(key, number * step_s)
    return reserve, len(keys) * step_s


def test_nothing_is_kept_before_something_was_asked_for():
    assert Reserve().shares(2, {}, 0.0, IDLE_S) == {}


def test_a_first_of_its_kind_is_known_as_one():
    reserve = Reserve()

    assert reserve.ask("a", 0.0) is False
    assert reserve.ask("a", 1.0) is True


def test_one_kind_has_all_and_several_have_one_each_first():
    one, now = asked("a")
    three, later = asked("a", "b", "b", "c")

    assert one.shares(3, {}, now, IDLE_S) == {"a": 3}
    assert three.shares(4, {}, later, IDLE_S) == {"b": 2, "c": 1, "a": 1}
    assert three.shares(2, {}, later, IDLE_S) == {"b": 1, "c": 1}


def test_one_more_than_the_others_stays_where_it_waits():
    reserve, now = asked("a", "b", "b", "c")

    assert reserve.shares(4, {"a": 2, "b": 1, "c": 1}, now, IDLE_S) == {"a": 2, "b": 1, "c": 1}


def test_what_was_not_asked_for_in_a_while_is_forgotten():
    reserve, now = asked("a", "b")

    assert reserve.shares(2, {}, 0.0 + IDLE_S + 0.5, IDLE_S) == {"b": 2}
    assert reserve.shares(2, {}, now + IDLE_S + 1, IDLE_S) == {}


def test_kinds_that_come_once_do_not_push_each_other_out():
    reserve, now = asked(*"aaaabcdef")

    shares = reserve.shares(2, {"a": 1, "b": 1}, now, IDLE_S)

    assert shares == {"a": 1, "b": 1}


def test_one_that_comes_more_takes_the_place_of_one_that_came_once():
    reserve, now = asked(*"aaaabccc")

    assert set(reserve.shares(2, {"a": 1, "b": 1}, now, IDLE_S)) == {"a", "c"}


def test_the_number_of_kinds_that_are_remembered_has_a_limit():
    reserve, now = asked(*(str(number) for number in range(1000)))

    assert len(reserve.shares(1000, {}, now, 10_000)) <= 64


class Clocked(asyncio.SelectorEventLoop):
    """A loop whose clock the test moves."""

    now = 0.0

    def time(self) -> float:
        return self.now


def looks(running: int, busy: list[bool], step_s: float = 0.02) -> list[bool]:
    """What each look says."""
    loop = Clocked()
    told = iter(busy)

    async def main() -> list[bool]:
        calm = Calm(lambda: running, lambda: next(told))
        found = []
        for _ in busy:
            found.append(calm())
            loop.now += step_s
        return found

    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_core_must_be_free_for_some_looks_in_a_row_and_anew_for_each_start():
    assert looks(0, [False] * 7) == [False, False, True, False, False, True, False]
    assert looks(1, [False, False, True, False, False, False]) == [False] * 5 + [True]


def test_looks_that_are_far_apart_are_not_in_a_row():
    assert looks(0, [False] * 6, step_s=1.0) == [False] * 6


def test_many_runs_under_way_ask_for_a_longer_calm():
    assert Counter(looks(100, [False] * 50)) == {False: 48, True: 2}


def test_others_load_holds_nothing_back_for_ever_but_our_own_does():
    assert any(looks(1, [True] * 150))
    assert not any(looks(100, [True] * 1000))
