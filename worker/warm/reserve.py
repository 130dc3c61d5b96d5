"""Which kinds of runs are worth a spare process that waits for the next of them."""

from collections.abc import Hashable, Mapping

from worker.warm.demand import Demand

_HALF_S = 60.0
_LOYALTY = 2.0  # how much more another kind must be asked for than one that has its spare already


class Reserve(Demand):
    def __init__(self) -> None:
        super().__init__(_HALF_S)

    def shares(self, size: int, have: Mapping[Hashable, int], now: float, idle_s: float) -> dict[Hashable, int]:
        """How many of each to keep: one for each of the kinds most asked for, what is left in turn."""

        def worth(key: Hashable) -> float:
            return self.score(key, now) * (_LOYALTY if have.get(key) else 1.0)

        ranked = sorted(self.live(now, idle_s), key=worth, reverse=True)[:size]
        if not ranked:
            return {}
        each, more = divmod(size, len(ranked))
        # Who has one more keeps it: where it waits makes less of a difference than another start.
        lucky = set(sorted(ranked, key=lambda key: have.get(key, 0) > each, reverse=True)[:more])
        return {key: each + (key in lucky) for key in ranked}
