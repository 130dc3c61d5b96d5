"""Kinds of which no warm process is started for a while, because the last ones failed."""

from collections.abc import Hashable
from typing import NamedTuple

SULK_S = 300.0
SOON = 5  # runs; a process that ends before it has served so many has not been worth its start
_TIMES = 3  # that they may end too soon
_KINDS = 64  # the most that are remembered: there may be a system prompt in each


class _Sulk(NamedTuple):
    until: float
    why: str


class Sulks:
    """The caller brings the time. Of too many, the oldest is tried anew."""

    def __init__(self) -> None:
        self._sulks: dict[Hashable, _Sulk] = {}  # the newest last
        self._soon: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return max(len(self._sulks), len(self._soon))

    def about(self, key: Hashable, now: float) -> bool:
        found = self._sulks.get(key)
        if found is not None and found.until <= now:
            del self._sulks[key]
        return found is not None and found.until > now

    def failed(self, key: Hashable, why: str, now: float) -> None:
        self._soon.pop(key, None)
        self._sulks.pop(key, None)
        self._sulks[key] = _Sulk(now + SULK_S, why[:300])
        _bound(self._sulks)

    def too_soon(self, key: Hashable) -> bool:
        """One more has ended badly before it was worth its start; whether that is enough."""
        count = self._soon.pop(key, 0) + 1
        self._soon[key] = count
        _bound(self._soon)
        return count >= _TIMES

    def well(self, key: Hashable) -> None:
        self._soon.pop(key, None)

    def why(self, now: float) -> str | None:
        """The newest reason that still holds."""
        return next((sulk.why for sulk in reversed(self._sulks.values()) if sulk.until > now), None)


def _bound(kinds: "dict[Hashable, _Sulk] | dict[Hashable, int]") -> None:
    if len(kinds) > _KINDS:
        del kinds[next(iter(kinds))]
