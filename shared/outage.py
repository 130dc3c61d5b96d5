"""Tells the log when Redis is away or refuses, each minute that it stays so, and when it is back."""

import logging
import time
from collections.abc import Callable

from shared.refusal import refusal

_log = logging.getLogger(__name__)

_AGAIN_S = 60.0


class Outage:
    """Of one place, for all connections of a process to it. `place` is what people are shown."""

    def __init__(self, place: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = place
        self._clock = clock
        self._since: float | None = None
        self._told_at = 0.0

    def failed(self, error: BaseException) -> None:
        """No connection could be made."""
        now = self._clock()
        begins = self._since is None
        if self._since is None:
            self._since = now
        if not begins and now < self._told_at + _AGAIN_S:
            return
        self._told_at = now
        why = refusal(error)
        what = f"is away ({str(error) or type(error).__name__})" if why is None else f"was reached, but {why}"
        since = "" if begins else f", for {now - self._since:.0f} s now"
        _log.warning("Redis at %s %s%s; it is tried again until it is back", self._place, what, since)

    def made(self) -> None:
        """A connection has been made."""
        if self._since is not None:
            _log.info("Redis at %s is back after %.1f s", self._place, self._clock() - self._since)
            self._since = None
