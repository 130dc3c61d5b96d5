"""What the sweep says of runs and flows: which one, whose, and in which trace, as fields of the line."""

import logging
import re

import pytest

from shared import names
from shared.flow import Flow
from shared.run import Outcome, RunSpec
from shared.store.runs import Depth
from tests.store.store import Store

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PLACE = {"traceparent": f"00-{TRACE}-{'1' * 16}-01", "request_id": "req_1"}
ABOUT = {"tenant": "t", "trace_id": TRACE, "request_id": "req_1"}


async def long_ago(store: Store, *where: tuple[str, str]) -> None:
    """In these sets these have been for ever, and nobody has judged leases just now."""
    await store.sweeper.sweep()  # the first look after an absence judges nothing
    await store.redis("DECRBY", names.SWEPT, 600)
    await store.redis("DEL", names.HOLD)
    for name, id in where:
        await store.redis("ZADD", name, 1, id)


async def a_flow(store: Store, id: str) -> Flow:
    lane = RunSpec(id=f"run_{id}", tenant="t", backend="echo", prompt="p", flow_id=id, **PLACE)
    made = Flow(id=id, tenant="t", kind="parallel", lanes=(lane,), names=("",))
    await store.dispatch.submit_flow(made, follower="api_1")
    return made


def said(caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, object]]:
    """What each line about a run or a flow bears, by the id that its words name."""
    found = {}
    for row in caplog.records:
        for id in re.findall(r"\b(?:run|flow)_[\w-]+", row.getMessage()):
            found[id] = {name: vars(row).get(name) for name in ("run_id", *ABOUT)}
    return found


def test_each_run_and_flow_that_the_sweep_ends_has_a_line_with_its_ids(on_store, caplog):
    caplog.set_level(logging.INFO)

    async def test(store: Store) -> None:
        await store.worker()
        lost, alone, hasty = [await store.add(follower="api_1", start_within_s=50, **PLACE) for _ in range(3)]
        await store.claim(lost)
        overdue = await store.add(backend="codex", **PLACE)
        made = await a_flow(store, "flow_1")
        for id in (alone.id, made.id):
            await store.api.remove(id)
        kept = await store.add(**PLACE)
        await long_ago(
            store,
            (names.RUNNING, lost.id),
            (names.WAITING, overdue.id),
            (names.IMPATIENT, hasty.id),
            (names.UNFOLLOWED, alone.id),
            (names.UNFOLLOWED, made.id),
        )

        await store.sweeper.sweep()

        ended = [lost.id, overdue.id, hasty.id, alone.id, made.id]
        assert said(caplog) == {id: {"run_id": id, **ABOUT} for id in ended}
        assert kept.id not in caplog.text

    on_store(test)


def test_what_the_sweep_cannot_move_or_carry_on_is_told_with_its_ids_and_keeps_nobody_else(on_store, caplog):
    async def test(store: Store) -> None:
        await store.worker()
        stuck = RunSpec(id="run_stuck", tenant="t", backend="echo", prompt="p", **PLACE)
        await store.runs.add(stuck, names.queue("echo", "gone"), follower=None, depth=Depth(10))
        made = await a_flow(store, "flow_1")
        after = await store.add(backend="codex", **PLACE)
        claim = await store.claim(made.lanes[0])
        await store.runs.end(claim, Outcome(exit_code=0), retryable=False, first=1, events=[])
        await store.redis("DEL", names.run(made.lanes[0].id))
        await store.redis("SET", names.run(made.lanes[0].id), "of another type")
        await store.redis("SET", names.TURN, "no number")
        await store.redis("HSET", names.STRANDED, names.queue("echo", "gone"), 1)
        await long_ago(store, (names.DUE, made.id), (names.DUE, after.id))

        await store.sweeper.sweep()

        assert said(caplog) == {id: {"run_id": id, **ABOUT} for id in ("run_stuck", made.id)}
        assert await store.redis("ZSCORE", names.DUE, after.id) is None

    on_store(test)
