"""Sessions in the store: true after every end, listed at one price, one turn at a time."""

from typing import Any

import pytest

from shared import names
from shared.errors import Conflict, NotFound
from shared.ids import new_id
from shared.run import Failure, Outcome, RunSpec, Status, Usage
from shared.store.runs import Depth
from shared.store.sessions import Chore, opening
from tests.store.store import Store

CANCELLED = Failure("cancelled", "by its caller", "cancelled")


async def begin(store: Store, prompt: str = "hello", tenant: str = "t", **more: Any) -> RunSpec:
    session = more.pop("session_id", None) or new_id("ses")
    spec = RunSpec(id=new_id("run"), tenant=tenant, backend="echo", prompt=prompt, session_id=session, **more)
    await store.runs.add(spec, "echo", follower=None, depth=Depth(100_000), opening=opening(spec, ["tag"]))
    return spec


async def go_on(store: Store, first: RunSpec, *, must_be_free: bool = False) -> RunSpec:
    spec = RunSpec(id=new_id("run"), tenant=first.tenant, backend="echo", prompt="more", session_id=first.session_id)
    await store.runs.add(spec, "echo", follower=None, depth=Depth(100), must_be_free=must_be_free)
    return spec


async def end(store: Store, spec: RunSpec, failure: Failure | None = None, cli_id: str | None = "cli") -> Any:
    claim = await store.claim(spec)
    outcome = Outcome(exit_code=0, failure=failure, usage=Usage(10, 4, 2, 1), backend_session_id=cli_id, model="m-1")
    await store.runs.end(claim, outcome, retryable=False, first=1, events=[])
    return claim


async def seen(store: Store, spec: RunSpec) -> Any:
    assert spec.session_id is not None
    found = await store.sessions.get(spec.tenant, spec.session_id)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("failure", "status"),
    [(None, "completed"), (Failure("backend_error", "m", "crashed"), "error"), (CANCELLED, "cancelled")],
)
def test_a_session_is_what_its_last_turn_came_to(on_store, failure, status):
    async def test(store: Store) -> None:
        await store.worker()
        spec = await begin(store, "hello\n  world " + "x" * 200, workdir="/srv", model="fast")
        assert (await seen(store, spec)).status == "active"
        await end(store, spec, failure)

        found = await seen(store, spec)

        assert found.status == status
        assert (found.turn_count, found.usage, found.cli_id, found.host) == (1, Usage(10, 4, 2, 1), "cli", "h")
        assert (found.working_dir, found.model, found.tags) == ("/srv", "m-1", ("tag",))
        assert found.title.startswith("hello world xxx")
        assert len(found.title) == 80

    on_store(test)


