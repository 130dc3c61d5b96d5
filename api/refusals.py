"""What is answered before there is a request for the layers to see: counted, and logged as often as a log bears."""

import logging
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_LINES_PER_S = 5  # a thousand broken connections a second are one fact, not a thousand


class Refusals:
    """One for all connections of a process. `count` takes the status of each that no layer counts."""

    def __init__(self, count: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._since = float("-inf")
        self._lines = 0
        self._left_out = 0

    def answered(self, status: int, detail: str, *, request_id: str, client: str, counted: bool) -> None:
        """`counted`: whether the request had come to the layers, which count it by its route."""
        if not counted:
            self._count(status)
        now = self._clock()
        if now >= self._since + 1:
            self._since, self._lines = now, 0
        if self._lines >= _LINES_PER_S:
            self._left_out += 1
            return
        self._lines += 1
        more = f" ({self._left_out} lines like this were left out)" if self._left_out else ""
        self._left_out = 0
        _log.info("refused: %d %s%s", status, detail, more, extra={"request_id": request_id, "client": client})
