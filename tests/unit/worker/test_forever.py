"""A background task ends with its owner and with nothing else."""

import asyncio

import pytest

from worker import forever as module
from worker.forever import forever


@pytest.mark.parametrize("error", [None, RuntimeError("a fault"), OSError("another")])
def test_a_task_that_ends_for_whatever_reason_is_begun_again(error, caplog, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)

    async def main() -> int:
        begun = 0
        third = asyncio.Event()

        async def what() -> None:
            nonlocal begun
            begun += 1
            if begun == 3:
                third.set()
                await asyncio.Event().wait()
            if error is not None:
                raise error

        task = asyncio.create_task(forever("the sweep", what))
        await asyncio.wait_for(third.wait(), 5)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return begun

    assert asyncio.run(main()) == 3
    assert caplog.text.count("the sweep") == (0 if error is None else 2)
