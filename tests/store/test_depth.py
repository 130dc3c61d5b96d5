"""How much may wait: of all, of one tenant, of one flow; and when those who found no place may come again."""

from typing import Any

import pytest

from shared import names
from shared.dispatch import CANCELLED
from shared.errors import InvalidRequest, QueueFull
from shared.ids import new_id
from shared.run import RunSpec
from shared.store.runs import Depth, Same
from tests.store.store import Store
from tests.store.test_flows import flow


async def ask(store: Store, tenant: str = "t", **more: Any) -> RunSpec:
    spec = RunSpec(id=new_id("run"), tenant=tenant, backend="echo", prompt="p", **more)
    await store.dispatch.submit(spec, follower=None)
    return spec


async def end(store: Store, spec: RunSpec) -> None:
    await store.runs.cancel(spec, CANCELLED)


async def refused(store: Store, depth: Depth, tenant: str = "t") -> QueueFull:
    spec = RunSpec(id=new_id("run"), tenant=tenant, backend="echo", prompt="p")
    with pytest.raises(QueueFull) as full:
        await store.runs.add(spec, "echo", follower=None, depth=depth)
    return full.value


def test_one_tenant_fills_its_share_and_leaves_the_rest_to_others(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=4)  # and a window of five
        taken = [await ask(store) for _ in range(5 + 3)]
        full = await refused(store, Depth(10, 3))

        assert full.message == "3 of your runs are waiting already, of at most 3 (queue.max_depth_per_tenant)"
        assert full.details == {"depth": 3, "limit": 3}
        for tenant in ("b", "b", "b", "c", "c", "c", "d"):
            await ask(store, tenant)
        assert (
            await refused(store, Depth(10, 3), "d")
        ).message == "10 runs are waiting already, of at most 10 (queue.max_depth)"
        await end(store, taken[-1])
        await ask(store)
        await refused(store, Depth(10, 3))

    on_store(test, depth=Depth(10, 3))


def test_a_flow_counts_for_its_tenant_as_wide_as_its_window_is(on_store):
    async def test(store: Store) -> None:
        await store.worker(slots=1)
        await ask(store)
        wide = flow("parallel", *"abcdefgh", window=3)
        await store.dispatch.submit_flow(wide, follower=None)

        with pytest.raises(QueueFull):
            await store.dispatch.submit_flow(flow("parallel", *"abcdefgh", window=3), follower=None)

        assert (await store.flows.list("t", limit=9, offset=0))[1] == 1

    on_store(test, depth=Depth(10, 4))


@pytest.mark.parametrize(("kind", "field"), [("parallel", "max_parallel"), ("compare", "backends")])
def test_a_flow_that_could_never_begin_is_told_so_instead_of_to_come_again(on_store, kind, field):
    async def test(store: Store) -> None:
        await store.worker()
        with pytest.raises(InvalidRequest, match="no more than 3 of one caller") as told:
            await store.dispatch.submit_flow(flow(kind, *"abcde", window=4), follower=None)
        assert told.value.field == field
        await store.dispatch.submit_flow(flow(kind, *"abcde", window=3), follower=None)

    on_store(test, depth=Depth(10, 3))


async def paced(store: Store, went: int, ms: int) -> None:
    """Sweeps as if so many runs had left the lines in so much time."""
    now = int((await store.redis("TIME"))[0]) * 1000
    await store.redis("DEL", names.SWEPT)
    await store.redis("SET", names.LEFT, went)
    await store.redis("HSET", names.PACE, "at", now - ms, "left", 0)
    await store.sweeper.sweep()


@pytest.mark.parametrize(
    ("went", "wait_s"),
    [(2, (4.0, 6.0)), (5000, (1.0, 1.0)), (0, (300.0, 300.0))],  # in nine seconds
)
def test_who_finds_no_place_is_told_when_one_is_likely_at_the_pace_of_late(on_store, went, wait_s):
    async def test(store: Store) -> None:
        await store.add()
        assert (await refused(store, Depth(1))).retry_after_s == 5.0  # nobody has looked yet

        await paced(store, went, 9000)

        assert wait_s[0] <= (await refused(store, Depth(1))).retry_after_s <= wait_s[1]

    on_store(test)


def test_a_share_that_is_full_comes_free_at_the_pace_of_its_turns(on_store):
    async def test(store: Store) -> None:
        for tenant in "abt":
            await store.add(tenant=tenant)
        await paced(store, 9, 9000)

        assert 2.9 <= (await refused(store, Depth(10, 1))).retry_after_s <= 3.5  # one run a second, two tenants besides

    on_store(test)


def test_the_pace_is_that_of_the_runs_which_leave_their_lines(on_store):
    async def test(store: Store) -> None:
        waits = [await store.add() for _ in range(4)]
        assert await store.redis("GET", names.LEFT) is None
        await end(store, waits[0])
        await store.worker(slots=1)

        assert int(await store.redis("GET", names.LEFT)) == 3  # one cancelled, two with a place in the window

    on_store(test)


def test_a_request_that_comes_again_finds_its_run_though_there_is_no_place(on_store):
    async def test(store: Store) -> None:
        same = Same(name="k", kind="key", fingerprint="p")
        spec = RunSpec(id="run_1", tenant="t", backend="echo", prompt="p")
        await store.worker(slots=0)
        await store.runs.add(spec, "echo", follower="api_1", depth=Depth(1), same=same)

        again = RunSpec(id="run_2", tenant="t", backend="echo", prompt="p")
        assert (await store.runs.add(again, "echo", follower="api_1", depth=Depth(1), same=same)).run_id == "run_1"

    on_store(test)
