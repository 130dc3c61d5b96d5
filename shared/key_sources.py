"""API keys from all their sources; one that is set but unreadable, empty or broken is an error, never no key."""

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from shared import gopass
from shared.config import BACKEND_NAMES, ApiKey, Config
from shared.errors import ConfigError

_HASH = re.compile(r"sha256:[0-9a-f]{64}").fullmatch
_OTHER_DIGEST = re.compile(
    r"\$?(sha-?\d|md5|blake2|bcrypt|argon2|scrypt|pbkdf2|2[aby]\$)[\w-]*[:=$]|\$(1|5|6|7|y)\$|\{[a-z0-9-]+\}",
    re.IGNORECASE,
).match
_FIELDS = {field.name: field for field in msgspec.structs.fields(ApiKey)}
_OPTIONS = {name: field for name, field in _FIELDS.items() if name not in ("key", "name")}
_RIGHT = {
    "key": "the key itself, or sha256: and 64 small hex digits",
    "name": "1 to 100 characters, none of them | or * or a control character",
    "role": "user or admin",
    "rate_limit_rps": "a number above 0, up to 1000000",
    "rate_limit_burst": "a whole number from 1",
    "max_concurrent_runs": "a whole number from 1",
    "allowed_backends": f"a list of {', '.join(BACKEND_NAMES)}",
    "allowed_workdir_prefixes": "a list of directories, each beginning with /",
    "allow_extra_flags": "true or false",
}
_LISTS = ("allowed_backends", "allowed_workdir_prefixes")
_MOST_BYTES = 1 << 24


def read_keys(config: Config, environ: Mapping[str, str]) -> list[ApiKey]:
    """All keys, each once. gopass is started as a child with `environ`. Raises: ConfigError."""
    found = _at_hand(config)
    if path := config.server.api_keys_gopass_path:
        text = gopass.show(path, environ).replace(",", "\n")
        found += _lines(text, "server.api_keys_gopass_path", path)
    return _each_once(found)


def check(config: Config) -> None:
    """As `read_keys`, but without starting gopass. Raises: ConfigError."""
    _each_once(_at_hand(config))


def _at_hand(config: Config) -> list[ApiKey]:
    """Those of the environment, the configuration and the file."""
    found = [ApiKey(key=entry) if isinstance(entry, str) else entry for entry in config.server.api_keys]
    for entry in found:
        _judge(entry, "server.api_keys")
    if path := config.server.api_keys_file:
        try:
            with Path(path).open("rb") as opened:
                raw = opened.read(_MOST_BYTES + 1)
            text = raw.decode()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"server.api_keys_file: cannot read {path}: {why}") from None
        if len(raw) > _MOST_BYTES:
            raise ConfigError(f"server.api_keys_file: {path} is larger than {_MOST_BYTES} bytes")
        found += _lines(text, "server.api_keys_file", path)
    return found


def _lines(text: str, source: str, path: str) -> list[ApiKey]:
    """`KEY [NAME] [role=admin] [limit=value]...` on each line; a list is written with colons, as PATH is."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{source}: {path} line {number}"
        options: dict[str, Any] = {"key": words[0]}
        name = " ".join(word for word in words[1:] if "=" not in word)
        for word in (word for word in words[1:] if "=" in word):
            option, _, value = word.partition("=")
            if option not in _OPTIONS:
                raise ConfigError(f"{where}: unknown option {option[:40]!r}; known are {', '.join(_OPTIONS)}")
            options[option] = value.split(":") if option in _LISTS else value
        if name:
            options["name"] = name
        try:
            entry = msgspec.convert(options, ApiKey, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {error}") from None
        _judge(entry, where)
        found.append(entry)
    if not found:
        raise ConfigError(f"{source}: {path} holds no key")
    return found


def judge_written(given: Any, where: str) -> None:
    """Entries as they stand in `server.api_keys`: names which of them, and which field of it, is wrong. What may be a key
    is never said. Raises: ConfigError."""
    for number, entry in enumerate(given if isinstance(given, list) else (), 1):
        if not isinstance(entry, dict):
            continue
        at = f"{where}: entry {number}"
        if isinstance(name := entry.get("name"), str) and name != entry.get("key"):
            at += f" ({name[:40]!r})"
        if "key" not in entry:
            raise ConfigError(f"{at} has no `key`")
        for option, value in entry.items():
            if option not in _FIELDS:
                near = difflib.get_close_matches(option, _FIELDS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(_FIELDS)}"
                raise ConfigError(f"{at} has an unknown field{hint}")
            if option in _LISTS and value == []:
                raise ConfigError(
                    f"{at}: {option} names nothing; name what this key may use, or leave {option} out for no limit"
                )
            try:
                msgspec.convert(value, _FIELDS[option].type, strict=False)
            except msgspec.ValidationError:
                is_what = (
                    "has a wrong value" if option == "key" or isinstance(value, list | dict) else f"is {_crop(value)}"
                )
                raise ConfigError(f"{at}: {option} {is_what}; it must be {_RIGHT[option]}") from None


def _crop(value: Any) -> str:
    shown = "empty" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:56]}... ({len(shown)} characters)"


def is_digest(key: str) -> bool:
    """As it is meant: whether the rest is sound is looked at when it is read."""
    return key.startswith("sha256:")


def _judge(entry: ApiKey, where: str) -> None:
    if not entry.key.strip():
        raise ConfigError(f"{where}: a key is empty")
    if is_digest(entry.key) and not _HASH(entry.key):
        raise ConfigError(f"{where}: a sha256: key must be followed by 64 small hex digits")
    # Taken for the key itself it would open to who reads the file.
    if not _HASH(entry.key) and _OTHER_DIGEST(entry.key):
        raise ConfigError(
            f"{where}: a key looks like a digest of another kind; it must be sha256: and 64 small hex digits"
        )
    for prefix in entry.allowed_workdir_prefixes:
        if not prefix.startswith("/") or "\0" in prefix:
            raise ConfigError(f"{where}: allowed_workdir_prefixes: {prefix!r} must begin with /")


def _each_once(found: Iterable[ApiKey]) -> list[ApiKey]:
    """Raises: ConfigError where the same key is to mean two things: the wider one must not win by chance."""
    kept: dict[bytes, ApiKey] = {}
    for entry in found:
        first = kept.setdefault(digest(entry.key), entry)
        if msgspec.structs.replace(entry, key=first.key) != first:
            who = " and ".join(repr(one.name) if one.name else "one without a name" for one in (first, entry))
            raise ConfigError(f"server.api_keys: the same key stands twice with different names or limits ({who})")
    return list(kept.values())


def digest(key: str) -> bytes:
    """Of the key itself, or the one that stands there as `sha256:HEX`."""
    return bytes.fromhex(key[7:]) if is_digest(key) else hashlib.sha256(key.encode()).digest()
