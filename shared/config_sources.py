"""Reads the configuration from its sources: file, environment, flags."""

import difflib
import functools
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from shared import key_sources, redis_url
from shared.config import BACKEND_NAMES, Config
from shared.config_keys import IGNORED, Key, all_keys
from shared.errors import ConfigError
from shared.log import mask

VARIABLES = {
    "redis.url": "CLINVK_REDIS_URL",
    "default_backend": "CLINVK_BACKEND",
    "backends.claude.model": "CLINVK_CLAUDE_MODEL",
    "backends.codex.model": "CLINVK_CODEX_MODEL",
    "backends.gemini.model": "CLINVK_GEMINI_MODEL",
    "server.api_keys_gopass_path": "CLINVK_API_KEYS_GOPASS_PATH",
}
"""The keys with a variable of their own; all others have `variable_of` their path."""
_KEYS = ("CLINVK_API_KEYS", "CLINVK_API_KEY")
_PLACES = ("CLINVK_CONFIG", "CLINVK_HOME")
# What processes tell each other, and what tests and CI set.
_OTHER = ("CLINVK_LIFELINE", "CLINVK_RUN", "CLINVK_INSTANCE", "CLINVK_WARDEN", "CLINVK_REQUIRE")
_MAX_BYTES = 1 << 20
_PATHS = ("server.api_keys_file", "server.allowed_workdir_prefixes", "server.blocked_workdir_prefixes")
# PyYAML's constructors let these through for values such as `!!int x` or `2001-99-99`.
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError)


class Loaded(msgspec.Struct, frozen=True):
    config: Config
    home: Path
    file: Path | None  # None: there was none
    warnings: tuple[str, ...]


def variable_of(path: str) -> str:
    """The environment variable of a key: `server.port` -> CLINVK_SERVER__PORT."""
    if path == "server.api_keys":
        return "CLINVK_API_KEYS"
    return VARIABLES.get(path) or _spelled(path)


def _spelled(path: str) -> str:
    return "CLINVK_" + path.upper().replace(".", "__")


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Loaded:
    """`flags`: dotted keys; None is no value. Raises: ConfigError that says what, where and what would be right."""
    return _Load(environ).load(path, flags or {})


