"""Whether a kind of runs comes often enough for another start, by what became of its last ones."""

from collections.abc import Hashable

_KINDS = 64  # the most that are remembered: there may be a system prompt in each
_MOST = 64


class Worth:
    """A kind's first start is free. After each that served nobody, twice as many runs must come before the next."""

    def __init__(self) -> None:
        self._price: dict[Hashable, int] = {}  # runs that a start costs; the last that changed last
        self._owed: dict[Hashable, int] = {}  # of these, what has not come yet

    def pays(self, key: Hashable) -> bool:
        """Asked once for each run that has no process."""
        owed = self._owed.get(key, 0)
        if owed:
            self._owed[key] = owed - 1
        return not owed

    def used(self, key: Hashable) -> None:
        self._price.pop(key, None)
        self._owed.pop(key, None)

    def unused(self, key: Hashable) -> None:
        price = min(self._price.pop(key, 1) * 2, _MOST)
        self._price[key] = price
        self._owed[key] = price - 1
        if len(self._price) > _KINDS:
            oldest = next(iter(self._price))
            del self._price[oldest], self._owed[oldest]
