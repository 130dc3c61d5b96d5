"""What is remembered of kinds of runs: how often they come, whether another start is worth it, which are left alone."""

from worker.warm.demand import Demand
from worker.warm.sulks import SULK_S, Sulks
from worker.warm.worth import Worth


def asks(worth: Worth, count: int) -> list[bool]:
    return [worth.pays("a") for _ in range(count)]


def test_what_was_asked_for_long_ago_counts_less():
    demand = Demand(100.0)
    for at in (0.0, 0.0, 0.0):
        demand.ask("old", at)
    demand.ask("new", 200.0)
    demand.ask("new", 200.0)

    assert demand.score("old", 200.0) == 0.75
    assert demand.score("new", 200.0) == 2.0
    assert demand.score("never", 200.0) == 0.0
    assert demand.live(200.0, 100.0) == ["new"]
    assert demand.score("old", 200.0) == 0.0


def test_a_start_is_free_at_first_and_twice_as_dear_after_each_that_served_nobody():
    worth = Worth()

    assert asks(worth, 2) == [True, True]
    worth.unused("a")
    assert asks(worth, 3) == [False, True, True]
    worth.unused("a")
    assert asks(worth, 4) == [False, False, False, True]
    assert worth.pays("b")
    worth.used("a")
    assert asks(worth, 1) == [True]


def test_it_never_gets_so_dear_that_nothing_is_tried_again():
    worth = Worth()
    for _ in range(100):
        worth.unused("a")

    assert True in asks(worth, 64)


def test_a_kind_that_failed_is_left_alone_for_a_while_and_then_forgotten():
    sulks = Sulks()
    sulks.failed("a", "it broke", 0.0)

    assert sulks.about("a", SULK_S - 1)
    assert sulks.why(SULK_S - 1) == "it broke"
    assert not sulks.about("b", 0.0)
    assert sulks.why(SULK_S) is None
    assert not sulks.about("a", SULK_S)
    assert len(sulks) == 0


def test_three_that_end_too_soon_are_enough_and_one_that_does_not_begins_the_count_anew():
    sulks = Sulks()

    assert [sulks.too_soon("a"), sulks.too_soon("a")] == [False, False]
    sulks.well("a")
    assert [sulks.too_soon("a") for _ in range(3)] == [False, False, True]


def test_the_number_of_kinds_that_are_remembered_has_a_limit():
    sulks, worth, demand = Sulks(), Worth(), Demand(100.0)
    for number in range(1000):
        sulks.failed(number, "no", 0.0)
        sulks.too_soon(-number)
        worth.unused(number)
        demand.ask(number, 0.0)

    assert len(sulks) == 64
    assert sulks.about(999, 1.0)
    assert sum(not worth.pays(number) for number in range(1000)) == 64
    assert len(demand.live(0.0, 10.0)) == 64
