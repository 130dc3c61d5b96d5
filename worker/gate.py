"""Says from which queues this instance takes messages now: those of backends that are here and have a slot free."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

_log = logging.getLogger(__name__)


class Gate:
    """Asked by Celery's thread, told by the runner's. `slots`: how many runs of a backend at once."""

    def __init__(self, slots: Mapping[str, int], concurrency: int) -> None:
        self._slots = dict(slots)
        self._concurrency = concurrency
        self._here: frozenset[str] = frozenset()
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.on_change: Callable[[], None] = lambda: None  # wakes whoever asks

    def open(self, backends: Iterable[str]) -> None:
        """These can be run here now, and no others."""
        here = frozenset(backends)
        if here != self._here:
            _log.info("takes runs of: %s", ", ".join(sorted(here)) or "nothing")
            self._here = here
            self.on_change()

    def wants(self, queue: str) -> bool:
        backend = backend_of(queue)
        with self._lock:
            return (
                backend in self._here
                and self._taken[backend] < self._slots.get(backend, self._concurrency)
                and self._taken.total() < self._concurrency
            )

    def serves(self, queue: str) -> bool:
        """Whether its backend is here. A look that began before that changed may still bring a message."""
        return backend_of(queue) in self._here

    @property
    def narrow(self) -> bool:
        """Whether a backend that is here has no slot free, so that its queue is left out of a look."""
        with self._lock:
            return any(self._taken[name] >= self._slots.get(name, self._concurrency) for name in self._here)

    def take(self, queue: str) -> None:
        with self._lock:
            self._taken[backend_of(queue)] += 1

    def give(self, queue: str) -> None:
        with self._lock:
            self._taken[backend_of(queue)] -= 1
        self.on_change()


def backend_of(queue: str) -> str:
    """`claude` of `claude` and of `claude@host`."""
    return queue.partition("@")[0]
