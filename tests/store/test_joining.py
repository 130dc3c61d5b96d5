"""One request, one run: retries join the run that they started; and what else a submit may say."""

from typing import Any

import pytest

from shared import names
from shared.errors import BackendUnavailable, InvalidRequest
from shared.flow import FlowStatus
from shared.ids import new_id
from shared.run import Failure, Outcome, RunSpec, Status
from shared.store.runs import Added, Depth, Same
from shared.sweep import HUNG_UP
from tests.store.store import Store
from tests.store.test_flows import flow

CANCELLED = Failure("cancelled", "by its caller", "cancelled")


async def submit(store: Store, same: Same, follower: str = "api_1", id: str | None = None, **spec: Any) -> Added:
    made = RunSpec(id=id or new_id("run"), tenant="t", backend="echo", prompt="p", **spec)
    return await store.runs.add(made, "echo", follower=follower, depth=Depth(100), same=same)


def body(retry: int) -> Same:
    return Same(name="b", kind="body", fingerprint="p", retry=retry)


def key(fingerprint: str = "p", name: str = "k") -> Same:
    return Same(name=name, kind="key", fingerprint=fingerprint)


async def end(store: Store, run_id: str, failure: Failure | None = None) -> None:
    claim = await store.runs.claim(run_id, "att", host="h", instance="i")
    await store.runs.end(claim, Outcome(exit_code=0, failure=failure), retryable=False, first=1, events=[])


