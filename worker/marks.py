"""What this host's runs have shown of its backends: a login that fails, a vendor's limit."""

from collections.abc import Callable

import msgspec

from shared.host import Readiness
from shared.run import Failure

_LONGEST_S = 6 * 3600.0


class Mark(msgspec.Struct, frozen=True):
    """Why a backend takes no runs here, until when (seconds since the epoch)."""

    readiness: Readiness
    reason: str
    until: float
    since: float


class Marks:
    """A login, and a limit whose end the vendor did not tell, is tried again after `again_s`, since only a run can tell;
    0: nothing is ever marked. `changed` is called when a mark comes or goes, so that the fleet is told at once."""

    def __init__(
        self, now: Callable[[], float], again_s: float = 60.0, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.now = now
        self._again_s = again_s
        self._marks: dict[str, Mark] = {}
        self.changed = changed

    def see(self, backend: str, failure: Failure | None, begun: float) -> None:
        """How a run of the backend that began then has ended; None: well, which says nothing of a mark made since."""
        if self._again_s <= 0:
            return
        match None if failure is None else failure.code:
            case None:
                if (mark := self._marks.get(backend)) is not None and begun >= mark.since:
                    del self._marks[backend]
                    self.changed()
            case "backend_login":
                self._mark(backend, Readiness.NOT_LOGGED_IN, failure, self._again_s)
            case "backend_limited":
                wait_s = self._again_s if failure is None or failure.retry_after_s is None else failure.retry_after_s
                self._mark(backend, Readiness.LIMITED, failure, min(max(wait_s, 1.0), _LONGEST_S))
            case _:
                pass

    def _mark(self, backend: str, readiness: Readiness, failure: Failure | None, for_s: float) -> None:
        reason = "" if failure is None else failure.message
        self._marks[backend] = Mark(readiness, reason, self.now() + for_s, self.now())
        self.changed()

    def of(self, backend: str) -> Mark | None:
        mark = self._marks.get(backend)
        return mark if mark is not None and mark.until > self.now() else None
