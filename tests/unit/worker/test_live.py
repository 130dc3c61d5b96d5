"""What is sent of a run and what is not, and that no run keeps the publisher from the others."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.errors import StoreUnavailable
from shared.event import Content, Message, Progress, Thinking, decode
from shared.run import Failure, RunSpec
from shared.store.runs import Claim
from worker.forever import forever
from worker.live import Live, Publisher

FAILURE = Failure("cancelled", "it was", "cancelled")
LIMIT = 1 << 20


def live(id: str = "run_1", max_bytes: int = LIMIT * 16) -> Live:
    spec = RunSpec(id=id, tenant="t", backend="echo", prompt="p")
    return Live(Claim(spec, f"att_{id}", 0, 1), 0.0, max_bytes)


class Events:
    """Stands for the store's: takes what it is given, after raising what it is told to."""

    def __init__(self, *raises: Exception) -> None:
        self.raises = list(raises)
        self.sent: dict[str, int] = {}
        self.came = asyncio.Event()

    async def append(self, batches: Any) -> list[str]:
        await asyncio.sleep(0)  # a round trip
        if self.raises:
            raise self.raises.pop(0)
        for batch in batches:
            self.sent[batch.run_id] = self.sent.get(batch.run_id, 0) + len(batch.lines)
        self.came.set()
        return []


def publishing(test: Callable[[Publisher, Events], Awaitable[None]], *raises: Exception) -> None:
    async def main() -> None:
        events = Events(*raises)
        publisher = Publisher(events)  # type: ignore[arg-type]  # a stand-in
        task = asyncio.create_task(forever("publisher", publisher.run))
        try:
            async with asyncio.timeout(10):
                await test(publisher, events)
        finally:
            task.cancel()

    asyncio.run(main())


def fill(live: Live, content: Content, count: int) -> None:
    for _ in range(count):
        live.add(content)


async def sent(events: Events, run_id: str) -> int:
    while run_id not in events.sent:
        events.came.clear()
        await events.came.wait()
    return events.sent[run_id]


@pytest.mark.parametrize(("content", "count"), [(Progress("x"), 1200), (Progress("x" * 70_000), 40)])
@pytest.mark.parametrize("how", ["lost", "closing"])
def test_a_run_that_is_lost_with_much_to_send_does_not_keep_the_loop_from_others(content, count, how):
    async def test(publisher: Publisher, events: Events) -> None:
        first, second = live("run_1"), live("run_2")
        fill(first, content, count)
        publisher.touch(first)
        setattr(first, how, True)
        fill(second, Progress("y"), 3)
        publisher.touch(second)

        assert await sent(events, "run_2") == 3
        assert "run_1" not in events.sent

    publishing(test)


@pytest.mark.parametrize("end", [lambda it: it.stop(FAILURE), lambda it: it.lose(FAILURE)])
def test_whoever_waits_for_room_goes_on_when_the_run_is_to_end(end):
    async def test(publisher: Publisher, events: Events) -> None:
        run = live()
        fill(run, Progress("x" * 100_000), 60)
        waiting = asyncio.create_task(publisher.room(run))
        while not publisher._dirty:
            await asyncio.sleep(0)

        end(run)

        await waiting

    publishing(test, *[StoreUnavailable("away", retry_after_s=1)] * 100)


def test_what_the_publisher_does_not_expect_is_logged_and_it_goes_on(caplog):
    async def test(publisher: Publisher, events: Events) -> None:
        run = live()
        fill(run, Progress("x"), 3)
        publisher.touch(run)

        assert await sent(events, "run_1") == 3

    publishing(test, TypeError("a fault of ours"))

    assert "publisher" in caplog.text
    assert "a fault of ours" in caplog.text


# -- how much


def events_of(run: Live) -> list[Any]:
    run.seal()
    return [decode(line) for line in run.pending]


@pytest.mark.parametrize("content", [Message("é" * LIMIT, is_partial=True), Message("é" * LIMIT)])
def test_a_text_above_the_limit_is_cut_there_and_the_run_ends(content):
    run = live(max_bytes=LIMIT)

    run.add(content)

    (event,) = events_of(run)
    assert LIMIT - 4 <= len(event.content.text.encode()) <= LIMIT
    assert run.failure is not None
    assert run.failure.code == "output_too_large"
    assert run.stopped.is_set()


def test_text_that_waits_to_be_joined_counts_too():
    run = live(max_bytes=20_000)

    for _ in range(3000):
        run.add(Message("12345678", is_partial=True))

    assert run.full
    assert run.total_bytes < 21_000
    assert len(run.pending) < 12


def test_what_comes_after_the_limit_is_not_kept():
    run = live(max_bytes=LIMIT)
    run.add(Thinking("short"))

    run.add(Thinking("x" * LIMIT))
    run.add(Progress("more"))
    run.add(Message("more", is_partial=True))

    assert [event.content.text for event in events_of(run)] == ["short"]


def test_a_line_that_does_not_end_is_bounded():
    run = live(max_bytes=LIMIT)

    for _ in range(2):
        run.read(b"x" * LIMIT)
    assert not run.full
    run.read(b"\n" + b"x" * LIMIT)
    assert not run.full
    run.read(b"x" * (LIMIT + 1))

    assert run.full


def test_all_that_a_cli_prints_is_bounded_though_it_be_no_event():
    run = live(max_bytes=LIMIT)

    for _ in range(16):
        run.read(b"\n" * LIMIT)
    assert not run.full
    run.read(b"\n")

    assert run.full
