"""What a worker says of a backend's warm processes, for its operator."""

import msgspec


def switched_off(backend: str) -> str:
    """`WarmState.cold_because` where the operator wants it so."""
    return f"backends.{backend}.warm.mode is off"


class WarmState(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Counts since the worker's start. `misses`: runs that went the other way, by the reason; `ends`: warm processes
    that were ended, by the reason (recycle, idle, size, memory, crashed, hung, ...)."""

    kept: int = 0  # warm processes that live
    ready: int = 0  # of these, those that can take a run now
    running: int = 0  # runs on them
    memory_bytes: int = 0  # of all of them with what they have started, when it was last looked at
    hits: int = 0
    misses: dict[str, int] = {}
    starts: int = 0
    ends: dict[str, int] = {}
    cold_because: str | None = None  # why no warm process is started now, for people
