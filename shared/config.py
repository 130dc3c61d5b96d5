"""The configuration: a frozen tree, each key with who reads it and what it means.

Environment over file over defaults, flags over all. `docs/configuration.md` is checked against this file by a test.
"""

from typing import Annotated, Any, Literal

import msgspec

from shared.run import ApprovalMode, SandboxMode


def key(doc: str, *, by: str = "both", pending: bool = False, secret: bool = False) -> msgspec.Meta:
    """`by`: api, worker or both. `pending`: accepted, but not in force in this version."""
    return msgspec.Meta(description=doc, extra={"by": by, "pending": pending, "secret": secret})


Positive = msgspec.Meta(gt=0)
NotNegative = msgspec.Meta(ge=0)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class UnifiedFlags(_Section, frozen=True):
    approval_mode: Annotated[ApprovalMode | None, key("approval mode of runs that ask for none", by="worker")] = None
    sandbox_mode: Annotated[SandboxMode | None, key("sandbox mode of runs that ask for none", by="worker")] = None
    verbose: Annotated[bool, key("accepted for the ancestor's sake", pending=True)] = False
    dry_run: Annotated[bool, key("show every command line instead of running it", by="worker")] = False
    max_turns: Annotated[int | None, key("turns of runs that ask for none", by="worker")] = None
    max_tokens: Annotated[int | None, key("tokens of runs that ask for none", by="worker")] = None
    command_timeout_secs: Annotated[float, Positive, key("deadline of a run that asks for none", by="worker")] = 600


class BackendConfig(_Section, frozen=True):
    enabled: Annotated[
        bool | None, key("offer it; echo is on by default only where all runs on one machine", by="worker")
    ] = None
    command: Annotated[str | list[str] | None, key("the CLI to run, a path or a list of words", by="worker")] = None
    model: Annotated[str | None, key("model of runs that ask for none", by="worker")] = None
    allowed_tools: Annotated[
        str | list[str] | None, key("tools that need no approval; `all`: no limit", by="worker")
    ] = None
    approval_mode: Annotated[ApprovalMode | None, key("as unified_flags, for this backend", by="worker")] = None
    sandbox_mode: Annotated[SandboxMode | None, key("as unified_flags, for this backend", by="worker")] = None
    max_approval_mode: Annotated[
        ApprovalMode | None, key("the most permissive approval a caller may ask for", by="worker")
    ] = None
    max_sandbox_mode: Annotated[SandboxMode | None, key("the widest sandbox a caller may ask for", by="worker")] = None
    system_prompt: Annotated[str | None, key("system prompt of runs that bring none", by="worker")] = None
    extra_flags: Annotated[list[str], key("flags always passed, as they are", by="worker")] = []
    allow_extra_flags: Annotated[
        list[str], key("flags that callers may pass besides the built-in list", by="worker")
    ] = []
    env: Annotated[dict[str, str], key("variables set for this CLI", by="worker", secret=True)] = {}
    env_passthrough: Annotated[list[str], key("names (patterns) of the host's variables passed on", by="worker")] = []
    max_concurrency: Annotated[int | None, key("runs of it at once in one worker process", by="worker")] = None


class Session(_Section, frozen=True):
    retention_days: Annotated[float, Positive, key("how long an unused session is kept")] = 30
    store_token_usage: Annotated[bool, key("keep token usage with sessions", pending=True)] = True
    default_tags: Annotated[list[str], key("tags of every new session", pending=True)] = []


class Output(_Section, frozen=True):
    format: Annotated[
        Literal["default", "text", "json", "stream-json"], key("accepted for the ancestor's sake", pending=True)
    ] = "default"


class ApiKey(_Section, frozen=True):
    key: str
    name: str | None = None


class Server(_Section, frozen=True):
    host: Annotated[str, key("address to listen on", by="api")] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535), key("port to listen on; 0: any free one", by="api")] = 8080
    request_timeout_secs: Annotated[float, Positive, key("limit of an answer that is not streamed (504)", by="api")] = (
        300
    )
    read_timeout_secs: Annotated[float, Positive, key("limit for reading a request", by="api", pending=True)] = 30
    write_timeout_secs: Annotated[float, Positive, key("limit for writing an answer", by="api", pending=True)] = 300
    idle_timeout_secs: Annotated[float, Positive, key("how long an idle connection is kept", by="api")] = 120
    api_keys: Annotated[
        list[str | ApiKey], key("keys, plain or sha256:HEX, or {key, name}", by="api", secret=True)
    ] = []
    api_keys_file: Annotated[str | None, key("file with one key or sha256:HEX a line, a name may follow", by="api")] = (
        None
    )
    api_keys_gopass_path: Annotated[
        str | None, key("gopass entry with keys; not in this version: refused", by="api")
    ] = None
    rate_limit_enabled: Annotated[bool, key("rate limits; not in this version: refused when true", by="api")] = False
    rate_limit_rps: Annotated[float, Positive, key("requests a second", by="api", pending=True)] = 10
    rate_limit_burst: Annotated[int, Positive, key("requests at once", by="api", pending=True)] = 20
    rate_limit_cleanup_secs: Annotated[
        float, Positive, key("accepted for the ancestor's sake", by="api", pending=True)
    ] = 180
    trusted_proxies: Annotated[
        list[str], key("proxies whose forwarded address is believed", by="api", pending=True)
    ] = []
    max_request_body_bytes: Annotated[int, Positive, key("a larger body is 413", by="api")] = 10_485_760
    cors_allowed_origins: Annotated[list[str], key("origins that browsers may call from", by="api", pending=True)] = []
    cors_allow_credentials: Annotated[bool, key("CORS with credentials", by="api", pending=True)] = False
    cors_max_age: Annotated[int, NotNegative, key("seconds a preflight is kept", by="api", pending=True)] = 300
    allowed_workdir_prefixes: Annotated[
        list[str], key("where workdirs may lie; empty: anywhere not blocked", by="worker")
    ] = []
    blocked_workdir_prefixes: Annotated[list[str], key("blocked besides the built-in list", by="worker")] = []
    metrics_enabled: Annotated[bool, key("the /metrics route", by="api", pending=True)] = False
    hangup_grace_secs: Annotated[float, NotNegative, key("how long a run waits for a follower that hung up")] = 10
    stream_hold_secs: Annotated[
        float, NotNegative, key("how long a stream's status waits for the first event", by="api")
    ] = 2
    heartbeat_secs: Annotated[float, Positive, key("the longest silence of an open stream", by="api")] = 15


