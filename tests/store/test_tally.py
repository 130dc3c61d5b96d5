"""What processes count reaches the store's totals, and what waits is told by queue."""

import asyncio
import contextlib

from shared.errors import StoreUnavailable
from shared.run import Failure, Outcome, Usage
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

        depths, swept_s = await store.runs.depths(["claude"])

        assert depths["echo"][0] == 3
        assert 0 <= depths["echo"][1] < 5
        assert depths["claude"] == (0, 0.0)
        assert swept_s == -1
        await store.runs.cancel(late, Failure("cancelled", "x", "cancelled"))
        assert (await store.runs.depths([]))[0]["echo"][0] == 2
        await store.sweeper.sweep()
        assert 0 <= (await store.runs.depths([]))[1] < 5

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
