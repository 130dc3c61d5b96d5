"""How often each kind of run has come lately; the caller brings the time."""

from collections.abc import Hashable
from typing import NamedTuple

_KINDS = 64  # the most that are remembered: there may be a system prompt in each


class _Asked(NamedTuple):
    score: float
    at: float


class Demand:
    """`half_s`: what was asked so long ago counts half."""

    def __init__(self, half_s: float) -> None:
        self._half_s = half_s
        self._asked: dict[Hashable, _Asked] = {}  # the last one last

    def ask(self, key: Hashable, now: float) -> bool:
        """Whether it had been asked for before."""
        before = self.score(key, now)
        known = self._asked.pop(key, None) is not None
        self._asked[key] = _Asked(1.0 + before, now)
        if len(self._asked) > _KINDS:
            del self._asked[next(iter(self._asked))]
        return known

    def score(self, key: Hashable, now: float) -> float:
        found = self._asked.get(key)
        return 0.0 if found is None else float(found.score * 0.5 ** ((now - found.at) / self._half_s))

    def live(self, now: float, idle_s: float) -> list[Hashable]:
        """What was asked for within `idle_s`; the rest is forgotten."""
        self._asked = {key: asked for key, asked in self._asked.items() if now - asked.at <= idle_s}
        return list(self._asked)
