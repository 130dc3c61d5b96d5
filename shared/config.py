"""The configuration: a frozen tree, each key with who reads it and what it means.

Environment over file over defaults, flags over all (config_sources.py). The table in `docs/configuration.md` is made
from this file; a test compares them.
"""

from typing import Annotated, Literal, get_args

import msgspec

from shared.config_section import COUNT as _COUNT
from shared.config_section import YEAR_S as _YEAR_S
from shared.config_section import Count, Seconds, SecondsOrNone, Text, Variable, key
from shared.config_section import Section as _Section
from shared.run import ApprovalMode, SandboxMode

BackendName = Literal["claude", "codex", "gemini", "echo"]
BACKEND_NAMES: tuple[str, ...] = get_args(BackendName)


class UnifiedFlags(_Section, frozen=True):
    approval_mode: Annotated[ApprovalMode | None, key("approval mode of runs that ask for none", by="worker")] = None
    sandbox_mode: Annotated[
        SandboxMode | None,
        key(
            "sandbox mode of runs that ask for none; default: the CLI's own",
            by="worker",
            right="one of default, " + ", ".join(get_args(SandboxMode)),
        ),
    ] = None
    verbose: Annotated[bool, key("accepted for clinvoker's sake", by="worker", pending=True)] = False
    dry_run: Annotated[bool, key("show every command line instead of running it", by="worker")] = False
    max_turns: Annotated[
        Count | None, key("turns of runs that ask for none; 0: no limit", by="worker", right=_COUNT)
    ] = None
    max_tokens: Annotated[
        Count | None, key("tokens of runs that ask for none; 0: no limit", by="worker", right=_COUNT)
    ] = None
    command_timeout_secs: Annotated[
        Seconds, key("deadline of a run that asks for none; 0 (clinvoker's: no limit): the default", by="worker")
    ] = 600


class Warm(_Section, frozen=True):
    """CLIs kept running between runs; the defaults are those of each backend's driver (worker/warm)."""

    mode: Annotated[
        Literal["auto", "off"],
        key("auto: serve runs by CLIs that are kept running, where the CLI can; off: one process a run", by="worker"),
    ] = "auto"
    size: Annotated[
        Count | None,
        key("warm processes of this backend at most, not counting those that end; default: docs/warm.md", by="worker"),
    ] = None
    max_rss_mb: Annotated[
        Count | None,
        key(
            "above it one takes no more runs, above three times as much it is ended; default: docs/warm.md", by="worker"
        ),
    ] = None
    recycle_after: Annotated[
        Count | None, key("runs that one serves before another takes its place; default: docs/warm.md", by="worker")
    ] = None
    idle_secs: Annotated[Seconds, key("one without a run for so long is ended", by="worker")] = 600
    scope: Annotated[
        Literal["host", "tenant"],
        key("tenant: a warm process serves runs of one tenant alone; host: of all", by="worker"),
    ] = "tenant"


