"""Keeps a background task of the worker going, whatever it meets."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

_PAUSE_S = 0.5


async def forever(name: str, what: Callable[[], Awaitable[None]]) -> None:
    """Runs it until cancelled. What it does not expect is logged, and it begins anew: a task that ended in silence would
    leave a process that lives and does half of its work."""
    while True:
        try:
            await what()
        except Exception:  # noqa: BLE001  # the edge of a task that nobody waits for
            _log.exception("%s met what it does not expect; it goes on", name)
        await asyncio.sleep(_PAUSE_S)
