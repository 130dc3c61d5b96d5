"""What a worker instance says of itself: its backends, what they can hold, its slots and load."""

import enum

import msgspec

from shared.warm import WarmState


class Readiness(enum.StrEnum):
    READY = "ready"
    NOT_INSTALLED = "not_installed"
    NOT_LOGGED_IN = "not_logged_in"
    LIMITED = "limited"  # by its vendor, until `until`


class Capabilities(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a CLI really enforces, as its worker knows it; admission refuses the rest.

    `modes` maps a sandbox mode ("" for: not asked for) to the approval modes that can be held with it.
    `options` names the plain options it carries: max_turns, max_tokens, ephemeral, resume, add_dirs, model, history
    (with real roles), schema, effort, thinking. `attachments` are patterns (fnmatch) of media types.
    """

    modes: dict[str, tuple[str, ...]] = {}
    system_prompt: tuple[str, ...] = ()  # of: replace, append
    options: tuple[str, ...] = ()
    attachments: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # the flags that a caller may pass; a trailing "=" marks one that takes a value


class BackendState(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    name: str
    readiness: Readiness
    version: str | None = None
    path: str | None = None
    reason: str | None = None  # why it is not ready, and what to do
    until: float | None = None  # of LIMITED: seconds since the epoch
    slots: int = 0
    running: int = 0
    capabilities: Capabilities = Capabilities()
    warm: WarmState | None = None  # None: this backend has no warm way


class Instance(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One worker process; several may share a host."""

    id: str
    host: str
    pid: int
    version: str
    started_at: float
    slots: int
    running: int = 0
    draining: bool = False
    labels: dict[str, str] = {}
    backends: tuple[BackendState, ...] = ()
