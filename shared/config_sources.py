"""Reads the configuration from its sources: file, environment, flags."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from shared.config import IGNORED, BackendConfig, Config, keys
from shared.errors import ConfigError

_NAMED = {
    "CLINVK_REDIS_URL": "redis.url",
    "CLINVK_BACKEND": "default_backend",
    "CLINVK_CLAUDE_MODEL": "backends.claude.model",
    "CLINVK_CODEX_MODEL": "backends.codex.model",
    "CLINVK_GEMINI_MODEL": "backends.gemini.model",
    "CLINVK_API_KEYS_GOPASS_PATH": "server.api_keys_gopass_path",
}
# Not configuration: where it lies, what processes tell each other, what tests set.
_OTHER: tuple[str, ...] = (
    "CLINVK_CONFIG",
    "CLINVK_HOME",
    "CLINVK_LIFELINE",
    "CLINVK_RUN",
    "CLINVK_INSTANCE",
    "CLINVK_WARDEN",
)
_OTHER += ("CLINVK_REQUIRE", "CLINVK_API_KEYS", "CLINVK_API_KEY")
_MAX_BYTES = 1 << 20


class Loaded(msgspec.Struct, frozen=True):
    config: Config
    home: Path
    file: Path | None  # None: there was none
    warnings: tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            name = self.construct_object(key_node, deep=deep)
            if not isinstance(name, str):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: the key {name!r} must be text")
            if name in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: {name!r} stands twice")
            seen.add(name)
        made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return made


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Loaded:
    """`flags`: dotted keys. Raises: ConfigError that says what, where and what would be right."""
    home = Path(environ.get("CLINVK_HOME") or Path(environ.get("HOME") or "/") / ".clinvk")
    given = path or (Path(environ["CLINVK_CONFIG"]) if environ.get("CLINVK_CONFIG") else None)
    file = given or home / "config.yaml"
    warnings: list[str] = []
    tree: dict[str, Any] = {}
    found: Path | None = None
    try:
        raw = file.read_bytes()
        found = file
    except OSError as error:
        if given is not None or not isinstance(error, FileNotFoundError):
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    else:
        tree = _parsed(raw, file)
        _forget_ignored(tree, file, warnings)
    for name, value in environ.items():
        if name.startswith("CLINVK_"):
            _put_variable(tree, name, value)
    _put_keys(tree, environ)
    for dotted, value in (flags or {}).items():
        if value is not None:
            _put(tree, dotted, value, "a flag")
    try:
        config = msgspec.convert(tree, Config, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_explained(error, file if found else None)) from error
    _check(config)
    warnings += _pending(config)
    return Loaded(config, home, found, tuple(warnings))


def _parsed(raw: bytes, file: Path) -> dict[str, Any]:
    if len(raw) > _MAX_BYTES:
        raise ConfigError(f"{file} is larger than {_MAX_BYTES} bytes")
    try:
        tree = yaml.load(raw, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{file}, {error.message}") from error
    except RecursionError as error:
        raise ConfigError(f"{file} is nested too deep") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold keys and values, not a {type(tree).__name__}")
    return tree


def _forget_ignored(tree: dict[str, Any], file: Path, warnings: list[str]) -> None:
    for dotted in sorted(IGNORED):
        section, _, name = dotted.partition(".")
        if isinstance(tree.get(section), dict) and name in tree[section]:
            del tree[section][name]
            warnings.append(f"{file}: {dotted} means nothing here and is ignored")
    for section in [name for name, value in tree.items() if value is None]:
        del tree[section]


def _put_variable(tree: dict[str, Any], name: str, value: str) -> None:
    if name in _OTHER or name.startswith("CLINVK_TEST_"):
        return
    if name in _NAMED:
        if value:
            _put(tree, _NAMED[name], value, name)
        return
    known = {entry.path for entry in keys()}
    dotted = name.removeprefix("CLINVK_").lower().replace("__", ".")
    parts = dotted.split(".")
    generic = ".".join([parts[0], "NAME", *parts[2:]]) if parts[0] == "backends" and len(parts) > 2 else dotted
    if generic not in known:
        names = [*_NAMED, *_OTHER, *("CLINVK_" + path.upper().replace(".", "__") for path in known)]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        raise ConfigError(f"unknown variable {name}" + (f"; did you mean {near[0]}?" if near else ""))
    _put(tree, dotted, _scalar(value, name), name)


def _scalar(value: str, name: str) -> Any:
    if value[:1] in "[{":
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{name} is not valid YAML: {error}") from error
    return value


def _put(tree: dict[str, Any], dotted: str, value: Any, source: str) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{source}: {section} is not a section in the file")
        tree = below
    tree[last] = value


def _put_keys(tree: dict[str, Any], environ: Mapping[str, str]) -> None:
    """A source of keys that is set but empty stops the start: auth never fails open."""
    given: list[str] = []
    for name in ("CLINVK_API_KEYS", "CLINVK_API_KEY"):
        if name in environ:
            found = [part.strip() for part in environ[name].split(",") if part.strip()]
            if not found:
                raise ConfigError(f"{name} is set but holds no key; unset it to serve without keys")
            given += found
    if given:
        server = tree.setdefault("server", {})
        if isinstance(server, dict):
            server["api_keys"] = [*(server.get("api_keys") or []), *given]


def _explained(error: msgspec.ValidationError, file: Path | None) -> str:
    what, _, where = str(error).partition(" - at `$.")
    where = where.rstrip("`")
    source = f"{file}: " if file else ""
    if "unknown field" in what:
        name = what.rpartition("field `")[2].rstrip("`")
        dotted = f"{where}.{name}" if where else name
        known = {entry.path for entry in keys()} | {entry.path.partition(".")[0] for entry in keys()}
        parts = dotted.split(".")
        if parts[0] == "backends" and len(parts) > 2:
            known = {f"backends.{parts[1]}.{field.name}" for field in msgspec.structs.fields(BackendConfig)}
        near = difflib.get_close_matches(dotted, sorted(known), n=1, cutoff=0.6)
        return f"{source}unknown key {dotted!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    if where.startswith("backends") and "enum value" in what:
        names = get_args(get_args(Config.__annotations__["backends"])[0])
        return f"{source}{what} under backends; known are {', '.join(names)}"
    return f"{source}{where or 'the file'}: {what}"


def _check(config: Config) -> None:
    if config.server.rate_limit_enabled:
        raise ConfigError(
            "server.rate_limit_enabled is true, but this version has no rate limits: nothing may fail open"
        )
    if config.server.api_keys_gopass_path:
        raise ConfigError(
            "server.api_keys_gopass_path is set, but this version cannot read gopass: nothing may fail open"
        )
    if config.server.api_keys_file is not None:
        read_keys(config)


def read_keys(config: Config) -> list[tuple[str, str | None]]:
    """(key or sha256:HEX, name) from all sources. Raises: ConfigError for a source that is unreadable, empty or broken."""
    found: list[tuple[str, str | None]] = []
    for entry in config.server.api_keys:
        found.append((entry, None) if isinstance(entry, str) else (entry.key, entry.name))
    if (path := config.server.api_keys_file) is not None:
        try:
            lines = Path(path).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"server.api_keys_file: cannot read {path}: {error}") from error
        rows = [line.split(None, 1) for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not rows:
            raise ConfigError(f"server.api_keys_file: {path} holds no key")
        found += [(row[0], row[1].strip() if len(row) > 1 else None) for row in rows]
    for value, _ in found:
        if not value.strip():
            raise ConfigError("server.api_keys: a key is empty")
        if value.startswith("sha256:") and (len(value) != 71 or not all(c in "0123456789abcdef" for c in value[7:])):
            raise ConfigError("server.api_keys: a sha256: key must be followed by 64 small hex digits")
    return found


def _pending(config: Config) -> list[str]:
    """Keys that were changed but are not in force."""
    found = []
    data = msgspec.to_builtins(config)
    for entry in keys():
        if not entry.pending or ".NAME." in entry.path:
            continue
        value = data
        for part in entry.path.split("."):
            value = value[part]
        if value != msgspec.to_builtins(entry.default):
            found.append(f"{entry.path} is not yet in force in this version")
    return found