class BackendConfig(_Section, frozen=True):
    enabled: Annotated[
        bool | None,
        key("offer it; by default all but echo, which is only where all runs on one machine"),
    ] = None
    command: Annotated[
        Text | Annotated[list[Text], msgspec.Meta(min_length=1)] | None,
        key("the CLI to run: its name or path, or a list of words; default: found on PATH", by="worker"),
    ] = None
    model: Annotated[str | None, key("model of runs that ask for none; default: the CLI's own", by="worker")] = None
    allowed_tools: Annotated[
        str | list[str] | None, key("tools that need no approval, comma-separated; `all`: no limit", by="worker")
    ] = None
    approval_mode: Annotated[
        ApprovalMode | None, key("as unified_flags.approval_mode, for this backend", by="worker")
    ] = None
    sandbox_mode: Annotated[
        SandboxMode | None,
        key(
            "as unified_flags.sandbox_mode, for this backend",
            by="worker",
            right="one of default, " + ", ".join(get_args(SandboxMode)),
        ),
    ] = None
    max_approval_mode: Annotated[
        ApprovalMode | None, key("the most permissive approval mode a caller may ask for", by="worker")
    ] = None
    max_sandbox_mode: Annotated[SandboxMode | None, key("the widest sandbox a caller may ask for", by="worker")] = None
    system_prompt: Annotated[str | None, key("system prompt of runs that bring none", by="worker")] = None
    extra_flags: Annotated[list[str], key("flags always passed, as they are", by="worker")] = []
    allow_extra_flags: Annotated[
        list[str], key("flags that callers may pass in `extra` besides the built-in list", by="worker")
    ] = []
    env: Annotated[
        dict[Variable, str],
        key(
            "variables set for this CLI",
            by="worker",
            secret=True,
            right="names of variables with their texts (put numbers, yes and no in quotes)",
        ),
    ] = {}
    env_passthrough: Annotated[
        list[str], key("names (patterns such as `AWS_*`) of the host's variables this CLI may see", by="worker")
    ] = []
    max_concurrency: Annotated[
        Count | None, key("runs of it at once in one worker process; default: worker.concurrency", by="worker")
    ] = None
    warm: Warm = Warm()


class Session(_Section, frozen=True):
    retention_days: Annotated[
        float,
        msgspec.Meta(gt=0, le=36_500),
        key("how long an unused session is kept; the API and the workers must agree"),
    ] = 30
    store_token_usage: Annotated[bool, key("accepted for clinvoker's sake: usage is always kept", pending=True)] = True
    default_tags: Annotated[list[str], key("tags of every new session", by="api")] = []
    refuse_busy: Annotated[
        bool, key("answer a further turn with 409 while one is under way, instead of letting it wait", by="api")
    ] = False


class Output(_Section, frozen=True):
    format: Annotated[
        Literal["default", "text", "json", "stream-json"],
        key("accepted for clinvoker's sake: requests say their own", by="api", pending=True),
    ] = "json"


class ApiKey(_Section, frozen=True):
    """One key and what it may do; each limit that is left out is none."""

    key: Annotated[Text, key("the key, or sha256: and 64 hex digits", by="api", secret=True)]
    name: Annotated[
        Annotated[str, msgspec.Meta(pattern=r"^[^|*\x00-\x1f]{1,100}$")] | None,
        key("whose it is: the tenant", by="api"),
    ] = None
    role: Annotated[Literal["user", "admin"], key("admin: all tenants' runs, the fleet, the audit log", by="api")] = (
        "user"
    )
    rate_limit_rps: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None, key("requests a second with this key", by="api")
    ] = None
    rate_limit_burst: Annotated[Count | None, key("requests at once with this key", by="api")] = None
    max_concurrent_runs: Annotated[Count | None, key("runs at once; more of them wait in line", by="api")] = None
    allowed_backends: Annotated[list[BackendName], key("backends that it may use; none named: all", by="api")] = []
    allowed_workdir_prefixes: Annotated[
        list[Text], key("where its `workdir` may lie, within the server's own rules; none named: as those", by="api")
    ] = []
    allow_extra_flags: Annotated[bool, key("whether its requests may carry `extra`", by="api")] = True


