"""What the runner sees of a run that is being carried out, whether by a process of its own or by a warm one."""

import abc
import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Self

from worker.backends.base import Exit


class Course(abc.ABC):
    """`async with course:` from its beginning to its end; when the block is left, nothing of the run lives.

    A backend's `Parser` makes events of the chunks, whatever protocol they are lines of. Until `begin` the run has done
    nothing, and may still be carried out in another way or not at all. `end` may come at any moment: before `begin`, which
    then does nothing, or while that waits.
    """

    is_cut = False  # `chunks` ended before the CLI did: more came than could be passed on

    async def __aenter__(self) -> Self:
        return self

    @abc.abstractmethod
    async def __aexit__(self, *exc: object) -> None:
        """A cancellation that comes meanwhile waits until the end is reached, which has its own limits."""

    async def begin(self) -> None:  # noqa: B027  # most have begun when they are opened
        """The run does something from here on; that of a process of its own has begun with it."""

    @abc.abstractmethod
    def chunks(self) -> AsyncIterator[bytes]:
        """What the CLI says of this run, as it comes, until its end. For one reader."""

    @abc.abstractmethod
    async def wait(self) -> Exit:
        """Returns when the run has ended at the CLI. Whoever has no exit code of its own has 0 or 1 here, as the CLI
        has when it is started for one run."""

    @abc.abstractmethod
    async def end(self, *, grace_s: float, fast: bool = False) -> None:
        """Ends it before it does so itself: graciously within the grace, at once with `fast`; then `chunks` and `wait` end."""


async def to_its_end(what: Coroutine[object, object, None], name: str) -> None:
    """Cancelled meanwhile, it goes on to its end first. For ends, which have their own limits."""
    ending = asyncio.get_running_loop().create_task(what, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.wait([ending])
        except asyncio.CancelledError as error:
            cancelled = error
    ending.result()
    if cancelled is not None:
        raise cancelled
