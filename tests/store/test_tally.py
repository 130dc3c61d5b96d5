"""What processes count reaches the store's totals, and what waits is told by queue."""

import asyncio
import contextlib

from shared.errors import StoreUnavailable
from shared.ids import new_id
from shared.run import Failure, Outcome, RunSpec, Usage
from shared.store.runs import Depth, Line
from shared.tally import Tally


def test_counts_of_several_processes_are_one(on_store):
    async def test(store):
        one, two = Tally(store.redis), Tally(store.redis)
        one.add("http|GET|/health|200")
        two.add("http|GET|/health|200", 2)
        two.observe("relay_lag", "", 0.002)
        await one.flush()
        await two.flush()
        await two.flush()

        totals = await store.runs.totals()

        assert totals["http|GET|/health|200"] == 3
        assert (totals["relay_lag||0.0025"], totals["relay_lag_us|"]) == (1, 2000)

    on_store(test)


def test_what_cannot_be_stored_is_kept_for_the_next_time(on_store):
    async def test(store):
        class Away:
            async def all(self, commands):
                raise StoreUnavailable("away", retry_after_s=1)

        tally = Tally(Away())
        tally.add("mended|api")
        with contextlib.suppress(StoreUnavailable):
            await tally.flush()
        tally.add("mended|api")
        tally._redis = store.redis
        await tally.flush()

        assert (await store.runs.totals())["mended|api"] == 2

    on_store(test)


def test_a_process_that_ends_stores_its_last_counts(on_store):
    async def test(store):
        tally = Tally(store.redis)
        keeping = asyncio.create_task(tally.run())
        await asyncio.sleep(0)
        tally.add("mended|api")
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

        assert (await store.runs.totals())["mended|api"] == 1

    on_store(test)


def test_lines_are_told_by_queue_with_the_age_of_their_oldest(on_store):
    async def test(store):
        await store.worker(slots=1)  # two runs are hinted, the others wait
        for number in range(4):
            await store.add(tenant=f"t{number % 2}")
        late = await store.add(priority="batch")

        lines, swept_s = await store.runs.lines(["claude"])

        assert lines["echo"].depth == 3
        assert 0 <= lines["echo"].oldest_s < 5
        assert lines["claude"] == Line()
        assert swept_s == -1
        await store.runs.cancel(late, Failure("cancelled", "x", "cancelled"))
        assert (await store.runs.lines([]))[0]["echo"].depth == 2
        await store.sweeper.sweep()
        assert 0 <= (await store.runs.lines([]))[1] < 5

    on_store(test)


async def wanted(store, queue="echo"):
    return (await store.runs.lines([queue]))[0][queue].wanted


def test_another_slot_helps_what_is_queued_and_what_waits_for_the_backends_window_alone(on_store):
    async def test(store):
        await store.worker(slots=1)  # and a window of two
        specs = [await store.add() for _ in range(4)]
        assert await wanted(store) == 4
        claim = await store.claim(specs[0])

        assert await wanted(store) == 3
        line = (await store.runs.lines([]))[0]["echo"]
        assert (line.depth, line.wanted) == (2, 3)
        assert 0 <= line.oldest_s <= line.wanted_s < 5
        await store.runs.end(claim, Outcome(), retryable=False, first=1, events=[])
        assert await wanted(store) == 3

    on_store(test)


def test_another_slot_helps_no_run_that_its_tenants_window_holds_back(on_store):
    async def test(store):
        await store.worker(slots=50)
        await store.worker(slots=50, queue="codex", id="ins_2")
        limited = [await store.add(key="k", key_window=1) for _ in range(5)]
        assert await wanted(store) == 1, "it is queued, and no worker has it yet"
        await store.claim(limited[0])

        line = (await store.runs.lines([]))[0]["echo"]
        assert (line.depth, line.wanted, line.wanted_s) == (4, 0, 0.0)

        # A window that is not full is counted once, whatever lines its runs stand in.
        await store.redis("SET", "clinvk:room:echo", 0)
        await store.redis("SET", "clinvk:room:codex", 0)
        for backend in ("echo", "codex"):
            for _ in range(3):
                await store.add(key="wide", key_window=4, backend=backend)
        assert await wanted(store) + await wanted(store, "codex") == 4

    on_store(test)


def test_another_slot_helps_no_run_that_must_go_to_one_host(on_store):
    async def test(store):
        await store.worker(slots=1, queue="echo@h")
        for _ in range(4):
            spec = RunSpec(id=new_id("run"), tenant="t", backend="echo", prompt="p")
            await store.runs.add(spec, "echo@h", follower=None, depth=Depth(9))

        line = (await store.runs.lines([]))[0]["echo@h"]

        assert (line.depth, line.wanted, line.wanted_s) == (2, 0, 0.0)
        assert await wanted(store) == 0

    on_store(test)


def test_a_slot_is_wanted_where_no_worker_is_left_at_all(on_store):
    async def test(store):
        await store.add()

        assert await wanted(store) == 1

    on_store(test)


def test_an_end_counts_its_cause_its_cost_and_the_first_event(on_store):
    async def test(store):
        await store.worker()
        claim = await store.claim(await store.add())
        failure = Failure("backend_error", 'it said "cause":"mine" and "cost_usd":9', "crashed")
        outcome = Outcome(failure=failure, cost_usd=0.0125, usage=Usage(1, 2), output='"cost_usd":7,"cause":"evil"')
        await store.runs.end(claim, outcome, retryable=False, first=1, events=[b'{"type":"init"}'])

        totals = await store.runs.totals()

        assert totals["ended|echo|failed|backend_error|crashed"] == 1
        assert totals["cost_microusd|echo"] == 12_500
        assert sum(count for name, count in totals.items() if name.startswith("first|echo|")) == 1

    on_store(test)


def test_a_lost_worker_is_counted_once_for_each_run_and_each_mending_by_what_it_was(on_store):
    async def test(store):
        await store.worker()
        spec = await store.add()
        await store.claim(spec)
        counted = []
        sweeper = store.sweeps()
        sweeper._count = counted.append
        await sweeper.sweep()  # the first look after an absence judges no lease
        await store.redis("DEL", "clinvk:hold")
        await store.redis("ZADD", "clinvk:running", 1, spec.id)
        for _ in range(2):
            await store.redis("DECRBY", "clinvk:swept", 600)
            await sweeper.sweep()

        assert (await store.runs.totals())["lease_lost|echo"] == 1
        assert counted == ["mended|lease"]

    on_store(test)
