"""What a connection answers by itself: all of it counted, as much of it logged as a log bears."""

import logging

from api.refusals import Refusals


def test_all_are_counted_and_of_a_flood_a_few_lines_a_second_say_how_many_more_there_were(caplog):
    caplog.set_level(logging.INFO)
    now, counted = 0.0, []
    refusals = Refusals(counted.append, clock=lambda: now)

    def refuse(times: int) -> None:
        for number in range(times):
            refusals.answered(431, "too large", request_id=f"req_{number}", client="1.2.3.4", counted=False)

    refuse(100)
    now = 1.5
    refuse(2)

    assert counted == [431] * 102
    assert [record.message for record in caplog.records] == [
        *["refused: 431 too large"] * 5,
        "refused: 431 too large (95 lines like this were left out)",
        "refused: 431 too large",
    ]
    assert (caplog.records[1].request_id, caplog.records[1].client) == ("req_1", "1.2.3.4")


def test_what_the_layers_count_is_not_counted_twice():
    counted = []

    Refusals(counted.append).answered(408, "too slow", request_id="req_1", client="", counted=True)

    assert counted == []
