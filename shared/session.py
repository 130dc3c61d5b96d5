"""A session: a conversation that later runs may resume."""

from typing import Any, Literal

import msgspec

from shared.run import Usage

SessionStatus = Literal["active", "completed", "error", "cancelled"]


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds, by Redis' clock. `active`: a turn of it waits or runs; otherwise how the last one ended."""

    id: str
    tenant: str
    backend: str
    created_at: float
    last_used: float
    status: SessionStatus
    turn_count: int = 0  # of those that were started
    usage: Usage = Usage()
    host: str | None = None  # where its directory and the CLI's own record are
    cli_id: str | None = None  # the CLI's own id of it
    working_dir: str | None = None
    model: str | None = None
    initial_prompt: str = ""
    title: str = ""
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    options: dict[str, Any] = {}  # of the first turn, kept for the next ones: RunSpec fields