def test_a_run_that_is_lost_or_cancelled_before_its_start_is_told_too(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        lost, early = await begin(store), await begin(store)
        assert await store.claim(lost) is not None
        await store.redis("ZADD", names.RUNNING, 1, lost.id)
        await store.runs.expire(lost, Failure("worker_lost", "m", "worker_lost"))
        await store.runs.cancel(early, CANCELLED)

        assert ((await seen(store, lost)).status, (await seen(store, lost)).turn_count) == ("error", 1)
        assert ((await seen(store, early)).status, (await seen(store, early)).turn_count) == ("cancelled", 0)

    on_store(test)


def test_turns_go_one_at_a_time_to_the_host_that_has_the_session_and_know_where_it_stands(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        await store.worker(queue="echo@h", id="ins_2")
        first = await begin(store)
        second, third = await go_on(store, first), await go_on(store, first)
        assert await store.status(second) is Status.WAITING
        assert await store.hints() == [first.id]

        await end(store, first)

        assert await store.hints("echo@h") == [second.id]
        assert (await seen(store, first)).status == "active"
        claim = await end(store, second, cli_id="cli2")
        assert (claim.spec.resume, claim.spec.prior_usage) == ("cli", Usage(10, 4, 2, 1))
        assert await store.status(third) is Status.QUEUED
        claim = await end(store, third)
        assert claim.spec.resume == "cli2"
        found = await seen(store, first)
        assert (found.status, found.turn_count, found.usage.input_tokens) == ("completed", 3, 30)

    on_store(test)


def test_a_busy_session_may_refuse_and_a_deleted_one_does(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        first = await begin(store)
        with pytest.raises(Conflict):
            await go_on(store, first, must_be_free=True)
        assert first.session_id is not None
        assert await store.sessions.forget(first.session_id) == "active"
        await end(store, first)

        assert await store.sessions.forget(first.session_id) == "deleted"

        with pytest.raises(NotFound):
            await go_on(store, first)
        found = await store.sessions.chore("h")
        assert found is not None
        assert found[1] == Chore(backend="echo", session=first.session_id, cli_id="cli")
        assert await store.sessions.chore("h") == found  # should its worker die in the middle
        await store.sessions.done("h", found[0])
        assert await store.sessions.chore("h") is None
        left = await store.redis("KEYS", f"*{first.session_id}*")
        assert left == []

    on_store(test)


def test_a_list_is_filtered_and_its_total_is_honest(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        specs = [await begin(store, f"p{number}") for number in range(5)]
        await begin(store, tenant="other")
        for spec in specs[:3]:
            await end(store, spec)
        await store.runs.cancel(specs[3], CANCELLED)

        async def listed(**more: Any) -> tuple[list[str], int]:
            asked = {"backend": None, "status": None, "limit": 100, "offset": 0, **more}
            found, total = await store.sessions.list("t", **asked)
            return [one.initial_prompt for one in found], total

        assert (await listed())[1] == 5
        assert set((await listed(status="completed"))[0]) == {"p0", "p1", "p2"}
        assert await listed(status="active") == (["p4"], 1)
        assert await listed(status="cancelled", backend="echo") == (["p3"], 1)
        assert await listed(backend="claude") == ([], 0)
        page = await listed(limit=2, offset=1)
        assert (len(page[0]), page[1]) == (2, 5)

    on_store(test)


def test_a_page_costs_one_command_whatever_its_length(on_store):
    async def test(store: Store) -> None:
        for number in range(120):
            await begin(store, f"p{number}")
        await store.sessions.list("t", backend=None, status=None, limit=1, offset=0)  # which loads the script
        asked: list[int] = []
        raw = store.redis.raw

        async def counting(commands: Any) -> Any:
            asked.append(len(commands))
            return await raw(commands)

        store.redis.raw = counting
        counts = []
        for limit in (5, 100):
            asked.clear()
            found, _ = await store.sessions.list("t", backend=None, status=None, limit=limit, offset=0)
            assert len(found) == limit
            counts.append(sum(asked))

        assert counts[0] == counts[1]

    on_store(test)


def test_a_unique_beginning_is_enough_and_belongs_to_its_tenant(on_store):
    async def test(store: Store) -> None:
        await begin(store, session_id="ses_aa1")
        await begin(store, session_id="ses_aa2")
        await begin(store, session_id="ses_b1")

        assert await store.sessions.starting_with("t", "ses_b") == ["ses_b1"]
        assert len(await store.sessions.starting_with("t", "ses_a")) == 2
        assert await store.sessions.starting_with("other", "ses_b") == []
        assert await store.sessions.get("other", "ses_b1") is None

    on_store(test)


def test_a_session_that_is_not_used_any_more_is_swept(on_store):
    async def test(store: Store) -> None:
        await store.worker()
        old, new = await begin(store), await begin(store)
        for spec in (old, new):
            await end(store, spec)
        assert old.session_id is not None
        await store.redis("ZADD", names.SESSIONS, 1, old.session_id)
        await store.redis("HSET", names.session(old.session_id), "last_used", 1)

        await store.sweeper.sweep()

        assert await store.sessions.get("t", old.session_id) is None
        assert (await seen(store, new)).status == "completed"

    on_store(test)