class Server(_Section, frozen=True):
    host: Annotated[Text, key("address to listen on", by="api")] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535), key("port to listen on; 0: any free one", by="api")] = 8080
    request_timeout_secs: Annotated[Seconds, key("limit of an answer that is not streamed (504)", by="api")] = 300
    read_timeout_secs: Annotated[
        Seconds, key("a request must come whole within so long of its first byte (408)", by="api")
    ] = 30
    write_timeout_secs: Annotated[
        Seconds, key("a client that takes nothing of its answer for so long is cut off", by="api")
    ] = 300
    idle_timeout_secs: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=_YEAR_S)], key("how long an idle connection is kept", by="api")
    ] = 120
    api_keys: Annotated[
        list[str | ApiKey],
        key(
            "keys, each plain, `sha256:HEX` or a mapping of the key, its name, role and limits (docs/api-keys.md); with "
            "any key from any source every request needs one",
            by="api",
            secret=True,
            right="a list of keys: each plain, sha256: and 64 small hex digits, or {key: ..., name: ..., and limits}",
        ),
    ] = []
    api_keys_file: Annotated[
        Text | None,
        key(
            "file with a key or `sha256:HEX` on each line, its name and limits may follow; read again when it changes",
            by="api",
        ),
    ] = None
    api_keys_gopass_path: Annotated[
        str | None,
        key("gopass entry with keys, read with `gopass show -o` at the start and again from time to time", by="api"),
    ] = None
    api_keys_refresh_secs: Annotated[
        Annotated[float, msgspec.Meta(ge=1, le=_YEAR_S)],
        key("how often the keys of all sources are read again; SIGHUP does so at once", by="api"),
    ] = 60
    rate_limit_enabled: Annotated[
        bool,
        key(
            "limit each key by itself, or each address (of IPv6 each /64) where there are no keys; wrong keys are limited by "
            "address also where this is off (1 a second, 20 at once)",
            by="api",
        ),
    ] = False
    rate_limit_rps: Annotated[float, msgspec.Meta(gt=0, le=1_000_000), key("requests a second", by="api")] = 10
    rate_limit_burst: Annotated[Count, key("requests at once", by="api")] = 20
    rate_limit_cleanup_secs: Annotated[SecondsOrNone, key("for clinvoker's sake", by="api", pending=True)] = 180
    trusted_proxies: Annotated[
        list[str], key("proxies (addresses or networks) whose `X-Forwarded-For` is believed", by="api")
    ] = []
    max_request_body_bytes: Annotated[Count, key("a larger body is 413", by="api")] = 10_485_760
    cors_allowed_origins: Annotated[
        list[str], key("origins (`https://app.example`, or `*`) whose pages may use the service", by="api")
    ] = []
    cors_allow_credentials: Annotated[bool, key("CORS with credentials", by="api")] = False
    cors_max_age: Annotated[int, msgspec.Meta(ge=0, le=_YEAR_S), key("seconds a preflight is kept", by="api")] = 300
    allowed_workdir_prefixes: Annotated[
        list[Text], key("where a `workdir` may lie; none: anywhere not blocked", by="worker")
    ] = []
    blocked_workdir_prefixes: Annotated[
        list[Text], key("where no `workdir` may lie, besides the built-in list", by="worker")
    ] = []
    metrics_enabled: Annotated[bool, key("the /metrics route; with keys, for admins", by="api")] = False
    hangup_grace_secs: Annotated[SecondsOrNone, key("how long a run goes on when nobody follows it any more")] = 10
    stream_hold_secs: Annotated[
        SecondsOrNone, key("how long a stream's status waits for the first event", by="api")
    ] = 2
    heartbeat_secs: Annotated[Seconds, key("the longest silence of an open stream", by="api")] = 15


class Parallel(_Section, frozen=True):
    max_workers: Annotated[Count, key("window of a flow that asks for none, at most `max_window`", by="api")] = 3
    fail_fast: Annotated[bool, key("end a flow at its first failure", by="api")] = False
    max_window: Annotated[Count, key("the largest window a flow may ask for", by="api")] = 50


class Redis(_Section, frozen=True):
    url: Annotated[
        Text | None,
        key(
            "redis://, unix://, redis+sentinel://HOST,HOST/SERVICE/DB, and rediss:// or rediss+sentinel:// by TLS "
            "(`?ssl_ca_certs=...&ssl_certfile=...&ssl_keyfile=...`); none: `clinvk serve` runs everything here",
            secret=True,
        ),
    ] = None


