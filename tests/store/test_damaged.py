"""One record that another has spoilt is its own trouble: all else in the store goes on."""

import asyncio
import json

import pytest

from shared import names
from shared.errors import InvalidRequest, StoreDamaged
from shared.flow import Flow
from shared.ids import new_id
from shared.run import RunSpec, Status
from tests.store.store import Store

SPOILT = ["another type", "no JSON", "no text", "gone"]


async def spoil(store: Store, name: str, how: str, field: str = "spec") -> None:
    if how in ("gone", "another type"):
        await store.redis("DEL", name)
        if how == "another type":
            await store.redis("SET", name, "x")
    else:
        await store.redis("HSET", name, field, b'{"id":' if how == "no JSON" else b"\xff\xfe")


async def out_of_lease(store: Store, *specs: RunSpec) -> None:
    for spec in specs:
        await store.redis("ZADD", names.RUNNING, 1, spec.id)
    seconds = int((await store.redis("TIME"))[0])
    await store.redis("SET", names.SWEPT, seconds * 1000 - 1000)


@pytest.mark.parametrize("how", SPOILT)
def test_a_lost_run_that_cannot_be_read_leaves_its_window_and_keeps_no_other_from_its_end(on_store, how):
    async def test(store: Store) -> None:
        await store.worker(slots=1)
        spoilt, other = await store.add(), await store.add()
        waits = await store.add()
        await store.claim(spoilt)
        await store.claim(other)
        await spoil(store, names.run(spoilt.id), how)
        await out_of_lease(store, spoilt, other)

        await store.sweeper.sweep()

        assert await store.status(other) is Status.FAILED
        assert await store.status(waits) is Status.QUEUED
        assert await store.runs.counts() == {"waiting": 0, "queued": 1, "running": 0}
        assert await store.redis("SMEMBERS", "clinvk:held:queue:echo") == [waits.id.encode()]
        assert await store.redis("PTTL", names.run(spoilt.id)) != -1

    on_store(test)


@pytest.mark.parametrize("how", SPOILT)
def test_a_run_whose_record_is_spoilt_takes_no_other_workers_lease(on_store, how):
    async def test(store: Store) -> None:
        await store.worker()
        spoilt, other = await store.add(), await store.add()
        await store.claim(spoilt)
        await store.claim(other)
        await spoil(store, names.run(spoilt.id), how, "cancel")

        ends = await store.runs.renew([(spoilt.id, "att_1"), (other.id, "att_1")])

        assert set(ends) == {spoilt.id}

    on_store(test)


@pytest.mark.parametrize("how", SPOILT)
def test_a_waiting_run_that_is_spoilt_is_passed_over_and_a_list_leaves_it_out(on_store, how):
    async def test(store: Store) -> None:
        spoilt, other = await store.add(), await store.add()
        await spoil(store, names.run(spoilt.id), how, "status")

        await store.worker()

        assert await store.hints() == [other.id]
        if how != "another type":  # one command of many fails
            assert [run.spec.id for run in (await store.runs.list("t", limit=9, offset=0))[0]] == [other.id]

    on_store(test)


def test_a_flow_that_lost_its_count_is_not_carried_on_for_ever(on_store):
    async def test(store: Store) -> None:
        id = new_id("flow")
        lanes = tuple(RunSpec(id=new_id("run"), tenant="t", backend="echo", prompt="p", flow_id=id) for _ in range(2))
        await store.worker()
        await store.dispatch.submit_flow(Flow(id=id, tenant="t", kind="chain", lanes=lanes), follower=None)
        await store.redis("HDEL", names.run(id), "ends")

        with pytest.raises(StoreDamaged):
            async with asyncio.timeout(5):
                await store.dispatch.carry_on(id)

    on_store(test)


def test_a_chore_that_cannot_be_read_is_dropped(on_store):
    async def test(store: Store) -> None:
        for chore in (b'{"session":"ses_1"}', b"{", b"\xff"):
            await store.redis("RPUSH", names.chores("h"), chore)

        found = await store.sessions.chore("h")

        assert found is not None
        assert found[1].session == "ses_1"

    on_store(test)


def test_an_announcement_that_cannot_be_read_hides_no_other_worker(on_store):
    async def test(store: Store) -> None:
        await store.worker(id="ins_1")
        await store.worker(id="ins_2")
        await store.redis("SET", names.instance("ins_1"), b'{"id":')

        assert [one.id for one in await store.hosts.list()] == ["ins_2"]

    on_store(test)


@pytest.mark.parametrize("make_redis", [pytest.param("real", marks=pytest.mark.redis)], indirect=True)
def test_half_a_surrogate_pair_is_refused_and_harms_nobody_elses_command(on_store):
    async def test(store: Store) -> None:
        with pytest.raises(InvalidRequest, match="surrogate"):
            await store.sessions.starting_with("t", json.loads('"\\ud800"'))

        await store.runs.ping()

    on_store(test)
