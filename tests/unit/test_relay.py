"""Followers see every event of their run once and in order, whatever becomes of the live copies.

The store is a stand-in within the process, and the loop's clock jumps to the next timer: minutes pass at once.
"""

import asyncio
import random
import selectors
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from api.relay import Follower, Relay
from shared.errors import LogExpired, NotFound, StoreUnavailable
from shared.event import Done, Message, encode
from shared.run import Status
from tests.cases import after


class _Jumping(selectors.DefaultSelector):
    """Nothing comes from outside, so that there is never a reason to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for ever"
        self.now += max(timeout, 0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def line(number: int, *, last: bool = False, size: int = 0) -> bytes:
    content = Done(None, 1.0, 1) if last else Message("x" * size)
    return encode(content, backend="echo", session_id="", sequence=number, at_s=0)


def copy(run_id: str, first: int, *lines: bytes) -> bytes:
    """As `publish` in lua/lib writes it."""
    return b"\n".join([f"{run_id} {first} {len(lines)}".encode(), *lines])


class Store:
    """What a relay sees of Redis: streams, who follows, and a subscription; all of it may fail."""

    def __init__(self) -> None:
        self.streams: defaultdict[str, list[bytes]] = defaultdict(list)
        self.trimmed: defaultdict[str, int] = defaultdict(int)
        self.statuses: dict[str, Status] = {}
        self.followed: set[str] = set()
        self.reads = 0
        self.removed: list[str] = []
        self.away = False
        self.pause: Callable[[], Awaitable[None]] = self._no_pause
        self._wire: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    async def _no_pause(self) -> None:
        pass

    def create(self, run_id: str) -> None:
        self.streams[run_id] = []
        self.statuses[run_id] = Status.RUNNING

    def append(self, run_id: str, count: int = 1, *, last: bool = False, size: int = 0) -> bytes:
        """Stores events. Returns the live copy, which is not yet sent."""
        stream = self.streams[run_id]
        first = len(stream) + 1
        stream += [line(first + i, last=last and i == count - 1, size=size) for i in range(count)]
        if last:
            self.statuses[run_id] = Status.SUCCEEDED
            self.followed.discard(run_id)
        return copy(run_id, first, *stream[first - 1 :])

    def forget(self, run_id: str) -> None:
        del self.streams[run_id], self.statuses[run_id]

    async def send(self, *payloads: bytes) -> None:
        """Live copies, that have been heard when this returns."""
        for payload in payloads:
            self._wire.put_nowait(payload)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def lose_subscription(self) -> None:
        self._wire.put_nowait(RedisConnectionError("lost"))
        await self.settle()

    # Redis

    async def subscribe(self, channel: str) -> AsyncIterator[bytes | None]:
        assert channel == "clinvk:live:api_1"
        if self.away:
            raise RedisConnectionError("away")
        self._wire = asyncio.Queue()
        yield None
        while True:
            item = await self._wire.get()
            if isinstance(item, Exception):
                raise item
            yield item

    # Events

    async def read(self, run_id: str, *, after: int, count: int = 500) -> list[bytes]:
        self.reads += 1
        await self.pause()
        if self.away:
            raise StoreUnavailable("away", retry_after_s=2)
        found = self.streams[run_id][after : after + count] if run_id in self.statuses else []
        if found and after < self.trimmed[run_id]:
            raise LogExpired("trimmed")
        await self.pause()
        return found

    async def ends(self, run_ids: Sequence[str]) -> list[int | None]:
        await self.pause()
        if self.away:
            raise StoreUnavailable("away", retry_after_s=2)
        found = [len(self.streams[i]) if i in self.statuses else None for i in run_ids]
        await self.pause()
        return found

    # Followers

    async def add(self, run_id: str) -> tuple[Status, int] | None:
        await self.pause()
        if self.away:
            raise StoreUnavailable("away", retry_after_s=2)
        if run_id not in self.statuses:
            return None
        if not self.statuses[run_id].final:
            self.followed.add(run_id)
        return self.statuses[run_id], len(self.streams[run_id])

    async def remove(self, run_id: str) -> bool:
        await self.pause()
        if self.away:
            raise StoreUnavailable("away", retry_after_s=2)
        self.removed.append(run_id)
        self.followed.discard(run_id)
        return run_id in self.statuses and not self.statuses[run_id].final

    async def renew(self) -> set[str]:
        await self.pause()
        if self.away:
            raise StoreUnavailable("away", retry_after_s=2)
        return set(self.followed)

    async def end(self) -> None:
        self.followed.clear()


Test = Callable[[Store, Relay], Awaitable[None]]


def on_relay(test: Test) -> None:
    async def main() -> None:
        store = Store()
        relay = Relay(store, store, store, "api_1")  # type: ignore[arg-type]  # it stands for all three
        async with relay:
            store.create("run_1")
            await test(store, relay)

    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(main())


def expect(store: Store, relay: Relay, run_id: str = "run_1") -> Follower:
    """As for a run that is just submitted."""
    store.followed.add(run_id)
    return relay.expect(run_id)


async def seen(follower: Follower, count: int, *, within_s: float = 60.0) -> list[int]:
    """The numbers of the next events, which must be its own lines."""
    found: list[bytes] = []
    async with asyncio.timeout(within_s):
        while len(found) < count and not follower.ended:
            found += await follower.next(within_s)
    return [int(one.partition(b'"sequence":')[2].partition(b",")[0]) for one in found]


def passed() -> float:
    return asyncio.get_running_loop().time()


# -- what may become of a live copy


def test_what_is_heard_is_given_out_at_once_without_a_look_at_the_stream():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)

        await store.send(store.append("run_1"), store.append("run_1", 2), store.append("run_1", last=True))

        assert await seen(follower, 9) == [1, 2, 3, 4]
        assert follower.ended
        assert await follower.next(1) == []
        assert (store.reads, passed()) == (0, 0.0)

    on_relay(test)


def test_a_copy_that_is_lost_is_read_from_the_stream_when_the_next_comes():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        await store.send(store.append("run_1"))
        store.append("run_1", 2)

        await store.send(store.append("run_1"))

        assert await seen(follower, 4) == [1, 2, 3, 4]
        assert passed() == 0.0
        await store.send(store.append("run_1"))
        reads = store.reads
        assert await seen(follower, 1) == [5]
        assert store.reads <= reads + 1  # it has caught up, and lives on what it hears

    on_relay(test)


def test_a_copy_that_is_lost_with_none_after_it_is_found_by_comparing_with_the_streams_end():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        await store.send(store.append("run_1"))
        assert await seen(follower, 1) == [1]

        store.append("run_1", 2, last=True)

        assert await seen(follower, 2) == [2, 3]
        assert follower.ended
        assert passed() <= 5.0

    on_relay(test)


def test_a_quiet_follower_who_has_all_is_left_in_peace():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        await store.send(store.append("run_1"))
        assert await seen(follower, 1) == [1]

        assert await follower.next(60) == []

        assert (passed(), store.reads) == (60.0, 0)

    on_relay(test)


def test_a_copy_that_comes_twice_or_in_overlapping_pieces_is_given_out_once():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        one, two = store.append("run_1", 2), store.append("run_1", 2)
        lines = store.streams["run_1"]

        await store.send(one, one, copy("run_1", 2, *lines[1:3]), two, one, copy("run_1", 1, *lines))

        assert await seen(follower, 4) == [1, 2, 3, 4]
        await store.send(one, two)
        assert await follower.next(1) == []
        assert store.reads == 0

    on_relay(test)


def test_copies_out_of_order_are_given_out_in_order():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        copies = [store.append("run_1") for _ in range(5)]

        await store.send(copies[3], copies[0], copies[4], copies[2], copies[1])

        assert await seen(follower, 5) == [1, 2, 3, 4, 5]
        assert await follower.next(1) == []

    on_relay(test)


def test_a_late_copy_of_the_end_does_not_end_it_before_all_is_given_out():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        copies = [store.append("run_1"), store.append("run_1", last=True)]

        await store.send(copies[1])
        await store.send(copies[0], copies[1])

        assert await seen(follower, 9) == [1, 2]
        assert follower.ended

    on_relay(test)


def test_copies_for_many_runs_in_one_payload_go_each_to_its_own():
    async def test(store: Store, relay: Relay) -> None:
        ids = [f"run_{i}" for i in range(2, 6)]
        followers = {}
        for i, run_id in enumerate(ids):
            store.create(run_id)
            for _ in range(i):
                store.append(run_id)
            followers[run_id] = expect(store, relay, run_id)
        copies = [store.append("run_1"), *[store.append(run_id, 3, last=True) for run_id in ids]]  # run_1: not ours
        copies.insert(1, copy(ids[0], 1, *store.streams[ids[0]]))  # twice in one payload

        await store.send(b"\n".join(copies))

        for i, run_id in enumerate(ids):
            assert await seen(followers[run_id], 99) == list(range(1, 4 + i))

    on_relay(test)


def test_what_comes_while_the_stream_is_being_read_is_neither_lost_nor_doubled():
    async def test(store: Store, relay: Relay) -> None:
        store.append("run_1", 2)
        follower = await relay.follow("run_1")
        left = [3, 2, 1]

        async def more_comes() -> None:
            if left:
                payload = store.append("run_1", left.pop())
                await store.send(payload)

        store.pause = more_comes

        assert await seen(follower, 8) == list(range(1, 9))
        assert await follower.next(1) == []

    on_relay(test)


def test_what_comes_just_behind_the_end_that_was_read_is_not_waited_for():
    async def test(store: Store, relay: Relay) -> None:
        follower = await relay.follow("run_1")
        pauses: list[None] = []

        async def comes_when_it_has_been_read() -> None:
            pauses.append(None)
            if len(pauses) == 2:
                await store.send(store.append("run_1"))

        store.pause = comes_when_it_has_been_read

        assert await seen(follower, 1) == [1]
        assert passed() == 0.0

    on_relay(test)


# -- the subscription


def test_a_subscription_that_is_lost_and_renewed_loses_nothing():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        await store.send(store.append("run_1"))
        await store.lose_subscription()
        store.append("run_1", 3)

        assert await seen(follower, 4) == [1, 2, 3, 4]
        assert passed() <= 1.0
        await store.send(store.append("run_1"))
        assert await seen(follower, 1) == [5]

    on_relay(test)


def test_an_outage_of_the_store_is_waited_for_and_the_follower_counts_again_afterwards():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        await store.send(store.append("run_1"))
        store.away = True
        await store.lose_subscription()
        assert await seen(follower, 1) == [1]
        assert await follower.next(30) == []
        store.append("run_1", 2)
        store.followed.clear()  # the store took this process for dead

        store.away = False

        assert await seen(follower, 2) == [2, 3]
        assert await follower.next(5) == []
        assert store.followed == {"run_1"}

    on_relay(test)


def test_a_store_that_is_away_when_the_stream_is_needed_is_told_and_may_be_asked_again():
    async def test(store: Store, relay: Relay) -> None:
        store.append("run_1", 2)
        follower = await relay.follow("run_1")
        store.away = True

        with pytest.raises(StoreUnavailable):
            await follower.next(1)
        store.away = False

        assert await seen(follower, 2) == [1, 2]

    on_relay(test)


# -- slow followers, many followers


@pytest.mark.parametrize("size", [10, 10_000])
def test_a_follower_too_slow_for_its_buffer_is_served_from_the_stream(size):
    async def test(store: Store, relay: Relay) -> None:
        slow, quick = expect(store, relay), expect(store, relay)
        got: list[int] = []
        for _ in range(120):
            await store.send(store.append("run_1", 10, size=size))
            got += await seen(quick, 10)

        assert slow._bytes <= 256 * 1024 + 10 * (size + 300)
        assert await seen(slow, 1200) == got == list(range(1, 1201))
        assert (store.reads > 0) == (120 * 10 * (size + 150) > 256 * 1024)
        await store.send(store.append("run_1", last=True))
        assert await seen(slow, 9) == [1201]

    on_relay(test)


def test_one_event_larger_than_the_buffer_is_given_out_as_it_came():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)

        await store.send(store.append("run_1", size=1_000_000))

        assert await seen(follower, 1) == [1]
        assert store.reads == 0

    on_relay(test)


def test_followers_of_one_run_begin_where_they_like_and_each_see_all_from_there():
    async def test(store: Store, relay: Relay) -> None:
        first = expect(store, relay)
        await store.send(store.append("run_1", 5))
        late = await relay.follow("run_1")
        middle = await relay.follow("run_1", 3)
        await store.send(store.append("run_1", 2, last=True))
        after = await relay.follow("run_1", 7)

        assert await seen(first, 99) == list(range(1, 8))
        assert await seen(late, 99) == list(range(1, 8))
        assert await seen(middle, 99) == list(range(4, 8))
        assert after.ended
        assert await after.next(1) == []

    on_relay(test)


def test_only_the_last_of_several_followers_leaves_the_run_alone():
    async def test(store: Store, relay: Relay) -> None:
        one, two = expect(store, relay), await relay.follow("run_1")

        assert await one.close() is False
        assert (store.followed, relay.open) == ({"run_1"}, 1)
        assert await one.close() is False
        assert await two.close() is True
        assert (store.followed, relay.open) == (set(), 0)

    on_relay(test)


def test_a_follower_that_left_while_the_store_was_away_is_forgotten_there_later():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        store.away = True
        assert await follower.close() is False
        store.away = False
        assert store.followed == {"run_1"}

        await asyncio.sleep(10)  # of the loop's own time

        assert store.followed == set()

    on_relay(test)


def test_a_follower_whose_run_has_ended_lets_nobody_ask_the_store_for_it():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        await store.send(store.append("run_1", last=True))
        await seen(follower, 1)

        assert await follower.close() is False
        assert (relay.open, store.removed) == (0, [])

    on_relay(test)


# -- the end of waiting


def test_next_gives_nothing_when_nothing_came_in_its_time():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)

        assert await follower.next(1.5) == []
        assert passed() == 1.5
        assert await follower.next(0) == []
        await store.send(store.append("run_1"))
        assert await seen(follower, 1) == [1]

    on_relay(test)


def test_whoever_waits_can_be_woken_once():
    async def test(store: Store, relay: Relay) -> None:
        followers = [expect(store, relay), await relay.follow("run_1")]
        waiting = [asyncio.ensure_future(follower.next(60)) for follower in followers]
        await store.settle()

        relay.wake_all()

        assert await asyncio.gather(*waiting) == [[], []]
        assert passed() == 0.0
        assert await followers[0].next(7) == []
        assert passed() == 7.0

    on_relay(test)


def test_a_wait_that_is_cancelled_takes_nothing_with_it():
    async def test(store: Store, relay: Relay) -> None:
        store.append("run_1", 2)
        follower = await relay.follow("run_1")
        store.pause = store.settle
        waiting = asyncio.ensure_future(follower.next(60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        await store.settle()

        assert waiting.cancelled()
        assert await seen(follower, 2) == [1, 2]

    on_relay(test)


# -- what is no longer kept


def test_a_run_that_is_gone_is_told_to_its_followers():
    async def test(store: Store, relay: Relay) -> None:
        heard, behind = expect(store, relay), await relay.follow("run_1")
        await store.send(store.append("run_1"))
        store.forget("run_1")

        assert await seen(heard, 1) == [1]  # what it has is given out first
        for follower in (heard, behind):
            with pytest.raises(LogExpired):
                await follower.next(60)
            with pytest.raises(LogExpired):
                await follower.next(60)
        assert passed() <= 10.0

    on_relay(test)


def test_a_run_that_is_accepted_and_never_heard_of_again_is_told_too():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        store.forget("run_1")

        with pytest.raises(LogExpired):
            await follower.next(60)

    on_relay(test)


def test_a_run_that_is_not_there_yet_since_the_store_is_slow_is_not_taken_for_gone():
    async def test(store: Store, relay: Relay) -> None:
        follower = relay.expect("run_2")
        await asyncio.sleep(4.5)  # of the loop's own time: its submit is under way

        store.create("run_2")
        store.followed.add("run_2")

        assert await follower.next(20) == []
        await store.send(store.append("run_2", 2, last=True))
        assert await seen(follower, 9) == [1, 2]

    on_relay(test)


def test_events_that_have_been_trimmed_are_told_and_the_end_can_still_be_had():
    async def test(store: Store, relay: Relay) -> None:
        store.append("run_1", 10)
        store.trimmed["run_1"] = 5
        early, late = await relay.follow("run_1", 3), await relay.follow("run_1", 5)

        with pytest.raises(LogExpired):
            await early.next(1)
        assert await seen(late, 5) == [6, 7, 8, 9, 10]
        await early.skip()
        assert await seen(early, 1) == [10]
        await store.send(store.append("run_1", last=True))
        assert await seen(early, 9) == [11]
        assert early.ended

    on_relay(test)


def test_a_slow_follower_whose_events_are_trimmed_is_told_and_not_given_a_gap():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        await store.send(store.append("run_1"))
        assert await seen(follower, 1) == [1]
        store.append("run_1", 10)
        store.trimmed["run_1"] = 6
        await store.send(store.append("run_1"))

        with pytest.raises(LogExpired):
            await follower.next(60)

    on_relay(test)


def test_the_end_of_a_run_that_is_gone_cannot_be_had():
    async def test(store: Store, relay: Relay) -> None:
        follower = expect(store, relay)
        store.forget("run_1")

        with pytest.raises(LogExpired):
            await follower.skip()

    on_relay(test)


def test_a_run_that_is_not_there_cannot_be_followed_and_leaves_no_trace():
    async def test(store: Store, relay: Relay) -> None:
        with pytest.raises(NotFound):
            await relay.follow("run_9")
        store.away = True
        with pytest.raises(StoreUnavailable):
            await relay.follow("run_1")
        store.away = False

        assert relay.open == 0

    on_relay(test)


# -- all at once


class Chaos:
    """One seeded history of a run: what is appended, and what becomes of the copies and of the subscription."""

    def __init__(self, seed: int, store: Store, relay: Relay) -> None:
        self.dice = random.Random(seed)
        self.store, self.relay = store, relay
        self.flight: list[bytes] = []
        self.readers: list[asyncio.Task[None]] = []
        store.pause = self.pause

    async def pause(self) -> None:
        for _ in range(self.dice.choice([0, 0, 1, 3, 30])):
            await asyncio.sleep(0)

    async def read(self, follower: Follower, after: int) -> None:
        """Sees all from there to the end, now quick, now slow."""
        found: list[bytes] = []
        while not follower.ended:
            wait_s = self.dice.choice([0, 0.01, 1, 20])
            begun = passed()
            try:
                found += await follower.next(wait_s)
                assert passed() <= begun + wait_s + 0.001
            except StoreUnavailable:
                await asyncio.sleep(0.5)
            assert follower.position == after + len(found)
            if self.dice.random() < 0.2:
                await asyncio.sleep(self.dice.choice([0, 0.1, 4]))
        assert found == self.store.streams["run_1"][after:]
        await follower.close()

    def start(self, follower: Follower, after: int = 0) -> None:
        self.readers.append(asyncio.create_task(self.read(follower, after)))

    async def join(self) -> None:
        after = self.dice.randint(0, len(self.store.streams["run_1"]))
        try:
            self.start(await self.relay.follow("run_1", after), after)
        except StoreUnavailable:
            assert self.store.away

    async def step(self) -> None:
        size = self.dice.choice([0, 0, 0, 50_000])
        match self.dice.randrange(12):
            case 0 | 1 | 2 | 3:
                self.flight.append(self.store.append("run_1", self.dice.choice([1, 1, 2, 7]), size=size))
            case 4 | 5 | 6 if self.flight:  # delivered, in whatever order
                await self.store.send(self.flight.pop(self.dice.choice([0, 0, -1])))
            case 7 if self.flight:  # delivered, and again later
                await self.store.send(self.dice.choice(self.flight))
            case 8 if self.flight:  # lost
                self.flight.pop(self.dice.randrange(len(self.flight)))
            case 9 if self.flight:  # all at once
                payload, self.flight = b"\n".join(self.flight), []
                await self.store.send(payload)
            case 10:
                match self.dice.randrange(3):
                    case 0:
                        await self.store.lose_subscription()
                    case 1:
                        self.store.away = not self.store.away
                    case _:
                        self.store.followed.clear()
            case 11 if len(self.readers) < 4:
                await self.join()
            case _:
                await asyncio.sleep(self.dice.choice([0, 0.05, 0.3, 5]))

    async def run(self) -> None:
        self.start(expect(self.store, self.relay))
        for _ in range(self.dice.randint(5, 60)):
            await self.step()
        self.flight.append(self.store.append("run_1", last=True))
        self.dice.shuffle(self.flight)
        await self.store.send(*self.flight[self.dice.randint(0, len(self.flight)) :])
        self.store.away = False
        async with asyncio.timeout(100):
            await asyncio.gather(*self.readers)
        assert self.relay.open == 0


@pytest.mark.parametrize("seed", after(5, range(20)))
def test_whatever_happens_every_follower_sees_every_event_once_and_in_order(seed):
    for part in range(25):

        async def test(store: Store, relay: Relay, number: int = 25 * seed + part) -> None:
            await Chaos(number, store, relay).run()

        on_relay(test)


def test_an_outage_is_one_line_of_the_log_however_long_it_takes(caplog):
    async def outage(store: Store, relay: Relay) -> None:
        for _ in range(2):
            store.away = True
            await store.lose_subscription()
            await asyncio.sleep(10)
            store.away = False
            await asyncio.sleep(10)

    with caplog.at_level("INFO", logger="api.relay"):
        on_relay(outage)

    assert [record.getMessage() for record in caplog.records if "interrupted" in record.getMessage()] == [
        "live events interrupted: ConnectionError"
    ] * 2