def test_a_retry_joins_the_run_that_nobody_follows_and_a_fresh_call_does_not(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        first = await submit(store, body(0))
        await store.api.remove(first.run_id)

        fresh = await submit(store, body(0), follower="api_2")
        retry = await submit(store, body(1))

        assert fresh.run_id != first.run_id
        assert retry.run_id == first.run_id

    on_store(test)


def test_a_run_that_somebody_follows_is_another_callers(on_store):
    async def test(store: Store) -> None:
        first = await submit(store, body(0))

        assert (await submit(store, body(1))).run_id != first.run_id

    on_store(test)


def test_each_try_joins_a_run_once(on_store):
    async def test(store: Store) -> None:
        first, second = await submit(store, body(0)), await submit(store, body(0))
        for added in (first, second):
            await store.api.remove(added.run_id)

        joined = []
        for _ in range(3):
            added = await submit(store, body(1))
            joined.append(added.run_id)
            await store.api.remove(added.run_id)
        again = await submit(store, body(2))

        assert set(joined[:2]) == {first.run_id, second.run_id}
        assert joined[2] not in joined[:2]
        assert again.run_id in joined

    on_store(test)


def test_a_join_whose_answer_was_lost_may_be_sent_again(on_store):
    async def test(store: Store) -> None:
        first = await submit(store, body(0))
        await store.api.remove(first.run_id)

        tries = [await submit(store, body(1), id="run_x") for _ in range(2)]

        assert [added.run_id for added in tries] == [first.run_id] * 2

    on_store(test)


def test_a_joined_run_is_followed_again_and_not_ended_for_being_alone(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        first = await submit(store, body(0))
        assert await store.api.remove(first.run_id)

        await submit(store, body(1))
        await store.sweeper.sweep()

        run = await store.runs.get(first.run_id)
        assert run is not None
        assert await store.runs.cancel(run.spec, HUNG_UP, "unfollowed") == "kept"

    on_store(test)


@pytest.mark.parametrize(
    ("failure", "joins"),
    [
        (None, True),
        (Failure("backend_error", "m", "crashed"), True),
        (Failure("backend_login", "m", "login"), True),
        (Failure("worker_lost", "m", "worker_lost"), True),
        (Failure("backend_limited", "m", "rate_limited"), False),
        (Failure("worker_shutdown", "m", "worker_shutdown"), False),
        (HUNG_UP, False),
        (CANCELLED, True),
    ],
)
@pytest.mark.parametrize("kind", ["key", "body"])
def test_an_ended_run_is_joined_unless_a_new_try_may_mend_it(on_store, kind, failure, joins):
    async def test(store: Store) -> None:
        await store.worker()
        first = await submit(store, key() if kind == "key" else body(0))
        await store.api.remove(first.run_id)  # its caller has gone
        await end(store, first.run_id, failure)

        again = await submit(store, key() if kind == "key" else body(1))

        assert (again.run_id == first.run_id) is joins
        assert again.status.final is joins

    on_store(test)


def test_a_key_stands_for_one_body(on_store):
    async def test(store: Store) -> None:
        first = await submit(store, key())

        assert (await submit(store, key())).run_id == first.run_id
        assert (await submit(store, key(name="other"))).run_id != first.run_id
        with pytest.raises(InvalidRequest, match="Idempotency-Key"):
            await submit(store, key(fingerprint="q"))

    on_store(test)


def test_a_run_that_does_not_start_within_its_callers_patience_is_refused(on_store):
    async def test(store: Store) -> None:
        patient, hasty = await store.add(start_within_s=60), await store.add(start_within_s=50)
        await store.redis("ZADD", names.IMPATIENT, 1, hasty.id)  # its time has come

        await store.sweeper.sweep()

        run = await store.runs.get(hasty.id)
        assert run is not None
        assert run.outcome is not None
        assert run.outcome.failure is not None
        assert (run.outcome.failure.code, run.outcome.failure.cause) == ("backend_unavailable", "impatient_caller")
        assert await store.status(patient) is Status.WAITING

    on_store(test)


def test_a_run_that_has_started_is_not_refused_for_its_callers_patience(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add(start_within_s=50)
        await store.redis("ZADD", names.IMPATIENT, 1, spec.id)
        assert await store.claim(spec) is not None

        await store.sweeper.sweep()

        assert await store.status(spec) is Status.RUNNING

    on_store(test)


def test_an_ended_run_can_be_forgotten_and_a_living_one_cannot(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await store.add()
        assert not await store.runs.forget(spec.id)
        await end(store, spec.id)

        assert await store.runs.forget(spec.id)

        assert await store.runs.get(spec.id) is None
        assert await store.runs.list("t", limit=10, offset=0) == ([], 0)
        assert await store.events.read(spec.id, after=0) == []

    on_store(test)


def test_who_comes_back_and_leaves_again_has_a_grace_of_its_own(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        first = await submit(store, body(0))
        assert await store.api.remove(first.run_id)
        run = await store.runs.get(first.run_id)
        assert run is not None
        await store.redis("ZADD", names.UNFOLLOWED, 1, first.run_id)  # long ago
        await submit(store, body(1))
        assert await store.api.remove(first.run_id)

        assert await store.runs.cancel(run.spec, HUNG_UP, "unfollowed", alone_s=60) == "kept"

        await store.redis("ZADD", names.UNFOLLOWED, 1, first.run_id)
        assert await store.runs.cancel(run.spec, HUNG_UP, "unfollowed", alone_s=60) == "ended"

    on_store(test)


def test_a_run_that_its_caller_has_seen_to_its_end_is_not_joined_by_another(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        first = await submit(store, body(0))
        await end(store, first.run_id)

        assert (await submit(store, body(1))).run_id != first.run_id

    on_store(test)


def test_a_run_that_is_being_cancelled_is_not_joined(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        for same, again in ((body(0), body(1)), (key(), key())):
            first = await submit(store, same)
            assert await store.runs.claim(first.run_id, "att", host="h", instance="i") is not None
            await store.api.remove(first.run_id)
            run = await store.runs.get(first.run_id)
            assert run is not None
            assert await store.runs.cancel(run.spec, HUNG_UP) == "ordered"

            assert (await submit(store, again)).run_id != first.run_id

    on_store(test)


def test_a_finished_run_is_replayed_by_its_key_where_no_worker_is_left(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        first = await submit(store, key())
        await end(store, first.run_id)
        await store.hosts.retire("ins_1")
        spec = RunSpec(id="run_2", tenant="t", backend="echo", prompt="p")

        again = await store.dispatch.submit(spec, follower="api_1", same=key())

        assert again.run_id == first.run_id
        with pytest.raises(InvalidRequest, match="Idempotency-Key"):
            await store.dispatch.submit(spec, follower="api_1", same=key(fingerprint="q"))
        with pytest.raises(BackendUnavailable):
            await store.dispatch.submit(spec, follower="api_1", same=key(name="new"))
        with pytest.raises(BackendUnavailable):
            await store.dispatch.submit(spec, follower="api_1")
        assert await store.runs.get("run_2") is None

    on_store(test)


@pytest.mark.parametrize("what", ["run", "flow"])
def test_who_joins_without_waiting_detaches_it(on_store, what):
    async def test(store: Store) -> None:
        await store.worker()
        await store.api.renew()
        if what == "run":
            id = (await submit(store, key(), start_within_s=50)).run_id
            joined = await store.runs.add(
                RunSpec(id="run_2", tenant="t", backend="echo", prompt="p"),
                "echo", follower=None, depth=Depth(9), same=key(),
            )  # fmt: skip
            assert joined.run_id == id
        else:
            made = flow("parallel", "a")
            id = made.id
            await store.dispatch.submit_flow(made, follower="api_1")
            await store.flows.detach(id)
        await store.api.remove(id)

        if what == "run":
            spec = RunSpec(id=id, tenant="t", backend="echo", prompt="p")
            assert await store.runs.cancel(spec, HUNG_UP, "unfollowed") == "kept"
            assert await store.redis("ZSCORE", names.IMPATIENT, id) is None
        else:
            await store.dispatch.cancel_flow(id, HUNG_UP, "unfollowed")
            record = await store.flows.get(id)
            assert record is not None
            assert (record.status, record.detached) == (FlowStatus.RUNNING, True)
        assert await store.redis("ZSCORE", names.UNFOLLOWED, id) is None

    on_store(test)
