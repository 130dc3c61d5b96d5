"""All that is kept in Redis, one module a concern; each state change is one Lua step in `lua/`."""

from pathlib import Path

import msgspec

from shared import queue
from shared.redis import Redis, Scripts

_LUA = Path(__file__).parent / "lua"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds that the scripts hold; the API and the workers must be given the same."""

    lease_s: float = 10.0
    retention_s: float = 86400.0
    max_events: int = 10_000
    max_flow_events: int = 200_000
    session_s: float = 30 * 86400.0
    usage_s: float = 400 * 86400.0


def create_scripts(redis: Redis, limits: Limits) -> Scripts:
    return Scripts(
        redis,
        _LUA,
        {
            "LEASE_MS": str(int(limits.lease_s * 1000)),
            "RETENTION_MS": str(int(limits.retention_s * 1000)),
            "SESSION_MS": str(int(limits.session_s * 1000)),
            "USAGE_MS": str(int(limits.usage_s * 1000)),
            "MAX_EVENTS": str(limits.max_events),
            "MAX_FLOW_EVENTS": str(limits.max_flow_events),
            "TEMPLATE": queue.TEMPLATE,
        },
    )