class Worker(_Section, frozen=True):
    name: Annotated[
        Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$")] | None,
        key("the host's name; default: the hostname", by="worker", right="letters, digits, dots, dashes, underscores"),
    ] = None
    labels: Annotated[dict[Text, str], key("what requests may ask for by `labels`", by="worker")] = {}
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1000), key("runs at once in one worker process", by="worker")] = 8
    lease_secs: Annotated[
        float,
        msgspec.Meta(ge=4, le=3600),
        key("a worker silent for so long is taken for dead; the same for the whole fleet"),
    ] = 10
    shutdown_grace_secs: Annotated[SecondsOrNone, key("how long running runs may go on at shutdown")] = 30
    idle_timeout_secs: Annotated[Seconds, key("a CLI that prints nothing for so long is ended", by="worker")] = 600
    pass_over_secs: Annotated[
        SecondsOrNone,
        key(
            "how long a host takes no runs of a backend whose login or limit has failed there; 0: it goes on",
            by="worker",
        ),
    ] = 60


class QueueConfig(_Section, frozen=True):
    max_depth: Annotated[Count, key("runs that may wait; more are 429", by="api")] = 10_000
    max_depth_per_tenant: Annotated[
        Count | None,
        key("the same of one tenant; default: a quarter of `max_depth` where there are keys, else all", by="api"),
    ] = None
    max_wait_secs: Annotated[Seconds, key("a run that waits longer ends as timeout")] = 600
    wait_for_worker: Annotated[
        bool, key("let runs wait for a backend that no live worker offers, instead of 503 at once")
    ] = False


class Runs(_Section, frozen=True):
    retention_secs: Annotated[
        float, msgspec.Meta(ge=1, le=_YEAR_S), key("how long an ended run and its events are kept")
    ] = 86_400
    max_events: Annotated[
        int, msgspec.Meta(ge=100, le=10_000_000), key("events kept of a run; older ones are trimmed")
    ] = 10_000
    max_flow_events: Annotated[
        int,
        msgspec.Meta(ge=100, le=100_000_000),
        key("events kept of a flow's own log, which has room for `max_events` of each lane up to this many"),
    ] = 200_000
    max_output_bytes: Annotated[
        int,
        msgspec.Meta(ge=1024, le=1 << 30),
        key("events of a run in all; more end it as output_too_large", by="worker"),
    ] = 16_777_216


class Audit(_Section, frozen=True):
    max_entries: Annotated[Count, key("entries kept of the audit log, at most", by="api")] = 100_000
    retention_days: Annotated[
        float, msgspec.Meta(ge=1, le=36_500), key("how long its entries are kept (`/api/v1/audit`)", by="api")
    ] = 365


class Usage(_Section, frozen=True):
    retention_days: Annotated[
        float, msgspec.Meta(ge=1, le=36_500), key("how long the use of each day is kept (`/api/v1/usage`)")
    ] = 400


class Log(_Section, frozen=True):
    level: Annotated[Literal["debug", "info", "warning", "error"], key("the least that is logged")] = "info"
    format: Annotated[Literal["auto", "text", "json"], key("auto: text on a terminal, else JSON lines")] = "auto"


class Config(_Section, frozen=True):
    default_backend: Annotated[BackendName, key("backend of models that name none", by="api")] = "claude"
    model_aliases: Annotated[
        dict[Text, str],
        key("model names (patterns) and what they stand for: a backend, `backend/model`, or another name", by="api"),
    ] = {}
    strict_models: Annotated[bool, key("refuse unknown model names", by="api")] = False
    unified_flags: UnifiedFlags = UnifiedFlags()
    backends: dict[BackendName, BackendConfig] = {}
    session: Session = Session()
    output: Output = Output()
    server: Server = Server()
    parallel: Parallel = Parallel()
    redis: Redis = Redis()
    worker: Worker = Worker()
    queue: QueueConfig = QueueConfig()
    runs: Runs = Runs()
    usage: Usage = Usage()
    audit: Audit = Audit()
    log: Log = Log()

    def backend(self, name: str) -> BackendConfig:
        return next((found for known, found in self.backends.items() if known == name), BackendConfig())
