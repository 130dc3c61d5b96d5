"""Which kinds of runs are worth a spare process that waits for the next of them."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple

_HALF_S = 60.0  # what was asked so long ago counts half
_LOYALTY = 2.0  # how much more another kind must be asked for than one that has its spare already
_KINDS = 64


class _Asked(NamedTuple):
    score: float
    at: float
    fixed: Hashable

    def now(self, now: float) -> float:
        return float(self.score * 0.5 ** ((now - self.at) / _HALF_S))


class Reserve:
    """Counts what is asked for; the caller brings the time."""

    def __init__(self) -> None:
        self._asked: dict[Hashable, _Asked] = {}

    def ask(self, key: Hashable, fixed: Hashable, now: float) -> bool:
        """Whether it had been asked for before."""
        before = self._asked.pop(key, None)
        self._asked[key] = _Asked(1.0 + (before.now(now) if before else 0.0), now, fixed)
        if len(self._asked) > _KINDS:
            del self._asked[next(iter(self._asked))]
        return before is not None

    def fixed(self, key: Hashable) -> Hashable:
        return self._asked[key].fixed

    def shares(self, size: int, have: Mapping[Hashable, int], now: float, idle_s: float) -> dict[Hashable, int]:
        """How many of each to keep: one for each of the kinds most asked for, what is left in turn."""
        live = {key: asked for key, asked in self._asked.items() if now - asked.at <= idle_s}
        self._asked = live
        ranked = sorted(live, key=lambda key: live[key].now(now) * (_LOYALTY if have.get(key) else 1.0), reverse=True)[
            :size
        ]
        if not ranked:
            return {}
        each, more = divmod(size, len(ranked))
        # Who has one more keeps it: where it waits makes less of a difference than another start.
        lucky = set(sorted(ranked, key=lambda key: have.get(key, 0) > each, reverse=True)[:more])
        return {key: each + (key in lucky) for key in ranked}
