"""W3C trace context: read from a request, carried by its runs, handed to what they start; pure but for its ids.

Whoever sends no `traceparent` is given a trace of its own, so that all lines of a request can be found by one id. Such a
trace is marked as not sampled: nobody has asked for spans of it.
"""

import contextvars
import random
import re

import msgspec

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER = re.compile(
    r"[ \t]*(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})=[ -+\--<>-~]{0,256}[ \t]*"
)
_MOST_MEMBERS = 32
_SAMPLED = 1
_KNOWN_FLAGS = 3  # sampled, random


class Trace(msgspec.Struct, frozen=True):
    """A place in a trace: the span that what follows belongs to."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16
    flags: int = 0
    state: str = ""  # of other vendors, passed on as it came

    @property
    def parent(self) -> str:
        """As a `traceparent` says it."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)

    def below(self) -> "Trace":
        """A new span of the same trace."""
        return Trace(self.trace_id, _hex(16), self.flags, self.state)


current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("trace", default=None)
"""Where this task is: the span of the request that it serves."""


def new() -> Trace:
    return Trace(_hex(32), _hex(16))


def parse(parent: str, state: str = "") -> Trace | None:
    """None for what is no trace context; a state that is none is dropped, and the trace goes on."""
    found = _PARENT.fullmatch(parent.strip(" \t"))
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    # Of the flags of a later version only those that are known are passed on.
    return Trace(found[2], found[3], int(found[4], 16) & _KNOWN_FLAGS, _state(state))


def _state(given: str) -> str:
    members = [member for member in given.split(",") if member.strip(" \t")]
    good = len(members) <= _MOST_MEMBERS and len(given) <= 4096 and all(map(_MEMBER.fullmatch, members))
    names = {member.partition("=")[0].strip() for member in members}
    return given.strip(" \t") if good and len(names) == len(members) else ""


def _hex(digits: int) -> str:
    return f"{random.getrandbits(digits * 4) or 1:0{digits}x}"
