"""What `clinvk doctor` looks at, and what it makes of it: each check says what is, and what to do where that is not well."""

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from shared.config import Config
from shared.host import Instance
from shared.key_sources import is_digest
from shared.warm import switched_off
from worker.codex_login import provider
from worker.host import find_version, offered
from worker.stage import find_command, passed_on

State = Literal["ok", "note", "warning", "failed"]

_OLDEST_REDIS = (6, 2)
_PUBSUB_BYTES = 64 << 20
_FILES = 4096
_SKEW_S = 2.0
_DISK_BYTES = 1 << 30
_SLOW_S = 0.02
SHORT = 16  # characters of a key

# Where a login can be told without a call: files below HOME, and variables. Only whether they are there is looked at.
_LOGINS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "claude": (
        (".claude/.credentials.json",),
        (
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_AUTH_TOKEN",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "CLAUDE_CODE_USE_BEDROCK",
            "CLAUDE_CODE_USE_VERTEX",
        ),
        "run `claude` there once and log in, or set ANTHROPIC_API_KEY",
    ),
    "codex": (
        (".codex/auth.json",),
        ("CODEX_API_KEY", "OPENAI_API_KEY"),
        "run `codex login` there, or set CODEX_API_KEY",
    ),
    "gemini": (
        (".gemini/oauth_creds.json",),
        ("GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI"),
        "run `gemini` there once and log in, or set GEMINI_API_KEY",
    ),
}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One finding. `advice` is there where something should be done."""

    about: str
    state: State
    found: str
    advice: str = ""


def clis(config: Config, environ: Mapping[str, str]) -> list[Check]:
    """The CLIs of this host. Slow where a version must be asked for; nothing calls a vendor."""
    checks = []
    for name in offered(config, None):
        command = find_command(config, environ, name)
        if command is None:
            advice = f"install it, or set backends.{name}.command, or backends.{name}.enabled: false"
            checks.append(Check(about=name, state="warning", found="not on the PATH", advice=advice))
            continue
        version = find_version(name, command)
        state: State = "ok" if version else "warning"
        advice = "" if version else f"`{' '.join(command)} --version` gave none"
        found = f"{version or 'version unknown'}  {command[0]}"
        checks.append(Check(about=name, state=state, found=found, advice=advice))
        if name in _LOGINS:
            own = of_codex(config, environ) if name == "codex" else None
            checks.append(own or login(name, {**environ, **config.backend(name).env}))
    alone = not config.redis.url  # `clinvk serve` has echo there
    if not alone and not any(check.state == "ok" for check in checks):
        checks.append(
            Check(about="backends", state="failed", found="no CLI that a worker here could run", advice="see above")
        )
    return checks


def of_codex(config: Config, environ: Mapping[str, str]) -> Check | None:
    """Where codex's `config.toml` sends runs to a provider with a key of its own; None where it does not."""
    seen = {**passed_on(config, environ, "codex"), **config.backend("codex").env}
    about = "codex login"
    try:
        found = provider(Path(seen.get("CODEX_HOME") or Path(environ.get("HOME") or "/") / ".codex"))
    except ValueError as error:
        return Check(about=about, state="warning", found=str(error), advice="codex reads it at each run")
    if found is None:
        return None
    whose = f"the provider {found.name!r} of codex's config.toml"
    if found.variable is None:
        return Check(about=about, state="ok", found=f"{whose} takes no key from the environment")
    if seen.get(found.variable):
        return Check(about=about, state="ok", found=f"{found.variable} is set, for {whose}")
    if environ.get(found.variable):
        advice = f"codex is not given it: set backends.codex.env_passthrough: [{found.variable}]"
        return Check(about=about, state="warning", found=f"{found.variable} is set here alone", advice=advice)
    advice = f"set {found.variable} for the worker, and backends.codex.env_passthrough: [{found.variable}]"
    return Check(about=about, state="warning", found=f"{whose} wants {found.variable}, which is not set", advice=advice)


def login(name: str, environ: Mapping[str, str]) -> Check:
    """Whether there is something to log in with; whether the vendor takes it, only a call can tell."""
    files, variables, advice = _LOGINS[name]
    about = f"{name} login"
    given = [variable for variable in variables if environ.get(variable)]
    if given:
        return Check(about=about, state="ok", found=f"{given[0]} is set")
    home = Path(environ.get("HOME") or "/")
    there = [file for file in files if (home / file).is_file()]
    if there:
        return Check(about=about, state="ok", found=f"~/{there[0]} is there")
    return Check(about=about, state="warning", found="none found", advice=advice)