class _Load:
    """One reading. Values are gathered by path, each with where it came from, and judged one by one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._known = all_keys()
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._warnings: list[str] = []

    def load(self, path: Path | None, flags: Mapping[str, Any]) -> Loaded:
        for name in (name for name in self._environ if name.startswith("CLINVK_")):
            self._refuse_unknown_variable(name)
        home = self._place(self._environ.get("CLINVK_HOME") or "~/.clinvk", "CLINVK_HOME")
        given = path
        if given is None and "CLINVK_CONFIG" in self._environ:
            given = self._place(self._environ["CLINVK_CONFIG"], "CLINVK_CONFIG")
        file = given or home / "config.yaml"
        raw = _read(file, must_be=given is not None)
        if raw is not None:
            self._put_file(_Document(raw, file))
        self._put_variables()
        for dotted, value in flags.items():
            if value is not None:
                self._values[dotted] = value
                self._sources[dotted] = "the command line"
        self._take_over_from_clinvoker()
        config = self._convert()
        self._check(config)
        return Loaded(config, home, file if raw is not None else None, tuple(self._warnings))

    # -- sources

    def _put_file(self, document: "_Document") -> None:
        sections = {dotted[:index] for dotted in self._known for index, c in enumerate(dotted) if c == "."}
        sections |= {"backends", *(f"backends.{name}" for name in BACKEND_NAMES)}
        todo: list[tuple[str, dict[str, Any]]] = [("", document.tree)]
        while todo:
            prefix, tree = todo.pop()
            for name, value in tree.items():
                dotted = prefix + name
                if dotted in self._known or dotted in IGNORED:
                    self._values[dotted] = value
                    self._sources[dotted] = document.where(dotted)
                elif dotted not in sections:
                    raise ConfigError(
                        f"{document.where(dotted)}: unknown key {dotted!r}" + self._near(dotted, sections)
                    )
                elif isinstance(value, dict):
                    todo.append((dotted + ".", value))
                elif value is not None:  # an empty section says nothing
                    raise ConfigError(f"{document.where(dotted)}: {dotted} is a section: it must hold keys and values")

    def _near(self, dotted: str, sections: Iterable[str]) -> str:
        below = dotted.rpartition(".")[0]
        if below == "backends":
            return f"; did you mean {_nearest(dotted, [f'backends.{name}' for name in BACKEND_NAMES], 0.0)!r}?"
        names = [*self._known, *sections]
        same = [name for name in names if name.rpartition(".")[2] == dotted.rpartition(".")[2]]
        near = _nearest(dotted, [name for name in names if name.rpartition(".")[0] == below])
        near = near or _nearest(dotted, same, 0.0) or _nearest(dotted, names)
        return f"; did you mean {near!r}?" if near else ""

    def _refuse_unknown_variable(self, name: str) -> None:
        if name in _OTHER or name.startswith("CLINVK_TEST_"):
            return
        names = {*VARIABLES.values(), *_KEYS, *_PLACES, *map(_spelled, IGNORED), *map(_spelled, self._known)}
        if name not in names:
            near = _nearest(name, sorted(names))
            raise ConfigError(f"unknown variable {name}" + (f"; did you mean {near}?" if near else ""))
        if not self._environ[name].strip():
            raise ConfigError(f"{name} is set but empty; give it a value or unset it")

    def _put_variables(self) -> None:
        for dotted in (*self._known, *IGNORED):
            found = [name for name in (VARIABLES.get(dotted, ""), _spelled(dotted)) if name in self._environ]
            if not found:
                continue
            if len({self._environ[name] for name in found}) > 1:
                raise ConfigError(f"{' and '.join(found)} mean the same key and differ; unset one")
            self._values[dotted] = _read_variable(found[0], self._environ[found[0]], self._known.get(dotted))
            self._sources[dotted] = found[0]
        self._put_keys()

    def _put_keys(self) -> None:
        """Keys of the environment stand beside those of the file: a source more never opens what another closes."""
        given: list[str] = []
        for name in (name for name in _KEYS if name in self._environ):
            if self._environ[name].lstrip()[:1] in ("[", "{"):
                raise ConfigError(f"{name} holds keys with commas between them; a list goes to CLINVK_SERVER__API_KEYS")
            found = [part.strip() for part in self._environ[name].split(",") if part.strip()]
            if not found:
                raise ConfigError(f"{name} is set but holds no key; unset it to serve without keys")
            given += found
        if given:
            before = self._values.get("server.api_keys", [])
            if isinstance(before, list):  # what is no list is refused when it is converted
                self._values["server.api_keys"] = [*before, *given]
                self._sources.setdefault("server.api_keys", " and ".join(n for n in _KEYS if n in self._environ))

    # -- meaning

    def _take_over_from_clinvoker(self) -> None:
        """Its way to say "not set" is an empty text or a zero, and its file as written holds every key."""
        values = self._values
        for dotted in sorted(IGNORED & values.keys()):
            del values[dotted]
            self._warnings.append(f"{self._sources[dotted]}: {dotted} means nothing here and is ignored")
        empty = {"model", "allowed_tools", "approval_mode", "sandbox_mode", "system_prompt", "api_keys_gopass_path"}
        for dotted in [name for name, value in values.items() if value == "" and name.rpartition(".")[2] in empty]:
            del values[dotted]
        for name in ("max_turns", "max_tokens", "command_timeout_secs"):
            dotted = f"unified_flags.{name}"
            if dotted in values and str(values[dotted]).strip() in ("0", "0.0"):
                del values[dotted]
                if name == "command_timeout_secs":
                    self._warnings.append(
                        f"{self._sources[dotted]}: {dotted} is 0: a run without any limit could hold its place for "
                        f"ever, so the default of {self._known[dotted].default:g} s applies"
                    )
        general = "unified_flags.sandbox_mode"
        if values.get(general) == "default":
            del values[general]
        for name in BACKEND_NAMES:
            if values.get(own := f"backends.{name}.sandbox_mode") == "default":
                if general in values:
                    raise ConfigError(
                        f"{self._sources[own]}: {own} is 'default' while {general} is {values[general]!r}: "
                        "say which sandbox mode this backend is to have"
                    )
                del values[own]

    def _convert(self) -> Config:
        tree: dict[str, Any] = {}
        for dotted, given in self._values.items():
            entry = self._known[dotted]
            value = entry.meant(given)
            if not _is_text(value):  # such as a variable's bytes, which Python keeps as halves of characters
                raise ConfigError(f"{self._sources[dotted]}: {dotted} holds what is no UTF-8 text")
            if dotted in _PATHS:
                value = self._expanded(entry, value)
            if dotted == "server.api_keys":
                key_sources.judge_written(value, f"{self._sources[dotted]}: {dotted}")
            try:
                msgspec.convert(value, entry.kind, strict=False)
            except msgspec.ValidationError:
                is_what = "has a wrong value" if entry.secret else f"is {_shown(value)}"
                raise ConfigError(f"{self._sources[dotted]}: {dotted} {is_what}; it must be {entry.right}") from None
            *sections, last = dotted.split(".")
            below = tree
            for section in sections:
                below = below.setdefault(section, {})
            below[last] = value
        return msgspec.convert(tree, Config, strict=False)

    def _expanded(self, entry: Key, value: Any) -> Any:
        """Paths begin at HOME or at the root: a relative one would mean another place in each process."""
        if isinstance(value, list):
            return [self._expanded(entry, one) for one in value]
        if not isinstance(value, str) or not value:
            return value
        return str(self._place(value, f"{self._sources[entry.path]}: {entry.path}"))

    def _place(self, text: str, name: str) -> Path:
        if text == "~" or text.startswith("~/"):
            text = (self._environ.get("HOME") or "/") + text[1:]
        elif name not in _PLACES and not text.startswith("/"):
            raise ConfigError(f"{name} is {text!r}; it must begin with / or ~/")
        return Path(text).absolute()

    def _check(self, config: Config) -> None:
        """What a value alone does not show. A protection that was asked for and is not there stops the start."""
        for proxy in config.server.trusted_proxies:
            try:
                ipaddress.ip_network(proxy, strict=False)
            except ValueError:
                raise self._refusal("server.trusted_proxies", f"{proxy!r} is no address or network") from None
        if "server.api_keys" in self._values and not config.server.api_keys:
            raise self._refusal("server.api_keys", "it holds no key; remove it to serve without keys")
        key_sources.check(config)  # gopass is asked by the API alone
        url = config.redis.url
        if url is not None:
            try:
                redis_url.parse(url)
            except ValueError as error:
                raise self._refusal("redis.url", f"{mask(url)!r} {error}") from None
        # A smaller max_window alone is no contradiction: flows that ask for no window get that.
        if "parallel.max_workers" in self._values and config.parallel.max_workers > config.parallel.max_window:
            raise self._refusal("parallel.max_workers", f"it is above max_window ({config.parallel.max_window})")
        if (share := config.queue.max_depth_per_tenant) is not None and share > config.queue.max_depth:
            raise self._refusal("queue.max_depth_per_tenant", f"it is above max_depth ({config.queue.max_depth})")
        self._warnings += [
            f"{self._sources[dotted]}: {dotted} is not yet in force in this version"
            for dotted, value in self._values.items()
            if self._known[dotted].pending and _differs(value, self._known[dotted])
        ]

    def _refusal(self, dotted: str, why: str) -> ConfigError:
        return ConfigError(f"{self._sources.get(dotted, 'defaults')}: {dotted}: {why}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key_node, deep=deep)
            at = f"line {key_node.start_mark.line + 1}"
            if not isinstance(name, str):
                raise ConfigError(f"{at}: the key {_shown(name)} must be text; put it in quotes")
            if name in seen:
                raise ConfigError(f"{at}: {name!r} stands twice")
            seen.add(name)
        made: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return made


class _Document:
    """The file as a tree, and where each key stands in it."""

    def __init__(self, raw: bytes, file: Path) -> None:
        self._raw = raw
        self._file = file
        if len(raw) > _MAX_BYTES:
            raise ConfigError(f"{file} is larger than {_MAX_BYTES} bytes")
        try:
            tree = yaml.load(raw, _Loader)  # noqa: S506  # a SafeLoader
        except ConfigError as error:
            raise ConfigError(f"{file} {error.message}") from None
        except _YAML_ERRORS as error:
            raise ConfigError(f"{file} is not valid YAML" + _problem(error)) from None
        if not isinstance(tree, dict | None):
            raise ConfigError(f"{file} must hold keys and values, not {_shown(tree)}")
        self.tree: dict[str, Any] = tree or {}

    def where(self, dotted: str) -> str:
        return f"{self._file} line {self._lines.get(dotted, 1)}"

    @functools.cached_property
    def _lines(self) -> dict[str, int]:
        lines: dict[str, int] = {}
        todo: list[tuple[str, Any]] = [("", yaml.compose(self._raw, _Loader))]
        while todo:
            prefix, node = todo.pop()
            for key_node, below in node.value if isinstance(node, yaml.MappingNode) else ():
                dotted = f"{prefix}{key_node.value}"
                lines[dotted] = key_node.start_mark.line + 1
                if dotted.count(".") < 3:
                    todo.append((dotted + ".", below))
        return lines


def _read(file: Path, *, must_be: bool) -> bytes | None:
    try:
        with file.open("rb") as opened:
            return opened.read(_MAX_BYTES + 1)
    except OSError as error:
        if not must_be and isinstance(error, FileNotFoundError):
            return None
        raise ConfigError(f"cannot read the configuration {file}: {error.strerror}") from None


def _problem(error: Exception) -> str:
    """Without the lines around it, which may hold secrets."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark is not None else ""
    what = getattr(error, "problem", None) or getattr(error, "reason", None)
    return f"{where}: {what or 'a value is malformed'}"


def _read_variable(name: str, text: str, entry: Key | None) -> Any:
    forms = entry.forms if entry else frozenset()
    if text[:1] in "[{" and forms & {list, dict}:
        try:
            return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
        except (*_YAML_ERRORS, ConfigError):
            raise ConfigError(f"{name} begins as a YAML list or mapping, but is none") from None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if forms == {list}:
        return parts
    if forms == {dict}:
        if not all("=" in part for part in parts):
            raise ConfigError(f"{name} must be name=text,name=text")
        return dict(part.split("=", 1) for part in parts)
    return text


def _differs(value: Any, entry: Key) -> bool:
    return bool(msgspec.convert(value, entry.kind, strict=False) != entry.default)


def _is_text(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return False
    except TypeError:  # a type that is judged elsewhere
        return True
    return True


def _shown(value: Any) -> str:
    if isinstance(value, list | dict | set | tuple):
        return "a list" if isinstance(value, list | tuple) else "a mapping"
    if value is None:
        return "empty"
    text = mask(str(value))
    text = text if len(text) <= 60 else text[:60] + "..."
    return repr(text) if isinstance(value, str) else text


def _nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)
