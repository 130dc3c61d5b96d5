"""What lies in Redis may have been put there by anyone: reading it ends well, or with an error of our own."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from shared.errors import StoreDamaged

_log = logging.getLogger(__name__)
_Read = TypeVar("_Read")

_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError, OverflowError)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Raises: StoreDamaged for whatever goes wrong within; the words that could not be read are not repeated."""
    try:
        yield
    except _UNREADABLE as error:
        raise StoreDamaged(f"the store's record of {what} cannot be read", retry_after_s=60) from error


def each(what: str, read: Callable[[], _Read]) -> _Read | None:
    """One of many: None where it cannot be read, since the others can."""
    try:
        with reading(what):
            return read()
    except StoreDamaged as error:
        _log.warning("%s; it is left out", error.message)
        return None