class Parallel(_Section, frozen=True):
    max_workers: Annotated[int, Positive, key("window of a flow that asks for none", by="api", pending=True)] = 3
    fail_fast: Annotated[bool, key("end a flow at its first failure", by="api", pending=True)] = False
    max_window: Annotated[int, Positive, key("the largest window of a flow", by="api", pending=True)] = 50


class Redis(_Section, frozen=True):
    url: Annotated[str | None, key("redis://, rediss:// or unix://; none: everything on this machine", secret=True)] = (
        None
    )


class Worker(_Section, frozen=True):
    name: Annotated[str | None, key("the host's name; default: the hostname", by="worker")] = None
    labels: Annotated[dict[str, str], key("what requests may ask for by `labels`", by="worker")] = {}
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1000), key("runs at once in one worker process", by="worker")] = 8
    lease_secs: Annotated[float, msgspec.Meta(ge=4), key("a worker silent for so long is taken for dead")] = 10
    shutdown_grace_secs: Annotated[
        float, NotNegative, key("how long running runs may take at shutdown", by="worker")
    ] = 30
    idle_timeout_secs: Annotated[float, Positive, key("a CLI silent for so long is ended", by="worker")] = 300


class QueueConfig(_Section, frozen=True):
    max_depth: Annotated[int, Positive, key("runs that may wait; more are 429", by="api")] = 10_000
    max_wait_secs: Annotated[float, Positive, key("a run that waits longer ends as timeout")] = 600


class Runs(_Section, frozen=True):
    retention_secs: Annotated[float, Positive, key("how long an ended run and its events are kept")] = 86_400
    max_events: Annotated[int, msgspec.Meta(ge=100), key("events kept of a run; older ones are trimmed")] = 10_000
    max_output_bytes: Annotated[
        int, Positive, key("events of a run in all; more end it as output_too_large", by="worker")
    ] = 33_554_432


class Log(_Section, frozen=True):
    level: Annotated[Literal["debug", "info", "warning", "error"], key("the least that is logged")] = "info"
    format: Annotated[Literal["auto", "text", "json"], key("auto: text on a terminal, else JSON")] = "auto"


class Config(_Section, frozen=True):
    default_backend: Annotated[str, key("backend of models that name none", by="api", pending=True)] = "claude"
    unified_flags: UnifiedFlags = UnifiedFlags()
    backends: dict[Literal["claude", "codex", "gemini", "echo"], BackendConfig] = {}
    session: Session = Session()
    output: Output = Output()
    server: Server = Server()
    parallel: Parallel = Parallel()
    redis: Redis = Redis()
    worker: Worker = Worker()
    queue: QueueConfig = QueueConfig()
    runs: Runs = Runs()
    log: Log = Log()
    model_aliases: Annotated[
        dict[str, str], key("model names and what the CLI is given instead", by="api", pending=True)
    ] = {}
    strict_models: Annotated[bool, key("refuse unknown model names", by="api", pending=True)] = False

    def backend(self, name: str) -> BackendConfig:
        return next((found for known, found in self.backends.items() if known == name), BackendConfig())

    def __repr__(self) -> str:
        return f"Config({masked(self)})"


IGNORED = frozenset(
    {
        "session.auto_resume",
        "output.show_tokens",
        "output.show_timing",
        "output.color",
        "parallel.aggregate_output",
        "unified_flags.output_format",
    }
)
"""The ancestor's keys that mean nothing here: accepted with a warning."""


class Key(msgspec.Struct, frozen=True):
    """One key as the reference shows it."""

    path: str
    default: Any
    doc: str
    by: str
    pending: bool
    secret: bool


def keys() -> list[Key]:
    """Every key, in the order of the tree; `NAME` stands for a backend's."""
    return _keys(Config, "")


def _keys(kind: type[msgspec.Struct], prefix: str) -> list[Key]:
    found = []
    for field in msgspec.structs.fields(kind):
        path = prefix + field.name
        if field.name == "backends":
            found += _keys(BackendConfig, path + ".NAME.")
        elif isinstance(field.type, type) and issubclass(field.type, _Section):
            found += _keys(field.type, path + ".")
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            metas = [meta for meta in getattr(field.type, "__metadata__", ()) if meta.extra]
            extra: dict[str, Any] = metas[0].extra or {}
            found.append(Key(path, default, metas[0].description or "", extra["by"], extra["pending"], extra["secret"]))
    return found


def masked(config: Config) -> dict[str, Any]:
    """The tree as plain data with every secret hidden."""
    data: dict[str, Any] = msgspec.to_builtins(config)
    data["server"]["api_keys"] = ["***"] * len(config.server.api_keys)
    for backend in data["backends"].values():
        backend["env"] = dict.fromkeys(backend["env"], "***")
    url = config.redis.url
    if url and "@" in url:
        scheme, _, rest = url.partition("://")
        data["redis"]["url"] = f"{scheme}://***@{rest.rpartition('@')[2]}"
    return data