def home(path: Path, config_file: Path | None, config: Config) -> list[Check]:
    """CLINVK_HOME and the files that hold keys."""
    checks = []
    at = path
    while not os.path.exists(at):  # noqa: PTH110  # pathlib's raises where it may not look
        at = at.parent
    if (why := _unwritable(at)) is not None:
        advice = f"give it to the user who runs clinvk: chown {os.geteuid()} {at}; or set CLINVK_HOME"
        found = f"{path} cannot be written" if at == path else f"{path} cannot be made"
        checks.append(Check(about="home", state="failed", found=f"{found} ({at}: {why})", advice=advice))
    elif at != path:
        checks.append(Check(about="home", state="ok", found=f"{path} will be made"))
    elif (mode := stat.S_IMODE(path.stat().st_mode)) & 0o022:
        advice = f"others can write there: chmod 700 {path}"
        checks.append(Check(about="home", state="failed", found=f"{path} has mode {mode:o}", advice=advice))
    else:
        checks.append(Check(about="home", state="ok", found=f"{path} (mode {mode:o})"))
    free = shutil.disk_usage(at).free
    disk: State = "ok" if free > _DISK_BYTES else "warning"
    advice = "" if disk == "ok" else "runs that cannot write end as backend_unavailable"
    checks.append(Check(about="disk", state=disk, found=f"{free / 1e9:.1f} GB free at {at}", advice=advice))
    for file in (config_file, config.server.api_keys_file and Path(config.server.api_keys_file)):
        if file and file.is_file() and stat.S_IMODE(file.stat().st_mode) & 0o007 and not _digests_alone(file):
            found = f"{file} can be read by everybody"
            checks.append(Check(about="files", state="warning", found=found, advice=f"chmod 600 {file}"))
    return checks


def _digests_alone(file: Path) -> bool:
    """Of a file of keys: nobody comes in with what stands there, and the API may be another user (docs/deployment.md)."""
    try:
        lines = [words[0] for line in file.read_text().splitlines() if (words := line.split())]
    except (OSError, ValueError):
        return False
    keys = [word for word in lines if not word.startswith("#")]
    return bool(keys) and all(map(is_digest, keys))


def _unwritable(folder: Path) -> str | None:
    """Tried, since no question tells of every file system: root may write to /proc, as access(2) has it."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".clinvk-doctor-", dir=folder))  # noqa: PTH106  # what mkdtemp gave
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def machine(*, as_root: bool, files: int, pidfds: bool, tags: bool) -> list[Check]:
    """What the kernel gives to a worker."""
    checks = []
    state: State = "ok" if files >= _FILES else "warning"
    advice = (
        "" if state == "ok" else f"raise it (ulimit -n {_FILES * 4}; LimitNOFILE=): each run and stream takes a few"
    )
    checks.append(Check(about="descriptors", state=state, found=f"{files} may be open", advice=advice))
    if not pidfds:
        advice = "Linux 5.3 or later is needed for a worker"
        checks.append(Check(about="kernel", state="failed", found="no pidfds", advice=advice))
    if not tags:
        advice = "what a CLI leaves behind is found by its environment alone (docs/architecture.md)"
        checks.append(Check(about="kernel", state="note", found="processes cannot be tagged", advice=advice))
    if as_root:
        advice = "run clinvk as a user of its own: a CLI may do all that its user may"
        checks.append(Check(about="user", state="warning", found="root", advice=advice))
    return checks


class RedisFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of Redis; `config` is empty where it may not be asked for."""

    round_trip_s: float
    skew_s: float  # its clock less ours
    info: Mapping[str, str]
    config: Mapping[str, str] = {}
    fleet: Sequence[Instance] = ()


