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


class Vitals(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a process, of the API or a worker, and its host use."""

    role: str  # api, worker
    host: str
    pid: int
    version: str
    started_at: float
    rss_bytes: int = 0
    cpu_s: float = 0.0
    open_fds: int = 0
    max_fds: int = 0
    loop_lag_s: float = 0.0  # the longest of the last seconds
    load1: float = 0.0
    cpus: int = 1
    memory_bytes: int = 0  # of the host
    memory_available_bytes: int = 0
    disk_free_bytes: int = -1  # where runs work; -1: not known
    requests: int = 0  # under way, of an API process
    streams: int = 0  # of these, those that are streams
    followers: int = 0


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
    vitals: Vitals | None = None  # of a worker that tells them