def redis(facts: RedisFacts) -> list[Check]:
    """Whether it is one that keeps what it is given, and lets everybody hear of it."""
    info = facts.info
    version = info.get("valkey_version") or info.get("redis_version", "?")
    numbers = tuple(int(part) for part in info.get("redis_version", "0").split(".")[:2] if part.isdigit())
    checks = [
        Check(
            about="redis",
            state="ok" if facts.round_trip_s < _SLOW_S else "warning",
            found=f"{info.get('server_name', 'redis')} {version}, {facts.round_trip_s * 1000:.1f} ms there and back",
            advice="" if facts.round_trip_s < _SLOW_S else "each event of a run takes two such ways: put it nearer",
        )
    ]
    if numbers < _OLDEST_REDIS:
        checks.append(Check(about="redis version", state="failed", found=version, advice="6.2 or later is needed"))
    if info.get("role", "master") != "master":
        advice = "redis.url must lead to the master"
        checks.append(Check(about="redis role", state="failed", found=info["role"], advice=advice))
    if info.get("cluster_enabled") == "1":
        advice = "use a single master (with Sentinel or a managed failover): one step touches names of several slots"
        checks.append(Check(about="redis cluster", state="failed", found="cluster mode", advice=advice))
    if info.get("aof_enabled") == "1":
        checks.append(Check(about="persistence", state="ok", found="append-only file"))
    else:
        saves = facts.config.get("save")
        what = "snapshots only" if saves else "none" if saves == "" else "no append-only file"
        advice = "set `appendonly yes`: a restart of Redis would forget runs and sessions"
        checks.append(Check(about="persistence", state="warning", found=what, advice=advice))
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and info.get("maxmemory", "0") != "0":
        advice = "set `maxmemory-policy noeviction`: evicted runs would be lost in silence"
        checks.append(Check(about="eviction", state="failed", found=policy, advice=advice))
    elif policy != "noeviction":
        advice = "set `maxmemory-policy noeviction` before you set maxmemory"
        checks.append(Check(about="eviction", state="warning", found=f"{policy}, without maxmemory", advice=advice))
    else:
        checks.append(Check(about="eviction", state="ok", found=policy))
    if (limits := _pubsub_limits(facts.config.get("client-output-buffer-limit", ""))) is not None:
        small = any(0 < limit < _PUBSUB_BYTES for limit in limits)
        advice = "set `client-output-buffer-limit pubsub 256mb 128mb 60`: an API that stalls is cut off sooner"
        found = f"{limits[0] >> 20} MB, {limits[1] >> 20} MB for a while" if any(limits) else "no limit"
        checks.append(
            Check(
                about="pubsub buffer",
                state="warning" if small else "ok",
                found=found,
                advice=advice if small else "",
            )
        )
    skewed = abs(facts.skew_s) > _SKEW_S
    checks.append(
        Check(
            about="clock",
            state="warning" if skewed else "ok",
            found=f"{facts.skew_s:+.1f} s beside Redis'",
            advice="set up NTP: stamps of events and the relay's lag come from the hosts' clocks" if skewed else "",
        )
    )
    return checks + _fleet(facts.fleet)


def _pubsub_limits(given: str) -> tuple[int, int] | None:
    words = given.split()
    if "pubsub" not in words:
        return None
    at = words.index("pubsub")
    hard, soft = words[at + 1 : at + 3]
    return int(hard), int(soft)


def _fleet(fleet: Sequence[Instance]) -> list[Check]:
    """What the live workers say of themselves."""
    if not fleet:
        advice = "start one: clinvk worker"
        return [Check(about="workers", state="note", found="none is connected", advice=advice)]
    checks = []
    for one in fleet:
        for backend in one.backends:
            good = backend.readiness.value == "ready"
            state: State = "ok" if good else "note" if backend.readiness.value == "not_installed" else "warning"
            found = f"{backend.readiness.value} {backend.version or ''}".strip()
            if good and (warm := backend.warm) is not None:
                found += f", warm: {warm.kept} kept, {warm.hits} runs on them"
                if (why := warm.cold_because) is not None:
                    found += f", cold: {why}"
                    # Slower than it was meant to be, unless somebody wanted it so.
                    state = "note" if why == switched_off(backend.name) else "warning"
            checks.append(
                Check(
                    about=f"{one.host} {backend.name}",
                    state=state,
                    found=found,
                    advice="" if good else backend.reason or "",
                )
            )
    return checks


def gate(config: Config, *, keys: int, short: int = 0) -> list[Check]:
    """Who may come in. `short`: how many of the keys can be guessed; of a digest nobody knows."""
    local = config.server.host in ("127.0.0.1", "::1", "localhost")
    if short:
        advice = "one that is short can be guessed: `openssl rand -hex 24` makes a key"
        found = f"{keys}, {short} of them shorter than {SHORT} characters"
        return [Check(about="keys", state="warning", found=found, advice=advice)]
    if keys:
        return [Check(about="keys", state="ok", found=f"{keys}")]
    if local:
        return [Check(about="keys", state="note", found=f"none; only {config.server.host} is listened on")]
    advice = "whoever reaches the port can run agents: set CLINVK_API_KEYS or server.api_keys"
    return [Check(about="keys", state="failed", found=f"none, and {config.server.host} is listened on", advice=advice)]


def text(checks: Sequence[Check]) -> str:
    """For people, in columns."""
    width = max(len(check.about) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:8} {check.about:{width}}  {check.found}")
        if check.advice:
            lines.append(f"{'':8} {'':{width}}  -> {check.advice}")
    failed = sum(check.state == "failed" for check in checks)
    warned = sum(check.state == "warning" for check in checks)
    lines.append(f"{failed} failed, {warned} warnings" if failed or warned else "all is well")
    return "\n".join(lines)
